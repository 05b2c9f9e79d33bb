//! Where the tablespaces of a set go: below the data directory, or where a mapping says.
//! Never changes anything but for `lead_later`. Invariant: a tablespace goes to no directory that has anything in it, so
//! never to where a server on this host has one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::control_path;
use super::place::{COPIED, MOVED, Place};
use super::transfer::{entries, link_targets};
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::data_directory::DataDirectory;
use crate::pg::tablespace_map;

/// Which tablespace goes where.
pub fn mapping(
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
            continue;
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

/// The mappings for tablespaces that the set does not have and that the master may have made later. Replay
/// goes to where the master has them, whatever link is in `pg_tblspc`, so the only way elsewhere is a link
/// at that place; on a host where something is there already, as on the master's own, there is none.
pub fn later(
    set: &Path,
    asked: &[(PathBuf, PathBuf)],
    place: &Place,
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let known = tablespaces(set)?;
    let is_later = |old: &PathBuf| known.values().all(|path| path != old);
    let mut later = Vec::new();
    for (old, new) in asked.iter().filter(|(old, _)| is_later(old)) {
        let refuse = |why: &str| {
            let paths: Vec<String> = (known.values())
                .map(|path| path.display().to_string())
                .collect();
            let known = match paths.is_empty() {
                true => "it has no tablespaces".to_owned(),
                false => format!("its tablespaces were at {}", paths.join(", ")),
            };
            let doing = format!("the set has no tablespace of {}", old.display());
            Err(CommandError::usage(doing).hint(format!(
                "{known}; one that is made later is made there by PostgreSQL, and can be led elsewhere by a \
                 link only, but {} {why}",
                old.display()
            )))
        };
        if std::fs::read_link(old).is_ok_and(|to| to == *new) {
            continue;
        }
        if old.symlink_metadata().is_ok() {
            return refuse("is there on this host");
        }
        if !old.is_absolute() || !old.parent().is_some_and(Path::is_dir) {
            return refuse("cannot be made: the directory above is missing");
        }
        check_space(new, place)?;
        later.push((old.clone(), new.clone()));
    }
    Ok(later)
}

/// Makes the links for what comes later.
pub fn lead_later(later: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (old, new) in later {
        if !new.is_dir() {
            std::fs::create_dir(new).at(Kind::Retry, "create", new)?;
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(new, mode).at(Kind::Retry, "change the mode of", new)?;
        files::link(old, new).at(Kind::Retry, "link", old)?;
        tracing::info!(
            "the set has no tablespace of {}: it is a link to {} now, for one that the master makes later",
            old.display(),
            new.display()
        );
    }
    Ok(())
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
    for name in ["tablespace_map", "tablespace_map.old"] {
        let path = set.join(name);
        let map = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.at(Kind::Config, "read", &path)?,
        };
        let major = DataDirectory::open(set)?.major();
        let found = tablespace_map::parse(&map, major).map_err(|fault| {
            CommandError::config(format!("read {}", path.display())).because(fault)
        })?;
        let found = found.into_iter();
        return Ok(found
            .map(|space| (OsString::from(space.oid.to_string()), space.location))
            .collect());
    }
    Ok(BTreeMap::new())
}
