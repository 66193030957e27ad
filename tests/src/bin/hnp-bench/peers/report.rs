//! Figures of rounds -> a table, what is reached and what is not, and how much to believe it.

use std::fmt;

use serde::Serialize;

use super::proxies::{Key, Kind, Program};
use crate::figures::{median, quantile};

/// hnp's own column.
pub(super) const HNP: &str = "hnp";
/// The column of clients that need no proxy.
pub(super) const OWN_TLS: &str = "own TLS";
/// Of the first column of the table.
const WIDTH: usize = 60;

/// What a figure is aimed at.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aim {
    /// Of the best of the others.
    Ratio(f64),
    /// In the figure's unit.
    AtMost(f64),
}

/// One figure of all that were compared. Less is better, always.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    /// The client certificate's key, where it was a part of it.
    pub(crate) key: Option<Key>,
    pub(crate) aim: Option<Aim>,
    pub(crate) columns: Vec<Column>,
    /// The best of the others.
    pub(crate) best: &'static str,
    /// hnp's part of the best, as in its column.
    pub(crate) ratio: f64,
    /// Lower and upper quartile of them.
    pub(crate) quartiles: (f64, f64),
    /// Whether the aim is reached.
    pub(crate) reached: Option<bool>,
}

/// What one of them took.
#[derive(Debug, Serialize)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) rounds: Vec<f64>,
    pub(crate) median: f64,
    /// Of the best of the others than hnp: the median of the rounds' ratios.
    pub(crate) ratio: f64,
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) rows: Vec<Row>,
}

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Stunnel => "stunnel",
            Self::Hnp => HNP,
        }
    }
}

impl Row {
    pub(super) fn new(kind: Kind, what: String, unit: &'static str) -> Self {
        Self {
            kind,
            what,
            unit,
            key: None,
            aim: None,
            columns: Vec::new(),
            best: "",
            ratio: f64::NAN,
            quartiles: (f64::NAN, f64::NAN),
            reached: None,
        }
    }

    #[must_use]
    pub(super) fn with(mut self, key: Option<Key>, aim: Option<Aim>) -> Self {
        (self.key, self.aim) = (key, aim);
        self
    }

    /// What it measures, and with which certificate.
    pub(super) fn name(&self) -> String {
        let key = self.key.map(|key| if key == Key::Rsa { " (RSA-2048)" } else { " (P-256)" });
        format!("{}{}", self.what, key.unwrap_or_default())
    }

    fn is_own_tls(&self) -> bool {
        self.columns.iter().any(|column| column.name == OWN_TLS)
    }

    fn add(&mut self, name: &'static str, figure: f64) {
        match self.columns.iter_mut().find(|column| column.name == name) {
            Some(column) => column.rounds.push(figure),
            None => {
                self.columns.push(Column { name, rounds: vec![figure], median: f64::NAN, ratio: f64::NAN });
            }
        }
        self.compare();
    }

    fn compare(&mut self) {
        for column in &mut self.columns {
            column.median = median(&column.rounds);
        }
        let others = self.columns.iter().filter(|column| column.name != HNP);
        let Some(best) = others.min_by(|a, b| a.median.total_cmp(&b.median)) else { return };
        let (name, of_best) = (best.name, best.rounds.clone());
        self.best = name;
        let ratios = |column: &Column| {
            column.rounds.iter().zip(&of_best).map(|(own, best)| own / best).collect::<Vec<_>>()
        };
        for column in &mut self.columns {
            column.ratio = median(&ratios(column));
        }
        let Some(hnp) = self.columns.iter().find(|column| column.name == HNP) else { return };
        let ratios = ratios(hnp);
        self.ratio = hnp.ratio;
        self.quartiles = (quantile(&ratios, 0.25), quantile(&ratios, 0.75));
        self.reached = self.aim.map(|aim| match aim {
            Aim::Ratio(most) => self.ratio <= most,
            Aim::AtMost(most) => hnp.median <= most,
        });
    }
}

impl Report {
    pub(super) fn new() -> Self {
        Self { machine: String::new(), rounds: 0, seconds: 0.0, rows: Vec::new() }
    }

    /// Adds what one of them took to the row of the same name.
    pub(super) fn add(&mut self, row: Row, column: &'static str, figure: f64) {
        let same = |known: &Row| known.kind == row.kind && known.what == row.what && known.key == row.key;
        let index = self.rows.iter().position(same).unwrap_or_else(|| {
            self.rows.push(row);
            self.rows.len() - 1
        });
        self.rows[index].add(column, figure);
    }

    fn section(
        &self,
        f: &mut fmt::Formatter<'_>,
        title: &str,
        names: &[&str],
        wanted: impl Fn(&Row) -> bool,
    ) -> fmt::Result {
        write!(f, "\n{title:<WIDTH$}")?;
        names.iter().try_for_each(|name| write!(f, " {name:>15}"))?;
        writeln!(f)?;
        self.rows.iter().filter(|row| wanted(row)).try_for_each(|row| line(f, row, names))
    }

    /// By how much a figure of one and the same proxy differs between rounds: upper less lower quartile, as a
    /// part of the median. The median of all figures, and the largest with its name.
    fn noise(&self) -> Option<(f64, f64, String)> {
        let mut spreads: Vec<(f64, String)> = Vec::new();
        for row in &self.rows {
            for column in row.columns.iter().filter(|column| column.rounds.len() > 1) {
                let spread = quantile(&column.rounds, 0.75) - quantile(&column.rounds, 0.25);
                spreads.push((spread / column.median, format!("{} of {}", row.name(), column.name)));
            }
        }
        spreads.sort_by(|a, b| a.0.total_cmp(&b.0));
        let usual = median(&spreads.iter().map(|(spread, _)| *spread).collect::<Vec<_>>());
        spreads.pop().map(|(largest, name)| (usual, largest, name))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}; {} rounds in {:.0} s; medians; less is better",
            self.machine, self.rounds, self.seconds
        )?;
        writeln!(f, "x: of the best of the others; in brackets the quartiles of the rounds' ratios")?;
        for kind in [Kind::Http, Kind::Opaque] {
            let names = kind.programs().iter().map(|program| program.name()).collect::<Vec<_>>();
            let title = if kind == Kind::Http { "HTTP" } else { "Opaque TCP" };
            self.section(f, title, &names, |row| row.kind == kind && !row.is_own_tls())?;
        }
        self.section(f, "A short-lived pod", &[OWN_TLS, HNP], Row::is_own_tls)?;
        let aims = self.rows.iter().filter(|row| row.reached.is_some());
        let missed: Vec<String> =
            aims.clone().filter(|row| row.reached == Some(false)).map(verdict).collect();
        let count = aims.count();
        writeln!(f, "\n{} of {count} aims reached", count - missed.len())?;
        missed.iter().try_for_each(|line| writeln!(f, "  missed: {line}"))?;
        if let Some((usual, largest, name)) = self.noise() {
            writeln!(
                f,
                "\nnoise: a figure of one proxy differs by {:.0} % between rounds (quartiles; the median of all \
                 figures), at most by {:.0} % ({name})",
                usual * 100.0,
                largest * 100.0
            )?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, row: &Row, names: &[&str]) -> fmt::Result {
    write!(f, "{:<WIDTH$}", format!("{}, {}", row.name(), row.unit))?;
    for name in names {
        match row.columns.iter().find(|column| column.name == *name) {
            Some(column) => write!(f, " {:>9} x{:<4.2}", figure(column.median), column.ratio)?,
            None => write!(f, " {:>15}", "-")?,
        }
    }
    let (low, high) = row.quartiles;
    if (high - low).abs() > 0.0 {
        write!(f, " ({low:.2} to {high:.2})")?;
    }
    match (row.aim, row.reached) {
        (Some(aim), Some(reached)) => {
            writeln!(f, "  {} {}", if reached { "reached" } else { "MISSED" }, words(aim, row.unit))
        }
        _ => writeln!(f),
    }
}

fn verdict(row: &Row) -> String {
    let kind = if row.kind == Kind::Http { "HTTP" } else { "opaque" };
    let is = match row.aim {
        Some(Aim::AtMost(_)) => {
            let hnp = row.columns.iter().find(|column| column.name == HNP).map_or(f64::NAN, |c| c.median);
            format!("{} {}", figure(hnp), row.unit)
        }
        Some(Aim::Ratio(_)) | None => format!("x{:.2} of {}", row.ratio, row.best),
    };
    let aim = row.aim.map(|aim| words(aim, row.unit)).unwrap_or_default();
    format!("{kind}: {}: {is}, aim {aim}", row.name())
}

fn words(aim: Aim, unit: &str) -> String {
    match aim {
        Aim::Ratio(most) => format!("x{most:.2}"),
        Aim::AtMost(most) => format!("{most:.0} {unit}"),
    }
}

/// Three digits or so.
fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(aim: Aim, figures: &[(&'static str, f64)]) -> Report {
        let mut report = Report::new();
        for &(name, figure) in figures {
            let row = Row::new(Kind::Http, "work".to_owned(), "us").with(Some(Key::Rsa), Some(aim));
            report.add(row, name, figure);
        }
        report
    }

    #[test]
    fn hnp_is_compared_with_the_best_of_the_others_round_by_round() {
        let figures = [("nginx", 10.0), ("HAProxy", 30.0), (HNP, 8.0)];
        let twice = [("nginx", 20.0), ("HAProxy", 60.0), (HNP, 14.0)];
        let report = row(Aim::Ratio(0.8), &[figures, twice].concat());
        let [row] = &report.rows[..] else { panic!("one row: {report:?}") };
        assert_eq!(row.best, "nginx");
        assert!(row.quartiles.0 >= 0.7 - 1e-9 && row.quartiles.1 <= 0.8 + 1e-9, "{row:?}");
        assert_eq!(row.reached, Some(true));
        assert!(report.to_string().contains("1 of 1 aims reached"), "{report}");
    }

    #[test]
    fn what_is_missed_is_said() {
        let report = row(Aim::Ratio(0.8), &[("nginx", 10.0), (HNP, 9.0)]);
        assert!(
            report.to_string().contains("missed: HTTP: work (RSA-2048): x0.90 of nginx, aim x0.80"),
            "{report}"
        );
        let report = row(Aim::AtMost(8.0), &[("nginx", 10.0), (HNP, 9.0)]);
        assert!(report.to_string().contains("9.00 us, aim 8 us"), "{report}");
        assert!(report.to_string().contains("0 of 1 aims reached"), "{report}");
    }
}
