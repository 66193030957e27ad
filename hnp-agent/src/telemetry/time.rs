//! RFC 3339 in UTC with milliseconds, without a calendar library: the one format the logs need, and its reading.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Appends `2026-11-21T03:04:05.678Z`. Moments before 1970 are written as 1970.
pub(super) fn write_rfc3339(out: &mut Vec<u8>, at: SystemTime) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let milli = since.subsec_millis();
    use std::io::Write as _;
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
        .expect("a Vec takes every write");
}

/// Reads `2026-11-21T03:04:05Z`, with or without a fraction; `None` for anything else, other zones included.
pub(super) fn read_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let numbers = |text: &str, between: char, widths: [usize; 3]| {
        let parts: Vec<&str> = text.split(between).collect();
        let good =
            |(part, width): (&&str, usize)| part.len() == width && part.bytes().all(|b| b.is_ascii_digit());
        let good = parts.len() == 3 && parts.iter().zip(widths).all(good);
        let number = |at: usize| parts[at].parse::<u64>().ok();
        if good { Some((number(0)?, number(1)?, number(2)?)) } else { None }
    };
    let (year, month, day) = numbers(date, '-', [4, 2, 2])?;
    let (hour, minute, second) = numbers(time, ':', [2, 2, 2])?;
    let good_fraction = (1..=9).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    if hour > 23 || minute > 59 || second > 59 || year < 1970 || !good_fraction {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    // The calendar is known in one direction; a guess at New Year is a day wrong at most.
    let guess = (year - 1970) * 365 + (year - 1969) / 4 - (year - 1901) / 100 + (year - 1601) / 400;
    let new_year = (guess.saturating_sub(2)..=guess + 2).find(|day| civil_from_days(*day) == (year, 1, 1))?;
    let day = (new_year..new_year + 366).find(|at| civil_from_days(*at) == (year, month, day))?;
    let seconds = day * 86_400 + hour * 3600 + minute * 60 + second;
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// Days since 1970-01-01 to year, month, day of the proleptic Gregorian calendar. Counts from
/// 0000-03-01, so that the leap day is the last one of a year.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01 to 1970-01-01
    let era = days / 146_097; // 400 years
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // 0 is March
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(millis: u64) -> String {
        let mut out = Vec::new();
        write_rfc3339(&mut out, UNIX_EPOCH + Duration::from_millis(millis));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(text(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(text(1_709_164_800_000), "2024-02-29T00:00:00.000Z");
        assert_eq!(text(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(text(1_000_000_000_123), "2001-09-09T01:46:40.123Z");
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_else() {
        for day in (0..2_900_000).step_by(97) {
            let at = UNIX_EPOCH + Duration::from_millis(day * 86_400_000 + day);
            assert_eq!(read_rfc3339(&text(day * 86_400_000 + day)), Some(at));
        }
        assert_eq!(read_rfc3339("2000-02-29T23:59:59Z"), Some(UNIX_EPOCH + Duration::from_secs(951_868_799)));
        for bad in [
            "2001-02-29T00:00:00Z",
            "2001-2-1T00:00:00Z",
            "2001-02-01T00:00:60Z",
            "2001-02-01T00:00:00",
            "2001-02-01T00:00:00+01:00",
            "2001-02-01T00:00:00.Z",
            "1969-12-31T00:00:00Z",
            "2001-00-01T00:00:00Z",
            "Z",
        ] {
            assert_eq!(read_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = civil_from_days(0);
        for day in 1..60_000 {
            let now = civil_from_days(day);
            let next_day = now.0 == before.0 && now.1 == before.1 && now.2 == before.2 + 1;
            let next_month = now.2 == 1 && (now.0 * 12 + now.1) == (before.0 * 12 + before.1) + 1;
            assert!(next_day || next_month, "{before:?} {now:?}");
            before = now;
        }
    }
}
