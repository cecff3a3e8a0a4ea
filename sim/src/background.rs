//! The node's background in the simulated world: the production code of merges, scrubs and
//! recovery, on files whose every operation takes a step and may be the last before a crash.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use thalweg_node::core::machine::CoreMessage;
use thalweg_node::io::sim::{SimDisk, SimRandom};
use thalweg_node::io::{Errno, FileId};
use thalweg_node::log::recovery::{Bytes, LogFiles};

/// Files that do one operation a step.
pub(crate) struct StepFiles {
    disk: SimDisk,
    /// The files by their places; without, a file's place is its number on the disk.
    files: Option<Vec<FileId>>,
    random: Rc<RefCell<SimRandom>>,
    /// An operation fails once in so many.
    errors: u64,
}

impl StepFiles {
    pub(crate) fn new(
        disk: SimDisk,
        files: Option<Vec<FileId>>,
        random: Rc<RefCell<SimRandom>>,
        errors: u64,
    ) -> StepFiles {
        StepFiles { disk, files, random, errors }
    }

    fn place(&self, file: usize) -> usize {
        self.files.as_ref().map_or(file, |files| files[file].0 as usize)
    }

    async fn step(&self) -> Result<(), Errno> {
        next_step().await;
        if self.random.borrow_mut().once_in(self.errors) { Err(Errno::IO) } else { Ok(()) }
    }
}

impl LogFiles for StepFiles {
    fn sizes(&self) -> Vec<u64> {
        let all = self.disk.sizes();
        match &self.files {
            Some(files) => files.iter().map(|file| all[file.0 as usize]).collect(),
            None => all,
        }
    }

    async fn read(&self, file: usize, at: u64, bytes: usize) -> Result<Bytes, Errno> {
        self.step().await?;
        self.disk.read(self.place(file), at, bytes).await
    }

    async fn write(&self, file: usize, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.step().await?;
        LogFiles::write(&self.disk, self.place(file), at, bytes).await
    }

    async fn sync(&self, file: usize) -> Result<(), Errno> {
        self.step().await?;
        LogFiles::sync(&self.disk, self.place(file)).await
    }
}

/// Lets others do something.
pub(crate) async fn next_step() {
    let mut waited = false;
    let turn = |waited: &mut bool| match std::mem::replace(waited, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    };
    poll_fn(|_| turn(&mut waited)).await;
}

/// Polls a future until it is done, `steps` times at most.
pub(crate) fn drive<T>(mut future: Pin<&mut dyn Future<Output = T>>, steps: u64) -> Option<T> {
    for _ in 0..steps {
        if let Poll::Ready(value) = poll_once(future.as_mut()) {
            return Some(value);
        }
    }
    None
}

fn poll_once<T>(future: Pin<&mut dyn Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Work under way, with the core that asked for it.
type Task = (usize, Pin<Box<dyn Future<Output = Option<CoreMessage>>>>);

/// What the background is at.
#[derive(Default)]
pub(crate) struct Background {
    tasks: Vec<Task>,
}

impl Background {
    pub(crate) fn start(
        &mut self,
        core: usize,
        task: impl Future<Output = Option<CoreMessage>> + 'static,
    ) {
        self.tasks.push((core, Box::pin(task)));
    }

    /// Any of the tasks does a step; answers what came of it, if it was its last.
    pub(crate) fn step(&mut self, random: &mut SimRandom) -> Option<(usize, CoreMessage)> {
        if self.tasks.is_empty() {
            return None;
        }
        let place = random.below(self.tasks.len() as u64) as usize;
        let (core, task) = &mut self.tasks[place];
        match poll_once(task.as_mut()) {
            Poll::Ready(message) => {
                let core = *core;
                drop(self.tasks.swap_remove(place));
                message.map(|message| (core, message))
            }
            Poll::Pending => None,
        }
    }

    /// The power failed.
    pub(crate) fn clear(&mut self) {
        self.tasks.clear();
    }
}
