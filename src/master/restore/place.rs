//! Where a set is restored to: checked, marked as unfinished, completed or cleared again.
//! Never removes anything that this command did not put there: what may go carries its mark, or is what `set_place`
//! knows as a copy.
//! Invariant: a directory with the mark and without a control file is worthless.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::fs::{Mode, OFlags};
use walmgr_protocol::message::fetch::SetDescription;

use super::old::OldDirectory;
use crate::config::MasterConfig;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files::{self, RoomNeeded};
use crate::options::Restoring;
use crate::pg::later_tablespaces::Later;
use crate::pg::layout;
use crate::pg::mounts::{self, LOST_AND_FOUND};
use crate::pg::recovery::Recovery;
use crate::pg::set_place;
use crate::pg::set_place::taking::{self, DeltaWay};

/// Where a tablespace goes, by its OID.
type Spaces = std::collections::BTreeMap<u32, PathBuf>;

/// Says that a directory is being restored; its text is where the set goes.
pub(super) const MARK: &str = "walmgr.restoring";

/// Room for what PostgreSQL writes before it is up, on top of what is fetched.
pub(super) const SPARE_BYTES: u64 = 32 << 20;

/// A place for a set.
pub(super) struct RestorePlace {
    /// The data directory to be.
    pub data: PathBuf,
    /// Where its files are until all of it is done: there, or where those of an old directory do not stand in the way.
    pub prepared: PathBuf,
    /// The directory whose files are taken over.
    pub old: Option<OldDirectory>,
    /// Where tablespaces go that do not stay below it.
    pub spaces: Spaces,
    /// Where those go that the master makes later.
    pub later: Later,
    /// Whether the directory has to be made.
    is_new: bool,
    /// Held while it is filled.
    opened: Option<OpenedPlace>,
}

struct OpenedPlace {
    /// Locked, so that two restores do not take each other for leftovers.
    root: File,
    /// Opened before anything is written, so that the sync reports every failure.
    spaces: Vec<(u32, OwnedFd)>,
}

impl RestorePlace {
    /// Looks at a place; fails if the set cannot go there. Changes nothing.
    pub(super) fn examine(
        config: &MasterConfig,
        data: &Path,
        described: &SetDescription,
        restoring: &Restoring,
    ) -> Result<RestorePlace> {
        let (data, mapping) = (files::resolved(data), &restoring.tablespaces);
        let old = match DeltaWay::typed(restoring) {
            Some(way) if !is_unfinished(&data, &data)? => OldDirectory::find(&data, way)?,
            _ => None,
        };
        refuse_overlap(config, &data, old.is_some())?;
        let mut place = RestorePlace {
            is_new: old.is_none() && examine_directory(&data, &data)?,
            spaces: spaces(described, mapping)?,
            later: Later::default(),
            prepared: (old.as_ref()).map_or_else(|| data.clone(), |old| old.place.staging()),
            old,
            data,
            opened: None,
        };
        for space in place.spaces.values() {
            let others = place.spaces.values().filter(|other| *other == space);
            place.examine_space(config, space, others.count() > 1)?;
        }
        let known = described.tablespaces.iter();
        let known: Vec<PathBuf> = known.map(|space| location(&space.path)).collect();
        place.later = Later::examine(&known, mapping, |new| {
            let is_taken = place
                .spaces
                .values()
                .any(|space| *space == files::resolved(new));
            place.examine_space(config, &files::resolved(new), is_taken)
        })?;
        if place.old.is_none() {
            place.check_room(described)?;
        }
        Ok(place)
    }

    fn examine_space(&self, config: &MasterConfig, space: &Path, is_taken: bool) -> Result<()> {
        refuse_overlap(config, space, false)?;
        if space.starts_with(&self.data) || self.data.starts_with(space) || is_taken {
            return Err(CommandError::usage(format!(
                "{} must not contain, or lie in, {} or another tablespace",
                space.display(),
                self.data.display()
            )));
        }
        match &self.old {
            Some(old) => old.place.check_space(space),
            None => examine_directory(space, &self.data).map(drop),
        }
    }

    /// What would be done, as a verb phrase.
    pub(super) fn in_words(&self, described: &SetDescription, recovery: &Recovery) -> String {
        let end = match &recovery.target {
            None => "as a standby".to_owned(),
            Some((target, action)) => format!("up to {target}, then {action}"),
        };
        let (name, bytes) = (&described.name, HumanBytes(described.stream_bytes));
        let (data, way) = (self.data.display(), self.old.as_ref().map(|old| old.way));
        match way {
            None => format!("fetch {name}, {bytes}, into {data}, to recover {end}"),
            Some(DeltaWay::Beside) => format!(
                "fetch of {name}, {bytes}, what {data} lacks, after that move its old content aside, to recover {end}"
            ),
            Some(DeltaWay::InPlace) => format!(
                "fetch of {name}, {bytes}, what {data} lacks, whose old content is gone from the first byte on, to \
                recover {end}"
            ),
        }
    }

    /// What the control file is called until everything is done.
    pub(super) const fn control_name(&self) -> &'static str {
        match self.old {
            Some(_) => layout::CONTROL_COPIED,
            None => layout::CONTROL_RESTORING,
        }
    }

    /// Where something that is prepared will lie.
    pub(super) fn at_home(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(&self.prepared);
        inside.map_or_else(|_| path.to_path_buf(), |name| self.data.join(name))
    }

    /// Where something that will lie in the data directory is prepared.
    pub(super) fn before_home(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(&self.data);
        inside.map_or_else(|_| path.to_path_buf(), |name| self.prepared.join(name))
    }

    fn check_room(&self, described: &SetDescription) -> Result<()> {
        let mut needed = RoomNeeded::new(Kind::Usage);
        let mut need = |path: &Path, bytes: u64| match path.exists() {
            true => needed.add(path, bytes),
            false => needed.add(path.parent().unwrap_or(path), bytes),
        };
        need(&self.data, described.bytes.saturating_add(SPARE_BYTES))?;
        for space in &described.tablespaces {
            need(
                self.spaces.get(&space.oid).unwrap_or(&self.data),
                space.bytes,
            )?;
        }
        needed.check()
    }

    /// Makes and marks the directories; what an interrupted restore left there goes.
    pub(super) fn begin(mut self, described: &SetDescription) -> Result<RestorePlace> {
        if let Some(old) = &mut self.old {
            old.begin()?;
            if taking::is_source(&old.place) {
                return self.begin_beside();
            }
            tracing::info!("there is nothing to take over in {}", self.data.display());
            self.old = None;
            self.prepared = self.data.clone();
            self.is_new = examine_directory(&self.data, &self.data)?;
            self.check_room(described)?;
        }
        if self.is_new {
            files::make_directory(&self.data)?;
        }
        let root = files::try_lock(Kind::Retry, &self.data)?.ok_or_else(|| {
            CommandError::retry(format!("another restore writes to {}", self.data.display()))
        })?;
        // Somebody else may have come first.
        examine_directory(&self.data, &self.data)?;
        for space in self.spaces.values() {
            if examine_directory(space, &self.data)? {
                files::make_directory(space)?;
            }
            clear(space)?;
        }
        clear(&self.data)?;
        let mut spaces = Vec::new();
        for (oid, space) in &self.spaces {
            self.mark(space)?;
            spaces.push((*oid, open_directory(space)?));
        }
        self.mark(&self.data)?;
        // PostgreSQL refuses a directory that others may look into.
        for directory in self.spaces.values().chain([&self.data]) {
            let mode = PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(directory, mode).at(Kind::Retry, "close", directory)?;
        }
        self.opened = Some(OpenedPlace { root, spaces });
        Ok(self)
    }

    /// Makes the directories of a set that takes files of an old one over.
    fn begin_beside(mut self) -> Result<RestorePlace> {
        let names = self.spaces.iter();
        let names = names.map(|(oid, space)| (OsString::from(oid.to_string()), space.clone()));
        set_place::claim_tablespaces(&self.prepared, &names.collect())?;
        for directory in self.spaces.values().chain([&self.prepared]) {
            let closed = std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700));
            closed.at(Kind::Retry, "close", directory)?;
        }
        let mut spaces = Vec::new();
        for (oid, space) in &self.spaces {
            spaces.push((*oid, open_directory(space)?));
        }
        let root = File::from(open_directory(&self.prepared)?);
        self.opened = Some(OpenedPlace { root, spaces });
        Ok(self)
    }

    fn mark(&self, directory: &Path) -> Result<()> {
        let path = directory.join(MARK);
        files::create_new(&path, self.data.as_os_str().as_bytes(), 0o600).at(
            Kind::Retry,
            "write",
            &path,
        )
    }

    /// The directory's handle, and those of its tablespaces elsewhere.
    pub(super) fn handles(&self) -> Result<(OwnedFd, Vec<(u32, OwnedFd)>)> {
        let failed = |error: io::Error| CommandError::retry("copy a handle").because(error);
        let Some(opened) = &self.opened else {
            return Err(CommandError::retry("open the new directory"));
        };
        let root = opened.root.as_fd().try_clone_to_owned().map_err(failed)?;
        let mut spaces = Vec::new();
        for (oid, space) in &opened.spaces {
            spaces.push((*oid, space.try_clone().map_err(failed)?));
        }
        Ok((root, spaces))
    }

    /// Leads the links to where the tablespaces are now.
    pub(super) fn link_tablespaces(&self, described: &SetDescription) -> Result<()> {
        let links = self.prepared.join(layout::PG_TBLSPC);
        files::make_directory(&links)?;
        for space in &described.tablespaces {
            let oid = space.oid.to_string();
            let kept = Path::new(layout::TMPSPC).join(&oid);
            let (link, home) = (links.join(&oid), self.data.join(&kept));
            let target = match self.spaces.get(&space.oid) {
                Some(mapped) => mapped,
                None if self.prepared.join(&kept).is_dir() => &home,
                // It lies in the data directory itself.
                None => continue,
            };
            files::link(&link, target).at(Kind::Retry, "link", &link)?;
        }
        Ok(())
    }

    /// An empty pg_wal, unless the set has one.
    pub(super) fn make_wal_directory(&self) -> Result<()> {
        files::make_directory(&self.prepared.join(layout::PG_WAL))
    }

    /// Makes everything durable that was written.
    pub(super) fn sync(&self) -> Result<()> {
        let Some(opened) = &self.opened else {
            return Ok(());
        };
        let sync = |directory: BorrowedFd<'_>, path: &Path| {
            files::sync_tree(directory).at(Kind::Retry, "make durable", path)
        };
        sync(opened.root.as_fd(), &self.prepared)?;
        for (oid, space) in &opened.spaces {
            sync(space.as_fd(), self.spaces.get(oid).unwrap_or(&self.data))?;
        }
        files::sync_directory(self.above()).at(Kind::Retry, "sync", self.above())
    }

    /// Has everything in place, the control file last, from where on PostgreSQL starts; then takes the marks away.
    pub(super) fn settle(&self) -> Result<()> {
        if let Some(old) = &self.old {
            return old.give_way();
        }
        let [aside, control] =
            [layout::CONTROL_RESTORING, layout::PG_CONTROL].map(|name| self.data.join(name));
        files::move_to(&aside, &control).at(Kind::Retry, "move into place", &control)?;
        for directory in self.spaces.values().chain([&self.data]) {
            let path = directory.join(MARK);
            files::remove(&path).at(Kind::Retry, "remove", &path)?;
        }
        Ok(())
    }

    /// Removes what a restore that failed has written, as far as it belongs to nobody else; the error with what
    /// there is then.
    pub(super) fn give_up(&self, error: CommandError) -> CommandError {
        match &self.old {
            Some(old) => old.give_up(error),
            None => {
                self.clear_all();
                error
            }
        }
    }

    fn clear_all(&self) {
        if self.data.join(layout::PG_CONTROL).exists() {
            return;
        }
        for directory in self.spaces.values().chain([&self.data]) {
            let mut cleared = clear(directory);
            if cleared.is_ok() && *directory == self.data && self.is_new {
                cleared = std::fs::remove_dir(directory).at(Kind::Retry, "remove", directory);
            }
            if let Err(error) = cleared {
                tracing::warn!("{error}; the next restore to the same place removes it");
            }
        }
    }

    fn above(&self) -> &Path {
        self.data.parent().unwrap_or(Path::new("/"))
    }
}

/// Whether a directory has to be made; an error unless it can be, is empty, or is an unfinished
/// restore to `data`.
fn examine_directory(path: &Path, data: &Path) -> Result<bool> {
    let names = match std::fs::read_dir(path) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match path.parent() {
                Some(above) if above.is_dir() => Ok(true),
                _ => Err(CommandError::usage(format!(
                    "cannot create {}: the directory above it is missing",
                    path.display()
                ))),
            };
        }
        Err(error) => return Err(error).at(Kind::Usage, "list", path),
    };
    mounts::refuse_foreign(path)?;
    let names = names.filter_map(|entry| Some(entry.ok()?.file_name()));
    let is_free = names.filter(|name| name != LOST_AND_FOUND).count() == 0;
    let is_free = is_free || is_unfinished(path, data)?;
    match is_free {
        true => Ok(false),
        false => Err(
            CommandError::usage(format!("{} is not empty", path.display()))
                .hint("name a new or an empty directory"),
        ),
    }
}

/// Whether what is there is the rest of an interrupted restore to `data`, and nothing else.
fn is_unfinished(path: &Path, data: &Path) -> Result<bool> {
    let mark = path.join(MARK);
    let marked = match files::read(&mark) {
        Ok(text) => text == data.as_os_str().as_bytes(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).at(Kind::Usage, "read", &mark),
    };
    Ok(marked && !data.join(layout::PG_CONTROL).exists())
}

/// Removes what a marked directory holds, the mark last.
fn clear(directory: &Path) -> Result<()> {
    let mark = directory.join(MARK);
    if !mark.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(directory).at(Kind::Retry, "list", directory)? {
        let path = entry.at(Kind::Retry, "list", directory)?.path();
        if path == mark || path.file_name() == Some(OsStr::new(LOST_AND_FOUND)) {
            continue;
        }
        let kind = path.symlink_metadata().at(Kind::Retry, "examine", &path)?;
        let removed = match kind.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        removed.at(Kind::Retry, "remove", &path)?;
    }
    files::remove(&mark).at(Kind::Retry, "remove", &mark)?;
    Ok(())
}

/// Neither inside the master's data directory nor around it.
fn refuse_overlap(config: &MasterConfig, path: &Path, takes_over: bool) -> Result<()> {
    let own = files::resolved(&config.master_data);
    // Lost with its host, it may be restored where it was; and so where no server runs in it.
    let is_replacement = *path == own && (takes_over || !own.join(layout::PG_VERSION).exists());
    if is_replacement || !(path.starts_with(&own) || own.starts_with(path)) {
        return Ok(());
    }
    Err(CommandError::usage(format!(
        "{} and the master's data directory {} must not contain each other",
        path.display(),
        own.display()
    ))
    .hint("restore to a new directory, check it, and only then replace the old directory"))
}

fn location(path: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()))
}

/// Which tablespace goes where.
fn spaces(described: &SetDescription, mapping: &[(PathBuf, PathBuf)]) -> Result<Spaces> {
    let known = &described.tablespaces;
    let twice = known.iter().enumerate().find(|(index, space)| {
        let before = &known[..*index];
        before.iter().any(|other| other.oid == space.oid)
    });
    if let Some((_, space)) = twice {
        let text = format!("the set was described with tablespace {} twice", space.oid);
        return Err(CommandError::retry(text));
    }
    let mut spaces = Spaces::new();
    for (old, new) in mapping {
        if let Some(space) = known.iter().find(|space| location(&space.path) == *old) {
            spaces.insert(space.oid, files::resolved(new));
        }
    }
    for space in known
        .iter()
        .filter(|space| !spaces.contains_key(&space.oid))
    {
        tracing::info!(
            "tablespace {} stays below the new directory, in {}/{}",
            location(&space.path).display(),
            layout::TMPSPC,
            space.oid
        );
    }
    Ok(spaces)
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at(Kind::Retry, "open", path)
}
