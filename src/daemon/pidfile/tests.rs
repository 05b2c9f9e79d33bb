//! Pidfiles under two daemons, after crashes, and planted by someone else.

use super::*;
use std::process::{Child, Command, Stdio};

/// A process that holds the lock of `path` with `text` in it; flock(1) locks as walmgr does.
struct Holder(Child);

impl Holder {
    fn start(path: &Path, script: &str) -> Self {
        // A shell cannot trap what was ignored when it began, as SIGINT is for tests that were
        // started in the background.
        let child = Command::new("env")
            .args(["--default-signal", "flock", "--no-fork"])
            .arg(path)
            .args(["bash", "-c", script, "holder"])
            .arg(path)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while holder(path)
            .unwrap()
            .is_none_or(|text| text.trim().is_empty())
        {
            assert!(Instant::now() < deadline, "the holder does not come up");
            sleep(POLL_INTERVAL);
        }
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes its id and waits for a signal, as a daemon would.
const DAEMON: &str = "trap 'exit 0' INT TERM; trap 'touch \"$1\".hup' HUP; echo $$ > \"$1\"; \
                      while :; do sleep 0.02; done";

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walmgr.pid");
    (folder, path)
}

#[test]
fn fault_85_a_second_daemon_is_refused_and_the_first_unharmed() {
    let (_folder, path) = folder();
    let first = PidFile::acquire(&path).unwrap();
    let error = PidFile::acquire(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyRunning);
    let id = std::process::id().to_string();
    assert!(error.to_string().contains(&id), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), id);
    drop(first);
    assert!(!path.exists());
    PidFile::acquire(&path).unwrap();
}

#[test]
fn fault_20_a_file_left_by_a_crash_is_taken_over_whatever_it_says() {
    for text in ["1\n", "999999999999999999999\n", "-7\n", "not a number", ""] {
        let (_folder, path) = folder();
        std::fs::write(&path, text).unwrap();
        let _held = PidFile::acquire(&path).unwrap();
        let expected = format!("{}\n", std::process::id());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
}

#[test]
fn fault_20_a_process_named_by_a_stale_file_is_not_signalled() {
    let (_folder, path) = folder();
    let mut bystander = Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(&path, format!("{}\n", bystander.id())).unwrap();
    let error = signal_running(&path, DaemonControl::Kill, END_QUICKLY).unwrap_err();
    assert!(error.to_string().starts_with("not running"), "{error}");
    assert_eq!(error.kind(), Kind::Retry);
    // Held, but by another process than the one it names.
    let script = format!("echo {} > \"$1\"; sleep 60", bystander.id());
    let _holder = Holder::start(&path, &script);
    let error = signal_running(&path, DaemonControl::Kill, END_QUICKLY).unwrap_err();
    assert!(
        error.to_string().contains("not by the process it names"),
        "{error}"
    );
    assert!(
        bystander.try_wait().unwrap().is_none(),
        "the bystander was hit"
    );
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

const END_QUICKLY: Duration = Duration::from_secs(10);

#[test]
fn stop_and_kill_wait_for_the_end() {
    for control in [DaemonControl::Stop, DaemonControl::Kill] {
        let (_folder, path) = folder();
        let mut holder = Holder::start(&path, DAEMON);
        signal_running(&path, control, END_QUICKLY).unwrap();
        assert!(holder.0.wait().unwrap().success());
        assert!(
            signal_running(&path, control, END_QUICKLY).is_err(),
            "nobody is left"
        );
    }
}

#[test]
fn reload_reaches_the_daemon_and_leaves_it_running() {
    let (_folder, path) = folder();
    let mut holder = Holder::start(&path, DAEMON);
    signal_running(&path, DaemonControl::Reload, END_QUICKLY).unwrap();
    let mark = path.with_extension("pid.hup");
    let deadline = Instant::now() + END_QUICKLY;
    while !mark.exists() {
        assert!(Instant::now() < deadline, "SIGHUP did not arrive");
        sleep(POLL_INTERVAL);
    }
    assert!(holder.0.try_wait().unwrap().is_none());
}

#[test]
fn a_daemon_that_does_not_end_is_reported_not_forgotten() {
    let (_folder, path) = folder();
    let script = "trap '' INT; echo $$ > \"$1\"; while :; do sleep 0.02; done";
    let _holder = Holder::start(&path, script);
    let error = signal_running(&path, DaemonControl::Stop, Duration::from_millis(100)).unwrap_err();
    assert!(error.to_string().contains("still running"), "{error}");
    signal_running(&path, DaemonControl::Kill, END_QUICKLY).unwrap();
}

#[test]
fn fault_95_a_symlinked_pidfile_is_refused_and_its_target_kept() {
    let (folder, path) = folder();
    let victim = folder.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    let error = PidFile::acquire(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("is a symlink"), "{error}");
    assert!(signal_running(&path, DaemonControl::Reload, END_QUICKLY).is_err());
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert!(PidFile::acquire(folder.path()).is_err());
}

#[test]
fn a_removed_file_does_not_let_two_daemons_believe_in_the_same_name() {
    let (_folder, path) = folder();
    let first = PidFile::acquire(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = PidFile::acquire(&path).unwrap();
    drop(first);
    assert!(path.exists(), "the first removed the second's file");
    drop(second);
}

#[test]
fn a_start_outlives_a_glance_at_the_lock() {
    let (_folder, path) = folder();
    std::fs::write(&path, "").unwrap();
    let glance = File::open(&path).unwrap();
    glance.try_lock_shared().unwrap();
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || PidFile::acquire(&path).map(drop)
    });
    sleep(POLL_INTERVAL * 2);
    drop(glance);
    waiting.join().unwrap().unwrap();
}

#[test]
fn a_clusters_pidfile_names_its_host_while_it_is_held() {
    let (folder, path) = folder();
    let host = folder.path().join("the host.ini");
    assert_eq!(serving_host(&path).unwrap(), None);
    let held = PidFile::acquire_of_host(&path, &host).unwrap();
    assert_eq!(serving_host(&path).unwrap(), Some(host.clone()));
    let id = std::process::id();
    assert_eq!(running(&path).unwrap().0, i32::try_from(id).unwrap());
    let second = PidFile::acquire(&path).unwrap_err().to_string();
    assert!(
        second.contains(&format!("already running as process {id}")),
        "{second}"
    );
    drop(held);
    // Left over by a crash: nobody holds it, so it says nothing.
    std::fs::write(&path, format!("{id}\nhost {}\n", host.display())).unwrap();
    assert_eq!(serving_host(&path).unwrap(), None);
    let _alone = PidFile::acquire(&path).unwrap();
    assert_eq!(serving_host(&path).unwrap(), None);
}

#[test]
fn a_second_line_that_names_no_host_is_none() {
    assert_eq!(
        host_ini("12\nhost /a b.ini\n"),
        Some(PathBuf::from("/a b.ini"))
    );
    for text in [
        "",
        "12",
        "12\n",
        "host /a\n",
        "12\n/a\n",
        "12\nhost a\n",
        "12\nhost \n",
    ] {
        assert_eq!(host_ini(text), None, "{text:?}");
    }
    assert_eq!(process_id("12\nhost /a\n").unwrap().0, 12);
    assert!(process_id("\n12\n").is_none() && process_id("1 2\n").is_none());
}
