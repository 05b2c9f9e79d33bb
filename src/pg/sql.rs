//! A session on the cluster's server, and the few questions walmgr asks it.
//! Never waits longer than its limits, and never leaves a statement running that it gave up on.
//! Invariant: what an answer means is parsed here, so that no caller sees SQL or text.

use std::error::Error;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use walmgr_protocol::names::{
    InvalidName, Lsn, SegmentName, SystemId, TimelineId, WalFileName, WalSegmentSize,
};

use super::conninfo::{self, Environment};
use crate::error::{CommandError, Kind, Result};

/// How long to wait for a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until the session is open, authentication included.
    pub connect: Duration,
    /// Until each statement is answered.
    pub statement: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(10),
            statement: Duration::from_secs(30),
        }
    }
}

/// An open session; the server ends it when this is dropped.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
    statement_limit: Duration,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Where the WAL of a primary ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPosition {
    /// The timeline that is being written.
    pub timeline: TimelineId,
    /// What the server has handed to its operating system.
    pub written: Lsn,
    /// What its disk holds; the bytes from here to `written` can still be written differently.
    pub flushed: Lsn,
}

/// What a segment switch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switched {
    /// The end of the WAL before the switch.
    pub lsn: Lsn,
    /// The newest segment that is finished, and so about to be archived, or archived already
    /// when nothing had been written since the last switch.
    pub segment: SegmentName,
}

/// `pg_stat_archiver`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiverStatistics {
    /// Files archived since the statistics were reset.
    pub archived_count: i64,
    /// The file archived last.
    pub last_archived: Option<WalFileName>,
    /// When that was, in milliseconds since 1970.
    pub last_archived_ms: Option<i64>,
    /// Failures since the statistics were reset.
    pub failed_count: i64,
    /// The file that failed last.
    pub last_failed: Option<WalFileName>,
    /// When that was, in milliseconds since 1970.
    pub last_failed_ms: Option<i64>,
}

/// A version such as 150014.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion(pub u32);

impl ServerVersion {
    /// 15 of 15.14.
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }
}

impl Session {
    /// Opens a session as the connection string and the process's environment say.
    pub async fn connect(conninfo: &str, limits: Limits) -> Result<Session> {
        Self::connect_from(conninfo, &Environment::of_process(), limits).await
    }

    /// The same with an environment of the caller's choice.
    pub async fn connect_from(
        conninfo: &str,
        environment: &Environment,
        limits: Limits,
    ) -> Result<Session> {
        let config = conninfo::parse(conninfo, environment)?;
        let whom = describe(&config);
        let connecting = Box::pin(config.connect(NoTls));
        let (client, connection) = match timeout(limits.connect, connecting).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                let kind = kind_of(&error);
                return Err(CommandError::new(kind, format!("connect to {whom}")).because(error));
            }
            Err(_) => {
                let limit_s = limits.connect.as_secs_f32();
                let doing = format!("connect to {whom}: no answer within {limit_s} s");
                return Err(CommandError::retry(doing));
            }
        };
        let connection = tokio::spawn(async move {
            // Whoever waits for an answer gets this error from the client's side too.
            if let Err(error) = connection.await {
                tracing::debug!("the session with PostgreSQL ended: {error}");
            }
        });
        Ok(Session {
            client,
            connection,
            statement_limit: limits.statement,
        })
    }

    /// Gives the following statements another limit: a checkpoint takes its time.
    pub fn set_statement_limit(&mut self, limit: Duration) {
        self.statement_limit = limit;
    }

    /// Ends the session and returns when its connection is closed.
    ///
    /// Dropping a session closes it only once the runtime gets to run again.
    pub async fn close(mut self) {
        self.connection.abort();
        // Aborted, or ended by itself before.
        let _ = (&mut self.connection).await;
    }

    /// Whether the server has ended the session.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs a statement with parameters and returns its rows; for questions that have no method.
    pub async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let doing = || format!("ask PostgreSQL: {sql}");
        match timeout(self.statement_limit, self.client.query(sql, parameters)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(CommandError::new(kind_of(&error), doing()).because(error)),
            Err(_) => {
                let limit_s = self.statement_limit.as_secs_f32();
                // Without this the server would finish a statement that nobody waits for.
                let cancel = self.client.cancel_token();
                let _ = timeout(Duration::from_secs(1), cancel.cancel_query(NoTls)).await;
                let doing = format!("{}: no answer within {limit_s} s", doing());
                Err(CommandError::retry(doing))
            }
        }
    }

    /// What a parameter is set to, as `SHOW` prints it; an unknown one is an error.
    pub async fn show(&self, name: &str) -> Result<String> {
        match self.show_if_known(name).await? {
            Some(value) => Ok(value),
            None => Err(CommandError::config(format!(
                "PostgreSQL has no parameter {name:?}"
            ))),
        }
    }

    /// What a parameter is set to, or `None` if the server does not know it.
    pub async fn show_if_known(&self, name: &str) -> Result<Option<String>> {
        let row = self
            .row("SELECT current_setting($1, true)", &[&name])
            .await?;
        column(&row, 0)
    }

    /// The server's version.
    pub async fn server_version(&self) -> Result<ServerVersion> {
        let number = self.show("server_version_num").await?;
        number.parse().map(ServerVersion).map_err(unexpected)
    }

    /// `wal_segment_size`.
    pub async fn wal_segment_size(&self) -> Result<WalSegmentSize> {
        let sql = "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'";
        let bytes: i64 = column(&self.row(sql, &[]).await?, 0)?;
        let size = u32::try_from(bytes).ok().and_then(WalSegmentSize::new);
        size.ok_or_else(|| answer(format!("a wal_segment_size of {bytes} bytes")))
    }

    /// Which cluster this is.
    pub async fn system_identifier(&self) -> Result<SystemId> {
        let sql = "SELECT system_identifier FROM pg_control_system()";
        let number: i64 = column(&self.row(sql, &[]).await?, 0)?;
        // SQL has no unsigned numbers; the bits are those of the control file.
        Ok(SystemId(number.cast_unsigned()))
    }

    /// Whether the server replays, as a standby or towards a recovery target.
    pub async fn is_in_recovery(&self) -> Result<bool> {
        column(&self.row("SELECT pg_is_in_recovery()", &[]).await?, 0)
    }

    /// The timeline that the server writes or, as a standby, that it has replayed up to.
    pub async fn timeline(&self) -> Result<TimelineId> {
        if !self.is_in_recovery().await? {
            return Ok(self.wal_position().await?.timeline);
        }
        // Before the first restart point a standby knows only the checkpoint it began with.
        let sql = "SELECT greatest(min_recovery_end_timeline, timeline_id)::bigint \
             FROM pg_control_recovery(), pg_control_checkpoint()";
        let number: i64 = column(&self.row(sql, &[]).await?, 0)?;
        let timeline = u32::try_from(number).ok().and_then(TimelineId::new);
        timeline.ok_or_else(|| answer(format!("timeline {number}")))
    }

    /// Where a primary's WAL ends; an error on a standby.
    pub async fn wal_position(&self) -> Result<WalPosition> {
        // The timeline comes from a name, because pg_control_checkpoint() lags behind a promotion.
        let sql = "SELECT substr(pg_walfile_name(written), 1, 8), written::text, flushed::text \
             FROM (SELECT pg_current_wal_flush_lsn() AS flushed, pg_current_wal_lsn() AS written) p";
        let row = self.row(sql, &[]).await?;
        position(&row)
    }

    /// The same with one question, or `None` on a standby.
    pub async fn primary_wal_position(&self) -> Result<Option<WalPosition>> {
        let sql = "SELECT substr(pg_walfile_name(written), 1, 8), written::text, flushed::text \
             FROM (SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END \
                 AS flushed, CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() END \
                 AS written) p";
        let row = self.row(sql, &[]).await?;
        match column::<Option<String>>(&row, 1)? {
            Some(_) => position(&row).map(Some),
            None => Ok(None),
        }
    }

    /// Writes a named restore point, so that a following switch has something to finish.
    pub async fn create_restore_point(&self, name: &str) -> Result<Lsn> {
        let sql = "SELECT pg_create_restore_point($1)::text";
        lsn(&self.row(sql, &[&name]).await?, 0)
    }

    /// Ends the current segment. Nothing happens if the last switch was the last thing written.
    pub async fn switch_wal(&self) -> Result<Switched> {
        let size = self.wal_segment_size().await?;
        let timeline = self.wal_position().await?.timeline;
        let lsn = lsn(&self.row("SELECT pg_switch_wal()::text", &[]).await?, 0)?;
        // The answer is the end of the switch record. On a boundary, be it by chance or because
        // nothing had to be switched, the finished segment is the one before it.
        let last_byte = Lsn(lsn.0.saturating_sub(1));
        Ok(Switched {
            lsn,
            segment: SegmentName::containing(timeline, last_byte, size),
        })
    }

    /// What the archiver has done.
    pub async fn archiver_statistics(&self) -> Result<ArchiverStatistics> {
        let sql = "SELECT archived_count, last_archived_wal, \
                (extract(epoch FROM last_archived_time) * 1000)::bigint, \
                failed_count, last_failed_wal, \
                (extract(epoch FROM last_failed_time) * 1000)::bigint \
             FROM pg_stat_archiver";
        let row = self.row(sql, &[]).await?;
        let name = |index| -> Result<Option<WalFileName>> {
            let text: Option<String> = column(&row, index)?;
            // 13 and 14 begin with an empty name.
            let text = text.filter(|text| !text.is_empty());
            text.map(|text| text.parse().map_err(unexpected))
                .transpose()
        };
        Ok(ArchiverStatistics {
            archived_count: column(&row, 0)?,
            last_archived: name(1)?,
            last_archived_ms: column(&row, 2)?,
            failed_count: column(&row, 3)?,
            last_failed: name(4)?,
            last_failed_ms: column(&row, 5)?,
        })
    }

    /// Makes the server read its settings again. It does so a moment later, and what is wrong in
    /// a file only its log tells.
    pub async fn reload_conf(&self) -> Result<()> {
        let sent: bool = column(&self.row("SELECT pg_reload_conf()", &[]).await?, 0)?;
        match sent {
            true => Ok(()),
            false => Err(CommandError::retry(
                "make PostgreSQL read its settings again",
            )),
        }
    }

    /// The one row that a statement returns.
    pub(super) async fn row(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        let mut rows = self.query(sql, parameters).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(answer(format!("not one row for {sql}"))),
        }
    }
}

pub(super) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    index: usize,
) -> Result<T> {
    row.try_get(index).map_err(unexpected)
}

/// Timeline, write and flush position, as [`Session::wal_position`] asks for them.
fn position(row: &Row) -> Result<WalPosition> {
    let timeline: String = column(row, 0)?;
    let timeline = u32::from_str_radix(&timeline, 16)
        .ok()
        .and_then(TimelineId::new);
    Ok(WalPosition {
        timeline: timeline.ok_or_else(|| answer("no timeline".to_owned()))?,
        written: lsn(row, 1)?,
        flushed: lsn(row, 2)?,
    })
}

pub(super) fn lsn(row: &Row, index: usize) -> Result<Lsn> {
    let text: String = column(row, index)?;
    text.parse().map_err(|error: InvalidName| unexpected(error))
}

fn unexpected(error: impl Error) -> CommandError {
    CommandError::retry("understand PostgreSQL's answer").because(error)
}

fn answer(found: String) -> CommandError {
    CommandError::retry(format!("understand PostgreSQL's answer: {found}"))
}

/// A refused user, database or permission stays refused; anything else may pass.
fn kind_of(error: &tokio_postgres::Error) -> Kind {
    let lasting = [
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_CATALOG_NAME,
        SqlState::INSUFFICIENT_PRIVILEGE,
    ];
    match error.code() {
        Some(code) if lasting.contains(code) => Kind::Config,
        _ => Kind::Retry,
    }
}

fn describe(config: &tokio_postgres::Config) -> String {
    use tokio_postgres::config::Host;
    let mut places: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(folder) => folder.display().to_string(),
        })
        .collect();
    if places.is_empty() {
        places.extend(config.get_hostaddrs().iter().map(ToString::to_string));
    }
    let ports: Vec<String> = config.get_ports().iter().map(ToString::to_string).collect();
    format!(
        "PostgreSQL at {} port {}, database {}, user {}",
        places.join(","),
        ports.join(","),
        config.get_dbname().unwrap_or_default(),
        config.get_user().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Instant;

    const SHORT: Limits = Limits {
        connect: Duration::from_millis(200),
        statement: Duration::from_millis(200),
    };

    async fn refused_by(conninfo: &str) -> CommandError {
        let refused = Session::connect(conninfo, SHORT).await;
        refused.err().expect("nobody answers there")
    }

    #[tokio::test]
    async fn fault_30_a_server_that_is_down_or_silent_is_an_error_within_the_limit() {
        let begin = Instant::now();
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let conninfo = format!("host=127.0.0.1 port={port} user=u dbname=d sslmode=disable");
        let error = refused_by(&conninfo).await;
        assert_eq!(error.kind(), Kind::Retry);
        assert!(
            error.to_string().contains("no answer within 0.2 s"),
            "{error}"
        );
        drop(silent);
        let error = refused_by(&conninfo).await.to_string();
        let whom = format!("connect to PostgreSQL at 127.0.0.1 port {port}, database d, user u: ");
        assert!(error.starts_with(&whom), "{error}");
        let error = refused_by("host=/nonexistent user=u").await;
        assert_eq!(error.kind(), Kind::Retry);
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_connection_string_that_cannot_be_honoured_is_a_configuration_error() {
        assert_eq!(refused_by("sslmode=verify-full").await.kind(), Kind::Config);
    }
}
