//! Judgements and pages, from facts that nobody had to find out.
//! Never starts a process. Invariant tested: each fault is a finding of its own, and the page and the
//! JSON say the same.

use std::time::Duration;

use walmgr_protocol::message::ClusterIdentity;
use walmgr_protocol::message::overview::{SetReach, SetStanding};
use walmgr_protocol::names::{SystemId, WalSegmentSize};

use super::judge::Code;
use super::*;

const DAY_MS: i64 = 86_400_000;

fn well() -> Facts {
    let timeline = TimelineId::FIRST;
    let end = Lsn(0x500_0148);
    let reach = SetReach {
        timestamp: "2011-09-21 17:00:17 CEST".into(),
        age_ms: DAY_MS,
        timeline,
        start: Lsn(0x300_0028),
        reaches: end,
    };
    let set = |name: &str, age_ms| SetStanding {
        name: name.into(),
        reach: Ok(SetReach {
            age_ms,
            ..reach.clone()
        }),
    };
    let overview = Overview {
        cluster: Some(ClusterIdentity {
            system_id: SystemId(7),
            postgres_major: 15,
            segment_size: WalSegmentSize::DEFAULT,
        }),
        newest_segment: "000000010000000000000004".parse().ok(),
        newest_age_ms: 12_000,
        partial_segment: "000000010000000000000005".parse().ok(),
        partial_end: end,
        held: Some((timeline, end)),
        received_age_ms: 250,
        free_bytes: 42 << 30,
        shipped_by: "alpha (192.0.2.1:4711)".into(),
        masters: vec!["alpha (192.0.2.1:4711)".into()],
        masters_count: 1,
        connections: 1,
        completed_wals: "/srv/logs.complete".into(),
        sets: vec![set("data.master", DAY_MS), set("data.master.0", 3 * DAY_MS)],
        sets_count: 2,
        ..Overview::default()
    };
    let master = Master {
        receiver: "standby:7432".into(),
        flushed: Some((timeline, end)),
        archiving: Some(Archiving::On),
        archiver: Some(Archiver {
            last_archived: Some(("000000010000000000000004".into(), 12.0)),
            ..Archiver::default()
        }),
        syncdaemon: Syncdaemon::Running,
        ..Master::default()
    };
    Facts {
        lag: Lag {
            seconds: Some(0.0),
            seconds_at_most: None,
            bytes: Some(0),
        },
        standby: Ok(overview),
        here: Here::Master(Box::new(master)),
    }
}

fn on_standby(standby: StandbyFacts) -> Facts {
    let lag = Lag {
        seconds_at_most: Some(400.0),
        ..Lag::default()
    };
    Facts {
        lag,
        here: Here::Standby(standby),
        ..well()
    }
}

/// The findings after a change, as `level code`.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let mut facts = well();
    change(&mut facts);
    words(&facts, &Thresholds::default())
}

fn words(facts: &Facts, thresholds: &Thresholds) -> Vec<String> {
    let findings = facts.findings(thresholds);
    let word = |finding: &Finding| format!("{} {}", finding.level.word(), finding.code.word());
    findings.iter().map(word).collect()
}

fn overview(facts: &mut Facts) -> &mut Overview {
    facts.standby.as_mut().unwrap()
}

fn master(facts: &mut Facts) -> &mut Master {
    match &mut facts.here {
        Here::Master(master) => master,
        Here::Standby(_) => panic!("not the master's"),
    }
}

#[test]
fn nothing_is_wrong_where_everything_is_well() {
    assert_eq!(found(|_| ()), [""; 0]);
}

#[test]
fn each_fault_is_a_finding_of_its_own() {
    type Change = fn(&mut Facts);
    let cases: [(Change, &str); 20] = [
        (
            |facts| facts.standby = Err("gone".into()),
            "critical receiver",
        ),
        (
            |facts| master(facts).unasked = Some("gone".into()),
            "critical server",
        ),
        (
            |facts| master(facts).is_standby = true,
            "warning is_standby",
        ),
        (
            |facts| overview(facts).cluster = None,
            "critical not_set_up",
        ),
        (
            |facts| overview(facts).held = Some((TimelineId::new(2).unwrap(), Lsn(1))),
            "critical timeline",
        ),
        (|facts| facts.lag.seconds = Some(61.0), "warning lag"),
        (|facts| facts.lag.seconds = Some(301.0), "critical lag"),
        (|facts| facts.lag.seconds = None, "critical lag_unknown"),
        (
            |facts| master(facts).archiving = Some(Archiving::Off("archive_mode is off".into())),
            "critical archiving_off",
        ),
        (
            |facts| master(facts).archiving = Some(Archiving::Foreign("cp".into())),
            "warning archiving_foreign",
        ),
        (
            |facts| master(facts).archiving = Some(Archiving::Unheard("a".into())),
            "critical archiving_unheard",
        ),
        (
            |facts| overview(facts).missing = "000000010000000000000004".parse().ok(),
            "critical gap",
        ),
        (
            |facts| overview(facts).damaged_count = 1,
            "critical damaged",
        ),
        (|facts| overview(facts).sets.clear(), "warning no_backup"),
        (
            |facts| overview(facts).sets[1].reach = Err("no label".into()),
            "warning backup",
        ),
        (|facts| overview(facts).free_bytes = 1 << 29, "warning free"),
        (
            |facts| overview(facts).free_bytes = 1 << 20,
            "critical free",
        ),
        (
            |facts| overview(facts).trouble = "read-only".into(),
            "critical disk",
        ),
        (
            |facts| master(facts).syncdaemon = Syncdaemon::Died,
            "warning syncdaemon",
        ),
        (
            |facts| master(facts).agent = Some(AgentFacts::Unheard("gone".into())),
            "warning syncdaemon",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(found(change), [expected]);
    }
}

#[test]
fn an_old_backup_warns_and_then_alarms() {
    let aged = |days: i64| {
        found(|facts| {
            for set in &mut overview(facts).sets {
                set.reach.as_mut().unwrap().age_ms = days * DAY_MS;
            }
        })
    };
    assert_eq!(aged(7), [""; 0]);
    assert_eq!(aged(9), ["warning backup_age"]);
    assert_eq!(aged(31), ["critical backup_age"]);
}

#[test]
fn archiving_fails_while_the_last_thing_was_a_failure() {
    let failed = |age_s: f64| {
        found(|facts| {
            let archiver = master(facts).archiver.as_mut().unwrap();
            archiver.failed_count = 3;
            archiver.last_failed = Some(("000000010000000000000005".into(), age_s));
        })
    };
    assert_eq!(failed(5.0), ["warning archiving_fails"]);
    assert_eq!(failed(50.0), [""; 0]);
}

#[test]
fn thresholds_typed_win_and_the_worst_stands_first() {
    let mut facts = well();
    facts.lag.seconds = Some(10.0);
    overview(&mut facts).sets.clear();
    let lag = |warning, critical| Thresholds {
        warning_lag: Some(Duration::from_secs(warning)),
        critical_lag: critical,
        ..Thresholds::default()
    };
    assert_eq!(
        words(&facts, &lag(9, None)),
        ["warning lag", "warning no_backup"]
    );
    let critical = lag(5, Some(Duration::from_secs(9)));
    assert_eq!(
        words(&facts, &critical),
        ["critical lag", "warning no_backup"]
    );
    // A warning beyond the alarm's default moves that with it.
    facts.lag.seconds = Some(1_000.0);
    assert_eq!(words(&facts, &lag(2_000, None)), ["warning no_backup"]);
}

#[test]
fn the_standby_alarms_by_age_only_if_asked() {
    let runs = StandbyFacts {
        receiver_runs: true,
        ..StandbyFacts::default()
    };
    let facts = on_standby(runs.clone());
    assert_eq!(words(&facts, &Thresholds::default()), [""; 0]);
    let thresholds = Thresholds {
        warning_lag: Some(Duration::from_secs(300)),
        ..Thresholds::default()
    };
    assert_eq!(words(&facts, &thresholds), ["warning lag"]);
    let facts = on_standby(StandbyFacts {
        receiver_runs: false,
        host: None,
        paused: true,
        locked: Some(SetsLock {
            holder: "postgres by hand, since yesterday".into(),
            age_s: 25.0 * 3600.0,
        }),
        server_runs: Some(false),
        stream: StreamFacts::Open,
        tablespace: Some("the WAL at 0/3000028 creates one".into()),
        unreplayable: Some("no recovery gets past 0/3000028".into()),
        moved_set: None,
        changed_by_boot: Some("/data/postgresql.auto.conf has a = 0 for a boot".into()),
        unfinished_boot: Some("/data".into()),
        audit: Some("the audit log has lost 3 lines".into()),
        archive_cleaners: vec!["pg_archivecleanup".into()],
        incremental_differs: None,
        wal: None,
        keeps_all: None,
        retention: None,
        sets: Vec::new(),
        verified_s: None,
        replay: None,
        drill: DrillFacts {
            left: Some("/srv/standby.drill".into()),
            ..DrillFacts::default()
        },
    });
    let expected = [
        "critical no_receiver",
        "critical tablespace",
        "critical unreplayable",
        "critical archive_cleanup",
        "warning paused",
        "warning locked",
        "warning standby_server",
        "warning boot",
        "warning boot",
        "warning drill",
        "warning audit_log",
    ];
    assert_eq!(words(&facts, &Thresholds::default()), expected);
}

#[test]
fn fault_170_a_cluster_of_a_host_is_told_of_its_hosts_receiver() {
    let told = |receiver_runs, runs, unserved: Option<&str>| {
        let host = HostFacts {
            ini: "/h.ini".to_owned(),
            runs,
            unserved: unserved.map(str::to_owned),
        };
        let facts = on_standby(StandbyFacts {
            receiver_runs,
            host: Some(host),
            ..StandbyFacts::default()
        });
        let found = facts.findings(&Thresholds::default());
        let lines = found
            .iter()
            .map(|found| format!("{} {}", found.code.word(), found.text));
        lines.collect::<Vec<_>>().join("; ")
    };
    assert_eq!(told(true, true, None), "");
    for (receiver_runs, runs, unserved, expected) in [
        (
            false,
            false,
            None,
            "no_receiver no receiver runs: start it with `walmgr /h.ini receiver -d`",
        ),
        (
            false,
            true,
            None,
            "no_receiver the receiver of /h.ini does not serve this cluster: type `walmgr /h.ini receiver --reload` and \
             look at its log",
        ),
        (
            false,
            true,
            Some("no disk"),
            "no_receiver the receiver of /h.ini does not serve this cluster: no disk",
        ),
        (
            true,
            true,
            Some("no key"),
            "receiver the receiver goes on with this cluster's old settings: no key",
        ),
    ] {
        assert_eq!(told(receiver_runs, runs, unserved), expected);
    }
}

#[test]
fn fault_168_wal_that_nothing_removes_is_told_at_once_or_after_a_week() {
    let day = 86_400.0;
    for (is_set, oldest_age, warns) in [
        (true, 0.0, true),
        (true, 30.0 * day, true),
        (false, 6.9 * day, false),
        (false, 7.1 * day, true),
    ] {
        let facts = on_standby(StandbyFacts {
            receiver_runs: true,
            keeps_all: Some(KeepsAll {
                is_set,
                segments: 3,
                bytes: 48 << 20,
                oldest_age,
            }),
            ..StandbyFacts::default()
        });
        let found = words(&facts, &Thresholds::default());
        let expected: &[&str] = if warns { &["warning retention"] } else { &[] };
        assert_eq!(found, expected, "{is_set} {oldest_age}");
    }
}

#[test]
fn fault_160_a_drill_that_failed_warns_and_one_that_did_not_is_shown() {
    let mut outcome = DrillOutcome {
        set: "data.master".into(),
        reached: TimelineId::new(1).map(|timeline| (timeline, Lsn(0x500_0148))),
        commit_us: Some(1_769_877_900_250_000),
        copied_ms: Some(1_500),
        replayed_ms: Some(2_000),
        checked_ms: Some(500),
        ..DrillOutcome::begin(1_769_877_000)
    };
    let with = |outcome: &DrillOutcome| {
        on_standby(StandbyFacts {
            receiver_runs: true,
            drill: DrillFacts {
                last: Some((outcome.clone(), 7_200.0)),
                ..DrillFacts::default()
            },
            ..StandbyFacts::default()
        })
    };
    let facts = with(&outcome);
    let before = words(&facts, &Thresholds::default());
    let shown = page::text(&facts, &[]);
    let row = "drill      data.master 2.0 h ago, in 3.5 s to 0/5000148, the last commit is of 2026-01-31 \
        16:45:00.250000+00";
    assert!(shown.contains(row), "{shown}");
    let value: serde_json::Value = serde_json::from_str(&page::json(&facts, &[])).unwrap();
    let drill = &value["standby"]["drill"];
    assert_eq!(drill["rto_seconds"], 3.5);
    assert_eq!(drill["lsn"], "0/5000148");
    assert!(drill["failure"].is_null() && value["standby"]["unfinished_drill"].is_null());
    outcome.failure = Some("base/1/2 is damaged".into());
    let facts = with(&outcome);
    let findings = facts.findings(&Thresholds::default());
    assert_eq!(findings.len(), before.len() + 1);
    let told = findings
        .iter()
        .find(|finding| finding.code.word() == "drill");
    assert!(told.unwrap().text.contains("base/1/2 is damaged"));
}

#[test]
fn a_frozen_stream_warns_until_a_newer_timeline_arrives() {
    let frozen = |stream: StreamFacts| {
        let receiver_runs = true;
        on_standby(StandbyFacts {
            receiver_runs,
            stream,
            ..StandbyFacts::default()
        })
    };
    let mut facts = frozen(StreamFacts::Frozen(TimelineId::FIRST));
    let found = facts.findings(&Thresholds::default());
    insta::assert_snapshot!(page::brief(&facts, &found), @r"
    RPO at most 400.0 s: warning
    warning: timeline 1 is frozen: the standby was booted, and records of the old master are refused; if the old master stays the master, `restore` the standby (walmgr help frozen)
    ");
    let line = "\n  stream     timeline 1 is frozen: the standby was booted\n";
    let told = |facts: &Facts| {
        let parsed: serde_json::Value = serde_json::from_str(&page::json(facts, &[])).unwrap();
        let is_shown = page::text(facts, &[]).contains(line);
        (is_shown, parsed["standby"]["frozen_timeline"].as_u64())
    };
    assert_eq!(told(&facts), (true, Some(1)));
    overview(&mut facts).newest_segment = "000000020000000000000006".parse().ok();
    // The sets lead to the end of timeline 1 only.
    overview(&mut facts).sets.clear();
    assert_eq!(words(&facts, &Thresholds::default()), ["warning no_backup"]);
    assert_eq!(told(&facts), (true, Some(1)));
    let unknown = frozen(StreamFacts::Unknown("it is not what boot writes".into()));
    assert_eq!(words(&unknown, &Thresholds::default()), ["critical frozen"]);
    assert_eq!(told(&unknown), (false, None));
    assert_eq!(told(&frozen(StreamFacts::Open)), (false, None));
}

#[test]
fn the_screen_begins_with_the_recovery_point() {
    let text = page::text(&well(), &[]);
    insta::assert_snapshot!(text, @r"
    RPO 0.0 s, the standby holds everything: ok
      master     timeline 1, flushed 0/5000148
      receiver   standby:7432
      archiver   000000010000000000000004 12 s ago
      syncdaemon running
      archived   000000010000000000000004 12 s ago
      partial    000000010000000000000005 up to 0/5000148, shipped by alpha (192.0.2.1:4711)
      held       up to 0/5000148 of timeline 1, received 0 s ago
      masters    alpha (192.0.2.1:4711)
      backups    2, the newest is data.master, begun 24.0 h ago
      window     from 3.0 d ago (data.master.0) to 0/5000148
      disk       42.00 GiB free at /srv/logs.complete
    ");
}

#[test]
fn fault_189_the_screen_claims_no_everything_beside_a_gap() {
    let mut facts = well();
    overview(&mut facts).missing = "000000010000000000000002".parse().ok();
    overview(&mut facts).sets.clear();
    let text = page::text(&facts, &[]);
    let first = text.lines().next().unwrap();
    assert!(first.contains("everything behind a gap"), "{first}");
}

#[test]
fn a_screen_of_trouble_tells_it_first() {
    let mut facts = well();
    facts.lag = Lag {
        seconds: Some(75.25),
        seconds_at_most: None,
        bytes: Some(3 << 20),
    };
    overview(&mut facts).sets.clear();
    let text = page::brief(&facts, &facts.findings(&Thresholds::default()));
    insta::assert_snapshot!(text, @r"
    RPO 75.2 s, 3.00 MiB behind: warning
    warning: the standby is 75.2 s behind, more than 60s (walmgr help lag)
    warning: there is no backup: run `walmgr MASTER.ini backup` (walmgr help no_backup)
    ");
    facts.lag = Lag {
        seconds: None,
        seconds_at_most: Some(9.0),
        bytes: None,
    };
    facts.standby = Err("connect to receiver:\nrefused".into());
    let text = page::brief(&facts, &facts.findings(&Thresholds::default()));
    insta::assert_snapshot!(text, @r"
    RPO at most 9.0 s: critical
    critical: connect to receiver:\nrefused (walmgr help runbooks/receiver)
    ");
}

#[test]
fn the_json_is_one_line_that_begins_with_the_recovery_point() {
    let mut facts = well();
    facts.lag.seconds = Some(1.2341);
    let text = page::json(&facts, &facts.findings(&Thresholds::default()));
    assert!(text.starts_with("{\"rpo_seconds\":1.234,"), "{text}");
    assert_eq!(text.lines().count(), 1);
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(parsed["state"], "ok");
    assert_eq!(parsed["archive"]["held_lsn"], "0/5000148");
    assert_eq!(parsed["backups"][1]["set"], "data.master.0");
    assert_eq!(parsed["recovery_window"]["set"], "data.master.0");
    assert_eq!(parsed["master"]["archiver"]["failed_count"], 0);
    facts.standby = Err("gone".into());
    facts.lag = Lag::default();
    let text = page::json(&facts, &facts.findings(&Thresholds::default()));
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(parsed["rpo_seconds"].is_null() && parsed["archive"].is_null());
    assert_eq!(parsed["findings"][0]["code"], "receiver");
    assert_eq!(parsed["receiver_reachable"], false);
}

#[test]
fn fault_109_an_age_that_a_clock_contradicts_is_a_finding_and_never_zero() {
    // The standby's clock was set back behind the time when WAL arrived.
    let mut facts = on_standby(StandbyFacts {
        receiver_runs: true,
        ..StandbyFacts::default()
    });
    facts.lag.seconds_at_most = Some(-3_600.0);
    overview(&mut facts).received_age_ms = -3_600_000;
    assert_eq!(words(&facts, &Thresholds::default()), ["critical clock"]);
    let text = page::text(&facts, &facts.findings(&Thresholds::default()));
    assert!(text.starts_with("RPO unknown: critical\n"), "{text}");
    assert!(
        text.contains("received 3600 s ahead of the clock"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&page::json(&facts, &[])).unwrap();
    assert!(json["rpo_seconds_at_most"].is_null(), "{json}");
    // A tick is no contradiction.
    facts.lag.seconds_at_most = Some(-0.02);
    overview(&mut facts).received_age_ms = -20;
    assert_eq!(words(&facts, &Thresholds::default()), [""; 0]);
    let text = page::text(&facts, &[]);
    assert!(text.starts_with("RPO at most 0.0 s: ok"), "{text}");
}

#[test]
fn fault_109_every_other_clock_that_lies_is_a_finding() {
    // The master's own clock was set back behind the time of a commit that the standby lacks.
    assert_eq!(
        found(|facts| facts.lag.seconds = Some(-5.0)),
        ["critical clock"]
    );
    // The two hosts differ; a minute may be the way of the question.
    for (ahead, expected) in [
        (61.0, &["warning clock"][..]),
        (-61.0, &["warning clock"]),
        (30.0, &[]),
    ] {
        let differing = found(|facts| master(facts).clock_ahead = Some(ahead));
        assert_eq!(differing, expected);
    }
    // WAL or a backup set from the future.
    let late_wal = found(|facts| overview(facts).received_age_ms = -5_000);
    assert_eq!(late_wal, ["warning clock"]);
    let late_set = found(|facts| {
        overview(facts).sets[0].reach.as_mut().unwrap().age_ms = -DAY_MS;
    });
    assert_eq!(late_set, ["warning clock"]);
    // A failure behind the last success is one whatever the clock says.
    let failing = found(|facts| {
        let archiver = master(facts).archiver.as_mut().unwrap();
        archiver.last_archived = Some(("000000010000000000000004".into(), -3_600.0));
        archiver.last_failed = Some(("000000010000000000000005".into(), -3_605.0));
        archiver.failed_count = 1;
    });
    assert_eq!(failing, ["warning archiving_fails"]);
}

#[test]
fn the_reference_lists_every_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/status-json.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, behind) = page.split_once("The codes of findings are\n").unwrap();
    let (codes, _) = behind.split_once("\n\n").unwrap();
    for code in Code::ALL {
        let word = format!("`{}`", code.word());
        assert!(codes.contains(&word), "{word}");
    }
}

#[test]
fn fault_183_the_reference_has_every_member_of_the_json() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/status-json.md");
    let reference = std::fs::read_to_string(path).unwrap();
    let standby = on_standby(StandbyFacts {
        receiver_runs: true,
        ..StandbyFacts::default()
    });
    let mut names = Vec::new();
    for facts in [well(), standby] {
        let found = facts.findings(&Thresholds::default());
        let parsed = serde_json::from_str(&page::json(&facts, &found)).unwrap();
        members(&parsed, &mut names);
    }
    assert!(names.len() > 50, "{names:?}");
    names.retain(|name| !reference.contains(&format!("`{name}`")));
    assert!(names.is_empty(), "{names:?}");
}

fn members(value: &serde_json::Value, names: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                names.push(name.clone());
                members(value, names);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| members(item, names)),
        _ => {}
    }
}
