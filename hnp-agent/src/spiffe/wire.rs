//! The two messages of the Workload API that are read (`X509SVIDResponse`, `X509BundlesResponse`), in Protocol Buffers' encoding.
//!
//! Everything is borrowed from the one buffer that is overwritten when it is dropped: private keys are among it.

use std::collections::BTreeMap;

use crate::grpc::wire::{Fields, WireError};

/// More SVIDs or bundles than that are no answer that anybody has use for.
const MAX_ENTRIES: usize = 1024;

/// `X509SVIDResponse`.
#[derive(Default)]
pub struct X509Svids<'a> {
    /// Never empty.
    pub svids: Vec<X509Svid<'a>>,
    /// Bundles of other trust domains, by the domain's ID.
    pub federated: BTreeMap<&'a str, &'a [u8]>,
}

/// `X509SVID`. Without `Debug`: it holds a key.
#[derive(Clone, Copy, Default)]
pub struct X509Svid<'a> {
    /// The SPIFFE ID.
    pub id: &'a str,
    /// The chain, leaf first.
    pub chain: &'a [u8],
    /// PKCS#8.
    pub key: &'a [u8],
    /// The bundle of its trust domain.
    pub bundle: &'a [u8],
    /// What it is for; empty: nothing was said.
    pub hint: &'a str,
}

/// `X509BundlesResponse`.
#[derive(Debug, Default)]
pub struct X509Bundles<'a> {
    /// Revocation lists.
    pub crls: Vec<&'a [u8]>,
    /// Bundles by the ID of their trust domain. Never empty.
    pub bundles: BTreeMap<&'a str, &'a [u8]>,
}

impl<'a> X509Svids<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn read(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut all = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => all.svids.push(X509Svid::read(value.bytes(number)?)?),
                3 => entry(&mut all.federated, value.bytes(number)?)?,
                _ => {}
            }
            if all.svids.len() > MAX_ENTRIES || all.federated.len() > MAX_ENTRIES {
                return Err(WireError::TooMany(MAX_ENTRIES));
            }
        }
        if all.svids.is_empty() { Err(WireError::Missing("SVID")) } else { Ok(all) }
    }
}

impl<'a> X509Svid<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut svid = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => svid.id = value.text(number)?,
                2 => svid.chain = value.bytes(number)?,
                3 => svid.key = value.bytes(number)?,
                4 => svid.bundle = value.bytes(number)?,
                5 => svid.hint = value.text(number)?,
                _ => {}
            }
        }
        let there = [
            (svid.id.is_empty(), "SPIFFE ID"),
            (svid.chain.is_empty(), "certificate"),
            (svid.key.is_empty(), "private key"),
            (svid.bundle.is_empty(), "bundle"),
        ];
        match there.into_iter().find(|(missing, _)| *missing) {
            Some((_, what)) => Err(WireError::Missing(what)),
            None => Ok(svid),
        }
    }
}

impl<'a> X509Bundles<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn read(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut all = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => all.crls.push(value.bytes(number)?),
                2 => entry(&mut all.bundles, value.bytes(number)?)?,
                _ => {}
            }
            if all.crls.len() > MAX_ENTRIES || all.bundles.len() > MAX_ENTRIES {
                return Err(WireError::TooMany(MAX_ENTRIES));
            }
        }
        if all.bundles.is_empty() { Err(WireError::Missing("bundle")) } else { Ok(all) }
    }
}

/// Adds an entry of a `map<string, bytes>`: a message of key and value. The last of several wins.
fn entry<'a>(map: &mut BTreeMap<&'a str, &'a [u8]>, bytes: &'a [u8]) -> Result<(), WireError> {
    let (mut key, mut content): (&str, &[u8]) = ("", &[]);
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => key = value.text(number)?,
            2 => content = value.bytes(number)?,
            _ => {}
        }
    }
    map.insert(key, content);
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A field of bytes. The tests' server has another writer than this one (`prost`).
    pub(crate) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        crate::grpc::wire::put(&mut out, number, bytes);
        out
    }

    pub(crate) fn svid(id: &str, chain: &[u8], key: &[u8], hint: &str) -> Vec<u8> {
        let fields = [
            field(1, id.as_bytes()),
            field(2, chain),
            field(3, key),
            field(4, b"bundle"),
            field(5, hint.as_bytes()),
        ];
        field(1, &fields.concat())
    }

    fn bundle(number: u8, domain: &str, der: &[u8]) -> Vec<u8> {
        field(number, &[field(1, domain.as_bytes()), field(2, der)].concat())
    }

    #[test]
    fn svids_are_read_in_their_order_and_what_is_unknown_is_passed_over() {
        let long = vec![7; 300];
        let bytes = [
            svid("spiffe://a/1", &long, b"k1", ""),
            vec![0x78, 0x96, 0x01],                   // field 15, a varint
            vec![0x81, 0x01, 1, 2, 3, 4, 5, 6, 7, 8], // field 16, 64 bits
            vec![0x7d, 1, 2, 3, 4],                   // field 15, 32 bits
            field(15, b"unknown"),
            svid("spiffe://a/2", b"c2", b"k2", "internal"),
            field(2, b"crl"),
            bundle(3, "spiffe://b", b"b"),
        ]
        .concat();
        let read = X509Svids::read(&bytes).unwrap();
        let ids: Vec<_> = read.svids.iter().map(|svid| (svid.id, svid.hint)).collect();
        assert_eq!(ids, [("spiffe://a/1", ""), ("spiffe://a/2", "internal")]);
        assert_eq!((read.svids[0].chain, read.svids[1].key), (&*long, &b"k2"[..]));
        assert_eq!(read.federated.get("spiffe://b"), Some(&&b"b"[..]));
    }

    #[test]
    fn bundles_are_read_by_their_domain() {
        let bytes = [field(1, b"crl"), bundle(2, "spiffe://a", b"A"), bundle(2, "spiffe://b", b"B")].concat();
        let read = X509Bundles::read(&bytes).unwrap();
        assert_eq!(read.crls, [b"crl"]);
        assert_eq!(
            read.bundles.into_iter().collect::<Vec<_>>(),
            [("spiffe://a", &b"A"[..]), ("spiffe://b", b"B")]
        );
    }

    #[test]
    fn what_is_cut_or_lacks_what_it_must_have_is_refused() {
        let whole = [svid("spiffe://a/1", b"c", b"k", "h"), bundle(3, "spiffe://b", b"b")].concat();
        assert!(X509Svids::read(&whole).is_ok());
        for end in 0..whole.len() {
            let cut = X509Svids::read(&whole[..end]).err();
            // Cut between two fields it is a shorter message.
            let first = svid("spiffe://a/1", b"c", b"k", "h").len();
            assert_eq!(cut.is_none(), end == first, "{end}: {cut:?}");
        }
        let error = |bytes: &[u8]| X509Svids::read(bytes).err().unwrap();
        assert_eq!(error(&[]), WireError::Missing("SVID"));
        assert_eq!(error(&svid("", b"c", b"k", "")), WireError::Missing("SPIFFE ID"));
        assert_eq!(error(&svid("i", b"", b"k", "")), WireError::Missing("certificate"));
        assert_eq!(error(&svid("i", b"c", b"", "")), WireError::Missing("private key"));
        assert_eq!(error(&field(1, &field(1, b"\xff"))), WireError::Text(1));
        assert_eq!(error(&[0x08, 1]), WireError::Type(1));
        assert_eq!(error(&[0x0b]), WireError::Type(1));
        assert_eq!(error(&[0x02, 0]), WireError::Number);
        assert_eq!(error(&[0xff; 11]), WireError::Number);
        assert_eq!(error(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), WireError::Short);
        assert_eq!(X509Bundles::read(&[]).err(), Some(WireError::Missing("bundle")));
        let many = bundle(2, "a", b"").repeat(3);
        assert_eq!(X509Bundles::read(&many).unwrap().bundles.len(), 1, "the last one wins");
        let many = field(1, b"").repeat(MAX_ENTRIES + 1);
        assert_eq!(X509Bundles::read(&many).err(), Some(WireError::TooMany(MAX_ENTRIES)));
    }
}
