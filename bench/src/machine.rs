//! The machine, in few words, and what the process used of it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::error::BenchError;

/// What a report says of the machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub processor: String,
    /// Processors that the process may use.
    pub processors: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Version of the kernel.
    pub kernel: String,
    /// File system below the data directory.
    pub file_system: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here(data_dir: &Path) -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.and_then(|rest| rest.split_once(':')).map(|(_, name)| name.trim());
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = memory.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            processor: model.unwrap_or("unknown").to_string(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib.unwrap_or(0) * 1024,
            kernel: kernel.trim().to_string(),
            file_system: file_system_of(data_dir),
        }
    }
}

fn file_system_of(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| Path::new("/").to_path_buf());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut best = (0, "unknown".to_string());
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(target), Some(kind)) = (fields.next(), fields.next())
            && path.starts_with(target)
            && target.len() >= best.0
        {
            best = (target.len(), kind.to_string());
        }
    }
    best.1
}

/// Seconds of processor time that this process has used.
#[must_use]
pub fn processor_seconds() -> f64 {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    clock.tv_sec as f64 + clock.tv_nsec as f64 / 1e9
}

/// Memory that this process has resident, bytes.
#[must_use]
pub fn resident_bytes() -> u64 {
    bytes_in_status("VmRSS:")
}

/// Most memory that this process has had resident, bytes.
#[must_use]
pub fn resident_bytes_max() -> u64 {
    bytes_in_status("VmHWM:")
}

fn bytes_in_status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Bytes that who is not privileged may still take of the file system of a directory.
///
/// # Errors
/// [`BenchError::File`].
pub fn free_bytes(dir: &Path) -> Result<u64, BenchError> {
    let found = rustix::fs::statvfs(dir);
    let failed = |errno: rustix::io::Errno| BenchError::File {
        path: dir.to_path_buf(),
        source: errno.into(),
    };
    found.map(|space| space.f_bavail * space.f_frsize).map_err(failed)
}

/// Bytes that the files below a directory take of the disk. One that is removed meanwhile counts
/// or not.
#[must_use]
pub fn file_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .map(
            |(metadata, path)| {
                if metadata.is_dir() { file_bytes(&path) } else { metadata.blocks() * 512 }
            },
        )
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_known() {
        let machine = Machine::here(Path::new("."));
        assert!(machine.processors > 0 && machine.memory_bytes > 0);
        assert!(!machine.kernel.is_empty() && machine.file_system != "unknown");
        assert!(processor_seconds() > 0.0 && resident_bytes_max() >= resident_bytes());
        assert!(resident_bytes() > 0);
    }

    #[test]
    fn space_is_counted_in_directories_below() {
        let dir = tempfile::tempdir_in(".").unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        assert_eq!(file_bytes(dir.path()), 0);
        std::fs::write(dir.path().join("below/file"), vec![7; 100_000]).unwrap();
        std::fs::File::open(dir.path().join("below/file")).unwrap().sync_all().unwrap();
        assert!(file_bytes(dir.path()) >= 100_000);
        assert!(free_bytes(dir.path()).unwrap() > 0);
        assert!(free_bytes(Path::new("/no/such/directory")).is_err());
    }
}
