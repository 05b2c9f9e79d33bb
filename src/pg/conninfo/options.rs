//! Every option that libpq 13 to 18 takes, its environment variable, and what becomes of it here.
//! Never reads a value. Invariant: an option that is in no row is refused by name, and one that is
//! ignored could not have made the session safer or led it elsewhere.

use std::collections::BTreeMap;

/// What is done with an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It has the meaning that libpq gives it.
    Honoured,
    /// It cannot matter, for this reason.
    Ignored(&'static str),
    /// It cannot be honoured, unless its value is one of these, which ask for nothing.
    RefusedBut(&'static [&'static str]),
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionOption {
    /// As a connection string spells it.
    pub name: &'static str,
    /// The environment variable that stands in for it; may be empty.
    pub variable: &'static str,
    /// What becomes of it.
    pub treatment: Treatment,
}

/// Its values by name.
pub(crate) type Given = BTreeMap<&'static str, String>;

const NO_KERBEROS: Treatment = Treatment::Ignored("it has an effect with GSSAPI only");
const OLD: Treatment = Treatment::Ignored("libpq itself ignores it");
const NO_OAUTH: Treatment = Treatment::Ignored("it has an effect only if a server asks for OAuth");

/// `PQconninfoOptions` (`src/interfaces/libpq/fe-connect.c`).
pub const OPTIONS: [ConnectionOption; 53] = [
    row("service", "PGSERVICE", Treatment::Honoured),
    row("servicefile", "PGSERVICEFILE", Treatment::Honoured),
    row("user", "PGUSER", Treatment::Honoured),
    row("password", "PGPASSWORD", Treatment::Honoured),
    row("passfile", "PGPASSFILE", Treatment::Honoured),
    row("channel_binding", "PGCHANNELBINDING", Treatment::Honoured),
    row("connect_timeout", "PGCONNECT_TIMEOUT", Treatment::Honoured),
    row("dbname", "PGDATABASE", Treatment::Honoured),
    row("host", "PGHOST", Treatment::Honoured),
    row("hostaddr", "PGHOSTADDR", Treatment::Honoured),
    row("port", "PGPORT", Treatment::Honoured),
    row(
        "client_encoding",
        "PGCLIENTENCODING",
        Treatment::Ignored("walmgr reads UTF-8, whatever the terminal's encoding is"),
    ),
    row("options", "PGOPTIONS", Treatment::Honoured),
    row("application_name", "PGAPPNAME", Treatment::Honoured),
    row("fallback_application_name", "", Treatment::Honoured),
    row("keepalives", "", Treatment::Honoured),
    row("keepalives_idle", "", Treatment::Honoured),
    row("keepalives_interval", "", Treatment::Honoured),
    row("keepalives_count", "", Treatment::Honoured),
    row("tcp_user_timeout", "", Treatment::Honoured),
    row("sslmode", "PGSSLMODE", Treatment::Honoured),
    row("sslnegotiation", "PGSSLNEGOTIATION", Treatment::Honoured),
    row(
        "sslcompression",
        "PGSSLCOMPRESSION",
        Treatment::Ignored("TLS no longer has compression"),
    ),
    row("sslcert", "PGSSLCERT", Treatment::Honoured),
    row("sslkey", "PGSSLKEY", Treatment::Honoured),
    row("sslcertmode", "PGSSLCERTMODE", Treatment::Honoured),
    row(
        "sslpassword",
        "",
        Treatment::Ignored("a key that is encrypted is refused, with what to type"),
    ),
    row("sslrootcert", "PGSSLROOTCERT", Treatment::Honoured),
    row("sslcrl", "PGSSLCRL", Treatment::Honoured),
    row("sslcrldir", "PGSSLCRLDIR", Treatment::Honoured),
    row("sslsni", "PGSSLSNI", Treatment::Honoured),
    row("requirepeer", "PGREQUIREPEER", Treatment::Honoured),
    row("require_auth", "PGREQUIREAUTH", Treatment::Honoured),
    row(
        "min_protocol_version",
        "PGMINPROTOCOLVERSION",
        Treatment::RefusedBut(&["", "3.0"]),
    ),
    row(
        "max_protocol_version",
        "PGMAXPROTOCOLVERSION",
        Treatment::Ignored("the first version, 3.0, is the one that is spoken"),
    ),
    row(
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        Treatment::Honoured,
    ),
    row(
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
        Treatment::Honoured,
    ),
    row(
        "gssencmode",
        "PGGSSENCMODE",
        Treatment::RefusedBut(&["", "disable", "prefer"]),
    ),
    row("krbsrvname", "PGKRBSRVNAME", NO_KERBEROS),
    row("gsslib", "PGGSSLIB", NO_KERBEROS),
    row("gssdelegation", "PGGSSDELEGATION", NO_KERBEROS),
    row(
        "replication",
        "",
        Treatment::RefusedBut(&["", "0", "false", "off", "no"]),
    ),
    row(
        "target_session_attrs",
        "PGTARGETSESSIONATTRS",
        Treatment::Honoured,
    ),
    row(
        "load_balance_hosts",
        "PGLOADBALANCEHOSTS",
        Treatment::Honoured,
    ),
    row("scram_client_key", "", Treatment::RefusedBut(&[""])),
    row("scram_server_key", "", Treatment::RefusedBut(&[""])),
    row("oauth_issuer", "", NO_OAUTH),
    row("oauth_client_id", "", NO_OAUTH),
    row("oauth_client_secret", "", NO_OAUTH),
    row("oauth_scope", "", NO_OAUTH),
    row(
        "sslkeylogfile",
        "",
        Treatment::Ignored("it lets others read the session"),
    ),
    // 13 is the last that knows these.
    row("authtype", "PGAUTHTYPE", OLD),
    row("tty", "PGTTY", OLD),
];

const fn row(name: &'static str, variable: &'static str, treatment: Treatment) -> ConnectionOption {
    ConnectionOption {
        name,
        variable,
        treatment,
    }
}

/// The row of a name.
pub fn find(name: &str) -> Option<&'static ConnectionOption> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// Takes a value in, or says why it cannot be.
pub(crate) fn give(given: &mut Given, name: &str, value: String) -> Result<(), String> {
    let option = find(name).ok_or_else(|| {
        let known = OPTIONS.iter().map(|option| option.name);
        let near =
            known.filter(|known| name.len() > 2 && (known.contains(name) || name.contains(known)));
        match near.max_by_key(|known| known.len()) {
            Some(near) => format!("there is no connection option {name:?}; {near}?"),
            None => format!("there is no connection option {name:?}"),
        }
    })?;
    given.insert(option.name, value);
    Ok(())
}

/// What the options that cannot be honoured ask for is refused; whether they were written or come
/// out of the environment makes no difference.
pub(crate) fn check(given: &Given) -> Result<(), String> {
    for option in &OPTIONS {
        let value = given.get(option.name).map_or("", String::as_str);
        if let Treatment::RefusedBut(harmless) = option.treatment
            && !harmless.contains(&value)
        {
            let name = option.name;
            let shown = if name.contains("key") { "***" } else { value };
            return Err(format!("{name}={shown} is not supported; leave {name} out"));
        }
    }
    Ok(())
}
