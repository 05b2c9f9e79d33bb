//! Every main command where a server speaks another language, has limits and defaults for everybody, the role is no
//! superuser, and cron calls with nothing: no variable, no standard input.
//! Never a setting of walmgr's own. Invariant: whoever set them, by ALTER SYSTEM, ROLE or DATABASE, each command ends
//! as it does on a server as `initdb` leaves it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::load::drain;
use crate::restore::{PATIENCE, Scene};
use crate::support::place::{TempDir, as_server, give_to_server, walmgr_binary};
use crate::support::{Cluster, Output, run};

/// What everybody gets; the limits are shorter than what our commands wait for.
const FOR_EVERYBODY: [&str; 17] = [
    "statement_timeout = '700ms'",
    "lock_timeout = '500ms'",
    "idle_in_transaction_session_timeout = '500ms'",
    "idle_session_timeout = '500ms'",
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "log_statement = 'all'",
    "row_security = off",
    "search_path = 'evil', 'pg_catalog'",
    "datestyle = 'German, DMY'",
    "intervalstyle = 'sql_standard'",
    "timezone = 'Pacific/Chatham'",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
    "client_encoding = 'LATIN1'",
    "standard_conforming_strings = off",
    "client_min_messages = 'debug1'",
];

/// What of it only a superuser may set, and only for the whole server or a role.
const SUPERUSERS_ALONE: &str = "log_statement";

/// The grants of docs/tasks/connect.md, from PostgreSQL 15 on.
const GRANTS: &str = "CREATE ROLE shipper LOGIN; \
     GRANT EXECUTE ON FUNCTION pg_reload_conf(), pg_create_restore_point(text), pg_switch_wal(), \
         pg_backup_start(text, boolean), pg_backup_stop(boolean) TO shipper; \
     GRANT ALTER SYSTEM ON PARAMETER archive_mode TO shipper; \
     GRANT pg_read_all_settings TO shipper; \
     CREATE SCHEMA evil; \
     CREATE FUNCTION evil.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'; \
     GRANT USAGE ON SCHEMA evil TO shipper";

/// How many rows there are; whatever limits there are for everybody.
const ROWS: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; \
     SELECT 'rows ' || count(*) || ' ' || sum(delta) FROM public.pgbench_history; COMMIT";

/// More of them.
const WORK: &str = "BEGIN READ WRITE; SET LOCAL statement_timeout = 0; \
     INSERT INTO public.pgbench_history (tid, delta) SELECT n, n FROM generate_series(1, 5000) AS n; COMMIT";

/// A German locale for a server to which it is given by `LOCPATH`.
fn german() -> Result<TempDir, String> {
    let messages = Path::new("/usr/share/locale/de/LC_MESSAGES/postgres-15.mo");
    if !messages.exists() {
        return Err(format!("no {}", messages.display()));
    }
    let folder = TempDir::new();
    let mut localedef = Command::new("localedef");
    localedef.args(["--no-archive", "-i", "de_DE", "-f", "UTF-8"]);
    run(localedef.arg(folder.join("de_DE.UTF-8")))?;
    give_to_server(folder.path());
    Ok(folder)
}

/// A command as cron may call it.
fn bare(ini: &Path, words: &[&str]) -> Output {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", "exec /usr/bin/env -i \"$@\" <&-", "cron"])
        .arg(walmgr_binary())
        .arg(ini)
        .args(words)
        .env_clear()
        .current_dir("/");
    Output::of(as_server(&mut shell))
}

/// The statements that set all of it.
fn statements(way: &str) -> Vec<String> {
    let of_all = FOR_EVERYBODY.iter().map(|setting| (*setting).to_owned());
    // Last: from here on nobody changes anything.
    let (mut first, last): (Vec<_>, Vec<_>) =
        of_all.partition(|setting| !setting.starts_with("default_transaction_read_only"));
    if way == "DATABASE postgres" {
        first.retain(|setting| !setting.starts_with(SUPERUSERS_ALONE));
    }
    let all = first.into_iter().chain(last);
    all.map(|setting| format!("ALTER {way} SET {setting}"))
        .collect()
}

struct Case<'a> {
    major: u8,
    way: &'a str,
    locale: Option<&'a Path>,
}

fn scene_of(case: &Case<'_>) -> Scene {
    let mut builder = Cluster::builder().major(case.major);
    if let Some(folder) = case.locale {
        builder = builder.env("LOCPATH", &folder.display().to_string());
        for name in ["lc_messages", "lc_numeric", "lc_time", "lc_monetary"] {
            builder = builder.conf(name, "de_DE.UTF-8");
        }
    }
    let mut scene = Scene::of(builder);
    if let Some(folder) = case.locale {
        let start = scene.start_command();
        let start = format!("/usr/bin/env LOCPATH={} {start}", folder.display());
        scene.site.standby_set("slave_start_cmd", &start);
    }
    let cluster = scene.site.cluster();
    cluster.psql(GRANTS);
    let conninfo = cluster.conninfo().replace("user=postgres", "user=shipper");
    scene.site.master_set("master_db", &conninfo);
    scene.site.master_set("use_xlog_functions", "1");
    let cluster = scene.site.cluster();
    for statement in statements(case.way) {
        cluster.psql(&statement);
    }
    cluster.reload();
    scene
}

fn every_command_works(case: &Case<'_>) {
    let scene = scene_of(case);
    let (site, cluster) = (&scene.site, scene.site.cluster());
    let works = |ini: &Path, words: &[&str]| {
        let output = bare(ini, words);
        assert_eq!(
            output.code,
            Some(0),
            "{words:?} under {}: {}\n{}\n{}",
            case.way,
            output.stderr,
            cluster.log(),
            scene.standby_log()
        );
        output.stdout
    };
    let (master, standby) = (site.master_ini(), site.standby_ini());
    let on_master = |words: &[&str]| works(master, words);
    on_master(&["stop"]);
    on_master(&["setup"]);
    on_master(&["sync"]);
    on_master(&["syncdaemon", "-d"]);
    cluster.psql(WORK);
    on_master(&["backup"]);
    let listed = on_master(&["listbackups"]);
    assert!(listed.contains("data.master"), "{listed}");
    cluster.psql(WORK);
    // A finding is an answer, too: what is asked is whether anything could not be.
    let asked = bare(master, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&asked.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", asked.stdout, asked.stderr));
    let findings = status["findings"].as_array().unwrap();
    let unasked = |finding: &serde_json::Value| {
        ["server", "receiver", "is_standby", "archiving_off"]
            .iter()
            .any(|code| finding["code"] == **code)
    };
    assert!(!findings.iter().any(unasked), "{findings:?}");
    on_master(&["syncdaemon", "--stop"]);
    on_master(&["sync"]);
    let rows = cluster.psql(ROWS);
    drain(site);
    works(standby, &["listbackups"]);
    works(standby, &["restore"]);
    let begin = Instant::now();
    loop {
        let found = scene.standby.try_psql(ROWS);
        if found.as_ref() == Ok(&rows) {
            break;
        }
        let log = scene.standby_log();
        assert!(begin.elapsed() < PATIENCE, "{found:?}, not {rows:?}\n{log}");
        std::thread::sleep(Duration::from_millis(100));
    }
    for words in [&["pause"][..], &["continue"]] {
        works(standby, words);
    }
    let status = bare(standby, &["status"]);
    assert!(status.stdout.contains("RPO"), "{status:?}");
    on_master(&["stop"]);
    works(standby, &["boot"]);
    assert_eq!(scene.standby.psql(ROWS), rows);
}

#[test]
fn fault_171_settings_for_everybody_stop_no_command() {
    for (major, way) in [
        (15, "SYSTEM"),
        (15, "ROLE shipper"),
        (15, "DATABASE postgres"),
        (18, "SYSTEM"),
    ] {
        skip_unless!(Cluster::available(major));
        every_command_works(&Case {
            major,
            way,
            locale: None,
        });
    }
}

#[test]
fn fault_172_no_command_depends_on_the_servers_language() {
    skip_unless!(Cluster::available(15));
    let locale = skip_unless!(german());
    let case = Case {
        major: 15,
        way: "SYSTEM",
        locale: Some(locale.path()),
    };
    let scene = scene_of(&case);
    let log = scene.site.cluster().log();
    assert!(log.contains("Datenbanksystem ist bereit"), "{log}");
    drop(scene);
    every_command_works(&case);
}
