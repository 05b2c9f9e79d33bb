//! Connecting to one of the servers that a connection string names, encrypted as it says.
//! Never asks a server anything but what kind it is. Invariant: no password leaves before the
//! server is known as well as was asked for, and every attempt ends within its limit.

mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::config::{ChannelBinding, SslMode as DriverMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::{CancelToken, Client, Config, Connection};

use super::conninfo::{Conninfo, Listener, ServerAddress, SessionKind, TcpSettings};
use super::encryption::settings::{Demand, SslMode};
use super::encryption::{self, ALPN};
use crate::files;
pub(crate) use wire::PgSocket;
use wire::{Established, Gate};

/// The request for TLS (`NEGOTIATE_SSL_CODE`, `src/include/libpq/pqcomm.h`): length and number.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// An open connection, its client's side and the side that moves bytes.
pub(crate) struct DialledServer {
    /// Takes statements.
    pub client: Client,
    /// Has to be polled for anything to happen.
    pub connection: Connection<PgSocket, PgSocket>,
    /// Has the bare connection once the two are dropped, for who speaks the protocol without the driver.
    pub socket: oneshot::Receiver<PgSocket>,
    /// The way there, once more.
    pub way: DialledWay,
}

/// How a server was reached.
#[derive(Debug, Clone)]
pub(crate) struct DialledWay {
    place: ServerAddress,
    address: Option<SocketAddr>,
    encrypted: Encrypted,
}

/// Whether a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encrypted {
    No,
    /// If the server can.
    IfPossible,
    Yes,
}

/// Why there is no session.
#[derive(Debug)]
pub(crate) enum DialFault {
    /// What the server said, or what of it made no sense.
    Server(tokio_postgres::Error),
    /// The way there is broken, or nobody listens.
    Network(io::Error),
    /// The server, or this host, is not what was asked for; trying again cannot help.
    Unfit(String),
    /// It is not the kind of server that was asked for; it may become so.
    OtherKind(String),
    /// It did not answer.
    Silent(Duration),
    /// It was tried with TLS and without.
    Both {
        /// What came of it with TLS.
        with: Box<DialFault>,
        /// And without.
        without: Box<DialFault>,
    },
}

impl DialledWay {
    /// The server that was reached.
    pub(crate) fn place(&self) -> &ServerAddress {
        &self.place
    }
}

impl DialFault {
    /// What the server calls it.
    pub(crate) fn code(&self) -> Option<&SqlState> {
        match self {
            DialFault::Server(error) => error.code(),
            // Without TLS most servers say no more than that they want it.
            DialFault::Both { with, without } => with.code().or_else(|| without.code()),
            _ => None,
        }
    }

    /// With what came of the second attempt, which was encrypted or not.
    fn and(self, second: DialFault, encrypted: Encrypted) -> DialFault {
        let (with, without) = match encrypted {
            Encrypted::No => (self, second),
            Encrypted::IfPossible | Encrypted::Yes => (second, self),
        };
        DialFault::Both {
            with: Box::new(with),
            without: Box::new(without),
        }
    }

    /// Whether another server of the string may do: one that answers and refuses us does not say
    /// so because of where it is.
    fn is_of_the_place(&self) -> bool {
        match self {
            DialFault::Server(error) => {
                (error.code()).is_none_or(|code| *code == SqlState::CANNOT_CONNECT_NOW)
            }
            DialFault::Both { with, without } => {
                with.is_of_the_place() && without.is_of_the_place()
            }
            _ => true,
        }
    }
}

impl fmt::Display for DialFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialFault::Server(error) => {
                use std::error::Error;
                // The driver's own words say less than what is behind them.
                match (error.as_db_error(), error.source()) {
                    (Some(error), _) => {
                        write!(out, "{}: {}", error.severity(), error.message())?;
                        error
                            .detail()
                            .map_or(Ok(()), |detail| write!(out, " ({detail})"))
                    }
                    (None, Some(cause)) => write!(out, "{cause}"),
                    (None, None) => write!(out, "{error}"),
                }
            }
            DialFault::Network(error) => write!(out, "{error}"),
            DialFault::Unfit(text) | DialFault::OtherKind(text) => write!(out, "{text}"),
            DialFault::Both { with, without } => {
                write!(out, "with TLS: {with}; without: {without}")
            }
            DialFault::Silent(limit) => write!(out, "no answer within {} s", limit.as_secs_f32()),
        }
    }
}

/// The first server that will do. Each of the places, and each address of a name, may take `limit`,
/// or what `connect_timeout` says if that is less.
pub(crate) async fn open(
    info: &Conninfo,
    database: &str,
    limit: Duration,
) -> Result<DialledServer, Vec<(ServerAddress, DialFault)>> {
    let mut places = info.places.clone();
    shuffle(&mut places, info.shuffled);
    let mut refusals = Vec::new();
    let kinds = match info.session_kind {
        SessionKind::PreferStandby => vec![SessionKind::Standby, SessionKind::Any],
        kind => vec![kind],
    };
    for kind in kinds {
        for place in &places {
            match open_place(info, database, place, kind, limit).await {
                Ok(opened) => return Ok(opened),
                Err(refusal) => {
                    let elsewhere = refusal.is_of_the_place();
                    refusals.push((place.clone(), refusal));
                    if !elsewhere {
                        return Err(refusals);
                    }
                }
            }
        }
    }
    Err(refusals)
}

/// With chance from the library that TLS uses; without any the order stays.
fn shuffle<T>(list: &mut [T], shuffled: bool) {
    if !shuffled {
        return;
    }
    for last in (1..list.len()).rev() {
        let mut bytes = [0; 8];
        if aws_lc_rs::rand::fill(&mut bytes).is_ok() {
            let chance = u64::from_le_bytes(bytes) % (last as u64 + 1);
            list.swap(last, usize::try_from(chance).unwrap_or(last));
        }
    }
}

async fn open_place(
    info: &Conninfo,
    database: &str,
    place: &ServerAddress,
    kind: SessionKind,
    limit: Duration,
) -> Result<DialledServer, DialFault> {
    let limit = info.connect_timeout.map_or(limit, |own| own.min(limit));
    let addresses = match timeout(limit, addresses(place, info.shuffled)).await {
        Ok(found) => found.map_err(DialFault::Network)?,
        Err(_) => return Err(DialFault::Silent(limit)),
    };
    let mut of_addresses = None;
    for address in addresses {
        let mut last: Option<DialFault> = None;
        for encrypted in order(info, address) {
            let mut way = DialledWay {
                place: place.clone(),
                address,
                encrypted,
            };
            let opening = Box::pin(open_way(info, database, &mut way, kind));
            let refusal = match timeout(limit, opening).await {
                Ok(Ok((client, connection, socket))) => {
                    return Ok(DialledServer {
                        client,
                        connection,
                        socket,
                        way,
                    });
                }
                Ok(Err(refusal)) => refusal,
                Err(_) => DialFault::Silent(limit),
            };
            // With TLS and then without, or the reverse, unless it was without already.
            let again = match &refusal {
                DialFault::Server(error) => error.as_db_error().is_some(),
                DialFault::Unfit(_) => true,
                _ => false,
            } && (encrypted, way.encrypted) != (Encrypted::IfPossible, Encrypted::No);
            last = Some(match last {
                Some(first) => first.and(refusal, encrypted),
                None => refusal,
            });
            if !again {
                break;
            }
        }
        let goes_on = last.as_ref().is_none_or(DialFault::is_of_the_place);
        of_addresses = last.or(of_addresses);
        if !goes_on {
            break;
        }
    }
    let nowhere = || DialFault::Network(io::Error::other("the name has no address"));
    Err(of_addresses.unwrap_or_else(nowhere))
}

/// `None` for a Unix socket.
async fn addresses(place: &ServerAddress, shuffled: bool) -> io::Result<Vec<Option<SocketAddr>>> {
    let mut found: Vec<Option<SocketAddr>> = match &place.listener {
        Listener::Socket(_) => vec![None],
        Listener::Address(address) => vec![Some(SocketAddr::new(*address, place.port))],
        Listener::Name(name) => tokio::net::lookup_host((name.as_str(), place.port))
            .await?
            .map(Some)
            .collect(),
    };
    shuffle(&mut found, shuffled);
    Ok(found)
}

/// What is tried. A Unix socket never leaves this host.
fn order(info: &Conninfo, address: Option<SocketAddr>) -> Vec<Encrypted> {
    match info.encryption.mode {
        _ if address.is_none() => vec![Encrypted::No],
        SslMode::Disable => vec![Encrypted::No],
        SslMode::Allow => vec![Encrypted::No, Encrypted::Yes],
        SslMode::Prefer => vec![Encrypted::IfPossible, Encrypted::No],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => vec![Encrypted::Yes],
    }
}

/// The driver's two sides, and where the connection is once they are dropped.
type OpenedWay = (
    Client,
    Connection<PgSocket, PgSocket>,
    oneshot::Receiver<PgSocket>,
);

async fn open_way(
    info: &Conninfo,
    database: &str,
    way: &mut DialledWay,
    kind: SessionKind,
) -> Result<OpenedWay, DialFault> {
    let (established, encrypted) = reach(info, way).await?;
    // What was agreed on is what a later connection to the same server does.
    way.encrypted = encrypted;
    let is_bound = encrypted == Encrypted::No || established.end_point().is_some();
    if info.encryption.channel_binding == Demand::Require && !is_bound {
        return Err(DialFault::Unfit(
            "channel_binding=require: the server's certificate is signed without a hash \
            (Ed25519), so channel binding is impossible"
                .to_owned(),
        ));
    }
    let mut config = Config::new();
    config
        .user(&info.user)
        .dbname(database)
        .application_name(&info.application_name)
        .channel_binding(match info.encryption.channel_binding {
            Demand::Disable => ChannelBinding::Disable,
            Demand::Prefer => ChannelBinding::Prefer,
            Demand::Require => ChannelBinding::Require,
        });
    if let Some(options) = &info.options {
        config.options(options);
    }
    if let Some(password) = info.password(&way.place, database) {
        config.password(password);
    }
    // The driver is handed a connection that is encrypted already, or is not to be.
    match encrypted {
        Encrypted::No => config.ssl_mode(DriverMode::Disable),
        Encrypted::IfPossible | Encrypted::Yes => config
            .ssl_mode(DriverMode::Require)
            .ssl_negotiation(SslNegotiation::Direct),
    };
    let gate = Gate::new(&info.authentication);
    let (lent, socket) = established
        .gated(gate)
        .begun(info.is_for_replication)
        .lent();
    let opened = config.connect_raw(lent, Established).await;
    let (client, mut connection) = opened.map_err(forbidden)?;
    if kind != SessionKind::Any {
        let asking = is_kind(&client, kind);
        let other = tokio::select! {
            other = asking => other.map_err(DialFault::Server)?,
            ended = &mut connection => {
                return Err(match ended {
                    Err(error) => DialFault::Server(error),
                    Ok(()) => DialFault::Network(io::ErrorKind::UnexpectedEof.into()),
                });
            }
        };
        if let Some(other) = other {
            return Err(DialFault::OtherKind(other));
        }
    }
    Ok((client, connection, socket))
}

/// The gate's error comes back wrapped in the driver's.
fn forbidden(error: tokio_postgres::Error) -> DialFault {
    let source = std::error::Error::source(&error);
    let source = source.and_then(|source| source.downcast_ref::<io::Error>());
    match source.filter(|source| source.kind() == io::ErrorKind::PermissionDenied) {
        Some(source) => DialFault::Unfit(source.to_string()),
        None => DialFault::Server(error),
    }
}

/// What it is instead of what was asked for.
async fn is_kind(
    client: &Client,
    kind: SessionKind,
) -> Result<Option<String>, tokio_postgres::Error> {
    // Nobody else's functions have a say: utility statements look nothing up.
    client
        .batch_execute("SET search_path TO pg_catalog, pg_temp")
        .await?;
    let sql = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'";
    let row = client.query_one(sql, &[]).await?;
    let (replays, read_only): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let read_only = read_only || replays;
    let (fits, found) = match kind {
        SessionKind::Any | SessionKind::PreferStandby => (true, ""),
        SessionKind::ReadWrite => (!read_only, "takes no writes"),
        SessionKind::ReadOnly => (read_only, "takes writes"),
        SessionKind::Primary => (!replays, "is a standby"),
        SessionKind::Standby => (replays, "is no standby"),
    };
    Ok((!fits).then(|| format!("it {found}, but target_session_attrs requires otherwise")))
}

/// A connection up to where the session begins, and whether it is encrypted.
async fn reach(info: &Conninfo, way: &DialledWay) -> Result<(PgSocket, Encrypted), DialFault> {
    let mut wire = match way.address {
        Some(address) => {
            let stream = TcpStream::connect(address)
                .await
                .map_err(DialFault::Network)?;
            tune(&stream, &info.tcp).map_err(DialFault::Network)?;
            PgSocket::tcp(stream)
        }
        None => PgSocket::unix(unix_socket(info, &way.place).await?),
    };
    if way.encrypted == Encrypted::No {
        return Ok((wire, Encrypted::No));
    }
    if !info.encryption.direct {
        wire.send(&SSL_REQUEST).await.map_err(DialFault::Network)?;
        match wire.receive_byte().await.map_err(DialFault::Network)? {
            b'S' => {}
            b'N' if way.encrypted == Encrypted::IfPossible => return Ok((wire, Encrypted::No)),
            b'N' => {
                return Err(DialFault::Unfit(
                    "the server does not support TLS".to_owned(),
                ));
            }
            _ => {
                return Err(DialFault::Unfit(
                    "the server does not answer a request for TLS".to_owned(),
                ));
            }
        }
    }
    let host = way.place.host.as_deref();
    let handshake = encryption::handshake(&info.encryption, host).map_err(DialFault::Unfit)?;
    let wire = match wire.encrypted(handshake.config, handshake.name).await {
        // A server that hangs up on TLS may do without, and that is what was asked for then.
        Err(DialFault::Network(error)) if way.encrypted == Encrypted::IfPossible => {
            return Err(DialFault::Unfit(error.to_string()));
        }
        encrypted => encrypted?,
    };
    if info.encryption.direct && wire.agreed() != Some(ALPN) {
        return Err(DialFault::Unfit(
            "the server speaks TLS, but not PostgreSQL's protocol".to_owned(),
        ));
    }
    let demand = info.encryption.certificate_demand;
    if demand == Demand::Require && !handshake.shown.was_asked_for() {
        return Err(DialFault::Unfit(
            "the server did not ask for our certificate, and sslcertmode=require".to_owned(),
        ));
    }
    Ok((wire, Encrypted::Yes))
}

async fn unix_socket(info: &Conninfo, place: &ServerAddress) -> Result<UnixStream, DialFault> {
    let Listener::Socket(folder) = &place.listener else {
        return Err(DialFault::Unfit("a name without an address".to_owned()));
    };
    let name = format!(".s.PGSQL.{}", place.port);
    let path = match folder.to_str().and_then(|text| text.strip_prefix('@')) {
        Some(hidden) => std::path::PathBuf::from(format!("\0{hidden}/{name}")),
        None => folder.join(name),
    };
    let stream = UnixStream::connect(&path).await.map_err(|error| {
        let shown = path.display().to_string().replace('\0', "@");
        DialFault::Network(io::Error::new(error.kind(), format!("{shown}: {error}")))
    })?;
    let Some(required) = &info.required_peer else {
        return Ok(stream);
    };
    let found = stream.peer_cred().map_err(DialFault::Network)?.uid();
    let expected = uzers::get_user_by_name(required).map(|user| user.uid());
    if expected != Some(found) {
        return Err(DialFault::Unfit(format!(
            "requirepeer={required}, but the server behind the socket is run by {}",
            files::user_name(found).unwrap_or_else(|| found.to_string())
        )));
    }
    Ok(stream)
}

fn tune(stream: &TcpStream, settings: &TcpSettings) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    if settings.keepalives {
        sockopt::set_socket_keepalive(stream, true)?;
        if let Some(idle) = settings.idle {
            sockopt::set_tcp_keepidle(stream, idle)?;
        }
        if let Some(interval) = settings.interval {
            sockopt::set_tcp_keepintvl(stream, interval)?;
        }
        if let Some(count) = settings.count {
            sockopt::set_tcp_keepcnt(stream, count)?;
        }
    }
    if let Some(timeout_ms) = settings.user_timeout_ms {
        sockopt::set_tcp_user_timeout(stream, timeout_ms)?;
    }
    Ok(())
}

/// Asks the server to end the statement that is under way, on a connection of its own that is as
/// well encrypted.
pub(crate) async fn cancel(
    info: &Conninfo,
    way: &DialledWay,
    token: CancelToken,
) -> Result<(), DialFault> {
    let (wire, _) = reach(info, way).await?;
    let cancelled = token.cancel_query_raw(wire, Established).await;
    cancelled.map_err(DialFault::Server)
}
