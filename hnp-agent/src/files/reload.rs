//! What a look at changed files means: publish, wait a moment, or keep the old and say so once.
//!
//! Pure: `now` and the content's fingerprint are arguments. Certificate and key are replaced one
//! after the other, so a pair that does not fit is given [`SETTLE`] before it counts as broken;
//! then it is reported once per content, however often it is looked at, and the old one serves on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long content may be broken before it counts: two files written one after the other by `cp`,
/// `kubectl` or a certificate agent are milliseconds apart.
pub const SETTLE: Duration = Duration::from_millis(300);

/// Broken contents that are remembered as reported; a file that goes back and forth between more
/// than these is reported again.
const REMEMBERED: usize = 16;

/// What is known of the files' content. Equal fingerprints mean equal content.
pub type Fingerprint = u64;

/// Why content cannot be used.
pub trait LoadError {
    /// True when the same bytes may be good later (a certificate that is not valid yet), so they
    /// have to be tried again.
    fn may_pass(&self) -> bool;
}

/// What to do after a look.
#[derive(Debug)]
pub enum Step<T, E> {
    /// Nothing changed, or nothing new about it.
    Same,
    /// The new content is good: publish it.
    Publish(T),
    /// The new content is broken and may still be in the middle of a change: look again at this moment.
    LookAgain(Instant),
    /// The new content is broken: keep what is published, count, raise the alarm, log if `first`.
    Refuse {
        /// Why.
        error: E,
        /// Whether this content was not reported before.
        first: bool,
    },
    /// What is published is in the files again: lower the alarm.
    Restored,
}

/// The state between looks.
#[derive(Debug)]
pub struct Reload {
    published: Option<Fingerprint>,
    broken: Option<Broken>,
    reported: VecDeque<Fingerprint>,
}

#[derive(Debug)]
struct Broken {
    content: Fingerprint,
    /// When content other than the published was first seen to be broken.
    since: Instant,
    refused: bool,
    may_pass: bool,
}

impl Default for Reload {
    fn default() -> Self {
        Self::new()
    }
}

impl Reload {
    /// Nothing published yet.
    pub fn new() -> Self {
        Self { published: None, broken: None, reported: VecDeque::new() }
    }

    /// This content is published already.
    pub fn publishing(content: Fingerprint) -> Self {
        Self { published: Some(content), ..Self::new() }
    }

    /// True while the files hold content that was refused.
    pub fn is_failing(&self) -> bool {
        self.broken.as_ref().is_some_and(|broken| broken.refused)
    }

    /// A look at the files: `load` is called when the content has to be judged.
    pub fn look<T, E: LoadError>(
        &mut self,
        now: Instant,
        content: Fingerprint,
        load: impl FnOnce() -> Result<T, E>,
    ) -> Step<T, E> {
        if self.published == Some(content) {
            let was_failing = self.is_failing();
            self.broken = None;
            return if was_failing { Step::Restored } else { Step::Same };
        }
        let judged = self.broken.as_ref().filter(|broken| broken.content == content);
        if judged.is_some_and(|broken| broken.refused && !broken.may_pass) {
            return Step::Same;
        }
        let error = match load() {
            Ok(good) => {
                self.published = Some(content);
                self.broken = None;
                return Step::Publish(good);
            }
            Err(error) => error,
        };
        // Time counts from the content's own first sight: a writer that is still busy changes it.
        let (since, refused) = judged.map_or((now, false), |broken| (broken.since, broken.refused));
        let settled = now.duration_since(since) >= SETTLE;
        self.broken =
            Some(Broken { content, since, refused: refused || settled, may_pass: error.may_pass() });
        match (refused, settled) {
            (true, _) => Step::Same,
            (false, false) => Step::LookAgain(since + SETTLE),
            (false, true) => Step::Refuse { error, first: self.report(content) },
        }
    }

    fn report(&mut self, content: Fingerprint) -> bool {
        let first = !self.reported.contains(&content);
        if first {
            self.reported.truncate(REMEMBERED - 1);
            self.reported.push_front(content);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Wrong {
        Mismatch,
        NotYet,
    }

    impl LoadError for Wrong {
        fn may_pass(&self) -> bool {
            *self == Self::NotYet
        }
    }

    struct Clock(Instant);

    impl Clock {
        fn after(&self, millis: u64) -> Instant {
            self.0 + Duration::from_millis(millis)
        }
    }

    fn good(what: u32) -> impl FnOnce() -> Result<u32, Wrong> {
        move || Ok(what)
    }

    fn bad() -> Result<u32, Wrong> {
        Err(Wrong::Mismatch)
    }

    fn published() -> (Reload, Clock) {
        let (mut reload, clock) = (Reload::new(), Clock(Instant::now()));
        assert!(matches!(reload.look(clock.after(0), 1, good(1)), Step::Publish(1)));
        (reload, clock)
    }

    #[test]
    fn good_content_is_published_once() {
        let (mut reload, clock) = published();
        assert!(matches!(
            reload.look(clock.after(1), 1, || -> Result<u32, Wrong> { panic!("judged twice") }),
            Step::Same
        ));
        assert!(matches!(reload.look(clock.after(2), 2, good(2)), Step::Publish(2)));
    }

    #[test]
    fn a_pair_replaced_file_by_file_is_published_without_an_alarm() {
        let (mut reload, clock) = published();
        let Step::LookAgain(at) = reload.look(clock.after(10), 2, bad) else { panic!() };
        assert_eq!(at, clock.after(310));
        assert!(!reload.is_failing());
        assert!(matches!(reload.look(clock.after(60), 3, good(3)), Step::Publish(3)));
    }

    #[test]
    fn broken_content_is_refused_after_settling_and_reported_once() {
        let (mut reload, clock) = published();
        assert!(matches!(reload.look(clock.after(0), 2, bad), Step::LookAgain(_)));
        assert!(matches!(reload.look(clock.after(299), 2, bad), Step::LookAgain(_)));
        assert!(matches!(
            reload.look(clock.after(300), 2, bad),
            Step::Refuse { error: Wrong::Mismatch, first: true }
        ));
        assert!(reload.is_failing());
        for second in 1..100 {
            assert!(matches!(reload.look(clock.after(300 + second * 1000), 2, bad), Step::Same));
        }
        // Other broken content is reported too, the first one not again.
        assert!(matches!(reload.look(clock.after(200_000), 3, bad), Step::LookAgain(_)));
        assert!(matches!(reload.look(clock.after(200_400), 3, bad), Step::Refuse { first: true, .. }));
        assert!(matches!(reload.look(clock.after(201_000), 2, bad), Step::LookAgain(_)));
        assert!(matches!(reload.look(clock.after(201_400), 2, bad), Step::Refuse { first: false, .. }));
    }

    #[test]
    fn going_back_to_what_serves_lowers_the_alarm() {
        let (mut reload, clock) = published();
        let _ = reload.look(clock.after(0), 2, bad);
        let _ = reload.look(clock.after(400), 2, bad);
        assert!(matches!(reload.look(clock.after(500), 1, bad), Step::Restored));
        assert!(!reload.is_failing());
        assert!(matches!(reload.look(clock.after(600), 1, bad), Step::Same));
    }

    #[test]
    fn a_repair_after_a_refusal_is_published_at_once() {
        let (mut reload, clock) = published();
        let _ = reload.look(clock.after(0), 2, bad);
        let _ = reload.look(clock.after(400), 2, bad);
        assert!(matches!(reload.look(clock.after(500), 3, good(3)), Step::Publish(3)));
        assert!(!reload.is_failing());
    }

    #[test]
    fn what_may_pass_is_tried_again_with_the_same_content() {
        let (mut reload, clock) = published();
        let early = || Err::<u32, _>(Wrong::NotYet);
        let _ = reload.look(clock.after(0), 2, early);
        assert!(matches!(reload.look(clock.after(400), 2, early), Step::Refuse { first: true, .. }));
        assert!(matches!(reload.look(clock.after(1400), 2, early), Step::Same));
        assert!(matches!(reload.look(clock.after(2400), 2, good(2)), Step::Publish(2)));
    }

    #[test]
    fn nothing_published_and_broken_is_refused_too() {
        let (mut reload, clock) = (Reload::new(), Clock(Instant::now()));
        assert!(matches!(reload.look(clock.after(0), 1, bad), Step::LookAgain(_)));
        assert!(matches!(reload.look(clock.after(300), 1, bad), Step::Refuse { first: true, .. }));
        assert!(matches!(reload.look(clock.after(400), 2, good(2)), Step::Publish(2)));
    }

    #[test]
    fn a_writer_that_never_pauses_is_not_reported_and_changes_are_picked_up() {
        let (mut reload, clock) = published();
        for i in 0..50 {
            assert!(matches!(reload.look(clock.after(i * 100), 100 + i, bad), Step::LookAgain(_)));
        }
    }
}
