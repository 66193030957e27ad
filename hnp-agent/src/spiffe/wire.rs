//! The two messages of the Workload API that are read (`X509SVIDResponse`, `X509BundlesResponse`), in Protocol Buffers' encoding.
//!
//! By hand, because they are strings and bytes and nothing else, and because private keys are among them: everything is borrowed
//! from the one buffer that is overwritten when it is dropped. Unknown fields are passed over, as the encoding wants it.

use std::collections::BTreeMap;

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

/// Why bytes are no such message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WireError {
    /// It ends in the middle.
    #[error("it ends in the middle of a field")]
    Short,
    /// A number has more than 64 bits, or a field's is none.
    #[error("it has a number that is none")]
    Number,
    /// A field is of another type than it should be.
    #[error("its field {0} is of another type")]
    Type(u64),
    /// Text that is none.
    #[error("its field {0} is no UTF-8")]
    Text(u64),
    /// A field that must be there is not, or is empty (SPIFFE Workload API section 4.5).
    #[error("it has no {0}")]
    Missing(&'static str),
    /// It goes on and on.
    #[error("it has more than 1024 entries")]
    TooMany,
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
                return Err(WireError::TooMany);
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
                return Err(WireError::TooMany);
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

/// The fields of a message, one after the other.
struct Fields<'a>(&'a [u8]);

#[derive(Clone, Copy)]
enum Value<'a> {
    Bytes(&'a [u8]),
    /// Of a type that none of our fields has.
    Other,
}

impl<'a> Value<'a> {
    fn bytes(self, field: u64) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Other => Err(WireError::Type(field)),
        }
    }

    fn text(self, field: u64) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| WireError::Text(field))
    }
}

impl<'a> Fields<'a> {
    /// A field's number and value.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let field = tag >> 3;
        if field == 0 || field >= 1 << 29 {
            return Err(WireError::Number);
        }
        let value = match tag & 7 {
            0 => {
                self.number()?;
                Value::Other
            }
            1 => {
                self.take(8)?;
                Value::Other
            }
            2 => {
                let length = self.number()?;
                Value::Bytes(self.take(usize::try_from(length).map_err(|_| WireError::Short)?)?)
            }
            5 => {
                self.take(4)?;
                Value::Other
            }
            // Groups, which no message of today has.
            _ => return Err(WireError::Type(field)),
        };
        Ok(Some((field, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Seven bits a byte, the lowest first; the last byte has no high bit.
    fn number(&mut self) -> Result<u64, WireError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(WireError::Number);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(WireError::Number)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A field of bytes. The tests' server has another writer than this one (`prost`).
    pub(crate) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length > 0x7f {
            out.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(bytes);
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
        assert_eq!(X509Bundles::read(&many).err(), Some(WireError::TooMany));
    }
}
