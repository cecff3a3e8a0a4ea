//! The seam on io_uring: one ring a core, used by its thread alone.
//!
//! Connections and files live in the ring's own table, the arena is registered, so that an
//! operation looks nothing up. No SQPOLL (it would cost a processor) and no IOPOLL (it cannot
//! sync). Task work runs only when the core asks for completions (DEFER_TASKRUN), which costs
//! receives a fifth less processor time than interrupts by task work do.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use thiserror::Error;

use super::{Arena, BufferId, Completion, ConnectionId, Errno, FileId, Io, Piece, Token, Wait};

/// Entries of the submission queue: what one round of a core emits at most before it is flushed.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue; the kernel keeps what does not fit and the ring says so.
const COMPLETIONS: u32 = 8192;
/// Places for files in the ring's table. A core with more segments needs larger segments.
pub const FILES_MAX: u32 = 8 * 1024;
/// Largest part of the arena that one registration may have (kernel limit: 1 GiB).
const REGISTERED_BYTES: usize = 1 << 30;
/// What the probe locks: the least that a core could work with.
const PROBE_BYTES: usize = 16 << 20;
/// Pieces of one send.
pub const SEND_PIECES_MAX: usize = 256;

/// Why a ring cannot be made.
#[derive(Debug, Error)]
pub enum RingError {
    /// The kernel has none to give to this process.
    #[error(
        "io_uring is not available ({0}): Linux 6.1 or later is needed, the sysctl \
         kernel.io_uring_disabled must be 0, and a container's seccomp profile must allow \
         io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Unavailable(std::io::Error),
    /// The arena cannot be pinned.
    #[error(
        "{bytes} bytes of buffers cannot be locked in memory ({source}): raise the limit \
         (`ulimit -l unlimited`, LimitMEMLOCK=infinity in a unit file) or lower --memory-bytes"
    )]
    Memlock {
        /// Bytes that were to be pinned.
        bytes: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Another registration failed.
    #[error("the ring cannot be set up: {what}: {source}")]
    Setup {
        /// Which step.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Storage that the kernel reads while a send is in flight; its address must not change.
struct SendMessage {
    header: libc::msghdr,
    vectors: [libc::iovec; SEND_PIECES_MAX],
}

struct InFlight {
    token: Token,
    loan: Option<BufferId>,
    message: Option<Box<SendMessage>>,
}

/// See the module.
pub struct Ring {
    // Dropped before the arena: the kernel lets go of the memory first.
    ring: IoUring,
    arena: Arena,
    listener: OwnedFd,
    wake: OwnedFd,
    wake_count: Box<u64>,
    in_flight: Vec<Option<InFlight>>,
    unused: Vec<u32>,
    spare_messages: Vec<Box<SendMessage>>,
    /// Submissions that found the queue full.
    overflow: VecDeque<squeue::Entry>,
    unused_files: Vec<u32>,
    /// Keeps its memory from poll to poll.
    reaped: Vec<(u64, i32, u32)>,
    accepting: bool,
}

// SAFETY: the raw pointers within point to memory that the ring owns and moves along with it; the
// ring is used by one thread at a time, and its kernel side is enabled by the thread that uses it.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring with `arena` as its memory, accepting on `listener`, woken by the eventfd `wake`.
    /// It must be used by the thread that makes it.
    ///
    /// # Errors
    /// [`RingError`] with the remedy.
    pub fn new(
        arena: Arena,
        listener: OwnedFd,
        wake: OwnedFd,
        connections_max: u32,
    ) -> Result<Ring, RingError> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .build(SUBMISSIONS)
            .map_err(RingError::Unavailable)?;
        register_arena(&ring, &arena)?;
        register_places(&ring, wake.as_raw_fd(), connections_max)?;
        let mut ring = Ring {
            ring,
            arena,
            listener,
            wake,
            wake_count: Box::new(0),
            in_flight: Vec::new(),
            unused: Vec::new(),
            spare_messages: Vec::new(),
            overflow: VecDeque::new(),
            unused_files: (0..FILES_MAX).rev().collect(),
            reaped: Vec::new(),
            accepting: true,
        };
        ring.accept();
        ring.listen_for_wake();
        Ok(ring)
    }

    /// Takes a file into the ring's table.
    ///
    /// # Errors
    /// When the table is full or the kernel refuses.
    pub fn add_file(&mut self, file: &OwnedFd) -> Result<FileId, std::io::Error> {
        let place = self.unused_files.pop().ok_or_else(|| {
            std::io::Error::other(format!(
                "a core holds at most {FILES_MAX} segments: raise --segment-bytes"
            ))
        })?;
        self.ring.submitter().register_files_update(place, &[file.as_raw_fd()])?;
        Ok(FileId(place))
    }

    /// Takes a file out of the table; nothing is in flight on it. Its place is held again until
    /// another file takes it: an accepted connection would, and both would be lost.
    ///
    /// # Errors
    /// When the kernel refuses: the place is not used again then.
    pub fn remove_file(&mut self, file: FileId) -> Result<(), std::io::Error> {
        let stand_in = self.wake.as_raw_fd();
        self.ring.submitter().register_files_update(file.0, &[stand_in])?;
        self.unused_files.push(file.0);
        Ok(())
    }

    /// Takes no further connections.
    pub fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    /// Operations that the kernel has not completed, apart from the standing accept and wake.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.unused.len() - 1 - usize::from(self.accepting)
    }

    fn accept(&mut self) {
        let entry = opcode::AcceptMulti::new(io_uring::types::Fd(self.listener.as_raw_fd()))
            .allocate_file_index(true)
            .build();
        self.submit(entry, Token::Accept, None, None);
    }

    fn listen_for_wake(&mut self) {
        let into: *mut u64 = &mut *self.wake_count;
        let entry =
            opcode::Read::new(io_uring::types::Fd(self.wake.as_raw_fd()), into.cast(), 8).build();
        self.submit(entry, Token::Wake, None, None);
    }

    fn submit(
        &mut self,
        entry: squeue::Entry,
        token: Token,
        loan: Option<BufferId>,
        message: Option<Box<SendMessage>>,
    ) {
        let operation = InFlight { token, loan, message };
        let place = if let Some(place) = self.unused.pop() {
            self.in_flight[place as usize] = Some(operation);
            place
        } else {
            self.in_flight.push(Some(operation));
            self.in_flight.len() as u32 - 1
        };
        let entry = entry.user_data(u64::from(place));
        // SAFETY: what the entry points to (arena, message, wake count) is owned by `self` and
        // stays where it is until the operation's completion has been reaped.
        let pushed =
            self.overflow.is_empty() && unsafe { self.ring.submission().push(&entry) }.is_ok();
        if !pushed {
            self.overflow.push_back(entry);
        }
    }

    fn flush_overflow(&mut self) -> std::io::Result<()> {
        while let Some(entry) = self.overflow.front() {
            // SAFETY: as in `submit`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.overflow.pop_front();
            } else {
                self.ring.submit()?;
            }
        }
        Ok(())
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        // Collected first: a completion may re-arm its operation, which needs the ring.
        let mut reaped = std::mem::take(&mut self.reaped);
        let entries = self.ring.completion();
        reaped.extend(entries.map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        for (place, result, flags) in reaped.drain(..) {
            self.complete(place as u32, result, cqueue::more(flags), completions);
        }
        self.reaped = reaped;
    }

    fn complete(&mut self, place: u32, result: i32, more: bool, completions: &mut Vec<Completion>) {
        let token = if more {
            self.in_flight[place as usize].as_ref().expect("a standing operation").token
        } else {
            let ended = self.in_flight[place as usize].take().expect("an operation in flight");
            self.unused.push(place);
            if let Some(buffer) = ended.loan {
                self.arena.returned(buffer);
            }
            if let Some(message) = ended.message {
                self.spare_messages.push(message);
            }
            ended.token
        };
        match token {
            Token::Accept if !more && self.accepting => self.accept(),
            Token::Wake => self.listen_for_wake(),
            _ => {}
        }
        let result = u32::try_from(result).map_err(|_| Errno(-result));
        completions.push(Completion { token, result });
    }

    fn registered_index(&self, piece: Piece) -> u16 {
        let offset = self.arena.address(piece) as usize - self.arena.base() as usize;
        (offset / REGISTERED_BYTES) as u16
    }
}

/// Whether this process may have a ring and lock memory for it: asked before anything else is
/// started, so that the answer comes with its remedy.
///
/// # Errors
/// [`RingError`].
pub fn probe(locked_bytes: usize) -> Result<(), RingError> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(8)
        .map_err(RingError::Unavailable)?;
    let arena = Arena::new(PROBE_BYTES)
        .map_err(|errno| RingError::Setup { what: "memory for a probe", source: errno.into() })?;
    register_arena(&ring, &arena).map_err(|error| match error {
        RingError::Memlock { source, .. } => RingError::Memlock { bytes: locked_bytes, source },
        other => other,
    })
}

fn register_arena(ring: &IoUring, arena: &Arena) -> Result<(), RingError> {
    let bytes = arena.total_bytes();
    let parts: Vec<libc::iovec> = (0..bytes)
        .step_by(REGISTERED_BYTES)
        .map(|start| libc::iovec {
            // SAFETY: `start` lies within the arena.
            iov_base: unsafe { arena.base().add(start) }.cast(),
            iov_len: REGISTERED_BYTES.min(bytes - start),
        })
        .collect();
    // SAFETY: the parts are the arena's mapping, which outlives the ring (field order of `Ring`).
    unsafe { ring.submitter().register_buffers(&parts) }
        .map_err(|source| RingError::Memlock { bytes, source })
}

/// Makes the table: places for files first, each held by a stand-in until a file takes it, so
/// that accepted connections are put behind them.
fn register_places(ring: &IoUring, stand_in: RawFd, connections_max: u32) -> Result<(), RingError> {
    let setup = |what| move |source| RingError::Setup { what, source };
    let submitter = ring.submitter();
    submitter
        .register_files_sparse(FILES_MAX + connections_max)
        .map_err(setup("the table of files (raise `ulimit -n`)"))?;
    let stand_ins = vec![stand_in; FILES_MAX as usize];
    submitter.register_files_update(0, &stand_ins).map_err(setup("places for files"))?;
    Ok(())
}

impl Io for Ring {
    fn memory(&self) -> &Arena {
        &self.arena
    }

    fn memory_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    fn receive(&mut self, connection: ConnectionId, into: Piece, all: bool) {
        let address = self.arena.loan(into);
        let flags = if all { libc::MSG_WAITALL } else { 0 };
        let entry =
            opcode::Recv::new(Fixed(connection.0), address, into.bytes).flags(flags).build();
        self.submit(entry, Token::Receive(connection), Some(into.buffer), None);
    }

    fn send(&mut self, connection: ConnectionId, pieces: &[Piece]) {
        assert!((1..=SEND_PIECES_MAX).contains(&pieces.len()));
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        if let [piece] = pieces {
            let address = self.arena.address(*piece);
            let entry =
                opcode::Send::new(Fixed(connection.0), address, piece.bytes).flags(flags).build();
            self.submit(entry, Token::Send(connection), None, None);
            return;
        }
        let mut message = self.spare_messages.pop().unwrap_or_else(|| {
            // SAFETY: both structures are plain C data for which zero is valid.
            unsafe { Box::<SendMessage>::new_zeroed().assume_init() }
        });
        for (vector, piece) in message.vectors.iter_mut().zip(pieces) {
            vector.iov_base = self.arena.address(*piece).cast_mut().cast();
            vector.iov_len = piece.bytes as usize;
        }
        message.header.msg_iov = message.vectors.as_mut_ptr();
        message.header.msg_iovlen = pieces.len() as _;
        let entry = opcode::SendMsg::new(Fixed(connection.0), &raw const message.header)
            .flags(flags as u32)
            .build();
        self.submit(entry, Token::Send(connection), None, Some(message));
    }

    fn shutdown(&mut self, connection: ConnectionId) {
        let entry = opcode::Shutdown::new(Fixed(connection.0), libc::SHUT_RDWR).build();
        self.submit(entry, Token::Shutdown(connection), None, None);
    }

    fn close(&mut self, connection: ConnectionId) {
        let entry = opcode::Close::new(Fixed(connection.0)).build();
        self.submit(entry, Token::Close(connection), None, None);
    }

    fn write(&mut self, token: Token, file: FileId, at: u64, from: Piece, durable: bool) {
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let (address, index) = (self.arena.address(from), self.registered_index(from));
        let entry = opcode::WriteFixed::new(Fixed(file.0), address, from.bytes, index)
            .offset(at)
            .rw_flags(flags)
            .build();
        self.submit(entry, token, None, None);
    }

    fn sync(&mut self, token: Token, file: FileId) {
        let entry = opcode::Fsync::new(Fixed(file.0)).flags(FsyncFlags::DATASYNC).build();
        self.submit(entry, token, None, None);
    }

    fn read(&mut self, token: Token, file: FileId, at: u64, into: Piece) {
        let index = self.registered_index(into);
        let address = self.arena.loan(into);
        let entry =
            opcode::ReadFixed::new(Fixed(file.0), address, into.bytes, index).offset(at).build();
        self.submit(entry, token, Some(into.buffer), None);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<(), Errno> {
        let errno = |error: std::io::Error| Errno(error.raw_os_error().unwrap_or(libc::EIO));
        self.flush_overflow().map_err(errno)?;
        let (want, us) = match wait {
            Wait::No => (0, 0),
            Wait::UpTo(us) => (1, us),
        };
        let timeout = Timespec::new().sec(us / 1_000_000).nsec((us % 1_000_000) as u32 * 1000);
        match self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timeout)) {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // Time is up, a signal came, or completions must be reaped first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(errno(error)),
            },
        }
        self.reap(completions);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::io::Wait;

    /// After the file of a segment had been removed, the next connection took its place, and the
    /// next file took it from the connection. When that closed, so did the file, and its log
    /// stopped: an hour into a run in which segments came and went.
    #[test]
    fn a_connection_never_takes_the_place_of_a_file() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let wake = rustix::event::eventfd(0, flags).unwrap();
        let arena = Arena::new(1).unwrap();
        let mut ring = Ring::new(arena, listener.into(), wake, 16).unwrap();
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        let files: Vec<FileId> = (0..4).map(|_| ring.add_file(&file()).unwrap()).collect();
        files.into_iter().for_each(|file| ring.remove_file(file).unwrap());
        let peers: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
        let (mut accepted, mut completions) = (Vec::new(), Vec::new());
        while accepted.len() < peers.len() {
            ring.poll(&mut completions, Wait::UpTo(1_000_000)).unwrap();
            for completion in completions.drain(..) {
                if completion.token == Token::Accept {
                    accepted.push(completion.result.unwrap());
                }
            }
        }
        assert!(accepted.iter().all(|place| *place >= FILES_MAX), "{accepted:?}");
        let places: Vec<u32> = (0..8).map(|_| ring.add_file(&file()).unwrap().0).collect();
        assert!(places.iter().all(|place| *place < FILES_MAX), "{places:?}");
    }
}
