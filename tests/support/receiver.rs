//! The receiver's process: started, watched, ended, also below a tracer.
//! Never signals a process it did not start. Invariant: when the value is dropped, nothing of the
//! receiver's process group is left.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::place::give_to_server;
use super::wait_for;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// What a release build needs of memory for its own pages, rounded up; `benches/xarchive.sh` compares the whole.
pub const PROGRAM_KIB: u64 = 10 << 10;

/// The receiver's process, in a process group of its own.
pub struct Receiver {
    log_path: PathBuf,
    pid_path: PathBuf,
    child: Option<Child>,
}

impl Receiver {
    /// A receiver that does not run yet and is to log here, beside its ini file.
    pub fn new(log_path: PathBuf) -> Receiver {
        let pid_path = log_path.with_file_name("standby.pid");
        Receiver::beside(log_path, pid_path)
    }

    /// The same with the pidfile of another ini file.
    pub fn beside(log_path: PathBuf, pid_path: PathBuf) -> Receiver {
        Receiver {
            log_path,
            pid_path,
            child: None,
        }
    }

    /// Whether it was started and not waited for since.
    pub fn has_started(&self) -> bool {
        self.child.is_some()
    }

    /// Starts this command and waits until it listens; the error is what it said.
    pub fn start(&mut self, command: &mut Command) -> Result<(), String> {
        assert!(self.child.is_none(), "the receiver runs already");
        let said_before = self.log().len();
        self.spawn(command);
        wait_for("the receiver to listen", START_LIMIT, || {
            let log = self.log();
            let said = log.get(said_before..).unwrap_or_default();
            let child = self.child.as_mut().unwrap();
            if child.try_wait().unwrap().is_some() {
                self.child = None;
                return Some(Err(said.to_owned()));
            }
            let listens = said.contains("listens on") || said.contains(" clusters on ");
            listens.then_some(Ok(()))
        })
    }

    /// Starts this command without waiting for anything.
    pub fn spawn(&mut self, command: &mut Command) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log_path)
            .unwrap();
        give_to_server(&self.log_path);
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => child.try_wait().unwrap().is_none(),
            None => false,
        }
    }

    /// The receiver's process, also below a tracer.
    pub fn pid(&self) -> u32 {
        let child = self.child.as_ref().expect("a receiver that runs").id();
        let written = std::fs::read_to_string(&self.pid_path).unwrap_or_default();
        written.trim().parse().unwrap_or(child)
    }

    /// The receiver below a tracer that was started instead of it, as soon as there is one.
    pub fn traced_pid(&self) -> Option<u32> {
        let tracer = self.child.as_ref()?.id();
        let path = format!("/proc/{tracer}/task/{tracer}/children");
        let children = std::fs::read_to_string(path).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL to it and whatever traces it, and waits until nothing is left.
    pub fn kill9(&mut self) {
        self.kill_group();
        self.wait();
    }

    /// Waits for the end of a receiver that was told to end or is about to.
    pub fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("a receiver that runs");
        let status = wait_for("the receiver's end", STOP_LIMIT, || {
            child.try_wait().unwrap()
        });
        self.child = None;
        status
    }

    /// Everything it has said.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log_path) {
            file.read_to_end(&mut text).unwrap();
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until it has said this.
    pub fn wait_for_log(&self, text: &str) {
        let what = format!("{text:?} in the receiver's log");
        wait_for(&what, START_LIMIT, || {
            self.log().contains(text).then_some(())
        });
    }

    /// Its largest resident memory so far, in KiB, with a release build's pages.
    pub fn memory_peak_kib(&self) -> u64 {
        let of = |what| memory_kib(self.pid(), what).expect("a receiver that runs");
        // An unoptimised program is larger than the one that people install.
        of("VmHWM:").saturating_sub(of("RssFile:")) + PROGRAM_KIB
    }

    /// Its resident memory now, in KiB.
    pub fn memory_kib(&self) -> u64 {
        memory_kib(self.pid(), "VmRSS:").expect("a receiver that runs")
    }

    fn kill_group(&self) {
        if let Some(child) = &self.child {
            // It may have gone by itself.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill_group();
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("the receiver said:\n{}", self.log());
        }
    }
}

/// A line of `/proc/PID/status` that counts KiB; `None` when the process is gone.
pub fn memory_kib(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches(" kB").trim().parse().ok()
}
