//! A lane: the batches of one producer to one shard, in order, until each is answered.
//!
//! It decides what an answer means and what is sent again, and knows neither sockets nor clocks.
//! Sequences are given when a batch is sent: a batch that was refused for good leaves no gap. When
//! something must be sent again, everything from there on is, once all that is under way has
//! been answered: so batches never overtake each other.
//!
//! **Invariant:** a batch that may have been stored is sent again under the same identity and
//! sequence or not at all, and no other batch is sent under them: else the node would store the
//! first twice, or take the other for a repetition and never store it. What is in a batch changes only
//! after an answer that proves that it was not stored.

use std::collections::VecDeque;

use thalweg_wire::error::{ErrorCode, Refusal};
use thalweg_wire::hash_range::HashRange;
use thalweg_wire::ids::{Epoch, ProducerId, ShardId};
use thalweg_wire::limits::PRODUCER_WINDOW;
use thalweg_wire::produce::{Ack, Stored, may_repeat};

/// Wait before an answer that asks for another route is acted on, microseconds.
const ROUTE_WAIT_US: u64 = 20_000;
/// First and longest wait after a refusal for want of memory or space, microseconds. What is wanted
/// is mostly there again within milliseconds: a longer wait would be the longest part of a
/// batch's latency.
const BUSY_WAIT_US: (u64, u64) = (2_000, 16_000);

/// How a batch of the lane stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// To be sent.
    Waits,
    /// Sent, not answered.
    Sent,
    /// Answered; it leaves when all before it have.
    Done(Result<Stored, Refusal>),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    batch: u32,
    sequence: u64,
    stage: Stage,
    /// Whether it was sent before in a way whose outcome is not known.
    doubtful: bool,
    /// Whether it was last sent under an identity that was given up since.
    former: bool,
}

/// How a batch stands that may have been stored under an identity that was given up.
const UNKNOWN: Stage = Stage::Done(Err(Refusal { code: ErrorCode::ProducerUnknown, hint: 0 }));

/// The refusals that a node gives only after it found that it had not stored the batch before.
fn proves_not_stored(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::SequenceGap
            | ErrorCode::Throttled
            | ErrorCode::PartlyThrottled
            | ErrorCode::HashOutOfRange
    )
}

/// What the lane's driver must do after an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Nothing.
    None,
    /// Find out anew where the shard is.
    RefreshRoute,
    /// The node does not remember the producer, or how far it came cannot be known any more: call
    /// [`Lane::change_producer`].
    ChangeProducer,
}

/// A batch that left the lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left {
    /// The driver's name for it.
    pub batch: u32,
    /// Its outcome.
    pub result: Result<Stored, Refusal>,
    /// Whether a refusal leaves open if the batch was stored by an earlier try.
    pub outcome_unknown: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Lane {
    /// The shard.
    pub shard: ShardId,
    /// Its hash keys.
    pub range: HashRange,
    /// Epoch of the route.
    pub epoch: Epoch,
    /// The producer's identity on this shard.
    pub producer: ProducerId,
    next_sequence: u64,
    entries: VecDeque<Entry>,
    sent: usize,
    /// Whether something must be sent again: nothing is sent until `sent` is zero.
    rewind: bool,
    not_before_us: u64,
    /// Wait after the next refusal for want of memory or space.
    busy_wait_us: u64,
    /// Whether throttled batches are sent again, or reported.
    repeat_throttled: bool,
    /// Whether a closed extent is the end of its shard, or another will follow it.
    ends_when_closed: bool,
    /// Since when nothing was stored and batches were refused in ways that may pass.
    refused_since_us: Option<u64>,
    /// How long such refusals are answered by sending again.
    patience_us: u64,
}

impl Lane {
    /// An empty lane.
    #[must_use]
    pub fn new(
        shard: ShardId,
        range: HashRange,
        epoch: Epoch,
        producer: ProducerId,
        repeat_throttled: bool,
    ) -> Lane {
        Lane {
            shard,
            range,
            epoch,
            producer,
            next_sequence: 0,
            entries: VecDeque::with_capacity(PRODUCER_WINDOW),
            sent: 0,
            rewind: false,
            not_before_us: 0,
            busy_wait_us: BUSY_WAIT_US.0,
            repeat_throttled,
            ends_when_closed: false,
            refused_since_us: None,
            patience_us: u64::MAX,
        }
    }

    /// Limits for how long batches are sent again after refusals that may pass, such as for want of
    /// space or of an open extent; then they are reported. Without, for ever. Throttling is no such
    /// refusal: it says itself when it ends.
    pub fn set_patience_us(&mut self, patience_us: u64) {
        self.patience_us = patience_us;
    }

    /// Has batches that a closed extent refuses reported at once: whoever drives the lane knows where
    /// a shard's records go when it has ended. Without, they are sent again until another extent is
    /// open.
    pub fn end_when_closed(&mut self) {
        self.ends_when_closed = true;
    }

    /// Whether the window is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= PRODUCER_WINDOW
    }

    /// Whether nothing waits and nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether nothing is under way: whatever was sent has been answered or was lost.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.sent == 0
    }

    /// Takes a batch in.
    ///
    /// # Panics
    /// When the window is full.
    pub fn push(&mut self, batch: u32) {
        assert!(!self.is_full(), "a lane's window is asked for first");
        let stage = Stage::Waits;
        let entry = Entry { batch, sequence: 0, stage, doubtful: false, former: false };
        self.entries.push_back(entry);
    }

    /// The next batch to send, with its sequence; it counts as sent.
    pub fn next_to_send(&mut self, now_us: u64) -> Option<(u32, u64)> {
        if self.rewind {
            if self.sent > 0 {
                return None;
            }
            self.rewind = false;
        }
        if now_us < self.not_before_us {
            return None;
        }
        let sequence = self.next_free_sequence();
        let entry = self.entries.iter_mut().find(|entry| entry.stage == Stage::Waits)?;
        entry.stage = Stage::Sent;
        entry.former = false;
        entry.sequence = sequence;
        self.next_sequence = sequence + 1;
        self.sent += 1;
        Some((entry.batch, entry.sequence))
    }

    /// The next sequence that no stored batch has: answers overtake each other, so that a later
    /// batch can be known to be stored when an earlier one is sent again.
    fn next_free_sequence(&self) -> u64 {
        let is_stored = |sequence: u64| {
            self.entries.iter().any(|entry| {
                let is_done = matches!(entry.stage, Stage::Done(Ok(_)));
                is_done && !entry.former && entry.sequence == sequence
            })
        };
        let mut sequence = self.next_sequence;
        while is_stored(sequence) {
            sequence += 1;
        }
        sequence
    }

    /// When something may be sent that may not be now, if anything waits for time.
    #[must_use]
    pub fn waits_until_us(&self, now_us: u64) -> Option<u64> {
        let waits = self.entries.iter().any(|entry| entry.stage == Stage::Waits);
        (waits && self.not_before_us > now_us).then_some(self.not_before_us)
    }

    /// The batch that was sent as `sequence` was answered.
    pub fn on_ack(&mut self, batch: u32, ack: &Ack, now_us: u64) -> Reaction {
        let Some(place) = self.place_of_sent(batch) else {
            // An answer of a connection that was given up.
            return Reaction::None;
        };
        self.sent -= 1;
        let refusal = match ack.result {
            Ok(stored) => {
                self.entries[place].stage = Stage::Done(Ok(stored));
                self.busy_wait_us = BUSY_WAIT_US.0;
                self.refused_since_us = None;
                return Reaction::None;
            }
            Err(refusal) => refusal,
        };
        self.on_refusal(place, refusal, now_us)
    }

    /// The shard's limits take some of the batch's records, which are independent, and not others:
    /// it is sent again at once, under the sequence that it left free. Whether it is: then the driver
    /// takes those others out before it sends anything. Not when the answer is of a connection that was
    /// given up, and not when nothing was stored for too long: then the batch leaves with this refusal.
    pub fn on_partly_throttled(&mut self, batch: u32, refusal: Refusal, now_us: u64) -> bool {
        let Some(place) = self.place_of_sent(batch) else { return false };
        self.sent -= 1;
        // Only what is not stored is told this.
        self.entries[place].doubtful = false;
        self.repeat(place, refusal, now_us, 0).is_none()
    }

    fn place_of_sent(&self, batch: u32) -> Option<usize> {
        self.entries.iter().position(|entry| entry.batch == batch && entry.stage == Stage::Sent)
    }

    fn on_refusal(&mut self, place: usize, refusal: Refusal, now_us: u64) -> Reaction {
        if proves_not_stored(refusal.code) {
            self.entries[place].doubtful = false;
        }
        match refusal.code {
            ErrorCode::Throttled if !self.repeat_throttled => self.give_up(place, refusal),
            ErrorCode::Throttled => {
                self.refused_since_us = None;
                self.send_again(place, now_us.saturating_add(refusal.hint));
                Reaction::None
            }
            code if may_repeat(code) => {
                let wait_us = self.busy_wait_us;
                if now_us >= self.not_before_us {
                    // The first refusal of a round: the wait grows with rounds, not with batches.
                    self.busy_wait_us = (wait_us * 2).min(BUSY_WAIT_US.1);
                }
                self.repeat(place, refusal, now_us, wait_us).unwrap_or(Reaction::None)
            }
            ErrorCode::SequenceGap => {
                let lost = self.misses_what_was_stored(place, refusal.hint);
                self.send_again(place, now_us);
                if lost { Reaction::ChangeProducer } else { Reaction::None }
            }
            ErrorCode::StaleEpoch if Epoch(refusal.hint) >= self.epoch => {
                self.epoch = Epoch(refusal.hint);
                self.repeat(place, refusal, now_us, 0).unwrap_or(Reaction::None)
            }
            ErrorCode::ExtentClosed if self.ends_when_closed => self.give_up(place, refusal),
            // With a newer route than the node's: its shard went elsewhere.
            ErrorCode::StaleEpoch
            | ErrorCode::WrongCore
            | ErrorCode::UnknownShard
            | ErrorCode::ExtentClosed
            | ErrorCode::LogFailed
            | ErrorCode::Stopping => {
                self.entries[place].doubtful |= refusal.code == ErrorCode::LogFailed;
                let given_up = self.repeat(place, refusal, now_us, ROUTE_WAIT_US);
                given_up.unwrap_or(Reaction::RefreshRoute)
            }
            ErrorCode::ProducerUnknown => self.on_producer_unknown(place, refusal, now_us),
            ErrorCode::DuplicateForgotten => {
                // Something was stored under its sequence; what, cannot be known any more.
                self.entries[place].doubtful = true;
                self.give_up(place, refusal)
            }
            _ => self.give_up(place, refusal),
        }
    }

    /// Whether the node, which expects this sequence, lost batches that it had acknowledged: nothing
    /// that is here could ever close the gap.
    fn misses_what_was_stored(&self, place: usize, expected: u64) -> bool {
        let Entry { sequence, former, .. } = self.entries[place];
        let is_first =
            self.entries.range(..place).all(|entry| matches!(entry.stage, Stage::Done(_)));
        is_first && !former && expected < sequence.min(self.next_sequence)
    }

    fn on_producer_unknown(&mut self, place: usize, refusal: Refusal, now_us: u64) -> Reaction {
        let Entry { doubtful, former, .. } = self.entries[place];
        if !former && self.waits_before(place) {
            // A batch before it was refused, and with it the sequence that would have made the
            // producer known.
            self.send_again(place, now_us);
            return Reaction::None;
        }
        if doubtful {
            // Whether it was stored by an earlier try cannot be known any more.
            self.give_up(place, refusal);
        } else {
            self.send_again(place, now_us);
        }
        if former { Reaction::None } else { Reaction::ChangeProducer }
    }

    /// Whether a batch before this place, or a sequence that became free, will make the producer
    /// known yet. Not once the identity was given up: under another, what may have been stored
    /// must not be sent again.
    fn waits_before(&self, place: usize) -> bool {
        let before = || self.entries.range(..place);
        let given_up = |entry: &Entry| match entry.stage {
            Stage::Done(Err(refusal)) => refusal.code == ErrorCode::ProducerUnknown,
            _ => false,
        };
        let waits = |entry: &Entry| matches!(entry.stage, Stage::Waits | Stage::Sent);
        let sequence_is_free = self.next_sequence <= self.entries[place].sequence;
        !before().any(given_up) && (before().any(waits) || sequence_is_free)
    }

    fn give_up(&mut self, place: usize, refusal: Refusal) -> Reaction {
        let Entry { sequence, doubtful, former, .. } = self.entries[place];
        self.entries[place].stage = Stage::Done(Err(refusal));
        self.refused_since_us = None;
        self.next_sequence = self.next_sequence.min(sequence);
        self.rewind = true;
        // The sequence of a batch that is not stored stays free: what was sent behind it will be
        // refused and sent again. Of one that may be, nobody knows.
        if doubtful && !former { Reaction::ChangeProducer } else { Reaction::None }
    }

    fn send_again(&mut self, place: usize, not_before_us: u64) {
        let sequence = self.entries[place].sequence;
        self.entries[place].stage = Stage::Waits;
        self.next_sequence = self.next_sequence.min(sequence);
        self.not_before_us = self.not_before_us.max(not_before_us);
        self.rewind = true;
    }

    /// Sends again after a refusal that may pass; gives up, with a reaction, if it has not for too
    /// long.
    fn repeat(
        &mut self,
        place: usize,
        refusal: Refusal,
        now_us: u64,
        wait_us: u64,
    ) -> Option<Reaction> {
        let since_us = *self.refused_since_us.get_or_insert(now_us);
        if now_us - since_us >= self.patience_us {
            return Some(self.give_up(place, refusal));
        }
        self.send_again(place, now_us + wait_us);
        None
    }

    /// A batch that counts as sent never left: its connection was gone before. Nothing of it can
    /// have been stored by this try. To be told before [`Lane::on_connection_lost`].
    pub fn on_not_sent(&mut self, batch: u32) {
        let is_it = |entry: &&mut Entry| entry.batch == batch && entry.stage == Stage::Sent;
        let Some(entry) = self.entries.iter_mut().find(is_it) else { return };
        entry.stage = if entry.former && entry.doubtful { UNKNOWN } else { Stage::Waits };
        if !entry.former {
            // Else its sequence was counted under an identity that is no more.
            self.next_sequence = self.next_sequence.min(entry.sequence);
        }
        self.sent -= 1;
    }

    /// Nobody can be reached who would take the batches: those that wait are given up. They leave
    /// with this refusal; what may have been stored by an earlier try, with its outcome unknown.
    ///
    /// # Panics
    /// When something is under way: it is answered, or lost, first.
    pub fn give_up_waiting(&mut self, refusal: Refusal) -> Reaction {
        assert!(self.is_quiet(), "what is under way is answered or lost first");
        let mut may_be_stored = false;
        for entry in self.entries.iter_mut().filter(|entry| entry.stage == Stage::Waits) {
            entry.stage = Stage::Done(Err(refusal));
            may_be_stored |= entry.doubtful;
        }
        self.refused_since_us = None;
        if may_be_stored { Reaction::ChangeProducer } else { Reaction::None }
    }

    /// The connection is gone: whatever was sent is to be sent again, and may have been stored.
    pub fn on_connection_lost(&mut self) {
        for entry in &mut self.entries {
            if entry.stage == Stage::Sent {
                self.next_sequence = self.next_sequence.min(entry.sequence);
                entry.doubtful = true;
                entry.stage = if entry.former { UNKNOWN } else { Stage::Waits };
            }
        }
        self.sent = 0;
        self.rewind = false;
    }

    /// Goes on under a new identity. What waits and may have been stored under the old one is given
    /// up; what is under way is answered first.
    pub fn change_producer(&mut self, producer: ProducerId) {
        self.producer = producer;
        self.next_sequence = 0;
        self.rewind = self.sent > 0;
        for entry in &mut self.entries {
            match entry.stage {
                Stage::Sent | Stage::Done(_) => entry.former = true,
                Stage::Waits if entry.doubtful => entry.stage = UNKNOWN,
                Stage::Waits => {}
            }
        }
    }

    /// The oldest batch, once it and all before it are answered.
    pub fn take_done(&mut self) -> Option<Left> {
        let entry = *self.entries.front()?;
        let Stage::Done(result) = entry.stage else { return None };
        self.entries.pop_front();
        if result.is_ok() && !entry.former {
            self.next_sequence = self.next_sequence.max(entry.sequence + 1);
        }
        let outcome_unknown = result.is_err() && entry.doubtful;
        Some(Left { batch: entry.batch, result, outcome_unknown })
    }
}

#[cfg(test)]
mod tests;
