//! What the upstream shows in a handshake: version, key exchange, chain; and what the route's trust says of it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hnp_common::Reason;
use rustls::{CertificateError, Error};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::probe::{self, Shown};
use super::{Look, Place, dial_failed, ms, skipped};
use crate::certs::facts::CertificateFacts;
use crate::certs::verify::signs;
use crate::config::humane;
use crate::config::plan::{NamePattern, Roots, Trust};
use crate::finding::{Finding, State};
use crate::telemetry::rfc3339;
use crate::{spiffe, trust};

/// More of a tunnel's names than that are not asked for.
const NAMES: usize = 8;

impl Look<'_> {
    /// A handshake in each place; what those showed that came so far.
    pub(super) async fn tls(&self, places: &[Place], findings: &mut Vec<Finding>) -> Vec<(Place, Shown)> {
        if places.is_empty() {
            let why = "nobody is there to shake hands with";
            findings.push(skipped("tls", "the upstream", why));
            findings.push(skipped("certificate", "the upstream's", why));
        }
        let mut all = Vec::new();
        let names = self.names();
        let tries = places.iter().flat_map(|place| names.iter().map(move |name| (place, name)));
        // At once: each may take all of its deadline.
        let tries = tries.map(async |(place, name)| {
            let began = Instant::now();
            let shown = self.shake_hands(*place, name).await;
            (place, name, shown, began.elapsed())
        });
        for (place, name, shown, took) in join_all(tries).await {
            let shown = match shown {
                Ok(shown) => shown,
                Err(finding) => {
                    findings.push(finding);
                    findings.push(skipped(
                        "certificate",
                        place.to_string(),
                        "the handshake did not come so far",
                    ));
                    continue;
                }
            };
            findings.push(session(*place, &shown, took));
            findings.push(self.certificate(*place, name, &shown));
            all.push((*place, shown));
        }
        all
    }

    /// The names to ask for: the upstream's own, and of a tunnel those that pods ask for.
    fn names(&self) -> Vec<ServerName<'static>> {
        let exact = |pattern: &NamePattern| match pattern {
            NamePattern::Exact(name) => ServerName::try_from(name.to_string()).ok(),
            NamePattern::Below(_) => None,
        };
        let tunnel = self.route().tunnel();
        let mut names: Vec<_> = tunnel.iter().flat_map(|tunnel| &tunnel.names).filter_map(exact).collect();
        names.truncate(NAMES);
        if names.is_empty() {
            names.push(self.route().upstream.server_name.clone());
        }
        names
    }

    async fn shake_hands(&self, place: Place, name: &ServerName<'static>) -> Result<Shown, Finding> {
        let route = self.route();
        let what = place.to_string();
        let transport = self.dial(place).await;
        let transport =
            transport.map_err(|error| dial_failed("tls", &*what, &error, &route.upstream.host))?;
        let judge = self.trust.as_ref().and_then(|(_, trust)| trust.as_ref().ok());
        let handshake = probe::handshake(transport, name.clone(), judge.map(|trust| &**trust), self.offer());
        match timeout(route.timeouts.tls, handshake).await {
            Ok(Ok(shown)) => Ok(shown),
            Ok(Err(error)) => Err(Finding::bad("tls", what, Reason::Internal, error.to_string())),
            Err(_) => {
                let reason = Reason::UpstreamTlsTimeout;
                let detail =
                    format!("no TLS handshake within {}. {}", humane(route.timeouts.tls), reason.fix());
                Err(Finding::bad("tls", what, reason, detail).next(self.s_client()))
            }
        }
    }

    /// The same handshake by somebody else.
    fn s_client(&self) -> String {
        let upstream = &self.route().upstream;
        let name = upstream.server_name.to_str();
        format!("openssl s_client -connect {}:{} -servername {name}", upstream.host, upstream.port)
    }

    fn certificate(&self, place: Place, name: &ServerName<'_>, shown: &Shown) -> Finding {
        let (what, area) = (place.to_string(), "certificate");
        let facts: Vec<Result<CertificateFacts, String>> =
            shown.chain.iter().map(|der| CertificateFacts::of(der, self.now)).collect();
        let lines = facts.iter().enumerate().map(|(at, facts)| line(at, facts)).collect();
        let all: Vec<Value> = facts
            .iter()
            .map(|facts| match facts {
                Ok(facts) => json!(facts),
                Err(error) => json!({"error": error}),
            })
            .collect();
        let finding = match (&shown.verdict, &self.trust) {
            (None, _) if shown.chain.is_empty() => skipped(area, what, "none was shown"),
            (None, Some(_)) => skipped(area, what, "there are no roots to judge it by"),
            (None, None) => self.name_in_tunnel(what, name, shown, &facts),
            (Some(Ok(())), _) => {
                // What was looked for is not the host's name where roots are SPIFFE's.
                let name = match self.trust.as_ref().map(|(trust, _)| &trust.roots) {
                    Some(Roots::Spiffe(_)) => {
                        shown.chain.first().and_then(|leaf| spiffe::id_of_leaf(leaf).ok())
                    }
                    _ => None,
                };
                let name = name
                    .map_or_else(|| self.route().upstream.server_name.to_str().into(), |id| id.to_string());
                Finding::new(
                    area,
                    what,
                    State::Good,
                    format!("is for {name}, valid, and leads to a trusted root"),
                )
            }
            (Some(Err(error)), trust) => {
                let (detail, next) =
                    self.cause(error, shown, &facts, trust.as_ref().map(|(trust, _)| &**trust));
                Finding::bad(area, what, trust::reason_of(error), detail).next(next)
            }
        };
        finding.seen(lines, json!({"certificates": all}))
    }

    /// What the verifier's word means here, and what to do.
    fn cause(
        &self,
        error: &Error,
        shown: &Shown,
        facts: &[Result<CertificateFacts, String>],
        trust: Option<&Trust>,
    ) -> (String, String) {
        let wanted = self.route().upstream.server_name.to_str();
        let good = || facts.iter().filter_map(|facts| facts.as_ref().ok());
        let roots = match trust.map(|trust| &trust.roots) {
            Some(Roots::File(path)) => path.display().to_string(),
            Some(other @ (Roots::System | Roots::Spiffe(_))) => other.to_string(),
            None => "nobody".into(),
        };
        let inspect = format!("hnp-agent certs inspect {roots}");
        match error {
            Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => {
                let here = rfc3339(self.now);
                let wrong: Vec<String> = good()
                    .filter(|facts| facts.state != "valid")
                    .map(|facts| match facts.state {
                        "expired" => format!("{} has expired, at {}", facts.subject, facts.not_after),
                        _ => format!("{} becomes valid only at {}", facts.subject, facts.not_before),
                    })
                    .collect();
                let wrong = if wrong.is_empty() { error.to_string() } else { wrong.join("; ") };
                let detail = format!("{wrong}; this node's clock says {here}");
                (detail, "date -u; if the clock is right, have the manager's certificate renewed".into())
            }
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => {
                let names = good().next().map(|leaf| leaf.names.join(", ")).unwrap_or_default();
                let names = if names.is_empty() { "nobody (it has no subjectAltName)".into() } else { names };
                let detail = format!("is for {names}, and {wanted} is expected");
                let next = "set the route's `server_name` to a name it has, if that is the manager you mean; or have \
                            it issued for the name that is expected";
                (detail, next.into())
            }
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                let top = good().nth(top_of(&shown.chain));
                let detail = match top {
                    Some(top) if top.self_signed => {
                        format!(
                            "ends with \"{}\", which has signed itself and is not among {roots}",
                            top.subject
                        )
                    }
                    Some(top) => format!(
                        "ends with \"{}\", and its issuer \"{}\" is not among {roots}: where that is a root, the \
                         trust needs it; where it is an intermediate, the manager must send it, too",
                        top.subject, top.issuer
                    ),
                    None => error.to_string(),
                };
                (detail, inspect)
            }
            Error::InvalidCertificate(CertificateError::BadSignature) => {
                let issuer = good().next().map(|leaf| leaf.issuer.clone()).unwrap_or_default();
                let detail = format!(
                    "a CA called as an issuer of it (\"{issuer}\") is among {roots}, with another key: the CA was made \
                     anew"
                );
                (detail, inspect)
            }
            other => (trust::peer::words(other), self.s_client()),
        }
    }

    /// A tunnel's pods judge the certificate themselves; its names are all that can be told.
    fn name_in_tunnel(
        &self,
        what: String,
        name: &ServerName<'_>,
        shown: &Shown,
        facts: &[Result<CertificateFacts, String>],
    ) -> Finding {
        let names = match facts.first() {
            Some(Ok(leaf)) => leaf.names.join(", "),
            Some(Err(error)) => error.clone(),
            None => String::new(),
        };
        if shown.chain.first().is_some_and(|leaf| is_for(leaf, name)) {
            let detail = format!("is for {}; pods judge the rest of it themselves", name.to_str());
            return Finding::new("certificate", what, State::Good, detail);
        }
        let detail =
            format!("is for {names}, and not for {}; pods that ask for that refuse it", name.to_str());
        Finding::new("certificate", what, State::Degraded, detail).next(self.s_client())
    }
}

fn is_for(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    let parsed = rustls::server::ParsedCertificate::try_from(leaf);
    parsed.is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, name).is_ok())
}

/// The session, apart from the certificate.
fn session(place: Place, shown: &Shown, took: Duration) -> Finding {
    let what = place.to_string();
    let said = [
        shown.version.map(str::to_owned),
        shown.key_exchange.map(str::to_owned),
        shown.cipher_suite.clone(),
        shown.protocol.as_ref().map(|protocol| format!("ALPN {protocol}")),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    let facts = json!({
        "version": shown.version,
        "key_exchange": shown.key_exchange,
        "cipher_suite": shown.cipher_suite,
        "alpn": shown.protocol,
        "ms": ms(took),
    });
    // What comes after the certificates is said there, and of a certificate that we do not present here.
    let told_later = matches!(shown.verdict, Some(Err(_)))
        || (shown.verdict.is_none() && !shown.chain.is_empty())
        || shown.asked.is_some();
    let finding = match &shown.failed {
        Some(error) if !told_later => {
            let reason = trust::reason_of_io(error);
            let detail = format!("{error}. {}", reason.fix());
            Finding::bad("tls", what, reason, detail).next(format!("hnp-agent explain {}", reason.code()))
        }
        Some(_) | None => Finding::new("tls", what, State::Good, said.join(", ")),
    };
    finding.seen(Vec::new(), facts)
}

/// The place of the last certificate to which a chain leads, its leaf first.
fn top_of(chain: &[CertificateDer<'_>]) -> usize {
    let mut top = 0;
    // Each one once: a chain can be a circle.
    for _ in 1..chain.len() {
        let next = (1..chain.len()).find(|at| *at != top && signs(&chain[*at], &chain[top]));
        match next {
            Some(next) => top = next,
            None => break,
        }
    }
    top
}

fn line(at: usize, facts: &Result<CertificateFacts, String>) -> String {
    match facts {
        Ok(facts) => {
            let CertificateFacts { subject, issuer, serial, not_before, not_after, state, names, .. } = facts;
            let names = if names.is_empty() { "no names".into() } else { names.join(", ") };
            format!(
                "{at}: {subject}, issued by {issuer}, serial {serial}, {not_before} to {not_after} ({state}), {names}"
            )
        }
        Err(error) => format!("{at}: is not X.509: {error}"),
    }
}
