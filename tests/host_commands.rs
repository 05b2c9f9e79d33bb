//! The commands on a host's file, on its folder, and on the files of its clusters.
//! Never starts a server or a receiver; a test holds the pidfile where a receiver would. Invariant: no command changes
//! another cluster than the one it was given.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use walmgr::test_support::daemon::PidFile;

struct Host {
    root: tempfile::TempDir,
}

/// Exit code, stdout and stderr.
type Ended = (i32, String, String);

impl Host {
    /// A host as `init --host` makes it, with these clusters set up.
    fn new(clusters: &[&str]) -> Host {
        let host = Host {
            root: tempfile::tempdir().unwrap(),
        };
        host.good("host.ini init --host");
        for name in clusters {
            host.good(&format!("clusters.d/{name}.ini init"));
            host.good(&format!("clusters.d/{name}.ini setup"));
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Runs `walmgr` with a line whose first word is a path below the host's folder.
    fn run(&self, line: &str) -> Ended {
        let mut words = line.split_whitespace();
        let output = Command::new(env!("CARGO_BIN_EXE_walmgr"))
            .arg(self.path(words.next().unwrap()))
            .args(words)
            .env("HOME", self.root.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap();
        (code, text(output.stdout), text(output.stderr))
    }

    fn good(&self, line: &str) -> String {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, 0, "{line}: {stderr}");
        stdout
    }

    fn refused(&self, line: &str) -> String {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!((code, stdout.as_str()), (2, ""), "{line}: {stderr}");
        stderr
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_host_makes_a_file_a_folder_and_an_identity_and_says_what_next() {
    let host = Host {
        root: tempfile::tempdir().unwrap(),
    };
    let said = host.good("host.ini init --host");
    assert!(said.contains("clusters.d/db1.ini init standby"), "{said}");
    assert!(said.contains("host.ini receiver -d"), "{said}");
    assert_eq!(mode(&host.path("clusters.d")), 0o700);
    let fingerprint = host.good("host.ini identity");
    assert!(said.contains(fingerprint.trim()), "{said}");
    let written = host.read("host.ini");
    assert!(
        host.refused("host.ini init --host")
            .contains("exists already")
    );
    assert_eq!(host.read("host.ini"), written);

    let undecided = host.refused("db1.ini init");
    assert!(undecided.contains("init --host"), "{undecided}");
    assert!(!host.path("db1.ini").exists());
    let both = host.run("x.ini init --host --pgdata /x");
    assert_eq!(both.0, 2);
}

#[test]
fn init_in_the_folder_makes_a_cluster_that_has_nothing_of_the_process() {
    let host = Host::new(&["db1", "db2"]);
    let text = host.read("clusters.d/db1.ini");
    assert!(!text.contains("listen ="), "{text}");
    assert!(
        text.contains("\nauthorized_keys = db1.authorized_keys\n"),
        "{text}"
    );
    assert!(text.contains("/walshipping/db1\n"), "{text}");
    // The host's key is what masters meet.
    assert!(!host.path("clusters.d/db1.key").exists());
    let of_host = host.good("host.ini identity");
    let said = host.good("clusters.d/db3.ini init");
    assert!(
        said.contains(of_host.trim()) && said.contains("host.ini receiver --reload"),
        "{said}"
    );
    assert_eq!(host.good("clusters.d/db1.ini identity"), of_host);
    assert!(!host.path("clusters.d/db1.key").exists());
    assert!(
        host.refused("clusters.d/db1.ini init")
            .contains("exists already")
    );
    host.good("clusters.d/db3.ini setup");
    let lines = host.run("host.ini status --all").1;
    assert_eq!(lines.lines().count(), 3, "{lines}");
}

#[test]
fn commands_of_one_cluster_are_refused_on_a_hosts_file() {
    let host = Host::new(&["db1"]);
    for word in [
        "setup",
        "verify data.master",
        "keep data.master",
        "unkeep data.master",
        "expire",
        "xpurgewals",
        "compress",
        "xlock",
        "xrelease",
        "xrotate",
        "xpartialsync 000000010000000000000001 0 1",
        "pause",
        "continue",
        "boot",
        "drill",
        "restore",
        "revoke x",
        "syncdaemon",
        "backup",
        "stop",
    ] {
        let said = host.refused(&format!("host.ini {word}"));
        assert!(said.contains("clusters"), "{word}: {said}");
        let typed = format!("clusters.d/NAME.ini {}", word.split(' ').next().unwrap());
        assert!(said.contains(&typed), "{word}: {said}");
    }
}

#[test]
fn status_and_listbackups_of_all_have_a_line_a_cluster_and_the_worst_code() {
    let host = Host::new(&["db1", "db2"]);
    for line in [
        "host.ini status --all",
        "clusters.d status --all",
        "host.ini status",
    ] {
        let (code, stdout, stderr) = host.run(line);
        // A new archive has no backup and no segment.
        let alone = host.run("clusters.d/db1.ini status").0;
        assert_eq!(code, alone, "{line}: {stdout}{stderr}");
        let names: Vec<&str> = stdout.lines().map(|line| &line[..5]).collect();
        assert_eq!(names, ["db1: ", "db2: "], "{line}: {stdout}");
    }
    let json = host.run("host.ini status --all --json").1;
    let parsed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(parsed[1]["cluster"], "db2");
    let alone = host.run("clusters.d/db2.ini status --json").1;
    let alone: Value = serde_json::from_str(&alone).unwrap();
    for key in alone.as_object().unwrap().keys() {
        assert!(parsed[1].get(key).is_some(), "{key}: {json}");
    }

    assert_eq!(
        host.good("host.ini listbackups --all"),
        "db1: no backups\ndb2: no backups\n"
    );
    let json = host.good("clusters.d listbackups --all --json");
    let parsed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(parsed[0]["cluster"], "db1");
    assert_eq!(parsed[0]["backups"], Value::Array(Vec::new()));
    assert!(
        host.refused("clusters.d/db1.ini status --all")
            .contains("leave --all out")
    );
}

#[test]
fn a_broken_file_is_a_line_of_its_own_and_counts_as_critical() {
    let host = Host::new(&["db1"]);
    std::fs::write(host.path("clusters.d/a.ini"), "[walmgr]\nkeep_backup = 1\n").unwrap();
    std::fs::copy(
        host.path("clusters.d/db1.ini"),
        host.path("clusters.d/db2.ini"),
    )
    .unwrap();
    for word in ["status", "listbackups"] {
        let (code, stdout, _) = host.run(&format!("host.ini {word} --all"));
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!((code, lines.len()), (2, 3), "{stdout}");
        assert!(
            lines[0].starts_with("a: ") && lines[0].contains("did you mean keep_backups"),
            "{stdout}"
        );
        assert!(lines[1].starts_with("db1: "), "{stdout}");
        assert!(
            lines[2].starts_with("db2: ") && lines[2].contains("db1.ini"),
            "{stdout}"
        );
        let json = host.run(&format!("host.ini {word} --all --json")).1;
        let parsed: Value = serde_json::from_str(&json).unwrap();
        assert!(
            parsed[0]["error"]
                .as_str()
                .unwrap()
                .contains("a.ini:2: keep_backup"),
            "{json}"
        );
    }
    std::fs::remove_dir_all(host.path("clusters.d")).unwrap();
    assert!(
        host.refused("host.ini status --all")
            .contains("read the folder clusters")
    );
}

#[test]
fn a_cluster_cannot_end_the_receiver_that_serves_others_too() {
    let host = Host::new(&["db1", "db2", "db3"]);
    let pidfile = host.path("clusters.d/db1.pid");
    let held = PidFile::acquire_of_host(&pidfile, &host.path("host.ini")).unwrap();
    for word in ["--stop", "--kill"] {
        let said = host.refused(&format!("clusters.d/db1.ini receiver {word}"));
        assert!(said.contains("this receiver serves 3 clusters"), "{said}");
        assert!(
            said.contains(&format!("host.ini receiver {word}")),
            "{said}"
        );
    }
    let of_host = host.good("host.ini identity");
    assert_eq!(host.good("clusters.d/db1.ini identity"), of_host);
    let status = host.run("clusters.d/db1.ini status --json").1;
    let parsed: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(parsed["standby"]["receiver_runs"], true, "{status}");
    drop(held);
    // Nobody runs: the sentence is the one of today.
    let (_, _, said) = host.run("clusters.d/db1.ini receiver --stop");
    assert!(said.contains("not running"), "{said}");
}
