//! PostgreSQL's programs that a drill starts: those of `slave_bin`, of the set's major version.
//! Never takes another version's. Invariant: what is found has said its version itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::config::StandbyConfig;
use crate::error::Result;
use crate::pg::data_directory::DataDirectory;
use crate::pg::programs::Programs;

/// Where a server lies, and which.
pub(super) struct DrillPrograms {
    folder: PathBuf,
    /// Its major version.
    pub(super) major: u8,
}

impl DrillPrograms {
    /// Those for this set.
    pub(super) fn find(config: &StandbyConfig, set: &Path) -> Result<DrillPrograms> {
        let major = DataDirectory::open(set)?.major();
        let server = Programs::of_standby(config).find("postgres", major)?;
        let folder = server.parent().unwrap_or(Path::new(""));
        Ok(DrillPrograms {
            folder: folder.to_path_buf(),
            major,
        })
    }

    /// A program's path, whether it is there or not.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where its libraries may lie; those that exist.
    pub(super) fn libraries(&self) -> Vec<PathBuf> {
        let below = ["../lib", "../lib/postgresql", "../lib64", "../lib64/pgsql"];
        self.folders(&below, "--pkglibdir")
    }

    /// Where the files of its extensions may lie; those that exist.
    pub(super) fn shared(&self) -> Vec<PathBuf> {
        let below = ["../share", "../share/postgresql", "../share/pgsql"];
        self.folders(&below, "--sharedir")
    }

    fn folders(&self, below: &[&str], asked: &str) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = below.iter().map(|below| self.folder.join(below)).collect();
        let said = Command::new(self.path("pg_config"))
            .arg(asked)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        if let Ok(said) = said
            && let Ok(folder) = String::from_utf8(said.stdout)
            && !folder.trim().is_empty()
        {
            folders.push(PathBuf::from(folder.trim()));
        }
        folders.retain(|folder| folder.is_dir());
        folders
    }
}
