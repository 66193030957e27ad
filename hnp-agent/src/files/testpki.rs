//! Certificates for unit tests, made by rcgen.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, SigningKey as _, date_time_ymd,
};

/// A CA of its own.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

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
