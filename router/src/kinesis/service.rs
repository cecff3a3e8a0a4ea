//! The API behind the transport: who calls is found out, what they say is read and judged, whether
//! they may is asked, and the operation's own file does it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thalweg_wire::limits::SHARD_BYTES_PER_S;

use super::call_rates::CallRates;
use super::check::check_output;
use super::codec::{self, Encoding};
use super::consumers;
use super::error::{ApiError, ErrorKind};
use super::iterators;
use super::model::{Operation, model};
use super::policy::{Context, Policy, Request, RequestTags, Tags};
use super::reading::Reading;
use super::server::{Api, ApiRequest, ApiResponse};
use super::sigv4::{AuthError, Authenticator, Caller};
use super::token::Tokens;
use super::validate::{Invalid, validate_input};
use super::{accounts, policies, reshard, settings, shards, streams, tags};
use crate::control::NowMs;
use crate::control::catalog::{Catalog, Stream};
use crate::control::nodes::Node;
use crate::control::record::{RecordKey, StreamName, StreamRecord, StreamStatus, encode_record};
use crate::control::store::{CommitError, Expectation, Revision, Store, Transaction};
use crate::metrics::operations::OperationCounts;
use crate::route::{Fetcher, Writer};

/// Times that a change is judged and tried anew when others changed the same record meanwhile.
pub(super) const CHANGE_ATTEMPTS_MAX: u32 = 10;

/// How long it may take until what another took away is not seen any more.
const CHANGE_PAUSE: Duration = Duration::from_millis(5);

/// How a service works.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// Whether limits are enforced: those of shards' reads, of accounts' calls and of counts. Off
    /// for raw benchmarks only.
    pub limits: bool,
    /// Shards that an account may have in a region (developer guide, quotas and limits).
    pub shards_max: u32,
    /// Streams of on-demand mode that an account may have in a region (the same page).
    pub on_demand_streams_max: u32,
}

impl Default for ServiceSettings {
    fn default() -> ServiceSettings {
        ServiceSettings { limits: true, shards_max: 20_000, on_demand_streams_max: 50 }
    }
}

/// What a service stands on.
pub struct Ground<S> {
    /// The metadata store.
    pub store: S,
    /// What it has, in memory.
    pub catalog: Arc<Catalog>,
    /// The storage node.
    pub node: Arc<Node>,
    /// Appends to it.
    pub writer: Writer,
    /// Reads from it.
    pub fetcher: Fetcher,
    /// Reads for subscriptions, with memory of its own: they hold theirs for as long as they last,
    /// and other reads would wait for it.
    pub subscribe_fetcher: Fetcher,
    /// Finds out who calls.
    pub authenticator: Authenticator,
    /// What time it is.
    pub now_ms: NowMs,
}

/// See the module.
pub struct Service<S> {
    pub(super) ground: Ground<S>,
    pub(super) settings: ServiceSettings,
    /// Seals what callers come back with.
    pub(super) tokens: Tokens<S>,
    /// What is remembered of readers.
    pub(super) reading: Reading,
    rates: CallRates,
    /// Who has it changes quotas.
    pub(super) quota_turn: tokio::sync::Mutex<()>,
    operation_counts: Arc<OperationCounts>,
}

/// What something is done to, as policies see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resource<'a> {
    pub(super) arn: &'a str,
    /// Whose it is.
    pub(super) account_id: &'a str,
    /// Its policy, as it is recorded.
    pub(super) policy: Option<&'a str>,
    pub(super) tags: Option<&'a Tags>,
}

/// A request whose caller is known.
#[derive(Debug)]
pub struct Call {
    /// Who calls.
    pub caller: Caller,
    /// The operation.
    pub operation: &'static Operation,
    /// The encoding of body and answer.
    pub encoding: Encoding,
    /// When it came, milliseconds since 1970.
    pub now_ms: u64,
    /// The same by the clock that measures how long it takes.
    pub(super) began: Instant,
    /// What policies may ask of.
    context: CallContext,
}

#[derive(Debug)]
struct CallContext {
    source: std::net::IpAddr,
    is_tls: bool,
    user_agent: Option<String>,
}

impl Call {
    /// The action that policies name: `kinesis:` and the operation.
    #[must_use]
    pub fn action(&self) -> String {
        format!("kinesis:{}", self.operation.name)
    }

    /// Whether a stream is of the region that the request was signed for. A region's endpoint has
    /// that region's streams, and those alone are found, by whatever the request names them (the
    /// KCL refuses ARNs of another region than its client's for that).
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub(super) fn check_region(&self, stream: &StreamName) -> Result<(), ApiError> {
        let StreamName { account_id, region, name } = stream;
        if *region == self.caller.region {
            return Ok(());
        }
        Err(ApiError::resource_not_found(format!(
            "Stream {name} under account {account_id} not found: it is of {region}, and the \
             request was signed for {}. Set the client's region to the stream's.",
            self.caller.region
        )))
    }

    /// A stream of the caller's account and region.
    #[must_use]
    pub fn own_stream(&self, name: &str) -> StreamName {
        StreamName {
            account_id: self.caller.account_id.clone(),
            region: self.caller.region.clone(),
            name: name.to_owned(),
        }
    }
}

impl<S: Store + Clone> Service<S> {
    /// A service.
    #[must_use]
    pub fn new(ground: Ground<S>, settings: ServiceSettings) -> Service<S> {
        let tokens = Tokens::new(ground.store.clone(), ground.now_ms.clone());
        let (reading, rates) = (Reading::default(), CallRates::default());
        let operation_counts = Arc::default();
        let quota_turn = tokio::sync::Mutex::default();
        Service { ground, settings, tokens, reading, rates, operation_counts, quota_turn }
    }

    /// What is counted of its operations.
    #[must_use]
    pub fn operation_counts(&self) -> Arc<OperationCounts> {
        self.operation_counts.clone()
    }

    /// The stream that a request names, by its name in the caller's own account, or by its ARN in
    /// any; in the region that the request was signed for.
    ///
    /// # Errors
    /// When neither is given, or the ARN is none or of another region, or they contradict.
    pub(super) fn name_of(
        &self,
        call: &Call,
        name: Option<&str>,
        arn: Option<&str>,
    ) -> Result<StreamName, ApiError> {
        let by_arn = arn.map(parse_stream_arn).transpose()?;
        by_arn.iter().try_for_each(|stream| call.check_region(stream))?;
        match (name, by_arn) {
            (None, None) => {
                Err(ApiError::invalid_argument("Either StreamName or StreamARN must be specified."))
            }
            (Some(name), None) => Ok(call.own_stream(name)),
            (Some(name), Some(stream)) if stream.name != name => {
                Err(ApiError::invalid_argument(format!(
                    "StreamARN and StreamName name different streams: {} and {name}.",
                    stream.name
                )))
            }
            (_, Some(stream)) => Ok(stream),
        }
    }

    /// The stream of that name, whatever its state.
    ///
    /// # Errors
    /// The service's error when there is none.
    pub(super) fn stream(&self, name: &StreamName) -> Result<Arc<Stream>, ApiError> {
        self.ground.catalog.stream(name).ok_or_else(|| not_found(name))
    }

    /// The stream that a request names, if the caller may do to it what the request asks for.
    ///
    /// # Errors
    /// As of [`Service::name_of`], [`Service::stream`]; AccessDeniedException.
    pub(super) fn authorized_stream(
        &self,
        call: &Call,
        name: Option<&str>,
        arn: Option<&str>,
    ) -> Result<Arc<Stream>, ApiError> {
        let name = self.name_of(call, name, arn)?;
        let stream = self.ground.catalog.stream(&name);
        let record = stream.as_ref().map(|stream| &stream.record);
        let arn = name.arn();
        let asked = Resource {
            arn: &arn,
            account_id: &name.account_id,
            policy: record.and_then(|record| record.policy.as_deref()),
            tags: record.map(|record| &record.tags),
        };
        // Who may not ask does not learn whether there is such a stream.
        self.authorize_on(call, &call.action(), &asked, RequestTags::Nothing)?;
        stream.ok_or_else(|| not_found(&name))
    }

    /// Asks the policies whether the caller may do something to a resource, of which `policy` is
    /// the resource policy as it is recorded.
    ///
    /// # Errors
    /// AccessDeniedException, with the service's message.
    pub(super) fn authorize(
        &self,
        call: &Call,
        action: &str,
        resource_arn: &str,
        resource_account: &str,
        policy: Option<&str>,
    ) -> Result<(), ApiError> {
        let asked =
            Resource { arn: resource_arn, account_id: resource_account, policy, tags: None };
        self.authorize_on(call, action, &asked, RequestTags::Nothing)
    }

    /// The same of a resource that has tags, or a request that says something of some.
    ///
    /// # Errors
    /// AccessDeniedException, with the service's message.
    pub(super) fn authorize_on(
        &self,
        call: &Call,
        action: &str,
        resource: &Resource<'_>,
        request_tags: RequestTags<'_>,
    ) -> Result<(), ApiError> {
        let policy = resource.policy.map(Policy::parse_resource).transpose().map_err(|error| {
            tracing::error!(arn = resource.arn, %error, "a recorded policy cannot be read");
            ApiError::internal_failure()
        })?;
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(call.now_ms);
        let mut context = Context::new(now, &call.caller.region);
        context.source_ip = Some(call.context.source);
        context.is_secure_transport = call.context.is_tls;
        context.user_agent = call.context.user_agent.as_deref();
        context.resource_tags = resource.tags;
        context.request_tags = request_tags;
        let request = Request {
            resource_policy: policy.as_ref(),
            ..call.caller.request(action, resource.arn, resource.account_id, context)
        };
        request.authorize().map_err(|denied| ApiError::access_denied(denied.to_string()))
    }

    /// Changes a stream's record: `change` judges the stream as it is and answers what its record
    /// is to be. It is asked again when somebody else was quicker. Answers when the change is seen.
    ///
    /// # Errors
    /// What `change` says, or that the store did not take it.
    pub(super) async fn change_stream(
        &self,
        name: &StreamName,
        mut change: impl FnMut(&Stream) -> Result<StreamRecord, ApiError>,
    ) -> Result<(), ApiError> {
        let key = RecordKey::Stream(name.clone()).encode();
        for _ in 0..CHANGE_ATTEMPTS_MAX {
            let stream = self.stream(name)?;
            let record = change(&stream)?;
            if record == stream.record {
                return Ok(());
            }
            let transaction = Transaction::new()
                .expect(key.clone(), Expectation::ModRevision(stream.mod_revision))
                .put(key.clone(), encode_record(&record));
            if self.commit(transaction).await?.is_some() {
                return Ok(());
            }
        }
        Err(ApiError::resource_in_use(format!(
            "Stream {} under account {} is being changed by others; try again.",
            name.name, name.account_id
        )))
    }

    /// Commits a transaction and waits until it is seen; `None` when a condition did not hold and
    /// the catalog has been brought up to date.
    ///
    /// # Errors
    /// InternalFailure: the store did not take it, or it is not known whether it did.
    pub(super) async fn commit(
        &self,
        transaction: Transaction,
    ) -> Result<Option<Revision>, ApiError> {
        match self.ground.store.commit(transaction).await {
            Ok(revision) => {
                self.ground.catalog.wait_for(revision).await;
                Ok(Some(revision))
            }
            Err(CommitError::Conflict(conflict)) => {
                match conflict.found {
                    Some(revision) => self.ground.catalog.wait_for(revision).await,
                    // Which revision took the key away is not told.
                    None => tokio::time::sleep(CHANGE_PAUSE).await,
                }
                Ok(None)
            }
            Err(error) => {
                tracing::error!(%error, "a change was not committed");
                Err(ApiError::internal_failure())
            }
        }
    }

    async fn serve(
        &self,
        operation: &'static Operation,
        began: Instant,
        request: ApiRequest,
    ) -> Result<ApiResponse, ApiError> {
        let now_ms = (self.ground.now_ms)();
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms);
        let caller = self.ground.authenticator.authenticate(&request.head, &request.body, now)?;
        let user_agent = request.head.headers.get(http::header::USER_AGENT);
        let call = Call {
            caller,
            operation,
            encoding: request.encoding,
            now_ms,
            began,
            context: CallContext {
                source: request.peer.ip(),
                is_tls: request.is_tls,
                user_agent: user_agent.and_then(|value| value.to_str().ok()).map(str::to_owned),
            },
        };
        match operation.name.as_str() {
            // These carry records and have codecs of their own.
            "PutRecord" => self.put_record(&call, &request.body).await,
            "PutRecords" => self.put_records(&call, &request.body).await,
            "GetRecords" => self.get_records(&call, &request.body, request.answer_room).await,
            "SubscribeToShard" => self.subscribe_to_shard(&call, &request.body).await,
            // Queues and channels among them (API model of 2026). Whatever is in the body, this is
            // what there is to say.
            name if !is_served(name) => {
                Err(ApiError::unknown_operation(format!("{name} is not served by this version.")))
            }
            _ => {
                let input = self.input(&call, &request.body)?;
                if self.settings.limits {
                    self.rates.take(&call, &input)?;
                }
                let output = self.operate(&call, input).await?;
                self.output(&call, output)
            }
        }
    }

    /// Hands a request to the file of its operation's family.
    async fn operate(&self, call: &Call, input: Value) -> Result<Option<Value>, ApiError> {
        let name = call.operation.name.as_str();
        if shards::OPERATIONS.contains(&name) {
            return self.shards(call, input).await;
        }
        if reshard::OPERATIONS.contains(&name) {
            return self.reshard(call, input).await;
        }
        if tags::OPERATIONS.contains(&name) {
            return self.tags(call, input).await;
        }
        if policies::OPERATIONS.contains(&name) {
            return self.policies(call, input).await;
        }
        if iterators::OPERATIONS.contains(&name) {
            return self.iterators(call, input).await;
        }
        if consumers::OPERATIONS.contains(&name) {
            return self.consumers(call, input).await;
        }
        if streams::OPERATIONS.contains(&name) {
            return self.streams(call, input).await;
        }
        if settings::OPERATIONS.contains(&name) {
            return self.settings(call, input).await;
        }
        if accounts::OPERATIONS.contains(&name) {
            return self.accounts(call, input).await;
        }
        unreachable!("{name} is in no file's operations, and is_served said so")
    }

    /// A request's body, read and held against the model.
    pub(super) fn input(&self, call: &Call, body: &[u8]) -> Result<Value, ApiError> {
        let input = self.decode(call, body)?;
        validate_input(call.operation, &input)?;
        Ok(input)
    }

    /// A body as it is, not judged yet.
    pub(super) fn decode(&self, call: &Call, body: &[u8]) -> Result<Value, ApiError> {
        let shape = model().shape(call.operation.input);
        Ok(codec::decode(call.encoding, shape, body)?)
    }

    fn output(&self, call: &Call, output: Option<Value>) -> Result<ApiResponse, ApiError> {
        if cfg!(debug_assertions) {
            let nothing = Value::Object(serde_json::Map::new());
            let told = check_output(call.operation, output.as_ref().unwrap_or(&nothing));
            assert!(told.is_empty(), "{}: {told:?}", call.operation.name);
        }
        let Some(output) = output else { return Ok(ApiResponse::Whole(bytes::Bytes::new())) };
        let shape = call.operation.output.map(|shape| model().shape(shape));
        let body = codec::encode(call.encoding, shape, &output).map_err(|error| {
            tracing::error!(operation = %call.operation.name, %error, "an answer is no answer");
            ApiError::internal_failure()
        })?;
        Ok(ApiResponse::Whole(body.into()))
    }
}

impl<S: Store + Clone> Api for Service<S> {
    fn knows(&self, operation: &str) -> bool {
        model().operation(operation).is_some()
    }

    fn admits(&self, head: &Parts) -> Result<(), ApiError> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis((self.ground.now_ms)());
        Ok(self.ground.authenticator.admit(head, now)?)
    }

    async fn call(&self, request: ApiRequest) -> Result<ApiResponse, ApiError> {
        let began = Instant::now();
        let operation = model()
            .operation(&request.operation)
            .ok_or_else(|| ApiError::unknown_operation(request.operation.clone()))?;
        let answer = self.serve(operation, began, request).await;
        let answer = answer.map_err(|error| in_words_of(operation, error));
        let error = answer.as_ref().err().map(|error| error.kind);
        self.operation_counts.note(operation, began.elapsed(), error);
        answer
    }
}

/// Whether a file of this directory has an operation that takes its input as a `Value`.
fn is_served(operation: &str) -> bool {
    let files = [
        shards::OPERATIONS,
        reshard::OPERATIONS,
        tags::OPERATIONS,
        policies::OPERATIONS,
        iterators::OPERATIONS,
        consumers::OPERATIONS,
        streams::OPERATIONS,
        settings::OPERATIONS,
        accounts::OPERATIONS,
    ];
    files.iter().any(|operations| operations.contains(&operation))
}

/// An error under the name that the operation's model has for it: a failure of the service has two,
/// see [`ErrorKind::InternalFailureException`].
fn in_words_of(operation: &Operation, mut error: ApiError) -> ApiError {
    let modeled = ErrorKind::InternalFailureException;
    let is_modeled = || operation.errors.iter().any(|id| model().shape(*id).name == modeled.name());
    if error.kind == ErrorKind::InternalFailure && is_modeled() {
        error.kind = modeled;
    }
    error
}

/// What a valid input says, as a structure.
///
/// # Errors
/// InternalFailure: the structure asks for more than the model does.
pub(super) fn read<T: DeserializeOwned>(input: Value) -> Result<T, ApiError> {
    serde_json::from_value(input).map_err(|error| {
        tracing::error!(%error, "a valid input does not fit its structure");
        ApiError::internal_failure()
    })
}

/// `arn:aws:kinesis:REGION:ACCOUNT:stream/NAME` and nothing behind it: the model's pattern lets the
/// ARN of a consumer pass for one of a stream.
///
/// # Errors
/// InvalidArgumentException.
pub(super) fn parse_stream_arn(arn: &str) -> Result<StreamName, ApiError> {
    match split_stream_arn(arn)? {
        (stream, "") => Ok(stream),
        _ => Err(ApiError::invalid_argument(format!("{arn} is no ARN of a stream."))),
    }
}

/// An ARN that begins with a stream's, and what follows the stream's name, from the slash on.
///
/// # Errors
/// InvalidArgumentException.
pub(super) fn split_stream_arn(arn: &str) -> Result<(StreamName, &str), ApiError> {
    let wrong = || ApiError::invalid_argument(format!("{arn} is no ARN of a stream."));
    let mut parts = arn.splitn(6, ':');
    let mut part = || parts.next().ok_or_else(wrong);
    let (arn_word, partition, service) = (part()?, part()?, part()?);
    let (region, account_id) = (part()?, part()?);
    let resource = part()?.strip_prefix("stream/").ok_or_else(wrong)?;
    let (name, rest) = resource.split_at(resource.find('/').unwrap_or(resource.len()));
    if arn_word != "arn" || !partition.starts_with("aws") || service != "kinesis" || name.is_empty()
    {
        return Err(wrong());
    }
    let stream = StreamName {
        account_id: account_id.to_owned(),
        region: region.to_owned(),
        name: name.to_owned(),
    };
    Ok((stream, rest))
}

/// The service's error for a stream that is not there.
#[must_use]
pub(super) fn not_found(name: &StreamName) -> ApiError {
    ApiError::resource_not_found(format!(
        "Stream {} under account {} not found.",
        name.name, name.account_id
    ))
}

/// Whether a stream is in a state in which it is written and read.
///
/// # Errors
/// The service's error if not: its shards are not there yet, or not any more.
pub(super) fn check_serving(stream: &Stream) -> Result<(), ApiError> {
    match stream.record.status {
        StreamStatus::Active | StreamStatus::Updating => Ok(()),
        StreamStatus::Creating | StreamStatus::Deleting => Err(not_found(&stream.name)),
    }
}

/// Whether a stream is still the one for which it was asked what the caller may do, and not another
/// that has its name now.
///
/// # Errors
/// ResourceNotFoundException.
pub(super) fn check_same(found: &Stream, stream: &Stream) -> Result<(), ApiError> {
    if found.record.id == stream.record.id { Ok(()) } else { Err(not_found(&found.name)) }
}

/// The service's error for a stream in whose state something cannot be done.
#[must_use]
pub(super) fn not_active(stream: &Stream) -> ApiError {
    ApiError::resource_in_use(format!(
        "Stream {} under account {} not ACTIVE, instead in state {}",
        stream.name.name,
        stream.name.account_id,
        stream.record.status.as_str()
    ))
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> ApiError {
        let kind = ErrorKind::from_name(error.kind()).unwrap_or(ErrorKind::AccessDenied);
        ApiError::new(kind, error.to_string())
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> ApiError {
        let kind = ErrorKind::from_name(invalid.kind).unwrap_or(ErrorKind::Validation);
        ApiError::new(kind, invalid.message)
    }
}

/// Throughput that a shard takes, MiB a second.
pub(super) const SHARD_MIBPS: u64 = SHARD_BYTES_PER_S >> 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// PutRecord told of a failure as `InternalFailure`, where its model has
    /// `InternalFailureException`: SDKs took it for an error that they did not know.
    #[test]
    fn a_failure_has_the_name_that_the_operation_has_for_it() {
        for (operation, kind) in [
            ("PutRecord", ErrorKind::InternalFailureException),
            ("PutRecords", ErrorKind::InternalFailureException),
            ("GetRecords", ErrorKind::InternalFailureException),
            ("TagResource", ErrorKind::InternalFailureException),
            ("CreateStream", ErrorKind::InternalFailure),
            ("ListShards", ErrorKind::InternalFailure),
        ] {
            let operation = model().operation(operation).expect("is in the model");
            let failure = in_words_of(operation, ApiError::internal_failure());
            let message = ApiError::internal_failure().message;
            assert_eq!(failure, ApiError { kind, message }, "{}", operation.name);
            let other = ApiError::validation("x");
            assert_eq!(in_words_of(operation, other.clone()), other);
        }
    }

    #[test]
    fn an_arn_of_a_stream_ends_with_its_name() {
        let base = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
        let stream = StreamName {
            account_id: "123456789012".to_owned(),
            region: "eu-west-1".to_owned(),
            name: "orders".to_owned(),
        };
        assert_eq!(parse_stream_arn(base), Ok(stream.clone()));
        for rest in ["/", "/consumer/audit:17", "/orders"] {
            let arn = format!("{base}{rest}");
            assert_eq!(split_stream_arn(&arn), Ok((stream.clone(), rest)));
            let error = parse_stream_arn(&arn).expect_err("it is of something else");
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{arn}");
        }
    }
}
