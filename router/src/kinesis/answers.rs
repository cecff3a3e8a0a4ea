//! The answers that carry records or tell of them, written straight into a buffer, in both
//! encodings.
//!
//! A writer is filled record by record, so that nobody has to gather them, and is then finished with
//! what stands behind the records. In CBOR the list of records is therefore one of unknown length.

use super::cbor::{BREAK, Header, write_bytes, write_head, write_text, write_timestamp};
use super::codec::Encoding;

/// A record as a reader gets it.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// Decimal.
    pub sequence_number: &'a str,
    /// When it arrived, milliseconds since 1970.
    pub arrival_time_ms: u64,
    /// The data.
    pub data: &'a [u8],
    /// Absent when the producer gave none.
    pub partition_key: Option<&'a str>,
    /// Absent when it is not told.
    pub encryption_type: Option<EncryptionType>,
}

/// How records are encrypted at rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EncryptionType {
    /// Not at all.
    None,
    /// By a key of the key management service.
    Kms,
}

/// A child of a shard whose end was reached.
#[derive(Clone, Copy, Debug)]
pub struct ChildShardView<'a> {
    /// Its id.
    pub shard_id: &'a str,
    /// One parent after a split, two after a merge; the KCL relies on it.
    pub parent_shards: &'a [&'a str],
    /// Decimal.
    pub starting_hash_key: &'a str,
    /// Decimal.
    pub ending_hash_key: &'a str,
}

/// What stands behind the records of a GetRecords answer.
#[derive(Clone, Copy, Debug)]
pub struct GetRecordsEnd<'a> {
    /// `None` at the end of a closed shard. Then it is not written, as the service does
    /// (mhart/kinesalite#20): the SDK for JavaScript 2 hands on null, and lifion-kinesis compares with
    /// `undefined`.
    pub next_shard_iterator: Option<&'a str>,
    /// Milliseconds behind the tip.
    pub millis_behind_latest: u64,
    /// Not written when there are none, which is so before the end of a closed shard.
    pub child_shards: &'a [ChildShardView<'a>],
}

/// What stands behind the records of a SubscribeToShardEvent.
#[derive(Clone, Copy, Debug)]
pub struct EventEnd<'a> {
    /// `None` at the end of a closed shard. Then it is not written: clients that read events without
    /// an SDK take null for a position (lifion-kinesis compares with `undefined`).
    pub continuation_sequence_number: Option<&'a str>,
    /// Milliseconds behind the tip.
    pub millis_behind_latest: u64,
    /// Not written when there are none, which is so before the end of a closed shard.
    pub child_shards: &'a [ChildShardView<'a>],
}

/// Writes a GetRecords answer or the payload of a SubscribeToShardEvent.
#[derive(Debug)]
pub struct RecordsWriter<'b> {
    out: Out<'b>,
}

/// Writes a PutRecords answer.
#[derive(Debug)]
pub struct PutRecordsWriter<'b> {
    out: Out<'b>,
    failed: u64,
}

impl EncryptionType {
    /// As in bodies.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EncryptionType::None => "NONE",
            EncryptionType::Kms => "KMS",
        }
    }
}

/// Bytes of a record in an answer beside its data and partition key, at most: names, a sequence
/// number of 129 digits, a time.
const RECORD_OVERHEAD_BYTES: usize = 320;

/// Bytes to reserve for an answer of so many records with so many bytes of keys and data. Keys full
/// of characters that JSON escapes may need more; then the buffer grows.
#[must_use]
pub fn answer_bytes(encoding: Encoding, records: usize, key_and_data_bytes: usize) -> usize {
    let bytes = match encoding {
        Encoding::Json => base64_simd::STANDARD.encoded_length(key_and_data_bytes),
        Encoding::Cbor => key_and_data_bytes,
    };
    bytes + (records + 1) * RECORD_OVERHEAD_BYTES
}

/// Bytes of an answer beside its records, at most: names, an iterator of 512 characters (API model,
/// `ShardIterator`), the two children of a shard that was split, 300 bytes each.
pub const END_BYTES: usize = 2 << 10;

/// Bytes of a record in an answer, at most. Of its key, a byte that is no text becomes U+FFFD, which
/// has three, and one that JSON escapes has six.
#[must_use]
pub fn record_answer_bytes(encoding: Encoding, key: &[u8], data_bytes: usize) -> usize {
    let (data_bytes, is_json) = match encoding {
        Encoding::Json => (base64_simd::STANDARD.encoded_length(data_bytes), true),
        Encoding::Cbor => (data_bytes, false),
    };
    let key_byte_max = match key.is_ascii() {
        _ if is_json && needs_escape(key) => 6,
        true => 1,
        false => 3,
    };
    data_bytes + key.len() * key_byte_max + RECORD_OVERHEAD_BYTES
}

impl<'b> RecordsWriter<'b> {
    /// Begins an answer at the end of `buffer`.
    #[must_use]
    pub fn new(encoding: Encoding, buffer: &'b mut Vec<u8>) -> RecordsWriter<'b> {
        let mut out = Out::new(encoding, buffer);
        out.open_list("Records");
        RecordsWriter { out }
    }

    /// Adds a record.
    pub fn push(&mut self, record: &RecordView<'_>) {
        let out = &mut self.out;
        out.open_element();
        out.text("SequenceNumber", record.sequence_number);
        out.timestamp("ApproximateArrivalTimestamp", record.arrival_time_ms);
        out.blob("Data", record.data);
        if let Some(key) = record.partition_key {
            out.text("PartitionKey", key);
        }
        out.encryption_type(record.encryption_type);
        out.close_map();
    }

    /// Makes room for so many records more with so many bytes of keys and data.
    pub fn reserve(&mut self, records: usize, key_and_data_bytes: usize) {
        let bytes = answer_bytes(self.out.encoding, records, key_and_data_bytes);
        self.out.buffer.reserve(bytes);
    }

    /// Has the buffer allocate so many bytes in all, and no more, unless it has as many.
    pub fn allocate(&mut self, bytes: usize) {
        let buffer = &mut self.out.buffer;
        buffer.reserve_exact(bytes.saturating_sub(buffer.len()));
    }

    /// Bytes that the buffer has allocated.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.out.buffer.capacity()
    }

    /// Bytes so far, those that were in the buffer before included.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.out.buffer.len()
    }

    /// Completes a GetRecords answer.
    pub fn finish_get_records(mut self, end: &GetRecordsEnd<'_>) {
        let out = &mut self.out;
        out.close_list();
        if let Some(iterator) = end.next_shard_iterator {
            out.text("NextShardIterator", iterator);
        }
        out.number("MillisBehindLatest", end.millis_behind_latest);
        out.child_shards(end.child_shards);
        out.close_map();
    }

    /// Completes the payload of a SubscribeToShardEvent.
    pub fn finish_event(mut self, end: &EventEnd<'_>) {
        let out = &mut self.out;
        out.close_list();
        if let Some(number) = end.continuation_sequence_number {
            out.text("ContinuationSequenceNumber", number);
        }
        out.number("MillisBehindLatest", end.millis_behind_latest);
        out.child_shards(end.child_shards);
        out.close_map();
    }
}

impl<'b> PutRecordsWriter<'b> {
    /// Begins an answer at the end of `buffer`.
    #[must_use]
    pub fn new(encoding: Encoding, buffer: &'b mut Vec<u8>) -> PutRecordsWriter<'b> {
        let mut out = Out::new(encoding, buffer);
        out.open_list("Records");
        PutRecordsWriter { out, failed: 0 }
    }

    /// Adds a record that was stored. Results have the order of the request.
    pub fn push_stored(&mut self, shard_id: &str, sequence_number: &str) {
        let out = &mut self.out;
        out.open_element();
        out.text("SequenceNumber", sequence_number);
        out.text("ShardId", shard_id);
        out.close_map();
    }

    /// Adds a record that was not stored.
    pub fn push_failed(&mut self, code: &str, message: &str) {
        let out = &mut self.out;
        out.open_element();
        out.text("ErrorCode", code);
        out.text("ErrorMessage", message);
        out.close_map();
        self.failed += 1;
    }

    /// Completes the answer.
    pub fn finish(mut self, encryption_type: Option<EncryptionType>) {
        let out = &mut self.out;
        out.close_list();
        out.number("FailedRecordCount", self.failed);
        out.encryption_type(encryption_type);
        out.close_map();
    }
}

/// Writes a PutRecord answer at the end of `buffer`.
pub fn encode_put_record(
    encoding: Encoding,
    buffer: &mut Vec<u8>,
    shard_id: &str,
    sequence_number: &str,
    encryption_type: Option<EncryptionType>,
) {
    let mut out = Out::new(encoding, buffer);
    out.text("ShardId", shard_id);
    out.text("SequenceNumber", sequence_number);
    out.encryption_type(encryption_type);
    out.close_map();
}

/// A body in the making. The encodings differ in separators and in how values are written.
#[derive(Debug)]
struct Out<'b> {
    encoding: Encoding,
    buffer: &'b mut Vec<u8>,
    /// Whether the next member or element is the first of its map or list.
    first: bool,
}

impl<'b> Out<'b> {
    /// Opens the outermost map.
    fn new(encoding: Encoding, buffer: &'b mut Vec<u8>) -> Out<'b> {
        let mut out = Out { encoding, buffer, first: true };
        out.open_map();
        out
    }

    fn open_map(&mut self) {
        match self.encoding {
            Encoding::Json => self.buffer.push(b'{'),
            Encoding::Cbor => write_head(self.buffer, Header::Map(None)),
        }
        self.first = true;
    }

    fn close_map(&mut self) {
        self.buffer.push(match self.encoding {
            Encoding::Json => b'}',
            Encoding::Cbor => BREAK,
        });
        self.first = false;
    }

    fn open_list(&mut self, name: &str) {
        self.name(name);
        match self.encoding {
            Encoding::Json => self.buffer.push(b'['),
            Encoding::Cbor => write_head(self.buffer, Header::Array(None)),
        }
        self.first = true;
    }

    fn close_list(&mut self) {
        self.buffer.push(match self.encoding {
            Encoding::Json => b']',
            Encoding::Cbor => BREAK,
        });
        self.first = false;
    }

    /// Opens a map as the next element of a list.
    fn open_element(&mut self) {
        self.separate();
        self.open_map();
    }

    fn separate(&mut self) {
        if self.encoding == Encoding::Json && !self.first {
            self.buffer.push(b',');
        }
        self.first = false;
    }

    /// Writes a member's name, which has nothing to escape.
    fn name(&mut self, name: &str) {
        self.separate();
        match self.encoding {
            Encoding::Json => {
                self.quoted(name);
                self.buffer.push(b':');
            }
            Encoding::Cbor => write_text(self.buffer, name),
        }
    }

    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        self.text_value(text);
    }

    fn text_value(&mut self, text: &str) {
        match self.encoding {
            Encoding::Json if needs_escape(text.as_bytes()) => {
                serde_json::to_writer(&mut *self.buffer, text).expect("memory takes any text");
            }
            Encoding::Json => self.quoted(text),
            Encoding::Cbor => write_text(self.buffer, text),
        }
    }

    fn quoted(&mut self, text: &str) {
        self.buffer.push(b'"');
        self.buffer.extend_from_slice(text.as_bytes());
        self.buffer.push(b'"');
    }

    fn blob(&mut self, name: &str, bytes: &[u8]) {
        self.name(name);
        match self.encoding {
            Encoding::Json => {
                self.buffer.push(b'"');
                base64_simd::STANDARD.encode_append(bytes, self.buffer);
                self.buffer.push(b'"');
            }
            Encoding::Cbor => write_bytes(self.buffer, bytes),
        }
    }

    fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        match self.encoding {
            Encoding::Json => {
                self.buffer.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            }
            Encoding::Cbor => write_head(self.buffer, Header::Positive(number)),
        }
    }

    /// Seconds with three decimals in JSON, milliseconds in CBOR.
    fn timestamp(&mut self, name: &str, ms: u64) {
        self.name(name);
        match self.encoding {
            Encoding::Json => {
                let (seconds, rest) = (ms / 1000, ms % 1000);
                let digit = |value: u64| b'0' + (value % 10) as u8;
                let decimals = [b'.', digit(rest / 100), digit(rest / 10), digit(rest)];
                self.buffer.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
                self.buffer.extend_from_slice(&decimals);
            }
            Encoding::Cbor => write_timestamp(self.buffer, i64::try_from(ms).unwrap_or(i64::MAX)),
        }
    }

    fn encryption_type(&mut self, encryption_type: Option<EncryptionType>) {
        if let Some(encryption_type) = encryption_type {
            self.text("EncryptionType", encryption_type.as_str());
        }
    }

    fn child_shards(&mut self, children: &[ChildShardView<'_>]) {
        if children.is_empty() {
            return;
        }
        self.open_list("ChildShards");
        for child in children {
            self.open_element();
            self.text("ShardId", child.shard_id);
            self.open_list("ParentShards");
            for parent in child.parent_shards {
                self.separate();
                self.text_value(parent);
            }
            self.close_list();
            self.name("HashKeyRange");
            self.open_map();
            self.text("StartingHashKey", child.starting_hash_key);
            self.text("EndingHashKey", child.ending_hash_key);
            self.close_map();
            self.close_map();
        }
        self.close_list();
    }
}

/// Whether JSON has the text otherwise than it is.
fn needs_escape(text: &[u8]) -> bool {
    // Without a way out of the loop, it goes by many bytes at a time.
    text.iter()
        .fold(false, |found, byte| found | (*byte < b' ') | (*byte == b'"') | (*byte == b'\\'))
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use ciborium::cbor;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::check::check_output;
    use super::super::codec::{decode, timestamp_ms};
    use super::super::model::{Shape, model};
    use super::super::records::tests::report;
    use super::*;

    const CHILD: ChildShardView<'_> = ChildShardView {
        shard_id: "shardId-000000000002",
        parent_shards: &["shardId-000000000000", "shardId-000000000001"],
        starting_hash_key: "0",
        ending_hash_key: "340282366920938463463374607431768211455",
    };

    const RECORD: RecordView<'_> = RecordView {
        sequence_number: "49590338271490256608559692538361571095921575989136588898",
        arrival_time_ms: 1_795_521_600_007,
        data: &[0, 1, 255],
        partition_key: Some("k\u{e9}\"\\\n\u{1}\u{7f}"),
        encryption_type: Some(EncryptionType::Kms),
    };

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut buffer = Vec::new();
        write(&mut buffer);
        buffer
    }

    fn shape(name: &str) -> &'static Shape {
        model().shape_named(name).expect("is in the model")
    }

    /// What the general reader makes of an answer, after a check against the model.
    fn read(encoding: Encoding, operation: &str, body: &[u8]) -> Value {
        let operation = model().operation(operation).expect("is in the model");
        let output = model().shape(operation.output.expect("has an output"));
        let value = decode(encoding, output, body).expect("is read");
        assert_eq!(check_output(operation, &value), Vec::<String>::new());
        value
    }

    #[test]
    fn an_answer_to_get_records_is_json_to_the_byte() {
        let body = written(|buffer| {
            let mut writer = RecordsWriter::new(Encoding::Json, buffer);
            writer.push(&RECORD);
            let plain = RecordView { partition_key: None, encryption_type: None, ..RECORD };
            writer.push(&RecordView { data: &[], arrival_time_ms: 90, ..plain });
            writer.finish_get_records(&GetRecordsEnd {
                next_shard_iterator: Some("AAAA/+="),
                millis_behind_latest: 12,
                child_shards: &[],
            });
        });
        let expected = concat!(
            r#"{"Records":[{"SequenceNumber":"#,
            r#""49590338271490256608559692538361571095921575989136588898","#,
            r#""ApproximateArrivalTimestamp":1795521600.007,"Data":"AAH/","#,
            "\"PartitionKey\":\"k\u{e9}\\\"\\\\\\n\\u0001\u{7f}\",\"EncryptionType\":\"KMS\"},",
            r#"{"SequenceNumber":"49590338271490256608559692538361571095921575989136588898","#,
            r#""ApproximateArrivalTimestamp":0.090,"Data":""}],"#,
            r#""NextShardIterator":"AAAA/+=","MillisBehindLatest":12}"#,
        );
        assert_eq!(String::from_utf8(body).expect("is text"), expected);
    }

    #[test]
    fn an_answer_to_get_records_is_cbor_as_another_reader_reads_it() {
        let body = written(|buffer| {
            let mut writer = RecordsWriter::new(Encoding::Cbor, buffer);
            writer.push(&RECORD);
            writer.finish_get_records(&GetRecordsEnd {
                next_shard_iterator: None,
                millis_behind_latest: 0,
                child_shards: &[CHILD],
            });
        });
        let value: ciborium::Value = ciborium::from_reader(body.as_slice()).expect("is CBOR");
        let time = ciborium::Value::Tag(1, Box::new(RECORD.arrival_time_ms.into()));
        let expected = cbor!({
            "Records" => [{
                "SequenceNumber" => RECORD.sequence_number,
                "ApproximateArrivalTimestamp" => time,
                "Data" => ciborium::Value::Bytes(vec![0, 1, 255]),
                "PartitionKey" => RECORD.partition_key,
                "EncryptionType" => "KMS",
            }],
            "MillisBehindLatest" => 0,
            "ChildShards" => [{
                "ShardId" => CHILD.shard_id,
                "ParentShards" => CHILD.parent_shards,
                "HashKeyRange" => {
                    "StartingHashKey" => CHILD.starting_hash_key,
                    "EndingHashKey" => CHILD.ending_hash_key,
                },
            }],
        });
        assert_eq!(value, expected.expect("is a value"));
    }

    #[test]
    fn the_end_of_a_shard_is_told_in_both_encodings() {
        for encoding in [Encoding::Json, Encoding::Cbor] {
            let body = written(|buffer| {
                RecordsWriter::new(encoding, buffer).finish_get_records(&GetRecordsEnd {
                    next_shard_iterator: None,
                    millis_behind_latest: 0,
                    child_shards: &[CHILD, CHILD],
                });
            });
            let value = read(encoding, "GetRecords", &body);
            assert_eq!(value["Records"], json!([]));
            assert_eq!(value.get("NextShardIterator"), None);
            assert_eq!(value["ChildShards"].as_array().map(Vec::len), Some(2));
            let parents = json!(["shardId-000000000000", "shardId-000000000001"]);
            assert_eq!(value["ChildShards"][1]["ParentShards"], parents);
        }
    }

    /// Holds what is written at the end of a shard against the members that are left.
    #[track_caller]
    fn assert_ends_with_nothing(write: impl Fn(RecordsWriter<'_>)) {
        let last = |encoding| written(|buffer| write(RecordsWriter::new(encoding, buffer)));
        assert_eq!(last(Encoding::Json), br#"{"Records":[],"MillisBehindLatest":0}"#);
        let value: ciborium::Value =
            ciborium::from_reader(last(Encoding::Cbor).as_slice()).expect("is CBOR");
        let expected = cbor!({ "Records" => [], "MillisBehindLatest" => 0 });
        assert_eq!(value, expected.expect("is a value"));
    }

    /// It was null: lifion-kinesis read the end of the shard again and again, and never went on with
    /// its children.
    #[test]
    fn the_last_answer_of_a_shard_has_no_iterator() {
        assert_ends_with_nothing(|writer| {
            writer.finish_get_records(&GetRecordsEnd {
                next_shard_iterator: None,
                millis_behind_latest: 0,
                child_shards: &[],
            });
        });
    }

    /// It was null: lifion-kinesis took it for a position and ended with an error, instead of going
    /// on with the shard's children.
    #[test]
    fn the_last_event_of_a_shard_has_no_continuation() {
        assert_ends_with_nothing(|writer| {
            writer.finish_event(&EventEnd {
                continuation_sequence_number: None,
                millis_behind_latest: 0,
                child_shards: &[],
            });
        });
    }

    #[test]
    fn an_event_is_what_its_shape_says() {
        for encoding in [Encoding::Json, Encoding::Cbor] {
            let body = written(|buffer| {
                let mut writer = RecordsWriter::new(encoding, buffer);
                writer.push(&RECORD);
                writer.push(&RECORD);
                writer.finish_event(&EventEnd {
                    continuation_sequence_number: Some(RECORD.sequence_number),
                    millis_behind_latest: u64::from(u32::MAX),
                    child_shards: &[],
                });
            });
            let event = decode(encoding, shape("SubscribeToShardEvent"), &body).expect("is read");
            assert_eq!(event["Records"][1]["Data"], json!("AAH/"));
            assert_eq!(event["ContinuationSequenceNumber"], json!(RECORD.sequence_number));
            assert_eq!(event["MillisBehindLatest"], json!(u32::MAX));
            let subscribe = model().operation("SubscribeToShard").expect("is in the model");
            let output = json!({ "EventStream": { "SubscribeToShardEvent": event } });
            assert_eq!(check_output(subscribe, &output), Vec::<String>::new());
        }
    }

    #[test]
    fn answers_to_puts_tell_what_failed() {
        let message = "Rate exceeded for shard shardId-000000000000 in stream \"a\"";
        for encoding in [Encoding::Json, Encoding::Cbor] {
            let body = written(|buffer| {
                let mut writer = PutRecordsWriter::new(encoding, buffer);
                writer.push_stored("shardId-000000000001", "49");
                writer.push_failed("ProvisionedThroughputExceededException", message);
                writer.push_failed("InternalFailure", "Internal Service Failure");
                writer.finish(Some(EncryptionType::None));
            });
            assert_eq!(
                read(encoding, "PutRecords", &body),
                json!({
                    "FailedRecordCount": 2,
                    "Records": [
                        { "ShardId": "shardId-000000000001", "SequenceNumber": "49" },
                        {
                            "ErrorCode": "ProvisionedThroughputExceededException",
                            "ErrorMessage": message
                        },
                        { "ErrorCode": "InternalFailure", "ErrorMessage": "Internal Service Failure" }
                    ],
                    "EncryptionType": "NONE"
                })
            );
            let body = written(|buffer| {
                encode_put_record(encoding, buffer, "shardId-000000000001", "49", None);
            });
            let expected = json!({ "ShardId": "shardId-000000000001", "SequenceNumber": "49" });
            assert_eq!(read(encoding, "PutRecord", &body), expected);
        }
    }

    #[test]
    fn an_answer_is_written_behind_what_the_buffer_has() {
        let mut buffer = b"head".to_vec();
        let mut writer = RecordsWriter::new(Encoding::Json, &mut buffer);
        assert_eq!(writer.buffer_bytes(), "head{\"Records\":[".len());
        writer.push(&RECORD);
        let before = writer.buffer_bytes();
        writer.push(&RECORD);
        assert!(writer.buffer_bytes() > before);
        let end = EventEnd {
            continuation_sequence_number: None,
            millis_behind_latest: 0,
            child_shards: &[],
        };
        writer.finish_event(&end);
        assert!(buffer.starts_with(b"head{") && buffer.ends_with(b"}"));
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(
            records in prop::collection::vec(
                (
                    prop::collection::vec(any::<u8>(), 0..60),
                    prop::option::of(prop_oneof!["(?s).{1,20}", "[\\x00-\\x1f\"\\\\]{1,20}"]),
                    0_u64..1 << 50,
                ),
                0..5
            )
        ) {
            let iterator = "i".repeat(512);
            for encoding in [Encoding::Json, Encoding::Cbor] {
                let bytes = records.iter().map(|(data, key, _)| {
                    let key = key.as_deref().unwrap_or_default();
                    record_answer_bytes(encoding, key.as_bytes(), data.len())
                });
                let bytes = bytes.sum::<usize>() + END_BYTES;
                let mut buffer = Vec::new();
                let mut writer = RecordsWriter::new(encoding, &mut buffer);
                writer.allocate(bytes);
                let capacity = writer.allocated_bytes();
                prop_assert!(capacity >= bytes);
                for (data, key, arrival_time_ms) in &records {
                    writer.push(&RecordView {
                        data,
                        partition_key: key.as_deref(),
                        arrival_time_ms: *arrival_time_ms,
                        ..RECORD
                    });
                }
                writer.finish_get_records(&GetRecordsEnd {
                    next_shard_iterator: Some(&iterator),
                    millis_behind_latest: u64::MAX >> 1,
                    child_shards: &[CHILD, CHILD],
                });
                prop_assert_eq!(buffer.capacity(), capacity, "no room had to be made");
                let value = read(encoding, "GetRecords", &buffer);
                let read = value["Records"].as_array().expect("is a list");
                prop_assert_eq!(read.len(), records.len());
                for (read, (data, key, arrival_time_ms)) in read.iter().zip(&records) {
                    let text = base64_simd::STANDARD.encode_to_string(data);
                    prop_assert_eq!(&read["Data"], &json!(text));
                    let read_key = read.get("PartitionKey").and_then(Value::as_str);
                    prop_assert_eq!(read_key, key.as_deref());
                    let time = timestamp_ms(&read["ApproximateArrivalTimestamp"]);
                    prop_assert_eq!(time, i64::try_from(*arrival_time_ms).ok());
                }
            }
        }
    }

    /// `cargo test --release -p thalweg-router answers_by -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement: it prints times and judges nothing"]
    fn answers_by_the_microsecond() {
        let data: Vec<u8> = (0..1024_usize).map(|i| (i * 31 % 251) as u8).collect();
        let keys: Vec<_> = (0..1000).map(|n| format!("partition-key-{n:06}")).collect();
        for encoding in [Encoding::Json, Encoding::Cbor] {
            let mut buffer = Vec::with_capacity(answer_bytes(encoding, 1000, 1000 * 1044));
            report(&format!("{encoding:?}: GetRecords of 1,000 x 1 KiB, written"), || {
                buffer.clear();
                let mut writer = RecordsWriter::new(encoding, &mut buffer);
                for key in &keys {
                    writer.push(&RecordView {
                        data: black_box(&data),
                        partition_key: Some(key),
                        encryption_type: None,
                        ..RECORD
                    });
                }
                writer.finish_get_records(&GetRecordsEnd {
                    next_shard_iterator: Some("AAAAAAAAAAE="),
                    millis_behind_latest: 0,
                    child_shards: &[],
                });
                black_box(&buffer);
            });
            report(&format!("{encoding:?}: the answer to PutRecords of 500, written"), || {
                buffer.clear();
                let mut writer = PutRecordsWriter::new(encoding, &mut buffer);
                for _ in 0..500 {
                    writer.push_stored("shardId-000000000001", RECORD.sequence_number);
                }
                writer.finish(None);
                black_box(&buffer);
            });
        }
    }
}
