//! SPIFFE IDs, and where SVIDs and bundles come from.
//!
//! The rules of the SPIFFE-ID standard (sections 2.1 to 2.4), and nothing beyond them: an ID that two parties read in two
//! ways is no identity.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// With which every ID begins.
const SCHEME: &str = "spiffe://";
/// The longest ID that is read, in bytes (SPIFFE-ID section 2.3).
const MAX_ID: usize = 2048;
/// The longest name of a trust domain, in bytes (the same).
const MAX_DOMAIN: usize = 255;

/// A trust domain's name, such as `prod.example.org`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(Arc<str>);

/// The ID of a workload: a trust domain and a path in it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct SpiffeId {
    domain: TrustDomain,
    /// Begins with a slash, and has more than that.
    path: Arc<str>,
}

/// IDs that are taken.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum IdPattern {
    /// One.
    Exact(SpiffeId),
    /// All of a trust domain whose path begins so; it begins and ends with a slash.
    Below(TrustDomain, Arc<str>),
}

/// A SPIFFE Workload API: who gives out SVIDs and bundles on this node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkloadApi {
    /// Its UNIX socket.
    pub socket: PathBuf,
}

/// An identity of the Workload API.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SpiffeIdentity {
    /// Who gives it out.
    pub api: WorkloadApi,
    /// Which of several it is.
    pub choice: SvidChoice,
}

/// Which of several SVIDs is meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SvidChoice {
    /// The first: the default one (SPIFFE Workload API section 8).
    First,
    /// The one with this hint.
    Hint(Arc<str>),
    /// The one with this ID.
    Id(SpiffeId),
}

impl TrustDomain {
    /// Reads a name, as it is written in an ID.
    ///
    /// # Errors
    /// Which rule it breaks.
    pub fn parse(name: &str) -> Result<Self, &'static str> {
        if name.is_empty() {
            return Err("it has no trust domain");
        }
        if name.len() > MAX_DOMAIN {
            return Err("its trust domain is longer than 255 bytes");
        }
        // The scheme and the domain are read without case (section 2.4), and written in lower case.
        let lower = name.to_ascii_lowercase();
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if !lower.bytes().all(fits) {
            return Err(
                "its trust domain has something other than letters, digits, dots, dashes and underscores",
            );
        }
        Ok(Self(lower.into()))
    }

    /// Reads the ID of a trust domain: one without a path. So bundles are called.
    ///
    /// # Errors
    /// Which rule it breaks.
    pub fn of_id(uri: &str) -> Result<Self, &'static str> {
        let (domain, path) = parts(uri)?;
        if path.is_empty() { Ok(domain) } else { Err("it has a path, and a trust domain's ID has none") }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// Reads the ID of a workload.
    ///
    /// # Errors
    /// Which rule it breaks.
    pub fn parse(uri: &str) -> Result<Self, &'static str> {
        let (domain, path) = parts(uri)?;
        if path.is_empty() {
            return Err("it has no path, so it is a trust domain's and no workload's");
        }
        check_path(path)?;
        Ok(Self { domain, path: path.into() })
    }

    /// The trust domain that it is of.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }
}

impl IdPattern {
    /// Reads `spiffe://domain/path`, `spiffe://domain/path/*` or `spiffe://domain/*`.
    ///
    /// # Errors
    /// Which rule it breaks.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(above) = text.strip_suffix("/*") else { return SpiffeId::parse(text).map(Self::Exact) };
        let (domain, path) = parts(above)?;
        if !path.is_empty() {
            check_path(path)?;
        }
        Ok(Self::Below(domain, format!("{path}/").into()))
    }

    /// Whether an ID is meant.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(exact) => exact == id,
            Self::Below(domain, path) => {
                *domain == id.domain && id.path.len() > path.len() && id.path.starts_with(&**path)
            }
        }
    }
}

/// Trust domain and path of an ID; the path may be empty, and is not checked.
fn parts(uri: &str) -> Result<(TrustDomain, &str), &'static str> {
    if uri.len() > MAX_ID {
        return Err("it is longer than 2048 bytes");
    }
    let (scheme, rest) = uri.split_at_checked(SCHEME.len()).ok_or("it does not begin with spiffe://")?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err("it does not begin with spiffe://");
    }
    let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Ok((TrustDomain::parse(domain)?, path))
}

/// Segments, each after a slash.
fn check_path(path: &str) -> Result<(), &'static str> {
    for segment in path.split('/').skip(1) {
        if segment.is_empty() {
            return Err("its path has an empty segment, or ends with a slash");
        }
        if segment == "." || segment == ".." {
            return Err("its path has a segment of dots");
        }
        if !segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
            return Err("its path has something other than letters, digits, dots, dashes and underscores");
        }
    }
    Ok(())
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.domain, self.path)
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => id.fmt(f),
            Self::Below(domain, path) => write!(f, "{SCHEME}{domain}{path}*"),
        }
    }
}

impl fmt::Display for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.display().fmt(f)
    }
}

impl fmt::Display for SvidChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("the first SVID"),
            Self::Hint(hint) => write!(f, "the SVID with the hint {hint}"),
            Self::Id(id) => write!(f, "the SVID {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_as_the_standard_has_them() {
        for good in [
            "spiffe://example.org/ns/ci/sa/runner",
            "spiffe://example.org/a",
            "spiffe://1.2.3.4/a.b-c_d/...",
            "spiffe://a_b-c/9eebccd2-12bf-40a6-b262-65fe0487d453",
        ] {
            assert_eq!(SpiffeId::parse(good).unwrap().to_string(), good);
        }
        let loud = SpiffeId::parse("SPIFFE://Example.ORG/Path").unwrap();
        assert_eq!(loud.to_string(), "spiffe://example.org/Path");
        let long = format!("spiffe://a/{}", "p".repeat(MAX_ID - 11));
        assert!(SpiffeId::parse(&long).is_ok() && SpiffeId::parse(&format!("{long}p")).is_err());
        assert!(SpiffeId::parse(&format!("spiffe://{}/p", "d".repeat(256))).is_err());
    }

    #[test]
    fn what_is_no_id_says_why() {
        for (bad, why) in [
            ("", "begin with"),
            ("https://example.org/a", "begin with"),
            ("spiffe:/example.org/a", "begin with"),
            ("spiffe://", "no trust domain"),
            ("spiffe:///a", "no trust domain"),
            ("spiffe://example.org", "no path"),
            ("spiffe://example.org/", "empty segment"),
            ("spiffe://example.org/a/", "empty segment"),
            ("spiffe://example.org//a", "empty segment"),
            ("spiffe://example.org/a/../b", "dots"),
            ("spiffe://example.org/./b", "dots"),
            ("spiffe://example.org/a?b", "other than"),
            ("spiffe://example.org/a#b", "other than"),
            ("spiffe://example.org/a%2fb", "other than"),
            ("spiffe://example.org/ä", "other than"),
            ("spiffe://user@example.org/a", "trust domain has"),
            ("spiffe://example.org:443/a", "trust domain has"),
            ("spiffe://[::1]/a", "trust domain has"),
            ("spiffe://exa%6dple.org/a", "trust domain has"),
            ("spiffé://x/a", "begin with"),
        ] {
            let error = SpiffeId::parse(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(TrustDomain::of_id("spiffe://example.org").is_ok());
        assert!(TrustDomain::of_id("spiffe://example.org/").is_err());
        assert!(TrustDomain::of_id("example.org").is_err());
    }

    #[test]
    fn a_pattern_means_an_id_a_part_of_a_domain_or_all_of_it() {
        let id = |text| SpiffeId::parse(text).unwrap();
        let pattern = |text| IdPattern::parse(text).unwrap();
        let exact = pattern("spiffe://a.test/x");
        assert!(exact.matches(&id("spiffe://a.test/x")));
        assert!(!exact.matches(&id("spiffe://a.test/x/y")) && !exact.matches(&id("spiffe://b.test/x")));
        let whole = pattern("spiffe://a.test/*");
        assert!(whole.matches(&id("spiffe://a.test/x")) && whole.matches(&id("spiffe://a.test/x/y")));
        assert!(!whole.matches(&id("spiffe://a.test.b/x")));
        let below = pattern("spiffe://a.test/ns/ci/*");
        assert!(below.matches(&id("spiffe://a.test/ns/ci/sa/x")));
        for other in ["spiffe://a.test/ns/ci", "spiffe://a.test/ns/cin/sa/x", "spiffe://b.test/ns/ci/x"] {
            assert!(!below.matches(&id(other)), "{other}");
        }
        for text in ["spiffe://a.test/*", "spiffe://a.test/ns/ci/*", "spiffe://a.test/x"] {
            assert_eq!(pattern(text).to_string(), text);
        }
        for bad in [
            "*",
            "spiffe://*",
            "spiffe://*/x",
            "spiffe://a.test/x*",
            "spiffe://a.test/*/x",
            "spiffe://a.test//*",
        ] {
            assert!(IdPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
