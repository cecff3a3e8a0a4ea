//! Produce frames and their answers.
//!
//! The payload is 1 to 256 batches, each at a multiple of 16 from the payload's start and
//! zero-padded to one. A batch of 64 KiB and more travels best alone in its frame: it is written
//! from the memory it was received into.

use crate::batch::HEADER_BYTES;
use crate::codec::{align_up, put, u16_at, u32_at, u64_at};
use crate::error::{ErrorCode, Refusal, status_from_number, status_number};
use crate::frame::{FrameError, FrameKind, PAYLOAD_ALIGN};
use crate::ids::Offset;
use crate::limits;

/// Bytes of an [`Ack`].
pub const ACK_BYTES: usize = 32;
/// The batch had been stored before: this is the answer of its original.
pub const ACK_DUPLICATE: u16 = 1;

/// Where an [`Ack`] has the count of its verdicts.
const JUDGED_AT: usize = 8;

/// The answer for one batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Stored and committed, or why not.
    pub result: Result<Stored, Refusal>,
}

/// Where a committed batch stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Offset of its first record.
    pub first_offset: Offset,
    /// When the leader took it, milliseconds since 1970.
    pub append_time_ms: u64,
    /// Whether it was a repetition.
    pub duplicate: bool,
}

impl Ack {
    /// Status (u16), flags (u16), zero, first offset (u64), append time (u64), hint (u64).
    #[must_use]
    pub fn encode(&self) -> [u8; ACK_BYTES] {
        let mut bytes = [0; ACK_BYTES];
        let status = status_number(self.result.map(|_| ()).map_err(|refusal| refusal.code));
        put(&mut bytes, 0, status.to_le_bytes());
        match &self.result {
            Ok(stored) => {
                put(&mut bytes, 2, u16::from(stored.duplicate).to_le_bytes());
                put(&mut bytes, 8, stored.first_offset.0.to_le_bytes());
                put(&mut bytes, 16, stored.append_time_ms.to_le_bytes());
            }
            Err(refusal) => put(&mut bytes, 24, refusal.hint.to_le_bytes()),
        }
        bytes
    }

    /// Takes one answer apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(bytes: &[u8; ACK_BYTES]) -> Result<Ack, FrameError> {
        let malformed = |what| FrameError::Payload { kind: FrameKind::ProduceAnswer, what };
        let status = status_from_number(u16_at(bytes, 0)).ok_or(malformed("unknown status"))?;
        let flags = u16_at(bytes, 2);
        if flags & !ACK_DUPLICATE != 0 || u32_at(bytes, 4) != 0 {
            return Err(malformed("unknown flags"));
        }
        let result = match status {
            Ok(()) => Ok(Stored {
                first_offset: Offset(u64_at(bytes, 8)),
                append_time_ms: u64_at(bytes, 16),
                duplicate: flags & ACK_DUPLICATE != 0,
            }),
            Err(code) => Err(Refusal { code, hint: u64_at(bytes, 24) }),
        };
        Ok(Ack { result })
    }

    /// A refusal as an answer.
    #[must_use]
    pub fn refused(refusal: impl Into<Refusal>) -> Ack {
        Ack { result: Err(refusal.into()) }
    }
}

/// Which records of a refused batch its shard's limits would take: those for which tokens are held.
/// One at least for [`ErrorCode::PartlyThrottled`], none for any other answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verdicts<'a> {
    bits: &'a [u8],
    records: u32,
}

impl Verdicts<'_> {
    /// Whether each record of the batch is taken, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = bool> + '_ {
        (0..self.records as usize).map(|at| self.bits[at / 8] >> (at % 8) & 1 == 1)
    }
}

/// The answer for a batch of which some records find no tokens, as it travels: the ack, and what
/// follows the acks. A batch has 1 to [`limits::BATCH_RECORDS_MAX`] records, and so many verdicts.
#[must_use]
pub fn encode_verdicts(wait_us: u64, verdicts: &[bool]) -> ([u8; ACK_BYTES], Vec<u8>) {
    let mut ack = Ack::refused(Refusal::new(ErrorCode::PartlyThrottled, wait_us)).encode();
    put(&mut ack, JUDGED_AT, (verdicts.len() as u32).to_le_bytes());
    let byte = |bits: &[bool]| {
        bits.iter().enumerate().fold(0, |byte, (at, taken)| byte | u8::from(*taken) << at)
    };
    (ack, verdicts.chunks(8).map(byte).collect())
}

/// Takes the payload of a produce answer apart: one answer a batch, with its verdicts.
///
/// # Errors
/// When its length is not that of `items` answers and the verdicts they announce, or an answer
/// announces verdicts for more records than a batch has, or for none. Each answer that is malformed
/// is an error of its own.
pub fn decode_answers(
    payload: &[u8],
    items: u32,
) -> Result<impl Iterator<Item = Result<(Ack, Verdicts<'_>), FrameError>>, FrameError> {
    let malformed = |what| FrameError::Payload { kind: FrameKind::ProduceAnswer, what };
    let (acks, mut verdicts) = payload
        .split_at_checked(items as usize * ACK_BYTES)
        .ok_or(malformed("fewer answers than items"))?;
    let (acks, _) = acks.as_chunks::<ACK_BYTES>();
    let mut announced_bytes = 0;
    for ack in acks {
        announced_bytes += judged(ack)?.div_ceil(8) as usize;
    }
    if announced_bytes != verdicts.len() {
        return Err(malformed("verdicts that no answer announces, or too few"));
    }
    Ok(acks.iter().map(move |ack| {
        let records = judged(ack)?;
        let (bits, others) = verdicts.split_at(records.div_ceil(8) as usize);
        verdicts = others;
        let spare = bits.last().map_or(0, |last| u32::from(*last) >> ((records - 1) % 8 + 1));
        if spare != 0 {
            return Err(malformed("a verdict behind a batch's last record"));
        }
        Ok((Ack::decode(ack)?, Verdicts { bits, records }))
    }))
}

/// How many records the verdicts of an answer are for: none, or as many as a batch may have.
///
/// # Errors
/// When a batch that was refused in part has none, or more. Its bits would be another batch's.
fn judged(ack: &[u8; ACK_BYTES]) -> Result<u32, FrameError> {
    if u16_at(ack, 0) != ErrorCode::PartlyThrottled as u16 {
        return Ok(0);
    }
    match u32_at(ack, JUDGED_AT) {
        records @ 1..=limits::BATCH_RECORDS_MAX => Ok(records),
        _ => Err(FrameError::Payload {
            kind: FrameKind::ProduceAnswer,
            what: "verdicts for more records than a batch has, or for none",
        }),
    }
}

/// The answers alone.
///
/// # Errors
/// As [`decode_answers`].
pub fn decode_acks(
    payload: &[u8],
    items: u32,
) -> Result<impl Iterator<Item = Result<Ack, FrameError>> + '_, FrameError> {
    Ok(decode_answers(payload, items)?.map(|answer| answer.map(|(ack, _)| ack)))
}

/// Bytes that a batch takes in a payload.
#[must_use]
pub fn padded_bytes(batch_bytes: usize) -> usize {
    align_up(batch_bytes as u64, PAYLOAD_ALIGN as u64) as usize
}

/// Finds the batches of a produce payload by their headers' lengths: places only, whose bytes are
/// yet to be checked.
///
/// # Errors
/// When the lengths do not add up to the payload, or there are more batches than may be.
pub fn split_batches(
    payload: &[u8],
    items: u32,
) -> Result<impl Iterator<Item = std::ops::Range<usize>> + '_, FrameError> {
    let malformed = |what| FrameError::Payload { kind: FrameKind::Produce, what };
    if items == 0 || items > limits::FRAME_BATCHES_MAX {
        return Err(malformed("a produce frame carries 1 to 256 batches"));
    }
    if items > 1 && payload.len() > limits::FRAME_MANY_BATCHES_BYTES_MAX as usize {
        return Err(malformed("a frame of several batches holds at most 1 MiB"));
    }
    let mut at = 0;
    for _ in 0..items {
        at += next_batch(payload, at).ok_or(malformed("a batch reaches beyond the payload"))?.1;
    }
    if at != payload.len() {
        return Err(malformed("bytes behind the last batch"));
    }
    let mut at = 0;
    Ok((0..items).map(move |_| {
        let (batch_bytes, padded) = next_batch(payload, at).expect("found in the first pass");
        let place = at..at + batch_bytes;
        at += padded;
        place
    }))
}

/// Length and padded length of the batch at byte `at`, if it lies within the payload.
fn next_batch(payload: &[u8], at: usize) -> Option<(usize, usize)> {
    let header = payload.get(at..at + HEADER_BYTES)?;
    let body_bytes = u32_at(header, 8);
    if body_bytes > limits::BODY_BYTES_MAX {
        return None;
    }
    let batch_bytes = HEADER_BYTES + body_bytes as usize;
    let padded = padded_bytes(batch_bytes);
    (payload.len() - at >= padded).then_some((batch_bytes, padded))
}

/// The refusals after which nothing of the batch was kept and its sequence stays free: a client
/// may send it again unchanged.
#[must_use]
pub fn may_repeat(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Throttled | ErrorCode::Overloaded | ErrorCode::NoSpace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_round_trip() {
        let stored = Stored { first_offset: Offset(9), append_time_ms: 5, duplicate: true };
        let refusal = Refusal::new(ErrorCode::SequenceGap, 4);
        for ack in [Ack { result: Ok(stored) }, Ack::refused(refusal)] {
            assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
        }
        let mut unknown = Ack::refused(refusal).encode();
        unknown[0] = 250;
        assert!(Ack::decode(&unknown).is_err());
    }

    #[test]
    fn verdicts_stand_behind_the_acks_that_announce_them() {
        let stored = Stored { first_offset: Offset(9), append_time_ms: 5, duplicate: false };
        let (few, many) = ([true, false, true], [false; 9]);
        let (first, second) = (encode_verdicts(7, &few), encode_verdicts(8, &many));
        let acks = [first.0, Ack { result: Ok(stored) }.encode(), second.0].concat();
        let payload = [acks, first.1, second.1].concat();
        let answers: Vec<(Ack, Vec<bool>)> = decode_answers(&payload, 3)
            .unwrap()
            .map(|answer| answer.map(|(ack, verdicts)| (ack, verdicts.iter().collect())).unwrap())
            .collect();
        let partly = |wait_us| Ack::refused(Refusal::new(ErrorCode::PartlyThrottled, wait_us));
        assert_eq!(answers[0], (partly(7), few.to_vec()));
        assert_eq!(answers[1], (Ack { result: Ok(stored) }, Vec::new()));
        assert_eq!(answers[2], (partly(8), many.to_vec()));
        assert!(decode_answers(&payload[..payload.len() - 1], 3).is_err());
        assert!(decode_answers(&payload, 2).is_err());
        assert!(decode_answers(&payload[..40], 2).is_err());
    }

    /// A count above the limit was taken for the limit, and one of zero for an answer without
    /// verdicts: so an answer passed whose bits are those of no batch.
    #[test]
    fn verdicts_are_those_of_a_batch() {
        let announcing = |records: u32, bits: &[u8]| {
            let (mut ack, _) = encode_verdicts(7, &[true]);
            put(&mut ack, JUDGED_AT, records.to_le_bytes());
            [&ack[..], bits].concat()
        };
        let decode = |payload: &[u8]| -> Result<usize, FrameError> {
            let (_, verdicts) = decode_answers(payload, 1)?.next().expect("there is one")?;
            Ok(verdicts.iter().filter(|taken| *taken).count())
        };
        let most = limits::BATCH_RECORDS_MAX;
        assert_eq!(decode(&announcing(most, &vec![0xff; most as usize / 8])), Ok(most as usize));
        assert!(decode(&announcing(most + 1, &vec![0xff; most as usize / 8])).is_err());
        assert!(decode(&announcing(u32::MAX, &vec![0xff; most as usize / 8])).is_err());
        assert!(decode(&announcing(0, &[])).is_err());
        for records in 1..=8 {
            let every = u8::MAX >> (8 - records);
            assert_eq!(decode(&announcing(records, &[every])), Ok(records as usize));
            if let Some(beyond) = every.checked_add(1) {
                assert!(decode(&announcing(records, &[beyond])).is_err(), "{records} records");
            }
        }
    }

    fn payload(bodies: &[u32]) -> Vec<u8> {
        let mut payload = Vec::new();
        for body_bytes in bodies {
            let start = payload.len();
            payload.resize(start + padded_bytes(HEADER_BYTES + *body_bytes as usize), 0);
            put(&mut payload, start + 8, body_bytes.to_le_bytes());
        }
        payload
    }

    #[test]
    fn batches_are_found() {
        let payload = payload(&[24, 40, 0]);
        let places: Vec<_> = split_batches(&payload, 3).unwrap().collect();
        assert_eq!(places, [0..152, 160..328, 336..464]);
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        let good = payload(&[24, 40]);
        for (payload, items) in [
            (&good[..], 1),
            (&good[..], 3),
            (&good[..], 0),
            (&good[..good.len() - 1], 2),
            (&good[..100], 1),
            (&[][..], 1),
        ] {
            assert!(split_batches(payload, items).map(|_| ()).is_err());
        }
        let mut huge = good;
        put(&mut huge, 8, u32::MAX.to_le_bytes());
        assert!(split_batches(&huge, 2).map(|_| ()).is_err());
    }
}
