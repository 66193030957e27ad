//! Certificates for every case: good, expired, for another name, from another CA, through an
//! intermediate, RSA and EC; and the vendor's own recipe, run by openssl as it stands in the manual.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::pattern::hex;
use crate::tools;

/// The subject of the client certificates that scenarios present, unless they say otherwise.
pub const CLIENT_NAME: &str = "hnp test client";

/// A certificate authority.
#[derive(Debug)]
pub struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
    /// What is sent above a leaf: empty for a root, the intermediates otherwise.
    above: Vec<Certificate>,
}

/// What a leaf should be like; [`Leaf`]s are made from it by [`Ca::issue`].
#[derive(Clone, Debug)]
pub struct Spec {
    common_name: String,
    names: Vec<String>,
    uris: Vec<String>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    rsa: bool,
    /// In these years, from the first day of one to the first of the other.
    years: Option<(i32, i32)>,
    dates: Option<(SystemTime, SystemTime)>,
}

/// A certificate with its chain and key.
#[derive(Debug)]
pub struct Leaf {
    /// Leaf first, in PEM.
    pub chain_pem: String,
    /// PKCS#8, in PEM.
    pub key_pem: String,
    /// The serial in lower-case hexadecimal.
    pub serial: String,
}

impl Spec {
    /// A server's certificate for names and addresses.
    pub fn server(names: &[&str]) -> Self {
        Self {
            common_name: names.first().copied().unwrap_or("nameless").to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            uris: Vec::new(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
            rsa: false,
            years: None,
            dates: None,
        }
    }

    /// A client's certificate.
    pub fn client(common_name: &str) -> Self {
        Self {
            common_name: common_name.to_owned(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
            ..Self::server(&[])
        }
    }

    /// An X.509-SVID: for clients and servers, with these URIs, of which there should be one.
    pub fn svid(ids: &[&str]) -> Self {
        Self {
            common_name: "hnp test workload".to_owned(),
            uris: ids.iter().map(|&id| id.to_owned()).collect(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            ..Self::server(&[])
        }
    }

    /// With its common name also as a DNS name.
    #[must_use]
    pub fn named(mut self) -> Self {
        self.names.push(self.common_name.clone());
        self
    }

    /// With an RSA key of 2048 bits instead of one on P-256.
    #[must_use]
    pub fn rsa(mut self) -> Self {
        self.rsa = true;
        self
    }

    /// Valid in 2020 and never since.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.years = Some((2020, 2021));
        self
    }

    /// Valid only from 2080 on.
    #[must_use]
    pub fn not_yet_valid(mut self) -> Self {
        self.years = Some((2080, 2090));
        self
    }
}

impl Spec {
    /// Valid from one moment to another, in whole seconds.
    #[must_use]
    pub fn valid(mut self, from: SystemTime, to: SystemTime) -> Self {
        self.dates = Some((from, to));
        self
    }
}

impl Ca {
    /// A new root.
    ///
    /// # Panics
    /// When no key can be made.
    pub fn new(name: &str) -> Self {
        let (params, key) = (ca_params(name), KeyPair::generate().expect("P-256 keys can be made"));
        let certificate = params.self_signed(&key).expect("parameters are valid");
        Self { certificate, issuer: Issuer::new(params, key), above: Vec::new() }
    }

    /// An intermediate below this CA; its leaves bring it along in their chain.
    ///
    /// # Panics
    /// When no key can be made.
    pub fn intermediate(&self, name: &str) -> Self {
        let (params, key) = (ca_params(name), KeyPair::generate().expect("P-256 keys can be made"));
        let certificate = params.signed_by(&key, &self.issuer).expect("parameters are valid");
        let above = std::iter::once(certificate.clone()).chain(self.above.iter().cloned()).collect();
        Self { certificate, issuer: Issuer::new(params, key), above }
    }

    /// An intermediate of path length 0 below this CA, with its key: what a node is given to issue with.
    ///
    /// # Panics
    /// When no key can be made.
    pub fn for_node(&self, name: &str) -> Leaf {
        let (mut params, key) = (ca_params(name), KeyPair::generate().expect("P-256 keys can be made"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let serial = fresh_serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&key, &self.issuer).expect("parameters are valid");
        let chain_pem = std::iter::once(&certificate).chain(&self.above).map(Certificate::pem).collect();
        Leaf { chain_pem, key_pem: key.serialize_pem(), serial: hex(&serial) }
    }

    /// Issues a leaf.
    ///
    /// # Panics
    /// When a name is no DNS name.
    pub fn issue(&self, spec: &Spec) -> Leaf {
        let key = if spec.rsa {
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
        } else {
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        };
        let key = key.expect("keys can be made");
        let mut params =
            CertificateParams::new(spec.names.clone()).expect("names are DNS names or addresses");
        params.distinguished_name.push(DnType::OrganizationName, "Example ORG");
        params.distinguished_name.push(DnType::CommonName, &*spec.common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names.extend(
            spec.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("URIs are ASCII"))),
        );
        params.extended_key_usages = spec.usages.clone();
        if let Some((first, last)) = spec.years {
            (params.not_before, params.not_after) = (date_time_ymd(first, 1, 1), date_time_ymd(last, 1, 1));
        }
        if let Some((from, to)) = spec.dates {
            (params.not_before, params.not_after) = (from.into(), to.into());
        }
        let serial = fresh_serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let leaf = params.signed_by(&key, &self.issuer).expect("parameters are valid");
        let chain_pem = std::iter::once(&leaf).chain(&self.above).map(Certificate::pem).collect();
        Leaf { chain_pem, key_pem: key.serialize_pem(), serial: hex(&serial) }
    }

    /// A revocation list of serials in hexadecimal (PEM): made a day ago, good for as long as is said, which may be over.
    ///
    /// # Panics
    /// When a serial is not hexadecimal.
    pub fn crl(&self, serials: &[&str], good_for: Duration) -> String {
        let made = SystemTime::now() - Duration::from_secs(86_400);
        let byte = |pair: &str| u8::from_str_radix(pair, 16).expect("hexadecimal");
        let bytes = |serial: &&str| {
            (0..serial.len()).step_by(2).map(|at| byte(&serial[at..at + 2])).collect::<Vec<_>>()
        };
        let revoked = |serial: &&str| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&bytes(serial)),
            revocation_time: made.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: made.into(),
            next_update: (made + good_for).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).and_then(|list| list.pem()).expect("parameters are valid")
    }

    /// A server's certificate for names and addresses.
    pub fn server(&self, names: &[&str]) -> Leaf {
        self.issue(&Spec::server(names))
    }

    /// A client's certificate named [`CLIENT_NAME`].
    pub fn client(&self) -> Leaf {
        self.issue(&Spec::client(CLIENT_NAME))
    }

    /// The CA's certificate.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// The CA's certificate as rustls takes it.
    pub fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// Writes the certificate to `dir/<stem>.crt`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, dir: &Path, stem: &str) -> PathBuf {
        let path = dir.join(format!("{stem}.crt"));
        fs::write(&path, self.pem()).expect("the world's directory is ours");
        path
    }
}

impl Leaf {
    /// What lies in files, whoever made it.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn of(files: &Files) -> Self {
        let read = |path: &Path| {
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        Self {
            chain_pem: read(&files.certificate),
            key_pem: read(&files.key),
            serial: serial_of(&files.certificate),
        }
    }

    /// Writes `<stem>.crt` and `<stem>.key` into a directory.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write(&self, dir: &Path, stem: &str) -> Files {
        let files =
            Files { certificate: dir.join(format!("{stem}.crt")), key: dir.join(format!("{stem}.key")) };
        fs::write(&files.certificate, &self.chain_pem).expect("the world's directory is ours");
        fs::write(&files.key, &self.key_pem).expect("the world's directory is ours");
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).expect("our own file");
        files
    }

    /// Writes `tls.crt` and `tls.key` as the kubelet does with a secret: a directory for each version below `volume`, and
    /// one rename of a symbolic link. The version is a name that begins with two dots.
    ///
    /// # Panics
    /// When they cannot be written, or the version is there already.
    pub fn mount(&self, volume: &Path, version: &str) {
        let dir = volume.join(version);
        fs::create_dir(&dir).expect("the world's directory is ours");
        self.write(&dir, "tls");
        let previous = fs::read_link(volume.join("..data")).ok();
        symlink(version, volume.join("..data_tmp")).expect("the world's directory is ours");
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("the world's directory is ours");
        match previous {
            Some(previous) => {
                fs::remove_dir_all(volume.join(previous)).expect("the world's directory is ours");
            }
            None => {
                for file in ["tls.crt", "tls.key"] {
                    symlink(Path::new("..data").join(file), volume.join(file)).expect("our own directory");
                }
            }
        }
    }

    /// The chain as rustls takes it.
    ///
    /// # Panics
    /// Never: we wrote the PEM.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .expect("our own PEM")
    }

    /// The key as rustls takes it.
    ///
    /// # Panics
    /// Never: we wrote the PEM.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).expect("our own PEM")
    }
}

/// Where a certificate and its key lie.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Runs the vendor's recipe for a CA and a client certificate in `dir`, word for word: it leaves
/// `ca.crt`, `ca.key`, `client.crt` and `client.key`. With OpenSSL 3.0 the client certificate is
/// X.509 version 1.
///
/// # Panics
/// When openssl is missing or refuses.
pub fn vendor_recipe(dir: &Path) -> Files {
    const RECIPE: &str = r#"set -e
openssl req -x509 -sha256 -nodes -days 9999 -newkey rsa:2048 \
 -subj "/O=Example ORG/CN=CA Cert" -keyout "ca.key" -out "ca.crt"
cat << EOF > "client.cnf"
[req]
default_bits = 2048
prompt = no
default_md = sha256
x509_extensions = v3_req
distinguished_name = dn
[dn]
O = Example ORG
CN = Client
[v3_req]
# empty
EOF
openssl req -new -config "client.cnf" -nodes -out "client.csr" -keyout "client.key"
openssl x509 -req -sha256 -days 9999 -extfile client.cnf -extensions v3_req \
 -CAcreateserial -CA "ca.crt" -CAkey "ca.key" \
 -in "client.csr" -out "client.crt"
"#;
    tools::need("openssl");
    tools::run(dir, "sh", &["-c", RECIPE]);
    Files { certificate: dir.join("client.crt"), key: dir.join("client.key") }
}

/// The first certificate of a file.
///
/// # Panics
/// When the file holds none.
pub fn certificate_of(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a PEM certificate")
}

/// The serial of a certificate file in lower-case hexadecimal.
///
/// # Panics
/// When the file holds no certificate.
pub fn serial_of(certificate: &Path) -> String {
    facts(&certificate_of(certificate)).serial
}

/// The facts of a certificate that a manager records.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// Such as `O=Example ORG, CN=Client`.
    pub subject: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// X.509 version: 1 or 3.
    pub version: u32,
    /// Such as `O=Example ORG, CN=node-1`.
    pub issuer: String,
    /// The URIs among its alternative names.
    pub uris: Vec<String>,
    /// The first moment it is valid.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

/// Reads a certificate's facts.
///
/// # Panics
/// When it is none.
pub fn facts(der: &CertificateDer<'_>) -> Facts {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).expect("a DER certificate");
    let moment = |date: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(date.timestamp()).expect("after 1970");
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    Facts {
        not_before: moment(parsed.validity().not_before),
        not_after: moment(parsed.validity().not_after),
        subject: parsed.subject().to_string(),
        serial: hex(parsed.raw_serial().strip_prefix(&[0]).unwrap_or(parsed.raw_serial())),
        version: parsed.version().0 + 1,
        issuer: parsed.issuer().to_string(),
        uris: uris(&parsed),
    }
}

fn uris(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().expect("a certificate's extensions can be read");
    let names = names.into_iter().flat_map(|extension| &extension.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Example ORG");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Twelve bytes that no other certificate has; positive, without a leading zero.
fn fresh_serial() -> Vec<u8> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel has random UUIDs");
    let digits: Vec<u8> = uuid.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("hex");
    std::iter::once(0x5a).chain(digits.chunks(2).take(11).map(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Ca, Spec, facts};

    #[test]
    fn serials_are_what_the_certificate_says() {
        let ca = Ca::new("root").intermediate("middle");
        let leaf = ca.issue(&Spec::client("somebody"));
        let chain = leaf.chain();
        assert_eq!(chain.len(), 2);
        let facts = facts(&chain[0]);
        assert_eq!(facts.serial, leaf.serial);
        assert_eq!(facts.version, 3);
        assert!(facts.subject.contains("CN=somebody"), "{}", facts.subject);
    }
}
