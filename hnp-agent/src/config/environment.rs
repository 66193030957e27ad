//! No configuration file, but the variables that the vendor's proxy and delegate know: they make a gateway.
//!
//! Variables are translated into the configuration they amount to, as text, and that is read like any other:
//! there is one table of keys and one set of defaults. Mistakes name the variable. With a file none of this
//! is looked at, and `HTTPS_PROXY` least of all.

use std::fmt;
use std::fmt::Write as _;
use std::path::Path;

use super::error::Mistake;
use super::hosts;
use super::parse::{self, upstream_proxies};
use super::plan::{Host, Plan};
use super::surroundings::Surroundings;
use super::values;

/// Where the manager is. The same variable on a pod says where the gateway is.
const UPSTREAM: &str = "PROXY_URL";
/// Certificate and key, in the vendor's spellings: its documentation's, its chart's, its delegate's.
const PAIRS: [[&str; 2]; 3] = [
    ["CLIENT_CERT_PATH", "CLIENT_KEY_PATH"],
    ["PROXY_CLIENT_CERT_PATH", "PROXY_CLIENT_KEY_PATH"],
    ["DELEGATE_CLIENT_CERTIFICATE_PATH", "DELEGATE_CLIENT_CERTIFICATE_KEY_PATH"],
];
/// The corporate proxy on the way to the manager, and for whom it is not; either spelling.
const PROXY: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Where a cluster's pods come from unless somebody gave them public addresses: RFC 1918, RFC 6598 (which
/// clouds give to pods), RFC 4193, and loopback for what shares the pod.
const SOURCES: &str =
    "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, 'fc00::/7', 127.0.0.0/8, '::1'";

/// What the variables amount to.
#[derive(Clone, Debug)]
pub struct FromEnvironment {
    /// The configuration, as a file would have it. May hold a password.
    pub text: String,
    /// The same, read.
    pub plan: Plan,
    /// The variable that named the certificate.
    pub certificate: &'static str,
    /// What is allowed and still looks like a mistake.
    pub warnings: Vec<Mistake>,
}

/// Mistakes in variables. Never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EnvironmentErrors {
    /// The variable, and what is wrong with it; no value that may hold a secret.
    pub mistakes: Vec<(String, String)>,
}

impl fmt::Display for EnvironmentErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (variable, what)) in self.mistakes.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}environment: {variable}: {what}")?;
        }
        Ok(())
    }
}

impl std::error::Error for EnvironmentErrors {}

/// Reads the variables. An empty one counts as not set.
pub(super) fn read(
    variable: impl Fn(&str) -> Option<String>,
    around: &Surroundings,
) -> Result<FromEnvironment, EnvironmentErrors> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut mistakes = Vec::new();
    let upstream = upstream(&set, &mut mistakes);
    let identity = identity(&set, &mut mistakes);
    let proxy = proxy(&set, &mut mistakes);
    let (Some((url, host, port)), Some((named, [certificate, key]))) = (upstream, identity) else {
        return Err(EnvironmentErrors { mistakes });
    };
    if !mistakes.is_empty() {
        return Err(EnvironmentErrors { mistakes });
    }
    let mut text = format!("capture: off\ngateway: {{sources: [{SOURCES}]}}\n");
    // Strings grow.
    let _ = writeln!(
        text,
        "identities: {{environment: {{certificate: {}, key: {}}}}}",
        quoted(&certificate),
        quoted(&key)
    );
    // The port that pods dial for the manager itself, and that of an http:// URL for it.
    let mut destinations = vec![quoted(&format!("{host}:{port}"))];
    if port != 80 {
        destinations.push(quoted(&format!("{host}:80")));
    }
    let mut through = "";
    if let Some((proxy, no_proxy)) = proxy {
        let rules: Vec<String> = no_proxy.iter().map(|rule| quoted(rule)).collect();
        let _ = writeln!(
            text,
            "upstream_proxies: {{environment: {{url: {}, no_proxy: [{}]}}}}",
            quoted(&proxy),
            rules.join(", ")
        );
        through = ", upstream_proxy: environment";
    }
    let _ = writeln!(
        text,
        "routes:\n- {{name: manager, destinations: [{}], upstream: {}, identity: environment{through}}}",
        destinations.join(", "),
        quoted(&url)
    );
    match parse::plan(&text, Path::new("environment"), around) {
        Ok((plan, warnings)) => Ok(FromEnvironment { text, plan, certificate: named, warnings }),
        Err(errors) => {
            let named = errors.mistakes.into_iter().map(|mistake| (variable_of(&mistake.key), mistake.what));
            Err(EnvironmentErrors { mistakes: named.collect() })
        }
    }
}

/// The variable that a key was made of.
fn variable_of(key: &str) -> String {
    match key.split(['.', '[']).next() {
        Some("routes") => UPSTREAM.into(),
        Some("upstream_proxies") => PROXY[0].into(),
        Some("identities") => PAIRS[0][0].into(),
        // The API server's variables are named by the text.
        _ => key.into(),
    }
}

/// The manager's URL, its host and its port.
fn upstream(
    set: &impl Fn(&str) -> Option<String>,
    mistakes: &mut Vec<(String, String)>,
) -> Option<(String, Host, u16)> {
    const ALLOWED: &str = "the manager's URL, https://HOST[:PORT][/BASE]";
    let mut wrong = |what: String| mistakes.push((UPSTREAM.into(), what));
    let Some(url) = set(UPSTREAM) else {
        wrong(format!("is not set, and there is no --config FILE; allowed: {ALLOWED}"));
        return None;
    };
    if url.contains('@') {
        wrong(format!("has a user in it, and hnp presents a certificate; allowed: {ALLOWED}"));
        return None;
    }
    if url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://")) {
        wrong(format!(
            "{url:?} would leave the node in cleartext; allowed: {ALLOWED} (on a pod the same variable is the \
             gateway's own http:// URL)"
        ));
        return None;
    }
    match hosts::upstream(&url) {
        Ok(parts) => Some((url, parts.host, parts.port)),
        Err(error) => {
            wrong(error.to_string());
            None
        }
    }
}

/// Certificate and key, from whichever pair is set; pairs that are set must say the same.
fn identity(
    set: &impl Fn(&str) -> Option<String>,
    mistakes: &mut Vec<(String, String)>,
) -> Option<(&'static str, [String; 2])> {
    let before = mistakes.len();
    let mut found: Option<([&'static str; 2], [String; 2])> = None;
    for names in PAIRS {
        let values = match names.map(set) {
            [None, None] => continue,
            [Some(certificate), Some(key)] => [certificate, key],
            [Some(_), None] => {
                mistakes.push((names[1].into(), format!("is not set, and {} is; allowed: both", names[0])));
                continue;
            }
            [None, Some(_)] => {
                mistakes.push((names[0].into(), format!("is not set, and {} is; allowed: both", names[1])));
                continue;
            }
        };
        for (name, value) in names.iter().zip(&values) {
            if let Err(wrong) = values::path(value) {
                mistakes.push(((*name).into(), wrong.to_string()));
            }
        }
        match &found {
            Some((others, earlier)) => {
                for index in 0..2 {
                    if earlier[index] != values[index] {
                        let what = format!(
                            "is {:?}, and {} is {:?}; allowed: one of the two, or the same",
                            values[index], others[index], earlier[index]
                        );
                        mistakes.push((names[index].into(), what));
                    }
                }
            }
            None => found = Some((names, values)),
        }
    }
    if found.is_none() && mistakes.len() == before {
        let all = PAIRS.map(|pair| pair.join(" and "));
        let what = format!("is not set; allowed: the paths of PEM files, in {}", all.join(", or "));
        mistakes.push((PAIRS[0][0].into(), what));
    }
    found.map(|(names, values)| (names[0], values))
}

/// The corporate proxy's URL and whom it is not for.
fn proxy(
    set: &impl Fn(&str) -> Option<String>,
    mistakes: &mut Vec<(String, String)>,
) -> Option<(String, Vec<String>)> {
    let (name, url) = either(set, PROXY, mistakes)?;
    // As curl and Go read it.
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    if let Err(wrong) = upstream_proxies::url(&url) {
        mistakes.push((name.into(), wrong.to_string()));
    }
    let (name, list) = either(set, NO_PROXY, mistakes).unwrap_or((NO_PROXY[0], String::new()));
    let rules: Vec<String> =
        list.split(',').map(str::trim).filter(|rule| !rule.is_empty()).map(str::to_owned).collect();
    for rule in &rules {
        if let Err(wrong) = upstream_proxies::no_proxy_rule(rule) {
            mistakes.push((name.into(), wrong.to_string()));
        }
    }
    Some((url, rules))
}

/// A variable in either spelling; where both are set they must say the same.
fn either(
    set: &impl Fn(&str) -> Option<String>,
    names: [&'static str; 2],
    mistakes: &mut Vec<(String, String)>,
) -> Option<(&'static str, String)> {
    match names.map(set) {
        [Some(upper), Some(lower)] if upper != lower => {
            // No values: one may hold a password.
            let what = format!("says something else than {}; allowed: one of the two, or the same", names[0]);
            mistakes.push((names[1].into(), what));
            Some((names[0], upper))
        }
        [Some(upper), _] => Some((names[0], upper)),
        [None, lower] => lower.map(|lower| (names[1], lower)),
    }
}

/// As YAML's double-quoted style reads it, which knows all of JSON's escapes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::{CaptureMode, IdentityPlace};

    const CERT: [(&str, &str); 2] = [("CLIENT_CERT_PATH", "/m/c.crt"), ("CLIENT_KEY_PATH", "/m/c.key")];

    fn around() -> Surroundings {
        Surroundings { workers: 2, ..Surroundings::default() }
    }

    fn of(variables: &[(&str, &str)]) -> Result<FromEnvironment, EnvironmentErrors> {
        let set =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned());
        read(set, &around())
    }

    fn with(more: &[(&'static str, &'static str)]) -> Result<FromEnvironment, EnvironmentErrors> {
        of(&[&CERT[..], more].concat())
    }

    /// The variables that are named, in order.
    fn named(result: Result<FromEnvironment, EnvironmentErrors>) -> Vec<String> {
        result.expect_err("it has mistakes").mistakes.into_iter().map(|(variable, _)| variable).collect()
    }

    fn pair(plan: &Plan) -> (&Path, &Path) {
        let files = plan.identities[0].source.files().expect("variables name files");
        match &files.place {
            IdentityPlace::Pair { certificate, key } => (certificate, key),
            IdentityPlace::Directory(_) => panic!("variables name files"),
        }
    }

    #[test]
    fn the_vendors_variables_make_a_gateway() {
        for (url, shown, destinations) in [
            ("https://m.test", "m.test", vec!["m.test:443", "m.test:80"]),
            ("https://v.harness.io:8443", "v.harness.io:8443", vec!["v.harness.io:8443", "v.harness.io:80"]),
            ("https://10.0.0.1:80/base", "10.0.0.1:80", vec!["10.0.0.1:80"]),
            ("https://[fd00::1]/a/b", "[fd00::1]", vec!["[fd00::1]:443", "[fd00::1]:80"]),
        ] {
            for [certificate, key] in PAIRS {
                let plan = of(&[("PROXY_URL", url), (certificate, "/a b"), (key, "/k\"'\\")]).unwrap().plan;
                assert_eq!(plan.capture.mode, CaptureMode::Off);
                let route = &plan.routes[0];
                assert_eq!(route.upstream.authority, shown);
                let listed: Vec<String> = route.destinations.iter().map(ToString::to_string).collect();
                assert_eq!(listed, destinations);
                let (certificate, key) = pair(&plan);
                assert_eq!((certificate.to_str(), key.to_str()), (Some("/a b"), Some("/k\"'\\")));
                let gateway = plan.gateway.as_ref().unwrap();
                assert_eq!(gateway.listen, crate::config::defaults::GATEWAY_LISTEN);
                assert_eq!(gateway.default_route(&plan), Some(0));
                for (addr, served) in
                    [("10.1.2.3", true), ("100.64.9.9", true), ("8.8.8.8", false), ("fd00::1", true)]
                {
                    assert_eq!(gateway.serves(addr.parse().unwrap(), false), served, "{addr}");
                }
                assert!(route.through().is_none(), "no proxy is set");
            }
        }
    }

    #[test]
    fn half_a_set_and_two_that_contradict_are_mistakes_that_name_the_variable() {
        assert_eq!(named(of(&[])), ["PROXY_URL", "CLIENT_CERT_PATH"]);
        let url = ("PROXY_URL", "https://m.test");
        assert_eq!(named(of(&[url])), ["CLIENT_CERT_PATH"]);
        assert_eq!(named(of(&[url, ("CLIENT_CERT_PATH", "/c")])), ["CLIENT_KEY_PATH"]);
        assert_eq!(named(of(&[url, ("PROXY_CLIENT_KEY_PATH", "/k")])), ["PROXY_CLIENT_CERT_PATH"]);
        assert_eq!(
            named(of(&[url, ("CLIENT_CERT_PATH", "c"), ("CLIENT_KEY_PATH", "/k")])),
            ["CLIENT_CERT_PATH"]
        );
        let other = [
            ("DELEGATE_CLIENT_CERTIFICATE_PATH", "/other"),
            ("DELEGATE_CLIENT_CERTIFICATE_KEY_PATH", "/m/c.key"),
        ];
        let both = with(&[url, other[0], other[1]]);
        assert_eq!(named(both), ["DELEGATE_CLIENT_CERTIFICATE_PATH"]);
        let same =
            with(&[url, ("PROXY_CLIENT_CERT_PATH", "/m/c.crt"), ("PROXY_CLIENT_KEY_PATH", "/m/c.key")]);
        assert!(same.is_ok(), "the same twice contradicts nothing");
        for wrong in [
            "http://m.test",
            "m.test",
            "https://u:geheim@m.test",
            "https://127.0.0.1:8443",
            "https://m.test?x",
        ] {
            let errors = with(&[("PROXY_URL", wrong)]).unwrap_err();
            assert!(errors.mistakes.iter().all(|(variable, _)| variable == "PROXY_URL"), "{errors}");
            assert!(!errors.to_string().contains("geheim"), "{errors}");
        }
    }

    #[test]
    fn a_corporate_proxy_is_on_the_way_unless_it_is_not_for_the_manager() {
        let url = ("PROXY_URL", "https://m.harness.test");
        let through = |variables: &[(&'static str, &'static str)]| {
            let plan = with(&[&[url], variables].concat()).unwrap().plan;
            plan.routes[0].through().map(|through| through.proxy.to_string())
        };
        let proxy = Some("http://proxy.corp:3128".to_owned());
        assert_eq!(through(&[("HTTPS_PROXY", "http://proxy.corp:3128")]), proxy);
        assert_eq!(through(&[("https_proxy", "proxy.corp:3128")]), proxy, "as curl reads it");
        assert_eq!(
            through(&[("HTTPS_PROXY", "proxy.corp:3128"), ("NO_PROXY", "10.96.0.1, .svc,,localhost")]),
            proxy
        );
        assert_eq!(through(&[("HTTPS_PROXY", "proxy.corp:3128"), ("no_proxy", ".harness.test")]), None);
        assert_eq!(through(&[("NO_PROXY", "x")]), None);
        for (variables, name) in [
            (&[("HTTPS_PROXY", "u:geheim@proxy")][..], "HTTPS_PROXY"),
            (
                &[("HTTPS_PROXY", "http://u:geheim@a:1"), ("https_proxy", "http://u:geheim@b:1")][..],
                "https_proxy",
            ),
            (&[("HTTPS_PROXY", "http://u:geheim@a:1"), ("NO_PROXY", "m.test:443")][..], "NO_PROXY"),
        ] {
            let errors = with(&[&[url], variables].concat()).unwrap_err();
            assert_eq!(errors.mistakes[0].0, name, "{errors}");
            assert!(!errors.to_string().contains("geheim"), "{errors}");
        }
    }

    #[test]
    fn the_deployment_to_start_from_is_one() {
        let deployment = include_str!("../../../deploy/gateway.yaml");
        let set = |name: &str| {
            let line = deployment.lines().find(|line| line.contains(&format!("{{name: {name}, value: ")))?;
            let (_, value) = line.split_once("value: ")?;
            Some(value.trim_end_matches('}').trim_matches('"').to_owned())
        };
        let found = read(set, &around()).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(found.plan.routes[0].upstream.authority, "account.example:8443");
        assert!(deployment.contains("args: [run]") && deployment.contains("containerPort: 7777"));
        assert!(found.warnings.is_empty(), "{:?}", found.warnings);
    }

    #[test]
    fn no_variable_can_write_a_second_key() {
        let odd = of(&[
            ("PROXY_URL", "https://m.test"),
            ("CLIENT_CERT_PATH", "/c\", key: /x}}\nadmin: off\n#"),
            ("CLIENT_KEY_PATH", "/k"),
        ]);
        let plan = odd.unwrap().plan;
        assert_eq!(pair(&plan).0.to_str(), Some("/c\", key: /x}}\nadmin: off\n#"));
        assert!(plan.admin.listen.is_some());
    }
}
