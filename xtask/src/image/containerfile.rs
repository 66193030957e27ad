//! The few instructions that `deploy/Containerfile` is written in, so that the file says what the image is,
//! whoever builds it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

/// What a Containerfile says.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Containerfile<'a> {
    /// From where in the context to where in the image.
    pub(super) copies: Vec<(&'a str, &'a str)>,
    /// Keys and values.
    pub(super) labels: BTreeMap<&'a str, &'a str>,
    /// Who runs.
    pub(super) user: &'a str,
    /// What runs.
    pub(super) entrypoint: Vec<String>,
}

impl<'a> Containerfile<'a> {
    /// Reads one that begins from nothing.
    ///
    /// # Errors
    /// When it has an instruction, or a form of one, that is not known here.
    pub(super) fn parse(text: &'a str) -> Result<Self> {
        let mut file = Self::default();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let (instruction, rest) = line.split_once(' ').unwrap_or((line, ""));
            match instruction {
                "FROM" => ensure!(rest == "scratch", "{line}: nothing but `scratch` is known here"),
                "COPY" => {
                    let (from, to) = rest.split_once(' ').with_context(|| format!("{line}: to where?"))?;
                    file.copies.push((from, to.trim_start_matches('/')));
                }
                "LABEL" => {
                    let (key, value) = rest.split_once('=').with_context(|| format!("{line}: no value"))?;
                    file.labels.insert(key, value.trim_matches('"'));
                }
                "USER" => file.user = rest,
                "ENTRYPOINT" => {
                    file.entrypoint =
                        serde_json::from_str(rest).with_context(|| format!("{line}: not a JSON list"))?;
                }
                _ => bail!("{line}: `cargo xtask image` does not know {instruction}"),
            }
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_understood_and_what_is_not_is_refused() {
        let ours = Containerfile::parse(include_str!("../../../deploy/Containerfile")).expect("known");
        assert!(ours.copies.contains(&("hnp-agent", "hnp-agent")), "{ours:?}");
        assert_eq!(ours.entrypoint, ["/hnp-agent"]);
        assert_eq!(ours.user, "0:0");
        for unknown in ["FROM debian", "RUN true", "COPY one", "ENTRYPOINT /hnp-agent"] {
            assert!(Containerfile::parse(unknown).is_err(), "{unknown}");
        }
    }
}
