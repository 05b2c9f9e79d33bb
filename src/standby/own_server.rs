//! A session with the standby's own server, where it answers: as a hot standby, once it is consistent.
//! Never needs a setting: `postmaster.pid` says where it listens. Invariant: whoever asks gets an answer
//! or an error within seconds, so that a boot is held up by neither.

use std::time::Duration;

use crate::config::StandbyConfig;
use crate::error::{CommandError, Kind, Result};
use crate::pg::conf::ServerSettings;
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::pg::event_loop::converse;
use crate::pg::layout;
use crate::pg::recovery::{self};
use crate::pg::sql::{Limits, Session};

/// A server on this host answers at once or is in trouble.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(3),
    statement: Duration::from_secs(3),
};

/// The superuser that `initdb` makes on nearly every host.
const USUAL_USER: &str = "postgres";

/// Asks the server; the error says why it cannot be asked.
pub(super) fn ask<T>(
    data: &DataDirectory,
    server: &Postmaster,
    question: impl AsyncFnOnce(&Session) -> Result<T>,
) -> Result<T> {
    converse(async {
        let session = connect(data, server).await?;
        let answer = question(&session).await;
        session.close().await;
        answer
    })
}

/// What the server on this data directory is set to as far as it is not asked.
pub(super) fn settings(config: &StandbyConfig, data: &DataDirectory) -> ServerSettings {
    let own = config.slave_data.as_deref() == Some(data.path());
    let folder = config.slave_config_dir.as_ref().filter(|_| own);
    let main = folder.map(|folder| folder.join(layout::MAIN_CONF));
    ServerSettings::of(data.path(), main.as_deref())
}

/// Whether a server's recovery ends at a target, and not where WAL ends. One that runs says what it was started
/// with, whatever its files say by now.
pub(super) fn has_target(
    data: &DataDirectory,
    server: Option<&Postmaster>,
    settings: &ServerSettings,
) -> bool {
    if data.path().join(layout::STANDBY_SIGNAL).exists() {
        return false;
    }
    let said = server.map(|server| ask(data, server, async |session| session.has_target().await));
    match said {
        Some(Ok(said)) => said,
        _ => recovery::has_target(|name| settings.value(name)),
    }
}

/// As whoever types this is in PostgreSQL, as the owner of the directory, or as the usual one.
pub(super) async fn connect(data: &DataDirectory, server: &Postmaster) -> Result<Session> {
    let place = place(server)?;
    let owner = data.owner_name().unwrap_or_default();
    let mut refused = None;
    for user in ["", owner.as_str(), USUAL_USER] {
        let user = match user {
            "" => String::new(),
            user => format!(" user={}", quoted(user)),
        };
        match Session::connect(&format!("{place}{user}"), LIMITS).await {
            Err(error) if error.kind() == Kind::Config => refused = Some(error),
            other => return other,
        }
    }
    Err(refused.unwrap_or_else(|| CommandError::retry("the server does not answer")))
}

/// The words of a connection string, without a user.
fn place(server: &Postmaster) -> Result<String> {
    let socket = (server.socket_directory.as_deref()).map(|folder| folder.display().to_string());
    match (
        socket.or_else(|| server.listen_address.clone()),
        server.port,
    ) {
        (Some(host), Some(port)) => Ok(format!(
            "host={} port={port} dbname=postgres",
            quoted(&host)
        )),
        _ => Err(CommandError::retry("the server is starting")),
    }
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pidfile_says_where_a_server_is_asked() {
        let found = |text: &str| place(&Postmaster::parse(text).unwrap());
        let place = found("41\n/data\n1700\n5433\n/it's\n*\n").unwrap();
        assert_eq!(place, "host='/it\\'s' port=5433 dbname=postgres");
        let place = found("41\n/data\n1700\n5433\n\n*\n").unwrap();
        assert_eq!(place, "host='127.0.0.1' port=5433 dbname=postgres");
        assert!(found("41\n/data\n1700\n").is_err());
    }
}
