//! Hosts of many clusters: their own file, and those of the folder `clusters`.
//! Never starts a receiver. Invariant: a file of the folder that is refused leaves every other as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::patience::Patience;

/// A host's file beside a folder with these files.
struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    fn new(files: &[(&str, &str)]) -> Folder {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("clusters.d")).unwrap();
        let folder = Folder { root };
        folder.write("host.ini", "[walmgr]\nclusters = clusters.d\n");
        for (name, text) in files {
            folder.write(&format!("clusters.d/{name}"), text);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn host(&self) -> HostConfig {
        match load(&self.path("host.ini"), &[]).unwrap() {
            Config::Host(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    /// What is read while the clusters of these files are served.
    fn read_beside(&self, before: &ClusterFiles) -> ClusterFiles {
        let in_force = before.wanted.iter().map(|(name, wanted)| {
            let path = before.good[name].path.clone();
            (path, Arc::clone(wanted))
        });
        let in_force = in_force.collect();
        let host = self.host();
        let read = host.read_clusters_beside(&in_force, &Patience::default(), |_| Ok(()));
        read.unwrap().0
    }

    fn read(&self) -> ClusterFiles {
        self.host().read_clusters().unwrap()
    }
}

fn names(files: &ClusterFiles) -> Vec<&str> {
    files.good.keys().map(String::as_str).collect()
}

/// The one sentence there is, with paths from the folder on.
fn sentence(files: &ClusterFiles) -> String {
    assert_eq!(files.broken.len(), 1, "{files:?}");
    let (path, says) = files.broken.first_key_value().unwrap();
    let root = format!("{}/", path.parent().unwrap().parent().unwrap().display());
    says.replace(&root, "")
}

fn archive(at: &str) -> String {
    format!("[walmgr]\nwalmgr_data = /nowhere/{at}\n")
}

#[test]
fn a_file_with_clusters_is_a_hosts() {
    let config = host(&format!(
        "{HOST}listen = 0.0.0.0:7000\nlog_format = json\nlogfile = /h.log\npidfile = /h.pid\ntls_ca = ca.crt\n"
    ));
    assert_eq!(config.clusters, Path::new("/clusters.d"));
    assert_eq!(config.listen_text(), "0.0.0.0:7000");
    assert_eq!(
        (config.log_format, config.max_connections),
        (LogFormat::Json, 1024)
    );
    assert_eq!(config.receiver_pidfile(), Path::new("/h.pid"));
    assert_eq!(config.job_name, "main");
    assert!(config.tls.key.ends_with("main.key") && config.tls.enabled);
    assert!(config.notes.is_empty());
    let by_section = host("[wal-slave]\nclusters = /clusters.d\n");
    assert_eq!(by_section.listen_text(), "127.0.0.1:7432");
    assert!(by_section.receiver_pidfile().ends_with("main.pid"));
}

#[test]
fn keys_of_a_cluster_are_refused_in_a_hosts_file_with_their_place() {
    assert_eq!(
        refused(&format!("{HOST}completed_wals = /x\n")),
        "main.ini:3: completed_wals: expected a setting of the host, found one of a cluster; this file is of a \
         host of many clusters because of clusters on line 2; it belongs into a file of the folder clusters"
    );
    let values = |row: &keys::Key| format!("{HOST}{} = {}\n", row.name, row.example);
    for row in keys::rows(Side::Standby).chain(keys::rows(Side::Master)) {
        let result = try_load(&values(row), &[]);
        assert_eq!(
            result.is_ok(),
            keys::row(row.name, Side::Host).is_some(),
            "{}: {result:?}",
            row.name
        );
    }
    let of_master = refused(&format!("{HOST}master_data = /x\n"));
    assert!(
        of_master.contains("move it to the master's ini file"),
        "{of_master}"
    );
    let set = try_load(HOST, &[("keep_backups", "3")]).unwrap_err();
    assert!(
        set.starts_with("--set: keep_backups: expected a setting of the host"),
        "{set}"
    );
}

#[test]
fn a_host_without_a_usable_folder_is_refused() {
    let unset = refused("[walmgr]\nx =\nclusters = %(x)s\n");
    assert!(
        unset.contains("clusters: expected a value, found none"),
        "{unset}"
    );
    let own = refused("[walmgr]\nclusters = .\n");
    assert!(
        own.contains("expected a folder of the clusters' files alone"),
        "{own}"
    );
    let plain = refused(&format!("{HOST}listen = 0.0.0.0:1\ntls = off\n"));
    assert!(plain.contains("is not a loopback address"), "{plain}");
    let same = refused(&format!("{HOST}logfile = /x\npidfile = /x\n"));
    assert!(same.contains("the same file as"), "{same}");

    let folder = Folder::new(&[]);
    std::fs::remove_dir(folder.path("clusters.d")).unwrap();
    let absent = folder.host().read_clusters().unwrap_err();
    assert_eq!(absent.kind(), Kind::Config);
    assert!(absent.to_string().contains("mkdir -m 700"), "{absent}");
}

#[test]
fn every_ini_of_the_folder_is_a_cluster_and_nothing_else_is() {
    let (one, two) = (archive("1"), archive("2"));
    let two = format!("{two}authorized_keys = db2.keys\n");
    let files = Folder::new(&[
        ("db2.ini", &two),
        ("db1.ini", &one),
        ("db3.ini~", "broken"),
        ("db3.ini.bak", "broken"),
        (".#db3.ini", "broken"),
        ("authorized_keys", ""),
    ]);
    let read = files.read();
    assert_eq!(names(&read), ["db1", "db2"]);
    assert!(read.broken.is_empty(), "{read:?}");
    assert_eq!(read.good["db1"].path, files.path("clusters.d/db1.ini"));
    assert_eq!(read.good["db1"].job_name, "db1");
    assert!(Folder::new(&[]).read().good.is_empty());
}

#[test]
fn a_broken_file_is_named_and_leaves_the_others() {
    let broken: [(&str, &str, &str); 5] = [
        ("clash.ini", "hello\n", "clusters.d/clash.ini:1: expected"),
        (
            "m.ini",
            MASTER,
            "expected a cluster's file, as of a standby, found a master's",
        ),
        ("h.ini", HOST, "found a host's; move it out of clusters.d"),
        (
            "k.ini",
            "[walmgr]\nkeep_backup = 1\n",
            "did you mean keep_backups",
        ),
        (
            "n\nl.ini",
            "",
            "expected a name that can stand in a log line, found `n\\nl`",
        ),
    ];
    for (name, text, expected) in broken {
        let good = archive("1");
        let read = Folder::new(&[("db1.ini", &good), (name, text)]).read();
        assert_eq!(names(&read), ["db1"]);
        let says = sentence(&read);
        assert!(says.contains(expected), "{says}");
    }
    let folder = Folder::new(&[("db1.ini", &archive("1"))]);
    std::fs::create_dir(folder.path("clusters.d/folder.ini")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path("clusters.d/gone.ini")).unwrap();
    let read = folder.read();
    assert_eq!((names(&read), read.broken.len()), (vec!["db1"], 2));
}

#[test]
fn of_the_settings_of_the_process_the_hosts_count() {
    let text = format!(
        "{}listen = 127.0.0.1:1\ntls_key = /x.key\nlog_format = json\nlogfile = /x.log\npidfile = /x.pid\n\
         max_connections = 5\n",
        archive("1")
    );
    let own_list = format!("{}authorized_keys = db2.keys\n", archive("2"));
    let folder = Folder::new(&[("db1.ini", &text), ("db2.ini", &own_list)]);
    let (host, read) = (folder.host(), folder.read());
    let (first, second) = (&read.good["db1"], &read.good["db2"]);
    for config in [first, second] {
        assert_eq!((&config.listen, &config.tls), (&host.listen, &host.tls));
        assert_eq!(config.log_format, LogFormat::Text);
    }
    assert_eq!(first.max_connections, 5);
    assert_eq!(first.receiver_pidfile(), Path::new("/x.pid"));
    let notes = first.notes.join("\n");
    for key in ["3: listen", "4: tls_key", "5: log_format"] {
        let says = format!("db1.ini:{key} counts only where this file is served alone; here");
        assert!(notes.contains(&says), "{notes}");
    }
    assert_eq!(first.notes.len(), 3, "{notes}");
    assert!(second.notes.is_empty(), "{:?}", second.notes);

    let same = format!("{}listen = 127.0.0.1:7432\ntls = on\n", archive("1"));
    let read = Folder::new(&[("db1.ini", &same)]).read();
    assert!(read.good["db1"].notes.is_empty());
}

/// An archive of this name, whose sets are at that place.
fn sets_at(name: &str, sets: &str) -> String {
    let keys = format!("authorized_keys = {name}.keys\n");
    format!(
        "{}{keys}full_backup = /nowhere/sets/{sets}\n",
        archive(name)
    )
}

#[test]
fn fault_147_a_place_stays_a_clusters_while_its_old_settings_do() {
    let folder = Folder::new(&[("m.ini", &sets_at("m", "x"))]);
    let before = folder.read();
    // The file of the cluster is wrong now, and others want what it has, before and behind it.
    folder.write("clusters.d/m.ini", "[walmgr]\nkeep_backup = 1\n");
    folder.write("clusters.d/a.ini", &sets_at("a", "x"));
    folder.write("clusters.d/z.ini", &sets_at("z", "x/in"));
    folder.write("clusters.d/free.ini", &sets_at("free", "y"));
    let read = folder.read_beside(&before);
    assert_eq!(names(&read), ["free"]);
    for name in ["a", "z"] {
        let says = &read.broken[&folder.path(&format!("clusters.d/{name}.ini"))];
        assert!(says.contains("full_backup = /nowhere/sets/x ("), "{says}");
        assert!(says.contains("m.ini"), "{says}");
    }
    // So it is where the file as such is good, and what it names is not.
    folder.write("clusters.d/m.ini", &sets_at("m", "z"));
    let in_force = BTreeMap::from([(
        folder.path("clusters.d/m.ini"),
        Arc::clone(&before.wanted["m"]),
    )]);
    let check = |config: &StandbyConfig| match config.path.ends_with("m.ini") {
        true => Err(CommandError::config("no list")),
        false => Ok(()),
    };
    let host = folder.host();
    let read = host.read_clusters_beside(&in_force, &Patience::default(), check);
    let (read, _) = read.unwrap();
    assert_eq!(names(&read), ["free"], "{:?}", read.broken);
}

#[test]
fn fault_147_whoever_is_served_goes_before_whoever_comes() {
    let folder = Folder::new(&[("b.ini", &sets_at("b", "x")), ("c.ini", &sets_at("c", "y"))]);
    let before = folder.read();
    folder.write("clusters.d/0.ini", &sets_at("b", "x"));
    assert_eq!(names(&folder.read()), ["0", "c"]);
    let read = folder.read_beside(&before);
    assert_eq!(names(&read), ["b", "c"]);
    assert!(sentence(&read).contains("0.ini"));
    // Nor is a place taken from one that stays where it is, and whoever wanted it stays as well.
    folder.write("clusters.d/0.ini", &sets_at("0", "x"));
    folder.write("clusters.d/b.ini", &sets_at("b", "y"));
    let read = folder.read_beside(&before);
    assert_eq!(names(&read), ["c"], "{:?}", read.broken);
    // Places may be handed on, and exchanged.
    folder.write("clusters.d/b.ini", &sets_at("b", "z"));
    assert_eq!(names(&folder.read_beside(&before)), ["0", "b", "c"]);
    std::fs::remove_file(folder.path("clusters.d/0.ini")).unwrap();
    folder.write("clusters.d/b.ini", &sets_at("b", "y"));
    folder.write("clusters.d/c.ini", &sets_at("c", "x"));
    assert_eq!(names(&folder.read_beside(&before)), ["b", "c"]);
}

#[test]
fn fault_147_places_that_may_meet_are_found_by_their_names() {
    let at = |places: &[&str]| WantedPaths {
        places: places.iter().map(PathBuf::from).collect(),
        ..WantedPaths::default()
    };
    let sets = at(&["/w/a", "/sets/a"]);
    for (place, meets) in [
        ("/sets/a", true),
        ("/sets/a/in", true),
        ("/sets", true),
        ("/sets/a.3", true),
        ("/sets/b", false),
        ("/v/a", false),
    ] {
        assert_eq!(sets.may_meet(&at(&[place])), meets, "{place}");
        assert_eq!(at(&[place]).may_meet(&sets), meets, "{place}");
    }
    let folder = Folder::new(&[("b.ini", &sets_at("b", "x"))]);
    let read = folder.read();
    assert!(
        read.wanted["b"]
            .places
            .contains(&PathBuf::from("/nowhere/sets/x"))
    );
}
