//! Judges inputs by the service model, with the messages of the service.
//!
//! The service reports a wrong type alone, before any constraint, as `SerializationException`; it
//! reports up to ten violated constraints together, as `ValidationException`. The wording of both
//! was observed at the service by the authors of emulators (kinesalite's tests run against it;
//! the names of JSON types are those that services of the same framework send since about 2020).

use std::fmt::{self, Write};

use serde_json::{Number, Value};
use thiserror::Error;

use super::model::{Kind, Operation, Pattern, Shape, char_count, model};

/// Violated constraints that are reported at most (observed at the service).
pub const VIOLATIONS_MAX: usize = 10;
/// Characters of a value that a message repeats at most. The service has no such limit; without
/// one, a message could be as long as the body.
pub const VALUE_CHARS_MAX: usize = 1024;

/// The package that the service names structures by in its messages.
const JAVA_PACKAGE: &str = "com.amazonaws.kinesis.v20131202";

/// Why a request cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{kind}: {message}")]
pub struct Invalid {
    /// The error's name in the API: `SerializationException` or `ValidationException`.
    pub kind: &'static str,
    /// What is wrong, for a person. It never has more than the caller sent.
    pub message: String,
}

impl Invalid {
    /// The body cannot be read as what the operation takes.
    #[must_use]
    pub fn serialization(message: impl Into<String>) -> Invalid {
        Invalid { kind: "SerializationException", message: message.into() }
    }

    /// The body can be read and has a value that is not allowed.
    #[must_use]
    pub fn validation(message: impl Into<String>) -> Invalid {
        Invalid { kind: "ValidationException", message: message.into() }
    }
}

/// Judges the input of an operation: an object, blobs as base64 text, timestamps as seconds.
/// Members that the model does not have are ignored, and null is as good as absent, as the service
/// has it.
///
/// # Errors
/// The first value of a wrong type, or else all violated constraints, in the model's order.
pub fn validate_input(operation: &Operation, input: &Value) -> Result<(), Invalid> {
    let shape = model().shape(operation.input);
    if input.is_null() {
        return Err(Invalid::serialization("The body is null where an object was expected"));
    }
    check_types(shape, input)?;
    let mut violations = Violations::default();
    violations.judge(shape, input, &Path::root());
    violations.into_result()
}

/// A type of a body's value, by the name the service has for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    True,
    False,
    Number,
    Decimal,
    Text,
    Bytes,
    List,
    Map,
}

impl Found {
    fn token(self) -> &'static str {
        match self {
            Found::True => "TRUE_VALUE",
            Found::False => "FALSE_VALUE",
            Found::Number => "NUMBER_VALUE",
            Found::Decimal => "DECIMAL_VALUE",
            Found::Text => "STRING_VALUE",
            Found::Bytes => "BINARY_VALUE",
            Found::List => "LIST_VALUE",
            Found::Map => "MAP_VALUE",
        }
    }
}

impl From<bool> for Found {
    fn from(value: bool) -> Found {
        if value { Found::True } else { Found::False }
    }
}

/// The service's message for a value of a type that its shape does not have.
pub(crate) fn mismatch(found: Found, kind: &Kind) -> Invalid {
    let target = match (found, kind) {
        (Found::List, _) => {
            return Invalid::serialization("Start of list found where not expected");
        }
        (Found::Map, _) => {
            return Invalid::serialization("Start of structure or map found where not expected.");
        }
        (_, Kind::Structure(_)) => return Invalid::serialization("Expected null"),
        (_, Kind::List(_)) => return Invalid::serialization("Expected list or null"),
        (_, Kind::Map { .. }) => return Invalid::serialization("Expected map or null"),
        (_, Kind::String) => "a String",
        (_, Kind::Integer) => "an Integer",
        (_, Kind::Long) => "a Long",
        (Found::Text, Kind::Boolean) => "an Boolean",
        (_, Kind::Boolean) => "a Boolean",
        (_, Kind::Blob) => "a Blob",
        (_, Kind::Timestamp) => "milliseconds since epoch",
    };
    Invalid::serialization(format!("{} can not be converted to {target}", found.token()))
}

/// The whole number that the service makes of a number: it cuts decimals off and stays within the
/// range of the type.
pub(crate) fn whole_number(kind: &Kind, number: &Number) -> i64 {
    let value = number
        .as_i64()
        .or_else(|| number.as_u64().map(|_| i64::MAX))
        // A conversion from float cuts off and saturates.
        .unwrap_or_else(|| number.as_f64().map_or(0, |float| float as i64));
    match kind {
        Kind::Integer => value.clamp(i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => value,
    }
}

/// The texts that the service takes for a truth value, in any case.
pub(crate) fn truth(text: &str) -> Option<bool> {
    let is_one_of = |words: [&str; 5]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(["true", "yes", "y", "t", "1"]) {
        Some(true)
    } else if is_one_of(["false", "no", "n", "f", "0"]) {
        Some(false)
    } else {
        None
    }
}

/// Whether a text is base64 as the service takes it: padded, and the bits behind the last byte are
/// zero.
pub(crate) fn check_base64(text: &[u8]) -> Result<(), Invalid> {
    base64_simd::STANDARD.check(text).map_err(|_| base64_fault(text))
}

/// Bytes that a base64 text, already checked, stands for.
pub(crate) fn base64_decoded_len(text: &[u8]) -> usize {
    let padding = text.iter().rev().take(2).take_while(|&&byte| byte == b'=').count();
    text.len() / 4 * 3 - padding
}

fn base64_fault(text: &[u8]) -> Invalid {
    let text = String::from_utf8_lossy(text);
    let bytes = text.len();
    let fault = if !bytes.is_multiple_of(4) {
        format!("Base64 encoded length is expected a multiple of 4 bytes but found: {bytes}")
    } else if let Some(bad) = invalid_base64_char(&text) {
        format!("Invalid Base64 character: '{bad}'")
    } else {
        // The word is misspelt by the service, and clients may look for it.
        "Invalid last non-pad Base64 character dectected".to_owned()
    };
    let shown = Bounded::of(&text);
    Invalid::serialization(format!("'{shown}' can not be converted to a Blob: {fault}"))
}

/// The first character that base64 does not have, or that it does not have there.
fn invalid_base64_char(text: &str) -> Option<char> {
    text.char_indices().find_map(|(at, char)| {
        let is_code = char.is_ascii_alphanumeric() || matches!(char, '+' | '/');
        let is_padding = at + 2 >= text.len() && text[at..].bytes().all(|byte| byte == b'=');
        (!is_code && !is_padding).then_some(char)
    })
}

fn check_types(shape: &Shape, value: &Value) -> Result<(), Invalid> {
    let found = match (&shape.kind, value) {
        (_, Value::Null) => return Ok(()),
        (Kind::Structure(members), Value::Object(values)) => {
            return members
                .iter()
                .filter_map(|member| values.get(&member.name).map(|value| (member, value)))
                .try_for_each(|(member, value)| check_types(model().shape(member.shape), value));
        }
        (Kind::List(element), Value::Array(values)) => {
            let element = model().shape(*element);
            return values.iter().try_for_each(|value| check_types(element, value));
        }
        (Kind::Map { value, .. }, Value::Object(values)) => {
            let shape = model().shape(*value);
            return values.values().try_for_each(|value| check_types(shape, value));
        }
        (Kind::Blob, Value::String(text)) => return check_base64(text.as_bytes()),
        (Kind::Boolean, Value::String(text)) if truth(text).is_some() => return Ok(()),
        (Kind::String, Value::String(_))
        | (Kind::Integer | Kind::Long | Kind::Timestamp, Value::Number(_))
        | (Kind::Boolean, Value::Bool(_)) => return Ok(()),
        (_, Value::Bool(value)) => Found::from(*value),
        (_, Value::Number(number)) if number.is_f64() => Found::Decimal,
        (_, Value::Number(_)) => Found::Number,
        (_, Value::String(_)) => Found::Text,
        (_, Value::Array(_)) => Found::List,
        (_, Value::Object(_)) => Found::Map,
    };
    Err(mismatch(found, &shape.kind))
}

/// A constraint of a shape.
pub(super) enum Constraint<'a> {
    Values(&'a [String]),
    Pattern(&'a Pattern),
    LengthMin(i64),
    LengthMax(i64),
    ValueMin(i64),
    ValueMax(i64),
}

impl<'a> Constraint<'a> {
    /// Those of a shape, in the order the service reports them.
    pub(super) fn of(shape: &'a Shape) -> impl Iterator<Item = Constraint<'a>> {
        let is_number = matches!(shape.kind, Kind::Integer | Kind::Long);
        let values = (!shape.values.is_empty()).then_some(Constraint::Values(&shape.values));
        let min =
            |min| if is_number { Constraint::ValueMin(min) } else { Constraint::LengthMin(min) };
        let max =
            |max| if is_number { Constraint::ValueMax(max) } else { Constraint::LengthMax(max) };
        values
            .into_iter()
            .chain(shape.pattern.as_ref().map(Constraint::Pattern))
            .chain(shape.min.map(min))
            .chain(shape.max.map(max))
    }

    /// Whether a value, of the right type, satisfies it.
    pub(super) fn holds(&self, kind: &Kind, value: &Value) -> bool {
        let text = || value.as_str().unwrap_or_default();
        let number = || value.as_number().map_or(0, |number| whole_number(kind, number));
        match self {
            Constraint::Values(values) => values.iter().any(|allowed| allowed == text()),
            Constraint::Pattern(pattern) => pattern.matches(text()),
            Constraint::LengthMin(min) => length(kind, value) >= *min,
            Constraint::LengthMax(max) => length(kind, value) <= *max,
            Constraint::ValueMin(min) => number() >= *min,
            Constraint::ValueMax(max) => number() <= *max,
        }
    }
}

impl fmt::Display for Constraint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Member must ")?;
        match self {
            Constraint::Values(values) => {
                write!(f, "satisfy enum value set: [{}]", values.join(", "))
            }
            Constraint::Pattern(pattern) => {
                write!(f, "satisfy regular expression pattern: {}", pattern.text)
            }
            Constraint::LengthMin(min) => write!(f, "have length greater than or equal to {min}"),
            Constraint::LengthMax(max) => write!(f, "have length less than or equal to {max}"),
            Constraint::ValueMin(min) => write!(f, "have value greater than or equal to {min}"),
            Constraint::ValueMax(max) => write!(f, "have value less than or equal to {max}"),
        }
    }
}

/// Characters of a string, bytes of a blob, elements of a list or map.
fn length(kind: &Kind, value: &Value) -> i64 {
    let length = match (kind, value) {
        (Kind::Blob, Value::String(text)) => base64_decoded_len(text.as_bytes()),
        (_, Value::String(text)) => char_count(text),
        (_, Value::Array(values)) => values.len(),
        (_, Value::Object(values)) => values.len(),
        _ => 0,
    };
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Constraints of what a list or map consists of are reported at the list or map, in one.
struct EachMust<'a>(&'a Shape);

impl EachMust<'_> {
    fn holds(&self, value: &Value) -> bool {
        value.is_null() || Constraint::of(self.0).all(|c| c.holds(&self.0.kind, value))
    }
}

impl fmt::Display for EachMust<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut constraints: Vec<_> = Constraint::of(self.0).collect();
        // Here the greatest length comes first (observed at the service).
        constraints.sort_by_key(|constraint| match constraint {
            Constraint::LengthMax(_) | Constraint::ValueMax(_) => 0,
            Constraint::LengthMin(_) | Constraint::ValueMin(_) => 1,
            Constraint::Pattern(_) | Constraint::Values(_) => 2,
        });
        let texts: Vec<_> = constraints.iter().map(ToString::to_string).collect();
        write!(f, "satisfy constraint: [{}]", texts.join(", "))
    }
}

/// Where a value stands.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Step<'a> {
    Root,
    Name(&'a str),
    /// The element of a list, from 1, or of a map.
    Element(&'a dyn fmt::Display),
}

impl<'a> Path<'a> {
    pub(super) fn root() -> Path<'a> {
        Path { parent: None, step: Step::Root }
    }

    pub(super) fn down(&'a self, step: Step<'a>) -> Path<'a> {
        Path { parent: Some(self), step }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !matches!(parent.step, Step::Root) {
                f.write_char('.')?;
            }
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Name(name) => f.write_str(name),
            Step::Element(element) => write!(f, "{element}.member"),
        }
    }
}

/// The service's verdict on an input that breaks these constraints, [`VIOLATIONS_MAX`] at most.
pub(super) fn violated(constraints: Vec<String>) -> Result<(), Invalid> {
    let count = constraints.len();
    if count == 0 {
        return Ok(());
    }
    let plural = if count == 1 { "" } else { "s" };
    let list = constraints.join("; ");
    Err(Invalid::validation(format!("{count} validation error{plural} detected: {list}")))
}

/// Gathers the violated constraints of an input.
#[derive(Default)]
struct Violations {
    list: Vec<String>,
}

impl Violations {
    fn into_result(self) -> Result<(), Invalid> {
        violated(self.list)
    }

    fn add(&mut self, shape: &Shape, value: &Value, path: &Path<'_>, must: &dyn fmt::Display) {
        if self.list.len() >= VIOLATIONS_MAX {
            return;
        }
        let mut text = String::from("Value ");
        if !shape.sensitive {
            match value {
                Value::Null => text.push_str("null "),
                // Of data not even the length is told (observed in 2025; before, it was).
                _ if matches!(shape.kind, Kind::Blob) => {}
                _ => text.push_str(&format!("'{}' ", Bounded::of(&Shown { shape, value }))),
            }
        }
        text.push_str(&format!("at '{path}' failed to satisfy constraint: {must}"));
        self.list.push(text);
    }

    /// Judges a value of the right type. It looks no further once there are enough violations.
    fn judge(&mut self, shape: &Shape, value: &Value, path: &Path<'_>) {
        if self.list.len() >= VIOLATIONS_MAX {
            return;
        }
        for constraint in Constraint::of(shape) {
            if !constraint.holds(&shape.kind, value) {
                self.add(shape, value, path, &constraint);
            }
        }
        match (&shape.kind, value) {
            (Kind::Structure(members), Value::Object(values)) => {
                for member in members {
                    let path = path.down(Step::Name(&member.path_name));
                    let shape = model().shape(member.shape);
                    match values.get(&member.name) {
                        None | Some(Value::Null) if member.required => self.missing(shape, &path),
                        None | Some(Value::Null) => {}
                        Some(value) => self.judge(shape, value, &path),
                    }
                }
            }
            (Kind::List(element), Value::Array(values)) => {
                let element = model().shape(*element);
                self.judge_scalars(shape, value, path, element, "Member must", values.iter());
                for (number, value) in (1_usize..).zip(values) {
                    self.judge_element(element, value, &path.down(Step::Element(&number)));
                }
            }
            (Kind::Map { key, value: element }, Value::Object(values)) => {
                let (key, element) = (model().shape(*key), model().shape(*element));
                let keys: Vec<_> = values.keys().map(|key| Value::String(key.clone())).collect();
                self.judge_scalars(shape, value, path, key, "Map keys must", keys.iter());
                let each = values.values();
                self.judge_scalars(shape, value, path, element, "Map value must", each);
                for (key, value) in values {
                    self.judge_element(element, value, &path.down(Step::Element(key)));
                }
            }
            _ => {}
        }
    }

    fn missing(&mut self, shape: &Shape, path: &Path<'_>) {
        self.add(shape, &Value::Null, path, &"Member must not be null");
    }

    fn judge_element(&mut self, element: &Shape, value: &Value, path: &Path<'_>) {
        if value.is_null() {
            self.missing(element, path);
        } else if !is_scalar(element) {
            self.judge(element, value, path);
        }
    }

    fn judge_scalars<'v>(
        &mut self,
        whole: &Shape,
        value: &Value,
        path: &Path<'_>,
        element: &Shape,
        who: &str,
        mut values: impl Iterator<Item = &'v Value>,
    ) {
        let each = EachMust(element);
        if is_scalar(element) && !values.all(|value| each.holds(value)) {
            self.add(whole, value, path, &format!("{who} {each}"));
        }
    }
}

fn is_scalar(shape: &Shape) -> bool {
    !matches!(shape.kind, Kind::Structure(_) | Kind::List(_) | Kind::Map { .. })
}

/// A value as the service shows it: Java's way.
pub(super) struct Shown<'a> {
    pub(super) shape: &'a Shape,
    pub(super) value: &'a Value,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.shape.kind, self.value) {
            (Kind::Blob, Value::String(text)) => {
                let bytes = base64_decoded_len(text.as_bytes());
                write!(f, "java.nio.HeapByteBuffer[pos=0 lim={bytes} cap={bytes}]")
            }
            (_, Value::String(text)) => f.write_str(text),
            (kind @ (Kind::Integer | Kind::Long), Value::Number(number)) => {
                write!(f, "{}", whole_number(kind, number))
            }
            (Kind::List(element), Value::Array(values)) => {
                let shape = model().shape(*element);
                f.write_char('[')?;
                for (index, value) in values.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    match shape.kind {
                        // The service shows an object's identity; its number does as well.
                        Kind::Structure(_) => {
                            write!(f, "{JAVA_PACKAGE}.{}@{:x}", shape.name, index + 1)?;
                        }
                        _ => write!(f, "{}", Shown { shape, value })?,
                    }
                }
                f.write_char(']')
            }
            (Kind::Map { value: element, .. }, Value::Object(values)) => {
                let shape = model().shape(*element);
                f.write_char('{')?;
                for (index, (key, value)) in values.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{key}={}", Shown { shape, value })?;
                }
                f.write_char('}')
            }
            (_, value) => write!(f, "{value}"),
        }
    }
}

/// A text that stops growing at [`VALUE_CHARS_MAX`], and whoever writes it with it.
pub(super) struct Bounded {
    text: String,
    chars: usize,
}

impl Bounded {
    pub(super) fn of(shown: &dyn fmt::Display) -> String {
        let mut bounded = Bounded { text: String::new(), chars: 0 };
        // An error only says that the text is full.
        if write!(bounded, "{shown}").is_err() {
            bounded.text.push_str("...");
        }
        bounded.text
    }
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match text.char_indices().nth(VALUE_CHARS_MAX - self.chars) {
            None => {
                self.chars += char_count(text);
                self.text.push_str(text);
                Ok(())
            }
            Some((end, _)) => {
                self.chars = VALUE_CHARS_MAX;
                self.text.push_str(&text[..end]);
                Err(fmt::Error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judge(operation: &str, input: &Value) -> Result<(), Invalid> {
        validate_input(model().operation(operation).expect("is in the model"), input)
    }

    fn message(operation: &str, input: &Value) -> String {
        judge(operation, input).expect_err("is refused").message
    }

    #[test]
    fn the_messages_are_those_observed_at_the_service() {
        // From the tests of kinesalite, in the order of the model's members.
        assert_eq!(
            message("PutRecords", &json!({ "StreamName": "" })),
            "3 validation errors detected: Value null at 'records' failed to satisfy constraint: \
             Member must not be null; Value '' at 'streamName' failed to satisfy constraint: \
             Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+; Value '' at \
             'streamName' failed to satisfy constraint: Member must have length greater than or \
             equal to 1"
        );
        let record = json!({ "PartitionKey": "", "Data": "", "ExplicitHashKey": "" });
        assert_eq!(
            message("PutRecords", &json!({ "Records": [record] })),
            "2 validation errors detected: Value '' at 'records.1.member.explicitHashKey' failed \
             to satisfy constraint: Member must satisfy regular expression pattern: \
             ^(0|([1-9]\\d{0,38}))$; Value '' at 'records.1.member.partitionKey' failed to \
             satisfy constraint: Member must have length greater than or equal to 1"
        );
        assert_eq!(
            message("DescribeStream", &json!({ "StreamName": "a", "Limit": 0 })),
            "1 validation error detected: Value '0' at 'limit' failed to satisfy constraint: \
             Member must have value greater than or equal to 1"
        );
        assert_eq!(
            message("RemoveTagsFromStream", &json!({ "StreamName": "a", "TagKeys": ["k", ""] })),
            "1 validation error detected: Value '[k, ]' at 'tagKeys' failed to satisfy \
             constraint: Member must satisfy constraint: [Member must have length less than or \
             equal to 128, Member must have length greater than or equal to 1]"
        );
        assert_eq!(
            message("AddTagsToStream", &json!({ "StreamName": "a", "Tags": { "": "v" } })),
            "1 validation error detected: Value '{=v}' at 'tags' failed to satisfy constraint: \
             Map keys must satisfy constraint: [Member must have length less than or equal to \
             128, Member must have length greater than or equal to 1]"
        );
        let name = json!({ "StreamName": "a", "EncryptionType": "x", "KeyId": "k" });
        assert_eq!(
            message("StartStreamEncryption", &name),
            "1 validation error detected: Value 'x' at 'encryptionType' failed to satisfy \
             constraint: Member must satisfy enum value set: [NONE, KMS]"
        );
    }

    #[test]
    fn at_most_ten_violations_are_reported() {
        let records = vec![json!({ "PartitionKey": "", "Data": "" }); 501];
        let message = message("PutRecords", &json!({ "StreamName": "", "Records": records }));
        assert!(message.starts_with("10 validation errors detected: "), "{message}");
        assert!(message.contains(
            "Value '[com.amazonaws.kinesis.v20131202.PutRecordsRequestEntry@1, com.amazonaws"
        ));
        assert!(message.contains("Member must have length less than or equal to 500; "));
        assert!(message.contains("'records.9.member.partitionKey'"));
        assert!(!message.contains("'records.10.member.partitionKey'"));
        assert_eq!(message.matches("failed to satisfy").count(), 10);
    }

    #[test]
    fn a_message_repeats_no_more_of_a_value_than_its_limit() {
        let token = "\u{e9}".repeat(1_048_577);
        let long = message("ListShards", &json!({ "NextToken": token }));
        let shown = format!("Value '{}...' at", "\u{e9}".repeat(VALUE_CHARS_MAX));
        assert!(long.contains(&shown));
        let data = "A".repeat(4 * 4_000_000);
        let data = message("PutRecord", &json!({ "StreamName": "a", "Data": data }));
        assert_eq!(
            data,
            "1 validation error detected: Value at 'data' failed to satisfy constraint: Member must \
             have length less than or equal to 10485760"
        );
        let bad = "A".repeat(4001);
        assert!(message("PutRecord", &json!({ "Data": bad })).len() < 2 * VALUE_CHARS_MAX);
    }

    #[test]
    fn base64_is_judged_as_the_service_does() {
        let data = |data: &str| judge("PutRecord", &json!({ "StreamName": "a", "Data": data }));
        let fault = |text: &str| data(text).expect_err("is refused").to_string();
        for good in ["", "AAH/", "AA==", "AAE=", "+/+/"] {
            assert_eq!(data(good), Ok(()), "{good}");
        }
        let refused = |text, fault| {
            format!("SerializationException: '{text}' can not be converted to a Blob: {fault}")
        };
        let length = "Base64 encoded length is expected a multiple of 4 bytes but found: 5";
        assert_eq!(fault("23456"), refused("23456", length));
        assert_eq!(fault("=+/="), refused("=+/=", "Invalid Base64 character: '='"));
        assert_eq!(fault("AB\nD"), refused("AB\nD", "Invalid Base64 character: '\n'"));
        assert_eq!(fault("AB-D"), refused("AB-D", "Invalid Base64 character: '-'"));
        assert_eq!(fault("A\u{e9}D"), refused("A\u{e9}D", "Invalid Base64 character: '\u{e9}'"));
        let last = "Invalid last non-pad Base64 character dectected";
        assert_eq!(fault("+/+="), refused("+/+=", last));
        assert_eq!(fault("AB=="), refused("AB==", last));
    }

    #[test]
    fn lengths_of_blobs_are_of_their_bytes() {
        let data = |bytes: usize| {
            let text = base64_simd::STANDARD.encode_to_string(vec![0; bytes]);
            judge("PutRecord", &json!({ "StreamName": "a", "Data": text }))
        };
        assert_eq!(data(10_485_760), Ok(()));
        let message = data(10_485_761).expect_err("is too long").message;
        assert!(message.ends_with("Member must have length less than or equal to 10485760"));
    }

    #[test]
    fn null_is_absent_and_unknown_members_are_ignored() {
        let limit = json!({ "Limit": null, "Novel": { "a": [1] } });
        assert_eq!(judge("ListStreams", &limit), Ok(()));
        let records = message("PutRecords", &json!({ "Records": [null] }));
        assert!(records.contains("Value null at 'records.1.member' failed"));
        let tags = message("AddTagsToStream", &json!({ "Tags": { "a": null } }));
        assert!(tags.contains("Value null at 'tags.a.member' failed"));
        assert_eq!(judge("ListStreams", &Value::Null).map_err(|e| e.kind), {
            Err("SerializationException")
        });
    }

    #[test]
    fn numbers_and_truth_values_are_taken_as_the_service_takes_them() {
        let limit =
            |limit: Value| judge("GetRecords", &json!({ "ShardIterator": "i", "Limit": limit }));
        assert_eq!(limit(json!(1.9)), Ok(()));
        assert!(limit(json!(0.9)).is_err());
        let far = limit(json!(99_999_999_999_i64)).expect_err("is too great").message;
        assert!(far.contains("Value '2147483647' at 'limit'"), "{far}");
        let truth = |truth: &str| {
            judge("DeleteStream", &json!({ "EnforceConsumerDeletion": truth })).is_ok()
        };
        assert!(["true", "FALSE", "yes", "N", "1", "0"].iter().all(|text| truth(text)));
        assert!(!truth("maybe"));
    }
}
