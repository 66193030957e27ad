//! What a run of tests printed, as data: libtest has no stable machine-readable form.

/// How one test ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Holds,
    Failed,
    Ignored,
}

/// libtest's lines `test <name> ... ok`.
pub(crate) fn outcomes(log: &str) -> Vec<(String, Outcome)> {
    log.lines()
        .filter_map(|line| {
            let (name, how) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
            let outcome = match how.split(',').next()? {
                "ok" => Outcome::Holds,
                "FAILED" => Outcome::Failed,
                "ignored" => Outcome::Ignored,
                _ => return None,
            };
            Some((name.to_owned(), outcome))
        })
        .collect()
}

/// The account of the failures: from the first `failures:` on.
pub(crate) fn details(log: &str) -> &str {
    log.find("\nfailures:\n").map_or("", |at| &log[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_and_failures_are_told_from_all_else() {
        let log = "\nrunning 3 tests\ntest a::one ... ok\nsaid in between\ntest a::two ... FAILED\n\
                   test b::three ... ignored, why\n\nfailures:\n\n---- a::two stdout ----\nlost\n";
        let named = outcomes(log);
        let expected =
            [("a::one", Outcome::Holds), ("a::two", Outcome::Failed), ("b::three", Outcome::Ignored)];
        assert_eq!(named, expected.map(|(name, how)| (name.to_owned(), how)));
        assert_eq!(details(log), "failures:\n\n---- a::two stdout ----\nlost\n");
        assert_eq!(details("test a::one ... ok\n"), "");
    }
}
