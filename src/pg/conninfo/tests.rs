//! What connection strings, environments, services and password files lead to.
//! Never connects. Invariant: the table is libpq's list, and each row does what it says.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::options::{OPTIONS, Treatment};
use super::*;
use crate::pg::encryption::settings::{Authority, Demand, SslMode, TlsVersion};

/// What `PQconndefaults()` of these versions names.
const LIBPQ_13: &str = "authtype service user password passfile channel_binding connect_timeout dbname host \
     hostaddr port client_encoding tty options application_name fallback_application_name keepalives \
     keepalives_idle keepalives_interval keepalives_count tcp_user_timeout sslmode sslcompression sslcert \
     sslkey sslpassword sslrootcert sslcrl requirepeer ssl_min_protocol_version ssl_max_protocol_version \
     gssencmode krbsrvname gsslib replication target_session_attrs";
const LIBPQ_17: &str = "service user password passfile channel_binding connect_timeout dbname host hostaddr \
     port client_encoding options application_name fallback_application_name keepalives keepalives_idle \
     keepalives_interval keepalives_count tcp_user_timeout sslmode sslnegotiation sslcompression sslcert \
     sslkey sslcertmode sslpassword sslrootcert sslcrl sslcrldir sslsni requirepeer require_auth \
     ssl_min_protocol_version ssl_max_protocol_version gssencmode krbsrvname gsslib gssdelegation \
     replication target_session_attrs load_balance_hosts";
const LIBPQ_18: &str = "min_protocol_version max_protocol_version scram_client_key scram_server_key \
     oauth_issuer oauth_client_id oauth_client_secret oauth_scope sslkeylogfile servicefile";

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

fn read(text: &str, variables: &[(&str, &str)]) -> Conninfo {
    parse(text, &environment(variables)).unwrap()
}

fn error(text: &str) -> String {
    parse(text, &environment(&[])).unwrap_err().to_string()
}

fn places(text: &str) -> Vec<String> {
    read(text, &[])
        .places
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// A value that libpq takes and that is not the default.
fn other_value(name: &str) -> &'static str {
    match name {
        "connect_timeout" | "keepalives_idle" | "keepalives_interval" | "keepalives_count" => "7",
        "tcp_user_timeout" | "port" => "7",
        "hostaddr" => "192.0.2.1",
        "keepalives" | "sslsni" => "0",
        "channel_binding" | "sslmode" | "sslcertmode" | "gssencmode" => "require",
        "sslnegotiation" => "direct",
        "require_auth" => "md5",
        "ssl_min_protocol_version" => "TLSv1.3",
        "ssl_max_protocol_version" => "TLSv1.2",
        "target_session_attrs" => "primary",
        "load_balance_hosts" => "random",
        "replication" => "true",
        "min_protocol_version" | "max_protocol_version" => "3.2",
        _ => "/other",
    }
}

#[test]
fn fault_140_every_option_of_libpq_is_honoured_ignored_or_refused_by_name() {
    for list in [LIBPQ_13, LIBPQ_17, LIBPQ_18] {
        for name in list.split_whitespace() {
            assert!(options::find(name).is_some(), "{name}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let services = folder.path().join("services");
    std::fs::write(&services, "[/other]\nuser=served\n[x]\nuser=served\n").unwrap();
    let services = services.to_str().unwrap();
    for option in &OPTIONS {
        let (name, value) = (option.name, other_value(option.name));
        let base = match name {
            "sslnegotiation" => "sslmode=require ".to_owned(),
            "service" => format!("servicefile={services} "),
            "servicefile" => "service=x ".to_owned(),
            _ => String::new(),
        };
        let value = if name == "servicefile" {
            services
        } else {
            value
        };
        // Written and out of the environment, as far as libpq looks there.
        let written = parse(&format!("{base}{name}={value}"), &environment(&[]));
        let variables = [(option.variable, value)];
        let variables = if option.variable.is_empty() {
            &[][..]
        } else {
            &variables
        };
        let ambient = parse(&base, &environment(variables));
        let plain = match name {
            "service" | "servicefile" => read("", &[]),
            _ => read(&base, &[]),
        };
        match option.treatment {
            Treatment::Honoured => {
                assert_ne!(written.unwrap(), plain, "{name}");
                assert_eq!(
                    ambient.unwrap() != plain,
                    !option.variable.is_empty(),
                    "{name}"
                );
            }
            Treatment::Ignored(_) => {
                assert_eq!(written.unwrap(), plain, "{name}");
                assert_eq!(ambient.unwrap(), plain, "{name}");
            }
            Treatment::RefusedBut(harmless) => {
                let text = written.unwrap_err().to_string();
                assert!(text.contains(&format!("leave {name} out")), "{text}");
                assert_eq!(ambient.is_err(), !option.variable.is_empty(), "{name}");
                for value in harmless {
                    assert_eq!(read(&format!("{name}='{value}'"), &[]), plain, "{name}");
                }
            }
        }
    }
}

#[test]
fn what_the_text_leaves_open_gets_libpqs_defaults() {
    let info = read("dbname=template1", &[]);
    assert_eq!(info.places.len(), 1);
    assert_eq!(
        info.places[0].listener,
        Listener::Socket("/nonexistent/run".into())
    );
    assert_eq!(info.places[0].port, 5432);
    assert_eq!(
        (info.user.as_str(), info.database.as_str()),
        ("wal", "template1")
    );
    assert_eq!(info.application_name, "walmgr");
    assert_eq!(info.password, None);
    assert_eq!(info.encryption.mode, SslMode::Prefer);
    assert_eq!(read("user=other", &[]).database, "other");
    let ambient = [("PGUSER", "u"), ("PGDATABASE", "d")];
    assert_eq!(read("", &ambient).database, "d");
    assert_eq!(
        read("fallback_application_name=f", &[]).application_name,
        "f"
    );
}

#[test]
fn the_text_beats_the_environment() {
    let variables = [
        ("PGHOST", "db1,/run/x"),
        ("PGPORT", "5433"),
        ("PGPASSWORD", "p"),
        ("PGSSLMODE", "verify-full"),
    ];
    let info = read("", &variables);
    let listeners: Vec<_> = info
        .places
        .iter()
        .map(|place| place.listener.clone())
        .collect();
    let expected = [
        Listener::Name("db1".into()),
        Listener::Socket("/run/x".into()),
    ];
    assert_eq!(listeners, expected);
    assert_eq!(info.places[1].port, 5433);
    assert_eq!(info.password.as_deref(), Some("p"));
    assert_eq!(info.encryption.mode, SslMode::VerifyFull);
    let info = read(
        "host = 'h' port=1 password='a \\'b\\\\' application_name=x sslmode=allow",
        &variables,
    );
    assert_eq!(info.places[0].to_string(), "h port 1");
    assert_eq!(info.password.as_deref(), Some("a 'b\\"));
    assert_eq!(info.application_name, "x");
    assert_eq!(info.encryption.mode, SslMode::Allow);
    // An empty one does not let through what the environment forbids.
    for name in ["sslmode", "channel_binding"] {
        let said = parse(&format!("{name}=''"), &environment(&variables)).unwrap_err();
        assert!(
            said.to_string().contains(&format!("{name} is empty")),
            "{said}"
        );
    }
    assert_eq!(
        read("", &[("PGREQUIRESSL", "1")]).encryption.mode,
        SslMode::Require
    );
}

#[test]
fn several_servers_are_as_many_places() {
    assert_eq!(places("host=a,b port=1"), ["a port 1", "b port 1"]);
    assert_eq!(places("host=a,b port=1,2"), ["a port 1", "b port 2"]);
    assert_eq!(places("host=a,b port=,2"), ["a port 5432", "b port 2"]);
    assert_eq!(
        places("host=a,b hostaddr=192.0.2.1,::1"),
        ["a (192.0.2.1) port 5432", "b (::1) port 5432"]
    );
    assert_eq!(places("hostaddr=192.0.2.1"), ["192.0.2.1 port 5432"]);
    assert_eq!(places("host=@hidden"), ["@hidden port 5432"]);
    assert_eq!(
        places("postgresql://a:1,[::1]:2,/d"),
        ["a port 1", "::1 port 2", "/nonexistent/run port 5432"]
    );
    for wrong in [
        "host=a,b port=1,2,3",
        "host=a hostaddr=192.0.2.1,192.0.2.2",
        "hostaddr=localhost",
        "port=0",
        "port=65536",
        "port=1,2",
    ] {
        assert!(
            error(wrong).contains(wrong.split_once('=').unwrap().0.trim()),
            "{}",
            error(wrong)
        );
    }
}

#[test]
fn the_socket_is_found_where_it_exists() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".s.PGSQL.5434"), "").unwrap();
    let mut environment = environment(&[]);
    let path = folder.path().to_path_buf();
    environment.socket_directories.push(path.clone());
    let info = parse("port=5434", &environment).unwrap();
    assert_eq!(info.places[0].listener, Listener::Socket(path));
}

#[test]
fn what_is_weak_in_libpq_is_refused_and_said() {
    for (text, said) in [
        (
            "sslnegotiation=direct",
            "sslnegotiation=direct is weak with sslmode=prefer",
        ),
        (
            "sslrootcert=system sslmode=require",
            "sslmode=require is weak with sslrootcert=system",
        ),
        ("sslmode=verify_full", "sslmode=verify_full is not one of"),
        (
            "ssl_max_protocol_version=TLSv1.1",
            "walmgr speaks TLSv1.2 and TLSv1.3",
        ),
        ("ssl_min_protocol_version=SSLv3", "is not one of TLSv1"),
        (
            "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "is newer than",
        ),
        (
            "require_auth=md5,!password",
            "either all methods are forbidden by ! or none",
        ),
        ("require_auth=scram", "require_auth=scram is not one of"),
        (
            "connect_timeout=soon",
            "connect_timeout=soon is not a whole number",
        ),
        (
            "sslmod=require",
            "no connection option \"sslmod\"; sslmode?",
        ),
        (
            "gssencmode=require",
            "gssencmode=require is not supported; leave gssencmode out",
        ),
        ("service=main", "service=main: there is neither"),
    ] {
        assert!(error(text).contains(said), "{text}: {}", error(text));
    }
    let system = read("sslrootcert=system", &[]).encryption;
    assert_eq!(
        (system.mode, system.authority),
        (SslMode::VerifyFull, Authority::System)
    );
    let old = read("ssl_min_protocol_version=tlsv1", &[]).encryption;
    assert_eq!(
        (old.oldest, old.newest),
        (TlsVersion::Tls12, TlsVersion::Tls13)
    );
    let binding = read("channel_binding=disable", &[])
        .encryption
        .channel_binding;
    assert_eq!(binding, Demand::Disable);
}

#[test]
fn methods_of_authentication_are_allowed_or_forbidden() {
    let allows = |text: &str, method: &str| {
        read(&format!("require_auth='{text}'"), &[])
            .authentication
            .allows(method)
    };
    for method in ["none", "md5", "scram-sha-256"] {
        assert!(allows("", method));
        assert!(!allows("password", method));
        assert!(allows("!password, !gss", method));
    }
    assert!(allows("md5,none", "none"));
    assert!(!allows("!md5,!none", "none"));
}

#[test]
fn a_service_says_what_nobody_else_has_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".pg_service.conf");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(
        "# c\n[other]\nuser=no\n\n[ main ]\nuser=no\n[main]\nuser=u\nhost=h\n dbname=d e \n[main]\nport=9\n",
    );
    let home = [
        ("HOME", folder.path().to_str().unwrap()),
        ("PGPORT", "8"),
        ("PGUSER", "no"),
    ];
    let info = read("service=main host=own", &home);
    assert_eq!((info.user.as_str(), info.database.as_str()), ("u", "d e"));
    assert_eq!(info.places[0].to_string(), "own port 8");
    let address = read("postgresql:///?service=main", &home);
    assert_eq!(address.places[0].to_string(), "h port 8");
    let mut ambient = home.to_vec();
    ambient.push(("PGSERVICE", "main"));
    assert_eq!(read("", &ambient).user, "u");
    let failed = |text: &str| parse(text, &environment(&home)).unwrap_err().to_string();
    assert!(failed("service=none").contains("service=none is not in"));
    for (text, said) in [
        (
            "[main]\nservice=x",
            "line 2: service does not work inside of a service",
        ),
        ("[main]\n\nldap://h/x", "line 3: a service from LDAP"),
        ("[main]\npasswort: secret", "line 2: expected name=value"),
        (
            "[main]\nhots=h",
            "line 2: there is no connection option \"hots\"",
        ),
    ] {
        write(text);
        let found = failed("service=main");
        assert!(found.contains(said), "{found}");
    }
    let elsewhere = failed("service=main servicefile=/nonexistent/x");
    assert!(elsewhere.contains("/nonexistent/x"), "{elsewhere}");
    // The system's file comes last, and is asked when the user's has no such service.
    let system = tempfile::tempdir().unwrap();
    std::fs::write(system.path().join("pg_service.conf"), "[all]\nuser=all\n").unwrap();
    ambient.retain(|(name, _)| *name != "PGSERVICE");
    ambient.push(("PGSYSCONFDIR", system.path().to_str().unwrap()));
    assert_eq!(read("service=all", &ambient).user, "all");
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
        assert!(
            error
                .to_string()
                .starts_with(&format!("connection string {text:?}: ")),
            "{error}"
        );
    }
    for text in [
        "password=secret dbname",
        "password=secret port=x",
        "passwort=secret",
        "password = 'se\\'secret' x",
        "postgresql://u:secret@h:x/",
        "postgresql://u:secret",
        "postgresql://u:secret/1@h/d",
        "password=a secret x",
        "password: secret",
        "postgresql://u:secret@h/?password=secret&x",
    ] {
        assert!(!error(text).contains("secret"), "{}", error(text));
        assert!(error(text).contains("***"), "{}", error(text));
    }
    let debug = format!("{:?}", read("password=secret", &[]));
    assert!(!debug.contains("secret"), "{debug}");
}

#[test]
fn passwords_come_from_a_private_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".pgpass");
    std::fs::write(
        &file,
        "# comment\nh:1:d:u:one\nlocalhost:*:*:wal:two\n*:*:*:a\\:b:th\\\\ree:4:5\nb:*:*:wal:of b\n",
    )
    .unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let home = [("HOME", folder.path().to_str().unwrap())];
    let password = |text: &str| {
        let info = read(text, &home);
        info.password(info.places.last().unwrap(), &info.database)
    };
    assert_eq!(
        password("host=h port=1 dbname=d user=u"),
        Some("one".into())
    );
    assert_eq!(
        password("host=h hostaddr=192.0.2.1 port=1 dbname=d user=u"),
        Some("one".into())
    );
    assert_eq!(password("host=h port=2 dbname=d user=u"), None);
    assert_eq!(password("host=h port=1 dbname=e user=u"), None);
    assert_eq!(password("dbname=template1"), Some("two".into()));
    assert_eq!(password("host=x user=a:b"), Some("th\\ree".into()));
    assert_eq!(password("host=a,b"), Some("of b".into()));
    assert_eq!(password("password=own"), Some("own".into()));
    assert_eq!(password("passfile=/nonexistent"), None);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(password("dbname=template1"), None);
}

#[test]
fn fault_162_a_string_for_a_command_line_has_no_password() {
    for (text, open, password) in [
        (
            "host=h password='se \\'cret' dbname=d user=u",
            "host='h' user='u'",
            Some("se 'cret"),
        ),
        (
            "postgresql://u:p%40w@h:5433/d?application_name=a%20b",
            "application_name='a b' host='h' port='5433' user='u'",
            Some("p@w"),
        ),
        (
            "user='it\\'s' passfile=/p",
            "passfile='/p' user='it\\'s'",
            None,
        ),
        ("password=", "", None),
    ] {
        let found = without_password(text).unwrap();
        assert_eq!(
            found,
            (open.to_owned(), password.map(str::to_owned)),
            "{text}"
        );
    }
    let refused = without_password("host=h sslpassword=Zq7")
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("sslpassword cannot") && !refused.contains("Zq7"),
        "{refused}"
    );
}

proptest! {
    #[test]
    fn every_value_survives_the_text(value in "[^\0]{1,20}") {
        let text = format!("user='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        let info = read(&text, &[]);
        prop_assert_eq!(info.user, value);
    }

    #[test]
    fn no_text_makes_it_panic(text: String) {
        let _ = parse(&text, &environment(&[]));
        let _ = parse(&format!("postgresql://{text}"), &environment(&[]));
    }
}
