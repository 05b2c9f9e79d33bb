//! `status --all`, `listbackups --all` and `verify`: every cluster of a host's folder, a line each.
//! Never stops at a cluster that fails. Invariant: the exit code is that of the worst line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{ClusterFiles, HostConfig, StandbyConfig, shown_cluster_name};
use crate::error::{CommandError, Result};
use crate::options::Options;
use crate::output::{self, backups, escaped};
use crate::patience::{LastStep, Patience};
use crate::standby::verify::{self, VerifyArgs};
use crate::standby::{listbackups, status as of_one};
use crate::status::{self, Level, Thresholds};

/// How long is waited for one cluster's line: its archive may be large, and its disk slow, but not hang.
const LINE_PATIENCE: Duration = Duration::from_secs(60);

/// How long `verify` of one cluster may pass no file, once it has passed one. It takes hours, so the whole has no bound. The largest file is
/// read within this: one of 1 GiB by a disk that gives 600 KiB a second, a log of 250 GiB by one that gives 150 MiB.
const FILE_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// One cluster's line, for people and for programs, and how bad it is.
struct ClusterLine {
    name: String,
    text: String,
    value: Value,
    level: Option<Level>,
}

/// Prints how every cluster stands.
pub(crate) fn status(host: &HostConfig, options: &Options, thresholds: &Thresholds) -> Result<()> {
    let thresholds = thresholds.clone();
    let worst = print_all(host, options, &one_minute(), move |name, config, _| {
        let facts = of_one::facts(config);
        let (level, text) = status::line(&facts, &thresholds);
        Ok(ClusterLine {
            name: name.to_owned(),
            text,
            value: status::value(&facts, &thresholds),
            level,
        })
    })?;
    status::ended("status", worst)
}

/// Prints what sets every cluster has.
pub(crate) fn listbackups(host: &HostConfig, options: &Options) -> Result<()> {
    let worst = print_all(host, options, &one_minute(), |name, config, _| {
        let (lines, said) = listbackups::lines(config)?;
        let text = match lines.first() {
            None => "no backups".to_owned(),
            Some(newest) => {
                let of = match &newest.label {
                    Ok(label) => format!("of {}", label.timestamp),
                    Err(why) => format!("damaged: {why}"),
                };
                format!(
                    "{} backups, the newest is {}, {of}",
                    lines.len(),
                    newest.set
                )
            }
        };
        Ok(ClusterLine {
            name: name.to_owned(),
            text: [vec![text], said].concat().join("; "),
            value: json!({ "backups": backups::value(&lines) }),
            level: None,
        })
    })?;
    match worst {
        None => Ok(()),
        Some(_) => Err(CommandError::config(
            "not every cluster could be listed; the lines say why",
        )),
    }
}

/// Proves the archive of every cluster, one after another: together they would only wait for each other's disk.
pub(crate) fn verify(host: &HostConfig, options: &Options, typed: &VerifyArgs) -> Result<()> {
    if let Some(set) = &typed.set {
        return Err(host.not_for(&format!("verify {set}")));
    }
    // With -n the lines are what was asked for, in words.
    let shown = Options {
        json: options.json && !options.not_really,
        quiet: options.quiet && !options.not_really,
        ..options.clone()
    };
    let (of_each, reads_all) = (shown.clone(), typed.all);
    let patience = Patience::in_turn(LINE_PATIENCE, FILE_PATIENCE);
    let worst = print_all(host, &shown, &patience, move |name, config, step| {
        let line = verify::line(config, &of_each, reads_all, &mut || step.made())?;
        Ok(ClusterLine {
            name: name.to_owned(),
            text: line.text,
            value: line.value,
            level: line.level,
        })
    })?;
    status::ended("verify", worst)
}

fn one_minute() -> Patience {
    Patience::of(LINE_PATIENCE)
}

/// Prints the lines of all; answers with the worst.
fn print_all(
    host: &HostConfig,
    options: &Options,
    patience: &Patience,
    line_of: impl Fn(&str, &StandbyConfig, &LastStep) -> Result<ClusterLine> + Send + Sync + 'static,
) -> Result<Option<Level>> {
    let ClusterFiles { good, broken, .. } = host.read_clusters()?;
    let mut lines: Vec<ClusterLine> = Vec::new();
    for note in good.values().flat_map(|config| &config.notes) {
        tracing::info!("{note}");
    }
    let by_path = |(name, config): (String, StandbyConfig)| (config.path.clone(), (name, config));
    let good: BTreeMap<PathBuf, _> = good.into_iter().map(by_path).collect();
    let paths: Vec<PathBuf> = good.keys().cloned().collect();
    // A cluster whose disk hangs keeps no other's line from being printed.
    let answers = patience.each_by_steps(paths, move |path, step| {
        let (name, config) = good.get(path)?;
        let _named = tracing::error_span!("cluster", cluster = %shown_cluster_name(path)).entered();
        let line = line_of(name, config, step);
        Some(line.unwrap_or_else(|error| failed(name, &error.to_string())))
    });
    for (path, answer) in answers {
        let name = shown_cluster_name(&path);
        match answer {
            Ok(line) => lines.extend(line),
            Err(why) => lines.push(failed(&name, &why.to_string())),
        }
    }
    for (path, says) in &broken {
        let name = shown_cluster_name(path);
        lines.push(failed(&name, says));
    }
    lines.sort_by(|one, other| one.name.cmp(&other.name));
    let worst = lines.iter().filter_map(|line| line.level).max();
    if options.json {
        let values = lines.into_iter().map(|line| {
            let mut value = line.value;
            value["cluster"] = Value::String(line.name);
            value
        });
        output::print(&Value::Array(values.collect()).to_string())?;
        return Ok(worst);
    }
    let is_told = |line: &&ClusterLine| !options.quiet || line.level.is_some();
    let told: Vec<String> = lines
        .iter()
        .filter(is_told)
        .map(|line| format!("{}: {}", escaped(&line.name), escaped(&line.text)))
        .collect();
    match (lines.is_empty(), told.is_empty()) {
        (true, _) if !options.quiet => output::print("There are no clusters in the folder.")?,
        (_, true) => {}
        _ => output::print(&told.join("\n"))?,
    }
    Ok(worst)
}

/// A cluster of which nothing can be told is as bad as one that is critical.
fn failed(name: &str, says: &str) -> ClusterLine {
    ClusterLine {
        name: name.to_owned(),
        text: says.to_owned(),
        value: json!({ "error": says }),
        level: Some(Level::Critical),
    }
}
