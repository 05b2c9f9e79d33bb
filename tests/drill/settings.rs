//! Settings of a set that must not act in a drill, and those of drill itself.
//! Never restarts the master with what it only writes down. Invariant: a drill listens nowhere, runs no command of the
//! set, and writes nothing outside its directory.

use super::*;
use crate::support::soak;

/// What the master's own administrator may have set.
fn set_on_master(site: &Site, name: &str, value: &str) {
    let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
    site.cluster().psql(&sql);
}

#[test]
fn fault_159_settings_of_the_sets_server_do_not_act_in_a_drill() {
    let majors = match soak() {
        true => Cluster::available_majors(),
        false => vec![15, 18],
    };
    for major in majors {
        skip_unless!(Cluster::available(major));
        let outside = crate::support::TempDir::new();
        let touch = |name: &str| format!("touch {}", outside.join(name).display());
        let drilled = Drilled::of(Cluster::builder().major(major), |site| {
            let folder = outside.path().to_str().unwrap();
            let pid_file = outside.join("pid").display().to_string();
            for (name, value) in [
                ("archive_cleanup_command", &*touch("cleanup")),
                ("recovery_end_command", &touch("end")),
                ("external_pid_file", &pid_file),
                ("logging_collector", "on"),
                ("log_directory", folder),
                ("unix_socket_directories", folder),
                ("listen_addresses", "*"),
                ("synchronous_standby_names", "*"),
                ("synchronous_commit", "remote_apply"),
                ("shared_preload_libraries", "no_such_library"),
                ("shared_buffers", "900GB"),
                ("huge_pages", "on"),
                ("max_worker_processes", "3"),
                ("max_wal_size", "900GB"),
                ("wal_keep_size", "900GB"),
                ("ssl", "on"),
                ("hba_file", "/nowhere/pg_hba.conf"),
                ("statement_timeout", "1"),
                ("default_transaction_read_only", "on"),
                ("lc_messages", "C"),
            ] {
                set_on_master(site, name, value);
            }
        });
        drilled.site.cluster().pgbench(&["-n", "-t", "20"]);
        let (flushed, _) = drilled.ship();
        let before = drilled.archive_content();
        let result = drilled.result();
        assert_eq!(result["lsn"], flushed.as_str());
        let notes = result["notes"].to_string();
        assert!(
            notes.contains("names no_such_library, which is not installed"),
            "{notes}"
        );
        let left: Vec<_> = fs::read_dir(outside.path()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(drilled.archive_content(), before, "nothing was archived");
        drilled.assert_clear();
    }
}

#[test]
fn fault_160_drill_sql_decides_by_its_first_value() {
    let mut drilled = Drilled::new(15);
    drilled.site.cluster().psql("CREATE DATABASE app");
    drilled.ship();
    for (sql, why) in [
        ("SELECT 1/0", "division by zero"),
        ("SELECT false", "returned false"),
        ("SELECT null", "returned null"),
        ("SELECT 1 WHERE false", "returned no row"),
        ("SELECT count(*) > 0 FROM nowhere", "nowhere"),
    ] {
        drilled.site.standby_set("drill_sql", sql);
        drilled.drill(&[]).fail_last(1, why);
        drilled.assert_clear();
        let status = drilled.status();
        let failure = status["standby"]["drill"]["failure"].to_string();
        assert!(failure.contains("drill_sql"), "{failure}");
        let findings = status["findings"].to_string();
        assert!(findings.contains("\"code\":\"drill\""), "{findings}");
    }
    drilled.site.standby_set("drill_database", "app");
    drilled
        .site
        .standby_set("drill_sql", "SELECT 'f' WHERE current_database() = 'app'");
    assert!(drilled.result()["failure"].is_null());
    let findings = drilled.status()["findings"].to_string();
    assert!(!findings.contains("\"code\":\"drill\""), "{findings}");
}

#[test]
fn fault_160_another_versions_programs_are_refused() {
    let mut drilled = Drilled::new(15);
    let nowhere = drilled.site.home().join("nowhere");
    drilled
        .site
        .standby_set("slave_bin", nowhere.to_str().unwrap());
    drilled.drill(&[]).fail_last(
        2,
        "set slave_bin to the directory of PostgreSQL 15's programs",
    );
    drilled.drill(&["-n"]).fail_last(2, "or remove it");
    drilled.assert_clear();
    skip_unless!(Cluster::available(18));
    let other = Cluster::builder().major(18).create();
    drilled
        .site
        .standby_set("slave_bin", other.bin().to_str().unwrap());
    let refused = drilled.drill(&[]);
    refused.fail_last(2, "whose postgres is of PostgreSQL 18, not 15");
    let status = drilled.status();
    let failure = status["standby"]["drill"]["failure"].to_string();
    assert!(failure.contains("PostgreSQL 18"), "{failure}");
    drilled.assert_clear();
}
