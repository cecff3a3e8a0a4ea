//! What an account chose for a region: its commitment to a minimum of throughput, which unlocks warm
//! throughput and more consumers.
//!
//! A commitment lasts for a day at least. Ended before, it goes on until then, and until then it can
//! be taken up again (API reference, MinimumThroughputBillingCommitmentInput). Nobody is billed
//! here; what counts is who may use what.

use serde::Deserialize;
use serde_json::{Value, json};

use super::codec::timestamp;
use super::error::ApiError;
use super::service::{CHANGE_ATTEMPTS_MAX, Call, Service, read};
use crate::control::record::{
    AccountRecord, RECORD_VERSION, StreamName, account_key, decode_record, encode_record,
};
use crate::control::store::{CommitError, Expectation, Store, Transaction};

/// The operations of this file.
pub(super) const OPERATIONS: &[&str] = &["DescribeAccountSettings", "UpdateAccountSettings"];

/// How long a commitment lasts at least (API reference, MinimumThroughputBillingCommitmentInput).
const COMMITMENT_MS_MIN: u64 = 24 * 3600 * 1000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateAccountSettings {
    minimum_throughput_billing_commitment: CommitmentInput,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CommitmentInput {
    status: CommitmentStatus,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum CommitmentStatus {
    Enabled,
    Disabled,
}

impl<S: Store + Clone> Service<S> {
    /// Operations on the settings of accounts.
    pub(super) async fn accounts(
        &self,
        call: &Call,
        input: Value,
    ) -> Result<Option<Value>, ApiError> {
        self.authorize(call, &call.action(), "*", &call.caller.account_id, None)?;
        match call.operation.name.as_str() {
            "DescribeAccountSettings" => {
                let (record, _) =
                    self.account(&call.caller.account_id, &call.caller.region).await?;
                Ok(Some(settings_view(&record, call.now_ms)))
            }
            "UpdateAccountSettings" => self.update_account(call, read(input)?).await.map(Some),
            other => unreachable!("{other} is not one of {OPERATIONS:?}"),
        }
    }

    /// Whether the account of a stream has committed itself to a minimum of throughput in its region.
    pub(super) async fn is_owner_committed(
        &self,
        stream: &StreamName,
        now_ms: u64,
    ) -> Result<bool, ApiError> {
        let (record, _) = self.account(&stream.account_id, &stream.region).await?;
        Ok(is_committed(&record, now_ms))
    }

    async fn update_account(
        &self,
        call: &Call,
        request: UpdateAccountSettings,
    ) -> Result<Value, ApiError> {
        let key = account_key(&call.caller.account_id, &call.caller.region);
        let wanted = request.minimum_throughput_billing_commitment.status;
        for _ in 0..CHANGE_ATTEMPTS_MAX {
            let (before, expected) =
                self.account(&call.caller.account_id, &call.caller.region).await?;
            let record = changed(&before, wanted, call.now_ms);
            if record == before {
                return Ok(settings_view(&record, call.now_ms));
            }
            let transaction = Transaction::new()
                .expect(key.clone(), expected)
                .put(key.clone(), encode_record(&record));
            // Not Service::commit: the catalog does not follow accounts, and would wait for long.
            match self.ground.store.commit(transaction).await {
                Ok(_) => return Ok(settings_view(&record, call.now_ms)),
                Err(CommitError::Conflict(_)) => {}
                Err(error) => {
                    tracing::error!(%error, "settings of an account were not committed");
                    return Err(ApiError::internal_failure());
                }
            }
        }
        Err(ApiError::limit_exceeded(format!(
            "The settings of account {} are being changed by others; try again.",
            call.caller.account_id
        )))
    }

    /// The record of an account in a region, and what a change of it must expect.
    async fn account(
        &self,
        account_id: &str,
        region: &str,
    ) -> Result<(AccountRecord, Expectation), ApiError> {
        let key = account_key(account_id, region);
        let failed = |error: &dyn std::error::Error| {
            tracing::error!(%error, "the settings of an account cannot be read");
            ApiError::internal_failure()
        };
        match self.ground.store.get(key.clone()).await.map_err(|error| failed(&error))? {
            Some(entry) => {
                let record = decode_record(&key, &entry.value.0).map_err(|error| failed(&error))?;
                Ok((record, Expectation::ModRevision(entry.mod_revision)))
            }
            None => Ok((NO_SETTINGS, Expectation::Absent)),
        }
    }
}

/// What counts for an account that chose nothing.
const NO_SETTINGS: AccountRecord =
    AccountRecord { version: RECORD_VERSION, committed_ms: None, commitment_ends_ms: None };

fn is_committed(record: &AccountRecord, now_ms: u64) -> bool {
    record.committed_ms.is_some() && record.commitment_ends_ms.is_none_or(|ends| ends > now_ms)
}

/// The record as it is to be. The same again changes nothing.
fn changed(before: &AccountRecord, wanted: CommitmentStatus, now_ms: u64) -> AccountRecord {
    let mut record = before.clone();
    match (wanted, is_committed(before, now_ms)) {
        (CommitmentStatus::Enabled, true) => record.commitment_ends_ms = None,
        (CommitmentStatus::Enabled, false) => {
            (record.committed_ms, record.commitment_ends_ms) = (Some(now_ms), None);
        }
        (CommitmentStatus::Disabled, true) if before.commitment_ends_ms.is_none() => {
            record.commitment_ends_ms =
                earliest_end_ms(before).map(|earliest| earliest.max(now_ms));
        }
        (CommitmentStatus::Disabled, _) => {}
    }
    record
}

fn earliest_end_ms(record: &AccountRecord) -> Option<u64> {
    record.committed_ms.map(|committed| committed + COMMITMENT_MS_MIN)
}

fn settings_view(record: &AccountRecord, now_ms: u64) -> Value {
    let mut view = json!({});
    let mut put = |name: &str, ms: Option<u64>| {
        if let Some(ms) = ms {
            view[name] = timestamp(ms as i64);
        }
    };
    put("StartedAt", record.committed_ms);
    let status = match (is_committed(record, now_ms), record.commitment_ends_ms) {
        (true, None) => {
            put("EarliestAllowedEndAt", earliest_end_ms(record));
            "ENABLED"
        }
        (true, Some(ends)) => {
            put("EarliestAllowedEndAt", Some(ends));
            "ENABLED_UNTIL_EARLIEST_ALLOWED_END"
        }
        (false, ends) => {
            put("EndedAt", ends);
            "DISABLED"
        }
    };
    view["Status"] = Value::from(status);
    json!({ "MinimumThroughputBillingCommitment": view })
}

#[cfg(test)]
mod tests {
    use super::CommitmentStatus::{Disabled, Enabled};
    use super::*;

    const DAY_MS: u64 = COMMITMENT_MS_MIN;

    fn status(record: &AccountRecord, now_ms: u64) -> Value {
        settings_view(record, now_ms)["MinimumThroughputBillingCommitment"]["Status"].clone()
    }

    #[test]
    fn a_commitment_that_is_ended_early_goes_on_for_a_day() {
        let begun = changed(&NO_SETTINGS, Enabled, 1000);
        assert_eq!(status(&NO_SETTINGS, 0), "DISABLED");
        assert_eq!(status(&begun, 5000), "ENABLED");
        let ended = changed(&begun, Disabled, 5000);
        assert_eq!(ended.commitment_ends_ms, Some(1000 + DAY_MS));
        assert_eq!(status(&ended, 5000), "ENABLED_UNTIL_EARLIEST_ALLOWED_END");
        assert_eq!(changed(&ended, Disabled, 6000), ended, "the same again");
        assert_eq!(changed(&ended, Enabled, 6000), begun, "it can be taken up again");
        assert_eq!(status(&ended, 1000 + DAY_MS), "DISABLED");
        let again = changed(&ended, Enabled, 2000 + DAY_MS);
        assert_eq!((again.committed_ms, again.commitment_ends_ms), (Some(2000 + DAY_MS), None));
    }

    #[test]
    fn after_a_day_it_ends_at_once() {
        let begun = changed(&NO_SETTINGS, Enabled, 1000);
        let later_ms = 1000 + 2 * DAY_MS;
        let ended = changed(&begun, Disabled, later_ms);
        assert_eq!(
            settings_view(&ended, later_ms),
            json!({ "MinimumThroughputBillingCommitment": {
                "Status": "DISABLED", "StartedAt": 1, "EndedAt": later_ms / 1000,
            } })
        );
        assert_eq!(changed(&NO_SETTINGS, Disabled, later_ms), NO_SETTINGS);
    }
}
