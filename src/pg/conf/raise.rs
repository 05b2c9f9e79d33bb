//! Raises the settings that a hot standby must not have lower than its master had them.
//! Never lowers one that the files it is told of set, and touches `postgresql.auto.conf` alone. Invariant: each that is raised is named.

use std::path::Path;

use super::{AUTO_CONF, edit, last_setter};
use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::wal::obstacle::Demands;

/// Raises them in a data directory whose server reads `config_file`: with less it pauses where the master
/// raised them, or ends. What is set higher stays.
pub fn raise(config_file: &Path, data: &Path, demands: Demands) -> Result<()> {
    let mut raised = Vec::new();
    for ((name, needed), (_, default)) in demands.each().into_iter().zip(Demands::DEFAULTS.each()) {
        // What cannot be read is PostgreSQL's to complain about.
        let setter = last_setter(config_file, data, name).ok().flatten();
        let set = setter.and_then(|setter| setter.value.parse().ok());
        let set: i32 = set.unwrap_or(default);
        if set < needed {
            tracing::info!(
                "{name} is {needed} here, not {set}: the master raised it after the backup"
            );
            raised.push((name, needed.to_string()));
        }
    }
    if raised.is_empty() {
        return Ok(());
    }
    let raised: Vec<(&str, &str)> = raised
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    let path = data.join(AUTO_CONF);
    let text = std::fs::read(&path).at(Kind::Retry, "read", &path)?;
    let (edited, _) = edit(&text, &raised)?;
    files::replace(&path, &edited, 0o600).at(Kind::Retry, "write", &path)
}
