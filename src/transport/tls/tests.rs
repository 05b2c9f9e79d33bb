//! The matrix of identities: every way a peer can fail to be who it should be.
//! Never opens a socket: both ends stand in one thread and hand each other their bytes.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::version::TLS12;
use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::error::Kind;

const RECEIVER: &str = "the receiver standby:7432";
const CLIENT: &str = "the client 10.0.0.1:50000";

struct Folder(tempfile::TempDir);

fn listening(identity: &Identity, authority: Option<&Path>) -> Result<Arc<ServerConfig>> {
    server_config(identity, client_verifier(authority)?)
}

/// An authority that signs for a test.
type Authority = CertifiedIssuer<'static, KeyPair>;

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn identity(&self, name: &str) -> Identity {
        let (key, certificate) = (self.path(name), self.path(&format!("{name}.crt")));
        Identity::create(&key, &certificate, name).unwrap()
    }

    fn made(&self, name: &str, key: &KeyPair, pem: &str) -> Identity {
        let (key_path, certificate) = (self.path(name), self.path(&format!("{name}.crt")));
        crate::files::create_new(&key_path, key.serialize_pem().as_bytes(), 0o600).unwrap();
        std::fs::write(&certificate, pem).unwrap();
        Identity::load(&key_path, &certificate).unwrap()
    }

    fn self_signed(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut parameters);
        let certificate = parameters.self_signed(&key).unwrap();
        self.made(name, &key, &certificate.pem())
    }

    fn authority(&self, name: &str) -> Authority {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let authority =
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(self.path(&format!("{name}.ca")), authority.pem()).unwrap();
        authority
    }

    fn signed(&self, name: &str, authority: &Authority) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, authority).unwrap();
        self.made(name, &key, &certificate.pem())
    }
}

struct Ends {
    client: ClientConnection,
    server: ServerConnection,
}

type Outcome = (Result<(), TlsFault>, Result<(), TlsFault>);

/// Runs both ends until nothing moves; what each one makes of it.
fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>, host: &str) -> (Ends, Outcome) {
    let mut ends = Ends {
        client: ClientConnection::new(client, server_name(host).unwrap()).unwrap(),
        server: ServerConnection::new(server).unwrap(),
    };
    let (mut client_fault, mut server_fault) = (Ok(()), Ok(()));
    for _ in 0..8 {
        let bytes = drain(&mut ends.client);
        let fed = feed(&mut ends.server, &bytes, CLIENT);
        server_fault = server_fault.and(fed);
        let bytes = drain(&mut ends.server);
        let fed = feed(&mut ends.client, &bytes, RECEIVER);
        client_fault = client_fault.and(fed);
    }
    if client_fault.is_ok() && server_fault.is_ok() {
        assert!(!ends.client.is_handshaking() && !ends.server.is_handshaking());
    }
    (ends, (client_fault, server_fault))
}

fn drain<D>(end: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while end.wants_write() {
        end.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn feed<D>(
    end: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>,
    mut bytes: &[u8],
    whom: &str,
) -> Result<(), TlsFault> {
    while !bytes.is_empty() {
        let explain = |error| TlsFault::of(&error, whom);
        end.read_tls(&mut bytes).map_err(explain)?;
        end.process_new_packets().map_err(|error| {
            TlsFault::of(&io::Error::new(io::ErrorKind::InvalidData, error), whom)
        })?;
    }
    Ok(())
}

fn pinned(identity: &Identity, peer: &Identity) -> Arc<ClientConfig> {
    client_config(identity, &PeerTrust::Pinned(peer.fingerprint())).unwrap()
}

fn refused(fault: Result<(), TlsFault>, parts: &[&str]) {
    let fault = fault.unwrap_err();
    assert_eq!(fault.kind, Kind::Identity, "{fault}");
    for part in parts {
        assert!(fault.to_string().contains(part), "{fault:?} lacks {part:?}");
    }
}

fn year(year: i32) -> impl Fn(&mut CertificateParams) {
    move |parameters| {
        parameters.not_before = rcgen::date_time_ymd(year, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(year, 12, 31);
    }
}

#[test]
fn fault_86_the_right_keys_meet_and_each_side_knows_the_other() {
    let folder = Folder::new();
    let (master, standby) = (folder.identity("master"), folder.identity("standby"));
    let server = listening(&standby, None).unwrap();
    for host in ["standby", "10.0.0.2", "[::1]", "fe80::1%eth0"] {
        let (mut ends, outcome) = handshake(pinned(&master, &standby), Arc::clone(&server), host);
        assert_eq!(outcome, (Ok(()), Ok(())));
        let chain = ends.server.peer_certificates().unwrap();
        let shown = PeerCertificate::of(chain).unwrap();
        assert_eq!(*shown.fingerprint(), master.fingerprint());
        assert_eq!(shown.shown_name().as_deref(), Some("master"));
        assert_eq!(ends.server.server_name(), None);
        assert!(require_walmgr(ends.server.alpn_protocol(), CLIENT).is_ok());
        assert!(require_walmgr(ends.client.alpn_protocol(), RECEIVER).is_ok());
        assert_eq!(
            ends.client.protocol_version(),
            Some(rustls::ProtocolVersion::TLSv1_3)
        );
        assert_eq!(
            ends.client.handshake_kind(),
            Some(rustls::HandshakeKind::Full)
        );
        ends.client.writer().write_all(b"hello").unwrap();
        let bytes = drain(&mut ends.client);
        feed(&mut ends.server, &bytes, CLIENT).unwrap();
        let mut heard = [0; 5];
        ends.server.reader().read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}

#[test]
fn fault_86_a_receiver_with_another_key_is_refused_with_both_fingerprints() {
    let folder = Folder::new();
    let (master, standby) = (folder.identity("master"), folder.identity("standby"));
    let impostor = folder.identity("impostor");
    let server = listening(&impostor, None).unwrap();
    let (_, (client, server)) = handshake(pinned(&master, &standby), server, "standby");
    let expected = format!("expected {}", standby.fingerprint());
    let presented = format!("presented {}", impostor.fingerprint());
    refused(
        client,
        &[RECEIVER, &expected, &presented, "slave_fingerprint"],
    );
    refused(server, &[CLIENT, "rejected our certificate", "another key"]);
}

#[test]
fn fault_86_an_expired_certificate_is_refused_on_either_side() {
    let folder = Folder::new();
    let good = folder.identity("good");
    let expired = folder.self_signed("expired", year(2001));
    let server = listening(&expired, None).unwrap();
    let (_, (client, server)) = handshake(pinned(&good, &expired), server, "standby");
    refused(client, &["expired on 2001-12-31 00:00:00 UTC", "clock"]);
    refused(server, &["rejected our certificate", "expired"]);

    let server = listening(&good, None).unwrap();
    let (_, (client, server)) = handshake(pinned(&expired, &good), server, "standby");
    refused(server, &[CLIENT, "expired on 2001-12-31"]);
    refused(client, &[RECEIVER, "rejected our certificate"]);
}

#[test]
fn fault_86_a_certificate_of_the_future_is_refused_on_either_side() {
    let folder = Folder::new();
    let good = folder.identity("good");
    let future = folder.self_signed("future", year(2999));
    let server = listening(&future, None).unwrap();
    let (_, (client, _)) = handshake(pinned(&good, &future), server, "standby");
    refused(client, &["not valid before 2999-01-01"]);
    let server = listening(&good, None).unwrap();
    let (_, (client, server)) = handshake(pinned(&future, &good), server, "standby");
    refused(server, &[CLIENT, "not valid before 2999-01-01"]);
    refused(client, &["rejected our certificate"]);
}

#[test]
fn fault_86_a_client_without_a_certificate_is_refused() {
    let folder = Folder::new();
    let (standby, authority) = (folder.identity("standby"), folder.authority("ca"));
    let signed = folder.signed("signed", &authority);
    let ca = folder.path("ca.ca");
    for (identity, authority) in [(&standby, None), (&signed, Some(ca.as_path()))] {
        let mut anonymous = ClientConfig::clone(&pinned(identity, identity));
        anonymous.client_auth_cert_resolver = Arc::new(Nobody);
        let server = listening(identity, authority).unwrap();
        let (_, (client, server)) = handshake(Arc::new(anonymous), server, "standby");
        refused(server, &[CLIENT, "no certificate", "walmgr INI identity"]);
        refused(client, &["rejected our certificate", "received none"]);
    }
}

#[test]
fn fault_86_certificate_without_its_key_is_refused_on_either_side() {
    let folder = Folder::new();
    let (master, standby) = (folder.identity("master"), folder.identity("standby"));
    let thief = Arc::new(SingleCertAndKey::from(thief_of(&master)));
    let mut stolen = ClientConfig::clone(&pinned(&master, &standby));
    stolen.client_auth_cert_resolver = thief;
    let server = listening(&standby, None).unwrap();
    let (_, (_, server)) = handshake(Arc::new(stolen), server, "standby");
    refused(server, &[CLIENT, "not its own"]);

    let mut stolen = ServerConfig::clone(&listening(&standby, None).unwrap());
    stolen.cert_resolver = Arc::new(SingleCertAndKey::from(thief_of(&standby)));
    let (_, (client, _)) = handshake(pinned(&master, &standby), Arc::new(stolen), "standby");
    refused(client, &[RECEIVER, "not its own"]);
}

#[test]
fn fault_86_an_authority_vouches_for_both_sides_and_their_names() {
    let folder = Folder::new();
    let authority = folder.authority("ca");
    let (master, standby) = (
        folder.signed("master", &authority),
        folder.signed("standby", &authority),
    );
    let ca = folder.path("ca.ca");
    let client = client_config(&master, &PeerTrust::Authority(ca.clone())).unwrap();
    let server = listening(&standby, Some(&ca)).unwrap();
    let (ends, outcome) = handshake(Arc::clone(&client), Arc::clone(&server), "standby");
    assert_eq!(outcome, (Ok(()), Ok(())));
    let chain = ends.server.peer_certificates().unwrap();
    let shown = PeerCertificate::of(chain).unwrap();
    assert_eq!(shown.shown_name().as_deref(), Some("master"));
    assert!(shown.check(&*client_verifier(Some(&ca)).unwrap()).is_ok());
    folder.authority("theirs");
    let theirs = client_verifier(Some(&folder.path("theirs.ca"))).unwrap();
    assert!(shown.check(&*theirs).is_err());
    for host in ["other", "10.0.0.2"] {
        let (_, (refusal, _)) = handshake(Arc::clone(&client), Arc::clone(&server), host);
        refused(
            refusal,
            &["is for", "\"standby\"", &format!("not for {host}")],
        );
    }
}

#[test]
fn fault_86_a_wrong_authority_is_refused_on_either_side() {
    let folder = Folder::new();
    let (ours, theirs) = (folder.authority("ours"), folder.authority("theirs"));
    let (master, standby) = (
        folder.signed("master", &ours),
        folder.signed("standby", &theirs),
    );
    let our_ca = folder.path("ours.ca");
    let client = client_config(&master, &PeerTrust::Authority(our_ca.clone())).unwrap();
    let server = listening(&standby, None).unwrap();
    let (_, (client, server)) = handshake(client, server, "standby");
    refused(client, &["not signed by an authority in tls_ca"]);
    refused(server, &["rejected our certificate", "tls_ca"]);

    let server = listening(&standby, Some(&folder.path("theirs.ca"))).unwrap();
    for stranger in [&master, &folder.identity("selfmade")] {
        let (_, (client, server)) =
            handshake(pinned(stranger, &standby), Arc::clone(&server), "standby");
        refused(server, &[CLIENT, "not signed by an authority in tls_ca"]);
        refused(client, &["rejected our certificate", "tls_ca"]);
    }
}

#[test]
fn fault_86_an_older_tls_is_refused_on_either_side() {
    let folder = Folder::new();
    let (master, standby) = (folder.identity("master"), folder.identity("standby"));
    let old = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OneKey::new(
            standby.fingerprint(),
            provider().signature_verification_algorithms,
        )))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(master.certified_key())));
    let server = listening(&standby, None).unwrap();
    let (_, (client, server)) = handshake(Arc::new(old), server, "standby");
    assert!(server.unwrap_err().sentence.contains("TLS 1.3"));
    assert!(client.unwrap_err().sentence.contains("TLS 1.3"));

    let old = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(standby.certified_key())));
    let (_, (client, server)) = handshake(pinned(&master, &standby), Arc::new(old), "standby");
    assert!(client.unwrap_err().sentence.contains("TLS 1.3"));
    assert!(server.is_err());
}

#[test]
fn fault_86_other_or_missing_protocol_over_tls_is_refused() {
    let folder = Folder::new();
    let (master, standby) = (folder.identity("master"), folder.identity("standby"));
    let server = listening(&standby, None).unwrap();
    let mut other = ClientConfig::clone(&pinned(&master, &standby));
    other.alpn_protocols = vec![b"h2".to_vec()];
    let (_, (client, refusal)) = handshake(Arc::new(other.clone()), Arc::clone(&server), "standby");
    assert!(
        client
            .unwrap_err()
            .sentence
            .contains("not the protocol walmgr/1")
    );
    assert!(
        refusal
            .unwrap_err()
            .sentence
            .contains("not the protocol walmgr/1")
    );

    other.alpn_protocols.clear();
    let (ends, outcome) = handshake(Arc::new(other), server, "standby");
    assert_eq!(outcome, (Ok(()), Ok(())));
    let fault = require_walmgr(ends.server.alpn_protocol(), CLIENT).unwrap_err();
    assert!(fault.sentence.contains("not the protocol walmgr/1"));
}

#[test]
fn a_peer_without_tls_is_recognised_from_both_sides() {
    let folder = Folder::new();
    let (master, standby) = (folder.identity("master"), folder.identity("standby"));
    let name = server_name("standby").unwrap();
    for plain in [
        &b"WALMGR\x00\x01 hello"[..],
        b"HTTP/1.1 400 Bad Request\r\n",
    ] {
        let mut client = ClientConnection::new(pinned(&master, &standby), name.clone()).unwrap();
        let fault = feed(&mut client, plain, RECEIVER).unwrap_err();
        assert!(fault.to_string().contains("tls = off"), "{fault}");
        assert_eq!(fault.kind, Kind::Retry);
        assert!(!looks_like_tls(plain));
    }
    let mut client = ClientConnection::new(pinned(&master, &standby), name).unwrap();
    assert!(looks_like_tls(&drain(&mut client)));
    let closed = TlsFault::of(&io::ErrorKind::UnexpectedEof.into(), RECEIVER);
    assert!(closed.to_string().contains("tls = off"), "{closed}");
}

#[test]
fn a_self_signed_authority_as_openssl_makes_it_can_be_pinned() {
    let folder = Folder::new();
    let authority_like = |parameters: &mut CertificateParams| {
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    let (one, other) = (
        folder.self_signed("one", authority_like),
        folder.self_signed("other", authority_like),
    );
    let server = listening(&one, None).unwrap();
    let (_, outcome) = handshake(pinned(&other, &one), server, "anything");
    assert_eq!(outcome, (Ok(()), Ok(())));
}

#[test]
fn an_unusable_authority_file_is_named() {
    let folder = Folder::new();
    let identity = folder.identity("standby");
    let path = folder.path("ca.pem");
    assert!(listening(&identity, Some(&path)).is_err());
    std::fs::write(&path, "no certificate").unwrap();
    let error = listening(&identity, Some(&path)).unwrap_err();
    assert!(error.to_string().contains("ca.pem"), "{error}");
    assert_eq!(error.kind(), Kind::Config);
    assert!(server_name("no host").is_err());
    assert!(server_name("").is_err());
}

/// Somebody else's certificate with a key of one's own.
fn thief_of(victim: &Identity) -> CertifiedKey {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let chain: Vec<CertificateDer<'static>> = victim.certified_key().cert.clone();
    CertifiedKey::new(
        chain,
        provider().key_provider.load_private_key(key).unwrap(),
    )
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}
