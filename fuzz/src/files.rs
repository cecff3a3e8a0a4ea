//! The files of a log, in memory.

use std::cell::RefCell;

use thalweg_node::io::Errno;
use thalweg_node::log::recovery::{Bytes, LogFiles};
use thalweg_wire::ids::{BootId, DiskId};

/// Files of a log.
pub const FILES: usize = 4;
/// Bytes of each: small, so that many executions fit into a second.
pub const FILE_BYTES: u64 = 64 << 10;
/// The disk that the files are of.
pub const DISK: DiskId = DiskId([1; 16]);
/// The log.
pub const LOG: u32 = 0;
/// The start that wrote them.
pub const BOOT: BootId = BootId(21);
/// More calls than any recovery of so few files makes: it would not end.
const CALLS_MAX: u32 = 10_000;

/// See the module. A read or write beyond a file's end is a finding.
#[derive(Clone)]
pub struct MemoryFiles {
    files: RefCell<Vec<Vec<u8>>>,
    calls: RefCell<u32>,
}

impl MemoryFiles {
    /// From their content.
    #[must_use]
    pub fn new(files: Vec<Vec<u8>>) -> MemoryFiles {
        MemoryFiles { files: RefCell::new(files), calls: RefCell::new(0) }
    }

    /// What is in them.
    #[must_use]
    pub fn content(&self) -> Vec<Vec<u8>> {
        self.files.borrow().clone()
    }

    fn count_call(&self) {
        *self.calls.borrow_mut() += 1;
        assert!(*self.calls.borrow() < CALLS_MAX, "the log is read without an end");
    }
}

impl LogFiles for MemoryFiles {
    fn sizes(&self) -> Vec<u64> {
        self.files.borrow().iter().map(|file| file.len() as u64).collect()
    }

    async fn read(&self, file: usize, at: u64, bytes: usize) -> Result<Bytes, Errno> {
        self.count_call();
        let mut content = Bytes::with_capacity(bytes);
        content.extend_from_slice(&self.files.borrow()[file][at as usize..at as usize + bytes]);
        Ok(content)
    }

    async fn write(&self, file: usize, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.count_call();
        self.files.borrow_mut()[file][at as usize..at as usize + bytes.len()]
            .copy_from_slice(bytes);
        Ok(())
    }

    async fn sync(&self, _file: usize) -> Result<(), Errno> {
        self.count_call();
        Ok(())
    }
}
