//! SubscribeToShard: shards that are pushed, each record with the moment at which it came.
//!
//! The API has subscriptions over HTTP/2 (API reference, SubscribeToShard). One lasts five minutes;
//! then the next goes on where it ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use aws_smithy_types::event_stream::Message;
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};

use super::connection::{CallError, Client, ClientPlan, HttpVersion};
use super::encode::{Position, subscribe_to_shard};
use super::ledger::{Book, Keys, RecordId, RecordSource, is_above, place_of};
use super::put::on_runtime;
use super::scan;
use crate::error::BenchError;

const OPERATION: &str = "SubscribeToShard";
/// How often a subscription looks whether all is over.
const LOOK: Duration = Duration::from_millis(50);
/// How long what was acknowledged may take to come.
pub const ARRIVAL: Duration = Duration::from_secs(10);
/// Pause before a subscription that ended is made anew.
const PAUSE: Duration = Duration::from_millis(100);
/// Subscriptions of a shard that may end, one after the other, before anything came on them.
const EMPTY_MAX: u32 = 20;
/// Deviations that are told in words.
const DEVIATIONS_SHOWN_MAX: usize = 8;
/// Largest message that is waited for: a record of 10 MiB in base64, and what is around it.
const MESSAGE_BYTES_MAX: usize = 24 << 20;

/// A record that came.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    id: RecordId,
    place: u64,
    at: Instant,
}

/// What the subscriptions of a run and who waits for them tell each other.
#[derive(Default)]
pub struct Following {
    /// Records that came.
    pub delivered: AtomicU64,
    /// Set when no more are waited for.
    pub over: AtomicBool,
    /// What is not as it should be.
    deviations: Mutex<Vec<String>>,
}

/// What is subscribed to.
pub struct Subscriptions<'s> {
    /// How the server is spoken to.
    pub client: &'s ClientPlan,
    /// The consumer.
    pub consumer_arn: &'s str,
    /// Its stream's shards.
    pub shards: &'s [String],
    /// The records' keys.
    pub keys: &'s Keys,
    /// The records' data.
    pub source: &'s RecordSource,
    /// See there.
    pub following: &'s Following,
}

impl Subscriptions<'_> {
    /// Takes what is pushed until it is over; tells `ready` when every shard is subscribed to.
    ///
    /// # Errors
    /// [`BenchError`] when a subscription cannot be had.
    pub fn run(&self, ready: &mpsc::Sender<()>) -> Result<Vec<Delivery>, BenchError> {
        let client = self.client.with_version(HttpVersion::Two).client();
        let subscribed = AtomicU64::new(0);
        let (client, subscribed) = (&client, &subscribed);
        let all = on_runtime(async {
            let each = self.shards.iter().map(|shard| {
                let follower = Follower {
                    of: self,
                    client,
                    shard,
                    last_number: String::new(),
                    deliveries: Vec::new(),
                    scratch: Vec::new(),
                };
                follower.run(move || {
                    let before = subscribed.fetch_add(1, Ordering::Relaxed);
                    if before + 1 == self.shards.len() as u64 {
                        // Who does not wait any more has given up already.
                        let _ = ready.send(());
                    }
                })
            });
            try_join_all(each).await
        })?;
        Ok(all.into_iter().flatten().collect())
    }
}

impl Following {
    fn deviate(&self, what: String) {
        let mut deviations = self.deviations.lock().unwrap_or_else(PoisonError::into_inner);
        // The first ones tell enough.
        if deviations.len() < DEVIATIONS_SHOWN_MAX {
            deviations.push(what);
        }
    }

    /// Holds what came against what was acknowledged: every record once, at its place.
    #[must_use]
    pub fn compare(&self, deliveries: &[Delivery], books: &[Book]) -> Vec<String> {
        let mut places = HashMap::new();
        let (mut twice, mut elsewhere, mut missing) = (0_u64, 0_u64, 0_u64);
        for delivery in deliveries {
            twice += u64::from(places.insert(delivery.id, delivery.place).is_some());
        }
        for (lane, book) in (0..).zip(books) {
            for (number, place) in book.acknowledged_places() {
                match places.get(&RecordId { lane, number }) {
                    Some(found) if *found == place => {}
                    Some(_) => elsewhere += 1,
                    None => missing += 1,
                }
            }
        }
        let mut deviations = self.deviations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (count, what) in [
            (twice, "records were delivered twice"),
            (elsewhere, "records were delivered from another place than they were acknowledged at"),
            (missing, "acknowledged records were not delivered"),
        ] {
            if count > 0 {
                deviations.push(format!("{count} {what}"));
            }
        }
        deviations
    }
}

impl Delivery {
    /// Who was delivered, and when.
    #[must_use]
    pub fn arrival(&self) -> (RecordId, Instant) {
        (self.id, self.at)
    }
}

/// Follows one shard.
struct Follower<'s> {
    of: &'s Subscriptions<'s>,
    client: &'s Client,
    shard: &'s str,
    /// Of the last record, or where the server said to go on.
    last_number: String,
    deliveries: Vec<Delivery>,
    scratch: Vec<u8>,
}

impl Follower<'_> {
    async fn run(mut self, subscribed: impl FnOnce()) -> Result<Vec<Delivery>, BenchError> {
        let failed = |source| BenchError::Call { operation: OPERATION, source };
        let mut subscribed = Some(subscribed);
        let mut connection = self.client.connection();
        let (mut body, mut empty) = (Vec::new(), 0);
        while !self.is_over() {
            let position = match self.last_number.as_str() {
                "" => Position::TrimHorizon,
                number => Position::After(number),
            };
            let encoding = self.client.encoding();
            let consumer = self.of.consumer_arn;
            subscribe_to_shard(encoding, &mut body, consumer, self.shard, position);
            let opened = connection.open_stream(OPERATION, &Bytes::from(body.clone())).await;
            match opened {
                Ok(stream) => {
                    if let Some(subscribed) = subscribed.take() {
                        subscribed();
                    }
                    let before = self.deliveries.len();
                    self.follow(stream).await.map_err(failed)?;
                    empty = if self.deliveries.len() > before { 0 } else { empty + 1 };
                }
                // The one before has not been forgotten yet.
                Err(error) if is_later(&error) => empty += 1,
                Err(error) => return Err(failed(error)),
            }
            if empty > EMPTY_MAX {
                let reason = "subscriptions end before anything comes on them".into();
                return Err(failed(CallError::Lost { reason }));
            }
            if !self.is_over() {
                sleep(PAUSE).await;
            }
        }
        Ok(self.deliveries)
    }

    /// A subscription did not end as it should.
    fn broke(&self, how: &str) {
        if !self.is_over() {
            self.of.following.deviate(format!("a subscription to {} broke: {how}", self.shard));
        }
    }

    fn is_over(&self) -> bool {
        self.of.following.over.load(Ordering::Relaxed)
    }

    /// Takes one subscription to its end.
    async fn follow(&mut self, mut stream: Incoming) -> Result<(), CallError> {
        let mut decoder = MessageFrameDecoder::new();
        let mut received = BytesMut::new();
        while !self.is_over() {
            let frame = match timeout(LOOK, stream.frame()).await {
                Err(_) => continue,
                Ok(None) => {
                    if !received.is_empty() {
                        let bytes = received.len();
                        self.broke(&format!("it ended within a message, {bytes} bytes of it came"));
                    }
                    return Ok(());
                }
                // The next subscription tells if the server is gone.
                Ok(Some(Err(error))) => {
                    self.broke(&error.to_string());
                    return Ok(());
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let at = Instant::now();
            let Ok(data) = frame.into_data() else { continue };
            received.extend_from_slice(&data);
            loop {
                let decoded = decoder.decode_frame(&mut received).map_err(|error| {
                    CallError::Lost { reason: format!("its event stream is damaged: {error}") }
                })?;
                match decoded {
                    DecodedFrame::Complete(message) => self.take(&message, at)?,
                    DecodedFrame::Incomplete if received.len() > MESSAGE_BYTES_MAX => {
                        return Err(CallError::TooLarge);
                    }
                    DecodedFrame::Incomplete => break,
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &Message, at: Instant) -> Result<(), CallError> {
        let header = |name: &str| {
            let header = message.headers().iter().find(|header| header.name().as_str() == name);
            header.and_then(|header| header.value().as_string().ok()).map(|text| text.as_str())
        };
        if let Some(kind) = header(":exception-type") {
            let error = scan::exception_message(self.client.encoding(), message.payload());
            return Err(CallError::Refused {
                kind: kind.to_owned(),
                message: error.unwrap_or_default(),
                status: 200,
            });
        }
        if header(":event-type") != Some("SubscribeToShardEvent") {
            return Ok(());
        }
        let Follower { of, shard, last_number, deliveries, scratch, .. } = self;
        let mut last = std::mem::take(last_number).into_bytes();
        let mut came = 0;
        let encoding = self.client.encoding();
        let page = scan::page(encoding, message.payload(), scratch, |record| {
            came += 1;
            let deviate = |what: &str| {
                let number = scan::shown(record.number);
                of.following.deviate(format!("delivered from {shard}, record {number}: {what}"));
            };
            if !is_above(record.number, &last) {
                deviate("it comes behind a later one");
            }
            last.clear();
            last.extend_from_slice(record.number);
            let Some(id) = RecordId::of_data(record.data) else {
                return deviate("nobody here wrote it");
            };
            if !of.source.is(id, record.data) {
                return deviate("its data are not those that were written");
            }
            if record.partition_key != Some(of.keys.key(id).as_bytes()) {
                return deviate("its key is another");
            }
            let place = place_of(of.keys.stream(id), shard.as_bytes(), record.number);
            deliveries.push(Delivery { id, place, at });
        })?;
        of.following.delivered.fetch_add(came, Ordering::Relaxed);
        *last_number = String::from_utf8(last).expect("digits are text");
        if let Some(next) = page.next
            && is_above(next.as_bytes(), last_number.as_bytes())
        {
            *last_number = next;
        }
        Ok(())
    }
}

fn is_later(error: &CallError) -> bool {
    error.is_throttle() || error.kind() == "ResourceInUseException"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_delivered_is_told() {
        let mut book = Book::default();
        book.begin(4);
        for number in 0..3 {
            book.acknowledge(number, number + 10);
        }
        let delivery = |number, place| Delivery {
            id: RecordId { lane: 0, number },
            place,
            at: Instant::now(),
        };
        let following = Following::default();
        let books = [book];
        // The fourth was not acknowledged, and may come.
        let all: Vec<Delivery> = (0..4).map(|number| delivery(number, number + 10)).collect();
        assert!(following.compare(&all, &books).is_empty());
        let told = following.compare(&[delivery(0, 10), delivery(1, 99), delivery(0, 10)], &books);
        let told = told.join("; ");
        assert!(told.contains("1 records were delivered twice"), "{told}");
        assert!(told.contains("1 records were delivered from another place"), "{told}");
        assert!(told.contains("1 acknowledged records were not delivered"), "{told}");
    }
}
