//! A data directory: one disk's logs, and the lock that keeps other nodes out.
//!
//! ```text
//! DIR/disk                     superblock; locked while a node runs
//! DIR/log-000/segment-00000000 segments, by number of file; see docs/format.md
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, StatxFlags};
use thalweg_wire::ids::DiskId;
use thiserror::Error;

use crate::config::BLOCK_BYTES;
use crate::log::format::{HeaderFault, SUPERBLOCK_BYTES, Superblock};

/// Why a data directory cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Another node has it.
    #[error("{} is in use by another node: stop that one, or use another --data-dir", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// It holds something, but no superblock.
    #[error(
        "{} is not empty and not a Thalweg data directory: name an empty directory", dir.display()
    )]
    NotOurs {
        /// The directory.
        dir: PathBuf,
    },
    /// Its superblock cannot be used.
    #[error("{}: the superblock cannot be used: {fault}", dir.display())]
    Superblock {
        /// The directory.
        dir: PathBuf,
        /// Why.
        fault: HeaderFault,
    },
    /// It was formatted with another segment size.
    #[error(
        "{} was formatted with segments of {formatted} bytes, {configured} are configured: set \
         --segment-bytes to {formatted}, or use another directory", dir.display()
    )]
    SegmentBytes {
        /// The directory.
        dir: PathBuf,
        /// In the superblock.
        formatted: u64,
        /// In the configuration.
        configured: u64,
    },
    /// The file system has no direct I/O, or asks for a larger alignment.
    #[error(
        "the file system of {} has no direct I/O in blocks of {BLOCK_BYTES} bytes ({what}): use \
         ext4 or XFS on a local disk; tmpfs, overlay and network file systems will not do",
        dir.display()
    )]
    NoDirectIo {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// There is no room.
    #[error(
        "{} has {free} bytes free and {needed} are needed for zero-filled segments: free some, or \
         lower --prefill-bytes", dir.display()
    )]
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// `statfs.f_type` of tmpfs (linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> DiskError + '_ {
    move |source| DiskError::Io { path: path.to_path_buf(), source }
}

/// A data directory that this process has locked.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    superblock: Superblock,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

/// A segment's file.
#[derive(Debug)]
pub struct SegmentFile {
    /// Its number, from its name.
    pub number: u32,
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

impl Disk {
    /// Opens a data directory; formats it when it is empty.
    ///
    /// # Errors
    /// [`DiskError`] with the remedy.
    pub fn open(dir: &Path, segment_bytes: u64) -> Result<Disk, DiskError> {
        // The background opens by absolute paths only.
        let dir = &std::path::absolute(dir).map_err(io_error(dir))?;
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        let path = dir.join("disk");
        let is_new = !path.exists();
        let only_found = |name: &std::ffi::OsStr| name == "lost+found";
        let foreign = std::fs::read_dir(dir)
            .map_err(io_error(dir))?
            .filter_map(Result::ok)
            .any(|entry| !only_found(&entry.file_name()));
        if is_new && foreign {
            return Err(DiskError::NotOurs { dir: dir.to_path_buf() });
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error(&path))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| DiskError::InUse { dir: dir.to_path_buf() })?;
        check_direct_io(dir)?;
        let mut block = Vec::new();
        file.read_to_end(&mut block).map_err(io_error(&path))?;
        let superblock = if block.is_empty() {
            format(dir, &mut file, segment_bytes)?
        } else {
            let fault = |fault| DiskError::Superblock { dir: dir.to_path_buf(), fault };
            Superblock::decode(&block).map_err(fault)?
        };
        if superblock.segment_bytes != segment_bytes {
            return Err(DiskError::SegmentBytes {
                dir: dir.to_path_buf(),
                formatted: superblock.segment_bytes,
                configured: segment_bytes,
            });
        }
        Ok(Disk { dir: dir.to_path_buf(), superblock, _lock: file })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> DiskId {
        self.superblock.disk
    }

    /// Makes sure that there are `count` logs at least; answers the directories of all.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    pub fn logs(&self, count: usize) -> Result<Vec<PathBuf>, DiskError> {
        let path = |log: usize| self.dir.join(format!("log-{log:03}"));
        let mut there = 0;
        while path(there).is_dir() {
            there += 1;
        }
        for log in there..count {
            std::fs::create_dir(path(log)).map_err(io_error(&path(log)))?;
        }
        if there < count {
            sync_dir(&self.dir)?;
        }
        Ok((0..there.max(count)).map(path).collect())
    }

    /// Where it is, as an absolute path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Refuses when `needed` more bytes would not fit.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`].
    pub fn check_space(&self, needed: u64) -> Result<(), DiskError> {
        let stat =
            rustix::fs::statvfs(&self.dir).map_err(|errno| io_error(&self.dir)(errno.into()))?;
        let free = stat.f_bavail * stat.f_frsize;
        if free < needed {
            return Err(DiskError::NoSpace { dir: self.dir.clone(), free, needed });
        }
        Ok(())
    }
}

/// The segment files of a log, by number.
///
/// # Errors
/// [`DiskError::Io`].
pub fn segment_files(log: &Path) -> Result<Vec<SegmentFile>, DiskError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(log).map_err(io_error(log))? {
        let entry = entry.map_err(io_error(log))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("segment-")?.parse().ok());
        if let Some(number) = number {
            let path = entry.path();
            let bytes = entry.metadata().map_err(io_error(&path))?.len();
            files.push(SegmentFile { number, path, bytes });
        }
    }
    files.sort_by_key(|file| file.number);
    Ok(files)
}

/// Name of a segment's file.
#[must_use]
pub fn segment_path(log: &Path, number: u32) -> PathBuf {
    log.join(format!("segment-{number:08}"))
}

/// Opens a segment for direct I/O.
///
/// # Errors
/// [`DiskError::Io`].
pub fn open_segment(path: &Path) -> Result<OwnedFd, DiskError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(io_error(path))?;
    Ok(file.into())
}

fn format(dir: &Path, file: &mut File, segment_bytes: u64) -> Result<Superblock, DiskError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| io_error(dir)(std::io::Error::other(error.to_string())))?;
    let superblock = Superblock { disk: DiskId(id), segment_bytes };
    let block = superblock.encode();
    debug_assert_eq!(block.len(), SUPERBLOCK_BYTES);
    file.write_all(&block).and_then(|()| file.sync_all()).map_err(io_error(dir))?;
    sync_dir(dir)?;
    Ok(superblock)
}

fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(dir))
}

/// Makes sure that a file opened for direct I/O can be had here, with our block.
fn check_direct_io(dir: &Path) -> Result<(), DiskError> {
    let no = |what: String| DiskError::NoDirectIo { dir: dir.to_path_buf(), what };
    let statfs = rustix::fs::statfs(dir).map_err(|errno| no(format!("statfs: {errno}")))?;
    if statfs.f_type == TMPFS_MAGIC {
        // Some kernels give it direct I/O; it is memory all the same.
        return Err(no("it is a tmpfs: what it holds is gone after a crash".into()));
    }
    let path = dir.join("direct-io-probe");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    let probe = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
    let answer = probe.map_err(|errno| no(format!("O_DIRECT: {errno}"))).and_then(|probe| {
        let flags = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
        let stat = rustix::fs::statx(&probe, "", AtFlags::EMPTY_PATH, flags)
            .map_err(|errno| no(format!("statx: {errno}")))?;
        let told = stat.stx_mask & libc::STATX_DIOALIGN != 0;
        let align = u64::from(stat.stx_dio_offset_align.max(stat.stx_dio_mem_align));
        if told && (align == 0 || !BLOCK_BYTES.is_multiple_of(align)) {
            return Err(no(format!("it asks for an alignment of {align}")));
        }
        Ok(())
    });
    let _ = std::fs::remove_file(&path);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn a_directory_is_formatted_once_and_locked() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let disk = Disk::open(dir.path(), SEGMENT).unwrap();
        let id = disk.id();
        let second = Disk::open(dir.path(), SEGMENT).unwrap_err();
        assert!(matches!(second, DiskError::InUse { .. }), "{second}");
        assert_eq!(disk.logs(2).unwrap().len(), 2);
        drop(disk);
        let again = Disk::open(dir.path(), SEGMENT).unwrap();
        assert_eq!(again.id(), id);
        assert_eq!(again.logs(1).unwrap().len(), 2, "logs of a former core count stay");
        drop(again);
        let other = Disk::open(dir.path(), SEGMENT * 2).unwrap_err();
        assert!(matches!(other, DiskError::SegmentBytes { .. }), "{other}");
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir_in(".").unwrap();
        std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
        let refused = Disk::open(dir.path(), SEGMENT).unwrap_err();
        assert!(matches!(refused, DiskError::NotOurs { .. }), "{refused}");
        let dir = tempfile::tempdir_in(".").unwrap();
        std::fs::write(dir.path().join("disk"), vec![1; 4096]).unwrap();
        let refused = Disk::open(dir.path(), SEGMENT).unwrap_err();
        assert!(matches!(refused, DiskError::Superblock { .. }), "{refused}");
    }

    #[test]
    fn a_file_system_without_direct_io_is_refused() {
        let shm = Path::new("/proc");
        let refused = check_direct_io(shm).unwrap_err();
        assert!(matches!(refused, DiskError::NoDirectIo { .. }), "{refused}");
    }

    #[test]
    fn space_is_checked() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let disk = Disk::open(dir.path(), SEGMENT).unwrap();
        disk.check_space(1).unwrap();
        assert!(matches!(disk.check_space(u64::MAX), Err(DiskError::NoSpace { .. })));
    }
}
