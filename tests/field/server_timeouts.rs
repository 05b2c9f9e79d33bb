//! Servers, roles and databases that set limits for everybody, and names that lead elsewhere.
//! Never a limit of walmgr's own. Invariant: no setting that a session may change ends ours or changes
//! what an answer means.

use std::time::Duration;

use walmgr::test_support::pg::sql::{Limits, Session};

use crate::support::{Cluster, Site};

/// What keeps the role from everything but what it is granted.
const ROLE: &str = "CREATE ROLE shipper LOGIN; GRANT pg_read_all_settings TO shipper";

/// Every timeout that a session has, whatever the version calls it.
const SESSION_TIMEOUTS: &str = "SELECT name FROM pg_settings WHERE name LIKE '%\\_timeout' AND context = 'user' \
     AND min_val::bigint <= 0 ORDER BY name";

#[tokio::test]
async fn fault_139_timeouts_of_server_role_and_database_are_off() {
    for major in crate::support::ENDS_AND_USUAL {
        skip_unless!(Cluster::available(major));
        let cluster = Cluster::builder().major(major).start();
        cluster.psql(ROLE);
        let names = cluster.psql(SESSION_TIMEOUTS);
        let names: Vec<&str> = names.lines().collect();
        assert!(names.contains(&"statement_timeout"), "{names:?}");
        assert_eq!(
            names.contains(&"transaction_timeout"),
            major >= 17,
            "{names:?}"
        );
        for name in &names {
            cluster.psql(&format!("ALTER ROLE shipper SET {name} TO 400"));
            cluster.psql(&format!("ALTER DATABASE postgres SET {name} TO 400"));
        }
        let conninfo = cluster.conninfo().replace("user=postgres", "user=shipper");
        let conninfo = format!("{conninfo} options='-c statement_timeout=300'");
        let session = Session::connect(&conninfo, Limits::default())
            .await
            .unwrap();
        for name in &names {
            assert_eq!(session.show(name).await.unwrap(), "0", "{name}");
        }
        session.query("SELECT pg_sleep(1)", &[]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        session.query("SELECT 1", &[]).await.unwrap();
    }
}

#[test]
fn fault_139_neither_other_defaults_nor_other_functions_change_an_answer() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .start();
        cluster.psql(
            "CREATE SCHEMA evil; \
             CREATE FUNCTION evil.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'; \
             CREATE FUNCTION evil.current_setting(text, bool) RETURNS text LANGUAGE sql AS $$SELECT 'evil'::text$$; \
             CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE sql AS $$SELECT 'evil'::text$$; \
             CREATE FUNCTION evil.right(text, int) RETURNS text LANGUAGE sql AS $$SELECT 'evil'::text$$; \
             CREATE VIEW evil.pg_settings AS SELECT 'x'::text AS name",
        );
        for setting in [
            "search_path TO evil, pg_catalog",
            "default_transaction_isolation TO serializable",
            "default_transaction_deferrable TO on",
            "datestyle TO 'German'",
            "intervalstyle TO 'sql_standard'",
            "bytea_output TO 'escape'",
            "extra_float_digits TO '-15'",
            "client_encoding TO 'LATIN1'",
            "row_security TO off",
            "standard_conforming_strings TO off",
            "quote_all_identifiers TO on",
            // From here on nobody changes a role.
            "default_transaction_read_only TO on",
        ] {
            cluster.psql(&format!("ALTER ROLE postgres SET {setting}"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(ask_everything(&cluster));
        // The whole of it: files, records and a set.
        let site = Site::builder()
            .cluster(cluster)
            .master_set("use_xlog_functions", "1")
            .build();
        for word in ["setup", "sync", "backup"] {
            site.master_command(&[word]).succeed();
        }
    }
}

#[test]
fn fault_139_position_queries_do_not_fill_the_statement_log() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder()
        .conf("log_statement", "all")
        .conf("log_min_duration_statement", "0")
        .start();
    let site = Site::builder()
        .cluster(cluster)
        .master_set("use_xlog_functions", "1")
        .build();
    site.master_command(&["sync"]).succeed();
    let log = site.cluster().log();
    assert!(!log.contains("pg_current_wal_flush_lsn"), "{log}");
}

async fn ask_everything(cluster: &Cluster) {
    let session = Session::connect(&cluster.conninfo(), Limits::default())
        .await
        .unwrap();
    assert!(!session.is_in_recovery().await.unwrap());
    assert_eq!(session.show("archive_mode").await.unwrap(), "on");
    assert_eq!(
        session.server_version().await.unwrap().major(),
        u32::from(cluster.major())
    );
    session.archiver_statistics().await.unwrap();
    session.create_restore_point("x").await.unwrap();
    session.switch_wal().await.unwrap();
    session.close().await;
}
