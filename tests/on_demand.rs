//! `xarchive` of a backlog where no syncdaemon runs: who looks ahead, for how long, and that nobody misses him.
//! Never trusts an exit code alone: each test also looks at what the archive holds. Invariant tested: code and sentence
//! are those of an `xarchive` that is alone.

use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::partial::daemon::Syncdaemon;
use crate::support::cluster::is_alive;
use crate::support::place::{as_server, give_to_server, server_user};
use crate::support::{Cluster, Output, Site, wait_for, walmgr_binary};

const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that nobody asks ends after five seconds.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// What an `xarchive` may have begun.
struct OnDemand<'a>(&'a Site);

impl OnDemand<'_> {
    fn pidfile(&self) -> PathBuf {
        beside(self.0, ".ahead")
    }

    fn socket(&self) -> PathBuf {
        beside(self.0, ".ahead.agent")
    }

    /// Its process.
    fn pid(&self) -> Pid {
        wait_for("the agent", PATIENCE, || self.found())
    }

    /// Its process if there is one; what a killed one left says nothing.
    fn found(&self) -> Option<Pid> {
        let mut pidfile = File::open(self.pidfile()).ok()?;
        if !matches!(pidfile.try_lock(), Err(TryLockError::WouldBlock)) {
            return None;
        }
        let mut text = String::new();
        pidfile.read_to_string(&mut text).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    fn wait_until_heard(&self) {
        wait_for("its socket", PATIENCE, || {
            let found = fs::symlink_metadata(self.socket()).ok()?;
            UnixStream::connect(self.socket()).ok()?;
            (found.mode() & 0o777 == 0o600).then_some(())
        });
    }

    /// Whether it works where a server does.
    fn is_in(&self, data: &Path) -> bool {
        let cwd = format!("/proc/{}/cwd", self.pid().as_raw_nonzero());
        fs::read_link(cwd).unwrap() == data
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid();
        kill_process(pid, signal).unwrap();
        let number = u32::try_from(pid.as_raw_nonzero().get()).unwrap();
        wait_for("its end", PATIENCE, || (!is_alive(number)).then_some(()));
    }

    fn has_ended(&self) {
        wait_for("its end", ENDS_WITHIN, || {
            (!self.pidfile().exists() && !self.socket().exists()).then_some(())
        });
    }

    /// What one left that was killed.
    #[track_caller]
    fn assert_left(&self) {
        assert!(self.pidfile().exists() && self.socket().exists());
    }

    /// Nobody has begun one, and nobody is about to.
    #[track_caller]
    fn assert_none(&self) {
        std::thread::sleep(Duration::from_millis(500));
        assert!(!self.pidfile().exists() && !self.socket().exists());
    }
}

fn beside(site: &Site, end: &str) -> PathBuf {
    let mut name = site.master_ini().with_extension("pid").into_os_string();
    name.push(end);
    name.into()
}

/// PostgreSQL has this segment ready.
fn make_ready(site: &Site, number: u64) {
    site.write_segment(number);
    site.make_ready(&site.segment_name(number));
}

/// The archiver has this one archived.
#[track_caller]
fn archive(site: &Site, number: u64) {
    let name = site.segment_name(number);
    site.archive(&name).succeed();
    assert_eq!(site.archived(&name), site.segment(number, "walmgr"));
    let mark = |end: &str| {
        site.data()
            .join("pg_wal/archive_status")
            .join(format!("{name}.{end}"))
    };
    if mark("ready").exists() {
        fs::rename(mark("ready"), mark("done")).unwrap();
    }
}

#[test]
fn fault_305_a_backlog_is_shipped_ahead_where_no_syncdaemon_runs() {
    let _user = skip_unless!(server_user());
    let mut site = Site::builder().master_set("archive_batch", "3").build();
    for number in 2..9 {
        make_ready(&site, number);
    }
    archive(&site, 2);
    OnDemand(&site).wait_until_heard();
    assert!(!OnDemand(&site).is_in(&site.data().canonicalize().unwrap()));
    for number in 3..6 {
        let name = site.segment_name(number);
        wait_for(&name, PATIENCE, || {
            // As long as somebody asks the agent stays.
            archive(&site, 2);
            site.holds(&name).then_some(())
        });
    }
    // The proof comes a moment after the file.
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        !site.holds(&site.segment_name(6)),
        "no more than archive_batch"
    );
    // With a proof in hand nobody needs the receiver.
    site.receiver.stop();
    for number in 3..6 {
        // A busy one may not answer at once, and then it is as if it were not there.
        wait_for("its proof", PATIENCE, || {
            let archived = site.archive(&site.segment_name(number));
            (archived.code == Some(0)).then_some(())
        });
    }
    // A failure has the words of one alone.
    let through = site.archive(&site.segment_name(6)).fail(1).to_owned();
    OnDemand(&site).signal(Signal::KILL);
    assert_eq!(through, site.archive(&site.segment_name(6)).fail(1));
    OnDemand(&site).assert_left();
    site.start_receiver();
    for number in 3..9 {
        archive(&site, number);
    }
    OnDemand(&site).has_ended();
}

#[test]
fn fault_306_no_agent_begins_without_a_backlog_or_against_the_settings() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    for number in 2..4 {
        make_ready(&site, number);
    }
    // One that waits behind is what any server has now and then.
    archive(&site, 2);
    OnDemand(&site).assert_none();
    for number in 4..7 {
        make_ready(&site, number);
    }
    site.master_set("archive_batch", "0");
    archive(&site, 3);
    OnDemand(&site).assert_none();
    site.master_unset("archive_batch");
    // Where nothing can be stored nobody looks ahead.
    site.receiver.stop();
    site.archive(&site.segment_name(4)).fail(1);
    OnDemand(&site).assert_none();
    site.start_receiver();
    archive(&site, 4);
    OnDemand(&site).wait_until_heard();
    for number in 5..7 {
        archive(&site, number);
    }
    OnDemand(&site).has_ended();
}

#[test]
fn fault_307_an_agent_on_demand_that_is_killed_costs_no_file() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().proxied().build();
    for number in 2..30 {
        make_ready(&site, number);
    }
    let on_demand = OnDemand(&site);
    for number in 2..26 {
        if number % 4 > 0 {
            archive(&site, number);
            continue;
        }
        // While it pushes a file that somebody waits for, or one that nobody does.
        on_demand.wait_until_heard();
        site.proxy().set_latency(Duration::from_millis(30));
        let name = site.segment_name(number);
        let path = site.data().join("pg_wal").join(&name);
        let asker = (site.xarchive_walmgr(&path, &name))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(10 * number));
        on_demand.signal(Signal::KILL);
        Output::from(asker.wait_with_output().unwrap()).succeed();
        site.proxy().set_latency(Duration::ZERO);
        archive(&site, number);
    }
    on_demand.has_ended();
}

#[test]
fn fault_307_an_agent_on_demand_that_is_told_to_end_leaves_nothing() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    for number in 2..12 {
        make_ready(&site, number);
    }
    for (number, signal) in [(2, Signal::TERM), (3, Signal::INT)] {
        archive(&site, number);
        OnDemand(&site).wait_until_heard();
        OnDemand(&site).signal(signal);
        OnDemand(&site).assert_none();
    }
    // What nobody waits for ends with 0, whatever is wrong: a server may be its parent.
    for line in [
        "missing.ini xarchive --look-ahead pg_wal/x 000000010000000000000002",
        "missing.ini xrestore --lay-behind 000000010000000000000002 pg_wal/RECOVERYXLOG",
        "missing.ini xarchive --look-ahead",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let ended = Command::new(walmgr_binary()).args(words).output().unwrap();
        assert_eq!(Output::from(ended).code, Some(0), "{line}");
    }
}

#[test]
fn fault_308_an_agent_on_demand_makes_way_for_a_syncdaemon() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    for number in 2..9 {
        make_ready(&site, number);
    }
    archive(&site, 2);
    let on_demand = OnDemand(&site);
    on_demand.wait_until_heard();
    let mut command = site.master_walmgr(&["-v", "-v", "syncdaemon"]);
    let mut daemon = Syncdaemon::start_as(&site, &mut command);
    daemon.wait_for_log("ships to");
    on_demand.has_ended();
    archive(&site, 3);
    // It looks ahead only for an archiver that asks it.
    daemon.wait_for_log("asked for or not");
    for number in 4..6 {
        archive(&site, number);
    }
    on_demand.assert_none();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), Some(0));
    // Without it one begins again.
    archive(&site, 6);
    on_demand.wait_until_heard();
    archive(&site, 7);
    on_demand.has_ended();
}

#[test]
fn fault_309_settings_that_an_agent_on_demand_has_not_read_are_obeyed() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    for number in 2..12 {
        make_ready(&site, number);
    }
    archive(&site, 2);
    OnDemand(&site).wait_until_heard();
    let before = OnDemand(&site).pid();
    site.master_set("push_timeout", "59s");
    let mut number = 3;
    // Whom nobody can ask is idle: he ends, and the next one has the settings of now.
    wait_for("the next one", ENDS_WITHIN, || {
        archive(&site, number);
        number = (number + 1).min(8);
        OnDemand(&site).found().filter(|found| *found != before)
    });
    archive(&site, 9);
    OnDemand(&site).has_ended();
}

#[test]
fn fault_310_a_foreign_file_in_its_place_is_left_alone() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    for number in 2..6 {
        make_ready(&site, number);
    }
    let socket = OnDemand(&site).socket();
    fs::write(&socket, b"mine").unwrap();
    give_to_server(&socket);
    for number in 2..4 {
        archive(&site, number);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(fs::read(&socket).unwrap(), b"mine");
    fs::remove_file(&socket).unwrap();
    archive(&site, 3);
    OnDemand(&site).wait_until_heard();
}

/// Archives this one as `archive_command = 'flock LOCK walmgr ...'` does.
#[track_caller]
fn archive_below_lock(site: &Site, number: u64) {
    let name = site.segment_name(number);
    let path = site.data().join("pg_wal").join(&name);
    let alone = site.xarchive_walmgr(&path, &name);
    let lock = site.home().write("lock", b"");
    let mut locked = Command::new("flock");
    locked
        .arg(&lock)
        .arg(alone.get_program())
        .args(alone.get_args());
    for (variable, value) in alone.get_envs() {
        locked.env(variable, value.unwrap_or_default());
    }
    give_to_server(&lock);
    Output::from(as_server(&mut locked).output().unwrap()).succeed();
}

/// Nobody holds the lock that a file was archived below.
#[track_caller]
fn assert_lock_is_free(site: &Site) {
    let free = File::open(site.home().join("lock")).unwrap();
    assert!(free.try_lock().is_ok(), "its lock is held on");
}

#[test]
fn fault_312_what_an_xarchive_was_given_open_ends_with_it() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    for number in 2..6 {
        make_ready(&site, number);
    }
    archive_below_lock(&site, 2);
    OnDemand(&site).wait_until_heard();
    assert_lock_is_free(&site);
    OnDemand(&site).has_ended();
}

#[test]
fn fault_312_a_periodic_command_holds_nothing_of_its_xarchive() {
    let _user = skip_unless!(server_user());
    let mut site = Site::start();
    let (begun, go) = (site.home().join("begun"), site.home().join("go"));
    let command = format!(
        // It ends with the place of a test that failed, too.
        "touch {0}; while test -e {0} -a ! -e {1}; do sleep 0.05; done; rm -f {0}",
        begun.display(),
        go.display()
    );
    site.master_set("periodic_command", &command);
    site.write_segment(2);
    archive_below_lock(&site, 2);
    wait_for("periodic_command", PATIENCE, || {
        begun.exists().then_some(())
    });
    assert_lock_is_free(&site);
    fs::write(&go, b"").unwrap();
    wait_for("its end", PATIENCE, || (!begun.exists()).then_some(()));
}

#[test]
fn fault_311_the_archiver_of_a_server_loses_no_segment_of_a_backlog() {
    skip_unless!(Cluster::available(15));
    let cluster = Cluster::builder().conf("archive_mode", "on").start();
    let mut site = Site::with_cluster(cluster);
    site.master_command(&["setup", "--no-check"]).succeed();
    site.receiver.stop();
    let cluster = site.cluster();
    cluster.psql("CREATE TABLE t (n int)");
    let mut names = Vec::new();
    for _ in 0..30 {
        cluster.psql("INSERT INTO t SELECT generate_series(1, 2000)");
        names.push(cluster.psql("SELECT pg_walfile_name(pg_switch_wal())"));
    }
    site.start_receiver();
    let last = names.last().unwrap();
    let mut was_there = false;
    // After three failures it rests for a minute.
    let archived = || {
        was_there |= OnDemand(&site).found().is_some();
        let cluster = site.cluster();
        cluster.psql("SELECT pg_switch_wal()");
        let done = cluster.psql("SELECT last_archived_wal FROM pg_stat_archiver");
        (done.as_str() >= last.as_str()).then_some(())
    };
    wait_for("the backlog", 3 * PATIENCE, archived);
    assert!(was_there, "nobody looked ahead");
    for name in &names {
        let own = site.data().join("pg_wal").join(name);
        if let Ok(own) = fs::read(own) {
            assert_eq!(site.archived(name), own, "{name}");
        }
        assert!(site.holds(name), "{name}");
    }
    OnDemand(&site).has_ended();
}
