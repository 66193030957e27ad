//! The server name in a client's TLS hello, read without answering it.
//!
//! The bytes stay where they are: whoever lets the connection pass sends them on as they came. rustls
//! reads the hello, over as many records as it takes; a second reading of our own would be a second
//! opinion on who is meant.

use rustls::server::Acceptor;

/// What a hello says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Hello {
    /// The name it asks for (SNI), lower case, without a trailing dot. Of an encrypted hello, the outer one;
    /// the real one, and whether there is one (a client may only pretend), is not for our eyes.
    Name { name: String, encrypted: bool },
    /// It asks for none.
    NoName,
    /// It is none that can be read, with the reader's words.
    Unreadable(String),
}

/// Reads a hello as it comes.
#[derive(Default)]
pub(crate) struct HelloReader {
    acceptor: Acceptor,
    taken: usize,
}

impl HelloReader {
    /// Looks at all bytes so far; `None`: there must be more of it.
    pub(crate) fn look(&mut self, bytes: &[u8]) -> Option<Hello> {
        while self.taken < bytes.len() {
            match self.acceptor.read_tls(&mut &bytes[self.taken..]) {
                Ok(n @ 1..) => self.taken += n,
                Ok(0) => return Some(Hello::Unreadable("a record that does not end".into())),
                Err(error) => return Some(Hello::Unreadable(error.to_string())),
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    return Some(match accepted.client_hello().server_name() {
                        Some(name) => Hello::Name {
                            name: name.trim_end_matches('.').to_ascii_lowercase(),
                            encrypted: is_encrypted(&bytes[..self.taken]),
                        },
                        None => Hello::NoName,
                    });
                }
                Err((error, _)) => return Some(Hello::Unreadable(error.to_string())),
            }
        }
        None
    }
}

/// Whether a hello, in the records it came in, has an Encrypted Client Hello (RFC 9849 section 5). rustls has
/// taken it for a hello before and does not tell; what is not understood here counts as encrypted.
fn is_encrypted(records: &[u8]) -> bool {
    const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
    find_extension(records, ENCRYPTED_CLIENT_HELLO).unwrap_or(true)
}

/// Whether a hello has an extension (RFC 8446 section 4.1.2); `None`: it is not understood.
fn find_extension(mut records: &[u8], wanted: u16) -> Option<bool> {
    let mut handshake = Vec::with_capacity(records.len());
    while !records.is_empty() {
        let _type_and_version = take(&mut records, 3)?;
        handshake.extend_from_slice(take_counted(&mut records, 2)?);
    }
    let mut rest = &handshake[..];
    let _type = take(&mut rest, 1)?;
    let mut hello = take_counted(&mut rest, 3)?;
    let _version_and_random = take(&mut hello, 2 + 32)?;
    let _session_id = take_counted(&mut hello, 1)?;
    let _cipher_suites = take_counted(&mut hello, 2)?;
    let _compression_methods = take_counted(&mut hello, 1)?;
    if hello.is_empty() {
        return Some(false);
    }
    let mut extensions = take_counted(&mut hello, 2)?;
    while !extensions.is_empty() {
        let kind = take(&mut extensions, 2)?;
        let _content = take_counted(&mut extensions, 2)?;
        if kind == wanted.to_be_bytes() {
            return Some(true);
        }
    }
    Some(false)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// What follows its own length, a number of so many bytes.
fn take_counted<'a>(bytes: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let length = take(bytes, size)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    take(bytes, length)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// What a real client sends first.
    fn hello(name: &'static str, sni: bool) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(crate::crypto::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.enable_sni = sni;
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8], step: usize) -> Option<Hello> {
        let mut reader = HelloReader::default();
        (1..=bytes.len().div_ceil(step)).find_map(|n| reader.look(&bytes[..(n * step).min(bytes.len())]))
    }

    /// The same handshake bytes in records of a few bytes each (RFC 8446 section 5.1 allows it).
    fn in_small_records(bytes: &[u8], size: usize) -> Vec<u8> {
        let records = bytes[5..].chunks(size).flat_map(|chunk| {
            let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
            [&bytes[..3], &length, chunk].concat()
        });
        records.collect()
    }

    #[test]
    fn the_name_is_found_however_the_bytes_arrive() {
        let bytes = hello("Docs.Example.test", true);
        let found = Some(Hello::Name { name: "docs.example.test".into(), encrypted: false });
        for step in [1, 7, 100, bytes.len()] {
            assert_eq!(read(&bytes, step), found, "{step} bytes at a time");
            assert_eq!(read(&in_small_records(&bytes, 50), step), found, "small records, {step} at a time");
        }
        assert_eq!(read(&bytes[..bytes.len() - 1], 1), None, "one byte is missing");
    }

    #[test]
    fn no_name_is_told_from_what_is_no_hello() {
        assert_eq!(read(&hello("docs.example.test", false), 64), Some(Hello::NoName));
        assert_eq!(read(&hello("198.18.0.9", true), 64), Some(Hello::NoName), "addresses are not announced");
        for wrong in
            [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16\x03\x01\xff\xff", b"\x16GET / HTTP/1.1\r\n\r\n"]
        {
            let read = read(wrong, wrong.len());
            assert!(matches!(read, Some(Hello::Unreadable(_)) | None), "{wrong:?}: {read:?}");
        }
        assert!(matches!(read(b"\x16\x03\x01\x00\x05hello", 10), Some(Hello::Unreadable(_))));
    }

    #[test]
    fn an_encrypted_hello_is_told_from_a_plain_one() {
        // As a client that only pretends does (GREASE), which nobody can tell from one that does not.
        let suite = rustls::crypto::aws_lc_rs::hpke::ALL_SUPPORTED_SUITES[0];
        let (key, _) = suite.generate_key_pair().unwrap();
        let mode = rustls::client::EchMode::from(rustls::client::EchGreaseConfig::new(suite, key));
        let config = ClientConfig::builder_with_provider(crate::crypto::provider())
            .with_ech(mode)
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = "docs.example.test";
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        let found = Some(Hello::Name { name: name.into(), encrypted: true });
        assert_eq!(read(&bytes, bytes.len()), found);
        assert_eq!(read(&in_small_records(&bytes, 50), 7), found);
    }

    #[test]
    fn what_is_not_understood_counts_as_encrypted() {
        let bytes = hello("docs.example.test", true);
        assert!(!is_encrypted(&bytes));
        for length in 1..bytes.len() {
            assert!(is_encrypted(&bytes[..length]), "{length} bytes of {}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn nothing_a_client_sends_makes_it_panic_or_take_another_name(
            changes in proptest::collection::vec((0_usize..4096, any::<u8>()), 0..6),
            step in 1_usize..300,
        ) {
            let mut bytes = hello("docs.example.test", true);
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            // Whatever it says, it says the same in one piece and in many.
            let whole = HelloReader::default().look(&bytes);
            let name = |hello: &Option<Hello>| match hello {
                Some(Hello::Name { name, encrypted }) => Some((name.clone(), *encrypted)),
                _ => None,
            };
            prop_assert_eq!(name(&whole), name(&read(&bytes, step)));
        }
    }
}
