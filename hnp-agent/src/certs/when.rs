//! From when until when: lifetimes and moments as people type them, and the defaults with their reasons.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::expiry;
use crate::telemetry::{parse_rfc3339, rfc3339};

/// How long before its making a certificate is valid: clocks of two machines are never quite the same, and a
/// certificate is used the second it is there.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);

const DAY: Duration = Duration::from_secs(86_400);
/// A CA is distributed by hand to whoever shall trust it.
pub const CA: Lifetime = Lifetime(DAY.saturating_mul(3650));
/// The key of an intermediate is where certificates are issued, often on a node.
pub const INTERMEDIATE: Lifetime = Lifetime(DAY.saturating_mul(365));
/// Browsers and Apple's clients take no server's certificate for more than 398 days.
pub const SERVER: Lifetime = Lifetime(DAY.saturating_mul(365));
/// Nobody revokes a client's certificate in practice, so it has to end by itself; by hand this is short enough.
pub const CLIENT: Lifetime = Lifetime(DAY.saturating_mul(90));

/// RFC 5280 section 4.1.2.5: what has no end ends then.
const END_OF_TIME: u64 = 253_402_300_799;

/// How long a certificate is to be valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetime(pub Duration);

/// When a certificate is to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Until {
    /// So long from now.
    For(Lifetime),
    /// At a moment.
    Moment(SystemTime),
}

/// The dates of what begins now, in whole seconds.
///
/// # Errors
/// It would end before it begins, or after the year 9999.
pub fn from_now(now: SystemTime, until: Until) -> Result<expiry::Lifetime, String> {
    let end = match until {
        Until::For(Lifetime(length)) => now.checked_add(length),
        Until::Moment(moment) => Some(moment),
    };
    let last = UNIX_EPOCH + Duration::from_secs(END_OF_TIME);
    let end = end.filter(|end| *end <= last).ok_or("a certificate ends in the year 9999 at the latest")?;
    if end <= now {
        return Err(format!("it would have ended already ({}); choose a later end", rfc3339(end)));
    }
    Ok(expiry::Lifetime {
        not_before: whole(now.checked_sub(BACKDATED).unwrap_or(UNIX_EPOCH)),
        not_after: whole(end),
    })
}

/// Certificates know whole seconds only.
fn whole(at: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

impl std::str::FromStr for Lifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is not a lifetime; allowed: a number with a unit, such as 30m, 12h, 90d or 2y")
        };
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let seconds = match unit {
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "y" => 365 * 86_400,
            _ => return Err(wrong()),
        };
        match number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)) {
            Some(length @ 1..=END_OF_TIME) => Ok(Self(Duration::from_secs(length))),
            Some(_) | None => Err(wrong()),
        }
    }
}

/// A moment: `2027-01-31`, `2027-01-31T12:00:00Z`, or `+30d`, from now.
///
/// # Errors
/// Says what is allowed.
pub fn moment(text: &str) -> Result<SystemTime, String> {
    let found = match text.strip_prefix('+') {
        Some(later) => {
            later.parse().ok().and_then(|Lifetime(length)| crate::clock::now().checked_add(length))
        }
        None if text.len() == "2027-01-31".len() => parse_rfc3339(&format!("{text}T00:00:00Z")),
        None => parse_rfc3339(text),
    };
    found.ok_or_else(|| {
        format!(
            "{text:?} is not a moment; allowed: 2027-01-31, 2027-01-31T12:00:00Z (UTC), or +30d (from now)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn lifetimes_and_moments_are_read() {
        let seconds = |text: &str| text.parse::<Lifetime>().map(|Lifetime(length)| length.as_secs());
        assert_eq!(seconds("30m"), Ok(1800));
        assert_eq!(seconds("90d"), Ok(7_776_000));
        assert_eq!(seconds("2y"), Ok(63_072_000));
        for bad in ["", "90", "d", "0d", "1w", "-1d", "1.5d", "99999999999999999999d", "9999999999y"] {
            assert!(seconds(bad).unwrap_err().contains("allowed"), "{bad}");
        }
        assert_eq!(moment("2000-02-29"), Ok(at(951_782_400)));
        assert_eq!(moment("2001-09-09T01:46:40Z"), Ok(at(1_000_000_000)));
        assert!(moment("+1h").unwrap() > SystemTime::now());
        for bad in [
            "",
            "+",
            "+x",
            "2001-02-29",
            "2001-13-01",
            "2001-09-09 01:46:40",
            "2001-09-09T24:00:00Z",
            "tomorrow",
        ] {
            assert!(moment(bad).unwrap_err().contains("allowed"), "{bad}");
        }
    }

    #[test]
    fn a_certificate_begins_a_little_early_and_ends_when_it_should() {
        let now = at(1_000_000_000) + Duration::from_millis(700);
        let validity = from_now(now, Until::For(CLIENT)).unwrap();
        assert_eq!(
            validity,
            expiry::Lifetime { not_before: at(999_999_700), not_after: at(1_000_000_000 + 7_776_000) }
        );
        assert!(from_now(now, Until::Moment(at(999_999_999))).unwrap_err().contains("ended already"));
        assert!(from_now(now, Until::For("8033y".parse().unwrap())).unwrap_err().contains("9999"));
    }
}
