//! How a boot tells its server to open: once it can no longer act on what it heard before, and until it did.
//! Never reads or changes the archive. Invariant: the file `promote` outlives no server that it was for.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::BootedStandby;
use super::holds::Attendance;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::control::State;
use crate::pg::layout;
use crate::standby::absent_notes::{self, AbsentNotes};
use crate::standby::replay::TICK;

/// `PROMOTE_SIGNAL_FILE`, `src/include/access/xlog.h`.
const PROMOTE_FILE: &str = "promote";

/// How long a boot that is forced waits for a server to ask.
const FORCE_PATIENCE: Duration = Duration::from_secs(10);

/// How often a server that is about to ask is looked at.
const ASKED_TICK: Duration = Duration::from_millis(10);

/// Whether a server that was told to open did.
pub(super) enum PromotionOutcome {
    /// It opened.
    Open,
    /// It ended before.
    Ended,
    /// It runs, and will not open before an administrator has done what this says.
    Stands(CommandError),
}

impl BootedStandby {
    /// Waits until the server can no longer act on what it was told before STOP was there.
    pub(super) fn wait_until_it_asks(
        &self,
        force: bool,
        attendance: &mut Attendance<'_>,
    ) -> Result<()> {
        // At a recovery target a server opens with what it has.
        if !self.data.path().join(layout::STANDBY_SIGNAL).exists() {
            return Ok(());
        }
        let notes = AbsentNotes::of(self.data.path(), &self.server);
        let begun = Instant::now();
        while let Some(segment) = notes.pending() {
            let running = self.data.running()?;
            let gone = running.is_none_or(|server| server.pid != self.server.pid);
            if gone || absent_notes::streams(&self.server) {
                break;
            }
            if force && begun.elapsed() >= FORCE_PATIENCE {
                tracing::warn!(
                    "the server does not ask for {segment} again; boot --force promotes it all \
                    the same"
                );
                break;
            }
            attendance.attend(&format!(
                "the server has to ask for {segment} again before it can be promoted"
            ))?;
            std::thread::sleep(ASKED_TICK);
        }
        Ok(())
    }

    pub(super) fn promote(&self) -> Result<()> {
        let path = self.data.path().join(PROMOTE_FILE);
        match files::create_new(&path, b"", 0o600) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.at(Kind::Retry, "write", &path)?,
        }
        let told = match Pid::from_raw(self.server.pid) {
            Some(pid) => kill_process(pid, Signal::USR1),
            None => Err(rustix::io::Errno::SRCH),
        };
        told.map_err(|error| {
            // The next start of the server would otherwise open it.
            let _ = files::remove(&path);
            let doing = format!("signal the server (process {})", self.server.pid);
            CommandError::retry(doing)
                .because(io::Error::from(error))
                .hint("type this as the user who runs the server")
        })
    }

    pub(super) fn wait_until_open(
        &self,
        attendance: &mut Attendance<'_>,
    ) -> Result<PromotionOutcome> {
        attendance.promoted();
        loop {
            let running = self.data.running()?;
            let control = self.data.control()?;
            if control.state == State::InProduction {
                return Ok(PromotionOutcome::Open);
            }
            if running.is_none_or(|server| server.pid != self.server.pid) {
                // What was not answered before the end would open the next start.
                files::remove(&self.data.path().join(PROMOTE_FILE)).at(
                    Kind::Retry,
                    "remove promote in",
                    self.data.path(),
                )?;
                return Ok(PromotionOutcome::Ended);
            }
            let what = format!("replaying; checkpoint at {}", control.checkpoint);
            if let Err(error) = attendance.attend(&what) {
                return Ok(PromotionOutcome::Stands(error));
            }
            std::thread::sleep(TICK);
        }
    }
}
