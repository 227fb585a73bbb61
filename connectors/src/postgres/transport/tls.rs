//! Encryption to Postgres: what the URL asks for, and whom we then believe.
//!
//! The modes mean what they mean to libpq, but for one thing: `prefer` goes on in clear only where the server has no TLS,
//! never because TLS failed. Certificates are read for every connection, so a renewed one counts from the next on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::source::SourceError;
use percent_encoding::percent_decode_str;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::super::error::{bad_url, source_error};

/// How much of TLS is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TlsMode {
    Disable,
    /// Where the server has it.
    Prefer,
    Require,
    /// And the certificate must come from a known authority.
    VerifyCa,
    /// And be for the host's name.
    VerifyFull,
}

/// Whose certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Roots {
    /// Anyone's: encrypted, but not known with whom.
    Anyone,
    /// The authorities that this machine trusts.
    System,
    File(PathBuf),
}

/// What the URL says about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct TlsSettings {
    mode: TlsMode,
    roots: Roots,
    /// Our own certificate and its key.
    client: Option<(PathBuf, PathBuf)>,
}

impl TlsSettings {
    /// Takes what is about TLS out of a URL; the rest is for the parser, which does not know all of it.
    pub(in super::super) fn take_from(url: &str) -> Result<(String, Self), SourceError> {
        // As the parser does it: everything before the first @ is user and password, whatever it holds.
        let credentials = url.find('@').unwrap_or_default();
        let (user, rest) = url.split_at_checked(credentials).unwrap_or((url, ""));
        let Some((place, query)) = rest.split_once('?') else {
            return Ok((url.to_owned(), Self::new(None, None, None, None)?));
        };
        let (mut mode, mut roots, mut certificate, mut key) = (None, None, None, None);
        let mut others = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match name {
                "sslmode" => &mut mode,
                "sslrootcert" => &mut roots,
                "sslcert" => &mut certificate,
                "sslkey" => &mut key,
                "sslnegotiation" if value == "postgres" => continue,
                "sslnegotiation" => return Err(bad_settings("sslnegotiation can only be postgres")),
                _ => {
                    others.push(pair);
                    continue;
                }
            };
            let value =
                percent_decode_str(value).decode_utf8().map_err(|_| bad_url(&format!("{name} is not UTF-8")))?;
            *place = Some(value.into_owned()).filter(|value| !value.is_empty());
        }
        let query = if others.is_empty() { String::new() } else { format!("?{}", others.join("&")) };
        Ok((format!("{user}{place}{query}"), Self::new(mode, roots, certificate, key)?))
    }

    fn new(
        mode: Option<String>,
        roots: Option<String>,
        certificate: Option<String>,
        key: Option<String>,
    ) -> Result<Self, SourceError> {
        let system = roots.as_deref() == Some("system");
        let mode = match mode.as_deref() {
            Some("disable") => TlsMode::Disable,
            Some("prefer") => TlsMode::Prefer,
            Some("require") => TlsMode::Require,
            Some("verify-ca") => TlsMode::VerifyCa,
            Some("verify-full") => TlsMode::VerifyFull,
            Some(_) => return Err(bad_settings("sslmode is none of disable, prefer, require, verify-ca, verify-full")),
            None if system => TlsMode::VerifyFull,
            None => TlsMode::Prefer,
        };
        let roots = match roots {
            None if mode >= TlsMode::VerifyCa => {
                return Err(bad_settings(
                    "sslmode=verify-ca and verify-full need sslrootcert=FILE or sslrootcert=system",
                ));
            }
            None => Roots::Anyone,
            // Anyone can have a certificate from a public authority: only its name says who it is.
            Some(_) if system && mode != TlsMode::VerifyFull => {
                return Err(bad_settings("sslrootcert=system needs sslmode=verify-full"));
            }
            Some(_) if system => Roots::System,
            Some(file) => Roots::File(file.into()),
        };
        let client = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            _ => return Err(bad_settings("sslcert and sslkey go together")),
        };
        Ok(TlsSettings { mode, roots, client })
    }

    pub(super) fn mode(&self) -> TlsMode {
        self.mode
    }

    /// Reads the files that the settings name.
    pub(super) fn client_config(&self) -> Result<ClientConfig, SourceError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(self, Arc::clone(&provider))?;
        let failed = |error: rustls::Error| explain(&error, "the settings of TLS");
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let Some((certificate, key)) = &self.client else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates(certificate)?;
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unreadable(key, "private key without a password", &error))?;
        builder.with_client_auth_cert(chain, private).map_err(|error| {
            tls_failed(
                format!(
                    "the certificate in {} cannot be used with the key in {}: {error}",
                    certificate.display(),
                    key.display()
                ),
                "name a certificate and the key that belongs to it with sslcert=FILE and sslkey=FILE",
            )
        })
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(file, "certificate", &error))?;
    if certificates.is_empty() {
        return Err(unreadable(file, "certificate", &"it holds none"));
    }
    Ok(certificates)
}

/// Checks what the mode asks for.
struct Verifier {
    mode: TlsMode,
    provider: Arc<CryptoProvider>,
    /// Absent where anyone is believed.
    chains: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(settings: &TlsSettings, provider: Arc<CryptoProvider>) -> Result<Self, SourceError> {
        let roots = match &settings.roots {
            Roots::Anyone => return Ok(Verifier { mode: settings.mode, provider, chains: None, roots: Vec::new() }),
            Roots::System => rustls_native_certs::load_native_certs().certs,
            Roots::File(file) => certificates(file)?,
        };
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider)).build();
        let chains = chains.map_err(|error| {
            tls_failed(
                format!("no authority's certificate can be used: {error}"),
                "name the file with the certificate of the server's authority: sslrootcert=FILE",
            )
        })?;
        Ok(Verifier { mode: settings.mode, provider, chains: Some(chains), roots })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("mode", &self.mode).field("roots", &self.roots.len()).finish()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chains) = &self.chains else { return Ok(ServerCertVerified::assertion()) };
        let mut verdict = chains.verify_server_cert(certificate, others, name, stapled, now);
        // A certificate that signed itself and is named as the authority: libpq takes it. It has not expired, or that
        // would have been the error.
        if matches!(verdict, Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))))
            && self.roots.iter().any(|root| root == certificate)
        {
            let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
            verdict = rustls::client::verify_server_name(&parsed, name).map(|()| ServerCertVerified::assertion());
        }
        // The name is looked at last: the chain is good.
        match verdict {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.mode < TlsMode::VerifyFull => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Says what of TLS failed; `None` where only the connection did.
pub(in super::super) fn failure_of(error: &(dyn std::error::Error + 'static), with: &str) -> Option<SourceError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(explain(error, with));
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn explain(error: &rustls::Error, with: &str) -> SourceError {
    let rustls::Error::InvalidCertificate(reason) = error else {
        return tls_failed(
            format!("TLS with {with} failed: {error}"),
            "check ssl_min_protocol_version, ssl_ciphers and ssl_ca_file of the server, and sslcert and sslkey in the URL",
        );
    };
    let (what, remedy) = match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "is not from an authority that is believed".to_owned(),
            "name the file with the certificate of the server's authority in the URL: sslrootcert=FILE",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("is for another name ({error})"),
            "name the server in the URL as its certificate does (subjectAltName), or trust its authority for any name with \
             sslmode=verify-ca",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "has expired".to_owned(),
            "give the server a new certificate: ssl_cert_file, then SELECT pg_reload_conf();",
        ),
        _ => (format!("cannot be believed: {error}"), "give the server a certificate of version 3 for its name"),
    };
    tls_failed(format!("the certificate of {with} {what}"), remedy)
}

/// The server said that it has none.
pub(super) fn no_tls(with: &str) -> SourceError {
    tls_failed(
        format!("{with} offers no TLS, and sslmode asks for it"),
        "ALTER SYSTEM SET ssl = on; with ssl_cert_file and ssl_key_file, then SELECT pg_reload_conf(); or, on a network that \
         you trust, put sslmode=disable in the URL",
    )
}

fn unreadable(file: &Path, what: &str, error: &dyn fmt::Display) -> SourceError {
    tls_failed(
        format!("no {what} can be read from {}: {error}", file.display()),
        "name files in PEM format that tidemark may read with sslrootcert, sslcert and sslkey in the URL",
    )
}

fn tls_failed(message: String, remedy: &str) -> SourceError {
    source_error("tls_failed", message, remedy)
}

fn bad_settings(what: &str) -> SourceError {
    source_error(
        "bad_tls_settings",
        format!("the Postgres URL asks for TLS in a way that cannot be: {what}"),
        "write for example ?sslmode=verify-full&sslrootcert=/etc/tidemark/ca.pem, with &sslcert=FILE&sslkey=FILE where the \
         server wants a certificate of ours",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn settings(query: &str) -> TlsSettings {
        TlsSettings::take_from(&format!("postgres://u:p@h/d{query}")).unwrap().1
    }

    #[test]
    fn tls_parameters_are_taken_out_of_the_url() {
        let (rest, settings) = TlsSettings::take_from(
            "postgres://u:p@h/d?sslmode=verify-full&host=/x&sslrootcert=%2Fa%20b.pem&sslcert=c&sslkey=k&port=7",
        )
        .unwrap();
        assert_eq!(rest, "postgres://u:p@h/d?host=/x&port=7");
        assert_eq!(
            settings,
            TlsSettings {
                mode: TlsMode::VerifyFull,
                roots: Roots::File("/a b.pem".into()),
                client: Some(("c".into(), "k".into()))
            }
        );
        // A question mark in the password hides nothing.
        let (rest, settings) = TlsSettings::take_from("postgres://u:p?x@h/d?sslmode=require").unwrap();
        assert_eq!((rest.as_str(), settings.mode), ("postgres://u:p?x@h/d", TlsMode::Require));
        let (rest, settings) = TlsSettings::take_from("postgres:///d?host=/x").unwrap();
        assert_eq!((rest.as_str(), settings.mode), ("postgres:///d?host=/x", TlsMode::Prefer));
    }

    #[test]
    fn modes_and_roots_as_libpq_has_them() {
        assert_eq!((settings("").mode, settings("").roots), (TlsMode::Prefer, Roots::Anyone));
        assert_eq!(settings("?sslrootcert=system"), settings("?sslmode=verify-full&sslrootcert=system"));
        assert_eq!(settings("?sslmode=require&sslrootcert=f").roots, Roots::File("f".into()));
        for refused in [
            "?sslmode=allow",
            "?sslmode=verify-ca",
            "?sslmode=verify-full",
            "?sslmode=require&sslrootcert=system",
            "?sslcert=c",
            "?sslkey=k",
            "?sslnegotiation=direct",
        ] {
            let error = TlsSettings::take_from(&format!("postgres://u:secret@h/d{refused}")).unwrap_err();
            assert_eq!(error.code, "bad_tls_settings", "{refused}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
