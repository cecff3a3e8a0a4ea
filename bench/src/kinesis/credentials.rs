//! The access key that requests are signed with. A secret goes in and comes out in signatures only.

use std::fmt;
use std::path::Path;

use crate::error::BenchError;

/// Largest credentials file that is read, bytes: as the router has it.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// An access key.
#[derive(Clone)]
pub struct Credentials {
    /// Its id, which travels in each request.
    pub access_key_id: String,
    /// The secret, which does not.
    pub(super) secret_access_key: String,
    /// The token of a session, which travels in each request as well.
    pub session_token: Option<String>,
}

impl Credentials {
    /// The key that the settings name: of a file, or of the environment.
    ///
    /// # Errors
    /// [`BenchError::Credentials`], [`BenchError::NoCredentials`].
    pub fn find(file: Option<&Path>) -> Result<Credentials, BenchError> {
        match file {
            Some(path) => Credentials::of_file(path),
            None => Credentials::of_variables(|name| std::env::var(name).ok()),
        }
    }

    /// The first key of a file as `thalweg dev` makes it: a TOML table `[[key]]` with
    /// `access_key_id`, `secret_access_key` and perhaps `session_token`.
    fn of_file(path: &Path) -> Result<Credentials, BenchError> {
        let failed = |source| BenchError::File { path: path.to_path_buf(), source };
        let wrong = |what| BenchError::Credentials { path: path.to_path_buf(), what };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(wrong("it is larger than 8 MiB"));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Credentials::of_document(&text).map_err(wrong)
    }

    /// What a parser says of wrong text repeats it, and may so repeat a secret: it is left out.
    pub(crate) fn of_document(text: &str) -> Result<Credentials, &'static str> {
        let document: toml::Table = text.parse().map_err(|_| "it is not valid TOML")?;
        let key = document
            .get("key")
            .and_then(toml::Value::as_array)
            .and_then(|keys| keys.first()?.as_table())
            .ok_or("it has no key: a table that begins with [[key]]")?;
        let text_of = |name| key.get(name).and_then(toml::Value::as_str).map(str::to_owned);
        Ok(Credentials {
            access_key_id: text_of("access_key_id").ok_or("its first key has no access_key_id")?,
            secret_access_key: text_of("secret_access_key")
                .ok_or("its first key has no secret_access_key")?,
            session_token: text_of("session_token"),
        })
    }

    /// The variables that AWS's own clients read.
    fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Credentials, BenchError> {
        let value = |name| variable(name).filter(|value| !value.is_empty());
        let (Some(access_key_id), Some(secret_access_key)) =
            (value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"))
        else {
            return Err(BenchError::NoCredentials);
        };
        let session_token = value("AWS_SESSION_TOKEN");
        Ok(Credentials { access_key_id, secret_access_key, session_token })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Credentials");
        shown.field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// The region that requests are signed for: the one named, else of the environment as AWS's
/// clients have it, else `us-east-1`.
#[must_use]
pub fn region(named: Option<&str>) -> String {
    let variable = |name| std::env::var(name).ok().filter(|region| !region.is_empty());
    named
        .map(str::to_owned)
        .or_else(|| variable("AWS_REGION"))
        .or_else(|| variable("AWS_DEFAULT_REGION"))
        .unwrap_or_else(|| "us-east-1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# one\n[[key]]\naccess_key_id = \"THALA\"\n\
        secret_access_key = \"secret-of-a\"\naccount_id = \"123456789012\"\n\
        [[key]]\naccess_key_id = \"THALB\"\nsecret_access_key = \"secret-of-b\"\n";

    #[test]
    fn the_first_key_of_a_file_counts() {
        let key = Credentials::of_document(DOCUMENT).unwrap();
        assert_eq!(key.access_key_id, "THALA");
        assert_eq!(key.secret_access_key, "secret-of-a");
        assert_eq!(key.session_token, None);
    }

    #[test]
    fn what_is_wrong_is_told_without_what_the_file_says() {
        for document in ["", "key = 3", "[[key]]\nsecret_access_key = \"secret-of-a\n", "[[key]]"] {
            let error = Credentials::of_document(document).unwrap_err();
            assert!(!error.contains("secret-of-a"), "{error}");
        }
    }

    #[test]
    fn the_environment_needs_id_and_secret() {
        let some = |names: &'static [&str]| {
            move |name: &str| names.contains(&name).then(|| format!("value of {name}"))
        };
        let id_alone = Credentials::of_variables(some(&["AWS_ACCESS_KEY_ID"]));
        assert!(matches!(id_alone, Err(BenchError::NoCredentials)));
        let both = some(&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]);
        let key = Credentials::of_variables(both).unwrap();
        assert_eq!(key.session_token.as_deref(), Some("value of AWS_SESSION_TOKEN"));
        assert!(matches!(
            Credentials::of_variables(|_| Some(String::new())),
            Err(BenchError::NoCredentials)
        ));
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = Credentials {
            session_token: Some("a-token".into()),
            ..Credentials::of_document(DOCUMENT).unwrap()
        };
        let text = format!("{key:?}");
        assert!(text.contains("THALA") && !text.contains("secret-of") && !text.contains("a-token"));
    }
}
