//! Folders, files and names that two clusters' files of one host want.
//! Never starts a receiver. Invariant: whichever of two files stands first is served.

use std::cell::Cell;
use std::os::unix::fs::symlink;

use super::*;
use crate::config::{ClusterFiles, Config, load};

/// A host without TLS whose clusters have these files; `ROOT` in them is a folder that exists.
fn read(files: &[(&str, &str)], prepare: impl Fn(&Path)) -> (tempfile::TempDir, ClusterFiles) {
    read_under("tls = off", files, prepare)
}

/// [`read`] with this line in the host's file.
fn read_under(
    host: &str,
    files: &[(&str, &str)],
    prepare: impl Fn(&Path),
) -> (tempfile::TempDir, ClusterFiles) {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    std::fs::create_dir(at("clusters.d")).unwrap();
    prepare(root.path());
    for (name, text) in files {
        let text = text.replace("ROOT", root.path().to_str().unwrap());
        let text = format!("[walmgr]\n{text}");
        std::fs::write(at(&format!("clusters.d/{name}.ini")), text).unwrap();
    }
    let host = format!("[walmgr]\nclusters = clusters.d\n{host}\n");
    std::fs::write(at("host.ini"), host).unwrap();
    let Config::Host(host) = load(&at("host.ini"), &[]).unwrap() else {
        panic!("no host");
    };
    let read = host.read_clusters().unwrap();
    (root, read)
}

/// Two files with these lines: the later is refused in these words, in either order.
fn refused(one: &str, other: &str, expected: &[&str], prepare: fn(&Path)) {
    for (first, second) in [(one, other), (other, one)] {
        let files = [
            ("a", format!("walmgr_data = ROOT/a\n{first}\n")),
            ("b", format!("walmgr_data = ROOT/b\n{second}\n")),
            ("c", "walmgr_data = ROOT/c\n".to_owned()),
        ];
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        let (_root, read) = read(&files, prepare);
        let names: Vec<&String> = read.good.keys().collect();
        assert_eq!(names, ["a", "c"], "{first} and {second}: {:?}", read.broken);
        let (path, says) = read.broken.first_key_value().unwrap();
        assert!(path.ends_with("clusters.d/b.ini"));
        assert!(says.contains("clusters.d/b.ini:"), "{says}");
        assert!(says.contains("clusters.d/a.ini"), "{says}");
        for words in expected {
            assert!(says.contains(words), "{first} and {second}: {says}");
        }
    }
}

#[test]
fn two_files_with_one_folder_name_both_files_and_keys() {
    let files = [
        ("a", "walmgr_data = ROOT/a\nslave_data = ROOT/x\n"),
        ("b", "walmgr_data = ROOT/b\nconfig_backup = ROOT/x\n"),
    ];
    let (root, read) = read(&files, |_| {});
    let says = read.broken.values().next().unwrap();
    let root = root.path().display().to_string();
    assert_eq!(
        says.replace(&root, ""),
        "/clusters.d/b.ini:3: config_backup: expected a place that no other file names, found config_backup = /x, the \
         same directory as slave_data = /x (/clusters.d/a.ini:3); give each a path of its own"
    );
}

#[test]
fn a_folder_of_two_files_is_refused_however_it_is_written() {
    let same: &[&str] = &["the same directory as"];
    refused("slave_data = ROOT/x", "slave_data = ROOT/x", same, |_| {});
    refused(
        "slave_data = ROOT/x",
        "config_backup = ROOT/y/../x/.",
        same,
        |_| {},
    );
    refused(
        "slave_pg_xlog = ROOT/real/w",
        "slave_data = ROOT/link/w",
        same,
        |root| {
            std::fs::create_dir(root.join("real")).unwrap();
            symlink("real", root.join("link")).unwrap();
        },
    );
    refused(
        "partial_wals = ROOT/x",
        "completed_wals = ROOT/x",
        same,
        |_| {},
    );
    refused("full_backup = ROOT/x", "full_backup = ../x", same, |_| {});
}

#[test]
fn a_folder_inside_another_files_is_refused_in_both_orders() {
    refused(
        "slave_data = ROOT/x",
        "config_backup = ROOT/x/in/side",
        &["slave_data", "config_backup"],
        |_| {},
    );
    refused(
        "completed_wals = ROOT/x/y",
        "slave_data = ROOT/x",
        &["completed_wals", "slave_data"],
        |_| {},
    );
}

#[test]
fn a_name_that_another_files_rotation_makes_is_refused() {
    for path in ["x.0", "x.12/wal", "x.incoming", "x.expired.3"] {
        let other = format!("config_backup = ROOT/{path}");
        refused(
            "full_backup = ROOT/x",
            &other,
            &["full_backup", "older copies get"],
            |_| {},
        );
        refused(
            "slave_data = ROOT/x",
            &other,
            &["slave_data", "older copies get"],
            |_| {},
        );
    }
    refused(
        "full_backup = ROOT/link",
        "slave_data = ROOT/link.0",
        &["older copies get"],
        |root| {
            std::fs::create_dir(root.join("elsewhere")).unwrap();
            symlink("elsewhere", root.join("link")).unwrap();
        },
    );
    let files = [
        ("a", "walmgr_data = ROOT/a\nfull_backup = ROOT/x\n"),
        (
            "b",
            "walmgr_data = ROOT/b\nconfig_backup = ROOT/x.wal\nslave_data = ROOT/x2\n",
        ),
    ];
    assert_eq!(read(&files, |_| {}).1.broken.len(), 0);
}

#[test]
fn files_that_only_one_may_have_are_refused() {
    let same: &[&str] = &["the same file as"];
    refused("pidfile = ROOT/x", "pidfile = ROOT/./x", same, |_| {});
    refused("pidfile = ROOT/x", "logfile = ROOT/x", same, |_| {});
    refused("authorized_keys = ROOT/x", "logfile = ROOT/x", same, |_| {});
    refused(
        "authorized_keys = ROOT/x",
        "authorized_names = ROOT/x",
        same,
        |_| {},
    );
}

#[test]
fn the_hosts_own_files_and_its_folder_are_nobodys() {
    for line in [
        "pidfile = ROOT/host.pid",
        "logfile = ROOT/host.key",
        "logfile = ROOT/host.ini",
        "config_backup = ROOT/clusters.d",
        "slave_data = ROOT",
    ] {
        let text = format!("walmgr_data = /nowhere/a\n{line}\n");
        let (_root, read) = read(&[("a", &text)], |_| {});
        let says = read
            .broken
            .values()
            .next()
            .unwrap_or_else(|| panic!("{line}"));
        assert!(says.contains("host.ini"), "{says}");
    }
    let (_root, below) = read(&[("a", "walmgr_data = ROOT/clusters.d/a\n")], |_| {});
    assert_eq!(below.good.len(), 1, "{below:?}");
}

#[test]
fn one_ini_linked_twice_is_one_cluster() {
    let (_root, read) = read(&[("a", "walmgr_data = ROOT/a\n")], |root| {
        symlink("a.ini", root.join("clusters.d/b.ini")).unwrap();
    });
    assert_eq!(read.good.len(), 1);
    let says = read.broken.values().next().unwrap();
    assert!(
        says.contains("this ini file") && says.contains("the same file as"),
        "{says}"
    );
}

#[test]
fn keys_and_logs_may_be_shared_and_shared_keys_are_noted() {
    let shared = "authorized_keys = ROOT/keys\nauthorized_names = names\nlogfile = ROOT/log\n";
    let own = |name: &str| format!("walmgr_data = ROOT/{name}\n{shared}");
    let (_root, read) = read_under("", &[("a", &own("a")), ("b", &own("b"))], |_| {});
    assert_eq!(read.good.len(), 2, "{read:?}");
    let notes = &read.good["b"].notes;
    // Nobody is let in by a name without tls_ca.
    assert_eq!(
        (read.good["a"].notes.len(), notes.len()),
        (0, 1),
        "{notes:?}"
    );
    assert!(
        notes[0].contains("b.ini:3: authorized_keys = "),
        "{notes:?}"
    );
    assert!(
        notes[0].contains("a.ini: a master that is let in there is let in here"),
        "{notes:?}"
    );
}

/// What is said of `b` beside `a`, on a host with these lines, where each adds one to its file.
fn lists(host: &str, one: &str, other: &str) -> Option<String> {
    let text = |name: &str, line: &str| format!("walmgr_data = ROOT/{name}\n{line}\n");
    let files = [("a", text("a", one)), ("b", text("b", other))];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let (root, read) = read_under(host, &files, |_| {});
    assert!(read.good.contains_key("a"), "{read:?}");
    let root = root.path().display().to_string();
    let says = read.broken.into_values().next();
    says.map(|says| says.replace(&root, ""))
}

#[test]
fn fault_150_one_list_of_two_files_must_be_meant_by_both() {
    let by_key = lists("", "", "").unwrap();
    assert_eq!(
        by_key,
        "/clusters.d/b.ini: authorized_keys: expected a list of its own, found /clusters.d/authorized_keys, which \
         /clusters.d/a.ini reads, too: whoever is listed there may write into both archives; set `authorized_keys = \
         b.authorized_keys` and authorize its masters there, or set the same path in both files if that is meant"
    );
    let by_name = lists("tls_ca = ca.crt", "", "").unwrap();
    assert_eq!(
        by_name,
        by_key.replace("authorized_keys", "authorized_names")
    );
    // Meant by one alone, whichever that is.
    for (one, other) in [
        ("authorized_keys = authorized_keys", ""),
        ("", "authorized_keys = ../clusters.d/authorized_keys"),
    ] {
        let says = lists("", one, other).unwrap();
        assert!(says.contains("expected a list of its own"), "{says}");
    }
    let line = "authorized_keys = authorized_keys";
    assert_eq!(lists("", line, line), None);
    assert_eq!(lists("", "", "authorized_keys = b.authorized_keys"), None);
}

#[test]
fn only_the_list_that_lets_somebody_in_counts() {
    assert_eq!(lists("tls = off", "", ""), None);
    let own_keys = "authorized_keys = b.keys";
    assert_eq!(lists("", "", own_keys), None);
    assert!(lists("tls_ca = ca.crt", "", own_keys).is_some());
    assert_eq!(
        lists("tls_ca = ca.crt", "", "authorized_names = b.names"),
        None
    );
    // What the cluster's own file says of TLS counts only where that is served alone.
    assert!(lists("", "tls = off", "tls = off").is_some());
}

#[test]
fn a_file_that_is_refused_claims_nothing() {
    let files = [
        ("a", "walmgr_data = ROOT/a\nslave_data = ROOT/x\n"),
        (
            "b",
            "walmgr_data = ROOT/b\nslave_data = ROOT/x\nslave_pg_xlog = ROOT/y\n",
        ),
        ("c", "walmgr_data = ROOT/b\nslave_pg_xlog = ROOT/y\n"),
    ];
    let (_root, read) = read(&files, |_| {});
    let names: Vec<&String> = read.good.keys().collect();
    assert_eq!(names, ["a", "c"], "{:?}", read.broken);
}

#[test]
fn three_hundred_files_resolve_each_path_once() {
    let Config::Host(host) = load_host() else {
        panic!("no host");
    };
    let resolved = Cell::new(0);
    let resolve = |path: &Path| {
        resolved.set(resolved.get() + 1);
        path.to_path_buf()
    };
    let mut claims = Claims::of_host(&host);
    for number in 0..300 {
        let named = |key: &str| Named {
            key: key.to_owned(),
            place: SettingPlace::Line(1),
            path: PathBuf::from(format!("/nowhere/{number}/{key}")),
        };
        let mut wanted = WantedPaths {
            directories: vec![named("completed_wals"), named("full_backup")],
            rotated: vec![named("full_backup")],
            files: vec![named("pidfile")],
            shared_files: vec![named("logfile")],
            let_in: Some(named("authorized_keys")),
            ..WantedPaths::default()
        };
        let file = PathBuf::from(format!("/nowhere/{number}.ini"));
        wanted.find_places(&resolve);
        claims.take(&file, &wanted).unwrap();
        // A rotated directory is resolved by its own name, too.
        assert_eq!(resolved.get(), (number + 1) * 7);
    }
    let mut again = WantedPaths {
        directories: vec![Named {
            key: "slave_data".to_owned(),
            place: SettingPlace::File,
            path: PathBuf::from("/nowhere/299/full_backup.7"),
        }],
        ..WantedPaths::default()
    };
    again.find_places(&resolve);
    assert!(claims.take(Path::new("/again.ini"), &again).is_err());
}

fn load_host() -> Config {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("host.ini");
    std::fs::write(&path, "[walmgr]\nclusters = clusters.d\n").unwrap();
    load(&path, &[]).unwrap()
}
