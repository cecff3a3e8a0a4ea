//! Meets every constraint of the model from both sides, for every operation: a valid input is made
//! from the shapes, and one value of it is changed at a time.
//!
//! The expected verdicts are derived from the text of the model, not through the code under test.
//! Each input is judged as a value and as a body in both encodings, by every way on which a body of
//! its operation is read.

use std::collections::BTreeSet;

use regex_lite::Regex;
use serde_json::{Value, json};

use super::codec::{self, Encoding};
use super::model::model;
use super::records::{decode_put_record, decode_put_records};
use super::validate::{Invalid, validate_input};

/// The model as JSON: the tests read it on their own, not through the code they test.
fn raw() -> Value {
    serde_json::from_str(include_str!("service-2.json")).expect("is JSON")
}

fn judge(operation: &str, input: &Value) -> Result<(), Invalid> {
    validate_input(model().operation(operation).expect("is in the model"), input)
}

/// The same of the input as it comes, in both encodings, if the operation's is read: those of queues
/// and channels are refused before. CBOR has no form for a value that is not of
/// its shape where the shape is a blob or a timestamp; then there is one verdict less.
fn judge_bodies(operation: &str, input: &Value) -> Vec<Result<(), Invalid>> {
    let described = model().operation(operation).expect("is in the model");
    let shape = model().shape(described.input);
    let mut verdicts = Vec::new();
    if operation.contains("Queue") || operation.contains("Channel") {
        return verdicts;
    }
    for encoding in [Encoding::Json, Encoding::Cbor] {
        let Ok(body) = codec::encode(encoding, Some(shape), input) else { continue };
        let decoded = codec::decode(encoding, shape, &body);
        verdicts.push(decoded.and_then(|value| validate_input(described, &value)));
        match operation {
            "PutRecord" => verdicts.push(decode_put_record(encoding, &body).map(drop)),
            "PutRecords" => verdicts.push(decode_put_records(encoding, &body).map(drop)),
            _ => {}
        }
    }
    verdicts
}

/// The messages for values of other JSON types than a shape's.
fn wrong_types(kind: &str) -> Vec<(Value, &'static str)> {
    const LIST: &str = "Start of list found where not expected";
    const MAP: &str = "Start of structure or map found where not expected.";
    let scalars = |messages: [&'static str; 4]| {
        let values = [json!(true), json!(false), json!(7), json!(1.5)];
        values.into_iter().zip(messages).collect::<Vec<_>>()
    };
    let both = [(json!([]), LIST), (json!({}), MAP)];
    let mut wrong = match kind {
        "string" => scalars([
            "TRUE_VALUE can not be converted to a String",
            "FALSE_VALUE can not be converted to a String",
            "NUMBER_VALUE can not be converted to a String",
            "DECIMAL_VALUE can not be converted to a String",
        ]),
        "blob" => scalars([
            "TRUE_VALUE can not be converted to a Blob",
            "FALSE_VALUE can not be converted to a Blob",
            "NUMBER_VALUE can not be converted to a Blob",
            "DECIMAL_VALUE can not be converted to a Blob",
        ]),
        "integer" => vec![
            (json!(true), "TRUE_VALUE can not be converted to an Integer"),
            (json!("7"), "STRING_VALUE can not be converted to an Integer"),
        ],
        "timestamp" => vec![
            (json!(false), "FALSE_VALUE can not be converted to milliseconds since epoch"),
            (json!("7"), "STRING_VALUE can not be converted to milliseconds since epoch"),
        ],
        "boolean" => vec![
            (json!(7), "NUMBER_VALUE can not be converted to a Boolean"),
            (json!(1.5), "DECIMAL_VALUE can not be converted to a Boolean"),
            (json!("x"), "STRING_VALUE can not be converted to an Boolean"),
        ],
        "list" => {
            let mut wrong = scalars(["Expected list or null"; 4]);
            wrong.push((json!("x"), "Expected list or null"));
            wrong.push((json!({}), MAP));
            return wrong;
        }
        "map" | "structure" => {
            let expected = if kind == "map" { "Expected map or null" } else { "Expected null" };
            let mut wrong = scalars([expected; 4]);
            wrong.push((json!("x"), expected));
            wrong.push((json!([]), LIST));
            return wrong;
        }
        other => panic!("no wrong types are known for {other}"),
    };
    wrong.extend(both);
    wrong
}

/// A text that matches a pattern of the model.
fn matching(pattern: &str) -> &'static str {
    match pattern {
        p if p.contains(":kinesis:") && p.starts_with('^') => {
            "arn:aws:kinesis:us-east-1:123456789012:stream/s/consumer/c:1"
        }
        p if p.contains("stream|channel|queue") => {
            "arn:aws:kinesis:us-east-1:123456789012:stream/s"
        }
        p if p.contains(":channel/") => "arn:aws:kinesis:us-east-1:123456789012:channel/c",
        p if p.contains(":queue/") => "arn:aws:kinesis:us-east-1:123456789012:queue/q",
        p if p.contains(":stream/") => "arn:aws:kinesis:us-east-1:123456789012:stream/s",
        p if p.contains(":s3:") => "arn:aws:s3:::bucket",
        p if p.contains(":s3tables:") => "arn:aws:s3tables:us-east-1:123456789012:bucket/tables",
        p if p.contains(":glue:") => "arn:aws:glue:us-east-1:123456789012:schema/r/s",
        p if p.contains(":iam:") => "arn:aws:iam::123456789012:role/r",
        r"\d{12}" => "123456789012",
        "[a-z0-9]{20}-[a-z0-9]{3}" => "abcdefghij0123456789-abc",
        p if p.contains("[1-9]") => "7",
        _ => "a",
    }
}

/// A valid value of a shape: with all members or only those that must be there.
fn sample(raw: &Value, name: &str, all: bool) -> Value {
    let shape = &raw["shapes"][name];
    match shape["type"].as_str().expect("has a type") {
        "structure" => {
            let required: Vec<_> = shape["required"].as_array().into_iter().flatten().collect();
            let members = shape["members"].as_object().expect("has members").iter();
            let members = members
                .filter(|(name, _)| all || required.iter().any(|required| *required == *name));
            let value = |reference: &Value| sample(raw, shape_of(reference), all);
            Value::Object(members.map(|(name, r)| (name.clone(), value(r))).collect())
        }
        "list" => json!([sample(raw, shape_of(&shape["member"]), all)]),
        "map" => json!({ "key": sample(raw, shape_of(&shape["value"]), all) }),
        "string" => match (&shape["enum"], &shape["pattern"]) {
            (Value::Array(values), _) => values[0].clone(),
            (_, Value::String(pattern)) => json!(matching(pattern)),
            _ => json!("a"),
        },
        "integer" => json!(shape["min"].as_i64().unwrap_or(1)),
        "timestamp" => json!(1_795_521_600.123),
        "boolean" => json!(true),
        "blob" => json!("AAH/"),
        other => panic!("no sample of {other} is known"),
    }
}

fn shape_of(reference: &Value) -> &str {
    reference["shape"].as_str().expect("refers to a shape")
}

/// One change of a valid input, and what the service says to it.
struct Change {
    at: Vec<String>,
    /// `None` takes the member away.
    value: Option<Value>,
    expected: Result<(), (&'static str, String)>,
}

/// Where a value stands, and how messages name the place.
#[derive(Clone)]
struct Place {
    at: Vec<String>,
    path: String,
}

impl Place {
    fn member(&self, name: &str) -> Place {
        let small = name[..1].to_lowercase() + &name[1..];
        let separator = if self.path.is_empty() { "" } else { "." };
        self.step(name, &format!("{separator}{small}"))
    }

    fn step(&self, at: &str, path: &str) -> Place {
        let at = [&self.at[..], &[at.to_owned()]].concat();
        Place { at, path: format!("{}{path}", self.path) }
    }
}

/// What breaks the constraints of a shape, in the order of messages.
fn broken(shape: &Value, value: &Value) -> Vec<String> {
    let length = match value {
        Value::String(text) if shape["type"] == "blob" => text.len() as i64 / 4 * 3,
        Value::String(text) => text.chars().count() as i64,
        Value::Array(values) => values.len() as i64,
        Value::Object(values) => values.len() as i64,
        Value::Number(number) => number.as_i64().expect("is whole"),
        _ => 0,
    };
    let what = if value.is_number() { "value" } else { "length" };
    let mut all = Vec::new();
    if shape["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        all.push(enum_text(shape));
    }
    if let Some(pattern) = shape["pattern"].as_str().filter(|pattern| !matches(pattern, value)) {
        all.push(format!("Member must satisfy regular expression pattern: {pattern}"));
    }
    if shape["min"].as_i64().is_some_and(|min| length < min) {
        all.push(format!("Member must have {what} greater than or equal to {}", shape["min"]));
    }
    if shape["max"].as_i64().is_some_and(|max| length > max) {
        all.push(format!("Member must have {what} less than or equal to {}", shape["max"]));
    }
    all
}

fn matches(pattern: &str, value: &Value) -> bool {
    let regex = Regex::new(&format!("^(?:{pattern})$")).expect("compiles");
    regex.is_match(value.as_str().expect("is text"))
}

fn enum_text(shape: &Value) -> String {
    let values: Vec<_> = shape["enum"].as_array().expect("is a list").iter().collect();
    let values: Vec<_> = values.iter().map(|value| value.as_str().expect("text")).collect();
    format!("Member must satisfy enum value set: [{}]", values.join(", "))
}

/// All constraints of what a list or map consists of, as they are reported in one.
fn each(who: &str, shape: &Value) -> String {
    let mut all = Vec::new();
    if shape["max"].is_number() {
        all.push(format!("Member must have length less than or equal to {}", shape["max"]));
    }
    if shape["min"].is_number() {
        all.push(format!("Member must have length greater than or equal to {}", shape["min"]));
    }
    if let Value::String(pattern) = &shape["pattern"] {
        all.push(format!("Member must satisfy regular expression pattern: {pattern}"));
    }
    if shape["enum"].is_array() {
        all.push(enum_text(shape));
    }
    format!("{who} must satisfy constraint: [{}]", all.join(", "))
}

fn shown(value: &Value, element: &str) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => {
            let show = |(index, value): (usize, &Value)| match value {
                Value::Object(_) => {
                    format!("com.amazonaws.kinesis.v20131202.{element}@{:x}", index + 1)
                }
                value => shown(value, ""),
            };
            let values: Vec<_> = values.iter().enumerate().map(show).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Object(values) => {
            let show = |(key, value)| format!("{key}={}", shown(value, ""));
            format!("{{{}}}", values.iter().map(show).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    };
    match text.char_indices().nth(1024) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn verdict(
    value: &Value,
    element: &str,
    path: &str,
    broken: &[String],
) -> Result<(), (&'static str, String)> {
    let show = |must: &String| {
        let shown = shown(value, element);
        format!("Value '{shown}' at '{path}' failed to satisfy constraint: {must}")
    };
    let (count, plural) = (broken.len(), if broken.len() == 1 { "" } else { "s" });
    let list = broken.iter().map(show).collect::<Vec<_>>().join("; ");
    match count {
        0 => Ok(()),
        _ => Err((
            "ValidationException",
            format!("{count} validation error{plural} detected: {list}"),
        )),
    }
}

/// Values of a scalar at and beyond its limits.
fn extremes(shape: &Value, sample: &Value) -> Vec<Value> {
    let (min, max) = (shape["min"].as_i64(), shape["max"].as_i64());
    match sample {
        Value::Number(_) if shape["type"] == "integer" => {
            let near = |limit: i64| [limit - 1, limit, limit + 1];
            let all = min.into_iter().chain(max).flat_map(near);
            all.map(|value| json!(value)).collect()
        }
        Value::String(text) if shape["type"] == "string" => {
            let longer = |length: i64| {
                let missing = usize::try_from(length).unwrap_or(0).saturating_sub(text.len());
                json!(text.clone() + &text[text.len() - 1..].repeat(missing))
            };
            let lengths = [min, max, max.map(|max| max + 1)];
            let mut values: Vec<_> = lengths.into_iter().flatten().map(longer).collect();
            values.extend([json!(""), json!(":*"), json!(" \n")]);
            // Characters of four bytes each: it is characters that count.
            if shape["pattern"].is_null() && shape["enum"].is_null() {
                values.extend(max.map(|max| json!("\u{1f600}".repeat(max as usize))));
            }
            values
        }
        _ => Vec::new(),
    }
}

fn changes(raw: &Value, name: &str, place: &Place, value: &Value, all: &mut Vec<Change>) {
    let shape = &raw["shapes"][name];
    let kind = shape["type"].as_str().expect("has a type");
    let Place { at, path } = place;
    for (wrong, message) in wrong_types(kind) {
        let expected = Err(("SerializationException", message.to_owned()));
        all.push(Change { at: at.clone(), value: Some(wrong), expected });
    }
    let mut change = |value: Value, element: &str, broken: &[String]| {
        let expected = verdict(&value, element, path, broken);
        all.push(Change { at: at.clone(), value: Some(value), expected });
    };
    match value {
        Value::Array(values) => {
            let element = shape_of(&shape["member"]);
            let part = &raw["shapes"][element];
            let is_structure = part["type"] == "structure";
            let max = shape["max"].as_u64().expect("has a limit") as usize;
            for length in [0, 1, max, max + 1] {
                let value = json!(vec![values[0].clone(); length]);
                change(value.clone(), element, &broken(shape, &value));
            }
            if is_structure {
                let place = place.step("0", ".1.member");
                changes(raw, element, &place, &values[0], all);
            } else {
                for extreme in extremes(part, &values[0]) {
                    let fails = !broken(part, &extreme).is_empty();
                    let must: Vec<_> = fails.then(|| each("Member", part)).into_iter().collect();
                    change(json!([extreme]), element, &must);
                }
            }
        }
        Value::Object(values) if kind == "map" => {
            let (key, part) = (shape_of(&shape["key"]), shape_of(&shape["value"]));
            let (key, part) = (&raw["shapes"][key], &raw["shapes"][part]);
            let max = shape["max"].as_u64().expect("has a limit") as usize;
            for length in [0, 1, max, max + 1] {
                let pair = |n: usize| (format!("key{n}"), values["key"].clone());
                let value = Value::Object((0..length).map(pair).collect());
                change(value.clone(), "", &broken(shape, &value));
            }
            for extreme in extremes(key, &json!("key")) {
                let fails = !broken(key, &extreme).is_empty();
                let must: Vec<_> = fails.then(|| each("Map keys", key)).into_iter().collect();
                change(json!({ extreme.as_str().expect("text"): "v" }), "", &must);
            }
            for extreme in extremes(part, &values["key"]) {
                let fails = !broken(part, &extreme).is_empty();
                let must: Vec<_> = fails.then(|| each("Map value", part)).into_iter().collect();
                change(json!({ "key": extreme }), "", &must);
            }
        }
        Value::Object(values) => {
            for (member, reference) in shape["members"].as_object().expect("has members") {
                let place = place.member(member);
                let required = shape["required"].as_array().into_iter().flatten();
                let required = required.into_iter().any(|name| name == member);
                let expected = || {
                    let path = &place.path;
                    let message = format!(
                        "1 validation error detected: Value null at '{path}' failed to \
                         satisfy constraint: Member must not be null"
                    );
                    if required { Err(("ValidationException", message)) } else { Ok(()) }
                };
                for value in [None, Some(Value::Null)] {
                    let at = place.at.clone();
                    all.push(Change { at, value, expected: expected() });
                }
                changes(raw, shape_of(reference), &place, &values[member], all);
            }
        }
        scalar => {
            for extreme in extremes(shape, scalar) {
                let broken = broken(shape, &extreme);
                change(extreme, "", &broken);
            }
        }
    }
}

fn apply(input: &Value, change: &Change) -> Value {
    let mut input = input.clone();
    let Some((last, way)) = change.at.split_last() else {
        return change.value.clone().expect("the whole is never taken away");
    };
    let mut at = &mut input;
    for step in way {
        at = match at {
            Value::Array(values) => &mut values[step.parse::<usize>().expect("a number")],
            other => &mut other[step.as_str()],
        };
    }
    match (at, &change.value) {
        (Value::Object(members), None) => drop(members.remove(last)),
        (Value::Array(values), Some(value)) => {
            values[last.parse::<usize>().expect("a number")] = value.clone();
        }
        (Value::Object(members), Some(value)) => {
            members.insert(last.clone(), value.clone());
        }
        _ => panic!("{last} is no place"),
    }
    input
}

#[test]
fn every_constraint_of_every_operation_is_met_from_both_sides() {
    let raw = raw();
    let mut kinds = BTreeSet::new();
    let (mut accepted, mut refused, mut bodies) = (0, 0, 0);
    for (operation, shapes) in raw["operations"].as_object().expect("has operations") {
        let shape = shape_of(&shapes["input"]);
        assert_eq!(judge(operation, &sample(&raw, shape, false)), Ok(()), "{operation}");
        let input = sample(&raw, shape, true);
        assert_eq!(judge(operation, &input), Ok(()), "{operation}");
        let mut all = Vec::new();
        let root = Place { at: Vec::new(), path: String::new() };
        changes(&raw, shape, &root, &input, &mut all);
        for change in all {
            let changed = apply(&input, &change);
            let of_bodies = judge_bodies(operation, &changed);
            bodies += of_bodies.len();
            for verdict in [judge(operation, &changed)].into_iter().chain(of_bodies) {
                let verdict = verdict.map_err(|invalid| (invalid.kind, invalid.message));
                assert_eq!(verdict, change.expected, "{operation} {:?}", change.at);
            }
            match &change.expected {
                Ok(()) => accepted += 1,
                Err((kind, _)) => {
                    refused += 1;
                    kinds.insert(*kind);
                }
            }
        }
    }
    assert_eq!(kinds.len(), 2);
    // So that a change of the generator that makes it miss most is noticed.
    assert!(accepted > 500 && refused > 2000, "{accepted} accepted, {refused} refused");
    assert!(bodies > 5000, "{bodies} bodies");
}
