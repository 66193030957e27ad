//! Which [`Reason`] a TLS failure towards an upstream has.
//!
//! rustls' error is structured, so this is a table and not a guess from words. An alert that a
//! server sends about a certificate can only mean ours: with TLS 1.3 it comes after our side of the
//! handshake is done, with the first read.

use hnp_common::Reason;
use rustls::{AlertDescription, CertificateError, Error};

use super::peer::{self, Refused};

/// The reason of a failed handshake, or of a read or write on a connection that was up.
pub fn reason_of(error: &Error) -> Reason {
    match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        // A list that is there and is not its issuer's.
        Error::InvalidCertRevocationList(_) => Reason::UpstreamRevocationUnknown,
        Error::NoCertificatesPresented => Reason::UpstreamCertificateBad,
        Error::AlertReceived(alert) => of_alert(*alert),
        // Everything else is about the protocol: no common version, cipher or message.
        _ => Reason::UpstreamTlsFailed,
    }
}

/// The same for the [`std::io::Error`] that tokio-rustls wraps it in. Errors that are not TLS's own:
/// the connection broke in the handshake.
pub fn reason_of_io(error: &std::io::Error) -> Reason {
    tls_reason(error).unwrap_or(Reason::UpstreamTlsFailed)
}

/// The words of such an error, for the log.
pub fn words_of_io(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(tls) => peer::words(tls),
        None => error.to_string(),
    }
}

/// The reason in an I/O error that TLS made, after the handshake; `None` where the error is the
/// transport's own.
pub fn tls_reason(error: &std::io::Error) -> Option<Reason> {
    error.get_ref()?.downcast_ref::<Error>().map(reason_of)
}

fn of_certificate(error: &CertificateError) -> Reason {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Reason::UpstreamCertificateExpired,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Reason::UpstreamCertificateName
        }
        // A signature that does not fit is a CA of the same name with another key: the CA was made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            Reason::UpstreamCertificateUnknownCa
        }
        CertificateError::Revoked => Reason::UpstreamCertificateRevoked,
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => Reason::UpstreamRevocationUnknown,
        CertificateError::Other(_) => match Refused::within(error) {
            Some(Refused::Name { .. }) => Reason::UpstreamCertificateName,
            Some(Refused::UnknownDomain { .. }) => Reason::UpstreamCertificateUnknownCa,
            Some(Refused::NoSvid(_)) | None => Reason::UpstreamCertificateBad,
        },
        // Not our own enum, and it grows: what is new is bad in a way of its own.
        _ => Reason::UpstreamCertificateBad,
    }
}

fn of_alert(alert: AlertDescription) -> Reason {
    match alert {
        AlertDescription::CertificateRequired
        | AlertDescription::NoCertificate
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateUnobtainable
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied
        // The server could not verify our signature with our certificate.
        | AlertDescription::DecryptError => Reason::ClientCertificateRefused,
        // handshake_failure is what OpenSSL sends in TLS 1.2 for want of a certificate, and for want
        // of a common cipher; hnp always presents a certificate, so it means the latter.
        _ => Reason::UpstreamTlsFailed,
    }
}
