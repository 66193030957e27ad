//! How far this node's clock and an upstream's are apart, by the Date of an answer: what doctor and access lines say of it.

use std::time::{Duration, SystemTime};

use crate::proxy::http1::head::Lines;
use crate::telemetry::{parse_rfc3339, rfc3339};
use crate::x509::span;

/// A Date is a second late and an answer some time on its way; certificates that live for minutes are made with
/// allowances of this size.
pub const TOLERANCE: Duration = Duration::from_secs(60);

/// What two clocks said at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clocks {
    /// This node's.
    pub here: SystemTime,
    /// The upstream's.
    pub there: SystemTime,
}

impl Clocks {
    /// How far they are apart.
    pub fn apart(&self) -> Duration {
        self.there.duration_since(self.here).unwrap_or_else(|error| error.duration())
    }

    /// The same in words.
    pub fn words(&self) -> String {
        let word = if self.there < self.here { "ahead of" } else { "behind" };
        format!(
            "this node's clock is {} {word} the upstream's ({} here, {} there)",
            span(self.apart()),
            rfc3339(self.here),
            rfc3339(self.there)
        )
    }
}

/// The Date in an answer's head (RFC 9110 section 5.6.7, the form that servers must write).
pub fn date(head: &[u8]) -> Option<SystemTime> {
    let lines = Lines::cut(head).ok()?;
    let field = lines.fields.iter().find(|field| head[field.name.clone()].eq_ignore_ascii_case(b"date"))?;
    fixdate(std::str::from_utf8(&head[field.value.clone()]).ok()?)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn fixdate(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split(' ').skip(1);
    let (day, month, year, time, zone) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|known| *known == month)? + 1;
    let good = zone == "GMT" && words.next().is_none();
    if good { parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")) } else { None }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn dates_of_answers_are_read() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(fixdate("Sun, 06 Nov 1994 08:49:37 GMT"), at(784_111_777));
        for wrong in [
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "",
        ] {
            assert_eq!(fixdate(wrong), None, "{wrong}");
        }
        assert_eq!(date(b"HTTP/1.1 200 OK\r\ndAte: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"), at(784_111_777));
        assert_eq!(date(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"), None);
    }

    #[test]
    fn what_is_ahead_and_what_is_behind() {
        let (early, late) =
            (UNIX_EPOCH + Duration::from_secs(1_000_000), UNIX_EPOCH + Duration::from_secs(1_010_800));
        let (behind, ahead) = (Clocks { here: early, there: late }, Clocks { here: late, there: early });
        assert!(behind.words().starts_with("this node's clock is 3 h behind the upstream's ("));
        assert!(ahead.words().starts_with("this node's clock is 3 h ahead of the upstream's ("));
        assert_eq!(
            (behind.apart(), ahead.apart()),
            (Duration::from_secs(10_800), Duration::from_secs(10_800))
        );
    }
}
