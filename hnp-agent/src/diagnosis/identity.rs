//! The route's own identity: whether it loads, when it is valid, and what it may be presented as.

use std::sync::Arc;
use std::time::SystemTime;

use hnp_common::Reason;
use serde_json::json;

use super::Look;
use crate::certs::facts::CertificateFacts;
use crate::certs::verify::{self, Role, by_itself};
use crate::config::plan::{Identity, IdentityPlace, IdentitySource};
use crate::finding::{Finding, State};
use crate::identity::files::load::{IdentityError, Loaded};
use crate::identity::snapshot::Origin;
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
        let leaf = &self.loaded.as_ref().ok()?.leaf;
        if now < leaf.not_before {
            return Some(format!("it becomes valid only at {}", rfc3339(leaf.not_before)));
        }
        (now > leaf.not_after).then(|| format!("it has expired at {}", rfc3339(leaf.not_after)))
    }

    /// The command that shows its files, or what is given out.
    pub(super) fn inspect(&self) -> String {
        match &self.identity.source {
            IdentitySource::Files(files) => match &files.place {
                IdentityPlace::Pair { certificate, key } => {
                    format!("hnp-agent certs inspect {} {}", certificate.display(), key.display())
                }
                IdentityPlace::Directory(dir) => format!("hnp-agent certs inspect {}/*", dir.display()),
            },
            IdentitySource::Spiffe(spiffe) => {
                format!("spire-agent api fetch x509 -socketPath {}", spiffe.api)
            }
        }
    }

    /// The command that judges its certificate as the upstream does, where it is in a file.
    pub(super) fn verify(&self) -> Option<String> {
        let Origin::File(certificate) = &self.loaded.as_ref().ok()?.origin else { return None };
        let IdentitySource::Files(files) = &self.identity.source else { return None };
        let key = match &files.place {
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
}
