//! Tags of streams, in the operations that name a stream and in those that name any resource.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::policy::{RequestTags, Tags};
use super::resource::ResourceName;
use super::service::{Call, Service, read};
use crate::control::store::Store;

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] = &[
    "AddTagsToStream",
    "ListTagsForResource",
    "ListTagsForStream",
    "RemoveTagsFromStream",
    "TagResource",
    "UntagResource",
];

/// Tags of a resource (API reference, AddTagsToStream, TagResource, CreateStream and
/// RegisterStreamConsumer).
const TAGS_MAX: usize = 50;
/// What is allowed in keys and values beside letters, digits and white space (observed at the
/// service by kinesalite; API reference, TagResource). Of these, `%` passes the first check and not
/// the second.
const SYMBOLS: &str = "_./=+-%@:";
/// Keys that begin so are the service's own (tagging guide, naming rules).
const RESERVED_PREFIX: &str = "aws:";

/// A stream by name or ARN, or any resource by its ARN.
#[derive(Debug, Deserialize)]
struct Named {
    #[serde(rename = "StreamName")]
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    #[serde(rename = "ResourceARN")]
    resource_arn: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AddInput {
    #[serde(flatten)]
    named: Named,
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RemoveInput {
    #[serde(flatten)]
    named: Named,
    tag_keys: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListInput {
    #[serde(flatten)]
    named: Named,
    exclusive_start_tag_key: Option<String>,
    limit: Option<usize>,
}

impl<S: Store + Clone> Service<S> {
    /// The operations of this file.
    pub(super) async fn tags(&self, call: &Call, input: Value) -> Result<Option<Value>, ApiError> {
        match call.operation.name.as_str() {
            "AddTagsToStream" | "TagResource" => {
                self.add_tags(call, read(input)?).await.map(|()| None)
            }
            "RemoveTagsFromStream" | "UntagResource" => {
                self.remove_tags(call, read(input)?).await.map(|()| None)
            }
            _ => self.list_tags(call, read(input)?).map(Some),
        }
    }

    async fn add_tags(&self, call: &Call, input: AddInput) -> Result<(), ApiError> {
        let resource = self.resource_of(call, &input.named)?;
        let found = self.authorized_resource(call, &resource, RequestTags::Tags(&input.tags))?;
        check_new_tags(&input.tags, &told(&resource))?;
        self.change_attached(&resource, &found, |attached| {
            attached.tags.extend(input.tags.clone());
            check_count(&attached.tags, &told(&resource))
        })
        .await
    }

    async fn remove_tags(&self, call: &Call, input: RemoveInput) -> Result<(), ApiError> {
        let resource = self.resource_of(call, &input.named)?;
        let keys = &input.tag_keys;
        let found = self.authorized_resource(call, &resource, RequestTags::Keys(keys))?;
        check_characters(keys.iter(), || {
            format!("Failed to remove tags from {}", told(&resource))
        })?;
        self.change_attached(&resource, &found, |attached| {
            attached.tags.retain(|key, _| !keys.contains(key));
            Ok(())
        })
        .await
    }

    fn list_tags(&self, call: &Call, input: ListInput) -> Result<Value, ApiError> {
        let resource = self.resource_of(call, &input.named)?;
        let found = self.authorized_resource(call, &resource, RequestTags::Nothing)?;
        let tags = found.attached.tags;
        let start = input.exclusive_start_tag_key.as_deref();
        let mut behind =
            tags.iter().filter(|(key, _)| start.is_none_or(|start| key.as_str() > start));
        let limit = input.limit.unwrap_or(usize::MAX);
        let listed: Vec<Value> = behind
            .by_ref()
            .take(limit)
            .map(|(key, value)| json!({ "Key": key, "Value": value }))
            .collect();
        if call.operation.name == "ListTagsForResource" {
            return Ok(json!({ "Tags": listed }));
        }
        Ok(json!({ "Tags": listed, "HasMoreTags": behind.next().is_some() }))
    }

    fn resource_of(&self, call: &Call, named: &Named) -> Result<ResourceName, ApiError> {
        match &named.resource_arn {
            Some(arn) => ResourceName::parse(arn),
            None => {
                let (name, arn) = (named.stream_name.as_deref(), named.stream_arn.as_deref());
                self.name_of(call, name, arn).map(ResourceName::Stream)
            }
        }
    }
}

/// Whether a resource, as messages tell of it, may have these tags, if it has no others yet.
///
/// # Errors
/// InvalidArgumentException.
pub(super) fn check_new_tags(tags: &Tags, told: &str) -> Result<(), ApiError> {
    let texts = tags.iter().flat_map(|(key, value)| [key, value]);
    check_characters(texts, || format!("Failed to add tags to {told}"))?;
    if let Some(key) = tags.keys().find(|key| is_reserved(key)) {
        return Err(ApiError::invalid_argument(format!(
            "The tag key {key} begins with {RESERVED_PREFIX}, which is reserved: choose another \
             one."
        )));
    }
    check_count(tags, told)
}

/// Whether a resource, as messages tell of it, may have so many tags.
fn check_count(tags: &Tags, told: &str) -> Result<(), ApiError> {
    if tags.len() <= TAGS_MAX {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!(
        "Failed to add tags to {told} because a given resource cannot have more than {TAGS_MAX} \
         tags associated with it."
    )))
}

/// A resource as messages tell of it.
fn told(resource: &ResourceName) -> String {
    match resource {
        ResourceName::Stream(stream) => {
            format!("stream {} under account {}", stream.name, stream.account_id)
        }
        ResourceName::Consumer { stream, name, .. } => {
            format!("consumer {name} of stream {} under account {}", stream.name, stream.account_id)
        }
    }
}

/// Whether a key is the service's own.
fn is_reserved(key: &str) -> bool {
    key.get(..RESERVED_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX))
}

/// Whether keys and values have allowed characters only.
fn check_characters<'t>(
    texts: impl Iterator<Item = &'t String> + Clone,
    failed: impl Fn() -> String,
) -> Result<(), ApiError> {
    let is_valid = |c: char| c.is_alphanumeric() || c.is_whitespace() || SYMBOLS.contains(c);
    if !texts.clone().all(|text| text.chars().all(is_valid)) {
        return Err(ApiError::invalid_argument(
            "Some tags contain invalid characters. Valid characters: Unicode letters, digits, \
             white space, _ . / = + - % @ :.",
        ));
    }
    if texts.clone().any(|text| text.contains('%')) {
        return Err(ApiError::invalid_argument(format!(
            "{} because some tags contained illegal characters. The allowed characters are \
             Unicode letters, white-spaces, '_',',','/','=','+','-','@',':'.",
            failed()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_those_of_the_service() {
        let check = |text: &str| {
            check_characters([text.to_owned()].iter(), || "Failed to add tags to it".to_owned())
        };
        for text in ["", "cost centre", "a_b.c/d=e+f-g@h:i", "größe", "数", "9"] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for text in ["a,b", "a!", "a\"b", "a{b}", "\u{0}", "a|b", "a#b"] {
            let error = check(text).expect_err(text);
            assert!(error.message.starts_with("Some tags contain invalid"), "{error}");
        }
        let percent = check("50%").expect_err("a percent sign");
        assert!(percent.message.starts_with("Failed to add tags to it because"), "{percent}");
    }

    #[test]
    fn the_services_own_keys_are_known_in_any_case() {
        for (key, expected) in [("aws:x", true), ("AWS:", true), ("aws", false), ("my:aws:", false)]
        {
            assert_eq!(is_reserved(key), expected, "{key}");
        }
        assert!(!is_reserved("aä:"), "a boundary of characters is no boundary of bytes");
    }
}
