//! Whether a command that PostgreSQL runs during recovery may remove files of an archive.
//! Never runs anything. Invariant: a command that names the archive's directory, itself, by a link, or in a script
//! that it runs, is told; what it finds by a variable alone is not known.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::{SCRIPT_BYTES_MAX, SHELLS_MAX, shell};
use crate::files;

/// The settings of such commands: after each restartpoint, and at the end of recovery.
pub(crate) const SETTINGS: [&str; 2] = ["archive_cleanup_command", "recovery_end_command"];

/// Whether this command of the server on `data` names the archive, something above or below it.
pub(crate) fn reaches(command: &str, archive: &Path, data: &Path) -> bool {
    let looked_for = LookedFor {
        archive: files::resolved(archive),
        written: archive.to_path_buf(),
    };
    looked_for.in_command(&command.replace("%%", "%"), data, 0)
}

struct LookedFor {
    /// Without links.
    archive: PathBuf,
    /// As the settings have it.
    written: PathBuf,
}

impl LookedFor {
    fn in_command(&self, command: &str, data: &Path, depth: usize) -> bool {
        // Where it is in no word of its own: `$(ls /archive)`, `--dir=/archive`.
        if self.in_text(command.as_bytes()) {
            return true;
        }
        let mut folder = data.to_path_buf();
        for item in shell::items(command) {
            for word in &item.words {
                let path = folder.join(word);
                if self.is_led_to(&path) || self.in_script(&path) {
                    return true;
                }
                let is_command = word.contains(char::is_whitespace);
                if is_command && depth < SHELLS_MAX && self.in_command(word, &folder, depth + 1) {
                    return true;
                }
            }
            if let [cd, place] = &item.words[..]
                && cd == "cd"
            {
                folder = folder.join(place);
            }
        }
        false
    }

    /// A path that is the archive, lies in it, or has it below; `/` alone is above everything.
    fn is_led_to(&self, path: &Path) -> bool {
        let path = files::resolved(path);
        let is_root = !path
            .components()
            .any(|part| matches!(part, Component::Normal(_)));
        path.starts_with(&self.archive) || !is_root && self.archive.starts_with(&path)
    }

    fn in_script(&self, path: &Path) -> bool {
        let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
        let text = is_file.then(|| files::read_at_most(path, SCRIPT_BYTES_MAX as u64));
        match text {
            Some(Ok(text)) => text.starts_with(b"#!") && self.in_text(&text),
            _ => false,
        }
    }

    fn in_text(&self, text: &[u8]) -> bool {
        [&self.archive, &self.written].into_iter().any(|path| {
            let path = path.as_os_str().as_bytes();
            let mut places = text.windows(path.len().max(1)).enumerate();
            // `/archive2` is another directory, and so is `/srv/archive`.
            let is_apart = |byte: Option<&u8>| {
                byte.is_none_or(|byte| !byte.is_ascii_alphanumeric() && !b"_-.".contains(byte))
            };
            places.any(|(at, bytes)| {
                let before = at.checked_sub(1).and_then(|before| text.get(before));
                bytes == path && is_apart(before) && is_apart(text.get(at + path.len()))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_167_a_command_that_names_the_archive_is_told_however_it_does() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        let (archive, data) = (home.join("wal/logs.complete"), home.join("pg"));
        for made in [
            &archive,
            &data,
            &home.join("wal2"),
            &home.join("wal/logs.complete2"),
        ] {
            std::fs::create_dir_all(made).unwrap();
        }
        std::os::unix::fs::symlink(&archive, home.join("link")).unwrap();
        let script = format!("#!/bin/sh\npg_archivecleanup {} $1\n", archive.display());
        std::fs::write(home.join("clean.sh"), script).unwrap();
        std::fs::write(
            home.join("other.sh"),
            "#!/bin/sh\npg_archivecleanup /srv/wal $1\n",
        )
        .unwrap();
        let tells = |command: &str| {
            let command = command.replace("HOME", &home.display().to_string());
            reaches(&command, &archive, &data)
        };
        for command in [
            "pg_archivecleanup HOME/wal/logs.complete %r",
            "/usr/lib/postgresql/15/bin/pg_archivecleanup -d HOME/wal/logs.complete/ %r 2>>cleanup.log",
            "pg_archivecleanup \"HOME/link\" \"%r\"",
            "pg_archivecleanup ../wal/logs.complete %r",
            "cd HOME/wal && pg_archivecleanup logs.complete %r",
            "sh -c 'cd HOME && pg_archivecleanup wal/logs.complete %r'",
            "find HOME/wal -mmin +60 -delete",
            "HOME/clean.sh %r",
            "sh ../clean.sh %r",
            "rm $(ls HOME/wal/logs.complete/0*)",
            "tidy --archive=HOME/wal/logs.complete",
        ] {
            assert!(tells(command), "{command}");
        }
        for command in [
            "",
            "true",
            "pg_archivecleanup /srv/wal %r",
            "pg_archivecleanup HOME/wal2 %r",
            "pg_archivecleanup HOME/wal/logs.complete2 %r",
            "HOME/other.sh %r",
            "walmgr HOME/standby.ini xpurgewals",
            "pg_archivecleanup 'unclosed",
        ] {
            assert!(!tells(command), "{command}");
        }
    }
}
