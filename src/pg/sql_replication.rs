//! What a server says of itself on a connection for replication, as a base backup is going to have it.
//! Never takes a backup and never makes a slot. Invariant: a role that may only replicate is enough for every
//! question but that for tablespaces, which has a second way.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use tokio_postgres::{Client, SimpleQueryMessage};
use walmgr_protocol::names::SystemId;

use super::conninfo::{self, Conninfo, Environment};
use super::dial::{self, DialledServer, DialledWay};
use super::sql::{Limits, ServerVersion, Session, column, not_connected};
use crate::error::{CommandError, Kind, Result};

/// What libpq calls the database of such a connection, in lines of `.pgpass`.
pub(super) const DATABASE: &str = "replication";

/// How long a checkpoint may take before a server lists its tablespaces.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);

/// Tablespaces of a server: more is no answer.
const SPACES_MAX: usize = 10_000;

/// A tablespace that is not in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MasterSpace {
    /// Its OID, as its link is called.
    pub oid: String,
    /// Where it is there.
    pub location: PathBuf,
}

/// A server of which a base backup can be taken.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    /// Its cluster.
    pub system_id: SystemId,
    /// Its version.
    pub version: ServerVersion,
    /// Whether it has room for slots, a temporary one included.
    pub has_slots: bool,
    /// Its data directory, where the role may know it.
    pub data_directory: Option<PathBuf>,
    /// Where it is, for a sentence.
    pub place: String,
    /// Its port.
    pub port: u16,
    conninfo: String,
    limits: Limits,
}

impl Upstream {
    /// Asks the first server of the string that answers.
    pub(crate) async fn ask(conninfo: &str, limits: Limits) -> Result<Upstream> {
        let info = conninfo::parse(conninfo, &Environment::of_process())?.for_replication();
        let (client, way) = open(&info, limits).await?;
        let asking = async {
            let system = one_value(&client, "IDENTIFY_SYSTEM").await?;
            let version = one_value(&client, "SHOW server_version_num").await?;
            let slots = one_value(&client, "SHOW max_replication_slots").await?;
            // Only a role that may see all settings may see this.
            let data = one_value(&client, "SHOW data_directory").await.ok();
            Ok::<_, CommandError>((system, version, slots, data))
        };
        let limit_s = limits.statement.as_secs_f32();
        let silent =
            || CommandError::retry(format!("the master did not answer within {limit_s} s"));
        let (system, version, slots, data) =
            (timeout(limits.statement, asking).await).map_err(|_| silent())??;
        let wrong = |what: &str| {
            CommandError::retry(format!(
                "the master's answer to IDENTIFY_SYSTEM makes no sense: {what}"
            ))
        };
        Ok(Upstream {
            system_id: SystemId(system.parse().map_err(|_| wrong(&system))?),
            version: ServerVersion(version.parse().map_err(|_| wrong(&version))?),
            has_slots: slots != "0",
            data_directory: data.map(PathBuf::from),
            place: way.place().to_string(),
            port: way.place().port,
            conninfo: conninfo.to_owned(),
            limits,
        })
    }

    /// Its tablespaces by SQL, or, where the role may not connect to a database, as a base backup that is given up
    /// at once lists them; `None` where only that would do and it may not be begun.
    pub(crate) async fn tablespaces(&self, may_begin: bool) -> Result<Option<Vec<MasterSpace>>> {
        match self.by_sql().await {
            Ok(spaces) => Ok(Some(spaces)),
            Err(error) => {
                tracing::debug!("the tablespaces cannot be listed by SQL: {error}");
                match may_begin {
                    true => self.by_backup().await.map(Some),
                    false => Ok(None),
                }
            }
        }
    }

    async fn by_sql(&self) -> Result<Vec<MasterSpace>> {
        let session = Session::connect(&self.conninfo, self.limits).await?;
        if session.system_identifier().await? != self.system_id {
            return Err(CommandError::retry("another server answers"));
        }
        let sql = "SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace";
        let rows = session.query(sql, &[]).await?;
        session.close().await;
        let mut spaces = Vec::new();
        for row in &rows {
            let (oid, location): (String, String) = (column(row, 0)?, column(row, 1)?);
            spaces.extend(space(oid, location));
        }
        Ok(spaces)
    }

    async fn by_backup(&self) -> Result<Vec<MasterSpace>> {
        let info = conninfo::parse(&self.conninfo, &Environment::of_process())?.for_replication();
        let (client, way) = open(&info, self.limits).await?;
        let command = match self.version.major() {
            13 | 14 => "BASE_BACKUP LABEL 'walmgr looks for tablespaces' FAST NOWAIT",
            _ => {
                "BASE_BACKUP (LABEL 'walmgr looks for tablespaces', CHECKPOINT 'fast', WAIT false)"
            }
        };
        let listing = async {
            let mut spaces = Vec::new();
            let mut messages = Box::pin(client.simple_query_raw(command).await?);
            // Behind the list comes the copy, which the driver calls an error.
            while let Some(message) = messages.next().await {
                match message {
                    Ok(SimpleQueryMessage::Row(row))
                        if row.len() == 3 && spaces.len() < SPACES_MAX =>
                    {
                        let text = |index| row.get(index).map(str::to_owned);
                        if let (Some(oid), Some(location)) = (text(0), text(1)) {
                            spaces.extend(space(oid, location));
                        }
                    }
                    Ok(_) => {}
                    Err(error) if error.as_db_error().is_some() => return Err(error),
                    Err(_) => break,
                }
            }
            Ok(spaces)
        };
        let listed = timeout(CHECKPOINT_LIMIT, listing).await;
        let cancel = client.cancel_token();
        let _ = timeout(
            self.limits.connect,
            Box::pin(dial::cancel(&info, &way, cancel)),
        )
        .await;
        let doing = "list the master's tablespaces";
        match listed {
            Ok(Ok(spaces)) => Ok(spaces),
            Ok(Err(error)) => Err(CommandError::retry(doing).because(error)),
            Err(_) => Err(CommandError::retry(format!("{doing}: no answer"))),
        }
    }
}

fn space(oid: String, location: String) -> Option<MasterSpace> {
    let location = PathBuf::from(location);
    // Those of the cluster itself have no place, and one in place has a relative one.
    let is_plain = !oid.is_empty() && oid.bytes().all(|byte| byte.is_ascii_digit());
    (location.is_absolute() && is_plain).then_some(MasterSpace { oid, location })
}

async fn open(info: &Conninfo, limits: Limits) -> Result<(Client, DialledWay)> {
    let opened = dial::open(info, DATABASE, limits.connect).await;
    let DialledServer {
        client,
        connection,
        way,
        ..
    } = opened.map_err(|refusals| not_connected(info, DATABASE, &refusals))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("the connection for replication ended: {error}");
        }
    });
    Ok((client, way))
}

/// The first value of the first row.
async fn one_value(client: &Client, command: &str) -> Result<String> {
    let doing = || format!("ask the master: {command}");
    let messages = client.simple_query(command).await;
    let messages =
        messages.map_err(|error| CommandError::new(Kind::Retry, doing()).because(error))?;
    let value = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    value.ok_or_else(|| CommandError::retry(format!("{}: no answer", doing())))
}

#[cfg(test)]
mod tests {
    use super::space;

    #[test]
    fn only_what_lies_elsewhere_is_a_tablespace_to_place() {
        let found =
            |oid: &str, location: &str| space(oid.to_owned(), location.to_owned()).is_some();
        assert!(found("16385", "/srv/space"));
        for (oid, location) in [
            ("1663", ""),
            ("16385", "pg_tblspc/16385"),
            ("../x", "/srv"),
            ("", "/srv"),
        ] {
            assert!(!found(oid, location), "{oid} {location}");
        }
    }
}
