//! `routes[].policy`: who may use a route.

use super::super::plan::{Permission, Policy, Rule, ServiceAccountName};
use crate::config::read::{Reader, Section};
use crate::config::selector::Selector;
use crate::config::values::{self, Wrong};

pub(super) const KEYS: &[&str] = &["default", "allow", "deny", "dry_run"];
pub(super) const RULE: &[&str] = &["namespaces", "service_accounts", "selector", "match"];

/// Who tells what rules ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tellers {
    /// The API server is known.
    pub(super) cluster: bool,
    /// The container runtime may be asked.
    pub(super) runtime: bool,
}

/// The policy, if one is written.
pub(super) fn policy(r: &mut Reader, route: &Section<'_>, tellers: Tellers) -> Option<Policy> {
    let node = route.get("policy")?;
    let s = r.known(node, route.key("policy"), KEYS);
    // Never guessed: who forgets it would find out when somebody is let in, or nobody is.
    let words = [("allow", Permission::Allow), ("deny", Permission::Deny)];
    let default = r.required(&s, "default", "allow or deny", |text| values::word(text, &words));
    let allow = rules(r, &s, "allow", tellers);
    let deny = rules(r, &s, "deny", tellers);
    let dry_run = r.or(&s, "dry_run", false, values::boolean);
    if default == Some(Permission::Allow) && !allow.is_empty() {
        let what = "means nothing beside `default: allow`: whom no deny rule names is allowed anyhow";
        r.warning(s.mark_of("allow"), s.key("allow"), what);
    }
    Some(Policy { default: default?, allow, deny, dry_run })
}

fn rules(r: &mut Reader, policy: &Section<'_>, key: &str, tellers: Tellers) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (index, node) in r.list(policy, key).iter().enumerate() {
        let s = r.known(node, format!("{}[{index}]", policy.key(key)), RULE);
        let mut namespaces = Vec::new();
        for (index, node) in r.list(&s, "namespaces").iter().enumerate() {
            namespaces.extend(r.item(node, &format!("{}[{index}]", s.key("namespaces")), values::name));
        }
        let mut service_accounts = Vec::new();
        for (index, node) in r.list(&s, "service_accounts").iter().enumerate() {
            let key = format!("{}[{index}]", s.key("service_accounts"));
            service_accounts.extend(r.item(node, &key, service_account));
        }
        let selector = r.optional(&s, "selector", Selector::read);
        const COUNTS: &str = "and none is: nobody is allowed by this rule, and a deny rule denies all whom it might mean; set \
                              kubernetes.api and kubernetes.node_name, or the variables KUBERNETES_SERVICE_HOST and NODE_NAME";
        if s.get("service_accounts").is_some() && !tellers.cluster {
            let what = format!("asks for what only the API server knows, {COUNTS}");
            r.warning(s.mark_of("service_accounts"), s.key("service_accounts"), what);
        }
        if selector.is_some() && !tellers.cluster {
            let what = match tellers.runtime {
                true => "goes by the labels that the container runtime has from the pod's creation, because no API server is known: \
                         what is changed later is not seen"
                    .to_owned(),
                false => format!("asks for what the API server or the container runtime knows, {COUNTS}; or workloads.runtime"),
            };
            r.warning(s.mark_of("selector"), s.key("selector"), what);
        }
        if RULE[..3].iter().all(|key| s.get(key).is_none()) {
            let what =
                "names no workloads; allowed: namespaces, service_accounts, a selector, or several of them";
            r.mistake(s.mark, s.path.clone(), what);
        }
        let any = r.or(&s, "match", false, |text| values::word(text, &[("all", false), ("any", true)]));
        rules.push(Rule { namespaces, service_accounts, selector, any });
    }
    rules
}

fn service_account(text: &str) -> Result<ServiceAccountName, Wrong> {
    // RFC 1123: a label, and a subdomain.
    let is_name = |name: &str, dots: bool| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.');
        name.bytes().all(inner) && !name.is_empty() && name.len() <= 253
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_name(namespace, false) && is_name(name, true) => {
            Ok(ServiceAccountName { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(Wrong::not(text, "a service account", "NAMESPACE/NAME, such as payments/worker")),
    }
}
