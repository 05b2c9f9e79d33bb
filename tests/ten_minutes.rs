//! docs/start/ten-minutes.md, typed on clean Debian hosts with the package.
//! Never types what the page does not have. Invariant: from the package to a proven segment are six commands at most.

use std::path::PathBuf;
use std::process::Command;

use crate::support::documents::{page, project};
use crate::support::place::TempDir;

/// Where the commands end that lead to the segment.
const END: &str = "## What comes next";

/// The hosts on which the page types each command, the standby being the first.
fn steps() -> Vec<(u8, String)> {
    let text = page("docs/start/ten-minutes.md").text;
    let (text, _) = text.split_once(END).unwrap();
    let mut hosts: &[u8] = &[];
    let mut steps = Vec::new();
    for line in text.lines() {
        match line {
            "**On both hosts:**" => hosts = &[1, 2],
            "**On the standby:**" => hosts = &[1],
            "**On the master:**" => hosts = &[2],
            _ => {}
        }
        if let Some(typed) = line.strip_prefix("    ") {
            assert!(!hosts.is_empty(), "{typed}");
            steps.extend(hosts.iter().map(|host| (*host, typed.to_owned())));
        }
    }
    steps
}

#[test]
fn from_the_package_to_a_proven_segment_are_six_commands() {
    let steps = steps();
    assert!((4..=6).contains(&steps.len()), "{steps:#?}");
    let pasted = steps
        .iter()
        .filter(|(_, typed)| typed.contains('…'))
        .count();
    assert_eq!(pasted, 2);
}

/// A package of what cargo has made, in a folder of its own; `None` where none can be made, which is said.
fn package(home: &TempDir) -> Option<PathBuf> {
    let package = home.join("walmgr_0_amd64.deb");
    // Tests that run at once make it in the same place.
    let make = "./package.sh --profile dev --only-deb && cp target/debian/walmgr_*.deb \"$1\"";
    let made = Command::new("flock")
        .args(["target/package.lock", "sh", "-ec", make, "sh"])
        .arg(&package)
        .current_dir(project())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stdout);
    if let Some(reason) = said.lines().find(|line| line.starts_with("SKIP")) {
        println!("{reason}");
        return None;
    }
    assert!(
        made.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&made.stderr)
    );
    Some(package)
}

/// Runs a script on clean hosts, and answers with what it said; `None` where there can be none, which is said.
fn in_debian(script: &mut Command) -> Option<String> {
    let output = script.current_dir(project()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    if output.status.code() == Some(77) {
        assert!(said.contains("SKIP: "));
        return None;
    }
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(said)
}

#[test]
fn fault_193_the_units_of_the_package_work_under_a_real_systemd() {
    let home = TempDir::new();
    let Some(package) = package(&home) else {
        return;
    };
    let mut script = Command::new("tests/in-debian.sh");
    let said = in_debian(script.args(["1", "tests/systemd.sh"]).arg(&package));
    assert!(said.is_none_or(|said| said.ends_with("the units work\n")));
}

#[test]
fn fault_182_the_guide_works_on_clean_hosts_as_it_is_typed() {
    let home = TempDir::new();
    let Some(package) = package(&home) else {
        return;
    };
    let lines: Vec<String> = steps()
        .into_iter()
        .map(|(host, typed)| format!("{host}\t{typed}\n"))
        .collect();
    let list = home.write("steps", lines.concat());
    for variable in ["WALMGR_TRY_NOTHING", "WALMGR_TRY_SYSTEMD"] {
        let mut script = Command::new("tests/in-debian.sh");
        script
            .env(variable, "1")
            .args(["2", "tests/ten-minutes.sh"])
            .args([&package, &list]);
        let Some(said) = in_debian(&mut script) else {
            return;
        };
        assert!(said.ends_with("a segment is proven\n"));
    }
}
