//! The dashboard and the alert rules of monitoring/, against the program, promtool and a real Prometheus.
//! Never installs anything: `tests/fetch-monitoring.sh` unpacks the programs. Invariant tested: what a panel or a rule
//! asks for exists, and every finding of `status` wakes somebody up and names its runbook.

mod files;
mod programs;
mod rpo;
mod scraped;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::documents::project;

fn monitoring(name: &str) -> String {
    let path = project().join("monitoring").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn dashboard() -> Value {
    serde_json::from_str(&monitoring("grafana/walmgr.json")).unwrap()
}

fn rules() -> String {
    monitoring("prometheus/walmgr.rules.yml")
}

/// Each panel's title and what it asks for.
fn dashboard_expressions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard()["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((
                title.to_owned(),
                target["expr"].as_str().unwrap().to_owned(),
            ));
        }
    }
    found
}

/// The metrics of walmgr that a text names.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter: char| !is_letter(letter));
    words
        .filter(|word| word.starts_with("walmgr_"))
        .map(str::to_owned)
        .collect()
}

/// The values of `name:` in the lines of a YAML file, without quotes.
fn values_of<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
    let name = format!("{name}: ");
    let values = text.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("- ").unwrap_or(line).strip_prefix(&name)
    });
    values.map(|value| value.trim_matches('\'')).collect()
}
