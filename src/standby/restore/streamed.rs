//! A base backup of the running master in the place of a set: what is checked before it, and how it comes to where
//! a set would be prepared. Never touches the old directory. Invariant: what a kill leaves has no control file by
//! its own name, and a link to everything outside that was filled, so the next call removes all of it.
//!
//! ```text
//! DST.restoring/pg_tblspc/OID           links to where mapped tablespaces go
//! DST.restoring/tmpspc/OID              the others, as in a set
//! DST.restoring/walmgr.streamed/        what pg_basebackup writes, its control file last
//! DST.restoring/                        the same, moved up when it is whole: label first, then global
//! ```

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::base_backup::{self, BaseBackup};
use super::plan::{self, Plan, SetSource};
use super::promoted;
use crate::config::StandbyConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{self, RoomNeeded};
use crate::options::{Options, Restoring};
use crate::output::Waiting;
use crate::pg::conninfo;
use crate::pg::control;
use crate::pg::data_directory::DataDirectory;
use crate::pg::event_loop::converse;
use crate::pg::layout;
use crate::pg::needs::STREAMED;
use crate::pg::programs::Programs;
use crate::pg::recovery::{Recovery, TargetTimeline};
use crate::pg::set_place::transfer::entries;
use crate::pg::set_place::{self as place, SetPlace};
use crate::pg::sql::Limits;
use crate::pg::sql_replication::{MasterSpace, Upstream};
use crate::standby::sets;
use crate::store::sets::SetSize;
use crate::store::{ArchiveReader, Binding, RealDisk};

/// How long another restore, or a `pg_basebackup` whose walmgr was killed, is waited for: that one ends when it
/// next shows how far it is, and what receives WAL for it a moment later.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks.
const TICK: Duration = Duration::from_millis(200);

/// A master that is going to be copied.
pub(super) struct StreamedMaster {
    upstream: Upstream,
    program: PathBuf,
    /// `primary_conninfo` without its password, and that.
    conninfo: String,
    password: Option<String>,
    spaces: Vec<MasterSpace>,
    binding: Binding,
    quiet: bool,
}

impl StreamedMaster {
    /// What is copied, for a sentence.
    pub(super) fn in_words(&self) -> String {
        let place = &self.upstream.place;
        format!("make a base backup of the master at {place}")
    }
}

/// Decides and checks everything that can be known before the first byte.
pub(super) fn plan<'a>(
    config: &'a StandbyConfig,
    options: &Options,
    restoring: &Restoring,
) -> Result<Plan<'a>> {
    let needs = |name: &str, hint: &str| {
        Err(CommandError::config(format!("createslave needs the setting `{name}`")).hint(hint))
    };
    if config.slave_data.is_none() {
        return needs("slave_data", "set it to the standby's data directory");
    }
    let Some(text) = config.primary_conninfo.as_deref() else {
        return needs(
            "primary_conninfo",
            "set it to a connection string of the master, as PostgreSQL takes it",
        );
    };
    let place = plan::examine_place(config, restoring)?;
    if let Some(left) = plan::moved_leftover(&place)? {
        return Err(CommandError::config(format!(
            "a restore was interrupted, and {} holds its set, which is nowhere else",
            left.display()
        ))
        .hint("type `restore` to finish it"));
    }
    let archive = ArchiveReader::open(&config.completed_wals, Arc::new(RealDisk))
        .map_err(|error| CommandError::new(error.kind(), "open the archive").because(error))?;
    plan::check_config_files(config)?;
    let streamed = look(config, options, text, &archive.binding(), &place)?;
    let known: BTreeMap<OsString, PathBuf> = (streamed.spaces.iter())
        .map(|space| (OsString::from(&space.oid), space.location.clone()))
        .collect();
    let recovery = Recovery {
        after: promoted::archiving(config)?,
        restore_command: plan::restore_command(config)?,
        primary_conninfo: Some(text.to_owned()),
        timeline: TargetTimeline::Latest,
        target: None,
    };
    let plan = Plan {
        is_drill: false,
        tablespaces: super::spaces::assign(&known, &restoring.tablespaces, &place)?,
        later: super::spaces::later_of(&known, &restoring.tablespaces, &place)?,
        size: SetSize::default(),
        source: SetSource::Streamed(Box::new(streamed)),
        server: plan::server_of(config, &place, &place.staging()),
        kept: plan::kept(config, &place),
        config,
        sets: sets::open(config)?,
        place,
        recovery,
        trusts_settings: restoring.trusts_settings,
        alone: None,
        delta: None,
        needed_bytes: None,
    };
    plan.check_wal_directory()?;
    Ok(plan)
}

/// Asks the master whether it can be copied, and is the right one.
fn look(
    config: &StandbyConfig,
    options: &Options,
    text: &str,
    binding: &Binding,
    place: &SetPlace,
) -> Result<StreamedMaster> {
    let (conninfo, password) =
        conninfo::without_password(text).map_err(|error| error.hint("correct primary_conninfo"))?;
    let (upstream, spaces) = converse(async {
        let asked = Upstream::ask(text, Limits::default()).await;
        let upstream = asked.map_err(with_hint)?;
        check_master(&upstream, binding, place)?;
        let spaces = upstream.tablespaces(!options.not_really).await;
        Ok::<_, CommandError>((upstream, spaces.map_err(with_hint)?))
    })?;
    let programs = Programs::of_standby(config);
    let program = programs.find_not_older("pg_basebackup", binding.postgres_major)?;
    let spaces = spaces.unwrap_or_else(|| {
        tracing::info!("the master's tablespaces are listed when the base backup begins");
        Vec::new()
    });
    Ok(StreamedMaster {
        program,
        conninfo,
        password,
        spaces,
        binding: *binding,
        quiet: options.quiet,
        upstream,
    })
}

fn with_hint(error: CommandError) -> CommandError {
    match base_backup::what_to_do(&error.to_string()) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn check_master(upstream: &Upstream, binding: &Binding, place: &SetPlace) -> Result<()> {
    let (found, major) = (upstream.system_id, upstream.version.major());
    if found != binding.system_id || major != u32::from(binding.postgres_major) {
        return Err(CommandError::config(format!(
            "primary_conninfo leads to another cluster (system {found}, PostgreSQL {major}, at {}) than the archive \
            is of ({binding}); nothing was changed",
            upstream.place
        ))
        .hint("correct primary_conninfo, or use the ini file of the other archive"));
    }
    let own = upstream
        .data_directory
        .as_deref()
        .and_then(|data| data.canonicalize().ok());
    let is_here = own.is_some_and(|own| own == place.data);
    let server = DataDirectory::open(&place.data).and_then(|data| data.running());
    let port = server.ok().flatten().and_then(|server| server.port);
    match is_here && port == Some(upstream.port) {
        true => Err(CommandError::config(format!(
            "primary_conninfo leads to the server in slave_data, {}, which would be replaced by its own copy",
            place.data.display()
        ))
        .hint("set primary_conninfo to the master")),
        false => Ok(()),
    }
}

/// Keeps other restores away, and waits for what a killed one left running.
pub(super) fn alone(place: &SetPlace) -> Result<File> {
    let (begun, mut waiting) = (Instant::now(), Waiting::begin());
    loop {
        match super::alone_at(place) {
            Err(error) if begun.elapsed() > PATIENCE || error.kind() != Kind::Retry => {
                return Err(error);
            }
            Ok(alone) => return Ok(alone),
            Err(error) if waiting.is_due() => tracing::info!("{error}; waiting for it"),
            Err(_) => {}
        }
        std::thread::sleep(TICK);
    }
}

impl Plan<'_> {
    /// Has the base backup where a set would be prepared, whole and durable, or nothing of it.
    pub(super) fn receive(&self, streamed: &StreamedMaster) -> Result<()> {
        let received = self.receive_into(streamed, &self.place.staging());
        if received.is_err() {
            self.take_back(true);
        }
        received
    }

    fn receive_into(&self, streamed: &StreamedMaster, staging: &Path) -> Result<()> {
        let lock = self
            .alone
            .as_ref()
            .ok_or_else(|| CommandError::retry("lock the directory"))?;
        place::claim_tablespaces(staging, &self.tablespaces)?;
        let target = staging.join(STREAMED);
        let kept = staging.join(layout::TMPSPC);
        if !streamed.spaces.is_empty() {
            files::make_directory(&kept)?;
        }
        let mapping = streamed.spaces.iter().map(|space| {
            let new = match self.tablespaces.get(OsStr::new(&space.oid)) {
                Some(new) => new.clone(),
                None => kept.join(&space.oid),
            };
            (space.location.clone(), new)
        });
        tracing::info!(
            "{} with {}",
            streamed.in_words().replacen("make", "making", 1),
            streamed.program.display()
        );
        BaseBackup {
            program: &streamed.program,
            conninfo: &streamed.conninfo,
            password: streamed.password.as_deref(),
            target: &target,
            mapping: mapping.collect(),
            has_slots: streamed.upstream.has_slots,
            lock,
            has_room: &|bytes| self.has_room(bytes),
        }
        .run(streamed.quiet)?;
        check_copy(&target, &streamed.binding)?;
        move_up(&target, staging)?;
        files::sync_directory(staging).at(Kind::Retry, "sync", staging)
    }

    /// What goes to mapped directories is not told apart, so these are not counted.
    fn has_room(&self, bytes: u64) -> Result<()> {
        if !self.tablespaces.is_empty() {
            return Ok(());
        }
        let mut needed = RoomNeeded::new(Kind::Config);
        needed.add(self.place.staging_above(), bytes)?;
        needed.check()
    }
}

/// The server may have changed since it was asked.
fn check_copy(copy: &Path, binding: &Binding) -> Result<()> {
    let control = control::read(copy)?;
    let major = DataDirectory::open(copy)?.major();
    let found = (control.system_id, control.segment_size, major);
    if found
        == (
            binding.system_id,
            binding.segment_size,
            binding.postgres_major,
        )
    {
        return Ok(());
    }
    Err(CommandError::config(format!(
        "the base backup is of another cluster (system {}, PostgreSQL {major}, segments of {}) than the archive is of \
        ({binding}); it was removed, and nothing else was changed",
        control.system_id, control.segment_size
    ))
    .hint("check what primary_conninfo leads to"))
}

/// Moves what was received to where a set would be, with the control file out of PostgreSQL's way. The label goes
/// first and the control file next, so that whoever looks which WAL is needed finds one of them.
fn move_up(from: &Path, to: &Path) -> Result<()> {
    let [control, hidden] =
        [layout::PG_CONTROL, layout::CONTROL_COPIED].map(|name| from.join(name));
    files::move_to(&control, &hidden).at(Kind::Retry, "rename", &control)?;
    let mut names = entries(from).at(Kind::Retry, "list", from)?;
    let rank = |name: &OsString| match name.to_str() {
        Some(layout::BACKUP_LABEL) => 0,
        Some(layout::GLOBAL) => 1,
        _ => 2,
    };
    names.sort_by_key(|name| (rank(name), name.clone()));
    for name in names {
        let (source, target) = (from.join(&name), to.join(&name));
        if name == layout::PG_TBLSPC {
            move_links(&source, &target)?;
        } else if place::exists(&target)? {
            // The empty directory in which the master itself has tablespaces.
            files::remove_any(&source)?;
        } else {
            files::move_to(&source, &target).at(Kind::Retry, "move", &source)?;
        }
    }
    files::remove_any(from)
}

/// Moves the links of tablespaces. A mapped tablespace has its link already or gets it later; the links that are moved
/// belong to tablespaces that the master made meanwhile, or that are in place.
fn move_links(from: &Path, to: &Path) -> Result<()> {
    for name in entries(from).at(Kind::Retry, "list", from)? {
        let (source, target) = (from.join(&name), to.join(&name));
        let kept = to.with_file_name(layout::TMPSPC).join(&name);
        if !place::exists(&target)? && !kept.is_dir() {
            files::move_to(&source, &target).at(Kind::Retry, "move", &source)?;
        }
    }
    files::remove_any(from)
}
