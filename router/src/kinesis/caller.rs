//! Who sent a request, as far as the operations need to know.

use std::sync::Arc;

use crate::kinesis::credentials::AccessKey;
use crate::kinesis::policy::{Context, Policy, Request, Tags};
use crate::kinesis::principal::Principal;

/// Who sent a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The account, 12 digits.
    pub account_id: String,
    /// The region that the request was signed for; streams are the region's.
    pub region: String,
    /// ARN of who sent it.
    pub principal_arn: String,
    /// Its identity policies.
    pub policies: Arc<[Policy]>,
    /// Whether it is the account's root user.
    pub is_root: bool,
    /// Whether it needs no policy to be allowed in its own account: the root user, and keys that
    /// have none.
    pub is_administrator: bool,
    /// Who sent it, for policies.
    pub principal: Arc<Principal>,
    /// Its tags.
    pub tags: Arc<Tags>,
    /// Its access key; none without authentication.
    pub access_key_id: Option<Arc<str>>,
}

impl Caller {
    /// What policies are asked when this caller wants to do `action` (`kinesis:PutRecord`) to a
    /// resource without a policy: set [`Request::resource_policy`] if it has one. Tags of the
    /// caller in `context` are replaced by this caller's.
    #[must_use]
    pub fn request<'a>(
        &'a self,
        action: &'a str,
        resource: &'a str,
        resource_account: &'a str,
        context: Context<'a>,
    ) -> Request<'a> {
        Request {
            principal: &self.principal,
            is_administrator: self.is_administrator,
            identity_policies: &self.policies,
            action,
            resource,
            resource_account,
            resource_policy: None,
            context: Context { principal_tags: Some(&self.tags), ..context },
        }
    }

    pub(super) fn root(principal: &Arc<Principal>, region: String) -> Caller {
        Caller {
            account_id: principal.account_id().to_owned(),
            region,
            principal_arn: principal.arn().to_owned(),
            policies: Arc::default(),
            is_root: true,
            is_administrator: true,
            principal: Arc::clone(principal),
            tags: Arc::default(),
            access_key_id: None,
        }
    }

    pub(super) fn of_key(key: &AccessKey, region: String) -> Caller {
        Caller {
            account_id: key.principal.account_id().to_owned(),
            region,
            principal_arn: key.principal.arn().to_owned(),
            policies: Arc::clone(&key.policies),
            is_root: key.principal.is_root(),
            is_administrator: key.is_administrator,
            principal: Arc::clone(&key.principal),
            tags: Arc::clone(&key.tags),
            access_key_id: Some(Arc::clone(&key.id)),
        }
    }
}
