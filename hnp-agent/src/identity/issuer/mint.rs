//! Making certificates: from an intermediate that was judged, keys and leaves that never leave memory.
//!
//! What the intermediate can issue is tried once, when it is loaded, and judged as its peers would; after that a
//! certificate is a new key and one signature.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::certs::key::KeyType;
use crate::certs::names::{self, Name};
use crate::certs::when::{Lifetime, Until};
use crate::certs::{Authority, CertsError, Leaf, Subject, is_self_signed};
use crate::config::plan::Issuer as Plan;
use crate::identity::files::load::{Files, IdentityError, IdentityWarning, Loaded, leaf_info};
use crate::identity::snapshot::{LeafInfo, Origin};
use crate::workload::Account;
use crate::x509;

/// What stands in the subject: the name that counts is the URI. A common name would be cut at 64 characters, and two
/// accounts could have the same.
const ORGANISATION: &str = "O=hnp";

/// An intermediate that can issue for the trust domain.
#[derive(Debug)]
pub struct Mint {
    authority: Authority,
    trust_domain: Arc<str>,
    lifetime: Duration,
}

/// A key and its certificate, as they are presented.
#[derive(Clone, Debug)]
pub struct Minted {
    /// With what stands above the leaf.
    pub certified_key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub leaf: LeafInfo,
}

/// Reads an intermediate and judges it; what is said of it, and what it mints with.
///
/// # Errors
/// A file is not what it should be, or it may not issue for the trust domain.
pub fn load(plan: &Plan, now: SystemTime) -> Result<(Loaded, Mint), IdentityError> {
    of_files(plan, Files::read(&plan.intermediate), now)
}

pub(super) fn of_files(
    plan: &Plan,
    files: Files<'_>,
    now: SystemTime,
) -> Result<(Loaded, Mint), IdentityError> {
    let pair = files.pair()?;
    let path = pair.cert_path.clone();
    let authority = Authority::read((&path, &pair.chain), (&pair.key_path, &pair.keys), now)
        .map_err(|error| IdentityError::CannotIssue(error.to_string()))?;
    let cannot = |why: String| {
        IdentityError::CannotIssue(format!("{}: cannot issue for workloads: {why}", path.display()))
    };
    let mut warnings = pair.warnings;
    let mut judged_by_others = false;
    for certificate in &pair.chain {
        let parsed = x509::parse(certificate).map_err(cannot)?;
        match x509::uri_constraints(&parsed) {
            Some(constraints) if !constraints.allow(&plan.trust_domain) => {
                let domain = &plan.trust_domain;
                return Err(cannot(format!(
                    "the name constraints of {} do not allow URIs of the trust domain {domain}",
                    x509::distinguished_name(parsed.subject())
                )));
            }
            Some(_) => judged_by_others = true,
            None => {}
        }
    }
    let own = authority.certificate();
    let parsed = x509::parse(own).map_err(cannot)?;
    if !matches!(parsed.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign()) {
        let why = "it has no keyUsage with keyCertSign, and strict servers take nothing that it issues; `hnp-agent certs \
                   issue intermediate` makes one that has";
        return Err(cannot(why.into()));
    }
    if matches!(parsed.extended_key_usage(), Ok(Some(usage)) if !usage.value.any && !usage.value.client_auth)
    {
        return Err(cannot("its extendedKeyUsage leaves out clients, and so does all that it issues".into()));
    }
    if is_self_signed(own) {
        warnings.push(IdentityWarning::RootIssues { path: path.clone() });
    } else if authority.path_length() != Some(0) {
        warnings.push(IdentityWarning::PathLength { path: path.clone(), length: authority.path_length() });
    }
    let leaf = leaf_info(own).map_err(cannot)?;
    let mut chain = vec![own.clone()];
    chain.extend(pair.chain.iter().filter(|one| *one != own && !is_self_signed(one)).cloned());
    let certified_key = Arc::new(CertifiedKey::new(chain, Arc::new(SignsCertificatesOnly)));
    let mint = Mint { authority, trust_domain: Arc::clone(&plan.trust_domain), lifetime: plan.lifetime };
    // Servers that know URI constraints judge them; rustls refuses whatever has one.
    if !judged_by_others {
        let probe = mint.workload(&Account { namespace: "probe".into(), name: "probe".into() }, None, now);
        let probe = probe.map_err(|error| cannot(error.to_string()))?;
        mint.authority
            .judged(&probe.certified_key.cert, true, false, None, now)
            .map_err(|error| cannot(error.to_string()))?;
    }
    Ok((Loaded { certified_key, leaf, origin: Origin::File(path), warnings }, mint))
}

impl Mint {
    /// The SPIFFE ID of a service account.
    ///
    /// # Errors
    /// A name in it that is none of Kubernetes': it could make the ID another account's.
    pub fn spiffe_id(&self, account: &Account) -> Result<Name, CertsError> {
        let Account { namespace, name } = account;
        if [namespace, name].iter().any(|part| part.contains('/')) {
            return Err(CertsError::Wrong(format!("{namespace:?} and {name:?} are no names of Kubernetes'")));
        }
        let id = format!("spiffe://{}/ns/{namespace}/sa/{name}", self.trust_domain);
        names::spiffe_id(&id).map_err(CertsError::Wrong)
    }

    /// A client's certificate for a service account, and where that is asked for, one pod of it.
    ///
    /// # Errors
    /// The intermediate has expired, or the account's name cannot stand in a SPIFFE ID.
    pub fn workload(
        &self,
        account: &Account,
        pod_uid: Option<&str>,
        now: SystemTime,
    ) -> Result<Minted, CertsError> {
        let id = self.spiffe_id(account)?;
        let subject = match pod_uid {
            Some(uid) => format!("UID={},{ORGANISATION}", attribute(uid)?).parse(),
            None => ORGANISATION.parse(),
        };
        let subject: Subject = subject.map_err(CertsError::Wrong)?;
        self.leaf(&Leaf { subject: &subject, names: &[id], client: true, server: false }, now)
    }

    /// A server's certificate for some names.
    ///
    /// # Errors
    /// The intermediate has expired, or may not issue for one of the names.
    pub fn server(&self, names: &[Name], now: SystemTime) -> Result<Minted, CertsError> {
        let subject: Subject = ORGANISATION.parse().map_err(CertsError::Wrong)?;
        let minted = self.leaf(&Leaf { subject: &subject, names, client: false, server: true }, now)?;
        for name in names {
            self.authority.judged(&minted.certified_key.cert, false, true, Some(name), now)?;
        }
        Ok(minted)
    }

    fn leaf(&self, leaf: &Leaf<'_>, now: SystemTime) -> Result<Minted, CertsError> {
        const KIND: KeyType = KeyType::P256;
        let key = Zeroizing::new(KIND.generate()?);
        let until = Until::For(Lifetime(self.lifetime));
        let chain = self.authority.certify((&key, KIND), leaf, until, now)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
        let signing = crate::crypto::signing_key(&der)
            .map_err(|error| CertsError::Wrong(format!("the new key cannot be used: {error}")))?;
        let leaf = leaf_info(&chain[0]).map_err(CertsError::Wrong)?;
        Ok(Minted { certified_key: Arc::new(CertifiedKey::new(chain, signing)), leaf })
    }
}

/// A UID as a value of an attribute: nothing in it may mean something there.
fn attribute(uid: &str) -> Result<&str, CertsError> {
    let plain = !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    plain.then_some(uid).ok_or_else(|| CertsError::Wrong(format!("{uid:?} is no pod's UID")))
}

/// An intermediate's key, where a handshake's is expected: it signs certificates, and never a handshake.
#[derive(Debug)]
struct SignsCertificatesOnly;

impl SigningKey for SignsCertificatesOnly {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        None
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}
