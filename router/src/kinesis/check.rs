//! Checks outputs by the service model: for tests, and for whoever wants to check a server from
//! outside.

use serde_json::{Map, Number, Value};

use super::model::{Kind, Operation, Shape, model};
use super::validate::{Bounded, Constraint, Path, Shown, Step, check_base64};

/// Deviations of an output that are reported at most.
pub const DEVIATIONS_MAX: usize = 100;

/// What deviates in the output of an operation from its shape; empty when nothing does. Unlike
/// with an input, members that the model does not have count, and no type is taken for another.
///
/// The answer of an operation that streams is judged event by event, each under the name of its
/// member: `{"EventStream": {"SubscribeToShardEvent": {...}}}`.
///
/// Where the service is known to send what its own model forbids, that is no deviation: see
/// `allowed_by_the_service`.
#[must_use]
pub fn check_output(operation: &Operation, output: &Value) -> Vec<String> {
    let mut deviations = Deviations::default();
    match operation.output {
        Some(id) => deviations.judge(model().shape(id), output, &Path::root()),
        None => match output {
            Value::Object(members) if members.is_empty() => {}
            other => deviations.add(&Path::root(), format!("{} has no output", show_type(other))),
        },
    }
    deviations.list
}

/// Gathers where an output deviates.
#[derive(Default)]
struct Deviations {
    list: Vec<String>,
}

impl Deviations {
    fn add(&mut self, path: &Path<'_>, what: String) {
        if self.list.len() < DEVIATIONS_MAX {
            let path = path.to_string();
            let place = if path.is_empty() { "the output" } else { &path };
            self.list.push(format!("{place}: {what}"));
        }
    }

    fn judge(&mut self, shape: &Shape, value: &Value, path: &Path<'_>) {
        if let Err(what) = exact_type(shape, value) {
            return self.add(path, what);
        }
        for constraint in Constraint::of(shape) {
            if !constraint.holds(&shape.kind, value) {
                let shown = Bounded::of(&Shown { shape, value });
                self.add(path, format!("'{shown}': {constraint}"));
            }
        }
        match (&shape.kind, value) {
            (Kind::Structure(_), Value::Object(values)) if shape.event_stream => {
                self.judge_event(shape, values, path);
            }
            (Kind::Structure(_), Value::Object(values)) => {
                self.judge_members(shape, values, path);
            }
            (Kind::List(element), Value::Array(values)) => {
                let element = model().shape(*element);
                for (number, value) in (1_usize..).zip(values) {
                    self.judge(element, value, &path.down(Step::Element(&number)));
                }
            }
            (Kind::Map { key, value: element }, Value::Object(values)) => {
                let (key_shape, element) = (model().shape(*key), model().shape(*element));
                for (key, value) in values {
                    let path = path.down(Step::Element(key));
                    self.judge(key_shape, &Value::String(key.clone()), &path);
                    self.judge(element, value, &path);
                }
            }
            _ => {}
        }
    }

    fn judge_members(&mut self, shape: &Shape, values: &Map<String, Value>, path: &Path<'_>) {
        for member in shape.members() {
            let path = path.down(Step::Name(&member.name));
            match values.get(&member.name).filter(|value| !value.is_null()) {
                value if allowed_by_the_service(&shape.name, &member.name, value) => {}
                None if member.required => self.add(&path, "is required and missing".to_owned()),
                None => {}
                Some(value) => self.judge(model().shape(member.shape), value, &path),
            }
        }
        self.unknown(shape, values, path);
    }

    fn judge_event(&mut self, shape: &Shape, values: &Map<String, Value>, path: &Path<'_>) {
        if values.len() != 1 {
            self.add(path, format!("{} events where there is one at a time", values.len()));
        }
        for (name, value) in values {
            if let Some(member) = shape.member(name) {
                let path = path.down(Step::Name(name));
                self.judge(model().shape(member.shape), value, &path);
            }
        }
        self.unknown(shape, values, path);
    }

    fn unknown(&mut self, shape: &Shape, values: &Map<String, Value>, path: &Path<'_>) {
        for name in values.keys().filter(|name| shape.member(name).is_none()) {
            let what = format!("is not in the model of {}", shape.name);
            self.add(&path.down(Step::Name(name)), what);
        }
    }
}

/// What the service sends against its own model: no failed records (the least count is 1 in the
/// model), a stream without shard metrics (the list has at least one), and the last event of a shard
/// (no continuation, which is required; the KCL relies on it).
fn allowed_by_the_service(shape: &str, member: &str, value: Option<&Value>) -> bool {
    match (shape, member) {
        ("PutRecordsOutput", "FailedRecordCount") => value.and_then(Value::as_i64) == Some(0),
        ("EnhancedMetrics", "ShardLevelMetrics")
        | ("EnhancedMonitoringOutput", "CurrentShardLevelMetrics" | "DesiredShardLevelMetrics") => {
            value.and_then(Value::as_array).is_some_and(Vec::is_empty)
        }
        ("SubscribeToShardEvent", "ContinuationSequenceNumber") => value.is_none(),
        _ => false,
    }
}

/// Whether a value of an output is of its shape's type, without any coercion.
fn exact_type(shape: &Shape, value: &Value) -> Result<(), String> {
    let in_range = |number: &Number| match shape.kind {
        Kind::Integer => number.as_i64().is_some_and(|value| i32::try_from(value).is_ok()),
        _ => number.as_i64().is_some(),
    };
    let fits = match (&shape.kind, value) {
        (Kind::Structure(_) | Kind::Map { .. }, Value::Object(_))
        | (Kind::List(_), Value::Array(_))
        | (Kind::String, Value::String(_))
        | (Kind::Timestamp, Value::Number(_))
        | (Kind::Boolean, Value::Bool(_)) => true,
        (Kind::Integer | Kind::Long, Value::Number(number)) => in_range(number),
        (Kind::Blob, Value::String(text)) => {
            return check_base64(text.as_bytes()).map_err(|invalid| invalid.message);
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("{} is no {}", show_type(value), shape.name)) }
}

fn show_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(operation: &str, output: &Value) -> Vec<String> {
        check_output(model().operation(operation).expect("is in the model"), output)
    }

    #[test]
    fn an_output_as_the_model_has_it_does_not_deviate() {
        let record = json!({
            "SequenceNumber": "49", "ApproximateArrivalTimestamp": 1_795_521_600.123,
            "Data": "AAH/", "PartitionKey": "k"
        });
        let end = json!({ "Records": [record], "NextShardIterator": null, "ChildShards": [{
            "ShardId": "shardId-000000000001", "ParentShards": ["shardId-000000000000"],
            "HashKeyRange": { "StartingHashKey": "0", "EndingHashKey": "9" }
        }] });
        assert_eq!(check("GetRecords", &end), Vec::<String>::new());
        assert_eq!(check("CreateStream", &json!({})), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_deviation_is_told_with_its_place() {
        let record = json!({
            "SequenceNumber": "049", "ApproximateArrivalTimestamp": "now", "Data": "AAH",
            "PartitionKey": "", "EncryptionType": "AES", "Color": 1
        });
        let output = json!({ "Records": [record, {}, null], "MillisBehindLatest": -1 });
        assert_eq!(
            check("GetRecords", &output),
            [
                "Records.1.member.SequenceNumber: '049': Member must satisfy regular expression \
             pattern: ^(0|([1-9]\\d{0,128}))$",
                "Records.1.member.ApproximateArrivalTimestamp: a string is no Timestamp",
                "Records.1.member.Data: 'AAH' can not be converted to a Blob: Base64 encoded length \
             is expected a multiple of 4 bytes but found: 3",
                "Records.1.member.PartitionKey: '': Member must have length greater than or equal to 1",
                "Records.1.member.EncryptionType: 'AES': Member must satisfy enum value set: [NONE, KMS]",
                "Records.1.member.Color: is not in the model of Record",
                "Records.2.member.SequenceNumber: is required and missing",
                "Records.2.member.Data: is required and missing",
                "Records.3.member: null is no Record",
                "MillisBehindLatest: '-1': Member must have value greater than or equal to 0",
            ]
        );
        let count = json!({ "CurrentShardCount": 1.5, "TargetShardCount": 3_000_000_000_i64 });
        assert_eq!(
            check("UpdateShardCount", &count),
            [
                "CurrentShardCount: a number is no PositiveIntegerObject",
                "TargetShardCount: a number is no PositiveIntegerObject",
            ]
        );
        assert_eq!(check("CreateStream", &json!([])), ["the output: a list has no output"]);
        assert_eq!(check("PutRecord", &json!(1)), ["the output: a number is no PutRecordOutput"]);
    }

    #[test]
    fn what_the_service_sends_against_its_model_is_no_deviation() {
        let put = json!({ "FailedRecordCount": 0, "Records": [
            { "SequenceNumber": "49", "ShardId": "shardId-000000000000" }
        ] });
        assert_eq!(check("PutRecords", &put), Vec::<String>::new());
        assert_eq!(
            check("PutRecords", &json!({ "FailedRecordCount": -1, "Records": [{}] })).len(),
            1
        );
        let metrics =
            json!({ "CurrentShardLevelMetrics": [], "DesiredShardLevelMetrics": ["ALL"] });
        assert_eq!(check("EnableEnhancedMonitoring", &metrics), Vec::<String>::new());
        let event = |event: Value| {
            check("SubscribeToShard", &json!({ "EventStream": { "SubscribeToShardEvent": event } }))
        };
        assert_eq!(event(json!({ "Records": [], "MillisBehindLatest": 0 })), Vec::<String>::new());
        assert_eq!(event(json!({ "Records": [] })).len(), 1);
    }

    #[test]
    fn a_stream_has_one_event_at_a_time() {
        let stream = |events: Value| check("SubscribeToShard", &json!({ "EventStream": events }));
        assert_eq!(stream(json!({})), ["EventStream: 0 events where there is one at a time"]);
        let error = json!({ "ResourceInUseException": { "message": "taken over" } });
        assert_eq!(stream(error), Vec::<String>::new());
        assert_eq!(stream(json!({ "Novel": {} })), {
            ["EventStream.Novel: is not in the model of SubscribeToShardEventStream"]
        });
    }

    #[test]
    fn deviations_are_limited() {
        let output = json!({ "Records": vec![json!(1); 2 * DEVIATIONS_MAX] });
        assert_eq!(check("GetRecords", &output).len(), DEVIATIONS_MAX);
    }
}
