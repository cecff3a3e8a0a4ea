//! From JSON to a `Value`, along a shape.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::super::model::{Kind, Member, Shape, model};
use super::super::validate::{Found, Invalid, check_base64, mismatch};
use super::{Count, boolean, keep, kept_max, number, text};

/// Reads a body along its shape.
pub(super) fn decode(shape: &Shape, body: &[u8]) -> Result<Value, Invalid> {
    let state = JsonState::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = JsonSeed { shape, state: &state }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(Value::Null) => Err(Invalid::serialization("The body is null, not an object")),
        Ok(value) => Ok(value),
        Err(error) => Err(state.invalid.take().unwrap_or_else(|| {
            Invalid::serialization(format!("The body is not valid JSON: {error}"))
        })),
    }
}

/// What is shared by all of a body's values.
#[derive(Default)]
struct JsonState {
    count: Count,
    /// Errors of a deserializer are texts with a place behind them; the true one waits here.
    invalid: RefCell<Option<Invalid>>,
}

impl JsonState {
    fn fail<E: serde::de::Error>(&self, invalid: Invalid) -> E {
        *self.invalid.borrow_mut() = Some(invalid);
        E::custom("a value is not of its shape")
    }

    fn check<T, E: serde::de::Error>(&self, result: Result<T, Invalid>) -> Result<T, E> {
        result.map_err(|invalid| self.fail(invalid))
    }
}

/// Reads one value along its shape.
#[derive(Clone, Copy)]
struct JsonSeed<'s> {
    shape: &'s Shape,
    state: &'s JsonState,
}

impl<'s> JsonSeed<'s> {
    fn with(self, shape: &'s Shape) -> JsonSeed<'s> {
        JsonSeed { shape, state: self.state }
    }
}

impl<'de> DeserializeSeed<'de> for JsonSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.state.check(self.state.count.add())?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of {}", self.shape.name)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.state.check(boolean(self.shape, value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.state.check(number(self.shape, Number::from(value)))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.state.check(number(self.shape, Number::from(value)))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        match Number::from_f64(value) {
            Some(value) => self.state.check(number(self.shape, value)),
            None => Err(E::custom("a number that is none")),
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.state.check(match self.shape.kind {
            Kind::Blob => check_base64(value.as_bytes()).map(|()| Value::String(value)),
            _ => text(self.shape, value),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let Kind::List(element) = self.shape.kind else {
            return Err(self.state.fail(mismatch(Found::List, &self.shape.kind)));
        };
        let element = model().shape(element);
        let kept_max = kept_max(self.shape);
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self.with(element))? {
            if values.len() < kept_max {
                values.push(value);
            }
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        match &self.shape.kind {
            Kind::Structure(_) => {
                while let Some(member) = map.next_key_seed(JsonMember(self.shape))? {
                    match member {
                        Some(member) => {
                            let seed = self.with(model().shape(member.shape));
                            keep(&mut members, &member.name, map.next_value_seed(seed)?);
                        }
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
            }
            Kind::Map { value, .. } => {
                let value = model().shape(*value);
                let kept_max = kept_max(self.shape);
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value_seed(self.with(value))?;
                    if members.len() < kept_max {
                        members.insert(key, value);
                    }
                }
            }
            kind => return Err(self.state.fail(mismatch(Found::Map, kind))),
        }
        Ok(Value::Object(members))
    }
}

/// Finds a structure's member by its key, without keeping the key.
struct JsonMember<'s>(&'s Shape);

impl<'de, 's> DeserializeSeed<'de> for JsonMember<'s> {
    type Value = Option<&'s Member>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'s> Visitor<'_> for JsonMember<'s> {
    type Value = Option<&'s Member>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.member(name))
    }
}
