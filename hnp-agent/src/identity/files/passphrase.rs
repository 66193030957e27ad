//! Private keys behind a passphrase: PKCS#8 with PBES2, as OpenSSL writes it.
//!
//! PBKDF2 or scrypt with AES-CBC (RFC 8018). The older ways are not read: DES and single rounds of MD5 protect nothing,
//! and one command turns a key of theirs into one of this.

use std::path::Path;

use pkcs8::EncryptedPrivateKeyInfo;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use zeroize::Zeroizing;

/// More rounds of PBKDF2 than anybody has: OpenSSL has 2048, and a second's worth is some millions.
const MOST_ROUNDS: u32 = 10_000_000;
/// More memory than anybody has scrypt take, in bytes: OpenSSL has 16 MiB.
const MOST_MEMORY: u64 = 512 << 20;

/// A key's passphrase, overwritten when it is dropped.
pub(crate) struct Passphrase(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Why a key could not be decrypted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum DecryptError {
    /// The passphrase is another key's.
    Wrong,
    /// It is encrypted in a way that is not read; how, in words.
    Unsupported(String),
}

impl Passphrase {
    /// All of a file but the line's end after it; `None` where there is nothing.
    pub(crate) fn of_file(mut bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        let end = bytes.strip_suffix(b"\n").map(|rest| rest.strip_suffix(b"\r").unwrap_or(rest).len());
        if let Some(end) = end {
            bytes.truncate(end);
        }
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// Reads a passphrase file.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn read(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
        crate::files::read_secret(path)
    }

    /// The DER of a private key (PKCS#8), from the DER of an encrypted one.
    ///
    /// # Errors
    /// See [`DecryptError`]. The passphrase of another key is not always told from a broken file: nothing in the format
    /// lets one.
    pub(crate) fn open(&self, encrypted: &[u8]) -> Result<Zeroizing<Vec<u8>>, DecryptError> {
        let unsupported = |what: String| DecryptError::Unsupported(what);
        let info = EncryptedPrivateKeyInfo::try_from(encrypted)
            .map_err(|error| unsupported(format!("its algorithm is not one of PBES2 ({error})")))?;
        let EncryptionScheme::Pbes2(parameters) = &info.encryption_algorithm else {
            return Err(unsupported("it is of PKCS#5 version 1".into()));
        };
        match &parameters.kdf {
            Kdf::Pbkdf2(pbkdf2) if pbkdf2.iteration_count > MOST_ROUNDS => {
                return Err(unsupported(format!("{} rounds of PBKDF2", pbkdf2.iteration_count)));
            }
            Kdf::Scrypt(scrypt) => {
                let memory = u128::from(scrypt.cost_parameter)
                    * u128::from(scrypt.block_size)
                    * u128::from(scrypt.parallelization)
                    * 128;
                if memory > MOST_MEMORY.into() {
                    return Err(unsupported(format!("scrypt over {} MiB", memory >> 20)));
                }
            }
            _ => {}
        }
        match info.decrypt(&*self.0) {
            Ok(document) => Ok(document.to_bytes()),
            Err(pkcs8::Error::EncryptedPrivateKey(
                error @ (pkcs8::pkcs5::Error::UnsupportedAlgorithm { .. }
                | pkcs8::pkcs5::Error::NoPbes1CryptSupport
                | pkcs8::pkcs5::Error::AlgorithmParametersInvalid { .. }),
            )) => Err(unsupported(error.to_string())),
            // The padding does not fit, or what comes out is no key.
            Err(_) => Err(DecryptError::Wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Option<Vec<u8>> {
        Passphrase::of_file(Zeroizing::new(text.into())).map(|one| one.0.to_vec())
    }

    #[test]
    fn one_line_end_is_no_part_of_it_and_all_else_is() {
        for (file, meant) in [
            ("word", "word"),
            ("word\n", "word"),
            ("word\r\n", "word"),
            ("word\n\n", "word\n"),
            (" two words \n", " two words "),
        ] {
            assert_eq!(passphrase(file).as_deref(), Some(meant.as_bytes()), "{file:?}");
        }
        for empty in ["", "\n", "\r\n"] {
            assert_eq!(passphrase(empty), None, "{empty:?}");
        }
        let shown = format!("{:?}", Passphrase::of_file(Zeroizing::new(b"secret".to_vec())));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
