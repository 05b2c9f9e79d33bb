//! Connection strings as libpq takes them, with its defaults from the environment, `pg_service.conf`
//! and `~/.pgpass`. Never connects and never shows a password. Invariant: an option is honoured,
//! or cannot matter, or is refused by its name; nothing makes a weaker connection than was asked for.

pub(crate) mod options;
mod password;
pub(crate) mod password_lines;
pub(crate) mod password_note;
mod service;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uzers::os::unix::UserExt;

use crate::error::{CommandError, Result};
use crate::files;
use crate::pg::encryption::settings::{self, Encryption};
use options::{Given, OPTIONS};

/// Files that a connection string names are certificates, and lists of services or passwords: more
/// than the bundle of a whole system (200 KiB) has no use.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// What a process can know without being asked; a value of its own so that tests can choose it.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// Name and home of the user this process runs as, as the system knows it.
    user: Option<(String, PathBuf)>,
    /// Folders that may hold the server's Unix socket, the likeliest first.
    socket_directories: Vec<PathBuf>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Environment {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let own = rustix::process::geteuid().as_raw();
        Environment {
            variables: variables.collect(),
            user: uzers::get_user_by_uid(own).and_then(|user| {
                let name = user.name().to_str()?.to_owned();
                Some((name, user.home_dir().to_path_buf()))
            }),
            // Debian's and Red Hat's place, and PostgreSQL's own.
            socket_directories: vec!["/var/run/postgresql".into(), "/tmp".into()],
        }
    }

    /// This environment with one variable more, or with another value of it.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Environment {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// What another process of this user will find that has none of libpq's variables, such as a server.
    #[must_use]
    pub(crate) fn without_libpq(mut self) -> Environment {
        let of_system = ["HOME", "USER", "LOGNAME"];
        self.variables
            .retain(|name, _| of_system.contains(&name.as_str()));
        self
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    /// libpq asks the system who runs this; where that does not know, the environment has to do.
    fn user_name(&self) -> Option<&str> {
        let system = self.user.as_ref().map(|(name, _)| name.as_str());
        system
            .or_else(|| self.variable("USER"))
            .or_else(|| self.variable("LOGNAME"))
    }

    pub(super) fn home(&self) -> Option<&Path> {
        let system = || self.user.as_ref().map(|(_, home)| home.as_path());
        self.variable("HOME").map(Path::new).or_else(system)
    }
}

/// Where a server may listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listener {
    /// `.s.PGSQL.PORT` in this folder, or in the abstract namespace if it begins with `@`.
    Socket(PathBuf),
    /// A host by its name.
    Name(String),
    /// A host by its address; nothing is looked up.
    Address(IpAddr),
}

/// One of the servers that a connection string names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// Where it listens.
    pub listener: Listener,
    /// Its port, and the number in its socket's name.
    pub port: u16,
    /// `host` as it was written: what a certificate and a line of `.pgpass` name.
    pub host: Option<String>,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.listener {
            Listener::Socket(folder) => write!(out, "{}", folder.display())?,
            Listener::Name(name) => write!(out, "{name}")?,
            Listener::Address(address) => match &self.host {
                Some(host) if host.parse() != Ok(*address) => write!(out, "{host} ({address})")?,
                _ => write!(out, "{address}")?,
            },
        }
        write!(out, " port {}", self.port)
    }
}

/// `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionKind {
    /// Whatever answers.
    #[default]
    Any,
    /// Takes writes.
    ReadWrite,
    /// Does not.
    ReadOnly,
    /// Does not replay.
    Primary,
    /// Replays.
    Standby,
    /// A standby, and if there is none whatever answers.
    PreferStandby,
}

/// What the kernel is told about a connection over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpSettings {
    /// Whether a silent connection is asked for signs of life.
    pub keepalives: bool,
    /// After which silence.
    pub idle: Option<Duration>,
    /// How often.
    pub interval: Option<Duration>,
    /// How often in vain.
    pub count: Option<u32>,
    /// How long data may stay unacknowledged, in milliseconds.
    pub user_timeout_ms: Option<u32>,
}

/// A connection string with all that it leaves open filled in.
#[derive(Clone, PartialEq, Eq)]
pub struct Conninfo {
    /// The servers, at least one, in the order in which they are tried.
    pub places: Vec<ServerAddress>,
    /// Whether that order is left to chance (`load_balance_hosts`).
    pub shuffled: bool,
    /// Who connects.
    pub user: String,
    /// `dbname`.
    pub database: String,
    password: Option<String>,
    password_file: Option<PathBuf>,
    socket_directories: Vec<PathBuf>,
    /// `options`.
    pub options: Option<String>,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// For each place; `None` leaves it to the caller.
    pub connect_timeout: Option<Duration>,
    /// How connections are encrypted and servers known.
    pub encryption: Encryption,
    /// Who has to run the server behind a Unix socket.
    pub required_peer: Option<String>,
    /// `require_auth`.
    pub authentication: Authentication,
    /// Which servers will do.
    pub session_kind: SessionKind,
    /// `keepalives…`, `tcp_user_timeout`.
    pub tcp: TcpSettings,
    /// Whether it is for replication, where the server takes no SQL.
    pub is_for_replication: bool,
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Conninfo")
            .field("places", &self.places)
            .field("shuffled", &self.shuffled)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("password_file", &self.password_file)
            .field("options", &self.options)
            .field("application_name", &self.application_name)
            .field("connect_timeout", &self.connect_timeout)
            .field("encryption", &self.encryption)
            .field("required_peer", &self.required_peer)
            .field("authentication", &self.authentication)
            .field("session_kind", &self.session_kind)
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

impl Conninfo {
    /// These parameters for a replication connection. It takes no SQL, so `target_session_attrs` has no effect.
    #[must_use]
    pub(crate) fn for_replication(self) -> Conninfo {
        Conninfo {
            is_for_replication: true,
            session_kind: SessionKind::Any,
            ..self
        }
    }

    /// Whether the password is the same for every place and database.
    pub fn has_own_password(&self) -> bool {
        self.password.is_some()
    }

    /// The password for a place and a database: the string's, or that of the password file.
    pub fn password(&self, place: &ServerAddress, database: &str) -> Option<Vec<u8>> {
        if let Some(password) = &self.password {
            return Some(password.clone().into_bytes());
        }
        password::from_file(
            self.password_file.as_deref()?,
            &self.wanted(place, database),
        )
    }

    /// What a line of the password file has to fit.
    fn wanted(&self, place: &ServerAddress, database: &str) -> password::WantedServer {
        let hosts = match (&place.listener, &place.host) {
            // Which folder is the default one depends on who built libpq.
            (Listener::Socket(folder), _) => {
                let mut hosts = vec![folder.display().to_string()];
                if self.socket_directories.contains(folder) || place.host.is_none() {
                    hosts.push("localhost".to_owned());
                }
                hosts
            }
            (_, Some(host)) => vec![host.clone()],
            (Listener::Address(address), None) => vec![address.to_string()],
            (Listener::Name(name), None) => vec![name.clone()],
        };
        [
            hosts,
            vec![place.port.to_string()],
            vec![database.to_owned()],
            vec![self.user.clone()],
        ]
    }
}

/// Which ways of proving who one is the server may ask for (`require_auth`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Authentication {
    methods: Vec<String>,
    forbidden: bool,
}

impl Authentication {
    const METHODS: [&str; 7] = [
        "password",
        "md5",
        "gss",
        "sspi",
        "scram-sha-256",
        "oauth",
        "none",
    ];

    fn parse(text: &str) -> Result<Authentication, String> {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        if text.is_empty() {
            return Ok(Authentication::default());
        }
        let forbidden = names.iter().filter(|name| name.starts_with('!')).count();
        if forbidden != 0 && forbidden != names.len() {
            return Err(format!(
                "require_auth={text}: either all methods are forbidden by ! or none"
            ));
        }
        let names: Vec<&str> = names
            .iter()
            .map(|name| name.trim_start_matches('!'))
            .collect();
        for name in &names {
            one_of("require_auth", name, &Self::METHODS)?;
        }
        Ok(Authentication {
            methods: names.into_iter().map(str::to_owned).collect(),
            forbidden: forbidden != 0,
        })
    }

    /// Whether a server may ask for this method.
    pub fn allows(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|name| name == method) != self.forbidden
    }
}

/// A string for the command line of another program, where everybody may read it: without its password, which is
/// the second part, and without `dbname`, which is another one for replication.
pub(crate) fn without_password(text: &str) -> Result<(String, Option<String>)> {
    let wrong = |wrong: String| {
        let shown = text::blotted(text);
        CommandError::config(format!("connection string {shown:?}: {wrong}"))
    };
    let mut given = text::options(text).map_err(wrong)?;
    if given
        .remove("sslpassword")
        .is_some_and(|value| !value.is_empty())
    {
        return Err(wrong(
            "sslpassword cannot be given to a program without others reading it: use a key without a \
            passphrase"
                .to_owned(),
        ));
    }
    let password = given.remove("password").filter(|value| !value.is_empty());
    given.remove("dbname");
    let pairs = given
        .iter()
        .map(|(name, value)| format!("{name}={}", quoted_value(value)));
    Ok((pairs.collect::<Vec<_>>().join(" "), password))
}

/// A value as `key=value` pairs have it, whatever is in it.
pub(crate) fn quoted_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Reads `key=value` pairs or a `postgresql://` address and fills in what it leaves open.
pub fn parse(text: &str, environment: &Environment) -> Result<Conninfo> {
    read(text, environment).map_err(|wrong| {
        let shown = text::blotted(text);
        CommandError::config(format!("connection string {shown:?}: {wrong}"))
    })
}

fn read(text: &str, environment: &Environment) -> Result<Conninfo, String> {
    let mut given = text::options(text)?;
    service::fill_in(&mut given, environment)?;
    for option in &OPTIONS {
        if let Some(value) = environment.variable(option.variable) {
            let value = || value.to_owned();
            given.entry(option.name).or_insert_with(value);
        }
    }
    // Old, but libpq still heeds it.
    if environment
        .variable("PGREQUIRESSL")
        .is_some_and(|value| value.starts_with('1'))
    {
        given
            .entry("sslmode")
            .or_insert_with(|| "require".to_owned());
    }
    options::check(&given)?;
    // These two never fall back to less than the environment asks for; libpq refuses them as well.
    for name in ["sslmode", "channel_binding"] {
        if given.get(name).is_some_and(String::is_empty) {
            return Err(format!("{name} is empty; give it a value, or leave it out"));
        }
    }
    // An empty value is as good as none, once it has kept the environment's out.
    given.retain(|_, value| !value.is_empty());
    complete(&given, environment)
}

fn complete(given: &Given, environment: &Environment) -> Result<Conninfo, String> {
    let text = |name: &str| given.get(name).cloned();
    let user = text("user")
        .or_else(|| environment.user_name().map(str::to_owned))
        .ok_or("nothing says as whom to connect; write user=NAME")?;
    let home_file = || environment.home().map(|home| home.join(".pgpass"));
    let seconds = |name: &str| -> Result<Option<Duration>, String> {
        Ok(number(given, name)?.and_then(|value| {
            let seconds = u64::try_from(value).ok().filter(|seconds| *seconds > 0)?;
            Some(Duration::from_secs(seconds))
        }))
    };
    let positive = |name: &str| -> Result<Option<u32>, String> {
        let value = number(given, name)?;
        Ok(value
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| *value > 0))
    };
    Ok(Conninfo {
        places: places(given, environment)?,
        shuffled: one_of_given(given, "load_balance_hosts", &["disable", "random"])? == 1,
        database: text("dbname").unwrap_or_else(|| user.clone()),
        user,
        password: text("password"),
        password_file: text("passfile").map(PathBuf::from).or_else(home_file),
        socket_directories: environment.socket_directories.clone(),
        options: text("options"),
        application_name: text("application_name")
            .or_else(|| text("fallback_application_name"))
            .unwrap_or_else(|| "walmgr".to_owned()),
        connect_timeout: seconds("connect_timeout")?,
        encryption: settings::read(given, environment.home())?,
        required_peer: text("requirepeer"),
        authentication: Authentication::parse(given.get("require_auth").map_or("", |s| s))?,
        session_kind: session_kind(given)?,
        tcp: TcpSettings {
            keepalives: number(given, "keepalives")?.unwrap_or(1) != 0,
            idle: seconds("keepalives_idle")?,
            interval: seconds("keepalives_interval")?,
            count: positive("keepalives_count")?,
            user_timeout_ms: positive("tcp_user_timeout")?,
        },
        is_for_replication: false,
    })
}

fn session_kind(given: &Given) -> Result<SessionKind, String> {
    let kinds = [
        ("any", SessionKind::Any),
        ("read-write", SessionKind::ReadWrite),
        ("read-only", SessionKind::ReadOnly),
        ("primary", SessionKind::Primary),
        ("standby", SessionKind::Standby),
        ("prefer-standby", SessionKind::PreferStandby),
    ];
    let names = kinds.map(|(name, _)| name);
    Ok(kinds[one_of_given(given, "target_session_attrs", &names)?].1)
}

/// As many servers as `hostaddr` or `host` has, and a port for each.
fn places(given: &Given, environment: &Environment) -> Result<Vec<ServerAddress>, String> {
    let list = |name: &str| -> Vec<String> {
        let text = given.get(name).map(String::as_str);
        (text.into_iter().flat_map(|text| text.split(',')))
            .map(|part| part.trim().to_owned())
            .collect()
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = addresses.len().max(hosts.len()).max(1);
    for (name, list) in [("host", &hosts), ("hostaddr", &addresses), ("port", &ports)] {
        let for_all = name == "port" && list.len() == 1;
        if !list.is_empty() && list.len() != count && !for_all {
            return Err(format!(
                "{name} has {} parts for {count} servers",
                list.len()
            ));
        }
    }
    let mut places = Vec::new();
    for index in 0..count {
        let part = |list: &[String]| list.get(index).cloned().filter(|part| !part.is_empty());
        let port = match ports
            .get(if ports.len() == 1 { 0 } else { index })
            .filter(|port| !port.is_empty())
        {
            Some(text) => (text.parse::<u16>().ok())
                .filter(|port| *port > 0)
                .ok_or_else(|| match text.bytes().all(|byte| byte.is_ascii_digit()) {
                    true => format!("port={text} is not a number from 1 to 65535"),
                    // An address whose password has a slash in it reads as if it were the port.
                    false => "port is not a number from 1 to 65535; in an address a slash of the \
                              password is written %2F"
                        .to_owned(),
                })?,
            None => 5432,
        };
        let host = part(&hosts);
        let listener = match (part(&addresses), &host) {
            (Some(address), _) => Listener::Address(
                (address.parse())
                    .map_err(|_| format!("hostaddr={address} is not an IP address"))?,
            ),
            (None, Some(host)) if host.starts_with(['/', '@']) => Listener::Socket(host.into()),
            (None, Some(host)) => match host.parse() {
                Ok(address) => Listener::Address(address),
                Err(_) => Listener::Name(host.clone()),
            },
            (None, None) => Listener::Socket(socket_directory(environment, port)),
        };
        places.push(ServerAddress {
            listener,
            port,
            host,
        });
    }
    Ok(places)
}

fn socket_directory(environment: &Environment, port: u16) -> PathBuf {
    let folders = &environment.socket_directories;
    let here = |folder: &&PathBuf| folder.join(format!(".s.PGSQL.{port}")).exists();
    // Without a socket anywhere the error names the likeliest place.
    let folder = folders.iter().find(here).or_else(|| folders.first());
    folder.cloned().unwrap_or_else(|| "/tmp".into())
}

/// A whole number; libpq takes negative ones and gives them no meaning.
fn number(given: &Given, name: &str) -> Result<Option<i32>, String> {
    let Some(text) = given.get(name) else {
        return Ok(None);
    };
    let number = text.trim().parse();
    (number.map(Some)).map_err(|_| format!("{name}={text} is not a whole number"))
}

/// Which of these a value is.
pub(super) fn one_of(name: &str, value: &str, known: &[&str]) -> Result<usize, String> {
    known
        .iter()
        .position(|known| *known == value)
        .ok_or_else(|| format!("{name}={value} is not one of {}", known.join(", ")))
}

/// Which of the known values an option was given, as an index; the first of them by default.
pub(super) fn one_of_given(given: &Given, name: &str, known: &[&str]) -> Result<usize, String> {
    given
        .get(name)
        .map_or(Ok(0), |value| one_of(name, value, known))
}

/// A small file as a whole.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe would be waited for, and a device has no end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    files::read_whole(&File::open(path)?, FILE_MAX_BYTES)?.ok_or_else(|| {
        let text = format!("it is longer than {FILE_MAX_BYTES} bytes");
        io::Error::other(text)
    })
}

/// The files beside a connection string, for [`super::fuzzing`]: the options that a service has.
pub(super) fn service_in(services: &str, passwords: &str) -> Vec<&'static str> {
    let any = || vec!["x".to_owned()];
    let wanted = [any(), any(), any(), any()];
    let found = passwords
        .lines()
        .find_map(|line| password::of_line(line.as_bytes(), &wanted));
    assert!(found.is_none_or(|found| passwords.len() >= found.len()));
    password_lines::check_edits(passwords.as_bytes());
    let mut given = Given::new();
    match service::section(services, "main", &mut given) {
        Ok(_) => given.into_keys().collect(),
        Err(_) => Vec::new(),
    }
}
