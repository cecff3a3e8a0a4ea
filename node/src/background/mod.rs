//! Background I/O on glommio: an executor of its own on a thread of its own, so that it cannot
//! hurt commits. Recovery, zero-filling, removal and upkeep run in task queues with shares.
//!
//! Jobs come through a queue, results go back through the cores' mailboxes. A socket pair wakes
//! the executor: it does not poll, so that an idle node stays idle.

mod files;
mod fill;
mod remove;
mod upkeep;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, unbounded};
use glommio::sync::Gate;
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares};
use thalweg_wire::ids::DiskId;

use crate::io::Errno;
use crate::io::wake::adopt;
use crate::log::recovery::{RecoveredLog, RecoveryError};

pub use files::GlommioFiles;
pub use upkeep::{MergeTask, ScrubTask};

/// Reads the logs of a directory after whatever ended them.
pub struct RecoverJob {
    /// The directory.
    pub log_dir: PathBuf,
    /// The disk it is on.
    pub disk: DiskId,
    /// Its number on the disk.
    pub log: u32,
    /// Bytes of its segments.
    pub segment_bytes: u64,
    /// Takes the outcome.
    pub done: mpsc::Sender<Result<Vec<RecoveredLog>, RecoveryError>>,
}

/// Fills a file with zeroes and makes it durable.
pub struct FillJob {
    /// The file, which must not exist.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether someone waits for it: then as fast as the disk goes, else gently.
    pub urgent: bool,
    /// Takes the outcome: the file, open for direct I/O.
    pub done: Box<dyn FnOnce(Result<OwnedFd, Errno>) + Send>,
}

enum Job {
    Recover(RecoverJob),
    Fill(FillJob),
    Remove(PathBuf),
    Merge(MergeTask),
    Scrub(ScrubTask),
    Stop,
}

/// The way to hand jobs to the executor.
pub struct JobQueue {
    jobs: Sender<Job>,
    wake: StdUnixStream,
}

impl JobQueue {
    /// Reads the logs of a directory.
    pub fn recover(&self, job: RecoverJob) {
        self.push(Job::Recover(job));
    }

    /// Fills a segment.
    pub fn fill(&self, job: FillJob) {
        self.push(Job::Fill(job));
    }

    /// Removes the file of a segment, gently.
    pub fn remove(&self, path: PathBuf) {
        self.push(Job::Remove(path));
    }

    /// Merges segments.
    pub fn merge(&self, task: MergeTask) {
        self.push(Job::Merge(task));
    }

    /// Scrubs a segment.
    pub fn scrub(&self, task: ScrubTask) {
        self.push(Job::Scrub(task));
    }

    fn push(&self, job: Job) {
        // The executor outlives the queue: both ends live until `Background` is dropped.
        let _ = self.jobs.send(job);
        let _ = (&self.wake).write(&[1]);
    }
}

/// The executor's thread. Dropping it ends it, when nothing of its work is on its way to a disk any
/// more: a write that came later could meet a file that the next start uses for something else.
pub struct Background {
    queue: std::sync::Arc<JobQueue>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts it.
    ///
    /// # Errors
    /// When the system has no thread, socket pair or ring to give.
    pub fn start() -> std::io::Result<Background> {
        let (wake, woken) = StdUnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let (jobs, incoming) = unbounded();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::Builder::new().name("background".into()).spawn(move || {
            let builder = LocalExecutorBuilder::new(Placement::Unbound)
                .name("background")
                .io_memory(16 << 20)
                .ring_depth(128)
                .spin_before_park(std::time::Duration::ZERO);
            match builder.make() {
                Ok(executor) => {
                    let _ = ready.send(Ok(()));
                    executor.run(serve(incoming, woken));
                }
                Err(error) => {
                    let _ = ready.send(Err(std::io::Error::other(error.to_string())));
                }
            }
        })?;
        started.recv().map_err(std::io::Error::other)??;
        let queue = std::sync::Arc::new(JobQueue { jobs, wake });
        Ok(Background { queue, thread: Some(thread) })
    }

    /// The way to hand it jobs.
    #[must_use]
    pub fn queue(&self) -> std::sync::Arc<JobQueue> {
        self.queue.clone()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.queue.push(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(jobs: Receiver<Job>, woken: StdUnixStream) {
    use futures_lite::AsyncReadExt;
    let recovery = glommio::executor().create_task_queue(
        Shares::Static(1000),
        Latency::NotImportant,
        "recovery",
    );
    let filling = glommio::executor().create_task_queue(
        Shares::Static(100),
        Latency::NotImportant,
        "zero-fill",
    );
    let removing =
        glommio::executor().create_task_queue(Shares::Static(50), Latency::NotImportant, "remove");
    let upkeep =
        glommio::executor().create_task_queue(Shares::Static(50), Latency::NotImportant, "upkeep");
    let promised = Rc::new(fill::Promised::default());
    let at_work = Gate::new();
    let mut woken = adopt(woken);
    let mut bytes = [0; 256];
    'jobs: loop {
        for job in jobs.try_iter() {
            let task = match job {
                Job::Recover(job) => at_work.spawn_into(files::recover(job), recovery),
                Job::Fill(job) => {
                    let fill = fill::fill(job, promised.clone(), at_work.clone());
                    at_work.spawn_into(fill, filling)
                }
                Job::Remove(path) => {
                    at_work.spawn_into(remove::remove(path, at_work.clone()), removing)
                }
                Job::Merge(task) => {
                    at_work.spawn_into(upkeep::merge(task, at_work.clone()), upkeep)
                }
                Job::Scrub(task) => {
                    at_work.spawn_into(upkeep::scrub(task, at_work.clone()), upkeep)
                }
                Job::Stop => break 'jobs,
            };
            task.expect("the queues were just made, and the gate is open").detach();
        }
        if !matches!(woken.read(&mut bytes).await, Ok(1..)) {
            break;
        }
    }
    // What is under way sees it between two operations, and ends.
    at_work.close().await.expect("it is closed once");
}

/// The error number behind a glommio error.
fn errno_of(error: glommio::GlommioError<()>) -> Errno {
    use glommio::GlommioError;
    let source = match error {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
        other => {
            tracing::error!(error = %other, "background I/O failed");
            return Errno::IO;
        }
    };
    Errno(source.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that were being filled when a node stopped were written to afterwards, when the next
    /// start in the same process had begun to use them.
    #[test]
    fn nothing_is_written_once_it_has_ended() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("segment");
        let background = Background::start().unwrap();
        let (told, outcome) = mpsc::channel();
        let done = move |result: Result<OwnedFd, Errno>| told.send(result.err()).unwrap();
        let job =
            FillJob { path: path.clone(), bytes: 4 << 30, urgent: true, done: Box::new(done) };
        background.queue().fill(job);
        while !path.exists() {
            assert!(outcome.try_recv().is_err(), "it takes longer than this");
            std::thread::yield_now();
        }
        drop(background);
        assert_eq!(outcome.try_recv(), Ok(Some(Errno::CANCELED)), "its end was waited for");
        assert!(!path.exists(), "what is not full is no segment");
    }
}
