//! `verify` of all clusters of a host: a line each, whatever is wrong with one of them.
//! Never looks at how an archive is proven. Invariant tested: host file and folder give the same, each archive is read,
//! and the exit code is that of the worst line.

use serde_json::Value;

use super::{archives, host_of};
use crate::support::place::{server_user, walmgr};
use crate::support::{Host, Output, Site};

/// `verify` by the host's file; the folder has to give the same, but for how long it took.
#[track_caller]
fn verify(host: &Host, words: &[&str]) -> Output {
    let words = [&["verify"], words].concat();
    let by_file = host.command(&words);
    let by_folder = Output::of(walmgr().arg(host.clusters()).args(&words));
    let told = |output: &Output| -> Vec<String> {
        let lines = output.stdout.lines();
        let without_counts = |line: &str| line.split(" read in ").next().unwrap().to_owned();
        lines.map(without_counts).collect()
    };
    assert_eq!(by_file.code, by_folder.code, "{by_file:?}\n{by_folder:?}");
    if !words.contains(&"--json") {
        assert_eq!(told(&by_file), told(&by_folder));
    }
    by_file
}

#[track_caller]
fn lines(output: &Output, code: i32, names: &[&str]) -> Vec<String> {
    assert_eq!(output.code, Some(code), "{output:?}");
    let lines: Vec<String> = output.stdout.lines().map(str::to_owned).collect();
    let named = lines.iter().map(|line| line.split(": ").next().unwrap());
    assert_eq!(named.collect::<Vec<_>>(), names, "{output:?}");
    lines
}

fn members(output: &Output) -> Vec<Value> {
    let parsed = serde_json::from_str(&output.stdout);
    parsed.unwrap_or_else(|_| panic!("{output:?}"))
}

/// Flips a bit amid the stored segment.
fn damage(site: &Site, name: &str) {
    let path = site.stored_path(name);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn verify_of_a_host_has_a_line_a_cluster_and_the_worst_code() {
    let _user = skip_unless!(server_user());
    let (host, sites) = host_of(&["a", "b"]);
    let [a, b] = &sites[..] else { unreachable!() };
    for site in [a, b] {
        archives(site, 1);
    }
    for line in lines(&verify(&host, &["--all"]), 0, &["a", "b"]) {
        assert!(line.contains(": all is well; 1 segments, "), "{line}");
        assert!(line.contains(" in 1 files read in "), "{line}");
    }
    lines(&verify(&host, &["-q"]), 0, &[]);

    damage(b, &b.segment_name(1));
    let of_both = lines(&verify(&host, &[]), 2, &["a", "b"]);
    assert!(of_both[0].contains("all is well"), "{of_both:?}");
    let alone = b.standby_command(&["verify"]);
    assert_eq!(alone.code, Some(2));
    let finding = alone.stdout.lines().next().unwrap();
    let ini = host.cluster_ini("b");
    let expected = format!(
        "b: 1 critical findings, 0 warnings; {finding}; type: walmgr {} verify",
        ini.display()
    );
    assert_eq!(of_both[1], expected);
    assert_eq!(lines(&verify(&host, &["-q"]), 2, &["b"]), [expected]);

    let json = members(&verify(&host, &["--json"]));
    let named: Vec<_> = json.iter().map(|member| &member["cluster"]).collect();
    assert_eq!(named, ["a", "b"]);
    assert_eq!(
        (&json[0]["state"], &json[1]["state"]),
        (&"ok".into(), &"critical".into())
    );
    assert_eq!(json[1]["findings"][0]["file"], b.segment_name(1));
    let alone = b.standby_command(&["verify", "--json"]).stdout;
    let alone: Value = serde_json::from_str(&alone).unwrap();
    for key in alone.as_object().unwrap().keys() {
        assert!(json[1].get(key).is_some(), "{key}: {json:?}");
    }
    let would = ": would read 1 archived files and 0 backup sets";
    for line in lines(&verify(&host, &["-n", "-q"]), 0, &["a", "b"]) {
        assert!(line.ends_with(would), "{line}");
    }
}

#[test]
fn verify_of_a_host_has_a_critical_line_for_what_cannot_be_opened() {
    let _user = skip_unless!(server_user());
    let (mut host, sites) = host_of(&["a", "b"]);
    for site in &sites {
        archives(site, 1);
    }
    host.receiver.stop();
    host.write_cluster("0", "[walmgr]\ncompleted_wal = /x\n");
    let with_broken = lines(&verify(&host, &[]), 2, &["0", "a", "b"]);
    assert!(
        with_broken[0].contains("0.ini:2: completed_wal"),
        "{with_broken:?}"
    );
    let archive = sites[0].completed_wals();
    std::fs::rename(&archive, archive.with_extension("aside")).unwrap();
    let of_all = lines(&verify(&host, &[]), 2, &["0", "a", "b"]);
    let path = archive.display().to_string();
    assert!(of_all[1].contains(&path), "{of_all:?}");
    assert!(of_all[2].contains("b: all is well"), "{of_all:?}");
    std::fs::remove_file(host.cluster_ini("0")).unwrap();
    let json = members(&verify(&host, &["--json"]));
    assert_eq!(json[0]["cluster"], "a");
    assert!(
        json[0]["error"].as_str().unwrap().contains(&path),
        "{json:?}"
    );
    assert_eq!(json[1]["state"], "ok");
    lines(&verify(&host, &["-q"]), 2, &["a"]);

    let refused = verify(&host, &["data.master"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""));
    let said = "`verify data.master` takes the file of one cluster";
    assert!(refused.stderr.contains(said), "{refused:?}");
}
