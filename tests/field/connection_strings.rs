//! `master_db` as DBAs write it for libpq: services, several servers, sockets, password files.
//! Never a server of its own for each case. Invariant: the server that is reached is the one that
//! libpq would reach.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use walmgr::error::Kind;
use walmgr::pg::conninfo::Environment;
use walmgr::pg::sql::{Limits, Session};

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
            .contains("it is no standby, and target_session_attrs"),
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
    for major in [15, 18] {
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
            true => "postgres".to_owned(),
            false => walmgr::pg::conninfo::name_of(rustix::process::geteuid().as_raw()),
        };
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
