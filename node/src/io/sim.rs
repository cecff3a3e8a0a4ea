//! A simulated world: disks that tear and lose, connections that cut bytes anywhere, all of it
//! decided by a seed. The core, log and recovery that run in it are the production ones.
//!
//! The disk is modelled as a device with a volatile cache: a completed write can be read, and
//! survives a crash only by chance, block by block, until a sync that was *submitted* after its
//! completion has completed. Writes that are in flight when the crash comes may survive in part.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use thalweg_wire::checksum::{Chain, crc32c};

use super::{Arena, Completion, ConnectionId, Errno, FileId, Io, Piece, Token, Wait};
use crate::config::BLOCK_BYTES;
use crate::log::recovery::{Bytes, LogFiles};

/// Random numbers from a seed (splitmix64): the only source of chance in a simulation.
#[derive(Clone, Debug)]
pub struct SimRandom(u64);

impl SimRandom {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> SimRandom {
        SimRandom(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.any() % bound
    }

    /// True once in `times`; never when that is zero.
    pub fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }
}

#[derive(Clone, Debug)]
struct SimFile {
    /// What a read sees.
    live: Vec<u8>,
    /// What survives for certain.
    durable: Vec<u8>,
    /// Completed writes that no sync has covered.
    unsynced: Vec<(u64, Vec<u8>)>,
}

/// A disk that outlives crashes. Files have numbers.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    files: Rc<RefCell<Vec<SimFile>>>,
    misdirected: Rc<Cell<u64>>,
}

impl SimDisk {
    /// Adds a zero-filled, durable file.
    pub fn add_file(&self, bytes: u64) -> FileId {
        let zeroes = vec![0; bytes as usize];
        let file = SimFile { live: zeroes.clone(), durable: zeroes, unsynced: Vec::new() };
        self.files.borrow_mut().push(file);
        FileId(self.files.borrow().len() as u32 - 1)
    }

    /// Removes a file: its number stays, its content is gone for good.
    pub fn remove_file(&self, file: FileId) {
        let file = &mut self.files.borrow_mut()[file.0 as usize];
        *file = SimFile { live: Vec::new(), durable: Vec::new(), unsynced: Vec::new() };
    }

    /// How many files there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.files.borrow().len()
    }

    /// Flips a bit, live and durable.
    pub fn flip_bit(&self, file: FileId, at: u64, bit: u8) {
        let file = &mut self.files.borrow_mut()[file.0 as usize];
        file.live[at as usize] ^= 1 << bit;
        file.durable[at as usize] ^= 1 << bit;
    }

    /// Writes that landed elsewhere.
    #[must_use]
    pub fn misdirected(&self) -> u64 {
        self.misdirected.get()
    }

    /// What a read sees of a file.
    #[must_use]
    pub fn content(&self, file: FileId) -> Vec<u8> {
        self.files.borrow()[file.0 as usize].live.clone()
    }

    /// The power fails: every block that no sync has covered survives or does not.
    pub fn crash(&self, in_flight: Vec<(FileId, u64, Vec<u8>)>, random: &mut SimRandom) {
        let mut files = self.files.borrow_mut();
        for (file, at, bytes) in in_flight {
            files[file.0 as usize].unsynced.push((at, bytes));
        }
        for file in files.iter_mut() {
            // All, none, or some: a run of coin tosses alone would hardly ever give the first two.
            let manner = random.below(4);
            for (at, bytes) in std::mem::take(&mut file.unsynced) {
                for (place, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
                    let survives = match manner {
                        0 => false,
                        1 => true,
                        _ => random.once_in(2),
                    };
                    if survives {
                        let start = at as usize + place * BLOCK_BYTES as usize;
                        file.durable[start..start + block.len()].copy_from_slice(block);
                    }
                }
            }
            file.live.clone_from(&file.durable);
        }
    }

    fn write(&self, file: FileId, at: u64, bytes: &[u8], durable: bool) {
        let file = &mut self.files.borrow_mut()[file.0 as usize];
        let range = at as usize..at as usize + bytes.len();
        file.live[range.clone()].copy_from_slice(bytes);
        if durable {
            file.durable[range].copy_from_slice(bytes);
        } else {
            file.unsynced.push((at, bytes.to_vec()));
        }
    }

    fn unsynced_count(&self, file: FileId) -> usize {
        self.files.borrow()[file.0 as usize].unsynced.len()
    }

    /// The first `count` unsynced writes become durable.
    fn sync(&self, file: FileId, count: usize) {
        let file = &mut self.files.borrow_mut()[file.0 as usize];
        for (at, bytes) in file.unsynced.drain(..count) {
            file.durable[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

/// The files of the disk as recovery reads them: nothing fails, and what it writes is there.
impl LogFiles for SimDisk {
    fn sizes(&self) -> Vec<u64> {
        self.files.borrow().iter().map(|file| file.live.len() as u64).collect()
    }

    async fn read(&self, file: usize, at: u64, bytes: usize) -> Result<Bytes, Errno> {
        let mut content = Bytes::with_capacity(bytes);
        let files = self.files.borrow();
        content.extend_from_slice(&files[file].live[at as usize..at as usize + bytes]);
        Ok(content)
    }

    async fn write(&self, file: usize, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        SimDisk::write(self, FileId(file as u32), at, bytes, false);
        Ok(())
    }

    async fn sync(&self, file: usize) -> Result<(), Errno> {
        let file = FileId(file as u32);
        SimDisk::sync(self, file, self.unsynced_count(file));
        Ok(())
    }
}

/// How often what goes wrong; once in so many operations, never when zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SimFaults {
    /// A write fails.
    pub write_error: u64,
    /// A write is cut short.
    pub short_write: u64,
    /// A sync fails, and what it covered is lost as far as anyone knows.
    pub sync_error: u64,
    /// A read is cut short.
    pub short_read: u64,
    /// A connection breaks at a receive or send.
    pub broken_connection: u64,
    /// A write lands somewhere else in its file, and not where it should.
    pub misdirected_write: u64,
}

#[derive(Debug)]
enum Operation {
    Receive { connection: ConnectionId, into: Piece, all: bool },
    Send { connection: ConnectionId, bytes: Vec<u8> },
    Shutdown { connection: ConnectionId },
    Close { connection: ConnectionId },
    Write { file: FileId, at: u64, bytes: Vec<u8>, durable: bool },
    Sync { file: FileId, covers: usize },
    Read { file: FileId, at: u64, into: Piece },
}

#[derive(Debug)]
struct InFlight {
    token: Token,
    operation: Operation,
}

#[derive(Debug, Default)]
struct SimConnection {
    /// Bytes that the core has not received.
    to_core: Vec<u8>,
    /// Bytes that the peer has not taken.
    to_peer: Vec<u8>,
    ended: bool,
    closed: bool,
}

/// See the module.
pub struct SimIo {
    arena: Arena,
    disk: SimDisk,
    random: SimRandom,
    faults: SimFaults,
    in_flight: Vec<InFlight>,
    completed: Vec<Completion>,
    connections: Vec<SimConnection>,
    operations: u64,
    trace: Chain,
}

/// What is in flight ends with the world, which is its own kernel.
impl Drop for SimIo {
    fn drop(&mut self) {
        self.arena.end_loans();
    }
}

impl SimIo {
    /// A world around `disk`.
    ///
    /// # Panics
    /// When the system has no memory to give.
    #[must_use]
    pub fn new(memory_bytes: usize, disk: SimDisk, seed: u64, faults: SimFaults) -> SimIo {
        SimIo {
            arena: Arena::new(memory_bytes).expect("memory for a simulation"),
            disk,
            random: SimRandom::new(seed),
            faults,
            in_flight: Vec::new(),
            completed: Vec::new(),
            connections: Vec::new(),
            operations: 0,
            trace: Chain::default(),
        }
    }

    /// A peer connects.
    pub fn connect(&mut self) -> ConnectionId {
        self.connections.push(SimConnection::default());
        let id = self.connections.len() as u32 - 1;
        self.completed.push(Completion { token: Token::Accept, result: Ok(id) });
        ConnectionId(id)
    }

    /// A peer sends.
    pub fn peer_sends(&mut self, connection: ConnectionId, bytes: &[u8]) {
        self.connections[connection.0 as usize].to_core.extend_from_slice(bytes);
    }

    /// A peer takes what was sent to it; `None` once the connection has ended.
    pub fn peer_takes(&mut self, connection: ConnectionId) -> Option<Vec<u8>> {
        let connection = &mut self.connections[connection.0 as usize];
        let bytes = std::mem::take(&mut connection.to_peer);
        (!connection.ended && !connection.closed || !bytes.is_empty()).then_some(bytes)
    }

    /// A peer goes away.
    pub fn peer_ends(&mut self, connection: ConnectionId) {
        self.connections[connection.0 as usize].ended = true;
    }

    /// Operations that were submitted so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// A hash of everything that happened so far, in order.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.trace.0
    }

    /// The power fails; what is left is on the disk.
    pub fn crash(self) {
        let (disk, mut random) = (self.disk.clone(), self.random.clone());
        disk.crash(self.stop(), &mut random);
    }

    /// Ends; answers the writes that were in flight, for a crash of a disk that several use.
    #[must_use]
    pub fn stop(mut self) -> Vec<(FileId, u64, Vec<u8>)> {
        let mut in_flight = Vec::new();
        for InFlight { operation, .. } in self.in_flight.drain(..) {
            match operation {
                Operation::Write { file, at, bytes, .. } => in_flight.push((file, at, bytes)),
                Operation::Receive { into, .. } | Operation::Read { into, .. } => {
                    self.arena.returned(into.buffer);
                }
                _ => {}
            }
        }
        in_flight
    }

    fn submit(&mut self, token: Token, operation: Operation, content: &[u8]) {
        self.operations += 1;
        let kind = format!("{token:?}");
        self.trace.absorb(self.operations, crc32c(kind.as_bytes()), content);
        self.in_flight.push(InFlight { token, operation });
    }

    /// Whether the operation could complete now.
    fn is_ready(&self, operation: &Operation) -> bool {
        let Operation::Receive { connection, into, all } = operation else { return true };
        let state = &self.connections[connection.0 as usize];
        let wanted = if *all { into.bytes as usize } else { 1 };
        state.ended || state.to_core.len() >= wanted
    }

    fn perform(&mut self, operation: Operation) -> Result<u32, Errno> {
        match operation {
            Operation::Receive { connection, into, all } => {
                self.arena.returned(into.buffer);
                self.deliver(connection, into, all)
            }
            Operation::Send { connection, bytes } => {
                let broken = self.random.once_in(self.faults.broken_connection);
                let state = &mut self.connections[connection.0 as usize];
                if broken || state.ended {
                    state.ended = true;
                    return Err(Errno::RESET);
                }
                state.to_peer.extend_from_slice(&bytes);
                Ok(bytes.len() as u32)
            }
            Operation::Shutdown { connection } => {
                self.connections[connection.0 as usize].ended = true;
                Ok(0)
            }
            Operation::Close { connection } => {
                self.connections[connection.0 as usize].closed = true;
                Ok(0)
            }
            Operation::Write { file, at, bytes, durable } => {
                if self.random.once_in(self.faults.write_error) {
                    return Err(Errno::IO);
                }
                let mut written = bytes.len();
                if self.random.once_in(self.faults.short_write) {
                    written = self.random.below(written as u64) as usize;
                }
                let mut at = at;
                if self.random.once_in(self.faults.misdirected_write) {
                    let blocks = self.disk.content(file).len() as u64 / BLOCK_BYTES;
                    let room = blocks - bytes.len() as u64 / BLOCK_BYTES;
                    at = self.random.below(room + 1) * BLOCK_BYTES;
                    self.disk.misdirected.set(self.disk.misdirected.get() + 1);
                }
                // A write that was cut short is never durable, whatever was asked.
                let durable = durable && written == bytes.len();
                self.disk.write(file, at, &bytes[..written], durable);
                Ok(written as u32)
            }
            Operation::Sync { file, covers } => {
                if self.random.once_in(self.faults.sync_error) {
                    return Err(Errno::IO);
                }
                self.disk.sync(file, covers);
                Ok(0)
            }
            Operation::Read { file, at, into } => {
                self.arena.returned(into.buffer);
                let mut bytes = into.bytes as usize;
                if self.random.once_in(self.faults.short_read) {
                    bytes = self.random.below(bytes as u64) as usize;
                }
                let files = self.disk.files.borrow();
                let content = &files[file.0 as usize].live[at as usize..at as usize + bytes];
                let start = into.start as usize;
                self.arena.bytes_mut(into.buffer)[start..start + bytes].copy_from_slice(content);
                Ok(bytes as u32)
            }
        }
    }

    fn deliver(&mut self, connection: ConnectionId, into: Piece, all: bool) -> Result<u32, Errno> {
        let broken = self.random.once_in(self.faults.broken_connection);
        let state = &mut self.connections[connection.0 as usize];
        if broken {
            state.ended = true;
            return Err(Errno::RESET);
        }
        let there = state.to_core.len().min(into.bytes as usize);
        // Without `all` a stream is cut anywhere.
        let count =
            if all || there == 0 { there } else { 1 + self.random.below(there as u64) as usize };
        let bytes: Vec<u8> = state.to_core.drain(..count).collect();
        let start = into.start as usize;
        self.arena.bytes_mut(into.buffer)[start..start + count].copy_from_slice(&bytes);
        Ok(count as u32)
    }
}

impl Io for SimIo {
    fn memory(&self) -> &Arena {
        &self.arena
    }

    fn memory_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    fn receive(&mut self, connection: ConnectionId, into: Piece, all: bool) {
        self.arena.loan(into);
        let operation = Operation::Receive { connection, into, all };
        self.submit(Token::Receive(connection), operation, &[]);
    }

    fn send(&mut self, connection: ConnectionId, pieces: &[Piece]) {
        let bytes: Vec<u8> =
            pieces.iter().flat_map(|piece| self.arena.piece(*piece).to_vec()).collect();
        let content = bytes.clone();
        self.submit(Token::Send(connection), Operation::Send { connection, bytes }, &content);
    }

    fn shutdown(&mut self, connection: ConnectionId) {
        self.submit(Token::Shutdown(connection), Operation::Shutdown { connection }, &[]);
    }

    fn close(&mut self, connection: ConnectionId) {
        self.submit(Token::Close(connection), Operation::Close { connection }, &[]);
    }

    fn write(&mut self, token: Token, file: FileId, at: u64, from: Piece, durable: bool) {
        assert!(
            at.is_multiple_of(BLOCK_BYTES) && u64::from(from.bytes).is_multiple_of(BLOCK_BYTES)
        );
        let bytes = self.arena.piece(from).to_vec();
        let content = bytes.clone();
        self.submit(token, Operation::Write { file, at, bytes, durable }, &content);
    }

    fn sync(&mut self, token: Token, file: FileId) {
        // What completes later is not covered, though it may complete before the sync does.
        let covers = self.disk.unsynced_count(file);
        self.submit(token, Operation::Sync { file, covers }, &[]);
    }

    fn read(&mut self, token: Token, file: FileId, at: u64, into: Piece) {
        assert!(
            at.is_multiple_of(BLOCK_BYTES) && u64::from(into.bytes).is_multiple_of(BLOCK_BYTES)
        );
        self.arena.loan(into);
        self.submit(token, Operation::Read { file, at, into }, &[]);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, _wait: Wait) -> Result<(), Errno> {
        completions.append(&mut self.completed);
        // Some of what could complete does, in any order.
        let chances = self.in_flight.len();
        for _ in 0..chances {
            if self.in_flight.is_empty() || self.random.once_in(3) {
                continue;
            }
            let place = self.random.below(self.in_flight.len() as u64) as usize;
            if !self.is_ready(&self.in_flight[place].operation) {
                continue;
            }
            let InFlight { token, operation } = self.in_flight.swap_remove(place);
            let result = self.perform(operation);
            let told = format!("{token:?} {result:?}");
            self.trace.absorb(self.operations, 0, told.as_bytes());
            completions.push(Completion { token, result });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(io: &mut SimIo, count: usize) -> Vec<Completion> {
        let mut completions = Vec::new();
        while completions.len() < count {
            io.poll(&mut completions, Wait::No).unwrap();
        }
        completions
    }

    #[test]
    fn only_what_completed_before_the_sync_was_submitted_is_durable() {
        let disk = SimDisk::default();
        let file = disk.add_file(1 << 20);
        let mut lost = 0;
        for seed in 0..64 {
            let mut io = SimIo::new(1 << 20, disk.clone(), seed, SimFaults::default());
            let buffer = io.memory_mut().allocate(4096).unwrap();
            io.memory_mut().bytes_mut(buffer).fill(seed as u8 + 1);
            let piece = Piece { buffer, start: 0, bytes: 4096 };
            let token = |unit| Token::Write { log: 0, unit };
            io.write(token(0), file, 0, piece, false);
            wait_for(&mut io, 1);
            io.sync(Token::Sync { log: 0 }, file);
            io.write(token(1), file, 4096, piece, false);
            wait_for(&mut io, 2);
            io.crash();
            let content = disk.content(file);
            assert_eq!(content[0], seed as u8 + 1, "it completed before the sync was submitted");
            lost += u32::from(content[4096] != seed as u8 + 1);
        }
        assert!(lost > 10 && lost < 54, "{lost} of 64 unsynced writes were lost");
    }
}
