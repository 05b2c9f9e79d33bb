//! Raises the settings that a hot standby must not have lower than its master had them.
//! Never lowers one that the server's files set, wherever they lie, and touches `postgresql.auto.conf` alone.
//! Invariant: each that is raised is named.

use super::edit;
use super::server::ServerSettings;
use crate::error::{IoContext, Kind, Result};
use crate::files;
use crate::pg::sql_settings::COMMAND_LINE;
use crate::wal::obstacle::Demands;

/// Raises them for the server with these settings: with less it pauses where the master raised them, or ends.
/// What is set higher stays.
pub(crate) fn raise(settings: &ServerSettings, demands: Demands) -> Result<()> {
    let mut raised = Vec::new();
    for ((name, needed), (_, default)) in demands.each().into_iter().zip(Demands::DEFAULTS.each()) {
        let set = match settings.read(name) {
            Ok(set) => set,
            // What the master had is enough, and a server that stands still is worse than one with less than its
            // own files may say.
            Err(error) if needed > default => {
                tracing::warn!(
                    "{name} is set to {needed}, since the master raised it after the backup; the \
                    server's own files cannot be read, and may set more: {error}"
                );
                raised.push((name, needed.to_string()));
                continue;
            }
            Err(_) => None,
        };
        let value = (set.as_ref()).and_then(|set| set.value.trim().parse().ok());
        let value: i32 = value.unwrap_or(default);
        if value >= needed {
            continue;
        }
        match set {
            Some(set) if set.place == COMMAND_LINE => tracing::warn!(
                "{name} has to be {needed}, since the master raised it after the backup; but the \
                server was last started with {value} on its command line, which overrides every \
                file"
            ),
            _ => tracing::info!(
                "{name} is set to {needed}, not {value}: the master raised it after the backup"
            ),
        }
        raised.push((name, needed.to_string()));
    }
    if raised.is_empty() {
        return Ok(());
    }
    let raised: Vec<(&str, &str)> = raised
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    let path = settings.automatic();
    let text = files::read(&path).at(Kind::Retry, "read", &path)?;
    let (edited, _) = edit(&text, &raised)?;
    files::replace(&path, &edited, 0o600).at(Kind::Retry, "write", &path)
}
