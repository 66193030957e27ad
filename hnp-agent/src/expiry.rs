//! How far a certificate's lifetime is over, and what is said when.
//!
//! Whatever renews certificates does so long before the end: cert-manager after two thirds, people with a calendar some
//! weeks before. Half the lifetime is worth a line, three quarters a warning, because what was to renew it has not.
//! Pure: `now` is an argument.

use std::time::{Duration, SystemTime};

use crate::identity::snapshot::Origin;
use crate::telemetry::rfc3339;
use crate::x509::span;

/// The dates between which a certificate is valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetime {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

/// How much of a lifetime is over.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// Half of it.
    Half,
    /// Three quarters.
    ThreeQuarters,
    /// Nine tenths.
    NineTenths,
    /// All.
    Expired,
}

impl Stage {
    /// Half a lifetime is how it should be; later somebody has to look.
    pub fn is_warning(self) -> bool {
        self > Self::Half
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Half => "half of its lifetime is over",
            Self::ThreeQuarters => "three quarters of its lifetime are over",
            Self::NineTenths => "nine tenths of its lifetime are over",
            Self::Expired => "it has expired",
        }
    }
}

impl Lifetime {
    /// Why a moment is outside of it, if it is.
    pub fn not_valid_at(&self, now: SystemTime) -> Option<String> {
        if now < self.not_before {
            return Some(format!("it becomes valid only at {}", rfc3339(self.not_before)));
        }
        (now > self.not_after).then(|| format!("it has expired at {}", rfc3339(self.not_after)))
    }

    /// What is over at `now`; `None` before half of it.
    pub fn stage(&self, now: SystemTime) -> Option<Stage> {
        if now > self.not_after {
            return Some(Stage::Expired);
        }
        let whole = self.not_after.duration_since(self.not_before).ok()?.as_secs_f64();
        let over = now.duration_since(self.not_before).ok()?.as_secs_f64() / whole;
        let stages = [(0.9, Stage::NineTenths), (0.75, Stage::ThreeQuarters), (0.5, Stage::Half)];
        stages.into_iter().find(|(share, _)| over >= *share).map(|(_, stage)| stage)
    }
}

/// A certificate in use, and what was said of it. One for each generation.
#[derive(Clone, Debug)]
pub struct Expiry {
    certificate: Certificate,
    lifetime: Lifetime,
    said: Option<Stage>,
}

/// Which certificate, for people.
#[derive(Clone, Debug)]
enum Certificate {
    /// An identity's leaf, from there.
    Leaf(Origin),
    /// A root, of this name, from there.
    Root { name: String, origin: String },
}

impl Expiry {
    /// Of an identity's certificate.
    pub fn of_leaf(origin: &Origin, lifetime: Lifetime) -> Self {
        Self { certificate: Certificate::Leaf(origin.clone()), lifetime, said: None }
    }

    /// Of a root; `origin` is the file or directory it was in.
    pub fn of_root(name: &str, origin: &str, lifetime: Lifetime) -> Self {
        let certificate = Certificate::Root { name: name.to_owned(), origin: origin.to_owned() };
        Self { certificate, lifetime, said: None }
    }

    /// A stage that was reached and not said yet, with the words for it. Each is said once, and those that were skipped
    /// never.
    pub fn look(&mut self, now: SystemTime) -> Option<(Stage, String)> {
        let stage = self.lifetime.stage(now)?;
        if self.said.is_some_and(|said| said >= stage) {
            return None;
        }
        self.said = Some(stage);
        Some((stage, self.words(stage, now)))
    }

    fn words(&self, stage: Stage, now: SystemTime) -> String {
        let end = match self.lifetime.not_after.duration_since(now) {
            Ok(left) => format!("it ends in {}", span(left)),
            Err(over) => format!("it ended {} ago", span(over.duration().max(Duration::from_secs(1)))),
        };
        let over = stage.as_str();
        match &self.certificate {
            Certificate::Leaf(Origin::File(path)) => {
                let path = path.display();
                format!(
                    "{path}: {over}, and {end}; see that whatever renews it does, or renew it (hnp-agent certs renew {path} \
                     --ca CA.crt --ca-key CA.key)"
                )
            }
            Certificate::Leaf(origin @ Origin::WorkloadApi { .. }) => format!(
                "{origin}: {over}, and {end}; the SPIRE agent should have given out another by now: see its log, and \
                 whether it reaches its server"
            ),
            Certificate::Root { name, origin } => format!(
                "{origin}: the root {name}: {over}, and {end}; add its successor beside it before that (hnp-agent certs \
                 inspect {origin} shows what is there)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn file() -> Origin {
        Origin::File("/c.crt".into())
    }

    const HOUR: fn() -> Lifetime = || Lifetime { not_before: at(0), not_after: at(3600) };

    #[test]
    fn each_stage_is_said_once_and_the_last_one_first_where_some_were_skipped() {
        let mut expiry = Expiry::of_leaf(&file(), HOUR());
        let mut said = Vec::new();
        for second in (0..4000).step_by(10) {
            said.extend(expiry.look(at(second)).map(|(stage, _)| (second, stage)));
        }
        let expected = [
            (1800, Stage::Half),
            (2700, Stage::ThreeQuarters),
            (3240, Stage::NineTenths),
            (3610, Stage::Expired),
        ];
        assert_eq!(said, expected);
        assert_eq!(expected.map(|(_, stage)| stage.is_warning()), [false, true, true, true]);
        let mut late = Expiry::of_leaf(&file(), HOUR());
        assert_eq!(late.look(at(3300)).unwrap().0, Stage::NineTenths);
        assert_eq!(late.look(at(3301)), None);
        // A clock that is put back says nothing twice.
        assert_eq!(late.look(at(2000)), None);
    }

    #[test]
    fn a_line_names_the_file_what_is_left_and_the_next_command() {
        let (_, words) = Expiry::of_leaf(&file(), HOUR()).look(at(2700)).unwrap();
        assert!(
            words.starts_with("/c.crt: three quarters of its lifetime are over, and it ends in 15 min;")
                && words.contains("hnp-agent certs renew /c.crt"),
            "{words}"
        );
        let (_, words) = Expiry::of_root("CN=CA", "/ca.crt", HOUR()).look(at(4200)).unwrap();
        assert!(
            words.starts_with("/ca.crt: the root CN=CA: it has expired, and it ended 10 min ago;"),
            "{words}"
        );
    }

    #[test]
    fn dates_that_make_no_sense_are_no_stage_before_the_end() {
        let turned = Lifetime { not_before: at(3600), not_after: at(0) };
        assert_eq!((turned.stage(at(0)), turned.stage(at(1))), (None, Some(Stage::Expired)));
        let moment = Lifetime { not_before: at(5), not_after: at(5) };
        assert_eq!((moment.stage(at(4)), moment.stage(at(6))), (None, Some(Stage::Expired)));
        assert_eq!(HOUR().stage(at(0)), None);
    }
}
