//! Certificates of every make, and the same strings given to walmgr and to libpq.
//! Never what a manual says of libpq: it connects to the same server. Invariant: both come in, or neither
//! does, but for what the table marks and docs/tasks/connect.md says.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::tls_only::{Keys, PASSWORD_ONLY, cluster, outcome};
use crate::support::Cluster;
use crate::support::libpq::Libpq;
use crate::support::place::give_to_server;

/// Where the verdicts differ: the make, whether walmgr alone takes it, and what the other one says.
const DEVIATIONS: [(&str, bool, &str); 4] = [
    ("Ed25519", true, "could not find digest"),
    (
        "RSA-PSS with a long salt",
        false,
        "needs a salt as long as its hash",
    ),
    ("RSA-PSS key", false, "its key has to be RSA, ECDSA"),
    ("Ed448 key", false, "its key has to be RSA, ECDSA"),
];

/// A certificate of the server's: its key, its names, who signs it and how.
struct Make<'a> {
    key: &'a str,
    common_name: &'a str,
    names: &'a str,
    authority: &'a str,
    sign: &'a str,
}

const PLAIN: Make<'static> = Make {
    key: "-newkey rsa:2048",
    common_name: "localhost",
    names: "",
    authority: "root",
    sign: "-sha256",
};

fn make(keys: &Keys, make: &Make<'_>) {
    let Make {
        key,
        common_name,
        names,
        authority,
        sign,
    } = make;
    keys.openssl(&format!(
        "req -new -nodes {key} -subj /CN={common_name} -keyout server.key -out server.csr"
    ));
    let text = match *names {
        "" => "basicConstraints=CA:FALSE\n".to_owned(),
        names => format!("subjectAltName={names}\n"),
    };
    fs::write(keys.path("server.ext"), text).unwrap();
    keys.openssl(&format!(
        "x509 -req -in server.csr -days 30 -CA {authority}.crt -CAkey {authority}.key -CAcreateserial \
         -extfile server.ext {sign} -out server.crt"
    ));
    give_to_server(&keys.path("server.key"));
    fs::set_permissions(keys.path("server.key"), PermissionsExt::from_mode(0o600)).unwrap();
}

/// Whether both come in, or neither; one that only walmgr or only libpq takes is named.
async fn compare(cluster: &Cluster, libpq: &Libpq, what: &str, strings: &[String]) -> Vec<String> {
    let port = cluster.port();
    let whole = |text: &String| {
        format!(
            "hostaddr=127.0.0.1 port={port} user=shipper dbname=postgres password=secret {text}"
        )
    };
    let whole: Vec<String> = strings.iter().map(whole).collect();
    let mut wrong = Vec::new();
    for (text, theirs) in strings.iter().zip(libpq.connect(&whole)) {
        let options = format!("password=secret dbname=postgres {text}");
        let ours = outcome(cluster, &options).await;
        let theirs = theirs.map(|version| String::from_utf8_lossy(&version).into_owned());
        let ours = ours.map_err(|(_, said)| said);
        let is_marked = DEVIATIONS.iter().any(|(make, only_ours, said)| {
            let refused = if *only_ours { &theirs } else { &ours };
            let taken = if *only_ours { &ours } else { &theirs };
            *make == what
                && taken.is_ok()
                && refused.as_ref().is_err_and(|text| text.contains(said))
        });
        if !is_marked && ours.as_ref().ok() != theirs.as_ref().ok() {
            wrong.push(format!("{what}: {text}: {ours:?}, libpq: {theirs:?}"));
        }
    }
    wrong
}

#[tokio::test]
async fn fault_140_a_server_is_believed_exactly_where_libpq_believes_it() {
    let keys = Keys::make();
    let mut cluster = skip_unless!(cluster(15, &keys, "server", PASSWORD_ONLY));
    let libpq = skip_unless!(Libpq::of(15));
    keys.openssl("req -new -x509 -newkey ed25519 -days 30 -nodes -subj /CN=ed.example -keyout ed.key -out ed.crt");
    let pss = "-sha384 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1";
    let mut wrong = Vec::new();
    let makes = [
        ("plain", PLAIN),
        ("RSA-PSS", Make { sign: pss, ..PLAIN }),
        (
            "RSA-PSS with a long salt",
            Make {
                sign: "-sha256 -sigopt rsa_padding_mode:pss",
                ..PLAIN
            },
        ),
        (
            "ECDSA key",
            Make {
                key: "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1",
                ..PLAIN
            },
        ),
        (
            "RSA-PSS key",
            Make {
                key: "-newkey rsa-pss",
                ..PLAIN
            },
        ),
        (
            "Ed448 key",
            Make {
                key: "-newkey ed448",
                ..PLAIN
            },
        ),
        (
            "ECDSA key of P-521",
            Make {
                key: "-newkey ec -pkeyopt ec_paramgen_curve:secp521r1",
                ..PLAIN
            },
        ),
        (
            "Ed25519 key",
            Make {
                key: "-newkey ed25519",
                ..PLAIN
            },
        ),
        (
            "Ed25519",
            Make {
                authority: "ed",
                sign: "",
                ..PLAIN
            },
        ),
        (
            "another name",
            Make {
                names: "DNS:db.example",
                ..PLAIN
            },
        ),
        (
            "its name",
            Make {
                common_name: "db.example",
                names: "DNS:other.example,DNS:localhost",
                ..PLAIN
            },
        ),
        (
            "an address alone",
            Make {
                names: "IP:127.0.0.2",
                ..PLAIN
            },
        ),
        (
            "an address as name",
            Make {
                common_name: "127.0.0.1",
                names: "DNS:db.example",
                ..PLAIN
            },
        ),
        (
            "its address",
            Make {
                common_name: "db.example",
                names: "IP:127.0.0.1",
                ..PLAIN
            },
        ),
        (
            "mail",
            Make {
                names: "email:a@localhost",
                ..PLAIN
            },
        ),
        (
            "a name of no letters",
            Make {
                names: "DER:30:04:82:02:ff:fe",
                ..PLAIN
            },
        ),
        (
            "an empty name",
            Make {
                names: "DER:30:02:82:00",
                ..PLAIN
            },
        ),
        (
            "a name with a zero",
            Make {
                names: "DER:30:0c:82:0a:6c:6f:63:61:6c:68:6f:73:74:00",
                ..PLAIN
            },
        ),
        (
            "an address of five bytes",
            Make {
                common_name: "127.0.0.1",
                names: "DER:30:07:87:05:7f:00:00:01:01",
                ..PLAIN
            },
        ),
        (
            "a wildcard",
            Make {
                common_name: "*.example",
                names: "",
                ..PLAIN
            },
        ),
    ];
    for (what, made) in &makes {
        make(&keys, made);
        cluster.restart();
        let root = keys.option("sslrootcert", &format!("{}.crt", made.authority));
        let mut strings: Vec<String> = [
            "localhost",
            "127.0.0.1",
            "db.example",
            "a.db.example",
            "LOCALHOST",
        ]
        .map(|host| format!("host={host} sslmode=verify-full {root}"))
        .to_vec();
        for binding in ["disable", "prefer", "require"] {
            strings.push(format!("sslmode=require channel_binding={binding}"));
        }
        wrong.extend(compare(&cluster, &libpq, what, &strings).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    make(
        &keys,
        &Make {
            authority: "ed",
            sign: "",
            ..PLAIN
        },
    );
    cluster.restart();
    let bound = outcome(
        &cluster,
        "password=secret sslmode=require channel_binding=require",
    )
    .await;
    let (_, said) = bound.unwrap_err();
    assert!(
        said.contains("channel_binding=require: the server's certificate is signed without"),
        "{said}"
    );
}

#[tokio::test]
async fn fault_140_lists_of_what_is_revoked_count_for_the_authority_as_well() {
    let keys = Keys::make();
    let mut cluster = skip_unless!(cluster(15, &keys, "server", PASSWORD_ONLY));
    let libpq = skip_unless!(Libpq::of(15));
    let (root, good) = (
        keys.option("sslrootcert", "root.crt"),
        keys.option("sslcrl", "good.crl"),
    );
    let sign = "ca -config ca.cnf -keyfile root.key -cert root.crt";
    fs::write(keys.path("index"), "").unwrap();
    keys.openssl(&format!("{sign} -revoke root.crt"));
    keys.openssl(&format!("{sign} -gencrl -out root.crl"));
    keys.openssl("ca -config ca.cnf -keyfile other.key -cert other.crt -gencrl -out other.crl");
    fs::create_dir(keys.path("crls")).unwrap();
    fs::copy(keys.path("root.crl"), keys.path("crls/root.crl")).unwrap();
    keys.openssl("rehash crls");
    let [revoked, other] = ["root.crl", "other.crl"].map(|name| keys.option("sslcrl", name));
    let folder = keys.option("sslcrldir", "crls");
    let mut wrong = Vec::new();
    // Of version 1, as the manual has it made, and of version 3.
    for what in ["version 1", "version 3"] {
        if what == "version 3" {
            make(
                &keys,
                &Make {
                    names: "DNS:localhost",
                    ..PLAIN
                },
            );
            cluster.restart();
        }
        let strings: Vec<String> = ["", &good, &revoked, &other, &folder]
            .map(|list| format!("host=localhost sslmode=verify-full {root}{list}"))
            .to_vec();
        wrong.extend(compare(&cluster, &libpq, what, &strings).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
