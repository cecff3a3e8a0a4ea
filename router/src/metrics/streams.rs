//! The series of streams, their shards and their consumers: of those that the catalog has when it
//! is asked. So those of a stream that was deleted go with it.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::counter::{Counter, Distribution};
use super::exposition::{counters, histograms};
use super::stream::{
    ConsumerCounts, GetRecordsCounts, PutRecordCounts, PutRecordsCounts, ShardCounts, StreamCounts,
};
use crate::control::catalog::{Catalog, Stream};
use crate::control::record::shard_name;

/// Microseconds are shown as the milliseconds that CloudWatch has.
const US_PER_MS: u64 = 1000;

/// See the module.
pub(super) struct StreamCollector {
    catalog: Arc<Catalog>,
}

impl StreamCollector {
    /// Of what a catalog has.
    #[must_use]
    pub(super) fn new(catalog: Arc<Catalog>) -> StreamCollector {
        StreamCollector { catalog }
    }
}

impl fmt::Debug for StreamCollector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StreamCollector").finish_non_exhaustive()
    }
}

impl Collector for StreamCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut streams = self.catalog.streams();
        streams.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        encode_written(&mut encoder, &streams)?;
        encode_put_record(&mut encoder, &streams)?;
        encode_put_records(&mut encoder, &streams)?;
        encode_get_records(&mut encoder, &streams)?;
        encode_consumers(&mut encoder, &streams)?;
        encode_shards(&mut encoder, &streams)
    }
}

type StreamLabels<'a> = [(&'static str, &'a str); 3];

fn labels_of(stream: &Stream) -> StreamLabels<'_> {
    let name = &stream.name;
    [("account", &name.account_id), ("region", &name.region), ("stream", &name.name)]
}

/// What `of` finds of each stream where there is something.
fn each<'a, T: 'a>(
    streams: &'a [Arc<Stream>],
    of: impl Fn(&'a StreamCounts) -> Option<T> + 'a,
) -> impl Iterator<Item = (StreamLabels<'a>, T)> + 'a {
    streams.iter().filter_map(move |stream| Some((labels_of(stream), of(stream.counts())?)))
}

fn encode_written(encoder: &mut DescriptorEncoder<'_>, streams: &[Arc<Stream>]) -> fmt::Result {
    type Of = fn(&StreamCounts) -> &Counter;
    let families: [(&str, &str, Of); 3] = [
        ("incoming_bytes", "Bytes put: data and partition keys", |c| &c.incoming_bytes),
        ("incoming_records", "Records put", |c| &c.incoming_records),
        (
            "write_provisioned_throughput_exceeded",
            "Records that found the rate of their shard used up",
            |c| &c.write_throttled,
        ),
    ];
    for (name, help, of) in families {
        let written = move |counts: &StreamCounts| counts.is_written().then(|| of(counts).get());
        counters(encoder, name, help, each(streams, written))?;
    }
    Ok(())
}

fn encode_put_record(encoder: &mut DescriptorEncoder<'_>, streams: &[Arc<Stream>]) -> fmt::Result {
    type Of = fn(&PutRecordCounts) -> &Counter;
    let families: [(&str, &str, Of); 2] = [
        ("put_record_bytes", "Bytes put by PutRecord", |c| &c.bytes),
        ("put_record_success", "Calls of PutRecord that stored their record", |c| &c.success),
    ];
    for (name, help, of) in families {
        let value = move |counts: &StreamCounts| counts.put_record().map(|put| of(put).get());
        counters(encoder, name, help, each(streams, value))?;
    }
    let latency = each(streams, |counts| Some(counts.put_record()?.latency_us.read()));
    let help = "How long calls of PutRecord took";
    histograms(encoder, "put_record_latency_milliseconds", help, US_PER_MS, latency)
}

fn encode_put_records(encoder: &mut DescriptorEncoder<'_>, streams: &[Arc<Stream>]) -> fmt::Result {
    type Of = fn(&PutRecordsCounts) -> &Counter;
    let families: [(&str, &str, Of); 6] = [
        ("put_records_bytes", "Bytes put by PutRecords", |c| &c.bytes),
        ("put_records_success", "Calls of PutRecords that stored a record", |c| &c.success),
        ("put_records_total_records", "Records of calls of PutRecords", |c| &c.total_records),
        ("put_records_successful_records", "Of these, those stored", |c| &c.successful_records),
        (
            "put_records_failed_records",
            "Of these, those that failed for another reason than a shard's rate",
            |c| &c.failed_records,
        ),
        (
            "put_records_throttled_records",
            "Of these, those that found the rate of their shard used up",
            |c| &c.throttled_records,
        ),
    ];
    for (name, help, of) in families {
        let value = move |counts: &StreamCounts| counts.put_records().map(|put| of(put).get());
        counters(encoder, name, help, each(streams, value))?;
    }
    let latency = each(streams, |counts| Some(counts.put_records()?.latency_us.read()));
    let help = "How long calls of PutRecords took";
    histograms(encoder, "put_records_latency_milliseconds", help, US_PER_MS, latency)
}

fn encode_get_records(encoder: &mut DescriptorEncoder<'_>, streams: &[Arc<Stream>]) -> fmt::Result {
    type Of = fn(&GetRecordsCounts) -> &Counter;
    let families: [(&str, &str, Of); 3] = [
        ("get_records_bytes", "Bytes read by GetRecords", |c| &c.bytes),
        ("get_records_records", "Records read by GetRecords", |c| &c.records),
        ("get_records_success", "Calls of GetRecords that were answered", |c| &c.success),
    ];
    for (name, help, of) in families {
        let value = move |counts: &StreamCounts| counts.get_records().map(|get| of(get).get());
        counters(encoder, name, help, each(streams, value))?;
    }
    let throttled =
        each(streams, |counts| counts.get_records().map(|_| counts.read_throttled.get()));
    let help = "Calls of GetRecords that found the rate of their shard used up";
    counters(encoder, "read_provisioned_throughput_exceeded", help, throttled)?;
    let latency = each(streams, |counts| Some(counts.get_records()?.latency_us.read()));
    let help = "How long calls of GetRecords took";
    histograms(encoder, "get_records_latency_milliseconds", help, US_PER_MS, latency)?;
    let age = each(streams, |counts| Some(counts.get_records()?.iterator_age_ms.read()));
    let help = "How old the last record of a call of GetRecords was, 0 at the end of its shard";
    histograms(encoder, "get_records_iterator_age_milliseconds", help, 1, age)
}

fn encode_consumers(encoder: &mut DescriptorEncoder<'_>, streams: &[Arc<Stream>]) -> fmt::Result {
    type Of = fn(&ConsumerCounts) -> &Counter;
    let families: [(&str, &str, Of); 5] = [
        ("subscribe_to_shard_success", "Subscriptions that began", |c| &c.subscribed),
        (
            "subscribe_to_shard_rate_exceeded",
            "Subscriptions refused because another began a moment ago",
            |c| &c.rate_exceeded,
        ),
        ("subscribe_to_shard_event_success", "Events sent", |c| &c.events),
        ("subscribe_to_shard_event_bytes", "Bytes of records in events", |c| &c.event_bytes),
        ("subscribe_to_shard_event_records", "Records in events", |c| &c.event_records),
    ];
    for (name, help, of) in families {
        let value = move |counts: &ConsumerCounts| of(counts).get();
        counters(encoder, name, help, each_consumer(streams, value))?;
    }
    let behind = each_consumer(streams, |counts| counts.event_behind_ms.read());
    let help = "How old the last record of an event was, 0 at the end of its shard; milliseconds";
    histograms(encoder, "subscribe_to_shard_event_millis_behind_latest", help, 1, behind)
}

type ConsumerLabels<'a> = (StreamLabels<'a>, [(&'static str, &'a str); 1]);

/// What `of` finds of each consumer that has subscribed.
fn each_consumer<'a, T: 'a>(
    streams: &'a [Arc<Stream>],
    of: impl Fn(&'a ConsumerCounts) -> T + 'a,
) -> impl Iterator<Item = (ConsumerLabels<'a>, T)> + 'a {
    let all = streams.iter().flat_map(|stream| {
        let consumers = stream.all_consumer_counts().filter(|(_, counts)| counts.is_used());
        consumers.map(move |(name, counts)| (stream, name, counts))
    });
    all.map(move |(stream, name, counts)| ((labels_of(stream), [("consumer", name)]), of(counts)))
}

/// Shard-level metrics: each of a stream's shards, for the streams that have it enabled by name.
fn encode_shards(encoder: &mut DescriptorEncoder<'_>, streams: &[Arc<Stream>]) -> fmt::Result {
    type Of = fn(&ShardCounts) -> &Counter;
    let families: [(&str, &str, &str, Of); 6] = [
        (
            "IncomingBytes",
            "shard_incoming_bytes",
            "Bytes put into a shard: data and partition keys",
            |c| &c.incoming_bytes,
        ),
        ("IncomingRecords", "shard_incoming_records", "Records put into a shard", |c| {
            &c.incoming_records
        }),
        ("OutgoingBytes", "shard_outgoing_bytes", "Bytes read from a shard by GetRecords", |c| {
            &c.outgoing_bytes
        }),
        (
            "OutgoingRecords",
            "shard_outgoing_records",
            "Records read from a shard by GetRecords",
            |c| &c.outgoing_records,
        ),
        (
            "ReadProvisionedThroughputExceeded",
            "shard_read_provisioned_throughput_exceeded",
            "Calls of GetRecords that found a shard's rate used up",
            |c| &c.read_throttled,
        ),
        (
            "WriteProvisionedThroughputExceeded",
            "shard_write_provisioned_throughput_exceeded",
            "Records that found a shard's rate used up",
            |c| &c.write_throttled,
        ),
    ];
    for (metric, name, help, of) in families {
        let value = move |counts: &ShardCounts| of(counts).get();
        counters(encoder, name, help, each_shard(streams, metric, value))?;
    }
    let age = |counts: &ShardCounts| -> Distribution { counts.iterator_age_ms.read() };
    let age = each_shard(streams, "IteratorAgeMilliseconds", age);
    let help = "How old the last record of a call of GetRecords was, 0 at the end of the shard";
    histograms(encoder, "shard_iterator_age_milliseconds", help, 1, age)
}

type ShardLabels<'a> = (StreamLabels<'a>, [(&'static str, String); 1]);

/// What `of` finds of each shard of the streams that have a metric enabled.
fn each_shard<'a, T: 'a>(
    streams: &'a [Arc<Stream>],
    metric: &'static str,
    of: impl Fn(&'a ShardCounts) -> T + 'a,
) -> impl Iterator<Item = (ShardLabels<'a>, T)> + 'a {
    let enabled = streams.iter().filter(move |stream| stream.record.metrics.contains(metric));
    let all = enabled.flat_map(|stream| {
        stream.all_shard_counts().map(move |(index, counts)| (stream, index, counts))
    });
    all.map(move |(stream, index, counts)| {
        ((labels_of(stream), [("shard", shard_name(index))]), of(counts))
    })
}
