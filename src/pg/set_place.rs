//! Where a set is restored to: what is there, what an interrupted restore left, and making way.
//! Never removes a directory that could be anybody's data, but for an old one that
//! `backup_datadir = no` gives up. Invariant: PostgreSQL starts from nothing half done, as the
//! control file has another name meanwhile.

pub(crate) mod taking;
pub(crate) mod transfer;
pub(crate) mod within;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::data_directory::DataDirectory;
use crate::pg::layout;
use crate::pg::{mounts, needs};

use transfer::entries;

/// What is appended to the directory's name while a set is prepared beside it.
const STAGING: &str = needs::RESTORING_SUFFIX;

/// What is appended while an old directory is removed.
const REMOVING: &str = "removing";

/// What of an unfinished copy is removed last.
const OF_A_COPY: [&str; 2] = [layout::PG_TBLSPC, layout::GLOBAL];

/// How many old directories are kept beside each other.
const OLD_COPIES_MAX: u32 = 10_000;

/// How the files of a set came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetOrigin {
    /// The set is still listed.
    Copied,
    /// They are the set.
    Moved,
}

/// What there is where the set is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occupant {
    /// Nothing.
    Nobody,
    /// An empty directory.
    Empty,
    /// A data directory.
    Old,
    /// What an interrupted restore left.
    Unfinished(SetOrigin),
}

/// The directory that is to be made.
pub(crate) struct SetPlace {
    /// Where it goes.
    pub data: PathBuf,
    /// Whether it is the `slave_data` of the settings.
    pub is_slave_data: bool,
    /// What is there.
    pub occupant: Occupant,
    /// Whether it is a mount point, whose content has to change places within it.
    pub is_mount: bool,
}

impl SetPlace {
    /// Looks at a place; fails if a set cannot go there.
    pub(crate) fn examine(data: &Path, is_slave_data: bool) -> Result<SetPlace> {
        // A link leads to where the administrator wants it; only what it leads to is replaced.
        // What does not lead there is not guessed: below a directory that is missing, `..` leads nowhere.
        let resolved = std::fs::canonicalize(data).unwrap_or_else(|_| data.to_path_buf());
        let is_mount = mounts::is_mount_point(&resolved)?;
        let place = SetPlace {
            occupant: match is_mount {
                true => within::occupant(&resolved)?,
                false => occupant_of(&resolved)?,
            },
            data: resolved,
            is_slave_data,
            is_mount,
        };
        let shown = place.data.display();
        if place.data.file_name().is_none() || !place.above().is_dir() {
            return Err(CommandError::config(format!(
                "cannot create {shown}: there is no directory {}",
                place.above().display()
            )));
        }
        mounts::refuse_below(
            &place.data,
            "mount it elsewhere and point a link or slave_pg_xlog there; or unmount it: umount \
            MOUNT",
        )?;
        mounts::refuse_foreign(&place.data)?;
        refuse_foreign(&place.staging())?;
        if !is_slave_data && place.occupant == Occupant::Old {
            return Err(CommandError::usage(format!("{shown} is not empty"))
                .hint("only slave_data is moved aside; name a new directory"));
        }
        Ok(place)
    }

    /// The directory above.
    pub(crate) fn above(&self) -> &Path {
        self.data.parent().unwrap_or(Path::new("/"))
    }

    /// Where the set is prepared, on the same file system.
    pub(crate) fn staging(&self) -> PathBuf {
        match self.is_mount {
            true => within::staging(&self.data),
            false => beside(&self.data, STAGING),
        }
    }

    /// The directory in which that is.
    pub(crate) fn staging_above(&self) -> &Path {
        match self.is_mount {
            true => &self.data,
            false => self.above(),
        }
    }

    /// Puts what was prepared in place; the name is free.
    pub(crate) fn move_in(&self) -> Result<()> {
        let data = &self.data;
        match self.is_mount {
            true => within::enter(data),
            false => files::move_to(&self.staging(), data).at(Kind::Retry, "move into place", data),
        }
    }

    /// Has what an interrupted restore put in place where it was prepared.
    pub(crate) fn move_back(&self) -> Result<()> {
        let data = &self.data;
        match self.is_mount {
            true => within::retreat(data),
            false => files::move_to(data, &self.staging()).at(Kind::Retry, "move", data),
        }
    }

    /// Removes what copies left that were interrupted.
    pub(crate) fn clear_copies(&self) -> Result<()> {
        let (staging, data) = (self.staging(), &self.data);
        if origin_of_staging(&staging)? == Some(SetOrigin::Copied) {
            remove_copy(&staging, data)?;
        }
        match self.occupant {
            Occupant::Unfinished(SetOrigin::Copied) if self.is_mount => {
                self.move_back()?;
                remove_copy(&staging, data)
            }
            Occupant::Unfinished(SetOrigin::Copied) => remove_copy(data, data),
            _ => Ok(()),
        }
    }

    /// A tablespace goes to a directory that is empty, or that an interrupted restore had begun to fill.
    pub(crate) fn check_space(&self, space: &Path) -> Result<()> {
        let begun = [self.staging(), self.data.clone()];
        for data in &begun {
            let unfinished =
                [layout::CONTROL_MOVED, layout::CONTROL_COPIED].map(|name| data.join(name));
            let is_unfinished = *data == begun[0] || unfinished.iter().any(|path| path.exists());
            if is_unfinished
                && transfer::link_targets(&data.join(layout::PG_TBLSPC))?
                    .iter()
                    .any(|to| to == space)
            {
                return Ok(());
            }
        }
        let refuse = |why: &str| Err(CommandError::usage(format!("{} {why}", space.display())));
        if space.starts_with(&self.data) {
            return refuse("is in the new data directory, where tablespaces go without a mapping");
        }
        match entries(space) {
            Ok(names) if names.is_empty() => Ok(()),
            Ok(_) => refuse("is not empty; a tablespace needs a directory of its own"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match space.parent().is_some_and(Path::is_dir) {
                    true => Ok(()),
                    false => refuse("cannot be created: the directory above is missing"),
                }
            }
            Err(error) => Err(error).at(Kind::Usage, "list", space),
        }
    }

    /// Frees the name; the old directory's new one, if there was one.
    pub(crate) fn make_way(&self, keep_old: bool) -> Result<Option<PathBuf>> {
        let data = &self.data;
        if self.is_mount {
            return within::make_way(data, keep_old);
        }
        match std::fs::remove_dir(data) {
            Ok(()) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // It is not empty.
            Err(_) => {}
        }
        // Without a server in it, what is there is somebody else's.
        let controls = [layout::PG_CONTROL, layout::CONTROL_TAKEN].map(|name| data.join(name));
        let keep_old = keep_old || !(exists(&controls[0])? || exists(&controls[1])?);
        let aside = match keep_old {
            true => free_name(data)?,
            false => beside(data, REMOVING),
        };
        if !keep_old {
            remove_old(&aside)?;
        }
        files::move_to(data, &aside).at(Kind::Retry, "move aside", data)?;
        transfer::relink(&aside, data, &aside)?;
        if keep_old {
            tracing::info!("the old {} is now {}", data.display(), aside.display());
        }
        Ok(Some(aside))
    }

    /// Removes an old directory that is not to be kept, also one that a killed restore left.
    pub(crate) fn settle(&self, aside: Option<PathBuf>) -> Result<()> {
        let removing = match self.is_mount {
            true => within::removing(&self.data),
            false => beside(&self.data, REMOVING),
        };
        match aside {
            Some(aside) if aside != removing => Ok(()),
            _ => remove_old(&removing),
        }
    }
}

fn occupant_of(data: &Path) -> Result<Occupant> {
    match entries(data) {
        Ok(names) if names.is_empty() => return Ok(Occupant::Empty),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(error) => return Err(error).at(Kind::Config, "list", data),
    }
    let there = |name: &str| exists(&data.join(name));
    if !there(layout::PG_CONTROL)? {
        if there(layout::CONTROL_MOVED)? {
            return Ok(Occupant::Unfinished(SetOrigin::Moved));
        }
        if there(layout::CONTROL_COPIED)? {
            return Ok(Occupant::Unfinished(SetOrigin::Copied));
        }
    }
    // Fails for a directory of something else, which is not ours to move.
    DataDirectory::open(data).map_err(|error| {
        CommandError::config(format!("{} is not empty", data.display())).because(error)
    })?;
    Ok(Occupant::Old)
}

/// Whether any of these directories has the control file under the names of a set that was moved, of one
/// that was copied, and its own.
pub(crate) fn control_names(places: &[PathBuf]) -> Result<[bool; 3]> {
    let mut found = [false; 3];
    for place in places {
        for (found, name) in found.iter_mut().zip([
            layout::CONTROL_MOVED,
            layout::CONTROL_COPIED,
            layout::PG_CONTROL,
        ]) {
            *found |= exists(&place.join(name))?;
        }
    }
    Ok(found)
}

/// How what is being prepared came there; `None` if nothing is.
pub(crate) fn origin_of_staging(staging: &Path) -> Result<Option<SetOrigin>> {
    if !exists(staging)? {
        return Ok(None);
    }
    // A copy gets its control file under the other name, at some time.
    let is_moved =
        exists(&staging.join(layout::PG_CONTROL))? || exists(&staging.join(layout::CONTROL_MOVED))?;
    Ok(Some(match is_moved {
        true => SetOrigin::Moved,
        false => SetOrigin::Copied,
    }))
}

/// Keeps PostgreSQL from starting; nothing happens if it could not anyway.
pub(crate) fn hide_control(staging: &Path) -> Result<()> {
    let (control, hidden) = (
        staging.join(layout::PG_CONTROL),
        staging.join(layout::CONTROL_MOVED),
    );
    match exists(&control)? {
        true => files::move_to(&control, &hidden).at(Kind::Retry, "rename", &control),
        false => Ok(()),
    }
}

/// Lets PostgreSQL start.
pub(crate) fn show_control(data: &Path) -> Result<()> {
    let control = data.join(layout::PG_CONTROL);
    for name in [layout::CONTROL_MOVED, layout::CONTROL_COPIED] {
        let hidden = data.join(name);
        if exists(&hidden)? {
            return files::move_to(&hidden, &control).at(Kind::Retry, "rename", &hidden);
        }
    }
    Err(CommandError::retry(format!(
        "{} has no control file",
        data.display()
    )))
}

/// Links the tablespaces that go elsewhere, by their OIDs, before anything is put there, so that what a kill leaves
/// in them is known to be from here.
pub(crate) fn claim_tablespaces(
    staging: &Path,
    tablespaces: &BTreeMap<OsString, PathBuf>,
) -> Result<()> {
    let links = staging.join(layout::PG_TBLSPC);
    files::make_directory(staging)?;
    files::make_directory(&links)?;
    for (oid, space) in tablespaces {
        let link = links.join(oid);
        files::link(&link, space).at(Kind::Retry, "link", &link)?;
        files::make_directory(space)?;
    }
    Ok(())
}

/// Removes a copy that was not finished, with what it had put into tablespaces outside.
pub(crate) fn remove_copy(copy: &Path, data: &Path) -> Result<()> {
    for target in transfer::link_targets(&copy.join(layout::PG_TBLSPC))? {
        if target.is_absolute() && !target.starts_with(data) && !target.starts_with(copy) {
            transfer::remove_entries(&target)?;
        }
    }
    let names = match entries(copy) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.at(Kind::Retry, "list", copy)?,
    };
    // What tells that it is a copy goes last.
    for name in names
        .iter()
        .filter(|name| !OF_A_COPY.iter().any(|own| own == name))
    {
        files::remove_any(&copy.join(name))?;
    }
    for name in OF_A_COPY {
        files::remove_any(&copy.join(name))?;
    }
    std::fs::remove_dir_all(copy).at(Kind::Retry, "remove the unfinished", copy)
}

/// Refuses a directory that has the name of one in which a set is prepared, and that no restore made: each begins
/// with links to tablespaces.
fn refuse_foreign(staging: &Path) -> Result<()> {
    if !exists(staging)? {
        return Ok(());
    }
    let shown = staging.display();
    let foreign = |what: &str| {
        let says = format!("{shown} is in the way: {what}; nothing was changed");
        Err(CommandError::config(says).hint("rename it, or remove it if nobody needs it"))
    };
    if !staging.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return foreign("it is no directory");
    }
    if origin_of_staging(staging)? == Some(SetOrigin::Moved) {
        return Ok(());
    }
    let names = entries(staging).at(Kind::Config, "list", staging)?;
    let is_left = |name: &OsString| OF_A_COPY.iter().any(|own| own == name);
    match exists(&staging.join(layout::PG_TBLSPC))? || names.iter().all(is_left) {
        true => Ok(()),
        false => foreign("no restore has made it"),
    }
}

/// A name beside a directory that nothing has, such as `data.1`.
pub(crate) fn free_name(path: &Path) -> Result<PathBuf> {
    for number in 1..OLD_COPIES_MAX {
        let name = beside(path, &number.to_string());
        if !exists(&name)? {
            return Ok(name);
        }
    }
    Err(CommandError::retry(format!(
        "there are too many old copies of {}",
        path.display()
    ))
    .hint("remove those that you no longer need"))
}

/// Removes a directory, of which PostgreSQL cannot start once the first file of it is gone.
pub(crate) fn remove_old(path: &Path) -> Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at(Kind::Retry, "remove", path),
    };
    gone(std::fs::remove_file(path.join(layout::PG_CONTROL)))?;
    gone(std::fs::remove_dir_all(path))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

pub(crate) fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(error).at(Kind::Config, "examine", path),
    }
}
