//! Where a certificate is refused, the clock may be what is wrong: what is said beside the reason.
//!
//! Once a minute the Date of an upstream's answer is looked at, so that there is something to compare with when no more
//! answers come. Without one, certificates' dates are what there is.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use hnp_common::Reason;
use tokio::time::Instant;

use super::{DialError, Need, PoolKey, Upstreams};
use crate::config::plan::RouteIndex;
use crate::expiry::Lifetime;
use crate::skew::{Clocks, TOLERANCE};
use crate::telemetry::rfc3339;
use crate::workload::Caller;

/// How often an answer's Date is looked at.
const EVERY: Duration = Duration::from_secs(60);

/// What upstreams have said the time is, by route.
pub(super) struct Dates(RefCell<Vec<Dated>>);

#[derive(Clone, Copy, Default)]
struct Dated {
    looked: Option<Instant>,
    /// What an answer said, and when.
    last: Option<(SystemTime, Instant)>,
}

impl Dates {
    pub(super) fn new(routes: usize) -> Self {
        Self(RefCell::new(vec![Dated::default(); routes]))
    }
}

impl Upstreams {
    /// Whether the Date of a route's next answer should be looked at.
    pub fn wants_date(&self, route: RouteIndex) -> bool {
        self.dates.0.borrow()[route].looked.is_none_or(|looked| looked.elapsed() >= EVERY)
    }

    /// Takes note of what time it was at a route's upstream a moment ago; `None`: its answer did not say.
    pub fn dated(&self, route: RouteIndex, date: Option<SystemTime>) {
        let now = Instant::now();
        let dated = &mut self.dates.0.borrow_mut()[route];
        dated.looked = Some(now);
        dated.last = date.map(|date| (date, now)).or(dated.last);
    }

    /// Why a certificate was refused may be a clock: what hints at that, or speaks against it. For other reasons, and where
    /// nothing is known, it is the detail alone.
    pub fn with_dates(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        reason: Reason,
        detail: String,
    ) -> String {
        if !depends_on_dates(reason) {
            return detail;
        }
        match self.key(route, caller, Need::Any) {
            Ok(key) => self.compared(route, &key, reason, detail),
            Err(_) => detail,
        }
    }

    /// The same for what came of a dial with `key`.
    pub(super) fn explained(&self, route: RouteIndex, key: &PoolKey, error: DialError) -> DialError {
        if !depends_on_dates(error.reason) {
            return error;
        }
        DialError { detail: self.compared(route, key, error.reason, error.detail), ..error }
    }

    fn compared(&self, route: RouteIndex, key: &PoolKey, reason: Reason, detail: String) -> String {
        let here = crate::clock::now();
        let last = self.dates.0.borrow()[route].last;
        let clocks = last.map(|(date, at)| Clocks { here, there: date + at.elapsed() });
        let words = words(reason, here, clocks, key.identity.leaf.lifetime());
        if detail.is_empty() { words } else { format!("{detail}; {words}") }
    }
}

fn depends_on_dates(reason: Reason) -> bool {
    matches!(reason, Reason::UpstreamCertificateExpired | Reason::ClientCertificateRefused)
}

/// What is known of the clocks, and of our certificate.
fn words(reason: Reason, here: SystemTime, clocks: Option<Clocks>, ours: Lifetime) -> String {
    let mut all = Vec::new();
    let wrong_here = ours.not_valid_at(here);
    match clocks {
        Some(clocks) if clocks.apart() > TOLERANCE => {
            all.push(format!("{}, by the Date of its last answer: one of them is wrong", clocks.words()));
            if let (Reason::ClientCertificateRefused, Some(why)) = (reason, ours.not_valid_at(clocks.there)) {
                all.push(format!("by its clock our certificate is not valid: {why}"));
            }
        }
        Some(_) => all.push("the two clocks agree, by the Date of its last answer".to_owned()),
        None => {}
    }
    let clock = format!("this node's clock says {}", rfc3339(here));
    match (reason, wrong_here) {
        (Reason::ClientCertificateRefused, Some(why)) => {
            all.push(format!("our certificate is not valid: {why}, and {clock}"));
        }
        (Reason::ClientCertificateRefused, None) if clocks.is_none() => {
            let until = rfc3339(ours.not_after);
            all.push(format!("{clock}, and our certificate is valid until {until}: compare the clocks if dates are why"));
        }
        (_, Some(_)) => all.push(format!(
            "{clock}, and our own certificate is not valid then, either: it is more likely that the clock is wrong"
        )),
        (Reason::UpstreamCertificateExpired, None) if clocks.is_none() => {
            all.push(format!("{clock}, and our own certificate is valid then"));
        }
        (_, None) => {}
    }
    all.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + HOUR * hours
    }

    const OURS: fn() -> Lifetime = || Lifetime { not_before: at(10), not_after: at(20) };

    #[test]
    fn clocks_that_differ_are_named_by_how_much_and_whether_ours_is_valid_there() {
        let apart = Some(Clocks { here: at(12), there: at(22) });
        let said = words(Reason::ClientCertificateRefused, at(12), apart, OURS());
        assert!(
            said.contains("is 10 h behind the upstream's") && said.contains("one of them is wrong"),
            "{said}"
        );
        assert!(
            said.contains("by its clock our certificate is not valid: it has expired at 2027-"),
            "{said}"
        );
        let said = words(Reason::UpstreamCertificateExpired, at(12), apart, OURS());
        assert!(said.contains("10 h behind") && !said.contains("our"), "{said}");
    }

    #[test]
    fn clocks_that_agree_are_no_cause() {
        let agree = Some(Clocks { here: at(12), there: at(12) + TOLERANCE });
        for reason in [Reason::ClientCertificateRefused, Reason::UpstreamCertificateExpired] {
            let said = words(reason, at(12), agree, OURS());
            assert_eq!(said, "the two clocks agree, by the Date of its last answer");
        }
        let said = words(
            Reason::ClientCertificateRefused,
            at(21),
            Some(Clocks { here: at(21), there: at(21) }),
            OURS(),
        );
        assert!(
            said.contains("agree") && said.contains("our certificate is not valid: it has expired at"),
            "{said}"
        );
    }

    #[test]
    fn without_an_answer_certificates_dates_are_what_there_is() {
        let said = |reason, here| words(reason, here, None, OURS());
        let early = said(Reason::UpstreamCertificateExpired, at(1));
        assert!(early.contains("not valid then, either") && early.contains("the clock is wrong"), "{early}");
        let fine = said(Reason::UpstreamCertificateExpired, at(12));
        assert!(fine.contains("this node's clock says 2027-") && fine.contains("is valid then"), "{fine}");
        let ours = said(Reason::ClientCertificateRefused, at(1));
        assert!(ours.contains("it becomes valid only at 2027-"), "{ours}");
        assert!(said(Reason::ClientCertificateRefused, at(12)).contains("compare the clocks"));
    }
}
