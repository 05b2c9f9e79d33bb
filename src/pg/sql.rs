//! A session on the cluster's server, and the few questions walmgr asks it.
//! Never waits longer than its limits, and never leaves a statement running that it gave up on.
//! Invariant: what an answer means is parsed here, so that no caller sees SQL or text.

use std::error::Error;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use tokio_util::sync::CancellationToken;

use walmgr_protocol::names::{
    InvalidName, Lsn, SegmentName, SystemId, TimelineId, WalFileName, WalSegmentSize,
};

use super::conninfo::{self, Conninfo, Environment, ServerAddress};
use super::dial::{self, DialFault, DialledServer, DialledWay};
use super::grants::Task;
use super::settle;
use crate::error::{CommandError, Kind, Result};

/// The database that `initdb` makes to be connected to.
const HARMLESS_DATABASE: &str = "postgres";

/// Asking for the end of a statement is a courtesy: who waits has given up already.
const CANCEL_LIMIT: Duration = Duration::from_secs(1);

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
    /// Cancelled when the connection has ended.
    ended: CancellationToken,
    statement_limit: Duration,
    /// Boxed, as a session is held where little else is.
    info: Box<Conninfo>,
    way: Box<DialledWay>,
    database: String,
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

    /// Opens a session as the connection string and this environment say.
    pub async fn connect_from(
        conninfo: &str,
        environment: &Environment,
        limits: Limits,
    ) -> Result<Session> {
        Box::pin(Self::connect_where(conninfo, environment, limits, None)).await
    }

    /// Opens a session in a database where the role may do what this task needs; otherwise the error names what
    /// to type.
    pub async fn connect_for(conninfo: &str, limits: Limits, task: Task) -> Result<Session> {
        let environment = Environment::of_process();
        Box::pin(Self::connect_where(
            conninfo,
            &environment,
            limits,
            Some(task),
        ))
        .await
    }

    /// Opens a session in this very database.
    pub async fn connect_in(
        conninfo: &str,
        environment: &Environment,
        database: &str,
        limits: Limits,
    ) -> Result<Session> {
        let info = conninfo::parse(conninfo, environment)?;
        match Box::pin(dial::open(&info, database, limits.connect)).await {
            Ok(opened) => Self::begin(opened, &info, database, limits).await,
            Err(refusals) => Err(not_connected(&info, database, &refusals)),
        }
    }

    /// `postgres` comes first, whatever the string says: nobody makes, moves or drops a database
    /// from which somebody hangs, and every published ini file says `dbname=template1`. The
    /// string's is for servers that have no other, or do not let this role into it.
    async fn connect_where(
        conninfo: &str,
        environment: &Environment,
        limits: Limits,
        task: Option<Task>,
    ) -> Result<Session> {
        let info = conninfo::parse(conninfo, environment)?;
        let mut databases = vec![HARMLESS_DATABASE];
        if info.database != HARMLESS_DATABASE {
            databases.push(&info.database);
        }
        let mut lacking = None;
        while !databases.is_empty() {
            let database = databases.remove(0);
            let opened = match dial::open(&info, database, limits.connect).await {
                Ok(opened) => opened,
                Err(refusals) if databases.is_empty() || !is_of_the_database(&info, &refusals) => {
                    return Err(
                        lacking.unwrap_or_else(|| not_connected(&info, &info.database, &refusals))
                    );
                }
                Err(_) => continue,
            };
            let session = Self::begin(opened, &info, database, limits).await?;
            let session = match database == HARMLESS_DATABASE {
                true => session,
                false => session.out_of_a_template(limits).await,
            };
            let Some(task) = task else {
                return Ok(session);
            };
            match task.check(&session).await? {
                None => return Ok(session),
                // The first database is where a grant helps all commands.
                Some(found) => lacking = lacking.or(Some(found)),
            }
        }
        Err(lacking.unwrap_or_else(|| not_connected(&info, &info.database, &[])))
    }

    async fn begin(
        opened: DialledServer,
        info: &Conninfo,
        database: &str,
        limits: Limits,
    ) -> Result<Session> {
        let connection = opened.connection;
        let ended = CancellationToken::new();
        let ending = ended.clone().drop_guard();
        let connection = tokio::spawn(async move {
            let _ending = ending;
            // Whoever waits for an answer gets this error from the client's side too.
            if let Err(error) = connection.await {
                tracing::debug!("the session with PostgreSQL ended: {error}");
            }
        });
        let session = Session {
            client: opened.client,
            connection,
            ended,
            statement_limit: limits.statement,
            info: Box::new(info.clone()),
            way: Box::new(opened.way),
            database: database.to_owned(),
        };
        session.batch(settle::FOR_ALL).await?;
        Ok(session)
    }

    /// A session in a template keeps everybody from making databases, so any other one is better.
    async fn out_of_a_template(self, limits: Limits) -> Session {
        let sql = "SELECT other.datname::text FROM pg_database here, pg_database other \
             WHERE here.datname = current_database() AND here.datistemplate \
                 AND other.datallowconn AND NOT other.datistemplate \
                 AND has_database_privilege(other.oid, 'CONNECT') ORDER BY other.oid LIMIT 1";
        let found = self.query(sql, &[]).await.unwrap_or_default();
        let Some(other) = found.first().and_then(|row| column::<String>(row, 0).ok()) else {
            return self;
        };
        let Ok(opened) = dial::open(&self.info, &other, limits.connect).await else {
            return self;
        };
        let info = self.info.clone();
        match Self::begin(opened, &info, &other, limits).await {
            Ok(session) => {
                self.close().await;
                session
            }
            Err(_) => self,
        }
    }

    /// Whether it may be kept while there is nothing to ask: it is in nobody's way.
    pub fn is_harmless(&self) -> bool {
        self.database == HARMLESS_DATABASE
    }

    /// The database it is in.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Whether no grant matters.
    pub async fn is_superuser(&self) -> Result<bool> {
        Ok(self.show("is_superuser").await? == "on")
    }

    /// Keeps the questions of this session out of the server's log where the role may decide that:
    /// many a second would drown what others say.
    pub async fn ask_quietly(&self) {
        if let Err(error) = self.batch(settle::QUIETLY).await {
            tracing::debug!("the server logs walmgr's statements: {error}");
        }
    }

    async fn batch(&self, sql: &str) -> Result<()> {
        let doing = || "prepare the session with PostgreSQL".to_owned();
        match timeout(self.statement_limit, self.client.batch_execute(sql)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(CommandError::new(kind_of(&error), doing()).because(error)),
            Err(_) => Err(CommandError::retry(format!("{}: no answer", doing()))),
        }
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

    /// Returns when the server has ended the session.
    pub async fn until_closed(&self) {
        self.ended.cancelled().await;
    }

    /// Runs a statement with parameters and returns its rows; for questions that have no method.
    pub async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.query_if_fit(sql, parameters).await?
    }

    /// As [`query`](Self::query); the inner error is the server's, whose state does not allow the statement.
    pub(super) async fn query_if_fit(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Result<Vec<Row>>> {
        let doing = || format!("ask PostgreSQL: {sql}");
        match timeout(self.statement_limit, self.client.query(sql, parameters)).await {
            Ok(Ok(rows)) => Ok(Ok(rows)),
            Ok(Err(error)) => {
                let is_unfit = error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
                let error = CommandError::new(kind_of(&error), doing()).because(error);
                if is_unfit { Ok(Err(error)) } else { Err(error) }
            }
            Err(_) => {
                let limit_s = self.statement_limit.as_secs_f32();
                // Without this the server would finish a statement that nobody waits for.
                let cancel = self.client.cancel_token();
                let cancelling = Box::pin(dial::cancel(&self.info, &self.way, cancel));
                let _ = timeout(CANCEL_LIMIT, cancelling).await;
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

    /// Where a primary's WAL ends, in one round trip; `None` on a standby.
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
            false => Err(CommandError::retry("reload PostgreSQL's configuration")),
        }
    }

    /// The one row that a statement returns.
    pub(super) async fn row(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        let rows = self.query(sql, parameters).await?;
        the_one(rows, sql)
    }
}

/// The row of a statement that has one.
pub(super) fn the_one(mut rows: Vec<Row>, sql: &str) -> Result<Row> {
    match (rows.pop(), rows.is_empty()) {
        (Some(row), true) => Ok(row),
        _ => Err(answer(format!("not one row for {sql}"))),
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
    CommandError::retry(format!("read PostgreSQL's answer: {found}"))
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

/// Whether another database of the same server may let us in.
fn is_of_the_database(info: &Conninfo, refusals: &[(ServerAddress, DialFault)]) -> bool {
    let of_databases = [
        SqlState::INVALID_CATALOG_NAME,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::TOO_MANY_CONNECTIONS,
        // What poolers answer for a database that they do not know.
        SqlState::PROTOCOL_VIOLATION,
    ];
    refusals.iter().any(|(_, refusal)| match refusal.code() {
        // A password that is wrong once is wrong everywhere, and each attempt counts against us.
        Some(code) if *code == SqlState::INVALID_PASSWORD => !info.has_own_password(),
        Some(code) => of_databases.contains(code),
        // A password file may have a line for one database only.
        None => lacks_password(refusal),
    })
}

fn lacks_password(refusal: &DialFault) -> bool {
    match refusal {
        DialFault::Server(error) => {
            error.code().is_none() && refusal.to_string() == "password missing"
        }
        DialFault::Both { with, without } => lacks_password(with) || lacks_password(without),
        _ => false,
    }
}

/// Whether trying again cannot help.
fn is_lasting(refusal: &DialFault) -> bool {
    match refusal {
        DialFault::Server(error) => {
            kind_of(error) == Kind::Config || error.to_string().starts_with("authentication error")
        }
        DialFault::Unfit(_) => true,
        DialFault::Both { with, without } => is_lasting(with) && is_lasting(without),
        _ => false,
    }
}

/// What every server answered, in the order in which they were tried.
pub(super) fn not_connected(
    info: &Conninfo,
    database: &str,
    refusals: &[(ServerAddress, DialFault)],
) -> CommandError {
    let places: Vec<String> = info.places.iter().map(ToString::to_string).collect();
    let user = &info.user;
    let mut doing = format!(
        "connect to PostgreSQL at {}, database {database}, user {user}",
        places.join(", ")
    );
    for (place, refusal) in refusals {
        match info.places.len() {
            1 => doing.push_str(&format!(": {refusal}")),
            _ => doing.push_str(&format!("; {place}: {refusal}")),
        }
    }
    let without = refusals.iter().any(|(_, refusal)| lacks_password(refusal));
    let kind = match without || refusals.iter().any(|(_, refusal)| is_lasting(refusal)) {
        true => Kind::Config,
        false => Kind::Retry,
    };
    let error = CommandError::new(kind, doing);
    match without {
        true => error.hint(format!(
            "the server asks for a password: write HOST:PORT:*:{user}:PASSWORD into ~/.pgpass, and \
             type `chmod 600 ~/.pgpass`"
        )),
        false => error,
    }
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
        assert_eq!(refused_by("sslmode=verify-ful").await.kind(), Kind::Config);
    }
}
