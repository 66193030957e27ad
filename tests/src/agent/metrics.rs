//! Prometheus' text format, as far as the scenarios read it.

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: String,
    value: f64,
}

impl Metrics {
    /// Reads a scrape's text; what is no sample is left out.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = format!(",{}", labels.trim_end_matches('}'));
            Some(Sample { name: name.to_owned(), labels, value: value.parse().ok()? })
        });
        Self { samples: samples.collect() }
    }

    /// The sum of all samples of a name that carry these labels; a counter's `_total` may be left
    /// out.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).sum()
    }

    /// Whether there is such a sample at all.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!(",{key}=\"{value}\"")).collect();
        self.samples
            .iter()
            .filter(move |sample| sample.name == name || sample.name.strip_suffix("_total") == Some(name))
            .filter(move |sample| labels.iter().all(|label| sample.labels.contains(label)))
            .map(|sample| sample.value)
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn samples_are_chosen_by_name_and_label() {
        let metrics = Metrics::parse(
            "# HELP a b\na_total{reason=\"ok\",route=\"r\"} 3\na_total{reason=\"bad\",route=\"r\"} 2\nb 7\n",
        );
        assert_eq!(metrics.sum("a", &[("route", "r")]), 5.0);
        assert_eq!(metrics.sum("a_total", &[("reason", "ok")]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 7.0);
        assert!(!metrics.has("a", &[("reason", "other")]));
    }
}
