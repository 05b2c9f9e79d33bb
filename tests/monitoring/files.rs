//! The files of monitoring/ as they are: what Grafana and Prometheus ask of them, and that nothing was forgotten.
//! Never needs a server. Invariant tested: every code of `status` and every alert has a rule test.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use walmgr::test_support::status::Code;

use super::programs::{program, promtool};
use super::{dashboard, dashboard_expressions, monitoring, rules, values_of};
use crate::support::documents::project;

const RULE_TESTS: &str = "prometheus/walmgr.rules.test.yml";

/// What is seen without scrolling, from left to right.
const FIRST_ROW: [&str; 5] = [
    "RPO now",
    "Last WAL received",
    "Newest backup",
    "Recovery window",
    "Findings",
];

/// Metrics that have no cluster.
const OF_THE_PROCESS: [&str; 2] = ["walmgr_build_info", "walmgr_refusals_total"];

/// Grafana's grid.
const COLUMNS: u64 = 24;

#[test]
fn the_dashboard_is_one_that_grafana_imports() {
    let dashboard = dashboard();
    assert_eq!(dashboard["schemaVersion"], 39);
    // Links and bookmarks have it: it never changes.
    assert_eq!(dashboard["uid"], "walmgr-archive");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(names, ["datasource", "cluster"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let titles = panels.iter().map(|panel| panel["title"].as_str().unwrap());
    assert!(titles.take(FIRST_ROW.len()).eq(FIRST_ROW));
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        for place in places(&panel["gridPos"]) {
            assert!(taken.insert(place), "{title} covers another panel");
        }
        if panel["type"] != "row" {
            assert_panel(panel, title);
        }
    }
}

fn places(position: &Value) -> impl Iterator<Item = (u64, u64)> {
    let [x, y, w, h] = ["x", "y", "w", "h"].map(|name| position[name].as_u64().unwrap());
    assert!(x + w <= COLUMNS, "{position} is wider than the screen");
    (y..y + h).flat_map(move |row| (x..x + w).map(move |column| (column, row)))
}

fn assert_panel(panel: &Value, title: &str) {
    let words = panel["description"].as_str().unwrap_or_default();
    assert!(words.ends_with('.'), "{title} says what it shows");
    let targets = panel["targets"].as_array().unwrap();
    let sources = targets.iter().chain([panel]);
    for source in sources.map(|part| &part["datasource"]) {
        assert_eq!(source["uid"], "${datasource}", "{title}");
    }
    let mut names = BTreeSet::new();
    for target in targets {
        assert!(names.insert(target["refId"].as_str().unwrap()), "{title}");
        let expression = target["expr"].as_str().unwrap();
        let is_chosen = expression.contains("{cluster=~\"$cluster\"}");
        let is_of_all = OF_THE_PROCESS.iter().any(|name| expression.contains(name));
        assert!(
            is_chosen != is_of_all,
            "{title} shows clusters that were not chosen: {expression}"
        );
    }
}

#[test]
fn a_rate_of_the_dashboard_fits_every_scrape_interval() {
    for (title, expression) in dashboard_expressions() {
        let ranges = expression.split('[').skip(1);
        for range in ranges {
            assert!(
                range.starts_with("$__rate_interval]"),
                "{title}: {expression}"
            );
        }
    }
}

#[test]
fn fault_180_every_finding_and_every_alert_fires_in_a_rule_test() {
    let tests = monitoring(RULE_TESTS);
    for code in Code::ALL.iter().map(|code| code.word()) {
        for level in ["critical", "warning"] {
            let series =
                format!("walmgr_finding{{cluster=\"sales\", code=\"{code}\", level=\"{level}\"}}");
            let fires =
                format!("exp_labels: {{severity: {level}, cluster: sales, code: {code}}}\n");
            assert!(
                tests.contains(&series) && tests.contains(&fires),
                "monitoring/{RULE_TESTS}: {code} as {level} has no case: copy the lines of another"
            );
        }
    }
    // One that fires has its alerts in lines of their own.
    let fire: BTreeSet<&str> = values_of("alertname", &tests).into_iter().collect();
    let rules = rules();
    let alerts = values_of("alert", &rules);
    assert!(alerts.len() > 10);
    for alert in alerts {
        assert!(fire.contains(alert), "{alert} fires in no rule test");
        let rests = format!("- {{eval_time: 2h, alertname: {alert}, exp_alerts: []}}\n");
        assert!(tests.contains(&rests), "{alert} may fire where all is well");
    }
}

#[test]
fn every_alert_has_a_severity_and_a_runbook_that_exists() {
    let rules = rules();
    let count = values_of("alert", &rules).len();
    let severities = values_of("severity", &rules);
    assert_eq!(severities.len(), count);
    for severity in severities {
        assert!(["critical", "warning"].contains(&severity), "{severity}");
    }
    let runbooks = values_of("runbook", &rules);
    assert_eq!(runbooks.len(), count);
    for runbook in runbooks {
        match runbook.split_once("{{ $labels.code }}") {
            Some((before, after)) => {
                for code in Code::ALL.iter().map(|code| code.word()) {
                    assert_page(&format!("{before}{code}{after}"));
                }
            }
            None => assert_page(runbook),
        }
    }
}

fn assert_page(path: &str) {
    assert!(
        Path::new(&project()).join(path).is_file(),
        "{path} is missing: an alert names it"
    );
}

#[test]
fn promtool_accepts_the_rules_and_every_rule_test_passes() {
    skip_unless!(program("promtool"));
    let directory = project().join("monitoring/prometheus");
    for words in [
        ["check", "rules", "walmgr.rules.yml"],
        ["test", "rules", "walmgr.rules.test.yml"],
    ] {
        let said = promtool(&words, &directory).unwrap_or_else(|said| panic!("{said}"));
        assert!(said.contains("SUCCESS"), "{said}");
    }
}
