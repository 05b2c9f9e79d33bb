//! `keep_symlinks`: pg_wal and the log stay behind the links that the old `slave_data` has for them.
//! Never touches what a link leads to but as `slave_pg_xlog` would. Invariant: what an interrupted restore
//! linked already counts more than the old directory, whose links lead aside by then.

use std::path::{Path, PathBuf};

use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::layout;
use crate::pg::set_place::SetPlace;
use crate::pg::set_place::transfer::entries;

/// What the server's log is called in the data directory, as PostgreSQL and the packages of old call it.
const LOGS: [&str; 2] = ["log", "pg_log"];

/// What a set's own log is called where the link has to be.
const LOG_OF_THE_SET: &str = "of-the-set";

/// Where the links lead.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The directory for pg_wal.
    pub wal: Option<PathBuf>,
    /// Links of the log, with what they say.
    logs: Vec<(&'static str, PathBuf)>,
}

impl Kept {
    /// Looks at the directory that is to be replaced.
    pub(super) fn find(place: &SetPlace) -> Kept {
        let staging = place.staging();
        let wal = [&staging, &place.data].into_iter().find_map(|data| {
            let wal = data.join(layout::PG_WAL);
            let target = wal.is_symlink().then(|| wal.canonicalize().ok()).flatten();
            target.filter(|target| !target.starts_with(data))
        });
        let log = |name: &'static str| {
            let links = [&staging, &place.data].map(|data| data.join(name));
            let link = links
                .iter()
                .find_map(|link| std::fs::read_link(link).ok())?;
            Some((name, link))
        };
        Kept {
            wal,
            logs: LOGS.into_iter().filter_map(log).collect(),
        }
    }

    /// Links the log again, in the place of what the set has under its name.
    pub(super) fn link_logs(&self, staging: &Path) -> Result<()> {
        for (name, target) in &self.logs {
            let link = staging.join(name);
            if link.is_dir() && !link.is_symlink() {
                let names = entries(&link).at(Kind::Retry, "list", &link)?;
                let aside = staging.join(format!("{name}.{LOG_OF_THE_SET}"));
                match names.is_empty() {
                    true => files::remove_any(&link)?,
                    false => files::move_to(&link, &aside).at(Kind::Retry, "rename", &link)?,
                }
            }
            files::link(&link, target).at(Kind::Retry, "link", &link)?;
            tracing::info!("{name} is again a link to {}", target.display());
        }
        Ok(())
    }
}
