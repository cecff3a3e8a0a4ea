//! A log's files as recovery reads them, on glommio.

use std::path::{Path, PathBuf};

use glommio::io::{DmaFile, OpenOptions};

use super::{RecoverJob, errno_of};
use crate::disk::segment_files;
use crate::io::Errno;
use crate::log::recovery::{Bytes, LogFiles, RecoveredLog, RecoveryError, recover as read_log};

/// Bytes of one read: several are in flight at a time.
const READ_BYTES: usize = 1 << 20;

/// The files of a log, open for direct I/O.
pub struct GlommioFiles {
    files: Vec<(DmaFile, u64)>,
}

impl GlommioFiles {
    /// Opens the segments of a log, in the order of their numbers.
    ///
    /// # Errors
    /// What the system said.
    pub async fn open(log_dir: &Path) -> Result<GlommioFiles, Errno> {
        let found = segment_files(log_dir).map_err(|error| {
            tracing::error!(%error, "a log's segments cannot be listed");
            Errno::IO
        })?;
        let paths: Vec<PathBuf> = found.into_iter().map(|file| file.path).collect();
        GlommioFiles::open_paths(&paths).await
    }

    /// Opens these files; a file's place among them is its name.
    ///
    /// # Errors
    /// What the system said.
    pub async fn open_paths(paths: &[PathBuf]) -> Result<GlommioFiles, Errno> {
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            let file = options.dma_open(path).await.map_err(errno_of)?;
            let bytes = file.file_size().await.map_err(errno_of)?;
            files.push((file, bytes));
        }
        Ok(GlommioFiles { files })
    }

    pub(super) async fn close(self) {
        for (file, _) in self.files {
            let _ = file.close().await;
        }
    }
}

impl LogFiles for GlommioFiles {
    fn sizes(&self) -> Vec<u64> {
        self.files.iter().map(|(_, bytes)| *bytes).collect()
    }

    async fn read(&self, file: usize, at: u64, bytes: usize) -> Result<Bytes, Errno> {
        let file = &self.files[file].0;
        let parts = (0..bytes).step_by(READ_BYTES).map(|start| {
            let count = READ_BYTES.min(bytes - start);
            file.read_at_aligned(at + start as u64, count)
        });
        let mut content = Bytes::with_capacity(bytes);
        for part in futures_util::future::join_all(parts).await {
            let part = part.map_err(errno_of)?;
            content.extend_from_slice(&part);
        }
        if content.len() == bytes { Ok(content) } else { Err(Errno::IO) }
    }

    async fn write(&self, file: usize, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let file = &self.files[file].0;
        for (place, part) in bytes.chunks(READ_BYTES).enumerate() {
            let mut buffer = file.alloc_dma_buffer(part.len());
            buffer.as_bytes_mut().copy_from_slice(part);
            let position = at + (place * READ_BYTES) as u64;
            let written = file.write_at(buffer, position).await.map_err(errno_of)?;
            if written != part.len() {
                return Err(Errno::IO);
            }
        }
        Ok(())
    }

    async fn sync(&self, file: usize) -> Result<(), Errno> {
        self.files[file].0.fdatasync().await.map_err(errno_of)
    }
}

/// Reads the logs of a directory and tells the outcome.
pub(super) async fn recover(job: RecoverJob) {
    let outcome = recover_in(&job).await;
    // Who asked may have given up; then nobody needs to know.
    let _ = job.done.send(outcome);
}

async fn recover_in(job: &RecoverJob) -> Result<Vec<RecoveredLog>, RecoveryError> {
    let files = GlommioFiles::open(&job.log_dir).await?;
    let recovered = read_log(&files, job.disk, job.log, job.segment_bytes).await;
    files.close().await;
    recovered
}
