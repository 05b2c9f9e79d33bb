//! libpq connection strings, with libpq's defaults from the environment and `~/.pgpass`.
//! Never connects and never prints a password. Invariant: an option that cannot be honoured, such
//! as `sslmode=require`, is an error and not a weaker connection.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::error::{CommandError, Result};

/// What a process can know without being asked; a value of its own so that tests can choose it.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// Name and home of the user this process runs as, from `/etc/passwd`.
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
        Environment {
            variables: variables.collect(),
            user: os_user(),
            // Debian's and Red Hat's place, and PostgreSQL's own.
            socket_directories: vec!["/var/run/postgresql".into(), "/tmp".into()],
        }
    }

    /// The same with this environment variable.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Environment {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    /// libpq asks the system who runs this; users that only a directory service knows are not in
    /// `/etc/passwd`, and then the environment has to do.
    fn user_name(&self) -> Option<&str> {
        let system = self.user.as_ref().map(|(name, _)| name.as_str());
        system
            .or_else(|| self.variable("USER"))
            .or_else(|| self.variable("LOGNAME"))
    }

    fn home(&self) -> Option<&Path> {
        let system = || self.user.as_ref().map(|(_, home)| home.as_path());
        self.variable("HOME").map(Path::new).or_else(system)
    }
}

/// Options of a connection string that mean nothing without TLS or Kerberos, neither of which is
/// used here.
const IGNORED: [&str; 16] = [
    "client_encoding",
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "sslcert",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslsni",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "sslkeylogfile",
    "sslnegotiation",
];

/// Options passed on as they are.
const KNOWN: [&str; 15] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "target_session_attrs",
    "user",
];

/// Reads `key=value` pairs or a `postgresql://` address and fills in what it leaves open.
pub fn parse(text: &str, environment: &Environment) -> Result<Config> {
    let is_address = ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| text.starts_with(scheme));
    let (mut config, password_file) = if is_address {
        (text.parse().map_err(|error| refused(text, error))?, None)
    } else {
        let mut options = pairs(text)?;
        let password_file = options.remove("passfile").map(PathBuf::from);
        (checked(text, options)?, password_file)
    };
    fill_in(&mut config, environment)?;
    if config.get_password().is_none() {
        let file = password_file
            .or_else(|| environment.variable("PGPASSFILE").map(PathBuf::from))
            .or_else(|| environment.home().map(|home| home.join(".pgpass")));
        let password = environment.variable("PGPASSWORD").map(str::to_owned);
        if let Some(password) = password.or_else(|| password_from(&file?, &config)) {
            config.password(password);
        }
    }
    Ok(config)
}

fn refused(text: &str, error: tokio_postgres::Error) -> CommandError {
    CommandError::config(format!(
        "read the connection string {:?}",
        without_password(text)
    ))
    .because(error)
}

/// Good enough for a message: everything behind the word is left out.
fn without_password(text: &str) -> &str {
    let end = text.find("password").or_else(|| text.find("://"));
    end.map_or(text, |end| &text[..end])
}

fn checked(text: &str, options: BTreeMap<String, String>) -> Result<Config> {
    let mut normal = String::new();
    for (name, value) in options {
        match (name.as_str(), value.as_str()) {
            (name, _) if IGNORED.contains(&name) => {}
            ("fallback_application_name", _) => {}
            ("sslmode", "disable" | "allow" | "prefer") => {}
            ("sslmode", mode) => return Err(no_tls(mode)),
            ("gssencmode", "disable" | "prefer") => {}
            ("keepalives_count", value) => push(&mut normal, "keepalives_retries", value),
            ("tcp_user_timeout", value) => push_milliseconds(&mut normal, value)?,
            // Libraries that know libpq's empty values treat them as not given.
            (name, "") if KNOWN.contains(&name) && name != "password" => {}
            (name, value) if KNOWN.contains(&name) => push(&mut normal, name, value),
            (name, value) => {
                let shown = if name.contains("pass") { "..." } else { value };
                let doing = format!("connection option {name}={shown} is not supported");
                return Err(CommandError::config(doing));
            }
        }
    }
    normal.parse().map_err(|error| refused(text, error))
}

fn no_tls(mode: &str) -> CommandError {
    CommandError::config(format!(
        "sslmode={mode} is not supported: walmgr connects without TLS"
    ))
    .hint("connect through a Unix socket or the loopback address")
}

fn push(text: &mut String, name: &str, value: &str) {
    let value = value.replace('\\', "\\\\").replace('\'', "\\'");
    text.push_str(&format!("{name}='{value}' "));
}

/// libpq counts it in milliseconds, tokio-postgres in seconds.
fn push_milliseconds(text: &mut String, value: &str) -> Result<()> {
    let timeout_ms: u64 = value.parse().map_err(|_| {
        CommandError::config(format!(
            "tcp_user_timeout={value:?} is not a number of milliseconds"
        ))
    })?;
    push(
        text,
        "tcp_user_timeout",
        &timeout_ms.div_ceil(1000).to_string(),
    );
    Ok(())
}

/// `conninfo_parse` (`src/interfaces/libpq/fe-connect.c`): blanks around `=`, single quotes,
/// backslashes; a later option replaces an earlier one.
fn pairs(text: &str) -> Result<BTreeMap<String, String>> {
    let mut options = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let wrong = || {
            let shown = without_password(text);
            CommandError::config(format!(
                "read the connection string {shown:?}: expected name=value"
            ))
        };
        let (name, after) = rest.split_once('=').ok_or_else(wrong)?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let (value, after) = option_value(after.trim_start()).ok_or_else(|| {
            CommandError::config(format!(
                "read a connection string: the quote of {name} is open"
            ))
        })?;
        options.insert(name.to_owned(), value);
        rest = after.trim_start();
    }
    Ok(options)
}

/// The value at the beginning and what follows it; `None` for a quote without an end.
fn option_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let body = if quoted { &text[1..] } else { text };
    let mut value = String::new();
    let mut letters = body.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((value, &body[at + 1..])),
            letter if !quoted && letter.is_ascii_whitespace() => return Some((value, &body[at..])),
            letter => value.push(letter),
        }
    }
    (!quoted).then_some((value, ""))
}

fn fill_in(config: &mut Config, environment: &Environment) -> Result<()> {
    if config.get_ssl_mode() == SslMode::Require {
        return Err(no_tls("require"));
    }
    if let Some(mode) = environment.variable("PGSSLMODE")
        && !matches!(mode, "disable" | "allow" | "prefer")
    {
        return Err(no_tls(mode));
    }
    config.ssl_mode(SslMode::Disable);
    if config.get_ports().is_empty() {
        let port = match environment.variable("PGPORT") {
            Some(text) => text
                .parse()
                .map_err(|_| CommandError::config(format!("PGPORT={text:?} is not a port")))?,
            None => 5432,
        };
        config.port(port);
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        fill_in_host(config, environment)?;
    }
    if config.get_user().is_none() {
        let named = environment
            .variable("PGUSER")
            .or_else(|| environment.user_name());
        let user = named.ok_or_else(|| {
            CommandError::config("find the user to connect as")
                .hint("write user=NAME into the connection string")
        })?;
        config.user(user);
    }
    if config.get_dbname().is_none() {
        let user = config.get_user().unwrap_or_default().to_owned();
        config.dbname(environment.variable("PGDATABASE").unwrap_or(&user));
    }
    if config.get_options().is_none()
        && let Some(options) = environment.variable("PGOPTIONS")
    {
        config.options(options);
    }
    if config.get_application_name().is_none() {
        config.application_name("walmgr");
    }
    Ok(())
}

fn fill_in_host(config: &mut Config, environment: &Environment) -> Result<()> {
    if let Some(address) = environment.variable("PGHOSTADDR") {
        let address = address.parse().map_err(|_| {
            CommandError::config(format!("PGHOSTADDR={address:?} is not an IP address"))
        })?;
        config.hostaddr(address);
        return Ok(());
    }
    if let Some(hosts) = environment.variable("PGHOST") {
        for host in hosts.split(',') {
            config.host(host);
        }
        return Ok(());
    }
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let folders = &environment.socket_directories;
    let here = |folder: &&PathBuf| folder.join(format!(".s.PGSQL.{port}")).exists();
    // Without a socket anywhere the error names the likeliest place.
    if let Some(folder) = folders.iter().find(here).or_else(|| folders.first()) {
        config.host_path(folder);
    }
    Ok(())
}

/// The first line of the file that fits the connection: `host:port:database:user:password`, each
/// may be `*`; colons and backslashes are escaped by a backslash.
fn password_from(file: &Path, config: &Config) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(file).ok()?;
    if !metadata.is_file() {
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            "ignored {}: others may read it; chmod 600 helps",
            file.display()
        );
        return None;
    }
    let text = std::fs::read_to_string(file).ok()?;
    let host = match config.get_hosts().first() {
        // A socket in another folder than the default is looked up by that folder; accepting
        // localhost for it too spares the reader the question what the default is.
        Some(Host::Unix(folder)) => vec!["localhost".to_owned(), folder.display().to_string()],
        Some(Host::Tcp(host)) => vec![host.clone()],
        None => vec![config.get_hostaddrs().first()?.to_string()],
    };
    let port = config.get_ports().first()?.to_string();
    let wanted = [
        host,
        vec![port],
        vec![config.get_dbname()?.to_owned()],
        vec![config.get_user()?.to_owned()],
    ];
    text.lines()
        .find_map(|line| password_of_line(line, &wanted))
}

fn password_of_line(line: &str, wanted: &[Vec<String>; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                continue;
            }
            '\\' => fields.last_mut()?.extend(letters.next()),
            letter => fields.last_mut()?.push(letter),
        }
    }
    let password = fields.get(4)?.clone();
    let fits = |(field, wanted): (&String, &Vec<String>)| field == "*" || wanted.contains(field);
    fields.iter().zip(wanted).all(fits).then_some(password)
}

fn os_user() -> Option<(String, PathBuf)> {
    let own = rustix::process::geteuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (*fields.get(2)? == own).then_some(())?;
        Some((fields[0].to_owned(), PathBuf::from(*fields.get(5)?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment {
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            user: Some(("wal".into(), "/nonexistent".into())),
            socket_directories: vec!["/nonexistent/run".into(), "/nonexistent/tmp".into()],
        }
    }

    fn read(text: &str, variables: &[(&str, &str)]) -> Config {
        parse(text, &environment(variables)).unwrap()
    }

    fn error(text: &str) -> String {
        parse(text, &environment(&[])).unwrap_err().to_string()
    }

    #[test]
    fn what_the_text_leaves_open_gets_libpqs_defaults() {
        let config = read("dbname=template1", &[]);
        assert_eq!(config.get_hosts(), [Host::Unix("/nonexistent/run".into())]);
        assert_eq!(config.get_ports(), [5432]);
        assert_eq!(config.get_user(), Some("wal"));
        assert_eq!(config.get_dbname(), Some("template1"));
        assert_eq!(config.get_application_name(), Some("walmgr"));
        assert_eq!(config.get_password(), None);
        assert_eq!(read("user=other", &[]).get_dbname(), Some("other"));
        assert_eq!(
            read("", &[("PGUSER", "u"), ("PGDATABASE", "d")]).get_dbname(),
            Some("d")
        );
    }

    #[test]
    fn the_text_beats_the_environment() {
        let variables = [
            ("PGHOST", "db1,/run/x"),
            ("PGPORT", "5433"),
            ("PGPASSWORD", "p"),
        ];
        let config = read("", &variables);
        assert_eq!(
            config.get_hosts(),
            [Host::Tcp("db1".into()), Host::Unix("/run/x".into())]
        );
        assert_eq!(config.get_ports(), [5433]);
        assert_eq!(config.get_password(), Some(&b"p"[..]));
        let config = read(
            "host = 'h' port=1 password='a \\'b\\\\' application_name=x",
            &variables,
        );
        assert_eq!(config.get_hosts(), [Host::Tcp("h".into())]);
        assert_eq!(config.get_ports(), [1]);
        assert_eq!(config.get_password(), Some(&b"a 'b\\"[..]));
        assert_eq!(config.get_application_name(), Some("x"));
    }

    #[test]
    fn addresses_are_read_too() {
        let config = read("postgresql://u:p@h:5434/d?connect_timeout=3", &[]);
        assert_eq!(config.get_hosts(), [Host::Tcp("h".into())]);
        assert_eq!(
            (config.get_user(), config.get_dbname()),
            (Some("u"), Some("d"))
        );
    }

    #[test]
    fn the_socket_is_found_where_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".s.PGSQL.5434"), "").unwrap();
        let mut environment = environment(&[]);
        environment
            .socket_directories
            .push(folder.path().to_path_buf());
        let config = parse("port=5434", &environment).unwrap();
        assert_eq!(config.get_hosts(), [Host::Unix(folder.path().into())]);
    }

    #[test]
    fn what_cannot_be_honoured_is_an_error() {
        for mode in ["require", "verify-ca", "verify-full"] {
            let text = error(&format!("sslmode={mode}"));
            assert!(
                text.contains(&format!("sslmode={mode} is not supported")),
                "{text}"
            );
        }
        assert!(error("postgresql://h/d?sslmode=require").contains("not supported"));
        assert!(error("service=main").contains("service=main is not supported"));
        assert!(error("gssencmode=require").contains("not supported"));
        assert!(error("requirepeer=postgres").contains("not supported"));
        let ambient = parse("", &environment(&[("PGSSLMODE", "verify-full")]));
        assert!(ambient.is_err());
        read(
            "sslmode=prefer sslrootcert=x gssencmode=disable tcp_user_timeout=1500",
            &[],
        );
    }

    #[test]
    fn malformed_text_is_an_error_without_the_password() {
        for text in [
            "dbname",
            "=x",
            "a b=c",
            "port=x",
            "host='x",
            "postgresql://[",
            "nonsense=1",
        ] {
            let error = parse(text, &environment(&[])).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Config, "{text}");
        }
        for text in [
            "password=secret dbname",
            "password=secret port=x",
            "passwort=secret",
        ] {
            assert!(!error(text).contains("secret"), "{}", error(text));
        }
        assert!(!error("postgresql://u:secret@h:x/").contains("secret"));
    }

    #[test]
    fn passwords_come_from_a_private_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(".pgpass");
        std::fs::write(
            &file,
            "# comment\nh:1:d:u:one\nlocalhost:*:*:wal:two\n*:*:*:a\\:b:th\\\\ree:4\n",
        )
        .unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let home = [("HOME", folder.path().to_str().unwrap())];
        let password = |text: &str| {
            let config = read(text, &home);
            config
                .get_password()
                .map(|word| String::from_utf8(word.to_vec()).unwrap())
        };
        assert_eq!(
            password("host=h port=1 dbname=d user=u"),
            Some("one".into())
        );
        assert_eq!(password("host=h port=2 dbname=d user=u"), None);
        assert_eq!(password("dbname=template1"), Some("two".into()));
        assert_eq!(password("host=x user=a:b"), Some("th\\ree:4".into()));
        assert_eq!(password("password=own"), Some("own".into()));
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(password("dbname=template1"), None);
    }

    proptest! {
        #[test]
        fn every_value_survives_the_text(value in "[^\0]{1,20}") {
            let text = format!("user='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
            let config = read(&text, &[]);
            prop_assert_eq!(config.get_user(), Some(value.as_str()));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = parse(&text, &environment(&[]));
        }
    }
}
