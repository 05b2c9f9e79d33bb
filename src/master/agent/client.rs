//! How `xarchive` asks an agent, and how `status` looks at the syncdaemon.
//! Never waits longer than a moment for one that says nothing. Invariant: only a word that names exactly this file, as
//! it still is, counts as a proof; whatever else happens, the file is pushed from here, or failed as it would have.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use walmgr_protocol::names::WalFileName;

use super::shared::settings_digest;
use super::socket;
use super::words::{self, AgentWord, Ask, HEADER_BYTES, ProvenFile};
use crate::config::MasterConfig;
use crate::error::Result;
use crate::files::ChangeStamp;
use crate::master::archived_file::{ArchivedFile, not_in_time};
use crate::status::AgentFacts;

/// How long an agent may take to say its first word: a busy one needs a millisecond.
const FIRST_WORD_WITHIN: Duration = Duration::from_millis(100);

/// How long a syncdaemon may take to say how it stands.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// What became of asking.
pub(in crate::master) enum AgentAnswer {
    /// What `xarchive` ends with.
    Said(Result<()>),
    /// The file has to be pushed from here.
    PushYourself,
    /// It has to be pushed from here, and nobody listens.
    NobodyListens,
}

/// Asks the syncdaemon for a file that was typed as this path and name, or whoever looks ahead without one.
pub(in crate::master) fn ask(
    config: &MasterConfig,
    (path, name): (&Path, WalFileName),
    source: &ArchivedFile,
    deadline: Instant,
) -> AgentAnswer {
    let connected = socket::pidfiles(config).into_iter().find_map(|pidfile| {
        let socket = socket::beside(&pidfile);
        let failed = |error| tracing::debug!("nobody is asked at {}: {error}", socket.display());
        socket::connect(&socket).map_err(failed).ok()
    });
    let Some(stream) = connected else {
        return AgentAnswer::NobodyListens;
    };
    let Ok(path) = std::path::absolute(path) else {
        return AgentAnswer::PushYourself;
    };
    let ask = Ask {
        settings: settings_digest(config),
        path,
        name,
        stamp: source.stamp,
    };
    match exchange(&stream, ask, deadline) {
        Ok(LastWord::Stored(stored)) if is_proof(&stored, source) => {
            tracing::debug!("{} is durable on {}", source.name, config.slave);
            AgentAnswer::Said(Ok(()))
        }
        Ok(LastWord::Stored(_)) => {
            tracing::debug!("the agent answered for another file");
            AgentAnswer::PushYourself
        }
        Ok(LastWord::Failed(error)) => AgentAnswer::Said(Err(error)),
        Ok(LastWord::Elsewhere(why)) => {
            tracing::debug!("the agent does not archive this: {why}");
            AgentAnswer::PushYourself
        }
        // As it would be if this process had waited for the receiver.
        Err(_) if Instant::now() >= deadline => {
            AgentAnswer::Said(Err(not_in_time(config, source.name)))
        }
        Err(error) => {
            tracing::debug!("the agent did not answer: {error}");
            AgentAnswer::PushYourself
        }
    }
}

/// How the syncdaemon stands that is asked with these settings; nothing where this user may not ask.
pub(in crate::master) fn look(config: &MasterConfig) -> Option<AgentFacts> {
    let socket = socket::beside(&config.syncdaemon_pidfile());
    let looked = socket::connect(&socket).and_then(|stream| {
        // What it says is shown and proves nothing, so root need not be its user.
        if !geteuid().is_root() {
            socket::check_peer(&stream)?;
        }
        stream.set_write_timeout(Some(LOOK_WITHIN))?;
        let look = AgentWord::Look(settings_digest(config));
        (&stream).write_all(&look.to_bytes())?;
        read_word(&stream, Instant::now() + LOOK_WITHIN)
    });
    Some(match looked {
        Ok(AgentWord::Standing(figures)) => AgentFacts::Heard(figures),
        Ok(AgentWord::Elsewhere(why)) => AgentFacts::Unheard(why),
        Ok(_) => AgentFacts::Unheard("it says something else than how it stands".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
        Err(error) => AgentFacts::Unheard(format!("ask it at {}: {error}", socket.display())),
    })
}

/// Exactly this file, which is still what it was when it was opened.
fn is_proof(stored: &ProvenFile, source: &ArchivedFile) -> bool {
    let is_same = |stamp: &ChangeStamp| *stamp == source.stamp;
    stored.name == source.name
        && is_same(&stored.stamp)
        && source.stamp_now().is_some_and(|now| is_same(&now))
}

/// The last word of an agent.
enum LastWord {
    Stored(ProvenFile),
    Failed(crate::error::CommandError),
    Elsewhere(String),
}

fn exchange(stream: &UnixStream, ask: Ask, deadline: Instant) -> io::Result<LastWord> {
    socket::check_peer(stream)?;
    let mut until = deadline.min(Instant::now() + FIRST_WORD_WITHIN);
    stream.set_write_timeout(Some(FIRST_WORD_WITHIN))?;
    (&*stream).write_all(&AgentWord::Ask(ask).to_bytes())?;
    loop {
        match read_word(stream, until)? {
            AgentWord::Taken => until = deadline,
            AgentWord::Stored(stored) => return Ok(LastWord::Stored(stored)),
            AgentWord::Failed(error) => return Ok(LastWord::Failed(error)),
            AgentWord::Elsewhere(why) => return Ok(LastWord::Elsewhere(why)),
            AgentWord::Ask(_) | AgentWord::Look(_) | AgentWord::Standing(_) => {
                return Err(io::Error::other("that is no answer"));
            }
        }
    }
}

fn read_word(stream: &UnixStream, until: Instant) -> io::Result<AgentWord> {
    let mut first = [0; HEADER_BYTES];
    read_exact(stream, &mut first, until)?;
    let (kind, bytes) = words::header(&first).map_err(io::Error::other)?;
    let mut body = vec![0; bytes];
    read_exact(stream, &mut body, until)?;
    AgentWord::read(kind, &body).map_err(io::Error::other)
}

/// Fills `buffer`, or fails at `until`. A peer that lets bytes drip gets no more time, as `Read::read_exact` would
/// give it.
fn read_exact(mut stream: &UnixStream, mut buffer: &mut [u8], until: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => buffer = &mut buffer[bytes..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
