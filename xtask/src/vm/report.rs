//! What a guest's scenarios said: how each ended, and what its kernel lacks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::boot::{Ended, Status};
use crate::libtest::{Outcome, details, outcomes};

/// Something that a kernel lacks, and what follows from it. The test kit writes it, where a scenario
/// asserts what holds instead.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Lack {
    feature: String,
    consequence: String,
}

/// The results of one kernel.
pub(super) struct Report {
    version: String,
    status: Status,
    seconds: u64,
    outcomes: Vec<(String, Outcome)>,
    lacks: BTreeMap<Lack, Vec<String>>,
    /// libtest's account of the failures, as it printed it.
    details: String,
    console: String,
    dir: String,
}

impl Report {
    /// Reads what a guest left.
    pub(super) fn read(version: &str, ended: &Ended) -> Self {
        let read = |file: &str| lossy(&ended.dir.join(file));
        let log = read("run/scenarios.log");
        Self {
            version: version.to_owned(),
            status: ended.status.clone(),
            seconds: ended.took.as_secs(),
            outcomes: outcomes(&log),
            lacks: lacks(&read("run/lacks")),
            details: details(&log).to_owned(),
            console: read("console.log"),
            dir: ended.dir.display().to_string(),
        }
    }

    /// Whether all scenarios ran and hold.
    pub(super) fn is_good(&self) -> bool {
        self.status == Status::Exit(0) && self.count(Outcome::Failed) == 0 && !self.outcomes.is_empty()
    }

    /// One line for the summary.
    pub(super) fn line(&self) -> String {
        let lesser: std::collections::BTreeSet<&String> = self.lacks.values().flatten().collect();
        let mut line = format!(
            "Linux {:<9} {:>4} hold{}, {} failed, {} s",
            self.version,
            self.count(Outcome::Holds),
            if lesser.is_empty() { String::new() } else { format!(" ({} in a lesser form)", lesser.len()) },
            self.count(Outcome::Failed),
            self.seconds
        );
        match self.status {
            Status::Exit(_) => {}
            Status::Died => line.push_str("; THE GUEST DIED before the end"),
            Status::TimedOut => line.push_str("; KILLED AT THE DEADLINE"),
        }
        line
    }

    /// What does not hold as elsewhere, and why; nothing for a kernel that lacks nothing.
    pub(super) fn table(&self) -> String {
        let mut table = String::new();
        for (lack, scenarios) in &self.lacks {
            table.push_str(&format!("  lacks {}: {}\n", lack.feature, lack.consequence));
            for scenario in scenarios {
                table.push_str(&format!("    {scenario}\n"));
            }
        }
        table
    }

    /// What is to be known of a bad end: the failures' own words, or the console's last ones.
    pub(super) fn failures(&self) -> String {
        let mut text = format!("---- Linux {}; all of it is in {}\n", self.version, self.dir);
        match self.status {
            Status::Exit(_) => {
                const ENOUGH: usize = 60_000;
                let cut = self.details.floor_char_boundary(ENOUGH);
                text.push_str(&self.details[..cut]);
                if cut < self.details.len() {
                    text.push_str("\n... and so on, in run/scenarios.log there\n");
                }
            }
            Status::Died | Status::TimedOut => {
                let lines: Vec<&str> = self.console.lines().collect();
                text.push_str("the console's last lines:\n");
                text.push_str(&lines[lines.len().saturating_sub(25)..].join("\n"));
                let last = self.outcomes.last().map_or("none", |(name, _)| name.as_str());
                text.push_str(&format!("\nthe last scenario that ended: {last}\n"));
            }
        }
        text
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.outcomes.iter().filter(|(_, how)| *how == outcome).count()
    }
}

/// Lines of scenario, feature and consequence, with tabulators between them.
fn lacks(text: &str) -> BTreeMap<Lack, Vec<String>> {
    let mut lacks = BTreeMap::<Lack, Vec<String>>::new();
    for line in text.lines() {
        let mut fields = line.split('\t').map(str::to_owned);
        if let (Some(scenario), Some(feature), Some(consequence)) =
            (fields.next(), fields.next(), fields.next())
        {
            let scenarios = lacks.entry(Lack { feature, consequence }).or_default();
            if !scenarios.contains(&scenario) {
                scenarios.push(scenario);
            }
        }
    }
    lacks
}

fn lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LOG: &str = "\nrunning 3 tests\ntest a::one ... ok\ntest a::two ... FAILED\n\
                       test b::three ... ignored, why\n\nfailures:\n\n---- a::two stdout ----\nlost\n";

    fn report(log: &str, status: Status, name: &str) -> Report {
        let dir = std::env::temp_dir().join(format!("hnp-xtask-report-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("run")).expect("temp dir");
        fs::write(dir.join("run/scenarios.log"), log).expect("write");
        fs::write(dir.join("run/lacks"), "a::one\thelper (1.2)\tless\na::one\thelper (1.2)\tless\n")
            .expect("write");
        fs::write(dir.join("console.log"), "panic: no\n").expect("write");
        let ended = Ended { status, took: Duration::from_secs(7), dir: dir.clone() };
        let report = Report::read("1.1.9", &ended);
        fs::remove_dir_all(&dir).expect("clean");
        report
    }

    #[test]
    fn what_the_guest_said_is_counted_and_shown() {
        let report = report(LOG, Status::Exit(101), "said");
        assert!(!report.is_good());
        let line = report.line();
        assert!(line.contains("1 hold (1 in a lesser form), 1 failed, 7 s"), "{line}");
        assert_eq!(report.table(), "  lacks helper (1.2): less\n    a::one\n");
        assert!(report.failures().contains("---- a::two stdout ----\nlost"));
    }

    #[test]
    fn only_a_whole_run_without_a_failure_is_good() {
        let good = "test a::one ... ok\n";
        assert!(report(good, Status::Exit(0), "good").is_good());
        assert!(!report(good, Status::Died, "died").is_good());
        assert!(!report(good, Status::TimedOut, "late").is_good());
        assert!(!report(good, Status::Exit(101), "exit").is_good());
        assert!(!report("", Status::Exit(0), "empty").is_good(), "no scenario ran");
        let died = report(good, Status::Died, "shown").failures();
        assert!(died.contains("panic: no") && died.contains("a::one"), "{died}");
    }
}
