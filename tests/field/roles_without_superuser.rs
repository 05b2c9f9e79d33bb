//! `master_db` of a role that is no superuser, on every version.
//! Never a grant that docs/tasks/connect.md does not name. Invariant: what is missing is named, with the line to
//! type, before a file is touched; with just these lines everything works.

use std::fs;

use crate::support::{Cluster, Output, Site};

fn site(major: u8) -> Site {
    let cluster = Cluster::builder()
        .major(major)
        .conf("archive_mode", "on")
        .start();
    cluster.psql("CREATE ROLE \"Ship per\" LOGIN");
    let conninfo = cluster.conninfo().replace(
        "user=postgres dbname=postgres",
        "user='Ship per' dbname=template1",
    );
    Site::builder()
        .cluster(cluster)
        .master_set("master_db", &conninfo)
        .master_set("use_xlog_functions", "1")
        .build()
}

/// The statements that a message tells to type.
fn statements(said: &Output) -> Vec<String> {
    let (_, rest) = said.stderr.split_once("in database postgres: ").unwrap();
    let rest = rest.lines().next().unwrap();
    rest.split(';')
        .map(|grant| grant.trim().to_owned())
        .filter(|grant| !grant.is_empty())
        .collect()
}

#[test]
fn fault_142_every_missing_grant_is_named_and_those_are_enough() {
    for major in Cluster::available_majors() {
        let site = site(major);
        let cluster = site.cluster();
        let conf = cluster.config_file();
        let before = fs::read(&conf).unwrap();
        for words in [&["setup"][..], &["-n", "setup"]] {
            let refused = site.master_command(words);
            refused.fail_last(
                2,
                "the role Ship per lacks grants that setup needs in database postgres",
            );
            let grants = statements(&refused);
            assert_eq!(grants.len(), 3, "{}", refused.stderr);
            assert!(
                grants
                    .iter()
                    .all(|grant| grant.ends_with("TO \"Ship per\"")),
                "{grants:?}"
            );
            assert_eq!(fs::read(&conf).unwrap(), before);
            assert!(!conf.with_file_name("postgresql.conf.old").exists());
        }
        // One is there, and is not named again.
        let grants = statements(&site.master_command(&["setup"]));
        cluster.psql(&grants[0]);
        let left = statements(&site.master_command(&["setup"]));
        assert_eq!(left, grants[1..]);
        left.iter().for_each(|grant| drop(cluster.psql(grant)));
        let warned = site.master_command(&["setup"]);
        warned.succeed();
        assert!(
            warned.stderr.contains("backup will need"),
            "{}",
            warned.stderr
        );
        let refused = site.master_command(&["backup"]);
        refused.fail_last(2, "lacks grants that backup needs in database postgres");
        let grants = statements(&refused);
        assert_eq!(grants.len(), 3, "{grants:?}");
        assert_eq!(grants, statements(&warned));
        grants.iter().for_each(|grant| drop(cluster.psql(grant)));
        for word in ["setup", "sync", "backup", "listbackups", "stop"] {
            let done = site.master_command(&[word]);
            done.succeed();
            assert!(!done.stderr.contains("GRANT"), "{word}: {}", done.stderr);
        }
        let manual = crate::support::documents::page("docs/tasks/connect.md").text;
        for grant in grants {
            let grant = grant
                .replace("pg_catalog.", "")
                .replace("\"Ship per\"", "walmgr");
            assert!(manual.contains(&grant), "{major}: {grant}");
        }
    }
}

#[test]
fn fault_142_what_restore_left_in_auto_conf_needs_one_more_grant() {
    for major in crate::support::ENDS {
        skip_unless!(Cluster::available(major));
        let site = site(major);
        let cluster = site.cluster();
        cluster.psql("ALTER SYSTEM SET archive_mode = off");
        let before = fs::read(cluster.config_file()).unwrap();
        let refused = site.master_command(&["setup"]);
        refused.fail_last(2, "archive_mode");
        assert_eq!(fs::read(cluster.config_file()).unwrap(), before);
        let grants = statements(&refused);
        assert_eq!(grants.len(), 4, "{grants:?}");
        grants.iter().for_each(|grant| drop(cluster.psql(grant)));
        site.master_command(&["setup", "--no-check"]).succeed();
        let automatic = fs::read_to_string(cluster.data().join("postgresql.auto.conf")).unwrap();
        assert!(!automatic.contains("archive_mode"), "{automatic}");
    }
}

#[test]
fn fault_142_grants_in_the_database_of_the_ini_file_still_count() {
    skip_unless!(Cluster::available(15));
    let mut site = site(15);
    site.cluster().psql("CREATE DATABASE own");
    let mut psql = site.cluster().command("psql");
    psql.args(["-X", "-q", "-d", "own", "-c"]).arg(
        "GRANT EXECUTE ON FUNCTION pg_reload_conf(), pg_create_restore_point(text), pg_switch_wal(), \
         pg_backup_start(text, boolean), pg_backup_stop(boolean) TO \"Ship per\"",
    );
    crate::support::run(&mut psql).unwrap();
    let conninfo = site.cluster().conninfo().replace(
        "user=postgres dbname=postgres",
        "user='Ship per' dbname=own",
    );
    site.master_set("master_db", &conninfo);
    for word in ["setup", "backup"] {
        site.master_command(&[word]).succeed();
    }
}
