//! The same certificate again, with a later end: whatever it said it says still, extension by extension.

use std::path::Path;
use std::time::SystemTime;

use rcgen::{
    CertificateParams, CustomExtension, IsCa, KeyUsagePurpose, PublicKeyData as _, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{GeneralName, X509Certificate, X509Version};

use super::authority::{self, is_self_signed, signs};
use super::issue::{Issued, key_id, sign, usages};
use super::key::{self, KeyType};
use super::names::Name;
use super::when::{self, BACKDATED, Until};
use super::{Authority, CertsError, Subject};
use crate::expiry::Lifetime;
use crate::x509;

/// Extensions that follow from keys: made anew.
const OF_KEYS: [&str; 2] = ["2.5.29.14", "2.5.29.35"];

/// How to renew.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    /// With a key of its own, of the kind it had.
    pub new_key: bool,
    /// When it ends; as long as before, where nothing is said.
    pub until: Option<Until>,
}

/// Makes the first certificate of `old` anew; the others of its file are replaced by what stands above it now.
///
/// # Errors
/// The CA has not issued it or cannot issue now, or what it issues would be refused.
pub fn renew(
    path: &Path,
    old: &[CertificateDer<'static>],
    ca: &Authority,
    how: Renewal,
    now: SystemTime,
) -> Result<Issued, CertsError> {
    let wrong = |why: String| CertsError::Wrong(format!("{}: {why}", path.display()));
    let leaf = &old[0];
    let parsed = x509::parse(leaf).map_err(wrong)?;
    let is_root = is_self_signed(leaf);
    if !signs(&ca.certificate, leaf) {
        return Err(wrong(format!(
            "was issued by \"{}\", and the CA in {} is \"{}\" or has another key; name its own CA with --ca and --ca-key, \
             or have a new one issued",
            x509::distinguished_name(parsed.issuer()),
            ca.path.display(),
            ca.name(),
        )));
    }
    if is_root && how.new_key {
        return Err(wrong("a root with another key is another CA, and nothing that it has issued would be accepted any \
                          more; make a new one with `certs init-ca`, have both trusted for a while, and issue anew".into()));
    }
    let mut validity = match how.until {
        Some(until) => when::from_now(now, until).map_err(wrong)?,
        None => as_long_as(&parsed, now).map_err(wrong)?,
    };
    let mut notes = Vec::new();
    if !is_root {
        notes.extend(ca.clamp(&mut validity));
    }
    let of_old = parsed.public_key();
    let kind = KeyType::of(of_old);
    let new_key = match (how.new_key, kind) {
        (false, _) => None,
        (true, Some(kind)) => Some(kind.generate()?),
        (true, None) => {
            let what = key::describe(of_old);
            return Err(wrong(format!("no new key of its kind ({what}) can be made; have a new one issued")));
        }
    };
    let params = match parsed.version() {
        X509Version::V3 => {
            let mut params = same_extensions(&parsed);
            // OpenSSL's default CA, and so the vendor's recipe.
            if parsed.is_ca() && matches!(parsed.key_usage(), Ok(None)) {
                notes.push(
                    "it had no keyUsage, without which strict verifiers take no CA; it has one now".into(),
                );
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            }
            params
        }
        _ => {
            notes.push(
                "it was an X.509 version 1 certificate; it is one of version 3 now, for clients".into(),
            );
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::ExplicitNoCa;
            (params.key_usages, params.extended_key_usages) =
                usages(true, false, kind.unwrap_or(KeyType::P256));
            params
        }
    };
    let subject = Subject::from_der(parsed.subject().as_raw());
    let certificate = match &new_key {
        Some(key) => {
            let id = key_id(&key.subject_public_key_info());
            sign(params, validity, &subject, (key, &id), &ca.signer)?
        }
        None => {
            let key = SubjectPublicKeyInfo::from_der(of_old.raw).map_err(|_| {
                wrong(format!("its key ({}) is of a kind that cannot be renewed", key::describe(of_old)))
            })?;
            // Whatever it has issued, if it is a CA, refers to the identifier it had.
            sign(params, validity, &subject, (&key, &authority::key_id(&parsed)), &ca.signer)?
        }
    };
    let chain = if is_root {
        std::iter::once(certificate).chain(old[1..].iter().cloned()).collect()
    } else {
        let chain = ca.under(certificate);
        let (client, server) = super::facts::purposes(&x509::parse(&chain[0]).map_err(wrong)?);
        ca.judged(&chain, client, server, first_name(&parsed).as_ref(), now)?;
        chain
    };
    Ok(Issued { chain, key_pem: new_key.as_ref().map(key::to_pem), notes })
}

/// The lifetime it had, beginning now.
fn as_long_as(old: &X509Certificate<'_>, now: SystemTime) -> Result<Lifetime, String> {
    let (from, until) = (x509::moment(old.validity().not_before), x509::moment(old.validity().not_after));
    let length =
        until.duration_since(from).map_err(|_| "ends before it begins; say how long with --lifetime")?;
    let begin = now.checked_sub(BACKDATED).unwrap_or(now);
    let end = begin.checked_add(length).ok_or("its lifetime has no end; say how long with --lifetime")?;
    when::from_now(now, Until::Moment(end))
        .map_err(|why| format!("it was valid for {} in all: {why} with --lifetime", x509::span(length)))
}

/// All extensions as they are, but those that follow from keys.
fn same_extensions(old: &X509Certificate<'_>) -> CertificateParams {
    let mut params = CertificateParams::default();
    for extension in old.extensions() {
        let Some(oid) = extension.oid.iter().map(Iterator::collect::<Vec<u64>>) else { continue };
        if OF_KEYS.contains(&&*extension.oid.to_id_string()) {
            continue;
        }
        let mut same = CustomExtension::from_oid_content(&oid, extension.value.to_vec());
        same.set_criticality(extension.critical);
        params.custom_extensions.push(same);
    }
    params
}

/// A name to be judged by.
fn first_name(certificate: &X509Certificate<'_>) -> Option<Name> {
    x509::alternative_names(certificate).find_map(|name| match name {
        GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
        GeneralName::IPAddress(bytes) => super::facts::address(bytes).map(Name::Ip),
        _ => None,
    })
}
