//! What a lane sends, again and in which order, whatever is answered.

use super::*;
use thalweg_wire::ids::{Offset, StreamId};

fn lane() -> Lane {
    let shard = ShardId { stream: StreamId(1), index: 0 };
    Lane::new(shard, HashRange::FULL, Epoch(1), ProducerId(7), true)
}

fn stored(offset: u64) -> Ack {
    let result = Ok(Stored { first_offset: Offset(offset), append_time_ms: 0, duplicate: false });
    Ack { result }
}

fn send_all(lane: &mut Lane, now_us: u64) -> Vec<(u32, u64)> {
    std::iter::from_fn(|| lane.next_to_send(now_us)).collect()
}

#[test]
fn batches_leave_in_order_whatever_the_order_of_answers() {
    let mut lane = lane();
    (10..13).for_each(|batch| lane.push(batch));
    assert_eq!(send_all(&mut lane, 0), [(10, 0), (11, 1), (12, 2)]);
    lane.on_ack(12, &stored(2), 0);
    lane.on_ack(10, &stored(0), 0);
    assert_eq!(lane.take_done().unwrap().batch, 10);
    assert_eq!(lane.take_done(), None);
    lane.on_ack(11, &stored(1), 0);
    assert_eq!(lane.take_done().unwrap().batch, 11);
    assert_eq!(lane.take_done().unwrap().batch, 12);
    assert!(lane.is_empty());
}

#[test]
fn a_throttled_batch_and_those_behind_it_are_sent_again_in_order() {
    let mut lane = lane();
    (10..13).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    lane.on_ack(10, &stored(0), 0);
    lane.on_ack(11, &Ack::refused(Refusal::new(ErrorCode::Throttled, 500)), 0);
    assert_eq!(send_all(&mut lane, 1000), [], "12 is still under way");
    lane.on_ack(12, &Ack::refused(Refusal::new(ErrorCode::SequenceGap, 1)), 0);
    assert_eq!(send_all(&mut lane, 499), []);
    assert_eq!(lane.waits_until_us(499), Some(500));
    assert_eq!(send_all(&mut lane, 500), [(11, 1), (12, 2)]);
}

/// The first batch of a producer was throttled while the second was under way: the node
/// did not know the producer yet, and the second was reported as of unknown outcome.
#[test]
fn a_producer_that_could_not_become_known_is_not_unknown() {
    let mut lane = lane();
    lane.push(10);
    lane.push(11);
    send_all(&mut lane, 0);
    lane.on_ack(10, &Ack::refused(Refusal::new(ErrorCode::Throttled, 500)), 0);
    lane.on_ack(11, &Ack::refused(ErrorCode::ProducerUnknown), 0);
    assert_eq!(send_all(&mut lane, 500), [(10, 0), (11, 1)]);
}

#[test]
fn a_refusal_for_good_leaves_no_gap() {
    let mut lane = lane();
    (10..13).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    lane.on_ack(10, &Ack::refused(ErrorCode::BatchInvalid), 0);
    lane.on_ack(11, &Ack::refused(Refusal::new(ErrorCode::SequenceGap, 0)), 0);
    lane.on_ack(12, &Ack::refused(Refusal::new(ErrorCode::SequenceGap, 0)), 0);
    let left = lane.take_done().unwrap();
    assert_eq!((left.batch, left.outcome_unknown), (10, false));
    assert_eq!(send_all(&mut lane, 0), [(11, 0), (12, 1)]);
}

/// A node whose disk had lost acknowledged batches asked for them again and again, and the lane
/// sent it those that it had, for ever.
#[test]
fn a_gap_that_cannot_be_closed_makes_a_new_producer() {
    let mut lane = lane();
    lane.push(10);
    send_all(&mut lane, 0);
    lane.on_ack(10, &stored(0), 0);
    lane.take_done();
    lane.push(11);
    lane.push(12);
    assert_eq!(send_all(&mut lane, 0), [(11, 1), (12, 2)]);
    let gap = Ack::refused(Refusal::new(ErrorCode::SequenceGap, 0));
    assert_eq!(lane.on_ack(12, &gap, 0), Reaction::None, "11 may close it");
    assert_eq!(lane.on_ack(11, &gap, 0), Reaction::ChangeProducer);
    lane.change_producer(ProducerId(8));
    assert_eq!(send_all(&mut lane, 0), [(11, 0), (12, 1)]);
}

#[test]
fn after_a_lost_connection_the_same_sequences_are_sent_again() {
    let mut lane = lane();
    (10..13).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    lane.on_ack(10, &stored(0), 0);
    lane.on_connection_lost();
    assert_eq!(send_all(&mut lane, 0), [(11, 1), (12, 2)]);
    lane.on_ack(11, &Ack::refused(Refusal::new(ErrorCode::StaleEpoch, 2)), 0);
    lane.on_ack(12, &Ack::refused(Refusal::new(ErrorCode::StaleEpoch, 2)), 0);
    assert_eq!(lane.epoch, Epoch(2));
    assert_eq!(send_all(&mut lane, 0), [(11, 1), (12, 2)]);
    lane.on_ack(11, &Ack::refused(ErrorCode::ProducerUnknown), 0);
    lane.on_ack(12, &Ack::refused(ErrorCode::ProducerUnknown), 0);
    lane.take_done().unwrap();
    assert!(lane.take_done().unwrap().outcome_unknown);
    lane.change_producer(ProducerId(8));
    lane.push(13);
    lane.take_done().unwrap();
    assert_eq!(send_all(&mut lane, 0), [(13, 0)]);
}

/// Two batches of unknown outcome, in frames of their own, to a node that had forgotten the
/// producer. The first answer changed the identity; the second then looked like that of a
/// batch behind a free sequence, and was sent again under the new identity: stored twice.
#[test]
fn what_may_have_been_stored_is_not_sent_again_under_another_identity() {
    let mut lane = lane();
    (10..13).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    lane.on_ack(10, &stored(0), 0);
    lane.take_done().unwrap();
    lane.on_connection_lost();
    assert_eq!(send_all(&mut lane, 0), [(11, 1), (12, 2)]);
    lane.on_ack(11, &Ack::refused(ErrorCode::ProducerUnknown), 0);
    assert!(lane.take_done().unwrap().outcome_unknown);
    lane.change_producer(ProducerId(8));
    lane.on_ack(12, &Ack::refused(ErrorCode::ProducerUnknown), 0);
    assert!(lane.take_done().unwrap().outcome_unknown);
    assert_eq!(send_all(&mut lane, 0), []);
}

/// Answers of two frames overtook each other, then the connection was lost between them: a batch
/// was sent again under the sequence of one that was stored, the node took it for a repetition,
/// and it was acknowledged without being there.
#[test]
fn the_sequence_of_a_stored_batch_is_not_given_again() {
    let mut lane = lane();
    (10..14).for_each(|batch| lane.push(batch));
    assert_eq!(send_all(&mut lane, 0), [(10, 0), (11, 1), (12, 2), (13, 3)]);
    lane.on_ack(11, &stored(1), 0);
    lane.on_connection_lost();
    assert_eq!(send_all(&mut lane, 0), [(10, 0), (12, 2), (13, 3)]);
    lane.push(14);
    assert_eq!(send_all(&mut lane, 0), [(14, 4)]);
}

/// As above, and the stored batch had left the lane when the next one was sent.
#[test]
fn the_sequence_of_a_stored_batch_that_left_is_not_given_again() {
    let mut lane = lane();
    lane.push(10);
    lane.push(11);
    send_all(&mut lane, 0);
    lane.on_ack(11, &stored(1), 0);
    lane.on_connection_lost();
    assert_eq!(send_all(&mut lane, 0), [(10, 0)]);
    lane.on_ack(10, &stored(0), 0);
    assert_eq!(lane.take_done().unwrap().batch, 10);
    assert_eq!(lane.take_done().unwrap().batch, 11);
    lane.push(12);
    assert_eq!(send_all(&mut lane, 0), [(12, 2)]);
}

/// A batch of unknown outcome was given up, and the next one sent under its sequence: if the
/// first had been stored after all, the second was taken for its repetition.
#[test]
fn the_sequence_of_a_batch_that_may_be_stored_is_not_given_again() {
    for code in [ErrorCode::Malformed, ErrorCode::LogFailed, ErrorCode::DuplicateForgotten] {
        let mut lane = lane();
        lane.set_patience_us(0);
        lane.push(10);
        lane.push(11);
        send_all(&mut lane, 0);
        lane.on_connection_lost();
        send_all(&mut lane, 0);
        let reaction = lane.on_ack(10, &Ack::refused(code), 0);
        assert_eq!(reaction, Reaction::ChangeProducer, "{code:?}");
        assert!(lane.take_done().unwrap().outcome_unknown);
    }
}

#[test]
fn what_was_not_stored_goes_on_under_the_new_identity() {
    let mut lane = lane();
    lane.push(10);
    send_all(&mut lane, 0);
    lane.on_ack(10, &stored(0), 0);
    lane.take_done().unwrap();
    (11..14).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    // Forgotten while 11 to 13 were on their way, which never were before.
    let unknown = Ack::refused(ErrorCode::ProducerUnknown);
    assert_eq!(lane.on_ack(12, &unknown, 0), Reaction::None, "11 may make it known");
    assert_eq!(lane.on_ack(11, &unknown, 0), Reaction::ChangeProducer);
    lane.change_producer(ProducerId(8));
    assert_eq!(send_all(&mut lane, 0), [], "13 is still under way");
    assert_eq!(lane.on_ack(13, &unknown, 0), Reaction::None);
    assert_eq!(send_all(&mut lane, 0), [(11, 0), (12, 1), (13, 2)]);
}

#[test]
fn a_connection_lost_under_a_former_identity_leaves_the_outcome_unknown() {
    let mut lane = lane();
    lane.push(10);
    send_all(&mut lane, 0);
    lane.on_ack(10, &stored(0), 0);
    lane.take_done().unwrap();
    (11..13).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    lane.on_ack(11, &Ack::refused(ErrorCode::ProducerUnknown), 0);
    lane.change_producer(ProducerId(8));
    lane.on_connection_lost();
    assert_eq!(send_all(&mut lane, 0), [(11, 0)]);
    lane.on_ack(11, &stored(1), 0);
    assert!(lane.take_done().unwrap().result.is_ok());
    assert!(lane.take_done().unwrap().outcome_unknown, "12 was sent under the former one");
    assert!(lane.is_empty());
}

#[test]
fn a_refusal_that_does_not_pass_is_reported_in_the_end() {
    let mut lane = lane();
    lane.set_patience_us(1_000_000);
    lane.push(10);
    let mut now_us = 0;
    let mut tries = 0;
    while let Some((batch, _)) = lane.next_to_send(now_us) {
        lane.on_ack(batch, &Ack::refused(ErrorCode::NoSpace), now_us);
        tries += 1;
        now_us = lane.waits_until_us(now_us).unwrap_or(now_us);
    }
    let left = lane.take_done().unwrap();
    assert_eq!(left.result, Err(ErrorCode::NoSpace.into()));
    assert!(!left.outcome_unknown);
    assert!((50..80).contains(&tries), "{tries} tries: waits grow, to 16 ms");
    assert!((1_000_000..1_020_000).contains(&now_us));
}

/// Eight batches refused at once doubled the wait eight times, to a quarter of a second.
#[test]
fn batches_refused_together_wait_as_long_as_one() {
    let mut lane = lane();
    (10..18).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    (10..18).for_each(|batch| {
        lane.on_ack(batch, &Ack::refused(ErrorCode::Overloaded), 0);
    });
    assert!(lane.waits_until_us(0).unwrap() <= 2 * BUSY_WAIT_US.0);
}

#[test]
fn a_doubt_ends_when_the_node_says_what_only_a_new_batch_is_told() {
    let mut lane = lane();
    lane.push(10);
    send_all(&mut lane, 0);
    lane.on_connection_lost();
    send_all(&mut lane, 0);
    lane.on_ack(10, &Ack::refused(ErrorCode::HashOutOfRange), 0);
    assert!(!lane.take_done().unwrap().outcome_unknown);
    lane.push(11);
    send_all(&mut lane, 0);
    lane.on_connection_lost();
    send_all(&mut lane, 0);
    lane.on_ack(11, &Ack::refused(ErrorCode::Malformed), 0);
    assert!(lane.take_done().unwrap().outcome_unknown, "judged before repetitions are");
}

#[test]
fn what_never_left_is_not_in_doubt() {
    let mut lane = lane();
    (10..13).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    lane.on_not_sent(12);
    lane.on_connection_lost();
    assert_eq!(send_all(&mut lane, 0), [(10, 0), (11, 1), (12, 2)]);
    for batch in 10..13 {
        lane.on_ack(batch, &Ack::refused(ErrorCode::Malformed), 0);
    }
    let unknown: Vec<bool> =
        std::iter::from_fn(|| lane.take_done()).map(|left| left.outcome_unknown).collect();
    assert_eq!(unknown, [true, true, false]);
}

#[test]
fn what_is_given_up_leaves_no_gap_and_what_may_be_stored_changes_the_producer() {
    let refusal = ErrorCode::Stopping.into();
    let mut lane = lane();
    (10..12).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    lane.on_ack(10, &stored(0), 0);
    lane.on_not_sent(11);
    assert_eq!(lane.give_up_waiting(refusal), Reaction::None);
    assert!(lane.take_done().unwrap().result.is_ok());
    let left = lane.take_done().unwrap();
    assert_eq!((left.result, left.outcome_unknown), (Err(refusal), false));
    lane.push(12);
    assert_eq!(send_all(&mut lane, 0), [(12, 1)]);
    lane.on_connection_lost();
    assert_eq!(lane.give_up_waiting(refusal), Reaction::ChangeProducer);
    assert!(lane.take_done().unwrap().outcome_unknown);
    lane.change_producer(ProducerId(8));
    lane.push(13);
    assert_eq!(send_all(&mut lane, 0), [(13, 0)]);
}

const PARTLY: Refusal = Refusal { code: ErrorCode::PartlyThrottled, hint: 9 };

#[test]
fn a_partly_throttled_batch_keeps_its_sequence_and_those_behind_follow_it() {
    let mut lane = lane();
    (10..13).for_each(|batch| lane.push(batch));
    send_all(&mut lane, 0);
    lane.on_ack(10, &stored(0), 0);
    assert!(lane.on_partly_throttled(11, PARTLY, 0));
    assert!(!lane.on_partly_throttled(11, PARTLY, 0), "it is not under way");
    assert_eq!(send_all(&mut lane, 0), [], "12 is still under way");
    lane.on_ack(12, &Ack::refused(Refusal::new(ErrorCode::SequenceGap, 1)), 0);
    assert_eq!(send_all(&mut lane, 0), [(11, 1), (12, 2)], "at once");
    // Tokens that were held too long are asked for anew.
    assert!(lane.on_partly_throttled(11, PARTLY, 0));
    lane.on_ack(12, &Ack::refused(Refusal::new(ErrorCode::SequenceGap, 1)), 0);
    assert_eq!(send_all(&mut lane, 0), [(11, 1), (12, 2)]);
}

#[test]
fn what_may_be_stored_is_partly_throttled_only_once_it_is_known_not_to_be() {
    let mut lane = lane();
    lane.push(10);
    send_all(&mut lane, 0);
    lane.on_connection_lost();
    assert!(!lane.on_partly_throttled(10, PARTLY, 0), "of the lost connection");
    assert_eq!(send_all(&mut lane, 0), [(10, 0)]);
    assert!(lane.on_partly_throttled(10, PARTLY, 0));
    assert_eq!(lane.give_up_waiting(ErrorCode::Stopping.into()), Reaction::None);
    assert!(!lane.take_done().unwrap().outcome_unknown);
}

#[test]
fn a_node_that_takes_parts_for_ever_is_not_asked_for_ever() {
    let mut lane = lane();
    lane.set_patience_us(1000);
    lane.push(10);
    send_all(&mut lane, 0);
    assert!(lane.on_partly_throttled(10, PARTLY, 0));
    send_all(&mut lane, 1000);
    assert!(!lane.on_partly_throttled(10, PARTLY, 1000));
    let left = lane.take_done().unwrap();
    assert_eq!((left.result, left.outcome_unknown), (Err(PARTLY), false));
    lane.push(11);
    assert_eq!(send_all(&mut lane, 1000), [(11, 0)]);
}

#[test]
fn the_end_of_a_shard_is_told_at_once_where_it_is_known_to_be_one() {
    let mut lane = lane();
    lane.end_when_closed();
    lane.push(10);
    lane.push(11);
    assert_eq!(send_all(&mut lane, 0), [(10, 0), (11, 1)]);
    let closed = Ack::refused(ErrorCode::ExtentClosed);
    for batch in [10, 11] {
        assert_eq!(lane.on_ack(batch, &closed, 0), Reaction::None);
        let left = lane.take_done().expect("it left");
        assert_eq!((left.batch, left.outcome_unknown), (batch, false));
        assert_eq!(left.result, Err(ErrorCode::ExtentClosed.into()));
    }
    assert!(lane.is_empty());
}

#[test]
fn a_stale_answer_changes_nothing() {
    let mut lane = lane();
    lane.push(10);
    assert_eq!(lane.on_ack(10, &stored(0), 0), Reaction::None);
    assert_eq!(lane.take_done(), None);
    assert_eq!(send_all(&mut lane, 0), [(10, 0)]);
    lane.on_ack(10, &Ack::refused(ErrorCode::ExtentClosed), 0);
    assert_eq!(send_all(&mut lane, 0), []);
    assert_eq!(send_all(&mut lane, ROUTE_WAIT_US), [(10, 0)]);
}
