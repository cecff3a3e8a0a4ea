//! A core's thread: pinned, with a clock, a mailbox and the files of its logs. What the core asks
//! for becomes work of the background; what came of it comes back through the mailbox.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_wire::error::ErrorCode;
use thalweg_wire::ids::{BootId, DiskId};

use crate::background::{FillJob, JobQueue, MergeTask, ScrubTask};
use crate::config::NodeConfig;
use crate::core::machine::{Core, CoreMessage, CoreRequest, CoreSettings, Time};
use crate::core::shard::Placement;
use crate::disk::segment_path;
use crate::io::ring::Ring;
use crate::io::wake::Mailbox;
use crate::io::{Arena, Completion, Errno, FileId, Io, Wait};
use crate::log::merge::{MergeError, MergeJob, Merged};
use crate::log::recovery::RecoveredLog;
use crate::log::scrub::ScrubReport;
use crate::log::segments::{FreeSegment, Log, LogIdentity};
use crate::log::stored::StoredSegment;
use crate::metrics::{CoreMetrics, GAUGES_PERIOD_US};
use crate::start::StartError;

/// Part of a core's memory that is buffers; the rest is for indexes, tables and code.
const BUFFER_SHARE: (u64, u64) = (3, 4);
/// Rate at which a log is copied forward; some percent of what a disk does.
const MERGE_BYTES_PER_S: u64 = 128 << 20;
/// How long a stopping core waits for peers to take their last answers.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A message to a core's thread.
pub(crate) enum Told {
    Merged { log: u32, result: Result<Merged, MergeError> },
    Scrubbed { log: u32, result: Result<ScrubReport, Errno> },
    SegmentFilled { log: u32, outcome: Result<OpenFile, Errno> },
    Stop,
}

/// A segment's file, open for direct I/O.
pub(crate) struct OpenFile {
    pub(crate) descriptor: OwnedFd,
    pub(crate) path: PathBuf,
}

/// A directory with its logs, on its way to its core.
pub(crate) struct DirectoryAtStart {
    pub(crate) dir: PathBuf,
    pub(crate) disk: DiskId,
    pub(crate) log: u32,
    /// One for each retention class in use; that of class 0 comes first and has the free files.
    pub(crate) recovered: Vec<RecoveredLog>,
    /// Every segment's file by its place in the recovered lists.
    pub(crate) files: Vec<OpenFile>,
    pub(crate) next_number: u32,
}

impl DirectoryAtStart {
    /// Whether it has something to serve, or a segment to write to.
    pub(crate) fn can_do_without_space(&self) -> bool {
        self.recovered.iter().any(|log| !log.sealed.is_empty() || !log.free.is_empty())
    }

    /// Files that are nobody's.
    pub(crate) fn free(&self) -> &[usize] {
        &self.recovered[0].free
    }

    /// Takes a zero-filled file in.
    pub(crate) fn add_free(&mut self, file: OpenFile) {
        self.recovered[0].free.push(self.files.len());
        self.files.push(file);
    }

    /// Opens its files in the ring, and its logs, which are numbered on from `first_index`.
    fn open(
        self,
        ring: &mut Ring,
        config: &NodeConfig,
        boot: BootId,
        first_index: u32,
    ) -> Result<(Vec<Log>, HashMap<FileId, OpenFile>), std::io::Error> {
        let places = (self.files.iter())
            .map(|file| ring.add_file(&file.descriptor))
            .collect::<Result<Vec<FileId>, std::io::Error>>()?;
        let mut free: VecDeque<FileId> =
            self.recovered[0].free.iter().map(|place| places[*place]).collect();
        let mut logs = Vec::with_capacity(self.recovered.len());
        for (index, recovered) in (first_index..).zip(self.recovered) {
            let identity = LogIdentity {
                index,
                disk: self.disk,
                log: self.log,
                retention_class: recovered.retention_class,
                segment_bytes: config.segment_bytes,
                boot,
            };
            let mut log = Log::new(identity, recovered.into_state(|place| places[place]));
            // One for each to begin with; the first lends what it has more.
            match free.pop_front() {
                Some(file) => log.add_free(FreeSegment { file }),
                None => log.set_no_space(),
            }
            logs.push(log);
        }
        free.into_iter().for_each(|file| logs[0].add_free(FreeSegment { file }));
        Ok((logs, places.into_iter().zip(self.files).collect()))
    }
}

/// The files of a directory in which a core has logs.
struct Directory {
    dir: PathBuf,
    disk: DiskId,
    log: u32,
    /// Of the next file.
    next_number: u32,
}

/// What a core's thread is started with.
pub(crate) struct CoreAtStart {
    pub(crate) settings: CoreSettings,
    pub(crate) config: NodeConfig,
    pub(crate) placement: Arc<Placement>,
    pub(crate) directories: Vec<DirectoryAtStart>,
    pub(crate) listener: OwnedFd,
    pub(crate) wake: OwnedFd,
    pub(crate) mailbox: Arc<Mailbox<Told>>,
    pub(crate) metrics: Arc<CoreMetrics>,
    pub(crate) jobs: Arc<JobQueue>,
    pub(crate) memory_bytes: u64,
}

/// A clock for a core: the only place where its time comes from.
struct Clock {
    started: Instant,
}

impl Clock {
    fn now(&self) -> Time {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time { now_us: self.started.elapsed().as_micros() as u64, wall_ms: wall.as_millis() as u64 }
    }
}

/// A core's thread: pinned, with its ring, until it is told to stop.
pub(crate) fn run_core(start: CoreAtStart, ready: &mpsc::Sender<Result<(), StartError>>) {
    let processors = core_affinity::get_core_ids().unwrap_or_default();
    if !processors.is_empty() {
        let processor = processors[start.settings.core as usize % processors.len()];
        core_affinity::set_for_current(processor);
    }
    let clock = Clock { started: Instant::now() };
    match CoreThread::new(start, &clock) {
        Ok(mut thread) => {
            if ready.send(Ok(())).is_ok() {
                thread.run(&clock);
            }
        }
        Err(error) => {
            // Whoever started the node may have given up on another core's error.
            let _ = ready.send(Err(error));
        }
    }
}

struct CoreThread {
    core: Core<Ring>,
    mailbox: Arc<Mailbox<Told>>,
    metrics: Arc<CoreMetrics>,
    /// When figures of the moment are taken next.
    gauges_due_us: u64,
    jobs: Arc<JobQueue>,
    directories: Vec<Directory>,
    /// Files that the ring's table refers to; kept open.
    files: HashMap<FileId, OpenFile>,
    segment_bytes: u64,
    scrub_bytes_per_s: u64,
    /// What completed and has not been taken in.
    completions: Vec<Completion>,
    /// It was told to stop, perhaps while it was starting: another core could not.
    stopping: bool,
}

impl CoreThread {
    fn new(start: CoreAtStart, clock: &Clock) -> Result<CoreThread, StartError> {
        let (numerator, denominator) = BUFFER_SHARE;
        let arena_bytes = (start.memory_bytes / denominator * numerator) as usize;
        let arena = Arena::new(arena_bytes).map_err(|errno| StartError::Memory {
            bytes: arena_bytes,
            errno: Errno(errno.raw_os_error()),
        })?;
        let connections = start.settings.connections_max as u32;
        let mut ring = Ring::new(arena, start.listener, start.wake, connections)?;
        let mut files = HashMap::new();
        let mut logs = Vec::new();
        let mut directories = Vec::new();
        for directory in start.directories {
            let DirectoryAtStart { disk, log, next_number, .. } = directory;
            directories.push(Directory { dir: directory.dir.clone(), disk, log, next_number });
            let first_index = logs.len() as u32;
            let opened = directory.open(&mut ring, &start.config, start.settings.boot, first_index);
            let (opened, opened_files) = opened?;
            logs.extend(opened);
            files.extend(opened_files);
        }
        let mut core = Core::new(ring, start.settings, start.placement, logs, clock.now());
        core.set_distributions(start.metrics.distributions.clone());
        let mut thread = CoreThread {
            core,
            mailbox: start.mailbox,
            metrics: start.metrics,
            gauges_due_us: 0,
            jobs: start.jobs,
            directories,
            files,
            segment_bytes: start.config.segment_bytes,
            scrub_bytes_per_s: start.config.scrub_bytes_per_s,
            completions: Vec::new(),
            stopping: false,
        };
        if start.config.standalone {
            thread.reopen_shards(clock)?;
        }
        Ok(thread)
    }

    /// Opens the shards of an earlier start anew, and waits until that is durable. What is opened
    /// takes memory until it is written: that of many shards is written in parts.
    fn reopen_shards(&mut self, clock: &Clock) -> Result<(), StartError> {
        let mut opened = 0;
        loop {
            let before = opened;
            let outcome = self.core.reopen_shards(&mut opened);
            self.drain(clock)?;
            match outcome {
                Ok(()) => return Ok(()),
                Err(refusal) if refusal.code == ErrorCode::Overloaded && opened > before => {}
                Err(refusal) => return Err(StartError::Reopen(refusal)),
            }
        }
    }

    /// One turn, then a wait for what it set going; true when the core is to stop.
    fn turn(&mut self, clock: &Clock) -> Result<bool, std::io::Error> {
        let idle_us = self.go_on(clock);
        self.wait(if self.stopping { Wait::No } else { Wait::UpTo(idle_us) })?;
        Ok(self.stopping)
    }

    /// Turns until everything that was appended is durable, and waits for nothing else: a core
    /// that is idle would sleep for a second.
    fn drain(&mut self, clock: &Clock) -> Result<(), std::io::Error> {
        loop {
            let idle_us = self.go_on(clock);
            if self.core.is_drained() {
                return Ok(());
            }
            self.wait(Wait::UpTo(idle_us))?;
        }
    }

    /// Takes in what completed and was told; answers how long nothing happens by itself.
    fn go_on(&mut self, clock: &Clock) -> u64 {
        self.read_mail();
        let now = clock.now();
        let idle_us = self.core.turn(now, &mut self.completions);
        for request in self.core.take_requests() {
            match request {
                CoreRequest::FillSegment { log } => self.fill_segment(log),
                CoreRequest::RemoveSegment { file, .. } => self.remove_segment(file),
                CoreRequest::Merge { log, job } => self.merge_segments(log, job),
                CoreRequest::Scrub { log, segment } => self.scrub_segment(log, segment),
            }
        }
        self.metrics.counters.publish(&self.core.counters());
        if now.now_us >= self.gauges_due_us {
            self.gauges_due_us = now.now_us + GAUGES_PERIOD_US;
            self.metrics.gauges.publish(&self.core.gauges());
        }
        idle_us
    }

    fn wait(&mut self, wait: Wait) -> Result<(), std::io::Error> {
        let polled = self.core.io_mut().poll(&mut self.completions, wait);
        polled.map_err(|errno| std::io::Error::from_raw_os_error(errno.0))
    }

    /// Tells the core what is in its mailbox.
    fn read_mail(&mut self) {
        while let Some(told) = self.mailbox.pop() {
            match told {
                Told::SegmentFilled { log, outcome } => {
                    let message = self.segment_message(log, outcome);
                    self.core.tell(message);
                }
                Told::Merged { log, result } => {
                    self.core.tell(CoreMessage::Merged { log, result });
                }
                Told::Scrubbed { log, result } => {
                    self.core.tell(CoreMessage::Scrubbed { log, result });
                }
                Told::Stop => {
                    self.core.tell(CoreMessage::Stop);
                    self.stopping = true;
                }
            }
        }
    }

    fn segment_message(&mut self, log: u32, outcome: Result<OpenFile, Errno>) -> CoreMessage {
        let added = outcome.and_then(|file| {
            let place = self.core.io_mut().add_file(&file.descriptor).map_err(|error| {
                tracing::error!(%error, "a segment cannot be taken in");
                Errno(error.raw_os_error().unwrap_or(libc::EMFILE))
            })?;
            self.files.insert(place, file);
            Ok(place)
        });
        match added {
            Ok(file) => CoreMessage::SegmentReady { log, segment: FreeSegment { file } },
            Err(errno) => CoreMessage::SegmentFailed { log, errno },
        }
    }

    fn fill_segment(&mut self, log: u32) {
        let LogIdentity { disk, log: number, .. } = *self.core.logs()[log as usize].identity();
        let is_its = |directory: &&mut Directory| (directory.disk, directory.log) == (disk, number);
        let directory = self.directories.iter_mut().find(is_its).expect("a log has a directory");
        let path = segment_path(&directory.dir, directory.next_number);
        directory.next_number += 1;
        let mailbox = self.mailbox.clone();
        self.jobs.fill(FillJob {
            path: path.clone(),
            bytes: self.segment_bytes,
            urgent: self.core.logs()[log as usize].free_segments() <= 1,
            done: Box::new(move |outcome| {
                let outcome = outcome.map(|descriptor| OpenFile { descriptor, path });
                mailbox.push(Told::SegmentFilled { log, outcome });
            }),
        });
    }

    fn remove_segment(&mut self, file: FileId) {
        let Some(OpenFile { path, .. }) = self.files.remove(&file) else { return };
        if let Err(error) = self.core.io_mut().remove_file(file) {
            tracing::error!(%error, "the ring holds on to the file of a segment");
        }
        self.jobs.remove(path);
    }

    /// Hands a merge to the background, which knows files by their places in a list.
    fn merge_segments(&mut self, log: u32, mut job: MergeJob) {
        let mut paths = Vec::with_capacity(job.from.len() + 1);
        let places = job.from.iter_mut().map(|from| &mut from.file);
        for place in places.chain(std::iter::once(&mut job.into)) {
            paths.push(self.path_of(*place));
            *place = paths.len() - 1;
        }
        let mailbox = self.mailbox.clone();
        self.jobs.merge(MergeTask {
            job,
            paths,
            bytes_per_s: MERGE_BYTES_PER_S,
            done: Box::new(move |result| mailbox.push(Told::Merged { log, result })),
        });
    }

    fn scrub_segment(&mut self, log: u32, mut segment: StoredSegment) {
        let path = self.path_of(std::mem::take(&mut segment.file));
        let mailbox = self.mailbox.clone();
        self.jobs.scrub(ScrubTask {
            segment,
            path,
            bytes_per_s: self.scrub_bytes_per_s,
            done: Box::new(move |result| mailbox.push(Told::Scrubbed { log, result })),
        });
    }

    fn path_of(&self, file: usize) -> PathBuf {
        self.files[&FileId(file as u32)].path.clone()
    }

    fn run(&mut self, clock: &Clock) {
        loop {
            match self.turn(clock) {
                Ok(false) => {}
                Ok(true) => return self.stop(clock),
                Err(error) => {
                    tracing::error!(%error, "the ring failed; the core ends without acks");
                    return;
                }
            }
        }
    }

    /// Finishes what was taken; then lets go of the connections.
    fn stop(&mut self, clock: &Clock) {
        self.core.io_mut().stop_accepting();
        let deadline = Instant::now() + STOP_GRACE;
        let mut left = usize::MAX;
        while left > 0 && Instant::now() < deadline {
            if self.core.is_drained() {
                left = self.core.shut_connections();
            }
            self.core.turn(clock.now(), &mut self.completions);
            if self.core.io_mut().poll(&mut self.completions, Wait::UpTo(1000)).is_err() {
                return;
            }
        }
    }
}
