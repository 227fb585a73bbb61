//! TLS of our own: a certificate chain and its key from PEM files, 1.2 and 1.3. A renewed certificate counts from the next
//! connection on; one that cannot be used leaves the old one in force.

use std::fmt::Display;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::exposure::{read_by_all, refuse_changed_by_all};
use crate::reloading::Reloading;

/// The certificate that we show.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Reloading<Arc<ServerConfig>>>);

impl Tls {
    /// Reads a certificate chain, ours first, and the key that belongs to it.
    pub fn open(certificate: PathBuf, key: PathBuf) -> Result<Tls, String> {
        let read = |paths: &[PathBuf]| match paths {
            [certificate, key] => {
                refuse_changed_by_all("key", key)?;
                let config = server_config(certificate, key)?;
                if let Some(said) = read_by_all("key", key) {
                    tracing::warn!("{said}");
                }
                Ok(Arc::new(config))
            }
            _ => Err("a certificate and a key are needed".to_owned()),
        };
        Reloading::open(vec![certificate, key], read).map(|reloading| Tls(Arc::new(reloading)))
    }

    /// What was read from the files.
    pub(super) fn files(&self) -> &Reloading<Arc<ServerConfig>> {
        &self.0
    }

    /// Greets a client.
    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&*self.0.get());
        TlsAcceptor::from(config).accept(stream).await
    }
}

fn server_config(certificate: &Path, key: &Path) -> Result<ServerConfig, String> {
    let (at, of_key) = (certificate.display(), key.display());
    let unreadable = |what: &str, path: &Path, error: &dyn Display| {
        let remedy = match std::fs::File::open(path) {
            // Whoever made it is usually root, and we are not.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                "let the user that Tidemark runs as read it, and nobody else: as root, install -g tidemark -m 640 FILE /etc/tidemark/"
            }
            Err(_) => "name a PEM file that is there",
            Ok(_) => "name a PEM file",
        };
        format!("{} cannot be read as a {what}: {error}\n  remedy: {remedy}", path.display())
    };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| unreadable("certificate", certificate, &error))?;
    if chain.is_empty() {
        return Err(unreadable("certificate", certificate, &"it holds none"));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("key without a password", key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| {
            format!("the certificate in {at} cannot be used with the key in {of_key}: {error}\n  remedy: name a certificate and the key that belongs to it")
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use rcgen::generate_simple_self_signed;

    use super::*;

    #[test]
    fn a_certificate_goes_with_its_own_key_and_a_half_renewed_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
        let made = || generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (first, second) = (made(), made());
        assert!(Tls::open(certificate.clone(), key.clone()).unwrap_err().contains("remedy"));
        std::fs::write(&certificate, first.cert.pem()).unwrap();
        std::fs::write(&key, second.signing_key.serialize_pem()).unwrap();
        assert!(Tls::open(certificate.clone(), key.clone()).unwrap_err().contains("belongs to it"));
        std::fs::write(&key, first.signing_key.serialize_pem()).unwrap();

        let open_to = |mode| std::fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        open_to(0o602);
        assert!(Tls::open(certificate.clone(), key.clone()).unwrap_err().contains("remedy: chmod o= "));
        open_to(0o600);

        let tls = Tls::open(certificate.clone(), key.clone()).unwrap();
        let before = tls.files().get();
        std::fs::write(&certificate, second.cert.pem()).unwrap();
        tls.files().refresh();
        assert!(Arc::ptr_eq(&before, &tls.files().get()), "half of a renewal is in force");
        std::fs::write(&key, second.signing_key.serialize_pem()).unwrap();
        tls.files().refresh();
        assert!(!Arc::ptr_eq(&before, &tls.files().get()), "a renewal is not in force");
    }
}
