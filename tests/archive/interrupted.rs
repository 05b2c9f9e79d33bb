//! Clients that are signalled, starved or left without an answer in the middle of a push.
//! Never leaves a client behind. Invariant: an interrupted push has stored nothing, and the next
//! one succeeds.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::place::server_user;
use crate::support::proxy::{Direction, Fault};
use crate::support::{Output, Site, wait_for, walmgr_binary};

const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the client that it holds, should the test end before the client does.
struct Client(Option<Child>);

impl Client {
    fn start(mut command: Command) -> Client {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Client(Some(command.spawn().unwrap()))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.0.as_ref().unwrap()), signal).unwrap();
    }

    fn wait(mut self) -> std::process::Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn fault_4_client_signalled_mid_push_leaves_nothing_and_a_retry_succeeds() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().proxied().build();
    let name = site.segment_name(9);
    let path = site.write_segment(9);
    let middle = Fault::Blackhole { at_byte: 300_000 };
    let signals = [
        (Signal::TERM, "SIGTERM"),
        (Signal::INT, "SIGINT"),
        (Signal::HUP, "SIGHUP"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::KILL, "SIGKILL"),
    ];
    for (signal, word) in signals {
        site.proxy()
            .set_faults([(Direction::ToServer, middle.clone())]);
        let client = Client::start(site.xarchive_walmgr(&path, &name));
        wait_for("the upload", PATIENCE, || {
            (site.temporaries().len() == 1).then_some(())
        });
        client.signal(signal);
        let ended = client.wait();
        if signal == Signal::KILL {
            assert_eq!(ended.status.signal(), Some(9));
        } else {
            let ended = Output::from(ended);
            let line = ended.fail(1);
            assert!(line.contains(word), "{line}");
        }
        site.proxy().cut_all();
        wait_for("the temporary's end", PATIENCE, || {
            site.temporaries().is_empty().then_some(())
        });
        assert_eq!(site.archived_names(), Vec::<String>::new(), "{word}");
    }
    site.proxy().set_faults([]);
    site.archive(&name).succeed();
    assert_eq!(site.archived(&name), std::fs::read(&path).unwrap());
}

/// From where nothing can be loaded to where the program has all it needs. What it leaves behind
/// in each case is checked by the last run: it must find nothing stored, or the right file.
#[test]
fn fault_5_a_push_that_runs_out_of_memory_ends_with_1() {
    let _user = skip_unless!(server_user());
    let site = Site::start();
    let name = site.segment_name(2);
    let path = site.write_segment(2);
    let (mut exhausted, mut enough) = (0, 0);
    let mut limits_kib = (8_000..2_000_000).step_by(100);
    while enough < 3 {
        let limit_kib = limits_kib.next().expect("a push needs less than 2 GB");
        let mut shell = site.xarchive_walmgr(&path, &name);
        let script = format!("ulimit -v {limit_kib} && exec \"$0\" \"$@\"");
        let words: Vec<_> = shell.get_args().map(ToOwned::to_owned).collect();
        let mut limited = Command::new("bash");
        crate::support::place::as_server(&mut limited);
        limited
            .args(["-c", &script])
            .arg(walmgr_binary())
            .args(words)
            .env_clear()
            .current_dir(shell.current_dir(site.data()).get_current_dir().unwrap());
        let ended = limited.output().unwrap();
        let signal = ended.status.signal();
        let ended = Output::from(ended);
        if ended.code == Some(0) {
            enough += 1;
            continue;
        }
        enough = 0;
        // Before that bash, the kernel, the loader or Rust's runtime gave up, none of which is ours.
        let began = |line: &str| line.starts_with("walmgr: ") || line.starts_with("Fatal glibc");
        let runtime = ["thread 'main'", "failed to allocate an alternative stack"];
        let before_main = runtime.iter().all(|words| ended.stderr.contains(words));
        if before_main || exhausted == 0 && !ended.stderr.lines().any(began) {
            continue;
        }
        exhausted += 1;
        assert_eq!(signal, None, "{limit_kib} KiB: {ended:?}");
        assert_eq!(ended.code, Some(1), "{limit_kib} KiB: {ended:?}");
        // The C library may say first what it found no memory for.
        let ours = ended
            .stderr
            .lines()
            .filter(|line| line.starts_with("walmgr: "));
        assert!(ours.count() <= 1, "{limit_kib} KiB: {ended:?}");
    }
    assert!(exhausted > 0, "no limit exhausted the program");
    assert_eq!(site.archived(&name), std::fs::read(&path).unwrap());
}

#[test]
fn fault_6_silent_receiver_costs_no_more_than_the_push_timeout() {
    let _user = skip_unless!(server_user());
    let mut site = Site::builder()
        .proxied()
        .master_set("push_timeout", "1s")
        .build();
    site.write_segment(1);
    let name = site.segment_name(1);
    let silences = [
        (Direction::ToClient, 0),
        (Direction::ToServer, 0),
        (Direction::ToClient, 700),
        (Direction::ToServer, 300_000),
    ];
    for connect_timeout in ["500ms", "300s"] {
        site.master_set("connect_timeout", connect_timeout);
        for (direction, at_byte) in silences {
            site.proxy()
                .set_faults([(direction, Fault::Blackhole { at_byte })]);
            let begun = Instant::now();
            let ended = site.archive(&name);
            let took = begun.elapsed();
            let line = ended.fail(1);
            assert!(
                line.contains("push_timeout") || line.contains("within 500ms"),
                "{line}"
            );
            assert!(line.contains("; "), "no hint: {line}");
            assert!(took < Duration::from_secs(60), "{took:?}: {line}");
            site.proxy().cut_all();
        }
    }
    assert_eq!(site.archived_names(), Vec::<String>::new());
    site.proxy().set_faults([]);
    site.archive(&name).succeed();
}
