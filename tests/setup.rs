//! `init`, `setup`, `stop` and `periodic` as a person types them, on real servers.
//! Never trusts what a command says of the server: the server is asked.
//! Invariant: a command that fails, or runs with `-n`, has changed nothing.

mod dry;
mod first_time;
mod periodic;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use crate::support::place::walmgr_binary;
use crate::support::{Cluster, Site, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// What an operator would write into `master_restart_cmd`.
fn restart_command(cluster: &Cluster) -> String {
    format!(
        "'{}' -D '{}' -l '{}' -m fast -w restart",
        cluster.bin().join("pg_ctl").display(),
        cluster.data().display(),
        cluster.home().join("log").display()
    )
}

fn with_restart_command(cluster: Cluster) -> Site {
    let command = restart_command(&cluster);
    Site::builder()
        .cluster(cluster)
        .master_set("master_restart_cmd", &command)
        .build()
}

/// The name of a segment that PostgreSQL has just finished.
fn finished_segment(cluster: &Cluster) -> String {
    cluster.psql("SELECT pg_create_restore_point('x')");
    cluster.psql("SELECT pg_walfile_name(pg_switch_wal())")
}

#[track_caller]
fn assert_arrives(site: &Site) {
    let name = finished_segment(site.cluster());
    wait_for(&name, PATIENCE, || site.holds(&name).then_some(()));
}

/// The lines that neither setup nor stop has a reason to touch.
fn untouched_lines(conf: &str) -> Vec<&str> {
    let ours = ["archive_mode", "archive_command", "wal_level"];
    let is_ours = |line: &&str| {
        let name = line.trim_start_matches(['#', ' ']);
        ours.iter().any(|ours| name.starts_with(ours))
    };
    conf.lines().filter(|line| !is_ours(line)).collect()
}

#[test]
fn setup_edits_three_lines_and_keeps_comments_owner_and_mode() {
    skip_unless!(Cluster::available(15));
    let mut cluster = Cluster::builder().start();
    cluster.append_conf("# a remark of ours\nwork_mem = 5MB   # and one behind");
    fs::set_permissions(cluster.config_file(), PermissionsExt::from_mode(0o640)).unwrap();
    let site = with_restart_command(cluster);
    let conf = site.cluster().config_file();
    let (before, status) = (
        fs::read_to_string(&conf).unwrap(),
        fs::metadata(&conf).unwrap(),
    );
    let first_pid = site.cluster().pid();
    site.master_command(&["setup"]).succeed();
    let after = fs::read_to_string(&conf).unwrap();
    assert_eq!(untouched_lines(&after), untouched_lines(&before));
    assert_eq!(
        fs::read_to_string(conf.with_file_name("postgresql.conf.old")).unwrap(),
        before
    );
    let now = fs::metadata(&conf).unwrap();
    assert_eq!(
        (now.mode(), now.uid(), now.gid()),
        (status.mode(), status.uid(), status.gid())
    );
    let cluster = site.cluster();
    assert_ne!(cluster.pid(), first_pid, "archive_mode needs a restart");
    assert_eq!(cluster.psql("SHOW archive_mode"), "on");
    assert_eq!(cluster.psql("SHOW work_mem"), "5MB");
    let command = format!(
        "{} {} xarchive %p %f",
        walmgr_binary().display(),
        site.master_ini().display()
    );
    assert_eq!(cluster.psql("SHOW archive_command"), command);
    assert!(!site.archived_names().is_empty(), "the proof has arrived");

    // Once more: no edit, no restart, and the proof arrives again.
    let (pid, count) = (cluster.pid(), site.archived_names().len());
    site.master_command(&["setup"]).succeed();
    assert_eq!(cluster.pid(), pid);
    assert_eq!(fs::read_to_string(&conf).unwrap(), after);
    assert_eq!(fs::metadata(&conf).unwrap().ino(), now.ino());
    assert!(site.archived_names().len() > count);
    assert_arrives(&site);
}

#[test]
fn setup_raises_a_wal_level_that_is_too_low() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder()
        .conf("wal_level", "minimal")
        .conf("max_wal_senders", "0")
        .start();
    let site = with_restart_command(cluster);
    site.master_command(&["setup"]).succeed();
    assert_eq!(site.cluster().psql("SHOW wal_level"), "replica");
    assert_arrives(&site);
}

#[test]
fn setup_without_a_restart_command_asks_for_a_restart() {
    skip_unless!(Cluster::available(15));
    let mut site = Site::with_cluster(Cluster::builder().start());
    let asked = site.master_command(&["setup"]);
    asked.succeed();
    assert!(
        asked.stderr.contains("archive_mode is still off"),
        "{}",
        asked.stderr
    );
    assert!(
        asked.stderr.contains("restart PostgreSQL, so that"),
        "{}",
        asked.stderr
    );
    assert_eq!(site.archived_names(), Vec::<String>::new());
    site.cluster_mut().restart();
    let pid = site.cluster().pid();
    let proven = site.master_command(&["setup"]);
    proven.succeed();
    assert!(
        proven.stderr.contains("archiving works"),
        "{}",
        proven.stderr
    );
    assert_eq!(site.cluster().pid(), pid);
    let count = site.archived_names().len();
    site.master_command(&["setup", "--no-check"]).succeed();
    assert_eq!(site.archived_names().len(), count);
}

#[test]
fn a_restart_command_that_waits_for_every_session_is_not_held_up_by_ours() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().start();
    let smart = format!("{} -m smart", restart_command(&cluster));
    let site = Site::builder()
        .cluster(cluster)
        .master_set("master_restart_cmd", &smart)
        .build();
    let pid = site.cluster().pid();
    site.master_command(&["setup"]).succeed();
    assert_ne!(site.cluster().pid(), pid);
}

#[test]
fn setup_reloads_where_a_restart_is_not_needed() {
    skip_unless!(Cluster::available(15));
    let site = with_restart_command(Cluster::builder().conf("archive_mode", "on").start());
    let pid = site.cluster().pid();
    site.master_command(&["setup"]).succeed();
    assert_eq!(site.cluster().pid(), pid);
    assert_arrives(&site);
}

#[test]
fn setup_with_the_archive_of_another_cluster_is_refused_before_any_edit() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().start();
    let elsewhere = Site::start();
    let mut site = Site::with_cluster(cluster);
    site.route(elsewhere.address());
    site.master_set("slave_fingerprint", &elsewhere.standby_fingerprint());
    elsewhere
        .standby_command(&["authorize", &site.master_fingerprint(), "stranger"])
        .succeed();
    let conf = site.cluster().config_file();
    let before = fs::read(&conf).unwrap();
    wait_for("the key to be known", PATIENCE, || {
        let refused = site.master_command(&["setup"]);
        let line = refused.fail(1);
        line.contains("the archive belongs to the cluster with")
            .then_some(())
    });
    assert_eq!(fs::read(&conf).unwrap(), before);
    assert!(!conf.with_file_name("postgresql.conf.old").exists());
    assert_eq!(site.cluster().psql("SHOW archive_mode"), "off");
}

#[test]
fn a_value_set_elsewhere_is_named_with_file_and_line() {
    skip_unless!(Cluster::available(15));
    let site = Site::with_cluster(Cluster::builder().conf("archive_mode", "on").start());
    let cluster = site.cluster();
    cluster.psql("ALTER SYSTEM SET archive_command = 'false'");
    cluster.reload();
    let refused = site.master_command(&["setup"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let line = refused.stderr.lines().last().unwrap();
    let auto = cluster.data().join("postgresql.auto.conf, line 3");
    assert!(line.contains(&auto.display().to_string()), "{line}");
    assert!(
        line.contains("archive_command is false in the running server"),
        "{line}"
    );
    cluster.psql("ALTER SYSTEM RESET archive_command");
    site.master_command(&["setup"]).succeed();
}

#[test]
fn archiving_works_from_a_folder_with_blanks_quotes_and_percent_signs() {
    for major in Cluster::available_majors() {
        let cluster = Cluster::builder()
            .major(major)
            .conf("archive_mode", "on")
            .start();
        let site = Site::builder()
            .cluster(cluster)
            .master_folder("it's 100%p \"my\" $HOME; folder%")
            .build();
        site.master_command(&["setup"]).succeed();
        assert_arrives(&site);
        let failed = site
            .cluster()
            .psql("SELECT failed_count FROM pg_stat_archiver");
        assert_eq!(failed, "0", "PostgreSQL {major}:\n{}", site.cluster().log());
    }
}

#[test]
fn stop_without_a_restart_command_lets_every_segment_go() {
    skip_unless!(Cluster::available(15));
    let site = Site::with_cluster(Cluster::builder().conf("archive_mode", "on").start());
    site.master_command(&["setup"]).succeed();
    let pid = site.cluster().pid();
    let stopped = site.master_command(&["stop"]);
    stopped.succeed();
    assert!(
        stopped.stderr.contains("will never be in the archive"),
        "{}",
        stopped.stderr
    );
    let cluster = site.cluster();
    assert_eq!(cluster.psql("SHOW archive_command"), "/bin/true");
    assert_eq!(cluster.pid(), pid);
    let name = finished_segment(cluster);
    let done = cluster
        .data()
        .join(format!("pg_wal/archive_status/{name}.done"));
    wait_for("PostgreSQL to let it go", PATIENCE, || {
        done.exists().then_some(())
    });
    assert!(!site.holds(&name));
    let newest = site.archived_names().pop().unwrap();
    let again = site.master_command(&["setup"]);
    again.succeed();
    let hole = format!("archiving was off, and the archive ends with {newest}");
    assert!(again.stderr.contains(&hole), "{}", again.stderr);
    let missing = format!("{name} is the first segment that is missing");
    assert!(again.stderr.contains(&missing), "{}", again.stderr);
    assert!(again.stderr.contains("make a new base backup"));
    assert_arrives(&site);
    let no_hole = site.master_command(&["setup"]);
    no_hole.succeed();
    assert!(!no_hole.stderr.contains("warning"), "{}", no_hole.stderr);
}

#[test]
fn stop_of_a_server_that_does_not_archive_succeeds() {
    skip_unless!(Cluster::available(15));
    let site = Site::with_cluster(Cluster::builder().start());
    assert_eq!(site.cluster().psql("SHOW archive_command"), "(disabled)");
    for _ in 0..2 {
        site.master_command(&["stop"]).succeed();
    }
}

#[test]
fn stop_refuses_a_foreign_archive_command_and_setup_names_it() {
    skip_unless!(Cluster::available(15));
    let foreign = "cp %p /srv/%f";
    let cluster = Cluster::builder()
        .conf("archive_mode", "on")
        .conf("archive_command", foreign);
    let site = Site::with_cluster(cluster.start());
    let conf = site.cluster().config_file();
    let before = fs::read(&conf).unwrap();
    for words in [&["stop"][..], &["stop", "-n"]] {
        let refused = site.master_command(words);
        let line = refused.fail(2);
        assert!(
            line.contains(foreign) && line.contains("nothing was changed"),
            "{line}"
        );
    }
    assert_eq!(fs::read(&conf).unwrap(), before);
    assert_eq!(site.cluster().psql("SHOW archive_command"), foreign);
    let replaced = site.master_command(&["setup"]);
    replaced.succeed();
    let line = format!("the archive_command `{foreign}` is replaced");
    assert!(replaced.stderr.contains(&line), "{}", replaced.stderr);
    assert_arrives(&site);
    site.master_command(&["stop"]).succeed();
}

#[test]
fn stop_with_a_restart_command_turns_archiving_off() {
    skip_unless!(Cluster::available(15));
    let site = with_restart_command(Cluster::builder().start());
    site.master_command(&["setup"]).succeed();
    site.master_command(&["stop"]).succeed();
    assert_eq!(site.cluster().psql("SHOW archive_mode"), "off");
    site.master_command(&["stop"]).succeed();
    site.master_command(&["setup"]).succeed();
    assert_eq!(site.cluster().psql("SHOW archive_mode"), "on");
    assert_arrives(&site);
}

#[test]
fn a_restart_command_that_fails_is_named() {
    skip_unless!(Cluster::available(15));
    let mut site = Site::with_cluster(Cluster::builder().start());
    site.master_set("master_restart_cmd", "exit 7");
    let failed = site.master_command(&["setup"]);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    let line = failed.stderr.lines().last().unwrap();
    assert!(
        line.contains("master_restart_cmd `exit 7` failed"),
        "{line}"
    );
    assert!(
        line.contains("; postgresql.conf is already edited"),
        "{line}"
    );
}
