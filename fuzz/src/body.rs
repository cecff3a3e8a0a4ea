//! Bodies of requests: whatever comes is read along its operation's shape or refused with the
//! service's error, alike in every way to read it.
//!
//! An input is a byte that names the operation, by its place in the model, a byte that says which
//! encoding, then the body.
//!
//! PutRecord and PutRecords have readers of their own, which are held against the general one: they
//! accept the same, with the same content, and refuse the same, with the same message.

use std::borrow::Cow;

use base64_simd::STANDARD;
use serde_json::{Map, Value, json};
use thalweg_router::kinesis::codec::{Encoding, decode, encode, timestamp_ms};
use thalweg_router::kinesis::model::{Kind, Operation, Shape, model};
use thalweg_router::kinesis::records::{
    Entry, StreamReference, decode_put_record, decode_put_records,
};
use thalweg_router::kinesis::validate::{Invalid, validate_input};

/// The body is CBOR, else JSON.
pub const IS_CBOR: u8 = 1;

/// Milliseconds beyond which a time is only compared as one that is far off: a float of seconds
/// tells those within to the millisecond.
const TIME_MS_EXACT: i64 = 1 << 50;

/// Runs an input.
///
/// # Panics
/// When a body is read in two ways, or as what its shape does not have.
pub fn run(input: &[u8]) {
    let [place, mode, body @ ..] = input else { return };
    let operations = model().operations();
    let operation = &operations[usize::from(*place) % operations.len()];
    let encoding = if mode & IS_CBOR != 0 { Encoding::Cbor } else { Encoding::Json };
    let general = read(operation, encoding, body);
    match operation.name.as_str() {
        "PutRecord" => put_record(encoding, body, &general),
        "PutRecords" => put_records(encoding, body, &general),
        _ => {}
    }
}

/// Reads and judges a body along its operation's shape.
fn read(operation: &Operation, encoding: Encoding, body: &[u8]) -> Result<Value, Invalid> {
    let shape = model().shape(operation.input);
    let value = match decode(encoding, shape, body) {
        Ok(value) => value,
        Err(invalid) => {
            assert_eq!(invalid.kind, "SerializationException", "{invalid}");
            return Err(invalid);
        }
    };
    for encoding in [Encoding::Json, Encoding::Cbor] {
        let again = encode(encoding, Some(shape), &value).expect("it was read along the shape");
        let again = decode(encoding, shape, &again).expect("it is of the shape");
        assert_eq!(normal(shape, &again), normal(shape, &value), "{encoding:?}");
    }
    match validate_input(operation, &value) {
        Ok(()) => Ok(value),
        Err(invalid) => {
            assert_eq!(invalid.kind, "ValidationException", "its types are right: {invalid}");
            Err(invalid)
        }
    }
}

/// A value with times in milliseconds: the encodings write them differently.
fn normal(shape: &Shape, value: &Value) -> Value {
    match (&shape.kind, value) {
        (Kind::Timestamp, time) if time.is_number() => {
            let ms = timestamp_ms(time).expect("a number is a time");
            json!(ms.clamp(-TIME_MS_EXACT, TIME_MS_EXACT))
        }
        (Kind::Structure(_), Value::Object(members)) => {
            let member = |(name, value): (&String, &Value)| {
                let member = shape.member(name).expect("only members are kept");
                (name.clone(), normal(model().shape(member.shape), value))
            };
            Value::Object(members.iter().map(member).collect())
        }
        (Kind::Map { value: element, .. }, Value::Object(members)) => {
            let element = model().shape(*element);
            let member = |(name, value): (&String, &Value)| (name.clone(), normal(element, value));
            Value::Object(members.iter().map(member).collect())
        }
        (Kind::List(element), Value::Array(values)) => {
            let element = model().shape(*element);
            Value::Array(values.iter().map(|value| normal(element, value)).collect())
        }
        (_, value) => value.clone(),
    }
}

fn put_record(encoding: Encoding, body: &[u8], general: &Result<Value, Invalid>) {
    match (decode_put_record(encoding, body), general) {
        (Ok(request), Ok(value)) => {
            let members = members(value);
            same_stream(&request.stream, members);
            same_entry(&request.record, members);
            same_text(
                request.sequence_number_for_ordering.as_ref(),
                members,
                "SequenceNumberForOrdering",
            );
            assert_eq!(request.dry_run, is_dry_run(members));
        }
        (Err(own), Err(general)) => assert_eq!(own, *general),
        (own, general) => panic!("{:?}, and the general way {general:?}", own.map(drop)),
    }
}

fn put_records(encoding: Encoding, body: &[u8], general: &Result<Value, Invalid>) {
    match (decode_put_records(encoding, body), general) {
        (Ok(request), Ok(value)) => {
            let members = members(value);
            same_stream(&request.stream, members);
            assert_eq!(request.dry_run, is_dry_run(members));
            let values = members["Records"].as_array().expect("a list, as the shape has it");
            assert_eq!(request.records.len(), values.len());
            for (entry, value) in request.records.iter().zip(values) {
                same_entry(entry, value.as_object().expect("a structure, as the shape has it"));
            }
        }
        (Err(own), Err(general)) => assert_eq!(own, *general),
        (own, general) => panic!("{:?}, and the general way {general:?}", own.map(drop)),
    }
}

fn members(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("an input is a structure")
}

fn is_dry_run(members: &Map<String, Value>) -> bool {
    members.get("DryRun").is_some_and(|value| *value == json!(true))
}

fn same_text(text: Option<&Cow<'_, str>>, members: &Map<String, Value>, name: &str) {
    assert_eq!(text.map(|text| &**text), members.get(name).and_then(Value::as_str), "{name}");
}

fn same_stream(stream: &StreamReference<'_>, members: &Map<String, Value>) {
    same_text(stream.name.as_ref(), members, "StreamName");
    same_text(stream.arn.as_ref(), members, "StreamARN");
    same_text(stream.id.as_ref(), members, "StreamId");
}

fn same_entry(entry: &Entry<'_>, members: &Map<String, Value>) {
    same_text(entry.partition_key.as_ref(), members, "PartitionKey");
    same_text(entry.explicit_hash_key.as_ref(), members, "ExplicitHashKey");
    let text = members["Data"].as_str().expect("base64, as the shape has it");
    let data = STANDARD.decode_to_vec(text).expect("it was judged");
    assert_eq!(entry.data.len(), data.len());
    let mut place = vec![0; data.len()];
    entry.data.copy_to(&mut place);
    assert!(place == data && *entry.data.bytes() == data[..], "the data is the same");
}

/// What the corpus begins with: bodies as clients write them, of every kind of shape.
///
/// # Panics
/// When the model lacks an operation that they are of.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (operation, name, body) in json_seeds() {
        let places = model().operations();
        let place = places.iter().position(|found| found.name == operation);
        let place = place.and_then(|place| u8::try_from(place).ok()).expect("is in the model");
        seeds.push((format!("{name}-json"), [&[place, 0][..], body.as_bytes()].concat()));
        let shape = model().shape(places[usize::from(place)].input);
        // What is no valid JSON has no twin.
        if let Ok(value) = decode(Encoding::Json, shape, body.as_bytes()) {
            let body = encode(Encoding::Cbor, Some(shape), &value).expect("it was read");
            seeds.push((format!("{name}-cbor"), [&[place, IS_CBOR][..], &body].concat()));
        }
    }
    for (operation, name, body) in CBOR_SEEDS {
        let place = model().operations().iter().position(|found| found.name == *operation);
        let place = place.and_then(|place| u8::try_from(place).ok()).expect("is in the model");
        seeds.push(((*name).to_owned(), [&[place, IS_CBOR][..], body].concat()));
    }
    seeds
}

fn json_seeds() -> Vec<(&'static str, &'static str, &'static str)> {
    vec![
        (
            "PutRecords",
            "put-records",
            r#"{"StreamName": "orders", "Records": [{"Data": "AAH/", "PartitionKey": "k\u00e9\"\\/\n"}, {"Data": "", "PartitionKey": "b", "ExplicitHashKey": "340282366920938463463374607431768211455"}]}"#,
        ),
        (
            "PutRecords",
            "put-records-odd",
            r#"{"Novel":{"a":[1.5e3,null,"\""]},"Records":[{"Data":"AA\/\/","PartitionKey":null},{"Data":"AQ==","Data":"Ag=="}],"StreamId":"abcdefghij0123456789-abc","DryRun":"true"}"#,
        ),
        ("PutRecords", "put-records-refused", r#"{"Records":[{"Data":"A","PartitionKey":7}]}"#),
        (
            "PutRecord",
            "put-record",
            r#"{"StreamARN":"arn:aws:kinesis:us-east-1:123456789012:stream/orders","Data":"dGV4dA==","PartitionKey":"\ud83d\ude00","SequenceNumberForOrdering":"49590338271490256608559692538361571095921575989136588898","DryRun":true}"#,
        ),
        (
            "CreateStream",
            "create-stream",
            r#"{"StreamName":"orders","ShardCount":2,"StreamModeDetails":{"StreamMode":"PROVISIONED"},"Tags":{"a":"b","c":null}}"#,
        ),
        (
            "ListShards",
            "list-shards",
            r#"{"StreamName":"orders","ShardFilter":{"Type":"AT_TIMESTAMP","Timestamp":1795521600.123},"MaxResults":1e1}"#,
        ),
        (
            "UntagResource",
            "untag",
            r#"{"ResourceARN":"arn:aws:kinesis:us-east-1:123456789012:stream/orders","TagKeys":["a","b"]}"#,
        ),
        (
            "UpdateShardCount",
            "update-shard-count",
            r#"{"StreamName":"orders","TargetShardCount":99999999999,"ScalingType":"UNIFORM_SCALING"}"#,
        ),
    ]
}

const CBOR_SEEDS: &[(&str, &str, &[u8])] = &[
    (
        "PutRecords",
        "put-records-java-cbor",
        b"\xbf\x67Records\x9f\xbf\x64Data\x43\x00\x01\xff\x6cPartitionKey\x63k\xc3\xa9\xff\xff\
          \x6aStreamName\x66orders\xff",
    ),
    (
        "PutRecords",
        "put-records-pieces-cbor",
        b"\xa2\x67Records\x81\xa2\x64Data\x5f\x41a\x41b\xff\x6cPartitionKey\x7f\x61k\x61j\xff\
          \x66DryRun\xf5",
    ),
    (
        "ListShards",
        "list-shards-times-cbor",
        b"\xa1\x6bShardFilter\xa2\x64Type\x6cAT_TIMESTAMP\x69Timestamp\xc1\xfb\x41\xda\xb0\x00\x00\
          \x00\x00\x00",
    ),
];
