//! `setup --restart` typed by root, where systemd runs the server: only root has it restarted, and the server's user does all else.
//! Never writes a file as root. Invariant: the server is restarted after its settings are written, and then archiving is
//! proven as without root.

use std::process::Stdio;

use crate::config::MasterConfig;
use crate::error::{CommandError, Result};
use crate::output;
use crate::pg::server_unit;
use crate::shell;

/// What the server's user says to root instead of asking somebody to restart the server.
const RESTART_NOW: &str = "walmgr: the server is to be restarted now";

/// Does what was typed as the user `owner`, with the restart in between that this user may not ask for.
pub(crate) fn run(config: &MasterConfig, owner: u32) -> Result<()> {
    let unit = server_unit::unit_of(&config.master_data);
    let unit = unit.filter(|_| config.master_restart_cmd.is_none());
    let Some(unit) = unit else {
        return as_owner(owner, &[], true).map(drop);
    };
    if !as_owner(owner, &["--root-restarts"], false)? {
        return Ok(());
    }
    tracing::info!("restarting PostgreSQL: systemctl restart {unit}");
    server_unit::restart(&unit)?;
    as_owner(owner, &[], false).map(drop)
}

/// Tells root, which waits for it.
pub(super) fn ask_for_restart() -> Result<()> {
    output::print(RESTART_NOW)
}

/// The line that was typed, as the owner; answers whether that asks for a restart.
fn as_owner(owner: u32, more: &[&str], restarts: bool) -> Result<bool> {
    let mut walmgr = shell::as_user(owner)?;
    let typed = std::env::args_os().skip(1);
    walmgr
        .args(typed.filter(|word| restarts || word != "--restart"))
        .args(more)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let ended = walmgr.output();
    let ended = ended.map_err(|error| CommandError::retry("start walmgr").because(error))?;
    let said = String::from_utf8_lossy(&ended.stdout);
    let asks = said.lines().any(|line| line == RESTART_NOW);
    let said = said.trim_end();
    if !asks && !said.is_empty() {
        output::print(said)?;
    }
    match ended.status.success() {
        true => Ok(asks),
        false => Err(CommandError::retry(format!(
            "what was typed failed as user {owner} ({})",
            ended.status
        ))),
    }
}
