//! Zero-filling segments ahead of their use: a sync of blocks that were never written commits the
//! file system's journal and takes two to three times as long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use glommio::io::{Directory, DmaFile};
use glommio::sync::Gate;

use super::{FillJob, errno_of};
use crate::disk::open_segment;
use crate::io::Errno;

/// Bytes of one write.
const WRITE_BYTES: usize = 1 << 20;
/// Writes in flight when someone waits.
const URGENT_DEPTH: u64 = 8;
/// A gentle fill pauses so long after each write: at most some 500 MB/s.
const GENTLE_PAUSE: Duration = Duration::from_micros(1500);

/// Bytes that files which are being filled are still to take of each file system.
#[derive(Default)]
pub(super) struct Promised(RefCell<HashMap<u64, u64>>);

/// What of that is for one file; less with each write, nothing when it is dropped.
struct Promise {
    promised: Rc<Promised>,
    device: u64,
    left: Cell<u64>,
}

impl Promise {
    /// Promises space for a file in a directory, if there is enough beside what is promised: of
    /// several files that grew side by side on a disk that is nearly full, each would take a part
    /// and none would have enough.
    fn make(promised: &Rc<Promised>, directory: &Path, bytes: u64) -> Result<Promise, Errno> {
        let stat = rustix::fs::statvfs(directory).map_err(|errno| Errno(errno.raw_os_error()))?;
        let errno = |error: std::io::Error| Errno(error.raw_os_error().unwrap_or(libc::EIO));
        let device = std::fs::metadata(directory).map_err(errno)?.st_dev();
        let mut others = promised.0.borrow_mut();
        let taken = others.entry(device).or_default();
        if stat.f_bavail * stat.f_frsize < *taken + bytes {
            return Err(Errno::NO_SPACE);
        }
        *taken += bytes;
        Ok(Promise { promised: promised.clone(), device, left: Cell::new(bytes) })
    }

    fn written(&self, bytes: u64) {
        let bytes = bytes.min(self.left.get());
        self.left.set(self.left.get() - bytes);
        let mut promised = self.promised.0.borrow_mut();
        *promised.get_mut(&self.device).expect("it was promised") -= bytes;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.written(self.left.get());
    }
}

/// Fills a file and tells the outcome. A file that could not be filled is removed, as is one that
/// is not full when the executor stops: when `at_work` is not open any more.
pub(super) async fn fill(job: FillJob, promised: Rc<Promised>, at_work: Gate) {
    let outcome = match fill_in(&job, &promised, &at_work).await {
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

async fn fill_in(job: &FillJob, promised: &Rc<Promised>, at_work: &Gate) -> Result<(), Errno> {
    let parent = job.path.parent().ok_or(Errno::IO)?;
    let promise = Promise::make(promised, parent, job.bytes)?;
    let file = DmaFile::create(&job.path).await.map_err(errno_of)?;
    let filled = write_zeroes(&file, job, &promise, at_work).await;
    let synced = match filled {
        Ok(()) => file.fdatasync().await.map_err(errno_of),
        failed => failed,
    };
    let closed = file.close().await.map_err(errno_of);
    synced.and(closed)?;
    let directory = Directory::open(parent).await.map_err(errno_of)?;
    let synced = directory.sync().await.map_err(errno_of);
    directory.close().await.map_err(errno_of)?;
    synced
}

async fn write_zeroes(
    file: &DmaFile,
    job: &FillJob,
    promise: &Promise,
    at_work: &Gate,
) -> Result<(), Errno> {
    let mut zeroes = file.alloc_dma_buffer(WRITE_BYTES);
    zeroes.as_bytes_mut().fill(0);
    let zeroes = Rc::new(zeroes);
    let depth = if job.urgent { URGENT_DEPTH } else { 1 };
    let mut at = 0;
    while at < job.bytes {
        if !at_work.is_open() {
            return Err(Errno::CANCELED);
        }
        let writes = (0..depth)
            .map(|write| at + write * WRITE_BYTES as u64)
            .filter(|place| *place < job.bytes)
            .map(|place| file.write_rc_at(zeroes.clone(), place));
        for written in futures_util::future::join_all(writes).await {
            if written.map_err(errno_of)? != WRITE_BYTES {
                return Err(Errno::NO_SPACE);
            }
            promise.written(WRITE_BYTES as u64);
        }
        at += depth * WRITE_BYTES as u64;
        if !job.urgent {
            glommio::timer::sleep(GENTLE_PAUSE).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_promised_once() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let promised = Rc::new(Promised::default());
        let promise = |bytes| Promise::make(&promised, dir.path(), bytes);
        let stat = rustix::fs::statvfs(dir.path()).unwrap();
        // More than half of what is there, whatever others do to it meanwhile.
        let most = stat.f_bavail * stat.f_frsize / 4 * 3;
        let first = promise(most).unwrap();
        assert_eq!(promise(most).err(), Some(Errno::NO_SPACE));
        first.written(most - 1);
        assert!(promise(1).is_ok());
        drop(first);
        assert!(promised.0.borrow().values().all(|bytes| *bytes == 0));
        assert!(promise(most).is_ok(), "a file that is done, or failed, holds nothing back");
    }
}
