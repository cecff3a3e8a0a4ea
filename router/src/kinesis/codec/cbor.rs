//! From CBOR to a `Value` and back, along a shape.

use serde_json::{Map, Number, Value};

use super::super::cbor::{
    Head, Header, Reader, simple, write_bytes, write_head, write_integer, write_text,
    write_timestamp,
};
use super::super::model::{Kind, Shape, model};
use super::super::validate::{Found, Invalid, mismatch};
use super::{Count, EncodeError, boolean, keep, kept_max, number, text, timestamp, timestamp_ms};

/// Reads a body along its shape.
pub(super) fn decode(shape: &Shape, body: &[u8]) -> Result<Value, Invalid> {
    let mut decoder = CborDecoder { reader: Reader::new(body), count: Count::default() };
    let value = decoder.value(shape)?;
    decoder.reader.end()?;
    match value {
        Value::Null => Err(Invalid::serialization("The body is null, not a map")),
        value => Ok(value),
    }
}

struct CborDecoder<'a> {
    reader: Reader<'a>,
    count: Count,
}

impl CborDecoder<'_> {
    /// Reads one value along its shape. The shapes of inputs are not recursive, so the stack is
    /// bounded by the model.
    fn value(&mut self, shape: &Shape) -> Result<Value, Invalid> {
        self.count.add()?;
        let head = self.reader.value()?;
        match head.header {
            Header::Simple(simple::FALSE) => boolean(shape, false),
            Header::Simple(simple::TRUE) => boolean(shape, true),
            Header::Simple(simple::NULL | simple::UNDEFINED) => Ok(Value::Null),
            Header::Positive(_) | Header::Negative(_) | Header::Float(_) => {
                cbor_number(shape, &head)
            }
            Header::Text(length) => {
                let value = self.reader.text(length)?;
                text(shape, value.into_owned())
            }
            Header::Bytes(length) => {
                let value = self.reader.bytes(length)?;
                match shape.kind {
                    Kind::Blob => Ok(Value::String(base64_simd::STANDARD.encode_to_string(value))),
                    _ => Err(mismatch(Found::Bytes, &shape.kind)),
                }
            }
            Header::Array(length) => self.list(shape, length),
            Header::Map(length) => self.map(shape, length),
            Header::Simple(_) | Header::Tag(_) | Header::Break => {
                Err(Invalid::serialization("The body has a CBOR value that the API does not know"))
            }
        }
    }

    fn list(&mut self, shape: &Shape, length: Option<usize>) -> Result<Value, Invalid> {
        let Kind::List(element) = shape.kind else {
            return Err(mismatch(Found::List, &shape.kind));
        };
        let element = model().shape(element);
        let kept_max = kept_max(shape);
        let mut values = Vec::new();
        let mut items = self.reader.items(length);
        while self.reader.more(&mut items)? {
            let value = self.value(element)?;
            if values.len() < kept_max {
                values.push(value);
            }
        }
        Ok(Value::Array(values))
    }

    fn map(&mut self, shape: &Shape, length: Option<usize>) -> Result<Value, Invalid> {
        let mut members = Map::new();
        let mut items = self.reader.items(length);
        match &shape.kind {
            Kind::Structure(_) => {
                while self.reader.more(&mut items)? {
                    match shape.member(&self.reader.key()?) {
                        Some(member) => {
                            let value = self.value(model().shape(member.shape))?;
                            keep(&mut members, &member.name, value);
                        }
                        None => self.reader.skip()?,
                    }
                }
            }
            Kind::Map { value, .. } => {
                let value = model().shape(*value);
                let kept_max = kept_max(shape);
                while self.reader.more(&mut items)? {
                    let key = self.reader.key()?.into_owned();
                    let value = self.value(value)?;
                    if members.len() < kept_max {
                        members.insert(key, value);
                    }
                }
            }
            kind => return Err(mismatch(Found::Map, kind)),
        }
        Ok(Value::Object(members))
    }
}

/// A whole number as a timestamp is in milliseconds, as the Java SDKs send it; one with decimals is
/// in seconds, as RFC 8949 has it.
fn cbor_number(shape: &Shape, head: &Head) -> Result<Value, Invalid> {
    let whole = match head.header {
        Header::Positive(value) => i64::try_from(value).unwrap_or(i64::MAX),
        Header::Negative(value) => i64::try_from(value).map_or(i64::MIN, |value| !value),
        Header::Float(value) => {
            let value = Number::from_f64(value).ok_or_else(|| {
                Invalid::serialization("The body has a number that is infinite or none")
            })?;
            return number(shape, value);
        }
        _ => return Err(Invalid::serialization("The body has no number where one belongs")),
    };
    match shape.kind {
        Kind::Timestamp => Ok(timestamp(whole)),
        _ => number(shape, Number::from(whole)),
    }
}

/// Writes a value, along its shape if there is one.
pub(super) fn encode(
    out: &mut Vec<u8>,
    shape: Option<&Shape>,
    value: &Value,
) -> Result<(), EncodeError> {
    let mismatch = |shape: &Shape, expected| {
        Err(EncodeError::Mismatch { shape: shape.name.clone(), expected })
    };
    match (shape.map(|shape| (shape, &shape.kind)), value) {
        (_, Value::Null) => write_head(out, Header::Simple(simple::NULL)),
        (Some((shape, Kind::Blob)), value) => {
            match value.as_str().map(|text| base64_simd::STANDARD.decode_to_vec(text)) {
                Some(Ok(bytes)) => write_bytes(out, &bytes),
                _ => return mismatch(shape, "base64 text"),
            }
        }
        (Some((shape, Kind::Timestamp)), value) => match timestamp_ms(value) {
            Some(ms) => write_timestamp(out, ms),
            None => return mismatch(shape, "number of seconds"),
        },
        (_, Value::Bool(false)) => write_head(out, Header::Simple(simple::FALSE)),
        (_, Value::Bool(true)) => write_head(out, Header::Simple(simple::TRUE)),
        (_, Value::Number(number)) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(whole), ..) => write_integer(out, whole),
            (_, Some(whole), _) => write_head(out, Header::Positive(whole)),
            (.., Some(float)) => write_head(out, Header::Float(float)),
            (None, None, None) => return Err(EncodeError::Number(number.clone())),
        },
        (_, Value::String(text)) => write_text(out, text),
        (kind, Value::Array(values)) => {
            let element = match kind {
                Some((_, Kind::List(element))) => Some(model().shape(*element)),
                _ => None,
            };
            write_head(out, Header::Array(Some(values.len())));
            for value in values {
                encode(out, element, value)?;
            }
        }
        (kind, Value::Object(values)) => {
            write_head(out, Header::Map(Some(values.len())));
            for (name, value) in values {
                let shape = match kind {
                    Some((shape, Kind::Structure(_))) => shape.member(name).map(|m| m.shape),
                    Some((_, Kind::Map { value, .. })) => Some(*value),
                    _ => None,
                };
                write_text(out, name);
                encode(out, shape.map(|id| model().shape(id)), value)?;
            }
        }
    }
    Ok(())
}
