//! What holds up the replay of a server that is to open. It is refused before anything is touched, or ended.
//! Never resumes a replay that would end the server, and never opens a server that has more to replay.
//! Invariant: a remedy that is named helps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use walmgr_protocol::names::Lsn;

use super::BootedStandby;
use super::begun::BegunBoot;
use super::changed::Changed;
use crate::config::StandbyConfig;
use crate::error::{CommandError, Result};
use crate::output::Waiting;
use crate::pg::conf::ServerSettings;
use crate::pg::data_directory::DataDirectory;
use crate::pg::sql_replay::Holder;
use crate::pg::sql_settings::COMMAND_LINE;
use crate::standby::absent_notes::AbsentNotes;
use crate::standby::ahead;
use crate::standby::own_server;
use crate::standby::standing::{self, Looked};
use crate::standby::too_low::Demanded;
use crate::status::{Hold, TooLow};
use crate::store::{PartialWals, RealDisk, StoreError};
use crate::wal::obstacle::Demands;

/// How often the server is asked what holds it up.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

const DELAY: &str = "recovery_min_apply_delay";

impl BootedStandby {
    fn look(&self, ahead: Option<Demands>) -> Result<Looked> {
        let demanded = Demanded::by(&self.data.control()?).and(ahead);
        let server = Some(&self.server);
        Ok(standing::look(&self.data, server, demanded, &self.settings))
    }

    /// What the WAL that is still to be replayed demands of a hot standby's settings.
    fn demands_ahead(&self, config: &StandbyConfig) -> Result<Option<Demands>> {
        let failed = |error: StoreError| {
            CommandError::new(error.kind(), "read the WAL that is still to be replayed")
                .because(error)
        };
        let partials = match PartialWals::open(&config.partial_wals, Arc::new(RealDisk)) {
            Ok(partials) => Some(partials),
            // What is wrong with them has been told, and is gone without.
            Err(error) => {
                tracing::debug!("{error}");
                None
            }
        };
        let met = ahead::find(&self.archive, partials.as_ref(), self.replayed()).map_err(failed)?;
        Ok(ahead::demands(&met, Lsn(u64::MAX)))
    }

    /// Refuses what no boot can end, while nothing has been touched.
    pub(super) fn refuse_holds(&self, config: &StandbyConfig, force: bool) -> Result<()> {
        let ahead = match self.demands_ahead(config) {
            Err(error) if force => {
                tracing::warn!("{error}");
                None
            }
            other => other?,
        };
        for hold in self.look(ahead)?.holds {
            match hold {
                Hold::TooLow(list) => return Err(too_low(&list)),
                // Promoted, it would act on an answer of before: see `absent_notes`.
                Hold::Delay(delay, place)
                    if place == COMMAND_LINE
                        && AbsentNotes::of(self.data.path(), &self.server)
                            .pending()
                            .is_some() =>
                {
                    return Err(CommandError::retry(format!(
                        "replay waits for {DELAY} = {delay}, which is on the server's command \
                        line, so no file can end it"
                    ))
                    .hint("restart the server without it, and type boot again"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl BootedStandby {
    /// Why a server that was told to open ended.
    pub(super) fn ended(&self) -> CommandError {
        let control = self.data.control();
        let holds = control
            .map(|control| {
                standing::look(&self.data, None, Demanded::by(&control), &self.settings).holds
            })
            .unwrap_or_default();
        if let [Hold::TooLow(list), ..] = &holds[..] {
            return too_low(list);
        }
        CommandError::retry("the server ended before it had opened; its log says why").hint(
            "after a damaged segment: repair the segment, or start the server with on_corrupt = \
            stall and type boot --force to open without it",
        )
    }
}

/// Why a server does not run, as far as a start would not show the same.
pub(super) fn not_running(data: &DataDirectory, settings: &ServerSettings) -> CommandError {
    let place = data.path().display();
    let doing = format!("no server runs in {place}, so boot cannot open one");
    let looked = data
        .control()
        .map(|control| standing::look(data, None, Demanded::by(&control), settings));
    match looked.map(|looked| looked.holds).as_deref() {
        Ok([Hold::TooLow(list), ..]) => CommandError::retry(format!(
            "{doing}, and it does not start, since parameters are lower than on the master: {}",
            TooLow::sentence(list)
        ))
        .hint(format!("{}; then type boot again", TooLow::remedy(list))),
        _ => CommandError::retry(doing).hint(
            "start the server: it has to replay before it can \
            open",
        ),
    }
}

/// Why a server cannot be booted as it is.
pub(super) fn too_low(list: &[TooLow]) -> CommandError {
    CommandError::retry(format!(
        "replay stops early, since parameters are lower than on the master: {}",
        TooLow::sentence(list)
    ))
    .hint(format!(
        "{}; once it replays again, type boot again",
        TooLow::remedy(list)
    ))
}

/// Looks after a server's replay while a boot waits for it.
pub(super) struct Attendance<'a> {
    standby: &'a BootedStandby,
    note: Note<'a>,
    force: bool,
    promoted: bool,
    looked: Option<Instant>,
    waiting: Waiting,
    delay: Option<LiftedDelay<'a>>,
}

impl<'a> Attendance<'a> {
    pub(super) fn of(standby: &'a BootedStandby, note: Note<'a>, force: bool) -> Attendance<'a> {
        Attendance {
            standby,
            note,
            force,
            promoted: false,
            looked: None,
            waiting: Waiting::begin(),
            delay: None,
        }
    }

    /// The server was told to open, which by itself ends pauses and delays.
    pub(super) fn promoted(&mut self) {
        self.promoted = true;
    }

    /// Ends what holds replay up, and from time to time says what it waits for: `what`. An error is a
    /// hold that only an administrator can end.
    pub(super) fn attend(&mut self, what: &str) -> Result<()> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let looked = self.standby.look(None)?;
        let mut known = Vec::new();
        for hold in &looked.holds {
            match hold {
                Hold::TooLow(list) => return Err(too_low(list)),
                Hold::Paused | Hold::Delay(..) if self.promoted => {}
                Hold::Paused => self.or_forced(self.resume())?,
                Hold::Delay(delay, place) => self.lift(delay, place)?,
                Hold::Sessions(..) if self.force => {
                    self.or_forced(self.terminate(&looked.sessions))?;
                }
                Hold::Sessions(..) => known.push(format!(
                    "replay is {}{}",
                    hold.text(),
                    how_to_end(&looked.sessions)
                )),
                _ => {}
            }
        }
        if self.waiting.is_due() {
            if let Err(why) = &looked.said {
                known.push(format!(
                    "boot cannot tell whether replay is paused or held up by a query, since the \
                    server does not answer: {why}"
                ));
            }
            match known.is_empty() {
                true => tracing::info!("{what}"),
                false => tracing::warn!("{what}: {}", known.join("; ")),
            }
        }
        Ok(())
    }

    /// A boot that is forced goes on without what it cannot end.
    fn or_forced(&self, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if self.force => {
                tracing::warn!("{error}");
                Ok(())
            }
            other => other,
        }
    }

    fn resume(&self) -> Result<()> {
        let standby = self.standby;
        own_server::ask(&standby.data, &standby.server, async |session| {
            session.resume_replay().await
        })
        .map_err(|error| {
            error.hint("SELECT pg_wal_replay_resume() as a superuser resumes replay")
        })?;
        tracing::info!("replay was paused by pg_wal_replay_pause() and is resumed");
        Ok(())
    }

    fn terminate(&self, sessions: &[Holder]) -> Result<()> {
        let standby = self.standby;
        for session in sessions {
            tracing::warn!("{} holds replay up; boot --force ends it", session.who);
        }
        own_server::ask(&standby.data, &standby.server, async |server| {
            for session in sessions {
                server.terminate(session).await?;
            }
            Ok(())
        })
    }

    fn lift(&mut self, delay: &str, place: &str) -> Result<()> {
        if self.delay.is_some() || place == COMMAND_LINE {
            return Ok(());
        }
        tracing::info!("{DELAY} = {delay}, set in {place}, is 0 during this boot");
        self.delay = Some(LiftedDelay::lift(self.standby, self.note)?);
        Ok(())
    }
}

/// The line to type.
fn how_to_end(sessions: &[Holder]) -> String {
    match sessions {
        [] => String::new(),
        [first, ..] => format!(
            "; SELECT pg_terminate_backend({}) ends it now, and boot --force does so",
            first.pid
        ),
    }
}

/// A delay that does not count until this is dropped. A promotion ends it too, but there may be something
/// to ask for before (see `absent_notes`), and the server asks for nothing while it waits.
struct LiftedDelay<'a> {
    standby: &'a BootedStandby,
    note: Note<'a>,
    path: PathBuf,
    changed: Changed,
}

/// Where a boot tells of what it sets.
type Note<'a> = (&'a BegunBoot, &'a StandbyConfig);

impl<'a> LiftedDelay<'a> {
    /// The last file that PostgreSQL reads says so, in the place of whichever said otherwise.
    fn lift(standby: &'a BootedStandby, note: Note<'a>) -> Result<LiftedDelay<'a>> {
        let path = standby.settings.automatic();
        let changed = Changed::of(&path, DELAY, "0")?;
        note.0.with(Some(changed.clone()), note.1)?;
        changed.make(&path)?;
        let lifted = LiftedDelay {
            standby,
            note,
            path,
            changed,
        };
        lifted.reload();
        Ok(lifted)
    }

    fn reload(&self) {
        if let Some(pid) = Pid::from_raw(self.standby.server.pid) {
            // One that is gone reads its files when it starts.
            let _ = kill_process(pid, Signal::HUP);
        }
    }
}

impl Drop for LiftedDelay<'_> {
    fn drop(&mut self) {
        let (begun, config) = self.note;
        let put_back = self.changed.put_back(&self.path);
        if matches!(put_back, Ok(true)) {
            self.reload();
        }
        if let Err(error) = put_back.and_then(|_| begun.with(None, config)) {
            tracing::warn!("{}: {error}", self.changed.text(&self.path));
        }
    }
}
