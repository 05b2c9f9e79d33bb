//! Who may talk to whom: keys, certificates, clusters, the files they stand in, and one receiver
//! for one archive. Never uses a key outside its test. Invariant: whoever is refused is told why,
//! the receiver's log says who it was, and the archive is as it was before.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use walmgr_protocol::message::{ErrorCode, Message};

use crate::support::peer::Peer;
use crate::support::place::give_to_server;
use crate::support::{Site, wait_for};

mod authority;
mod clock;
pub mod every_message;
mod files;
mod reload;
mod revoked;

/// What both sides say about a certificate.
struct Refused {
    code: i32,
    client: &'static str,
    receiver: &'static str,
}

impl Refused {
    /// Archives a segment again and again: a sentence that gets lost now and then is a fault.
    fn check(&self, what: &str, site: &Site) {
        let name = site.segment_name(1);
        site.write_segment(1);
        for _ in 0..6 {
            let output = site.archive(&name);
            assert_eq!(output.code, Some(self.code), "{what}: {}", output.stderr);
            let line = output.fail(self.code);
            assert!(line.contains(self.client), "{what}: {line}");
        }
        wait_for(what, std::time::Duration::from_secs(5), || {
            let log = site.receiver.log();
            let said = log
                .lines()
                .any(|line| line.contains("refused 127.0.0.1:") && line.contains(self.receiver));
            said.then_some(())
        });
        assert_eq!(site.archived_names(), [""; 0], "{what}");
    }
}

fn key_of(ini: &Path) -> KeyPair {
    KeyPair::from_pem(&std::fs::read_to_string(ini.with_extension("key")).unwrap()).unwrap()
}

type Change = fn(&mut CertificateParams);

/// A new self-signed certificate for the key a side has.
fn renew(ini: &Path, change: Change) {
    let mut parameters = CertificateParams::new(vec!["somebody".to_owned()]).unwrap();
    change(&mut parameters);
    let certificate = parameters.self_signed(&key_of(ini)).unwrap();
    std::fs::write(ini.with_extension("crt"), certificate.pem()).unwrap();
}

fn expired(parameters: &mut CertificateParams) {
    parameters.not_before = rcgen::date_time_ymd(2001, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2002, 1, 1);
}

fn not_yet_valid(parameters: &mut CertificateParams) {
    parameters.not_before = rcgen::date_time_ymd(2901, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2902, 1, 1);
}

type Authority = CertifiedIssuer<'static, KeyPair>;

/// An authority whose certificate lies in the site's folder under its name.
fn authority(site: &Site, name: &str) -> Authority {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
    site.home().write(name, authority.pem());
    authority
}

/// A certificate of this authority for the key a side has.
fn sign(ini: &Path, authority: &Authority, host: &str, change: Change) {
    let mut parameters = CertificateParams::new(vec![host.to_owned()]).unwrap();
    change(&mut parameters);
    let certificate = parameters.signed_by(&key_of(ini), authority).unwrap();
    std::fs::write(ini.with_extension("crt"), certificate.pem()).unwrap();
}

fn unchanged(_: &mut CertificateParams) {}

/// Both sides trust this authority, and have certificates of it.
fn with_authority() -> (Site, Authority) {
    authority_over(Site::start())
}

fn authority_over(mut site: Site) -> (Site, Authority) {
    let ours = authority(&site, "ours.ca");
    sign(site.standby_ini(), &ours, "127.0.0.1", unchanged);
    sign(site.master_ini(), &ours, "master.example", unchanged);
    let path = site.home().join("ours.ca").display().to_string();
    site.standby_set("tls_ca", &path);
    site.master_set("tls_ca", &path);
    authorize_names(&site, "master.example\n");
    site.restart_receiver();
    (site, ours)
}

/// Writes the list of certificates that may come in.
fn authorize_names(site: &Site, text: &str) {
    let list = site.standby_ini().with_file_name("authorized_names");
    std::fs::write(&list, text).unwrap();
    give_to_server(&list);
}

#[test]
fn certified_peer_is_logged_by_the_name_in_its_certificate() {
    let (site, _authority) = authority_over(Site::builder().unbound().build());
    let name = site.segment_name(1);
    site.write_segment(1);
    site.archive(&name).fail(1);
    site.receiver
        .wait_for_log("refused master.example (127.0.0.1:");
}

#[test]
fn fault_86_only_one_side_with_tls_is_said_on_both() {
    let mut site = Site::start();
    site.master_set("tls", "off");
    Refused {
        code: 1,
        client: "tls = off is set here: check whether the receiver has tls on",
        receiver: "does not speak TLS",
    }
    .check("a client without TLS", &site);
    let mut site = Site::start();
    site.standby_set("tls", "off");
    site.restart_receiver();
    Refused {
        code: 1,
        client: "check whether `tls = off` is set there",
        receiver: "speaks TLS",
    }
    .check("a receiver without TLS", &site);
}

#[test]
fn fault_86_a_receiver_with_another_key_is_refused_with_both_fingerprints() {
    let mut site = Site::start();
    let expected = site.master_fingerprint();
    site.master_set("slave_fingerprint", &expected);
    Refused {
        code: 4,
        client: "holds another key: expected SHA256:",
        receiver: "rejected our certificate: it expects another key",
    }
    .check("a wrong slave_fingerprint", &site);
    let line = site.archive(&site.segment_name(1)).stderr;
    let presented = site.standby_fingerprint();
    assert!(
        line.contains(&expected) && line.contains(&presented),
        "{line}"
    );
}

#[test]
fn fault_86_a_certificate_out_of_its_time_is_refused_on_both_sides() {
    for (change, client, receiver) in [
        (
            expired as Change,
            "expired on 2002-01-01",
            "expired or not yet valid",
        ),
        (
            not_yet_valid,
            "is not valid before 2901-01-01",
            "expired or not yet valid",
        ),
    ] {
        let mut site = Site::start();
        renew(site.standby_ini(), change);
        site.restart_receiver();
        let code = 4;
        Refused {
            code,
            client,
            receiver,
        }
        .check("the receiver's time", &site);
    }
    for (change, receiver) in [
        (
            expired as Change,
            "the certificate of the client expired on 2002-01-01",
        ),
        (
            not_yet_valid,
            "the certificate of the client is not valid before 2901-01-01",
        ),
    ] {
        let site = Site::start();
        renew(site.master_ini(), change);
        Refused {
            code: 4,
            client: "rejected our certificate: by its clock the certificate is expired or not yet valid",
            receiver,
        }
        .check("the client's time", &site);
    }
}

#[test]
fn fault_86_certificates_of_one_authority_are_accepted() {
    let (site, _) = with_authority();
    site.write_segment(1);
    site.archive(&site.segment_name(1)).succeed();
    // A renewed certificate for another key too: nothing is pinned.
    assert!(site.holds(&site.segment_name(1)));
}

#[test]
fn fault_86_a_certificate_of_another_authority_or_name_is_refused() {
    let (mut site, _) = with_authority();
    let theirs = authority(&site, "theirs.ca");
    sign(site.standby_ini(), &theirs, "127.0.0.1", unchanged);
    site.restart_receiver();
    Refused {
        code: 4,
        client: "is not signed by an authority in tls_ca",
        receiver: "the certificate is not signed by an authority in its tls_ca",
    }
    .check("a receiver of another authority", &site);

    let (site, _) = with_authority();
    let theirs = authority(&site, "theirs.ca");
    sign(site.master_ini(), &theirs, "master.example", unchanged);
    Refused {
        code: 4,
        client: "the certificate is not signed by an authority in its tls_ca",
        receiver: "the certificate of the client is not signed by an authority in tls_ca",
    }
    .check("a client of another authority", &site);

    let (mut site, ours) = with_authority();
    sign(site.standby_ini(), &ours, "other.example", unchanged);
    site.restart_receiver();
    Refused {
        code: 4,
        client: "is for DnsName(\"other.example\"), not for 127.0.0.1",
        receiver: "the certificate is not for the host name that it connected to",
    }
    .check("a receiver of another name", &site);

    let (site, ours) = with_authority();
    sign(site.master_ini(), &ours, "master.example", expired);
    Refused {
        code: 4,
        client: "by its clock the certificate is expired or not yet valid",
        receiver: "the certificate of the client expired on 2002-01-01",
    }
    .check("an expired certificate of the right authority", &site);
}

#[test]
fn fault_86_a_client_without_a_certificate_is_refused() {
    use std::io::{Read, Write};
    for pinned in [true, false] {
        let (site, ca) = with_authority();
        let mut site = site;
        if pinned {
            // The client below wants an authority; the receiver knows keys only.
            site.standby_set("tls_ca", "");
            let text = std::fs::read_to_string(site.standby_ini()).unwrap();
            let kept: Vec<&str> = text
                .lines()
                .filter(|line| !line.starts_with("tls_ca"))
                .collect();
            std::fs::write(site.standby_ini(), kept.join("\n")).unwrap();
            site.restart_receiver();
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"walmgr/1".to_vec()];
        let host = "127.0.0.1".try_into().unwrap();
        let client = rustls::ClientConnection::new(config.into(), host).unwrap();
        let socket = crate::support::peer::dial(site.address());
        let mut stream = rustls::StreamOwned::new(client, socket);
        let _ = stream.write_all(b"walmgr");
        let error = stream.read(&mut [0; 16]).unwrap_err();
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
        site.receiver
            .wait_for_log("the client presented no certificate");
    }
}

#[test]
fn fault_87_a_master_of_another_cluster_is_refused_with_both_identifiers() {
    let site = Site::start();
    let other = Site::builder().system_id(7_700_000_000_000_000_002).build();
    let mut stranger = other;
    stranger.route(site.address());
    let fingerprint = site.standby_fingerprint();
    stranger.master_set("slave_fingerprint", &fingerprint);
    let key = stranger.master_fingerprint();
    site.standby_command(&["authorize", &key, "stranger"])
        .succeed();
    let name = stranger.segment_name(1);
    stranger.write_segment(1);
    let words = ["7700000000000000001", "7700000000000000002"];
    wait_for("the reload", std::time::Duration::from_secs(5), || {
        let output = stranger.archive(&name);
        (output.code == Some(5)).then(|| {
            let line = output.fail(5);
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
        })
    });
    for word in words {
        site.receiver.wait_for_log(word);
    }
    assert_eq!(site.archived_names(), [""; 0]);
}

#[test]
fn fault_87_early_client_is_refused_once_another_cluster_is_bound() {
    let site = Site::builder().plain().unbound().build();
    let ours = site.facts().cluster;
    let mut theirs = ours;
    theirs.system_id.0 += 1;
    let mut early = Peer::connect(site.address(), Some(theirs));
    let mut bound = Peer::connect(site.address(), Some(ours));
    bound.send(0, &Message::Setup);
    assert!(matches!(bound.answer(0), Message::SetupDone(_)));
    // A history file names no cluster, so only the introduction can tell.
    let text = b"1\t0/3000000\tfrom elsewhere\n";
    early.offer(1, "00000002.history".parse().unwrap(), text);
    assert_eq!(early.refusal().code, ErrorCode::ForeignCluster);
    early.send(0, &Message::Setup);
    assert!(matches!(
        early.refusal().code,
        ErrorCode::ForeignCluster | ErrorCode::ForeignFile
    ));
    assert_eq!(site.archived_names(), [""; 0]);
}

#[test]
fn a_key_without_the_right_to_push_is_refused_in_words() {
    let site = Site::start();
    let key = site.master_fingerprint();
    site.standby_command(&["revoke", "master"]).succeed();
    let words = ["authorize", &key, "reader", "--rights", "read"];
    site.standby_command(&words).succeed();
    let name = site.segment_name(1);
    site.write_segment(1);
    wait_for("the reload", std::time::Duration::from_secs(5), || {
        let output = site.archive(&name);
        let line = output.fail(4);
        line.contains("reader lacks the right `push`").then_some(())
    });
    assert_eq!(site.archived_names(), [""; 0]);
}

#[test]
fn fault_85_second_receiver_exits_2_and_the_first_serves_on() {
    let site = Site::start();
    let output = site.standby_command(&["receiver"]);
    let line = output.fail(2);
    assert!(line.contains("already running as process"), "{line}");
    // Another ini file, port and pidfile; the same archive, also through a link to it.
    let text = std::fs::read_to_string(site.standby_ini()).unwrap();
    let link = site.home().join("link");
    std::os::unix::fs::symlink(site.completed_wals().parent().unwrap(), &link).unwrap();
    let base = site
        .completed_wals()
        .parent()
        .unwrap()
        .display()
        .to_string();
    for (number, places) in [base.clone(), link.display().to_string()]
        .iter()
        .enumerate()
    {
        let port = crate::support::free_port();
        let listen = format!("listen = 127.0.0.1:{port}");
        let text = text
            .lines()
            .map(|line| match line.starts_with("listen") {
                true => listen.clone(),
                false => line.replace(&base, places),
            })
            .collect::<Vec<_>>()
            .join("\n");
        let folder = site.home().create_dir(&format!("second{number}"));
        for extension in ["key", "crt"] {
            let copy = folder.join("standby.ini").with_extension(extension);
            std::fs::copy(site.standby_ini().with_extension(extension), &copy).unwrap();
        }
        let ini = folder.join("standby.ini");
        std::fs::write(&ini, text).unwrap();
        give_to_server(&folder);
        let mut second = crate::support::walmgr();
        let output = crate::support::Output::of(second.arg(&ini).arg("receiver"));
        let line = output.fail(2);
        assert!(line.contains("locked by another receiver"), "{line}");
        assert!(line.contains(&site.receiver.pid().to_string()), "{line}");
    }
    site.write_segment(1);
    site.archive(&site.segment_name(1)).succeed();
}

#[test]
fn fault_88_a_recorded_session_played_again_changes_nothing() {
    let site = Site::builder().plain().proxied().build();
    let name = site.segment_name(1);
    site.write_segment(1);
    site.archive(&name).succeed();
    let sessions = site.proxy().recordings();
    assert!(!sessions.is_empty());
    // Taken away, so that a replay that worked would put it back.
    std::fs::remove_file(site.stored_path(&name)).unwrap();
    for session in sessions {
        let patience = std::time::Duration::from_secs(8);
        session.replay(site.address(), patience).unwrap();
    }
    site.receiver.wait_for_log("from another connection");
    assert_eq!(site.archived_names(), [""; 0]);
    assert!(site.temporaries().is_empty());
    site.archive(&name).succeed();
}
