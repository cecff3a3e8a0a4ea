//! The service model as data: which operations there are, the shapes of what goes in and comes
//! out, and what a value must satisfy.
//!
//! It is botocore's model of the service, trimmed (`service-2.json`; origin and licence stand in
//! `service-2.md`), and read once. Nothing here judges a value: [`super::validate`] does.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use regex_lite::Regex;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use thiserror::Error;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    Model::parse(include_str!("service-2.json")).expect("the embedded model is well formed")
});

/// The model of Kinesis Data Streams, API version 2013-12-02.
#[must_use]
pub fn model() -> &'static Model {
    &MODEL
}

/// A service model, its references resolved and its patterns compiled.
#[derive(Debug)]
pub struct Model {
    target_prefix: String,
    operations: Vec<Operation>,
    operation_by_name: HashMap<String, usize>,
    shapes: Vec<Shape>,
    shape_by_name: HashMap<String, ShapeId>,
}

/// Names a shape of a model.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ShapeId(u16);

/// An operation: what goes in, what comes out, how it fails.
#[derive(Debug)]
pub struct Operation {
    /// As in the target header, behind the prefix.
    pub name: String,
    /// Its place among the operations.
    pub index: usize,
    /// A structure.
    pub input: ShapeId,
    /// A structure; `None` when the answer is empty.
    pub output: Option<ShapeId>,
    /// The exceptions the operation has of its own.
    pub errors: Vec<ShapeId>,
    /// The events, when the answer is a stream of them: a structure with a member an event.
    pub event_stream: Option<ShapeId>,
}

/// What a value is and what it must satisfy.
#[derive(Debug)]
pub struct Shape {
    /// Unique in the model.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Least length (characters, bytes or elements) or least value, by the kind.
    pub min: Option<i64>,
    /// Greatest length or value.
    pub max: Option<i64>,
    /// What a string must match as a whole.
    pub pattern: Option<Pattern>,
    /// The only values a string may have; empty when it may have any.
    pub values: Vec<String>,
    /// Whether the value must not be shown.
    pub sensitive: bool,
    /// Whether this is an error.
    pub exception: bool,
    /// Whether the error is the service's fault (HTTP status 500) and not the caller's (400).
    pub fault: bool,
    /// Whether this is an event of a stream.
    pub event: bool,
    /// Whether this is a stream of events: exactly one of the members is there at a time.
    pub event_stream: bool,
}

/// What a value is.
#[derive(Debug)]
pub enum Kind {
    /// Named members, in the model's order.
    Structure(Vec<Member>),
    /// Any number of values of one shape.
    List(ShapeId),
    /// Values of one shape by keys of another, which is a string.
    Map {
        /// The keys.
        key: ShapeId,
        /// The values.
        value: ShapeId,
    },
    /// Text.
    String,
    /// A whole number of 32 bits.
    Integer,
    /// A whole number of 64 bits.
    Long,
    /// True or false.
    Boolean,
    /// Bytes.
    Blob,
    /// A point in time, to the millisecond.
    Timestamp,
}

/// A member of a structure.
#[derive(Debug)]
pub struct Member {
    /// As in a body.
    pub name: String,
    /// As in messages: the first letter is small.
    pub path_name: String,
    /// What it is.
    pub shape: ShapeId,
    /// Whether it must be there.
    pub required: bool,
}

/// A pattern that a whole string must match.
pub struct Pattern {
    /// As in the model and in messages.
    pub text: String,
    matcher: Matcher,
}

/// How a pattern is matched. The names and numbers of the data path are matched by hand: that takes
/// a thirtieth of the time of the regular expression.
enum Matcher {
    /// One or more of `a-zA-Z0-9_.-`.
    Name,
    /// A decimal number without leading zeros, of at most so many digits.
    Decimal { digits_max: usize },
    /// Anything else.
    Regex(Regex),
}

/// Why a text is no service model.
#[derive(Debug, Error)]
pub enum ModelError {
    /// It is no JSON or has other members than known.
    #[error("the model is not of the known form ({0}): teach model.rs or trim it (service-2.md)")]
    Form(#[from] serde_json::Error),
    /// A shape is named that is not there.
    #[error("{user} refers to the shape {name}, which the model does not have")]
    NoShape {
        /// Who refers.
        user: String,
        /// To what.
        name: String,
    },
    /// A shape has a type nobody here knows.
    #[error("the shape {shape} has the unknown type {kind}: teach model.rs")]
    UnknownType {
        /// The shape.
        shape: String,
        /// Its type.
        kind: String,
    },
    /// A member is required that the structure does not have.
    #[error("the shape {shape} requires {member}, which is not among its members")]
    NoMember {
        /// The shape.
        shape: String,
        /// The member.
        member: String,
    },
    /// A pattern is no regular expression.
    #[error("the pattern of the shape {shape} cannot be compiled ({error}): translate it")]
    Pattern {
        /// The shape.
        shape: String,
        /// What the compiler says.
        error: regex_lite::Error,
    },
    /// An operation has something else than structures as input or output.
    #[error("the {end} of {operation} is no structure")]
    NoStructure {
        /// The operation.
        operation: String,
        /// Input or output.
        end: &'static str,
    },
    /// More shapes than an id can name.
    #[error("the model has {0} shapes, at most {max} can be named", max = u16::MAX)]
    TooManyShapes(usize),
}

impl Model {
    /// The model that `text` is the trimmed JSON of.
    ///
    /// # Errors
    /// [`ModelError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Model, ModelError> {
        let raw: RawModel = serde_json::from_str(text)?;
        if raw.shapes.0.len() > usize::from(u16::MAX) {
            return Err(ModelError::TooManyShapes(raw.shapes.0.len()));
        }
        let names = raw.shapes.0.iter().map(|(name, _)| name.clone());
        let shape_by_name: HashMap<String, ShapeId> =
            names.enumerate().map(|(index, name)| (name, ShapeId(index as u16))).collect();
        let resolver = Resolver { shape_by_name: &shape_by_name };
        let shapes = raw
            .shapes
            .0
            .into_iter()
            .map(|(name, shape)| resolver.shape(name, shape))
            .collect::<Result<Vec<_>, _>>()?;
        let operations = raw
            .operations
            .0
            .into_iter()
            .enumerate()
            .map(|(index, (name, operation))| resolver.operation(index, name, operation, &shapes))
            .collect::<Result<Vec<_>, _>>()?;
        let operation_by_name =
            operations.iter().enumerate().map(|(index, o)| (o.name.clone(), index)).collect();
        let target_prefix = raw.metadata.target_prefix;
        Ok(Model { target_prefix, operations, operation_by_name, shapes, shape_by_name })
    }

    /// What stands before the point in the target header.
    #[must_use]
    pub fn target_prefix(&self) -> &str {
        &self.target_prefix
    }

    /// All operations, in the model's order.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The operation of a name.
    #[must_use]
    pub fn operation(&self, name: &str) -> Option<&Operation> {
        self.operation_by_name.get(name).map(|&index| &self.operations[index])
    }

    /// The shape of an id of this model.
    #[must_use]
    pub fn shape(&self, id: ShapeId) -> &Shape {
        &self.shapes[usize::from(id.0)]
    }

    /// All shapes, in the model's order.
    #[must_use]
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    /// The shape of a name.
    #[must_use]
    pub fn shape_named(&self, name: &str) -> Option<&Shape> {
        self.shape_by_name.get(name).map(|&id| self.shape(id))
    }
}

impl Shape {
    /// The members of a structure; nothing of anything else.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        match &self.kind {
            Kind::Structure(members) => members,
            _ => &[],
        }
    }

    /// A structure's member by name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members().iter().find(|member| member.name == name)
    }

    /// Whether `length` is neither too small nor too great.
    #[must_use]
    pub fn allows_length(&self, length: usize) -> bool {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        self.min.is_none_or(|min| length >= min) && self.max.is_none_or(|max| length <= max)
    }

    /// Whether a string satisfies all constraints.
    #[must_use]
    pub fn allows_text(&self, text: &str) -> bool {
        self.allows_length(char_count(text))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.matches(text))
            && (self.values.is_empty() || self.values.iter().any(|value| value == text))
    }
}

/// The length of a string as the constraints mean it: in Unicode scalar values, as the Smithy
/// specification defines the length trait and the API reference words it ("Unicode characters"),
/// not in the UTF-16 units of Java.
#[must_use]
pub fn char_count(text: &str) -> usize {
    text.chars().count()
}

impl Pattern {
    /// Compiles a pattern. It is tied to both ends, as Java's `matches` does.
    fn new(text: String) -> Result<Pattern, regex_lite::Error> {
        let matcher = match text.as_str() {
            "[a-zA-Z0-9_.-]+" => Matcher::Name,
            r"^(0|([1-9]\d{0,38}))$" => Matcher::Decimal { digits_max: 39 },
            r"^(0|([1-9]\d{0,128}))$" => Matcher::Decimal { digits_max: 129 },
            other => Matcher::Regex(whole(other)?),
        };
        Ok(Pattern { text, matcher })
    }

    /// Whether the whole of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match &self.matcher {
            Matcher::Name => !text.is_empty() && text.bytes().all(is_name_byte),
            Matcher::Decimal { digits_max } => is_decimal(text, *digits_max),
            Matcher::Regex(regex) => regex.is_match(text),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

fn whole(pattern: &str) -> Result<Regex, regex_lite::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

fn is_decimal(text: &str, digits_max: usize) -> bool {
    (1..=digits_max).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
}

/// `StreamARN` as messages have it: `streamARN`.
fn path_name(name: &str) -> String {
    let mut path_name = name.to_owned();
    if let Some(first) = path_name.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    path_name
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    metadata: RawMetadata,
    operations: Ordered<RawOperation>,
    shapes: Ordered<RawShape>,
}

#[derive(Deserialize)]
struct RawMetadata {
    #[serde(rename = "targetPrefix")]
    target_prefix: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOperation {
    input: RawReference,
    output: Option<RawReference>,
    #[serde(default)]
    errors: Vec<RawReference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReference {
    shape: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShape {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    members: Ordered<RawReference>,
    member: Option<RawReference>,
    key: Option<RawReference>,
    value: Option<RawReference>,
    min: Option<i64>,
    max: Option<i64>,
    pattern: Option<String>,
    #[serde(default, rename = "enum")]
    values: Vec<String>,
    #[serde(default)]
    sensitive: bool,
    #[serde(default)]
    exception: bool,
    #[serde(default)]
    fault: bool,
    #[serde(default)]
    event: bool,
    #[serde(default, rename = "eventstream")]
    event_stream: bool,
}

/// An object's members in the order of the text, in which messages name them.
struct Ordered<T>(Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Ordered(members))
            }
        }

        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

/// Turns names into ids.
struct Resolver<'a> {
    shape_by_name: &'a HashMap<String, ShapeId>,
}

impl Resolver<'_> {
    fn id(&self, user: &str, reference: &RawReference) -> Result<ShapeId, ModelError> {
        self.shape_by_name.get(&reference.shape).copied().ok_or_else(|| ModelError::NoShape {
            user: user.to_owned(),
            name: reference.shape.clone(),
        })
    }

    /// The id of what a list or map must say it consists of.
    fn part(&self, user: &str, part: Option<&RawReference>) -> Result<ShapeId, ModelError> {
        let missing = RawReference { shape: String::new() };
        self.id(user, part.unwrap_or(&missing))
    }

    fn shape(&self, name: String, raw: RawShape) -> Result<Shape, ModelError> {
        let kind = match raw.kind.as_str() {
            "structure" => Kind::Structure(self.members(&name, &raw)?),
            "list" => Kind::List(self.part(&name, raw.member.as_ref())?),
            "map" => Kind::Map {
                key: self.part(&name, raw.key.as_ref())?,
                value: self.part(&name, raw.value.as_ref())?,
            },
            "string" => Kind::String,
            "integer" => Kind::Integer,
            "long" => Kind::Long,
            "boolean" => Kind::Boolean,
            "blob" => Kind::Blob,
            "timestamp" => Kind::Timestamp,
            _ => return Err(ModelError::UnknownType { shape: name, kind: raw.kind }),
        };
        let pattern = match raw.pattern.map(Pattern::new).transpose() {
            Ok(pattern) => pattern,
            Err(error) => return Err(ModelError::Pattern { shape: name, error }),
        };
        Ok(Shape {
            name,
            kind,
            min: raw.min,
            max: raw.max,
            pattern,
            values: raw.values,
            sensitive: raw.sensitive,
            exception: raw.exception,
            fault: raw.fault,
            event: raw.event,
            event_stream: raw.event_stream,
        })
    }

    fn members(&self, shape: &str, raw: &RawShape) -> Result<Vec<Member>, ModelError> {
        let is_member =
            |required: &&String| raw.members.0.iter().any(|(name, _)| name == *required);
        if let Some(member) = raw.required.iter().find(|required| !is_member(required)) {
            let (shape, member) = (shape.to_owned(), member.clone());
            return Err(ModelError::NoMember { shape, member });
        }
        let member = |(name, reference): &(String, RawReference)| {
            Ok(Member {
                name: name.clone(),
                path_name: path_name(name),
                shape: self.id(shape, reference)?,
                required: raw.required.contains(name),
            })
        };
        raw.members.0.iter().map(member).collect()
    }

    fn operation(
        &self,
        index: usize,
        name: String,
        raw: RawOperation,
        shapes: &[Shape],
    ) -> Result<Operation, ModelError> {
        let structure = |end, reference: &RawReference| {
            let id = self.id(&name, reference)?;
            match shapes[usize::from(id.0)].kind {
                Kind::Structure(_) => Ok(id),
                _ => Err(ModelError::NoStructure { operation: name.clone(), end }),
            }
        };
        let input = structure("input", &raw.input)?;
        let output = raw.output.as_ref().map(|output| structure("output", output)).transpose()?;
        let errors =
            raw.errors.iter().map(|error| self.id(&name, error)).collect::<Result<_, _>>()?;
        let event_stream = output.and_then(|output| {
            let members = shapes[usize::from(output.0)].members();
            let is_stream = |member: &&Member| shapes[usize::from(member.shape.0)].event_stream;
            members.iter().find(is_stream).map(|member| member.shape)
        });
        Ok(Operation { name, index, input, output, errors, event_stream })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_embedded_model_has_every_operation_and_shape() {
        let model = model();
        assert_eq!(model.target_prefix(), "Kinesis_20131202");
        assert_eq!(model.operations().len(), 57);
        assert_eq!(model.shapes().len(), 311);
        assert!(model.operation("PutRecords").is_some());
        assert!(model.operation("putRecords").is_none());
        assert!(model.shape_named("PutRecordsInput").is_some());
    }

    #[test]
    fn an_operation_knows_its_shapes_and_errors() {
        let model = model();
        let put = model.operation("PutRecords").expect("is there");
        assert_eq!(model.shape(put.input).name, "PutRecordsInput");
        assert_eq!(put.output.map(|id| model.shape(id).name.as_str()), Some("PutRecordsOutput"));
        let errors: Vec<_> = put.errors.iter().map(|&id| model.shape(id)).collect();
        assert!(errors.iter().all(|error| error.exception));
        assert!(errors.iter().any(|error| error.name == "ProvisionedThroughputExceededException"));
        assert!(errors.iter().any(|error| error.name == "InternalFailureException" && error.fault));
        assert!(put.event_stream.is_none());
        assert!(model.operation("CreateStream").expect("is there").output.is_none());
    }

    #[test]
    fn the_answer_of_subscribe_to_shard_is_a_stream_of_events() {
        let model = model();
        let subscribe = model.operation("SubscribeToShard").expect("is there");
        let stream = model.shape(subscribe.event_stream.expect("it streams"));
        assert!(stream.event_stream);
        let event = stream.member("SubscribeToShardEvent").expect("is there");
        assert!(model.shape(event.shape).event);
        let with_stream: Vec<_> =
            model.operations().iter().filter(|o| o.event_stream.is_some()).collect();
        assert_eq!(with_stream.len(), 1);
    }

    #[test]
    fn a_structure_keeps_the_order_and_the_obligations_of_its_members() {
        let model = model();
        let input = model.shape_named("PutRecordsInput").expect("is there");
        let names: Vec<_> = input.members().iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["Records", "StreamName", "StreamARN", "StreamId", "DryRun"]);
        let required: Vec<_> = input.members().iter().filter(|m| m.required).collect();
        assert_eq!(required.len(), 1);
        assert_eq!(required[0].path_name, "records");
        assert_eq!(input.member("StreamARN").expect("is there").path_name, "streamARN");
    }

    #[test]
    fn every_list_and_map_of_an_input_has_a_greatest_length() {
        fn check(model: &Model, id: ShapeId, path: &str) {
            let shape = model.shape(id);
            match &shape.kind {
                Kind::Structure(members) => members
                    .iter()
                    .for_each(|m| check(model, m.shape, &format!("{path}.{}", m.name))),
                Kind::List(element) => {
                    assert!(shape.max.is_some(), "{path} has no greatest length");
                    check(model, *element, path);
                }
                Kind::Map { value, .. } => {
                    assert!(shape.max.is_some(), "{path} has no greatest length");
                    check(model, *value, path);
                }
                _ => {}
            }
        }
        for operation in model().operations() {
            check(model(), operation.input, &operation.name);
        }
    }

    #[test]
    fn patterns_match_whole_strings_only() {
        let arn = model().shape_named("StreamARN").expect("is there").pattern.as_ref();
        let arn = arn.expect("it has a pattern");
        assert!(arn.matches("arn:aws:kinesis:us-east-1:123456789012:stream/a"));
        assert!(arn.matches("arn:aws-cn:kinesis:cn-north-1:123456789012:stream/a"));
        assert!(!arn.matches("xarn:aws:kinesis:us-east-1:123456789012:stream/a"));
        assert!(!arn.matches("arn:aws:kinesis:us-east-1:123456789012:stream/a\n"));
        assert!(!arn.matches("arn:aws:kinesis:us-east-1:12345678901:stream/a"));
        let source = model().shape_named("PartitionSourceName").expect("is there");
        assert!(source.allows_text("a_b.c"));
        assert!(!source.allows_text("a-b"));
        let prefix = model().shape_named("S3ErrorOutputPrefix").expect("is there");
        assert!(prefix.allows_text("errors/!(x)'*"));
        assert!(!prefix.allows_text("errors/{x}"));
    }

    #[test]
    fn lengths_are_counted_in_unicode_scalar_values() {
        let key = model().shape_named("PartitionKey").expect("is there");
        assert!(key.allows_text(&"\u{1f600}".repeat(256)));
        assert!(!key.allows_text(&"\u{1f600}".repeat(257)));
        assert!(!key.allows_text(""));
    }

    #[test]
    fn what_is_no_model_is_refused_with_the_reason() {
        let refused = |text: &str| Model::parse(text).expect_err("is refused").to_string();
        let with = |operations: &str, shapes: &str| {
            refused(&format!(
                r#"{{"metadata":{{"targetPrefix":"T"}},
                    "operations":{{{operations}}},"shapes":{{{shapes}}}}}"#
            ))
        };
        assert!(refused("{").contains("not of the known form"));
        assert!(with("", r#""A":{"type":"string","novel":1}"#).contains("novel"));
        assert!(with("", r#""A":{"type":"double"}"#).contains("unknown type double"));
        assert!(with("", r#""A":{"type":"list"}"#).contains("does not have"));
        assert!(with("", r#""A":{"type":"string","pattern":"("}"#).contains("pattern"));
        assert!(with("", r#""A":{"type":"structure","required":["X"]}"#).contains("requires X"));
        let member = r#""A":{"type":"structure","members":{"X":{"shape":"B"}}}"#;
        assert!(with("", member).contains("shape B"));
        let operation = r#""O":{"input":{"shape":"A"}}"#;
        assert!(with(operation, r#""A":{"type":"string"}"#).contains("input of O"));
    }

    proptest! {
        #[test]
        fn patterns_matched_by_hand_agree_with_the_regular_expression(
            text in "[a-zA-Z0-9_./ \u{e9}\n-]{0,12}|0?[1-9]{0,3}[0-9]{0,130}"
        ) {
            for name in ["StreamName", "HashKey", "SequenceNumber"] {
                let pattern = model().shape_named(name).expect("is there").pattern.as_ref();
                let pattern = pattern.expect("it has a pattern");
                prop_assert!(!matches!(pattern.matcher, Matcher::Regex(_)));
                let regex = whole(&pattern.text).expect("it compiles");
                prop_assert_eq!(pattern.matches(&text), regex.is_match(&text), "{}", name);
            }
        }
    }
}
