//! The credential of a signature: whose it is, and where and when it is valid.

use crate::kinesis::sigv4::error::{AuthError, ScopeFault, excerpt};
use crate::kinesis::sigv4::time::SignatureTime;

/// What every scope ends with.
pub(super) const TERMINATOR: &str = "aws4_request";
/// Longest name of a region.
const REGION_CHARS_MAX: usize = 32;

/// A credential: the access key, and the scope in which its signature is valid.
pub(super) struct Credential<'a> {
    pub(super) access_key_id: &'a str,
    pub(super) date: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    pub(super) terminator: &'a str,
}

impl<'a> Credential<'a> {
    /// Five elements with slashes between them; slashes behind them do not count.
    pub(super) fn parse(text: &'a str) -> Result<Credential<'a>, AuthError> {
        let mut elements = text.trim_end_matches('/').split('/');
        let mut next = || elements.next();
        match (next(), next(), next(), next(), next(), next()) {
            (Some(key), Some(date), Some(region), Some(service), Some(terminator), None) => {
                Ok(Credential { access_key_id: key, date, region, service, terminator })
            }
            _ => Err(AuthError::Credential { found: excerpt(text) }),
        }
    }

    /// Whether the signature is valid for this service, in one of these regions, on the day on
    /// which it was made.
    pub(super) fn check_scope(
        &self,
        service: &'static str,
        regions: &[String],
        signed_at: &SignatureTime,
    ) -> Result<(), AuthError> {
        let mut faults = Vec::new();
        if !is_region(self.region, regions) {
            faults.push(ScopeFault::Region { found: excerpt(self.region) });
        }
        if self.service != service {
            faults.push(ScopeFault::Service { expected: service });
        }
        if self.terminator != TERMINATOR {
            faults.push(ScopeFault::Terminator { found: excerpt(self.terminator) });
        }
        if self.date != signed_at.date() {
            let (found, signed_at) = (excerpt(self.date), signed_at.basic.clone());
            faults.push(ScopeFault::Date { found, signed_at });
        }
        if faults.is_empty() { Ok(()) } else { Err(AuthError::Scope { faults }) }
    }
}

/// Whether `text` has the form of a region and is one of `regions`, if there are any.
pub(super) fn is_region(text: &str, regions: &[String]) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=REGION_CHARS_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && (regions.is_empty() || regions.iter().any(|region| region == text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_have_a_form() {
        let long = "r".repeat(REGION_CHARS_MAX + 1);
        for region in ["us-east-1", "cn-north-1", "local", &long[1..]] {
            assert!(is_region(region, &[]), "{region}");
        }
        for region in ["", "US-EAST-1", "us east", "us_east_1", "*", &long] {
            assert!(!is_region(region, &[]), "{region}");
        }
        let regions = ["local".to_owned()];
        assert!(is_region("local", &regions) && !is_region("us-east-1", &regions));
    }

    #[test]
    fn a_scope_has_five_elements() {
        let credential = Credential::parse("KEY/20150830/us-east-1/kinesis/aws4_request/");
        let Ok(credential) = credential else { panic!("it has five elements") };
        assert_eq!((credential.access_key_id, credential.date), ("KEY", "20150830"));
        assert_eq!((credential.region, credential.service), ("us-east-1", "kinesis"));
        for text in ["", "/", "KEY", "KEY/1/2/3", "KEY/1/2/3/4/5"] {
            assert!(Credential::parse(text).is_err(), "{text}");
        }
    }
}
