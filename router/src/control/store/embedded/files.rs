//! Files that appear whole and durable under their names, or not at all, and in place of nothing.
//! They are for their owner alone, as what they hold may be secret.

use std::fs::File;
use std::io;
use std::path::Path;

use redb::Database;
use tempfile::NamedTempFile;

/// A file beside `path`, on the same file system, that vanishes unless it is published.
///
/// # Errors
/// The system's; `AlreadyExists` when there is a file at `path`.
pub(super) fn new_file(path: &Path) -> io::Result<NamedTempFile> {
    // Said before the work is done; publishing replaces nothing either.
    if path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    NamedTempFile::new_in(directory_of(path))
}

/// Gives a file its name, when all of it is durable.
///
/// # Errors
/// As [`new_file`].
pub(super) fn publish(database: Database, file: NamedTempFile, path: &Path) -> io::Result<()> {
    database.close().map_err(io::Error::other)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    sync_directory_of(path)
}

/// Makes the name of a file durable.
///
/// # Errors
/// The system's.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(directory_of(path))?.sync_all()
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}
