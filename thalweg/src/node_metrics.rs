//! The series of a storage node, and where `thalweg node` serves them: the node counts, and knows
//! neither the format nor the protocol in which that is shown.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use thalweg_node::counters::Counters;
use thalweg_node::metrics::{Distribution, Distributions, Gauges, NodeMetrics};
use thalweg_router::RouterError;
use thalweg_router::kinesis::server::Server;
use thalweg_router::metrics::exposition::{
    BuildCollector, Exposition, counters, gauges, histograms,
};
use thalweg_router::metrics::{self, serve::serve};
use tokio::runtime::Runtime;

use crate::Failure;

/// Microseconds are shown as seconds, Prometheus' unit of time.
const US_PER_S: u64 = 1_000_000;
/// How long who reads metrics may take when the node stops.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// What a node shows.
#[derive(Debug)]
pub(crate) struct NodeCollector(pub(crate) NodeMetrics);

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let NodeCollector(node) = self;
        let cores = || node.cores().iter().map(|core| core.as_ref());
        let all: Vec<(String, Counters)> = named(cores().map(|core| core.counters()));
        encode_counters(&mut encoder, &all)?;
        let all: Vec<(String, Gauges)> = named(cores().map(|core| core.gauges()));
        encode_gauges(&mut encoder, &all)?;
        let all: Vec<(String, &Distributions)> = named(cores().map(|core| core.distributions()));
        encode_distributions(&mut encoder, &all)?;
        encode_disks(&mut encoder, node)
    }
}

/// Each with its core's number, as a label has it.
fn named<T>(cores: impl Iterator<Item = T>) -> Vec<(String, T)> {
    cores.enumerate().map(|(core, shown)| (core.to_string(), shown)).collect()
}

/// Every counter of the node under its own name.
fn encode_counters(
    encoder: &mut DescriptorEncoder<'_>,
    cores: &[(String, Counters)],
) -> fmt::Result {
    let values: Vec<(&str, Vec<(&str, u64)>)> =
        cores.iter().map(|(core, counters)| (core.as_str(), counters.named())).collect();
    for (place, described) in Counters::DESCRIPTIONS.iter().enumerate() {
        let help = described.text.trim_end_matches('.');
        let name = format!("node_{}", described.name);
        let series = values.iter().map(|(core, named)| ([("core", *core)], named[place].1));
        if described.is_sum {
            counters(encoder, &name, help, series)?;
        } else {
            gauges(encoder, &name, help, series)?;
        }
    }
    Ok(())
}

/// One of a core's figures.
type Figure = fn(&Gauges) -> u64;

fn encode_gauges(encoder: &mut DescriptorEncoder<'_>, cores: &[(String, Gauges)]) -> fmt::Result {
    let plain: [(&str, &str, Figure); 12] = [
        ("connections", "Connections that are open", |g| g.connections),
        ("subscriptions", "Subscriptions that have not ended", |g| g.subscriptions),
        ("shards", "Shards that a core serves", |g| g.shards),
        ("limited_shards", "Shards with write limits, two token buckets each", |g| {
            g.limited_shards
        }),
        ("room_shards", "New shards that a core can open beside them now", |g| g.room_shards),
        ("produces_open", "Produce frames whose answer waits for the log", |g| g.produces_open),
        ("fetches_open", "Fetches under way or waiting", |g| g.fetches_open),
        ("uncommitted_bytes", "Bytes of batches appended and not durable", |g| g.uncommitted_bytes),
        ("logs", "Logs, one for each directory and retention class in use", |g| g.logs),
        ("logs_failed", "Logs that stopped after a failed write or sync", |g| g.logs_failed),
        ("logs_without_space", "Logs that found no space for another segment", |g| {
            g.logs_without_space
        }),
        ("segment_bytes", "Bytes of the files of segments", |g| g.segment_bytes),
    ];
    for (name, help, of) in plain {
        let series = cores.iter().map(|(core, shown)| ([("core", core.as_str())], of(shown)));
        gauges(encoder, &format!("node_{name}"), help, series)?;
    }
    let states: [(&str, Figure); 4] = [
        ("sealed", |g| g.segments_sealed),
        ("open", |g| g.segments_open),
        ("free", |g| g.segments_free),
        ("leaving", |g| g.segments_leaving),
    ];
    let help = "Segments: whole, taking appends, in wait, or given up and still in use";
    gauges(encoder, "node_segments", help, parts(cores, "state", &states))?;
    let purposes: [(&str, Figure); 5] = [
        ("free", |g| g.buffer_free_bytes),
        ("tail", |g| g.buffer_tail_bytes),
        ("read", |g| g.buffer_read_bytes),
        ("footer", |g| g.buffer_footer_bytes),
        ("work", Gauges::buffer_work_bytes),
    ];
    let help = "Bytes of buffers by what they are used for: nothing, the tails of logs, what was \
                read, footers, what is received, written and sent";
    gauges(encoder, "node_buffer_bytes", help, parts(cores, "purpose", &purposes))
}

/// A figure of each core in parts, which a label tells apart.
fn parts<'a>(
    cores: &'a [(String, Gauges)],
    label: &'static str,
    parts: &'a [(&'static str, Figure)],
) -> impl Iterator<Item = ([(&'static str, &'a str); 2], u64)> {
    cores.iter().flat_map(move |(core, shown)| {
        parts.iter().map(move |(name, of)| ([("core", core.as_str()), (label, *name)], of(shown)))
    })
}

fn encode_distributions(
    encoder: &mut DescriptorEncoder<'_>,
    cores: &[(String, &Distributions)],
) -> fmt::Result {
    type Of = fn(&Distributions) -> Distribution;
    let families: [(&str, &str, u64, Of); 5] = [
        (
            "commit_duration_seconds",
            "From a batch's append until it is acknowledged: durable, and seen by readers",
            US_PER_S,
            |d| d.commit_us.read(),
        ),
        (
            "sync_duration_seconds",
            "How long syncs took, and writes that were their own",
            US_PER_S,
            |d| d.sync_us.read(),
        ),
        ("commit_batches", "Batches committed together", 1, |d| d.commit_batches.read()),
        ("commit_records", "Records committed together", 1, |d| d.commit_records.read()),
        ("commit_bytes", "Bytes of batches committed together", 1, |d| d.commit_bytes.read()),
    ];
    for (name, help, per_unit, of) in families {
        let series = cores.iter().map(|(core, shown)| {
            let Distribution { buckets, beyond, sum } = of(shown);
            ([("core", core.as_str())], metrics::Distribution { buckets, beyond, sum })
        });
        histograms(encoder, &format!("node_{name}"), help, per_unit, series)?;
    }
    Ok(())
}

fn encode_disks(encoder: &mut DescriptorEncoder<'_>, node: &NodeMetrics) -> fmt::Result {
    let spaces: Vec<_> = node
        .disk_spaces()
        .filter_map(|(disk, space)| {
            // Its series are missing then, which is what an alert should look for.
            let told = space.inspect_err(
                |errno| tracing::warn!(%disk, %errno, "a disk does not tell its space"),
            );
            Some((disk.to_string(), told.ok()?))
        })
        .collect();
    let free = spaces.iter().map(|(disk, space)| ([("disk", disk.as_str())], space.free_bytes));
    let help = "Bytes that the node may still take on a disk's file system";
    gauges(encoder, "node_disk_free_bytes", help, free)?;
    let total = spaces.iter().map(|(disk, space)| ([("disk", disk.as_str())], space.total_bytes));
    gauges(encoder, "node_disk_bytes", "Bytes of a disk's file system", total)
}

/// Where a node alone shows what it has: on a thread of its own.
pub(crate) struct NodeMetricsServer {
    runtime: Runtime,
    server: Server,
}

impl NodeMetricsServer {
    /// Serves a node's metrics from now on.
    ///
    /// # Errors
    /// The address cannot be listened at, or there are no threads.
    pub(crate) fn start(
        listen: SocketAddr,
        node: NodeMetrics,
    ) -> Result<NodeMetricsServer, Failure> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("metrics").enable_all();
        let runtime = runtime.build().map_err(Failure::Threads)?;
        let exposition =
            Exposition::new(vec![Box::new(BuildCollector), Box::new(NodeCollector(node))]);
        let within = runtime.enter();
        let server = serve(listen, Arc::new(move |_| exposition.text()));
        drop(within);
        let server = server.map_err(RouterError::from)?;
        Ok(NodeMetricsServer { runtime, server })
    }

    /// Where they are served: the port is the system's choice if it was 0.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Ends, and lets who is reading come to the end within a moment.
    pub(crate) fn stop(self) {
        self.runtime.block_on(self.server.drain(DRAIN_TIME));
    }
}
