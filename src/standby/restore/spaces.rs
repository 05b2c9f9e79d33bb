//! Where the tablespaces of a set go: below the data directory, or where a mapping says.
//! Never changes anything. Invariant: a tablespace goes to no directory that has anything in it, so never to
//! where a server on this host has one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;
use crate::pg::data_directory::DataDirectory;
use crate::pg::later_tablespaces::Later;
use crate::pg::layout;
use crate::pg::set_place::SetPlace;
use crate::pg::tablespace_map;

/// Where the tablespaces go that the user typed a place for: directories by OID. The other tablespaces go below the
/// data directory. Fails if the set lacks a tablespace.
pub(super) fn mapping(
    set: &Path,
    asked: &[(PathBuf, PathBuf)],
    place: &SetPlace,
) -> Result<BTreeMap<OsString, PathBuf>> {
    let known = tablespaces(set)?;
    for (oid, old) in &known {
        let kept = [
            set.join(layout::TMPSPC).join(oid),
            set.join(layout::PG_TBLSPC).join(oid),
        ];
        if !kept.iter().any(|path| path.is_dir()) {
            return Err(CommandError::config(format!(
                "{} lacks the tablespace {} (OID {})",
                set.display(),
                old.display(),
                oid.display()
            )));
        }
    }
    assign(&known, asked, place)
}

/// Where the `known` tablespaces go that the user typed a place for: directories by OID. `known` has the place on the
/// master of each OID. The other tablespaces go below the data directory.
pub(super) fn assign(
    known: &BTreeMap<OsString, PathBuf>,
    asked: &[(PathBuf, PathBuf)],
    place: &SetPlace,
) -> Result<BTreeMap<OsString, PathBuf>> {
    let mut mapping = BTreeMap::new();
    for (old, new) in asked {
        let Some((oid, _)) = known.iter().find(|(_, path)| *path == old) else {
            continue;
        };
        place.check_space(new)?;
        mapping.insert(oid.clone(), new.clone());
    }
    for (oid, old) in known.iter().filter(|(oid, _)| !mapping.contains_key(*oid)) {
        let place = place.data.join(layout::TMPSPC).join(oid);
        tracing::info!("tablespace {} goes to {}", old.display(), place.display());
    }
    Ok(mapping)
}

/// The typed mappings of tablespaces that `set` does not have.
pub(super) fn later(set: &Path, asked: &[(PathBuf, PathBuf)], place: &SetPlace) -> Result<Later> {
    later_of(&tablespaces(set)?, asked, place)
}

/// The typed mappings of tablespaces other than the `known` ones, which are places on the master by OID.
pub(super) fn later_of(
    known: &BTreeMap<OsString, PathBuf>,
    asked: &[(PathBuf, PathBuf)],
    place: &SetPlace,
) -> Result<Later> {
    let known: Vec<PathBuf> = known.values().cloned().collect();
    Later::examine(&known, asked, |new| place.check_space(new))
}

/// The tablespaces of a set: their OIDs, and where they were on the master (`tablespace_map`).
fn tablespaces(set: &Path) -> Result<BTreeMap<OsString, PathBuf>> {
    for name in [layout::TABLESPACE_MAP, layout::TABLESPACE_MAP_DONE] {
        let path = set.join(name);
        let map = match files::read(&path) {
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
