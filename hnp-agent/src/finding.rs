//! What a look at something found: one type for all that `hnp-agent doctor` looks at, on the node and beyond it.

use hnp_common::Reason;
use serde_json::{Value, json};

/// How a thing is. In order: the worst of several is the largest.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum State {
    /// As it should be.
    Good,
    /// Not looked at, because something before it does not work, or because there is nothing to look at.
    Skipped,
    /// It works, otherwise or less.
    Degraded,
    /// Something does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What it is about, in one word: `kernel`, `tls`.
    pub area: &'static str,
    /// What was looked at.
    pub what: String,
    /// How it is.
    pub state: State,
    /// What follows from it, and why it is so.
    pub detail: String,
    /// The reason that the access line of a request has which fails of it.
    pub reason: Option<Reason>,
    /// What to do or to type next.
    pub next: Option<String>,
    /// More of what was seen, line by line.
    pub lines: Vec<String>,
    /// The same for machines; null where there is nothing more.
    pub facts: Value,
}

impl State {
    /// The word for people and machines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Skipped => "skipped",
            Self::Degraded => "degraded",
            Self::Bad => "bad",
        }
    }
}

impl Finding {
    /// One without a reason, and nothing to do.
    pub fn new(area: &'static str, what: impl Into<String>, state: State, detail: impl Into<String>) -> Self {
        let (what, detail) = (what.into(), detail.into());
        Self { area, what, state, detail, reason: None, next: None, lines: Vec::new(), facts: Value::Null }
    }

    /// What does not work, for a reason of the one table.
    pub fn bad(
        area: &'static str,
        what: impl Into<String>,
        reason: Reason,
        detail: impl Into<String>,
    ) -> Self {
        Self { reason: Some(reason), ..Self::new(area, what, State::Bad, detail) }
    }

    /// With what to do next.
    #[must_use]
    pub fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// With more of what was seen.
    #[must_use]
    pub fn seen(self, lines: Vec<String>, facts: Value) -> Self {
        Self { lines, facts, ..self }
    }

    /// One object; what it does not have is left out.
    pub fn to_json(&self) -> Value {
        let Self { area, what, state, detail, reason, next, lines: _, facts } = self;
        let mut object = json!({"area": area, "what": what, "state": state.as_str(), "detail": detail});
        if let Some(reason) = reason {
            object["reason"] = reason.code().into();
        }
        if let Some(next) = next {
            object["next"] = next.as_str().into();
        }
        if !facts.is_null() {
            object["facts"] = facts.clone();
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_finding_does_not_have_is_not_in_its_json() {
        let plain = Finding::new("tcp", "192.0.2.1:443", State::Good, "connected").to_json();
        assert_eq!(plain.as_object().unwrap().len(), 4, "{plain}");
        let bad = Finding::bad("tcp", "192.0.2.1:443", Reason::UpstreamRefused, "refused").next("do it");
        let bad = bad.seen(vec!["a line".into()], json!({"ms": 3})).to_json();
        let found = (&bad["state"], &bad["reason"], &bad["next"], &bad["facts"]["ms"]);
        let expected = (&json!("bad"), &json!("upstream_refused"), &json!("do it"), &json!(3));
        assert_eq!(found, expected);
    }

    #[test]
    fn the_worst_is_the_largest() {
        assert!(State::Bad > State::Degraded && State::Degraded > State::Skipped);
        assert!(State::Skipped > State::Good);
    }
}
