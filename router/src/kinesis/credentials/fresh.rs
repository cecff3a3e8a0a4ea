//! A credentials file with one new key, for who has none yet.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::kinesis::credentials::file::{CredentialsError, CredentialsFault};
use crate::kinesis::principal::Principal;

/// What ids of our own keys begin with. AWS's begin otherwise, and whoever searches for leaked
/// ones should not take these for theirs.
const ID_PREFIX: &str = "THAL";
/// Characters behind the prefix, of 32 kinds each.
const ID_CHARS: usize = 16;
/// Random bytes of a secret: 240 bits, 40 characters, as AWS's secrets have.
const SECRET_BYTES: usize = 30;

/// A key that was just made.
pub struct FreshKey {
    access_key_id: String,
    secret_access_key: String,
}

impl FreshKey {
    /// The id, 20 characters.
    #[must_use]
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// The secret, 40 characters: for the one who made it to be shown once, if at all.
    #[must_use]
    pub fn secret_access_key(&self) -> &str {
        &self.secret_access_key
    }

    fn generate() -> Result<FreshKey, getrandom::Error> {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let (mut id, mut secret) = ([0; ID_CHARS], [0; SECRET_BYTES]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        let id = id.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
        Ok(FreshKey {
            access_key_id: format!("{ID_PREFIX}{}", id.collect::<String>()),
            secret_access_key: base64_simd::STANDARD.encode_to_string(secret),
        })
    }
}

impl fmt::Debug for FreshKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("FreshKey");
        shown.field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// Makes a credentials file, mode 0600 and durable, with a random key of the account's root user.
/// A file that is there is never replaced.
///
/// # Errors
/// [`CredentialsError`]: the file is there, cannot be written, or the account id is none.
pub fn create_credentials_file(
    path: &Path,
    account_id: &str,
) -> Result<FreshKey, CredentialsError> {
    let create = || -> Result<FreshKey, CredentialsFault> {
        Principal::root(account_id)?;
        let key = FreshKey::generate().map_err(|error| CredentialsFault::Random { error })?;
        write_new(path, &document(&key, account_id)).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => CredentialsFault::Exists,
            _ => CredentialsFault::Write { source },
        })?;
        Ok(key)
    };
    create().map_err(|fault| CredentialsError::new(path, fault))
}

fn document(key: &FreshKey, account_id: &str) -> String {
    let FreshKey { access_key_id, secret_access_key } = key;
    format!(
        "# Access keys. Keep the file to yourself (mode 0600); it is read again when it changes.\n\
         # A key without `user` or `role` is the root user's of its account. Limit others by\n\
         # `policies` or `policy_files`: a key without them may do anything in its account.\n\
         [[key]]\n\
         access_key_id = \"{access_key_id}\"\n\
         secret_access_key = \"{secret_access_key}\"\n\
         account_id = \"{account_id}\"\n"
    )
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::kinesis::credentials::Credentials;

    #[test]
    fn the_new_file_is_valid_private_and_never_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("credentials.toml");
        let key = create_credentials_file(&path, "123456789012").expect("a new file");
        assert_eq!(key.access_key_id().len(), 20);
        assert_eq!(key.secret_access_key().len(), 40);
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let credentials = Credentials::load(&path).expect("valid credentials");
        let found = credentials.find(key.access_key_id()).expect("the key is there");
        assert!(found.principal.is_root());
        assert_eq!(found.principal.account_id(), "123456789012");

        let before = std::fs::read(&path).expect("it can be read");
        let error = create_credentials_file(&path, "123456789012").expect_err("it is there");
        assert!(error.to_string().ends_with("it is there already: use it, or remove it first"));
        assert_eq!(std::fs::read(&path).expect("it can be read"), before);
    }

    #[test]
    fn keys_differ_and_are_not_shown() {
        let [one, other] = [(); 2].map(|()| FreshKey::generate().expect("random bytes"));
        assert_ne!(one.access_key_id(), other.access_key_id());
        assert_ne!(one.secret_access_key(), other.secret_access_key());
        let shown = format!("{one:?}");
        assert!(shown.contains(one.access_key_id()));
        assert!(!shown.contains(one.secret_access_key()));
    }

    #[test]
    fn nothing_is_made_for_what_is_no_account() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("credentials.toml");
        assert!(create_credentials_file(&path, "1234").is_err());
        assert!(!path.exists());
    }
}
