//! The blocks of a PEM file, each with its label and line, so that an error can name the broken one.
//!
//! Text around the blocks is ignored, as OpenSSL does: `openssl x509 -text` writes some, and people
//! add notes. Errors never quote a line of the file: it might be a key.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rustls_pki_types::pem::SectionKind;
use zeroize::{Zeroize as _, Zeroizing};

/// As lenient as OpenSSL about the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The longest label; the longest in use has 23 bytes. Labels stand in errors, and nothing as long as a key may.
const MAX_LABEL: usize = 32;

/// One block: everything from its BEGIN line to its END line.
#[derive(Clone, Debug)]
pub struct Block<'a> {
    /// What stands between `BEGIN` and the dashes, such as `CERTIFICATE`.
    pub label: String,
    /// The line of BEGIN, counted from 1.
    pub line: usize,
    text: &'a [u8],
}

/// What is wrong with a block.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PemError {
    /// The file ends, or another block begins, before the END line.
    #[error("the {label} block in line {line} has no END line: the file is incomplete")]
    NoEnd {
        /// The block's label.
        label: String,
        /// Its BEGIN line.
        line: usize,
    },
    /// What stands between the lines is not base64.
    #[error("the {label} block in line {line} is not base64")]
    NotBase64 {
        /// The block's label.
        label: String,
        /// Its BEGIN line.
        line: usize,
    },
}

/// All blocks of a file, in order.
///
/// # Errors
/// When a block does not end.
pub fn blocks(file: &[u8]) -> Result<Vec<Block<'_>>, PemError> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, usize, usize)> = None;
    let mut at = 0;
    for (index, line) in file.split_inclusive(|b| *b == b'\n').enumerate() {
        let start = at;
        at += line.len();
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii();
        if let Some(label) = marker(line, b"-----BEGIN ") {
            if let Some((label, line, _)) = open {
                return Err(PemError::NoEnd { label, line });
            }
            open = Some((label, index + 1, start));
        } else if let Some(end) = marker(line, b"-----END ")
            && open.as_ref().is_some_and(|(label, _, _)| *label == end)
            && let Some((label, line, start)) = open.take()
        {
            blocks.push(Block { label, line, text: &file[start..at] });
        }
    }
    match open {
        Some((label, line, _)) => Err(PemError::NoEnd { label, line }),
        None => Ok(blocks),
    }
}

/// The labels of a file's blocks in words, for errors: `found CERTIFICATE (line 1)`.
pub fn found(blocks: &[Block<'_>]) -> String {
    if blocks.is_empty() {
        return "found no PEM block".into();
    }
    let list: Vec<String> =
        blocks.iter().take(8).map(|block| format!("{} (line {})", block.label, block.line)).collect();
    format!("found {}", list.join(", "))
}

impl Block<'_> {
    /// The DER inside, and its kind; `None` for labels this program has no use for. No other copy of it is left in
    /// memory: it may be a key.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn decode(&self) -> Result<Option<(SectionKind, Vec<u8>)>, PemError> {
        let Ok(kind) = SectionKind::try_from(self.label.as_bytes()) else { return Ok(None) };
        Ok(Some((kind, self.der()?)))
    }

    /// The DER inside, whatever the label.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn der(&self) -> Result<Vec<u8>, PemError> {
        let broken = || PemError::NotBase64 { label: self.label.clone(), line: self.line };
        let mut text = Zeroizing::new(Vec::with_capacity(self.text.len()));
        let mut lines = self.text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).skip(1);
        // Blanks around lines are allowed, as OpenSSL does.
        text.extend(lines.by_ref().take_while(|line| !line.starts_with(b"-----END ")).flatten());
        // Of this size from the start: a buffer that grows leaves its former self behind.
        let mut der = vec![0; text.len() / 4 * 3 + 3];
        match BASE64.decode_slice(&**text, &mut der) {
            Ok(length) => der.truncate(length),
            Err(_) => {
                der.zeroize();
                return Err(broken());
            }
        }
        Ok(der)
    }

    /// True when the block is encrypted in the old way, with `Proc-Type` headers.
    pub fn has_encryption_headers(&self) -> bool {
        self.text.windows(b"ENCRYPTED".len()).any(|window| window == b"ENCRYPTED")
            && self.text.windows(b"Proc-Type:".len()).any(|window| window == b"Proc-Type:")
    }
}

/// The label of a BEGIN or END line.
fn marker(line: &[u8], begin: &[u8]) -> Option<String> {
    let label = line.strip_prefix(begin)?.strip_suffix(b"-----")?;
    let good = !label.is_empty()
        && label.len() <= MAX_LABEL
        && label.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b' ');
    good.then(|| String::from_utf8_lossy(label).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    #[test]
    fn text_around_blocks_crlf_indents_and_byte_order_marks_do_not_matter() {
        for text in [
            BODY.to_owned(),
            format!("subject=CN = x\n-----not a marker-----\n{BODY}\nbye"),
            BODY.replace('\n', "\r\n"),
            BODY.replace("-----BEGIN", "  -----BEGIN").replace("MAA", "  MAA"),
            format!("\u{feff}{BODY}"),
            BODY.trim_end().to_owned(),
            format!("{BODY}-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"),
        ] {
            let blocks = blocks(text.as_bytes()).unwrap();
            assert_eq!(blocks[0].label, "CERTIFICATE", "{text:?}");
            let (kind, der) = blocks[0].decode().unwrap().unwrap();
            assert_eq!((kind, der), (SectionKind::Certificate, vec![0x30, 0]), "{text:?}");
        }
    }

    #[test]
    fn a_broken_block_is_named_by_label_and_line() {
        let half = format!("{BODY}-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n");
        let error = blocks(half.as_bytes()).unwrap_err();
        assert_eq!(error, PemError::NoEnd { label: "PRIVATE KEY".into(), line: 4 });
        let twice = format!("-----BEGIN CERTIFICATE-----\n{BODY}");
        assert_eq!(
            blocks(twice.as_bytes()).unwrap_err(),
            PemError::NoEnd { label: "CERTIFICATE".into(), line: 1 }
        );
        let garbled = BODY.replace("MAA=", "secret!!");
        let error = blocks(garbled.as_bytes()).unwrap()[0].decode().unwrap_err();
        assert_eq!(error, PemError::NotBase64 { label: "CERTIFICATE".into(), line: 1 });
        assert!(!error.to_string().contains("secret"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), cut in 0..60usize) {
            let mut file = bytes;
            file.extend_from_slice(&BODY.as_bytes()[..BODY.len() - cut]);
            if let Ok(blocks) = blocks(&file) {
                for block in &blocks {
                    let _ = block.decode();
                }
                let _ = found(&blocks);
            }
        }
    }
}
