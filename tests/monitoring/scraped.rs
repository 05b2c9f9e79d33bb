//! A real Prometheus scrapes a real receiver of two clusters, a syncdaemon and a textfile, and is asked everything.
//! Never asks what no panel and no rule asks. Invariant tested: each of their expressions has a series.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::programs::{
    NodeExporter, Prometheus, Scraped, get, lint, parse_strictly, program, python,
};
use super::{dashboard_expressions, metrics_in, rules};
use crate::partial::daemon::Syncdaemon;
use crate::replay::standby_of;
use crate::support::documents::{page, project};
use crate::support::{Cluster, Host, Site, free_port, report_skip, soak, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

/// At least three scrapes.
const RATE_INTERVAL: &str = "10s";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";

/// Two clusters on a host, one with all that walmgr does, the other without a backup.
struct Monitored {
    // Dropped before what they work with.
    _syncdaemon: Syncdaemon,
    _standby: Cluster,
    sales: Site,
    _hr: Site,
    host: Host,
    receiver: SocketAddr,
    syncdaemon: SocketAddr,
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

impl Monitored {
    fn start() -> Monitored {
        let (receiver, syncdaemon) = (free_address(), free_address());
        let mut host = Host::builder()
            .set("metrics_listen", &receiver.to_string())
            .build();
        host.start();
        let cluster = Cluster::builder()
            .conf("archive_mode", "on")
            .conf("track_commit_timestamp", "on")
            .start();
        let bin = cluster.bin().display().to_string();
        let site = Site::builder()
            .cluster(cluster)
            .master_set("job_name", "sales")
            .master_set("use_xlog_functions", "1")
            .master_set("loop_delay", "0.2")
            .master_set("metrics_listen", &syncdaemon.to_string())
            .standby_set("slave_bin", &bin);
        let mut sales = host.add("sales", site);
        sales.master_command(&["setup"]).succeed();
        sales.cluster().pgbench(&["-i", "-q", "-s", "1"]);
        sales.master_command(&["backup"]).succeed();
        let standby = standby_of(&mut sales, true);
        let daemon = Syncdaemon::start(&sales);
        daemon.wait_for_log("is shipped to");
        sales.standby_command(&["drill"]).succeed();
        sales.standby_command(&["verify"]);
        let hr = host.add("hr", Site::builder().system_id(7_700_000_000_000_000_002));
        hr.write_segment(1);
        hr.archive(&hr.segment_name(1)).succeed();
        Monitored {
            _syncdaemon: daemon,
            _standby: standby,
            sales,
            _hr: hr,
            host,
            receiver,
            syncdaemon,
        }
    }

    /// What `status --metrics` writes.
    fn write_textfile(&self, name: &str) -> String {
        let path = self.sales.home().join(name);
        let path = path.to_str().unwrap();
        self.sales
            .master_command(&["status", "-q", "--metrics", path]);
        std::fs::read_to_string(path).unwrap()
    }
}

/// What Grafana puts in place of its variables.
fn substituted(expression: &str) -> String {
    expression
        .replace("$__rate_interval", RATE_INTERVAL)
        .replace("$cluster", ".*")
}

/// What has to have a series where an alert does not fire: its expression with comparisons that answer 0 or 1, and
/// both sides of `unless`, of which the right one takes series away.
fn without_comparison(query: &str) -> Vec<String> {
    let mut query = query.replace(" offset 1h", "");
    for comparison in [" > ", " < ", " == "] {
        query = query.replace(comparison, &format!("{comparison}bool "));
    }
    let Some((left, right)) = query.split_once(" unless on (") else {
        return vec![query];
    };
    let (_, right) = right.split_once(") ").unwrap();
    vec![left.to_owned(), right.to_owned()]
}

/// Every expression of dashboard and rules, with the panel or the alert that has it.
fn expressions(prometheus: &Prometheus) -> Vec<(String, String)> {
    let panels = dashboard_expressions().into_iter();
    let mut all: Vec<_> = panels
        .map(|(title, expression)| (title, substituted(&expression)))
        .collect();
    let loaded = prometheus.api("/api/v1/rules?type=alert").unwrap();
    let groups = loaded["groups"].as_array().unwrap().iter();
    let loaded: Vec<_> = groups
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert_eq!(loaded.len(), super::values_of("alert", &rules()).len());
    for rule in loaded {
        let name = rule["name"].as_str().unwrap();
        let query = rule["query"].as_str().unwrap();
        prometheus.query(query).unwrap();
        let parts = without_comparison(query).into_iter();
        all.extend(parts.map(|part| (name.to_owned(), part)));
    }
    all
}

#[test]
fn every_expression_has_a_series_and_every_page_is_parsed() {
    skip_unless!(Cluster::available(15));
    skip_unless!(program("prometheus"));
    skip_unless!(program("prometheus-node-exporter"));
    let monitored = Monitored::start();
    let node = NodeExporter::start(monitored.sales.home().path());
    monitored.write_textfile("walmgr-sales.prom");
    let rules = project().join("monitoring/prometheus/walmgr.rules.yml");
    let copy = monitored
        .host
        .home()
        .write("walmgr.rules.yml", std::fs::read(rules).unwrap());
    let scraped = [
        ("walmgr-receiver", monitored.receiver),
        ("walmgr-syncdaemon", monitored.syncdaemon),
        ("node", node.address),
    ];
    let scraped = scraped.map(|(job, address)| Scraped { job, address });
    let prometheus = Prometheus::start(&scraped, &copy);
    let all = expressions(&prometheus);
    assert!(all.len() > 40, "{}", all.len());
    let begun = Instant::now();
    loop {
        monitored.sales.cluster().pgbench(&["-n", "-t", "20"]);
        monitored.sales.cluster().switch_wal();
        let without: Vec<_> = all
            .iter()
            .filter(|(_, expression)| prometheus.query(expression).unwrap().is_empty())
            .collect();
        let long_enough = !soak() || begun.elapsed() > Duration::from_secs(60);
        if without.is_empty() && long_enough {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "no series: {without:#?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("{} expressions, each with a series", all.len());
    assert_targets(&prometheus);
    assert_values(&prometheus);
    assert_strictly_read(&monitored);
}

fn assert_targets(prometheus: &Prometheus) {
    let targets = prometheus.api("/api/v1/targets").unwrap();
    let active = targets["activeTargets"].as_array().unwrap();
    assert_eq!(active.len(), 3);
    for target in active {
        assert_eq!(target["health"], "up", "{target}");
        assert_eq!(target["lastError"], "", "{target}");
    }
}

/// What the series say is so.
fn assert_values(prometheus: &Prometheus) {
    for (is_so, query) in [
        (
            "both are served",
            "count(walmgr_up{job=\"walmgr-receiver\"} == 1) == 2",
        ),
        (
            "both sides have one name",
            "walmgr_rpo_seconds{cluster=\"sales\", job=\"node\"} < 60",
        ),
        (
            "the syncdaemon says it at any moment",
            "walmgr_rpo_seconds{cluster=\"sales\", job=\"walmgr-syncdaemon\"} < 60",
        ),
        (
            "its passes end well",
            "walmgr_up{cluster=\"sales\", job=\"walmgr-syncdaemon\"} == 1",
        ),
        (
            "it knows what status finds",
            "walmgr_finding{code=\"no_backup\", job=\"walmgr-syncdaemon\"} == 0",
        ),
        (
            "hr has no backup",
            "walmgr_finding{cluster=\"hr\", code=\"no_backup\"} == 1",
        ),
        (
            "the window has a length",
            "walmgr_recovery_window_end_timestamp_seconds{cluster=\"sales\"} > \
             walmgr_recovery_window_start_timestamp_seconds",
        ),
        (
            "times are of now",
            "abs(time() - walmgr_backup_last_success_timestamp_seconds{cluster=\"sales\"}) < 3600",
        ),
        (
            "a drill takes a while",
            "walmgr_drill_rto_seconds{cluster=\"sales\"} > 0.1",
        ),
        (
            "segments were counted",
            "walmgr_archive_segments_total{cluster=\"sales\"} > 1",
        ),
        (
            "records were checked",
            "walmgr_records_checked_total{cluster=\"sales\"} > 100",
        ),
        (
            "archiving takes a time",
            "walmgr_archive_duration_seconds_sum{cluster=\"sales\"} > 0",
        ),
        (
            "as many as segments",
            "walmgr_archive_duration_seconds_count{cluster=\"sales\"} > 1",
        ),
        (
            "the syncdaemon is connected",
            "walmgr_connections{cluster=\"sales\"} >= 1",
        ),
        (
            "the disk has room",
            "walmgr_disk_free_bytes{cluster=\"sales\"} > 1e6",
        ),
    ] {
        // Each target is scraped, and each cluster looked at, in its own time.
        wait_for(&format!("{is_so}: {query}"), PATIENCE, || {
            (!prometheus.query(query).unwrap().is_empty()).then_some(())
        });
    }
    wait_for("the alert of a missing backup", PATIENCE, || {
        let alerts = prometheus.api("/api/v1/alerts").unwrap();
        let alerts = alerts["alerts"].as_array().unwrap();
        let mut labels = alerts.iter().map(|alert| &alert["labels"]);
        let is_it = |labels: &serde_json::Value| {
            labels["alertname"] == "WalmgrWarning" && labels["cluster"] == "hr"
        };
        labels
            .any(|labels| is_it(labels) && labels["code"] == "no_backup")
            .then_some(())
    });
}

/// prometheus-client's parsers and promtool's lint take each page, in both formats.
fn assert_strictly_read(monitored: &Monitored) {
    if let Err(reason) = python() {
        return report_skip(&reason);
    }
    let both = |address| {
        let pages = ["text/plain", OPENMETRICS].map(|accept| {
            let answer = get(address, "/metrics", accept).unwrap();
            let kind = accept.split(';').next().unwrap();
            assert!(answer.head.contains(kind), "{}", answer.head);
            answer.content
        });
        assert!(pages[1].ends_with("# EOF\n") && !pages[0].contains("# EOF"));
        pages
    };
    let [plain, open] = both(monitored.receiver);
    let [master_plain, master_open] = both(monitored.syncdaemon);
    let textfile = monitored.write_textfile("walmgr-sales.prom");
    for (what, page, is_openmetrics) in [
        ("receiver, text", &plain, false),
        ("receiver, OpenMetrics", &open, true),
        ("syncdaemon, text", &master_plain, false),
        ("syncdaemon, OpenMetrics", &master_open, true),
        ("textfile", &textfile, false),
    ] {
        let found = parse_strictly(page, is_openmetrics);
        let found = found.unwrap_or_else(|said| panic!("{what}: {said}{page}"));
        println!("{what}: families and samples: {found}");
        if !is_openmetrics {
            assert_eq!(lint(page), "", "{what}: {page}");
        }
    }
}

#[test]
fn dashboard_and_rules_name_only_metrics_of_the_manual() {
    let known = metrics_in(&page("docs/reference/metrics.md").text);
    let used = dashboard_expressions()
        .into_iter()
        .map(|(_, expression)| expression);
    let mut used = metrics_in(&used.collect::<Vec<_>>().join("\n"));
    let rules = rules();
    let expressions = rules.lines().filter(|line| !line.contains("description:"));
    used.append(&mut metrics_in(&expressions.collect::<Vec<_>>().join("\n")));
    assert!(used.len() > 25, "{used:?}");
    let unknown: Vec<_> = used
        .iter()
        .filter(|name| !known.contains(name.trim_end_matches("_bucket")))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let unshown: Vec<_> = known
        .iter()
        .filter(|name| !used.contains(*name) && !used.contains(&format!("{name}_bucket")))
        .collect();
    assert!(unshown.is_empty(), "no panel and no rule shows {unshown:?}");
}
