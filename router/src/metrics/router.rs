//! The series of a router itself: its calls, its transport, its memory, what it has to do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::exposition::{BuildCollector, Exposition, counter, counters, gauge, gauges, histograms};
use super::operations::OperationCounts;
use super::streams::StreamCollector;
use crate::control::catalog::Catalog;
use crate::control::record::StreamStatus;
use crate::kinesis::server::{MetricsText, ServerCounts};
use crate::route::{AnswerMemory, Writer};

/// Microseconds are shown as seconds, Prometheus' unit of time.
const US_PER_S: u64 = 1_000_000;

/// What a router shows of itself beside its transport.
pub struct RouterCollector {
    /// Its calls.
    pub operations: Arc<OperationCounts>,
    /// Its streams.
    pub catalog: Arc<Catalog>,
    /// What waits to be stored.
    pub writer: Writer,
    /// What was read and has not been answered.
    pub read_memory: AnswerMemory,
    /// What subscribers have on their way, or may have.
    pub subscribe_memory: AnswerMemory,
}

impl fmt::Debug for RouterCollector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RouterCollector").finish_non_exhaustive()
    }
}

impl Collector for RouterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_operations(&mut encoder)?;
        self.encode_memory(&mut encoder)?;
        self.encode_streams(&mut encoder)
    }
}

impl RouterCollector {
    /// All that a router shows: this, its streams, its transport, and what others have `more`.
    #[must_use]
    pub fn into_text(self, more: Vec<Box<dyn Collector>>) -> MetricsText {
        let streams = StreamCollector::new(self.catalog.clone());
        let mut collectors: Vec<Box<dyn Collector>> =
            vec![Box::new(BuildCollector), Box::new(streams), Box::new(self)];
        collectors.extend(more);
        let exposition = Exposition::new(collectors);
        Arc::new(move |counts: &ServerCounts| {
            let mut text = exposition.text();
            text.push_str(&Exposition::new(vec![Box::new(ServerCollector(*counts))]).text());
            text
        })
    }

    fn encode_operations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ends = self
            .operations
            .ends()
            .map(|(operation, error, count)| ([("operation", operation), ("error", error)], count));
        let help = "Calls by operation and how they ended; error is none for those that succeeded";
        counters(encoder, "router_requests", help, ends)?;
        let latencies = self.operations.latencies_us();
        let latencies = latencies.map(|(operation, took)| ([("operation", operation)], took));
        let help = "How long calls took, from the whole request to the answer";
        histograms(encoder, "router_request_duration_seconds", help, US_PER_S, latencies)
    }

    fn encode_memory(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let bytes = self.writer.bytes_under_way() as u64;
        let help = "Bytes of records that wait to be stored";
        gauge(encoder, "router_writer_bytes", help, bytes)?;
        let help = "Bytes of records that may wait to be stored";
        gauge(encoder, "router_writer_limit_bytes", help, self.writer.bytes_max() as u64)?;
        let help = "Shards that the writer holds something for, or did a moment ago";
        gauge(encoder, "router_writer_shards", help, self.writer.shards() as u64)?;
        let (memory, help) = (&self.read_memory, "Bytes reserved for what is read, or held by it");
        let bytes = (memory.bytes_max() - memory.bytes_free()) as u64;
        gauge(encoder, "router_fetcher_bytes", help, bytes)?;
        let help = "Bytes that may be reserved for what is read";
        gauge(encoder, "router_fetcher_limit_bytes", help, memory.bytes_max() as u64)?;
        let (memory, help) = (&self.subscribe_memory, "Bytes reserved for subscriptions");
        let bytes = (memory.bytes_max() - memory.bytes_free()) as u64;
        gauge(encoder, "router_subscriptions_bytes", help, bytes)?;
        let help = "Bytes that may be reserved for subscriptions";
        gauge(encoder, "router_subscriptions_limit_bytes", help, memory.bytes_max() as u64)
    }

    fn encode_streams(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = [
            StreamStatus::Creating,
            StreamStatus::Active,
            StreamStatus::Updating,
            StreamStatus::Deleting,
        ];
        let (mut by_status, mut open_shards, mut backlog) = ([0; 4], 0, 0);
        for stream in self.catalog.streams() {
            let place = all.iter().position(|status| *status == stream.record.status);
            by_status[place.expect("each status is there")] += 1;
            open_shards += stream.open_shards().len() as u64;
            backlog += u64::from(stream.has_work());
        }
        let series = all.iter().zip(by_status);
        let series = series.map(|(status, count)| ([("status", status.as_str())], count));
        gauges(encoder, "router_streams", "Streams by their status", series)?;
        gauge(encoder, "router_open_shards", "Shards that take records", open_shards)?;
        let help = "Streams of which, or of whose consumers, something is to become";
        gauge(encoder, "router_reconciler_backlog_streams", help, backlog)
    }
}

/// What the transport had counted when it was asked.
#[derive(Debug)]
struct ServerCollector(ServerCounts);

impl Collector for ServerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ServerCollector(counts) = self;
        let rising = [
            ("connections_accepted", "Connections accepted", counts.connections_accepted),
            (
                "connections_displaced",
                "Idle connections closed for new ones, all places being taken",
                counts.connections_displaced,
            ),
            (
                "connections_refused",
                "Connections closed for want of room before they were served",
                counts.connections_refused,
            ),
            (
                "clients_cut",
                "Connections closed and HTTP/2 streams reset because a client was too slow",
                counts.clients_cut,
            ),
            ("http_requests", "Requests whose head came", counts.requests),
        ];
        for (name, help, value) in rising {
            counter(&mut encoder, &format!("router_{name}"), help, value)?;
        }
        let moment = [
            ("connections_open", "Connections that are open", counts.connections_open),
            ("http_requests_open", "Requests under way", counts.requests_open),
            ("event_streams_open", "Event streams that are open", counts.event_streams_open),
            ("bodies_bytes", "Bytes of bodies in memory", counts.bodies_bytes),
            (
                "answers_bytes",
                "Bytes of answers that are made or wait for clients",
                counts.answers_bytes,
            ),
        ];
        for (name, help, value) in moment {
            gauge(&mut encoder, &format!("router_{name}"), help, value)?;
        }
        // Some types share a name.
        let mut by_name = BTreeMap::new();
        for (kind, count) in counts.refusals.by_kind().filter(|(_, count)| *count > 0) {
            *by_name.entry(kind.name()).or_insert(0) += count;
        }
        let series = by_name.into_iter().map(|(name, count)| ([("error", name)], count));
        let help = "Requests refused before they came to an operation, or out of time, by error";
        counters(&mut encoder, "router_refusals", help, series)
    }
}
