//! The copies of the master's configuration files: staged beside the folder, swapped in with the set.
//! Never takes a file that has an effect outside PostgreSQL. Invariant: a backup that is refused or
//! ends early leaves `config_backup` as it was.

use std::io;
use std::path::{Path, PathBuf};

use walmgr_protocol::message::{Error, ErrorCode};

use super::received::Received;
use crate::files;
use crate::pg::conf::foreign::is_outside_postgresql;
use crate::store::{ConfigCopies, LIST_NAME};

/// Mode of a configuration file that was not there before: they may hold passwords.
const CONFIG_MODE: u32 = 0o600;

/// What is appended to the folder's name for the one in which files wait.
const STAGING: &str = ".incoming";

/// Files that wait for their set to be sealed.
pub(crate) struct Staged {
    folder: PathBuf,
    staging: PathBuf,
    names: Vec<String>,
}

/// Refuses files that no master's backup sends.
pub(crate) fn check(parts: &Received) -> Result<(), Error> {
    for (name, _) in parts.configs() {
        // A relative path cannot lead out of the folder; one step down is `conf.d`.
        let file_name = String::from_utf8_lossy(name.file_name()).into_owned();
        let is_deep = name
            .parent()
            .is_some_and(|above| above.parent().is_some() || above.as_bytes().starts_with(b"."));
        let is_ours = file_name == LIST_NAME;
        if is_deep || is_ours || is_outside_postgresql(&file_name) {
            let text = format!("{name} is not the name of a configuration file that is kept");
            return Err(Error::channel(ErrorCode::Misbehaved, text, ""));
        }
    }
    Ok(())
}

/// Writes the files beside the folder; `None` if there are none, or no folder for them.
pub(crate) fn stage(
    folder: Option<&Path>,
    parts: &Received,
    warnings: &mut Vec<String>,
) -> Result<Option<Staged>, Error> {
    let mut configs = parts.configs().peekable();
    if configs.peek().is_none() {
        return Ok(None);
    }
    let Some(folder) = folder else {
        warnings.push(
            "the master's configuration files are outside its data directory, and no backup has \
            them: set `config_backup` on the standby"
                .to_owned(),
        );
        return Ok(None);
    };
    let mut staging = folder.as_os_str().to_owned();
    staging.push(STAGING);
    let mut staged = Staged {
        folder: folder.to_path_buf(),
        staging: PathBuf::from(staging),
        names: Vec::new(),
    };
    staged
        .clear()
        .map_err(|error| failed(&staged.staging, &error))?;
    std::fs::create_dir_all(&staged.staging).map_err(|error| failed(&staged.staging, &error))?;
    for (name, content) in configs {
        let name = name.to_string();
        let path = staged.staging.join(&name);
        let above = path.parent().unwrap_or(&staged.staging);
        std::fs::create_dir_all(above).map_err(|error| failed(above, &error))?;
        files::create_new(&path, content, CONFIG_MODE).map_err(|error| failed(&path, &error))?;
        staged.names.push(name);
    }
    Ok(Some(staged))
}

impl Staged {
    /// Puts the files in place of the older ones. The set is sealed, so what fails is a warning.
    pub(crate) fn swap_in(self, warnings: &mut Vec<String>) {
        let mut copies = ConfigCopies::read(&self.folder);
        for name in &self.names {
            let staged = files::read(self.staging.join(name));
            let swapped = staged.and_then(|content| copies.swap_in(name, &content));
            if let Err(error) = swapped {
                let path = self.folder.join(name);
                warnings.push(format!("{} was not replaced: {error}", path.display()));
            }
        }
    }

    fn clear(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.staging) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What stays the next backup removes.
        let _ = self.clear();
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let text = format!("write {}: {error}", path.display());
    let hint = "look at `config_backup` on the standby";
    Error::channel(ErrorCode::DiskFailed, text, hint)
}
