//! A connection on which a primary streams its WAL to us, as it does to a standby.
//! Never keeps the WAL, of which `pg_wal` has the bytes: it tells how far the server has flushed, and takes
//! what is said of a standby's disk. Invariant: a role's rights, TLS and passwords are those of any other session.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use walmgr_protocol::names::{Lsn, SystemId, TimelineId};

use super::conninfo::{self, Environment};
use super::dial::{self, DialledServer, PgSocket};
use super::replication_messages::{self as messages, HEAD_BYTES, StreamSaid};
use super::sql::{Limits, not_connected};
use super::sql_replication::DATABASE;
use crate::error::{CommandError, Kind, Result};

/// What is asked of a server.
pub(crate) struct StreamWish<'a> {
    /// As `master_db` says it.
    pub conninfo: &'a str,
    /// What the server calls us: the name in `synchronous_standby_names`.
    pub name: &'a str,
    /// A slot that keeps WAL for us.
    pub slot: Option<&'a str>,
    /// Whose WAL it has to be.
    pub cluster: SystemId,
    /// The timeline that it has to be writing.
    pub timeline: TimelineId,
    /// How long it may take.
    pub limits: Limits,
}

/// A server that streams.
pub(crate) struct ReplicationStream {
    socket: PgSocket,
    buffer: BytesMut,
    started: Lsn,
}

impl ReplicationStream {
    /// Has the server stream from where its flushed WAL ends.
    pub(crate) async fn open(wish: &StreamWish<'_>) -> Result<ReplicationStream> {
        let environment = Environment::of_process();
        let mut info = conninfo::parse(wish.conninfo, &environment)?.for_replication();
        wish.name.clone_into(&mut info.application_name);
        let opened = dial::open(&info, DATABASE, wish.limits.connect).await;
        let DialledServer {
            client,
            connection,
            mut socket,
            ..
        } = opened.map_err(|refusals| not_connected(&info, DATABASE, &refusals))?;
        // The driver proved who we are, and has no words for what comes.
        drop((connection, client));
        let socket = socket.try_recv();
        let mut stream = ReplicationStream {
            socket: socket.map_err(|_| CommandError::retry("take the connection over"))?,
            buffer: BytesMut::new(),
            started: Lsn(0),
        };
        let limit = wish.limits.statement;
        match timeout(limit, stream.begin(wish)).await {
            Ok(begun) => begun.map(|()| stream),
            Err(_) => Err(silent(limit)),
        }
    }

    /// Where the server's flushed WAL ended when the stream began.
    pub(crate) fn started(&self) -> Lsn {
        self.started
    }

    /// What the server says next. Nothing is lost when this is dropped.
    pub(crate) async fn next(&mut self) -> Result<StreamSaid> {
        loop {
            let (kind, body) = self.message().await?;
            match kind {
                b'd' => return messages::streamed(&body).map_err(invalid),
                b'N' | b'S' => {}
                b'c' | b'C' => {
                    return Err(CommandError::retry(
                        "the server ended the stream of its WAL: it is being stopped, or its timeline is over",
                    ));
                }
                kind => return Err(unexpected(kind, &body, "stream WAL")),
            }
        }
    }

    /// Tells the server up to where a standby has its WAL, and up to where that standby's disk has all of it; 0 for
    /// nothing that is known.
    pub(crate) async fn report(&mut self, written: Lsn, flushed: Lsn) -> Result<()> {
        self.send(&messages::status_update(written, flushed)).await
    }

    /// Takes leave, so that the server's log has nothing to say of it.
    pub(crate) async fn end(mut self) {
        // The server notices the end of the connection in any case.
        let _ = self.send(&messages::terminate()).await;
    }

    async fn begin(&mut self, wish: &StreamWish<'_>) -> Result<()> {
        let found = self.ask("IDENTIFY_SYSTEM").await?;
        let text = |index: usize| found.get(index).and_then(Option::as_deref);
        let told = (
            text(0).and_then(|text| text.parse().ok()).map(SystemId),
            text(1)
                .and_then(|text| text.parse().ok())
                .and_then(TimelineId::new),
            text(2).and_then(|text| text.parse::<Lsn>().ok()),
        );
        let (Some(cluster), Some(timeline), Some(flushed)) = told else {
            return Err(CommandError::retry(
                "understand the server's IDENTIFY_SYSTEM",
            ));
        };
        if cluster != wish.cluster {
            let wanted = wish.cluster;
            return Err(CommandError::config(format!(
                "the server that answers for replication is of another cluster (system identifier {cluster}) than \
                master_data ({wanted})"
            ))
            .hint("check master_db and master_data"));
        }
        if timeline != wish.timeline {
            let wanted = wish.timeline;
            return Err(CommandError::retry(format!(
                "the server that answers for replication is on timeline {timeline}, but the WAL in master_data is of \
                timeline {wanted}"
            )));
        }
        let slot = (wish.slot).map_or_else(String::new, |slot| format!("SLOT {slot} "));
        let start = format!("START_REPLICATION {slot}PHYSICAL {flushed} TIMELINE {timeline}");
        self.send(&messages::query(&start)).await?;
        self.started = flushed;
        loop {
            let (kind, body) = self.message().await?;
            match kind {
                b'W' => return Ok(()),
                b'N' | b'S' => {}
                kind => return Err(unexpected(kind, &body, "begin to stream WAL")),
            }
        }
    }

    /// The first row of a command's answer.
    async fn ask(&mut self, command: &str) -> Result<Vec<Option<String>>> {
        self.send(&messages::query(command)).await?;
        let mut found = None;
        loop {
            let (kind, body) = self.message().await?;
            match kind {
                b'D' if found.is_none() => found = Some(messages::row(&body).map_err(invalid)?),
                b'T' | b'C' | b'N' | b'S' | b'D' => {}
                b'Z' => break,
                kind => return Err(unexpected(kind, &body, command)),
            }
        }
        found.ok_or_else(|| CommandError::retry(format!("{command}: no answer")))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = self.socket.send(bytes).await;
        sent.map_err(|error| lost().because(error))
    }

    /// The next message whole; what is read of one stays for the next call.
    async fn message(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some((kind, body)) = messages::head(&self.buffer).map_err(invalid)? {
                let whole = HEAD_BYTES + body;
                if self.buffer.len() >= whole {
                    let message = self.buffer.split_to(whole).freeze();
                    return Ok((kind, message.slice(HEAD_BYTES..)));
                }
                self.buffer.reserve(whole - self.buffer.len());
            }
            let read = self.socket.read_buf(&mut self.buffer).await;
            if read.map_err(|error| lost().because(error))? == 0 {
                return Err(lost());
            }
        }
    }
}

fn lost() -> CommandError {
    CommandError::retry("the server closed the connection for replication")
}

fn silent(limit: Duration) -> CommandError {
    let limit_s = limit.as_secs_f32();
    CommandError::retry(format!(
        "the server did not begin to stream WAL within {limit_s} s"
    ))
}

fn invalid(error: messages::InvalidReplication) -> CommandError {
    CommandError::retry(error.to_string())
}

/// An error of the server's, or what is none of the expected.
fn unexpected(kind: u8, body: &[u8], doing: &str) -> CommandError {
    let said = match kind {
        b'E' => messages::refusal(body).unwrap_or_else(|| "an error without a text".to_owned()),
        kind => format!("a message of kind {:?}", char::from(kind)),
    };
    CommandError::new(Kind::Retry, format!("{doing}: {said}"))
}
