//! Resource policies: who else may do what to a stream or consumer.

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::policy::{Policy, RequestTags};
use super::resource::ResourceName;
use super::service::{Call, Service, read};
use crate::control::store::Store;

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] =
    &["DeleteResourcePolicy", "GetResourcePolicy", "PutResourcePolicy"];

#[derive(Debug, Deserialize)]
struct PolicyInput {
    #[serde(rename = "ResourceARN")]
    resource_arn: String,
    #[serde(rename = "Policy")]
    policy: Option<String>,
}

impl<S: Store + Clone> Service<S> {
    /// The operations of this file.
    pub(super) async fn policies(
        &self,
        call: &Call,
        input: Value,
    ) -> Result<Option<Value>, ApiError> {
        let input: PolicyInput = read(input)?;
        let arn = input.resource_arn.as_str();
        let resource = ResourceName::parse(arn)?;
        let found = self.authorized_resource(call, &resource, RequestTags::Nothing)?;
        match call.operation.name.as_str() {
            "GetResourcePolicy" => {
                let policy = found.attached.policy.ok_or_else(|| no_policy(arn))?;
                Ok(Some(json!({ "Policy": policy })))
            }
            "PutResourcePolicy" => {
                let policy = input.policy.unwrap_or_default();
                check(arn, &policy)?;
                self.change_attached(&resource, &found, |attached| {
                    attached.policy = Some(policy.clone());
                    Ok(())
                })
                .await
                .map(|()| None)
            }
            _ => self
                .change_attached(&resource, &found, |attached| {
                    attached.policy.take().map(|_| ()).ok_or_else(|| no_policy(arn))
                })
                .await
                .map(|()| None),
        }
    }
}

/// Clients take it for "there is none" (Terraform's provider, Cloud Custodian).
fn no_policy(arn: &str) -> ApiError {
    ApiError::resource_not_found(format!("No resource policy is attached to {arn}."))
}

fn check(arn: &str, document: &str) -> Result<(), ApiError> {
    let policy = Policy::parse_resource(document).map_err(|error| {
        ApiError::invalid_argument(format!("Invalid policy document: {error}."))
    })?;
    let absent: Vec<&str> = policy.absent_keys().collect();
    if !absent.is_empty() {
        tracing::warn!(arn, keys = ?absent, "a policy asks for what no request here has");
    }
    Ok(())
}
