//! What the agent does for an `xarchive` that asks.
//! Never answers for a file that is not the one that was asked for. Invariant: an answer of success names what a
//! receiver has proven to be durable, and where there is none to give, `xarchive` is sent away to push by itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::courier::Courier;
use super::shared::{AgentShared, AskedPush};
use super::shelf::AskedStanding;
use super::socket;
use super::words::{self, AgentWord, Ask, HEADER_BYTES, ProvenFile};
use crate::master::archived_file::{ArchivedFile, not_in_time};

/// How long somebody who connected may take to say what he wants.
const ASK_WITHIN: Duration = Duration::from_secs(1);

/// Pause after the system refused another connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

const OTHER_SETTINGS: &str =
    "it runs with other settings: have the syncdaemon read them (syncdaemon -r)";

/// Hears everybody who asks.
pub(super) async fn accept(shared: Arc<AgentShared>, listener: UnixListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_BACKOFF).await;
            continue;
        };
        // Who finds no place sees the socket close, and pushes by himself.
        let Ok(place) = Arc::clone(&shared.askers).try_acquire_owned() else {
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if let Err(error) = attend(&shared, stream).await {
                tracing::debug!("somebody who asked was not answered: {error}");
            }
            drop(place);
        });
    }
}

/// Carries what is asked for, over a connection for nothing else.
pub(super) async fn carry(shared: Arc<AgentShared>, mut files: mpsc::Receiver<AskedPush>) {
    let mut courier = Courier::new(Arc::clone(&shared), None);
    loop {
        let asked = tokio::select! {
            asked = files.recv() => asked,
            () = courier.idle() => continue,
        };
        let Some(asked) = asked else { return };
        let AskedPush {
            source,
            ask,
            until,
            ticket,
            answer,
        } = asked;
        let pushed = timeout_at(until, courier.push(&source)).await;
        let pushed = pushed.unwrap_or_else(|_| Err(not_in_time(&shared.config, source.name)));
        let stored = pushed.map(|crc32| ProvenFile {
            name: source.name,
            stamp: source.stamp,
            crc32,
        });
        // Of one that changed meanwhile nothing is remembered.
        let is_unchanged = source.stamp_now() == Some(source.stamp);
        let proof = stored.as_ref().ok().filter(|_| is_unchanged);
        if proof.is_some() {
            shared.is_there.notify_waiters();
        }
        shared.done(ask.name, proof.copied());
        drop(ticket);
        // Whoever asked may have been killed.
        let _ = answer.send(stored);
    }
}

async fn attend(shared: &Arc<AgentShared>, mut stream: UnixStream) -> io::Result<()> {
    socket::check_peer(&stream)?;
    let heard = timeout(ASK_WITHIN, read_word(&mut stream)).await;
    let answer = match heard.map_err(io::Error::from).and_then(|heard| heard) {
        Ok(AgentWord::Ask(ask)) => {
            shared.meter.asked.add(1);
            answer(shared, ask, &mut stream).await?
        }
        Ok(AgentWord::Look(settings)) if settings == shared.settings => {
            AgentWord::Standing(shared.meter.figures())
        }
        Ok(AgentWord::Look(_)) => AgentWord::Elsewhere(OTHER_SETTINGS.to_owned()),
        Ok(_) => AgentWord::Elsewhere("nothing was asked".to_owned()),
        Err(error) => AgentWord::Elsewhere(error.to_string()),
    };
    if let AgentWord::Failed(_) = answer {
        shared.meter.failures.add(1);
    }
    stream.write_all(&answer.to_bytes()).await
}

async fn read_word(stream: &mut UnixStream) -> io::Result<AgentWord> {
    let mut first = [0; HEADER_BYTES];
    stream.read_exact(&mut first).await?;
    let (kind, bytes) = words::header(&first).map_err(io::Error::other)?;
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body).await?;
    AgentWord::read(kind, &body).map_err(io::Error::other)
}

async fn answer(
    shared: &Arc<AgentShared>,
    ask: Ask,
    stream: &mut UnixStream,
) -> io::Result<AgentWord> {
    if ask.settings != shared.settings {
        return Ok(AgentWord::Elsewhere(OTHER_SETTINGS.to_owned()));
    }
    let until = Instant::now() + shared.config.push_timeout;
    let taken = AgentWord::Taken.to_bytes();
    let mut standing = shared.asked(&ask);
    if let AskedStanding::UnderWay(done) = &mut standing {
        stream.write_all(&taken).await?;
        // It ends by an error, when whoever is at it is done.
        if timeout_at(until, done.changed()).await.is_err() {
            return Ok(AgentWord::Failed(not_in_time(&shared.config, ask.name)));
        }
        standing = shared.asked(&ask);
    }
    match standing {
        AskedStanding::Stored(stored) => {
            shared.meter.answered.add(1);
            Ok(AgentWord::Stored(stored))
        }
        AskedStanding::UnderWay(_) => Ok(AgentWord::Elsewhere(
            "somebody else has begun it".to_owned(),
        )),
        AskedStanding::Yours(ticket) => {
            stream.write_all(&taken).await?;
            push(shared, (ask, ticket), until).await
        }
    }
}

/// Has the file pushed over the connection for that.
async fn push(
    shared: &Arc<AgentShared>,
    (ask, ticket): (Ask, watch::Sender<()>),
    until: Instant,
) -> io::Result<AgentWord> {
    let name = ask.name;
    let elsewhere = |why: &str| {
        shared.done(name, None);
        Ok(AgentWord::Elsewhere(why.to_owned()))
    };
    let Ok(_front) = shared.front.try_acquire() else {
        return elsewhere("another file is under way");
    };
    let (config, wanted) = (shared.config.clone(), ask.clone());
    let opened =
        tokio::task::spawn_blocking(move || ArchivedFile::open(&config, &wanted.path, wanted.name));
    let source = match opened.await {
        Ok(Ok(source)) if source.stamp == ask.stamp => source,
        Ok(Ok(_)) => return elsewhere("another file is found there"),
        _ => return elsewhere("it cannot be read here"),
    };
    shared.meter.pushed.add(1);
    let (answer, answered) = oneshot::channel();
    let asked = AskedPush {
        source,
        ask,
        until,
        ticket,
        answer,
    };
    if shared.to_front.send(asked).await.is_err() {
        return elsewhere("the agent ends");
    }
    match answered.await {
        Ok(Ok(stored)) => Ok(AgentWord::Stored(stored)),
        Ok(Err(error)) => Ok(AgentWord::Failed(error)),
        Err(_) => Ok(AgentWord::Elsewhere("the agent failed".to_owned())),
    }
}
