//! Bodies of requests, written straight into a buffer, in both encodings.
//!
//! Strings that this program makes (names of streams, partition keys) have nothing to escape in
//! JSON; those of a server are looked at first.

use clap::ValueEnum;
use serde::Serialize;

/// How bodies are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// `application/x-amz-json-1.1`: what most SDKs send.
    Json,
    /// `application/x-amz-cbor-1.1`: what the SDKs for Java send.
    Cbor,
}

impl Encoding {
    /// The content type of bodies.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/x-amz-json-1.1",
            Encoding::Cbor => "application/x-amz-cbor-1.1",
        }
    }

    /// As in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Json => "json",
            Encoding::Cbor => "cbor",
        }
    }
}

/// Where a subscription begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position<'a> {
    /// At the first record there is.
    TrimHorizon,
    /// Behind a record.
    After(&'a str),
}

/// Writes a PutRecords request.
pub struct PutRecordsBody<'b> {
    body: Body<'b>,
    left: usize,
}

impl<'b> PutRecordsBody<'b> {
    /// Begins one for so many records; the buffer is emptied.
    pub fn new(
        encoding: Encoding,
        buffer: &'b mut Vec<u8>,
        stream: &str,
        records: usize,
    ) -> PutRecordsBody<'b> {
        let mut body = Body::new(encoding, buffer, 2);
        body.name("StreamName");
        body.text(stream);
        body.name("Records");
        body.open_list(records);
        PutRecordsBody { body, left: records }
    }

    /// Adds a record.
    ///
    /// # Panics
    /// When there are more than was said.
    pub fn push(&mut self, partition_key: &str, data: &[u8]) {
        self.left = self.left.checked_sub(1).expect("as many records as were announced");
        self.body.separate();
        self.body.open_map(2);
        self.body.name("Data");
        self.body.data(data);
        self.body.name("PartitionKey");
        self.body.text(partition_key);
        self.body.close_map();
    }

    /// Completes the body.
    ///
    /// # Panics
    /// When there are fewer records than was said.
    pub fn finish(mut self) {
        assert_eq!(self.left, 0, "as many records as were announced");
        self.body.close_list();
        self.body.close_map();
    }
}

/// Writes a PutRecord request; the buffer is emptied.
pub fn put_record(
    encoding: Encoding,
    buffer: &mut Vec<u8>,
    stream: &str,
    partition_key: &str,
    data: &[u8],
) {
    let mut body = Body::new(encoding, buffer, 3);
    body.name("StreamName");
    body.text(stream);
    body.name("Data");
    body.data(data);
    body.name("PartitionKey");
    body.text(partition_key);
    body.close_map();
}

/// Writes a GetShardIterator request for the first record there is; the buffer is emptied.
pub fn get_shard_iterator(encoding: Encoding, buffer: &mut Vec<u8>, stream: &str, shard: &str) {
    let mut body = Body::new(encoding, buffer, 3);
    body.name("StreamName");
    body.text(stream);
    body.name("ShardId");
    body.text(shard);
    body.name("ShardIteratorType");
    body.text("TRIM_HORIZON");
    body.close_map();
}

/// Writes a GetRecords request; the buffer is emptied.
pub fn get_records(encoding: Encoding, buffer: &mut Vec<u8>, iterator: &str, limit: u64) {
    let mut body = Body::new(encoding, buffer, 2);
    body.name("ShardIterator");
    body.text(iterator);
    body.name("Limit");
    body.number(limit);
    body.close_map();
}

/// Writes a SubscribeToShard request; the buffer is emptied.
pub fn subscribe_to_shard(
    encoding: Encoding,
    buffer: &mut Vec<u8>,
    consumer_arn: &str,
    shard: &str,
    position: Position<'_>,
) {
    let mut body = Body::new(encoding, buffer, 3);
    body.name("ConsumerARN");
    body.text(consumer_arn);
    body.name("ShardId");
    body.text(shard);
    body.name("StartingPosition");
    match position {
        Position::TrimHorizon => {
            body.open_map(1);
            body.name("Type");
            body.text("TRIM_HORIZON");
        }
        Position::After(number) => {
            body.open_map(2);
            body.name("Type");
            body.text("AFTER_SEQUENCE_NUMBER");
            body.name("SequenceNumber");
            body.text(number);
        }
    }
    body.close_map();
    body.close_map();
}

/// A body in the making. The encodings differ in separators and in how values are written.
struct Body<'b> {
    encoding: Encoding,
    buffer: &'b mut Vec<u8>,
    /// Whether the next member or element is the first of its map or list.
    first: bool,
}

impl<'b> Body<'b> {
    /// Opens the outermost map, of so many members.
    fn new(encoding: Encoding, buffer: &'b mut Vec<u8>, members: usize) -> Body<'b> {
        buffer.clear();
        let mut body = Body { encoding, buffer, first: true };
        body.open_map(members);
        body
    }

    fn open_map(&mut self, members: usize) {
        match self.encoding {
            Encoding::Json => self.buffer.push(b'{'),
            Encoding::Cbor => self.head(5, members as u64),
        }
        self.first = true;
    }

    fn close_map(&mut self) {
        if self.encoding == Encoding::Json {
            self.buffer.push(b'}');
        }
        self.first = false;
    }

    fn open_list(&mut self, elements: usize) {
        match self.encoding {
            Encoding::Json => self.buffer.push(b'['),
            Encoding::Cbor => self.head(4, elements as u64),
        }
        self.first = true;
    }

    fn close_list(&mut self) {
        if self.encoding == Encoding::Json {
            self.buffer.push(b']');
        }
        self.first = false;
    }

    fn separate(&mut self) {
        if self.encoding == Encoding::Json && !self.first {
            self.buffer.push(b',');
        }
        self.first = false;
    }

    fn name(&mut self, name: &str) {
        self.separate();
        match self.encoding {
            Encoding::Json => {
                self.quoted(name);
                self.buffer.push(b':');
            }
            Encoding::Cbor => self.cbor_text(name),
        }
    }

    fn text(&mut self, text: &str) {
        match self.encoding {
            Encoding::Json if needs_escape(text) => {
                serde_json::to_writer(&mut *self.buffer, text).expect("memory takes any text");
            }
            Encoding::Json => self.quoted(text),
            Encoding::Cbor => self.cbor_text(text),
        }
    }

    fn quoted(&mut self, text: &str) {
        self.buffer.push(b'"');
        self.buffer.extend_from_slice(text.as_bytes());
        self.buffer.push(b'"');
    }

    fn cbor_text(&mut self, text: &str) {
        self.head(3, text.len() as u64);
        self.buffer.extend_from_slice(text.as_bytes());
    }

    fn data(&mut self, data: &[u8]) {
        match self.encoding {
            Encoding::Json => {
                self.buffer.push(b'"');
                base64_simd::STANDARD.encode_append(data, self.buffer);
                self.buffer.push(b'"');
            }
            Encoding::Cbor => {
                self.head(2, data.len() as u64);
                self.buffer.extend_from_slice(data);
            }
        }
    }

    fn number(&mut self, number: u64) {
        match self.encoding {
            Encoding::Json => {
                self.buffer.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            }
            Encoding::Cbor => self.head(0, number),
        }
    }

    /// The head of an item of CBOR (RFC 8949, section 3) in the fewest bytes.
    fn head(&mut self, major: u8, value: u64) {
        let bytes = value.to_be_bytes();
        let (minor, argument): (u8, &[u8]) = match value {
            ..24 => (value as u8, &[]),
            24..0x100 => (24, &bytes[7..]),
            0x100..0x1_0000 => (25, &bytes[6..]),
            0x1_0000..0x1_0000_0000 => (26, &bytes[4..]),
            _ => (27, &bytes),
        };
        self.buffer.push(major << 5 | minor);
        self.buffer.extend_from_slice(argument);
    }
}

/// Whether JSON has the text otherwise than it is.
fn needs_escape(text: &str) -> bool {
    text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const BOTH: [Encoding; 2] = [Encoding::Json, Encoding::Cbor];

    /// What another reader makes of a body; bytes as base64, as JSON has them.
    fn read(encoding: Encoding, body: &[u8]) -> Value {
        match encoding {
            Encoding::Json => serde_json::from_slice(body).unwrap(),
            Encoding::Cbor => plain(ciborium::from_reader(body).unwrap()),
        }
    }

    fn plain(value: ciborium::Value) -> Value {
        use ciborium::Value as Cbor;
        match value {
            Cbor::Bytes(bytes) => json!(base64_simd::STANDARD.encode_to_string(bytes)),
            Cbor::Text(text) => json!(text),
            Cbor::Integer(number) => json!(u64::try_from(number).unwrap()),
            Cbor::Array(list) => list.into_iter().map(plain).collect(),
            Cbor::Map(map) => {
                let members =
                    map.into_iter().map(|(name, value)| (name.into_text().unwrap(), plain(value)));
                Value::Object(members.collect())
            }
            other => panic!("{other:?} is in no body"),
        }
    }

    fn base64(data: &[u8]) -> String {
        base64_simd::STANDARD.encode_to_string(data)
    }

    #[test]
    fn put_records_is_as_other_readers_read_it() {
        for encoding in BOTH {
            for count in [1, 2, 23, 24, 255, 256, 500] {
                let data: Vec<Vec<u8>> =
                    (0..count).map(|at| vec![at as u8; at * 7 % 300]).collect();
                let mut buffer = b"what was there before".to_vec();
                let mut body = PutRecordsBody::new(encoding, &mut buffer, "a-stream", count);
                for (at, data) in data.iter().enumerate() {
                    body.push(&format!("key-{at}"), data);
                }
                body.finish();
                let records: Vec<Value> = data.iter().enumerate().map(|(at, data)| {
                    json!({ "Data": base64(data), "PartitionKey": format!("key-{at}") })
                }).collect();
                let expected = json!({ "StreamName": "a-stream", "Records": records });
                assert_eq!(read(encoding, &buffer), expected);
            }
        }
    }

    #[test]
    fn put_record_is_as_other_readers_read_it() {
        for encoding in BOTH {
            for bytes in [0, 1, 2, 3, 1000, 70_000] {
                let data: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
                let mut buffer = Vec::new();
                put_record(encoding, &mut buffer, "s", "k", &data);
                let expected =
                    json!({ "StreamName": "s", "Data": base64(&data), "PartitionKey": "k" });
                assert_eq!(read(encoding, &buffer), expected);
            }
        }
    }

    #[test]
    fn requests_that_read_are_as_other_readers_read_them() {
        for encoding in BOTH {
            let mut buffer = Vec::new();
            get_records(encoding, &mut buffer, "A\"b\\c\u{1}", 10_000);
            let expected = json!({ "ShardIterator": "A\"b\\c\u{1}", "Limit": 10_000 });
            assert_eq!(read(encoding, &buffer), expected);
            get_shard_iterator(encoding, &mut buffer, "s", "shardId-000000000000");
            let expected = json!({
                "StreamName": "s", "ShardId": "shardId-000000000000",
                "ShardIteratorType": "TRIM_HORIZON",
            });
            assert_eq!(read(encoding, &buffer), expected);
            subscribe_to_shard(encoding, &mut buffer, "arn:x", "shard", Position::TrimHorizon);
            let expected = json!({
                "ConsumerARN": "arn:x", "ShardId": "shard",
                "StartingPosition": { "Type": "TRIM_HORIZON" },
            });
            assert_eq!(read(encoding, &buffer), expected);
            subscribe_to_shard(encoding, &mut buffer, "arn:x", "shard", Position::After("49"));
            let position = json!({ "Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": "49" });
            assert_eq!(read(encoding, &buffer)["StartingPosition"], position);
        }
    }
}
