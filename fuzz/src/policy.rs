//! Policies: a document is one or is refused with its fault, and what it then says does not hang on
//! how it was written.
//!
//! An input is two lines, the action and the resource that are asked for, then the document.

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use thalweg_router::kinesis::policy::{
    Context, Decision, Policy, PolicyKind, Request, RequestTags, Tags, evaluate,
};
use thalweg_router::kinesis::principal::Principal;

const ACCOUNT: &str = "123456789012";
const OTHER_ACCOUNT: &str = "210987654321";

/// Who asks.
static PRINCIPALS: LazyLock<Vec<Principal>> = LazyLock::new(|| {
    let principals = [
        Principal::root(ACCOUNT),
        Principal::user(ACCOUNT, "team/alice"),
        Principal::role_session(ACCOUNT, "ingest", "host-1"),
        Principal::user(OTHER_ACCOUNT, "bob"),
    ];
    principals.map(|principal| principal.expect("a valid one")).into()
});

static TAGS: LazyLock<Tags> = LazyLock::new(|| Tags::from([("team".to_owned(), "red".to_owned())]));

static DENY_ALL: LazyLock<Policy> = LazyLock::new(|| {
    let document = r#"{"Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}"#;
    Policy::parse_identity(document).expect("a policy")
});

/// Runs an input.
///
/// # Panics
/// When a policy decides otherwise than the rules of all policies allow.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some((action, rest)) = text.split_once('\n') else { return };
    let Some((resource, document)) = rest.split_once('\n') else { return };
    let policy = match Policy::parse(document) {
        Ok(policy) => policy,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(policy.absent_keys().all(|key| document.contains(key) || document.contains('\\')));
    let (own, other) = match policy.kind() {
        PolicyKind::Identity => {
            (Policy::parse_identity(document), Policy::parse_resource(document))
        }
        PolicyKind::Resource => {
            (Policy::parse_resource(document), Policy::parse_identity(document))
        }
    };
    assert_eq!(own.as_ref(), Ok(&policy));
    assert!(other.is_err(), "a policy is of one kind");
    // Names in another order, and without blanks.
    let value: Value = serde_json::from_str(document).expect("a policy is JSON");
    let rewritten = Policy::parse(&value.to_string()).expect("the same policy");
    for principal in PRINCIPALS.iter() {
        for is_administrator in [false, true] {
            let asked = Asked { principal, is_administrator, action, resource };
            asked.judge(&policy, &rewritten);
        }
    }
}

/// What is asked of a policy.
#[derive(Clone, Copy)]
struct Asked<'a> {
    principal: &'a Principal,
    is_administrator: bool,
    action: &'a str,
    resource: &'a str,
}

impl Asked<'_> {
    fn judge(self, policy: &Policy, rewritten: &Policy) {
        let decision = self.decide(policy, false);
        assert_eq!(self.decide(rewritten, false), decision, "it was only written otherwise");
        let denied = self.decide(policy, true);
        // Denials of identity policies come first.
        assert_eq!(denied, Decision::ExplicitlyDenied(PolicyKind::Identity));
        let is_same_account = self.principal.account_id() == ACCOUNT;
        match (policy.kind(), decision) {
            (kind, Decision::ExplicitlyDenied(by)) => assert_eq!(kind, by),
            (PolicyKind::Identity, Decision::Allowed) => {
                assert!(is_same_account, "the resource's policy must allow as well");
            }
            (PolicyKind::Resource, Decision::Allowed) => {
                assert!(is_same_account || self.is_administrator, "both must allow");
            }
            (_, Decision::NotAllowed(_)) => {
                assert!(!(is_same_account && self.is_administrator), "nothing denies it");
            }
        }
    }

    fn decide(self, policy: &Policy, with_denial: bool) -> Decision {
        let is_identity = policy.kind() == PolicyKind::Identity;
        let mut identity_policies = Vec::new();
        identity_policies.extend(is_identity.then(|| policy.clone()));
        identity_policies.extend(with_denial.then(|| DENY_ALL.clone()));
        let context = Context {
            source_ip: Some([192, 0, 2, 7].into()),
            user_agent: Some("aws-cli"),
            principal_tags: Some(&TAGS),
            request_tags: RequestTags::Tags(&TAGS),
            ..Context::new(UNIX_EPOCH + Duration::from_secs(1_795_521_600), "us-east-1")
        };
        evaluate(&Request {
            principal: self.principal,
            is_administrator: self.is_administrator,
            identity_policies: &identity_policies,
            action: self.action,
            resource: self.resource,
            resource_account: ACCOUNT,
            resource_policy: (!is_identity).then_some(policy),
            context,
        })
    }
}

/// What the corpus begins with: a document for each part of the language.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let stream = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";
    let documents = [
        (
            "identity",
            r#"{"Version":"2012-10-17","Id":"a","Statement":{"Sid":"b","Effect":"Allow","Action":"kinesis:Put*","Resource":"*"}}"#,
        ),
        (
            "resource",
            r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["210987654321","arn:aws:iam::123456789012:user/team/alice"]},"Action":["kinesis:PutRecord","kinesis:Get*"],"Resource":"arn:aws:kinesis:us-east-1:123456789012:stream/orders"},{"Effect":"Deny","NotPrincipal":{"AWS":"arn:aws:sts::123456789012:assumed-role/ingest/host-1"},"Action":"*","Resource":"*"}]}"#,
        ),
        (
            "everyone",
            r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}]}"#,
        ),
        (
            "all-but",
            r#"{"Statement":[{"Effect":"Allow","NotAction":"kinesis:Delete*","NotResource":"arn:aws:kinesis:*:*:stream/${aws:username}-?"}]}"#,
        ),
        (
            "texts",
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalTag/team":["red","blue"]},"StringNotLikeIfExists":{"aws:UserAgent":"b*"},"ForAllValues:StringEqualsIgnoreCase":{"aws:TagKeys":["TEAM"]},"ForAnyValue:StringLike":{"aws:TagKeys":"t?am"}}}}"#,
        ),
        (
            "numbers",
            r#"{"Statement":{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"NumericLessThan":{"aws:EpochTime":1e9},"DateGreaterThanEquals":{"aws:CurrentTime":"2026-01-31T12:00:00Z"},"Bool":{"aws:SecureTransport":false},"Null":{"aws:username":"true"}}}}"#,
        ),
        (
            "addresses",
            r#"{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":["192.0.2.0/24","2001:db8::/32"]},"NotIpAddress":{"aws:SourceIp":"192.0.2.9"},"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/*"}}}}"#,
        ),
        (
            "twice",
            r#"{"Statement":{"Effect":"Allow","Effect":"Deny","Action":"*","Resource":"*"}}"#,
        ),
    ];
    let input = |document: &str| format!("kinesis:PutRecord\n{stream}\n{document}").into_bytes();
    documents.map(|(name, document)| (name.to_owned(), input(document))).into()
}
