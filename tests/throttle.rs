//! A shard's limits, record by record: of a batch whose records are independent a node says which
//! it would take, and takes those when they come again.

mod support;

use std::io::Write;

use support::{NodeProcess, STREAM, directory, produce_frame, receive, two_free_ports};
use thalweg_wire::build::{BatchBuilder, BatchIdentity, BatchRoom, NewRecord};
use thalweg_wire::control::{Rate, ShardLimits};
use thalweg_wire::error::ErrorCode;
use thalweg_wire::hash_range::HashKey;
use thalweg_wire::ids::{Epoch, Offset, ProducerId, ShardId};
use thalweg_wire::produce::{Ack, decode_answers, padded_bytes};

/// So little a second that nothing comes back while a test runs.
const LIMITS: ShardLimits = ShardLimits {
    bytes: Rate { per_s: 1, capacity: 1000 },
    records: Rate { per_s: 1, capacity: 100 },
};

/// A batch whose records are independent, with a key of one byte each and so many bytes in all.
fn partial(shard: u32, sequence: u64, request_id: u64, sizes: &[usize]) -> Vec<u8> {
    let bytes: usize = sizes.iter().sum();
    let records = sizes.len() as u32;
    let mut builder =
        BatchBuilder::new(BatchRoom { records, key_bytes: records, data_bytes: bytes as u32 });
    for size in sizes {
        let (hash_key, data) = (HashKey(u128::from(shard) << 127), vec![7; size - 1]);
        builder.push(&NewRecord { hash_key, client_time_ms: 1, key: b"k", data: &data });
    }
    let identity = BatchIdentity {
        shard: ShardId { stream: STREAM, index: shard },
        epoch: Epoch(1),
        producer: ProducerId(5),
        sequence,
        request_id,
    };
    let mut bytes = builder.finish_partial(&identity).to_vec();
    bytes.resize(padded_bytes(bytes.len()), 0);
    bytes
}

/// Sends batches in a frame; what became of each, and which records would be taken.
fn send(stream: &mut std::net::TcpStream, batches: &[Vec<u8>]) -> Vec<(Ack, Vec<bool>)> {
    let frame = produce_frame(batches.len() as u32, &batches.concat());
    stream.write_all(&frame).expect("it is connected");
    let (header, payload) = receive(stream).expect("an answer");
    decode_answers(&payload, header.items)
        .expect("answers")
        .map(|answer| answer.map(|(ack, verdicts)| (ack, verdicts.iter().collect())))
        .collect::<Result<_, _>>()
        .expect("valid answers")
}

/// A record that is too large for the moment took the small ones of its call with it.
#[test]
fn records_that_find_tokens_are_taken_without_those_that_do_not() {
    let data = directory();
    let node = NodeProcess::start(data.path(), two_free_ports(), 1);
    node.open_shards(2, Some(LIMITS));
    let mut stream = node.raw(0);
    let code = |ack: &Ack| ack.result.map_err(|refusal| refusal.code).err();
    let answers = send(
        &mut stream,
        &[
            partial(0, 0, 11, &[300, 900, 300, 300, 200]),
            partial(1, 0, 11, &[1000]),
            partial(1, 1, 12, &[10; 9]),
        ],
    );
    assert_eq!(code(&answers[0].0), Some(ErrorCode::PartlyThrottled));
    let wait_us = answers[0].0.result.unwrap_err().hint;
    assert!(
        (199_000_000..=200_000_000).contains(&wait_us),
        "{wait_us} for 200 bytes at 1 a second"
    );
    assert_eq!(answers[0].1, [true, false, true, true, false]);
    assert_eq!((code(&answers[1].0), answers[1].1.len()), (None, 0));
    assert_eq!(code(&answers[2].0), Some(ErrorCode::PartlyThrottled));
    assert_eq!(answers[2].1, [false; 9], "there is nothing left of the other shard's");

    // Others do not get what is held; the same request does, under the sequence that was left free.
    let other = send(&mut stream, &[partial(0, 0, 99, &[200])]);
    assert_eq!(code(&other[0].0), Some(ErrorCode::Throttled), "one record: no verdicts");
    let again = partial(0, 0, 11, &[300, 300, 300]);
    let stored = send(&mut stream, std::slice::from_ref(&again))[0].0.result.expect("it is stored");
    assert_eq!((stored.first_offset, stored.duplicate), (Offset(0), false));
    let repeated = send(&mut stream, &[again])[0].0.result.expect("it was stored");
    assert_eq!((repeated.first_offset, repeated.duplicate), (Offset(0), true));
    let next = send(&mut stream, &[partial(0, 1, 13, &[100]), partial(0, 2, 14, &[100, 1])]);
    assert_eq!(next[0].0.result.map(|stored| stored.first_offset), Ok(Offset(3)));
    assert_eq!(next[1].1, [false, false], "the hundred bytes are used up");
}
