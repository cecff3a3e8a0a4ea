//! Who an access key stands for: the root user of an account, one of its users, or a session of
//! one of its roles (IAM user guide, "IAM identifiers").

use thiserror::Error;

/// Digits of an account id (API model, `\d{12}` in every ARN).
pub const ACCOUNT_ID_DIGITS: usize = 12;
/// Longest name of a user or role (IAM quotas).
pub const NAME_CHARS_MAX: usize = 64;
/// Longest path before such a name, with both slashes (IAM API, `pathType`).
pub const PATH_CHARS_MAX: usize = 512;

/// Whom policies speak of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    account_id: String,
    kind: PrincipalKind,
    arn: String,
    permanent_arn: String,
}

/// What a principal is within its account. Paths begin and end with `/`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PrincipalKind {
    /// The account's root user, who needs no policy.
    Root,
    /// A user.
    User {
        /// Where the user is filed: `/` or, for example, `/team/`.
        path: String,
        /// The user's name.
        name: String,
    },
    /// A session of a role.
    RoleSession {
        /// Where the role is filed.
        path: String,
        /// The role's name.
        role: String,
        /// The session's name.
        session: String,
    },
}

/// Why there is no such principal.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PrincipalError {
    /// Not an account id.
    #[error("an account id has {ACCOUNT_ID_DIGITS} digits, and this has another form")]
    AccountId,
    /// Not a name.
    #[error(
        "a {what} has 1 to {NAME_CHARS_MAX} letters, digits and characters of _+=,.@- , and may \
         stand behind a path such as team/ of at most {PATH_CHARS_MAX} characters"
    )]
    Name {
        /// Whose name: user or role.
        what: &'static str,
    },
    /// Not the name of a session.
    #[error("a session name has 2 to {NAME_CHARS_MAX} letters, digits and characters of _+=,.@-")]
    Session,
}

/// Whether `text` has the form of an account id.
#[must_use]
pub fn is_account_id(text: &str) -> bool {
    text.len() == ACCOUNT_ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Principal {
    /// The root user of an account.
    ///
    /// # Errors
    /// [`PrincipalError::AccountId`].
    pub fn root(account_id: &str) -> Result<Principal, PrincipalError> {
        Principal::new(account_id, PrincipalKind::Root)
    }

    /// A user, by name or by path and name as in `team/alice`.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub fn user(account_id: &str, name: &str) -> Result<Principal, PrincipalError> {
        let (path, name) = path_and_name(name).ok_or(PrincipalError::Name { what: "user" })?;
        Principal::new(account_id, PrincipalKind::User { path, name })
    }

    /// A session of a role, which is named as a user is.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub fn role_session(
        account_id: &str,
        role: &str,
        session: &str,
    ) -> Result<Principal, PrincipalError> {
        let (path, role) = path_and_name(role).ok_or(PrincipalError::Name { what: "role" })?;
        if session.len() < 2 || !is_name(session) {
            return Err(PrincipalError::Session);
        }
        let session = session.to_owned();
        Principal::new(account_id, PrincipalKind::RoleSession { path, role, session })
    }

    /// The account, 12 digits.
    #[must_use]
    pub fn account_id(&self) -> &str {
        &self.account_id
    }

    /// What it is within the account.
    #[must_use]
    pub fn kind(&self) -> &PrincipalKind {
        &self.kind
    }

    /// The ARN by which messages call it; of a role's session, the session's.
    #[must_use]
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// The ARN that lasts: of a role's session, the role's. It is the value of `aws:PrincipalArn`.
    #[must_use]
    pub fn permanent_arn(&self) -> &str {
        &self.permanent_arn
    }

    /// Whether it is the root user.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.kind == PrincipalKind::Root
    }

    fn new(account_id: &str, kind: PrincipalKind) -> Result<Principal, PrincipalError> {
        if !is_account_id(account_id) {
            return Err(PrincipalError::AccountId);
        }
        let iam = format!("arn:aws:iam::{account_id}");
        let (arn, permanent_arn) = match &kind {
            PrincipalKind::Root => (format!("{iam}:root"), format!("{iam}:root")),
            PrincipalKind::User { path, name } => {
                let arn = format!("{iam}:user{path}{name}");
                (arn.clone(), arn)
            }
            PrincipalKind::RoleSession { path, role, session } => (
                format!("arn:aws:sts::{account_id}:assumed-role/{role}/{session}"),
                format!("{iam}:role{path}{role}"),
            ),
        };
        Ok(Principal { account_id: account_id.to_owned(), kind, arn, permanent_arn })
    }
}

/// Path and name of `team/alice`, which are `/team/` and `alice`.
pub(super) fn path_and_name(text: &str) -> Option<(String, String)> {
    let text = text.strip_prefix('/').unwrap_or(text);
    let (path, name) = match text.rsplit_once('/') {
        None => ("/".to_owned(), text),
        Some((folders, name)) if folders.split('/').all(is_in_alphabet) => {
            (format!("/{folders}/"), name)
        }
        Some(_) => return None,
    };
    (path.len() <= PATH_CHARS_MAX && is_name(name)).then(|| (path, name.to_owned()))
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_CHARS_MAX && is_in_alphabet(text)
}

fn is_in_alphabet(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "123456789012";

    #[test]
    fn arns_have_the_forms_of_iam() {
        let root = Principal::root(ACCOUNT).expect("an account");
        assert_eq!(root.arn(), "arn:aws:iam::123456789012:root");
        assert!(root.is_root());
        let user = Principal::user(ACCOUNT, "alice").expect("a user");
        assert_eq!(user.arn(), "arn:aws:iam::123456789012:user/alice");
        let filed = Principal::user(ACCOUNT, "team/red/alice").expect("a user with a path");
        assert_eq!(filed.arn(), "arn:aws:iam::123456789012:user/team/red/alice");
        assert_eq!(filed.arn(), filed.permanent_arn());
        let session = Principal::role_session(ACCOUNT, "team/ingest", "host-1").expect("a session");
        assert_eq!(session.arn(), "arn:aws:sts::123456789012:assumed-role/ingest/host-1");
        assert_eq!(session.permanent_arn(), "arn:aws:iam::123456789012:role/team/ingest");
        assert!(!session.is_root());
    }

    #[test]
    fn what_has_another_form_is_refused() {
        for account in ["", "12345678901", "1234567890123", "12345678901a", "１23456789012"] {
            assert_eq!(Principal::root(account), Err(PrincipalError::AccountId), "{account}");
        }
        let long = "n".repeat(NAME_CHARS_MAX + 1);
        for name in ["", "/", "a b", "a*", "team/", "//alice", "a//b", "ä", &long] {
            let expected = Err(PrincipalError::Name { what: "user" });
            assert_eq!(Principal::user(ACCOUNT, name), expected, "{name}");
        }
        assert!(Principal::user(ACCOUNT, &long[1..]).is_ok());
        assert!(Principal::user(ACCOUNT, &format!("{}a/b", "p/".repeat(254))).is_ok());
        assert!(Principal::user(ACCOUNT, &format!("{}a/b", "p/".repeat(255))).is_err());
        let session = Principal::role_session(ACCOUNT, "ingest", "s");
        assert_eq!(session, Err(PrincipalError::Session));
    }
}
