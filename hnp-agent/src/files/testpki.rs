//! Certificates for unit tests, made by rcgen.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, SigningKey as _, date_time_ymd,
};

/// A CA of its own.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A name of a certificate.
pub(crate) fn uri(uri: &str) -> rcgen::SanType {
    rcgen::SanType::URI(rcgen::string::Ia5String::try_from(uri).unwrap())
}

/// Years a certificate is valid, first and last.
pub(crate) const VALID: (i32, i32) = (2020, 2090);
pub(crate) const EXPIRED: (i32, i32) = (2001, 2002);
pub(crate) const NOT_YET: (i32, i32) = (2089, 2090);

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// An X.509-SVID and its PKCS#8 key, in DER, of now for an hour; `change` it into whatever else it should be.
    pub(crate) fn svid(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, Vec<u8>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![uri(id)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (crate::clock::now() - std::time::Duration::from_secs(60)).into();
        params.not_after = (crate::clock::now() + std::time::Duration::from_secs(3600)).into();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().der().to_vec(), key.serialize_der())
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Its key.
    pub(crate) fn key_pem(&self) -> String {
        self.0.key().serialize_pem()
    }

    /// A signature as on a certificate.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.key().sign(message).unwrap()
    }

    /// A revocation list of these certificates (PEM), good between the first days of two years.
    pub(crate) fn crl(&self, revoked: &[&str], years: (i32, i32)) -> String {
        let of = |pem: &&str| {
            let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let serial = block.parse_x509().unwrap().raw_serial().to_vec();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: date_time_ymd(years.0, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(years.0, 1, 1),
            next_update: date_time_ymd(years.1, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(of).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }

    /// Certificate and key in PEM.
    pub(crate) fn issue(&self, name: &str, years: (i32, i32)) -> (String, String) {
        self.issue_with(name, years, &KeyPair::generate().unwrap())
    }

    pub(crate) fn issue_with(&self, name: &str, years: (i32, i32), key: &KeyPair) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        (params.signed_by(key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}
