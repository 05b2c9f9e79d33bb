//! Whether replay may make a tablespace where the master has it, on this host.
//! Never changes anything. Invariant: a directory that holds another server's tablespace, as far as that can
//! be seen from here, is never called free.
//!
//! `create_tablespace_directories` (`src/backend/commands/tablespace.c`) takes the location of the record as
//! it is. It makes `PG_15_202209061` (by version) in it, is content if that is there, and replaces whatever
//! link or empty directory `pg_tblspc` has of that OID, so a link that was made before does not lead it
//! elsewhere. Where the location is missing, or belongs to somebody else, replay ends. A location may be a
//! link. One in place (15 and later, the empty location) lies in `pg_tblspc` itself and is always right,
//! whatever `allow_in_place_tablespaces` says.
//!
//! A server's own are those that a link in its `pg_tblspc` leads to, of whatever OID: it has made them before,
//! and reads their record again after a restart. That another server has a directory is seen by the working
//! directories of running servers. One that is stopped, or of another user, is recognised by the
//! directory of its version alone.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walmgr_protocol::names::Lsn;

use super::backup_label::BackupLabel;
use super::control;
use super::layout;
use crate::error::{CommandError, Kind};
use crate::files;
use crate::files::FileId;
use crate::wal::obstacle::{Met, Obstacle, Obstacles};

/// The remedy wherever PostgreSQL would write into files that are somebody else's.
const NEW_BACKUP: &str = "make a new backup on the master and `restore` it: that puts the \
    tablespace into the new data directory";

/// Why one of these tablespaces cannot be made for the server in `data`, for which PostgreSQL would end, or
/// do harm.
pub(crate) fn refusal<'a>(
    data: &Path,
    major: u8,
    met: impl IntoIterator<Item = &'a Met>,
) -> Option<CommandError> {
    let mut met = met.into_iter();
    met.find_map(|met| match &met.obstacle {
        Obstacle::Tablespace { oid, location } if may_refuse(&met.obstacle) => {
            let location = Path::new(OsStr::from_bytes(location));
            let (why, hint) = fault(data, major, location)?;
            let doing = format!(
                "the WAL at {} creates tablespace {oid} at {}, {why}",
                met.lsn,
                location.display().to_string().escape_debug()
            );
            Some(CommandError::new(Kind::Retry, doing).hint(hint))
        }
        _ => None,
    })
}

/// Whether there may be a reason not to hand out WAL with these obstacles.
pub(crate) fn may_hold_back(obstacles: &Obstacles) -> bool {
    obstacles.is_cut() || obstacles.all().iter().any(|met| may_refuse(&met.obstacle))
}

/// Whether it names a place outside the data directory.
fn may_refuse(obstacle: &Obstacle) -> bool {
    matches!(obstacle, Obstacle::Tablespace { location, .. } if !location.is_empty())
}

/// The data directory of whoever asks for a file to be put there. PostgreSQL works in it; a script in between
/// may work elsewhere, and `pg_rewind` asks for the server that it rewinds. `None`: nobody who replays.
pub(crate) fn data_directory_of(path: &Path) -> Option<PathBuf> {
    let is_one = |folder: &Path| folder.join(layout::PG_VERSION).exists();
    let above = path.parent().and_then(Path::parent).map(Path::to_path_buf);
    let above = above.filter(|above| !above.as_os_str().is_empty() && is_one(above));
    above.or_else(|| Some(PathBuf::from(".")).filter(|folder| is_one(folder)))
}

/// Where the recovery of the server in `data` begins: its label says so until the control file does.
pub(crate) fn recovery_begin(data: &Path) -> Option<Lsn> {
    match files::read(data.join(layout::BACKUP_LABEL)) {
        Ok(text) => BackupLabel::parse(&text).ok().map(|label| label.start),
        Err(_) => control::read(data).ok().map(|it| it.redo),
    }
}

/// Why the server in `data`, which asks for WAL with these obstacles, is not given it.
pub(crate) fn held_back(data: &Path, major: u8, obstacles: &Obstacles) -> Option<CommandError> {
    if obstacles.is_cut() {
        let doing = "it creates too many tablespaces to check";
        return Some(CommandError::new(Kind::Retry, doing).hint(NEW_BACKUP));
    }
    let begin = recovery_begin(data).unwrap_or_default();
    let ahead = obstacles.all().iter().filter(|met| met.lsn >= begin);
    refusal(data, major, ahead).or_else(|| shared(data))
}

/// Why the server in `data` must not replay at all: a tablespace of its is another running server's too.
pub(crate) fn shared(data: &Path) -> Option<CommandError> {
    let own = data.canonicalize().ok()?;
    let outside = links(data).into_iter().filter(|to| !to.starts_with(&own));
    for location in outside {
        if let Some(other) = server_at(data, &location) {
            let doing = format!(
                "a tablespace of this server lies at {}, which the server in {} uses: PostgreSQL would \
                 replay into its files",
                location.display(),
                other.display()
            );
            return Some(CommandError::new(Kind::Retry, doing).hint(NEW_BACKUP));
        }
    }
    None
}

/// What is wrong with a location, and what to do.
fn fault(data: &Path, major: u8, location: &Path) -> Option<(String, String)> {
    let shown = location.display();
    let found = match location.metadata() {
        Ok(found) if found.is_dir() => found,
        Ok(_) => {
            let hint =
                "move it away, make a directory there, and start the server again".to_owned();
            return Some(("which is no directory".to_owned(), hint));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = format!(
                "make it: `mkdir -p -m 700 {shown}`, or a link to another empty directory, `ln -s DIR \
                 {shown}`, as the user of the server; then start the server again"
            );
            return Some(("which is not on this host".to_owned(), hint));
        }
        Err(error) => {
            let hint = format!("let the server's user look into {shown}");
            return Some((format!("which cannot be looked at: {error}"), hint));
        }
    };
    let Ok(place) = location.canonicalize() else {
        return Some(("which cannot be followed".to_owned(), NEW_BACKUP.to_owned()));
    };
    if let Some(other) = server_at(data, &place) {
        let why = format!(
            "which the server in {} uses: PostgreSQL would replay into its files",
            other.display()
        );
        return Some((why, NEW_BACKUP.to_owned()));
    }
    if has_link_to(data, &place) {
        return None;
    }
    if let Some(version) = version_directory(&place, major) {
        let why = format!("where files of a tablespace already exist, in {version}");
        let hint = format!(
            "if no server on any host uses them, remove {} and start this server again; else \
            {NEW_BACKUP}",
            location.join(version).display()
        );
        return Some((why, hint));
    }
    let user = rustix::process::geteuid();
    if !user.is_root() && found.uid() != user.as_raw() {
        let hint = format!(
            "give it to the server's user: `chown {} {shown}`",
            user.as_raw()
        );
        return Some(("which belongs to another user".to_owned(), hint));
    }
    None
}

/// `TABLESPACE_VERSION_DIRECTORY`, if there is one of this major version.
fn version_directory(place: &Path, major: u8) -> Option<String> {
    let prefix = format!("PG_{major}_");
    let entries = std::fs::read_dir(place).ok()?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.find(|name| name.starts_with(&prefix))
}

/// Where the links in `pg_tblspc` of a data directory lead.
fn links(data: &Path) -> BTreeSet<PathBuf> {
    let Ok(entries) = std::fs::read_dir(data.join(layout::PG_TBLSPC)) else {
        return BTreeSet::new();
    };
    let links = entries.flatten().map(|entry| entry.path());
    let links = links.filter(|path| path.is_symlink());
    links.filter_map(|path| path.canonicalize().ok()).collect()
}

/// The data directory of another running server that has a tablespace in this place. PostgreSQL's processes
/// work in their data directory.
fn server_at(data: &Path, place: &Path) -> Option<PathBuf> {
    let mut seen: BTreeSet<FileId> = FileId::at(data).into_iter().collect();
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let processes = processes.filter(|entry| {
        let name = entry.file_name();
        name.as_bytes().iter().all(u8::is_ascii_digit)
    });
    let folders = processes.map(|entry| entry.path().join("cwd"));
    folders
        .filter(|folder| folder.join(layout::PG_VERSION).exists())
        .filter(|folder| FileId::at(folder).is_some_and(|it| seen.insert(it)))
        .find(|folder| has_link_to(folder, place))
        .and_then(|folder| std::fs::read_link(folder).ok())
}

/// Whether a tablespace of this data directory lies there, whatever the place is called.
fn has_link_to(data: &Path, place: &Path) -> bool {
    // A bind mount gives a directory several names.
    let place = FileId::at(place);
    place.is_some() && links(data).iter().any(|to| FileId::at(to) == place)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use walmgr_protocol::names::Lsn;

    use super::*;

    fn created(location: &Path) -> Met {
        let location = location.as_os_str().as_bytes().to_vec();
        Met {
            lsn: Lsn(0x0300_0028),
            obstacle: Obstacle::Tablespace { oid: 99, location },
        }
    }

    fn refused(data: &Path, location: &Path) -> Option<String> {
        refusal(data, 15, [&created(location)]).map(|error| error.to_string())
    }

    #[test]
    fn fault_314_what_lies_inside_the_data_directory_holds_nothing_back() {
        let of = |met: Met| {
            let mut obstacles = Obstacles::default();
            obstacles.add(met);
            obstacles
        };
        assert!(may_hold_back(&of(created(Path::new("/srv/space")))));
        // One in place, and each record of an extension's resource manager.
        assert!(!may_hold_back(&of(created(Path::new("")))));
        let manager = Met {
            lsn: Lsn(0x0300_0028),
            obstacle: Obstacle::Manager(130),
        };
        assert!(!may_hold_back(&of(manager)));
    }

    #[test]
    fn fault_124_a_location_is_free_its_own_or_refused_with_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let (data, space) = (home.path().join("data"), home.path().join("space"));
        let links = data.join("pg_tblspc");
        std::fs::create_dir_all(&links).unwrap();
        let missing = refused(&data, &space).unwrap();
        assert!(
            missing.contains("0/3000028") && missing.contains("not on this host"),
            "{missing}"
        );
        std::fs::write(&space, "").unwrap();
        assert!(refused(&data, &space).unwrap().contains("no directory"));
        std::fs::remove_file(&space).unwrap();
        std::fs::create_dir(&space).unwrap();
        assert_eq!(refused(&data, &space), None);
        // Of another version, as after pg_upgrade.
        std::fs::create_dir(space.join("PG_14_202107181")).unwrap();
        assert_eq!(refused(&data, &space), None);
        std::fs::create_dir(space.join("PG_15_202209061")).unwrap();
        let taken = refused(&data, &space).unwrap();
        assert!(
            taken.contains("already exist, in PG_15_202209061"),
            "{taken}"
        );
        // Read again after a restart, also under another OID.
        symlink(&space, links.join("98")).unwrap();
        assert_eq!(refused(&data, &space), None);
        let elsewhere = home.path().join("elsewhere");
        symlink(&space, &elsewhere).unwrap();
        assert_eq!(refused(&data, &elsewhere), None);
        assert_eq!(refused(&data, Path::new("")), None, "in place");
    }
}
