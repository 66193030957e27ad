//! A handshake that remembers what the server showed, also where it fails.
//!
//! It presents no certificate, and its verifier is the route's own: whatever that refuses ends the handshake, as it
//! would for the agent. Nothing is sent in the session. Driven by hand, because a TLS stream that did not come about
//! takes what it knew with it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::trust::snapshot::TrustSnapshot;
use crate::upstream::{self, Offer};

/// What a server showed.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Such as `TLSv1.3`; `None`: it chose none.
    pub(super) version: Option<&'static str>,
    /// Such as `X25519MLKEM768`.
    pub(super) key_exchange: Option<&'static str>,
    /// Such as `TLS13_AES_256_GCM_SHA384`.
    pub(super) cipher_suite: Option<String>,
    /// The protocol that it chose by ALPN.
    pub(super) protocol: Option<String>,
    /// The chain as it was sent.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// What the verifier says of it; `None`: it was not asked.
    pub(super) verdict: Option<Result<(), Error>>,
    /// It asks for a client's certificate; the issuers that it would take, in DER. Empty: it does not say.
    pub(super) asked: Option<Vec<Vec<u8>>>,
    /// Why the handshake did not end well.
    pub(super) failed: Option<io::Error>,
}

impl Shown {
    /// The route's trust accepts it.
    pub(super) fn is_verified(&self) -> bool {
        // Who asked for a certificate had come to the end of his own part.
        matches!(self.verdict, Some(Ok(()))) && (self.failed.is_none() || self.asked.is_some())
    }
}

/// What is noted in a handshake.
#[derive(Debug, Default)]
pub(super) struct Notes {
    chain: Vec<CertificateDer<'static>>,
    verdict: Option<Result<(), Error>>,
    asked: Option<Vec<Vec<u8>>>,
}

/// Notes the chain and gives the real verifier's verdict.
#[derive(Debug)]
struct Noting {
    /// `None`: there are no roots to judge by, so nobody is accepted.
    judge: Option<Arc<dyn ServerCertVerifier>>,
    notes: Arc<Mutex<Notes>>,
}

/// Notes what is asked for and presents nothing.
#[derive(Debug)]
struct Presenting(Arc<Mutex<Notes>>);

/// A configuration that notes what it sees and presents no certificate.
///
/// # Errors
/// rustls' words, where the provider lacks what TLS 1.2 and 1.3 need; not seen in practice.
pub(super) fn config(
    trust: Option<&TrustSnapshot>,
    offer: Offer,
) -> Result<(Arc<ClientConfig>, Arc<Mutex<Notes>>), Error> {
    let notes = Arc::<Mutex<Notes>>::default();
    let judge = trust.map(|trust| Arc::clone(&trust.verifier));
    let versions = crate::crypto::versions(trust.map(|trust| trust.tls_min).unwrap_or_default());
    let verifier = Arc::new(Noting { judge, notes: Arc::clone(&notes) });
    let mut config = ClientConfig::builder_with_details(crate::crypto::provider(), crate::clock::for_tls())
        .with_protocol_versions(versions)?
        .dangerous() // rustls' word for any verifier handed over; this one asks the route's, or refuses
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Presenting(Arc::clone(&notes))));
    // A resumed session would show nothing.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = offer.protocols();
    Ok((Arc::new(config), notes))
}

/// Shakes hands, and takes what was shown.
pub(super) async fn handshake(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    name: ServerName<'static>,
    trust: Option<&TrustSnapshot>,
    offer: Offer,
) -> Result<Shown, Error> {
    let (config, notes) = config(trust, offer)?;
    let mut session = ClientConnection::new(config, name)?;
    let failed = drive(&mut session, &mut io).await.err();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let suite = session.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
    let Notes { chain, verdict, asked } =
        std::mem::take(&mut *notes.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Shown {
        version: upstream::tls_version(&session),
        key_exchange: upstream::key_exchange(&session),
        cipher_suite: suite,
        protocol: session.alpn_protocol().map(text),
        chain,
        verdict,
        asked,
        failed,
    })
}

async fn drive(
    session: &mut ClientConnection,
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    loop {
        flush(session, io).await?;
        if !session.is_handshaking() {
            return Ok(());
        }
        let mut block = [0; 4096];
        let count = io.read(&mut block).await?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed in the handshake"));
        }
        let mut rest = &block[..count];
        while !rest.is_empty() {
            session.read_tls(&mut rest)?;
            if let Err(error) = session.process_new_packets() {
                // The alert is owed; who does not take it any more has had it.
                let _ = flush(session, io).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

async fn flush(session: &mut ClientConnection, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut out = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut out)?;
    }
    io.write_all(&out).await?;
    io.flush().await
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.judge.as_ref().map(|judge| judge.verify_server_cert(leaf, above, name, ocsp, now));
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.chain = std::iter::once(leaf).chain(above).map(|der| der.clone().into_owned()).collect();
        notes.verdict = judged.as_ref().map(|judged| judged.as_ref().map(|_| ()).map_err(Clone::clone));
        judged.unwrap_or_else(|| Err(Error::General("there is nothing to judge it by".into())))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge()?.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge()?.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        match &self.judge {
            Some(judge) => judge.supported_verify_schemes(),
            None => crate::crypto::provider().signature_verification_algorithms.supported_schemes(),
        }
    }
}

impl Noting {
    fn judge(&self) -> Result<&Arc<dyn ServerCertVerifier>, Error> {
        self.judge.as_ref().ok_or_else(|| Error::General("there is nothing to judge it by".into()))
    }
}

impl ResolvesClientCert for Presenting {
    fn resolve(&self, issuers: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.asked = Some(issuers.iter().map(|issuer| issuer.to_vec()).collect());
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}
