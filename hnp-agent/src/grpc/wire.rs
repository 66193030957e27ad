//! Protocol Buffers' encoding as far as it is read and written here: numbers, text, bytes and messages.
//!
//! By hand, because that is all there is in the few messages that the agent reads, and because private keys are among them:
//! everything that is read is borrowed from the one buffer it came in. Unknown fields are passed over, as the encoding wants it.

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
    /// A field that must be there is not, or is empty (such as SPIFFE Workload API section 4.5).
    #[error("it has no {0}")]
    Missing(&'static str),
    /// It goes on and on.
    #[error("it has more than {0} entries")]
    TooMany(usize),
}

/// The fields of a message, one after the other.
pub struct Fields<'a>(pub &'a [u8]);

/// A field's value.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Text, bytes, or a message.
    Bytes(&'a [u8]),
    /// A number of up to 64 bits; negative ones are as two's complement.
    Number(u64),
    /// Of a type that none of our fields has.
    Other,
}

impl<'a> Value<'a> {
    /// The bytes of a field.
    ///
    /// # Errors
    /// It is of another type.
    pub fn bytes(self, field: u64) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Other => Err(WireError::Type(field)),
        }
    }

    /// The number in a field.
    ///
    /// # Errors
    /// It is of another type.
    pub fn number(self, field: u64) -> Result<u64, WireError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) | Self::Other => Err(WireError::Type(field)),
        }
    }

    /// The text in a field.
    ///
    /// # Errors
    /// It is of another type, or no UTF-8.
    pub fn text(self, field: u64) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| WireError::Text(field))
    }
}

impl<'a> Fields<'a> {
    /// A field's number and value.
    ///
    /// # Errors
    /// See [`WireError`].
    #[expect(clippy::should_implement_trait, reason = "an iterator of results would go on after an error")]
    pub fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let field = tag >> 3;
        if field == 0 || field >= 1 << 29 {
            return Err(WireError::Number);
        }
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
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

/// Appends a field of text, bytes or a message.
pub fn put(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    let mut length = value.len();
    while length > 0x7f {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(value);
}
