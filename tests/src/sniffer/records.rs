//! Whether a stream of bytes is TLS: put together from its segments, then followed record by record.

use std::collections::BTreeMap;

/// The longest a record may be: RFC 8446 section 5.2, and RFC 5246 section 6.2.3, which allows more.
const RECORD_MAX: usize = (1 << 14) + 2048;

/// One direction of a TCP connection.
#[derive(Debug)]
pub(super) struct Stream {
    /// The sequence number of the first byte; unknown when the SYN was never seen.
    first: Option<u32>,
    segments: BTreeMap<u32, Vec<u8>>,
}

impl Stream {
    /// A stream whose SYN had this sequence number.
    pub(super) fn from_syn(sequence: u32) -> Self {
        Self { first: Some(sequence.wrapping_add(1)), segments: BTreeMap::new() }
    }

    /// A stream that was there before its SYN could be seen.
    pub(super) fn without_syn() -> Self {
        Self { first: None, segments: BTreeMap::new() }
    }

    /// Whether this SYN is the one that began the stream, once more.
    pub(super) fn began_with(&self, sequence: u32) -> bool {
        self.first == Some(sequence.wrapping_add(1))
    }

    /// Takes a segment's payload.
    pub(super) fn add(&mut self, sequence: u32, payload: &[u8]) {
        if payload.is_empty() {
            return;
        }
        let offset = sequence.wrapping_sub(self.first.unwrap_or(0));
        let known = self.segments.entry(offset).or_default();
        if known.len() < payload.len() {
            *known = payload.to_vec();
        }
    }

    /// Whether it carried anything.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// What is wrong with it, if it is not TLS from its first byte to its last.
    ///
    /// # Errors
    /// In words.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.is_empty() {
            return Ok(());
        }
        if self.first.is_none() {
            return Err("bytes of a connection that was not opened here".to_owned());
        }
        let mut bytes: Vec<u8> = Vec::new();
        for (&offset, segment) in &self.segments {
            let offset = usize::try_from(offset).map_err(|error| error.to_string())?;
            if offset > bytes.len() {
                return Err(format!("bytes from {offset} on, nothing before from {} on", bytes.len()));
            }
            // What was sent again must be what was sent before.
            let again = (bytes.len() - offset).min(segment.len());
            if bytes[offset..offset + again] != segment[..again] {
                return Err(format!("two versions of the bytes from {offset} on"));
            }
            bytes.extend_from_slice(&segment[again..]);
        }
        check_records(&bytes)
    }
}

fn check_records(mut bytes: &[u8]) -> Result<(), String> {
    let mut first = true;
    while !bytes.is_empty() {
        // What was not seen to its end must be right as far as it goes.
        let kinds = if first { 22..=22 } else { 20..=23 };
        let is_record = kinds.contains(&bytes[0])
            && bytes.get(1).is_none_or(|&major| major == 3)
            && bytes.get(2).is_none_or(|&minor| minor <= 4);
        if !is_record {
            return Err(format!("not TLS: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)])));
        }
        let Some(length) = bytes.get(3..5) else { return Ok(()) };
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length == 0 || length > RECORD_MAX {
            return Err(format!("a record of {length} bytes"));
        }
        bytes = bytes.get(5 + length..).unwrap_or_default();
        first = false;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Stream;

    const HELLO: &[u8] = &[22, 3, 1, 0, 3, 1, 2, 3];
    const DATA: &[u8] = &[23, 3, 3, 0, 2, 9, 9];

    fn stream(segments: &[(u32, &[u8])]) -> Stream {
        let mut stream = Stream::from_syn(u32::MAX - 2);
        for (offset, bytes) in segments {
            stream.add((u32::MAX - 1).wrapping_add(*offset), bytes);
        }
        stream
    }

    #[test]
    fn tls_is_known_however_it_is_cut() {
        let all = [HELLO, DATA, DATA].concat();
        for cut in 0..all.len() {
            let (left, right) = all.split_at(cut);
            let at = u32::try_from(cut).expect("small");
            stream(&[(at, right), (0, left)]).check().expect("out of order");
            stream(&[(0, left), (0, &all), (at, right)]).check().expect("sent again");
            stream(&[(0, left)]).check().expect("not seen to its end");
        }
    }

    #[test]
    fn anything_else_is_told() {
        let hello = u32::try_from(HELLO.len()).expect("small");
        let wrong: [&[(u32, &[u8])]; 6] = [
            &[(0, b"GET / HTTP/1.1\r\n")],
            &[(0, DATA)],
            &[(0, HELLO), (hello, b"GET / HTTP/1.1\r\n")],
            &[(hello, DATA)],
            &[(0, HELLO), (2, b"xx")],
            &[(0, &[22, 3, 1, 0xff, 0xff])],
        ];
        for segments in wrong {
            stream(segments).check().expect_err("not TLS");
        }
        let mut older = Stream::without_syn();
        older.add(7, HELLO);
        older.check().expect_err("nobody knows what came before");
    }
}
