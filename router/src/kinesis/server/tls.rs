//! Who the server is: its certificate chain and key.

use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

/// A certificate chain and its key, ready for connections. HTTP/2 is preferred to HTTP/1.1.
#[derive(Clone)]
pub struct TlsIdentity {
    config: Arc<ServerConfig>,
}

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The certificates are not PEM.
    #[error("the certificate chain cannot be read ({0}): it must be PEM, the server's own first")]
    Chain(pem::Error),
    /// There are no certificates.
    #[error("the certificate chain holds no certificate: it must be PEM, the server's own first")]
    NoCertificate,
    /// The key is not PEM, or of no known kind.
    #[error("the private key cannot be read ({0}): it must be PEM, in PKCS #8, PKCS #1 or SEC 1")]
    Key(pem::Error),
    /// Certificate and key do not work together.
    #[error("certificate and key cannot be used: {0}")]
    Identity(#[from] rustls::Error),
}

impl TlsIdentity {
    /// From a certificate chain and a private key, both in PEM.
    ///
    /// # Errors
    /// [`TlsError`]; it never holds a part of the key.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<TlsIdentity, TlsError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(TlsError::Chain)?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(TlsError::Key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(TlsIdentity { config: Arc::new(config) })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

/// HTTP/2 in the negotiation of TLS (RFC 9113, 3.2).
pub(super) const ALPN_HTTP2: &[u8] = b"h2";

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TlsIdentity")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let made = made.expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_chain_and_its_key_make_an_identity() {
        let (chain, key) = made();
        let identity = TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes()).expect("a pair");
        assert_eq!(identity.config().alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(format!("{identity:?}"), "TlsIdentity");
    }

    #[test]
    fn what_is_wrong_is_told_without_the_key() {
        let (chain, key) = made();
        let (chain, key) = (chain.as_bytes(), key.as_bytes());
        let empty = TlsIdentity::from_pem(b"", key);
        assert!(matches!(empty, Err(TlsError::NoCertificate)));
        let no_key = TlsIdentity::from_pem(chain, chain);
        assert!(matches!(no_key, Err(TlsError::Key(_))));
        let (_, other_key) = made();
        let mismatch = TlsIdentity::from_pem(chain, other_key.as_bytes());
        let Err(error @ TlsError::Identity(_)) = mismatch else { panic!("{mismatch:?}") };
        let secret = other_key.lines().nth(1).expect("a line of base64");
        assert!(!format!("{error} {error:?}").contains(secret));
    }
}
