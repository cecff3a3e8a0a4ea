//! Answers that wait for the log: none leaves before what it says is durable.
//!
//! A log's answers wait in one queue, in the order of its positions; as the durable position
//! advances they leave from the front. So acks of a shard leave in the order of its offsets, and
//! an answer that reveals state (a repetition's offset, an extent's end) waits like any other.

use thalweg_wire::codec::put;
use thalweg_wire::control::ControlAnswer;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use thalweg_wire::ids::Lsn;
use thalweg_wire::produce::{ACK_BYTES, Ack, encode_verdicts};

use super::admission::Admitted;
use super::connection::ConnectionKey;
use super::machine::Core;
use crate::io::Io;
use crate::log::segments::Log;

/// A produce frame on its way to its answer.
#[derive(Debug)]
pub struct ProduceInProgress {
    connection: ConnectionKey,
    /// The answer's frame, filled in as batches are decided.
    answer: Vec<u8>,
    undecided: usize,
}

impl ProduceInProgress {
    /// A frame of `batches` batches, none of them decided. `answer` is memory used before.
    #[must_use]
    pub fn new(
        connection: ConnectionKey,
        correlation: u64,
        batches: usize,
        mut answer: Vec<u8>,
    ) -> ProduceInProgress {
        let payload_bytes = (batches * ACK_BYTES) as u32;
        let kind = FrameKind::ProduceAnswer;
        let header = FrameHeader { kind, payload_bytes, items: batches as u32, correlation };
        answer.clear();
        answer.resize(header.frame_bytes(), 0);
        put(&mut answer, 0, header.encode());
        ProduceInProgress { connection, answer, undecided: batches }
    }

    /// Appends verdicts. Those of a frame come in the order of its batches: a batch that is refused
    /// is when the frame is served.
    fn push_verdicts(&mut self, verdicts: &[u8]) {
        self.answer.extend_from_slice(verdicts);
        let header = self.answer.first_chunk().expect("a frame begins with its header");
        let mut header = FrameHeader::decode(header).expect("as made");
        header.payload_bytes += verdicts.len() as u32;
        put(&mut self.answer, 0, header.encode());
    }
}

/// An answer that waits.
#[derive(Debug)]
pub struct Pending {
    lsn: Lsn,
    what: Waiting,
}

#[derive(Debug)]
enum Waiting {
    Batch {
        produce: u32,
        item: u32,
        admitted: Admitted,
        /// When it was appended.
        since_us: u64,
    },
    Control {
        connection: ConnectionKey,
        correlation: u64,
        answer: ControlAnswer,
        /// Logs to wait for after this one.
        others: Vec<u32>,
    },
}

/// What is committed together.
#[derive(Clone, Copy, Default)]
struct Together {
    batches: u64,
    records: u64,
    bytes: u64,
}

impl Together {
    fn add(&mut self, admitted: &Admitted) {
        self.batches += 1;
        self.records += u64::from(admitted.records);
        self.bytes += u64::from(admitted.bytes);
    }
}

impl<I: Io> Core<I> {
    /// Lets the answer of a stored batch wait for its position.
    pub(super) fn wait_for_commit(&mut self, produce: u32, item: u32, admitted: Admitted) {
        let what = Waiting::Batch { produce, item, admitted, since_us: self.time.now_us };
        self.pending[admitted.log as usize].push_back(Pending { lsn: admitted.lsn, what });
    }

    /// Lets the answer of a command wait for what it reveals: for a position of one log, and for
    /// all that was appended to the `others`.
    pub(super) fn answer_when_durable(
        &mut self,
        log: u32,
        lsn: Lsn,
        others: Vec<u32>,
        connection: ConnectionKey,
        correlation: u64,
        answer: ControlAnswer,
    ) {
        if let Some(connection) = self.connection(connection) {
            connection.requests += 1;
        }
        let what = Waiting::Control { connection, correlation, answer, others };
        self.pending[log as usize].push_back(Pending { lsn, what });
    }

    /// Answers what has become durable. After a failure nothing is acked: what waits is refused.
    pub(super) fn acknowledge(&mut self, log: usize) {
        let durable = self.logs[log].durable();
        let failed = self.logs[log].failed().is_some();
        if self.shards.has_leaving() {
            self.unlist_deleted();
        }
        let mut committed_now = Together::default();
        while let Some(pending) =
            self.pending[log].pop_front_if(|pending| failed || pending.lsn <= durable)
        {
            let committed = pending.lsn <= durable;
            match pending.what {
                Waiting::Batch { produce, item, admitted, since_us } => {
                    if admitted.bytes > 0 {
                        let account = self.shards.at(admitted.shard).account;
                        let bytes = u64::from(admitted.bytes);
                        self.accounts.left(account, bytes, self.time.now_us);
                    }
                    let ack = if committed {
                        self.commit(&admitted);
                        // A repetition was committed before.
                        if admitted.bytes > 0 {
                            committed_now.add(&admitted);
                            let took_us = self.time.now_us - since_us;
                            self.distributions.commit_us.observe(took_us);
                        }
                        Ack { result: admitted.answer }
                    } else {
                        Ack::refused(ErrorCode::LogFailed)
                    };
                    self.decide(produce, item, ack);
                }
                Waiting::Control { connection, correlation, mut answer, mut others } => {
                    let logs = &self.logs;
                    let lacks = |log: &Log| log.durable() < log.appended();
                    others.retain(|log| lacks(&logs[*log as usize]));
                    let next = others.pop();
                    let next_failed = next.is_some_and(|log| logs[log as usize].failed().is_some());
                    if let Some(next) = next.filter(|_| committed && !next_failed) {
                        let lsn = self.logs[next as usize].appended();
                        let what = Waiting::Control { connection, correlation, answer, others };
                        self.pending[next as usize].push_back(Pending { lsn, what });
                        continue;
                    }
                    if !committed || next_failed {
                        answer.status = Err(ErrorCode::LogFailed.into());
                    }
                    self.answer_control(connection, correlation, &answer);
                    self.request_done(connection);
                }
            }
        }
        if committed_now.batches > 0 {
            self.distributions.commit_batches.observe(committed_now.batches);
            self.distributions.commit_records.observe(committed_now.records);
            self.distributions.commit_bytes.observe(committed_now.bytes);
        }
    }

    /// Readers may see the batch from now on.
    fn commit(&mut self, admitted: &Admitted) {
        let Ok(stored) = admitted.answer else { return };
        if stored.duplicate {
            return;
        }
        let shard = self.shards.at_mut(admitted.shard);
        shard.committed = stored.first_offset.after(u64::from(admitted.records));
        shard.committed_ms = stored.append_time_ms;
        if !shard.waiting.is_empty() {
            let waiting = std::mem::take(&mut shard.waiting);
            self.wake_fetches(waiting);
        }
    }

    /// Decides one batch of a frame; the last one sends the answer.
    pub(super) fn decide(&mut self, produce: u32, item: u32, ack: Ack) {
        if let Err(refusal) = &ack.result {
            self.count_refusal(refusal.code);
        }
        self.answer_item(produce, item, &ack.encode());
    }

    /// Decides a batch of which some records find no tokens.
    pub(super) fn decide_partly(&mut self, produce: u32, item: u32, wait_us: u64, taken: &[bool]) {
        self.count_refusal(ErrorCode::PartlyThrottled);
        let (ack, verdicts) = encode_verdicts(wait_us, taken);
        self.produces[produce as usize].push_verdicts(&verdicts);
        self.answer_item(produce, item, &ack);
    }

    fn answer_item(&mut self, produce: u32, item: u32, ack: &[u8; ACK_BYTES]) {
        let frame = &mut self.produces[produce as usize];
        put(&mut frame.answer, FRAME_HEADER_BYTES + item as usize * ACK_BYTES, ack);
        frame.undecided -= 1;
        if frame.undecided == 0 {
            let done = self.produces.remove(produce as usize);
            self.push_output(done.connection, &done.answer);
            self.request_done(done.connection);
            self.spare_answers.push(done.answer);
        }
    }

    /// A request of the connection was answered: it may send another.
    pub(super) fn request_done(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connection(key) {
            connection.requests -= 1;
        }
    }
}
