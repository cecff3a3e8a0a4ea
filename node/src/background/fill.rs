//! Zero-filling segments ahead of their use: a sync of blocks that were never written commits the
//! file system's journal and takes two to three times as long.

use std::rc::Rc;
use std::time::Duration;

use glommio::io::{Directory, DmaFile};
use glommio::sync::Semaphore;

use super::{FillJob, errno_of};
use crate::disk::open_segment;
use crate::io::Errno;

/// Bytes of one write.
const WRITE_BYTES: usize = 1 << 20;
/// Writes in flight when someone waits.
const URGENT_DEPTH: u64 = 8;
/// A gentle fill pauses so long after each write: at most some 500 MB/s.
const GENTLE_PAUSE: Duration = Duration::from_micros(1500);

/// Fills a file and tells the outcome. A file that could not be filled is removed. Space is
/// asked for under `allocating`, by one at a time: of several that grow side by side on a disk
/// that is nearly full, each would take a part and none would have enough.
pub(super) async fn fill(job: FillJob, allocating: Rc<Semaphore>) {
    let outcome = match fill_in(&job, &allocating).await {
        Ok(()) => open_segment(&job.path).map_err(|error| {
            tracing::error!(%error, "a filled segment cannot be opened");
            Errno::IO
        }),
        Err(errno) => {
            let _ = std::fs::remove_file(&job.path);
            Err(errno)
        }
    };
    (job.done)(outcome);
}

async fn fill_in(job: &FillJob, allocating: &Semaphore) -> Result<(), Errno> {
    let file = allocate(job, allocating).await?;
    let filled = write_zeroes(&file, job).await;
    let synced = match filled {
        Ok(()) => file.fdatasync().await.map_err(errno_of),
        failed => failed,
    };
    let closed = file.close().await.map_err(errno_of);
    synced.and(closed)?;
    let parent = job.path.parent().ok_or(Errno::IO)?;
    let directory = Directory::open(parent).await.map_err(errno_of)?;
    let synced = directory.sync().await.map_err(errno_of);
    directory.close().await.map_err(errno_of)?;
    synced
}

/// The file, with space for all of it, and of no length yet: by its length a start knows how far
/// it was filled.
async fn allocate(job: &FillJob, allocating: &Semaphore) -> Result<DmaFile, Errno> {
    let closed = |_| Errno::IO;
    let _one_at_a_time = allocating.acquire_permit(1).await.map_err(closed)?;
    let file = DmaFile::create(&job.path).await.map_err(errno_of)?;
    let allocated = file.pre_allocate(job.bytes, true).await.map_err(errno_of);
    match allocated {
        Ok(()) => Ok(file),
        // Then it grows as it is written.
        Err(errno) if errno == Errno(libc::EOPNOTSUPP) => Ok(file),
        Err(errno) => {
            let _ = file.close().await;
            // Before the next asks: what a file that did not fit took is free again.
            let _ = std::fs::remove_file(&job.path);
            Err(errno)
        }
    }
}

async fn write_zeroes(file: &DmaFile, job: &FillJob) -> Result<(), Errno> {
    let mut zeroes = file.alloc_dma_buffer(WRITE_BYTES);
    zeroes.as_bytes_mut().fill(0);
    let zeroes = Rc::new(zeroes);
    let depth = if job.urgent { URGENT_DEPTH } else { 1 };
    let mut at = 0;
    while at < job.bytes {
        let writes = (0..depth)
            .map(|write| at + write * WRITE_BYTES as u64)
            .filter(|place| *place < job.bytes)
            .map(|place| file.write_rc_at(zeroes.clone(), place));
        for written in futures_util::future::join_all(writes).await {
            if written.map_err(errno_of)? != WRITE_BYTES {
                return Err(Errno::NO_SPACE);
            }
        }
        at += depth * WRITE_BYTES as u64;
        if !job.urgent {
            glommio::timer::sleep(GENTLE_PAUSE).await;
        }
    }
    Ok(())
}
