//! What is typed next, behind `setup` and the first backups of a master: the lines of the guide, with what is known here.
//! Never decides whether a command worked, and never fails it. Invariant: what runs or is there already is not asked for.

use walmgr_protocol::message::overview::Overview;

use crate::config::{MasterConfig, packaged};
use crate::daemon;
use crate::error::Result;
use crate::output;

/// Behind `setup`, with what the archive held before if that may be read: a backup and the syncdaemon where they are missing.
pub(super) fn after_setup(config: &MasterConfig, held: Option<&Overview>) -> Result<()> {
    let line = |words: &str| {
        let before = packaged::typed_before(&config.path);
        format!("{before}walmgr {} {words}", config.path.display())
    };
    let mut lines = Vec::new();
    if held.is_none_or(|held| held.sets_count == 0) {
        lines.push(("for the first base backup", line("backup")));
    }
    if let Some(starting) = syncdaemon(config) {
        lines.push(("to ship the segment in progress, too", starting));
    }
    lines.push(("to see how it stands", line("status")));
    let lines: Vec<String> = lines
        .into_iter()
        .map(|(what, line)| format!("{what}:\n\n    {line}"))
        .collect();
    output::print(&format!("Type here, {}", lines.join("\n\nand ")))
}

/// Behind a backup: what ships the WAL that it will need last.
pub(super) fn after_backup(config: &MasterConfig) {
    if let Some(line) = syncdaemon(config) {
        tracing::info!("no syncdaemon ships the segment in progress: {line}");
    }
}

/// What starts it, unless it runs.
fn syncdaemon(config: &MasterConfig) -> Option<String> {
    let runs = daemon::is_running(&config.syncdaemon_pidfile()).unwrap_or(true);
    (!runs).then(|| packaged::starting("syncdaemon", &config.path))
}
