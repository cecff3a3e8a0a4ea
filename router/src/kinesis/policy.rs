//! May they: policies in the language of IAM, and the decision that they make together.
//!
//! The rules are the IAM user guide's, "Policy evaluation logic" and "Cross-account policy
//! evaluation logic", for the two kinds of policies that are here: **identity policies**, which
//! hang on an access key, and **resource policies**, which hang on a stream or consumer
//! (PutResourcePolicy). Permissions boundaries, session policies and those of organizations are
//! not.
//!
//! - What no policy speaks of is not allowed. A statement that denies wins over all that allow.
//! - Within an account, it suffices that the identity's or the resource's policies allow. A
//!   resource policy that names the account itself only lets the account decide: there an
//!   identity policy must allow as well.
//! - From another account, both must allow.
//! - The root user of an account, and a key without any policy, count as allowed by identity; a
//!   resource policy may still deny them. Only the root user can always see, replace and delete the
//!   policy of its account's resource, lest one that denies everything stay for ever.

mod condition;
mod context;
mod error;
mod json;
mod parse;
mod pattern;
mod principals;

use std::sync::Arc;

use thiserror::Error;

pub use self::context::{Context, RequestTags, Tags};
pub use self::error::{POLICY_BYTES_MAX, PolicyError, PolicyFault};

use self::context::Facts;
use self::parse::{Effect, Selection, Statement};
use self::principals::Reach;
use crate::kinesis::principal::Principal;

/// Actions on the policy of a resource itself, lower case: for the owner's account alone, and for
/// its root user always (API reference, PutResourcePolicy and DeleteResourcePolicy).
const CHANGES_OF_RESOURCE_POLICY: [&str; 2] =
    ["kinesis:putresourcepolicy", "kinesis:deleteresourcepolicy"];
const VIEW_OF_RESOURCE_POLICY: &str = "kinesis:getresourcepolicy";

/// A policy, ready to be evaluated. Clones share it.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    kind: PolicyKind,
    statements: Arc<[Statement]>,
}

/// What a policy hangs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyKind {
    /// An identity: it names no principal.
    Identity,
    /// A resource: each statement names principals.
    Resource,
}

/// What is judged.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// Whether they may do anything as far as their own account goes; set for the root user and
    /// for keys without policies. Identity policies are then not needed to allow.
    pub is_administrator: bool,
    /// The policies of who asks, each [`PolicyKind::Identity`].
    pub identity_policies: &'a [Policy],
    /// What they ask for: `kinesis:PutRecord`.
    pub action: &'a str,
    /// ARN of what it is done to, or `*` where an action is about no single resource (service
    /// authorization reference, for example ListStreams).
    pub resource: &'a str,
    /// Account of that resource, 12 digits.
    pub resource_account: &'a str,
    /// The policy of that resource, [`PolicyKind::Resource`], if it has one.
    pub resource_policy: Option<&'a Policy>,
    /// What else is known.
    pub context: Context<'a>,
}

/// What policies say to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It may be done.
    Allowed,
    /// A statement denies it, in a policy of this kind.
    ExplicitlyDenied(PolicyKind),
    /// No statement allows it, where one in a policy of this kind would have to.
    NotAllowed(PolicyKind),
}

/// A request that may not be done; the message is the service's (IAM user guide, "Troubleshoot
/// access denied error messages").
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "User: {principal_arn} is not authorized to perform: {action} on resource: {resource} {why}"
)]
pub struct AccessDenied {
    /// ARN of who asked.
    pub principal_arn: String,
    /// What they asked for.
    pub action: String,
    /// What it would have been done to.
    pub resource: String,
    /// The policies' say.
    pub why: Denial,
}

/// Why a request may not be done.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Denial {
    /// A statement denies it.
    #[error("with an explicit deny in {} policy", with_article(*.0))]
    Explicit(PolicyKind),
    /// No statement allows it.
    #[error("because no {} policy allows the {action} action", name(*.kind))]
    Implicit {
        /// The kind of policy that would have to.
        kind: PolicyKind,
        /// The action.
        action: String,
    },
}

impl Policy {
    /// Reads a policy of either kind: one whose statements all name principals is a resource's, one
    /// whose statements name none an identity's.
    ///
    /// # Errors
    /// [`PolicyError`], with the place of the fault.
    pub fn parse(document: &str) -> Result<Policy, PolicyError> {
        let statements: Arc<[Statement]> = parse::statements(document)?.into();
        let first_names_some = statements.first().is_some_and(|first| first.principals.is_some());
        let kind = if first_names_some { PolicyKind::Resource } else { PolicyKind::Identity };
        if let Some(n) = statements.iter().position(|s| s.principals.is_some() != first_names_some)
        {
            // A list, since not all are alike.
            let place = format!("Statement[{n}]");
            return Err(match kind {
                PolicyKind::Resource => PolicyFault::NoPrincipal.at(place),
                PolicyKind::Identity => PolicyFault::PrincipalOfIdentity.at(place),
            });
        }
        Ok(Policy { kind, statements })
    }

    /// Reads an identity policy.
    ///
    /// # Errors
    /// [`PolicyError`], with the place of the fault; also when a statement names a principal.
    pub fn parse_identity(document: &str) -> Result<Policy, PolicyError> {
        let policy = Policy::parse(document)?;
        match policy.kind {
            PolicyKind::Identity => Ok(policy),
            PolicyKind::Resource => Err(PolicyFault::PrincipalOfIdentity.at("Statement")),
        }
    }

    /// Reads a resource policy, as PutResourcePolicy takes it.
    ///
    /// # Errors
    /// [`PolicyError`], with the place of the fault; also when a statement names no principal.
    pub fn parse_resource(document: &str) -> Result<Policy, PolicyError> {
        let policy = Policy::parse(document)?;
        match policy.kind {
            PolicyKind::Resource => Ok(policy),
            PolicyKind::Identity => Err(PolicyFault::NoPrincipal.at("Statement")),
        }
    }

    /// What it hangs on.
    #[must_use]
    pub fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// Names of condition keys in it that no request ever has here. Such a condition is legal, and
    /// probably not what its author thinks.
    pub fn absent_keys(&self) -> impl Iterator<Item = &str> {
        let conditions = self.statements.iter().flat_map(|statement| &statement.conditions);
        conditions.filter_map(|condition| condition.absent_key())
    }
}

impl Request<'_> {
    /// Judges the request; see [`evaluate`].
    ///
    /// # Errors
    /// [`AccessDenied`], with the service's message.
    pub fn authorize(&self) -> Result<(), AccessDenied> {
        let why = match evaluate(self) {
            Decision::Allowed => return Ok(()),
            Decision::ExplicitlyDenied(kind) => Denial::Explicit(kind),
            Decision::NotAllowed(kind) => Denial::Implicit { kind, action: self.action.to_owned() },
        };
        Err(AccessDenied {
            principal_arn: self.principal.arn().to_owned(),
            action: self.action.to_owned(),
            resource: self.resource.to_owned(),
            why,
        })
    }
}

impl AccessDenied {
    /// The error's `__type`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        "AccessDeniedException"
    }

    /// The HTTP status (API reference, "Common errors": 400 for this protocol).
    #[must_use]
    pub fn status(&self) -> u16 {
        400
    }
}

/// What the policies of a request say to it.
#[must_use]
pub fn evaluate(request: &Request<'_>) -> Decision {
    let facts = Facts {
        principal: request.principal,
        resource_account: request.resource_account,
        context: request.context,
    };
    let applies = |statement: &Statement| statement.applies(request, &facts);
    let own = || request.identity_policies.iter().flat_map(|policy| policy.statements.iter());
    let is_same_account = request.principal.account_id() == request.resource_account;
    let changes_policy = is_one_of(request.action, &CHANGES_OF_RESOURCE_POLICY);
    let is_about_policy = changes_policy || is_one_of(request.action, &[VIEW_OF_RESOURCE_POLICY]);

    if own().any(|statement| statement.effect == Effect::Deny && applies(statement)) {
        return Decision::ExplicitlyDenied(PolicyKind::Identity);
    }
    let owner_is_root = is_same_account && request.principal.is_root();
    let resource_statements = match request.resource_policy {
        Some(_) if owner_is_root && is_about_policy => &[][..],
        Some(policy) => &policy.statements[..],
        None => &[],
    };
    let denies = |statement: &&Statement| {
        let reaches = statement.principals.as_ref().is_none_or(|p| p.denies(request.principal));
        statement.effect == Effect::Deny && reaches && applies(statement)
    };
    if resource_statements.iter().any(|statement| denies(&statement)) {
        return Decision::ExplicitlyDenied(PolicyKind::Resource);
    }

    let identity_allows = request.is_administrator
        || own().any(|statement| statement.effect == Effect::Allow && applies(statement));
    if is_same_account && identity_allows {
        return Decision::Allowed;
    }
    let reach = |statement: &Statement| match &statement.principals {
        Some(principals) if statement.effect == Effect::Allow => {
            let reach = principals.reach(request.principal);
            if reach != Reach::None && applies(statement) { reach } else { Reach::None }
        }
        _ => Reach::None,
    };
    let reach = resource_statements.iter().map(reach).max().unwrap_or(Reach::None);
    if is_same_account {
        return match reach {
            Reach::Caller => Decision::Allowed,
            Reach::Account | Reach::None => Decision::NotAllowed(PolicyKind::Identity),
        };
    }
    if !identity_allows {
        Decision::NotAllowed(PolicyKind::Identity)
    } else if reach == Reach::None || changes_policy {
        Decision::NotAllowed(PolicyKind::Resource)
    } else {
        Decision::Allowed
    }
}

impl Statement {
    /// Whether the request is of the statement's actions and resources, and its conditions hold.
    ///
    /// A variable without a value matches nothing. That must not make a statement apply that
    /// allows: neither as a resource that is left out nor as a value that is not equal.
    fn applies(&self, request: &Request<'_>, facts: &Facts<'_>) -> bool {
        let allows = self.effect == Effect::Allow;
        let selects_action = match &self.actions {
            Selection::These(actions) => {
                actions.iter().any(|action| action.matches(request.action, true, facts))
            }
            Selection::AllBut(actions) => {
                !actions.iter().any(|action| action.matches(request.action, true, facts))
            }
        };
        let selects_resource = || match &self.resources {
            Selection::These(arns) => arns.iter().any(|arn| arn.matches(request.resource, facts)),
            Selection::AllBut(arns) => !arns.iter().any(|arn| {
                arn.matches(request.resource, facts) || (allows && !arn.resolves(facts))
            }),
        };
        let holds = || {
            self.conditions.iter().all(|condition| {
                condition.holds(facts) && !(allows && condition.hangs_on_nothing(facts))
            })
        };
        selects_action && selects_resource() && holds()
    }
}

fn is_one_of(action: &str, lower_case: &[&str]) -> bool {
    lower_case.iter().any(|other| action.eq_ignore_ascii_case(other))
}

fn name(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::Identity => "identity-based",
        PolicyKind::Resource => "resource-based",
    }
}

fn with_article(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::Identity => "an identity-based",
        PolicyKind::Resource => "a resource-based",
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const ACCOUNT: &str = "123456789012";
    const OTHER: &str = "210987654321";
    const STREAM: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
    const ALICE: &str = "arn:aws:iam::123456789012:user/alice";
    const PUT: &str = "kinesis:PutRecord";

    const IDENTITY: PolicyKind = PolicyKind::Identity;
    const RESOURCE: PolicyKind = PolicyKind::Resource;
    const ALLOWED: Decision = Decision::Allowed;

    fn statement(effect: &str, more: &str) -> String {
        format!(r#"{{"Effect":"{effect}","Resource":"*",{more}}}"#)
    }

    fn document(statements: &[String]) -> String {
        format!(r#"{{"Version":"2012-10-17","Statement":[{}]}}"#, statements.join(","))
    }

    fn identity(statements: &[String]) -> Policy {
        Policy::parse_identity(&document(statements)).expect("an identity policy")
    }

    fn resource(statements: &[String]) -> Policy {
        Policy::parse_resource(&document(statements)).expect("a resource policy")
    }

    fn alice() -> Principal {
        Principal::user(ACCOUNT, "alice").expect("a user")
    }

    fn request<'a>(principal: &'a Principal, policies: &'a [Policy]) -> Request<'a> {
        Request {
            principal,
            is_administrator: false,
            identity_policies: policies,
            action: PUT,
            resource: STREAM,
            resource_account: ACCOUNT,
            resource_policy: None,
            context: Context::new(UNIX_EPOCH, "eu-west-1"),
        }
    }

    fn allow_put() -> String {
        statement("Allow", r#""Action":"kinesis:PutRecord""#)
    }

    fn deny_put() -> String {
        statement("Deny", r#""Action":"kinesis:Put*""#)
    }

    fn shared(effect: &str, principal: &str) -> String {
        statement(effect, &format!(r#""Action":"kinesis:*","Principal":{{"AWS":"{principal}"}}"#))
    }

    #[test]
    fn within_an_account_one_allow_suffices_and_a_deny_wins() {
        let alice = alice();
        let none: Vec<String> = Vec::new();
        let other_user = "arn:aws:iam::123456789012:user/bob";
        for (own, of_resource, expected) in [
            (none.clone(), None, Decision::NotAllowed(IDENTITY)),
            (vec![allow_put()], None, ALLOWED),
            (vec![deny_put(), allow_put()], None, Decision::ExplicitlyDenied(IDENTITY)),
            (none.clone(), Some(vec![shared("Allow", ALICE)]), ALLOWED),
            (none.clone(), Some(vec![shared("Allow", "*")]), ALLOWED),
            // The account is let decide, and has not decided.
            (none.clone(), Some(vec![shared("Allow", ACCOUNT)]), Decision::NotAllowed(IDENTITY)),
            (vec![allow_put()], Some(vec![shared("Allow", ACCOUNT)]), ALLOWED),
            (none.clone(), Some(vec![shared("Allow", other_user)]), Decision::NotAllowed(IDENTITY)),
            (vec![allow_put()], Some(vec![shared("Allow", other_user)]), ALLOWED),
            (
                vec![allow_put()],
                Some(vec![shared("Deny", ALICE)]),
                Decision::ExplicitlyDenied(RESOURCE),
            ),
            (
                vec![allow_put()],
                Some(vec![shared("Allow", ALICE), shared("Deny", ACCOUNT)]),
                Decision::ExplicitlyDenied(RESOURCE),
            ),
            (vec![allow_put()], Some(vec![shared("Deny", other_user)]), ALLOWED),
            (
                vec![deny_put()],
                Some(vec![shared("Allow", ALICE)]),
                Decision::ExplicitlyDenied(IDENTITY),
            ),
        ] {
            let policies: Vec<Policy> =
                own.iter().map(|s| identity(std::slice::from_ref(s))).collect();
            let of_resource = of_resource.map(|statements| resource(&statements));
            let judged =
                Request { resource_policy: of_resource.as_ref(), ..request(&alice, &policies) };
            assert_eq!(evaluate(&judged), expected, "{own:?} {of_resource:?}");
        }
    }

    #[test]
    fn from_another_account_both_must_allow() {
        let alice = Principal::user(OTHER, "alice").expect("a user");
        let arn = "arn:aws:iam::210987654321:user/alice";
        let allows = [identity(&[allow_put()])];
        let nothing: [Policy; 0] = [];
        for (policies, principal, expected) in [
            (&allows[..], Some(OTHER), ALLOWED),
            (&allows[..], Some(arn), ALLOWED),
            (&allows[..], Some("*"), ALLOWED),
            (&allows[..], Some(ACCOUNT), Decision::NotAllowed(RESOURCE)),
            (&allows[..], None, Decision::NotAllowed(RESOURCE)),
            (&nothing[..], Some(arn), Decision::NotAllowed(IDENTITY)),
            (&nothing[..], None, Decision::NotAllowed(IDENTITY)),
        ] {
            let of_resource = principal.map(|principal| resource(&[shared("Allow", principal)]));
            let judged =
                Request { resource_policy: of_resource.as_ref(), ..request(&alice, policies) };
            assert_eq!(evaluate(&judged), expected, "{principal:?}");
        }
    }

    #[test]
    fn administrators_need_no_policy_in_their_account_only() {
        let root = Principal::root(ACCOUNT).expect("an account");
        let administrator = Request { is_administrator: true, ..request(&root, &[]) };
        assert_eq!(evaluate(&administrator), ALLOWED);
        let elsewhere = Request { resource_account: OTHER, ..administrator };
        assert_eq!(evaluate(&elsewhere), Decision::NotAllowed(RESOURCE));
        let shared_with = resource(&[shared("Allow", ACCOUNT)]);
        let elsewhere = Request { resource_policy: Some(&shared_with), ..elsewhere };
        assert_eq!(evaluate(&elsewhere), ALLOWED);
        let denied = resource(&[shared("Deny", "*")]);
        let denied = Request { resource_policy: Some(&denied), ..administrator };
        assert_eq!(evaluate(&denied), Decision::ExplicitlyDenied(RESOURCE));
    }

    #[test]
    fn the_root_user_can_always_replace_a_policy_of_its_account() {
        let root = Principal::root(ACCOUNT).expect("an account");
        let alice = alice();
        let denied = resource(&[shared("Deny", "*")]);
        for action in ["PutResourcePolicy", "DeleteResourcePolicy", "GetResourcePolicy"] {
            let action = format!("kinesis:{action}");
            let by_root = Request {
                is_administrator: true,
                action: &action,
                resource_policy: Some(&denied),
                ..request(&root, &[])
            };
            assert_eq!(evaluate(&by_root), ALLOWED, "{action}");
            let by_alice = Request { principal: &alice, ..by_root };
            assert_eq!(evaluate(&by_alice), Decision::ExplicitlyDenied(RESOURCE), "{action}");
        }
    }

    #[test]
    fn a_resource_policy_is_changed_from_its_own_account_only() {
        let root = Principal::root(OTHER).expect("an account");
        let shared_with = resource(&[shared("Allow", OTHER)]);
        for (action, expected) in [
            ("kinesis:PutResourcePolicy", Decision::NotAllowed(RESOURCE)),
            ("kinesis:DeleteResourcePolicy", Decision::NotAllowed(RESOURCE)),
            ("kinesis:GetResourcePolicy", ALLOWED),
        ] {
            let judged = Request {
                is_administrator: true,
                action,
                resource_policy: Some(&shared_with),
                ..request(&root, &[])
            };
            assert_eq!(evaluate(&judged), expected, "{action}");
        }
    }

    #[test]
    fn statements_select_actions_and_resources() {
        let alice = alice();
        for (elements, action, resource, expected) in [
            (r#""Action":"kinesis:Put*","Resource":"*""#, PUT, STREAM, true),
            (r#""Action":"KINESIS:putrecord","Resource":"*""#, PUT, STREAM, true),
            (r#""Action":"kinesis:PutRecord","Resource":"*""#, "kinesis:PutRecords", STREAM, false),
            (r#""Action":"kinesis:Get*","Resource":"*""#, PUT, STREAM, false),
            (r#""Action":["s3:*","*"],"Resource":"*""#, PUT, STREAM, true),
            (r#""NotAction":"kinesis:Delete*","Resource":"*""#, PUT, STREAM, true),
            (r#""NotAction":"kinesis:Put*","Resource":"*""#, PUT, STREAM, false),
            (r#""Action":"*","Resource":"arn:aws:kinesis:*:*:stream/orders""#, PUT, STREAM, true),
            (r#""Action":"*","Resource":"arn:aws:kinesis:*:*:stream/others""#, PUT, STREAM, false),
            (r#""Action":"*","NotResource":"arn:aws:kinesis:*:*:stream/o*""#, PUT, STREAM, false),
            (r#""Action":"*","NotResource":"arn:aws:kinesis:*:*:stream/x*""#, PUT, STREAM, true),
            (r#""Action":"*","Resource":"arn:aws:kinesis:*""#, "kinesis:ListStreams", "*", false),
            (r#""Action":"*","Resource":"*""#, "kinesis:ListStreams", "*", true),
            (
                r#""Action":"*","Resource":"arn:aws:kinesis:*:*:stream/${aws:username}-*""#,
                PUT,
                "arn:aws:kinesis:eu-west-1:123456789012:stream/alice-1",
                true,
            ),
            (
                r#""Action":"*","Resource":"arn:aws:kinesis:*:*:stream/${aws:username}""#,
                PUT,
                STREAM,
                false,
            ),
        ] {
            let document = format!(
                r#"{{"Version":"2012-10-17","Statement":{{"Effect":"Allow",{elements}}}}}"#
            );
            let policies = [Policy::parse_identity(&document).expect("an identity policy")];
            let judged = Request { action, resource, ..request(&alice, &policies) };
            assert_eq!(evaluate(&judged) == ALLOWED, expected, "{elements} {action} {resource}");
        }
    }

    #[test]
    fn without_the_version_variables_are_text() {
        let alice = alice();
        let elements =
            r#""Effect":"Allow","Action":"*","Resource":"arn:aws:kinesis:*:*:${aws:username}""#;
        let document = format!(r#"{{"Statement":{{{elements}}}}}"#);
        let policies = [Policy::parse_identity(&document).expect("an identity policy")];
        let own = "arn:aws:kinesis:eu-west-1:123456789012:alice";
        let literal = "arn:aws:kinesis:eu-west-1:123456789012:${aws:username}";
        let judged = Request { resource: own, ..request(&alice, &policies) };
        assert_eq!(evaluate(&judged), Decision::NotAllowed(IDENTITY));
        assert_eq!(evaluate(&Request { resource: literal, ..judged }), ALLOWED);
    }

    #[test]
    fn conditions_must_all_hold() {
        let alice = alice();
        let condition = |region: &str| {
            let condition = format!(
                r#""Action":"*","Condition":{{"StringEquals":{{"aws:RequestedRegion":"{region}"}},
                   "Bool":{{"aws:SecureTransport":"false"}}}}"#
            );
            [identity(&[statement("Allow", &condition)])]
        };
        assert_eq!(evaluate(&request(&alice, &condition("eu-west-1"))), ALLOWED);
        let elsewhere = condition("us-east-1");
        assert_eq!(evaluate(&request(&alice, &elsewhere)), Decision::NotAllowed(IDENTITY));
        let secure = condition("eu-west-1");
        let mut judged = request(&alice, &secure);
        judged.context.is_secure_transport = true;
        assert_eq!(evaluate(&judged), Decision::NotAllowed(IDENTITY));
    }

    #[test]
    fn a_variable_without_a_value_lets_nobody_in() {
        let session = Principal::role_session(ACCOUNT, "ingest", "h1").expect("a session");
        let unequal = r#""Action":"*","Condition":
            {"StringNotEquals":{"aws:RequestedRegion":"${aws:username}"}}"#;
        let document_of = |effect: &str| {
            format!(
                r#"{{"Version":"2012-10-17","Statement":{{"Effect":"{effect}","Action":"*",
                   "NotResource":"arn:aws:kinesis:*:*:stream/${{aws:username}}"}}}}"#
            )
        };
        let parse = |document: &str| [Policy::parse_identity(document).expect("a policy")];
        for policies in [[identity(&[statement("Allow", unequal)])], parse(&document_of("Allow"))] {
            let judged = request(&session, &policies);
            assert_eq!(evaluate(&judged), Decision::NotAllowed(IDENTITY), "{policies:?}");
        }
        for policies in [[identity(&[statement("Deny", unequal)])], parse(&document_of("Deny"))] {
            let judged = Request { is_administrator: true, ..request(&session, &policies) };
            assert_eq!(evaluate(&judged), Decision::ExplicitlyDenied(IDENTITY), "{policies:?}");
        }
    }

    #[test]
    fn all_but_one_are_denied() {
        let (alice, bob) = (alice(), Principal::user(ACCOUNT, "bob").expect("a user"));
        let policy = format!(r#""Action":"*","NotPrincipal":{{"AWS":["{ALICE}","{ACCOUNT}"]}}"#);
        let policy = resource(&[statement("Deny", &policy)]);
        let by_alice = Request {
            is_administrator: true,
            resource_policy: Some(&policy),
            ..request(&alice, &[])
        };
        assert_eq!(evaluate(&by_alice), ALLOWED);
        let by_bob = Request { principal: &bob, ..by_alice };
        assert_eq!(evaluate(&by_bob), Decision::ExplicitlyDenied(RESOURCE));
    }

    #[test]
    fn denials_are_told_as_the_service_does() {
        let alice = alice();
        let message = |request: Request<'_>| {
            let denied = request.authorize().expect_err("it is not allowed");
            assert_eq!((denied.kind(), denied.status()), ("AccessDeniedException", 400));
            denied.to_string()
        };
        let front = format!(
            "User: {ALICE} is not authorized to perform: kinesis:PutRecord on resource: {STREAM}"
        );
        assert_eq!(
            message(request(&alice, &[])),
            format!("{front} because no identity-based policy allows the kinesis:PutRecord action")
        );
        let denying = [identity(&[deny_put()])];
        assert_eq!(
            message(request(&alice, &denying)),
            format!("{front} with an explicit deny in an identity-based policy")
        );
        let denied = resource(&[shared("Deny", ALICE)]);
        let judged = Request { resource_policy: Some(&denied), ..request(&alice, &[]) };
        assert_eq!(
            message(judged),
            format!("{front} with an explicit deny in a resource-based policy")
        );
        let allowing = [identity(&[allow_put()])];
        let judged = Request { resource_account: OTHER, ..request(&alice, &allowing) };
        assert_eq!(
            message(judged),
            format!("{front} because no resource-based policy allows the kinesis:PutRecord action")
        );
    }

    #[test]
    fn the_kind_follows_from_the_principals() {
        let own = allow_put();
        let of_resource = shared("Allow", ACCOUNT);
        assert_eq!(
            Policy::parse(&document(std::slice::from_ref(&own))).map(|p| p.kind()),
            Ok(IDENTITY)
        );
        assert_eq!(
            Policy::parse(&document(std::slice::from_ref(&of_resource))).map(|p| p.kind()),
            Ok(RESOURCE)
        );
        let error = |parsed: Result<Policy, PolicyError>| {
            parsed.expect_err("a policy of another kind").to_string()
        };
        let mixed = Policy::parse(&document(&[own.clone(), of_resource.clone()]));
        assert!(error(mixed).starts_with("Statement[1]: an identity policy has none"));
        let mixed = Policy::parse(&document(&[of_resource.clone(), own.clone()]));
        assert!(error(mixed).starts_with("Statement[1]: a resource policy must say of whom"));
        assert!(error(Policy::parse_identity(&document(&[of_resource]))).contains("has none"));
        assert!(error(Policy::parse_resource(&document(&[own]))).contains("must say of whom"));
    }

    #[test]
    fn keys_that_no_request_has_can_be_listed() {
        let condition =
            r#""Action":"*","Condition":{"Null":{"aws:SourceVpc":"true","aws:SourceIp":"true"}}"#;
        let policy = identity(&[statement("Allow", condition)]);
        assert_eq!(policy.absent_keys().collect::<Vec<_>>(), ["aws:SourceVpc"]);
    }
}
