//! What the result of an operation means, decided in one place.

use std::fmt;

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// No space on the device.
    pub const NO_SPACE: Errno = Errno(libc::ENOSPC);
    /// Input/output error.
    pub const IO: Errno = Errno(libc::EIO);
    /// The operation was given up before it was done.
    pub const CANCELED: Errno = Errno(libc::ECANCELED);
    /// The connection was reset.
    pub const RESET: Errno = Errno(libc::ECONNRESET);
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {} ({})", self.0, std::io::Error::from_raw_os_error(self.0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

/// What becomes of a log after a write or a sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogVerdict {
    /// It was done in full.
    Done,
    /// The log stops for good. After a failed write or sync the kernel may have dropped the
    /// pages and marked them clean: a retry that succeeds proves nothing (Rebello et al., "Can
    /// Applications Recover from fsync Failures?", USENIX ATC 2020). A short write counts as
    /// failed: segments are allocated in full, so that nothing honest is left to cause one.
    Stop(Errno),
}

/// The verdict on a write of `expected` bytes.
#[must_use]
pub fn on_write(result: Result<u32, Errno>, expected: u32) -> LogVerdict {
    match result {
        Ok(written) if written == expected => LogVerdict::Done,
        Ok(_) => LogVerdict::Stop(Errno::IO),
        Err(errno) => LogVerdict::Stop(errno),
    }
}

/// The verdict on a sync.
#[must_use]
pub fn on_sync(result: Result<u32, Errno>) -> LogVerdict {
    result.map_or_else(LogVerdict::Stop, |_| LogVerdict::Done)
}

/// The verdict on a read of `expected` bytes, all of which were written: what does not come in full
/// did not come. It stops nothing: other places of the disk may be read yet.
///
/// # Errors
/// What the system said.
pub fn on_read(result: Result<u32, Errno>, expected: u32) -> Result<(), Errno> {
    match result {
        Ok(read) if read == expected => Ok(()),
        Ok(_) => Err(Errno::IO),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_write_is_done() {
        assert_eq!(on_write(Ok(4096), 4096), LogVerdict::Done);
        assert_eq!(on_write(Ok(4095), 4096), LogVerdict::Stop(Errno::IO));
        assert_eq!(on_write(Err(Errno::NO_SPACE), 4096), LogVerdict::Stop(Errno::NO_SPACE));
        assert_eq!(on_sync(Ok(0)), LogVerdict::Done);
        assert_eq!(on_sync(Err(Errno::IO)), LogVerdict::Stop(Errno::IO));
        assert_eq!(on_read(Ok(4096), 4096), Ok(()));
        assert_eq!(on_read(Ok(0), 4096), Err(Errno::IO));
    }
}
