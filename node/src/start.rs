//! Starting a node: checks, disks, recovery, cores. What cannot work is refused here, with the
//! remedy, before anything is served.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thalweg_wire::control::{NODE_CORES_MAX, NODE_DISKS_MAX};
use thalweg_wire::error::Refusal;
use thalweg_wire::ids::{BootId, DiskId};
use thalweg_wire::limits::RETENTION_CLASSES;
use thiserror::Error;

use crate::background::{Background, FillJob, JobQueue, RecoverJob};
use crate::config::NodeConfig;
use crate::core::fairness::IN_FLIGHT_BYTES;
use crate::core::machine::CoreSettings;
use crate::core::shard::Placement;
use crate::counters::Counters;
use crate::disk::{Disk, DiskError, SegmentFile, open_segment, segment_files, segment_path};
use crate::io::Errno;
use crate::io::ring::{RingError, probe};
use crate::io::wake::Mailbox;
use crate::log::archive::archive_records_min;
use crate::log::recovery::{RecoveredLog, RecoveryError};
use crate::metrics::{CoreMetrics, NodeMetrics};
use crate::thread::{CoreAtStart, DirectoryAtStart, OpenFile, Told, run_core};

/// Least memory of a core.
const CORE_MEMORY_MIN_BYTES: u64 = 64 << 20;
/// Segments that each log has in wait: one for records, one for batches, and one in reserve while
/// the next is zero-filled.
const FREE_SEGMENTS_MIN: usize = 3;
/// Segments that a log keeps in wait beyond those it was started with.
const FREE_SEGMENTS_MORE: usize = 2;
/// Longest retention: what Kinesis grants,
/// <https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html>.
const RETENTION_MAX_S: u64 = 365 * 24 * 3600;

/// Why a node cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A value of the configuration is out of its range.
    #[error("{name} is {found}: it must be {expected}")]
    Configuration {
        /// The value's name.
        name: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A data directory cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A ring cannot be made.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A log cannot be opened.
    #[error("{}: {source}", dir.display())]
    Recovery {
        /// The log's directory.
        dir: PathBuf,
        /// Why.
        source: RecoveryError,
    },
    /// A segment could not be zero-filled.
    #[error("{}: a segment could not be zero-filled ({errno}): free space on the disk", dir.display())]
    Fill {
        /// The log's directory.
        dir: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({source}): stop what has it, or choose another --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Buffers cannot be mapped.
    #[error("{bytes} bytes of buffers cannot be mapped ({errno}): lower --memory-bytes")]
    Memory {
        /// Bytes.
        bytes: usize,
        /// What the system said.
        errno: Errno,
    },
    /// What an earlier start left open could not be opened anew.
    #[error("a shard could not be opened after the restart: {0}")]
    Reopen(Refusal),
    /// The system refused a thread or a descriptor.
    #[error("the system refused what a node needs: {0}")]
    System(#[from] std::io::Error),
}

impl StartError {
    /// Exit code of a command that fails so: 2 when the machine is unsuitable, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let unsuitable = matches!(
            self,
            StartError::Ring(_)
                | StartError::Memory { .. }
                | StartError::Disk(DiskError::NoDirectIo { .. } | DiskError::NoSpace { .. })
        );
        if unsuitable { 2 } else { 1 }
    }
}

/// A running node. Dropping it stops it.
pub struct Node {
    addresses: Vec<SocketAddr>,
    disks: Vec<DiskId>,
    mailboxes: Vec<Arc<Mailbox<Told>>>,
    metrics: Vec<Arc<CoreMetrics>>,
    threads: Vec<JoinHandle<()>>,
    // Cores ask it for segments until they end.
    background: Background,
    /// Locked for as long as the node runs.
    locks: Vec<Disk>,
}

impl Node {
    /// Starts a node; when this returns, every core listens and everything is recovered.
    ///
    /// # Errors
    /// [`StartError`] with the remedy.
    pub fn start(config: NodeConfig) -> Result<Node, StartError> {
        let cores = check(&config)?;
        raise_limits();
        probe(config.memory_bytes as usize)?;
        let background = Background::start()?;
        let disks = config
            .data_dirs
            .iter()
            .map(|dir| Disk::open(dir, config.segment_bytes))
            .collect::<Result<Vec<Disk>, DiskError>>()?;
        let mut directories = recover_logs(&config, &disks, cores, &background.queue())?;
        let segments_wanted = segments_wanted(&config, directories.len());
        prefill(&config, &disks, &mut directories, segments_wanted, &background.queue())?;
        let (listeners, addresses) = listen(&config, cores)?;
        let boot = BootId(random()?);
        let ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
        let disk_ids: Vec<DiskId> = disks.iter().map(Disk::id).collect();
        let placement = Arc::new(Placement::default());
        let mut node = Node {
            addresses,
            disks: disk_ids.clone(),
            mailboxes: Vec::new(),
            metrics: Vec::new(),
            threads: Vec::new(),
            background,
            locks: disks,
        };
        let mut parts: Vec<Vec<DirectoryAtStart>> = (0..cores).map(|_| Vec::new()).collect();
        for directory in directories {
            parts[directory.log as usize % cores].push(directory);
        }
        let (ready, started) = mpsc::channel();
        for (core, (listener, directories)) in listeners.into_iter().zip(parts).enumerate() {
            let (mailbox, wake) = Mailbox::new()?;
            let metrics = Arc::new(CoreMetrics::default());
            let start = CoreAtStart {
                settings: CoreSettings {
                    core: core as u16,
                    ports: ports.clone(),
                    disks: disk_ids.clone(),
                    boot,
                    min_frame_bytes_per_s: config.min_frame_bytes_per_s,
                    connections_max: config.connections_per_core_max,
                    in_flight_bytes: IN_FLIGHT_BYTES,
                    free_segments_min: FREE_SEGMENTS_MIN,
                    free_segments_max: segments_wanted + FREE_SEGMENTS_MORE,
                    retention_ms: retention_ms(&config),
                    merge_after_us: config.merge_after_s * 1_000_000,
                    archive_records_min: archive_records_min(config.segment_bytes),
                    scrub_period_us: scrub_period_us(&config),
                },
                config: config.clone(),
                placement: placement.clone(),
                directories,
                listener,
                wake,
                mailbox: mailbox.clone(),
                metrics: metrics.clone(),
                jobs: node.background.queue(),
                memory_bytes: config.memory_bytes / cores as u64,
            };
            let ready = ready.clone();
            let thread = std::thread::Builder::new()
                .name(format!("core-{core}"))
                .spawn(move || run_core(start, &ready))?;
            node.mailboxes.push(mailbox);
            node.metrics.push(metrics);
            node.threads.push(thread);
        }
        drop(ready);
        for _ in 0..cores {
            // A thread that ends without a word has panicked, and said why.
            started.recv().map_err(std::io::Error::other)??;
        }
        Ok(node)
    }

    /// The address of each core.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    /// The node's disks, in the order of the data directories.
    #[must_use]
    pub fn disks(&self) -> &[DiskId] {
        &self.disks
    }

    /// What the cores have counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.metrics.iter().for_each(|core| sum += &core.counters());
        sum
    }

    /// What the node shows of itself, from now on.
    #[must_use]
    pub fn metrics(&self) -> NodeMetrics {
        let disks = self.locks.iter().map(|disk| (disk.id(), disk.dir().to_owned()));
        NodeMetrics::new(self.metrics.clone(), disks.collect())
    }

    /// Takes nothing more, finishes what was taken, ends the cores.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.push(Told::Stop));
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a core ended in a panic");
            }
        }
    }
}

/// Refuses what is out of range; answers the count of cores.
fn check(config: &NodeConfig) -> Result<usize, StartError> {
    let wrong = |name, found: String, expected| StartError::Configuration { name, found, expected };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = if config.cores == 0 { processors } else { config.cores };
    if cores > NODE_CORES_MAX {
        return Err(wrong("cores", cores.to_string(), "0 (one a processor) to 1024"));
    }
    if let Some(retention_s) = config.retention_s.iter().find(|found| **found > RETENTION_MAX_S) {
        let expected = "0 (for ever) to 31536000 (365 days) seconds";
        return Err(wrong("retention-s", retention_s.to_string(), expected));
    }
    if !(1..=usize::from(RETENTION_CLASSES)).contains(&config.retention_s.len()) {
        let found = format!("{} values", config.retention_s.len());
        return Err(wrong("retention-s", found, "1 to 8 values, one for each retention class"));
    }
    if config.merge_after_s > RETENTION_MAX_S {
        let expected = "0 to 31536000 (365 days) seconds";
        return Err(wrong("merge-after-s", config.merge_after_s.to_string(), expected));
    }
    if config.scrub_period_s > RETENTION_MAX_S {
        let expected = "0 (never) to 31536000 (365 days) seconds";
        return Err(wrong("scrub-period-s", config.scrub_period_s.to_string(), expected));
    }
    if config.scrub_bytes_per_s == 0 {
        let expected = "1 byte a second at least; --scrub-period-s 0 turns scrubs off";
        return Err(wrong("scrub-bytes-per-s", "0".into(), expected));
    }
    if config.data_dirs.is_empty() || config.data_dirs.len() > NODE_DISKS_MAX {
        let found = format!("{} directories", config.data_dirs.len());
        return Err(wrong("data-dir", found, "1 to 64 directories"));
    }
    if config.memory_bytes < CORE_MEMORY_MIN_BYTES * cores as u64 {
        let found = format!("{} bytes for {cores} cores", config.memory_bytes);
        return Err(wrong("memory-bytes", found, "64 MiB a core at least"));
    }
    let segment = config.segment_bytes;
    if !(16 << 20..=4 << 30).contains(&segment) || !segment.is_multiple_of(1 << 20) {
        let expected = "16 MiB to 4 GiB, a multiple of 1 MiB";
        return Err(wrong("segment-bytes", segment.to_string(), expected));
    }
    if !(1..=65_536).contains(&config.connections_per_core_max) {
        let found = config.connections_per_core_max.to_string();
        return Err(wrong("connections-per-core-max", found, "1 to 65536"));
    }
    let last_port = usize::from(config.listen.port()) + cores - 1;
    if config.listen.port() != 0 && last_port > usize::from(u16::MAX) {
        let expected = "0, or so low that each core has a port below 65536";
        return Err(wrong("listen", config.listen.to_string(), expected));
    }
    Ok(cores)
}

/// Takes what the system grants of locked memory and descriptors.
fn raise_limits() {
    for resource in [Resource::Memlock, Resource::Nofile] {
        let limit = getrlimit(resource);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Where this is refused, registration says what is missing.
        let _ = setrlimit(resource, raised);
    }
}

fn random() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| std::io::Error::other(error.to_string()).into())
}

fn recover_logs(
    config: &NodeConfig,
    disks: &[Disk],
    cores: usize,
    jobs: &JobQueue,
) -> Result<Vec<DirectoryAtStart>, StartError> {
    let mut logs = Vec::new();
    for disk in disks {
        for (log, dir) in (0..).zip(disk.logs(cores)?) {
            for file in segment_files(&dir)? {
                // A fill that did not come to its end.
                if file.bytes < config.segment_bytes {
                    let remove = std::fs::remove_file(&file.path);
                    remove.map_err(|source| DiskError::Io { path: file.path, source })?;
                }
            }
            let (done, outcome) = mpsc::channel();
            jobs.recover(RecoverJob {
                log_dir: dir.clone(),
                disk: disk.id(),
                log,
                segment_bytes: config.segment_bytes,
                done,
            });
            logs.push((dir, disk.id(), log, outcome));
        }
    }
    logs.into_iter()
        .map(|(dir, disk, log, outcome)| {
            let started = Instant::now();
            let recovered = outcome
                .recv()
                .map_err(std::io::Error::other)?
                .map_err(|source| StartError::Recovery { dir: dir.clone(), source })?;
            for RecoveredLog { retention_class, report, .. } in &recovered {
                if report.segments == 0 {
                    continue;
                }
                tracing::info!(
                    log = %dir.display(), class = retention_class, segments = report.segments, batches = report.batches,
                    scanned_bytes = report.scanned_bytes, dropped_frames = report.dropped_frames,
                    waited_ms = started.elapsed().as_millis() as u64, "recovered a log"
                );
            }
            let found = segment_files(&dir)?;
            let next_number = found.last().map_or(0, |file| file.number + 1);
            let open = |file: SegmentFile| {
                let descriptor = open_segment(&file.path)?;
                Ok(OpenFile { descriptor, path: file.path })
            };
            let files = found.into_iter().map(open).collect::<Result<Vec<_>, DiskError>>()?;
            Ok(DirectoryAtStart { dir, disk, log, recovered, files, next_number })
        })
        .collect()
}

/// Segments that each directory has in wait at the start: as many as are configured, and the least.
fn segments_wanted(config: &NodeConfig, directories: usize) -> usize {
    let wanted = config.prefill_bytes.div_ceil(config.segment_bytes * directories as u64);
    usize::try_from(wanted).unwrap_or(usize::MAX).max(FREE_SEGMENTS_MIN)
}

/// Without a controller records age by configuration; with one it decides.
fn retention_ms(config: &NodeConfig) -> [Option<u64>; RETENTION_CLASSES as usize] {
    std::array::from_fn(|class| {
        let retention_s = config.retention_s.get(class).or(config.retention_s.last())?;
        (config.standalone && *retention_s > 0).then_some(retention_s * 1000)
    })
}

fn scrub_period_us(config: &NodeConfig) -> Option<u64> {
    (config.scrub_period_s > 0).then_some(config.scrub_period_s * 1_000_000)
}

/// Has segments zero-filled until each directory has `wanted`, and the least for each log. A disk that is full does not keep a node
/// from starting that has data there: it serves what it has.
fn prefill(
    config: &NodeConfig,
    disks: &[Disk],
    directories: &mut [DirectoryAtStart],
    wanted: usize,
    jobs: &JobQueue,
) -> Result<(), StartError> {
    let missing = |directory: &DirectoryAtStart| {
        let least = FREE_SEGMENTS_MIN * directory.recovered.len();
        wanted.max(least).saturating_sub(directory.free().len())
    };
    let mut full = Vec::new();
    for disk in disks {
        let of_disk = || directories.iter().filter(|directory| directory.disk == disk.id());
        let missing: usize = of_disk().map(missing).sum();
        let space = disk.check_space((missing as u64).saturating_mul(config.segment_bytes));
        let Err(error) = space else { continue };
        if !of_disk().all(DirectoryAtStart::can_do_without_space) {
            return Err(error.into());
        }
        tracing::warn!(%error, "the node starts with what is there; writes may be refused");
        full.push(disk.id());
    }
    let mut waiting = Vec::new();
    for (place, directory) in directories.iter_mut().enumerate() {
        if full.contains(&directory.disk) {
            continue;
        }
        for _ in 0..missing(directory) {
            let (done, outcome) = mpsc::channel();
            let path = segment_path(&directory.dir, directory.next_number);
            jobs.fill(FillJob {
                path: path.clone(),
                bytes: config.segment_bytes,
                urgent: true,
                done: Box::new(move |filled| {
                    let _ = done.send(filled);
                }),
            });
            directory.next_number += 1;
            waiting.push((place, path, outcome));
        }
    }
    for (place, path, outcome) in waiting {
        let directory = &mut directories[place];
        let filled = outcome.recv().map_err(std::io::Error::other)?;
        let descriptor = match filled {
            Ok(descriptor) => descriptor,
            // What was counted as free went elsewhere, or to the file system's own tables.
            Err(errno) if errno == Errno::NO_SPACE && directory.can_do_without_space() => {
                tracing::warn!(log = %directory.dir.display(), "no space for another segment");
                continue;
            }
            Err(errno) => return Err(StartError::Fill { dir: directory.dir.clone(), errno }),
        };
        directory.add_free(OpenFile { descriptor, path });
    }
    Ok(())
}

fn listen(
    config: &NodeConfig,
    cores: usize,
) -> Result<(Vec<OwnedFd>, Vec<SocketAddr>), StartError> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for core in 0..cores {
        let mut address = config.listen;
        if address.port() != 0 {
            address.set_port(address.port() + core as u16);
        }
        let failed = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        // Accepted connections inherit it: answers are small and must not wait for each other.
        rustix::net::sockopt::set_tcp_nodelay(&listener, true)
            .map_err(|errno| failed(errno.into()))?;
        addresses.push(listener.local_addr().map_err(failed)?);
        listeners.push(OwnedFd::from(listener));
    }
    Ok((listeners, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut NodeConfig)) -> String {
        let mut config = NodeConfig { cores: 2, ..NodeConfig::default() };
        change(&mut config);
        check(&config).unwrap_err().to_string()
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        assert!(check(&NodeConfig::default()).is_ok());
        assert!(refusal(|config| config.cores = 2000).starts_with("cores"));
        assert!(refusal(|config| config.data_dirs.clear()).starts_with("data-dir"));
        assert!(refusal(|config| config.memory_bytes = 1).starts_with("memory-bytes"));
        assert!(refusal(|config| config.segment_bytes = 5 << 30).starts_with("segment-bytes"));
        assert!(refusal(|config| config.segment_bytes += 1).starts_with("segment-bytes"));
        assert!(refusal(|config| config.connections_per_core_max = 0).starts_with("connections"));
        assert!(
            refusal(|config| config.retention_s = vec![0, u64::MAX]).starts_with("retention-s")
        );
        assert!(
            refusal(|config| config.retention_s = vec![]).starts_with("retention-s is 0 values")
        );
        assert!(refusal(|config| config.retention_s = vec![1; 9]).starts_with("retention-s is 9"));
        assert!(refusal(|config| config.merge_after_s = u64::MAX).starts_with("merge-after-s"));
        assert!(refusal(|config| config.scrub_period_s = u64::MAX).starts_with("scrub-period-s"));
        assert!(refusal(|config| config.scrub_bytes_per_s = 0).starts_with("scrub-bytes-per-s"));
        assert!(refusal(|config| config.listen.set_port(u16::MAX)).starts_with("listen"));
    }
}
