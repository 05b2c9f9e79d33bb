//! `synch-standby` on real servers with a real standby that streams, and what `stop` clears of it.
//! Never a commit that hangs: what is refused is refused before. Invariant: what somebody else set is in force
//! as before, whatever walmgr did in between.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use walmgr::test_support::pg::synchronous_names::SynchronousNames;

use crate::support::backup_set::{make_set, set_path};
use crate::support::place::{give_to_server, server_user, walmgr};
use crate::support::{Cluster, Output, Site, StopMode, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// The oldest version, Debian's and the newest.
const MAJORS: [u8; 3] = [13, 15, 18];

/// A master that archives, and a standby of it that streams under the name Alpha.
struct Pair {
    alpha: Cluster,
    site: Site,
}

impl Pair {
    fn new(major: u8) -> Pair {
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .start();
        let site = Site::builder().cluster(cluster).build();
        site.master_command(&["setup"]).succeed();
        make_set(&site, "data.master");
        let alpha = standby(&site, "Alpha");
        Pair { alpha, site }
    }

    fn synch(&self, names: &str) -> Output {
        self.site.master_command(&["synch-standby", names])
    }

    fn show(&self) -> String {
        self.site.cluster().psql("SHOW synchronous_standby_names")
    }

    fn note(&self) -> PathBuf {
        self.site.data().join("walmgr_synchronous_standbys")
    }

    fn in_auto_conf(&self) -> bool {
        let text = fs::read_to_string(self.site.data().join("postgresql.auto.conf")).unwrap();
        text.contains("synchronous_standby_names")
    }

    /// The server has read its files again.
    fn wait_to_show(&self, value: &str) {
        wait_for("the reload", PATIENCE, || {
            (self.show() == value).then_some(())
        });
    }
}

fn standby(site: &Site, name: &str) -> Cluster {
    let data = site.home().join(name);
    let mut cp = std::process::Command::new("cp");
    crate::support::run(cp.arg("-a").arg(set_path(site, "data.master")).arg(&data)).unwrap();
    let primary = format!("{} application_name={name}", site.cluster().conninfo());
    let conf = format!("primary_conninfo = '{primary}'\narchive_mode = off\n");
    let path = data.join("postgresql.auto.conf");
    fs::write(&path, conf).unwrap();
    fs::write(data.join("standby.signal"), "").unwrap();
    give_to_server(&data);
    let mut cluster = Cluster::on_directory(site.cluster().major(), &data);
    cluster.start();
    wait_for("the standby to stream", PATIENCE, || {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' \
             AND flush_lsn IS NOT NULL AND application_name = '{name}'"
        );
        (site.cluster().psql(&sql) == "1").then_some(())
    });
    cluster
}

#[test]
fn names_are_set_after_a_look_and_stop_clears_them() {
    for major in MAJORS {
        skip_unless!(Cluster::available(major));
        let mut pair = Pair::new(major);
        for (names, said) in [
            (
                "beta",
                "not streaming: \"beta\"; connected: \"Alpha\" (streaming",
            ),
            (
                "alpha, \"be ta\", beta",
                "not streaming: \"be ta\", \"beta\"",
            ),
            ("2 (alpha)", "2 standbys are needed, 1 are streaming"),
            ("ANY 2 (alpha, *)", "2 standbys are needed, 1 are streaming"),
        ] {
            pair.synch(names).fail_last(1, said);
            assert_eq!(pair.show(), "", "{names}");
        }
        pair.synch("a b").fail_last(2, "is no list of standbys");
        let said = pair
            .site
            .master_command(&["-n", "synch-standby", "alpha"])
            .succeed();
        assert_eq!(
            said,
            "would set synchronous_standby_names = 'alpha' and reload"
        );
        assert!(!pair.in_auto_conf() && !pair.note().exists());

        let set = pair.synch("ANY 1 (alpha, \"Alpha\")");
        set.succeed();
        assert!(
            set.stderr.contains("commits wait for 1 of \"Alpha\""),
            "{}",
            set.stderr
        );
        assert_eq!(pair.show(), "ANY 1 (alpha, \"Alpha\")");
        assert!(pair.note().exists());
        pair.site
            .cluster()
            .psql("CREATE TABLE waited AS SELECT 1 AS n");
        assert_eq!(pair.alpha.psql("SELECT count(*) FROM waited"), "1");
        // Again, and another: each is ours.
        pair.synch("ANY 1 (alpha, \"Alpha\")").succeed();
        pair.synch("*").succeed();
        assert_eq!(pair.show(), "*");

        // The standby is gone: commits wait, walmgr does not.
        pair.alpha.stop(StopMode::Fast);
        pair.site.master_command(&["-n", "stop"]).succeed();
        assert_eq!(pair.show(), "*");
        let stopped = pair.site.master_command(&["stop"]);
        stopped.succeed();
        assert!(
            stopped.stderr.contains("which synch-standby set: done"),
            "{}",
            stopped.stderr
        );
        assert_eq!(pair.show(), "");
        assert!(!pair.in_auto_conf() && !pair.note().exists());
        pair.synch("alpha").fail_last(1, "nothing is connected");
    }
}

#[test]
fn fault_161_stop_clears_what_walmgr_set_and_nothing_else() {
    skip_unless!(Cluster::available(15));
    let pair = Pair::new(15);
    let master = pair.site.cluster();
    let alter = |value: &str| {
        master.psql(&format!(
            "ALTER SYSTEM SET synchronous_standby_names = '{value}'"
        ));
        master.reload();
    };
    // Somebody else's, which is ours neither by the same value nor by being changed after ours.
    alter("alpha");
    pair.wait_to_show("alpha");
    pair.synch("alpha").succeed();
    assert!(!pair.note().exists());
    pair.site.master_command(&["stop"]).succeed();
    assert_eq!(pair.show(), "alpha");
    let replaced = pair.synch("*");
    replaced.succeed();
    assert!(
        replaced.stderr.contains("this replaces 'alpha'"),
        "{}",
        replaced.stderr
    );
    alter("1 (Alpha)");
    pair.wait_to_show("1 (Alpha)");
    pair.site.master_command(&["stop"]).succeed();
    assert_eq!(pair.show(), "1 (Alpha)");
    // Who types the empty string means everybody's.
    pair.synch("").succeed();
    assert_eq!(pair.show(), "");
    assert!(!pair.in_auto_conf() && !pair.note().exists());
    pair.synch("").succeed();
}

#[test]
fn fault_161_off_is_off_in_effect_whatever_the_files_say() {
    skip_unless!(Cluster::available(15));
    let mut pair = Pair::new(15);
    pair.site
        .cluster_mut()
        .append_conf("synchronous_standby_names = 'alpha'");
    pair.site.cluster().reload();
    pair.wait_to_show("alpha");
    let off = pair.synch("");
    off.succeed();
    assert!(
        off.stderr.contains("which ALTER SYSTEM now overrides"),
        "{}",
        off.stderr
    );
    assert_eq!(pair.show(), "");
    // What is ours goes, and the file counts again, which is said.
    pair.synch("*").succeed();
    let stopped = pair.site.master_command(&["stop"]);
    stopped.succeed();
    assert_eq!(pair.show(), "alpha");
    assert!(
        stopped
            .stderr
            .contains("commits now wait for 'alpha', set in"),
        "{}",
        stopped.stderr
    );
}

#[test]
fn fault_161_what_the_server_does_not_take_is_taken_back() {
    skip_unless!(Cluster::available(15));
    let mut pair = Pair::new(15);
    pair.synch("alpha").succeed();
    let conf = pair.site.cluster().config_file();
    let whole = fs::read_to_string(&conf).unwrap();
    pair.site.cluster_mut().append_conf("work_memory = 5MB");
    let refused = pair.synch("*");
    refused.fail_last(2, "work_memory: unrecognized configuration parameter");
    let text = fs::read_to_string(pair.site.data().join("postgresql.auto.conf")).unwrap();
    assert!(
        text.contains("synchronous_standby_names = 'alpha'"),
        "{text}"
    );
    let note = fs::read_to_string(pair.note()).unwrap();
    assert!(note.contains("alpha") && !note.contains('*'), "{note}");
    fs::write(&conf, whole).unwrap();
    pair.synch("").succeed();

    pair.site.cluster_mut().stop(StopMode::Fast);
    pair.site
        .cluster_mut()
        .add_option("synchronous_standby_names=alpha");
    pair.site.cluster_mut().start();
    for names in ["*", ""] {
        wait_for("the standby", PATIENCE, || {
            let refused = pair.synch(names);
            refused.stderr.contains("command line").then_some(())
        });
        pair.synch(names)
            .fail_last(2, "start the server without it");
    }
    assert!(!pair.in_auto_conf());
}

#[test]
fn fault_161_grants_and_servers_that_cannot_are_named() {
    for major in [13, 18] {
        skip_unless!(Cluster::available(major));
        let mut pair = Pair::new(major);
        pair.site.cluster().psql("CREATE ROLE shipper LOGIN");
        let own = pair.site.cluster().conninfo();
        pair.site
            .master_set("master_db", &own.replace("user=postgres", "user=shipper"));
        let refused = pair.synch("alpha");
        refused.fail_last(
            2,
            "lacks grants that setting synchronous_standby_names needs",
        );
        let (_, grants) = refused.stderr.split_once("in database postgres: ").unwrap();
        let grants = grants.trim_end();
        let parameter = match major {
            13 => "ALTER ROLE shipper SUPERUSER",
            _ => "GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO shipper",
        };
        assert!(grants.contains(parameter), "{grants}");
        assert!(grants.contains("pg_read_all_stats"), "{grants}");
        pair.site.cluster().psql(grants);
        pair.site
            .cluster()
            .psql("ALTER ROLE shipper SET synchronous_commit = off");
        let set = pair.synch("alpha");
        set.succeed();
        let warned =
            "synchronous_commit is off for role shipper: these commits wait for no standby";
        assert!(set.stderr.contains(warned), "{}", set.stderr);
        assert!(!set.stderr.contains("for the server"), "{}", set.stderr);
        pair.synch("").succeed();
        if major == 18 {
            pair.site
                .cluster_mut()
                .append_conf("allow_alter_system = off");
            pair.site.cluster().reload();
            wait_for("the reload", PATIENCE, || {
                (pair.site.cluster().psql("SHOW allow_alter_system") == "off").then_some(())
            });
            pair.synch("alpha")
                .fail_last(2, "allow_alter_system is off");
        }
        // A standby is asked where its master is.
        let alpha = pair.alpha.conninfo();
        pair.site.master_set("master_db", &alpha);
        pair.synch("alpha").fail_last(2, "the server is a standby");
        let other = Cluster::builder().major(major).start();
        pair.site.master_set("master_db", &other.conninfo());
        pair.synch("alpha").fail_last(2, "is of another cluster");
    }
}

#[test]
fn the_old_spelling_finds_the_server_by_its_data_directory() {
    skip_unless!(Cluster::available(15));
    let pair = Pair::new(15);
    let data = pair.site.data().display().to_string();
    let typed = |words: &[&str]| Output::of(walmgr().args(words).env("PGUSER", "postgres"));
    typed(&["--pgdata", &data, "--synch-standby", "beta"]).fail_last(1, "not streaming: \"beta\"");
    typed(&["--synch-standby", "alpha", "--pgdata", &data]).succeed();
    assert_eq!(pair.show(), "alpha");
    let ini = pair.site.master_ini().display().to_string();
    let said = typed(&["-n", &ini, "--synch-standby", ""]).succeed();
    assert_eq!(said, "would set synchronous_standby_names = '' and reload");
    typed(&["--synch-standby=", "--pgdata", &data]).succeed();
    assert_eq!(pair.show(), "");
    typed(&["--pgdata", &data]).fail_last(2, "--pgdata goes with --init-master or --synch-standby");
    typed(&[&ini, "--synch-standby", "a", "stop"]).fail_last(2, "is a command by itself");
    typed(&["--synch-standby", "a", "--pgdata", "/nonexistent"]).fail_last(2, "/nonexistent");
}

/// The parser is held against the server's own.
#[test]
fn every_text_is_taken_where_the_server_takes_it() {
    for major in [13, 18] {
        skip_unless!(Cluster::available(major));
        let cluster = Cluster::builder().major(major).start();
        for text in [
            "a",
            " a , b ",
            "*",
            "\"*\"",
            "any",
            "\"any\"",
            "first",
            "1",
            "1,2",
            "1a",
            "a1$",
            "_a",
            "$a",
            "a-b",
            "a b",
            "a,",
            ",",
            "any 1 (a)",
            "ANY 0 (a)",
            "First 2(a,b)",
            "2 (a)",
            "2 a",
            "2 (a",
            "2 ()",
            "2 (a) b",
            "\"a\"\"b\"",
            "\"a",
            "\"\"",
            "größe",
            "(a)",
            "a;",
            "a/*b*/",
            "-1 (a)",
            "any 1 a",
            "any (a)",
            "3 (any)",
            "1 (2)",
            "  ",
            "2147483647 (a)",
            "any 1 (*)",
            "a.b",
            "e'a'",
            "'a'",
        ] {
            let sql = format!(
                "ALTER SYSTEM SET synchronous_standby_names = '{}'",
                text.replace('\'', "''")
            );
            let taken = cluster.try_psql(&sql);
            let ours = SynchronousNames::parse(text);
            assert_eq!(
                ours.is_ok(),
                taken.is_ok(),
                "{major}: {text:?}: {ours:?} {taken:?}"
            );
        }
    }
}

#[test]
fn a_command_line_of_synch_standby_that_makes_no_sense_is_2() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().stopped().build();
    site.master_command(&["synch-standby"]).fail(2);
    site.master_command(&["synch-standby", "a b"]).fail(2);
    let elsewhere = site.standby_command(&["synch-standby", "a"]);
    assert!(elsewhere.fail(2).contains("runs on the master"));
    // No server answers.
    site.master_command(&["synch-standby", "a"]).fail(1);
}
