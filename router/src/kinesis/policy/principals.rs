//! Of whom a statement of a resource policy speaks (IAM user guide, "Principal" and
//! "NotPrincipal").

use crate::kinesis::principal::{
    ACCOUNT_ID_DIGITS, Principal, PrincipalKind, is_account_id, path_and_name,
};

/// The principals of a statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Principals {
    /// `Principal`.
    These(Vec<PrincipalPattern>),
    /// `NotPrincipal`.
    AllBut(Vec<PrincipalPattern>),
}

/// One principal of a statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PrincipalPattern {
    /// `*`.
    Everyone,
    /// An account, and so all in it whom the account lets.
    Account(String),
    /// A user.
    User { account: String, path: String, name: String },
    /// A role, and so its sessions.
    Role { account: String, path: String, role: String },
    /// One session of a role.
    RoleSession { account: String, role: String, session: String },
    /// A service, or an identity of another provider: nobody who calls here.
    Foreign,
}

/// How far a statement that allows reaches a caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Reach {
    /// Not at all.
    None,
    /// To the caller's account, which must let the caller in turn.
    Account,
    /// To the caller.
    Caller,
}

impl Principals {
    /// How far a statement with this element reaches when it allows.
    pub(super) fn reach(&self, principal: &Principal) -> Reach {
        match self {
            Principals::These(patterns) => {
                let reaches = patterns.iter().map(|pattern| pattern.reach(principal));
                reaches.max().unwrap_or(Reach::None)
            }
            // Who is named in any way is left out.
            Principals::AllBut(patterns) => {
                let named = |pattern: &PrincipalPattern| pattern.reach(principal) != Reach::None;
                if patterns.iter().any(named) { Reach::None } else { Reach::Caller }
            }
        }
    }

    /// Whether a statement with this element applies when it denies. An account that is denied
    /// denies all in it; but only who is named as such is spared by `NotPrincipal`, the account
    /// alone does not suffice.
    pub(super) fn denies(&self, principal: &Principal) -> bool {
        match self {
            Principals::These(patterns) => {
                patterns.iter().any(|pattern| pattern.reach(principal) != Reach::None)
            }
            Principals::AllBut(patterns) => {
                !patterns.iter().any(|pattern| pattern.reach(principal) == Reach::Caller)
            }
        }
    }
}

impl PrincipalPattern {
    /// A principal under `AWS`: `*`, an account id, or the ARN of an account's root user, a user,
    /// a role or a role's session. ARNs of every partition are taken; none has a wildcard.
    pub(super) fn parse(text: &str) -> Option<PrincipalPattern> {
        if text == "*" {
            return Some(PrincipalPattern::Everyone);
        }
        if is_account_id(text) {
            return Some(PrincipalPattern::Account(text.to_owned()));
        }
        let rest = text.strip_prefix("arn:aws")?;
        let (partition, rest) = rest.split_once(':')?;
        let is_partition = partition.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        let (service, rest) = rest.split_once("::")?;
        let account = rest.get(..ACCOUNT_ID_DIGITS).filter(|account| is_account_id(account))?;
        let what = rest.get(ACCOUNT_ID_DIGITS..)?.strip_prefix(':')?;
        let account = account.to_owned();
        let pattern = match (service, what.split_once('/')) {
            ("iam", None) if what == "root" => PrincipalPattern::Account(account),
            ("iam", Some(("user", name))) => {
                let (path, name) = path_and_name(name)?;
                PrincipalPattern::User { account, path, name }
            }
            ("iam", Some(("role", role))) => {
                let (path, role) = path_and_name(role)?;
                PrincipalPattern::Role { account, path, role }
            }
            ("sts", Some(("assumed-role", session))) => {
                let (path, session) = path_and_name(session)?;
                let role = path.trim_matches('/').to_owned();
                let is_one_name = !role.is_empty() && !role.contains('/');
                is_one_name.then_some(PrincipalPattern::RoleSession { account, role, session })?
            }
            ("sts", Some(("federated-user", _))) => PrincipalPattern::Foreign,
            _ => return None,
        };
        is_partition.then_some(pattern)
    }

    fn reach(&self, principal: &Principal) -> Reach {
        let is_named = match (self, principal.kind()) {
            (PrincipalPattern::Everyone, _) => true,
            (PrincipalPattern::Account(account), kind) => {
                if account != principal.account_id() {
                    return Reach::None;
                }
                if *kind != PrincipalKind::Root {
                    return Reach::Account;
                }
                true
            }
            (
                PrincipalPattern::User { account, path, name },
                PrincipalKind::User { path: own_path, name: own_name },
            ) => account == principal.account_id() && path == own_path && name == own_name,
            (
                PrincipalPattern::Role { account, path, role },
                PrincipalKind::RoleSession { path: own_path, role: own_role, .. },
            ) => account == principal.account_id() && path == own_path && role == own_role,
            (
                PrincipalPattern::RoleSession { account, role, session },
                PrincipalKind::RoleSession { role: own_role, session: own_session, .. },
            ) => account == principal.account_id() && role == own_role && session == own_session,
            _ => false,
        };
        if is_named { Reach::Caller } else { Reach::None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ACCOUNT: &str = "123456789012";

    fn these(patterns: &[&str]) -> Vec<PrincipalPattern> {
        let parse = |text: &&str| PrincipalPattern::parse(text).expect("a principal");
        patterns.iter().map(parse).collect()
    }

    #[test]
    fn principals_are_named_in_many_ways() {
        let root = Principal::root(ACCOUNT).expect("an account");
        let alice = Principal::user(ACCOUNT, "team/alice").expect("a user");
        let session = Principal::role_session(ACCOUNT, "team/ingest", "h1").expect("a session");
        use Reach::{Account, Caller, None};
        for (pattern, expected) in [
            ("*", [Caller, Caller, Caller]),
            (ACCOUNT, [Caller, Account, Account]),
            ("arn:aws:iam::123456789012:root", [Caller, Account, Account]),
            ("arn:aws-cn:iam::123456789012:root", [Caller, Account, Account]),
            ("210987654321", [None, None, None]),
            ("arn:aws:iam::123456789012:user/team/alice", [None, Caller, None]),
            ("arn:aws:iam::123456789012:user/alice", [None, None, None]),
            ("arn:aws:iam::210987654321:user/team/alice", [None, None, None]),
            ("arn:aws:iam::123456789012:role/team/ingest", [None, None, Caller]),
            ("arn:aws:sts::123456789012:assumed-role/ingest/h1", [None, None, Caller]),
            ("arn:aws:sts::123456789012:assumed-role/ingest/h2", [None, None, None]),
            ("arn:aws:sts::123456789012:federated-user/alice", [None, None, None]),
        ] {
            let found = [&root, &alice, &session]
                .map(|principal| Principals::These(these(&[pattern])).reach(principal));
            assert_eq!(found, expected, "{pattern}");
        }
    }

    #[test]
    fn all_but_some() {
        let alice = Principal::user(ACCOUNT, "alice").expect("a user");
        let arn = "arn:aws:iam::123456789012:user/alice";
        for (patterns, reach, denies) in [
            (&["210987654321"][..], Reach::Caller, true),
            (&[arn], Reach::None, false),
            (&[arn, ACCOUNT], Reach::None, false),
            // Named by the account only: neither let in nor spared.
            (&[ACCOUNT], Reach::None, true),
            (&["*"], Reach::None, false),
        ] {
            let principals = Principals::AllBut(these(patterns));
            assert_eq!(principals.reach(&alice), reach, "{patterns:?}");
            assert_eq!(principals.denies(&alice), denies, "{patterns:?}");
        }
        assert!(Principals::These(these(&[ACCOUNT])).denies(&alice));
        assert!(!Principals::These(these(&["210987654321"])).denies(&alice));
    }

    #[test]
    fn what_names_nobody_is_refused() {
        for text in [
            "",
            "alice",
            "12345678901",
            "arn:aws:iam::123456789012:user/*",
            "arn:aws:iam::123456789012:user",
            "arn:aws:iam::123456789012:group/team",
            "arn:aws:iam::*:root",
            "arn:aws:iam:eu-west-1:123456789012:root",
            "arn:aws:sts::123456789012:assumed-role/ingest",
            "arn:aws:sts::123456789012:assumed-role/a/b/c",
            "arn:aws:sts::123456789012:root",
            "arn:AWS:iam::123456789012:root",
            "AIDACKCEVSQ6C2EXAMPLE",
        ] {
            assert_eq!(PrincipalPattern::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_principal_or_refused(text in ".*", tail in ".*") {
            let _ = PrincipalPattern::parse(&text);
            let _ = PrincipalPattern::parse(&format!("arn:aws:iam::{tail}"));
            let _ = PrincipalPattern::parse(&format!("arn:aws:iam::123456789012{tail}"));
        }
    }
}
