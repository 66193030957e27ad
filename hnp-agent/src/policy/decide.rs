//! Whether a workload may use a route. Pure: what is known of it goes in, a decision and its reason come out.
//!
//! Deny comes before allow, and both before the default. What a rule asks for and nobody has said counts against the workload: a
//! deny rule that may match does, an allow rule that may match does not.

use std::fmt;

use crate::config::plan::{LabelsBy, Permission, Policy, Rule};
use crate::config::selector::Labels;
use crate::workload::{Account, Pod};

/// What is known of a workload; `None`: not known, which is not the same as having none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// Its namespace.
    pub namespace: Option<&'a str>,
    /// What it runs as.
    pub account: Option<&'a Account>,
    /// Its labels.
    pub labels: Option<&'a Labels>,
}

impl<'a> Subject<'a> {
    /// Of a pod; its service account by the API server's word alone.
    pub fn of(pod: Option<&'a Pod>, labels: LabelsBy) -> Self {
        let Some(pod) = pod else { return Self::default() };
        let labels = match labels {
            LabelsBy::Api => pod.confirmed_labels(),
            LabelsBy::Runtime => pod.labels_at_creation(),
        };
        Self {
            namespace: Some(&pod.namespace),
            account: pod.confirmed_account().map(|account| &**account),
            labels: labels.map(|labels| &**labels),
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    /// The workload may use the route.
    pub allowed: bool,
    /// Nothing that is not known yet would change it.
    pub certain: bool,
    /// Because of what.
    pub why: Why,
}

/// What decided; rules by their places.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// This deny rule matches.
    Denied(usize),
    /// This one may match.
    MayBeDenied(usize),
    /// This allow rule matches.
    Allowed(usize),
    /// None does, but this allow rule may.
    MayBeAllowed(usize),
    /// None does.
    Default,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(rule) => write!(f, "`policy.deny[{rule}]` means this workload"),
            Self::MayBeDenied(rule) => {
                write!(f, "`policy.deny[{rule}]` asks for what is not known of this workload, so it counts")
            }
            Self::Allowed(rule) => write!(f, "`policy.allow[{rule}]` means this workload"),
            Self::MayBeAllowed(rule) => {
                write!(
                    f,
                    "`policy.allow[{rule}]` asks for what is not known of this workload, so it does not count"
                )
            }
            Self::Default => f.write_str("no rule means this workload, and `policy.default` holds"),
        }
    }
}

/// Decides.
pub fn decide(policy: &Policy, subject: Subject<'_>) -> Decision {
    let find =
        |rules: &[Rule], wanted: Option<bool>| rules.iter().position(|rule| matches(rule, subject) == wanted);
    if let Some(rule) = find(&policy.deny, Some(true)) {
        return Decision { allowed: false, certain: true, why: Why::Denied(rule) };
    }
    if let Some(rule) = find(&policy.deny, None) {
        // Known to be none of those it would still be refused where nothing else lets it in.
        let otherwise = decide(&Policy { deny: Vec::new(), ..policy.clone() }, subject);
        let certain = !otherwise.allowed && otherwise.certain;
        return Decision { allowed: false, certain, why: Why::MayBeDenied(rule) };
    }
    if let Some(rule) = find(&policy.allow, Some(true)) {
        return Decision { allowed: true, certain: true, why: Why::Allowed(rule) };
    }
    match (policy.default, find(&policy.allow, None)) {
        (Permission::Allow, _) => Decision { allowed: true, certain: true, why: Why::Default },
        (Permission::Deny, Some(rule)) => {
            Decision { allowed: false, certain: false, why: Why::MayBeAllowed(rule) }
        }
        (Permission::Deny, None) => Decision { allowed: false, certain: true, why: Why::Default },
    }
}

/// Whether a rule means a workload; `None`: that cannot be told.
fn matches(rule: &Rule, subject: Subject<'_>) -> Option<bool> {
    let namespace = (!rule.namespaces.is_empty())
        .then(|| subject.namespace.map(|own| rule.namespaces.iter().any(|one| &**one == own)));
    let account = (!rule.service_accounts.is_empty()).then(|| {
        if let Some(own) = subject.account {
            let is_own = |one: &crate::config::plan::ServiceAccountName| {
                one.namespace == own.namespace && one.name == own.name
            };
            return Some(rule.service_accounts.iter().any(is_own));
        }
        // A service account is of its pod's namespace.
        let elsewhere = |own: &str| rule.service_accounts.iter().all(|one| &*one.namespace != own);
        subject.namespace.filter(|own| elsewhere(own)).map(|_| false)
    });
    let labels = rule.selector.as_ref().map(|selector| subject.labels.map(|labels| selector.matches(labels)));
    let mut conditions = [namespace, account, labels].into_iter().flatten();
    // Of several conditions one decides, and else whatever is not known.
    let decides = rule.any;
    conditions
        .try_fold(Some(!decides), |so_far, condition| match condition {
            Some(holds) if holds == decides => Err(Some(decides)),
            Some(_) => Ok(so_far),
            None => Ok(None),
        })
        .unwrap_or_else(|decided| decided)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `namespace sa key=value ...`; `?` for what is not known, `-` for no labels.
    struct Known {
        namespace: Option<String>,
        account: Option<Account>,
        labels: Option<Labels>,
    }

    fn known(text: &str) -> Known {
        let mut words = text.split_whitespace();
        let namespace = words.next().filter(|word| *word != "?").map(ToOwned::to_owned);
        let account = words
            .next()
            .filter(|word| *word != "?")
            .map(|name| Account { namespace: namespace.as_deref().unwrap_or("?").into(), name: name.into() });
        let rest: Vec<&str> = words.collect();
        let pair = |pair: &&str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels = (rest != ["?"]).then(|| rest.iter().filter_map(pair).collect());
        Known { namespace, account, labels }
    }

    fn policy(text: &str) -> Policy {
        let yaml = format!(
            "identities: {{c: {{certificate: /c, key: /k}}}}\nroutes: [{{name: m, destinations: ['m.test:80'], \
             upstream: 'https://m.test', identity: c, policy: {{{text}}}}}]\n"
        );
        let plan = crate::config::parse(&yaml, std::path::Path::new("test.yaml"));
        plan.unwrap_or_else(|error| panic!("{text}: {error}")).routes[0].policy.clone().unwrap()
    }

    fn decided(policy: &Policy, subject: &str) -> Decision {
        let Known { namespace, account, labels } = known(subject);
        decide(
            policy,
            Subject { namespace: namespace.as_deref(), account: account.as_ref(), labels: labels.as_ref() },
        )
    }

    #[test]
    fn every_operator_both_ways_and_where_it_cannot_be_told() {
        for (rule, yes, no, unknown) in [
            ("namespaces: [a]", &["a x -", "a ? ?"][..], &["b x -", "b ? ?"][..], &["? ? ?"][..]),
            ("namespaces: [a, b]", &["a x -", "b x -"], &["c x -"], &["? ? -"]),
            ("service_accounts: [a/x]", &["a x ?"], &["a y -", "b x -", "b ? ?"], &["a ? -", "? ? -"]),
            ("service_accounts: [a/x, b/y]", &["a x -", "b y -"], &["a y -", "b x -", "c ? -"], &["b ? -"]),
            ("selector: app=w", &["? ? app=w", "a x app=w b=c"], &["a x -", "a x app=v"], &["a x ?"]),
            ("selector: app==w", &["a x app=w"], &["a x -"], &["a x ?"]),
            ("selector: app!=w", &["a x -", "a x app=v"], &["a x app=w"], &["a x ?"]),
            ("selector: 'app in (v, w)'", &["a x app=v", "a x app=w"], &["a x app=u", "a x -"], &["a x ?"]),
            ("selector: 'app notin (v, w)'", &["a x app=u", "a x -"], &["a x app=v"], &["a x ?"]),
            ("selector: app", &["a x app=u"], &["a x -"], &["a x ?"]),
            ("selector: '!app'", &["a x -"], &["a x app=u"], &["a x ?"]),
            ("selector: 'app=w,!old'", &["a x app=w"], &["a x app=w old=1", "a x app=v"], &["a x ?"]),
            (
                "namespaces: [a], selector: app=w",
                &["a x app=w"],
                &["a x -", "b x app=w", "b x ?", "? x -"],
                &["a x ?", "? x app=w"],
            ),
            ("namespaces: [a], selector: app=w, match: all", &["a x app=w"], &["a x -", "b x ?"], &["a x ?"]),
            (
                "namespaces: [a], selector: app=w, match: any",
                &["a x ?", "b x app=w", "? ? app=w"],
                &["b x -"],
                &["b x ?", "? x -"],
            ),
            (
                "namespaces: [a], service_accounts: [b/y], match: any",
                &["a ? ?", "b y ?"],
                &["b x -", "c ? ?"],
                &["b ? -"],
            ),
            (
                "namespaces: [a], service_accounts: [a/x], selector: app=w",
                &["a x app=w"],
                &["a y app=w", "a x -"],
                &["a ? app=w"],
            ),
        ] {
            let allow = policy(&format!("default: deny, allow: [{{{rule}}}]"));
            let deny = policy(&format!("default: allow, deny: [{{{rule}}}]"));
            for (subjects, by_allow, by_deny) in [
                (yes, (true, true, Why::Allowed(0)), (false, true, Why::Denied(0))),
                (no, (false, true, Why::Default), (true, true, Why::Default)),
                (unknown, (false, false, Why::MayBeAllowed(0)), (false, false, Why::MayBeDenied(0))),
            ] {
                for subject in subjects {
                    let decision = |policy| {
                        let Decision { allowed, certain, why } = decided(policy, subject);
                        (allowed, certain, why)
                    };
                    assert_eq!(decision(&allow), by_allow, "allow {rule}: {subject}");
                    assert_eq!(decision(&deny), by_deny, "deny {rule}: {subject}");
                }
            }
        }
    }

    #[test]
    fn deny_comes_before_allow_and_both_before_the_default() {
        let both =
            "allow: [{namespaces: [a]}, {namespaces: [b]}], deny: [{selector: bad}, {namespaces: [c]}]";
        for (default, subject, allowed, certain, why) in [
            ("deny", "a x -", true, true, Why::Allowed(0)),
            ("deny", "b x -", true, true, Why::Allowed(1)),
            ("deny", "a x bad=1", false, true, Why::Denied(0)),
            ("deny", "d x -", false, true, Why::Default),
            ("allow", "d x -", true, true, Why::Default),
            ("allow", "c x -", false, true, Why::Denied(1)),
            // A rule that is certain says more than one that is not.
            ("allow", "c x ?", false, true, Why::Denied(1)),
            // Labels would tell whether it may, or would change nothing.
            ("deny", "a x ?", false, false, Why::MayBeDenied(0)),
            ("deny", "d x ?", false, true, Why::MayBeDenied(0)),
            ("allow", "d x ?", false, false, Why::MayBeDenied(0)),
        ] {
            let policy = policy(&format!("default: {default}, {both}"));
            assert_eq!(decided(&policy, subject), Decision { allowed, certain, why }, "{default}: {subject}");
        }
    }

    #[test]
    fn a_policy_says_its_default_and_its_rules_name_somebody() {
        let read = |text: &str| {
            let yaml = format!(
                "identities: {{c: {{certificate: /c, key: /k}}}}\nroutes: [{{name: m, destinations: ['m.test:80'], \
                 upstream: 'https://m.test', identity: c, policy: {{{text}}}}}]\n"
            );
            crate::config::parse(&yaml, std::path::Path::new("test.yaml")).map_err(|error| error.to_string())
        };
        for (text, key) in [
            ("allow: [{namespaces: [a]}]", "policy.default: is missing"),
            ("default: maybe", "policy.default: "),
            ("default: deny, allow: [{match: any}]", "policy.allow[0]: names no workloads"),
            ("default: deny, deny: [{namespaces: [a], match: some}]", "policy.deny[0].match: "),
            ("default: deny, allow: [{service_accounts: [x]}]", "policy.allow[0].service_accounts[0]: "),
            ("default: deny, allow: [{service_accounts: [a/b/c]}]", "policy.allow[0].service_accounts[0]: "),
            ("default: deny, dry_run: perhaps", "policy.dry_run: "),
        ] {
            let said = read(text).expect_err(text);
            assert!(said.contains(key), "{text}: {said}");
        }
        assert!(read("default: deny").is_ok());
    }
}
