//! A set that becomes the server of `master_data` itself: it archives by this ini file once it has opened.
//! Never writes outside the restored directory. Invariant: `archive_mode` stays as the master had it, so that a
//! server that only replays archives nothing unless it is `always`.

use super::place::RestorePlace;
use crate::config::MasterConfig;
use crate::error::Result;
use crate::files;
use crate::master::setup;
use crate::pg::archive_command::{Destination, Ours, destination};
use crate::pg::conf::{self, ServerSettings};

/// Puts into the restored `postgresql.conf` what `setup` puts there. A file elsewhere is this host's own and stays.
pub(super) fn archive_once_open(config: &MasterConfig, place: &RestorePlace) -> Result<()> {
    let main = place.before_home(&files::resolved(&config.master_config));
    if !main.starts_with(&place.prepared) || !main.exists() {
        return Ok(());
    }
    let changes = setup::changes(config)?;
    let changes: Vec<(&str, &str)> = changes
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    conf::apply(&main, &changes, false).map(drop)
}

/// What its WAL will do, and what is to be typed.
pub(super) fn archiving_in_words(config: &MasterConfig, has_target: bool) -> String {
    let (ini, slave) = (config.path.display(), &config.slave);
    if !archives(config) {
        let main = config.master_config.display();
        return format!("{main} does not have it archive: type `walmgr {ini} setup` once it runs.");
    }
    let apart = match has_target {
        true => {
            " Where WAL behind the target was archived, the standby sets its timeline apart: \
            `walmgr STANDBY.ini choose TIMELINE.history --take` has readers follow it."
        }
        false => "",
    };
    format!("Once it has opened it archives to {slave}, as {ini} says.{apart}")
}

fn archives(config: &MasterConfig) -> bool {
    let server = ServerSettings::of_next(
        &config.master_data,
        &config.master_data,
        Some(&config.master_config),
    );
    let ours = Ours {
        ini: &config.path,
        data: &config.master_data,
    };
    let mode = server.value("archive_mode").unwrap_or_default();
    let command = server.value("archive_command").unwrap_or_default();
    (mode == "always" || conf::is_on(&mode)) && destination(&command, &ours) == Destination::Here
}
