//! What a restore is going to do, checked as far as it can be before anything is touched.
//! Never changes anything. Invariant: a plan names a whole set of this archive's cluster, a place that
//! is free or may be moved aside, and room for what has to be copied.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walmgr_protocol::names::BackupName;

use super::control_path;
use super::place::{self, COPIED, MOVED, Occupant, Origin, Place};
use super::transfer::{entries, link_targets};
use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::options::Restoring;
use crate::pg::command::walmgr_command;
use crate::pg::control::{self, ControlFile};
use crate::pg::data_directory::DataDirectory;
use crate::pg::recovery::Recovery;
use crate::standby::{gap, sets};
use crate::store::sets::{BackupSets, HeldSet, SetSize};
use crate::store::{Reader, RealDisk};

/// Room for what PostgreSQL writes before it is up, on top of what is copied.
const SPARE_BYTES: u64 = 32 << 20;

/// Where the set comes from.
pub enum Source {
    /// It was taken by a restore that was interrupted.
    Taken,
    /// It moves; held until it is taken, so that it is the one that was looked at.
    Move(HeldSet),
    /// It is copied.
    Copy(BackupName),
}

/// Everything that is decided.
pub struct Plan<'a> {
    pub config: &'a StandbyConfig,
    pub sets: BackupSets,
    pub source: Source,
    pub place: Place,
    /// What is to be copied, if anything is.
    pub size: SetSize,
    /// Where tablespaces go that do not stay below the data directory, by OID.
    pub tablespaces: BTreeMap<OsString, PathBuf>,
    pub recovery: Recovery,
}

impl<'a> Plan<'a> {
    /// Decides and checks.
    pub fn make(config: &'a StandbyConfig, restoring: &Restoring) -> Result<Plan<'a>> {
        let place = examine_place(config, restoring)?;
        let archive = Reader::open(&config.completed_wals, Arc::new(RealDisk))
            .map_err(|error| CommandError::new(error.kind(), "open the archive").because(error))?;
        let mut recovery = Recovery {
            restore_command: restore_command(config)?,
            primary_conninfo: config.primary_conninfo.clone(),
            timeline: Default::default(),
            target: None,
        };
        let sets = sets::open(config)?;
        if let Some(left) = moved_leftover(&place)? {
            if restoring.set.is_some() {
                return Err(CommandError::config(format!(
                    "a restore was interrupted, and {} holds the set that it took",
                    left.display()
                ))
                .hint("type `restore` without a set to finish that one"));
            }
            let control = [MOVED, "pg_control"].map(|name| control_path(&left, name));
            let control = control.iter().find(|path| path.exists());
            check_cluster(
                &archive,
                &control::read_file(control.unwrap_or(&left))?,
                &left,
            )?;
            return Ok(Plan {
                tablespaces: mapping(&left, &restoring.tablespaces, &place)?,
                config,
                sets,
                source: Source::Taken,
                place,
                size: SetSize::default(),
                recovery,
            });
        }
        let held = choose(&sets, restoring)?;
        let control = control::read(held.path())?;
        DataDirectory::open(held.path())?;
        check_cluster(&archive, &control, held.path())?;
        warn_of_gap(&archive, &held)?;
        recovery.primary_conninfo = recovery
            .primary_conninfo
            .filter(|_| recovery.target.is_none());
        let moves = restoring.set.is_none();
        let plan = Plan {
            tablespaces: mapping(held.path(), &restoring.tablespaces, &place)?,
            size: held
                .size()
                .map_err(|error| sets::failed("measure the set", &error))?,
            source: match moves {
                true => Source::Move(held),
                false => Source::Copy(held.name().clone()),
            },
            config,
            sets,
            place,
            recovery,
        };
        plan.check_room()?;
        plan.check_wal_directory()?;
        Ok(plan)
    }

    /// What it would do, as a verb phrase.
    pub fn in_words(&self) -> String {
        let data = self.place.data.display();
        let what = match &self.source {
            Source::Taken => format!("finish the interrupted restore of {data}"),
            Source::Move(held) => format!("move {} to {data}", held.name()),
            Source::Copy(name) => format!("copy {name} to {data}"),
        };
        let old = match (self.place.occupant, self.config.backup_datadir) {
            (Occupant::Old, true) => ", with what is there moved aside",
            (Occupant::Old, false) => ", and remove what is there",
            _ => "",
        };
        let end = match &self.recovery.target {
            None => "as a standby".to_owned(),
            Some((target, action)) => format!("up to {target}, then {action}"),
        };
        format!("{what}{old}, to recover {end}")
    }

    /// Whether the set is renamed and so needs no room.
    fn is_renamed(&self) -> bool {
        let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
        match &self.source {
            Source::Taken => true,
            Source::Copy(_) => false,
            Source::Move(held) => device(held.path()) == device(self.place.above()),
        }
    }

    fn check_room(&self) -> Result<()> {
        let mut needed: BTreeMap<u64, (u64, PathBuf)> = BTreeMap::new();
        let mut need = |path: &Path, bytes: u64| -> Result<()> {
            let device = path.metadata().at(Kind::Config, "examine", path)?.dev();
            let entry = needed.entry(device);
            entry.or_insert_with(|| (0, path.to_path_buf())).0 += bytes;
            Ok(())
        };
        let above = self.place.above();
        if !self.is_renamed() {
            need(above, self.size.bytes + SPARE_BYTES)?;
        }
        for (oid, bytes) in &self.size.tablespaces {
            match self.tablespaces.get(oid) {
                Some(space) if space.is_dir() => need(space, *bytes)?,
                Some(space) => need(space.parent().unwrap_or(space), *bytes)?,
                None if !self.is_renamed() => need(above, *bytes)?,
                None => {}
            }
        }
        for (needed_bytes, path) in needed.values() {
            let state = rustix::fs::statvfs(path).at(Kind::Config, "examine", path)?;
            let free_bytes = state.f_bavail.saturating_mul(state.f_frsize);
            if free_bytes < *needed_bytes {
                return Err(CommandError::retry(format!(
                    "there is not enough room in {}: {needed_bytes} bytes are needed, {free_bytes} \
                     are free",
                    path.display()
                ))
                .hint("nothing was changed; free some space, or restore to another place"));
            }
        }
        Ok(())
    }

    /// `slave_pg_xlog` has to be a directory that can be made, or moved aside.
    fn check_wal_directory(&self) -> Result<()> {
        let Some(wal) = self.wal_directory() else {
            return Ok(());
        };
        let above = wal.parent().unwrap_or(wal);
        let device = |path: &Path| path.metadata().map(|found| found.dev());
        let above_device = device(above).at(Kind::Config, "find the directory above", wal)?;
        match device(wal) {
            Ok(own) if own != above_device => Err(CommandError::config(format!(
                "slave_pg_xlog {} is a mount point, which cannot be moved aside",
                wal.display()
            ))
            .hint("name a directory below it")),
            _ => Ok(()),
        }
    }

    /// Where pg_wal goes, if not into the data directory.
    pub fn wal_directory(&self) -> Option<&Path> {
        let wal = self.config.slave_pg_xlog.as_deref();
        wal.filter(|_| self.place.is_slave_data)
    }
}

fn examine_place(config: &StandbyConfig, restoring: &Restoring) -> Result<Place> {
    let Some(destination) = &restoring.destination else {
        let data = config.slave_data.as_deref().ok_or_else(|| {
            CommandError::config("restore needs the setting `slave_data`")
                .hint("it is where the data directory goes; or name a set and another place")
        })?;
        let place = Place::examine(data, true)?;
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
    let place = Place::examine(&destination, false)?;
    let taken = [
        Some(&config.completed_wals),
        Some(&config.partial_wals),
        config.full_backup.as_ref(),
        config.config_backup.as_ref(),
        config.slave_data.as_ref(),
        config.slave_pg_xlog.as_ref(),
    ];
    for taken in taken.into_iter().flatten() {
        let taken = std::fs::canonicalize(taken).unwrap_or_else(|_| taken.clone());
        if place.data.starts_with(&taken) || taken.starts_with(&place.data) {
            return Err(CommandError::usage(format!(
                "{} and {} have to lie apart",
                place.data.display(),
                taken.display()
            )));
        }
    }
    Ok(place)
}

/// Where a set lies that an interrupted restore took.
fn moved_leftover(place: &Place) -> Result<Option<PathBuf>> {
    let staging = place.staging();
    if place::origin_of_staging(&staging)? == Some(Origin::Moved) {
        return Ok(Some(staging));
    }
    let in_place = place.occupant == Occupant::Unfinished(Origin::Moved);
    Ok(in_place.then(|| place.data.clone()))
}

fn restore_command(config: &StandbyConfig) -> Result<String> {
    walmgr_command("restore_command", &config.path, "xrestore %f %p %r")
}

/// The set that was asked for, or the newest.
fn choose(sets: &BackupSets, restoring: &Restoring) -> Result<HeldSet> {
    let name = match &restoring.set {
        Some(text) => sets.newest().parse_sibling(text).map_err(|error| {
            CommandError::usage(format!("restore {text}"))
                .because(error)
                .hint("`listbackups` lists the sets")
        })?,
        None => {
            let listed = sets.list();
            let listed = listed.map_err(|error| sets::failed("list the backup sets", &error))?;
            let newest = listed.into_iter().next().ok_or_else(|| {
                CommandError::retry("there is no backup set to restore")
                    .hint("make one with `backup` on the master")
            })?;
            newest.name
        }
    };
    let held = sets.hold(&name);
    held.map_err(|error| sets::failed(&format!("restore {name}"), &error))
}

fn check_cluster(archive: &Reader, control: &ControlFile, set: &Path) -> Result<()> {
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

fn warn_of_gap(archive: &Reader, held: &HeldSet) -> Result<()> {
    let label = held.label();
    let gap = gap::find(archive, label.first_segment.timeline(), label.start)
        .map_err(|error| CommandError::new(error.kind(), "look for gaps").because(error))?;
    if let Some(gap) = gap {
        tracing::warn!(
            "{} is missing in the archive: {} can be replayed up to {} only",
            gap.missing,
            held.name(),
            gap.lost_from
        );
    }
    Ok(())
}

/// Which tablespace goes where.
fn mapping(
    set: &Path,
    asked: &[(PathBuf, PathBuf)],
    place: &Place,
) -> Result<BTreeMap<OsString, PathBuf>> {
    let known = tablespaces(set)?;
    let mut mapping = BTreeMap::new();
    for (oid, old) in &known {
        let kept = [
            set.join("tmpspc").join(oid),
            set.join("pg_tblspc").join(oid),
        ];
        if !kept.iter().any(|path| path.is_dir()) {
            return Err(CommandError::config(format!(
                "{} does not hold the tablespace {} (OID {})",
                set.display(),
                old.display(),
                oid.display()
            )));
        }
    }
    for (old, new) in asked {
        let Some((oid, _)) = known.iter().find(|(_, path)| *path == old) else {
            let paths: Vec<String> = known
                .values()
                .map(|path| path.display().to_string())
                .collect();
            let hint = match paths.is_empty() {
                true => "the set has no tablespaces".to_owned(),
                false => format!("its tablespaces were at {}", paths.join(", ")),
            };
            let doing = format!("the set has no tablespace of {}", old.display());
            return Err(CommandError::usage(doing).hint(hint));
        };
        check_space(new, place)?;
        mapping.insert(oid.clone(), new.clone());
    }
    for (oid, old) in known.iter().filter(|(oid, _)| !mapping.contains_key(*oid)) {
        let place = place.data.join("tmpspc").join(oid);
        tracing::info!("tablespace {} goes to {}", old.display(), place.display());
    }
    Ok(mapping)
}

/// A tablespace goes to a directory that is empty, or that an interrupted restore had begun to fill.
fn check_space(space: &Path, place: &Place) -> Result<()> {
    let begun = [place.staging(), place.data.clone()];
    for data in &begun {
        let unfinished = [MOVED, COPIED].map(|name| control_path(data, name));
        let is_unfinished = *data == begun[0] || unfinished.iter().any(|path| path.exists());
        if is_unfinished
            && link_targets(&data.join("pg_tblspc"))?
                .iter()
                .any(|to| to == space)
        {
            return Ok(());
        }
    }
    let refuse = |why: &str| Err(CommandError::usage(format!("{} {why}", space.display())));
    if space.starts_with(&place.data) {
        return refuse("lies in the new data directory, where tablespaces go by themselves");
    }
    match entries(space) {
        Ok(names) if names.is_empty() => Ok(()),
        Ok(_) => refuse("is not empty; a tablespace goes into a directory of its own"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            match space.parent().is_some_and(Path::is_dir) {
                true => Ok(()),
                false => refuse("cannot be made: the directory above is missing"),
            }
        }
        Err(error) => Err(error).at(Kind::Usage, "list", space),
    }
}

/// The tablespaces of a set: their OIDs, and where they were on the master (`tablespace_map`).
fn tablespaces(set: &Path) -> Result<BTreeMap<OsString, PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    let mut found = BTreeMap::new();
    for name in ["tablespace_map", "tablespace_map.old"] {
        let path = set.join(name);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.at(Kind::Config, "read", &path)?,
        };
        // A backslash takes the meaning from what follows, a line end for example.
        let mut line = Vec::new();
        let mut bytes = text.into_iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\\' => line.extend(bytes.next()),
                b'\n' => {
                    let space = line.iter().position(|byte| *byte == b' ');
                    if let Some(space) = space {
                        let old = line.split_off(space + 1);
                        line.truncate(space);
                        let oid = OsString::from_vec(std::mem::take(&mut line));
                        found.insert(oid, PathBuf::from(OsString::from_vec(old)));
                    }
                    line.clear();
                }
                byte => line.push(byte),
            }
        }
        return Ok(found);
    }
    Ok(found)
}
