//! Bodies to and from `serde_json::Value`, in the two encodings of the API: JSON 1.1 and CBOR.
//!
//! A `Value` is the same whichever encoding it came in: blobs are base64 text, timestamps are
//! seconds with the milliseconds behind the point. A body is read along the shape that it should
//! have: what the shape does not know is passed over without being kept, and lists and maps are kept
//! no further than to the first element too many. So the memory it takes is that of its strings and
//! of at most [`VALUES_MAX`] values, whatever it claims.
//!
//! Records have a way of their own, without a `Value`: [`super::records`].

mod cbor;
mod json;

use std::cell::Cell;

use serde_json::{Map, Number, Value};
use thiserror::Error;

use super::model::{Kind, Shape};
use super::validate::{Found, Invalid, mismatch, truth, whole_number};

/// Bytes of a body at most: PutRecords with 10 MiB of data as base64 (14 MB), with 500 partition
/// keys of 256 characters, each escaped (1.5 MB), and what is between them.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Values of a body at most, keys not counted. The largest input that the model allows and that is
/// read, PutRecords with 500 records of three members, has 2,005; a client's members that the model
/// does not know are not counted. Those of channels have more, and are refused unread.
pub const VALUES_MAX: usize = 64 * 1024;

const CONTENT_TYPE_JSON: &str = "application/x-amz-json-1.1";
const CONTENT_TYPE_CBOR: &str = "application/x-amz-cbor-1.1";

/// How bodies are written: told by the content type. An answer has the encoding of its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// `application/x-amz-json-1.1`: most SDKs.
    Json,
    /// `application/x-amz-cbor-1.1`: the Java SDKs' default.
    Cbor,
}

impl Encoding {
    /// The encoding that a content type names; parameters behind it do not matter.
    #[must_use]
    pub fn from_content_type(content_type: &str) -> Option<Encoding> {
        let name = content_type.split(';').next().unwrap_or_default().trim();
        if name.eq_ignore_ascii_case(CONTENT_TYPE_JSON) {
            Some(Encoding::Json)
        } else if name.eq_ignore_ascii_case(CONTENT_TYPE_CBOR) {
            Some(Encoding::Cbor)
        } else {
            None
        }
    }

    /// The content type that names it.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => CONTENT_TYPE_JSON,
            Encoding::Cbor => CONTENT_TYPE_CBOR,
        }
    }
}

/// Reads the body of a request along the shape of the operation's input. Numbers, truth values and
/// timestamps come out as their shape has them, null members do not come out. An empty body is an
/// empty object. Constraints are not judged: [`super::validate::validate_input`] does that.
///
/// # Errors
/// `SerializationException`: the body is malformed, too large, or has a value of a wrong type.
pub fn decode(encoding: Encoding, shape: &Shape, body: &[u8]) -> Result<Value, Invalid> {
    check_size(body)?;
    if body.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match encoding {
        Encoding::Json => json::decode(shape, body),
        Encoding::Cbor => cbor::decode(shape, body),
    }
}

/// Writes an answer. JSON has a `Value` as it is. CBOR has its own forms for blobs and timestamps,
/// which a value takes where the shape says so; without a shape, as an error's answer has none, and
/// for members that the shape does not know, a value is written as it is.
///
/// # Errors
/// [`EncodeError`] when, for CBOR, a blob or timestamp of the shape is not one in the value.
pub fn encode(
    encoding: Encoding,
    shape: Option<&Shape>,
    value: &Value,
) -> Result<Vec<u8>, EncodeError> {
    let mut body = Vec::new();
    match encoding {
        Encoding::Json => serde_json::to_writer(&mut body, value)?,
        Encoding::Cbor => cbor::encode(&mut body, shape, value)?,
    }
    Ok(body)
}

/// Why an answer cannot be written: a bug of who made it.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// A value is not what its shape says.
    #[error("a value of the shape {shape} is no {expected}: check_output tells where")]
    Mismatch {
        /// The shape.
        shape: String,
        /// What the value should be.
        expected: &'static str,
    },
    /// A number that is neither whole nor a float.
    #[error("the number {0} is too large to be written")]
    Number(Number),
    /// JSON cannot have the value.
    #[error("the answer cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A point in time as a `Value`: seconds since 1970.
#[must_use]
pub fn timestamp(ms: i64) -> Value {
    if ms % 1000 == 0 { Value::from(ms / 1000) } else { Value::from(ms as f64 / 1000.0) }
}

/// Milliseconds since 1970 of a point in time, rounded; `None` when the value is no number. Times
/// too far off to be counted come out as the furthest that can be.
#[must_use]
pub fn timestamp_ms(value: &Value) -> Option<i64> {
    match (value.as_i64(), value.as_f64()) {
        (Some(seconds), _) => Some(seconds.saturating_mul(1000)),
        (None, Some(seconds)) => Some((seconds * 1000.0).round() as i64),
        (None, None) => None,
    }
}

pub(crate) fn check_size(body: &[u8]) -> Result<(), Invalid> {
    if body.len() <= BODY_BYTES_MAX {
        return Ok(());
    }
    let bytes = body.len();
    Err(Invalid::serialization(format!(
        "The body has {bytes} bytes, at most {BODY_BYTES_MAX} are allowed: send fewer records"
    )))
}

/// Counts the values of a body.
#[derive(Default)]
struct Count(Cell<usize>);

impl Count {
    fn add(&self) -> Result<(), Invalid> {
        self.0.set(self.0.get() + 1);
        if self.0.get() <= VALUES_MAX {
            return Ok(());
        }
        Err(Invalid::serialization(format!("The body has more than {VALUES_MAX} values")))
    }
}

/// How many elements of a list or map are kept: one too many shows that there are too many.
fn kept_max(shape: &Shape) -> usize {
    let max = shape.max.and_then(|max| usize::try_from(max).ok()).unwrap_or(VALUES_MAX);
    max.saturating_add(1)
}

/// What a truth value is as a value of the shape.
fn boolean(shape: &Shape, value: bool) -> Result<Value, Invalid> {
    match shape.kind {
        Kind::Boolean => Ok(Value::Bool(value)),
        _ => Err(mismatch(Found::from(value), &shape.kind)),
    }
}

/// What a number is as a value of the shape. A timestamp is in seconds.
fn number(shape: &Shape, number: Number) -> Result<Value, Invalid> {
    match shape.kind {
        Kind::Integer | Kind::Long => Ok(Value::from(whole_number(&shape.kind, &number))),
        Kind::Timestamp => Ok(Value::Number(number)),
        _ if number.is_f64() => Err(mismatch(Found::Decimal, &shape.kind)),
        _ => Err(mismatch(Found::Number, &shape.kind)),
    }
}

/// What a text is as a value of the shape, blobs aside.
fn text(shape: &Shape, text: String) -> Result<Value, Invalid> {
    match shape.kind {
        Kind::String => Ok(Value::String(text)),
        Kind::Boolean => match truth(&text) {
            Some(value) => Ok(Value::Bool(value)),
            None => Err(mismatch(Found::Text, &shape.kind)),
        },
        _ => Err(mismatch(Found::Text, &shape.kind)),
    }
}

/// Keeps a member's value. The last of the same name counts, as with most readers of JSON.
fn keep(members: &mut Map<String, Value>, name: &str, value: Value) {
    if value.is_null() {
        members.remove(name);
    } else {
        members.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ciborium::cbor;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::model::model;
    use super::super::validate::validate_input;
    use super::*;

    fn input(operation: &str) -> &'static Shape {
        model().shape(model().operation(operation).expect("is in the model").input)
    }

    fn json(operation: &str, body: &str) -> Result<Value, Invalid> {
        decode(Encoding::Json, input(operation), body.as_bytes())
    }

    fn refused(result: Result<Value, Invalid>) -> String {
        let invalid = result.expect_err("is refused");
        assert_eq!(invalid.kind, "SerializationException");
        invalid.message
    }

    /// A body written by another implementation.
    fn cbor_of(value: &ciborium::Value) -> Vec<u8> {
        let mut body = Vec::new();
        ciborium::into_writer(value, &mut body).expect("memory takes any value");
        body
    }

    fn cbor(operation: &str, value: &ciborium::Value) -> Result<Value, Invalid> {
        decode(Encoding::Cbor, input(operation), &cbor_of(value))
    }

    #[test]
    fn an_encoding_is_known_by_its_content_type() {
        for encoding in [Encoding::Json, Encoding::Cbor] {
            assert_eq!(Encoding::from_content_type(encoding.content_type()), Some(encoding));
        }
        let with_parameter = "Application/X-Amz-JSON-1.1; charset=utf-8";
        assert_eq!(Encoding::from_content_type(with_parameter), Some(Encoding::Json));
        let with_blanks = " Application/X-Amz-Json-1.1 ;";
        assert_eq!(Encoding::from_content_type(with_blanks), Some(Encoding::Json));
        assert_eq!(Encoding::from_content_type("application/x-amz-json-1.0"), None);
        assert_eq!(Encoding::from_content_type("application/json"), None);
        assert_eq!(Encoding::from_content_type(""), None);
    }

    /// Bodies as botocore 1.43 serializes them: with blanks, escapes and whole seconds.
    #[test]
    fn bodies_of_botocore_are_read() {
        let body = r#"{"StreamName": "orders", "ShardFilter": {"Type": "AT_TIMESTAMP", "Timestamp": 1795521600}, "MaxResults": 10}"#;
        let value = json("ListShards", body).expect("is read");
        assert_eq!(value["MaxResults"], json!(10));
        assert_eq!(timestamp_ms(&value["ShardFilter"]["Timestamp"]), Some(1_795_521_600_000));
        let body = r#"{"StreamName": "orders", "ShardCount": 2, "StreamModeDetails": {"StreamMode": "PROVISIONED"}, "Tags": {"a": "b"}}"#;
        let value = json("CreateStream", body).expect("is read");
        assert_eq!(value, serde_json::from_str::<Value>(body).expect("is JSON"));
        let body = r#"{"StreamName": "orders", "Records": [{"Data": "AAH/", "PartitionKey": "k\u00e9\"\\/\n"}, {"Data": "", "PartitionKey": "b", "ExplicitHashKey": "340282366920938463463374607431768211455"}]}"#;
        let value = json("PutRecords", body).expect("is read");
        assert_eq!(
            value["Records"][0],
            json!({ "Data": "AAH/", "PartitionKey": "k\u{e9}\"\\/\n" })
        );
        assert_eq!(json("DescribeLimits", "{}"), Ok(json!({})));
    }

    /// Bodies as the AWS SDK for Java 2.33 sends them: maps and lists of unknown length, byte strings,
    /// tag 1 with milliseconds, and long texts in pieces of 7,992 bytes.
    #[test]
    fn bodies_of_the_java_sdk_are_read() {
        let body = [
            b"\xbf\x6aStreamName\x66orders\x67ShardId\x74shardId-000000000000".as_slice(),
            b"\x71ShardIteratorType\x6cAT_TIMESTAMP\x69Timestamp\xc1\x1b\x00\x00\x01\xa2\x0dmZ{\xff",
        ]
        .concat();
        let value = decode(Encoding::Cbor, input("GetShardIterator"), &body).expect("is read");
        assert_eq!(
            value,
            json!({
                "StreamName": "orders", "ShardId": "shardId-000000000000",
                "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": 1_795_521_600.123
            })
        );
        let body = b"\xbf\x6aStreamName\x66orders\x64Tags\xbf\x61a\x61b\xff\xff";
        let value = decode(Encoding::Cbor, input("AddTagsToStream"), body).expect("is read");
        assert_eq!(value, json!({ "StreamName": "orders", "Tags": { "a": "b" } }));
        let piece = [b"\x79\x1f\x38".as_slice(), "\u{1f600}".repeat(1998).as_bytes()].concat();
        let body = [b"\xbf\x69NextToken\x7f", &piece[..], &piece, b"\xff\xff"].concat();
        let value = decode(Encoding::Cbor, input("ListShards"), &body).expect("is read");
        assert_eq!(value, json!({ "NextToken": "\u{1f600}".repeat(2 * 1998) }));
        assert_eq!(decode(Encoding::Cbor, input("ListStreams"), b"\xbf\xff"), Ok(json!({})));
    }

    #[test]
    fn an_empty_body_is_an_empty_object() {
        for encoding in [Encoding::Json, Encoding::Cbor] {
            assert_eq!(decode(encoding, input("ListStreams"), b""), Ok(json!({})));
        }
    }

    #[test]
    fn null_and_unknown_members_are_not_kept() {
        let body = r#"{"Limit":null,"Novel":[1,{"a":"\u0000"}],"NextToken":"t"}"#;
        assert_eq!(json("ListStreams", body), Ok(json!({ "NextToken": "t" })));
        assert_eq!(json("ListStreams", r#"{"Limit":1,"Limit":2}"#), Ok(json!({ "Limit": 2 })));
        assert_eq!(json("ListStreams", r#"{"Limit":1,"Limit":null}"#), Ok(json!({})));
        let value = cbor!({ "Limit" => null, "Novel" => [1, { "a" => 1.5 }] });
        assert_eq!(cbor("ListStreams", &value.expect("is a value")), Ok(json!({})));
    }

    #[test]
    fn whole_numbers_are_cut_off_and_stay_in_range() {
        let limit = |limit: &str| json("GetRecords", &format!(r#"{{"Limit":{limit}}}"#));
        assert_eq!(limit("7.9"), Ok(json!({ "Limit": 7 })));
        assert_eq!(limit("-7.9"), Ok(json!({ "Limit": -7 })));
        assert_eq!(limit("99999999999"), Ok(json!({ "Limit": i32::MAX })));
        assert_eq!(limit("-1e300"), Ok(json!({ "Limit": i32::MIN })));
        assert_eq!(limit("18446744073709551615"), Ok(json!({ "Limit": i32::MAX })));
        let value = cbor!({ "Limit" => 7.9 }).expect("is a value");
        assert_eq!(cbor("GetRecords", &value), Ok(json!({ "Limit": 7 })));
        let body = b"\xa1\x65Limit\x3b\xff\xff\xff\xff\xff\xff\xff\xff";
        let least = decode(Encoding::Cbor, input("GetRecords"), body);
        assert_eq!(least, Ok(json!({ "Limit": i32::MIN })));
    }

    #[test]
    fn values_of_wrong_types_are_refused_in_both_encodings() {
        let cases = [
            ("true", "TRUE_VALUE can not be converted to an Integer"),
            (r#""7""#, "STRING_VALUE can not be converted to an Integer"),
            ("[]", "Start of list found where not expected"),
            ("{}", "Start of structure or map found where not expected."),
        ];
        for (text, message) in cases {
            let body = format!(r#"{{"Limit":{text}}}"#);
            assert_eq!(refused(json("GetRecords", &body)), message);
            let value = encode(Encoding::Cbor, None, &serde_json::from_str(&body).expect("JSON"));
            let body = value.expect("is written");
            assert_eq!(refused(decode(Encoding::Cbor, input("GetRecords"), &body)), message);
        }
        let body = b"\xa1\x64Data\x61A";
        let message = refused(decode(Encoding::Cbor, input("PutRecord"), body));
        assert_eq!(message, "STRING_VALUE can not be converted to a Blob");
        let body = b"\xa1\x6aStreamName\x41A";
        let message = refused(decode(Encoding::Cbor, input("PutRecord"), body));
        assert_eq!(message, "BINARY_VALUE can not be converted to a String");
        assert!(refused(json("PutRecord", r#"{"Data":"A"}"#)).contains("multiple of 4 bytes"));
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        let message = |body: &str| refused(json("ListStreams", body));
        assert_eq!(message("[]"), "Start of list found where not expected");
        assert_eq!(message("1"), "Expected null");
        assert_eq!(message("null"), "The body is null, not an object");
        assert!(message("{").starts_with("The body is not valid JSON: EOF while parsing"));
        assert!(message("{} {}").contains("trailing characters"));
        assert!(message(r#"{"Limit":1,}"#).contains("trailing comma at line 1 column 12"));
        assert!(message("{\"NextToken\":\"\n\"}").contains("control character"));
        let cbor = |body: &[u8]| refused(decode(Encoding::Cbor, input("ListStreams"), body));
        assert_eq!(cbor(b"\x80"), "Start of list found where not expected");
        assert_eq!(cbor(b"\xf6"), "The body is null, not a map");
        assert_eq!(cbor(b"\xa1"), "The body is not valid CBOR: the end of the body at byte 1");
        assert!(cbor(b"\xa0\xa0").contains("more than one value"));
        assert!(cbor(b"\xa1\x01\x01").contains("a key that is no text"));
        assert!(cbor(b"\xa1\x65Limit\xf8\x20").contains("does not know"));
        assert!(cbor(b"\xa1\x65Limit\xf9\x7e\x00").contains("infinite or none"));
    }

    #[test]
    fn elements_beyond_the_greatest_length_are_read_and_not_kept() {
        let keys = vec!["k"; 60];
        let body = json!({ "StreamName": "s", "TagKeys": keys }).to_string();
        let value = json("RemoveTagsFromStream", &body).expect("is read");
        assert_eq!(value["TagKeys"].as_array().map(Vec::len), Some(51));
        let operation = model().operation("RemoveTagsFromStream").expect("is in the model");
        assert!(validate_input(operation, &value).is_err());
        let tags: Map<_, _> = (0..300).map(|n| (format!("{n}"), json!("v"))).collect();
        let body = json!({ "StreamName": "s", "Tags": tags });
        let value = json("AddTagsToStream", &body.to_string()).expect("is read");
        assert_eq!(value["Tags"].as_object().map(Map::len), Some(201));
        let body = encode(Encoding::Cbor, None, &body).expect("is written");
        let value = decode(Encoding::Cbor, input("AddTagsToStream"), &body).expect("is read");
        assert_eq!(value["Tags"].as_object().map(Map::len), Some(201));
        let late = format!(r#"{{"TagKeys":[{}7]}}"#, r#""k","#.repeat(60));
        assert!(refused(json("RemoveTagsFromStream", &late)).starts_with("NUMBER_VALUE"));
    }

    #[test]
    fn a_body_has_limits() {
        let body = vec![b' '; BODY_BYTES_MAX + 1];
        assert!(refused(decode(Encoding::Json, input("ListStreams"), &body)).contains("at most"));
        let many = format!(r#"{{"TagKeys":[{}""]}}"#, r#""","#.repeat(VALUES_MAX));
        assert!(refused(json("UntagResource", &many)).contains("more than 65536 values"));
        let many = [b"\xa1\x67TagKeys\x9f".to_vec(), vec![0x60; VALUES_MAX], vec![0xff]].concat();
        let refusal = refused(decode(Encoding::Cbor, input("UntagResource"), &many));
        assert!(refusal.contains("more than 65536 values"));
        let deep = format!(r#"{{"Novel":{}"#, "[".repeat(1 << 20));
        assert!(refused(json("ListStreams", &deep)).contains("EOF"));
    }

    #[test]
    fn timestamps_keep_their_milliseconds() {
        assert_eq!(timestamp(1_795_521_600_123).to_string(), "1795521600.123");
        assert_eq!(timestamp(1_795_521_600_000).to_string(), "1795521600");
        assert_eq!(timestamp_ms(&json!(1.795521600123E9)), Some(1_795_521_600_123));
        assert_eq!(timestamp_ms(&json!(-1.5)), Some(-1500));
        assert_eq!(timestamp_ms(&json!(1e300)), Some(i64::MAX));
        assert_eq!(timestamp_ms(&json!(i64::MIN)), Some(i64::MIN));
        assert_eq!(timestamp_ms(&json!("now")), None);
        // Seconds with decimals, as RFC 8949 has them; without a tag as well.
        for tag in [b"\xc1".as_slice(), b""] {
            let seconds = b"\xfb\x41\xda\xc1\x57\x40\x07\xdf\x3b";
            let body = [b"\xa1\x69Timestamp".as_slice(), tag, seconds].concat();
            let value = decode(Encoding::Cbor, input("GetShardIterator"), &body).expect("read");
            assert_eq!(timestamp_ms(&value["Timestamp"]), Some(1_795_513_600_123));
        }
    }

    #[test]
    fn an_answer_is_written_along_its_shape() {
        let shape = model().shape_named("GetRecordsOutput").expect("is in the model");
        let answer = json!({
            "Records": [{
                "SequenceNumber": "49", "Data": "AAH/",
                "ApproximateArrivalTimestamp": timestamp(1_795_521_600_123)
            }],
            "NextShardIterator": null, "MillisBehindLatest": 0, "Novel": [true, false, 1.5]
        });
        let body = encode(Encoding::Json, Some(shape), &answer).expect("is written");
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("is JSON"), answer);
        let body = encode(Encoding::Cbor, Some(shape), &answer).expect("is written");
        let value: ciborium::Value = ciborium::from_reader(body.as_slice()).expect("is CBOR");
        let time = ciborium::Value::Tag(1, Box::new(1_795_521_600_123_i64.into()));
        let expected = cbor!({
            "MillisBehindLatest" => 0,
            "NextShardIterator" => null,
            "Novel" => [true, false, 1.5],
            "Records" => [{
                "ApproximateArrivalTimestamp" => time,
                "Data" => ciborium::Value::Bytes(vec![0, 1, 255]),
                "SequenceNumber" => "49",
            }],
        });
        assert_eq!(value, expected.expect("is a value"));
        let bad = json!({ "Records": [{ "Data": "A" }] });
        let error = encode(Encoding::Cbor, Some(shape), &bad).expect_err("is no base64");
        assert!(error.to_string().contains("shape Data is no base64 text"));
        let bad = json!({ "Records": [{ "ApproximateArrivalTimestamp": "now" }] });
        assert!(encode(Encoding::Cbor, Some(shape), &bad).is_err());
    }

    /// Any value of the right types of a shape; constraints are not heeded.
    pub(in super::super) fn values_of(shape: &'static Shape) -> BoxedStrategy<Value> {
        match &shape.kind {
            Kind::Structure(members) => members
                .iter()
                .map(|member| {
                    let value = values_of(model().shape(member.shape));
                    prop::option::of(value).prop_map(move |value| Some((&member.name, value?)))
                })
                .collect::<Vec<_>>()
                .prop_map(|members| {
                    let members = members.into_iter().flatten();
                    Value::Object(members.map(|(name, value)| (name.clone(), value)).collect())
                })
                .boxed(),
            Kind::List(element) => prop::collection::vec(values_of(model().shape(*element)), 0..4)
                .prop_map(Value::Array)
                .boxed(),
            Kind::Map { value, .. } => {
                prop::collection::btree_map(".{0,5}", values_of(model().shape(*value)), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect()))
                    .boxed()
            }
            Kind::String if !shape.values.is_empty() => {
                prop::sample::select(shape.values.clone()).prop_map(Value::String).boxed()
            }
            Kind::String => ".{0,20}|[a-z0-9]{1,9}".prop_map(Value::String).boxed(),
            Kind::Integer => any::<i32>().prop_map(Value::from).boxed(),
            Kind::Long => any::<i64>().prop_map(Value::from).boxed(),
            Kind::Boolean => any::<bool>().prop_map(Value::Bool).boxed(),
            Kind::Blob => prop::collection::vec(any::<u8>(), 0..50)
                .prop_map(|bytes| Value::String(base64_simd::STANDARD.encode_to_string(bytes)))
                .boxed(),
            Kind::Timestamp => (-(1_i64 << 50)..1 << 50).prop_map(timestamp).boxed(),
        }
    }

    fn any_input() -> impl Strategy<Value = (&'static Shape, Value)> {
        (0..model().operations().len()).prop_flat_map(|index| {
            let shape = model().shape(model().operations()[index].input);
            values_of(shape).prop_map(move |value| (shape, value))
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_again((shape, value) in any_input()) {
            for encoding in [Encoding::Json, Encoding::Cbor] {
                let body = encode(encoding, Some(shape), &value).expect("is written");
                prop_assert_eq!(decode(encoding, shape, &body), Ok(value.clone()));
            }
        }

        #[test]
        fn what_was_written_as_cbor_is_what_another_reader_reads((shape, value) in any_input()) {
            let body = encode(Encoding::Cbor, Some(shape), &value).expect("is written");
            let other: ciborium::Value = ciborium::from_reader(body.as_slice()).expect("is CBOR");
            prop_assert_eq!(cbor_of(&other), body);
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            body in prop::collection::vec(any::<u8>(), 0..200), index in 0..57_usize
        ) {
            let shape = model().shape(model().operations()[index].input);
            for encoding in [Encoding::Json, Encoding::Cbor] {
                if let Err(invalid) = decode(encoding, shape, &body) {
                    prop_assert_eq!(invalid.kind, "SerializationException");
                }
            }
        }

        #[test]
        fn a_damaged_body_is_read_or_refused(
            (shape, value) in any_input(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
        ) {
            for encoding in [Encoding::Json, Encoding::Cbor] {
                let mut body = encode(encoding, Some(shape), &value).expect("is written");
                for (at, byte) in &damage {
                    let at = at.index(body.len());
                    body[at] = *byte;
                }
                // What is still read has only values of the right types.
                if let Ok(value) = decode(encoding, shape, &body) {
                    let mut operations = model().operations().iter();
                    let operation = operations.find(|o| model().shape(o.input).name == shape.name);
                    let verdict = validate_input(operation.expect("has the input"), &value);
                    let kind = verdict.err().map(|invalid| invalid.kind);
                    prop_assert_ne!(kind, Some("SerializationException"));
                }
            }
        }
    }
}
