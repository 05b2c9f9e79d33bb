//! Ini files that Skytools' walmgr ran with, with all that gathers in such files over the years.
//! Never written for this walmgr: only what its identities need is added. Invariant: every command of
//! both sides takes them, and `setup` names each line that means nothing any more.

use std::fs;
use std::time::Duration;

use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

const MASTER_INI: &str = r#"REM walmgr on db1, see wiki
[DEFAULT]
pgroot : HOME
log_count = 5
log_size = 10485760
[pgqadm]
job_name = ticker
maint_delay = 600
queue = %(pgversion)s
[wal-master] (production)
Job_Name       = %(host_name)s_%(service_name)s
logfile        = %(pgroot)s/log/%(job_name)s.log ; caf#
pidfile        = %(config_dir)s/pid/%(job_name)s.pid
use_skylog     = 1
skylog_locations = skylog.ini, ~/.skylog.ini
logfmt_file    = %(asctime)s %(message)s
connection_lifetime = 21600
rem sql_retry  = 2
sql_retry      = 1
master_db      = dbname=template1
    PARAMETERS
pgversion      = 9.1
master_data    = DATA
compression    = 0
slave          = postgres@127.0.0.1:PORT:walshipping/%(pgversion)s
slave_config   = /etc/walmgr/slave.ini
completed_wals = %(slave)s/logs.complete
partial_wals   = %(slave)s/logs.partial
full_backup    = %(slave)s/data.master
keep_backups   = 2
loop_delay     = 0.0
use_xlog_functions = 1
command_interval = 0
periodic_command = touch HOME/ran; sync ; touch HOME/again
compression    = 1
slave_fingerprint = FINGERPRINT
"#;

const STANDBY_INI: &str = r#"[wal-slave]
job_name       = %(service_name)s
logfile        = HOME/log/%(job_name)s.log
log_count      = 3
use_skylog     = 0
exception_sleep = 20
slave          = archive/wal
slave_data     = HOME/replica
slave_stop_cmd = sudo /etc/init.d/postgresql-8.3 stop
slave_start_cmd = sudo /etc/init.d/postgresql-8.3 start
completed_wals = %(slave)s/logs.complete
partial_wals   = %(slave)s/logs.partial
full_backup    = %(slave)s/data.master
keep_backups   = 5
keep_backups   = 0
archive_command =
loop_delay     = 10.0
master_data    = /var/lib/postgresql/8.3/main
listen         = 127.0.0.1:PORT
"#;

/// A site whose ini files are those above, with what a machine decides in place of the capitals.
fn site(major: u8) -> Site {
    let cluster = Cluster::builder().major(major).start();
    let parameters = cluster.conninfo().replace("dbname=postgres", "");
    let mut site = Site::builder().cluster(cluster).stopped().build();
    let fingerprint = site.standby_command(&["identity"]).succeed();
    let home = site.home().path().display().to_string();
    let fill = |text: &str| {
        text.replace("HOME", &home)
            .replace("DATA", &site.data().display().to_string())
            .replace("PORT", &site.address().port().to_string())
            .replace("PARAMETERS", &parameters)
            .replace("FINGERPRINT", &fingerprint)
    };
    // Written where text was Latin-1, and carried over from Windows.
    let master = fill(MASTER_INI).replace('\n', "\r\n");
    let (before, behind) = master.split_once('#').unwrap();
    let master = [
        b"\xEF\xBB\xBF",
        before.as_bytes(),
        b"\xE9",
        behind.as_bytes(),
    ]
    .concat();
    fs::write(site.master_ini(), master).unwrap();
    fs::write(site.standby_ini(), fill(STANDBY_INI)).unwrap();
    for path in [site.master_ini(), site.standby_ini(), site.home().path()] {
        give_to_server(path);
    }
    let setup = site.standby_command(&["setup"]);
    setup.succeed();
    for note in [
        ":4: log_count, exception_sleep are ignored: they belonged to Skytools",
        ":15: keep_backups is set twice, first on line 14: this line counts",
        ":17: loop_delay is ignored: a setting of the master",
        ":18: master_data is ignored: a setting of the master",
    ] {
        assert!(setup.stderr.contains(note), "{note}: {}", setup.stderr);
    }
    site.start_receiver();
    site
}

fn ships_and_backs_up(major: u8) {
    skip_unless!(Cluster::available(major));
    let mut site = site(major);
    let setup = site.master_command(&["setup", "--no-check"]);
    setup.succeed();
    for note in [
        ":6: [pgqadm] is ignored: the settings are in [wal-master]",
        ":4: log_count, log_size, skylog_locations, logfmt_file, connection_lifetime, sql_retry are ignored: they \
         belonged to Skytools",
        ":35: compression is set twice, first on line 24: this line counts",
        "the path walshipping/9.1 is ignored",
        "the user postgres is ignored",
        ":30: keep_backups is ignored: a setting of the standby",
        "completed_wals, partial_wals, full_backup ignored",
    ] {
        assert!(setup.stderr.contains(note), "{note}: {}", setup.stderr);
    }
    site.cluster_mut().restart();
    let again = site.master_command(&["-q", "setup"]);
    again.succeed();
    assert_eq!(again.stderr, "");
    assert!(site.home().join("log").is_dir());
    assert!(site.master_ini().with_file_name("pid").is_dir());

    site.cluster().psql("CREATE TABLE kept AS SELECT 1 AS n");
    site.master_command(&["backup"]).succeed();
    site.master_command(&["sync"]).succeed();
    site.master_command(&["listbackups"]).succeed();
    let listed = site.standby_command(&["listbackups"]).succeed();
    assert!(listed.contains("data.master"), "{listed}");
    // With something in the segment, or there is nothing to switch.
    let name = site
        .cluster()
        .psql("CREATE TABLE later (); SELECT pg_walfile_name(pg_switch_wal())");
    let archive = site
        .standby_ini()
        .with_file_name("archive/wal/logs.complete");
    wait_for("the segment", PATIENCE, || {
        crate::support::stored::path(&archive, &name)
            .exists()
            .then_some(())
    });

    // `command_interval = 0` is never; and of a command with semicolons none starts a comment.
    site.master_command(&["periodic"]).succeed();
    assert!(!site.home().join("ran").exists());
    let set = ["--set", "command_interval=1", "periodic"];
    site.master_command(&set).succeed();
    assert!(site.home().join("again").exists());
    site.master_command(&["stop"]).succeed();
}

#[test]
fn fault_141_a_master_15_ships_and_backs_up_with_old_files() {
    ships_and_backs_up(15);
}

#[test]
fn fault_141_a_master_18_ships_and_backs_up_with_old_files() {
    ships_and_backs_up(18);
}

#[test]
fn fault_141_an_unknown_key_is_an_error_until_another_refers_to_it() {
    let mut site = Site::builder().stopped().build();
    site.master_set("keep_symlink", "1");
    let said = site.master_command(&["-n", "setup"]);
    let line = said.fail(2);
    assert!(
        line.ends_with(
            "keep_symlink: expected a known setting, found an unknown one; did you mean \
             keep_symlinks? If not, nothing refers to this key, so the line can be deleted"
        ),
        "{line}"
    );
    let ini = fs::read_to_string(site.master_ini()).unwrap();
    let referring = ini + "keep_symlinks = %(keep_symlink)s\n";
    fs::write(site.master_ini(), referring).unwrap();
    let said = site.master_command(&["-n", "setup"]);
    assert!(!said.stderr.contains("unknown"), "{}", said.stderr);
}
