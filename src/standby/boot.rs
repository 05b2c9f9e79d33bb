//! `boot`: replays everything that was archived or shipped, then opens the database.
//! Never asks for the promotion before STOP is written: it could win the race against the last
//! segments. Invariant: whatever happens, STOP speaks to no other server than the one booted here.
//!
//! ```text
//! look for gaps and damage nothing was touched
//! freeze the stream        the master is refused, what was acknowledged is copied (see `frozen`)
//! write BOOT               from here on a boot typed again can tell how this one ended (see `begun`)
//! write STOP               xrestore serves the copies, to this server
//! remove PAUSE
//! wait                     the server may have heard of before STOP that a segment is absent (see `absent_notes`)
//! promote
//! wait                     a server that ends while it is closed still replays: the stream goes on
//! remove STOP              the freeze stays: this master is one of the past
//! compare                  with what was acknowledged (see `verdict`)
//! archive the new history  from here on a standby and the next boot follow the new timeline
//! remove the copies        if the database has all of it
//! finish BOOT              until then `status` names the boot, and `boot` does the last five steps
//! ```
//!
//! Promotion is asked for the way `pg_ctl promote` does, with the file `promote` and SIGUSR1: that
//! needs neither PostgreSQL's programs nor a connection, which a standby with `hot_standby = off`
//! does not accept. What was recovered is read from the history file that the promotion writes and
//! from the WAL itself; the server has forgotten the time of the last commit by then.

mod at_target;
pub(crate) mod begun;
mod changed;
mod ending;
mod holds;
mod promote;

use std::fs::File;
use std::sync::Arc;

use clap::{ArgAction, Args};
use walmgr_protocol::names::{Lsn, TimelineId};

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::files;
use crate::options::Options;
use crate::output;
use crate::pg::conf::ServerSettings;
use crate::pg::control::{ControlFile, State};
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::pg::layout;
use crate::standby::ahead;
use crate::standby::frozen::Partials;
use crate::standby::own_server;
use crate::standby::replay::{ControlFiles, server_text};
use crate::standby::standing;
use crate::standby::verdict::{self, AcknowledgedEnd, InProgress};
use crate::store::lineage::LineGap;
use crate::store::{ArchiveReader, RealDisk};

use begun::BegunBoot;
use ending::OpenedServer;
use holds::Attendance;
use promote::PromotionOutcome;

/// What stood behind `boot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct BootArgs {
    /// Do not wait until the database is open
    #[arg(long = "no-wait", action = ArgAction::SetFalse)]
    pub wait: bool,
    /// Open it although WAL is missing or damaged, without what comes after
    #[arg(long)]
    pub force: bool,
}

/// Ends the replay of the server in `slave_data`.
pub(crate) fn run(
    config: &StandbyConfig,
    options: &Options,
    BootArgs { wait, force }: BootArgs,
) -> Result<()> {
    let data = data_directory(config)?;
    let mut begun = BegunBoot::read(config, &data)?;
    if let Some(begun) = begun.as_mut().filter(|it| it.changed.is_some())
        && !options.not_really
    {
        let _alone = alone(&data)?;
        begun.put_back(config, &data)?;
    }
    if let Some(begun) = begun
        && begun::has_opened(&data)?
    {
        return finish(config, options, &data, &begun, force);
    }
    if at_target::stands(config, &data)? {
        return at_target::open(config, options, data, wait, force);
    }
    let standby = BootedStandby::find(config, data)?;
    let partials = or_forced(force, Partials::open(config))?;
    let acknowledged = standby.refuse_loss(partials.as_ref(), force)?;
    standby.refuse_holds(config, force)?;
    let data = standby.data.path().display();
    if options.not_really {
        return output::not_really(&format!(
            "freeze the incoming stream, write STOP, remove PAUSE if it is there, and promote the \
             server in {data}"
        ));
    }
    standby.boot(config, partials.as_ref(), acknowledged, wait, force)
}

/// Does what is left of a boot whose server has opened.
fn finish(
    config: &StandbyConfig,
    options: &Options,
    data: &DataDirectory,
    begun: &BegunBoot,
    force: bool,
) -> Result<()> {
    if options.not_really {
        return output::not_really(&format!(
            "report the result of the boot of the server in {}, and put its timeline's history \
            into the archive",
            data.path().display()
        ));
    }
    let _alone = alone(data)?;
    let archive = &archive(config)?;
    let opened = OpenedServer {
        config,
        data,
        archive,
        begun,
    };
    opened.finish(force)
}

/// What `--force` goes on without.
fn or_forced<T>(force: bool, result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if force => {
            tracing::warn!("{error}; the boot continues without the segments in progress");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The server goes on replaying: nothing was booted.
fn call_off(config: &StandbyConfig, partials: Option<&Partials>) {
    thaw(partials);
    if let Err(error) = begun::forget(config) {
        tracing::warn!("{error}");
    }
}

/// The server goes on replaying, so the stream may go on too.
fn thaw(partials: Option<&Partials>) {
    if let Some(Err(error)) = partials.map(Partials::thaw) {
        tracing::warn!("{error}");
    }
}

/// The one that the settings name.
fn data_directory(config: &StandbyConfig) -> Result<DataDirectory> {
    let slave_data = config.slave_data.as_deref().ok_or_else(|| {
        CommandError::config("boot needs the setting `slave_data`")
            .hint("set it to the standby's data directory")
    })?;
    DataDirectory::open(slave_data)
}

fn archive(config: &StandbyConfig) -> Result<ArchiveReader> {
    ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk))
        .map_err(|error| CommandError::new(error.kind(), "open the archive").because(error))
}

/// Keeps another boot of this server from doing the same meanwhile.
fn alone(data: &DataDirectory) -> Result<File> {
    let data = data.path();
    files::try_lock(Kind::Retry, data)?.ok_or_else(|| {
        CommandError::retry(format!(
            "another boot of the server in {} is running",
            data.display()
        ))
    })
}

/// A server that replays, and the archive it replays from.
struct BootedStandby {
    data: DataDirectory,
    server: Postmaster,
    before: ControlFile,
    archive: ArchiveReader,
    /// What the server is set to, as far as it is not asked.
    settings: ServerSettings,
    /// Whether its recovery ends at a target, and not where WAL ends.
    at_target: bool,
}

impl BootedStandby {
    /// Has the server open, and waits for that unless it is told not to. Whatever fails on the way, a server that
    /// goes on replaying is again as it was before.
    fn boot(
        &self,
        config: &StandbyConfig,
        partials: Option<&Partials>,
        acknowledged: AcknowledgedEnd,
        wait: bool,
        force: bool,
    ) -> Result<()> {
        let control = ControlFiles::of(config);
        let alone = alone(&self.data)?;
        // A promotion that was asked for before goes on, whatever becomes of this call.
        let under_way = control.stop_for(Some(&self.server))?.is_some();
        let frozen = self.freeze(partials, force, under_way)?;
        let begun = self.begun(acknowledged.with(frozen))?;
        let mut attendance = Attendance::of(self, (&begun, config), force);
        let asked = begun
            .write(config)
            .and_then(|()| control.stop(&self.server, force))
            .and_then(|()| control.resume())
            .and_then(|_| self.wait_until_it_asks(force, &mut attendance));
        let asked = asked.and_then(|()| self.promote());
        if let Err(error) = asked {
            // What it set is put back while BOOT tells of it.
            drop(attendance);
            if !under_way {
                control.remove_stop()?;
                call_off(config, partials);
            }
            return Err(error);
        }
        drop(alone);
        if !wait {
            let data = self.data.path().display();
            tracing::info!(
                "the server in {data} opens when it has replayed everything; type `boot` again to \
                see the result and to put the new timeline's history into the archive"
            );
            return Ok(());
        }
        // If looking fails the server goes on replaying under its STOP, which speaks to no other.
        let opened = self.wait_until_open(&mut attendance)?;
        drop(attendance);
        let failed = match opened {
            PromotionOutcome::Open => return self.opened(config, &begun).finish(force),
            PromotionOutcome::Ended => self.ended(),
            PromotionOutcome::Stands(error) => error,
        };
        control.remove_stop()?;
        // Without the signal its next start would open it.
        if self.data.path().join(layout::STANDBY_SIGNAL).exists() {
            call_off(config, partials);
        }
        Err(failed)
    }

    /// The server of the settings; it has to run and to be in recovery.
    fn find(config: &StandbyConfig, data: DataDirectory) -> Result<BootedStandby> {
        let place = data.path().display();
        let server = data.running()?.filter(|server| !server.single_user);
        let Some(server) = server else {
            return Err(holds::not_running(
                &data,
                &own_server::settings(config, &data),
            ));
        };
        let before = data.control()?;
        if before.state != State::InArchiveRecovery {
            return Err(CommandError::retry(format!(
                "the server in {place} is not in recovery: it is {}",
                before.state
            )));
        }
        let archive = archive(config)?;
        let settings = own_server::settings(config, &data);
        Ok(BootedStandby {
            at_target: own_server::has_target(&data, Some(&server), &settings),
            settings,
            data,
            server,
            before,
            archive,
        })
    }

    /// Where replay certainly stands; it may be further.
    fn replayed(&self) -> (TimelineId, Lsn) {
        standing::replayed(&self.before)
    }

    /// Refuses to open without what is missing or damaged; returns up to where it was acknowledged.
    fn refuse_loss(&self, partials: Option<&Partials>, force: bool) -> Result<AcknowledgedEnd> {
        let found = match partials.map(Partials::in_progress) {
            Some(found) => or_forced(force, found)?.unwrap_or_default(),
            None => InProgress::default(),
        };
        let found = verdict::find(&self.archive, &found, self.replayed())?;
        let lost = match (&found.gap, &found.damage) {
            (Some(gap), _) => CommandError::retry(self.describe(gap)?).hint(
                "put the segment into completed_wals, or type boot --force to open without the \
                WAL from there on",
            ),
            (None, Some(damage)) => verdict::refusal(damage),
            (None, None) => match self.obstacle(partials)? {
                Some(obstacle) => obstacle,
                None => return Ok(found.acknowledged),
            },
        };
        if !force {
            return Err(lost);
        }
        tracing::warn!("{lost}");
        Ok(found.acknowledged)
    }

    fn describe(&self, gap: &LineGap) -> Result<String> {
        let LineGap {
            missing,
            lost_from,
            lost_to,
            ..
        } = gap;
        let copy = (self.archive.damaged_copy(*missing))
            .map_err(|error| CommandError::new(error.kind(), "look for gaps").because(error))?;
        let what = match copy {
            _ if gap.is_partly_there => format!("is present only up to {lost_from}"),
            Some(copy) => format!("is present only as a damaged copy, {copy}"),
            None => "is missing".to_owned(),
        };
        Ok(format!(
            "{missing} {what}: the WAL from {lost_from} to {lost_to} would be lost"
        ))
    }

    /// What replay does not get past, or must not.
    fn obstacle(&self, partials: Option<&Partials>) -> Result<Option<CommandError>> {
        let Some(partials) = partials else {
            return Ok(None);
        };
        let ahead = partials.ahead(&self.archive, self.replayed())?;
        let found = ahead::refusal(&self.data, self.settings.may_load_libraries(), &ahead);
        Ok(found.map(|error| CommandError::retry("nothing was changed").because(error)))
    }

    fn begun(&self, acknowledged: AcknowledgedEnd) -> Result<BegunBoot> {
        let server = server_text(&self.server);
        BegunBoot::of(&self.data, server, acknowledged, self.at_target)
    }

    /// Says where the segments in progress end.
    fn freeze(
        &self,
        partials: Option<&Partials>,
        force: bool,
        under_way: bool,
    ) -> Result<Option<AcknowledgedEnd>> {
        let Some(partials) = partials else {
            return Ok(None);
        };
        let frozen = partials.freeze(&self.archive, self.replayed(), &self.server, force);
        if frozen.is_err() && !force && !under_way {
            thaw(Some(partials));
        }
        or_forced(force, frozen).map(Option::flatten)
    }
}
