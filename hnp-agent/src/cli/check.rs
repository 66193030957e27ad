//! `hnp-agent check`: reads a configuration and the files it names, and says what it amounts to.
//!
//! Changes nothing, resolves nothing, needs no privileges beyond reading the files; so it runs in a
//! pipeline as well as on the node. Exit code 0: the agent would serve. 1: it would not, and stderr
//! has one line for each mistake.

mod promises;
mod summary;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::config::plan::{CaptureMode, Identity, Plan, Roots, Trust};
use crate::config::upstream_proxy::UpstreamProxy;
use crate::config::{self, LoadError, Mistake};
use crate::expiry::Expiry;
use crate::identity::issuer::mint;
use crate::identity::snapshot::Origin;
use crate::telemetry::rfc3339;
use crate::{identity, trust, upstream};
use promises::Shown;
use summary::{
    IdentitySummary, LeafSummary, Summary, TrustSummary, UpstreamProxySummary, agent_summary,
    gateway_summary, route_summary, upstream_proxy_summary,
};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The configuration (YAML; docs/configuration.md has every key). Without it, the environment is taken, as
    /// by `run`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Prints what the configuration amounts to, and its mistakes.
pub fn run(args: &CheckArgs) -> ExitCode {
    let report = match &args.config {
        Some(file) => Report::of(file),
        None => Report::of_environment(),
    };
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(Into::into).and_then(|()| writeln!(out))
    } else {
        for mistake in &report.mistakes {
            eprintln!("{}", report.located(mistake));
        }
        for warning in &report.warnings {
            eprintln!("{} (warning)", report.located(warning));
        }
        out.write_all(report.text().as_bytes())
    };
    if report.ok && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All that `check` found.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    ok: bool,
    mistakes: Vec<Finding>,
    warnings: Vec<Finding>,
    /// Missing when the configuration itself has mistakes.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Summary>,
}

/// A mistake or a warning.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// Missing where the mistake is not in the configuration but in a file it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    key: String,
    what: String,
}

impl Report {
    fn of(file: &Path) -> Self {
        let mut report =
            Self { file: file.to_owned(), ok: false, mistakes: Vec::new(), warnings: Vec::new(), plan: None };
        match config::load(file) {
            Ok((plan, warnings)) => {
                report.warnings.extend(warnings.iter().map(Finding::in_config));
                let summary = report.summary(&plan);
                report.plan = Some(summary);
            }
            Err(LoadError::Mistakes(errors)) => {
                report.mistakes.extend(errors.mistakes.iter().map(Finding::in_config));
            }
            Err(
                error @ (LoadError::Unreadable { .. }
                | LoadError::TooLarge { .. }
                | LoadError::NotText { .. }),
            ) => {
                let words = error.to_string();
                let what = words.strip_prefix(&format!("{}: ", file.display())).unwrap_or(&words);
                report.mistakes.push(Finding::elsewhere(String::new(), what));
            }
        }
        report.ok = report.mistakes.is_empty();
        report
    }

    /// What the environment amounts to; findings name variables, where they are about one.
    fn of_environment() -> Self {
        let (file, ok) = (PathBuf::from("environment"), false);
        let mut report = Self { file, ok, mistakes: Vec::new(), warnings: Vec::new(), plan: None };
        match config::from_environment() {
            Ok(found) => {
                let warnings = found.warnings.iter();
                report.warnings.extend(warnings.map(|one| Finding::elsewhere(one.key.clone(), &one.what)));
                let summary = report.summary(&found.plan);
                report.plan = Some(summary);
                for finding in report.mistakes.iter_mut().chain(&mut report.warnings) {
                    if finding.key.starts_with("identities.") {
                        found.certificate.clone_into(&mut finding.key);
                    }
                }
            }
            Err(errors) => {
                let mistakes = errors.mistakes.into_iter();
                report.mistakes.extend(mistakes.map(|(variable, what)| Finding::elsewhere(variable, what)));
            }
        }
        report.ok = report.mistakes.is_empty();
        report
    }

    /// Loads what the Plan names; what is wrong with it is noted.
    fn summary(&mut self, plan: &Plan) -> Summary {
        for path in [&plan.resolver.resolv_conf, &plan.resolver.hosts] {
            if let Err(error) = crate::files::read(path) {
                self.warnings
                    .push(Finding::elsewhere("resolver".into(), format!("{}: {error}", path.display())));
            }
        }
        for (index, route) in plan.routes.iter().enumerate() {
            self.warnings.extend(promises::way_out(index, route));
            self.warnings.extend(promises::by_address(index, route, plan));
            match plan.capture.mode {
                CaptureMode::On => {
                    self.warnings.extend(promises::by_name(index, route));
                    self.warnings.extend(promises::unguarded(index, route, &plan.capture));
                }
                CaptureMode::Off => {
                    self.warnings.extend(promises::uncaptured(index, route, &plan.capture));
                }
            }
        }
        let (identities, shown): (Vec<_>, Vec<_>) =
            plan.identities.iter().map(|identity| self.identity(identity)).unzip();
        for (index, route) in plan.routes.iter().enumerate() {
            self.warnings.extend(promises::unserved(index, route, &shown));
        }
        Summary {
            routes: plan.routes.iter().map(|route| route_summary(plan, route)).collect(),
            identities,
            trusts: plan.trusts.iter().map(|trust| self.trust(trust)).collect(),
            upstream_proxies: plan.upstream_proxies.iter().map(|proxy| self.upstream_proxy(proxy)).collect(),
            gateway: plan.gateway.as_ref().map(|gateway| gateway_summary(plan, gateway)),
            agent: agent_summary(plan),
        }
    }

    /// Loads an identity; with what pods would be shown of it.
    fn identity(&mut self, identity: &Identity) -> (IdentitySummary, Option<Shown>) {
        let key = format!("identities.{}", identity.name);
        let loaded = match identity.source.issuer() {
            Some(issuer) => mint::load(issuer, crate::clock::now())
                .map(|(loaded, mint)| (loaded, Some(Shown::Issued(Box::new(mint))))),
            None => identity::load(identity).map(|loaded| {
                let leaf = loaded.certified_key.cert.first().cloned();
                (loaded, leaf.map(Shown::Leaf))
            }),
        };
        let (leaf, shown) = match loaded {
            Ok((loaded, shown)) => {
                let warnings = loaded.warnings.iter().map(|warning| Finding::elsewhere(key.clone(), warning));
                self.warnings.extend(warnings);
                let leaf = loaded.leaf;
                // An end that is past was said.
                if leaf.is_valid_at(crate::clock::now()) {
                    self.age(&key, Expiry::of_leaf(&loaded.origin, leaf.lifetime()));
                }
                let leaf = LeafSummary {
                    spiffe_id: match &loaded.origin {
                        Origin::WorkloadApi { id, .. } => Some(id.to_string()),
                        Origin::File(_) => None,
                    },
                    subject: leaf.subject,
                    issuer: leaf.issuer,
                    serial: leaf.serial,
                    not_before: rfc3339(leaf.not_before),
                    not_after: rfc3339(leaf.not_after),
                    version: leaf.version,
                    chain_length: loaded.certified_key.cert.len(),
                };
                (Some(leaf), shown)
            }
            Err(error) => {
                self.mistakes.push(Finding::elsewhere(key, error));
                (None, None)
            }
        };
        (IdentitySummary::of(identity, leaf), shown)
    }

    fn trust(&mut self, trust: &Trust) -> TrustSummary {
        let key = format!("trusts.{}", trust.name);
        let roots = match trust::load::load(trust) {
            Ok(loaded) => {
                self.warnings
                    .extend(loaded.warnings.iter().map(|warning| Finding::elsewhere(key.clone(), warning)));
                if matches!(trust.roots, Roots::File(_)) {
                    let origin = trust.roots.to_string();
                    for root in &loaded.dates {
                        self.age(&key, Expiry::of_root(&root.subject, &origin, root.lifetime));
                    }
                }
                Some((loaded.roots, loaded.lists.count()))
            }
            Err(error) => {
                self.mistakes.push(Finding::elsewhere(key, error));
                None
            }
        };
        TrustSummary {
            name: trust.name.to_string(),
            source: trust.roots.to_string(),
            crls: trust.revocation.crls.clone(),
            lists: roots.map(|(_, lists)| lists).filter(|_| trust.revocation.crls.is_some()),
            roots: roots.map(|(roots, _)| roots),
            ids: trust.peers.ids.iter().map(ToString::to_string).collect(),
            names: trust.peers.names.iter().map(ToString::to_string).collect(),
            tls_min: trust.tls_min.as_str(),
        }
    }

    /// Warns where most of a certificate's lifetime is over.
    fn age(&mut self, key: &str, mut expiry: Expiry) {
        if let Some((_, words)) = expiry.look(crate::clock::now()).filter(|(stage, _)| stage.is_warning()) {
            self.warnings.push(Finding::elsewhere(key.to_owned(), words));
        }
    }

    fn upstream_proxy(&mut self, proxy: &UpstreamProxy) -> UpstreamProxySummary {
        if let Err(error) = upstream::credentials(proxy) {
            let key = format!("upstream_proxies.{}.credentials", proxy.name);
            self.mistakes.push(Finding::elsewhere(key, error));
        }
        upstream_proxy_summary(proxy)
    }

    /// A finding as a compiler would print it.
    fn located(&self, finding: &Finding) -> String {
        let mut text = self.file.display().to_string();
        if let (Some(line), Some(column)) = (finding.line, finding.column) {
            let _ = write!(text, ":{line}:{column}");
        }
        if !finding.key.is_empty() {
            let _ = write!(text, ": {}", finding.key);
        }
        format!("{text}: {}", finding.what)
    }

    /// The tables, and a last line that says how it stands.
    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(plan) = &self.plan {
            plan.write(&mut text);
        }
        let verdict = match (self.mistakes.len(), self.warnings.len()) {
            (0, 0) => "no mistakes".to_owned(),
            (0, warnings) => format!("no mistakes, {warnings} warning(s)"),
            (mistakes, warnings) => format!("{mistakes} mistake(s), {warnings} warning(s)"),
        };
        let _ = writeln!(text, "{}: {verdict}", self.file.display());
        text
    }
}

impl Finding {
    fn in_config(mistake: &Mistake) -> Self {
        Self {
            line: Some(mistake.line),
            column: Some(mistake.column),
            key: mistake.key.clone(),
            what: mistake.what.clone(),
        }
    }

    fn elsewhere(key: String, what: impl ToString) -> Self {
        Self { line: None, column: None, key, what: what.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::files::testpki::{Ca, EXPIRED, VALID};

    struct Scene(TempDir);

    impl Scene {
        /// A configuration whose files are there and good.
        fn good(enforcement: &str) -> Self {
            let scene = Self(tempfile::tempdir().unwrap());
            let ca = Ca::new("CA");
            scene.pair(&ca.issue("client", VALID));
            scene.write("ca.crt", &ca.pem());
            let dir = scene.0.path().display();
            scene.write(
                "hnp.yaml",
                &format!(
                    "identities: {{c: {{certificate: {dir}/c.crt, key: {dir}/c.key}}}}\n\
                     trusts: {{t: {{roots: {dir}/ca.crt}}}}\n\
                     routes:\n\
                     - {{name: m, destinations: ['m.test:80', '198.18.0.9:80'], upstream: 'https://m.test:8443/b', \
                        identity: c, trust: t, enforcement: {enforcement}}}\n"
                ),
            );
            scene
        }

        fn pair(&self, (certificate, key): &(String, String)) {
            use std::os::unix::fs::PermissionsExt as _;
            self.write("c.crt", certificate);
            self.write("c.key", key);
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(self.0.path().join("c.key"), mode).unwrap();
        }

        fn write(&self, file: &str, text: &str) {
            std::fs::write(self.0.path().join(file), text).unwrap();
        }

        fn report(&self) -> Report {
            Report::of(&self.0.path().join("hnp.yaml"))
        }

        /// Findings, with the scene's directory cut out.
        fn lines(&self, findings: impl Fn(&Report) -> &Vec<Finding>) -> Vec<String> {
            let report = self.report();
            let dir = self.0.path().to_str().unwrap();
            findings(&report).iter().map(|finding| report.located(finding).replace(dir, "")).collect()
        }
    }

    #[test]
    fn a_good_configuration_is_shown_as_a_table_and_has_no_mistakes() {
        let scene = Scene::good("loose");
        let report = scene.report();
        assert!(report.ok && report.mistakes.is_empty() && report.warnings.is_empty(), "{report:?}");
        let text = report.text();
        for line in [
            "route m (loose, http, reverse-proxy)",
            "  destinations  m.test:80, 198.18.0.9:80",
            "  upstream      https://m.test:8443/b (certificate for m.test)",
            "  timeouts      head 10s, idle 90s, connect 5s, tls 5s, response 1m, ping 10s",
            "  subject       CN=client",
            "  valid         2020-01-01T00:00:00.000Z to 2090-01-01T00:00:00.000Z",
            "  roots         1",
            "  admin         127.0.0.1:15090, with the page",
            "  log           json, info, access lines on",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
        }
        assert!(text.ends_with("hnp.yaml: no mistakes\n"), "{text}");
    }

    #[test]
    fn a_strict_route_by_name_is_told_what_it_promises() {
        let warnings = Scene::good("strict").lines(|report| &report.warnings);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let expected =
            "/hnp.yaml: routes[0].destinations: route \"m\" is strict by name (m.test:80): it promises only";
        assert!(warnings[0].starts_with(expected), "{warnings:?}");
        assert!(warnings[0].contains("ClusterIP"));
    }

    #[test]
    fn what_a_strict_route_does_not_hold_is_listed_with_it() {
        let shown = |route: &str| Scene::good(route).report().text();
        let text = shown("strict");
        assert!(text.contains("  not held      hostNetwork pods' lent"), "{text}");
        assert!(
            text.contains("interfaces that are not veth") && text.contains("birth and the guard's attach")
        );
        assert!(!shown("loose").contains("not held"), "loose promises none of it");
        let json = serde_json::to_value(Scene::good("strict").report()).unwrap();
        assert!(json["plan"]["routes"][0]["not_held"].as_array().unwrap().len() > 4, "{json}");

        let off = "strict, overrides: [{namespaces: [a, b], enforcement: observe}]";
        let warnings = Scene::good(off).lines(|report| &report.warnings);
        let said =
            |line: &String| line.contains("routes[0].overrides: route \"m\" is strict and not guarded");
        assert_eq!(warnings.iter().filter(|line| said(line)).count(), 1, "{warnings:?}");
        assert!(shown(off).contains("  overrides     observe for namespaces a, b\n"), "{}", shown(off));
        // What is asked for does not hold where the guard would not either.
        let asked = format!("{off}}}\ncapture: {{raw_sockets: refuse, destroy_older_flows: true");
        let line = &Scene::good(&asked).lines(|report| &report.warnings)[1];
        assert!(line.contains("lent and packet sockets, flows older than the agent go direct"), "{line}");
        assert!(shown(&asked).contains("flows older than the agent\n"), "{}", shown(&asked));
        let all = "strict}\ncapture: {raw_sockets: refuse, destroy_older_flows: true";
        assert!(!shown(all).contains("flows older than the agent"), "{}", shown(all));
    }

    #[test]
    fn a_name_without_a_certificate_to_show_is_told() {
        let scene = Scene::good("loose");
        let dir = scene.0.path().display().to_string();
        let config = |names: &str| {
            format!(
                "identities: {{c: {{certificate: {dir}/c.crt, key: {dir}/c.key}}}}\n\
                 trusts: {{t: {{roots: {dir}/ca.crt}}}}\n\
                 routes:\n\
                 - {{name: m, destinations: [{names}, '198.18.0.9:443'], upstream: 'https://m.test', identity: c, \
                    trust: t, enforcement: loose, mode: end-to-end, end_to_end: {{serving: [c], client_auth: none}}}}\n"
            )
        };
        scene.pair(&Ca::new("serving").issue("*.m.test", VALID));
        scene.write("hnp.yaml", &config("'a.m.test:443', 'm.test:443', 'a.b.m.test:443'"));
        let told = scene.lines(|report| &report.warnings);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("has no certificate for m.test, a.b.m.test: "), "{told:?}");
        scene.write("hnp.yaml", &config("'a.m.test:443'"));
        assert_eq!(scene.lines(|report| &report.warnings), [""; 0], "the control");
    }

    #[test]
    fn names_that_a_strict_route_lets_through_are_shown_and_said_to_be_a_way_out() {
        let scene = Scene::good("strict, passthrough: [docs.test, '*.cdn.test']");
        let warnings = scene.lines(|report| &report.warnings);
        let said = |line: &String| {
            line.contains(
                "routes[0].passthrough: route \"m\" is strict and lets docs.test, *.cdn.test through",
            )
        };
        assert_eq!(warnings.iter().filter(|line| said(line)).count(), 1, "{warnings:?}");
        assert!(scene.report().text().contains("  passthrough   docs.test, *.cdn.test\n"));
        let none = Scene::good("strict");
        assert!(!none.lines(|report| &report.warnings).iter().any(|line| line.contains("passthrough")));
    }

    #[test]
    fn broken_files_are_mistakes_and_the_rest_is_shown_all_the_same() {
        let scene = Scene::good("loose");
        scene.write("c.key", "nothing");
        scene.write("ca.crt", "nothing");
        let mistakes = scene.lines(|report| &report.mistakes);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(
            mistakes[0].starts_with("/hnp.yaml: identities.c: /c.key: expected a PRIVATE KEY"),
            "{mistakes:?}"
        );
        assert!(
            mistakes[1].starts_with("/hnp.yaml: trusts.t: /ca.crt: expected at least one"),
            "{mistakes:?}"
        );
        let report = scene.report();
        assert!(!report.ok && report.text().contains("route m (loose"));
    }

    #[test]
    fn a_proxy_is_shown_without_its_password_and_its_file_is_looked_at() {
        let scene = Scene::good("loose, upstream_proxy: p");
        let base = std::fs::read_to_string(scene.0.path().join("hnp.yaml")).unwrap();
        let with = |proxy: &str| {
            scene.write("hnp.yaml", &format!("{base}upstream_proxies: {{p: {{{proxy}}}}}\n"));
            scene.report()
        };
        let everything = |report: &Report| {
            let findings = [&report.mistakes, &report.warnings].map(|all| format!("{all:?}")).concat();
            format!("{}{findings}{}{report:?}", report.text(), serde_json::to_string(report).unwrap())
        };
        let report =
            with("url: 'https://u:geheim@proxy.test:3128', trust: t, no_proxy: [a.test, 10.0.0.0/8]");
        assert!(report.ok, "{report:?}");
        for line in [
            "  upstream      https://m.test:8443/b (certificate for m.test) through proxy p",
            "upstream proxy p",
            "  url           https://proxy.test:3128",
            "  trust         t",
            "  credentials   in the url",
            "  not for       a.test, 10.0.0.0/8",
            "  timeouts      connect 5s, tls 5s, answer 10s",
        ] {
            assert!(
                report.text().lines().any(|found| found == line),
                "{line:?} is not in\n{}",
                report.text()
            );
        }
        assert!(!everything(&report).contains("geheim"));
        let exempt = with("url: 'http://proxy.test:3128', no_proxy: [test]");
        assert!(exempt.text().contains("m.test) directly: proxy p is not for it\n"), "{}", exempt.text());

        let file = scene.0.path().join("password");
        let in_file = format!("url: 'http://proxy.test:3128', credentials: {}", file.display());
        let missing = with(&in_file);
        assert!(!missing.ok && missing.mistakes[0].key == "upstream_proxies.p.credentials", "{missing:?}");
        scene.write("password", "geheim\n");
        let broken = with(&in_file);
        assert!(!broken.ok && broken.mistakes[0].what.contains("has no colon"), "{broken:?}");
        assert!(!everything(&broken).contains("geheim"));
        scene.write("password", "u:geheim\n");
        let good = with(&in_file);
        assert!(good.ok && !everything(&good).contains("geheim"), "{good:?}");
    }

    #[test]
    fn an_expired_certificate_is_a_warning() {
        let scene = Scene::good("loose");
        scene.pair(&Ca::new("CA").issue("client", EXPIRED));
        let warnings = scene.lines(|report| &report.warnings);
        assert!(warnings[0].starts_with("/hnp.yaml: identities.c: /c.crt: has expired"), "{warnings:?}");
        assert!(scene.report().ok);
    }

    #[test]
    fn mistakes_in_the_configuration_have_a_place_in_text_and_json() {
        let scene = Scene::good("sometimes");
        let mistakes = scene.lines(|report| &report.mistakes);
        assert!(mistakes[0].starts_with("/hnp.yaml:4:"), "{mistakes:?}");
        let json = serde_json::to_value(scene.report()).unwrap();
        assert_eq!((&json["ok"], &json["mistakes"][0]["line"]), (&false.into(), &4.into()));
        assert_eq!(json["mistakes"][0]["key"], "routes[0].enforcement");
        assert!(json.get("plan").is_none());
        let json = serde_json::to_value(Scene::good("loose").report()).unwrap();
        assert_eq!(json["plan"]["identities"][0]["leaf"]["subject"], "CN=client");
        assert_eq!(json["plan"]["routes"][0]["destinations"][1], "198.18.0.9:80");
    }

    #[test]
    fn a_missing_file_is_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let report = Report::of(&dir.path().join("no.yaml"));
        let shown = report.located(&report.mistakes[0]).replace(dir.path().to_str().unwrap(), "");
        assert!(shown.starts_with("/no.yaml: cannot be read: No such file"), "{shown}");
    }
}
