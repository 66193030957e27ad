//! Which [`Reason`] it has that no TLS came about with a pod.

use hnp_common::Reason;
use rustls::{CertificateError, Error};

use crate::trust::peer::{self, Refused};

/// The reason, and the words for the log.
pub fn of(error: &Error) -> (Reason, String) {
    let reason = match error {
        Error::NoCertificatesPresented => Reason::PodCertificateMissing,
        Error::InvalidCertificate(error) => of_certificate(error),
        // A list that is there and is not its issuer's.
        Error::InvalidCertRevocationList(_) => Reason::PodRevocationUnknown,
        _ => Reason::PodTlsFailed,
    };
    let detail = match error {
        Error::AlertReceived(alert) => format!("the workload's TLS sent the alert {alert:?}"),
        other => peer::words(other),
    };
    (reason, detail)
}

/// The same for the [`std::io::Error`] of a handshake.
pub fn of_io(error: &std::io::Error) -> (Reason, String) {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => of(error),
        None => (Reason::ClientGone, format!("in the TLS handshake: {error}")),
    }
}

fn of_certificate(error: &CertificateError) -> Reason {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Reason::PodCertificateExpired,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Reason::PodCertificateName
        }
        // A signature that does not fit is a CA of the same name with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Reason::PodCertificateUnknownCa,
        CertificateError::Revoked => Reason::PodCertificateRevoked,
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => Reason::PodRevocationUnknown,
        CertificateError::Other(_) => match Refused::within(error) {
            Some(Refused::Name { .. }) => Reason::PodCertificateName,
            Some(Refused::UnknownDomain { .. }) => Reason::PodCertificateUnknownCa,
            Some(Refused::NoSvid(_)) | None => Reason::PodCertificateBad,
        },
        // Not our own enum, and it grows.
        _ => Reason::PodCertificateBad,
    }
}
