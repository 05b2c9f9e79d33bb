//! docs/start/ten-minutes.md, typed on clean Debian hosts with the package.
//! Never types what the page does not have. Invariant: from the package to a proven segment are six commands at most.

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

#[test]
fn fault_182_the_guide_works_on_clean_hosts_as_it_is_typed() {
    let made = Command::new("./package.sh")
        .args(["--profile", "dev", "--only-deb"])
        .current_dir(project())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stdout);
    if let Some(reason) = said.lines().find(|line| line.starts_with("SKIP")) {
        return println!("{reason}");
    }
    assert!(
        made.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let folder = project().join("target/debian");
    let packages = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let package = packages.filter(|path| path.extension().is_some_and(|end| end == "deb"));
    let package = package
        .max_by_key(|path| path.metadata().unwrap().modified().unwrap())
        .unwrap();

    let home = TempDir::new();
    let lines: Vec<String> = steps()
        .into_iter()
        .map(|(host, typed)| format!("{host}\t{typed}\n"))
        .collect();
    let list = home.write("steps", lines.concat());
    for variable in ["WALMGR_TRY_NOTHING", "WALMGR_TRY_SYSTEMD"] {
        let output = Command::new("tests/in-debian.sh")
            .env(variable, "1")
            .args(["2", "tests/ten-minutes.sh"])
            .args([&package, &list])
            .current_dir(project())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        println!("{said}");
        if output.status.code() == Some(77) {
            assert!(said.contains("SKIP: "));
            return;
        }
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(said.ends_with("a segment is proven\n"));
    }
}
