//! Removing the files of segments gently: giving back a large file at once holds the file
//! system's journal, and with it everybody's syncs, for tens of milliseconds.

use std::path::PathBuf;
use std::time::Duration;

use glommio::io::{DmaFile, OpenOptions};
use glommio::sync::Gate;

use super::errno_of;
use crate::io::Errno;

/// Bytes given back in one step.
const STEP_BYTES: u64 = 16 << 20;
/// Pause after each step.
const STEP_PAUSE: Duration = Duration::from_millis(20);

/// Shortens a file step by step, then removes it. What is left after a crash, or when the executor
/// stops, is shorter than a segment, and removed at the next start.
pub(super) async fn remove(path: PathBuf, at_work: Gate) {
    if let Err(errno) = remove_in(&path, &at_work).await {
        tracing::warn!(path = %path.display(), %errno, "the file of a segment was not removed");
    }
}

async fn remove_in(path: &PathBuf, at_work: &Gate) -> Result<(), Errno> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file: DmaFile = options.dma_open(path).await.map_err(errno_of)?;
    let mut left = file.file_size().await.map_err(errno_of)?;
    while left > STEP_BYTES {
        left -= STEP_BYTES;
        file.truncate(left).await.map_err(errno_of)?;
        if !at_work.is_open() {
            return file.close().await.map_err(errno_of);
        }
        glommio::timer::sleep(STEP_PAUSE).await;
    }
    file.close().await.map_err(errno_of)?;
    glommio::io::remove(path).await.map_err(errno_of)
}
