//! What the upstream demands of clients: whether it asks for a certificate, whether it serves who has none (LOOSE)
//! or not (STRICT), and whether it takes ours.
//!
//! Over TLS 1.3 a client has finished its handshake before a server has judged its certificate, and nginx tells only
//! in its answer: so the one who comes without a certificate asks for something, too.

use std::io;

use hnp_common::Reason;
use serde_json::json;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, X509Name};

use super::identity::Own;
use super::probe::{self, Shown};
use super::request::{self, Answer, Asking};
use super::{Look, Place, skipped};
use crate::finding::{Finding, State};
use crate::telemetry::rfc3339;
use crate::trust;
use crate::upstream::Offer;
use crate::x509;

/// What became of one who came without a certificate.
#[derive(Debug)]
pub(super) enum Without {
    /// Refused, and in what words.
    Refused(String, Option<Answer>),
    /// The connection was closed without a word.
    Closed(String),
    /// Served; with an answer where HTTP is spoken.
    Served(Option<Answer>),
    /// It cannot be told, and why.
    Unclear(String),
}

impl Without {
    pub(super) fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Refused(_, answer) | Self::Served(answer) => answer.as_ref(),
            Self::Closed(_) | Self::Unclear(_) => None,
        }
    }
}

impl Look<'_> {
    /// Comes without a certificate, to a server that the same handshake verifies.
    pub(super) async fn without_certificate(&self, place: Place, shown: &Shown) -> Without {
        let asks = shown.asked.is_some();
        // What else an alert or a closed door may be about was in order so far.
        let refused = |error: &io::Error, when: &str| match trust::tls_reason(error) {
            Some(reason) if asks || reason == Reason::ClientCertificateRefused => {
                Without::Refused(format!("{when}: {error}"), None)
            }
            None if asks => Without::Closed(format!("{when}: {error}")),
            _ => Without::Unclear(format!("{when}: {error}")),
        };
        if let Some(error) = &shown.failed {
            return refused(error, "in the handshake");
        }
        let (Some((_, Ok(trust))), Ok(transport)) = (&self.trust, self.dial(place).await) else {
            return Without::Unclear("the upstream could not be dialled again".into());
        };
        let offer = if self.speaks_http() { Offer::Http1 } else { Offer::Nothing };
        let (config, _) = match probe::config(Some(&**trust), offer) {
            Ok(made) => made,
            Err(error) => return Without::Unclear(error.to_string()),
        };
        let route = self.route();
        let connector = TlsConnector::from(config);
        let handshake = connector.connect(route.upstream.server_name.clone(), transport);
        let mut tls = match timeout(route.timeouts.tls, handshake).await {
            Ok(Ok(tls)) => tls,
            // The first one came through without a certificate.
            Ok(Err(error)) => return Without::Unclear(format!("in another handshake: {error}")),
            Err(_) => return Without::Unclear("no handshake in time".into()),
        };
        if !self.speaks_http() {
            return match request::listen(&mut tls).await {
                Err(error) => refused(&error, "after the handshake"),
                Ok(()) => Without::Served(None),
            };
        }
        let path = self.wanted.paths.first().map_or("/", String::as_str);
        match self.ask(&mut tls, path).await {
            Ok(answer) if answer.about_certificate => {
                Without::Refused(format!("by its answer, {}", answer.status), Some(answer))
            }
            Ok(answer) => Without::Served(Some(answer)),
            Err((reason, detail)) => {
                let detail = format!("after the handshake: {detail}");
                match reason {
                    Reason::ClientCertificateRefused => Without::Refused(detail, None),
                    Reason::UpstreamTlsFailed if asks => Without::Refused(detail, None),
                    Reason::UpstreamClosed | Reason::UpstreamReset if asks => Without::Closed(detail),
                    _ => Without::Unclear(detail),
                }
            }
        }
    }

    pub(super) fn client_auth(
        &self,
        shown: &Shown,
        without: &Without,
        answers: &[Asking],
        findings: &mut Vec<Finding>,
    ) {
        let ours = self.identity.as_ref().map(Own::issuers).unwrap_or_default();
        findings.push(asked(shown, &ours));
        // Who is refused by a status only may have been refused by name, not for want of one.
        let with = answers.first().and_then(|asking| asking.outcome.as_ref().ok()?.as_ref());
        let by_status = match (without.answer(), with) {
            (Some(without), Some(with)) => matches!(without.status, 401 | 403) && with.status < 400,
            _ => false,
        };
        // Who closes on everybody does not do so for want of a certificate.
        let with_ours = answers.first().map(|asking| asking.outcome.as_ref().map_err(|(reason, _)| *reason));
        let on_all = matches!(with_ours, Some(Err(Reason::UpstreamClosed | Reason::UpstreamReset)));
        findings.push(mode(shown, without, by_status, on_all));
        findings.push(self.accepted(shown, answers, &ours));
    }

    fn accepted(&self, shown: &Shown, answers: &[Asking], ours: &[(Vec<u8>, String)]) -> Finding {
        let (area, what) = ("client-auth", "our certificate");
        let Some(first) = answers.first() else {
            let why = self.identity.as_ref().and_then(Own::withheld).unwrap_or("there is none to present");
            return skipped(area, what, why);
        };
        let refusal = answers.iter().find_map(|asking| match &asking.outcome {
            Err((Reason::ClientCertificateRefused, detail)) => Some(detail.clone()),
            Ok(Some(answer)) if answer.about_certificate => Some(format!("by its answer, {}", answer.status)),
            _ => None,
        });
        if let Some(refusal) = refusal {
            let own = self.identity.as_ref();
            let cause = match (own.and_then(|own| own.not_valid_at(self.now)), &shown.asked) {
                (Some(why), _) => why,
                (None, Some(wanted)) if !wanted.is_empty() && !is_among(wanted, ours) => format!(
                    "it wants one that was issued by {}, and ours is by {}",
                    names(wanted),
                    ours.first().map_or("nobody", |(_, name)| name)
                ),
                (None, _) if says_expired(&refusal) => format!(
                    "it says that ours is not valid at this time, and by this node's clock ({}) it is: one of the two \
                     clocks is wrong",
                    rfc3339(self.now)
                ),
                (None, _) => format!(
                    "whether it knows the CA {} is the first thing to ask; a clock that is wrong there, a revocation, or \
                     a name that it does not serve are the next",
                    ours.first().map_or("nobody", |(_, name)| name)
                ),
            };
            let next = own.map(|own| own.verify().unwrap_or_else(|| own.inspect())).unwrap_or_default();
            let detail = format!("refused ({refusal}): {cause}");
            return Finding::bad(area, what, Reason::ClientCertificateRefused, detail).next(next);
        }
        match &first.outcome {
            _ if shown.asked.is_none() => skipped(area, what, "was not asked for, so it was not presented"),
            Ok(_) => Finding::new(area, what, State::Good, "accepted"),
            Err((reason, _)) => skipped(
                area,
                what,
                &format!("cannot be told: the request failed otherwise ({})", reason.code()),
            ),
        }
    }
}

/// Whether a refusal is the alert certificate_expired (45), in rustls' words: for a certificate that is over, and at most
/// servers for one that is not valid yet.
pub(super) fn says_expired(refusal: &str) -> bool {
    refusal.contains("CertificateExpired")
}

/// What was asked for.
fn asked(shown: &Shown, ours: &[(Vec<u8>, String)]) -> Finding {
    let (area, what) = ("client-auth", "what is asked for");
    let Some(wanted) = &shown.asked else {
        let detail =
            "the upstream does not ask for a client certificate in its handshake: ours is never presented";
        return Finding::new(area, what, State::Degraded, detail).next(
            "switch mutual TLS on at the upstream, or look whether a load balancer before it ends TLS",
        );
    };
    let facts = json!({"issuers": wanted.iter().map(|der| name(der)).collect::<Vec<_>>()});
    let finding = if wanted.is_empty() {
        Finding::new(area, what, State::Good, "a client certificate; it does not say whose")
    } else if is_among(wanted, ours) {
        Finding::new(
            area,
            what,
            State::Good,
            format!("a client certificate issued by {}; ours is", names(wanted)),
        )
    } else {
        let detail = format!(
            "a client certificate issued by {}, and ours is by {}",
            names(wanted),
            ours.first().map_or("nobody: there is none", |(_, name)| name)
        );
        Finding::new(area, what, State::Degraded, detail)
            .next("have the upstream trust our CA for clients, or the identity issued by one of those")
    };
    finding.seen(Vec::new(), facts)
}

/// STRICT, LOOSE, or neither.
fn mode(shown: &Shown, without: &Without, by_status: bool, closes_on_all: bool) -> Finding {
    let (area, what) = ("client-auth", "without a certificate");
    let (mode, finding) = match without {
        Without::Closed(how) if closes_on_all => {
            ("unknown", skipped(area, what, &format!("it cannot be told: with ours, too, it ends {how}")))
        }
        Without::Refused(how, _) | Without::Closed(how) => {
            let detail = format!("STRICT: refused, {how}");
            ("strict", Finding::new(area, what, State::Good, detail))
        }
        Without::Served(Some(answer)) if by_status => {
            let detail = format!("STRICT: answered {}, and served with ours", answer.status);
            ("strict", Finding::new(area, what, State::Good, detail))
        }
        Without::Served(answer) => {
            let how = answer.as_ref().map_or("taken".into(), |answer| format!("answered {}", answer.status));
            let (mode, detail) = if shown.asked.is_some() {
                (
                    "loose",
                    format!(
                        "LOOSE: {how}, although a certificate is asked for: whoever reaches it is served"
                    ),
                )
            } else {
                ("none", format!("{how}: whoever reaches it is served"))
            };
            let finding = Finding::new(area, what, State::Degraded, detail)
                .next("set the upstream to STRICT once every client presents a certificate");
            (mode, finding)
        }
        Without::Unclear(why) => ("unknown", skipped(area, what, &format!("it cannot be told: {why}"))),
    };
    finding.seen(Vec::new(), json!({"mode": mode}))
}

fn is_among(wanted: &[Vec<u8>], ours: &[(Vec<u8>, String)]) -> bool {
    ours.iter().any(|(der, _)| wanted.contains(der))
}

fn names(wanted: &[Vec<u8>]) -> String {
    const SHOWN: usize = 5;
    let mut all: Vec<String> = wanted.iter().take(SHOWN).map(|der| name(der)).collect();
    if wanted.len() > SHOWN {
        all.push(format!("{} others", wanted.len() - SHOWN));
    }
    all.join(" or ")
}

fn name(der: &[u8]) -> String {
    X509Name::from_der(der)
        .map_or_else(|_| x509::hex(der), |(_, name)| format!("\"{}\"", x509::distinguished_name(&name)))
}
