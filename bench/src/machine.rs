//! The machine, in few words, and what the process used of it.

use std::path::Path;

use serde::Serialize;

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

/// Most memory that this process has had resident, bytes.
#[must_use]
pub fn resident_bytes_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_known() {
        let machine = Machine::here(Path::new("."));
        assert!(machine.processors > 0 && machine.memory_bytes > 0);
        assert!(!machine.kernel.is_empty() && machine.file_system != "unknown");
        assert!(processor_seconds() > 0.0 && resident_bytes_max() > 0);
    }
}
