//! What of an answer is of interest, read where it lies, in both encodings.
//!
//! Members may come in any order, unknown ones are passed over. Everything that is claimed of an
//! answer was looked at: that there is a result for each record, that the count of failures is
//! that of the results which failed, that a result tells either a place or an error, and that
//! numbers and ids have the shapes of the service model.

mod cbor;
mod json;

use std::borrow::Cow;

use thiserror::Error;

use super::encode::Encoding;

/// Longest sequence number (service model, `SequenceNumber`).
const SEQUENCE_NUMBER_DIGITS_MAX: usize = 129;
/// Longest shard id (service model, `ShardId`).
const SHARD_ID_CHARS_MAX: usize = 128;
/// Levels of lists and maps within a value that is passed over.
const DEPTH_MAX: usize = 32;
/// Of what a server says, people are shown so much.
const SHOWN_CHARS_MAX: usize = 300;

/// An answer is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ScanError {
    /// It is neither JSON nor CBOR of the expected form.
    #[error("{what} at byte {at}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// A member is missing that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A member has not the form that it must have.
    #[error("{member} is {found:?}")]
    Shape {
        /// Which.
        member: &'static str,
        /// What it is, at most its beginning.
        found: String,
    },
    /// Results are missing, or are too many.
    #[error("it has {found} results for {expected} records")]
    Results {
        /// Records of the request.
        expected: usize,
        /// Results of the answer.
        found: usize,
    },
    /// The count of failures is another than that of the results.
    #[error("FailedRecordCount is {told}, and {found} results failed")]
    Failures {
        /// What the answer tells.
        told: u64,
        /// What it has.
        found: u64,
    },
}

/// Where a record is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place<'a> {
    /// Its shard.
    pub shard: Cow<'a, [u8]>,
    /// Its sequence number, decimal.
    pub number: Cow<'a, [u8]>,
}

/// What became of a record of PutRecords.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PutResult<'a> {
    /// It is stored.
    Stored(Place<'a>),
    /// It is not, or nobody knows.
    Failed {
        /// The error's type.
        code: String,
        /// What the server says of it.
        message: String,
    },
}

/// A record that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordRead<'a> {
    /// Decimal.
    pub number: &'a [u8],
    /// Absent when the answer has none.
    pub partition_key: Option<&'a [u8]>,
    /// Decoded.
    pub data: &'a [u8],
}

/// What an answer says beside its records: of GetRecords, or an event of SubscribeToShard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Records in it.
    pub records: usize,
    /// Bytes of their data.
    pub bytes: u64,
    /// Where to go on, an iterator or a sequence number; none at the end of a shard.
    pub next: Option<String>,
    /// Milliseconds behind the tip; some servers do not tell.
    pub millis_behind: Option<u64>,
}

/// An error as the API tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiError {
    /// Its type, without what may stand before `#`.
    pub kind: String,
    /// What the server says.
    pub message: String,
}

/// Reads values, one after the other.
trait Scan<'a>: Sized {
    /// Reads a map: `member` is given each name and must read, or skip, its value.
    fn map(
        &mut self,
        member: impl FnMut(&mut Self, &[u8]) -> Result<(), ScanError>,
    ) -> Result<(), ScanError>;
    /// Reads a list: `element` must read, or skip, each element.
    fn list(
        &mut self,
        element: impl FnMut(&mut Self) -> Result<(), ScanError>,
    ) -> Result<(), ScanError>;
    /// Reads a text; none for null.
    fn text(&mut self) -> Result<Option<Cow<'a, [u8]>>, ScanError>;
    /// Reads bytes, decoded, to the end of `out`.
    fn data(&mut self, out: &mut Vec<u8>) -> Result<(), ScanError>;
    /// Reads a whole number that is not negative.
    fn number(&mut self) -> Result<u64, ScanError>;
    /// Passes over a value of at most so many levels.
    fn skip(&mut self, depth: usize) -> Result<(), ScanError>;
    /// Makes sure that nothing follows.
    fn end(&mut self) -> Result<(), ScanError>;
}

/// Reads an answer to PutRecords of `expected` records; `each` is given every result, by the index
/// of its record.
///
/// # Errors
/// [`ScanError`]; `each` may have been given some results by then, of which none counts.
pub fn put_records<'a>(
    encoding: Encoding,
    body: &'a [u8],
    expected: usize,
    each: impl FnMut(usize, PutResult<'a>),
) -> Result<(), ScanError> {
    match encoding {
        Encoding::Json => put_records_in(json::Scanner::new(body), expected, each),
        Encoding::Cbor => put_records_in(cbor::Scanner::new(body), expected, each),
    }
}

/// Reads an answer to PutRecord: the shard and the sequence number.
///
/// # Errors
/// [`ScanError`].
pub fn put_record(encoding: Encoding, body: &[u8]) -> Result<Place<'_>, ScanError> {
    match encoding {
        Encoding::Json => put_record_in(json::Scanner::new(body)),
        Encoding::Cbor => put_record_in(cbor::Scanner::new(body)),
    }
}

/// Reads an answer to GetRecords, or an event of SubscribeToShard; `each` is given every record.
/// `scratch` has room for the data of one, and is used again.
///
/// # Errors
/// [`ScanError`]; `each` may have been given some records by then.
pub fn page(
    encoding: Encoding,
    body: &[u8],
    scratch: &mut Vec<u8>,
    each: impl FnMut(&RecordRead<'_>),
) -> Result<Page, ScanError> {
    match encoding {
        Encoding::Json => page_in(json::Scanner::new(body), scratch, each),
        Encoding::Cbor => page_in(cbor::Scanner::new(body), scratch, each),
    }
}

/// Reads the answer to GetShardIterator.
///
/// # Errors
/// [`ScanError`].
pub fn shard_iterator(encoding: Encoding, body: &[u8]) -> Result<String, ScanError> {
    match encoding {
        Encoding::Json => shard_iterator_in(json::Scanner::new(body)),
        Encoding::Cbor => shard_iterator_in(cbor::Scanner::new(body)),
    }
}

/// Reads an error; none if the body is none in either encoding.
#[must_use]
pub fn error(body: &[u8]) -> Option<ApiError> {
    // Servers may answer in another encoding than they were asked in.
    error_in(json::Scanner::new(body)).or_else(|_| error_in(cbor::Scanner::new(body))).ok()
}

/// What an exception in an event stream says; its type stands in a header.
#[must_use]
pub fn exception_message(encoding: Encoding, body: &[u8]) -> Option<String> {
    match encoding {
        Encoding::Json => exception_message_in(json::Scanner::new(body)),
        Encoding::Cbor => exception_message_in(cbor::Scanner::new(body)),
    }
    .ok()
}

/// The beginning of what a server says, for people.
#[must_use]
pub fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut shown: String =
        text.chars().take(SHOWN_CHARS_MAX).filter(|char| !char.is_control()).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str(" ...");
    }
    shown
}

fn put_records_in<'a, S: Scan<'a>>(
    mut scan: S,
    expected: usize,
    mut each: impl FnMut(usize, PutResult<'a>),
) -> Result<(), ScanError> {
    let (mut results, mut failed, mut told) = (None, 0, None);
    scan.map(|scan, name| match name {
        b"Records" => {
            let mut count = 0;
            scan.list(|scan| {
                let result = put_result(scan)?;
                failed += u64::from(matches!(result, PutResult::Failed { .. }));
                // More than there are records belong to nobody; they are counted.
                if count < expected {
                    each(count, result);
                }
                count += 1;
                Ok(())
            })?;
            results = Some(results.unwrap_or(0) + count);
            Ok(())
        }
        b"FailedRecordCount" => {
            told = Some(scan.number()?);
            Ok(())
        }
        _ => scan.skip(DEPTH_MAX),
    })?;
    scan.end()?;
    let found = results.ok_or(ScanError::Missing("Records"))?;
    if found != expected {
        return Err(ScanError::Results { expected, found });
    }
    let told = told.ok_or(ScanError::Missing("FailedRecordCount"))?;
    if told != failed {
        return Err(ScanError::Failures { told, found: failed });
    }
    Ok(())
}

fn put_result<'a, S: Scan<'a>>(scan: &mut S) -> Result<PutResult<'a>, ScanError> {
    let (mut shard, mut number, mut code, mut message) = (None, None, None, None);
    scan.map(|scan, name| {
        match name {
            b"SequenceNumber" => number = scan.text()?,
            b"ShardId" => shard = scan.text()?,
            b"ErrorCode" => code = scan.text()?,
            b"ErrorMessage" => message = scan.text()?,
            _ => scan.skip(DEPTH_MAX)?,
        }
        Ok(())
    })?;
    if let Some(code) = code {
        let (code, message) = (shown(&code), shown(&message.unwrap_or_default()));
        return Ok(PutResult::Failed { code, message });
    }
    let shard = check_shard(shard)?;
    let number = check_number(number)?;
    Ok(PutResult::Stored(Place { shard, number }))
}

fn put_record_in<'a, S: Scan<'a>>(mut scan: S) -> Result<Place<'a>, ScanError> {
    let (mut shard, mut number) = (None, None);
    scan.map(|scan, name| {
        match name {
            b"SequenceNumber" => number = scan.text()?,
            b"ShardId" => shard = scan.text()?,
            _ => scan.skip(DEPTH_MAX)?,
        }
        Ok(())
    })?;
    scan.end()?;
    Ok(Place { shard: check_shard(shard)?, number: check_number(number)? })
}

fn page_in<'a, S: Scan<'a>>(
    mut scan: S,
    scratch: &mut Vec<u8>,
    mut each: impl FnMut(&RecordRead<'_>),
) -> Result<Page, ScanError> {
    let mut page = Page { records: 0, bytes: 0, next: None, millis_behind: None };
    let mut has_records = false;
    scan.map(|scan, name| {
        match name {
            b"Records" => {
                has_records = true;
                scan.list(|scan| {
                    let (mut number, mut key, mut has_data) = (None, None, false);
                    scratch.clear();
                    scan.map(|scan, name| {
                        match name {
                            b"SequenceNumber" => number = scan.text()?,
                            b"PartitionKey" => key = scan.text()?,
                            b"Data" => {
                                scratch.clear();
                                scan.data(scratch)?;
                                has_data = true;
                            }
                            _ => scan.skip(DEPTH_MAX)?,
                        }
                        Ok(())
                    })?;
                    if !has_data {
                        return Err(ScanError::Missing("Data"));
                    }
                    let number = check_number(number)?;
                    page.records += 1;
                    page.bytes += scratch.len() as u64;
                    each(&RecordRead {
                        number: &number,
                        partition_key: key.as_deref(),
                        data: &scratch[..],
                    });
                    Ok(())
                })?;
            }
            b"NextShardIterator" | b"ContinuationSequenceNumber" => {
                page.next = scan.text()?.map(owned).transpose()?;
            }
            b"MillisBehindLatest" => page.millis_behind = Some(scan.number()?),
            _ => scan.skip(DEPTH_MAX)?,
        }
        Ok(())
    })?;
    scan.end()?;
    if has_records { Ok(page) } else { Err(ScanError::Missing("Records")) }
}

fn shard_iterator_in<'a, S: Scan<'a>>(mut scan: S) -> Result<String, ScanError> {
    let mut iterator = None;
    scan.map(|scan, name| match name {
        b"ShardIterator" => {
            iterator = scan.text()?;
            Ok(())
        }
        _ => scan.skip(DEPTH_MAX),
    })?;
    scan.end()?;
    owned(iterator.ok_or(ScanError::Missing("ShardIterator"))?)
}

fn error_in<'a, S: Scan<'a>>(mut scan: S) -> Result<ApiError, ScanError> {
    let (mut kind, mut message) = (None, None);
    scan.map(|scan, name| {
        match name {
            b"__type" => kind = scan.text()?,
            b"message" | b"Message" => message = scan.text()?,
            _ => scan.skip(DEPTH_MAX)?,
        }
        Ok(())
    })?;
    let kind = shown(&kind.ok_or(ScanError::Missing("__type"))?);
    // Some servers put a namespace before the name.
    let kind = kind.rsplit('#').next().unwrap_or(&kind).to_owned();
    Ok(ApiError { kind, message: shown(&message.unwrap_or_default()) })
}

fn exception_message_in<'a, S: Scan<'a>>(mut scan: S) -> Result<String, ScanError> {
    let mut message = None;
    scan.map(|scan, name| match name {
        b"message" | b"Message" => {
            message = scan.text()?;
            Ok(())
        }
        _ => scan.skip(DEPTH_MAX),
    })?;
    Ok(shown(&message.unwrap_or_default()))
}

fn owned(text: Cow<'_, [u8]>) -> Result<String, ScanError> {
    String::from_utf8(text.into_owned()).map_err(|error| {
        let found = shown(error.as_bytes());
        ScanError::Shape { member: "a text", found }
    })
}

fn check_number(number: Option<Cow<'_, [u8]>>) -> Result<Cow<'_, [u8]>, ScanError> {
    const MEMBER: &str = "SequenceNumber";
    let number = number.ok_or(ScanError::Missing(MEMBER))?;
    let fits = matches!(number.len(), 1..=SEQUENCE_NUMBER_DIGITS_MAX)
        && number.iter().all(u8::is_ascii_digit)
        && (number[0] != b'0' || number.len() == 1);
    if fits {
        return Ok(number);
    }
    Err(ScanError::Shape { member: MEMBER, found: shown(&number) })
}

fn check_shard(shard: Option<Cow<'_, [u8]>>) -> Result<Cow<'_, [u8]>, ScanError> {
    const MEMBER: &str = "ShardId";
    let shard = shard.ok_or(ScanError::Missing(MEMBER))?;
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    if matches!(shard.len(), 1..=SHARD_ID_CHARS_MAX) && shard.iter().all(is_part) {
        return Ok(shard);
    }
    Err(ScanError::Shape { member: MEMBER, found: shown(&shard) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const BOTH: [Encoding; 2] = [Encoding::Json, Encoding::Cbor];
    const NUMBER: &str = "49590338271490256608559692538361571095921575989136588898";
    const SHARD: &str = "shardId-000000000001";

    /// A value as others write it; `Data` is bytes where the encoding has them.
    fn written(encoding: Encoding, value: &Value) -> Vec<u8> {
        match encoding {
            Encoding::Json => serde_json::to_vec(value).unwrap(),
            Encoding::Cbor => {
                let mut body = Vec::new();
                ciborium::into_writer(&as_cbor("", value), &mut body).unwrap();
                body
            }
        }
    }

    fn as_cbor(name: &str, value: &Value) -> ciborium::Value {
        use ciborium::Value as Cbor;
        match value {
            Value::String(text) if name == "Data" => {
                Cbor::Bytes(base64_simd::STANDARD.decode_to_vec(text).unwrap())
            }
            Value::Number(number) if name == "ApproximateArrivalTimestamp" => {
                let ms = (number.as_f64().unwrap() * 1000.0) as u64;
                Cbor::Tag(1, Box::new(Cbor::Integer(ms.into())))
            }
            Value::Array(list) => Cbor::Array(list.iter().map(|of| as_cbor("", of)).collect()),
            Value::Object(map) => {
                let members =
                    map.iter().map(|(name, of)| (Cbor::Text(name.clone()), as_cbor(name, of)));
                Cbor::Map(members.collect())
            }
            Value::String(text) => Cbor::Text(text.clone()),
            Value::Number(number) => match number.as_u64() {
                Some(number) => Cbor::Integer(number.into()),
                None => Cbor::Float(number.as_f64().unwrap()),
            },
            Value::Bool(value) => Cbor::Bool(*value),
            Value::Null => Cbor::Null,
        }
    }

    /// The results of a PutRecords answer, as text.
    fn results(encoding: Encoding, body: &[u8], expected: usize) -> Result<Vec<String>, ScanError> {
        let mut results = Vec::new();
        put_records(encoding, body, expected, |at, result| {
            assert_eq!(at, results.len());
            results.push(match result {
                PutResult::Stored(Place { shard, number }) => {
                    format!("{} {}", shown(&shard), shown(&number))
                }
                PutResult::Failed { code, message } => format!("{code}: {message}"),
            });
        })?;
        Ok(results)
    }

    #[test]
    fn results_of_put_records_are_told_apart() {
        let answer = json!({
            "EncryptionType": "NONE",
            "FailedRecordCount": 2,
            "Records": [
                { "SequenceNumber": NUMBER, "ShardId": SHARD },
                { "ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "a \"b\"" },
                { "ShardId": SHARD, "SequenceNumber": "0", "ErrorCode": null, "New": [{"a": 1.5}] },
                { "ErrorCode": "InternalFailure", "SequenceNumber": null },
            ],
        });
        for encoding in BOTH {
            let results = results(encoding, &written(encoding, &answer), 4).unwrap();
            assert_eq!(results[0], format!("{SHARD} {NUMBER}"));
            assert_eq!(results[1], "ProvisionedThroughputExceededException: a \"b\"");
            assert_eq!(results[2], format!("{SHARD} 0"));
            assert_eq!(results[3], "InternalFailure: ");
        }
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_refused() {
        let stored = json!({ "SequenceNumber": NUMBER, "ShardId": SHARD });
        let with = |name: &str, value: Value| {
            let mut result = stored.clone();
            result[name] = value;
            json!({ "FailedRecordCount": 0, "Records": [result] })
        };
        let wrong = [
            (json!({ "FailedRecordCount": 0, "Records": [] }), "0 results for 1"),
            (json!({ "FailedRecordCount": 0, "Records": [stored, stored] }), "2 results for 1"),
            (json!({ "FailedRecordCount": 1, "Records": [stored] }), "0 results failed"),
            (json!({ "FailedRecordCount": 0, "Records": [{ "ErrorCode": "E" }] }), "1 results"),
            (json!({ "Records": [stored] }), "FailedRecordCount is missing"),
            (json!({ "FailedRecordCount": 0 }), "Records is missing"),
            (json!({ "FailedRecordCount": -1, "Records": [stored] }), "number"),
            (with("SequenceNumber", Value::Null), "SequenceNumber is missing"),
            (with("SequenceNumber", json!("")), "SequenceNumber is \"\""),
            (with("SequenceNumber", json!("01")), "SequenceNumber is \"01\""),
            (with("SequenceNumber", json!("1e3")), "SequenceNumber is"),
            (with("SequenceNumber", json!("1".repeat(130))), "SequenceNumber is"),
            (with("SequenceNumber", json!(7)), "at byte"),
            (with("ShardId", json!("")), "ShardId is"),
            (with("ShardId", json!("a/b")), "ShardId is"),
            (json!([]), "at byte"),
        ];
        for encoding in BOTH {
            for (answer, expected) in &wrong {
                let error = results(encoding, &written(encoding, answer), 1).unwrap_err();
                let error = error.to_string();
                assert!(error.contains(expected), "{encoding:?} {answer}: {error}");
            }
        }
    }

    #[test]
    fn records_are_read_with_their_data() {
        let data = [vec![], vec![0, 1, 255], vec![7; 5000]];
        let records: Vec<Value> = data
            .iter()
            .enumerate()
            .map(|(at, data)| {
                json!({
                    "SequenceNumber": format!("1{at}"),
                    "ApproximateArrivalTimestamp": 1_795_521_600.007_f64,
                    "Data": base64_simd::STANDARD.encode_to_string(data),
                    "PartitionKey": format!("k\u{e9}\"{at}"),
                    "EncryptionType": "NONE",
                })
            })
            .collect();
        let answer = json!({
            "MillisBehindLatest": 12, "NextShardIterator": "AAA/+=", "Records": records,
            "ChildShards": [{ "ShardId": SHARD, "ParentShards": ["a", "b"] }],
        });
        for encoding in BOTH {
            let (mut scratch, mut found) = (Vec::new(), Vec::new());
            let page = page(encoding, &written(encoding, &answer), &mut scratch, |record| {
                let key = String::from_utf8(record.partition_key.unwrap().to_vec()).unwrap();
                found.push((shown(record.number), key, record.data.to_vec()));
            });
            let page = page.unwrap();
            assert_eq!((page.records, page.bytes), (3, 5003));
            assert_eq!(page.next.as_deref(), Some("AAA/+="));
            assert_eq!(page.millis_behind, Some(12));
            for (at, data) in data.iter().enumerate() {
                let expected = (format!("1{at}"), format!("k\u{e9}\"{at}"), data.clone());
                assert_eq!(found[at], expected);
            }
        }
    }

    #[test]
    fn the_end_of_a_shard_and_missing_members_are_seen() {
        for encoding in BOTH {
            let read = |answer: &Value| {
                page(encoding, &written(encoding, answer), &mut Vec::new(), |_| {})
            };
            let end = json!({ "Records": [], "NextShardIterator": null, "MillisBehindLatest": 0 });
            assert_eq!(read(&end).unwrap().next, None);
            let event = json!({ "Records": [], "ContinuationSequenceNumber": NUMBER });
            assert_eq!(read(&event).unwrap().next.as_deref(), Some(NUMBER));
            assert_eq!(read(&json!({})), Err(ScanError::Missing("Records")));
            let bare = json!({ "Records": [{ "SequenceNumber": "1" }] });
            assert_eq!(read(&bare), Err(ScanError::Missing("Data")));
            let iterator = written(encoding, &json!({ "ShardIterator": "AAA=" }));
            assert_eq!(shard_iterator(encoding, &iterator).unwrap(), "AAA=");
            let put =
                json!({ "ShardId": SHARD, "SequenceNumber": NUMBER, "EncryptionType": "KMS" });
            let put = written(encoding, &put);
            let Place { shard, number } = put_record(encoding, &put).unwrap();
            assert_eq!((shown(&shard), shown(&number)), (SHARD.into(), NUMBER.into()));
        }
    }

    #[test]
    fn errors_are_read_in_either_encoding() {
        for encoding in BOTH {
            let body = json!({ "__type": "com.amazon#LimitExceededException", "message": "slow" });
            let found = error(&written(encoding, &body)).unwrap();
            let found = (found.kind.as_str(), found.message.as_str());
            assert_eq!(found, ("LimitExceededException", "slow"));
            let exception = written(encoding, &json!({ "message": "gone", "more": [] }));
            assert_eq!(exception_message(encoding, &exception).as_deref(), Some("gone"));
            assert_eq!(exception_message(encoding, b"\xff"), None);
        }
        for body in [&b""[..], b"<AccessDeniedException/>", b"{}", b"\xff", b"[1]"] {
            assert_eq!(error(body), None);
        }
    }

    #[test]
    fn what_is_shown_is_short_and_of_one_line() {
        assert_eq!(shown(b"a\nb\x1b[1m"), "ab[1m");
        let long = shown(&[b'x'; 1000]);
        assert!(long.len() < 310 && long.ends_with(" ..."));
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(
            mut body in prop::collection::vec(any::<u8>(), 0..200),
            first in prop::sample::select(vec![b'{', 0xa2, 0xbf, 0x9f]),
        ) {
            if let Some(byte) = body.first_mut() {
                *byte = first;
            }
            for encoding in BOTH {
                let _ = put_records(encoding, &body, 2, |_, _| {});
                let _ = put_record(encoding, &body);
                let _ = page(encoding, &body, &mut Vec::new(), |_| {});
                let _ = error(&body);
            }
        }

        #[test]
        fn an_answer_that_was_cut_or_changed_never_passes_for_another(
            cut in 0_usize..400, at in 0_usize..400, to in any::<u8>(),
        ) {
            let answer = json!({ "FailedRecordCount": 0, "Records": [
                { "SequenceNumber": NUMBER, "ShardId": SHARD },
                { "SequenceNumber": "17", "ShardId": SHARD },
            ]});
            for encoding in BOTH {
                let whole = written(encoding, &answer);
                let cut = &whole[..cut % whole.len()];
                prop_assert!(results(encoding, cut, 2).is_err());
                let mut changed = whole.clone();
                let at = at % changed.len();
                changed[at] = to;
                // Whatever is read of it has a place for both records.
                if let Ok(results) = results(encoding, &changed, 2) {
                    prop_assert_eq!(results.len(), 2);
                }
            }
        }
    }
}
