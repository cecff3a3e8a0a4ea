//! Secrets and the signing keys that are derived from them.
//!
//! A secret goes in and never comes out: what can be asked for is a signing key of one day, region
//! and service (IAM user guide, "Create a signed AWS API request"), which takes four HMACs to
//! derive. Keys that verified a signature are remembered, a few for each secret, and are read
//! without a lock. Others are not, so that nobody without the secret can push out those in use.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::hmac;

/// Signing keys remembered for each secret: a few regions, around midnight for two days each.
const SIGNING_KEYS_MAX: usize = 8;

/// A secret access key, with what was derived from it lately.
pub(super) struct SigningSecret {
    /// The secret behind the prefix that the derivation begins with.
    prefixed: Box<[u8]>,
    derived: ArcSwap<Vec<Arc<SigningKey>>>,
}

/// The key that signs on one day, in one region, for one service.
pub(super) struct SigningKey {
    date: Box<str>,
    region: Box<str>,
    service: Box<str>,
    key: hmac::Key,
}

/// A session token, by a digest that tells nothing of it.
pub(super) struct SessionToken {
    key: hmac::Key,
    digest: hmac::Tag,
}

impl SigningSecret {
    /// Keeps a secret access key.
    pub(super) fn new(secret_access_key: &str) -> SigningSecret {
        let prefixed = [b"AWS4", secret_access_key.as_bytes()].concat().into_boxed_slice();
        SigningSecret { prefixed, derived: ArcSwap::default() }
    }

    /// The signing key of a day (`YYYYMMDD`), region and service.
    pub(super) fn signing_key(&self, date: &str, region: &str, service: &str) -> Arc<SigningKey> {
        let remembered = self.derived.load();
        let found = remembered.iter().find(|key| key.is_of(date, region, service));
        if let Some(key) = found {
            return Arc::clone(key);
        }
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, &self.prefixed);
        for part in [date, region, service, "aws4_request"] {
            key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
        }
        let (date, region, service) = (date.into(), region.into(), service.into());
        Arc::new(SigningKey { date, region, service, key })
    }

    /// Remembers a signing key that has verified a signature; the oldest is forgotten for it.
    pub(super) fn remember(&self, key: &Arc<SigningKey>) {
        if self.derived.load().iter().any(|other| Arc::ptr_eq(other, key)) {
            return;
        }
        self.derived.rcu(|known| {
            let is_other =
                |other: &&Arc<SigningKey>| !other.is_of(&key.date, &key.region, &key.service);
            let mut keys: Vec<_> = known.iter().filter(is_other).map(Arc::clone).collect();
            let surplus = (keys.len() + 1).saturating_sub(SIGNING_KEYS_MAX);
            keys.drain(..surplus);
            keys.push(Arc::clone(key));
            keys
        });
    }
}

impl SigningKey {
    /// Whether `signature` is the signature of `message`, found out in constant time.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        hmac::verify(&self.key, message, signature).is_ok()
    }

    fn is_of(&self, date: &str, region: &str, service: &str) -> bool {
        *self.date == *date && *self.region == *region && *self.service == *service
    }
}

impl SessionToken {
    /// Keeps the digest of a session token, under the secret that belongs to it.
    pub(super) fn new(token: &str, secret: &SigningSecret) -> SessionToken {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret.prefixed);
        let digest = hmac::sign(&key, token.as_bytes());
        SessionToken { key, digest }
    }

    /// Whether `token` is this token, found out in constant time.
    pub(super) fn is(&self, token: &[u8]) -> bool {
        hmac::verify(&self.key, token, self.digest.as_ref()).is_ok()
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SigningSecret(not shown)")
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({}/{}/{})", self.date, self.region, self.service)
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SessionToken(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn regions(secret: &SigningSecret) -> Vec<String> {
        secret.derived.load().iter().map(|key| key.region.to_string()).collect()
    }

    #[test]
    fn only_what_verified_is_remembered_and_no_more_than_a_few() {
        let secret = SigningSecret::new(SECRET);
        let first = secret.signing_key("20150830", "region-0", "kinesis");
        assert!(regions(&secret).is_empty());
        secret.remember(&first);
        secret.remember(&first);
        assert!(Arc::ptr_eq(&first, &secret.signing_key("20150830", "region-0", "kinesis")));
        for other in [("20150831", "region-0", "kinesis"), ("20150830", "region-0", "service")] {
            assert!(!Arc::ptr_eq(&first, &secret.signing_key(other.0, other.1, other.2)));
        }
        for n in 1..=SIGNING_KEYS_MAX {
            let region = format!("region-{n}");
            secret.remember(&secret.signing_key("20150830", &region, "kinesis"));
        }
        let expected: Vec<_> = (1..=SIGNING_KEYS_MAX).map(|n| format!("region-{n}")).collect();
        assert_eq!(regions(&secret), expected);
    }

    #[test]
    fn one_signing_key_is_remembered_once_when_two_derived_it() {
        let secret = SigningSecret::new(SECRET);
        let one = secret.signing_key("20150830", "us-east-1", "kinesis");
        let other = secret.signing_key("20150830", "us-east-1", "kinesis");
        secret.remember(&one);
        secret.remember(&other);
        assert_eq!(regions(&secret), ["us-east-1"]);
    }

    #[test]
    fn tokens_are_told_apart() {
        let token = SessionToken::new("token", &SigningSecret::new(SECRET));
        assert!(token.is(b"token"));
        for other in [&b"tokem"[..], b"toke", b"token ", b""] {
            assert!(!token.is(other));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = SigningSecret::new(SECRET);
        let token = SessionToken::new("token", &secret);
        let key = secret.signing_key("20150830", "us-east-1", "kinesis");
        secret.remember(&key);
        let shown = format!("{secret:?} {token:?} {key:?}");
        assert!(!shown.contains(SECRET) && !shown.contains("token "), "{shown}");
        assert!(shown.contains("20150830/us-east-1/kinesis"), "{shown}");
    }
}
