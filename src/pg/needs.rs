//! Which WAL the servers on the standby's host can still ask the archive for.
//! Never changes anything and never guesses. Invariant: a directory from which PostgreSQL may yet
//! recover is counted, under whatever name a restore has it at the moment, or the answer is an error.
//!
//! | what lies in a directory | it needs WAL from |
//! |---|---|
//! | `backup_label` | the first segment of the label: PostgreSQL has not begun to replay |
//! | a control file that says it replays, or a signal file | the redo point |
//! | a control file of a primary, without a signal file | nothing: it recovers from its own `pg_wal` |
//! | `PG_VERSION`, and no control file that can be read | unknown |

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use walmgr_protocol::names::SegmentName;

use super::backup_label::BackupLabel;
use super::control::{self, State};
use super::layout;
use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// What is appended to the name of a data directory while a restore prepares one beside it.
pub(crate) const RESTORING_SUFFIX: &str = "restoring";

/// What such names begin with within a data directory that is a mount point; the one in which a set is
/// prepared there, and what that is called while it moves into place.
pub(crate) const WITHIN_PREFIX: &str = "walmgr.";
pub(crate) const RESTORING_WITHIN: &str = "walmgr.restoring";
pub(crate) const ENTERING_WITHIN: &str = "walmgr.entering";

/// In the directory where a set is prepared: what `pg_basebackup` writes, until it is whole.
pub(crate) const STREAMED: &str = "walmgr.streamed";

/// Links from `slave_data` that are followed; the kernel gives up at 40.
const LINKS_MAX: usize = 40;

/// The oldest segments that the server in `slave_data`, and a set that a restore is bringing there,
/// can still ask for.
///
/// Whoever removes WAL calls this while no set can be taken from the list: a set that is moved from
/// there in the meantime would be in neither.
pub(crate) fn of_servers(slave_data: &Path) -> Result<Vec<SegmentName>> {
    let mut needed = Vec::new();
    for data in names_of(slave_data)? {
        // In the order in which a restore renames them, so that none is missed on its way.
        let mut staging = data.clone().into_os_string();
        staging.push(".");
        staging.push(RESTORING_SUFFIX);
        let staging = PathBuf::from(staging);
        for prepared in [staging, data.join(RESTORING_WITHIN)] {
            // Before the directory to which it moves.
            needed.extend(of_directory(&prepared.join(STREAMED))?);
            needed.extend(of_directory(&prepared)?);
        }
        needed.extend(of_directory(&data.join(ENTERING_WITHIN))?);
        needed.extend(of_directory(&data)?);
    }
    Ok(needed)
}

/// The path itself and every one that it leads to by symlinks, also where the last leads nowhere
/// while a restore is exchanging what lies there.
fn names_of(slave_data: &Path) -> Result<Vec<PathBuf>> {
    let mut names = vec![slave_data.to_path_buf()];
    while names.len() <= LINKS_MAX {
        let last = &names[names.len() - 1];
        match std::fs::read_link(last) {
            Ok(target) => names.push(last.parent().unwrap_or(Path::new("/")).join(target)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
                ) =>
            {
                // The directories above may be links too.
                names.extend(std::fs::canonicalize(last).ok().filter(|path| path != last));
                return Ok(names);
            }
            Err(error) => return Err(error).at(Kind::Retry, "examine", last),
        }
    }
    Err(unknown(
        slave_data,
        "it is a symlink that leads in a circle",
    ))
}

/// The oldest segments that a server in this directory can still ask for; none if there is no server.
pub(crate) fn of_directory(data: &Path) -> Result<Vec<SegmentName>> {
    let mut needed = Vec::new();
    // The label goes first: PostgreSQL renames it when the control file says where it stands.
    let label = data.join(layout::BACKUP_LABEL);
    let is_labelled = match files::read(&label) {
        Ok(text) => {
            let parsed = BackupLabel::parse(&text);
            let parsed = parsed.map_err(|why| unknown(&label, &why.to_string()))?;
            needed.push(parsed.first_segment);
            true
        }
        Err(error) if is_absent(&error) => false,
        Err(error) => return Err(error).at(Kind::Retry, "read", &label),
    };
    let Some(path) = control_file(data)? else {
        return match !is_labelled && exists(&data.join(layout::PG_VERSION))? {
            true => Err(unknown(data, "it has no control file")),
            false => Ok(needed),
        };
    };
    let control = control::read_file(&path)
        .map_err(|error| unknown(data, "its control file cannot be read").because(error))?;
    let mut replays = matches!(
        control.state,
        State::InArchiveRecovery | State::ShutDownInRecovery
    );
    for signal in layout::SIGNALS {
        replays = exists(&data.join(signal))? || replays;
    }
    if replays {
        let (timeline, size) = (control.timeline, control.segment_size);
        needed.push(SegmentName::containing(timeline, control.redo, size));
    }
    Ok(needed)
}

/// The control file by the name that it has.
fn control_file(data: &Path) -> Result<Option<PathBuf>> {
    let path = data.join(layout::PG_CONTROL);
    // As a restore gives the file its name at last: the other names are looked for first.
    for name in [layout::CONTROL_COPIED, layout::CONTROL_MOVED] {
        let aside = data.join(name);
        if exists(&aside)? {
            return Ok(Some(aside));
        }
    }
    Ok(exists(&path)?.then_some(path))
}

fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error).at(Kind::Retry, "examine", path),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn unknown(path: &Path, why: &str) -> CommandError {
    let path: OsString = path.into();
    CommandError::retry(format!(
        "it is unknown which WAL the server in {} needs: {why}",
        path.display()
    ))
    .hint("complete or remove that directory; until then no WAL is removed")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::pg::fixtures;

    const LABEL: &str = "START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n\
        CHECKPOINT LOCATION: 0/300060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-01-02 03:04:05 UTC\nLABEL: FullBackup\nSTART TIMELINE: 1\n";
    const OF_LABEL: &str = "000000010000000000000003";

    /// A control file in this state, and the segment of its redo point.
    fn control(state: u32) -> (Vec<u8>, String) {
        let mut bytes = fixtures::control_file(15);
        bytes[16..20].copy_from_slice(&state.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        let read = control::parse(&bytes).unwrap();
        let segment = SegmentName::containing(read.timeline, read.redo, read.segment_size);
        (bytes, segment.to_string())
    }

    fn server(data: &Path, control_name: &str, control: &[u8]) {
        std::fs::create_dir_all(data.join("global")).unwrap();
        std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        std::fs::write(data.join(control_name), control).unwrap();
    }

    fn needed(data: &Path) -> Vec<String> {
        let found = of_servers(data).unwrap().into_iter();
        found.map(|name| name.to_string()).collect()
    }

    #[test]
    fn fault_104_each_state_of_a_server_says_what_it_needs() {
        for (state, replays) in [
            (0, false),
            (1, false),
            (2, true),
            (3, false),
            (4, false),
            (5, true),
            (6, false),
        ] {
            let home = tempfile::tempdir().unwrap();
            let data = home.path().join("data");
            let (bytes, segment) = control(state);
            server(&data, layout::PG_CONTROL, &bytes);
            let expected: &[String] = if replays {
                std::slice::from_ref(&segment)
            } else {
                &[]
            };
            assert_eq!(needed(&data), expected, "state {state}");
            // One that will replay as soon as it is started.
            std::fs::write(data.join("standby.signal"), "").unwrap();
            let expected = std::slice::from_ref(&segment);
            assert_eq!(needed(&data), expected, "state {state}");
            std::fs::remove_file(data.join("standby.signal")).unwrap();
            std::fs::write(data.join("recovery.signal"), "").unwrap();
            assert_eq!(needed(&data), [segment], "state {state}");
        }
        let home = tempfile::tempdir().unwrap();
        let (mut bytes, _) = control(5);
        bytes[16] = 9;
        server(home.path(), layout::PG_CONTROL, &bytes);
        assert!(of_servers(home.path()).is_err(), "of no known state");
    }

    #[test]
    fn fault_104_an_unfinished_restore_needs_its_wal_under_every_name() {
        let (bytes, redo) = control(6);
        for (place, name) in [
            ("data.restoring", layout::PG_CONTROL),
            ("data.restoring/walmgr.streamed", layout::PG_CONTROL),
            ("data/walmgr.restoring/walmgr.streamed", layout::PG_CONTROL),
            ("data.restoring", layout::CONTROL_MOVED),
            ("data.restoring", layout::CONTROL_COPIED),
            ("data", layout::CONTROL_MOVED),
        ] {
            let home = tempfile::tempdir().unwrap();
            let place = home.path().join(place);
            server(&place, name, &bytes);
            std::fs::write(place.join("backup_label"), LABEL).unwrap();
            let data = home.path().join("data");
            assert_eq!(needed(&data), [OF_LABEL], "{} {name}", place.display());
            std::fs::write(place.join("standby.signal"), "").unwrap();
            assert_eq!(needed(&data), [OF_LABEL.to_owned(), redo.clone()]);
            std::fs::write(place.join("backup_label"), &LABEL[..30]).unwrap();
            assert!(of_servers(&data).is_err(), "half a label says nothing");
        }
    }

    #[test]
    fn fault_104_symlinks_lead_to_what_is_restored_behind_them() {
        let home = tempfile::tempdir().unwrap();
        let (link, real) = (home.path().join("link"), home.path().join("deep/real"));
        std::fs::create_dir(home.path().join("deep")).unwrap();
        symlink("deep/real", &link).unwrap();
        assert_eq!(needed(&link), [""; 0]);
        // The old directory was moved aside, so the link leads nowhere.
        let (bytes, _) = control(6);
        server(
            &real.with_extension("restoring"),
            layout::CONTROL_MOVED,
            &bytes,
        );
        let label = real.with_extension("restoring").join("backup_label");
        std::fs::write(&label, LABEL).unwrap();
        assert_eq!(needed(&link), [OF_LABEL]);
        std::fs::rename(real.with_extension("restoring"), &real).unwrap();
        assert!(needed(&link).contains(&OF_LABEL.to_owned()));
        symlink("circle", home.path().join("circle")).unwrap();
        assert!(of_servers(&home.path().join("circle")).is_err());
    }

    #[test]
    fn fault_104_what_cannot_be_read_is_unknown() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(needed(&home.path().join("absent")), [""; 0]);
        assert_eq!(needed(home.path()), [""; 0], "an empty directory");
        std::fs::write(home.path().join("PG_VERSION"), "15\n").unwrap();
        assert!(of_servers(home.path()).is_err(), "no control file");
        server(home.path(), layout::PG_CONTROL, b"torn");
        assert!(of_servers(home.path()).is_err(), "no sound control file");
    }
}
