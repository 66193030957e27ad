//! The route's own identity: whether it loads, when it is valid, and what it may be presented as.

use std::sync::Arc;
use std::time::SystemTime;

use hnp_common::Reason;
use serde_json::json;

use super::Look;
use crate::certs::facts::CertificateFacts;
use crate::certs::verify::{self, Role, by_itself};
use crate::config::plan::{Identity, IdentityPlace};
use crate::finding::{Finding, State};
use crate::identity::files::load::{IdentityError, Loaded};
use crate::telemetry::rfc3339;

/// The identity that the route presents.
pub(super) struct Own {
    pub(super) identity: Arc<Identity>,
    pub(super) loaded: Result<Loaded, IdentityError>,
}

impl Own {
    pub(super) fn load(identity: &Arc<Identity>) -> Self {
        Self { identity: Arc::clone(identity), loaded: crate::identity::load(identity) }
    }

    /// Why it is not valid at a moment, if it is not.
    pub(super) fn not_valid_at(&self, now: SystemTime) -> Option<String> {
        self.loaded.as_ref().ok()?.leaf.lifetime().not_valid_at(now)
    }

    /// The command that shows its files.
    pub(super) fn inspect(&self) -> String {
        match &self.identity.source.files().place {
            IdentityPlace::Pair { certificate, key } => {
                format!("hnp-agent certs inspect {} {}", certificate.display(), key.display())
            }
            IdentityPlace::Directory(dir) => format!("hnp-agent certs inspect {}/*", dir.display()),
        }
    }

    /// The command that judges its certificate as the upstream does.
    pub(super) fn verify(&self) -> Option<String> {
        let certificate = &self.loaded.as_ref().ok()?.certificate;
        let key = match &self.identity.source.files().place {
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
        let Some(leaf) = loaded.certified_key.cert.first() else { return Vec::new() };
        let mut findings = Vec::new();
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
                let renew = format!("date -u; hnp-agent certs renew {}", loaded.certificate.display());
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
}
