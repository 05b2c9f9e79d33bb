//! Processes that panic, are signalled, or go into the background, played by this binary itself.
//! Never signals a process it did not start. Invariant: a scene ends by itself within its timeout.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walmgr::cli::Options;
use walmgr::error::ExitTable;
use walmgr::test_support::daemon::{self, ForkSide, Notice, Notices, PidFile, Readiness};
use walmgr::{abnormal, output};

use crate::support::outcome::Output as Ended;
use crate::support::place::{as_server, server_user, walmgr_binary};
use crate::support::{Site, TempDir, wait_for};

const SCENE: &str = "WALMGR_TEST_SCENE";
const SCENE_FOLDER: &str = "WALMGR_TEST_FOLDER";
const SCENE_TIMEOUT: Duration = Duration::from_secs(60);

/// This binary again, playing `scene`.
fn player(scene: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "daemon::play_the_scene_named_by_the_environment"])
        .args(["--nocapture", "--test-threads=1"])
        .env(SCENE, scene)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn play(scene: &str) -> Output {
    player(scene).output().unwrap()
}

#[test]
fn play_the_scene_named_by_the_environment() {
    let Ok(scene) = std::env::var(SCENE) else {
        return;
    };
    std::thread::spawn(|| {
        std::thread::sleep(SCENE_TIMEOUT);
        output::last_words("the scene took too long");
        std::process::exit(99);
    });
    std::process::exit(match scene.as_str() {
        "panic in xarchive" => panic_in(ExitTable::Xarchive),
        "panic in a daemon" => panic_in(ExitTable::Ordinary),
        "panic while unwinding" => panic_while_unwinding(),
        "panic in a thread" => panic_in_a_thread(),
        "blocked at the start" => blocked(false),
        "blocked" => blocked(true),
        "notices" => notices(),
        "notify" => notify(),
        "background" => background(),
        other => panic!("no scene `{other}`"),
    });
}

fn panic_in(table: ExitTable) -> i32 {
    abnormal::prepare(table);
    i32::from(abnormal::contain(table, || panic!("a bug\nin two lines")))
}

fn panic_while_unwinding() -> i32 {
    struct PanicsInDrop;
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("second");
        }
    }
    abnormal::prepare(ExitTable::Xarchive);
    let _guard = PanicsInDrop;
    panic!("first");
}

fn panic_in_a_thread() -> i32 {
    abnormal::prepare(ExitTable::Xarchive);
    let _ = std::thread::spawn(|| panic!("elsewhere")).join();
    0
}

/// Names the logfile of a scene.
const LOGFILE: &str = "WALMGR_SCENE_LOGFILE";

/// `is_logging`: whether it has come to where what it says of signals is in the log.
fn blocked(is_logging: bool) -> i32 {
    abnormal::prepare(ExitTable::Xarchive);
    abnormal::exit_on_signals();
    let logfile = std::env::var_os(LOGFILE).map(PathBuf::from);
    let log = output::Log {
        logfile: logfile.as_deref(),
        format: output::Format::Text,
        speaker: output::Speaker::Archiver,
    };
    output::start(&Options::default(), log).unwrap();
    if is_logging {
        abnormal::log_signals(ExitTable::Xarchive).unwrap();
    }
    println!("\nup");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // A driver that is blocked in a system call never gets to look at signals.
    runtime.block_on(async { std::thread::sleep(SCENE_TIMEOUT * 2) });
    0
}

fn notices() -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut notices = Notices::listen().unwrap();
        println!("\nup");
        loop {
            let notice = notices.next().await;
            println!("{notice:?}");
            if notice == Notice::Drain {
                break 0;
            }
        }
    })
}

fn notify() -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    Readiness::in_foreground()
        .ready(&Notices::listen().unwrap())
        .unwrap();
    daemon::tell_reloading();
    daemon::tell_ready();
    daemon::tell_alive();
    daemon::tell_stopping();
    assert_eq!(daemon::watchdog_interval(), Some(Duration::from_secs(1)));
    0
}

/// A daemon with a pidfile that serves until a signal, started through `into_background`.
fn background() -> i32 {
    let run = || -> walmgr::error::Result<()> {
        let ForkSide::Daemon(readiness) = daemon::into_background()? else {
            return Ok(());
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut notices = Notices::listen()?;
            let folder = std::env::var(SCENE_FOLDER).unwrap();
            let _pidfile = PidFile::acquire(&Path::new(&folder).join("walmgr.pid"))?;
            // The test harness has left a line unfinished.
            println!();
            output::last_words("warning: about to serve");
            readiness.ready(&notices)?;
            output::last_words("nobody sees this");
            while notices.next().await != Notice::Drain {}
            Ok(())
        })
    };
    match run() {
        Ok(()) => 0,
        Err(error) => {
            output::failure(&error);
            i32::from(ExitTable::Ordinary.code(error.kind()))
        }
    }
}

fn lines_of_walmgr(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines()
        .filter(|line| line.starts_with("walmgr: "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn fault_5_a_panic_is_one_line_and_code_1() {
    for scene in [
        "panic in xarchive",
        "panic in a daemon",
        "panic in a thread",
    ] {
        let output = play(scene);
        assert_eq!(output.status.code(), Some(1), "{scene}: {output:?}");
        let lines = lines_of_walmgr(&output);
        assert_eq!(lines.len(), 1, "{scene}: {output:?}");
        assert!(
            lines[0].starts_with("walmgr: internal error: "),
            "{}",
            lines[0]
        );
        assert!(lines[0].contains("daemon.rs:"), "{}", lines[0]);
        assert!(lines[0].ends_with("; please report it"), "{}", lines[0]);
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
}

#[test]
fn fault_5_a_panic_during_a_panic_does_not_abort_xarchive() {
    let output = play("panic while unwinding");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(lines_of_walmgr(&output)[0].contains("first"));
}

/// Starts a scene and waits until it says that it is up.
fn started(scene: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    started_with(scene, Path::new(""))
}

/// The same with a logfile.
fn started_with(scene: &str, logfile: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut player = player(scene);
    if logfile != Path::new("") {
        player.env(LOGFILE, logfile);
    }
    let mut child = player.spawn().unwrap();
    let mut words = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim_end() != "up" {
        line.clear();
        assert!(
            words.read_line(&mut line).unwrap() > 0,
            "`{scene}` ended early"
        );
    }
    (child, words)
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn fault_4_a_signal_ends_xarchive_with_1_while_everything_blocks() {
    let signals = [
        (Signal::TERM, "SIGTERM"),
        (Signal::INT, "SIGINT"),
        (Signal::HUP, "SIGHUP"),
        (Signal::QUIT, "SIGQUIT"),
    ];
    let scenes = ["blocked at the start", "blocked"];
    for ((signal, name), scene) in signals
        .into_iter()
        .flat_map(|signal| scenes.map(|scene| (signal, scene)))
    {
        let folder = TempDir::new();
        let logfile = folder.join("log");
        let (child, _words) = started_with(scene, &logfile);
        let begun = Instant::now();
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        assert!(begun.elapsed() < SCENE_TIMEOUT, "{name}");
        assert_eq!(
            lines_of_walmgr(&output),
            [format!(
                "walmgr: stopped by {name} before the work was done"
            )]
        );
        let logged = std::fs::read_to_string(&logfile).unwrap_or_default();
        let is_logged = logged.contains(&format!("ERROR stopped by {name}"));
        assert_eq!(is_logged, scene == "blocked", "{scene}: {logged}");
    }
}

#[test]
fn a_daemon_reloads_on_hangup_and_drains_on_terminate_and_interrupt() {
    for last in [Signal::TERM, Signal::INT] {
        let (mut child, mut words) = started("notices");
        let mut line = String::new();
        send(&child, Signal::HUP);
        words.read_line(&mut line).unwrap();
        assert_eq!(line, "Reload\n");
        line.clear();
        send(&child, last);
        words.read_line(&mut line).unwrap();
        assert_eq!(line, "Drain\n");
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn the_service_manager_hears_every_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SCENE_TIMEOUT)).unwrap();
    let output = player("notify")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "2000000")
        .env_remove("WATCHDOG_PID")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    for expected in [
        "READY=1",
        "RELOADING=1",
        "READY=1",
        "WATCHDOG=1",
        "STOPPING=1",
    ] {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        let text = String::from_utf8_lossy(&message[..length]);
        assert_eq!(text.lines().next(), Some(expected));
        assert_eq!(text.contains("MONOTONIC_USEC="), expected == "RELOADING=1");
    }
}

#[test]
fn a_background_daemon_outlives_its_starter_and_stops_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let pidfile = folder.path().join("walmgr.pid");
    let begun = Instant::now();
    let output = player("background")
        .env(SCENE_FOLDER, folder.path())
        .output()
        .unwrap();
    // The end of both pipes proves that the daemon let go of them.
    assert!(output.status.success(), "{output:?}");
    assert!(begun.elapsed() < SCENE_TIMEOUT);
    assert_eq!(
        lines_of_walmgr(&output),
        ["walmgr: warning: about to serve"]
    );

    let daemon: i32 = std::fs::read_to_string(&pidfile)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let session = rustix::process::getsid(Pid::from_raw(daemon)).unwrap();
    assert_eq!(
        session.as_raw_nonzero().get(),
        daemon,
        "it leads a session of its own"
    );
    assert!(daemon::signal_running(&pidfile, daemon::DaemonControl::Reload, SCENE_TIMEOUT).is_ok());
    let ended =
        daemon::signal_running(&pidfile, daemon::DaemonControl::Stop, SCENE_TIMEOUT).unwrap();
    assert_eq!(ended, daemon);
    assert!(!pidfile.exists());
}

#[test]
fn fault_85_failed_start_reaches_the_starter_with_reason_and_code() {
    let folder = tempfile::tempdir().unwrap();
    let pidfile = folder.path().join("walmgr.pid");
    let held = PidFile::acquire(&pidfile).unwrap();
    let output = player("background")
        .env(SCENE_FOLDER, folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let lines = lines_of_walmgr(&output);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("already running as process"), "{lines:?}");
    let mut text = String::new();
    std::fs::File::open(&pidfile)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text.trim(), std::process::id().to_string());
    drop(held);
}

/// A receiver in the background; ended when the test is over, however it went.
struct InBackground<'a>(&'a Site);

impl Drop for InBackground<'_> {
    fn drop(&mut self) {
        self.0.standby_command(&["receiver", "-k"]);
    }
}

#[test]
fn background_receiver_without_logfile_logs_beside_the_ini_file() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().stopped().build();
    let receiver = InBackground(&site);
    let started = site.standby_command(&["receiver", "-d"]);
    started.succeed();
    let path = site.standby_ini().with_extension("log");
    let place = format!("the log goes to {}", path.display());
    assert!(started.stderr.contains(&place), "{}", started.stderr);
    let log = || std::fs::read_to_string(&path).unwrap();
    assert!(log().contains("listens on"), "{}", log());
    let words = ["authorize", &site.master_fingerprint(), "master"];
    site.standby_command(&[&words[..], &["--rights", "read"]].concat())
        .succeed();
    wait_for("the reload in the log", SCENE_TIMEOUT, || {
        log().contains("settings and keys reloaded").then_some(())
    });
    drop(receiver);
    assert!(log().contains("receiver stopped"), "{}", log());
}

#[test]
fn fault_36_pidfile_over_size_limit_exits_1() {
    let _user = skip_unless!(server_user());
    let site = Site::builder().stopped().build();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 0 && exec \"$0\" \"$@\" receiver"]);
    limited.arg(walmgr_binary()).arg(site.standby_ini());
    let ended = Ended::of(as_server(&mut limited));
    let line = ended.fail(1);
    assert!(line.contains("write pidfile"), "{line}");
    assert!(line.contains("; free some space there"), "{line}");
}

#[test]
fn fault_85_with_a_json_log_the_reason_of_a_failed_start_is_json_too() {
    let mut site = Site::start();
    site.standby_set("log_format", "json");
    let message = |words: &[&str]| {
        let output = site.standby_command(words);
        assert_eq!(output.code, Some(2), "{}", output.stderr);
        let messages = output.stderr.lines().map(|line| {
            let json: serde_json::Value = serde_json::from_str(line).expect(line);
            json["message"].as_str().expect(line).to_owned()
        });
        let messages: Vec<String> = messages.collect();
        messages.last().expect("a reason").clone()
    };
    for words in [&["receiver"][..], &["receiver", "-d"]] {
        let said = message(words);
        assert!(said.contains("already running as process"), "{said}");
        assert!(!said.contains('{'), "{said}");
    }
    let nowhere = "logfile=/nonexistent/walmgr.log";
    let said = message(&["receiver", "--set", nowhere]);
    assert!(said.contains("open logfile"), "{said}");
}
