//! Servers that let nobody in without TLS, with certificates as PostgreSQL's manual has them made.
//! Never a certificate that only a library of ours could make: openssl makes them. Invariant: who
//! cannot be verified as was asked for hears no password.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use walmgr::error::Kind;
use walmgr::test_support::pg::conninfo::Environment;
use walmgr::test_support::pg::sql::{Limits, Session};

use crate::support::place::give_to_server;
use crate::support::{Cluster, Site, TempDir, have, run};

/// Debian's version and the newest one.
const MAJORS: [u8; 2] = crate::support::USUAL;

/// Keys and certificates: an authority, a server, a client, and an authority of somebody else.
pub(super) struct Keys(TempDir);

impl Keys {
    pub(super) fn make() -> Keys {
        let keys = Keys(TempDir::new());
        for (authority, name) in [("root", "/CN=root.example"), ("other", "/CN=other.example")] {
            keys.openssl(&format!(
                "req -new -x509 -days 30 -nodes -subj {name} -keyout {authority}.key -out {authority}.crt"
            ));
        }
        // As the manual says, without extensions: openssl 3.0 makes them of version 1.
        for (name, subject) in [("server", "localhost"), ("client", "shipper")] {
            keys.openssl(&format!(
                "req -new -nodes -subj /CN={subject} -keyout {name}.key -out {name}.csr"
            ));
            keys.openssl(&format!(
                "x509 -req -in {name}.csr -days 30 -CA root.crt -CAkey root.key -CAcreateserial -out {name}.crt"
            ));
        }
        keys.openssl(
            "req -new -x509 -days 30 -nodes -subj /CN=localhost -keyout self.key -out self.crt",
        );
        let ca = "[ca]\ndefault_ca=c\n[c]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=30\n";
        fs::write(keys.path("ca.cnf"), ca).unwrap();
        fs::write(keys.path("index"), "").unwrap();
        fs::write(keys.path("number"), "01\n").unwrap();
        let sign = "ca -config ca.cnf -keyfile root.key -cert root.crt";
        keys.openssl(&format!("{sign} -gencrl -out good.crl"));
        keys.openssl(&format!("{sign} -revoke server.crt"));
        keys.openssl(&format!("{sign} -gencrl -out revoked.crl"));
        keys.openssl("pkey -in client.key -aes256 -passout pass:x -out locked.key");
        give_to_server(keys.0.path());
        for key in ["server.key", "client.key", "self.key", "locked.key"] {
            fs::set_permissions(keys.path(key), PermissionsExt::from_mode(0o600)).unwrap();
        }
        keys
    }

    pub(super) fn openssl(&self, words: &str) {
        let mut openssl = Command::new("openssl");
        openssl
            .args(words.split_whitespace())
            .current_dir(self.0.path());
        run(&mut openssl).unwrap();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The option that names one of them.
    pub(super) fn option(&self, option: &str, name: &str) -> String {
        format!("{option}={} ", self.path(name).display())
    }
}

/// A server that takes TLS only over the network, and these lines of `pg_hba.conf` for it.
pub(super) fn cluster(
    major: u8,
    keys: &Keys,
    certificate: &str,
    hba: &str,
) -> Result<Cluster, String> {
    if !have("openssl") {
        return Err("openssl is not installed".to_owned());
    }
    Cluster::available(major)?;
    let path = |end: &str| {
        keys.path(&format!("{certificate}.{end}"))
            .display()
            .to_string()
    };
    let mut cluster = Cluster::builder()
        .major(major)
        .conf("archive_mode", "on")
        .conf("password_encryption", "scram-sha-256")
        .start();
    if major >= 15 && cluster.psql("SHOW ssl_library").is_empty() {
        return Err(format!("PostgreSQL {major} is built without TLS here"));
    }
    cluster.psql("CREATE ROLE shipper SUPERUSER LOGIN PASSWORD 'secret'");
    let hba = format!("local all all trust\n{hba}\n");
    fs::write(cluster.data().join("pg_hba.conf"), hba).unwrap();
    cluster.append_conf(&format!("ssl_cert_file = '{}'", path("crt")));
    cluster.append_conf(&format!("ssl_key_file = '{}'", path("key")));
    cluster.append_conf("ssl = on");
    cluster.restart();
    Ok(cluster)
}

pub(super) const PASSWORD_ONLY: &str = "hostssl all all all scram-sha-256";

/// Connects with these options, and says what came of it.
pub(super) async fn outcome(cluster: &Cluster, options: &str) -> Result<String, (Kind, String)> {
    let home = TempDir::new();
    let environment = Environment::default()
        .with_variable("HOME", &home.path().display().to_string())
        .with_variable("USER", "shipper");
    let port = cluster.port();
    let conninfo = format!("hostaddr=127.0.0.1 port={port} user=shipper {options}");
    match Session::connect_from(&conninfo, &environment, Limits::default()).await {
        Ok(session) => {
            let sql = "SELECT coalesce((SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()), '')";
            Ok(session.query(sql, &[]).await.unwrap()[0].get(0))
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains("secret"), "{text}");
            Err((error.kind(), text))
        }
    }
}

#[track_caller]
fn assert_outcome(
    options: &str,
    found: Result<String, (Kind, String)>,
    expected: Result<&str, &str>,
) {
    match (found, expected) {
        (Ok(found), Ok(version)) => assert!(found.starts_with(version), "{options}: {found}"),
        (Err((kind, text)), Err(part)) => {
            assert!(text.contains(part), "{options}: {text}");
            assert_eq!(
                kind,
                Kind::Config,
                "{options}: trying again cannot help: {text}"
            );
        }
        (found, expected) => panic!("{options}: {found:?}, expected {expected:?}"),
    }
}

#[tokio::test]
async fn fault_140_each_sslmode_means_what_it_means_to_libpq() {
    for major in MAJORS {
        let keys = Keys::make();
        let cluster = skip_unless!(cluster(major, &keys, "server", PASSWORD_ONLY));
        let [root, other] = ["root.crt", "other.crt"].map(|name| keys.option("sslrootcert", name));
        let [good, revoked] = ["good.crl", "revoked.crl"].map(|name| keys.option("sslcrl", name));
        let full = format!("host=localhost sslmode=verify-full {root}");
        let direct = match major >= 17 {
            true => Ok("TLSv1.3"),
            false => Err(""),
        };
        for (options, expected) in [
            ("sslmode=disable".to_owned(), Err("no encryption")),
            ("sslmode=allow".to_owned(), Ok("TLSv1.3")),
            (String::new(), Ok("TLSv1.3")),
            ("sslmode=require".to_owned(), Ok("TLSv1.3")),
            (
                "sslmode=require channel_binding=require".to_owned(),
                Ok("TLSv1.3"),
            ),
            (
                "sslmode=require ssl_max_protocol_version=TLSv1.2".to_owned(),
                Ok("TLSv1.2"),
            ),
            (
                format!("{full} ssl_max_protocol_version=TLSv1.2 channel_binding=require"),
                Ok("TLSv1.2"),
            ),
            (format!("sslmode=verify-ca {root}"), Ok("TLSv1.3")),
            (full.clone(), Ok("TLSv1.3")),
            (format!("{full} {good}"), Ok("TLSv1.3")),
            (format!("{full} {revoked}"), Err("certificate is revoked")),
            (
                format!("host=db.example sslmode=verify-full {root}"),
                Err("is for localhost, not for db.example"),
            ),
            (format!("sslmode=verify-full {root}"), Err("needs host=")),
            (
                format!("sslmode=verify-ca {other}"),
                Err("is not signed by an authority in sslrootcert"),
            ),
            // A file of authorities that is at hand counts for each mode, as with libpq.
            (
                format!("sslmode=require {other}"),
                Err("is not signed by an authority in sslrootcert"),
            ),
            (format!("sslmode=prefer {other}"), Err("no encryption")),
            (
                "sslmode=verify-ca".to_owned(),
                Err("root.crt does not exist: put the certificate"),
            ),
            ("host=localhost sslrootcert=system".to_owned(), Err("")),
            ("require_auth=scram-sha-256".to_owned(), Ok("TLSv1.3")),
            (
                "require_auth=md5,none".to_owned(),
                Err("by scram-sha-256, which require_auth forbids"),
            ),
            (
                "password=wrong".to_owned(),
                Err("password authentication failed"),
            ),
        ] {
            let options = format!("password=secret {options}");
            assert_outcome(&options, outcome(&cluster, &options).await, expected);
        }
        let options = "password=secret sslmode=require sslnegotiation=direct";
        let found = outcome(&cluster, options).await;
        assert_eq!(found.is_ok(), direct.is_ok(), "{found:?}");
        assert_outcome("", outcome(&cluster, "").await, Err("into ~/.pgpass"));
    }
}

#[tokio::test]
async fn fault_140_a_server_whose_certificate_is_its_own_authority_is_verified() {
    let keys = Keys::make();
    let cluster = skip_unless!(cluster(15, &keys, "self", PASSWORD_ONLY));
    let own = keys.option("sslrootcert", "self.crt");
    let full = format!("password=secret host=localhost sslmode=verify-full {own}");
    assert_outcome(&full, outcome(&cluster, &full).await, Ok("TLSv1.3"));
    let [root, own] = ["root.crt", "self.crt"].map(|name| keys.option("sslrootcert", name));
    let other = format!("password=secret sslmode=verify-ca {root}");
    assert_outcome(
        &other,
        outcome(&cluster, &other).await,
        Err("is not signed by"),
    );
    let named = format!("password=secret host=db.example sslmode=verify-full {own}");
    assert_outcome(
        &named,
        outcome(&cluster, &named).await,
        Err("not for db.example"),
    );
}

#[tokio::test]
async fn fault_140_a_client_certificate_is_shown_and_its_key_kept() {
    for major in MAJORS {
        let keys = Keys::make();
        let mut cluster = skip_unless!(cluster(major, &keys, "server", "hostssl all all all cert"));
        let [certificate, key] = ["sslcert", "sslkey"].map(|option| {
            let end = if option == "sslcert" { "crt" } else { "key" };
            keys.option(option, &format!("client.{end}"))
        });
        let both = format!("{certificate}{key}");
        let demanded = format!("{both}sslcertmode=require");
        // Without an authority of its own the server asks for none.
        let found = outcome(&cluster, &demanded).await;
        assert_outcome(&demanded, found, Err("did not ask for our certificate"));
        cluster.append_conf(&format!(
            "ssl_ca_file = '{}'",
            keys.path("root.crt").display()
        ));
        cluster.restart();
        let locked = keys.option("sslkey", "locked.key");
        let wrong = keys.option("sslkey", "server.key");
        for (options, expected) in [
            (both.clone(), Ok("TLSv1.3")),
            (demanded, Ok("TLSv1.3")),
            (
                format!("{both}ssl_max_protocol_version=TLSv1.2"),
                Ok("TLSv1.2"),
            ),
            (
                format!("{both}sslmode=require sslcertmode=disable"),
                Err("certificate"),
            ),
            ("sslmode=require".to_owned(), Err("certificate")),
            (
                format!("sslmode=require {certificate}{locked}"),
                Err("is encrypted, and sslpassword is not supported"),
            ),
            (
                format!("sslmode=require {certificate}{wrong}"),
                Err("sslkey is not the key of"),
            ),
            (
                format!("sslmode=require {certificate}sslkey=/nonexistent"),
                Err("sslcert has no key"),
            ),
            (
                "sslmode=require sslcertmode=require".to_owned(),
                Err("there is no certificate in sslcert"),
            ),
        ] {
            assert_outcome(&options, outcome(&cluster, &options).await, expected);
        }
        fs::set_permissions(keys.path("client.key"), PermissionsExt::from_mode(0o644)).unwrap();
        let open = format!("sslmode=require {both}");
        assert_outcome(
            &open,
            outcome(&cluster, &open).await,
            Err("type `chmod 600"),
        );
    }
}

#[test]
fn fault_140_every_command_works_where_the_server_takes_tls_only() {
    for major in MAJORS {
        let keys = Keys::make();
        let cluster = skip_unless!(cluster(major, &keys, "server", PASSWORD_ONLY));
        let port = cluster.port();
        let root = keys.path("root.crt").display().to_string();
        let site = Site::builder()
            .cluster(cluster)
            .master_set("use_xlog_functions", "1")
            .master_set(
                "master_db",
                &format!("postgresql://shipper:secret@localhost:{port}/template1?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={root}"),
            )
            .build();
        for word in ["setup", "sync", "backup", "listbackups"] {
            site.master_command(&[word]).succeed();
        }
        let set = format!("master_db=host=localhost port={port} user=shipper password=secret");
        // Nothing in the file, all of it in the environment; `system` means verify-full.
        for variables in [
            [
                ("PGSSLMODE", "verify-full"),
                ("PGSSLROOTCERT", root.as_str()),
            ],
            [
                ("SSL_CERT_FILE", root.as_str()),
                ("PGSSLROOTCERT", "system"),
            ],
        ] {
            let mut ambient = site.master_walmgr(&["-n", "backup"]);
            ambient
                .args(["--set", &set])
                .env("PGHOSTADDR", "127.0.0.1")
                .envs(variables);
            crate::support::Output::of(&mut ambient).succeed();
        }
        let mut weak = site.master_walmgr(&["backup"]);
        weak.args(["--set", &set])
            .env("PGSSLMODE", "disable")
            .env("PGHOSTADDR", "127.0.0.1");
        let refused = crate::support::Output::of(&mut weak);
        refused.fail_last(2, "no encryption");
        assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
    }
}
