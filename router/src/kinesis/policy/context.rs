//! What is known of a request, and the condition keys by which policies ask for it.
//!
//! Keys are those of the IAM user guide ("AWS global condition context keys") that mean something
//! here. A policy may name any other key; no request has it, and conditions treat it as absent.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use crate::kinesis::principal::{Principal, PrincipalKind};

/// Bytes of a user agent that are compared: it is the caller's to choose, and comparing takes time
/// with its length.
const USER_AGENT_BYTES_MAX: usize = 1024;

/// Tags by key.
pub type Tags = BTreeMap<String, String>;

/// What a request says of tags. `aws:TagKeys` are the keys it names (IAM user guide, "Controlling
/// access during AWS requests").
#[derive(Clone, Copy, Debug, Default)]
pub enum RequestTags<'a> {
    /// Nothing.
    #[default]
    Nothing,
    /// Tags that the resource is to have: `aws:RequestTag/key`.
    Tags(&'a Tags),
    /// Keys alone, of tags that are to go: no `aws:RequestTag` is there, not an empty one either.
    Keys(&'a [String]),
}

/// What is known of a request beside who makes it, what it does and to which resource.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// When it is judged: `aws:CurrentTime` and `aws:EpochTime`, in whole seconds.
    pub now: SystemTime,
    /// Region it is made to: `aws:RequestedRegion`.
    pub region: &'a str,
    /// Address it comes from: `aws:SourceIp`. IPv4 addresses that an IPv6 socket shows as mapped
    /// count as IPv4.
    pub source_ip: Option<IpAddr>,
    /// Whether it came over TLS: `aws:SecureTransport`.
    pub is_secure_transport: bool,
    /// What the client calls itself: `aws:UserAgent`; the first 1,024 bytes count.
    pub user_agent: Option<&'a str>,
    /// Tags of the caller: `aws:PrincipalTag/key`.
    pub principal_tags: Option<&'a Tags>,
    /// Tags that the request carries, or names.
    pub request_tags: RequestTags<'a>,
    /// Tags that the resource has: `aws:ResourceTag/key`.
    pub resource_tags: Option<&'a Tags>,
}

impl<'a> Context<'a> {
    /// A request of which nothing further is known.
    #[must_use]
    pub fn new(now: SystemTime, region: &'a str) -> Context<'a> {
        Context {
            now,
            region,
            source_ip: None,
            is_secure_transport: false,
            user_agent: None,
            principal_tags: None,
            request_tags: RequestTags::Nothing,
            resource_tags: None,
        }
    }
}

/// Everything that keys can ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) principal: &'a Principal,
    pub(super) resource_account: &'a str,
    pub(super) context: Context<'a>,
}

/// A condition key. Names are matched without regard to case (IAM user guide, "Variables").
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ContextKey {
    CurrentTime,
    EpochTime,
    PrincipalAccount,
    PrincipalArn,
    PrincipalIsAwsService,
    PrincipalTag(String),
    PrincipalType,
    RequestTag(String),
    RequestedRegion,
    ResourceAccount,
    ResourceTag(String),
    SecureTransport,
    SourceIp,
    TagKeys,
    UserAgent,
    UserId,
    Username,
    ViaAwsService,
    Absent(String),
}

/// What a request has under a key.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Found<'a> {
    Nothing,
    One(Cow<'a, str>),
    Many(Vec<&'a str>),
}

impl ContextKey {
    /// The key of that name.
    pub(super) fn parse(name: &str) -> ContextKey {
        let lower = name.to_ascii_lowercase();
        if let Some((_, tag)) = name.split_once('/') {
            let tag = tag.to_owned();
            match lower.split('/').next() {
                Some("aws:principaltag") => return ContextKey::PrincipalTag(tag),
                Some("aws:requesttag") => return ContextKey::RequestTag(tag),
                Some("aws:resourcetag") => return ContextKey::ResourceTag(tag),
                _ => {}
            }
        }
        match lower.as_str() {
            "aws:currenttime" => ContextKey::CurrentTime,
            "aws:epochtime" => ContextKey::EpochTime,
            "aws:principalaccount" => ContextKey::PrincipalAccount,
            "aws:principalarn" => ContextKey::PrincipalArn,
            "aws:principalisawsservice" => ContextKey::PrincipalIsAwsService,
            "aws:principaltype" => ContextKey::PrincipalType,
            "aws:requestedregion" => ContextKey::RequestedRegion,
            "aws:resourceaccount" => ContextKey::ResourceAccount,
            "aws:securetransport" => ContextKey::SecureTransport,
            "aws:sourceip" => ContextKey::SourceIp,
            "aws:tagkeys" => ContextKey::TagKeys,
            "aws:useragent" => ContextKey::UserAgent,
            "aws:userid" => ContextKey::UserId,
            "aws:username" => ContextKey::Username,
            "aws:viaawsservice" => ContextKey::ViaAwsService,
            _ => ContextKey::Absent(name.to_owned()),
        }
    }

    /// What a request has under this key.
    ///
    /// Unique ids are not kept here: `aws:userid` is the account of the root user, a user's path
    /// and name, and role and session joined by a colon.
    pub(super) fn find<'a>(&self, facts: &Facts<'a>) -> Found<'a> {
        let (principal, context) = (facts.principal, &facts.context);
        match self {
            ContextKey::CurrentTime => {
                let seconds = DateTime::from_secs(DateTime::from(context.now).secs());
                let text = seconds.fmt(Format::DateTime);
                text.map_or(Found::Nothing, |text| Found::One(Cow::Owned(text)))
            }
            ContextKey::EpochTime => {
                Found::One(Cow::Owned(DateTime::from(context.now).secs().to_string()))
            }
            ContextKey::PrincipalAccount => one(principal.account_id()),
            ContextKey::PrincipalArn => one(principal.permanent_arn()),
            ContextKey::PrincipalIsAwsService | ContextKey::ViaAwsService => one("false"),
            ContextKey::PrincipalTag(tag) => tagged(context.principal_tags, tag),
            ContextKey::PrincipalType => one(match principal.kind() {
                PrincipalKind::Root => "Account",
                PrincipalKind::User { .. } => "User",
                PrincipalKind::RoleSession { .. } => "AssumedRole",
            }),
            ContextKey::RequestTag(tag) => match context.request_tags {
                RequestTags::Tags(tags) => tagged(Some(tags), tag),
                RequestTags::Nothing | RequestTags::Keys(_) => Found::Nothing,
            },
            ContextKey::RequestedRegion => one(context.region),
            ContextKey::ResourceAccount => one(facts.resource_account),
            ContextKey::ResourceTag(tag) => tagged(context.resource_tags, tag),
            ContextKey::SecureTransport => {
                one(if context.is_secure_transport { "true" } else { "false" })
            }
            ContextKey::SourceIp => context.source_ip.map_or(Found::Nothing, |address| {
                Found::One(Cow::Owned(address.to_canonical().to_string()))
            }),
            ContextKey::TagKeys => {
                let keys: Vec<&str> = match context.request_tags {
                    RequestTags::Nothing => Vec::new(),
                    RequestTags::Tags(tags) => tags.keys().map(String::as_str).collect(),
                    RequestTags::Keys(keys) => keys.iter().map(String::as_str).collect(),
                };
                if keys.is_empty() { Found::Nothing } else { Found::Many(keys) }
            }
            ContextKey::UserAgent => context.user_agent.map_or(Found::Nothing, |agent| {
                one(&agent[..agent.floor_char_boundary(USER_AGENT_BYTES_MAX)])
            }),
            ContextKey::UserId => match principal.kind() {
                PrincipalKind::Root => one(principal.account_id()),
                PrincipalKind::User { path, name } => {
                    Found::One(Cow::Owned(format!("{path}{name}")))
                }
                PrincipalKind::RoleSession { role, session, .. } => {
                    Found::One(Cow::Owned(format!("{role}:{session}")))
                }
            },
            ContextKey::Username => match principal.kind() {
                PrincipalKind::User { name, .. } => one(name),
                _ => Found::Nothing,
            },
            ContextKey::Absent(_) => Found::Nothing,
        }
    }
}

fn one(text: &str) -> Found<'_> {
    Found::One(Cow::Borrowed(text))
}

/// Keys of tags are found without regard to case, as the rest of a condition key is.
fn tagged<'a>(tags: Option<&'a Tags>, key: &str) -> Found<'a> {
    let found = tags.and_then(|tags| {
        let exact = tags.get(key);
        exact.or_else(|| tags.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v))
    });
    found.map_or(Found::Nothing, |value| one(value))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn find<'a>(facts: &Facts<'a>, key: &str) -> Found<'a> {
        ContextKey::parse(key).find(facts)
    }

    #[test]
    fn keys_find_what_the_request_has() {
        let principal = Principal::user("123456789012", "team/alice").expect("a user");
        let tags = Tags::from([("Team".to_owned(), "red".to_owned())]);
        let context = Context {
            source_ip: Some(IpAddr::V6(Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped())),
            is_secure_transport: true,
            user_agent: Some("aws-cli"),
            principal_tags: Some(&tags),
            request_tags: RequestTags::Tags(&tags),
            ..Context::new(UNIX_EPOCH + Duration::from_millis(1_440_938_160_900), "eu-west-1")
        };
        let facts = Facts { principal: &principal, resource_account: "210987654321", context };
        for (key, expected) in [
            ("aws:CurrentTime", "2015-08-30T12:36:00Z"),
            ("aws:EpochTime", "1440938160"),
            ("AWS:PRINCIPALACCOUNT", "123456789012"),
            ("aws:PrincipalArn", "arn:aws:iam::123456789012:user/team/alice"),
            ("aws:PrincipalIsAWSService", "false"),
            ("aws:PrincipalTag/team", "red"),
            ("aws:PrincipalType", "User"),
            ("aws:RequestTag/Team", "red"),
            ("aws:RequestedRegion", "eu-west-1"),
            ("aws:ResourceAccount", "210987654321"),
            ("aws:SecureTransport", "true"),
            ("aws:SourceIp", "192.0.2.7"),
            ("aws:UserAgent", "aws-cli"),
            ("aws:userid", "/team/alice"),
            ("aws:username", "alice"),
            ("aws:ViaAWSService", "false"),
        ] {
            assert_eq!(find(&facts, key), one(expected), "{key}");
        }
        assert_eq!(find(&facts, "aws:TagKeys"), Found::Many(vec!["Team"]));
        for key in ["aws:ResourceTag/Team", "aws:RequestTag/Other", "aws:PrincipalOrgID", "x", ""] {
            assert_eq!(find(&facts, key), Found::Nothing, "{key}");
        }
    }

    /// A request that removes tags was shown to policies as one that sets them to nothing, so that
    /// a condition on the value of `aws:RequestTag` was asked of a text that nobody sent.
    #[test]
    fn keys_alone_are_no_tags() {
        let principal = Principal::root("123456789012").expect("an account");
        let keys = ["team".to_owned(), "cost".to_owned()];
        let mut context = Context::new(UNIX_EPOCH, "eu-west-1");
        context.request_tags = RequestTags::Keys(&keys);
        let facts = Facts { principal: &principal, resource_account: "1", context };
        assert_eq!(find(&facts, "aws:TagKeys"), Found::Many(vec!["team", "cost"]));
        assert_eq!(find(&facts, "aws:RequestTag/team"), Found::Nothing);
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let principal = Principal::role_session("123456789012", "ingest", "h1").expect("a session");
        let tags = Tags::new();
        let mut context = Context::new(UNIX_EPOCH, "eu-west-1");
        context.request_tags = RequestTags::Tags(&tags);
        let mut facts = Facts { principal: &principal, resource_account: "1", context };
        for key in ["aws:username", "aws:SourceIp", "aws:UserAgent", "aws:TagKeys"] {
            assert_eq!(find(&facts, key), Found::Nothing, "{key}");
        }
        assert_eq!(find(&facts, "aws:userid"), one("ingest:h1"));
        facts.context.source_ip = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(find(&facts, "aws:SourceIp"), one("::1"));
    }

    #[test]
    fn a_long_user_agent_is_cut_between_characters() {
        let principal = Principal::root("123456789012").expect("an account");
        let agent = format!("a{}", "ä".repeat(USER_AGENT_BYTES_MAX));
        let mut context = Context::new(UNIX_EPOCH, "eu-west-1");
        context.user_agent = Some(&agent);
        let facts = Facts { principal: &principal, resource_account: "1", context };
        let Found::One(found) = find(&facts, "aws:UserAgent") else { panic!("it is there") };
        assert_eq!(found.len(), USER_AGENT_BYTES_MAX - 1);
    }
}
