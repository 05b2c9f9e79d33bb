//! What makes a command a daemon: signals it answers, readiness it reports, the way to control it.
//! Never decides what draining or reloading means. Invariant: a daemon is found by the lock on its
//! pidfile, and is called ready only after it said so itself.

use std::fmt;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CommandError, Result};
use crate::options::Options;

mod background;
mod pidfile;
mod unserved;

pub use background::{ForkSide, Readiness, into_background};
pub use pidfile::{PidFile, signal_running};
pub(crate) use pidfile::{is_running, serving_host};
pub(crate) use unserved::{UnservedClusters, note_unserved, noted_as_unserved};

/// How long `--stop` and `--kill` wait for the daemon to end.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(30);

/// What a process gets that writes beyond its `RLIMIT_FSIZE`.
const FILE_SIZE_LIMIT: i32 = rustix::process::Signal::XFSZ.as_raw();

/// What `-r`, `-s` and `-k` ask of the running daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DaemonControl {
    /// `--reload`: SIGHUP.
    Reload,
    /// `--stop`: SIGINT, and wait.
    Stop,
    /// `--kill`: SIGTERM, and wait.
    Kill,
}

impl fmt::Display for DaemonControl {
    /// The signal it is.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            DaemonControl::Reload => "SIGHUP",
            DaemonControl::Stop => "SIGINT",
            DaemonControl::Kill => "SIGTERM",
        })
    }
}

impl DaemonControl {
    /// What the command line asks for, if it asks a running daemon at all.
    pub const fn asked_by(options: &Options) -> Option<Self> {
        match options {
            Options { reload: true, .. } => Some(DaemonControl::Reload),
            Options { stop: true, .. } => Some(DaemonControl::Stop),
            Options { kill: true, .. } => Some(DaemonControl::Kill),
            _ => None,
        }
    }
}

/// What a signal asks of this daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// SIGTERM or SIGINT: finish what is under way and end.
    Drain,
    /// SIGHUP: read settings and keys again.
    Reload,
}

/// The signals of a daemon, as a stream that never ends.
#[derive(Debug)]
pub struct Notices {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Notices {
    /// Takes the signals over; from here on none of them ends the process by itself.
    ///
    /// To be called inside a tokio runtime that has IO enabled.
    pub fn listen() -> Result<Self> {
        let failed =
            |error: std::io::Error| CommandError::retry("watch for signals").because(error);
        // Taken over for good and never looked at: a write beyond the process's file size limit
        // then fails with EFBIG, like one on a full disk, where the signal would kill the daemon.
        let _ = signal(SignalKind::from_raw(FILE_SIZE_LIMIT)).map_err(failed)?;
        Ok(Notices {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            hangup: signal(SignalKind::hangup()).map_err(failed)?,
        })
    }

    /// Waits for the next signal. Safe to drop and call again: no signal is lost.
    pub async fn next(&mut self) -> Notice {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Notice::Drain,
            _ = self.interrupt.recv() => Notice::Drain,
            _ = self.hangup.recv() => Notice::Reload,
        }
    }
}

/// Tells the service manager that the settings are being read again; [`tell_ready`] ends it.
pub fn tell_reloading() {
    let mut state = vec![NotifyState::Reloading];
    // Type=notify-reload wants to know when.
    state.extend(NotifyState::monotonic_usec_now());
    tell(&state);
}

/// Tells the service manager that the daemon serves, at the start or after a reload.
pub fn tell_ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells the service manager in a line how the daemon stands.
pub(crate) fn tell_status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// Tells the service manager that the daemon drains.
pub fn tell_stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often [`tell_alive`] has to be called, if the service manager watches (`WATCHDOG_USEC`).
///
/// Half of what it allows, as sd_watchdog_enabled(3) recommends.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// [`tell_alive`] as often as the service manager wants to hear it, from the start to the end.
#[derive(Debug)]
pub(crate) struct Pulse(Option<tokio::time::Interval>);

impl Pulse {
    /// To be called inside a tokio runtime that has timers enabled.
    pub(crate) fn start() -> Self {
        let every = watchdog_interval().filter(|every| !every.is_zero());
        Pulse(every.map(tokio::time::interval))
    }

    /// Waits for the next time and tells it; for ever if nobody watches. Safe to drop and call
    /// again: the times stay.
    pub(crate) async fn beat(&mut self) {
        match &mut self.0 {
            Some(interval) => interval.tick().await,
            None => std::future::pending().await,
        };
        tell_alive();
    }
}

/// Tells the service manager that the daemon is not stuck.
pub fn tell_alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Without a service manager there is nobody to tell; one that does not listen must not stop the work.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("notify the service manager: {error}");
    }
}
