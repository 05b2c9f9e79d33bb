//! The values of clusters at a moment, and the page that shows them.
//! Never looks a value up. Invariant: a metric without a value has no line, so that nobody takes an unknown for 0, and
//! all samples of a metric stand together under one description.

use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::meter::{Counter, Histogram, HistogramRead};
use super::table::{Metric, MetricKind, PREFIX};

/// Values of one cluster, or of the process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    metric: Metric,
    labels: Vec<(&'static str, &'static str)>,
    value: SampleValue,
}

#[derive(Debug, Clone)]
enum SampleValue {
    Gauge(f64),
    Counter(u64),
    Histogram(HistogramRead),
    Info,
}

impl Samples {
    /// Adds a gauge: a value that can rise and fall. An unknown value adds nothing.
    pub(crate) fn gauge(&mut self, metric: Metric, value: impl Into<Option<f64>>) {
        let value = value.into().filter(|value| value.is_finite());
        self.put(metric, Vec::new(), value.map(SampleValue::Gauge));
    }

    /// Adds a gauge whose value is a whole number. An unknown value adds nothing.
    #[expect(clippy::cast_precision_loss, reason = "the format has floating point")]
    pub(crate) fn whole(&mut self, metric: Metric, value: impl Into<Option<u64>>) {
        self.gauge(metric, value.into().map(|value| value as f64));
    }

    /// Adds a gauge that is 1 for `true` and 0 for `false`. An unknown value adds nothing.
    pub(crate) fn flag(&mut self, metric: Metric, value: impl Into<Option<bool>>) {
        self.gauge(metric, value.into().map(|value| f64::from(u8::from(value))));
    }

    /// One of several flags of a metric that has further labels.
    pub(crate) fn flag_of(
        &mut self,
        metric: Metric,
        labels: &[(&'static str, &'static str)],
        value: bool,
    ) {
        let value = SampleValue::Gauge(f64::from(u8::from(value)));
        self.put(metric, labels.to_vec(), Some(value));
    }

    /// Sets one of several flags, which may be there with another value.
    pub(crate) fn set_flag_of(
        &mut self,
        metric: Metric,
        labels: &[(&'static str, &'static str)],
        value: bool,
    ) {
        self.0
            .retain(|sample| sample.metric != metric || sample.labels != labels);
        self.flag_of(metric, labels, value);
    }

    /// What was counted.
    pub(crate) fn counter(
        &mut self,
        metric: Metric,
        labels: &[(&'static str, &'static str)],
        counter: &Counter,
    ) {
        let value = SampleValue::Counter(counter.get());
        self.put(metric, labels.to_vec(), Some(value));
    }

    /// How long things took.
    pub(crate) fn histogram(&mut self, metric: Metric, histogram: &Histogram) {
        let value = SampleValue::Histogram(histogram.read());
        self.put(metric, Vec::new(), Some(value));
    }

    /// Adds all of these.
    pub(crate) fn extend(&mut self, more: &Samples) {
        self.0.extend_from_slice(&more.0);
    }

    /// The value of a gauge without labels of its own.
    pub(crate) fn get(&self, metric: Metric) -> Option<f64> {
        let found = self.0.iter().find(|sample| sample.metric == metric)?;
        match found.value {
            SampleValue::Gauge(value) => Some(value),
            _ => None,
        }
    }

    /// Says that they were looked at just now.
    pub(crate) fn refreshed_now(mut self) -> Samples {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since = since.ok().map(|since| since.as_secs_f64());
        self.gauge(Metric::Refreshed, since);
        self
    }

    /// Leaves only what is asked for.
    pub(crate) fn retain(&mut self, stays: impl Fn(Metric) -> bool) {
        self.0.retain(|sample| stays(sample.metric));
    }

    fn put(
        &mut self,
        metric: Metric,
        labels: Vec<(&'static str, &'static str)>,
        value: Option<SampleValue>,
    ) {
        self.0.extend(value.map(|value| Sample {
            metric,
            labels,
            value,
        }));
    }
}

/// Everything that there is to show.
#[derive(Debug, Default)]
pub(crate) struct MetricsPage {
    /// Of the process.
    pub process: Samples,
    /// Of each cluster, with its name.
    pub clusters: Vec<(String, Samples)>,
}

impl MetricsPage {
    /// A page of one cluster.
    pub(crate) fn of(cluster: &str, samples: Samples) -> MetricsPage {
        MetricsPage {
            process: Samples::default(),
            clusters: vec![(cluster.to_owned(), samples)],
        }
    }

    /// The page as OpenMetrics has it.
    pub(crate) fn openmetrics(self) -> String {
        self.encode(text::encode)
    }

    /// The page as Prometheus had it before.
    pub(crate) fn prometheus(self) -> String {
        self.encode(prometheus_text::encode)
    }

    fn encode(mut self, encode: impl FnOnce(&mut String, &Registry) -> std::fmt::Result) -> String {
        let build = Sample {
            metric: Metric::Build,
            labels: vec![("version", env!("CARGO_PKG_VERSION"))],
            value: SampleValue::Info,
        };
        self.process.0.push(build);
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut page, &registry);
        page
    }

    /// All samples of a metric, with the cluster that each is of.
    fn of_metric(&self, metric: Metric) -> impl Iterator<Item = (Option<&str>, &Sample)> {
        let process = self.process.0.iter().map(|sample| (None, sample));
        let clusters = self.clusters.iter().flat_map(|(name, samples)| {
            let name = Some(name.as_str());
            samples.0.iter().map(move |sample| (name, sample))
        });
        process
            .chain(clusters)
            .filter(move |(_, sample)| sample.metric == metric)
    }
}

impl Collector for MetricsPage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        for metric in Metric::ALL {
            let mut found = self.of_metric(*metric).peekable();
            if found.peek().is_none() {
                continue;
            }
            let row = metric.row();
            let (stem, unit) = row.split();
            let unit = unit.map(|unit| match unit {
                "seconds" => Unit::Seconds,
                _ => Unit::Bytes,
            });
            let of = match row.kind {
                MetricKind::Gauge => MetricType::Gauge,
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Histogram => MetricType::Histogram,
                MetricKind::Info => MetricType::Info,
            };
            let mut described = encoder.encode_descriptor(stem, row.help, unit.as_ref(), of)?;
            for (cluster, sample) in found {
                if let SampleValue::Info = sample.value {
                    described.encode_info(&sample.labels)?;
                    continue;
                }
                let cluster = cluster.map(|name| ("cluster", name));
                let labels: Vec<(&str, &str)> = cluster
                    .into_iter()
                    .chain(sample.labels.iter().copied())
                    .collect();
                encode_value(described.encode_family(&labels)?, &sample.value)?;
            }
        }
        Ok(())
    }
}

fn encode_value(mut encoder: MetricEncoder<'_>, value: &SampleValue) -> std::fmt::Result {
    match value {
        SampleValue::Gauge(value) => encoder.encode_gauge(value),
        SampleValue::Counter(value) => encoder.encode_counter::<NoLabelSet, u64, f64>(value, None),
        SampleValue::Histogram(read) => {
            encoder.encode_histogram::<NoLabelSet>(read.sum_s, read.count, &read.buckets, None)
        }
        SampleValue::Info => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn page() -> MetricsPage {
        let (counter, histogram) = (Counter::default(), Histogram::default());
        counter.add(7);
        histogram.observe(Duration::from_millis(3));
        let mut samples = Samples::default();
        samples.gauge(Metric::Rpo, 0.25);
        samples.gauge(Metric::Behind, None);
        samples.gauge(Metric::DiskFree, f64::NAN);
        samples.counter(Metric::ArchiveBytes, &[("kind", "raw")], &counter);
        samples.histogram(Metric::FsyncDuration, &histogram);
        let mut page = MetricsPage::of("a \"quoted\" name", samples.clone());
        page.clusters.push(("b".to_owned(), samples));
        page
    }

    #[test]
    fn a_page_has_each_metric_once_and_no_line_for_what_is_unknown() {
        let text = page().openmetrics();
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert_eq!(text.matches("# TYPE walmgr_rpo_seconds gauge\n").count(), 1);
        assert!(
            text.contains("walmgr_rpo_seconds{cluster=\"a \\\"quoted\\\" name\"} 0.25\n"),
            "{text}"
        );
        assert!(
            text.contains("walmgr_archive_bytes_total{cluster=\"b\",kind=\"raw\"} 7\n"),
            "{text}"
        );
        assert!(
            text.contains("# UNIT walmgr_archive_bytes bytes\n"),
            "{text}"
        );
        assert!(text.contains("walmgr_build_info{version=\""), "{text}");
        for absent in ["behind_bytes", "disk_free"] {
            assert!(!text.contains(absent), "{text}");
        }
        let plain = page().prometheus();
        assert!(
            plain.contains("# TYPE walmgr_archive_bytes_total counter\n"),
            "{plain}"
        );
        assert!(
            plain.contains("fsync_duration_seconds_bucket{le=\"+Inf\",cluster=\"b\"} 1\n")
                || plain.contains("fsync_duration_seconds_bucket{cluster=\"b\",le=\"+Inf\"} 1\n"),
            "{plain}"
        );
        assert!(!plain.contains("EOF"), "{plain}");
    }
}
