//! The client's way to a receiver: TCP, TLS, introduction, all within one deadline.
//! Never retries; the caller, or PostgreSQL's archiver, knows when to.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use walmgr_protocol::frame::{Direction, Nonce};
use walmgr_protocol::hello::{Hello, HelloAnswer, Refusal, Role, Welcome};
use walmgr_protocol::limits::BLOCK_BYTES_MIN;
use walmgr_protocol::message::{ClusterIdentity, Error, ErrorCode, MessageKind};
use walmgr_protocol::names::TimelineId;
use walmgr_protocol::version::VersionRange;

use crate::config::MasterConfig;
use crate::error::{CommandError, Kind, Result};
use crate::transport::frames::ClientIntroduction;
use crate::transport::identity::{Fingerprint, Identity};
use crate::transport::stream::{ByteStream, buffered};
use crate::transport::tls::{self, PeerTrust, TlsFault};
use crate::transport::wire::{Introduction, Wire, WireFault};

/// A connection whose receiver has welcomed us.
pub struct Connection {
    /// Frames to and from it.
    pub wire: Wire,
    /// What it welcomed us with.
    pub welcome: Welcome,
}

/// Where a receiver is and how to know that it is the right one.
pub struct ReceiverTarget {
    host: String,
    port: u16,
    tls: Option<Arc<rustls::ClientConfig>>,
    connect_timeout: Duration,
}

impl ReceiverTarget {
    /// The receiver that a master's settings name.
    pub fn from_config(config: &MasterConfig) -> Result<ReceiverTarget> {
        let tls = if config.tls.enabled {
            let identity = Identity::load(&config.tls.key, &config.tls.certificate)?;
            Some(tls::client_config(&identity, &trust(config)?)?)
        } else {
            None
        };
        Ok(ReceiverTarget {
            host: config.slave.host.clone(),
            port: config.slave.port,
            tls,
            connect_timeout: config.connect_timeout,
        })
    }

    /// Connects, and introduces this side as the master of `cluster`.
    pub async fn connect(
        &self,
        cluster: ClusterIdentity,
        timeline: TimelineId,
    ) -> Result<Connection> {
        let role = Role::Master;
        self.connect_as(role, Some(cluster), timeline).await
    }

    /// Connects, and introduces this side as a tool that only reads. Its cluster is unknown if its files are lost.
    pub async fn connect_to_read(&self, cluster: Option<ClusterIdentity>) -> Result<Connection> {
        let timeline = TimelineId::FIRST;
        self.connect_as(Role::Tool, cluster, timeline).await
    }

    async fn connect_as(
        &self,
        role: Role,
        cluster: Option<ClusterIdentity>,
        timeline: TimelineId,
    ) -> Result<Connection> {
        let deadline = Instant::now() + self.connect_timeout;
        let stream = self.tcp(deadline).await?;
        let hello = Hello {
            role,
            cluster,
            timeline,
            nonce: fresh_nonce()?,
            software: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let introduce = async {
            let stream = self.secure(stream).await?;
            self.introduce(Introduction::new(stream), &hello).await
        };
        timeout_at(deadline, introduce).await.unwrap_or_else(|_| {
            let limit = self.connect_timeout;
            Err(CommandError::retry(format!(
                "{self} accepted the connection but did not introduce itself within {limit:?}"
            ))
            .hint("look at the receiver's log on the standby"))
        })
    }

    async fn tcp(&self, deadline: Instant) -> Result<TcpStream> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let hint =
            "check `slave` in the ini file, and that `walmgr STANDBY.ini receiver` runs there";
        let stream = match timeout_at(deadline, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let doing = format!("connect to {self}");
                return Err(CommandError::retry(doing).because(error).hint(hint));
            }
            Err(_) => {
                let doing = format!("{self} did not answer within {:?}", self.connect_timeout);
                return Err(CommandError::retry(doing).hint(hint));
            }
        };
        // Frames are written whole; waiting to fill a packet only delays the last of them.
        stream.set_nodelay(true).map_err(|error| {
            CommandError::retry(format!("prepare the connection to {self}")).because(error)
        })?;
        Ok(stream)
    }

    async fn secure(&self, stream: TcpStream) -> Result<ByteStream> {
        let Some(config) = &self.tls else {
            return Ok(ByteStream::Plain(stream));
        };
        let name = tls::server_name(&self.host)?;
        match TlsConnector::from(Arc::clone(config))
            .connect(name, buffered(stream))
            .await
        {
            Ok(stream) => {
                tls::require_walmgr(stream.get_ref().1.alpn_protocol(), &self.to_string())?;
                Ok(ByteStream::Tls(Box::new(stream.into())))
            }
            Err(error) => Err(TlsFault::of(&error, &self.to_string()).into()),
        }
    }

    async fn introduce(
        &self,
        mut with: Introduction<ClientIntroduction>,
        hello: &Hello,
    ) -> Result<Connection> {
        let answer = async {
            with.send_hello(hello).await?;
            with.receive_answer().await
        };
        match answer.await {
            Ok(HelloAnswer::Welcome(version, _)) if !VersionRange::OURS.contains(version) => {
                Err(CommandError::retry(format!(
                    "{self} chose protocol version {version}, this side speaks {}",
                    VersionRange::OURS
                ))
                .hint("upgrade the older of the two"))
            }
            Ok(HelloAnswer::Welcome(_, welcome)) if !is_sensible(&welcome) => {
                Err(CommandError::retry(format!(
                    "{self} offers limits that no receiver of walmgr offers: blocks of {} bytes, \
                    frames of {}, {} channels",
                    welcome.block_bytes_max, welcome.payload_bytes_max, welcome.channels_max
                ))
                .hint("check that `slave` names the standby's receiver"))
            }
            Ok(HelloAnswer::Welcome(_, welcome)) => {
                let wire = with.into_wire(Direction::FromClient, &hello.nonce, &welcome);
                Ok(Connection { wire, welcome })
            }
            Ok(HelloAnswer::Refused(refusal)) => {
                let Refusal {
                    code,
                    message,
                    hint,
                } = refusal;
                let error = Error::connection(code, message, hint);
                Err(refused(self, "refused us", error))
            }
            Err(WireFault::Io(error)) => Err(TlsFault::of(&error, &self.to_string()).into()),
            Err(fault) => {
                let hint = if self.tls.is_none() {
                    "tls = off is set here: check whether the receiver has tls on"
                } else {
                    "look at the receiver's log on the standby"
                };
                Err(
                    CommandError::retry(format!("introduce ourselves to {self}"))
                        .because(fault)
                        .hint(hint),
                )
            }
        }
    }
}

impl Display for ReceiverTarget {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "receiver {}:{}", self.host, self.port)
    }
}

/// Whether a client can work within what it was offered: a block of nothing would never end.
const fn is_sensible(welcome: &Welcome) -> bool {
    welcome.block_bytes_max >= BLOCK_BYTES_MIN
        && welcome.payload_bytes_max >= BLOCK_BYTES_MIN
        && welcome.channels_max > 0
}

/// What it means to a command that a receiver did this, `refused` as a rule.
pub(crate) fn refused(receiver: &dyn Display, did: &str, error: Error) -> CommandError {
    let text = format!("{receiver} {did}: {}", error.message);
    CommandError::new(kind_of(error.code), text).hint(error.hint)
}

/// What it means to a command that a receiver answered with something else than was asked.
pub(crate) fn answered_with(receiver: &dyn Display, found: MessageKind) -> CommandError {
    CommandError::retry(format!("{receiver} answered with {}", found.words()))
        .hint("the two sides may run versions too far apart")
}

/// Whose fault a refusal is, for the exit code.
const fn kind_of(code: ErrorCode) -> Kind {
    match code {
        ErrorCode::NotAuthorized | ErrorCode::RightMissing => Kind::Identity,
        ErrorCode::ForeignCluster | ErrorCode::ForeignFile => Kind::ForeignCluster,
        ErrorCode::DiskFull | ErrorCode::DiskFailed => Kind::ReceiverDisk,
        ErrorCode::Diverged => Kind::Conflict,
        ErrorCode::Malformed
        | ErrorCode::Misbehaved
        | ErrorCode::Incompatible
        | ErrorCode::NotSetUp
        | ErrorCode::DamagedFile
        | ErrorCode::ParentUnfit
        | ErrorCode::Mismatch
        | ErrorCode::TooLarge
        | ErrorCode::Busy
        | ErrorCode::ShuttingDown
        | ErrorCode::TimedOut
        | ErrorCode::Internal
        | ErrorCode::Abandoned
        | ErrorCode::WriterActive
        | ErrorCode::Finished
        | ErrorCode::HistoryMissing => Kind::Retry,
    }
}

/// Sixteen bytes nobody can foresee, from the kernel.
pub(crate) fn fresh_nonce() -> Result<Nonce> {
    let mut nonce = Nonce::default();
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut nonce)
        .map_err(|_| CommandError::retry("the system gave no random bytes"))?;
    Ok(nonce)
}

fn trust(config: &MasterConfig) -> Result<PeerTrust> {
    if let Some(authority) = &config.tls.authority {
        return Ok(PeerTrust::Authority(authority.clone()));
    }
    let Some(text) = &config.slave_fingerprint else {
        return Err(CommandError::config(format!(
            "{} has neither slave_fingerprint nor tls_ca, so no receiver can be trusted",
            config.path.display()
        ))
        .hint(
            "run `walmgr STANDBY.ini identity` on the standby and set slave_fingerprint here to \
            the fingerprint that it prints",
        ));
    };
    let fingerprint: Fingerprint = text.parse().map_err(|error| {
        CommandError::config(format!("slave_fingerprint in {}", config.path.display()))
            .because(error)
    })?;
    Ok(PeerTrust::Pinned(fingerprint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fault_30_connecting_and_the_introduction_share_one_deadline() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // Room for one that nobody accepts; whoever comes next tries again after 1 s, 3 s and 7 s.
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let first = std::net::TcpStream::connect(address).unwrap();
        let target = ReceiverTarget {
            host: address.ip().to_string(),
            port: address.port(),
            tls: None,
            connect_timeout: Duration::from_secs(9),
        };
        let accepted = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(3_500));
            [(); 2].map(|()| listener.accept().unwrap())
        });
        let cluster = ClusterIdentity {
            system_id: walmgr_protocol::names::SystemId(1),
            postgres_major: 15,
            segment_size: walmgr_protocol::names::WalSegmentSize::new(16 << 20).unwrap(),
        };
        let begin = Instant::now();
        let connecting = target.connect(cluster, TimelineId::new(1).unwrap());
        let refused = connecting.await.err().expect("nobody speaks there");
        let took = begin.elapsed();
        let text = refused.to_string();
        assert!(
            text.contains("did not introduce itself within 9s"),
            "{text}"
        );
        // Were the introduction given as much again, both together would take 16 s.
        assert!(took < Duration::from_secs(15), "{took:?}");
        drop((first, accepted.await.unwrap()));
    }
}
