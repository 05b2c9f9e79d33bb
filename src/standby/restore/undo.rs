//! What a restore says when it cannot go on: where everything lies, and the line that undoes it.
//! Never changes anything. Invariant: a line that is shown can be typed as it stands.

use std::path::{Path, PathBuf};

use super::plan::{Plan, SetSource};
use crate::error::CommandError;
use crate::pg::layout;
use crate::pg::set_place::transfer::entries;

impl Plan<'_> {
    /// The hint for a server that does not start on the new directory; `aside` is the old one.
    pub(super) fn after_failed_start(
        &self,
        error: CommandError,
        aside: Option<&Path>,
    ) -> CommandError {
        let data = &self.place.data;
        let complete = format!("{} is complete: start PostgreSQL there", data.display());
        let whence = match &self.source {
            SetSource::Copy(_) | SetSource::Streamed(_) => String::new(),
            SetSource::Move(set) if set.path.exists() => String::new(),
            SetSource::Move(set) => format!(
                "; {} was moved there and is no longer listed, so make another backup once the \
                server runs",
                set.name
            ),
            SetSource::Taken => "; its set is no longer listed".to_owned(),
        };
        let undo = match aside {
            // What is left of the old directory is no server any more.
            Some(_) if self.is_in_place() => String::new(),
            Some(aside) => {
                format!(
                    "; to have the old directory back: {}",
                    match self.place.is_mount {
                        true => undo_line_within(data, aside),
                        false => undo_line(data, aside),
                    }
                )
            }
            None => String::new(),
        };
        error.hint(format!("{complete}{whence}{undo}"))
    }

    /// What is said before the error of a restore that ended between the server's stop and its start.
    pub(super) fn tell_where_it_stands(&self, was_stopped: bool) {
        if let (true, SetSource::Copy(set)) = (self.is_in_place(), &self.source) {
            tracing::warn!(
                "the old content of {} is gone, and no server starts there before this restore has finished; free room if \
                the disk is full, and type the same line again, with its other options: walmgr {} restore --delta \
                --in-place {}",
                self.place.data.display(),
                shown(&self.config.path),
                set.name
            );
            return;
        }
        let staging = self.place.staging();
        let left = match staging.exists() {
            true => staging,
            false => self.place.data.clone(),
        };
        let server = match was_stopped {
            true => "; the server was stopped",
            false => "",
        };
        let left = left.display();
        tracing::warn!(
            "the unfinished restore is in {left}{server}; type `{}` again to continue",
            self.word()
        );
    }
}

/// Puts the old directory back. Its links below itself were led to where it lies aside.
fn undo_line(data: &Path, aside: &Path) -> String {
    let failed = free(data, ".failed");
    let mut words = vec![
        format!("mv -T {} {}", shown(data), shown(&failed)),
        format!("mv -T {} {}", shown(aside), shown(data)),
    ];
    words.extend(relinks(data, aside));
    words.join(" && ")
}

/// The line for a shell that brings the old server back within a mount point: what is there goes to a directory
/// in it, and what was there comes out of `aside`.
fn undo_line_within(mount: &Path, aside: &Path) -> String {
    let find = "find . -mindepth 1 -maxdepth 1 ! -name 'walmgr.*' ! -name lost+found";
    let old = shown(aside.file_name().map_or(aside, Path::new));
    let failed = free(&mount.join("walmgr"), ".failed");
    let failed = shown(failed.file_name().map_or(&failed, Path::new));
    let mut words = vec![
        format!("cd {}", shown(mount)),
        format!("mkdir {failed}"),
        format!("{find} -exec mv -t {failed} {{}} +"),
        format!("find {old} -mindepth 1 -maxdepth 1 -exec mv -t . {{}} +"),
    ];
    words.extend(relinks(mount, aside));
    words.join(" && ")
}

/// A path with this behind it, and a number if an earlier line made that already.
fn free(path: &Path, suffix: &str) -> PathBuf {
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        if number > 1 {
            name.push(format!(".{number}"));
        }
        PathBuf::from(name)
    };
    let mut names = (1..=u32::MAX).map(name);
    let free = names.find(|name| name.symlink_metadata().is_err());
    free.unwrap_or_else(|| name(1))
}

/// What leads the links below an old directory back; they are read from where it lies now.
fn relinks(data: &Path, aside: &Path) -> Vec<String> {
    let names = entries(&aside.join(layout::PG_TBLSPC)).unwrap_or_default();
    let links = names
        .iter()
        .map(|name| PathBuf::from(layout::PG_TBLSPC).join(name));
    let mut words = Vec::new();
    for link in links.chain([PathBuf::from(layout::PG_WAL)]) {
        let target = std::fs::read_link(aside.join(&link)).ok();
        if let Some(below) = target.as_ref().and_then(|it| it.strip_prefix(aside).ok()) {
            let (target, link) = (data.join(below), data.join(&link));
            words.push(format!("ln -sfn {} {}", shown(&target), shown(&link)));
        }
    }
    words
}

/// A path as a word for a shell.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%".contains(&byte);
    match text.bytes().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_134_the_line_puts_the_old_directory_back_with_its_tablespaces() {
        let home = tempfile::tempdir().unwrap();
        let (data, aside) = (home.path().join("it's data"), home.path().join("old"));
        for made in [
            &data,
            &aside,
            &aside.join("pg_tblspc"),
            &aside.join("tmpspc/1"),
        ] {
            std::fs::create_dir_all(made).unwrap();
        }
        std::fs::write(aside.join("tmpspc/1/kept"), "").unwrap();
        let link = |name: &str, target: &Path| {
            std::os::unix::fs::symlink(target, aside.join("pg_tblspc").join(name)).unwrap();
        };
        link("1", &aside.join("tmpspc/1"));
        link("2", Path::new("/elsewhere"));
        let mut shell = std::process::Command::new("/bin/sh");
        let done = shell.arg("-c").arg(undo_line(&data, &aside)).status();
        assert!(done.unwrap().success());
        assert!(!aside.exists() && home.path().join("it's data.failed").is_dir());
        assert!(data.join("pg_tblspc/1/kept").exists());
        let elsewhere = std::fs::read_link(data.join("pg_tblspc/2")).unwrap();
        assert_eq!(elsewhere, Path::new("/elsewhere"));
        let again = undo_line(&data, &aside);
        assert!(again.contains("it'\\''s data.failed.2'"), "{again}");
    }
}
