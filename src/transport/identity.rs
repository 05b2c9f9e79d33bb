//! The key and certificate of this side, and the fingerprint the other side knows it by.
//! Never overwrites a key and never prints one. Invariant: a loaded [`Identity`] has a key that
//! only its owner can read and a certificate made for exactly that key.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustix::fs::OFlags;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use crate::error::{CommandError, IoContext, Kind, Result};
use crate::files;

/// Longest key or certificate file that is read: a chain of a dozen certificates, no more.
const FILE_BYTES_MAX: u64 = 256 << 10;

const FINGERPRINT_PREFIX: &str = "SHA256:";

const CREATE_HINT: &str = "create one with `walmgr INI identity`";

/// SHA-256 of a certificate's public key (its `SubjectPublicKeyInfo` in DER, RFC 5280 section
/// 4.1), so that a certificate can be renewed without changing what the other side has pinned.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of the key this certificate is for; `None` if it is no certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let hash = digest(&SHA256, &parsed.subject_public_key_info());
        hash.as_ref().try_into().ok().map(Fingerprint)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(FINGERPRINT_PREFIX)?;
        out.write_str(&STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A text that is not a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a fingerprint: SHA256: and 43 base64 characters, as `identity` prints on the other side"
)]
pub struct InvalidFingerprint;

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    /// Accepts exactly what [`Display`](fmt::Display) writes, so that equal keys are equal text.
    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let base64 = text
            .strip_prefix(FINGERPRINT_PREFIX)
            .ok_or(InvalidFingerprint)?;
        if base64.len() != 43 {
            return Err(InvalidFingerprint);
        }
        let bytes = STANDARD_NO_PAD
            .decode(base64)
            .map_err(|_| InvalidFingerprint)?;
        bytes
            .try_into()
            .map(Fingerprint)
            .or(Err(InvalidFingerprint))
    }
}

/// The key and the certificate this side proves itself with.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Identity({})", self.fingerprint)
    }
}

impl Identity {
    /// Makes an Ed25519 key (mode 0600) and a self-signed certificate for it.
    ///
    /// Fails if the certificate exists. A key that is there without one, as an interrupted run
    /// leaves it, is kept and gets its certificate: others may know its fingerprint already.
    pub fn create(key_path: &Path, certificate_path: &Path, common_name: &str) -> Result<Self> {
        if certificate_path.symlink_metadata().is_ok() {
            let text = format!("{} exists already", certificate_path.display());
            return Err(CommandError::config(text)
                .hint("to create a new identity, first move the certificate and its key away"));
        }
        let key = if key_path.symlink_metadata().is_ok() {
            let text = String::from_utf8(read_key_file(key_path)?).unwrap_or_default();
            KeyPair::from_pem(&text).map_err(|_| unusable_key(key_path))?
        } else {
            let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)
                .map_err(|error| CommandError::config("make a key").because(error))?;
            files::create_new(key_path, key.serialize_pem().as_bytes(), 0o600)
                .at_setting("create", key_path)?;
            key
        };
        let certificate = certificate_parameters(common_name)
            .self_signed(&key)
            .map_err(|error| CommandError::config("make a certificate").because(error))?;
        files::create_new(certificate_path, certificate.pem().as_bytes(), 0o644)
            .at_setting("create", certificate_path)?;
        Self::load(key_path, certificate_path)
    }

    /// Reads both files and checks that nobody else can read or has planted the key.
    pub fn load(key_path: &Path, certificate_path: &Path) -> Result<Self> {
        let key = PrivateKeyDer::from_pem_slice(&read_key_file(key_path)?)
            // The parser's own message can quote a line of the key.
            .map_err(|_| unusable_key(key_path))?;
        let chain = load_certificates(certificate_path)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = match CertifiedKey::from_der(chain, key, &provider) {
            Ok(certified) => certified,
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(CommandError::config(format!(
                    "the key {} and the certificate {} do not belong together",
                    key_path.display(),
                    certificate_path.display()
                ))
                .hint(
                    "set tls_key and tls_cert to a pair, or move the certificate away and run \
                    `walmgr INI identity`, which creates one for this key",
                ));
            }
            Err(error) => {
                return Err(CommandError::config(format!(
                    "the key {} with the certificate {} cannot be used",
                    key_path.display(),
                    certificate_path.display()
                ))
                .because(error)
                .hint("it has to be an Ed25519, ECDSA or RSA key that TLS 1.3 accepts"));
            }
        };
        let fingerprint = certified
            .end_entity_cert()
            .ok()
            .and_then(Fingerprint::of_certificate)
            .ok_or_else(|| unusable_certificate(certificate_path))?;
        Ok(Identity {
            certified: Arc::new(certified),
            fingerprint,
        })
    }

    /// What the other side knows this identity by.
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The chain and the signing key, as TLS wants them.
    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

/// Every certificate of a PEM file, at least one.
pub(super) fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let file =
        files::open_at_once(path).map_err(|error| cannot_open(path, "certificate", error))?;
    let pem = read_pem(&file).at(Kind::Config, "read", path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| unusable_certificate(path))?;
    if chain.is_empty() {
        return Err(unusable_certificate(path));
    }
    Ok(chain)
}

/// The validity has no edge that a wrong clock could fall off: a machine whose clock battery is
/// flat starts in 1970, and RFC 5280 section 4.1.2.5 keeps 9999 for "does not expire". The
/// certificate is only as long-lived as the line in `authorized_keys` that names its key.
fn certificate_parameters(common_name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.not_before = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(9999, 12, 31);
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters
        .distinguished_name
        .push(DnType::CommonName, common_name);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    parameters
}

/// Opens first and asks the open file, so that nothing can be swapped in between.
fn read_key_file(path: &Path) -> Result<Vec<u8>> {
    // O_NONBLOCK: a FIFO under this name must not hang the archiver.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::options()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(path)
        .map_err(|error| cannot_open(path, "key", error))?;
    let metadata = file.metadata().at(Kind::Config, "examine key", path)?;
    if !metadata.is_file() {
        return Err(CommandError::config(format!(
            "the key {} is not a regular file",
            path.display()
        ))
        .hint(CREATE_HINT));
    }
    refuse_stranger(path, metadata.uid(), rustix::process::geteuid().as_raw())?;
    if metadata.mode() & 0o077 != 0 {
        return Err(CommandError::config(format!(
            "other users can read the key {} (mode {:04o})",
            path.display(),
            metadata.mode() & 0o7777
        ))
        .hint(format!(
            "run `chmod 600 {}`, and create a new identity if another user may have read the key",
            path.display()
        )));
    }
    read_pem(&file).at(Kind::Config, "read key", path)
}

fn refuse_stranger(path: &Path, owner: u32, we: u32) -> Result<()> {
    if owner == we || owner == 0 {
        return Ok(());
    }
    Err(CommandError::config(format!(
        "the key {} belongs to user {owner}, but walmgr runs as user {we}",
        path.display()
    ))
    .hint("run walmgr as the key's owner, or give the key to walmgr's user"))
}

fn read_pem(file: &File) -> io::Result<Vec<u8>> {
    files::read_whole(file, FILE_BYTES_MAX)?.ok_or_else(|| {
        let text = format!("longer than the {FILE_BYTES_MAX} bytes a key or certificate may have");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn cannot_open(path: &Path, what: &str, error: io::Error) -> CommandError {
    let symlink = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    let path = path.display();
    if error.kind() == io::ErrorKind::NotFound {
        CommandError::config(format!("there is no {what} {path}")).hint(CREATE_HINT)
    } else if symlink {
        CommandError::config(format!("the {what} {path} is a symbolic link")).hint(
            "set tls_key to the file itself: anybody who can replace the link can replace \
                the key",
        )
    } else {
        CommandError::config(format!("open {what} {path}"))
            .because(error)
            .hint("run walmgr as the user who owns the file")
    }
}

fn unusable_key(path: &Path) -> CommandError {
    CommandError::config(format!("{} holds no private key in PEM", path.display()))
        .hint("move it away and run `walmgr INI identity`, or set tls_key to another file")
}

fn unusable_certificate(path: &Path) -> CommandError {
    CommandError::config(format!("{} holds no certificate in PEM", path.display()))
        .hint("move it away and run `walmgr INI identity`, or set tls_cert to another file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    struct Pair {
        folder: tempfile::TempDir,
    }

    impl Pair {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Pair { folder }
        }
        fn key(&self) -> PathBuf {
            self.folder.path().join("master.key")
        }
        fn certificate(&self) -> PathBuf {
            self.folder.path().join("master.crt")
        }
        fn create(&self) -> Result<Identity> {
            Identity::create(&self.key(), &self.certificate(), "db1 master")
        }
        fn load(&self) -> Result<Identity> {
            Identity::load(&self.key(), &self.certificate())
        }
        fn refusal(&self) -> String {
            self.load().unwrap_err().to_string()
        }
    }

    #[test]
    fn a_fingerprint_is_read_back_only_as_it_is_written() {
        let text = "SHA256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
        let fingerprint: Fingerprint = text.parse().unwrap();
        assert_eq!(fingerprint.0[31], 31);
        assert_eq!(fingerprint.to_string(), text);
        for wrong in [
            "",
            "SHA256:",
            "sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "SHA256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "SHA256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh",
            "SHA256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9",
            " SHA256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "SHA256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdH-8",
        ] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(InvalidFingerprint));
        }
    }

    #[test]
    fn a_created_identity_loads_with_the_same_fingerprint() {
        let pair = Pair::new();
        let created = pair.create().unwrap();
        assert_eq!(created.fingerprint(), pair.load().unwrap().fingerprint());
        let mode = std::fs::metadata(pair.key()).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn creating_never_overwrites_and_finishes_an_interrupted_run() {
        let pair = Pair::new();
        let fingerprint = pair.create().unwrap().fingerprint();
        let key = std::fs::read(pair.key()).unwrap();
        assert!(pair.create().unwrap_err().to_string().contains("exists"));
        std::fs::remove_file(pair.certificate()).unwrap();
        assert_eq!(pair.create().unwrap().fingerprint(), fingerprint);
        assert_eq!(std::fs::read(pair.key()).unwrap(), key);
    }

    #[test]
    fn a_missing_identity_says_how_to_make_one() {
        let refusal = Pair::new().refusal();
        assert!(refusal.contains("walmgr INI identity"), "{refusal}");
    }

    #[test]
    fn a_key_and_a_certificate_of_two_identities_are_refused() {
        let (one, other) = (Pair::new(), Pair::new());
        one.create().unwrap();
        other.create().unwrap();
        std::fs::copy(other.certificate(), one.certificate()).unwrap();
        let refusal = one.refusal();
        assert!(refusal.contains("do not belong together"), "{refusal}");
    }

    #[test]
    fn fault_95_a_key_open_to_group_or_others_is_refused() {
        let pair = Pair::new();
        pair.create().unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o777] {
            std::fs::set_permissions(pair.key(), PermissionsExt::from_mode(mode)).unwrap();
            let refusal = pair.refusal();
            assert!(refusal.contains("chmod 600"), "{refusal}");
            std::fs::remove_file(pair.certificate()).unwrap();
            assert!(pair.create().is_err(), "mode {mode:o} gets a certificate");
            std::fs::set_permissions(pair.key(), PermissionsExt::from_mode(0o600)).unwrap();
            pair.create().unwrap();
        }
    }

    #[test]
    fn fault_95_a_symlinked_key_is_refused() {
        let pair = Pair::new();
        pair.create().unwrap();
        let elsewhere = pair.folder.path().join("elsewhere");
        std::fs::rename(pair.key(), &elsewhere).unwrap();
        symlink(&elsewhere, pair.key()).unwrap();
        let refusal = pair.refusal();
        assert!(refusal.contains("symbolic link"), "{refusal}");
    }

    #[test]
    fn fault_95_a_key_of_another_user_is_refused() {
        let path = Path::new("master.key");
        assert!(refuse_stranger(path, 1000, 1000).is_ok());
        assert!(refuse_stranger(path, 0, 1000).is_ok());
        let refusal = refuse_stranger(path, 1001, 1000).unwrap_err().to_string();
        assert!(refusal.contains("user 1001"), "{refusal}");
        assert!(refuse_stranger(path, 1001, 0).is_err());
    }

    #[test]
    fn a_fifo_as_certificate_is_refused_at_once() {
        let pair = Pair::new();
        let path = pair.key().with_extension("fifo");
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
        let refusal = load_certificates(&path).unwrap_err();
        assert_eq!(refusal.kind(), Kind::Config, "{refusal}");
    }

    #[test]
    fn fault_95_fifo_folder_or_garbage_as_key_is_refused_at_once() {
        let pair = Pair::new();
        pair.create().unwrap();
        std::fs::remove_file(pair.key()).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            pair.key(),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
        assert!(pair.refusal().contains("not a regular file"));
        std::fs::remove_file(pair.key()).unwrap();
        std::fs::create_dir(pair.key()).unwrap();
        assert!(pair.refusal().contains("not a regular file"));
        std::fs::remove_dir(pair.key()).unwrap();
        for garbage in ["", "secret words", "-----BEGIN PRIVATE KEY-----\nsecret"] {
            files::create_new(&pair.key(), garbage.as_bytes(), 0o600).unwrap();
            let refusal = pair.refusal();
            assert!(refusal.contains("no private key"), "{refusal}");
            assert!(!refusal.contains("secret"), "{refusal}");
            std::fs::remove_file(pair.key()).unwrap();
        }
    }
}
