//! The machine that measures: its facts, and what about it would spoil a measurement.
//!
//! Everything is read from /proc and /sys; a fact that a system does not expose is `null` and
//! never a reason to fail.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Below this the node's ring buffers may not be registered.
const MEMLOCK_BYTES_MIN: u64 = 64 << 20;
/// Below this the bench competes with the page cache of everything else.
const MEMORY_AVAILABLE_BYTES_MIN: u64 = 1 << 30;
/// Runnable threads for each processor, beyond which the bench does not have the machine.
const LOAD_PER_CPU_MAX: f64 = 0.25;
/// Share of the processors' time since boot that the hypervisor gave to others.
const STEAL_PERCENT_MAX: f64 = 1.0;
/// CAP_IPC_LOCK, with which the memlock limit does not apply.
const CAP_IPC_LOCK: u32 = 14;
/// File systems that are memory, a network or another layer, and so measure something else.
const UNFIT_FILE_SYSTEMS: [&str; 8] =
    ["tmpfs", "ramfs", "overlay", "nfs", "nfs4", "cifs", "9p", "virtiofs"];

/// Facts and warnings.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// What is.
    #[serde(flatten)]
    pub facts: Facts,
    /// What spoils a measurement.
    pub warnings: Vec<Warning>,
}

/// What the system says about itself.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Facts {
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// Model name of the first processor.
    pub cpu: Option<String>,
    /// Processors that are online.
    pub cpus: usize,
    /// Frequency governor of the first processor; virtual machines rarely have one.
    pub governor: Option<String>,
    /// Whether a hypervisor runs below.
    pub virtual_machine: bool,
    /// Share of processor time that a hypervisor gave to others since boot.
    pub steal_percent: Option<f64>,
    /// All memory.
    pub memory_bytes: Option<u64>,
    /// Memory that a new program can get.
    pub memory_available_bytes: Option<u64>,
    /// Size of the swap.
    pub swap_bytes: Option<u64>,
    /// Swap in use.
    pub swap_used_bytes: Option<u64>,
    /// Limit of locked memory; `null` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// Whether this process may lock memory beyond the limit.
    pub memlock_exempt: bool,
    /// `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// 0 for all, 1 for the privileged, 2 for nobody.
    pub io_uring_disabled: Option<u64>,
    /// Average of runnable threads over one minute.
    pub load_average: Option<f64>,
    /// The file system that holds the data directory.
    pub file_system: Option<String>,
    /// The block device below it.
    pub disk: Option<String>,
    /// That device's I/O scheduler.
    pub io_scheduler: Option<String>,
    /// `write back` or `write through`.
    pub write_cache: Option<String>,
    /// Whether the device takes forced-unit-access writes.
    pub fua: Option<bool>,
}

/// Something that spoils a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Warning {
    /// What is wrong and what it does.
    pub problem: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Machine {
    /// This machine, with the disk that `data_dir` lies on.
    pub(crate) fn observe(data_dir: &Path) -> Self {
        let facts = Facts::read(Path::new("/"), data_dir);
        Self { warnings: warnings(&facts), facts }
    }
}

impl Facts {
    /// Reads /proc and /sys below `root`, which is not `/` in tests only.
    fn read(root: &Path, data_dir: &Path) -> Self {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let word = |path: &str| non_empty(text(path).trim());
        let cpuinfo = text("proc/cpuinfo");
        let (meminfo, limits) = (text("proc/meminfo"), text("proc/self/limits"));
        let kib = |name: &str| {
            let words = field(&meminfo, name)?;
            Some(words.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
        };
        let swap_bytes = kib("SwapTotal:");
        let capabilities = field(&text("proc/self/status"), "CapEff:")
            .and_then(|mask| u64::from_str_radix(&mask, 16).ok())
            .unwrap_or(0);
        let mount = mount_of(&text("proc/self/mountinfo"), data_dir);
        let queue = mount.as_ref().and_then(|mount| queue_of(root, &mount.device));
        let queue_word = |name: &str| {
            let value = std::fs::read_to_string(queue.as_ref()?.join(name)).ok()?;
            non_empty(value.trim())
        };
        Self {
            kernel: word("proc/sys/kernel/osrelease"),
            cpu: field(&cpuinfo, "model name").map(|name| name.trim_start_matches(": ").into()),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            governor: word("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            virtual_machine: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor")),
            steal_percent: steal_percent(&text("proc/stat")),
            memory_bytes: kib("MemTotal:"),
            memory_available_bytes: kib("MemAvailable:"),
            swap_bytes,
            swap_used_bytes: swap_bytes.zip(kib("SwapFree:")).map(|(all, free)| all - free),
            memlock_bytes: field(&limits, "Max locked memory")
                .and_then(|words| words.split_whitespace().next()?.parse().ok()),
            memlock_exempt: capabilities >> CAP_IPC_LOCK & 1 == 1,
            transparent_huge_pages: chosen(&text("sys/kernel/mm/transparent_hugepage/enabled")),
            io_uring_disabled: word("proc/sys/kernel/io_uring_disabled")
                .and_then(|value| value.parse().ok()),
            load_average: text("proc/loadavg")
                .split_whitespace()
                .next()
                .and_then(|load| load.parse().ok()),
            disk: mount.as_ref().map(|mount| mount.source.clone()),
            file_system: mount.map(|mount| mount.file_system),
            io_scheduler: queue_word("scheduler").and_then(|schedulers| chosen(&schedulers)),
            write_cache: queue_word("write_cache"),
            fua: queue_word("fua").map(|value| value == "1"),
        }
    }
}

/// What about `facts` spoils a measurement.
fn warnings(facts: &Facts) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |problem: String, remedy| warnings.push(Warning { problem, remedy });
    if let Some(governor) = facts.governor.as_deref().filter(|name| *name != "performance") {
        warn(
            format!("governor {governor}: the clock changes while runs are compared"),
            "cpupower frequency-set --governor performance",
        );
    }
    if facts.io_scheduler.as_deref() == Some("bfq") {
        warn(
            "I/O scheduler bfq: it idles the disk to be fair between processes".into(),
            "echo none > /sys/block/DISK/queue/scheduler",
        );
    }
    if let Some(name) = facts.file_system.as_deref().filter(|f| UNFIT_FILE_SYSTEMS.contains(f)) {
        warn(
            format!("file system {name}: not a disk's own, so durability costs something else"),
            "point --data-dir at ext4 or xfs on a local disk",
        );
    }
    let memlock = facts.memlock_bytes.filter(|_| !facts.memlock_exempt);
    if let Some(bytes) = memlock.filter(|bytes| *bytes < MEMLOCK_BYTES_MIN) {
        warn(
            format!("memlock limit {} KiB: buffers cannot be registered", bytes >> 10),
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit",
        );
    }
    if facts.transparent_huge_pages.as_deref() == Some("always") {
        warn(
            "transparent huge pages always: khugepaged copies memory at times of its own".into(),
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        );
    }
    if let Some(level) = facts.io_uring_disabled.filter(|level| *level != 0) {
        warn(format!("io_uring_disabled is {level}"), "sysctl kernel.io_uring_disabled=0");
    }
    let load_max = facts.cpus as f64 * LOAD_PER_CPU_MAX;
    if let Some(load) = facts.load_average.filter(|load| *load > load_max) {
        warn(
            format!("load average {load} on {} processors: others are at work", facts.cpus),
            "stop them, or wait a minute if the load was a build",
        );
    }
    if let Some(steal) = facts.steal_percent.filter(|steal| *steal > STEAL_PERCENT_MAX) {
        warn(
            format!("{steal:.1} % of processor time since boot went to other virtual machines"),
            "use a dedicated host, or more pairs",
        );
    }
    if let Some(used) = facts.swap_used_bytes.filter(|used| *used > 0) {
        warn(
            format!("{} MiB of swap in use: memory may be paged in during a run", used >> 20),
            "swapoff -a",
        );
    }
    if let Some(bytes) =
        facts.memory_available_bytes.filter(|bytes| *bytes < MEMORY_AVAILABLE_BYTES_MIN)
    {
        warn(format!("only {} MiB of memory available", bytes >> 20), "stop what holds it");
    }
    warnings
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One place names the facts: their fields. JSON carries the names here.
        let facts = serde_json::to_value(&self.facts).expect("facts are plain fields");
        for (name, value) in facts.as_object().expect("facts are a structure") {
            let value = match value {
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Null => "-".to_owned(),
                other => other.to_string(),
            };
            writeln!(f, "{name:<24} {value}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "{warning}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "warning: {}; remedy: {}", self.problem, self.remedy)
    }
}

struct Mount {
    /// `major:minor`.
    device: String,
    file_system: String,
    source: String,
}

/// The mount that `path` lies on: of those whose point begins the path, the longest, and of
/// equals the last, which hides the others.
fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    let path = existing(path)?;
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let mut right = right.split(' ');
        let point = left.get(4)?.replace("\\040", " ");
        let mount = Mount {
            device: (*left.get(2)?).to_owned(),
            file_system: right.next()?.to_owned(),
            source: right.next()?.to_owned(),
        };
        path.starts_with(&point).then_some((point.len(), mount))
    });
    mounts.max_by_key(|(length, _)| *length).map(|(_, mount)| mount)
}

/// The nearest directory at or above `path` that is there already, without symbolic links.
fn existing(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find_map(|path| path.canonicalize().ok())
}

/// The queue directory of a block device; a partition has its disk's.
fn queue_of(root: &Path, device: &str) -> Option<PathBuf> {
    let device = root.join("sys/dev/block").join(device).canonicalize().ok()?;
    device.ancestors().take(2).map(|path| path.join("queue")).find(|path| path.is_dir())
}

/// Rest of the first line that begins with `name`, without the white space around it.
fn field(text: &str, name: &str) -> Option<String> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    non_empty(rest.trim())
}

/// The word in brackets, as the kernel marks a choice: `always [madvise] never`.
fn chosen(choices: &str) -> Option<String> {
    let (_, rest) = choices.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

fn steal_percent(stat: &str) -> Option<f64> {
    let line = field(stat, "cpu ")?;
    let ticks: Vec<f64> = line.split_whitespace().filter_map(|tick| tick.parse().ok()).collect();
    // Guest time, the columns after steal, is in user time already.
    let all: f64 = ticks.iter().take(8).sum();
    (all > 0.0).then_some(*ticks.get(7)? / all * 100.0)
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as files below a directory.
    fn fake(files: &[(&str, &str)]) -> Facts {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Facts::read(root.path(), Path::new("/"))
    }

    #[test]
    fn facts_come_from_proc_and_sys() {
        let facts = fake(&[
            ("proc/sys/kernel/osrelease", "6.12.1\n"),
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: Fast 9000\nflags\t\t: fpu hypervisor sse\n\
                 processor\t: 1\nmodel name\t: Fast 9000\n",
            ),
            (
                "proc/meminfo",
                "MemTotal:   1024 kB\nMemAvailable: 512 kB\nSwapTotal: 8 kB\nSwapFree: 6 kB\n",
            ),
            ("proc/self/limits", "Max locked memory         8388608    8388608    bytes\n"),
            ("proc/self/status", "CapEff:\t0000000000004000\n"),
            ("proc/self/mountinfo", "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"),
            ("sys/dev/block/254:0/queue/scheduler", "none [mq-deadline] kyber\n"),
            ("sys/dev/block/254:0/queue/write_cache", "write back\n"),
            ("sys/dev/block/254:0/queue/fua", "0\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("proc/loadavg", "0.25 0.1 0.0 1/85 7172\n"),
            ("proc/stat", "cpu  50 0 25 20 0 0 0 5 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n"),
            ("proc/sys/kernel/io_uring_disabled", "0\n"),
        ]);
        assert_eq!(facts.kernel.as_deref(), Some("6.12.1"));
        assert_eq!(facts.cpu.as_deref(), Some("Fast 9000"));
        assert_eq!((facts.cpus, facts.virtual_machine, facts.governor), (2, true, None));
        assert_eq!((facts.memory_bytes, facts.swap_used_bytes), (Some(1 << 20), Some(2048)));
        assert_eq!((facts.memlock_bytes, facts.memlock_exempt), (Some(8 << 20), true));
        assert_eq!(facts.file_system.as_deref(), Some("ext4"));
        assert_eq!(facts.io_scheduler.as_deref(), Some("mq-deadline"));
        assert_eq!(facts.write_cache.as_deref(), Some("write back"));
        assert_eq!((facts.fua, facts.io_uring_disabled), (Some(false), Some(0)));
        assert_eq!((facts.load_average, facts.steal_percent), (Some(0.25), Some(5.0)));
    }

    #[test]
    fn a_system_that_exposes_nothing_is_described_without_warnings() {
        let facts = fake(&[]);
        assert_eq!(warnings(&facts), []);
        let text = Machine { facts, warnings: Vec::new() }.to_string();
        assert!(text.contains("kernel                   -"), "{text}");
    }

    #[test]
    fn a_good_machine_has_no_warning_and_each_bad_fact_has_one() {
        let good = Facts {
            cpus: 2,
            governor: Some("performance".into()),
            io_scheduler: Some("none".into()),
            file_system: Some("xfs".into()),
            transparent_huge_pages: Some("madvise".into()),
            io_uring_disabled: Some(0),
            load_average: Some(0.5),
            steal_percent: Some(0.2),
            swap_used_bytes: Some(0),
            memory_available_bytes: Some(8 << 30),
            memlock_bytes: None,
            ..Facts::default()
        };
        assert_eq!(warnings(&good), []);
        let changes: [fn(&mut Facts); 10] = [
            |facts| facts.governor = Some("powersave".into()),
            |facts| facts.io_scheduler = Some("bfq".into()),
            |facts| facts.file_system = Some("tmpfs".into()),
            |facts| facts.memlock_bytes = Some(8 << 20),
            |facts| facts.transparent_huge_pages = Some("always".into()),
            |facts| facts.io_uring_disabled = Some(1),
            |facts| facts.load_average = Some(0.6),
            |facts| facts.steal_percent = Some(3.0),
            |facts| facts.swap_used_bytes = Some(1 << 20),
            |facts| facts.memory_available_bytes = Some(1 << 20),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut facts = good.clone();
            change(&mut facts);
            assert_eq!(warnings(&facts).len(), 1, "change {index}");
        }
        let exempt = Facts { memlock_bytes: Some(8 << 20), memlock_exempt: true, ..good };
        assert_eq!(warnings(&exempt), []);
    }

    #[test]
    fn the_longest_mount_point_wins_and_of_equals_the_last() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      2 1 0:5 / /proc rw shared:1 - proc proc rw\n\
                      3 1 8:2 / / rw - xfs /dev/sda2 rw\n\
                      4 1 8:3 / /prochain rw - btrfs /dev/sda3 rw\n";
        let on = |path: &str| mount_of(mounts, Path::new(path)).map(|mount| mount.device).unwrap();
        assert_eq!(on("/proc/self"), "0:5");
        assert_eq!(on("/not-there/below"), "8:2");
    }

    #[test]
    fn this_machine_has_facts() {
        let machine = Machine::observe(Path::new("."));
        assert!(machine.facts.kernel.is_some() && machine.facts.cpus > 0);
        let json = serde_json::to_value(&machine).unwrap();
        assert!(json["kernel"].is_string() && json["warnings"].is_array());
    }
}
