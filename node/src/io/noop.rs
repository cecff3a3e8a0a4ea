//! A device that does nothing, at once: what remains is the core's own cost.
//!
//! Writes and syncs succeed and keep nothing; connections receive what a benchmark feeds them.
//! In manual mode nothing completes by itself: unit tests decide what does, and when.

use std::collections::VecDeque;

use super::{Arena, Completion, ConnectionId, Errno, FileId, Io, Piece, Token, Wait};

/// See the module.
pub struct NoopIo {
    arena: Arena,
    manual: bool,
    submitted: Vec<Token>,
    completed: VecDeque<Completion>,
    /// Bytes to be received, and how many of them were, a connection.
    incoming: Vec<(Vec<u8>, usize)>,
    waiting: Vec<Option<(Piece, bool)>>,
    sent_bytes: u64,
}

impl NoopIo {
    /// A device that completes everything at the next poll.
    ///
    /// # Panics
    /// When the system has no memory to give.
    #[must_use]
    pub fn instant(memory_bytes: usize) -> NoopIo {
        NoopIo {
            arena: Arena::new(memory_bytes).expect("memory for a benchmark"),
            manual: false,
            submitted: Vec::new(),
            completed: VecDeque::new(),
            incoming: Vec::new(),
            waiting: Vec::new(),
            sent_bytes: 0,
        }
    }

    /// A device that completes nothing and remembers what was submitted.
    #[must_use]
    pub fn manual(memory_bytes: usize) -> NoopIo {
        NoopIo { manual: true, ..NoopIo::instant(memory_bytes) }
    }

    /// What was submitted since the last call.
    pub fn submitted(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.submitted)
    }

    /// A new connection, which the core learns of at the next poll.
    pub fn connect(&mut self) -> ConnectionId {
        self.incoming.push((Vec::new(), 0));
        self.waiting.push(None);
        let id = self.incoming.len() as u32 - 1;
        self.completed.push_back(Completion { token: Token::Accept, result: Ok(id) });
        ConnectionId(id)
    }

    /// Bytes that the connection receives next; what it received before is forgotten.
    pub fn feed(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let (incoming, at) = &mut self.incoming[connection.0 as usize];
        incoming.drain(..std::mem::take(at));
        incoming.extend_from_slice(bytes);
        self.deliver(connection);
    }

    /// Bytes that the core has sent.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    fn finish(&mut self, token: Token, result: u32) {
        self.submitted.push(token);
        if !self.manual {
            self.submitted.clear();
            self.completed.push_back(Completion { token, result: Ok(result) });
        }
    }

    fn deliver(&mut self, connection: ConnectionId) {
        let (incoming, at) = &mut self.incoming[connection.0 as usize];
        let left = incoming.len() - *at;
        let place = &mut self.waiting[connection.0 as usize];
        let Some((into, all)) = *place else { return };
        let count = left.min(into.bytes as usize);
        if count == 0 || (all && count < into.bytes as usize) {
            return;
        }
        *place = None;
        let start = into.start as usize;
        let target = &mut self.arena.bytes_mut(into.buffer)[start..start + count];
        target.copy_from_slice(&incoming[*at..*at + count]);
        *at += count;
        let token = Token::Receive(connection);
        self.completed.push_back(Completion { token, result: Ok(count as u32) });
    }
}

impl Io for NoopIo {
    fn memory(&self) -> &Arena {
        &self.arena
    }

    fn memory_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    fn receive(&mut self, connection: ConnectionId, into: Piece, all: bool) {
        self.waiting[connection.0 as usize] = Some((into, all));
        self.deliver(connection);
    }

    fn send(&mut self, connection: ConnectionId, pieces: &[Piece]) {
        let bytes = pieces.iter().map(|piece| piece.bytes).sum();
        self.sent_bytes += u64::from(bytes);
        self.finish(Token::Send(connection), bytes);
    }

    fn shutdown(&mut self, connection: ConnectionId) {
        if self.waiting[connection.0 as usize].take().is_some() {
            self.finish(Token::Receive(connection), 0);
        }
        self.finish(Token::Shutdown(connection), 0);
    }

    fn close(&mut self, connection: ConnectionId) {
        self.finish(Token::Close(connection), 0);
    }

    fn write(&mut self, token: Token, _file: FileId, _at: u64, from: Piece, _durable: bool) {
        self.finish(token, from.bytes);
    }

    fn sync(&mut self, token: Token, _file: FileId) {
        self.finish(token, 0);
    }

    fn read(&mut self, token: Token, _file: FileId, _at: u64, into: Piece) {
        self.finish(token, into.bytes);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, _wait: Wait) -> Result<(), Errno> {
        completions.extend(self.completed.drain(..));
        Ok(())
    }
}
