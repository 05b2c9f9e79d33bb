//! Lines and their file: what is in them, and what becomes of them when the disk does not take them.
//! Never asserts a speed. Invariant tested: a line is whole, or counted.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

const WHO: Actor = Actor::Receiver;

fn refused(log: &AuditLog, why: &str) {
    let outcome = AuditOutcome::Refused(why);
    log.record_durably(&WHO, &outcome, &AuditEvent::Refused { more: 0 });
}

/// The lines of a file, of which each is one.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn fault_186_every_event_has_a_row_in_the_documentation() {
    let page = include_str!("../../docs/reference/audit.md");
    let table = page.split("## Events").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    assert_eq!(rows, AuditEvent::WORDS);
    for word in ["begun", "done", "failed", "refused"] {
        assert!(page.contains(&format!("`{word}`")), "{word}");
    }
}

#[test]
fn fault_186_the_file_is_for_its_owner_and_foreign_things_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit");
    refused(&AuditLog::new("main", Some(&path)), "first");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for (wrong, words) in [
        (link.as_path(), "is a symlink"),
        (folder.path(), "is a directory"),
        (fifo.as_path(), "no regular file"),
        (Path::new("/dev/null"), "no regular file"),
    ] {
        let error = AuditLog::check(Some(wrong)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        // Whoever tells all the same goes on.
        refused(&AuditLog::new("main", Some(wrong)), "lost");
    }
    assert_eq!(lines(&path).len(), 1);
}

#[test]
fn fault_187_lost_lines_are_counted_and_a_torn_line_stays_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (path, away) = (folder.path().join("in/audit"), folder.path().join("in"));
    let log = AuditLog::new("main", Some(&path));
    for _ in 0..3 {
        refused(&log, "there is no such folder");
    }
    std::fs::create_dir(&away).unwrap();
    std::fs::write(&path, "{\"time\":\"2026-11-2").unwrap();
    refused(&log, "it is there now");
    let text = std::fs::read_to_string(&path).unwrap();
    let rest: Vec<&str> = text.lines().collect();
    assert_eq!((rest.len(), rest[0]), (3, "{\"time\":\"2026-11-2"));
    let lost: Value = serde_json::from_str(rest[1]).unwrap();
    assert_eq!(
        (&lost["event"], &lost["lost"]),
        (&json!("lines_lost"), &json!(3))
    );
    let last: Value = serde_json::from_str(rest[2]).unwrap();
    assert_eq!(last["why"], "it is there now");
    refused(&log, "again");
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
}

#[test]
fn fault_186_lines_of_many_writers_never_mix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit");
    let logs: Vec<AuditLog> = (0..8)
        .map(|number| AuditLog::new(&number.to_string(), Some(&path)))
        .collect();
    std::thread::scope(|scope| {
        for log in &logs {
            scope.spawn(|| {
                for number in 0..100 {
                    let why = "x".repeat(number * 7);
                    let outcome = AuditOutcome::Refused(&why);
                    log.record(
                        &WHO,
                        &outcome,
                        &AuditEvent::Refused {
                            more: number as u64,
                        },
                    );
                }
            });
        }
    });
    drop(logs);
    let lines = lines(&path);
    assert_eq!(lines.len(), 800);
    for cluster in 0..8 {
        let name = cluster.to_string();
        let own = lines.iter().filter(|line| line["cluster"] == name);
        let numbers: Vec<u64> = own.map(|line| line["more"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..100).collect::<Vec<u64>>());
    }
}

#[test]
fn fault_186_a_rotated_file_is_left_at_the_next_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let (path, rotated) = (folder.path().join("audit"), folder.path().join("audit.1"));
    let log = AuditLog::new("main", Some(&path));
    refused(&log, "one");
    std::fs::rename(&path, &rotated).unwrap();
    refused(&log, "two");
    log.set(Some(path.clone()));
    refused(&log, "three");
    assert_eq!((lines(&rotated).len(), lines(&path).len()), (2, 1));
    let elsewhere = folder.path().join("elsewhere");
    log.set(Some(elsewhere.clone()));
    refused(&log, "four");
    log.set(None);
    refused(&log, "nowhere");
    assert_eq!((lines(&path).len(), lines(&elsewhere).len()), (1, 1));
}

proptest! {
    #[test]
    fn fault_186_any_text_is_one_line_of_ascii_and_reads_back(name in ".{0,700}", why in any::<String>()) {
        let who = Actor::Peer { name: Some(name.clone()), key: None, address: "192.0.2.1:1".to_owned() };
        let event = AuditEvent::RewriteRefused { file: &name, more: 2 };
        let line = line_of("main", &who, &AuditOutcome::Failed(&why), &event);
        prop_assert!(line.ends_with('\n') && line.len() < 12_000);
        prop_assert!(line[..line.len() - 1].bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{}", line);
        let read: Value = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(read["who"]["name"].as_str().unwrap(), short(&name));
        prop_assert_eq!(read["why"].as_str().unwrap(), short(&why));
        let time = read["time"].as_str().unwrap();
        prop_assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == 27, "{}", time);
    }
}
