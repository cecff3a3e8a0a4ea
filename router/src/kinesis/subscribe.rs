//! SubscribeToShard: a shard's records pushed to a consumer, for five minutes.
//!
//! The node pushes under credit; an event is sent on when the client has room for it, and only
//! then is its credit given back. So a client that takes nothing holds up nobody but itself, and
//! nothing of its shard waits here but what it was granted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::ids::{Offset, ShardId, StreamId};
use thalweg_wire::limits::FETCH_BYTES_MAX;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::answers::{ChildShardView, EventEnd, RecordsWriter};
use super::codec::Encoding;
use super::consumers::{ConsumerName, FoundConsumer, no_consumer, parse_consumer_arn};
use super::error::ApiError;
use super::event_stream::{event, exception, initial_response};
use super::iterators::{
    Place, StartingPosition, find_shard, internal_failure, no_shard, place_number,
};
use super::put::dry_run;
use super::reading::{Children, RecordSource, largest_batch_bytes, millis_behind, record_bytes};
use super::server::{ApiResponse, EventSender, event_channel};
use super::service::{Call, Service, check_serving, not_found, read};
use super::subscriptions::{SubscriptionKey, Ticket};
use crate::control::NowMs;
use crate::control::catalog::{Catalog, Stream};
use crate::control::record::{ConsumerStatus, ShardRecord, shard_id, shard_name};
use crate::control::store::Store;
use crate::metrics::stream::{ConsumerCounts, Read};
use crate::route::{FetchError, Fetched, Fetcher, MEMORY_WAIT, ShardSubscription};

/// How long a subscription lasts (API reference, SubscribeToShard).
const LIFETIME: Duration = Duration::from_secs(300);
/// Bytes a second that a consumer gets of a shard (API reference, RegisterStreamConsumer).
const BYTES_PER_S: f64 = 2.0 * 1024.0 * 1024.0;
/// How far a consumer may be ahead of that rate, so that what one wait was too long is made up for.
const AHEAD: Duration = Duration::from_millis(250);
/// After so long without records, an event without any tells a consumer where it stands.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often a node says that it has nothing.
const SILENCE: Duration = Duration::from_secs(1);
/// A node that says nothing for so long has a batch that is larger than the credit: it is fetched.
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// Bytes on their way to a client.
const CLIENT_BYTES_MAX: usize = 1 << 20;
/// First and longest pause between tries to read a shard.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a shard may be out of reach until a subscription fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client may take to make room for its last message.
const LAST_MESSAGE_WAIT: Duration = Duration::from_secs(5);
/// The event's member of the stream's union.
const EVENT: &str = "SubscribeToShardEvent";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SubscribeInput {
    #[serde(rename = "ConsumerARN")]
    consumer_arn: String,
    shard_id: String,
    starting_position: StartingPositionInput,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StartingPositionInput {
    #[serde(rename = "Type")]
    kind: String,
    sequence_number: Option<String>,
    timestamp: Option<Value>,
}

impl<S: Store + Clone> Service<S> {
    /// SubscribeToShard.
    pub(super) async fn subscribe_to_shard(
        &self,
        call: &Call,
        body: &[u8],
    ) -> Result<ApiResponse, ApiError> {
        let input: SubscribeInput = read(self.input(call, body)?)?;
        let consumer = parse_consumer_arn(&input.consumer_arn)?;
        let FoundConsumer { stream, consumer: found, .. } =
            self.authorized_consumer_of(call, &consumer)?;
        check_serving(&stream)?;
        if found.record.status != ConsumerStatus::Active {
            return Err(ApiError::resource_in_use(format!(
                "Consumer {} with creation timestamp {} under stream: {}, account {} is not in \
                 ACTIVE status.",
                consumer.name, consumer.created_s, stream.name.name, stream.name.account_id
            )));
        }
        let shard = find_shard(&stream, &input.shard_id, call.now_ms)?;
        let StartingPositionInput { kind, sequence_number, timestamp } = input.starting_position;
        let position = StartingPosition { kind, sequence_number, timestamp };
        let start = position.start("SubscribeToShard", &stream.name, shard, call.now_ms)?;
        let key = SubscriptionKey {
            stream: stream.record.id,
            consumer: consumer.name.clone(),
            consumer_created_ms: found.record.created_ms,
            shard: shard.0,
        };
        if input.dry_run {
            let is_refused = self.reading.subscriptions.refuses(&key);
            return Err(if is_refused { in_use(&consumer, shard.0) } else { dry_run() });
        }
        // It would wait for another to end, and be told then that the service fails.
        if self.ground.subscribe_fetcher.bytes_free() < credit_bytes(&stream) as usize {
            return Err(ApiError::limit_exceeded(
                "Too many subscriptions are open at a time: there is no memory for another one. Try \
                 again when some have ended.",
            ));
        }
        let place = self.resolve(&stream, shard.0, start).await?;
        let counts = stream.consumer_counts(&consumer.name).cloned();
        let counts = counts.expect("the consumer was found in this stream");
        let Some(ticket) = self.reading.subscriptions.begin(key) else {
            counts.note_rate_exceeded();
            return Err(in_use(&consumer, shard.0));
        };
        counts.note_subscribed();
        let (sender, events) = event_channel(CLIENT_BYTES_MAX);
        let subscriber = Subscriber {
            catalog: self.ground.catalog.clone(),
            fetcher: self.ground.subscribe_fetcher.clone(),
            now_ms: self.ground.now_ms.clone(),
            encoding: call.encoding,
            consumer,
            consumer_created_ms: found.record.created_ms,
            stream: stream.id(),
            shard: shard.0,
            place,
            pace: self.settings.limits.then(Pace::new),
            last_event: None,
            counts,
        };
        tokio::spawn(subscriber.run(sender, ticket));
        Ok(ApiResponse::Events(events))
    }
}

/// The service's error for a subscription that another one holds up or has taken over.
fn in_use(consumer: &ConsumerName, shard: u32) -> ApiError {
    ApiError::resource_in_use(format!(
        "Another active subscription exists for this consumer: {}:{}:{}:{}",
        consumer.stream.account_id,
        consumer.stream.name,
        shard_name(shard),
        consumer.name
    ))
}

/// How a subscription ends.
#[derive(Debug)]
enum End {
    /// By itself, or because its client is gone.
    Quiet,
    /// With an exception in the stream.
    Failed(ApiError),
}

/// Who pushes a shard to a client.
struct Subscriber {
    catalog: Arc<Catalog>,
    fetcher: Fetcher,
    now_ms: NowMs,
    encoding: Encoding,
    consumer: ConsumerName,
    consumer_created_ms: u64,
    stream: StreamId,
    shard: u32,
    /// Where to go on.
    place: Place,
    /// None without limits.
    pace: Option<Pace>,
    last_event: Option<Instant>,
    counts: Arc<ConsumerCounts>,
}

/// What a subscriber's shard looks like now.
struct Standing {
    stream: Arc<Stream>,
    /// What follows, if the shard's end is reached.
    children: Option<Children>,
}

impl Standing {
    fn shard(&self, index: u32) -> &ShardRecord {
        &self.stream.shard(index).expect("it was looked up").record
    }
}

impl Subscriber {
    /// Pushes until the end, whatever it is, and tells the client of it.
    async fn run(mut self, sender: EventSender, ticket: Ticket) {
        let deadline = Instant::now() + LIFETIME;
        let (consumer, shard) = (self.consumer.clone(), self.shard);
        let (encoding, taken_over) = (self.encoding, ticket.taken_over());
        let end = tokio::select! {
            end = self.push_all(&sender) => end,
            () = taken_over.cancelled() => End::Failed(in_use(&consumer, shard)),
            () = sleep_until(deadline) => End::Quiet,
            () = sender.gone() => End::Quiet,
        };
        if let End::Failed(error) = end {
            tracing::debug!(%error, shard, consumer = %consumer.name, "a subscription failed");
            match exception(error.kind, &error.message, encoding) {
                // A client that takes nothing does not learn why its stream ends.
                Ok(message) => drop(sender.send_within(message, LAST_MESSAGE_WAIT).await),
                Err(error) => tracing::error!(%error, "an exception cannot be sent"),
            }
        }
        // The stream ends when what is queued has been taken.
        drop((sender, ticket));
    }

    async fn push_all(&mut self, sender: &EventSender) -> End {
        if sender.send(initial_response(self.encoding)).await.is_err() {
            return End::Quiet;
        }
        let (mut failing_since, mut pause) = (None, PAUSE.0);
        loop {
            let standing = match self.standing() {
                Ok(standing) => standing,
                Err(error) => return End::Failed(error),
            };
            if let Some(children) = standing.children {
                return match self.send_last(sender, &children).await {
                    Ok(()) => End::Quiet,
                    Err(end) => end,
                };
            }
            let (since, progress) = (Instant::now(), self.place);
            let stopped = self.push_some(sender, &standing).await;
            if self.place != progress {
                (failing_since, pause) = (None, PAUSE.0);
            }
            match stopped {
                Ok(()) => (failing_since, pause) = (None, PAUSE.0),
                Err(Stop::End(end)) => return end,
                Err(Stop::Unreadable(error)) => {
                    let since = *failing_since.get_or_insert(since);
                    if since.elapsed() >= PATIENCE {
                        tracing::warn!(%error, "a subscription cannot be served");
                        return End::Failed(internal_failure());
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// Whether there is still what is subscribed to, and by whom.
    fn standing(&self) -> Result<Standing, ApiError> {
        let gone = || not_found(&self.consumer.stream);
        let stream = self.catalog.stream_of(self.stream).ok_or_else(gone)?;
        check_serving(&stream)?;
        let consumer = stream.consumer(&self.consumer.name).filter(|consumer| {
            consumer.record.created_ms == self.consumer_created_ms
                && consumer.record.status != ConsumerStatus::Deleting
        });
        if consumer.is_none() {
            return Err(no_consumer(&self.consumer));
        }
        if stream.shard(self.shard).is_none() {
            return Err(no_shard(&stream, self.shard));
        }
        let children = match self.place {
            Place::Offset(next) => Children::at_end(&stream, self.shard, next),
            Place::Time(_) | Place::Earliest => None,
        };
        Ok(Standing { stream, children })
    }

    fn shard_id(&self) -> ShardId {
        shard_id(self.stream, self.shard)
    }

    /// Pushes what one subscription at a node gives, as long as nothing else is to be looked at.
    async fn push_some(&mut self, sender: &EventSender, standing: &Standing) -> Result<(), Stop> {
        let credit = credit_bytes(&standing.stream);
        let from = self.place.fetch_from();
        let subscribed = self.fetcher.subscribe(self.shard_id(), from, credit, SILENCE).await;
        let mut subscription = match subscribed {
            Ok(subscription) => subscription,
            Err(error) => return self.judge(sender, error).await,
        };
        loop {
            let next = match timeout(STUCK_AFTER, subscription.next()).await {
                Ok(next) => next,
                Err(_) => {
                    // Its memory is given back before memory for the batch is asked for.
                    drop(subscription);
                    let batch_bytes_max = largest_batch_bytes(&standing.stream);
                    return self.push_fetched(sender, batch_bytes_max).await;
                }
            };
            let fetched = match next {
                Some(Ok(fetched)) => fetched,
                Some(Err(error)) => return self.judge(sender, error).await,
                None => return Ok(()),
            };
            let used = fetched.batch_bytes();
            let is_end = fetched.head().sealed_end;
            self.push_event(sender, &fetched).await?;
            drop(fetched);
            if is_end {
                return self.wait_for_children(sender).await;
            }
            self.standing().map_err(|error| Stop::End(End::Failed(error)))?;
            grant(&mut subscription, used).await;
        }
    }

    /// Fetches and pushes the batch for which the credit does not suffice.
    async fn push_fetched(
        &mut self,
        sender: &EventSender,
        batch_bytes_max: usize,
    ) -> Result<(), Stop> {
        let (shard, from) = (self.shard_id(), self.place.fetch_from());
        match self.fetcher.fetch_page(shard, from, 1, batch_bytes_max, MEMORY_WAIT).await {
            Ok(fetched) => self.push_event(sender, &fetched).await,
            Err(error) => self.judge(sender, error).await,
        }
    }

    /// What an error means for the subscription.
    async fn judge(&mut self, sender: &EventSender, error: FetchError) -> Result<(), Stop> {
        let FetchError::Refused { refusal, .. } = &error else {
            return Err(Stop::Unreadable(error));
        };
        match refusal.code {
            ErrorCode::Trimmed => {
                self.place = Place::Offset(Offset(refusal.hint));
                Ok(())
            }
            // Nothing is there yet. The place stays, and so does the consumer.
            ErrorCode::BeyondEnd => {
                self.heartbeat(sender).await?;
                sleep(SILENCE).await;
                Ok(())
            }
            _ => Err(Stop::Unreadable(error)),
        }
    }

    /// The node has ended the shard: its children are seen in a moment.
    async fn wait_for_children(&mut self, sender: &EventSender) -> Result<(), Stop> {
        let mut changes = self.catalog.changes();
        loop {
            changes.mark_unchanged();
            match self.standing() {
                Ok(Standing { children: Some(_), .. }) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(Stop::End(End::Failed(error))),
            }
            // The catalog outlives its subscribers; a missed change is seen a moment later.
            let _ = timeout(SILENCE, changes.changed()).await;
            self.heartbeat(sender).await?;
        }
    }

    /// Sends on what a node gave, and moves the place behind it.
    async fn push_event(&mut self, sender: &EventSender, fetched: &Fetched) -> Result<(), Stop> {
        let standing = self.standing().map_err(|error| Stop::End(End::Failed(error)))?;
        let mut source = RecordSource::new(&standing.stream, self.shard).expect("it was looked up");
        let (mut count, mut bytes, mut last_ms) = (0, 0, 0);
        for record in fetched.records() {
            count += 1;
            bytes += record_bytes(&record);
            last_ms = record.append_time_ms;
        }
        let next = fetched.head().next;
        if count == 0 {
            // A time that nothing has reached yet stays a time, unless the shard ends before it.
            if !matches!(self.place, Place::Time(_)) || fetched.head().sealed_end {
                self.place = Place::Offset(next);
            }
            return self.heartbeat_at(sender, &standing, next).await;
        }
        if let Some(pace) = &mut self.pace {
            sleep_until(pace.admit(bytes)).await;
        }
        let now_ms = (self.now_ms)();
        let behind_ms = millis_behind(fetched, next, last_ms, now_ms);
        let mut payload = Vec::new();
        let mut writer = RecordsWriter::new(self.encoding, &mut payload);
        writer.reserve(count, bytes);
        fetched.records().for_each(|record| source.push(&mut writer, &record));
        writer.finish_event(&EventEnd {
            continuation_sequence_number: Some(&place_number(
                self.shard,
                standing.shard(self.shard),
                next,
            )),
            millis_behind_latest: behind_ms,
            child_shards: &[],
        });
        let read = Read { records: count as u64, bytes: bytes as u64, behind_ms };
        self.send(sender, payload, &read).await?;
        self.place = Place::Offset(next);
        Ok(())
    }

    /// Tells where the consumer stands, if it has not been told anything for a while.
    async fn heartbeat(&mut self, sender: &EventSender) -> Result<(), Stop> {
        let Place::Offset(next) = self.place else { return Ok(()) };
        let standing = self.standing().map_err(|error| Stop::End(End::Failed(error)))?;
        self.heartbeat_at(sender, &standing, next).await
    }

    async fn heartbeat_at(
        &mut self,
        sender: &EventSender,
        standing: &Standing,
        next: Offset,
    ) -> Result<(), Stop> {
        if self.last_event.is_some_and(|last| last.elapsed() < HEARTBEAT) {
            return Ok(());
        }
        let number = place_number(self.shard, standing.shard(self.shard), next);
        let mut payload = Vec::new();
        RecordsWriter::new(self.encoding, &mut payload).finish_event(&EventEnd {
            continuation_sequence_number: Some(&number),
            millis_behind_latest: 0,
            child_shards: &[],
        });
        self.send(sender, payload, &Read::default()).await
    }

    /// Tells that nothing follows, and where to go on.
    async fn send_last(&mut self, sender: &EventSender, children: &Children) -> Result<(), End> {
        let mut payload = Vec::new();
        let writer = RecordsWriter::new(self.encoding, &mut payload);
        children.with_views(|child_shards: &[ChildShardView<'_>]| {
            writer.finish_event(&EventEnd {
                continuation_sequence_number: None,
                millis_behind_latest: 0,
                child_shards,
            });
        });
        match self.send(sender, payload, &Read::default()).await {
            Ok(()) => Ok(()),
            Err(Stop::End(end)) => Err(end),
            Err(Stop::Unreadable(_)) => Err(End::Failed(internal_failure())),
        }
    }

    /// Sends an event in which there is so much.
    async fn send(
        &mut self,
        sender: &EventSender,
        payload: Vec<u8>,
        read: &Read,
    ) -> Result<(), Stop> {
        let message: Bytes =
            event(EVENT, self.encoding.content_type(), payload.into()).map_err(|error| {
                tracing::error!(%error, "an event cannot be sent");
                Stop::End(End::Failed(internal_failure()))
            })?;
        sender.send(message).await.map_err(|_| Stop::End(End::Quiet))?;
        self.last_event = Some(Instant::now());
        self.counts.note_event(read);
        Ok(())
    }
}

/// Why pushing stops.
enum Stop {
    /// For good.
    End(End),
    /// For a while.
    Unreadable(FetchError),
}

/// Gives the credit of an event back. That the connection is gone, the next event tells.
async fn grant(subscription: &mut ShardSubscription, bytes: usize) {
    if bytes > 0
        && let Err(error) = subscription.grant(u32::try_from(bytes).unwrap_or(u32::MAX)).await
    {
        tracing::debug!(%error, "a subscription ends");
    }
}

/// What a subscription may have on its way: a batch of a stream's largest record at the least.
/// Larger ones from before the stream's settings changed, and those beyond what can be asked for,
/// are fetched one by one.
fn credit_bytes(stream: &Stream) -> u32 {
    largest_batch_bytes(stream).min(FETCH_BYTES_MAX as usize) as u32
}

/// Keeps a consumer to its rate: each event may leave when those before it have had their time.
#[derive(Debug)]
struct Pace {
    /// When all that was admitted has had its time.
    paid: Instant,
}

impl Pace {
    fn new() -> Pace {
        Pace { paid: Instant::now() }
    }

    /// When so many bytes may leave.
    fn admit(&mut self, bytes: usize) -> Instant {
        self.admit_at(bytes, Instant::now())
    }

    fn admit_at(&mut self, bytes: usize, now: Instant) -> Instant {
        let start = self.paid.max(now);
        self.paid = start + Duration::from_secs_f64(bytes as f64 / BYTES_PER_S);
        start.checked_sub(AHEAD).map_or(now, |early| early.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::super::reading::BATCH_BYTES_MIN;
    use super::*;

    /// Sends events as soon as the pace allows; answers how long that took.
    fn send(events: &[usize], overslept: Duration) -> Duration {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace { paid: start }, start);
        for bytes in events {
            let at = pace.admit_at(*bytes, now);
            if at > now {
                now = at + overslept;
            }
        }
        now - start
    }

    #[test]
    fn a_consumer_gets_two_mebibytes_a_second() {
        let mebibytes = send(&[1 << 20; 41], Duration::ZERO);
        assert_eq!(mebibytes, Duration::from_secs(20) - AHEAD);
        // Timers that are late do not make it slower.
        let small = send(&[1 << 10; 20_001], Duration::from_millis(3));
        assert!(small < Duration::from_secs_f64(20_000.0 / 2048.0 + 0.1), "{small:?}");
        let large = send(&[10 << 20, 10 << 20, 1], Duration::ZERO);
        assert_eq!(large, Duration::from_secs(10) - AHEAD);
    }

    #[test]
    fn who_has_been_idle_gets_no_more_than_that() {
        let start = Instant::now();
        let mut pace = Pace { paid: start };
        let later = start + Duration::from_secs(100);
        assert_eq!(pace.admit_at(2 << 20, later), later);
        let next = pace.admit_at(1, later);
        assert_eq!(next, later + Duration::from_secs(1) - AHEAD);
    }

    #[test]
    fn the_credit_has_room_for_a_batch_of_the_usual_size() {
        use thalweg_wire::batch::HEADER_BYTES;
        use thalweg_wire::limits::BODY_BYTES_MANY_RECORDS_MAX;
        let batch = BODY_BYTES_MANY_RECORDS_MAX as usize + HEADER_BYTES + 16;
        assert!(BATCH_BYTES_MIN >= batch);
    }
}
