//! What a restore is going to do, checked as far as it can be before anything is touched.
//! Never changes anything. Invariant: a plan names a whole set of this archive's cluster, a place that
//! is free or may be moved aside, and room for what has to be copied.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walmgr_protocol::names::BackupName;

use super::choose::{choose, choose_for};
use super::config_files;
use super::delta;
use super::keep::Kept;
use super::promoted;
use super::spaces::{later, mapping};
use super::streamed::StreamedMaster;
use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{self, RoomNeeded};
use crate::options::Restoring;
use crate::pg::backup_label::BackupLabel;
use crate::pg::command::walmgr_command;
use crate::pg::conf::ServerSettings;
use crate::pg::control::{self, ControlFile};
use crate::pg::data_directory::DataDirectory;
use crate::pg::later_tablespaces::Later;
use crate::pg::layout;
use crate::pg::left_out;
use crate::pg::mounts;
use crate::pg::recovery::{AfterPromotion, Recovery, TargetTimeline};
use crate::pg::set_place::taking::{self, DeltaWay};
use crate::pg::set_place::{self as place, Occupant, SetOrigin, SetPlace};
use crate::pg::wanted;
use crate::standby::frozen::Partials;
use crate::standby::sets;
use crate::store::sets::{BackupSets, HeldSet, SetSize};
use crate::store::{ArchiveReader, PartialEnd, RealDisk, Route};

/// Room for what PostgreSQL writes before it is up, on top of what is copied.
pub(super) const SPARE_BYTES: u64 = 32 << 20;

/// Where the set comes from.
pub(super) enum SetSource {
    /// It was taken by a restore that was interrupted.
    Taken,
    /// It moves.
    Move(Chosen),
    /// It is copied.
    Copy(Chosen),
    /// There is none: the master itself is copied.
    Streamed(Box<StreamedMaster>),
}

/// A set that was looked at. It is not held: whoever gets it later compares the label.
pub(super) struct Chosen {
    pub name: BackupName,
    pub path: PathBuf,
    pub label: BackupLabel,
}

/// Everything that is decided.
pub(super) struct Plan<'a> {
    pub config: &'a StandbyConfig,
    pub sets: BackupSets,
    pub source: SetSource,
    pub place: SetPlace,
    /// What is to be copied, if anything is.
    pub size: SetSize,
    /// Where tablespaces go that do not stay below the data directory, by OID.
    pub tablespaces: BTreeMap<OsString, PathBuf>,
    /// Where tablespaces go that the master makes later.
    pub later: Later,
    pub recovery: Recovery,
    /// What the server will be set to that is started on it.
    pub server: ServerSettings,
    /// What stays behind links.
    pub kept: Kept,
    /// Whether the set's settings are taken as they are.
    pub trusts_settings: bool,
    /// The lock that keeps other restores away, once it is held.
    pub alone: Option<File>,
    /// How files of the old directory are taken over, if they are.
    pub delta: Option<DeltaWay>,
    /// What has to be written outside of mapped tablespaces, at least, where that is less than the set.
    pub needed_bytes: Option<u64>,
    /// Whether it is for a drill: nothing of this host's own server counts there.
    pub is_drill: bool,
}

impl<'a> Plan<'a> {
    /// Decides and checks.
    pub(super) fn make(config: &'a StandbyConfig, restoring: &Restoring) -> Result<Plan<'a>> {
        let delta = delta::way_typed(restoring)?;
        let place = examine_place(config, restoring)?;
        let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk))
            .map_err(|error| CommandError::new(error.kind(), "open the archive").because(error))?;
        if delta.is_some() {
            delta::check_old(&place, &archive)?;
        }
        let (target, timeline) = wanted::parse(&restoring.target)?;
        let recovery = Recovery {
            after: match place.is_slave_data {
                true => promoted::archiving(config)?,
                false => AfterPromotion::ArchivesNothing,
            },
            restore_command: restore_command(config)?,
            // Streaming goes on where a recovery has to end.
            primary_conninfo: (config.primary_conninfo.clone()).filter(|_| target.is_none()),
            timeline,
            target,
        };
        if place.is_slave_data {
            check_config_files(config)?;
        }
        let sets = sets::open(config)?;
        let set = match moved_leftover(&place)? {
            Some(left) if delta.is_some() => {
                return Err(CommandError::config(format!(
                    "a restore was interrupted, and {} holds its set, which is nowhere else",
                    left.display()
                ))
                .hint("type `restore` without --delta to finish it"));
            }
            Some(left) => {
                check_interrupted(&left, restoring, recovery.target.is_some(), &archive)?;
                SetInHand::taken(left)
            }
            None => SetInHand::choose(config, restoring, &recovery, &place, &archive, &sets)?,
        };
        let is_taken = matches!(set.source, SetSource::Taken);
        if let SetSource::Move(moved) = &set.source {
            let locked = sets.ensure_not_locked_by_hand();
            locked.map_err(|error| sets::failed(&format!("move {}", moved.name), &error))?;
        }
        let plan = Plan {
            tablespaces: mapping(&set.path, &restoring.tablespaces, &place)?,
            later: later(&set.path, &restoring.tablespaces, &place)?,
            size: set.size,
            needed_bytes: set.needed_bytes,
            delta,
            source: set.source,
            server: server_of(config, &place, &place.staging()),
            kept: kept(config, &place),
            config,
            sets,
            place,
            recovery,
            trusts_settings: restoring.trusts_settings,
            alone: None,
            is_drill: false,
        };
        if !is_taken {
            plan.check_room()?;
            plan.check_wal_directory()?;
        }
        Ok(plan)
    }

    /// What it would do, as a verb phrase.
    pub(super) fn in_words(&self) -> String {
        let data = self.place.data.display();
        let what = match &self.source {
            SetSource::Taken => format!("finish the interrupted restore of {data}"),
            SetSource::Move(set) => format!("move {} to {data}", set.name),
            SetSource::Copy(set) => match self.delta {
                None => format!("copy {} to {data}", set.name),
                Some(_) => format!("bring {} to {data} by difference", set.name),
            },
            SetSource::Streamed(streamed) => format!("{} to {data}", streamed.in_words()),
        };
        let old = match (self.place.occupant, self.config.backup_datadir) {
            _ if self.is_in_place() => ", whose old content is gone from the first byte on",
            (Occupant::Old, true) => ", after moving the old content aside",
            (Occupant::Old, false) => ", and remove the old content",
            _ => "",
        };
        let end = match &self.recovery.target {
            None => "as a standby".to_owned(),
            Some((target, action)) => format!("up to {target}, then {action}"),
        };
        format!("{what}{old}, to recover {end}")
    }

    /// What is typed to make it again.
    pub(super) fn word(&self) -> &'static str {
        match self.source {
            SetSource::Streamed(_) => "createslave",
            _ if self.is_in_place() => "restore --delta --in-place",
            _ => "restore",
        }
    }

    /// Whether the set is renamed and so needs no room.
    fn is_renamed(&self) -> bool {
        let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
        match &self.source {
            SetSource::Taken => true,
            SetSource::Copy(_) | SetSource::Streamed(_) => false,
            SetSource::Move(set) => {
                // One that lies elsewhere comes home first.
                let homes = [Some(set.path.as_path()), set.path.parent()];
                let above = device(self.place.staging_above());
                homes
                    .into_iter()
                    .flatten()
                    .all(|home| device(home) == above)
            }
        }
    }

    fn check_room(&self) -> Result<()> {
        let mut needed = RoomNeeded::new(Kind::Config);
        let above = self.place.staging_above();
        if !self.is_renamed() {
            let all_bytes = self.size.bytes + SPARE_BYTES;
            needed.add(above, self.needed_bytes.unwrap_or(all_bytes))?;
        }
        for (oid, bytes) in &self.size.tablespaces {
            match self.tablespaces.get(oid) {
                Some(space) if space.is_dir() => needed.add(space, *bytes)?,
                Some(space) => needed.add(space.parent().unwrap_or(space), *bytes)?,
                None if self.needed_bytes.is_some() || self.is_renamed() => {}
                None => needed.add(above, *bytes)?,
            }
        }
        taking::check_room(&needed, self.delta)
    }

    /// `slave_pg_xlog` has to be a directory that can be made, or whose content can be moved aside.
    pub(super) fn check_wal_directory(&self) -> Result<()> {
        let Some(wal) = self.wal_directory() else {
            return Ok(());
        };
        let above = wal.parent().unwrap_or(wal);
        above
            .metadata()
            .at(Kind::Config, "find the directory above", wal)?;
        mounts::refuse_below(wal, "unmount it: umount MOUNT")
    }

    /// Where pg_wal goes, if not into the data directory.
    pub(super) fn wal_directory(&self) -> Option<&Path> {
        let wal = self.config.slave_pg_xlog.as_deref();
        let wal = wal.or(self.kept.wal.as_deref());
        wal.filter(|_| self.place.is_slave_data)
    }
}

/// The set that a plan is about.
struct SetInHand {
    source: SetSource,
    path: PathBuf,
    size: SetSize,
    /// See [`Plan::needed_bytes`].
    needed_bytes: Option<u64>,
}

impl SetInHand {
    /// One that an interrupted restore took: it is where it is needed.
    fn taken(path: PathBuf) -> SetInHand {
        SetInHand {
            source: SetSource::Taken,
            path,
            size: SetSize::default(),
            needed_bytes: None,
        }
    }

    /// One of the sets that there are.
    fn choose(
        config: &StandbyConfig,
        restoring: &Restoring,
        recovery: &Recovery,
        place: &SetPlace,
        archive: &ArchiveReader,
        sets: &BackupSets,
    ) -> Result<SetInHand> {
        let timeline = recovery.timeline;
        let loads = |set: &Path| server_of(config, place, set).may_load_libraries();
        let held = match &recovery.target {
            Some((target, _)) => choose_for(target, archive, sets, restoring, timeline, &loads)?,
            None => {
                let partials = giving_way(config, place, timeline);
                choose(
                    archive,
                    sets,
                    restoring,
                    timeline,
                    partials.as_deref(),
                    &loads,
                )?
            }
        };
        let control = control::read(held.path())?;
        DataDirectory::open(held.path())?;
        check_cluster(archive, &control, held.path())?;
        warn_of_gap(archive, &held)?;
        for line in left_out::named_in(held.path()) {
            tracing::warn!("{} lacks a file of the master: {line}", held.name());
        }
        let chosen = Chosen {
            name: held.name().clone(),
            path: held.path().clone(),
            label: held.label().clone(),
        };
        let size = held.size();
        let is_mapped = |oid: &OsStr| {
            let spaces = mapping(held.path(), &restoring.tablespaces, place);
            spaces.is_ok_and(|spaces| spaces.contains_key(oid))
        };
        let way = delta::way_typed(restoring)?;
        Ok(SetInHand {
            needed_bytes: delta::needed_bytes(way, place, &held, &is_mapped)?,
            path: chosen.path.clone(),
            size: size.map_err(|error| sets::failed("measure the set", &error))?,
            // A recovery to a target is tried more than once, as a rule.
            source: match restoring.set.is_none() && recovery.target.is_none() && way.is_none() {
                true => SetSource::Move(chosen),
                false => SetSource::Copy(chosen),
            },
        })
    }
}

/// What the server will be set to, as far as the one before it shows: its directory is there now.
/// The server that will be on the files of `staging`.
pub(super) fn server_of(
    config: &StandbyConfig,
    place: &SetPlace,
    staging: &Path,
) -> ServerSettings {
    let folder = (config.slave_config_dir.as_ref()).filter(|_| place.is_slave_data);
    let main = folder.map(|folder| folder.join(layout::MAIN_CONF));
    ServerSettings::of_next(staging, &place.data, main.as_deref())
}

/// Refuses copies of configuration files that are damaged, where they are going to be used.
pub(super) fn check_config_files(config: &StandbyConfig) -> Result<()> {
    match config.slave_config_dir.is_some() {
        true => config_files::check(config),
        false => Ok(()),
    }
}

pub(super) fn examine_place(config: &StandbyConfig, restoring: &Restoring) -> Result<SetPlace> {
    let Some(destination) = &restoring.destination else {
        let data = config.slave_data.as_deref().ok_or_else(|| {
            CommandError::config("restore needs the setting `slave_data`")
                .hint("set it to the standby's data directory; or name a set and another directory")
        })?;
        let place = SetPlace::examine(data, true)?;
        if place.occupant == Occupant::Old
            && config.slave_stop_cmd.is_none()
            && let Some(server) = DataDirectory::open(&place.data)?.running()?
        {
            return Err(CommandError::retry(format!(
                "a server (process {}) runs in {}",
                server.pid,
                place.data.display()
            ))
            .hint("stop it, or set slave_stop_cmd"));
        }
        return Ok(place);
    };
    let destination = std::path::absolute(destination).at(Kind::Usage, "find", destination)?;
    let place = SetPlace::examine(&destination, false)?;
    for taken in config.directories() {
        let taken = files::resolved(taken);
        if place.data.starts_with(&taken) || taken.starts_with(&place.data) {
            return Err(CommandError::usage(format!(
                "{} and {} must not contain each other",
                place.data.display(),
                taken.display()
            )));
        }
    }
    Ok(place)
}

/// The segments in progress, where timelines without WAL give way to the set's. Where they cannot be read,
/// nothing gives way.
fn giving_way(
    config: &StandbyConfig,
    place: &SetPlace,
    timeline: TargetTimeline,
) -> Option<Vec<PartialEnd>> {
    let gives_way = place.is_slave_data && timeline == TargetTimeline::Latest;
    let partials = Partials::open(config).and_then(|partials| partials.in_progress());
    let partials = partials.ok().filter(|_| gives_way)?;
    Some(partials.ends)
}

/// Whether an interrupted restore, whose set lies there, is what is to be finished.
fn check_interrupted(
    left: &Path,
    restoring: &Restoring,
    has_target: bool,
    archive: &ArchiveReader,
) -> Result<()> {
    if restoring.set.is_some() || has_target {
        return Err(CommandError::config(format!(
            "a restore was interrupted, and {} holds its set",
            left.display()
        ))
        .hint("type `restore` without a set and a target to finish it"));
    }
    let control = [layout::CONTROL_MOVED, layout::PG_CONTROL].map(|name| left.join(name));
    let control = control.iter().find(|path| path.exists());
    let control = control::read_file(control.map_or(left, PathBuf::as_path))?;
    check_cluster(archive, &control, left)
}

/// Where a set lies that an interrupted restore took.
pub(super) fn moved_leftover(place: &SetPlace) -> Result<Option<PathBuf>> {
    let staging = place.staging();
    if place::origin_of_staging(&staging)? == Some(SetOrigin::Moved) {
        return Ok(Some(staging));
    }
    let in_place = place.occupant == Occupant::Unfinished(SetOrigin::Moved);
    Ok(in_place.then(|| place.data.clone()))
}

pub(super) fn kept(config: &StandbyConfig, place: &SetPlace) -> Kept {
    match config.keep_symlinks && place.is_slave_data {
        true => Kept::find(place),
        false => Kept::default(),
    }
}

pub(super) fn restore_command(config: &StandbyConfig) -> Result<String> {
    walmgr_command("restore_command", &config.path, "xrestore %f %p")
}

pub(super) fn check_cluster(
    archive: &ArchiveReader,
    control: &ControlFile,
    set: &Path,
) -> Result<()> {
    let binding = archive.binding();
    if (control.system_id, control.segment_size) == (binding.system_id, binding.segment_size) {
        return Ok(());
    }
    Err(CommandError::config(format!(
        "{} is of another cluster (system identifier {}) than the archive's WAL ({})",
        set.display(),
        control.system_id,
        binding.system_id
    )))
}

fn warn_of_gap(archive: &ArchiveReader, held: &HeldSet) -> Result<()> {
    let label = held.label();
    let at = (label.first_segment.timeline(), label.start);
    let gap = Route::of_server(archive, &[], at)
        .map(|route| route.gap(label.start))
        .map_err(|error| CommandError::new(error.kind(), "look for gaps").because(error))?;
    if let Some(gap) = gap {
        tracing::warn!(
            "{} is missing in the archive: {} can be replayed only up to {}; --target-immediate ends where it is consistent",
            gap.missing,
            held.name(),
            gap.lost_from
        );
    }
    Ok(())
}
