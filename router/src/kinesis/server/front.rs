//! The way of a request: checks in the service's order, its body, the API, the answer.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, EXPECT, HOST, HeaderValue, ORIGIN};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, request};
use hyper::body::{Body, Incoming};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::kinesis::codec::Encoding;
use crate::kinesis::error::{ApiError, ErrorKind};

use super::answer::{
    AnswerBody, Content, Holding, RequestIds, allow_origins, close_after, failure, plain,
    preflight, success,
};
use super::api::{Api, ApiRequest, ApiResponse};
use super::connections::Connections;
use super::counts::{Counters, ServerCounts};
use super::events::EventStream;
use super::exchange::{EXCHANGE, Exchange, UnderWay};
use super::intake::{Failed, Intake, IntakeError, discard};
use super::limits::{HEADERS_MAX, Limits, REFUSALS_MAX};
use super::room::{AnswerBudget, CountedBytes};
use super::{HEALTH_PATH, METRICS_CONTENT_TYPE, METRICS_PATH, MetricsText};

/// Texts of metrics in memory at a time, made or being taken: some kilobytes for each stream in use.
/// Two servers of Prometheus that stand in for each other need no more.
const METRICS_TEXTS_MAX: usize = 2;

const TEXT: &str = "text/plain; charset=utf-8";

/// The service's name before the operation in `X-Amz-Target`.
const TARGET_PREFIX: &str = "Kinesis_20131202.";

/// What all connections of a server share.
pub(super) struct Front<A> {
    pub(super) api: A,
    pub(super) limits: Limits,
    pub(super) metrics: Option<MetricsText>,
    pub(super) counters: Arc<Counters>,
    /// Cancelled when the server is to come to an end.
    pub(super) drain: CancellationToken,
    pub(super) connections: Arc<Connections>,
    requests: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    event_streams: Arc<Semaphore>,
    answers: AnswerBudget,
    metrics_texts: Arc<Semaphore>,
    intake: Intake,
}

/// The connection that a request came by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) peer: SocketAddr,
    pub(super) is_tls: bool,
}

impl<A: Api> Front<A> {
    pub(super) fn new(api: A, limits: Limits, metrics: Option<MetricsText>) -> Front<A> {
        Front {
            api,
            metrics,
            counters: Arc::new(Counters::default()),
            drain: CancellationToken::new(),
            connections: Arc::new(Connections::new(limits.connections_max)),
            requests: Arc::new(Semaphore::new(limits.requests_max)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            event_streams: Arc::new(Semaphore::new(limits.event_streams_max)),
            answers: AnswerBudget::new(limits.answers_bytes_max),
            metrics_texts: Arc::new(Semaphore::new(METRICS_TEXTS_MAX)),
            intake: Intake::new(&limits),
            limits,
        }
    }

    pub(super) fn counts(&self) -> ServerCounts {
        let used = |most: usize, places: &Semaphore| (most - places.available_permits()) as u64;
        ServerCounts {
            connections_open: self.connections.count() as u64,
            connections_accepted: self.counters.connections_accepted.get(),
            connections_displaced: self.counters.connections_displaced.get(),
            connections_refused: self.counters.connections_refused.get(),
            clients_cut: self.counters.clients_cut.get(),
            requests: self.counters.requests.get(),
            requests_open: used(self.limits.requests_max, &self.requests),
            refusals: self.counters.refusals(),
            event_streams_open: used(self.limits.event_streams_max, &self.event_streams),
            bodies_bytes: self.intake.bytes_used() as u64,
            answers_bytes: self.answers.bytes_used() as u64,
        }
    }

    /// Answers a request, whatever it is.
    ///
    /// # Errors
    /// [`Overrun`], which resets the HTTP/2 stream.
    pub(super) async fn answer(
        self: Arc<Self>,
        line: Line,
        request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Overrun> {
        let exchange = EXCHANGE.with(Arc::clone);
        let under_way = UnderWay::new(exchange.activity().clone());
        let (head, mut body) = request.into_parts();
        if let Some(inspected) = self.inspect(&head) {
            let place = self.refusal_place(head.version)?;
            let holding = Holding { under_way, place };
            return Ok(match inspected {
                Inspected::Health => self.health(exchange, holding),
                Inspected::Metrics(metrics) => self.metrics(metrics, exchange, holding).await,
            });
        }
        self.counters.requests.add_one();
        let ids = RequestIds::new();
        let version = head.version;
        let has_origin = head.headers.contains_key(ORIGIN);
        let wanted = self.check(&head, body.size_hint().exact());
        let mut response = match wanted {
            Ok(Wanted::Preflight) => {
                let place = self.refusal_place(version)?;
                let is_usable = self.discard(&head, &mut body, place.is_some()).await;
                let holding = Holding { under_way, place };
                let mut response = preflight(&ids, &head.headers, exchange, holding);
                if !is_usable {
                    close_after(&mut response, version);
                }
                return Ok(response);
            }
            Ok(Wanted::Call { operation, encoding }) => {
                let answered = match self.requests.clone().try_acquire_owned() {
                    Ok(place) => {
                        let call = Call { operation, encoding, line, head, body, place };
                        self.call(call, &ids).await
                    }
                    Err(_) => {
                        let error = "Too many requests are under way: try again later.";
                        Err(self.refuse(self.no_room(error), &head, body).await?)
                    }
                };
                match answered {
                    Ok(outcome) => {
                        outcome.into_response(&self, &ids, encoding, exchange, under_way)
                    }
                    Err(refused) => {
                        refused.into_response(&ids, Some(encoding), version, exchange, under_way)
                    }
                }
            }
            Err(error) => {
                self.counters.note_refusal(error.kind);
                // Who does not say what is wanted gets XML, whatever the content type.
                let is_undetermined = error.kind == ErrorKind::OperationUndetermined;
                let encoding = encoding_of(&head.headers).filter(|_| !is_undetermined);
                let refused = self.refuse(error, &head, body).await?;
                refused.into_response(&ids, encoding, version, exchange, under_way)
            }
        };
        if has_origin {
            allow_origins(response.headers_mut());
        }
        Ok(response)
    }

    /// What is for those who look after the server: counted as no request.
    fn inspect(&self, head: &request::Parts) -> Option<Inspected> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return None;
        }
        match head.uri.path() {
            HEALTH_PATH => Some(Inspected::Health),
            METRICS_PATH => self.metrics.clone().map(Inspected::Metrics),
            _ => None,
        }
    }

    fn health(&self, exchange: Arc<Exchange>, holding: Holding) -> Response<AnswerBody> {
        let (status, text) = match self.drain.is_cancelled() {
            true => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            false => (StatusCode::OK, "ok\n"),
        };
        plain(status, TEXT, text.to_owned(), exchange, holding)
    }

    /// The metrics. The text is made where it may take its time: of many streams there is much to
    /// write, and who calls the API does not wait for it.
    async fn metrics(
        &self,
        metrics: MetricsText,
        exchange: Arc<Exchange>,
        holding: Holding,
    ) -> Response<AnswerBody> {
        let busy = StatusCode::SERVICE_UNAVAILABLE;
        let Ok(place) = self.metrics_texts.clone().try_acquire_owned() else {
            let text = "too many ask for metrics at a time\n".to_owned();
            return plain(busy, TEXT, text, exchange, holding);
        };
        let counts = self.counts();
        // Made to its end though nobody waits for it any more: until then it has its place.
        let made = tokio::task::spawn_blocking(move || (metrics(&counts), place)).await;
        match made {
            Ok((text, place)) => {
                // One of few places instead of one of many.
                let holding = Holding { place: Some(place), ..holding };
                plain(StatusCode::OK, METRICS_CONTENT_TYPE, text, exchange, holding)
            }
            Err(error) => {
                tracing::error!(%error, "metrics could not be written");
                let text = "metrics could not be written\n".to_owned();
                let failed = StatusCode::INTERNAL_SERVER_ERROR;
                plain(failed, TEXT, text, exchange, holding)
            }
        }
    }

    /// The checks that need no body, in the service's order. Its own order has the body's syntax
    /// before the operation; here a body is not received for an operation that does not exist.
    fn check(&self, head: &request::Parts, declared: Option<u64>) -> Result<Wanted, ApiError> {
        let headers = &head.headers;
        let body_bytes_max = self.limits.body_bytes_max;
        if declared.is_some_and(|bytes| bytes > body_bytes_max as u64) {
            return Err(IntakeError::TooLarge { bytes_max: body_bytes_max }.into());
        }
        if headers.len() > HEADERS_MAX {
            let message = format!("A request has at most {HEADERS_MAX} headers.");
            return Err(ApiError::new(ErrorKind::RequestHeadersTooLarge, message));
        }
        if head.method == Method::OPTIONS && headers.contains_key(ORIGIN) {
            return Ok(Wanted::Preflight);
        }
        let undetermined = || {
            let message = "Unable to determine service/operation name to be authorized";
            ApiError::new(ErrorKind::OperationUndetermined, message)
        };
        if head.method != Method::POST {
            return Err(undetermined());
        }
        let target = headers.get("x-amz-target").map(HeaderValue::as_bytes).unwrap_or_default();
        let Some(encoding) = encoding_of(headers) else {
            if target.is_empty() {
                return Err(undetermined());
            }
            let message = format!(
                "Content-Type must be {} or {}.",
                Encoding::Json.content_type(),
                Encoding::Cbor.content_type()
            );
            return Err(ApiError::new(ErrorKind::UnknownContentType, message));
        };
        let target = std::str::from_utf8(target).unwrap_or_default();
        match target.strip_prefix(TARGET_PREFIX) {
            Some(operation) if self.api.knows(operation) => {
                self.api.admits(head)?;
                Ok(Wanted::Call { operation: operation.to_owned(), encoding })
            }
            Some(_) => Err(ApiError::unknown_operation("There is no such operation.")),
            None => Err(ApiError::unknown_operation(format!(
                "X-Amz-Target must be {TARGET_PREFIX} and the name of an operation."
            ))),
        }
    }

    async fn call(&self, call: Call, ids: &RequestIds) -> Result<Outcome, Refused> {
        let Call { operation, encoding, line, mut head, body, place } = call;
        let is_continue_expected = head.headers.contains_key(EXPECT);
        let body = match self.intake.receive(body, &self.limits, is_continue_expected).await {
            Ok(body) => body,
            Err(failed) => return Err(self.not_received(failed, place)),
        };
        add_host(&mut head);
        let request = ApiRequest {
            operation,
            encoding,
            head,
            body,
            answer_room: self.answers.room(),
            request_id: ids.request_id.clone(),
            peer: line.peer,
            is_tls: line.is_tls,
        };
        let answered = timeout(self.limits.answer_time, self.api.call(request)).await;
        let answered = answered.unwrap_or_else(|_| {
            let request_id = &ids.request_id;
            tracing::error!(request_id, "the API did not answer in time");
            let error = ApiError::internal_failure();
            self.counters.note_refusal(error.kind);
            Err(error)
        });
        match answered {
            Ok(response) => self.outcome(response, place),
            Err(error) => Err(Refused::of_usable_connection(error, place)),
        }
    }

    /// Finds the place in which an answer waits for its client, and memory if it has none yet.
    fn outcome(
        &self,
        response: ApiResponse,
        place: OwnedSemaphorePermit,
    ) -> Result<Outcome, Refused> {
        match response {
            ApiResponse::Whole(bytes) => match self.answers.room().fill_with(bytes) {
                Some(bytes) => Ok(Outcome::Whole { bytes, place }),
                None => {
                    let error = self.no_room("Too many answers wait for their clients.");
                    Err(Refused::of_usable_connection(error, place))
                }
            },
            ApiResponse::Counted(bytes) => Ok(Outcome::Whole { bytes, place }),
            ApiResponse::Events(stream) => match self.event_streams.clone().try_acquire_owned() {
                Ok(place) => Ok(Outcome::Events { stream, place }),
                Err(_) => {
                    let error = self.no_room("Too many event streams are open.");
                    Err(Refused::of_usable_connection(error, place))
                }
            },
        }
    }

    fn no_room(&self, message: &str) -> ApiError {
        let error = ApiError::service_unavailable(message);
        self.counters.note_refusal(error.kind);
        error
    }

    fn not_received(&self, failed: Failed, place: OwnedSemaphorePermit) -> Refused {
        if let IntakeError::TooSlow { .. } = &failed.error {
            self.counters.clients_cut.add_one();
        }
        let is_connection_usable = failed.is_connection_usable;
        let error = ApiError::from(failed.error);
        self.counters.note_refusal(error.kind);
        Refused { error, is_connection_usable, place: Some(place) }
    }

    /// A place for a request that is not given to the API: a client that sends such and takes no
    /// answers must neither fill the memory nor keep others from theirs. With HTTP/1.1 there are no
    /// more of them than connections, so it goes without; an HTTP/2 stream does not.
    fn refusal_place(&self, version: Version) -> Result<Option<OwnedSemaphorePermit>, Overrun> {
        match self.refusals.clone().try_acquire_owned() {
            Ok(place) => Ok(Some(place)),
            Err(_) if version < Version::HTTP_2 => Ok(None),
            Err(_) => {
                self.counters.note_refusal(ErrorKind::ServiceUnavailable);
                Err(Overrun { reset: h2::Reason::REFUSED_STREAM.into() })
            }
        }
    }

    /// Lets go of a request that the API is not asked about.
    async fn refuse(
        &self,
        error: ApiError,
        head: &request::Parts,
        mut body: Incoming,
    ) -> Result<Refused, Overrun> {
        let place = self.refusal_place(head.version)?;
        let is_connection_usable = self.discard(head, &mut body, place.is_some()).await;
        Ok(Refused { error, is_connection_usable, place })
    }

    /// Lets go of the body of a refused request. Tells whether the connection is still of use.
    async fn discard(&self, head: &request::Parts, body: &mut Incoming, has_place: bool) -> bool {
        // Nobody is waited for without a place.
        let is_given_up = !has_place || head.headers.contains_key(EXPECT);
        discard(body, &self.limits, is_given_up).await
    }
}

/// More requests are refused at a time on HTTP/2 connections than are remembered.
#[derive(Debug, Error)]
#[error("too many requests are being refused")]
pub(super) struct Overrun {
    /// hyper finds it there.
    #[source]
    reset: h2::Error,
}

/// What those ask for who look after the server.
enum Inspected {
    Health,
    Metrics(MetricsText),
}

/// What a head asks for.
enum Wanted {
    /// A browser asks if it may.
    Preflight,
    /// An operation.
    Call { operation: String, encoding: Encoding },
}

/// A request on its way to the API.
struct Call {
    operation: String,
    encoding: Encoding,
    line: Line,
    head: request::Parts,
    body: Incoming,
    /// Among the requests that are under way.
    place: OwnedSemaphorePermit,
}

/// An answer that has its place.
enum Outcome {
    Whole { bytes: CountedBytes, place: OwnedSemaphorePermit },
    Events { stream: EventStream, place: OwnedSemaphorePermit },
}

impl Outcome {
    fn into_response<A>(
        self,
        front: &Front<A>,
        ids: &RequestIds,
        encoding: Encoding,
        exchange: Arc<Exchange>,
        under_way: UnderWay,
    ) -> Response<AnswerBody> {
        match self {
            Outcome::Whole { bytes, place } => {
                let holding = Holding { under_way, place: Some(place) };
                let body = AnswerBody::whole(bytes.into_bytes(), exchange, holding);
                success(ids, Content::Document(encoding), body)
            }
            Outcome::Events { stream, place } => {
                let holding = Holding { under_way, place: Some(place) };
                let body = AnswerBody::events(stream, front.drain.clone(), exchange, holding);
                success(ids, Content::Events, body)
            }
        }
    }
}

/// An error, whether the connection can serve another request after it, and the place in which it
/// waits for its client.
struct Refused {
    error: ApiError,
    is_connection_usable: bool,
    place: Option<OwnedSemaphorePermit>,
}

impl Refused {
    fn of_usable_connection(error: ApiError, place: OwnedSemaphorePermit) -> Refused {
        Refused { error, is_connection_usable: true, place: Some(place) }
    }

    fn into_response(
        self,
        ids: &RequestIds,
        encoding: Option<Encoding>,
        version: Version,
        exchange: Arc<Exchange>,
        under_way: UnderWay,
    ) -> Response<AnswerBody> {
        let holding = Holding { under_way, place: self.place };
        let mut response = failure(ids, &self.error, encoding, exchange, holding);
        if !self.is_connection_usable {
            close_after(&mut response, version);
        }
        response
    }
}

impl From<IntakeError> for ApiError {
    fn from(error: IntakeError) -> ApiError {
        let kind = match &error {
            IntakeError::TooLarge { .. } => ErrorKind::RequestEntityTooLarge,
            IntakeError::NoRoom => ErrorKind::ServiceUnavailable,
            IntakeError::TooSlow { .. } => ErrorKind::RequestTimeout,
            IntakeError::Broken(_) => ErrorKind::Serialization,
        };
        ApiError::new(kind, error.to_string())
    }
}

fn encoding_of(headers: &HeaderMap) -> Option<Encoding> {
    Encoding::from_content_type(headers.get(CONTENT_TYPE)?.to_str().ok()?)
}

/// HTTP/2 says in the URI what HTTP/1.1 says in `host`, and what clients sign as `host`.
fn add_host(head: &mut request::Parts) {
    if head.headers.contains_key(HOST) {
        return;
    }
    if let Some(host) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(host.as_str())
    {
        head.headers.insert(HOST, host);
    }
}
