//! Whether a server's certificate leads to an authority, by webpki, and for the shapes that
//! PostgreSQL's manual makes and webpki does not read, by the rules of RFC 5280 that they need.
//! Never judges names. Invariant: what is not understood and critical, or bounds names, is refused.

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, TrustAnchor,
    UnixTime,
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationOptionsBuilder, anchor_from_trusted_cert,
};
use x509_parser::prelude::{
    ASN1Time, CertificateRevocationList, FromDer, ParsedExtension, X509Certificate,
};
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo, X509Version};

use super::parsed;

/// Certificates between a server's and an authority's: a few are common, OpenSSL stops at 100.
const CHAIN_MAX: usize = 10;

/// It, or one of those that lead to it.
const REVOKED: &str = "the server's certificate is revoked";

/// What servers have to lead to.
#[derive(Debug)]
pub(super) struct Trusted {
    roots: Vec<CertificateDer<'static>>,
    /// With the place of each among the roots.
    anchors: Vec<(usize, TrustAnchor<'static>)>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
}

impl Trusted {
    /// Authorities, and lists of what they have revoked; without lists nothing is revoked.
    pub(super) fn new(
        roots: Vec<CertificateDer<'static>>,
        lists: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Trusted, String> {
        // One of a system's bundle may be odd; one that cannot be read signs for nobody. Nor does a
        // server's own that stands there to be known itself, which webpki does not look at.
        let anchors = roots
            .iter()
            .enumerate()
            .filter(|(_, root)| parsed(root).is_ok_and(|root| may_sign(&root, true, 0)))
            .filter_map(|(at, root)| Some((at, anchor_from_trusted_cert(root).ok()?)));
        let anchors = anchors
            .map(|(at, anchor)| (at, anchor.to_owned()))
            .collect();
        let revoked = lists.iter().map(|list| {
            let read = OwnedCertRevocationList::from_der(list);
            read.map(CertRevocationList::Owned)
                .map_err(|error| format!("sslcrl: a list of revoked certificates: {error}"))
        });
        let revoked = revoked.collect::<Result<_, _>>()?;
        Ok(Trusted {
            roots,
            anchors,
            lists,
            revoked,
        })
    }

    /// Whether the chain holds at this time.
    pub(super) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: UnixTime,
    ) -> Result<(), String> {
        let refused = |error: webpki::Error| {
            match error {
            webpki::Error::UnknownIssuer => {
                "the server's certificate is not signed by an authority in sslrootcert".to_owned()
            }
            webpki::Error::CertRevoked => REVOKED.to_owned(),
            // Debug text of a dozen lines otherwise.
            webpki::Error::UnsupportedSignatureAlgorithmContext(_) => {
                "the server's certificate is signed in a way that is not supported: RSA-PSS needs a salt as \
                 long as its hash (openssl: -sigopt rsa_pss_saltlen:digest)"
                    .to_owned()
            }
            error => format!("the server's certificate is not accepted: {error}"),
        }
        };
        if self.roots.contains(end_entity) {
            return self.by_hand(end_entity, intermediates, algorithms, now);
        }
        let found = self.by_webpki(end_entity, intermediates, algorithms, now);
        match found {
            Ok(()) => Ok(()),
            // `openssl x509 -req` makes version 1, and `openssl req -x509` marks a certificate as
            // an authority's that is a server's as well.
            Err(webpki::Error::UnsupportedCertVersion | webpki::Error::CaUsedAsEndEntity) => {
                self.by_hand(end_entity, intermediates, algorithms, now)
            }
            Err(error) => Err(refused(error)),
        }
    }

    fn by_webpki(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let revoked: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&revoked).ok().map(|options| {
            options
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let anchors: Vec<_> = (self.anchors.iter())
            .filter(|(at, _)| !self.has_revoked_itself(&self.roots[*at], algorithms, now))
            .map(|(_, anchor)| anchor.clone())
            .collect();
        EndEntityCert::try_from(end_entity)?
            .verify_for_usage(
                algorithms,
                &anchors,
                intermediates,
                now,
                KeyUsage::server_auth(),
                revocation,
                None,
            )
            .map(|_| ())
            .map_err(|error| match error {
                webpki::Error::UnknownIssuer if anchors.len() < self.anchors.len() => {
                    webpki::Error::CertRevoked
                }
                error => error,
            })
    }

    fn by_hand(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: UnixTime,
    ) -> Result<(), String> {
        let now = i64::try_from(now.as_secs()).ok();
        let now = now
            .and_then(|now| ASN1Time::from_timestamp(now).ok())
            .ok_or("what time is it?")?;
        let mut current = parsed(end_entity)?;
        may_serve(&current)?;
        let roots: Vec<_> = self
            .roots
            .iter()
            .filter_map(|root| parsed(root).ok())
            .collect();
        let between: Vec<_> = (intermediates.iter().take(CHAIN_MAX))
            .filter_map(|certificate| parsed(certificate).ok())
            .collect();
        let mut der: &[u8] = end_entity;
        for below in 0..CHAIN_MAX {
            check_one(&current, now)?;
            let is_own = current.subject().as_raw() == current.issuer().as_raw();
            // With lists it is for whoever signed it to say that it is not revoked.
            if self.roots.iter().any(|root| root.as_ref() == der)
                && (is_own || self.lists.is_empty())
            {
                return self.check_revoked(&current, &current, algorithms, now);
            }
            let signed = |issuer: &&X509Certificate<'_>| {
                issuer.subject().as_raw() == current.issuer().as_raw()
                    && is_signed(
                        algorithms,
                        Some(&current.signature_algorithm),
                        issuer.public_key(),
                        current.tbs_certificate.as_ref(),
                        &current.signature_value.data,
                    )
            };
            let root = roots
                .iter()
                .find(|root| may_sign(root, true, below) && signed(root));
            let other = || {
                between
                    .iter()
                    .find(|other| may_sign(other, false, below) && signed(other))
            };
            let issuer = root
                .or_else(other)
                .ok_or("the server's certificate is not signed by an authority in sslrootcert")?;
            self.check_revoked(&current, issuer, algorithms, now)?;
            // An authority for clients alone is none for servers.
            may_serve(issuer)?;
            if root.is_some() {
                check_one(issuer, now)?;
                let is_own = issuer.subject().as_raw() == issuer.issuer().as_raw();
                return match is_own {
                    true => self.check_revoked(issuer, issuer, algorithms, now),
                    false => Ok(()),
                };
            }
            let index = between.iter().position(|other| std::ptr::eq(other, issuer));
            der = index.map_or(&[][..], |_| issuer.as_raw());
            current = issuer.clone();
        }
        Err(format!(
            "more than {CHAIN_MAX} certificates lead to the server's"
        ))
    }

    /// webpki does not ask whether an authority still stands for itself; OpenSSL does.
    fn has_revoked_itself(
        &self,
        root: &CertificateDer<'_>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: UnixTime,
    ) -> bool {
        let now = i64::try_from(now.as_secs()).ok();
        let now = now.and_then(|now| ASN1Time::from_timestamp(now).ok());
        match (parsed(root), now) {
            (Ok(root), Some(now)) if root.subject().as_raw() == root.issuer().as_raw() => {
                self.check_revoked(&root, &root, algorithms, now) == Err(REVOKED.to_owned())
            }
            _ => false,
        }
    }

    /// As OpenSSL does once there is a list: whatever no list speaks of is refused.
    fn check_revoked(
        &self,
        certificate: &X509Certificate<'_>,
        issuer: &X509Certificate<'_>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: ASN1Time,
    ) -> Result<(), String> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let lists = self.lists.iter().filter_map(|list| {
            let (_, list) = CertificateRevocationList::from_der(list).ok()?;
            // What is critical in a list says that it does not speak of every certificate.
            let ours = list.issuer().as_raw() == issuer.subject().as_raw()
                && may_revoke(issuer)
                && !list.extensions().iter().any(|it| it.critical)
                && list.next_update().is_some_and(|next| next > now)
                && list.last_update() <= now
                && is_signed(
                    algorithms,
                    Some(&list.signature_algorithm),
                    issuer.public_key(),
                    list.tbs_cert_list.as_ref(),
                    &list.signature_value.data,
                );
            ours.then_some(list)
        });
        let lists: Vec<_> = lists.collect();
        if lists.is_empty() {
            return Err(
                "no list in sslcrl says whether the server's certificate is revoked".to_owned(),
            );
        }
        let revokes = |list: &CertificateRevocationList<'_>| {
            let mut revoked = list.iter_revoked_certificates();
            revoked.any(|revoked| revoked.raw_serial() == certificate.raw_serial())
        };
        match lists.iter().any(revokes) {
            true => Err(REVOKED.to_owned()),
            false => Ok(()),
        }
    }
}

/// Whether the key made the signature. Of the algorithms, those count that are of the key's sort,
/// and of the signature's where a certificate says which that is.
pub(super) fn is_signed(
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    signature_algorithm: Option<&AlgorithmIdentifier<'_>>,
    key: &SubjectPublicKeyInfo<'_>,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let is_of = |id: &[u8], named: &AlgorithmIdentifier<'_>| {
        let oid = named.algorithm.as_bytes();
        // An object identifier of an algorithm takes less than 128 bytes.
        id.first() == Some(&6)
            && id.get(1).map(|len| usize::from(*len)) == Some(oid.len())
            && id[2..].starts_with(oid)
    };
    let fitting = algorithms.iter().filter(|algorithm| {
        is_of(algorithm.public_key_alg_id().as_ref(), &key.algorithm)
            && signature_algorithm
                .is_none_or(|named| is_of(algorithm.signature_alg_id().as_ref(), named))
    });
    let bits = &key.subject_public_key.data;
    let mut fitting = fitting;
    fitting.any(|algorithm| algorithm.verify_signature(bits, message, signature).is_ok())
}

/// What holds for every certificate of a chain.
fn check_one(certificate: &X509Certificate<'_>, now: ASN1Time) -> Result<(), String> {
    if !certificate.validity().is_valid_at(now) {
        let validity = certificate.validity();
        return Err(format!(
            "a certificate of the server's is valid from {} to {}",
            validity.not_before, validity.not_after
        ));
    }
    for extension in certificate.extensions() {
        let known = match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => true,
            ParsedExtension::NameConstraints(_) => {
                return Err(
                    "an authority bounds the names that it signs, which is not supported \
                            with a server's certificate of version 1 or of an authority"
                        .to_owned(),
                );
            }
            _ => false,
        };
        if extension.critical && !known {
            return Err(format!(
                "a certificate demands what is not supported: {}",
                extension.oid
            ));
        }
    }
    Ok(())
}

/// Whether a server may use it.
fn may_serve(certificate: &X509Certificate<'_>) -> Result<(), String> {
    match certificate.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.server_auth || usage.value.any => Ok(()),
        _ => Err("the server's certificate is not for servers".to_owned()),
    }
}

/// Whether it may sign another one with this many below it.
fn may_sign(certificate: &X509Certificate<'_>, is_root: bool, below: usize) -> bool {
    // Version 1 says nothing of what it is for; that it is in sslrootcert does.
    if certificate.version() == X509Version::V1 {
        return is_root;
    }
    let usage = certificate.key_usage();
    let constraints = match certificate.basic_constraints() {
        Ok(Some(constraints)) => constraints.value,
        // OpenSSL takes a root of old that says it by what its key is for.
        Ok(None) => {
            return is_root && matches!(usage, Ok(Some(usage)) if usage.value.key_cert_sign());
        }
        Err(_) => return false,
    };
    let long_enough = constraints
        .path_len_constraint
        .is_none_or(|longest| usize::try_from(longest).is_ok_and(|longest| longest >= below));
    let may = usage.is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    constraints.ca && long_enough && may
}

/// Whether it may say what is revoked.
fn may_revoke(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.key_usage();
    usage.is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
        Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    };

    /// 2027.
    const NOW_S: u64 = 1_800_000_000;

    struct Authority {
        parameters: CertificateParams,
        key: KeyPair,
        der: CertificateDer<'static>,
    }

    fn parameters(name: &str, change: impl Fn(&mut CertificateParams)) -> CertificateParams {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        change(&mut parameters);
        parameters
    }

    fn authority(parameters: &mut CertificateParams) {
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }

    fn root(name: &str, change: impl Fn(&mut CertificateParams)) -> Authority {
        let parameters = parameters(name, change);
        let key = KeyPair::generate().unwrap();
        let der = parameters.self_signed(&key).unwrap().der().clone();
        Authority {
            parameters,
            key,
            der,
        }
    }

    impl Authority {
        fn signs(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> Authority {
            let parameters = parameters(name, change);
            let key = KeyPair::generate().unwrap();
            let issuer = Issuer::from_params(&self.parameters, &self.key);
            let der = parameters.signed_by(&key, &issuer).unwrap().der().clone();
            Authority {
                parameters,
                key,
                der,
            }
        }
    }

    fn check(shown: &[&Authority], root: &Authority) -> Result<(), String> {
        let trusted = Trusted::new(vec![root.der.clone()], Vec::new()).unwrap();
        judge(&trusted, shown)
    }

    fn judge(trusted: &Trusted, shown: &[&Authority]) -> Result<(), String> {
        let between: Vec<_> = shown[1..].iter().map(|other| other.der.clone()).collect();
        let algorithms =
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW_S));
        trusted.check(&shown[0].der, &between, algorithms.all, now)
    }

    /// Each leaf as webpki reads it, and with the mark of an authority, which is read by hand.
    #[test]
    fn a_chain_holds_by_hand_exactly_where_it_holds_by_webpki() {
        let signing = |usages: &[KeyUsagePurpose], parameters: &mut CertificateParams| {
            authority(parameters);
            parameters.key_usages = usages.to_vec();
        };
        let top = root("top", |it| signing(&[KeyUsagePurpose::KeyCertSign], it));
        let other = root("top", authority);
        let between = top.signs("between", authority);
        let below = between.signs("below", authority);
        let mute = top.signs("mute", |it| {
            signing(&[KeyUsagePurpose::DigitalSignature], it)
        });
        let no_authority = top.signs("none", |_| {});
        let short = top.signs("short", |it| {
            it.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        });
        let too_deep = short.signs("deep", authority);
        let for_clients = top.signs("clients", |it| {
            authority(it);
            it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        let server_itself = root("itself", |_| {});
        let bounded = root("bounded", |it| {
            authority(it);
            let permitted_subtrees = vec![GeneralSubtree::DnsName("else.where".to_owned())];
            it.name_constraints = Some(NameConstraints {
                permitted_subtrees,
                excluded_subtrees: Vec::new(),
            });
        });
        let old = |it: &mut CertificateParams| it.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let expired = top.signs("expired", |it| {
            authority(it);
            old(it);
        });
        type Change = fn(&mut CertificateParams);
        let plain: Change = |_| {};
        let client: Change =
            |it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let server: Change =
            |it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let past: Change = |it| it.not_after = rcgen::date_time_ymd(2020, 1, 1);
        for (what, chain, root, change, holds) in [
            ("from the root", &[][..], &top, plain, true),
            ("for servers", &[], &top, server, true),
            ("for clients alone", &[], &top, client, false),
            ("expired", &[], &top, past, false),
            ("over one between", &[&between], &top, plain, true),
            ("over two between", &[&below, &between], &top, plain, true),
            ("with one missing", &[&below], &top, plain, false),
            ("of another root of that name", &[], &other, plain, false),
            ("over a key that may not sign", &[&mute], &top, plain, false),
            ("over a server's", &[&no_authority], &top, plain, false),
            (
                "deeper than one of them lets",
                &[&too_deep, &short],
                &top,
                plain,
                false,
            ),
            ("over an expired one", &[&expired], &top, plain, false),
            ("over one for clients", &[&for_clients], &top, plain, false),
            ("of a server's own", &[], &server_itself, plain, false),
            ("of a root that bounds names", &[], &bounded, plain, false),
        ] {
            // The first of the chain signs; where there is none, the root that is true for this name.
            let signer = chain.first().copied();
            let signer = signer.unwrap_or(if what.contains("another") { &top } else { root });
            for marked in [false, true] {
                let leaf = signer.signs("db", |it| {
                    change(it);
                    if marked {
                        authority(it);
                    }
                });
                let shown: Vec<&Authority> =
                    [&leaf].into_iter().chain(chain.iter().copied()).collect();
                let found = check(&shown, root);
                // webpki does not look at what an authority's key is for.
                let holds = holds || (what.contains("may not sign") && !marked);
                assert_eq!(found.is_ok(), holds, "{what}, marked: {marked}: {found:?}");
            }
        }
    }

    #[test]
    fn a_certificate_that_is_its_own_authority_can_be_revoked() {
        for may_sign_lists in [true, false] {
            let server = root("db", |it| {
                authority(it);
                let lists = may_sign_lists.then_some(KeyUsagePurpose::CrlSign);
                it.key_usages = [KeyUsagePurpose::KeyCertSign]
                    .into_iter()
                    .chain(lists)
                    .collect();
            });
            let (_, own) = X509Certificate::from_der(&server.der).unwrap();
            let serial = rcgen::SerialNumber::from_slice(own.raw_serial());
            for (revoked, holds) in [(None, may_sign_lists), (Some(serial), false)] {
                let revoked = revoked.map(|serial_number| rcgen::RevokedCertParams {
                    serial_number,
                    revocation_time: rcgen::date_time_ymd(2026, 1, 2),
                    reason_code: None,
                    invalidity_date: None,
                });
                let list = rcgen::CertificateRevocationListParams {
                    this_update: rcgen::date_time_ymd(2026, 1, 1),
                    next_update: rcgen::date_time_ymd(2030, 1, 1),
                    crl_number: rcgen::SerialNumber::from(1),
                    issuing_distribution_point: None,
                    revoked_certs: revoked.into_iter().collect(),
                    key_identifier_method: rcgen::KeyIdMethod::Sha256,
                };
                // What rcgen would not sign for a key that may not is signed as for one that may.
                let signer = Issuer::new(parameters("db", authority), &server.key);
                let list = list.signed_by(&signer).unwrap().der().clone();
                let trusted = Trusted::new(vec![server.der.clone()], vec![list]).unwrap();
                let found = judge(&trusted, &[&server]);
                assert_eq!(found.is_ok(), holds, "{found:?}");
            }
        }
    }
}
