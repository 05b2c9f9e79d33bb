//! Mappings for tablespaces that a set does not have and that the master may make later.
//! Never replaces what is there. Invariant: a mapping is one that replay will follow, or is refused.
//!
//! Replay goes to where the master has a tablespace, whatever link is in `pg_tblspc`, so the only way elsewhere is
//! a link at that place; on a host where something is there already, as on the master's own, there is none.

use std::path::{Path, PathBuf};

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// Places on the master, and where they lead here.
#[derive(Debug, Default)]
pub(crate) struct Later(Vec<(PathBuf, PathBuf)>);

impl Later {
    /// Those of the mappings that were asked for whose tablespace is not `known`; `check` says whether a
    /// tablespace can go to a directory.
    pub(crate) fn examine(
        known: &[PathBuf],
        asked: &[(PathBuf, PathBuf)],
        check: impl Fn(&Path) -> Result<()>,
    ) -> Result<Later> {
        let mut later: Vec<(PathBuf, PathBuf)> = Vec::new();
        for (old, new) in asked.iter().filter(|(old, _)| !known.contains(old)) {
            let refuse = |why: &str| Err(refusal(known, old, why));
            if std::fs::read_link(old).is_ok_and(|to| to == *new) {
                continue;
            }
            if new.starts_with(old) {
                return refuse("would lead to itself");
            }
            if old.symlink_metadata().is_ok() {
                return refuse("exists on this host");
            }
            if !old.is_absolute() || !old.parent().is_some_and(Path::is_dir) {
                return refuse("cannot be created: the directory above is missing");
            }
            check(new)?;
            let others = asked.iter().filter(|(_, other)| other == new);
            if others.count() > 1 {
                let text = format!("two tablespaces cannot both go to {}", new.display());
                return Err(CommandError::usage(text).hint("name a directory for each"));
            }
            later.push((old.clone(), new.clone()));
        }
        Ok(Later(later))
    }

    /// Makes the links.
    pub(crate) fn lead(&self) -> Result<()> {
        for (old, new) in &self.0 {
            if !new.is_dir() {
                std::fs::create_dir(new).at(Kind::Retry, "create", new)?;
            }
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(new, mode).at(Kind::Retry, "change the mode of", new)?;
            files::link(old, new).at(Kind::Retry, "link", old)?;
            tracing::info!(
                "the set has no tablespace of {}: a link to {} was created there, for a \
                tablespace that the master creates later",
                old.display(),
                new.display()
            );
        }
        Ok(())
    }
}

fn refusal(known: &[PathBuf], old: &Path, why: &str) -> CommandError {
    let paths: Vec<String> = known
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let known = match paths.is_empty() {
        true => "it has no tablespaces".to_owned(),
        false => format!("its tablespaces were at {}", paths.join(", ")),
    };
    let doing = format!("the set has no tablespace of {}", old.display());
    CommandError::usage(doing).hint(format!(
        "{known}; PostgreSQL creates later tablespaces at their own location, so only a link can \
        redirect them, but {} {why}",
        old.display()
    ))
}
