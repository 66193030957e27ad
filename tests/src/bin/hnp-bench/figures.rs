//! Samples -> figures -> words.

use std::fmt;

use serde::Serialize;

/// What is compared with what, over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// What was measured.
    pub(crate) what: &'static str,
    /// What a figure counts: `ns`, or `B/s`.
    pub(crate) unit: &'static str,
    /// The median of the rounds' medians without what is judged.
    pub(crate) without: f64,
    /// With it.
    pub(crate) with: f64,
    /// The median of the rounds' differences.
    pub(crate) difference: f64,
    /// The median of the rounds' ratios.
    pub(crate) ratio: f64,
    /// Lower and upper quartile of the rounds' ratios.
    pub(crate) quartiles: (f64, f64),
    /// How many rounds there were.
    pub(crate) rounds: usize,
}

impl Comparison {
    /// From the samples of each round, without and with.
    pub(crate) fn of(what: &'static str, unit: &'static str, rounds: &[(Vec<f64>, Vec<f64>)]) -> Self {
        let medians: Vec<(f64, f64)> =
            rounds.iter().map(|(without, with)| (median(without), median(with))).collect();
        let over = |figure: &dyn Fn(&(f64, f64)) -> f64| medians.iter().map(figure).collect::<Vec<_>>();
        let ratios = over(&|(without, with)| with / without);
        Self {
            what,
            unit,
            without: median(&over(&|(without, _)| *without)),
            with: median(&over(&|(_, with)| *with)),
            difference: median(&over(&|(without, with)| with - without)),
            ratio: median(&ratios),
            quartiles: (quantile(&ratios, 0.25), quantile(&ratios, 0.75)),
            rounds: rounds.len(),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scale, unit) = if self.unit == "B/s" { (1e-6, "MB/s") } else { (1.0, self.unit) };
        let (low, high) = self.quartiles;
        write!(
            f,
            "{:<52} {:>8.0} {:>8.0} {:>+8.0} {unit:<5} x {:.3} ({low:.3} to {high:.3})",
            self.what,
            self.without * scale,
            self.with * scale,
            self.difference * scale,
            self.ratio
        )
    }
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The kernel's release.
    pub(crate) kernel: String,
    /// How the guard is attached.
    pub(crate) guard: String,
    /// The agent had CAP_PERFMON, too.
    pub(crate) perfmon: bool,
    /// What was compared.
    pub(crate) comparisons: Vec<Comparison>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.comparisons.first().map_or(0, |first| first.rounds);
        writeln!(
            f,
            "Linux {}, guard by {}, {} CAP_PERFMON, {rounds} rounds; medians, and the quartiles of ratios",
            self.kernel,
            self.guard,
            if self.perfmon { "with" } else { "without" }
        )?;
        writeln!(f, "{:<52} {:>8} {:>8} {:>8}", "", "without", "with", "more")?;
        self.comparisons.iter().try_for_each(|comparison| writeln!(f, "{comparison}"))
    }
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The value that this share of the samples lies at or below; NaN of none.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_is_of_medians_round_by_round() {
        let rounds = [
            (vec![10.0, 11.0, 1000.0], vec![12.0, 13.0, 14.0]),
            (vec![20.0, 22.0, 24.0], vec![26.0]),
            (vec![5.0], vec![5.0, 5.0]),
        ];
        let comparison = Comparison::of("x", "ns", &rounds);
        assert_eq!((comparison.without, comparison.with), (11.0, 13.0));
        assert_eq!((comparison.difference, comparison.rounds), (2.0, 3));
        assert!((comparison.ratio - 13.0 / 11.0).abs() < 1e-9, "{comparison:?}");
        assert!(quantile(&[], 0.5).is_nan());
    }
}
