//! What an ARN names that has tags and a policy: a stream, or a consumer of one.

use std::collections::BTreeMap;
use std::sync::Arc;

use thalweg_wire::ids::StreamId;

use super::error::ApiError;
use super::policy::RequestTags;
use super::service::{
    CHANGE_ATTEMPTS_MAX, Call, Resource, Service, not_active, not_found, split_stream_arn,
};
use crate::control::catalog::{Stream, Versioned};
use crate::control::record::{
    ConsumerRecord, ConsumerStatus, RecordKey, StreamName, StreamRecord, StreamStatus,
    encode_record,
};
use crate::control::store::{Expectation, Store, Transaction};

/// An ARN, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ResourceName {
    /// Of a stream.
    Stream(StreamName),
    /// Of a consumer.
    Consumer {
        /// Its stream.
        stream: StreamName,
        /// Its name.
        name: String,
        /// When it was registered, seconds since 1970.
        created_s: u64,
    },
}

/// A resource that the caller may do something to, as it was when that was asked.
#[derive(Debug)]
pub(super) struct FoundResource {
    /// What is attached to it.
    pub(super) attached: Attached,
    /// The incarnation of its stream.
    stream: StreamId,
}

/// What may be changed of a resource, whichever kind it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Attached {
    /// Its tags.
    pub(super) tags: BTreeMap<String, String>,
    /// Its policy, as it came.
    pub(super) policy: Option<String>,
}

impl ResourceName {
    /// Takes the ARN of a stream or consumer apart.
    ///
    /// # Errors
    /// ResourceNotFoundException for queues and channels, of which there are none here;
    /// InvalidArgumentException when it is no ARN of anything.
    pub(super) fn parse(arn: &str) -> Result<ResourceName, ApiError> {
        let resource = arn.splitn(6, ':').nth(5).unwrap_or_default();
        if resource.starts_with("queue/") || resource.starts_with("channel/") {
            return Err(ApiError::resource_not_found(format!("Resource {arn} not found.")));
        }
        let (stream, rest) = split_stream_arn(arn)?;
        let wrong =
            || ApiError::invalid_argument(format!("{arn} is no ARN of a stream or consumer."));
        if rest.is_empty() {
            return Ok(ResourceName::Stream(stream));
        }
        let consumer = rest.strip_prefix("/consumer/").ok_or_else(wrong)?;
        let (name, created_s) = consumer.split_once(':').ok_or_else(wrong)?;
        if name.is_empty() || name.contains('/') {
            return Err(wrong());
        }
        let created_s = created_s.parse().map_err(|_| wrong())?;
        Ok(ResourceName::Consumer { stream, name: name.to_owned(), created_s })
    }

    fn arn(&self) -> String {
        match self {
            ResourceName::Stream(stream) => stream.arn(),
            ResourceName::Consumer { stream, name, created_s } => {
                format!("{}/consumer/{name}:{created_s}", stream.arn())
            }
        }
    }

    fn stream(&self) -> &StreamName {
        match self {
            ResourceName::Stream(stream) | ResourceName::Consumer { stream, .. } => stream,
        }
    }

    fn not_found(&self) -> ApiError {
        match self {
            ResourceName::Stream(stream) => not_found(stream),
            ResourceName::Consumer { stream, name, created_s } => {
                ApiError::resource_not_found(format!(
                    "Consumer {name} with creation timestamp {created_s} under stream {} and \
                     account {} not found.",
                    stream.name, stream.account_id
                ))
            }
        }
    }

    /// The consumer that this names, if it is there.
    fn consumer_of<'s>(&self, stream: &'s Stream) -> Option<&'s Versioned<ConsumerRecord>> {
        let ResourceName::Consumer { name, created_s, .. } = self else { return None };
        let consumer = stream.consumer(name)?;
        (consumer.record.created_ms / 1000 == *created_s).then_some(consumer)
    }

    /// What is attached to the resource, if it is there.
    fn attached(&self, stream: &Stream) -> Option<Attached> {
        match self {
            ResourceName::Stream(_) => {
                let StreamRecord { tags, policy, .. } = &stream.record;
                Some(Attached { tags: tags.clone(), policy: policy.clone() })
            }
            ResourceName::Consumer { .. } => {
                let ConsumerRecord { tags, policy, .. } = &self.consumer_of(stream)?.record;
                Some(Attached { tags: tags.clone(), policy: policy.clone() })
            }
        }
    }
}

impl<S: Store + Clone> Service<S> {
    /// What is attached to a resource, if the caller may do to it what the call asks for.
    /// `request_tags` are those that the request carries or names.
    ///
    /// # Errors
    /// AccessDeniedException, ResourceNotFoundException.
    pub(super) fn authorized_resource(
        &self,
        call: &Call,
        resource: &ResourceName,
        request_tags: RequestTags<'_>,
    ) -> Result<FoundResource, ApiError> {
        call.check_region(resource.stream())?;
        let stream = self.ground.catalog.stream(resource.stream());
        let attached = stream.as_deref().and_then(|stream| resource.attached(stream));
        // Who may not ask does not learn whether there is such a resource.
        let arn = resource.arn();
        let asked = Resource {
            arn: &arn,
            account_id: &resource.stream().account_id,
            policy: attached.as_ref().and_then(|attached| attached.policy.as_deref()),
            tags: attached.as_ref().map(|attached| &attached.tags),
        };
        self.authorize_on(call, &call.action(), &asked, request_tags)?;
        let (Some(stream), Some(attached)) = (stream, attached) else {
            return Err(resource.not_found());
        };
        Ok(FoundResource { attached, stream: stream.id() })
    }

    /// Changes what is attached to the resource that was found. `change` may be asked again when
    /// somebody else was quicker. Answers when the change is seen.
    ///
    /// # Errors
    /// What `change` says; ResourceInUseException while the resource is being made or going; that
    /// the store did not take it.
    pub(super) async fn change_attached(
        &self,
        resource: &ResourceName,
        found: &FoundResource,
        mut change: impl FnMut(&mut Attached) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        for _ in 0..CHANGE_ATTEMPTS_MAX {
            // Another stream of that name is not what the caller was asked about.
            let stream = self.ground.catalog.stream_of(found.stream);
            let stream = stream.ok_or_else(|| resource.not_found())?;
            let before = resource.attached(&stream).ok_or_else(|| resource.not_found())?;
            check_state(&stream, resource)?;
            let mut attached = before.clone();
            change(&mut attached)?;
            if attached == before {
                return Ok(());
            }
            if self.commit(replaced(&stream, resource, attached)).await?.is_some() {
                return Ok(());
            }
        }
        Err(ApiError::resource_in_use(format!(
            "{} is being changed by others; try again.",
            resource.arn()
        )))
    }
}

/// Whether the resource is in a state in which it can be changed.
fn check_state(stream: &Arc<Stream>, resource: &ResourceName) -> Result<(), ApiError> {
    if matches!(stream.record.status, StreamStatus::Creating | StreamStatus::Deleting) {
        return Err(not_active(stream));
    }
    let ResourceName::Consumer { name, created_s, .. } = resource else { return Ok(()) };
    match resource.consumer_of(stream) {
        Some(consumer) if consumer.record.status != ConsumerStatus::Active => {
            // The service's words (observed by users of CloudFormation).
            Err(ApiError::resource_in_use(format!(
                "Consumer {name} with creation timestamp {created_s} under stream {} and account \
                 {} is not in ACTIVE status.",
                stream.name.name, stream.name.account_id
            )))
        }
        _ => Ok(()),
    }
}

fn replaced(stream: &Stream, resource: &ResourceName, attached: Attached) -> Transaction {
    let Attached { tags, policy } = attached;
    let (key, expected, value) = match (resource, resource.consumer_of(stream)) {
        (ResourceName::Consumer { name, .. }, Some(consumer)) => {
            let record = ConsumerRecord { tags, policy, ..consumer.record.clone() };
            let key = RecordKey::Consumer(stream.name.clone(), name.clone());
            (key, consumer.mod_revision, encode_record(&record))
        }
        _ => {
            let record = StreamRecord { tags, policy, ..stream.record.clone() };
            let key = RecordKey::Stream(stream.name.clone());
            (key, stream.mod_revision, encode_record(&record))
        }
    };
    let key = key.encode();
    Transaction::new().expect(key.clone(), Expectation::ModRevision(expected)).put(key, value)
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    #[test]
    fn arns_name_streams_and_consumers() {
        let stream = StreamName {
            account_id: "123456789012".to_owned(),
            region: "eu-west-1".to_owned(),
            name: "orders".to_owned(),
        };
        let consumer = ResourceName::Consumer {
            stream: stream.clone(),
            name: "audit".to_owned(),
            created_s: 1_700_000_000,
        };
        for name in [ResourceName::Stream(stream), consumer] {
            assert_eq!(ResourceName::parse(&name.arn()), Ok(name));
        }
        let base = "arn:aws:kinesis:eu-west-1:123456789012:";
        for (resource, kind) in [
            ("queue/jobs", ErrorKind::ResourceNotFound),
            ("channel/archive", ErrorKind::ResourceNotFound),
            ("stream/", ErrorKind::InvalidArgument),
            ("stream/orders/", ErrorKind::InvalidArgument),
            ("stream/orders/consumer", ErrorKind::InvalidArgument),
            ("stream/orders/consumer/", ErrorKind::InvalidArgument),
            ("stream/orders/consumer/audit", ErrorKind::InvalidArgument),
            ("stream/orders/consumer/:17", ErrorKind::InvalidArgument),
            ("stream/orders/consumer/a/b:17", ErrorKind::InvalidArgument),
            ("stream/orders/consumer/audit:soon", ErrorKind::InvalidArgument),
            ("stream/orders/consumers/audit:17", ErrorKind::InvalidArgument),
        ] {
            let error = ResourceName::parse(&format!("{base}{resource}")).expect_err(resource);
            assert_eq!(error.kind, kind, "{resource}: {error}");
        }
    }
}
