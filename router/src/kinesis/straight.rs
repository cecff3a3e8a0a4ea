//! The straight way through the body of a valid PutRecords or PutRecord: every member is looked at
//! once, where it lies.
//!
//! `None` says that this way ends: the body may still be valid, but is not as nearly all clients
//! write it, and the general way (`records.rs`) is to judge it. What comes out here must be what
//! would come out there; the tests of `records.rs` hold the two against each other.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memchr2;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::cbor::{Header, Reader, simple};
use super::codec::Encoding;
use super::model::{Shape, model};
use super::records::{Data, Entry, PutRecordRequest, PutRecordsRequest, StreamReference};

/// A valid PutRecords request.
pub(super) fn put_records(encoding: Encoding, body: &[u8]) -> Option<PutRecordsRequest<'_>> {
    match encoding {
        Encoding::Json => json::put_records(body),
        Encoding::Cbor => cbor::put_records(body),
    }
}

/// A valid PutRecord request.
pub(super) fn put_record(encoding: Encoding, body: &[u8]) -> Option<PutRecordRequest<'_>> {
    match encoding {
        Encoding::Json => json::put_record(body),
        Encoding::Cbor => cbor::put_record(body),
    }
}

/// The shapes whose constraints the straight way checks.
struct Known {
    records: &'static Shape,
    data: &'static Shape,
    partition_key: &'static Shape,
    hash_key: &'static Shape,
    sequence_number: &'static Shape,
    stream_name: &'static Shape,
    stream_arn: &'static Shape,
    stream_id: &'static Shape,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let shape = |name| model().shape_named(name).expect("the model has the shape");
    Known {
        records: shape("PutRecordsRequestEntryList"),
        data: shape("Data"),
        partition_key: shape("PartitionKey"),
        hash_key: shape("HashKey"),
        sequence_number: shape("SequenceNumber"),
        stream_name: shape("StreamName"),
        stream_arn: shape("StreamARN"),
        stream_id: shape("StreamId"),
    }
});

/// The members of a request on the straight way, each at most once: which of several counts is for
/// the general way to say.
#[derive(Default)]
struct Members<'a> {
    records: Option<Vec<Entry<'a>>>,
    data: Option<Data<'a>>,
    partition_key: Option<Cow<'a, str>>,
    explicit_hash_key: Option<Cow<'a, str>>,
    sequence_number_for_ordering: Option<Cow<'a, str>>,
    stream: StreamReference<'a>,
    dry_run: Option<bool>,
}

/// A member that a request may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MemberName {
    Records,
    Data,
    PartitionKey,
    ExplicitHashKey,
    SequenceNumberForOrdering,
    StreamName,
    StreamArn,
    StreamId,
    DryRun,
}

impl MemberName {
    fn of_put_records(name: &[u8]) -> Option<MemberName> {
        match name {
            b"Records" => Some(MemberName::Records),
            b"DryRun" => Some(MemberName::DryRun),
            name => MemberName::of_stream(name),
        }
    }

    fn of_put_record(name: &[u8]) -> Option<MemberName> {
        match name {
            b"DryRun" => Some(MemberName::DryRun),
            b"SequenceNumberForOrdering" => Some(MemberName::SequenceNumberForOrdering),
            name => MemberName::of_entry(name).or_else(|| MemberName::of_stream(name)),
        }
    }

    fn of_entry(name: &[u8]) -> Option<MemberName> {
        match name {
            b"Data" => Some(MemberName::Data),
            b"PartitionKey" => Some(MemberName::PartitionKey),
            b"ExplicitHashKey" => Some(MemberName::ExplicitHashKey),
            _ => None,
        }
    }

    fn of_stream(name: &[u8]) -> Option<MemberName> {
        match name {
            b"StreamName" => Some(MemberName::StreamName),
            b"StreamARN" => Some(MemberName::StreamArn),
            b"StreamId" => Some(MemberName::StreamId),
            _ => None,
        }
    }
}

impl<'a> Members<'a> {
    /// Keeps a text whose constraints hold.
    fn keep_text(&mut self, name: MemberName, text: Cow<'a, str>) -> Option<()> {
        let known = &*KNOWN;
        let (shape, slot) = match name {
            MemberName::PartitionKey => (known.partition_key, &mut self.partition_key),
            MemberName::ExplicitHashKey => (known.hash_key, &mut self.explicit_hash_key),
            MemberName::SequenceNumberForOrdering => {
                (known.sequence_number, &mut self.sequence_number_for_ordering)
            }
            MemberName::StreamName => (known.stream_name, &mut self.stream.name),
            MemberName::StreamArn => (known.stream_arn, &mut self.stream.arn),
            MemberName::StreamId => (known.stream_id, &mut self.stream.id),
            MemberName::Records | MemberName::Data | MemberName::DryRun => return None,
        };
        if !shape.allows_text(&text) {
            return None;
        }
        keep(slot, text)
    }

    /// Keeps data whose constraints hold.
    fn keep_data(&mut self, data: Data<'a>) -> Option<()> {
        if !KNOWN.data.allows_length(data.len()) {
            return None;
        }
        keep(&mut self.data, data)
    }

    fn into_entry(self) -> Option<Entry<'a>> {
        let Members { data, partition_key, explicit_hash_key, .. } = self;
        Some(Entry { data: data?, partition_key, explicit_hash_key })
    }

    fn into_put_records(self) -> Option<PutRecordsRequest<'a>> {
        let records = self.records?;
        if !KNOWN.records.allows_length(records.len()) {
            return None;
        }
        Some(PutRecordsRequest {
            records,
            dry_run: self.dry_run.unwrap_or(false),
            stream: self.stream,
        })
    }

    fn into_put_record(self) -> Option<PutRecordRequest<'a>> {
        let Members { data, partition_key, explicit_hash_key, .. } = self;
        Some(PutRecordRequest {
            record: Entry { data: data?, partition_key, explicit_hash_key },
            dry_run: self.dry_run.unwrap_or(false),
            sequence_number_for_ordering: self.sequence_number_for_ordering,
            stream: self.stream,
        })
    }
}

/// Keeps what comes first and nothing after it.
fn keep<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    if slot.is_some() {
        return None;
    }
    *slot = Some(value);
    Some(())
}

/// Records a request may have, for the straight way to stop in time.
fn records_max() -> usize {
    KNOWN.records.max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX)
}

/// The straight way through JSON. Strings end where SIMD finds the next quote; those with escapes,
/// and whatever nobody asked for, are left to `serde_json`.
mod json {
    use super::*;

    pub(super) fn put_records(body: &[u8]) -> Option<PutRecordsRequest<'_>> {
        let mut members = Members::default();
        let mut cursor = Cursor { body, at: 0 };
        cursor.object(|cursor, name| match MemberName::of_put_records(name) {
            Some(MemberName::Records) => {
                let records = cursor.records()?;
                keep(&mut members.records, records)
            }
            name => cursor.member(name, &mut members),
        })?;
        cursor.end()?;
        members.into_put_records()
    }

    pub(super) fn put_record(body: &[u8]) -> Option<PutRecordRequest<'_>> {
        let mut members = Members::default();
        let mut cursor = Cursor { body, at: 0 };
        cursor
            .object(|cursor, name| cursor.member(MemberName::of_put_record(name), &mut members))?;
        cursor.end()?;
        members.into_put_record()
    }

    /// A body and how far it was read. `None` says that the straight way ends here.
    struct Cursor<'a> {
        body: &'a [u8],
        at: usize,
    }

    impl<'a> Cursor<'a> {
        fn records(&mut self) -> Option<Vec<Entry<'a>>> {
            let mut records = Vec::new();
            self.take(b'[')?;
            if self.is_next(b']') {
                return None;
            }
            loop {
                if records.len() == records_max() {
                    return None;
                }
                let mut members = Members::default();
                self.object(|cursor, name| {
                    cursor.member(MemberName::of_entry(name), &mut members)
                })?;
                records.push(members.into_entry()?);
                match self.byte()? {
                    b',' => {}
                    b']' => return Some(records),
                    _ => return None,
                }
            }
        }

        /// Reads a member's value, whatever it is; `None` has no name the request knows.
        fn member(&mut self, name: Option<MemberName>, members: &mut Members<'a>) -> Option<()> {
            match name {
                None => self.other::<IgnoredAny>().map(drop),
                Some(MemberName::Data) => {
                    let data = self.data()?;
                    members.keep_data(data)
                }
                Some(MemberName::DryRun) => {
                    let value = self.other::<bool>()?;
                    keep(&mut members.dry_run, value)
                }
                Some(name) => {
                    let text = self.text()?;
                    members.keep_text(name, text)
                }
            }
        }

        /// Reads an object, calling `member` at each value.
        fn object(&mut self, mut member: impl FnMut(&mut Self, &[u8]) -> Option<()>) -> Option<()> {
            self.take(b'{')?;
            if self.is_next(b'}') {
                self.at += 1;
                return Some(());
            }
            loop {
                // The names of the API are plain ASCII; others are for the general way to judge.
                let name = self.plain().filter(|name| name.iter().all(u8::is_ascii_graphic))?;
                self.take(b':')?;
                member(self, name)?;
                match self.byte()? {
                    b',' => {}
                    b'}' => return Some(()),
                    _ => return None,
                }
            }
        }

        fn text(&mut self) -> Option<Cow<'a, str>> {
            let start = self.at;
            match self.plain() {
                Some(bytes) if !bytes.iter().any(|byte| *byte < b' ') => {
                    std::str::from_utf8(bytes).ok().map(Cow::Borrowed)
                }
                Some(_) => None,
                None => {
                    self.at = start;
                    self.other::<String>().map(Cow::Owned)
                }
            }
        }

        /// Data as base64. Its alphabet has neither control characters nor anything beyond ASCII, so
        /// that the check of base64 is all it takes.
        fn data(&mut self) -> Option<Data<'a>> {
            let start = self.at;
            if let Some(text) = self.plain() {
                return Data::from_base64(text).ok();
            }
            self.at = start;
            let text = self.other::<String>()?;
            let bytes = base64_simd::STANDARD.decode_to_vec(text).ok()?;
            Some(Data::from(Cow::Owned(bytes)))
        }

        /// The bytes of a string without escapes. They may still be no text.
        fn plain(&mut self) -> Option<&'a [u8]> {
            self.take(b'"')?;
            let rest = &self.body[self.at..];
            let end = memchr2(b'"', b'\\', rest)?;
            if rest[end] == b'\\' {
                return None;
            }
            self.at += end + 1;
            Some(&rest[..end])
        }

        /// Any value, by `serde_json`.
        fn other<T: Deserialize<'a>>(&mut self) -> Option<T> {
            let rest = &self.body[self.at..];
            let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<T>();
            let value = values.next()?.ok()?;
            self.at += values.byte_offset();
            Some(value)
        }

        fn end(&mut self) -> Option<()> {
            self.skip_whitespace();
            (self.at == self.body.len()).then_some(())
        }

        fn take(&mut self, byte: u8) -> Option<()> {
            (self.byte()? == byte).then_some(())
        }

        fn is_next(&mut self, byte: u8) -> bool {
            self.skip_whitespace();
            self.body.get(self.at) == Some(&byte)
        }

        /// The next byte that is no whitespace.
        fn byte(&mut self) -> Option<u8> {
            self.skip_whitespace();
            let byte = *self.body.get(self.at)?;
            self.at += 1;
            Some(byte)
        }

        fn skip_whitespace(&mut self) {
            while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.body.get(self.at) {
                self.at += 1;
            }
        }
    }
}

/// The straight way through CBOR.
mod cbor {
    use super::*;

    pub(super) fn put_records(body: &[u8]) -> Option<PutRecordsRequest<'_>> {
        let mut members = Members::default();
        let mut reader = Reader::new(body);
        map(&mut reader, |reader, name| match MemberName::of_put_records(name) {
            Some(MemberName::Records) => {
                let records = records(reader)?;
                keep(&mut members.records, records)
            }
            name => member(reader, name, &mut members),
        })?;
        reader.end().ok()?;
        members.into_put_records()
    }

    pub(super) fn put_record(body: &[u8]) -> Option<PutRecordRequest<'_>> {
        let mut members = Members::default();
        let mut reader = Reader::new(body);
        map(&mut reader, |reader, name| {
            member(reader, MemberName::of_put_record(name), &mut members)
        })?;
        reader.end().ok()?;
        members.into_put_record()
    }

    fn records<'a>(reader: &mut Reader<'a>) -> Option<Vec<Entry<'a>>> {
        let Header::Array(length) = reader.value().ok()?.header else { return None };
        let mut records = Vec::new();
        let mut items = reader.items(length);
        while reader.more(&mut items).ok()? {
            if records.len() == records_max() {
                return None;
            }
            let mut members = Members::default();
            map(reader, |reader, name| member(reader, MemberName::of_entry(name), &mut members))?;
            records.push(members.into_entry()?);
        }
        Some(records)
    }

    fn map<'a>(
        reader: &mut Reader<'a>,
        mut member: impl FnMut(&mut Reader<'a>, &[u8]) -> Option<()>,
    ) -> Option<()> {
        let Header::Map(length) = reader.value().ok()?.header else { return None };
        let mut items = reader.items(length);
        while reader.more(&mut items).ok()? {
            let name = reader.key().ok()?;
            member(reader, name.as_bytes())?;
        }
        Some(())
    }

    fn member<'a>(
        reader: &mut Reader<'a>,
        name: Option<MemberName>,
        members: &mut Members<'a>,
    ) -> Option<()> {
        let Some(name) = name else { return reader.skip().ok() };
        match (name, reader.value().ok()?.header) {
            (MemberName::Data, Header::Bytes(length)) => {
                let bytes = reader.bytes(length).ok()?;
                members.keep_data(Data::from(bytes))
            }
            (MemberName::DryRun, Header::Simple(simple::TRUE)) => keep(&mut members.dry_run, true),
            (MemberName::DryRun, Header::Simple(simple::FALSE)) => {
                keep(&mut members.dry_run, false)
            }
            (name, Header::Text(length)) => {
                let text = reader.text(length).ok()?;
                members.keep_text(name, text)
            }
            _ => None,
        }
    }
}
