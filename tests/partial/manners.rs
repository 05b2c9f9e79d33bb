//! `syncdaemon` and `receiver` as daemons: pidfiles, signals, the service manager, quiet logs.
//! Never needs a server: a data directory that looks like a master's will do.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::daemon::Syncdaemon;
use crate::support::place::{give_to_server, server_user};
use crate::support::{Site, cluster, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);

/// A process that has nothing to do with walmgr.
struct Bystander(Child);

impl Bystander {
    fn start() -> Bystander {
        Bystander(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn quick_site() -> Site {
    let mut site = Site::start();
    site.master_set("loop_delay", "0.02");
    site
}

#[test]
fn fault_20_85_no_daemon_is_found_or_stolen_by_a_number_in_its_pidfile() {
    let _user = skip_unless!(server_user());
    let mut site = quick_site();
    site.receiver.stop();
    let mut bystander = Bystander::start();
    let run = |site: &Site, word: &str, options: &[&str]| match word {
        "receiver" => site.standby_command(&[&[word], options].concat()),
        _ => site.master_command(&[&[word], options].concat()),
    };
    for word in ["receiver", "syncdaemon"] {
        let ini = match word {
            "receiver" => site.standby_ini(),
            _ => site.master_ini(),
        };
        let pidfile = ini.with_extension("pid");
        // What a crash leaves, once the number belongs to somebody else.
        std::fs::write(&pidfile, format!("{}\n", bystander.0.id())).unwrap();
        give_to_server(&pidfile);
        for control in ["-k", "-s", "-r"] {
            run(&site, word, &[control]).fail_last(1, "not running");
        }
        run(&site, word, &["-d"]).succeed();
        let text = std::fs::read_to_string(&pidfile).unwrap();
        let daemon: u32 = text.trim().parse().unwrap();
        assert_ne!(daemon, bystander.0.id());
        run(&site, word, &[]).fail_last(2, &format!("already running as process {daemon}"));
        run(&site, word, &["-d"]).fail_last(2, "already running");
        // The number is for people: another one in the file signals nobody.
        std::fs::write(&pidfile, format!("{}\n", bystander.0.id())).unwrap();
        run(&site, word, &["-k"]).fail_last(1, "not by the process it names");
        assert!(cluster::is_alive(daemon) && bystander.lives());
        std::fs::write(&pidfile, text).unwrap();
        run(&site, word, &["-r"]).succeed();
        run(&site, word, &["-k"]).succeed();
        assert!(!cluster::is_alive(daemon) && !pidfile.exists());
        assert!(bystander.lives());
    }
}

#[test]
fn the_service_manager_hears_from_a_syncdaemon_all_the_time() {
    let _user = skip_unless!(server_user());
    let mut site = quick_site();
    let path = site.home().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    give_to_server(&path);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = site.master_walmgr(&["syncdaemon"]);
    command.env("NOTIFY_SOCKET", &path);
    command.env("WATCHDOG_USEC", "4000000");
    let mut daemon = Syncdaemon::start_as(&site, &mut command);
    let next = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        text.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(next(), "READY=1");
    daemon.wait_for_log("is shipped to");
    // A receiver that is gone is no reason to start the daemon anew.
    site.receiver.stop();
    let mut pauses: Vec<Duration> = (0..5)
        .map(|_| {
            let said = Instant::now();
            assert_eq!(next(), "WATCHDOG=1");
            said.elapsed()
        })
        .collect();
    // A busy machine makes some of them late, and not most.
    pauses.sort();
    assert!(pauses[2] < Duration::from_secs(4), "{pauses:?}");
    daemon.signal(Signal::HUP);
    let mut said = Vec::new();
    while said.last().is_none_or(|last| last != "READY=1") {
        said.push(next());
    }
    said.retain(|word| word != "WATCHDOG=1");
    assert_eq!(said, ["RELOADING=1", "READY=1"]);
    daemon.signal(Signal::TERM);
    while next() != "STOPPING=1" {}
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn a_change_of_state_is_one_line_and_a_pass_is_none() {
    let _user = skip_unless!(server_user());
    let mut site = quick_site();
    let daemon = Syncdaemon::start(&site);
    daemon.wait_for_log("is shipped to");
    site.receiver.stop();
    daemon.wait_for_log("Connection refused");
    // Some hundred passes, had it no pause between two failures.
    std::thread::sleep(Duration::from_secs(2));
    site.start_receiver();
    wait_for("shipping to go on", PATIENCE, || {
        (daemon.log().matches("is shipped to").count() == 2).then_some(())
    });
    let log = daemon.log();
    assert_eq!(log.matches("Connection refused").count(), 1, "{log}");
    // It stops, may reset what comes to its port at that moment, and then refuses: no state comes twice.
    let warnings: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("warning: "))
        .collect();
    let states: BTreeSet<&str> = warnings.iter().copied().collect();
    assert_eq!(warnings.len(), states.len(), "{log}");
    // And one of the start, one before, one after.
    assert_eq!(log.lines().count(), warnings.len() + 3, "{log}");
}
