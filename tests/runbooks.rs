//! Runbooks, typed as somebody does who was woken up: the trouble, the line that names the page, its lines, the end.
//! Never types a line that the page does not have. Invariant: when the lines are typed, the finding is gone.

use std::fs;
use std::time::Duration;

use crate::support::documents::page;
use crate::support::place::server_user;
use crate::support::{Output, Site, wait_for};

/// The segment of every page.
const NAME: &str = "000000010000000000000007";

/// Types a line of a runbook, with tonight's names for those of the page.
#[track_caller]
fn typed(site: &Site, runbook: &str, line: &str, tonight: &[(&str, &str)]) -> Output {
    let lines = page(&format!("docs/runbooks/{runbook}.md")).walmgr_lines();
    let found = lines.iter().find(|found| found.words.join(" ") == line);
    let found = found.unwrap_or_else(|| panic!("{runbook} has no line: {line}"));
    let words: Vec<String> = found.words[2..]
        .iter()
        .map(|word| {
            let replaced = |word: String, (page, here): &(&str, &str)| word.replace(page, here);
            tonight.iter().fold(word.clone(), replaced)
        })
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = match found.words[1].ends_with("master.ini") {
        true => site.master_walmgr(&words),
        false => site.standby_walmgr(&words),
    };
    Output::of(command.current_dir(site.data()))
}

/// A site with three archived segments, and the name of the second.
fn archived() -> (Site, String) {
    let site = Site::start();
    for number in 1..=3 {
        site.write_segment(number);
        site.archive(&site.segment_name(number)).succeed();
    }
    let second = site.segment_name(2);
    (site, second)
}

fn screen(site: &Site) -> String {
    site.standby_command(&["status"]).stdout
}

#[test]
fn fault_183_a_hole_is_closed_as_its_runbook_says() {
    let _user = skip_unless!(server_user());
    let (mut site, second) = archived();
    site.receiver.stop();
    fs::remove_file(site.stored_path(&second)).unwrap();
    site.start_receiver();
    let told = format!("{second} is missing in the archive");
    let before = screen(&site);
    let finding = before.lines().find(|line| line.contains(&told));
    let finding = finding.unwrap_or_else(|| panic!("{before}"));
    assert!(
        finding.ends_with(" (walmgr help hole-in-archive)"),
        "{finding}"
    );
    let line = format!("walmgr ~/master.ini xarchive pg_wal/{NAME} {NAME}");
    typed(&site, "hole-in-archive", &line, &[(NAME, &second)]).succeed();
    assert!(!screen(&site).contains("is missing"), "{}", screen(&site));
}

#[test]
fn fault_183_a_damaged_segment_is_replaced_as_its_runbook_says() {
    let _user = skip_unless!(server_user());
    let (site, second) = archived();
    let path = site.unpacked_path(&second);
    let mut wal = fs::read(&path).unwrap();
    let middle = wal.len() / 2;
    wal[middle] ^= 0xFF;
    fs::write(&path, wal).unwrap();
    let verify = "walmgr standby.ini verify";
    let found = typed(&site, "damaged-segment", verify, &[]);
    assert_eq!(found.code, Some(2), "{}", found.stdout);
    assert!(screen(&site).contains(" (walmgr help damaged-segment)"));
    let line = format!("walmgr ~/master.ini xarchive pg_wal/{NAME} {NAME}");
    typed(&site, "damaged-segment", &line, &[(NAME, &second)]).succeed();
    let found = typed(&site, "damaged-segment", verify, &[]);
    assert_ne!(found.code, Some(2), "{}", found.stdout);
    assert!(site.holds(&format!("{second}.damaged")));
}

#[test]
fn fault_183_lost_keys_are_made_anew_as_their_runbook_says() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let name = site.segment_name(1);
    site.write_segment(1);
    let lose = |ini: &std::path::Path| {
        for end in ["key", "crt"] {
            fs::remove_file(ini.with_extension(end)).unwrap();
        }
    };
    let runbook = "key-lost";
    lose(site.master_ini());
    let new = typed(&site, runbook, "walmgr master.ini identity", &[]).succeed();
    let refused = site.archive(&name);
    assert!(
        refused.fail(4).ends_with(" (walmgr help key-refused)"),
        "{}",
        refused.stderr
    );
    typed(&site, runbook, "walmgr standby.ini revoke master", &[]).succeed();
    let line = "walmgr standby.ini authorize SHA256:… master";
    typed(&site, runbook, line, &[("SHA256:…", &new)]).succeed();
    let is_archived = |site: &Site| (site.archive(&name).code == Some(0)).then_some(());
    let patience = Duration::from_secs(60);
    wait_for("the new key to be known", patience, || is_archived(&site));
    lose(site.standby_ini());
    let new = typed(&site, runbook, "walmgr standby.ini identity", &[]).succeed();
    site.restart_receiver();
    let refused = site.archive(&name);
    assert!(
        refused.fail(4).ends_with(" (walmgr help key-refused)"),
        "{}",
        refused.stderr
    );
    site.master_set("slave_fingerprint", &new);
    wait_for("the receiver to be known", patience, || is_archived(&site));
}
