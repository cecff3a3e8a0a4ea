//! Merging and scrubbing segments at a bounded rate, so that commits and readers do not feel it.

use std::path::PathBuf;
use std::time::Duration;

use glommio::sync::Gate;

use super::files::GlommioFiles;
use crate::io::Errno;
use crate::log::merge::{MergeError, MergeJob, Merged, merge as merge_segments};
use crate::log::recovery::{Bytes, LogFiles};
use crate::log::scrub::{ScrubReport, scrub as scrub_segment};
use crate::log::stored::StoredSegment;

/// Merges segments.
pub struct MergeTask {
    /// What to do; files are named by their places in `paths`.
    pub job: MergeJob,
    /// The files.
    pub paths: Vec<PathBuf>,
    /// Bytes to read and write a second, at most.
    pub bytes_per_s: u64,
    /// Takes the outcome.
    pub done: Box<dyn FnOnce(Result<Merged, MergeError>) + Send>,
}

/// Reads a segment and checks it.
pub struct ScrubTask {
    /// The segment; its file is the first.
    pub segment: StoredSegment,
    /// The file.
    pub path: PathBuf,
    /// Bytes to read a second, at most.
    pub bytes_per_s: u64,
    /// Takes the outcome.
    pub done: Box<dyn FnOnce(Result<ScrubReport, Errno>) + Send>,
}

/// Files that are read and written no faster than a rate, and not any more when the executor stops.
struct Gentle {
    files: GlommioFiles,
    bytes_per_s: u64,
    at_work: Gate,
}

impl Gentle {
    fn check_at_work(&self) -> Result<(), Errno> {
        if self.at_work.is_open() { Ok(()) } else { Err(Errno::CANCELED) }
    }

    async fn pause(&self, bytes: usize) {
        let pause_us = bytes as u64 * 1_000_000 / self.bytes_per_s.max(1);
        glommio::timer::sleep(Duration::from_micros(pause_us)).await;
    }
}

impl LogFiles for Gentle {
    fn sizes(&self) -> Vec<u64> {
        self.files.sizes()
    }

    async fn read(&self, file: usize, at: u64, bytes: usize) -> Result<Bytes, Errno> {
        self.check_at_work()?;
        let content = self.files.read(file, at, bytes).await;
        self.pause(bytes).await;
        content
    }

    async fn write(&self, file: usize, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.check_at_work()?;
        self.files.write(file, at, bytes).await?;
        self.pause(bytes.len()).await;
        Ok(())
    }

    async fn sync(&self, file: usize) -> Result<(), Errno> {
        self.check_at_work()?;
        self.files.sync(file).await
    }
}

pub(super) async fn merge(task: MergeTask, at_work: Gate) {
    let outcome = match GlommioFiles::open_paths(&task.paths).await {
        Ok(files) => {
            let gentle = Gentle { files, bytes_per_s: task.bytes_per_s, at_work };
            let outcome = merge_segments(&gentle, &task.job).await;
            gentle.files.close().await;
            outcome
        }
        Err(errno) => Err(errno.into()),
    };
    (task.done)(outcome);
}

pub(super) async fn scrub(task: ScrubTask, at_work: Gate) {
    let outcome = match GlommioFiles::open_paths(std::slice::from_ref(&task.path)).await {
        Ok(files) => {
            let gentle = Gentle { files, bytes_per_s: task.bytes_per_s, at_work };
            let outcome = scrub_segment(&gentle, &task.segment).await;
            gentle.files.close().await;
            outcome
        }
        Err(errno) => Err(errno),
    };
    (task.done)(outcome);
}
