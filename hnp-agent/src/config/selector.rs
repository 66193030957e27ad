//! Which pods are meant, by their labels: the text that `kubectl get pods --selector` takes.
//!
//! Pure. Kubernetes' rules hold: all requirements must, `!=` and `notin` also hold for a pod without the
//! label, and keys and values are what Kubernetes lets a label be.

use std::collections::BTreeMap;
use std::fmt;

use super::values::Wrong;

/// A pod's labels.
pub type Labels = BTreeMap<String, String>;

/// A label selector: requirements that must all hold. At least one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// What may be written.
const ALLOWED: &str = "a label selector, such as app=worker, tier!=prod, stage in (dev, test), stage notin (prod), canary, !old";

impl Selector {
    /// Reads a selector.
    pub(super) fn read(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::not(text, "a label selector", ALLOWED);
        let requirements: Option<Vec<_>> = requirements(text).map(requirement).collect();
        Ok(Self(requirements.ok_or_else(wrong)?))
    }

    /// Whether a pod with these labels is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|Requirement { key, operator }| {
            let value = labels.get(key);
            match operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::Absent => value.is_none(),
            }
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, operator }) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "," })?;
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
                Operator::In(values) => write!(f, "{key} in ({})", values.join(",")),
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(",")),
                Operator::Exists => f.write_str(key),
                Operator::Absent => write!(f, "!{key}"),
            }?;
        }
        Ok(())
    }
}

/// Splits at the commas that stand outside of parentheses.
fn requirements(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
}

fn requirement(text: &str) -> Option<Requirement> {
    let text = text.trim();
    let of = |name: &str, operator| {
        let name = name.trim();
        is_key(name).then(|| Requirement { key: name.to_owned(), operator })
    };
    let one = |value: &str| is_value(value.trim()).then(|| vec![value.trim().to_owned()]);
    if let Some(name) = text.strip_prefix('!') {
        return of(name, Operator::Absent);
    }
    if let Some((name, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let (name, operator) = name.trim().rsplit_once(char::is_whitespace)?;
        let values: Option<Vec<_>> =
            values.split(',').map(|value| one(value).map(|mut value| value.remove(0))).collect();
        return match operator {
            "in" => of(name, Operator::In(values?)),
            "notin" => of(name, Operator::NotIn(values?)),
            _ => None,
        };
    }
    if let Some((name, value)) = text.split_once("!=") {
        return of(name, Operator::NotIn(one(value)?));
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return of(name, Operator::In(one(value)?));
    }
    of(text, Operator::Exists)
}

/// `[PREFIX/]NAME`: a DNS subdomain, and up to 63 characters.
fn is_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let is_subdomain = |text: &str| {
        let labels = text.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        });
        labels && text.len() <= 253
    };
    !name.is_empty() && is_value(name) && prefix.is_none_or(is_subdomain)
}

/// Empty, or up to 63 letters, digits, dashes, underscores and dots, a letter or digit at both ends.
fn is_value(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || (text.len() <= 63
            && text.starts_with(ends)
            && text.ends_with(ends)
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let pairs = text.split_whitespace().map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn selectors_mean_what_kubernetes_means_by_them() {
        for (selector, meant, others) in [
            ("app=worker", &["app=worker", "app=worker x=y"][..], &["", "app=web", "App=worker"][..]),
            ("app==worker", &["app=worker"], &["app=="]),
            ("tier!=prod", &["", "tier=dev"], &["tier=prod"]),
            ("tier in (dev, test)", &["tier=dev", "tier=test"], &["", "tier=prod"]),
            ("tier notin (prod,live)", &["", "tier=dev"], &["tier=live", "tier=prod"]),
            ("canary", &["canary=", "canary=x"], &["", "canar=x"]),
            ("!canary", &["", "canar=x"], &["canary="]),
            ("a=1, b in (2,3) ,!c", &["a=1 b=3", "a=1 b=2 d=4"], &["a=1", "a=1 b=2 c=4", "b=2"]),
            ("litmuschaos.io/x_y.z = A-1", &["litmuschaos.io/x_y.z=A-1"], &["x_y.z=A-1"]),
            ("a=", &["a="], &["", "a=1"]),
        ] {
            let read = Selector::read(selector).unwrap_or_else(|wrong| panic!("{selector}: {wrong}"));
            for pod in meant {
                assert!(read.matches(&labels(pod)), "{selector}: {pod:?}");
            }
            for pod in others {
                assert!(!read.matches(&labels(pod)), "{selector}: {pod:?}");
            }
            let shown = read.to_string();
            assert_eq!(Selector::read(&shown).ok(), Some(read), "{shown}");
        }
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused() {
        let long = format!("a={}", "x".repeat(64));
        for text in [
            "", ",", "a,", "=x", "!", "a b", "a in", "a in ()x", "a in (b", "a b (c)", "in (a)", "a=b=c",
            "a=b c", "/a=b", "A.b/c=d", "-a=b", "a=-b", "a=b)", "a=(b", "a/b/c", "a>1", "a/=b", &long,
        ] {
            let wrong = Selector::read(text).expect_err(text);
            assert!(wrong.to_string().contains("stage in (dev, test)"), "{text}: {wrong}");
        }
    }
}
