//! The query of what is asked for: `key=value`, with `&` between them, values percent-encoded.

use crate::percent::percent_decoded;

/// Each key with its value, in the order in which they were written.
///
/// # Errors
/// A value is no percent-encoded text, in words.
pub(super) fn pairs(query: &str) -> Result<Vec<(&str, String)>, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let read = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decoded(value).and_then(|bytes| String::from_utf8(bytes).ok());
        Ok((key, value.ok_or_else(|| format!("the value of {key:?} is no percent-encoded text"))?))
    });
    read.collect()
}
