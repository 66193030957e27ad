//! The route's own identity: whether it loads, when it is valid, and what it may be presented as.

use std::sync::Arc;
use std::time::SystemTime;

use hnp_common::Reason;
use serde_json::json;

use super::Look;
use crate::certs::facts::CertificateFacts;
use crate::certs::verify::{self, Role, by_itself};
use crate::config::plan::{Identity, IdentityPlace, IdentitySource, Issuer};
use crate::finding::{Finding, State};
use crate::identity::files::load::{IdentityError, Loaded};
use crate::identity::issuer::mint::{self, Minted};
use crate::identity::snapshot::Origin;
use crate::telemetry::rfc3339;
use crate::workload::Account;
use crate::x509;

/// The identity that the route presents.
pub(super) struct Own {
    pub(super) identity: Arc<Identity>,
    /// What is presented; of an issuer that was named no workload, its intermediate, which never is.
    pub(super) loaded: Result<Loaded, IdentityError>,
    /// The issuer's, where there is one.
    intermediate: Option<Loaded>,
    /// For whom it has issued.
    workload: Option<Account>,
}

impl Own {
    /// `workload`: on whose behalf the upstream is asked, where each has an identity of its own.
    pub(super) fn load(identity: &Arc<Identity>, workload: Option<&Account>, now: SystemTime) -> Self {
        let own = |loaded, intermediate, workload: Option<&Account>| Self {
            identity: Arc::clone(identity),
            loaded,
            intermediate,
            workload: workload.cloned(),
        };
        let Some(issuer) = identity.source.issuer() else {
            return own(crate::identity::load(identity), None, None);
        };
        let (intermediate, mint) = match mint::load(issuer, now) {
            Ok(loaded) => loaded,
            Err(error) => return own(Err(error), None, None),
        };
        let Some(workload) = workload else { return own(Ok(intermediate.clone()), Some(intermediate), None) };
        let issued = mint.workload(workload, None, now).map(|Minted { certified_key, leaf }| Loaded {
            certified_key,
            leaf,
            origin: intermediate.origin.clone(),
            warnings: Vec::new(),
        });
        let issued = issued.map_err(|error| IdentityError::CannotIssue(error.to_string()));
        own(issued, Some(intermediate), Some(workload))
    }

    /// Why nothing is presented although it is in order.
    pub(super) fn withheld(&self) -> Option<&'static str> {
        (self.intermediate.is_some() && self.workload.is_none()).then_some(
            "each workload has an identity of its own here, and none was named: --as NAMESPACE/SERVICE-ACCOUNT has one \
             issued and asks with it",
        )
    }

    /// The certificates whose issuers the upstream may name: what is presented, or what would issue it.
    pub(super) fn issuers(&self) -> Vec<(Vec<u8>, String)> {
        let own = self.loaded.as_ref().ok();
        let chain = own.map(|own| own.certified_key.cert.as_slice()).unwrap_or_default();
        let parsed: Vec<_> = chain.iter().filter_map(|der| x509::parse(der).ok()).collect();
        let itself = parsed.first().filter(|_| self.withheld().is_some()).map(|one| one.subject());
        let names = itself.into_iter().chain(parsed.iter().map(|one| one.issuer()));
        names.map(|name| (name.as_raw().to_vec(), x509::distinguished_name(name))).collect()
    }

    /// Why it is not valid at a moment, if it is not.
    pub(super) fn not_valid_at(&self, now: SystemTime) -> Option<String> {
        self.loaded.as_ref().ok()?.leaf.lifetime().not_valid_at(now)
    }

    /// The command that shows its files, or what is given out.
    pub(super) fn inspect(&self) -> String {
        let files = match &self.identity.source {
            IdentitySource::Files(files) => files,
            IdentitySource::Issuer(issuer) => &issuer.intermediate,
            IdentitySource::Spiffe(spiffe) => {
                return format!("spire-agent api fetch x509 -socketPath {}", spiffe.api);
            }
        };
        match &files.place {
            IdentityPlace::Pair { certificate, key } => {
                format!("hnp-agent certs inspect {} {}", certificate.display(), key.display())
            }
            IdentityPlace::Directory(dir) => format!("hnp-agent certs inspect {}/*", dir.display()),
        }
    }

    /// The command that judges its certificate as the upstream does, where it is in a file.
    pub(super) fn verify(&self) -> Option<String> {
        let Origin::File(certificate) = &self.loaded.as_ref().ok()?.origin else { return None };
        if self.intermediate.is_some() {
            return Some(format!(
                "hnp-agent certs verify {} --ca UPSTREAM-CA-FOR-CLIENTS.crt",
                certificate.display()
            ));
        }
        let key = match &self.identity.source.files()?.place {
            IdentityPlace::Pair { key, .. } => format!(" --key {}", key.display()),
            IdentityPlace::Directory(_) => String::new(),
        };
        let certificate = certificate.display();
        Some(format!(
            "hnp-agent certs verify {certificate}{key} --usage client --ca UPSTREAM-CA-FOR-CLIENTS.crt"
        ))
    }
}

impl Look<'_> {
    pub(super) fn own_identity(&self) -> Vec<Finding> {
        let Some(own) = &self.identity else { return Vec::new() };
        let area = "identity";
        let what = &*own.identity.name;
        let loaded = match &own.loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                let detail = format!("cannot be loaded, so nothing is sent: {error}");
                return vec![
                    Finding::bad(area, what, Reason::IdentityUnavailable, detail).next(own.inspect()),
                ];
            }
        };
        let mut findings = Vec::new();
        if let (Some(intermediate), Some(issuer)) = (&own.intermediate, own.identity.source.issuer()) {
            findings.push(self.intermediate(what, intermediate, issuer));
            let risky = intermediate.warnings.iter();
            findings.extend(risky.map(|warning| {
                Finding::new(area, what, State::Degraded, warning.to_string()).next(own.inspect())
            }));
            if let Some(why) = own.withheld() {
                findings.push(super::skipped(area, "a workload's certificate", why));
                return findings;
            }
        }
        let issued =
            own.workload.as_ref().map(|Account { namespace, name }| format!("for {namespace}/{name}"));
        let what = issued.as_deref().unwrap_or(what);
        let Some(leaf) = loaded.certified_key.cert.first() else { return findings };
        let facts = CertificateFacts::of(leaf, self.now);
        let until = rfc3339(loaded.leaf.not_after);
        let detail = format!(
            "{}, issued by {}, until {until}; the key belongs to it",
            loaded.leaf.subject, loaded.leaf.issuer
        );
        let finding = match own.not_valid_at(self.now) {
            None => Finding::new(area, what, State::Good, detail),
            Some(why) => {
                let detail = format!(
                    "{why}; this node's clock says {}. Servers refuse it: {}",
                    rfc3339(self.now),
                    loaded.leaf.subject
                );
                let renew = match &loaded.origin {
                    Origin::File(path) => format!("date -u; hnp-agent certs renew {}", path.display()),
                    Origin::WorkloadApi { .. } => format!("date -u; {}", own.inspect()),
                };
                Finding::bad(area, what, Reason::ClientCertificateRefused, detail).next(renew)
            }
        };
        findings.push(match facts {
            Ok(facts) => finding.seen(Vec::new(), json!({"certificate": facts})),
            Err(_) => finding,
        });
        // What is wrong with the dates has been said.
        let of_dates = loaded.not_now();
        for warning in loaded.warnings.iter().filter(|warning| Some(*warning) != of_dates) {
            findings.push(Finding::new(area, what, State::Degraded, warning.to_string()).next(own.inspect()));
        }
        let usage = by_itself(leaf, Role::Client).ok().into_iter().flatten();
        for check in usage.filter(|check| check.state == verify::State::Failed) {
            let finding = Finding::bad(area, what, Reason::ClientCertificateRefused, check.what);
            findings.push(finding.next(check.fix.unwrap_or_else(|| own.inspect())));
        }
        findings
    }

    fn intermediate(&self, what: &str, intermediate: &Loaded, issuer: &Issuer) -> Finding {
        let until = rfc3339(intermediate.leaf.not_after);
        let detail = format!(
            "issues spiffe://{}/ns/NAMESPACE/sa/SERVICE-ACCOUNT by {}, itself issued by {}, until {until}; the key belongs \
             to it",
            issuer.trust_domain, intermediate.leaf.subject, intermediate.leaf.issuer
        );
        let finding = Finding::new("identity", what, State::Good, detail);
        let certificate = intermediate.certified_key.cert.first();
        match certificate.and_then(|der| CertificateFacts::of(der, self.now).ok()) {
            Some(facts) => finding.seen(Vec::new(), json!({"certificate": facts})),
            None => finding,
        }
    }
}
