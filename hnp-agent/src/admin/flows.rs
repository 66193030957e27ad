//! `/flows`: who is connected now and what has ended lately.
//!
//! Asked for with a query: `pod`, `route`, `client`, `reason`, `show=live` or `show=recent` (both if left out), `limit`.

use hnp_common::Reason;
use serde_json::{Value, json};

use super::query::pairs;
use crate::telemetry::flows::{RECENT, Wanted};
use crate::telemetry::{Telemetry, rfc3339};

/// The shape of the answer; grows when a field changes its meaning, not when one is added.
const SCHEMA: u32 = 1;
/// Rows of each kind where nobody says how many.
const LIMIT: usize = 100;
/// The most; there may be more live ones.
const MOST: usize = RECENT;

/// Answers a query.
///
/// # Errors
/// What of it cannot be understood, in words.
pub(super) fn answer(telemetry: &Telemetry, query: &str) -> Result<Value, String> {
    let wanted = wanted(query)?;
    let found = telemetry.flows(&wanted);
    Ok(json!({
        "schema": SCHEMA,
        "now": rfc3339(crate::clock::now()),
        "live": found.live,
        "live_matching": found.live_matching,
        "recent": found.recent,
        "recent_matching": found.recent_matching,
    }))
}

fn wanted(query: &str) -> Result<Wanted, String> {
    let mut wanted =
        Wanted { live: true, recent: true, pod: None, route: None, client: None, reason: None, limit: LIMIT };
    for (key, value) in pairs(query)? {
        match key {
            "pod" => wanted.pod = Some(value),
            "route" => wanted.route = Some(value),
            "client" => wanted.client = Some(value),
            "reason" => {
                let named = Reason::ALL.iter().find(|reason| reason.code() == value);
                wanted.reason = Some(*named.ok_or_else(|| {
                    format!("there is no reason {value:?}; `hnp-agent explain` lists them")
                })?);
            }
            "show" => match &*value {
                "live" => wanted.recent = false,
                "recent" => wanted.live = false,
                _ => return Err(format!("show={value}: allowed are live and recent")),
            },
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MOST).contains(limit));
                wanted.limit = limit.ok_or_else(|| format!("limit={value}: allowed are 1 to {MOST}"))?;
            }
            _ => {
                return Err(format!(
                    "there is no filter {key:?}; there are pod, route, client, reason, show and limit"
                ));
            }
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_understood_or_refused_with_words() {
        let all = wanted("").unwrap();
        assert!(all.live && all.recent && all.pod.is_none() && all.limit == LIMIT);
        let one = wanted("pod=team-a%2Fweb&route=m&reason=upstream_refused&show=recent&limit=5").unwrap();
        assert_eq!((one.pod.as_deref(), one.route.as_deref()), (Some("team-a/web"), Some("m")));
        assert_eq!(
            (one.reason, one.live, one.recent, one.limit),
            (Some(Reason::UpstreamRefused), false, true, 5)
        );
        for (bad, word) in [
            ("reason=nonsense", "explain"),
            ("limit=0", "1 to"),
            ("limit=x", "1 to"),
            ("show=all", "live and recent"),
            ("who=x", "pod, route"),
            ("pod=%4", "percent"),
            ("pod=%ff", "percent"),
        ] {
            let words = wanted(bad).unwrap_err();
            assert!(words.contains(word), "{bad}: {words}");
        }
    }
}
