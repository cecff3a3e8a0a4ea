//! Revisions and their binaries: resolved by git, built in a worktree, kept for the next time.
//!
//! All commits are built in one target directory, so that dependencies compile once, and the
//! binary alone is kept below the commit's name. Cargo tells worktrees apart by their paths, and
//! no two of them share one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::process::{self, ProcessError};

/// The package and the name of its binary.
pub(crate) const PRODUCT: &str = "thalweg";

/// Why a revision has no binary.
#[derive(Debug, Error)]
pub(crate) enum RevisionError {
    /// The directory is not in a repository.
    #[error("{} is not in a git repository ({source}); name one with --repository", path.display())]
    NoRepository {
        /// Where one was looked for.
        path: PathBuf,
        /// What git said.
        source: ProcessError,
    },
    /// git does not know the revision.
    #[error(
        "{name} is no revision of this repository; give a commit, a branch, a tag, or `.` for \
         the working tree (a shallow clone needs `git fetch --unshallow`)"
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A file or directory could not be made, copied or removed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// git or cargo failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// A checkout, and where its builds lie.
#[derive(Debug)]
pub(crate) struct Repository {
    root: PathBuf,
    target: PathBuf,
}

/// What can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Revision {
    /// The files as they lie there.
    WorkingTree,
    /// A commit.
    Commit {
        /// Its full name, 40 hex digits.
        sha: String,
    },
}

/// A binary and what it was built from.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    /// The binary, where no later build replaces it while it is measured.
    pub binary: PathBuf,
    /// The commit, with `-dirty` if the working tree differs from it.
    pub label: String,
}

/// Kept beside a commit's binary: with another compiler or other flags it must be built anew.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BuildRecord {
    compiler: String,
    rustflags: String,
}

impl Repository {
    /// The repository that `path` lies in.
    pub(crate) fn find(path: &Path) -> Result<Self, RevisionError> {
        let root = git(path, &["rev-parse", "--show-toplevel"])
            .map_err(|source| RevisionError::NoRepository { path: path.to_owned(), source })?;
        let root = PathBuf::from(root);
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        Ok(Self { target: root.join(target), root })
    }

    /// The top of the working tree.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where this crate keeps binaries and scratch data: on the same disk as other builds.
    pub(crate) fn cache(&self) -> PathBuf {
        self.target.join("perf")
    }

    /// The revision called `name`; `.` and `worktree` are the working tree.
    pub(crate) fn resolve(&self, name: &str) -> Result<Revision, RevisionError> {
        if matches!(name, "." | "worktree") {
            return Ok(Revision::WorkingTree);
        }
        let commit = format!("{name}^{{commit}}");
        match git(&self.root, &["rev-parse", "--verify", "--quiet", "--end-of-options", &commit]) {
            Ok(sha) => Ok(Revision::Commit { sha }),
            Err(ProcessError::Failed { .. }) => {
                Err(RevisionError::Unknown { name: name.to_owned() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The commit that is checked out.
    pub(crate) fn head(&self) -> Result<String, RevisionError> {
        Ok(git(&self.root, &["rev-parse", "HEAD"])?)
    }

    /// Whether the working tree differs from its commit, `except` one file.
    pub(crate) fn dirty(&self, except: Option<&Path>) -> Result<bool, RevisionError> {
        let mut command = git_command(&self.root);
        command.args(["status", "--porcelain", "--", "."]);
        if let Some(file) = except {
            command.arg(format!(":(exclude){}", file.display()));
        }
        Ok(!process::output(&mut command)?.trim().is_empty())
    }

    /// What is built from `revision` is called.
    pub(crate) fn label(&self, revision: &Revision) -> Result<String, RevisionError> {
        match revision {
            Revision::Commit { sha } => Ok(sha.clone()),
            Revision::WorkingTree => {
                let dirty = if self.dirty(None)? { "-dirty" } else { "" };
                Ok(self.head()? + dirty)
            }
        }
    }

    /// The release binary of `revision`.
    pub(crate) fn build(&self, revision: &Revision) -> Result<Build, RevisionError> {
        let label = self.label(revision)?;
        let binary = match revision {
            Revision::WorkingTree => self.build_in_place(&[])?,
            Revision::Commit { sha } => self.build_commit(sha)?,
        };
        Ok(Build { binary, label })
    }

    /// Builds the working tree with cargo's usual target directory and further `flags`.
    pub(crate) fn build_in_place(&self, flags: &[&str]) -> Result<PathBuf, RevisionError> {
        let mut command = cargo_build(&self.root, &self.target);
        process::run_checked(command.args(flags))?;
        Ok(self.target.join("release").join(PRODUCT))
    }

    fn build_commit(&self, sha: &str) -> Result<PathBuf, RevisionError> {
        let kept = self.cache().join(sha);
        let (binary, record_path) = (kept.join(PRODUCT), kept.join("build.json"));
        let record = self.build_record()?;
        let known = std::fs::read_to_string(&record_path)
            .ok()
            .and_then(|text| serde_json::from_str::<BuildRecord>(&text).ok());
        if known.as_ref() == Some(&record) && binary.is_file() {
            return Ok(binary);
        }
        let target = self.cache().join("build");
        let worktree = Worktree::add(&self.root, sha)?;
        // A commit is measured with the dependencies that it names, or not at all.
        process::run_checked(cargo_build(&worktree.path, &target).arg("--locked"))?;
        make_directory(&kept)?;
        copy(&target.join("release").join(PRODUCT), &binary)?;
        let text = serde_json::to_string(&record).expect("two strings are always JSON");
        // The record comes last: a binary without it is not trusted.
        std::fs::write(&record_path, text).map_err(file_error("write", &record_path))?;
        Ok(binary)
    }

    fn build_record(&self) -> Result<BuildRecord, RevisionError> {
        let mut compiler = Command::new("rustc");
        Ok(BuildRecord {
            compiler: process::output(compiler.arg("-vV").current_dir(&self.root))?,
            rustflags: std::env::var("RUSTFLAGS").unwrap_or_default(),
        })
    }
}

/// The command that builds the product of the checkout at `source` into `target`.
pub(crate) fn cargo_build(source: &Path, target: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--quiet", "--package", PRODUCT]);
    // The result of a build belongs to nobody's pipe: stdout carries tables.
    command.current_dir(source).env("CARGO_TARGET_DIR", target).stdout(Stdio::null());
    command
}

/// Builds from nothing in `target`, which is emptied, and says how long that took.
pub(crate) fn timed_clean_build(repository: &Repository) -> Result<f64, RevisionError> {
    let target = repository.cache().join("clean");
    let _removed_afterwards = Scratch::new(target.clone())?;
    let start = Instant::now();
    process::run_checked(&mut cargo_build(repository.root(), &target))?;
    Ok(start.elapsed().as_secs_f64())
}

/// A commit's files in a directory of their own, until dropped.
struct Worktree {
    root: PathBuf,
    path: PathBuf,
    /// Dropped after the worktree is unregistered.
    _parent: Scratch,
}

impl Worktree {
    fn add(root: &Path, sha: &str) -> Result<Self, RevisionError> {
        let name = format!("thalweg-perf-{}-{}", std::process::id(), &sha[..12.min(sha.len())]);
        let parent = std::env::temp_dir().join(name);
        let worktree = Self {
            root: root.to_owned(),
            path: parent.join("source"),
            _parent: Scratch::new(parent)?,
        };
        let path = worktree.path.to_string_lossy().into_owned();
        git(root, &["worktree", "add", "--quiet", "--detach", &path, sha])?;
        Ok(worktree)
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        // Not through `process`: this has to work after an interrupt as well. If it fails, the
        // directory still vanishes and git prunes the entry by itself some day.
        let _ = git_command(&self.root)
            .args(["worktree", "remove", "--force"])
            .arg(&self.path)
            .output();
    }
}

/// An empty directory that is removed with all its content when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Where it is.
    pub path: PathBuf,
}

impl Scratch {
    /// Makes `path` an empty directory.
    pub(crate) fn new(path: PathBuf) -> Result<Self, RevisionError> {
        remove_directory(&path)?;
        make_directory(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_directory(&self.path) {
            eprintln!("warning: {error}");
        }
    }
}

/// Makes the directory `path` and those above it.
pub(crate) fn make_directory(path: &Path) -> Result<(), RevisionError> {
    std::fs::create_dir_all(path).map_err(file_error("create", path))
}

/// Removes the directory `path`, if it is there.
pub(crate) fn remove_directory(path: &Path) -> Result<(), RevisionError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Copies a file with its permissions.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), RevisionError> {
    std::fs::copy(from, to).map(|_| ()).map_err(file_error("copy", from))
}

fn file_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> RevisionError + use<> {
    let path = path.to_owned();
    move |source| RevisionError::File { action, path, source }
}

fn git_command(directory: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory);
    command
}

fn git(directory: &Path, arguments: &[&str]) -> Result<String, ProcessError> {
    let output = process::output(git_command(directory).args(arguments))?;
    Ok(output.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> (tempfile::TempDir, Repository) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        git(path, &["init", "--quiet"]).unwrap();
        std::fs::write(path.join("file"), "one").unwrap();
        git(path, &["add", "."]).unwrap();
        let identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"];
        git(path, &[&identity[..], &["commit", "--quiet", "-m", "one"]].concat()).unwrap();
        let repository = Repository::find(path).unwrap();
        (directory, repository)
    }

    #[test]
    fn names_resolve_to_commits_or_the_working_tree() {
        let (_directory, repository) = repository();
        let sha = repository.head().unwrap();
        assert_eq!(repository.resolve("HEAD").unwrap(), Revision::Commit { sha: sha.clone() });
        assert_eq!(repository.resolve(&sha[..8]).unwrap(), Revision::Commit { sha });
        assert_eq!(repository.resolve(".").unwrap(), Revision::WorkingTree);
        assert_eq!(repository.resolve("worktree").unwrap(), Revision::WorkingTree);
        for name in ["nowhere", "--all", ""] {
            let unknown = repository.resolve(name);
            assert!(matches!(unknown, Err(RevisionError::Unknown { .. })), "{name}: {unknown:?}");
        }
    }

    #[test]
    fn a_changed_file_makes_the_tree_dirty_unless_it_is_the_exception() {
        let (directory, repository) = repository();
        let head = repository.head().unwrap();
        assert_eq!(repository.label(&Revision::WorkingTree).unwrap(), head);
        std::fs::write(directory.path().join("file"), "two").unwrap();
        assert!(!repository.dirty(Some(Path::new("file"))).unwrap());
        assert!(repository.dirty(Some(Path::new("other"))).unwrap());
        assert_eq!(repository.label(&Revision::WorkingTree).unwrap(), head + "-dirty");
    }

    #[test]
    fn a_worktree_lives_as_long_as_it_is_held() {
        let (directory, repository) = repository();
        let sha = repository.head().unwrap();
        std::fs::write(directory.path().join("file"), "changed").unwrap();
        let worktree = Worktree::add(repository.root(), &sha).unwrap();
        let path = worktree.path.clone();
        assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "one");
        drop(worktree);
        assert!(!path.exists() && !path.parent().unwrap().exists());
        let list = git(repository.root(), &["worktree", "list"]).unwrap();
        assert_eq!(list.lines().count(), 1, "{list}");
    }

    #[test]
    fn outside_a_repository_the_error_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let error = Repository::find(directory.path()).unwrap_err().to_string();
        assert!(error.contains("--repository"), "{error}");
    }
}
