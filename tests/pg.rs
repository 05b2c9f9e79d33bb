//! `walmgr::test_support::pg` against real servers of every version that is installed.
//! Never trusts a fixture where a server can be asked. Invariant: files and SQL say the same.

use std::fs;
use std::time::{Duration, Instant};

use walmgr::error::Kind;
use walmgr::test_support::pg::conf::{self, Setter};
use walmgr::test_support::pg::conninfo::Environment;
use walmgr::test_support::pg::control::{State, WalLevel};
use walmgr::test_support::pg::data_directory::DataDirectory;
use walmgr::test_support::pg::sql::{Limits, Session};
use walmgr_protocol::names::{Lsn, SegmentName};

use crate::support::place::give_to_server;
use crate::support::{Cluster, StopMode, TempDir, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

async fn connect(cluster: &Cluster) -> Session {
    let session = Session::connect(&cluster.conninfo(), Limits::default()).await;
    session.unwrap()
}

#[test]
fn the_control_file_says_what_sql_says() {
    for major in Cluster::available_majors() {
        let mut builder = Cluster::builder()
            .major(major)
            .conf("max_connections", "23");
        if major % 2 == 0 {
            builder = builder
                .wal_segment_size_mb(4)
                .initdb_arg("--data-checksums");
        } else if major == 13 {
            builder = builder.conf("wal_level", "logical");
        }
        let mut cluster = builder.start();
        cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000); CHECKPOINT");
        let ask = |sql: &str| cluster.psql(sql);
        let data = DataDirectory::open(cluster.data()).unwrap();
        assert_eq!(data.major(), major);
        let control = data.control().unwrap();
        assert_eq!(control.postgres_major(), Some(major));
        let system = ask(
            "SELECT pg_control_version, catalog_version_no, system_identifier, \
             extract(epoch FROM pg_control_last_modified)::bigint FROM pg_control_system()",
        );
        assert_eq!(
            system,
            format!(
                "{}|{}|{}|{}",
                control.control_version,
                control.catalog_version,
                control.system_id,
                control.modified_s
            )
        );
        let checkpoint = ask(
            "SELECT checkpoint_lsn, redo_lsn, timeline_id, prev_timeline_id, \
             full_page_writes, extract(epoch FROM checkpoint_time)::bigint FROM pg_control_checkpoint()",
        );
        assert_eq!(
            checkpoint,
            format!(
                "{}|{}|{}|{}|{}|{}",
                control.checkpoint,
                control.redo,
                control.timeline,
                control.previous_timeline,
                if control.full_page_writes { "t" } else { "f" },
                control.checkpoint_time_s
            )
        );
        let init = ask(
            "SELECT database_block_size, wal_block_size, bytes_per_wal_segment, \
             data_page_checksum_version <> 0 FROM pg_control_init()",
        );
        assert_eq!(
            init,
            format!(
                "{}|{}|{}|{}",
                control.block_bytes,
                control.wal_block_bytes,
                control.segment_size.bytes(),
                if control.data_checksums { "t" } else { "f" }
            )
        );
        let recovery = ask(
            "SELECT min_recovery_end_lsn, backup_start_lsn, backup_end_lsn, \
             end_of_backup_record_required FROM pg_control_recovery()",
        );
        assert_eq!(recovery, "0/0|0/0|0/0|f");
        assert_eq!(control.min_recovery_point, Lsn(0));
        assert_eq!(control.state, State::InProduction);
        assert_eq!(control.wal_level.to_string(), ask("SHOW wal_level"));
        assert_eq!(control.max_connections, 23);
        for (name, value) in [
            ("max_worker_processes", control.max_worker_processes),
            ("max_wal_senders", control.max_wal_senders),
            (
                "max_prepared_transactions",
                control.max_prepared_transactions,
            ),
            (
                "max_locks_per_transaction",
                control.max_locks_per_transaction,
            ),
        ] {
            assert_eq!(ask(&format!("SHOW {name}")), value.to_string(), "{name}");
        }
        cluster.stop(StopMode::Fast);
        assert_eq!(data.control().unwrap().state, State::ShutDown);
    }
}

#[test]
fn the_control_file_says_what_pg_controldata_says() {
    skip_unless!(Cluster::available(15));
    let mut cluster = Cluster::builder().start();
    cluster.stop(StopMode::Fast);
    let mut program = cluster.command("pg_controldata");
    let text = run(program.arg(cluster.data())).unwrap();
    let line = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
    };
    let control = DataDirectory::open(cluster.data())
        .unwrap()
        .control()
        .unwrap();
    let name = SegmentName::containing(control.timeline, control.redo, control.segment_size);
    assert_eq!(
        line("pg_control version number:"),
        control.control_version.to_string()
    );
    assert_eq!(
        line("Catalog version number:"),
        control.catalog_version.to_string()
    );
    assert_eq!(
        line("Database system identifier:"),
        control.system_id.to_string()
    );
    assert_eq!(line("Database cluster state:"), control.state.to_string());
    assert_eq!(
        line("Latest checkpoint location:"),
        control.checkpoint.to_string()
    );
    assert_eq!(
        line("Latest checkpoint's REDO location:"),
        control.redo.to_string()
    );
    assert_eq!(line("Latest checkpoint's REDO WAL file:"), name.to_string());
    assert_eq!(
        line("Latest checkpoint's TimeLineID:"),
        control.timeline.to_string()
    );
    assert_eq!(line("wal_level setting:"), control.wal_level.to_string());
    assert_eq!(
        line("max_connections setting:"),
        control.max_connections.to_string()
    );
}

/// A reader beside a busy server never meets half a file.
#[test]
fn the_control_file_of_a_server_at_work_is_always_whole() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().start();
    let data = DataDirectory::open(cluster.data()).unwrap();
    let system_id = data.control().unwrap().system_id;
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            for round in 0..10 {
                cluster.psql(&format!("CREATE TABLE t{round} (); CHECKPOINT"));
            }
        });
        let mut checkpoints = std::collections::BTreeSet::new();
        while !work.is_finished() {
            let control = data.control().unwrap();
            assert_eq!(control.system_id, system_id);
            checkpoints.insert(control.checkpoint);
        }
        assert!(checkpoints.len() > 1);
    });
}

#[test]
fn a_server_accepts_every_edit_and_means_the_same_by_it() {
    let command = r#"test ! -f '/a b/%f' && cp "%p" /nonexistent\\%f # it's "#;
    let changes = [
        ("archive_mode", "on"),
        ("archive_command", command),
        ("wal_level", "logical"),
        ("work_mem", "7MB"),
        ("synchronous_standby_names", "FIRST 1 (\"a-b\", c)"),
        ("synchronous_commit", "local"),
        ("checkpoint_completion_target", "0.7"),
        ("wm.odd", "line\nbreak\tand\\slash"),
        ("wm.new", "/bin/true"),
        ("wm.empty", ""),
    ];
    for major in Cluster::available_majors() {
        let mut cluster = Cluster::builder()
            .major(major)
            .conf("work_mem", "5MB")
            .conf("work_mem", "6MB")
            .start();
        let before = fs::read(cluster.config_file()).unwrap();
        let made = conf::apply(&cluster.config_file(), &changes, false).unwrap();
        assert_eq!(made.len(), changes.len());
        let after = fs::read(cluster.config_file()).unwrap();
        assert_eq!(
            fs::read(conf::old_copy_of(&cluster.config_file())).unwrap(),
            before
        );
        // wm.* and nothing else goes to the end; everything else has its place in the sample.
        let added = after.split(|byte| *byte == b'\n').count()
            - before.split(|byte| *byte == b'\n').count();
        assert_eq!(
            added,
            changes.len() - 1,
            "work_mem alone had a line in force"
        );
        cluster.restart();
        for (name, value) in changes {
            assert_eq!(
                cluster.psql(&format!("SHOW {name}")),
                value.trim_end(),
                "{name}"
            );
        }
        assert_eq!(
            conf::apply(&cluster.config_file(), &changes, false).unwrap(),
            []
        );
        // A base backup made by the server's user must be able to read the copy.
        let readable = cluster.psql("SELECT length(pg_read_file('postgresql.conf.old')) > 1000");
        assert_eq!(readable, "t");
    }
}

#[tokio::test]
async fn lines_are_read_as_every_version_of_the_server_reads_them() {
    let tails = [
        "= on",
        "on",
        "=on#c",
        "\t=\ton \r",
        "= 'a b'",
        "'a'",
        "= 'it''s'",
        r"= 'a\'b'",
        r"= 'a\\b'",
        r"= '\101\12x\7\08'",
        r"= '\n\t\b\x'",
        "= ''",
        "=",
        "",
        "= a b",
        "= 'a",
        "= 'a' 'b'",
        "= 1",
        "= -1",
        "= +1",
        "= - 1",
        "= 16MB",
        "= 16 MB",
        "= 0x1F",
        "= 0x1FkB",
        "= 0xG",
        "= 1.5",
        "= .5",
        "= 1.",
        "= 1.5e3",
        "= 1.5E-3",
        "= 1.5e",
        "= 1e3",
        "= 1e",
        "= 1.5GB",
        "= 1_000",
        "= a-b.c_d:e/f",
        "= /a",
        "= a/b",
        "= a@b",
        "= ä",
        "= _x",
        "= -x",
        "= *",
        "= a,b",
        "== a",
        "= = a",
        "= \"a\"",
        "= a'b'",
        "= 'a'b",
        "= a#b",
        "= 5#b",
        "= 'a'#b",
        "= true;",
        "= 1.2.3",
        "= a.b.c",
        "= \u{b}on",
        "= \u{c}on",
    ];
    for major in Cluster::available_majors() {
        let cluster = Cluster::builder().major(major).start();
        let session = connect(&cluster).await;
        let base = fs::read_to_string(cluster.config_file()).unwrap();
        // The view reads the file anew each time, and gives up at the first error.
        let sql = "SELECT convert_to(setting, 'UTF8') FROM pg_file_settings WHERE name = 'wm.x'";
        for tail in tails {
            let text = format!("{base}wm.x {tail}\n");
            fs::write(cluster.config_file(), &text).unwrap();
            let rows = session.query(sql, &[]).await.unwrap();
            let theirs: Option<Vec<u8>> = rows.first().map(|row| row.get(0));
            let ours = conf::value(text.as_bytes(), "wm.x").map(String::into_bytes);
            assert_eq!(ours, theirs, "PostgreSQL {major}: {tail:?}");
        }
    }
}

#[test]
fn the_last_setter_is_the_line_the_server_names() {
    for major in Cluster::available_majors() {
        let mut cluster = Cluster::builder().major(major).start();
        let folder = cluster.data().join("extra");
        fs::create_dir(&folder).unwrap();
        fs::write(
            folder.join("b.conf"),
            "work_mem = 3MB\n\nmaintenance_work_mem = 5MB\n",
        )
        .unwrap();
        fs::write(
            folder.join("a.conf"),
            "work_mem = 2MB\nstatement_timeout = 7s\n",
        )
        .unwrap();
        fs::write(folder.join(".c.conf"), "work_mem = 4MB\n").unwrap();
        give_to_server(&folder);
        cluster.append_conf("work_mem = 1MB\ninclude_dir 'extra'\nstatement_timeout = 8s");
        cluster.psql("ALTER SYSTEM SET maintenance_work_mem = '6MB'");
        cluster.restart();
        for name in [
            "work_mem",
            "statement_timeout",
            "maintenance_work_mem",
            "port",
        ] {
            let setter = conf::last_setter(&cluster.config_file(), cluster.data(), name).unwrap();
            let Setter { file, line, .. } = setter.unwrap();
            let asked =
                format!("SELECT sourcefile, sourceline FROM pg_settings WHERE name = '{name}'");
            assert_eq!(
                cluster.psql(&asked),
                format!("{}|{line}", file.display()),
                "{name}"
            );
        }
        let nobody = conf::last_setter(&cluster.config_file(), cluster.data(), "lc_x").unwrap();
        assert_eq!(nobody, None);
    }
}

#[test]
fn a_running_server_is_told_from_a_stopped_and_a_killed_one() {
    for major in Cluster::available_majors() {
        let mut cluster = Cluster::builder().major(major).start();
        let data = DataDirectory::open(cluster.data()).unwrap();
        let server = data.running().unwrap().unwrap();
        assert_eq!(Some(server.pid.unsigned_abs()), cluster.pid());
        assert_eq!(server.port, Some(cluster.port()));
        assert_eq!(server.socket_directory.as_deref(), Some(cluster.home()));
        assert_eq!(server.listen_address.as_deref(), Some("127.0.0.1"));
        assert!(server.ready && !server.single_user && server.started_s.is_some());
        cluster.kill9();
        assert!(cluster.data().join("postmaster.pid").exists());
        assert_eq!(data.running().unwrap(), None);
        cluster.start();
        assert!(data.running().unwrap().is_some());
        cluster.stop(StopMode::Fast);
        assert_eq!(data.running().unwrap(), None);
    }
}

#[tokio::test]
async fn a_session_answers_what_psql_answers() {
    for major in Cluster::available_majors() {
        let cluster = Cluster::builder()
            .major(major)
            .conf("work_mem", "5MB")
            .start();
        let session = connect(&cluster).await;
        let data = DataDirectory::open(cluster.data()).unwrap();
        let control = data.control().unwrap();
        assert_eq!(session.show("work_mem").await.unwrap(), "5MB");
        assert_eq!(session.show("application_name").await.unwrap(), "walmgr");
        assert_eq!(session.show_if_known("no.such").await.unwrap(), None);
        assert_eq!(
            session.show("no.such").await.unwrap_err().kind(),
            Kind::Config
        );
        assert_eq!(
            session.server_version().await.unwrap().major(),
            u32::from(major)
        );
        assert_eq!(
            session.system_identifier().await.unwrap(),
            control.system_id
        );
        assert_eq!(
            session.wal_segment_size().await.unwrap(),
            control.segment_size
        );
        assert!(!session.is_in_recovery().await.unwrap());
        let position = session.wal_position().await.unwrap();
        assert_eq!(position.timeline, control.timeline);
        assert!(position.flushed <= position.written && control.checkpoint < position.written);
        assert!(session.wal_position().await.unwrap().written >= position.written);
        conf::apply(&cluster.config_file(), &[("work_mem", "9MB")], false).unwrap();
        session.reload_conf().await.unwrap();
        let begin = Instant::now();
        while session.show("work_mem").await.unwrap() != "9MB" {
            assert!(begin.elapsed() < PATIENCE);
        }
    }
}

#[tokio::test]
async fn fault_44_a_switch_names_the_segment_that_the_archiver_gets() {
    for major in Cluster::available_majors() {
        let archive = TempDir::new();
        let copy = format!("cp %p {}/%f", archive.path().display());
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .conf("archive_command", &copy)
            .start();
        let session = connect(&cluster).await;
        let begin = session.archiver_statistics().await.unwrap();
        assert_eq!((begin.archived_count, begin.last_archived), (0, None));
        let mut last = None;
        for _ in 0..3 {
            session.create_restore_point("walmgr").await.unwrap();
            let switched = session.switch_wal().await.unwrap();
            assert!(Some(switched.segment) > last);
            last = Some(switched.segment);
            let file = archive.join(switched.segment.to_string());
            wait_for("the segment", PATIENCE, || file.exists().then_some(()));
            // Nothing was written since, so this one finishes nothing.
            let again = session.switch_wal().await.unwrap();
            assert_eq!(again.lsn.0 % (1 << 20), 0);
            assert_eq!(again.segment, switched.segment);
        }
        let begin = Instant::now();
        loop {
            let end = session.archiver_statistics().await.unwrap();
            if end.last_archived.and_then(|name| name.segment()) == last {
                assert!(end.archived_count >= 3 && end.last_archived_ms.is_some());
                assert_eq!((end.failed_count, end.last_failed), (0, None));
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "{end:?}");
        }
    }
}

#[tokio::test]
async fn a_failing_archive_command_shows_in_the_statistics() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder()
        .conf("archive_mode", "on")
        .conf("archive_command", "false")
        .start();
    let session = connect(&cluster).await;
    session.create_restore_point("walmgr").await.unwrap();
    let segment = session.switch_wal().await.unwrap().segment;
    let begin = Instant::now();
    loop {
        let statistics = session.archiver_statistics().await.unwrap();
        if let (1.., Some(name)) = (statistics.failed_count, statistics.last_failed) {
            assert_eq!(name.segment(), Some(segment));
            assert!(statistics.last_failed_ms.is_some());
            break;
        }
        assert!(begin.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn a_standby_answers_as_a_standby() {
    for major in Cluster::available_majors() {
        let mut cluster = Cluster::builder().major(major).start();
        cluster.stop(StopMode::Fast);
        fs::write(cluster.data().join("standby.signal"), "").unwrap();
        cluster.append_conf("restore_command = 'false'");
        cluster.start();
        let session = connect(&cluster).await;
        assert!(session.is_in_recovery().await.unwrap());
        assert!(session.wal_position().await.is_err());
        let control = DataDirectory::open(cluster.data())
            .unwrap()
            .control()
            .unwrap();
        assert_eq!(control.state, State::InArchiveRecovery);
        assert_eq!(control.wal_level, WalLevel::Replica);
        let asked =
            "SELECT min_recovery_end_lsn, min_recovery_end_timeline FROM pg_control_recovery()";
        let timeline = control
            .min_recovery_timeline
            .map_or(0, |timeline| timeline.number());
        assert_eq!(
            cluster.psql(asked),
            format!("{}|{timeline}", control.min_recovery_point)
        );
        cluster.psql("SELECT pg_promote()");
        assert!(!session.is_in_recovery().await.unwrap());
        // The checkpoint of the new timeline may still be to come.
        assert_eq!(session.wal_position().await.unwrap().timeline.number(), 2);
    }
}

#[tokio::test]
async fn the_environment_leads_to_the_server_as_it_leads_libpq() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().start();
    let environment = Environment::of_process()
        .with_variable("PGHOST", &cluster.home().display().to_string())
        .with_variable("PGPORT", &cluster.port().to_string())
        .with_variable("PGUSER", "postgres");
    let limits = Limits::default();
    let session = Session::connect_from("dbname=template1", &environment, limits)
        .await
        .unwrap();
    let rows = session
        .query("SELECT current_database()::text", &[])
        .await
        .unwrap();
    // Nobody makes a database while somebody is in a template.
    assert_eq!(rows[0].get::<_, String>(0), "postgres");
    Session::connect(&cluster.conninfo_tcp(), limits)
        .await
        .unwrap();
    let nobody = Session::connect(&format!("{} user=nobody_", cluster.conninfo()), limits).await;
    assert_eq!(nobody.err().unwrap().kind(), Kind::Config);
    cluster.psql("CREATE DATABASE other");
    let drop = ["-d", "other", "-c", "DROP DATABASE postgres WITH (FORCE)"];
    crate::support::run(cluster.command("psql").args(drop)).unwrap();
    let nowhere = Session::connect_from("dbname=none_", &environment, limits)
        .await
        .err()
        .unwrap();
    assert_eq!(nowhere.kind(), Kind::Config);
    assert!(nowhere.to_string().contains("does not exist"), "{nowhere}");
}

#[tokio::test]
async fn passwords_are_sent_when_the_server_asks() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().start();
    cluster.psql("CREATE ROLE shipper LOGIN PASSWORD 'a:b\\c'");
    fs::write(
        cluster.data().join("pg_hba.conf"),
        "local all postgres trust\nhost all all all scram-sha-256\n",
    )
    .unwrap();
    cluster.reload();
    let conninfo = format!("{} user=shipper", cluster.conninfo_tcp());
    let limits = Limits::default();
    let home = TempDir::new();
    let environment = Environment::of_process()
        .with_variable("HOME", &home.path().display().to_string())
        .with_variable("PGPASSWORD", "")
        .with_variable("PGPASSFILE", "");
    let without = Session::connect_from(&conninfo, &environment, limits).await;
    assert!(without.err().unwrap().to_string().contains("password"));
    let file = home.write(
        ".pgpass",
        format!("127.0.0.1:{}:*:shipper:a\\:b\\\\c\n", cluster.port()),
    );
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    Session::connect_from(&conninfo, &environment, limits)
        .await
        .unwrap();
    let wrong = format!("{conninfo} password=wrong");
    let refused = Session::connect_from(&wrong, &environment, limits)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.kind(), Kind::Config);
}

#[tokio::test]
async fn a_statement_over_its_limit_is_given_up_and_cancelled() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().start();
    let mut session = connect(&cluster).await;
    session.set_statement_limit(Duration::from_millis(200));
    let begin = Instant::now();
    let error = session
        .query("SELECT pg_sleep(600)", &[])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Retry);
    assert!(begin.elapsed() < PATIENCE, "{error}");
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' \
         AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()";
    wait_for("the cancellation", PATIENCE, || {
        (cluster.psql(sleeping) == "0").then_some(())
    });
    session.set_statement_limit(PATIENCE);
    assert!(!session.is_closed());
    assert!(!session.is_in_recovery().await.unwrap());
}
