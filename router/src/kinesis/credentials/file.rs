//! The credentials file: what may be in it, and what can be wrong with it.
//!
//! No error repeats what the file says but its names of keys and ids: whatever stands in a wrong
//! place may be a secret. The text of TOML's own errors is therefore left out.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use toml::{Table, Value};

use crate::kinesis::credentials::{AccessKey, AccessKeys};
use crate::kinesis::policy::{POLICY_BYTES_MAX, Policy, PolicyError, Tags};
use crate::kinesis::principal::{Principal, PrincipalError};
use crate::kinesis::signing_key::{SessionToken, SigningSecret};

/// Largest credentials file in bytes.
pub const CREDENTIALS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Policies of one key, as text and in files: each is looked at for every request.
pub const POLICIES_PER_KEY_MAX: usize = 20;
/// Tags of one key (IAM quotas).
pub const TAGS_PER_KEY_MAX: usize = 50;

/// Longest access key id (IAM API, `accessKeyIdType`).
const ACCESS_KEY_ID_CHARS_MAX: usize = 128;
/// Shortest secret: one signature that somebody sees lets them try secrets at leisure.
const SECRET_CHARS_MIN: usize = 16;
const SECRET_CHARS_MAX: usize = 256;
/// Longest session token: it travels in a header of each request.
const SESSION_TOKEN_CHARS_MAX: usize = 4096;

/// Names in the table of a key.
const KEY_NAMES: [&str; 10] = [
    "access_key_id",
    "secret_access_key",
    "session_token",
    "account_id",
    "user",
    "role",
    "session",
    "policies",
    "policy_files",
    "tags",
];

/// Why there are no credentials.
#[derive(Debug, Error)]
#[error("{}: {fault}", path.display())]
pub struct CredentialsError {
    /// The file, or `credentials` for text that is in none.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Box<CredentialsFault>,
}

impl CredentialsError {
    pub(super) fn new(path: &Path, fault: CredentialsFault) -> CredentialsError {
        CredentialsError { path: path.to_owned(), fault: Box::new(fault) }
    }
}

/// What is wrong with a credentials file or a policy file.
#[derive(Debug, Error)]
pub enum CredentialsFault {
    /// It cannot be read.
    #[error("it cannot be read: {source}")]
    Read {
        /// Why.
        source: io::Error,
    },
    /// It is no file.
    #[error("it is not a file")]
    NotAFile,
    /// Others may read or change the secrets in it.
    #[error("others can get at its secrets (mode {mode:04o}): chmod 600 it")]
    Exposed {
        /// Its permissions.
        mode: u32,
    },
    /// Others may change what keys are allowed.
    #[error("others can change what it allows (mode {mode:04o}): chmod go-w it")]
    Changeable {
        /// Its permissions.
        mode: u32,
    },
    /// It is too large.
    #[error("it is larger than {bytes_max} bytes")]
    TooLarge {
        /// How large it may be.
        bytes_max: usize,
    },
    /// It is no UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// It is no TOML. What is there is not repeated: it may be a secret.
    #[error("line {line}, column {column}: this is not valid TOML")]
    Toml {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Something stands outside the tables of keys.
    #[error("\"{name}\" does not belong here: each key is a table that begins with [[key]]")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// There is no key in it.
    #[error("it has no key: add a table that begins with [[key]]")]
    NoKeys,
    /// A key is not as it must be.
    #[error("{place}: {fault}")]
    Key {
        /// Which: `key 2 (THALEXAMPLE)`.
        place: String,
        /// What is wrong with it.
        fault: KeyFault,
    },
    /// A file is to be made and is there already.
    #[error("it is there already: use it, or remove it first")]
    Exists,
    /// It cannot be written.
    #[error("it cannot be written: {source}")]
    Write {
        /// Why.
        source: io::Error,
    },
    /// The account id of a new file.
    #[error("{0}")]
    Principal(#[from] PrincipalError),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a secret: {error}")]
    Random {
        /// Why.
        error: getrandom::Error,
    },
    /// No thread to look for changes.
    #[error("no thread to look for its changes: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with a key.
#[derive(Debug, Error)]
pub enum KeyFault {
    /// There is no such name.
    #[error("\"{name}\" does not belong here; what does: {}", KEY_NAMES.join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// A name is missing.
    #[error("{name} is missing")]
    Missing {
        /// The name.
        name: &'static str,
    },
    /// A value has another type.
    #[error("{name} must be {expected}")]
    Type {
        /// Its name.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A value has another form.
    #[error("{name} must have {min} to {max} {of}")]
    Form {
        /// Its name.
        name: &'static str,
        /// Fewest characters.
        min: usize,
        /// Most characters.
        max: usize,
        /// Which characters.
        of: &'static str,
    },
    /// Another key has the id.
    #[error("another key has this access_key_id as well")]
    Duplicate,
    /// Account, user, role or session.
    #[error("{0}")]
    Principal(#[from] PrincipalError),
    /// Both a user and a role.
    #[error("it has a user and a role: a key stands for one of them")]
    UserAndRole,
    /// A session without a role.
    #[error("it has a session and no role")]
    SessionWithoutRole,
    /// Policies of a root user.
    #[error("a root user is limited by no policy: give the key a user or a role as well")]
    PoliciesOfRoot,
    /// A list of policies with nothing in it.
    #[error("{name} is empty: leave it out if the key may do anything, or name a policy")]
    NoPolicies {
        /// `policies` or `policy_files`.
        name: &'static str,
    },
    /// Too many policies.
    #[error("it has {count} policies and may have {POLICIES_PER_KEY_MAX}: join some")]
    TooManyPolicies {
        /// How many.
        count: usize,
    },
    /// A policy is faulty.
    #[error("policies[{index}]: {source}")]
    Policy {
        /// Which, from 0.
        index: usize,
        /// What is wrong with it.
        source: PolicyError,
    },
    /// A policy in a file is faulty.
    #[error("policy file {}: {source}", path.display())]
    PolicyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PolicyError,
    },
    /// There is no directory in which policy files could be.
    #[error("policy_files need a credentials file beside which they are: use policies")]
    NoDirectory,
    /// Too many tags.
    #[error("it has more than {TAGS_PER_KEY_MAX} tags")]
    TooManyTags,
}

/// Files as they were when they were looked at.
#[derive(PartialEq, Eq, Default, Debug)]
pub(super) struct Stamps(Vec<(PathBuf, Option<Stamp>)>);

/// What changes with a file. The mode is in it because a file is refused for it.
#[derive(PartialEq, Eq, Debug)]
struct Stamp {
    modified_s: i64,
    modified_ns: i64,
    bytes: u64,
    inode: u64,
    device: u64,
    mode: u32,
}

/// Reads a credentials file and the policy files it names.
#[derive(Default)]
pub(super) struct Loader {
    /// The files that were looked at, also when not all could be read.
    pub(super) stamps: Stamps,
    /// Where policy files are; none for text that is in no file.
    directory: Option<PathBuf>,
    policies: HashMap<PathBuf, Policy>,
}

impl Stamps {
    /// Whether all files are as they were.
    pub(super) fn are_current(&self) -> bool {
        self.0.iter().all(|(path, stamp)| *stamp == Stamp::of_path(path))
    }
}

impl Stamp {
    fn of_path(path: &Path) -> Option<Stamp> {
        fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata))
    }

    fn of(metadata: &fs::Metadata) -> Stamp {
        Stamp {
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
            bytes: metadata.size(),
            inode: metadata.ino(),
            device: metadata.dev(),
            mode: metadata.mode(),
        }
    }
}

impl Loader {
    /// Reads a credentials file.
    pub(super) fn load(&mut self, path: &Path) -> Result<AccessKeys, CredentialsError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        self.directory = Some(parent.unwrap_or(Path::new(".")).to_owned());
        let check = |mode: u32| match mode & 0o077 {
            0 => Ok(()),
            _ => Err(CredentialsFault::Exposed { mode }),
        };
        let text = self.read_file(path, CREDENTIALS_BYTES_MAX, check)?;
        self.read_keys(&text, path)
    }

    /// Reads text that is in no file.
    pub(super) fn read_document(&mut self, text: &str) -> Result<AccessKeys, CredentialsError> {
        self.read_keys(text, Path::new("credentials"))
    }

    fn read_file(
        &mut self,
        path: &Path,
        bytes_max: usize,
        check_mode: impl FnOnce(u32) -> Result<(), CredentialsFault>,
    ) -> Result<String, CredentialsError> {
        // Looked at before it is read: a change in between is seen the next time.
        let metadata = fs::metadata(path);
        self.stamps.0.push((path.to_owned(), metadata.as_ref().ok().map(Stamp::of)));
        let read = || -> Result<String, CredentialsFault> {
            let metadata = metadata.map_err(|source| CredentialsFault::Read { source })?;
            if !metadata.is_file() {
                return Err(CredentialsFault::NotAFile);
            }
            check_mode(metadata.mode() & 0o7777)?;
            let mut bytes = Vec::new();
            let limit = bytes_max as u64 + 1;
            let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
            read.map_err(|source| CredentialsFault::Read { source })?;
            if bytes.len() > bytes_max {
                return Err(CredentialsFault::TooLarge { bytes_max });
            }
            String::from_utf8(bytes).map_err(|_| CredentialsFault::NotUtf8)
        };
        read().map_err(|fault| CredentialsError::new(path, fault))
    }

    fn read_keys(&mut self, text: &str, path: &Path) -> Result<AccessKeys, CredentialsError> {
        let at = |fault| CredentialsError::new(path, fault);
        let mut document: Table = toml::from_str(text).map_err(|error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            let (line, column) = line_and_column(text, offset);
            at(CredentialsFault::Toml { line, column })
        })?;
        let tables = document.remove("key");
        if let Some(name) = document.keys().next() {
            return Err(at(CredentialsFault::Unknown { name: name.clone() }));
        }
        let tables = match tables {
            Some(Value::Array(tables)) if !tables.is_empty() => tables,
            None | Some(Value::Array(_)) => return Err(at(CredentialsFault::NoKeys)),
            Some(_) => return Err(at(CredentialsFault::Unknown { name: "key".to_owned() })),
        };
        let mut keys = AccessKeys::new();
        for (number, table) in (1_usize..).zip(&tables) {
            let Value::Table(table) = table else {
                return Err(at(CredentialsFault::Unknown { name: "key".to_owned() }));
            };
            let key = match self.read_key(table) {
                Ok(key) if keys.contains_key(&key.id) => Err(Fault::Key(KeyFault::Duplicate)),
                other => other,
            };
            let key = key.map_err(|fault| match fault {
                Fault::Key(fault) => {
                    at(CredentialsFault::Key { place: place(number, table), fault })
                }
                Fault::OtherFile(error) => error,
            })?;
            keys.insert(Arc::clone(&key.id), Arc::new(key));
        }
        Ok(keys)
    }

    fn read_key(&mut self, table: &Table) -> Result<AccessKey, Fault> {
        if let Some(name) = table.keys().find(|name| !KEY_NAMES.contains(&name.as_str())) {
            return Err(KeyFault::Unknown { name: name.clone() }.into());
        }
        let id = required(table, "access_key_id", access_key_id)?;
        let secret = required(table, "secret_access_key", secret_access_key)?;
        let secret = SigningSecret::new(secret);
        let session_token = optional(table, "session_token", session_token)?;
        let session_token = session_token.map(|token| SessionToken::new(token, &secret));
        let principal = principal(table, id)?;
        let policies = self.policies(table)?;
        let is_administrator = policies.is_none();
        if principal.is_root() && !is_administrator {
            return Err(KeyFault::PoliciesOfRoot.into());
        }
        Ok(AccessKey {
            id: id.into(),
            secret,
            session_token,
            principal: Arc::new(principal),
            policies: policies.unwrap_or_default().into(),
            is_administrator,
            tags: Arc::new(tags(table)?),
        })
    }

    /// The policies of a key; none if it has neither of both lists.
    fn policies(&mut self, table: &Table) -> Result<Option<Vec<Policy>>, Fault> {
        let texts = list(table, "policies")?;
        let files = list(table, "policy_files")?;
        if texts.is_none() && files.is_none() {
            return Ok(None);
        }
        let (texts, files) = (texts.unwrap_or_default(), files.unwrap_or_default());
        let count = texts.len() + files.len();
        if count > POLICIES_PER_KEY_MAX {
            return Err(KeyFault::TooManyPolicies { count }.into());
        }
        let mut policies = Vec::with_capacity(count);
        for (index, text) in (0..).zip(texts) {
            let policy = Policy::parse_identity(text);
            let policy = policy.map_err(|source| KeyFault::Policy { index, source })?;
            warn_of_absent_keys(&policy, "a policy in the credentials file");
            policies.push(policy);
        }
        for name in files {
            policies.push(self.policy_file(name)?);
        }
        Ok(Some(policies))
    }

    fn policy_file(&mut self, name: &str) -> Result<Policy, Fault> {
        let directory = self.directory.as_ref().ok_or(KeyFault::NoDirectory)?;
        let path = directory.join(name);
        if let Some(policy) = self.policies.get(&path) {
            return Ok(policy.clone());
        }
        let check = |mode: u32| match mode & 0o022 {
            0 => Ok(()),
            _ => Err(CredentialsFault::Changeable { mode }),
        };
        let text = self.read_file(&path, POLICY_BYTES_MAX, check).map_err(Fault::OtherFile)?;
        let policy = Policy::parse_identity(&text)
            .map_err(|source| KeyFault::PolicyFile { path: path.clone(), source })?;
        warn_of_absent_keys(&policy, &path.display().to_string());
        self.policies.insert(path, policy.clone());
        Ok(policy)
    }
}

/// A fault in a key's table, or in a file that it names.
enum Fault {
    Key(KeyFault),
    OtherFile(CredentialsError),
}

impl From<KeyFault> for Fault {
    fn from(fault: KeyFault) -> Fault {
        Fault::Key(fault)
    }
}

fn warn_of_absent_keys(policy: &Policy, place: &str) {
    for key in policy.absent_keys() {
        tracing::warn!(place, key, "a policy asks for a condition key that no request has");
    }
}

fn principal(table: &Table, access_key_id: &str) -> Result<Principal, KeyFault> {
    let account_id = required(table, "account_id", unchecked)?;
    let user = optional(table, "user", unchecked)?;
    let role = optional(table, "role", unchecked)?;
    let session = optional(table, "session", unchecked)?;
    Ok(match (user, role, session) {
        (Some(_), Some(_), _) => return Err(KeyFault::UserAndRole),
        (_, None, Some(_)) => return Err(KeyFault::SessionWithoutRole),
        (None, None, None) => Principal::root(account_id)?,
        (Some(user), None, None) => Principal::user(account_id, user)?,
        (None, Some(role), session) => {
            Principal::role_session(account_id, role, session.unwrap_or(access_key_id))?
        }
    })
}

fn tags(table: &Table) -> Result<Tags, KeyFault> {
    let wrong = KeyFault::Type { name: "tags", expected: "a table of strings" };
    match table.get("tags") {
        None => Ok(Tags::new()),
        Some(Value::Table(tags)) if tags.len() > TAGS_PER_KEY_MAX => Err(KeyFault::TooManyTags),
        Some(Value::Table(tags)) => tags
            .iter()
            .map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect::<Option<Tags>>()
            .ok_or(wrong),
        Some(_) => Err(wrong),
    }
}

fn required<'a>(
    table: &'a Table,
    name: &'static str,
    check: fn(&str) -> Result<(), KeyFault>,
) -> Result<&'a str, KeyFault> {
    optional(table, name, check)?.ok_or(KeyFault::Missing { name })
}

fn optional<'a>(
    table: &'a Table,
    name: &'static str,
    check: fn(&str) -> Result<(), KeyFault>,
) -> Result<Option<&'a str>, KeyFault> {
    match table.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => check(text).map(|()| Some(text.as_str())),
        Some(_) => Err(KeyFault::Type { name, expected: "a string" }),
    }
}

fn list<'a>(table: &'a Table, name: &'static str) -> Result<Option<Vec<&'a str>>, KeyFault> {
    let wrong = || KeyFault::Type { name, expected: "a list of strings" };
    match table.get(name) {
        None => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Err(KeyFault::NoPolicies { name }),
        Some(Value::Array(list)) => {
            let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            texts.map(Some).ok_or_else(wrong)
        }
        Some(_) => Err(wrong()),
    }
}

fn unchecked(_: &str) -> Result<(), KeyFault> {
    Ok(())
}

fn access_key_id(text: &str) -> Result<(), KeyFault> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let (name, min, max) = ("access_key_id", 1, ACCESS_KEY_ID_CHARS_MAX);
    form(text, name, min, max, "letters, digits, _ and -", allowed)
}

fn secret_access_key(text: &str) -> Result<(), KeyFault> {
    let (name, min, max) = ("secret_access_key", SECRET_CHARS_MIN, SECRET_CHARS_MAX);
    form(text, name, min, max, "visible ASCII characters", |byte| byte.is_ascii_graphic())
}

fn session_token(text: &str) -> Result<(), KeyFault> {
    let (name, min, max) = ("session_token", 1, SESSION_TOKEN_CHARS_MAX);
    form(text, name, min, max, "visible ASCII characters", |byte| byte.is_ascii_graphic())
}

fn form(
    text: &str,
    name: &'static str,
    min: usize,
    max: usize,
    of: &'static str,
    allowed: impl Fn(u8) -> bool,
) -> Result<(), KeyFault> {
    if (min..=max).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(())
    } else {
        Err(KeyFault::Form { name, min, max, of })
    }
}

/// Which key an error speaks of: its number in the file, and its id if that is one.
fn place(number: usize, table: &Table) -> String {
    match table.get("access_key_id") {
        Some(Value::String(id)) if access_key_id(id).is_ok() => format!("key {number} ({id})"),
        _ => format!("key {number}"),
    }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;

    use super::*;

    const ALL: &str = r#"
[[key]]
access_key_id = "ROOT"
secret_access_key = "0123456789abcdef"
account_id = "123456789012"

[[key]]
access_key_id = "USER"
secret_access_key = "0123456789abcdef"
session_token = "token"
account_id = "123456789012"
user = "team/alice"
policies = ['''{"Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}''']
tags = { team = "red" }

[[key]]
access_key_id = "ROLE"
secret_access_key = "0123456789abcdef"
account_id = "210987654321"
role = "ingest"
"#;

    fn read(text: &str) -> Result<AccessKeys, CredentialsError> {
        Loader::default().read_document(text)
    }

    fn error(text: &str) -> String {
        read(text).expect_err("faulty credentials").to_string()
    }

    #[test]
    fn keys_stand_for_root_users_users_and_roles() {
        let keys = read(ALL).expect("valid credentials");
        assert_eq!(keys.len(), 3);
        let root = &keys["ROOT"];
        assert!(root.principal.is_root() && root.is_administrator && root.policies.is_empty());
        let user = &keys["USER"];
        assert_eq!(user.principal.arn(), "arn:aws:iam::123456789012:user/team/alice");
        assert!(!user.is_administrator && user.policies.len() == 1);
        assert!(user.session_token.as_ref().is_some_and(|token| token.is(b"token")));
        assert_eq!(user.tags["team"], "red");
        let role = &keys["ROLE"];
        assert_eq!(role.principal.arn(), "arn:aws:sts::210987654321:assumed-role/ingest/ROLE");
        assert!(role.is_administrator && role.session_token.is_none());
    }

    #[test]
    fn faults_name_the_key() {
        let base = [
            ("access_key_id", "\"K1\""),
            ("secret_access_key", "\"0123456789abcdef\""),
            ("account_id", "\"123456789012\""),
        ];
        let with = |name: &str, value: &str| {
            let mut lines = vec!["[[key]]".to_owned()];
            let others = base.iter().filter(|(other, _)| *other != name);
            lines.extend(others.map(|(name, value)| format!("{name} = {value}")));
            if !value.is_empty() {
                lines.push(format!("{name} = {value}"));
            }
            lines.join("\n")
        };
        for (name, value, expected) in [
            ("account_id", "", "credentials: key 1 (K1): account_id is missing"),
            ("secret_access_key", "", "credentials: key 1 (K1): secret_access_key is missing"),
            (
                "secret_access_key",
                "\"short\"",
                "credentials: key 1 (K1): secret_access_key must have 16 to 256 visible ASCII \
                 characters",
            ),
            (
                "secret_access_key",
                "1234567890123456",
                "credentials: key 1 (K1): secret_access_key must be a string",
            ),
            (
                "access_key_id",
                "\"a/b\"",
                "credentials: key 1: access_key_id must have 1 to 128 letters, digits, _ and -",
            ),
            (
                "account_id",
                "\"1234\"",
                "credentials: key 1 (K1): an account id has 12 digits, and this has another form",
            ),
            ("session", "\"s1\"", "credentials: key 1 (K1): it has a session and no role"),
            (
                "policies",
                "['{}']",
                "credentials: key 1 (K1): policies[0]: Statement: it is missing",
            ),
            (
                "policies",
                "['{\"Statement\":{\"Effect\":\"Deny\",\"Action\":\"*\",\"Resource\":\"*\"}}']",
                "credentials: key 1 (K1): a root user is limited by no policy: give the key a \
                 user or a role as well",
            ),
            (
                "policies",
                "[]",
                "credentials: key 1 (K1): policies is empty: leave it out if the key may do \
                 anything, or name a policy",
            ),
            ("policies", "[1]", "credentials: key 1 (K1): policies must be a list of strings"),
            (
                "policy_files",
                "['a.json']",
                "credentials: key 1 (K1): policy_files need a credentials file beside which they \
                 are: use policies",
            ),
            ("tags", "{ a = 1 }", "credentials: key 1 (K1): tags must be a table of strings"),
            (
                "session_token",
                "\"\"",
                "credentials: key 1 (K1): session_token must have 1 to 4096 visible ASCII \
                 characters",
            ),
        ] {
            assert_eq!(error(&with(name, value)), expected);
        }
        let both = format!("{}\nuser = \"a\"", with("role", "\"b\""));
        assert!(error(&both).ends_with("it has a user and a role: a key stands for one of them"));
        let many = format!("[{}]", vec!["'{}'"; POLICIES_PER_KEY_MAX + 1].join(","));
        assert!(error(&with("policies", &many)).contains("it has 21 policies and may have 20"));
        let unknown = error(&with("secret", "\"0123456789abcdef\""));
        assert!(unknown.contains("key 1 (K1): \"secret\" does not belong here"), "{unknown}");
        let twice = format!("{}\n{}", with("user", "\"a\""), with("user", "\"b\""));
        assert_eq!(
            error(&twice),
            "credentials: key 2 (K1): another key has this access_key_id as well"
        );
        assert!(error("").contains("it has no key"));
        assert!(error("key = []").contains("it has no key"));
        assert!(error("key = 5").contains("begins with [[key]]"));
        assert!(error("keys = 5").contains("\"keys\" does not belong here"));
    }

    #[test]
    fn errors_repeat_no_secret() {
        const SECRET: &str = "wJalrXUtnFEMI";
        for text in [
            format!("[[key]]\nsecret_access_key = \"{SECRET}"),
            format!("[[key]]\nsecret_access_key = {SECRET}"),
            format!("[[key]]\n{SECRET}"),
            format!("[[key]]\nsecret_access_key = \"{SECRET}\"\nsecret_access_key = \"{SECRET}\""),
            format!("[[key]]\naccess_key_id = \"{SECRET} \"\nsecret_access_key = \"{SECRET}\""),
            format!("[[key]]\naccess_key_id = [\"{SECRET}\"]"),
            format!("[[key]]\naccess_key_id = \"K\"\nsecret_access_key = [\"{SECRET}\"]"),
        ] {
            let fault = read(&text).expect_err("faulty credentials");
            let shown = format!("{fault} {fault:?}");
            assert!(!shown.contains(SECRET), "{shown}");
        }
    }

    #[test]
    fn a_fault_of_toml_has_its_line() {
        assert_eq!(
            error("[[key]]\naccess_key_id = \"ä\"\nuser == 5"),
            "credentials: line 3, column 7: this is not valid TOML"
        );
    }

    #[test]
    fn files_of_others_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("credentials.toml");
        fs::write(&path, ALL).expect("it can be written");
        for mode in [0o644, 0o640, 0o604, 0o602, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
            let error = Loader::default().load(&path).expect_err("others can get at it");
            let expected = format!("(mode {mode:04o}): chmod 600 it");
            assert!(error.to_string().ends_with(&expected), "{error}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
            assert_eq!(Loader::default().load(&path).expect("valid credentials").len(), 3);
        }
        let link = directory.path().join("link.toml");
        symlink(&path, &link).expect("a link can be made");
        assert!(Loader::default().load(&link).is_ok());
        let error = Loader::default().load(directory.path()).expect_err("it is a directory");
        assert!(error.to_string().ends_with("it is not a file"), "{error}");
    }

    #[test]
    fn large_files_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("large");
        fs::write(&path, vec![b'#'; 100]).expect("it can be written");
        let mut loader = Loader::default();
        assert!(loader.read_file(&path, 100, |_| Ok(())).is_ok());
        let error = loader.read_file(&path, 99, |_| Ok(())).expect_err("it is too large");
        assert!(error.to_string().ends_with("it is larger than 99 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*", at in 0..ALL.len(), with in any::<char>()) {
            let _ = read(&text);
            let mut changed: Vec<char> = ALL.chars().collect();
            changed[at] = with;
            let _ = read(&changed.into_iter().collect::<String>());
        }
    }
}
