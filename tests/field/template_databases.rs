//! Databases that are made, renamed, moved, closed and dropped while walmgr is connected.
//! Never a database that walmgr is told of beforehand. Invariant: whoever may do so is not kept
//! from it by a session of ours, and ours goes on.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use walmgr::test_support::pg::grants::Task;
use walmgr::test_support::pg::sql::{Limits, Session};

use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(120);

/// A syncdaemon in the foreground, ended with the test.
struct Running(Child);

impl Running {
    fn start(site: &Site) -> Running {
        let mut command = site.master_walmgr(&["syncdaemon"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Running(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn site(major: u8, database: &str) -> Site {
    let cluster = Cluster::builder()
        .major(major)
        .conf("archive_mode", "on")
        .start();
    let conninfo = cluster
        .conninfo()
        .replace("dbname=postgres", &format!("dbname={database}"));
    let site = Site::builder()
        .cluster(cluster)
        .master_set("master_db", &conninfo)
        .master_set("use_xlog_functions", "1")
        .master_set("loop_delay", "0.05")
        .build();
    site.master_command(&["setup"]).succeed();
    site
}

fn psql_in(cluster: &Cluster, database: &str, sql: &str) -> Result<String, String> {
    let mut psql = cluster.command("psql");
    psql.args(["-X", "-A", "-t", "-q", "-d", database, "-c", sql]);
    run(&mut psql).map(|answer| answer.trim_end().to_owned())
}

fn wait_for_shipping(site: &Site, database: &str) {
    let sql = "SELECT pg_walfile_name(pg_switch_wal())";
    let cluster = site.cluster();
    psql_in(cluster, database, "SELECT pg_create_restore_point('x')").unwrap();
    let name = psql_in(cluster, database, sql).unwrap();
    wait_for("the records", PATIENCE, || site.holds(&name).then_some(()));
}

#[test]
fn fault_138_databases_are_made_moved_and_dropped_while_a_syncdaemon_runs() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let site = site(major, "template1");
        let cluster = site.cluster();
        let _running = Running::start(&site);
        let sessions = "SELECT string_agg(DISTINCT datname, ',') FROM pg_stat_activity \
             WHERE application_name = 'walmgr'";
        wait_for("a session", PATIENCE, || {
            (cluster.psql(sessions) == "postgres").then_some(())
        });
        for name in ["one", "two", "three"] {
            cluster.psql(&format!("CREATE DATABASE {name}"));
        }
        cluster.psql("ALTER DATABASE one RENAME TO uno");
        cluster.psql("DROP DATABASE two");
        // The session is ended, and its database let nobody in for a while.
        for sql in [
            "ALTER DATABASE postgres ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid) \
             FROM pg_stat_activity WHERE application_name = 'walmgr'",
        ] {
            psql_in(cluster, "template1", sql).unwrap();
        }
        wait_for_shipping(&site, "template1");
        psql_in(cluster, "template1", "CREATE DATABASE four").unwrap();
        psql_in(cluster, "template1", "DROP DATABASE postgres").unwrap();
        psql_in(cluster, "uno", "CREATE DATABASE five").unwrap();
        wait_for_shipping(&site, "uno");
    }
}

#[test]
fn fault_138_databases_are_made_and_moved_during_a_backup() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let site = site(major, "template1");
        let cluster = site.cluster();
        let space = site.home().create_dir("space");
        give_to_server(&space);
        cluster.psql(&format!(
            "CREATE TABLESPACE other LOCATION '{}'",
            space.display()
        ));
        cluster.psql("CREATE DATABASE moved");
        let sessions = "SELECT string_agg(DISTINCT datname, ',') FROM pg_stat_activity \
             WHERE application_name = 'walmgr'";
        let mut command = site.master_walmgr(&["backup"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut backup = Running(command.spawn().unwrap());
        wait_for("the backup's session", PATIENCE, || {
            (cluster.psql(sessions) == "postgres").then_some(())
        });
        // However fast it is, it is there while all of this happens.
        let pid = Pid::from_child(&backup.0);
        kill_process(pid, Signal::STOP).unwrap();
        assert_eq!(cluster.psql(sessions), "postgres");
        cluster.psql("CREATE DATABASE made");
        cluster.psql("ALTER DATABASE moved SET TABLESPACE other");
        cluster.psql("ALTER DATABASE made SET TABLESPACE other");
        cluster.psql("ALTER DATABASE made SET TABLESPACE pg_default");
        kill_process(pid, Signal::CONT).unwrap();
        assert!(backup.0.wait().unwrap().success());
        let listed = site.standby_command(&["listbackups"]).succeed();
        assert!(listed.contains("data.master"), "{listed}");
    }
}

#[tokio::test]
async fn fault_138_database_of_the_ini_file_is_renamed_and_dropped() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let cluster = Cluster::builder().major(major).start();
        cluster.psql("CREATE DATABASE own");
        let own = cluster.conninfo().replace("dbname=postgres", "dbname=own");
        let limits = Limits::default();
        let session = Session::connect_for(&own, limits, Task::Backup)
            .await
            .unwrap();
        let running = session.backup_start("x", true).await.unwrap();
        cluster.psql("ALTER DATABASE own RENAME TO mine");
        cluster.psql("CREATE DATABASE other");
        cluster.psql("DROP DATABASE mine");
        running.stop().await.unwrap();
        // What the string names is gone, and nobody needs it.
        Session::connect(&own, limits).await.unwrap().close().await;
        // No `postgres`, and a string that names a template: any other one is better.
        psql_in(&cluster, "other", "DROP DATABASE postgres").unwrap();
        let template = cluster
            .conninfo()
            .replace("dbname=postgres", "dbname=template1");
        let session = Session::connect(&template, limits).await.unwrap();
        assert_eq!(
            (session.database(), session.is_harmless()),
            ("other", false)
        );
        psql_in(&cluster, "other", "CREATE DATABASE third").unwrap();
        session.close().await;
        let gone = Session::connect(&own, limits)
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(gone.contains("\"own\" does not exist"), "{gone}");
        // A database that is full does not keep us out of the other one.
        for sql in [
            "CREATE ROLE plain LOGIN",
            "CREATE DATABASE postgres",
            "ALTER DATABASE postgres CONNECTION LIMIT 0",
        ] {
            psql_in(&cluster, "third", sql).unwrap();
        }
        let plain = cluster
            .conninfo()
            .replace("user=postgres dbname=postgres", "user=plain dbname=third");
        let session = Session::connect(&plain, limits).await.unwrap();
        assert_eq!(session.database(), "third");
        session.close().await;
    }
}
