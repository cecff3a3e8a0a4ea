//! What a router is started with, as the user says it, and what of it is refused.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Characters of a region's name at most: the longest of AWS has 16, own names may be longer.
const REGION_CHARS_MAX: usize = 64;

/// Who is let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// Who signs with an access key of this file.
    Keys {
        /// The credentials file, see [`crate::kinesis::credentials`].
        credentials: PathBuf,
    },
    /// Everybody who can connect, as the root user of one account. On loopback only.
    Open {
        /// The account, 12 digits.
        account_id: String,
        /// Region of requests that are not signed.
        region: String,
    },
}

/// Files of a server's identity, both PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A router's configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouterConfig {
    /// Where the API is served.
    pub listen: SocketAddr,
    /// File of the embedded metadata store; made when it is missing.
    pub store: PathBuf,
    /// Who is let in.
    pub access: Access,
    /// With TLS, or without.
    pub tls: Option<TlsFiles>,
    /// Whether limits are enforced: those of shards, of calls and of counts. Off for raw benchmarks
    /// only; a stream has a million shards at most even then.
    pub limits: bool,
    /// Where metrics are served, without TLS, to whoever can connect. Without an address of their
    /// own they are at the API's, under the path `/metrics`.
    pub metrics_listen: Option<SocketAddr>,
    /// Bytes of records that wait for the node to store them.
    pub write_bytes_max: usize,
    /// Bytes of records read from the node that have not been answered yet.
    pub read_bytes_max: usize,
    /// Bytes of records that may be on their way to subscribers. Each has a little more than 1 MiB
    /// of it, or its stream's largest record, for as long as it lasts.
    pub subscribe_bytes_max: usize,
    /// How long calls that are under way may take to end when the router stops.
    pub drain_time: Duration,
}

impl RouterConfig {
    /// A router with the usual limits.
    #[must_use]
    pub fn new(listen: SocketAddr, store: PathBuf, access: Access) -> RouterConfig {
        RouterConfig {
            listen,
            store,
            access,
            tls: None,
            limits: true,
            metrics_listen: None,
            write_bytes_max: 256 << 20,
            read_bytes_max: 256 << 20,
            // Nearly 1000 subscriptions: 20 consumers of 50 shards.
            subscribe_bytes_max: 1 << 30,
            // Service managers kill 30 s after they asked (Kubernetes), or later.
            drain_time: Duration::from_secs(20),
        }
    }

    /// Refuses what must not be.
    ///
    /// # Errors
    /// [`RouterConfigError`].
    pub fn check(&self) -> Result<(), RouterConfigError> {
        let Access::Open { account_id, region } = &self.access else { return Ok(()) };
        if !self.listen.ip().is_loopback() {
            return Err(RouterConfigError::OpenToOthers { listen: self.listen });
        }
        check_account(account_id)?;
        check_region(region)
    }
}

/// Why a router is not started with what it was told.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RouterConfigError {
    /// Without authentication, anybody in the network could do anything.
    #[error(
        "--no-auth lets in whoever can connect, and {listen} is not of this machine alone: listen \
         on 127.0.0.1 or [::1], or leave --no-auth out and use access keys"
    )]
    OpenToOthers {
        /// Where it was to listen.
        listen: SocketAddr,
    },
    /// An account has 12 digits.
    #[error("{found:?} is no account id: write 12 digits, as 123456789012")]
    Account {
        /// What was written.
        found: String,
    },
    /// A region is part of ARNs and signatures.
    #[error(
        "{found:?} is no region: write letters, digits and hyphens, 1 to {REGION_CHARS_MAX}, as \
         us-east-1"
    )]
    Region {
        /// What was written.
        found: String,
    },
}

/// Refuses what is no account id.
///
/// # Errors
/// [`RouterConfigError::Account`].
pub fn check_account(account_id: &str) -> Result<(), RouterConfigError> {
    if account_id.len() == 12 && account_id.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(());
    }
    Err(RouterConfigError::Account { found: account_id.to_owned() })
}

/// Refuses what is no region.
///
/// # Errors
/// [`RouterConfigError::Region`].
pub fn check_region(region: &str) -> Result<(), RouterConfigError> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if (1..=REGION_CHARS_MAX).contains(&region.len()) && region.bytes().all(is_part) {
        return Ok(());
    }
    Err(RouterConfigError::Region { found: region.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(listen: &str, account_id: &str, region: &str) -> Result<(), RouterConfigError> {
        let listen = listen.parse().expect("an address");
        let access = Access::Open { account_id: account_id.to_owned(), region: region.to_owned() };
        RouterConfig::new(listen, "store".into(), access).check()
    }

    #[test]
    fn nobody_else_is_let_in_without_a_key() {
        for address in ["127.0.0.1:4567", "127.8.8.8:1", "[::1]:4567"] {
            assert_eq!(open(address, "123456789012", "us-east-1"), Ok(()));
        }
        for address in ["0.0.0.0:4567", "[::]:4567", "10.0.0.1:4567", "[::ffff:127.0.0.1]:1"] {
            let refused = open(address, "123456789012", "us-east-1").expect_err(address);
            assert!(refused.to_string().contains("--no-auth"), "{refused}");
        }
        let keys = Access::Keys { credentials: "credentials.toml".into() };
        let listen = "[::]:4567".parse().expect("an address");
        assert_eq!(RouterConfig::new(listen, "store".into(), keys).check(), Ok(()));
    }

    #[test]
    fn accounts_and_regions_are_checked() {
        for account in ["", "12345678901", "1234567890123", "12345678901a"] {
            let refused = open("127.0.0.1:1", account, "us-east-1").expect_err(account);
            assert!(matches!(refused, RouterConfigError::Account { .. }), "{refused}");
        }
        for region in ["", "us east", "us:east", &"a".repeat(65)] {
            let refused = open("127.0.0.1:1", "123456789012", region).expect_err(region);
            assert!(matches!(refused, RouterConfigError::Region { .. }), "{refused}");
        }
    }
}
