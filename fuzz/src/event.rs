//! What carries records to readers: a writer's answer is one of the model, and a message of an
//! event stream is what the SDKs' own reader takes it for.
//!
//! An input is choices: of records and what stands behind them, in which encoding, of an error at
//! the end, and of the pieces in which the stream arrives.

use arbitrary::{Result, Unstructured};
use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use aws_smithy_types::event_stream::Message;
use base64_simd::STANDARD;
use bytes::{Bytes, BytesMut};
use serde_json::Value;
use thalweg_router::kinesis::answers::{EncryptionType, EventEnd, RecordView, RecordsWriter};
use thalweg_router::kinesis::codec::{Encoding, decode, timestamp_ms};
use thalweg_router::kinesis::error::ErrorKind;
use thalweg_router::kinesis::event_stream::{event, exception, initial_response};
use thalweg_router::kinesis::model::model;

use crate::choices;

const EVENT: &str = "SubscribeToShardEvent";
/// Events of a stream.
const EVENTS_MAX: usize = 3;
/// Records of an event.
const RECORDS_MAX: usize = 4;

/// Runs an input.
///
/// # Panics
/// When what is read is not what was written.
pub fn run(input: &[u8]) {
    let _ = stream(&mut Unstructured::new(input));
}

struct Record<'a> {
    sequence_number: String,
    arrival_time_ms: u64,
    data: &'a [u8],
    partition_key: Option<&'a str>,
    encryption_type: Option<EncryptionType>,
}

impl<'a> Record<'a> {
    fn choose(choices: &mut Unstructured<'a>) -> Result<Record<'a>> {
        let kinds = [None, Some(EncryptionType::None), Some(EncryptionType::Kms)];
        Ok(Record {
            sequence_number: choices.arbitrary::<u128>()?.to_string(),
            // A float of seconds tells times of this millennium to the millisecond.
            arrival_time_ms: choices.int_in_range(0..=1 << 46)?,
            data: choices.arbitrary()?,
            partition_key: choices.arbitrary()?,
            encryption_type: *choices.choose(&kinds)?,
        })
    }

    fn view(&self) -> RecordView<'_> {
        RecordView {
            sequence_number: &self.sequence_number,
            arrival_time_ms: self.arrival_time_ms,
            data: self.data,
            partition_key: self.partition_key,
            encryption_type: self.encryption_type,
        }
    }

    fn is(&self, value: &Value) -> bool {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let arrival_time_ms = value.get("ApproximateArrivalTimestamp").and_then(timestamp_ms);
        text("SequenceNumber") == Some(&self.sequence_number)
            && arrival_time_ms == i64::try_from(self.arrival_time_ms).ok()
            && text("Data") == Some(&STANDARD.encode_to_string(self.data))
            && text("PartitionKey") == self.partition_key
            && text("EncryptionType") == self.encryption_type.map(EncryptionType::as_str)
    }
}

fn stream(choices: &mut Unstructured<'_>) -> Result<()> {
    let encoding = *choices.choose(&[Encoding::Json, Encoding::Cbor])?;
    let mut sent = initial_response(encoding).to_vec();
    let mut events = Vec::new();
    for _ in 0..choices.int_in_range(0..=EVENTS_MAX)? {
        let records = choices.int_in_range(0..=RECORDS_MAX)?;
        let records =
            (0..records).map(|_| Record::choose(choices)).collect::<Result<Vec<Record<'_>>>>()?;
        let continuation = choices.arbitrary::<Option<u64>>()?.map(|number| number.to_string());
        let millis_behind_latest = choices.int_in_range(0..=i64::MAX as u64)?;
        let mut payload = Vec::new();
        let mut writer = RecordsWriter::new(encoding, &mut payload);
        records.iter().for_each(|record| writer.push(&record.view()));
        writer.finish_event(&EventEnd {
            continuation_sequence_number: continuation.as_deref(),
            millis_behind_latest,
            child_shards: &[],
        });
        let payload = Bytes::from(payload);
        let message = event(EVENT, encoding.content_type(), payload.clone()).expect("it is short");
        sent.extend_from_slice(&message);
        events.push((records, continuation, millis_behind_latest, payload));
    }
    let kind = *choices.choose(ErrorKind::ALL)?;
    let why: &str = choices.arbitrary()?;
    sent.extend_from_slice(&exception(kind, why, encoding).expect("it is short"));

    let messages = read(choices, &sent)?;
    let [first, middle @ .., last] = &messages[..] else { panic!("first and last are there") };
    assert_eq!(header(first, ":event-type"), "initial-response");
    assert_eq!(body(encoding, first), Value::Object(serde_json::Map::new()));
    assert_eq!(middle.len(), events.len());
    for (message, (records, continuation, millis_behind_latest, payload)) in
        middle.iter().zip(&events)
    {
        assert_eq!(header(message, ":event-type"), EVENT);
        assert_eq!(message.payload(), payload);
        let value = body(encoding, message);
        let list = value["Records"].as_array().expect("a list");
        assert!(list.len() == records.len() && records.iter().zip(list).all(|(r, v)| r.is(v)));
        let text = value.get("ContinuationSequenceNumber").and_then(Value::as_str);
        assert_eq!(text, continuation.as_deref());
        assert_eq!(value["MillisBehindLatest"].as_u64(), Some(*millis_behind_latest));
    }
    assert_eq!(header(last, ":exception-type"), kind.name());
    assert_eq!(header(last, ":message-type"), "exception");
    assert_eq!(error_message(encoding, last), why);
    for message in &messages {
        assert_eq!(header(message, ":content-type"), encoding.content_type());
    }
    Ok(())
}

/// The messages of a stream that arrives in pieces.
fn read(choices: &mut Unstructured<'_>, sent: &[u8]) -> Result<Vec<Message>> {
    let piece_bytes = choices.int_in_range(1..=sent.len())?;
    let mut decoder = MessageFrameDecoder::new();
    let (mut messages, mut arrived) = (Vec::new(), BytesMut::new());
    for piece in sent.chunks(piece_bytes) {
        arrived.extend_from_slice(piece);
        while let DecodedFrame::Complete(message) =
            decoder.decode_frame(&mut arrived).expect("the SDKs' reader takes it")
        {
            messages.push(message);
        }
    }
    assert!(arrived.is_empty(), "nothing is behind the last message");
    Ok(messages)
}

fn header<'m>(message: &'m Message, name: &str) -> &'m str {
    let header = message.headers().iter().find(|header| header.name().as_str() == name);
    let value = header.expect("the header is there").value();
    value.as_string().expect("a text").as_str()
}

/// The payload of an event, as its shape has it.
fn body(encoding: Encoding, message: &Message) -> Value {
    let shape = model().shape_named(EVENT).expect("the model has it");
    decode(encoding, shape, message.payload()).expect("it is of the shape")
}

fn error_message(encoding: Encoding, message: &Message) -> String {
    let shape = model().shape_named("ResourceInUseException").expect("the model has it");
    let value = decode(encoding, shape, message.payload()).expect("it is of the shape");
    value.get("message").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// What the corpus begins with.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    (1..=6).map(|seed| (format!("choices-{seed}"), choices(seed as u8, seed))).collect()
}
