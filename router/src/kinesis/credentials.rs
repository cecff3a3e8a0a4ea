//! The access keys: a TOML file, read again when it changes, and looked up without a lock.
//!
//! ```toml
//! # One table a key. The file must belong to its reader alone: mode 0600.
//! [[key]]
//! access_key_id = "THALEXAMPLEEXAMPLE01"
//! secret_access_key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
//! account_id = "123456789012"
//! # Without `user` or `role` the key is the account's root user's. A path may stand before a name.
//! user = "team/alice"
//! # Or a session of a role; the session is named after the key where `session` is left out.
//! # role = "ingest"
//! # session = "host-1"
//! # Where it is given, every request must carry it.
//! # session_token = "..."
//! # What the key may do: IAM policies, as text or in files beside this one. A key that has neither
//! # is an administrator of its own account: it may do anything there.
//! policies = ['''{"Statement": {"Effect": "Allow", "Action": "kinesis:Put*", "Resource": "*"}}''']
//! policy_files = ["readers.json"]
//! # What policies find under aws:PrincipalTag/team.
//! tags = { team = "red" }
//! ```
//!
//! Files are looked at once a second. A new state that cannot be read, in whatever part, changes
//! nothing: the keys before it stay in force and the reason is logged. Replace a file by renaming
//! another over it, so that it is never seen half written.

mod file;
mod fresh;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;

pub use self::file::{
    CREDENTIALS_BYTES_MAX, CredentialsError, CredentialsFault, KeyFault, POLICIES_PER_KEY_MAX,
    TAGS_PER_KEY_MAX,
};
pub use self::fresh::{FreshKey, create_credentials_file};

use self::file::{Loader, Stamps};
use crate::kinesis::policy::{Policy, Tags};
use crate::kinesis::principal::Principal;
use crate::kinesis::signing_key::{SessionToken, SigningSecret};

/// How often files are looked at.
pub const RELOAD_PERIOD: Duration = Duration::from_secs(1);

/// The access keys that are in force. Clones are the same keys.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

/// An access key and whom it stands for.
pub(super) struct AccessKey {
    pub(super) id: Arc<str>,
    pub(super) secret: SigningSecret,
    pub(super) session_token: Option<SessionToken>,
    pub(super) principal: Arc<Principal>,
    pub(super) policies: Arc<[Policy]>,
    pub(super) is_administrator: bool,
    pub(super) tags: Arc<Tags>,
}

/// Access keys by id.
pub(super) type AccessKeys = HashMap<Arc<str>, Arc<AccessKey>>;

struct Shared {
    /// None for keys that were not read from a file.
    path: Option<PathBuf>,
    keys: ArcSwap<AccessKeys>,
    /// The files as they were when they were last read, whether they could be or not.
    seen: Mutex<Stamps>,
}

impl Credentials {
    /// Reads a file and has a thread look for its changes until the last clone is dropped.
    ///
    /// # Errors
    /// [`CredentialsError`] when the file cannot be read now, or no thread be had.
    pub fn open(path: &Path) -> Result<Credentials, CredentialsError> {
        let credentials = Credentials::load(path)?;
        let shared = Arc::downgrade(&credentials.shared);
        let watch = std::thread::Builder::new().name("credentials".to_owned());
        watch
            .spawn(move || watch_files(&shared))
            .map_err(|source| CredentialsError::new(path, CredentialsFault::Thread { source }))?;
        Ok(credentials)
    }

    /// Reads a file once; [`Credentials::refresh`] looks for changes.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn load(path: &Path) -> Result<Credentials, CredentialsError> {
        let mut loader = Loader::default();
        let keys = loader.load(path)?;
        let (path, stamps) = (Some(path.to_owned()), loader.stamps);
        Ok(Credentials::new(path, keys, stamps))
    }

    /// Takes keys from text of the form of the file. It never changes, and names no policy files.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn from_document(document: &str) -> Result<Credentials, CredentialsError> {
        let keys = Loader::default().read_document(document)?;
        Ok(Credentials::new(None, keys, Stamps::default()))
    }

    /// Reads the files again if one has changed since they were last read. Returns whether other
    /// keys are in force now.
    ///
    /// # Errors
    /// [`CredentialsError`] when a file has changed and cannot be read; once for each change. The
    /// keys before stay in force.
    pub fn refresh(&self) -> Result<bool, CredentialsError> {
        self.shared.refresh()
    }

    /// How many access keys there are.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.shared.keys.load().len()
    }

    /// The access key of that id.
    pub(super) fn find(&self, id: &str) -> Option<Arc<AccessKey>> {
        self.shared.keys.load().get(id).map(Arc::clone)
    }

    fn new(path: Option<PathBuf>, keys: AccessKeys, stamps: Stamps) -> Credentials {
        let keys = ArcSwap::from_pointee(keys);
        Credentials { shared: Arc::new(Shared { path, keys, seen: Mutex::new(stamps) }) }
    }
}

impl Shared {
    fn refresh(&self) -> Result<bool, CredentialsError> {
        let Some(path) = &self.path else { return Ok(false) };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.are_current() {
            return Ok(false);
        }
        let mut loader = Loader::default();
        let keys = loader.load(path);
        *seen = loader.stamps;
        self.keys.store(Arc::new(keys?));
        Ok(true)
    }
}

fn watch_files(shared: &Weak<Shared>) {
    loop {
        std::thread::sleep(RELOAD_PERIOD);
        let Some(shared) = shared.upgrade() else { return };
        match shared.refresh() {
            Ok(false) => {}
            Ok(true) => tracing::info!(keys = shared.keys.load().len(), "access keys read again"),
            Err(error) => {
                tracing::warn!(%error, "access keys not read again, those before stay in force");
            }
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Credentials");
        shown.field("path", &self.shared.path).field("keys", &self.key_count());
        shown.finish_non_exhaustive()
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("AccessKey");
        shown.field("id", &self.id).field("principal", &self.principal.arn());
        shown.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    use super::*;

    const POLICY: &str =
        r#"{"Statement":{"Effect":"Allow","Action":"kinesis:Get*","Resource":"*"}}"#;

    fn document(user: &str, more: &str) -> String {
        format!(
            "[[key]]\naccess_key_id = \"KEY1\"\nsecret_access_key = \"0123456789abcdef0123\"\n\
             account_id = \"123456789012\"\nuser = \"{user}\"\n{more}\n"
        )
    }

    fn write(path: &Path, text: &str) {
        use std::io::Write;
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        let options = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        options.and_then(|mut file| file.write_all(text.as_bytes())).expect("it can be written");
        fs::rename(&new, path).expect("it can be renamed");
    }

    fn user_of_key_1(credentials: &Credentials) -> String {
        let key = credentials.find("KEY1").expect("the key is there");
        key.principal.arn().to_owned()
    }

    #[test]
    fn a_file_is_read_again_when_it_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("credentials.toml");
        write(&path, &document("alice", ""));
        let credentials = Credentials::load(&path).expect("valid credentials");
        assert!(user_of_key_1(&credentials).ends_with("user/alice"));
        assert!(!credentials.refresh().expect("nothing has changed"));

        write(&path, &document("bob", ""));
        assert!(credentials.refresh().expect("valid credentials"));
        assert!(user_of_key_1(&credentials).ends_with("user/bob"));

        write(&path, "[[key]]\nsecret_access_key = \"0123456789abcdef");
        let error = credentials.refresh().expect_err("broken credentials").to_string();
        assert!(error.contains("line 2") && !error.contains("0123456789abcdef"), "{error}");
        assert!(!credentials.refresh().expect("it is told once"));
        assert!(user_of_key_1(&credentials).ends_with("user/bob"));

        fs::remove_file(&path).expect("it can be removed");
        assert!(credentials.refresh().is_err());
        assert!(!credentials.refresh().expect("it is told once"));
        write(&path, &document("carol", ""));
        assert!(credentials.refresh().expect("valid credentials"));
        assert!(user_of_key_1(&credentials).ends_with("user/carol"));
    }

    #[test]
    fn a_policy_file_counts_as_part_of_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("credentials.toml");
        let policy = directory.path().join("readers.json");
        write(&path, &document("alice", "policy_files = [\"readers.json\"]"));
        assert!(Credentials::load(&path).is_err());
        write(&policy, POLICY);
        let credentials = Credentials::load(&path).expect("valid credentials");
        let before = credentials.find("KEY1").expect("the key is there").policies.clone();
        write(&policy, &POLICY.replace("Get", "Put"));
        assert!(credentials.refresh().expect("valid credentials"));
        let after = credentials.find("KEY1").expect("the key is there").policies.clone();
        assert_ne!(before, after);

        fs::set_permissions(&policy, fs::Permissions::from_mode(0o666)).expect("it is ours");
        let error = credentials.refresh().expect_err("others can change it").to_string();
        assert!(error.contains("chmod go-w"), "{error}");
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o644)).expect("it is ours");
        assert!(credentials.refresh().expect("all may read a policy"));
    }

    #[test]
    fn the_thread_reads_changes_and_ends_with_the_last_handle() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("credentials.toml");
        write(&path, &document("alice", ""));
        let credentials = Credentials::open(&path).expect("valid credentials");
        write(&path, &document("bob", ""));
        let patience = std::time::Instant::now() + Duration::from_secs(60);
        while !user_of_key_1(&credentials).ends_with("user/bob") {
            assert!(std::time::Instant::now() < patience, "the change is not seen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let shared = Arc::downgrade(&credentials.shared);
        drop(credentials);
        while shared.strong_count() > 0 {
            assert!(std::time::Instant::now() < patience, "the thread keeps the keys");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let more = "session_token = \"a-token\"";
        let credentials =
            Credentials::from_document(&document("alice", more)).expect("valid credentials");
        let key = credentials.find("KEY1").expect("the key is there");
        let shown = format!("{credentials:?} {key:?}");
        assert!(shown.contains("KEY1") && shown.contains("user/alice"), "{shown}");
        assert!(!shown.contains("0123456789abcdef") && !shown.contains("a-token"), "{shown}");
        assert!(!credentials.refresh().expect("there is no file"));
    }
}
