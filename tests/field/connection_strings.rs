//! `master_db` as DBAs write it for libpq: services, several servers, sockets, password files.
//! Never a server of its own for each case. Invariant: the server that is reached is the one that
//! libpq would reach.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use walmgr::error::Kind;
use walmgr::test_support::pg::conninfo::options::{self, Treatment};
use walmgr::test_support::pg::conninfo::{Environment, parse};
use walmgr::test_support::pg::sql::{Limits, Session};

use crate::support::dice::Dice;
use crate::support::libpq::Libpq;
use crate::support::{Cluster, TempDir, free_port};

fn environment(home: &TempDir) -> Environment {
    Environment::of_process()
        .with_variable("HOME", &home.path().display().to_string())
        .with_variable("PGSYSCONFDIR", "/nonexistent")
}

async fn connect(
    text: &str,
    environment: &Environment,
) -> Result<Session, walmgr::error::CommandError> {
    Session::connect_from(text, environment, Limits::default()).await
}

async fn port_of(text: &str, environment: &Environment) -> String {
    let session = connect(text, environment).await.unwrap();
    session.show("port").await.unwrap()
}

#[tokio::test]
async fn fault_140_of_several_servers_the_first_that_will_do_is_taken() {
    skip_unless!(Cluster::available(15));
    let master = Cluster::builder().start();
    let mut replaying = Cluster::builder().create();
    fs::write(replaying.data().join("standby.signal"), "").unwrap();
    replaying.append_conf("restore_command = 'false'");
    replaying.start();
    let home = TempDir::new();
    let environment = environment(&home);
    let (dead, standby, primary) = (free_port(), replaying.port(), master.port());
    let hosts = "host=127.0.0.1,127.0.0.1,127.0.0.1 user=postgres sslmode=disable";
    let all = format!("{hosts} port={dead},{standby},{primary}");
    for (kind, expected) in [
        ("any", standby),
        ("primary", primary),
        ("read-write", primary),
        ("standby", standby),
        ("read-only", standby),
        ("prefer-standby", standby),
    ] {
        let text = format!("{all} target_session_attrs={kind}");
        assert_eq!(
            port_of(&text, &environment).await,
            expected.to_string(),
            "{kind}"
        );
    }
    let address =
        format!("postgresql://postgres@127.0.0.1:{dead},127.0.0.1:{primary}/?sslmode=disable");
    assert_eq!(port_of(&address, &environment).await, primary.to_string());
    let random = format!("{all} load_balance_hosts=random target_session_attrs=primary");
    assert_eq!(port_of(&random, &environment).await, primary.to_string());
    let alone = format!("host=127.0.0.1 port={primary} user=postgres");
    let preferred = format!("{alone} target_session_attrs=prefer-standby");
    assert_eq!(port_of(&preferred, &environment).await, primary.to_string());
    let refused = connect(
        &format!("{alone} target_session_attrs=standby"),
        &environment,
    )
    .await;
    let refused = refused.err().unwrap();
    assert_eq!(refused.kind(), Kind::Retry);
    assert!(
        refused
            .to_string()
            .contains("it is no standby, but target_session_attrs"),
        "{refused}"
    );
    // Each is named with its own reason.
    let none = format!("host=127.0.0.1,/nonexistent port={dead} user=postgres");
    let none = connect(&none, &environment)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(none.contains("; 127.0.0.1 port"), "{none}");
    assert!(none.contains("; /nonexistent port"), "{none}");
}

#[tokio::test]
async fn fault_140_service_password_file_and_socket_peer_are_heeded() {
    for major in crate::support::USUAL {
        skip_unless!(Cluster::available(major));
        let cluster = Cluster::builder().major(major).start();
        cluster.psql("CREATE ROLE shipper LOGIN PASSWORD 'a:b\\c'");
        cluster.psql("CREATE DATABASE own");
        let hba = "local all postgres trust\nlocal all all scram-sha-256\n";
        fs::write(cluster.data().join("pg_hba.conf"), hba).unwrap();
        cluster.reload();
        let home = TempDir::new();
        let environment = environment(&home);
        let (folder, port) = (cluster.home().display(), cluster.port());
        home.write(
            ".pg_service.conf",
            format!("[main]\nhost={folder}\nport={port}\nuser=shipper\ndbname=own\n"),
        );
        // For one database alone, which is then the one.
        let passwords = home.write("passwords", "*:*:own:shipper:a\\:b\\\\c\n");
        fs::set_permissions(&passwords, PermissionsExt::from_mode(0o600)).unwrap();
        let text = format!("service=main passfile={}", passwords.display());
        let session = connect(&text, &environment).await.unwrap();
        assert_eq!(session.database(), "own");
        session.close().await;
        let without = connect("service=main", &environment).await.err().unwrap();
        assert_eq!(without.kind(), Kind::Config);
        assert!(
            without
                .to_string()
                .contains("write HOST:PORT:*:shipper:PASSWORD"),
            "{without}"
        );
        let unknown = connect("service=other", &environment).await.err().unwrap();
        assert!(
            unknown.to_string().contains("service=other is not in"),
            "{unknown}"
        );
        let server = match rustix::process::geteuid().is_root() {
            true => "postgres".into(),
            false => uzers::get_effective_username().unwrap(),
        };
        let server = server.to_string_lossy();
        let socket = cluster.conninfo();
        connect(&format!("{socket} requirepeer={server}"), &environment)
            .await
            .unwrap();
        for other in ["daemon", "nobody_of_this_host"] {
            let refused = connect(&format!("{socket} requirepeer={other}"), &environment).await;
            let refused = refused.err().unwrap();
            assert_eq!(refused.kind(), Kind::Config);
            let said = format!("is run by {server}");
            assert!(refused.to_string().contains(&said), "{refused}");
        }
        // Nothing is encrypted within a host, whatever is asked for.
        connect(&format!("{socket} sslmode=verify-full"), &environment)
            .await
            .unwrap();
        let slow = Limits {
            statement: std::time::Duration::from_millis(200),
            ..Limits::default()
        };
        let session = Session::connect_from(&socket, &environment, slow)
            .await
            .unwrap();
        assert!(session.query("SELECT pg_sleep(600)", &[]).await.is_err());
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(600)'";
        crate::support::wait_for(
            "the statement's end",
            std::time::Duration::from_secs(60),
            || (cluster.psql(sleeping) == "0").then_some(()),
        );
    }
}

#[test]
fn fault_140_each_option_of_each_libpq_is_in_the_table_with_its_variable() {
    let mut known = std::collections::BTreeSet::new();
    let mut newest = 0;
    for major in crate::support::versions::MAJORS {
        let libpq = match Libpq::of(major) {
            Ok(libpq) => libpq,
            Err(reason) => {
                crate::support::report_skip(&reason);
                continue;
            }
        };
        newest = major;
        for (name, variable) in libpq.options() {
            let row = options::find(&name);
            let row = row.unwrap_or_else(|| panic!("libpq {major} takes {name}"));
            assert_eq!(row.variable, variable, "{name} of libpq {major}");
            // What is ignored or refused is so for everybody; each word of it is said by its name.
            let refused = parse(&format!("user=u {name}=x"), &Environment::default());
            let honoured = row.treatment == Treatment::Honoured;
            let ignored = matches!(row.treatment, Treatment::Ignored(_));
            match refused {
                Ok(_) => assert!(honoured || ignored, "{name} is refused"),
                Err(error) => assert!(error.to_string().contains(&name), "{error}"),
            }
            known.insert(name);
        }
    }
    if newest < 18 {
        skip!("without libpq 18 the table has more than the newest version here");
    }
    // Older than 14, and what a version to come takes.
    let elsewhere = ["authtype", "tty", "servicefile"];
    let more = options::OPTIONS
        .iter()
        .filter(|row| !known.contains(row.name));
    for row in more {
        assert!(elsewhere.contains(&row.name), "no libpq takes {}", row.name);
    }
}

/// What libpq reads in each string is what walmgr reads, or neither can read it.
fn assert_read_alike(libpq: &Libpq, strings: &[String]) -> usize {
    let environment = Environment::default().with_variable("USER", "somebody");
    let (mut read_any, mut wrong) = (0, Vec::new());
    for (text, theirs) in strings.iter().zip(libpq.parse(strings)) {
        let theirs = theirs.map(|theirs| {
            let theirs = String::from_utf8_lossy(&theirs).into_owned();
            let value = |name: &str| {
                let value = theirs.lines().find_map(|line| line.strip_prefix(name));
                value.filter(|value| !value.is_empty()).map(str::to_owned)
            };
            let user = value("user=").unwrap_or_else(|| "somebody".to_owned());
            let database = value("dbname=").unwrap_or_else(|| user.clone());
            (
                user,
                database,
                value("options="),
                value("password=").is_some(),
            )
        });
        let ours = parse(text, &environment).map(|ours| {
            let has_password = ours.has_own_password();
            (ours.user, ours.database, ours.options, has_password)
        });
        read_any += usize::from(ours.is_ok());
        let ours = ours.map_err(|error| error.to_string());
        // What is no UTF-8 is refused in words.
        let is_utf8 = !ours.as_ref().is_err_and(|said| said.contains("not UTF-8"));
        if is_utf8 && ours.as_ref().ok() != theirs.as_ref().ok() {
            wrong.push(format!("{text:?}: {ours:?}, libpq: {theirs:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}: {}",
        wrong.len(),
        strings.len(),
        wrong.join("\n")
    );
    read_any
}

#[test]
fn fault_140_each_spelling_of_a_string_is_read_as_libpq_reads_it() {
    for major in crate::support::USUAL_AND_17 {
        let libpq = skip_unless!(Libpq::of(major));
        let table = [
            "user=a",
            "user = a",
            " user\t=\na ",
            "user='a b'",
            "user='a\\'b' dbname=c",
            "user=a\\ b",
            "user=",
            "user= dbname=c",
            "user='' dbname=c",
            "user=a user=b",
            "user=a user=",
            "user",
            "=a",
            "user a=b",
            "user='a",
            "user='a'b",
            "user='a'dbname=c",
            "user=a'b",
            "user=a\\",
            "nosuch=a",
            "USER=a",
            "user==a",
            "user=a,dbname=b",
            "user=\"a\"",
            "user=\u{e9}",
            "user=a\u{a0}b",
            "user=a\u{b}dbname=b",
            "postgres",
            "postgresql:",
            "postgresql:/",
            "postgresql://",
            "postgres:///b",
            "postgresql:////b",
            "postgresql://a@/b",
            "postgresql://a:p@/b",
            "postgresql://a:@/b",
            "postgresql://:p@/b",
            "postgresql://@/b",
            "postgresql://a@b@/c",
            "postgresql://a%40b@/c",
            "postgresql://a%4@/c",
            "postgresql://a%00@/c",
            "postgresql:///b?user=c",
            "postgresql:///b?user=c&user=d",
            "postgresql:///b?",
            "postgresql:///b?user",
            "postgresql:///b?user=",
            "postgresql:///b?&user=c",
            "postgresql:///b?user=c&",
            "postgresql:///b?user=c=d",
            "postgresql:///b?nosuch=c",
            "postgresql:///b?user%3Dc",
            "postgresql:///b?us%65r=c",
            "postgresql:///b c",
            "postgresql:///b+c",
            "postgresql:///b?options=-c%20a%3Db",
            "postgresql:///b?options=-c a",
            "postgresql://[::1]/b",
            "postgresql://[::1/b",
            "postgresql://[]/b",
            "postgresql://[::1]x/b",
            "postgresql://h:/b",
            "postgresql://h,/b",
            "postgresql://h:1,i:2/b?user=c",
            "POSTGRESQL://a@/b",
            "postgresql:///b#c",
            "postgresql:///b?user=c#d",
            "postgresql:// a@/b",
            " postgresql://a@/b",
            "postgresql://a@/b ",
            "postgresql:///%2Fb/c",
            "postgresql:///b?ssl=true",
            "postgresql:///b?ssl=false",
            "",
            " ",
        ];
        // From 18 on a blank in an address is refused, or passed over at an end; before it is a letter.
        let is_of_all = |text: &&str| major < 18 || !text.contains("://") || !text.contains(' ');
        let table: Vec<String> = (table.iter().copied().filter(is_of_all))
            .map(str::to_owned)
            .collect();
        assert_read_alike(&libpq, &table);
        let mut dice = Dice::thrown("connection strings");
        let pieces = [
            "user", "dbname", "options", "=", "=", "=", " ", " ", "'", "\\", "a", "b", "\t", "''",
            "\u{e9}", "=x",
        ];
        let of_addresses = [
            "user=", "options=", "&", "?", "/", "@", "a", "b", "%20", "%4", "%", "=", " ", ",",
            "[", "]", "\u{e9}",
        ];
        let mut strings = Vec::new();
        for round in 0..4000 {
            let address = round % 2 == 1;
            let mut text = if address { "postgresql://" } else { "" }.to_owned();
            for _ in 0..dice.below(9) {
                let some = if address {
                    &of_addresses[..]
                } else {
                    &pieces[..]
                };
                text.push_str(dice.choose::<&str>(some));
            }
            if is_of_all(&text.as_str()) {
                strings.push(text);
            }
        }
        assert!(assert_read_alike(&libpq, &strings) > 100);
    }
}
