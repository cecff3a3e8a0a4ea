//! The requests that carry records, read where they lie: no `Value`, no copy of the data.
//!
//! There are two ways to read a body. The straight one (`straight.rs`) knows what a valid request
//! looks like and gives up at whatever else it meets. Then the general one reads the body again: by
//! the shape, like any other request, and it alone says what is wrong. So both judge alike, and the
//! messages are those of [`super::validate`]; a refused request costs twice.

use std::borrow::Cow;
use std::fmt;

use base64_simd::AsOut;
use serde_json::{Map, Value};

use super::codec::{self, Encoding, check_size};
use super::model::model;
use super::straight;
use super::validate::{Invalid, base64_decoded_len, check_base64, validate_input};

/// A PutRecords request whose constraints hold. Members are as in the model: StreamName and
/// StreamARN are both optional there, and so is PartitionKey, which streams need unless they
/// distribute records themselves. Whoever serves the request judges that.
#[derive(Clone, PartialEq, Debug)]
pub struct PutRecordsRequest<'a> {
    /// The stream.
    pub stream: StreamReference<'a>,
    /// Whether only to say if the request would succeed.
    pub dry_run: bool,
    /// 1 to 500 records, in the request's order.
    pub records: Vec<Entry<'a>>,
}

/// A PutRecord request whose constraints hold.
#[derive(Clone, PartialEq, Debug)]
pub struct PutRecordRequest<'a> {
    /// The stream.
    pub stream: StreamReference<'a>,
    /// Whether only to say if the request would succeed.
    pub dry_run: bool,
    /// The record.
    pub record: Entry<'a>,
    /// The sequence number that the record's must exceed.
    pub sequence_number_for_ordering: Option<Cow<'a, str>>,
}

/// How a request names its stream.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct StreamReference<'a> {
    /// The name.
    pub name: Option<Cow<'a, str>>,
    /// The ARN.
    pub arn: Option<Cow<'a, str>>,
    /// The id, which the API reserves for future use.
    pub id: Option<Cow<'a, str>>,
}

/// A record of a request.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry<'a> {
    /// The data.
    pub data: Data<'a>,
    /// 1 to 256 characters.
    pub partition_key: Option<Cow<'a, str>>,
    /// A decimal number of up to 39 digits, which may still be beyond the greatest hash key.
    pub explicit_hash_key: Option<Cow<'a, str>>,
}

/// The data of a record, as it came: bytes, or base64 text that is decoded straight to where the
/// data shall lie.
#[derive(Clone)]
pub struct Data<'a>(Source<'a>);

#[derive(Clone)]
enum Source<'a> {
    Bytes(Cow<'a, [u8]>),
    /// Checked: it decodes to `len` bytes.
    Base64 {
        text: &'a [u8],
        len: usize,
    },
}

/// Reads a PutRecords request.
///
/// # Errors
/// As of [`codec::decode`] and [`validate_input`].
pub fn decode_put_records(
    encoding: Encoding,
    body: &[u8],
) -> Result<PutRecordsRequest<'_>, Invalid> {
    check_size(body)?;
    match straight::put_records(encoding, body) {
        Some(request) => Ok(request),
        None => PutRecordsRequest::from_value(general("PutRecords", encoding, body)?),
    }
}

/// Reads a PutRecord request.
///
/// # Errors
/// As of [`codec::decode`] and [`validate_input`].
pub fn decode_put_record(encoding: Encoding, body: &[u8]) -> Result<PutRecordRequest<'_>, Invalid> {
    check_size(body)?;
    match straight::put_record(encoding, body) {
        Some(request) => Ok(request),
        None => PutRecordRequest::from_value(general("PutRecord", encoding, body)?),
    }
}

impl Data<'_> {
    /// Bytes of the data.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Source::Bytes(bytes) => bytes.len(),
            Source::Base64 { len, .. } => *len,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the data to where it shall lie.
    ///
    /// # Panics
    /// When `place` is not [`Data::len`] bytes.
    pub fn copy_to(&self, place: &mut [u8]) {
        assert_eq!(place.len(), self.len(), "the place has the data's length");
        match &self.0 {
            Source::Bytes(bytes) => place.copy_from_slice(bytes),
            Source::Base64 { text, .. } => {
                let decoded = base64_simd::STANDARD.decode(text, place.as_out());
                decoded.expect("the text was checked when it was read");
            }
        }
    }

    /// Appends the data to a buffer.
    pub fn append_to(&self, buffer: &mut Vec<u8>) {
        match &self.0 {
            Source::Bytes(bytes) => buffer.extend_from_slice(bytes),
            Source::Base64 { text, .. } => {
                let decoded = base64_simd::STANDARD.decode_append(text, buffer);
                decoded.expect("the text was checked when it was read");
            }
        }
    }

    /// The data on its own; decoded when it came as base64.
    #[must_use]
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.0 {
            Source::Bytes(bytes) => Cow::Borrowed(bytes),
            Source::Base64 { .. } => {
                let mut bytes = Vec::with_capacity(self.len());
                self.append_to(&mut bytes);
                Cow::Owned(bytes)
            }
        }
    }
}

impl<'a> Data<'a> {
    /// Data that came as base64.
    ///
    /// # Errors
    /// The service's message for what is no base64.
    pub fn from_base64(text: &'a [u8]) -> Result<Data<'a>, Invalid> {
        check_base64(text)?;
        Ok(Data(Source::Base64 { text, len: base64_decoded_len(text) }))
    }
}

impl<'a> From<Cow<'a, [u8]>> for Data<'a> {
    fn from(bytes: Cow<'a, [u8]>) -> Data<'a> {
        Data(Source::Bytes(bytes))
    }
}

impl PartialEq for Data<'_> {
    fn eq(&self, other: &Data<'_>) -> bool {
        self.bytes() == other.bytes()
    }
}

/// Data belongs to its owner: only its length is shown.
impl fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({} bytes)", self.len())
    }
}

/// Reads and judges a body by its shape.
fn general(
    operation: &str,
    encoding: Encoding,
    body: &[u8],
) -> Result<Map<String, Value>, Invalid> {
    let operation = model().operation(operation).expect("the model has the operation");
    let value = codec::decode(encoding, model().shape(operation.input), body)?;
    validate_input(operation, &value)?;
    match value {
        Value::Object(members) => Ok(members),
        _ => Err(Invalid::serialization("The body is no object")),
    }
}

impl PutRecordsRequest<'static> {
    /// The request that a judged `Value` is.
    fn from_value(mut members: Map<String, Value>) -> Result<PutRecordsRequest<'static>, Invalid> {
        let Some(Value::Array(values)) = members.remove("Records") else {
            return Err(Invalid::serialization("Expected list or null"));
        };
        let records = values.into_iter().map(|value| match value {
            Value::Object(mut members) => Entry::from_value(&mut members),
            _ => Err(Invalid::serialization("Expected null")),
        });
        Ok(PutRecordsRequest {
            records: records.collect::<Result<_, _>>()?,
            dry_run: members.get("DryRun").and_then(Value::as_bool).unwrap_or(false),
            stream: StreamReference::from_value(&mut members),
        })
    }
}

impl PutRecordRequest<'static> {
    fn from_value(mut members: Map<String, Value>) -> Result<PutRecordRequest<'static>, Invalid> {
        Ok(PutRecordRequest {
            record: Entry::from_value(&mut members)?,
            dry_run: members.get("DryRun").and_then(Value::as_bool).unwrap_or(false),
            sequence_number_for_ordering: take_text(&mut members, "SequenceNumberForOrdering"),
            stream: StreamReference::from_value(&mut members),
        })
    }
}

impl StreamReference<'static> {
    fn from_value(members: &mut Map<String, Value>) -> StreamReference<'static> {
        StreamReference {
            name: take_text(members, "StreamName"),
            arn: take_text(members, "StreamARN"),
            id: take_text(members, "StreamId"),
        }
    }
}

impl Entry<'static> {
    fn from_value(members: &mut Map<String, Value>) -> Result<Entry<'static>, Invalid> {
        let text = take_text(members, "Data").unwrap_or_default();
        let data = base64_simd::STANDARD
            .decode_to_vec(text.as_bytes())
            .map_err(|_| Invalid::serialization("The data is no base64"))?;
        Ok(Entry {
            data: Data::from(Cow::Owned(data)),
            partition_key: take_text(members, "PartitionKey"),
            explicit_hash_key: take_text(members, "ExplicitHashKey"),
        })
    }
}

fn take_text(members: &mut Map<String, Value>, name: &str) -> Option<Cow<'static, str>> {
    match members.remove(name) {
        Some(Value::String(text)) => Some(Cow::Owned(text)),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::codec::tests::values_of;
    use super::super::model::Operation;
    use super::*;

    /// Both ways to read a body.
    trait Request: PartialEq + fmt::Debug + Sized {
        fn straight(encoding: Encoding, body: &'static [u8]) -> Option<Self>;
        fn general(encoding: Encoding, body: &[u8]) -> Result<Self, Invalid>;
        fn decode(encoding: Encoding, body: &'static [u8]) -> Result<Self, Invalid>;
    }

    impl Request for PutRecordsRequest<'static> {
        fn straight(encoding: Encoding, body: &'static [u8]) -> Option<Self> {
            straight::put_records(encoding, body)
        }

        fn general(encoding: Encoding, body: &[u8]) -> Result<Self, Invalid> {
            PutRecordsRequest::from_value(general("PutRecords", encoding, body)?)
        }

        fn decode(encoding: Encoding, body: &'static [u8]) -> Result<Self, Invalid> {
            decode_put_records(encoding, body)
        }
    }

    impl Request for PutRecordRequest<'static> {
        fn straight(encoding: Encoding, body: &'static [u8]) -> Option<Self> {
            straight::put_record(encoding, body)
        }

        fn general(encoding: Encoding, body: &[u8]) -> Result<Self, Invalid> {
            PutRecordRequest::from_value(general("PutRecord", encoding, body)?)
        }

        fn decode(encoding: Encoding, body: &'static [u8]) -> Result<Self, Invalid> {
            decode_put_record(encoding, body)
        }
    }

    /// Makes a body that outlives the test; tests are few and bodies small.
    fn leak(body: Vec<u8>) -> &'static [u8] {
        Box::leak(body.into_boxed_slice())
    }

    /// Reads a body both ways, makes sure that they agree, and says if the straight one sufficed.
    fn agree<R: Request>(encoding: Encoding, body: Vec<u8>) -> (Result<R, Invalid>, bool) {
        let body = leak(body);
        let (straight, general) = (R::straight(encoding, body), R::general(encoding, body));
        let is_straight = straight.is_some();
        if let Some(straight) = straight {
            assert_eq!(Ok(&straight), general.as_ref(), "{}", String::from_utf8_lossy(body));
        }
        let decoded = R::decode(encoding, body);
        assert_eq!(decoded, general);
        (decoded, is_straight)
    }

    fn put_records(body: &str) -> Result<PutRecordsRequest<'static>, Invalid> {
        agree(Encoding::Json, body.as_bytes().to_vec()).0
    }

    fn operation(name: &str) -> &'static Operation {
        model().operation(name).expect("is in the model")
    }

    fn encoded(encoding: Encoding, name: &str, value: &Value) -> Vec<u8> {
        let shape = model().shape(operation(name).input);
        codec::encode(encoding, Some(shape), value).expect("is written")
    }

    fn entry(data: &'static [u8], key: &'static str) -> Entry<'static> {
        Entry {
            data: Cow::Borrowed(data).into(),
            partition_key: Some(key.into()),
            explicit_hash_key: None,
        }
    }

    /// Bodies as botocore 1.43 serializes them.
    #[test]
    fn bodies_of_botocore_are_read_straight() {
        let body = r#"{"StreamName": "orders", "Records": [{"Data": "AAH/", "PartitionKey": "k\u00e9\"\\/\n"}, {"Data": "", "PartitionKey": "b", "ExplicitHashKey": "340282366920938463463374607431768211455"}]}"#;
        let (request, straight) = agree::<PutRecordsRequest<'_>>(Encoding::Json, body.into());
        assert!(straight);
        let last = Entry {
            explicit_hash_key: Some("340282366920938463463374607431768211455".into()),
            ..entry(b"", "b")
        };
        assert_eq!(
            request,
            Ok(PutRecordsRequest {
                stream: StreamReference { name: Some("orders".into()), ..Default::default() },
                dry_run: false,
                records: vec![entry(&[0, 1, 255], "k\u{e9}\"\\/\n"), last],
            })
        );
        let body = r#"{"StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/orders", "Data": "dGV4dA==", "PartitionKey": "\ud83d\ude00", "SequenceNumberForOrdering": "49590338271490256608559692538361571095921575989136588898", "DryRun": true}"#;
        let (request, straight) = agree::<PutRecordRequest<'_>>(Encoding::Json, body.into());
        assert!(straight);
        let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";
        let number = "49590338271490256608559692538361571095921575989136588898";
        assert_eq!(
            request,
            Ok(PutRecordRequest {
                stream: StreamReference { arn: Some(arn.into()), ..Default::default() },
                dry_run: true,
                record: entry(b"text", "\u{1f600}"),
                sequence_number_for_ordering: Some(number.into()),
            })
        );
    }

    /// Bodies as the AWS SDK for Java 2.33 sends them.
    #[test]
    fn bodies_of_the_java_sdk_are_read_straight() {
        let body = [
            b"\xbf\x64Data\x45hello\x6cPartitionKey\x64\xf0\x9f\x98\x80".as_slice(),
            b"\x78\x19SequenceNumberForOrdering\x6249\x69StreamARN\x78\x34",
            b"arn:aws:kinesis:us-east-1:123456789012:stream/orders\xff",
        ];
        let (request, straight) = agree::<PutRecordRequest<'_>>(Encoding::Cbor, body.concat());
        assert!(straight);
        let request = request.expect("is read");
        let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";
        assert_eq!(request.stream.arn.as_deref(), Some(arn));
        assert_eq!(request.record, entry(b"hello", "\u{1f600}"));
        assert_eq!(request.sequence_number_for_ordering.as_deref(), Some("49"));
        let body = [
            b"\xbf\x67Records\x9f".as_slice(),
            b"\xbf\x64Data\x43\x00\x01\xff\x6cPartitionKey\x63k\xc3\xa9\xff",
            b"\xbf\x64Data\x40\x6fExplicitHashKey\x61\x30\x6cPartitionKey\x61b\xff\xff",
            b"\x6aStreamName\x66orders\xff",
        ];
        let (request, straight) = agree::<PutRecordsRequest<'_>>(Encoding::Cbor, body.concat());
        assert!(straight);
        let request = request.expect("is read");
        assert_eq!(request.stream.name.as_deref(), Some("orders"));
        assert_eq!(request.records[0], entry(&[0, 1, 255], "k\u{e9}"));
        assert_eq!(request.records[1].data.len(), 0);
        assert_eq!(request.records[1].explicit_hash_key.as_deref(), Some("0"));
    }

    #[test]
    fn strings_of_cbor_may_come_in_pieces() {
        let body = [
            b"\xa2\x67Records\x81\xa2\x64Data\x5f\x41a\x41b\xff".as_slice(),
            b"\x6cPartitionKey\x7f\x61k\x61j\xff\x66DryRun\xf5",
        ];
        let (request, straight) = agree::<PutRecordsRequest<'_>>(Encoding::Cbor, body.concat());
        assert!(straight);
        let request = request.expect("is read");
        assert!(request.dry_run);
        assert_eq!(request.records, [entry(b"ab", "kj")]);
    }

    #[test]
    fn data_is_decoded_to_where_it_shall_lie() {
        let request = put_records(r#"{"Records":[{"Data":"AAH/"},{"Data":"AA\/\u002bAA=="}]}"#);
        let request = request.expect("is read");
        let [plain, escaped] = &request.records[..] else { panic!("two records") };
        assert!(matches!(plain.data.0, Source::Base64 { text: b"AAH/", len: 3 }));
        assert_eq!((plain.data.len(), plain.data.is_empty()), (3, false));
        let mut buffer = b"before".to_vec();
        plain.data.append_to(&mut buffer);
        escaped.data.append_to(&mut buffer);
        assert_eq!(buffer, b"before\x00\x01\xff\x00\x0f\xfe\x00");
        let mut place = [7; 3];
        plain.data.copy_to(&mut place);
        assert_eq!(place, [0, 1, 255]);
        let mut place = [7; 4];
        escaped.data.copy_to(&mut place);
        assert_eq!(place, [0, 15, 254, 0]);
        assert_eq!(format!("{:?}", plain.data), "Data(3 bytes)");
    }

    #[test]
    #[should_panic(expected = "the place has the data's length")]
    fn data_is_not_written_to_a_place_of_another_length() {
        Data::from(Cow::Borrowed(b"abc".as_slice())).copy_to(&mut [0; 4]);
    }

    #[test]
    fn what_is_refused_has_the_messages_of_the_general_way() {
        let refused = |body: &str| put_records(body).expect_err("is refused").to_string();
        assert_eq!(
            refused(r#"{"Records":[{"Data":"","PartitionKey":""}],"StreamName":"a b"}"#),
            "ValidationException: 2 validation errors detected: Value '' at \
             'records.1.member.partitionKey' failed to satisfy constraint: Member must have \
             length greater than or equal to 1; Value 'a b' at 'streamName' failed to satisfy \
             constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+"
        );
        assert!(refused("{}").contains("Value null at 'records'"));
        assert!(refused("").contains("Value null at 'records'"));
        assert!(refused(r#"{"Records":[]}"#).contains("greater than or equal to 1"));
        assert!(refused(r#"{"Records":[{}]}"#).contains("Value null at 'records.1.member.data'"));
        assert!(refused(r#"{"Records":[{"Data":"A"}]}"#).contains("multiple of 4 bytes"));
        assert!(refused(r#"{"Records":[{"Data":7}]}"#).contains("NUMBER_VALUE"));
        assert!(refused(r#"{"Records":[{"Data":""},]}"#).contains("trailing comma"));
        assert!(
            refused("{\"Records\":[{\"Data\":\"\"}],\"a\tb\":1}").contains("control character")
        );
        let key = "{\"Records\":[{\"Data\":\"\",\"PartitionKey\":\"a\tb\"}]}";
        assert!(refused(key).contains("control character"));
        let key = b"{\"Data\":\"\",\"PartitionKey\":\"a\xff\"}".to_vec();
        let key = agree::<PutRecordRequest<'_>>(Encoding::Json, key).0.expect_err("is refused");
        assert!(key.message.contains("invalid unicode"), "{key}");
        assert!(refused("{\"Records\":[{\"Data\":\"\"}]}}").contains("trailing characters"));
    }

    #[test]
    fn what_few_clients_write_is_read_the_general_way() {
        let general = |body: &str| {
            let (request, straight) = agree::<PutRecordsRequest<'_>>(Encoding::Json, body.into());
            assert!(!straight, "{body}");
            request.expect("is read")
        };
        let null = r#"{"Records":[{"Data":"","PartitionKey":null}],"StreamARN":null}"#;
        assert_eq!(general(null).records, [Entry { partition_key: None, ..entry(b"", "") }]);
        let twice = r#"{"Records":[{"Data":"AAAA","Data":"AQ=="}]}"#;
        assert_eq!(general(twice).records[0].data.bytes(), [1_u8].as_slice());
        assert!(general(r#"{"Records":[{"Data":""}],"DryRun":"true"}"#).dry_run);
        assert_eq!(general(r#"{"\u0052ecords":[{"Data":""}]}"#).records.len(), 1);
        // By escapes in strings alone, the straight way goes on.
        let slash = r#"{"Records":[{"Data":"AA\/\/"}],"Novel":{"a":[1.5e3,null,"\""]}}"#;
        assert!(agree::<PutRecordsRequest<'_>>(Encoding::Json, slash.into()).1);
    }

    #[test]
    fn counts_and_lengths_are_met_from_both_sides() {
        let body = |value: &Value, encoding| encoded(encoding, "PutRecords", value);
        for encoding in [Encoding::Json, Encoding::Cbor] {
            let records = |count: usize| json!({ "Records": vec![json!({ "Data": "" }); count] });
            let read =
                |value: &Value| agree::<PutRecordsRequest<'_>>(encoding, body(value, encoding));
            assert!(read(&records(500)).1);
            let message = read(&records(501)).0.expect_err("is too many").message;
            assert!(message.ends_with("Member must have length less than or equal to 500"));
            let key = |chars: usize| json!({ "Records": [{ "Data": "", "PartitionKey": "\u{1f600}".repeat(chars) }] });
            assert!(read(&key(256)).1);
            assert!(read(&key(257)).0.is_err());
            let hash = |hash: &str| json!({ "Records": [{ "Data": "", "ExplicitHashKey": hash }] });
            assert!(read(&hash(&"9".repeat(39))).1);
            assert!(["00", "-1", ""].iter().all(|text| read(&hash(text)).0.is_err()));
            assert!(read(&hash(&"9".repeat(40))).0.is_err());
            let data = |bytes: usize| {
                let text = base64_simd::STANDARD.encode_to_string(vec![0; bytes]);
                json!({ "Records": [{ "Data": text }] })
            };
            assert!(read(&data(10_485_760)).1);
            assert!(read(&data(10_485_761)).0.is_err());
        }
    }

    fn base64() -> impl Strategy<Value = String> {
        prop::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| base64_simd::STANDARD.encode_to_string(bytes))
    }

    /// Valid members of a record.
    fn records() -> impl Strategy<Value = Map<String, Value>> {
        let key = prop::option::of(".{1,10}");
        let hash = prop::option::of("0|[1-9][0-9]{0,20}");
        (base64(), key, hash).prop_map(|(data, key, hash)| {
            let mut record = Map::new();
            record.insert("Data".to_owned(), json!(data));
            record.extend(key.map(|key| ("PartitionKey".to_owned(), json!(key))));
            record.extend(hash.map(|hash| ("ExplicitHashKey".to_owned(), json!(hash))));
            record
        })
    }

    fn streams() -> impl Strategy<Value = Map<String, Value>> {
        let name = prop::option::of("[a-zA-Z0-9_.-]{1,20}");
        let arn = prop::option::of("arn:aws:kinesis:[a-z]{2}:[0-9]{12}:stream/[a-z]{1,5}");
        let id = prop::option::of("[a-z0-9]{20}-[a-z0-9]{3}");
        (name, arn, id, any::<Option<bool>>()).prop_map(|(name, arn, id, dry_run)| {
            let mut members = Map::new();
            members.extend(name.map(|name| ("StreamName".to_owned(), json!(name))));
            members.extend(arn.map(|arn| ("StreamARN".to_owned(), json!(arn))));
            members.extend(id.map(|id| ("StreamId".to_owned(), json!(id))));
            members.extend(dry_run.map(|dry_run| ("DryRun".to_owned(), json!(dry_run))));
            members
        })
    }

    proptest! {
        #[test]
        fn a_valid_put_records_is_read_straight(
            stream in streams(), records in prop::collection::vec(records(), 1..5),
            pretty in any::<bool>()
        ) {
            let mut value = stream;
            value.insert("Records".to_owned(), json!(records));
            let value = Value::Object(value);
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            prop_assert!(agree::<PutRecordsRequest<'_>>(Encoding::Json, text.into()).1);
            let body = encoded(Encoding::Cbor, "PutRecords", &value);
            prop_assert!(agree::<PutRecordsRequest<'_>>(Encoding::Cbor, body).1);
        }

        #[test]
        fn a_valid_put_record_is_read_straight(
            stream in streams(), record in records(), after in prop::option::of("[1-9][0-9]{0,60}")
        ) {
            let mut value = stream;
            value.extend(record);
            value.extend(after.map(|n| ("SequenceNumberForOrdering".to_owned(), json!(n))));
            let value = Value::Object(value);
            for encoding in [Encoding::Json, Encoding::Cbor] {
                let body = encoded(encoding, "PutRecord", &value);
                prop_assert!(agree::<PutRecordRequest<'_>>(encoding, body).1);
            }
        }

        #[test]
        fn any_put_records_of_right_types_is_judged_alike(
            value in values_of(model().shape(operation("PutRecords").input))
        ) {
            for encoding in [Encoding::Json, Encoding::Cbor] {
                let body = encoded(encoding, "PutRecords", &value);
                agree::<PutRecordsRequest<'_>>(encoding, body).0.ok();
            }
        }

        #[test]
        fn any_put_record_of_right_types_is_judged_alike(
            value in values_of(model().shape(operation("PutRecord").input))
        ) {
            for encoding in [Encoding::Json, Encoding::Cbor] {
                let body = encoded(encoding, "PutRecord", &value);
                agree::<PutRecordRequest<'_>>(encoding, body).0.ok();
            }
        }

        #[test]
        fn damaged_bodies_are_judged_alike(
            stream in streams(), record in records(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            json_bytes in prop::bool::weighted(0.7)
        ) {
            let mut many = stream.clone();
            many.insert("Records".to_owned(), json!([record, record]));
            let mut one = stream;
            one.extend(record);
            let damaged = |mut body: Vec<u8>| {
                for (at, byte) in &damage {
                    let at = at.index(body.len());
                    // Bytes that mean something to JSON hit more than others.
                    let json = b"{}[],:\"\\ \n0tfnu";
                    body[at] = if json_bytes { json[usize::from(*byte) % json.len()] } else { *byte };
                }
                body
            };
            for encoding in [Encoding::Json, Encoding::Cbor] {
                let body = encoded(encoding, "PutRecords", &json!(many));
                agree::<PutRecordsRequest<'_>>(encoding, damaged(body)).0.ok();
                let body = encoded(encoding, "PutRecord", &json!(one));
                agree::<PutRecordRequest<'_>>(encoding, damaged(body)).0.ok();
            }
        }

        #[test]
        fn any_bytes_are_judged_alike(body in prop::collection::vec(any::<u8>(), 0..100)) {
            for encoding in [Encoding::Json, Encoding::Cbor] {
                agree::<PutRecordsRequest<'_>>(encoding, body.clone()).0.ok();
                agree::<PutRecordRequest<'_>>(encoding, body.clone()).0.ok();
            }
        }
    }

    /// `cargo test --release -p thalweg-router records_by -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement: it prints times and judges nothing"]
    fn records_by_the_microsecond() {
        let record = |n: usize| {
            let data: Vec<u8> = (0..1024_usize).map(|i| ((i * 31 + n * 7) % 251) as u8).collect();
            json!({
                "Data": base64_simd::STANDARD.encode_to_string(data),
                "PartitionKey": format!("partition-key-{n:06}")
            })
        };
        let many = json!({
            "StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/orders",
            "Records": (0..500).map(record).collect::<Vec<_>>()
        });
        let mut one = record(1);
        one["StreamName"] = json!("orders");
        for encoding in [Encoding::Json, Encoding::Cbor] {
            let body = encoded(encoding, "PutRecords", &many);
            report(&format!("{encoding:?}: PutRecords of 500 x 1 KiB, read"), || {
                let request = decode_put_records(encoding, black_box(&body)).expect("is valid");
                black_box(request.records.len());
            });
            let mut place = Vec::with_capacity(1 << 20);
            report(&format!("{encoding:?}: the same, and its data decoded to one place"), || {
                let request = decode_put_records(encoding, black_box(&body)).expect("is valid");
                place.clear();
                for record in &request.records {
                    record.data.append_to(&mut place);
                }
                black_box(&place);
            });
            report(&format!("{encoding:?}: the same, the general way, without decoding"), || {
                let request = general("PutRecords", encoding, black_box(&body));
                black_box(request.expect("is valid").len());
            });
            let body = encoded(encoding, "PutRecord", &one);
            report(&format!("{encoding:?}: PutRecord of 1 KiB, read"), || {
                let request = decode_put_record(encoding, black_box(&body)).expect("is valid");
                black_box(request.record.data.len());
            });
        }
    }

    /// Prints the median and the least time of many runs.
    pub(in super::super) fn report(what: &str, mut run: impl FnMut()) {
        let mut times_ns: Vec<u128> = (0..2000)
            .map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_nanos()
            })
            .collect();
        times_ns.sort_unstable();
        let us = |index: usize| times_ns[index] as f64 / 1000.0;
        println!("{what}: median {:.1} us, least {:.1} us", us(times_ns.len() / 2), us(0));
    }
}
