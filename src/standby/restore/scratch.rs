//! A set brought into a directory of its own for a while, by the steps of a restore, for `drill`.
//! Never touches `slave_data` or the set, and never starts a server. Invariant: what was brought is compared with the
//! set's manifest, and PostgreSQL starts from it only after [`ScratchRestore::put_in_place`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::choose::choose;
use super::keep::Kept;
use super::plan::{Chosen, Plan, SPARE_BYTES, SetSource, check_cluster};
use super::prepare;
use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::options::Restoring;
use crate::output::Waiting;
use crate::pg::backup_label::BackupLabel;
use crate::pg::command::walmgr_command;
use crate::pg::conf::ServerSettings;
use crate::pg::control;
use crate::pg::data_directory::DataDirectory;
use crate::pg::later_tablespaces::Later;
use crate::pg::layout;
use crate::pg::recovery::{AfterPromotion, Recovery, TargetTimeline};
use crate::pg::set_place::{self as place, Occupant, SetPlace};
use crate::standby::sets;
use crate::store::sets::{Copying, HeldSet};
use crate::store::{ArchiveReader, RealDisk};

/// A set, and where it is to go.
pub(crate) struct ScratchRestore<'a> {
    plan: Plan<'a>,
    held: HeldSet,
}

impl<'a> ScratchRestore<'a> {
    /// Chooses the set, the newest unless one is named, and checks what can be checked of it.
    pub(crate) fn plan(
        config: &'a StandbyConfig,
        set: Option<&str>,
        data: &Path,
    ) -> Result<ScratchRestore<'a>> {
        let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk))
            .map_err(|error| CommandError::new(error.kind(), "open the archive").because(error))?;
        let restoring = Restoring {
            set: set.map(ToOwned::to_owned),
            ..Restoring::default()
        };
        let recovery = Recovery {
            after: AfterPromotion::ArchivesNothing,
            restore_command: walmgr_command(
                "restore_command",
                &config.path,
                "xrestore --drill %f %p",
            )?,
            primary_conninfo: None,
            timeline: TargetTimeline::Latest,
            target: None,
        };
        let place = SetPlace {
            data: data.to_path_buf(),
            is_slave_data: false,
            occupant: Occupant::Nobody,
            is_mount: false,
        };
        let server_of = |files: &Path| ServerSettings::of_next(files, data, None);
        let loads = |set: &Path| server_of(set).may_load_libraries();
        let sets = sets::open(config)?;
        let held = choose(&archive, &sets, &restoring, recovery.timeline, None, &loads)?;
        DataDirectory::open(held.path())?;
        check_cluster(&archive, &control::read(held.path())?, held.path())?;
        let size = held.size();
        let chosen = Chosen {
            name: held.name().clone(),
            path: held.path().clone(),
            label: held.label().clone(),
        };
        let plan = Plan {
            size: size.map_err(|error| sets::failed("measure the set", &error))?,
            source: SetSource::Copy(chosen),
            server: server_of(&place.staging()),
            tablespaces: BTreeMap::new(),
            later: Later::default(),
            kept: Kept::default(),
            trusts_settings: false,
            alone: None,
            delta: None,
            needed_bytes: None,
            is_drill: true,
            config,
            sets,
            place,
            recovery,
        };
        Ok(ScratchRestore { plan, held })
    }

    /// The set's name.
    pub(crate) fn name(&self) -> String {
        self.held.name().to_string()
    }

    /// Where it was found.
    pub(crate) fn set(&self) -> &Path {
        self.held.path()
    }

    /// Where its recovery begins.
    pub(crate) fn label(&self) -> &BackupLabel {
        self.held.label()
    }

    /// Its bytes, with its tablespaces.
    pub(crate) fn bytes(&self) -> u64 {
        self.plan.size.bytes + self.plan.size.tablespaces.values().sum::<u64>()
    }

    /// What PostgreSQL writes before it is up, on top of what is copied.
    pub(crate) const fn spare_bytes() -> u64 {
        SPARE_BYTES
    }

    /// What the set says its server is set to.
    pub(crate) fn settings(&self) -> ServerSettings {
        let (staging, data) = (self.plan.place.staging(), &self.plan.place.data);
        match data.exists() {
            true => self.plan.server.moved(&staging, data),
            false => ServerSettings::of_next(self.held.path(), data, None),
        }
    }

    /// Brings the files, all of them compared with the manifest; `shares` where the file system can let two files
    /// have one content.
    pub(crate) fn bring(&self, shares: bool, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let (staging, total_bytes) = (self.plan.place.staging(), self.bytes());
        place::claim_tablespaces(&staging, &self.plan.tablespaces)?;
        let (mut read_bytes, mut waiting) = (0, Waiting::begin());
        let copying = Copying {
            to: &staging,
            control_name: layout::name_of(layout::CONTROL_COPIED),
            tablespaces: &self.plan.tablespaces,
            shares,
            taken: None,
            progress: &mut |bytes| {
                read_bytes += bytes;
                if waiting.is_due() {
                    tracing::info!("copied and compared {read_bytes} of {total_bytes} bytes");
                }
                goes_on()
            },
        };
        let doing = || format!("copy {} to {}", self.name(), staging.display());
        (self.held.copy(copying)).map_err(|error| sets::failed(&doing(), &error))
    }

    /// Turns what was brought into a data directory whose recovery ends where the WAL does, and lets PostgreSQL start
    /// from it.
    pub(crate) fn put_in_place(&self) -> Result<()> {
        let staging = self.plan.place.staging();
        place::hide_control(&staging)?;
        prepare::run(&self.plan, &staging)?;
        // A standby would wait for more.
        let standby = staging.join(layout::STANDBY_SIGNAL);
        files::remove(&standby).at(Kind::Retry, "remove", &standby)?;
        let recovery = staging.join(layout::RECOVERY_SIGNAL);
        files::replace(&recovery, b"", 0o600).at(Kind::Retry, "write", &recovery)?;
        self.plan.place.move_in()?;
        place::show_control(&self.plan.place.data)
    }
}
