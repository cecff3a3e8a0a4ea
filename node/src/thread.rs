//! A core's thread: pinned, with a clock, a mailbox and the files of its logs. What the core asks
//! for becomes work of the background; what came of it comes back through the mailbox.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_wire::error::ErrorCode;
use thalweg_wire::ids::DiskId;

use crate::background::{FillJob, JobQueue, MergeTask, ScrubTask};
use crate::config::NodeConfig;
use crate::core::machine::{Core, CoreMessage, CoreRequest, CoreSettings, Time};
use crate::core::shard::Placement;
use crate::counters::SharedCounters;
use crate::disk::segment_path;
use crate::io::ring::Ring;
use crate::io::wake::Mailbox;
use crate::io::{Arena, Completion, Errno, FileId, Io, Wait};
use crate::log::merge::{MergeError, MergeJob, Merged};
use crate::log::recovery::RecoveredLog;
use crate::log::scrub::ScrubReport;
use crate::log::segments::{FreeSegment, Log, LogIdentity};
use crate::log::stored::StoredSegment;
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

/// A log on its way to its core.
pub(crate) struct LogAtStart {
    pub(crate) dir: PathBuf,
    pub(crate) disk: DiskId,
    pub(crate) log: u32,
    pub(crate) recovered: RecoveredLog,
    /// Every segment's file by its place in the recovered list.
    pub(crate) files: Vec<OpenFile>,
    pub(crate) next_number: u32,
}

impl LogAtStart {
    /// Whether it has something to serve, or a segment to write to.
    pub(crate) fn can_do_without_space(&self) -> bool {
        !self.recovered.sealed.is_empty() || !self.recovered.free.is_empty()
    }
}

/// What a core's thread is started with.
pub(crate) struct CoreAtStart {
    pub(crate) settings: CoreSettings,
    pub(crate) config: NodeConfig,
    pub(crate) placement: Arc<Placement>,
    pub(crate) logs: Vec<LogAtStart>,
    pub(crate) listener: OwnedFd,
    pub(crate) wake: OwnedFd,
    pub(crate) mailbox: Arc<Mailbox<Told>>,
    pub(crate) counters: Arc<SharedCounters>,
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
    counters: Arc<SharedCounters>,
    jobs: Arc<JobQueue>,
    /// Directory of each log, and the number of its next file.
    log_files: Vec<(PathBuf, Arc<AtomicU32>)>,
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
        let mut log_files = Vec::new();
        for (index, log) in (0..).zip(start.logs) {
            let places = log
                .files
                .iter()
                .map(|file| ring.add_file(&file.descriptor))
                .collect::<Result<Vec<FileId>, std::io::Error>>()?;
            files.extend(places.iter().copied().zip(log.files));
            let identity = LogIdentity {
                index,
                disk: log.disk,
                log: log.log,
                segment_bytes: start.config.segment_bytes,
                boot: start.settings.boot,
            };
            let free = log.recovered.free.clone();
            let state = log.recovered.into_state(|place| places[place]);
            let mut opened = Log::new(identity, state);
            if free.is_empty() {
                opened.set_no_space();
            }
            free.into_iter().for_each(|place| opened.add_free(FreeSegment { file: places[place] }));
            logs.push(opened);
            log_files.push((log.dir, Arc::new(AtomicU32::new(log.next_number))));
        }
        let core = Core::new(ring, start.settings, start.placement, logs, clock.now());
        let mut thread = CoreThread {
            core,
            mailbox: start.mailbox,
            counters: start.counters,
            jobs: start.jobs,
            log_files,
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
        let idle_us = self.core.turn(clock.now(), &mut self.completions);
        for request in self.core.take_requests() {
            match request {
                CoreRequest::FillSegment { log } => self.fill_segment(log),
                CoreRequest::RemoveSegment { file, .. } => self.remove_segment(file),
                CoreRequest::Merge { log, job } => self.merge_segments(log, job),
                CoreRequest::Scrub { log, segment } => self.scrub_segment(log, segment),
            }
        }
        self.counters.publish(&self.core.counters());
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
        let (dir, next_number) = &self.log_files[log as usize];
        let number = next_number.fetch_add(1, Ordering::Relaxed);
        let mailbox = self.mailbox.clone();
        let path = segment_path(dir, number);
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
