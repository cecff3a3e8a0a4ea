//! What to run, as the command line says it, and checked.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::ArgPredicate;
use clap::{Args, Subcommand};
use serde::Serialize;
use thalweg_wire::batch::ENTRY_BYTES;
use thalweg_wire::limits::{
    BATCH_RECORDS_MAX, BODY_BYTES_MANY_RECORDS_MAX, PRODUCER_WINDOW, RECORD_BYTES_MAX,
};

use crate::error::BenchError;
use crate::generator::KEY_BYTES_MAX;
use crate::kinesis::settings::{BurstArgs, CatchupArgs, LatencyArgs, MillionArgs, StreamsArgs};

/// Longest span that counts, of workloads that are not made for more.
const SECONDS_MAX: u64 = 3600;

/// A workload and its settings.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// As many records a second as the node stores, durably; everything is read back
    ///
    /// With --target: by PutRecords and GetRecords of the Kinesis API.
    Million(MillionArgs),
    /// One record at a time at a fixed rate: how long until it is durable
    ///
    /// With --target: by PutRecord of the Kinesis API.
    Latency(LatencyArgs),
    /// The token bucket of one shard: what passes, what is refused, and when
    ///
    /// With --target: by PutRecord of the Kinesis API.
    Burst(BurstArgs),
    /// One shard pushed to many subscribers: how long until each has a record
    Fanout(Fanout),
    /// Quiet accounts, alone and beside a noisy one at its maximum: what that does to their acks
    Tenants(Tenants),
    /// Writes some GiB, restarts the node and reads all of it from disk: how fast who was away
    /// catches up
    ///
    /// With --target: fills a stream and reads it by GetRecords, from the first record to the tip;
    /// the server is not restarted.
    Catchup(CatchupArgs),
    /// Very many streams through the Kinesis API, and records to random ones of them
    Streams(StreamsArgs),
    /// Very many shards, few of them written: how long the node takes to start with them, its
    /// memory, and what it does while nothing happens
    Shards(Shards),
    /// A steady rate for hours while records age, segments are used again, copied and scrubbed:
    /// whether latency, memory or space change
    Soak(Soak),
    /// What the machine can do without a node: disk and loopback
    Limits(Common),
}

/// Settings of every workload.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Common {
    /// Directory for the node's data; made for the run and removed after it
    #[arg(long, default_value = "thalweg-bench-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Cores of the node, 0 to 1024; 0: one a processor
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub cores: usize,
    /// Memory budget of the node in bytes, 64 MiB a core at least
    #[arg(long, default_value_t = 512 << 20, value_name = "BYTES")]
    pub memory_bytes: u64,
    /// Writes the report as one JSON object to this file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub json: Option<PathBuf>,
}

impl Common {
    /// Logs of the node: one a core, on its one disk.
    #[must_use]
    pub fn logs(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.cores == 0 { processors() } else { self.cores }
    }
}

/// Settings of `million`.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Workload {
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Seconds that count, 1 to 3600; a second of warm-up comes before
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub seconds: u64,
    /// Records a second to offer, or max: as many as the windows let through, or with --target the
    /// connections
    #[arg(long, default_value = "max", value_name = "N|max")]
    pub rate: Rate,
    /// Bytes of each record's data, 16 to 10485000
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub record_bytes: usize,
    /// Records of each batch, 1 to 16384 [default: 500, or 1000 for records up to 256
    /// bytes; fewer of more than 1 KiB, for 512 KiB of data]; with --target of each request, 1 to
    /// 500 [default: 500, fewer of more than 2 KiB, for 1 MiB]
    #[arg(long, value_name = "N")]
    pub batch_records: Option<u32>,
    /// Shards, 1 to 100000; with --target the default is 8
    #[arg(
        long,
        default_value_t = 1024,
        default_value_ifs = [("target", ArgPredicate::IsPresent, "8")],
        value_name = "N"
    )]
    pub shards: u32,
    /// Connections in all, at least one from each generator thread to each core
    /// [default: that least]; with --target 1 to 1024 [default: 8]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Bytes of batches that may be unanswered on each connection
    #[arg(long, default_value_t = 4 << 20, value_name = "BYTES", conflicts_with = "target")]
    pub window_bytes: usize,
    /// Address of a core of a node that runs already, instead of one for this run; what is
    /// written stays there
    #[arg(long, value_name = "ADDRESS", conflicts_with = "target")]
    pub node: Option<SocketAddr>,
    /// The lines of this file are the records, again and again, instead of generated bytes
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    pub input: Option<PathBuf>,
}

/// Settings of `latency`.
#[derive(Clone, Debug, Args)]
pub struct Latency {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Seconds that count, 1 to 3600; a second of warm-up comes before
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub seconds: u64,
    /// Records a second, each sent alone
    #[arg(long, default_value_t = 500, value_name = "N")]
    pub rate: u64,
    /// Bytes of each record's data, 16 to 10485000
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub record_bytes: usize,
    /// Shards, 1 to 100000
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub shards: u32,
}

impl Latency {
    /// The same as a workload of one-record batches.
    #[must_use]
    pub fn as_workload(&self) -> Workload {
        Workload {
            common: self.common.clone(),
            seconds: self.seconds,
            rate: Rate::PerSecond(self.rate),
            record_bytes: self.record_bytes,
            batch_records: Some(1),
            shards: self.shards,
            connections: None,
            window_bytes: 4 << 20,
            node: None,
            input: None,
        }
    }
}

/// Settings of `fanout`.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Fanout {
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Seconds that count, 1 to 3600; a second of warm-up comes before
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub seconds: u64,
    /// Subscribers, each with connections and a thread of its own, 1 to 1000
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub subscribers: usize,
    /// Records a second
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub rate: u64,
    /// Bytes of each record's data, 16 to 10485000
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub record_bytes: usize,
    /// Records of each batch, 1 to 16384
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub batch_records: u32,
}

impl Fanout {
    /// Refuses what cannot be.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn check(&self) -> Result<(), BenchError> {
        in_range("subscribers", self.subscribers as u64, 1..=1000)?;
        if self.rate == 0 {
            let (found, expected) = ("0".into(), "at least 1".into());
            return Err(BenchError::Setting { flag: "rate", found, expected });
        }
        let one_shard = Workload {
            common: self.common.clone(),
            seconds: self.seconds,
            rate: Rate::PerSecond(self.rate),
            record_bytes: self.record_bytes,
            batch_records: Some(self.batch_records),
            shards: 1,
            connections: None,
            window_bytes: 64 << 20,
            node: None,
            input: None,
        };
        one_shard.check()
    }
}

/// Settings of `catchup`.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Catchup {
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// GiB of record data to write and read back, 1 to 65536; there must be space for a tenth
    /// more; with --target the default is 1
    #[arg(
        long,
        default_value_t = 10,
        default_value_ifs = [("target", ArgPredicate::IsPresent, "1")],
        value_name = "N"
    )]
    pub gib: u64,
    /// Bytes of each record's data, 16 to 10485000
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub record_bytes: usize,
    /// Records of each batch, 1 to 16384 [default: 500, or 1000 for records up to 256
    /// bytes; fewer of more than 1 KiB, for 512 KiB of data]; with --target of each request, 1 to
    /// 500 [default: 500, fewer of more than 2 KiB, for 1 MiB]
    #[arg(long, value_name = "N")]
    pub batch_records: Option<u32>,
    /// Shards, 1 to 100000; with --target the default is 8
    #[arg(
        long,
        default_value_t = 64,
        default_value_ifs = [("target", ArgPredicate::IsPresent, "8")],
        value_name = "N"
    )]
    pub shards: u32,
}

impl Catchup {
    /// The writing half as a workload without an end of its own.
    #[must_use]
    pub fn as_workload(&self) -> Workload {
        Workload {
            common: self.common.clone(),
            seconds: SECONDS_MAX,
            rate: Rate::Max,
            record_bytes: self.record_bytes,
            batch_records: self.batch_records,
            shards: self.shards,
            connections: None,
            window_bytes: 4 << 20,
            node: None,
            input: None,
        }
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn check(&self) -> Result<(), BenchError> {
        in_range("gib", self.gib, 1..=65_536)?;
        self.as_workload().check()
    }
}

/// Settings of `shards`.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Shards {
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Shards to open, 1 to 1000000
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub shards: u32,
    /// Shards of them that are written, 1 to all
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub active: u32,
    /// Seconds for which the node is left idle, 1 to 3600
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub seconds: u64,
}

impl Shards {
    /// Refuses what cannot be.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn check(&self) -> Result<(), BenchError> {
        in_range("shards", u64::from(self.shards), 1..=1_000_000)?;
        in_range("active", u64::from(self.active), 1..=u64::from(self.shards))?;
        in_range("seconds", self.seconds, 1..=SECONDS_MAX)
    }
}

/// Settings of `soak`.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Soak {
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Seconds, 1 to 2592000 (30 days): the warm-up and three windows at least
    #[arg(long, default_value_t = 3600, value_name = "N")]
    pub seconds: u64,
    /// Records a second
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    pub rate: u64,
    /// Seconds for which records are kept, 4 to 86400
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub retention_s: u64,
    /// Keeps everything, copies and scrubs nothing, and has all segments zero-filled beforehand: a
    /// run to hold the latency of another against
    #[arg(long)]
    pub no_churn: bool,
    /// Seconds of each window that is reported, 1 to 3600
    #[arg(long, default_value_t = 60, value_name = "N")]
    pub window_s: u64,
    /// Seconds whose windows are reported and not compared [default: twice the retention and 20,
    /// up to a whole window]
    #[arg(long, value_name = "N")]
    pub warm_up_s: Option<u64>,
    /// Bytes of a log segment, 16 MiB to 4 GiB, a multiple of 1 MiB
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    pub segment_bytes: u64,
    /// Bytes of each record's data, 16 to 10485000
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub record_bytes: usize,
    /// Records of each batch, 1 to 16384 [default: 500, or 1000 for records up to 256
    /// bytes; fewer of more than 1 KiB, for 512 KiB of data]
    #[arg(long, value_name = "N")]
    pub batch_records: Option<u32>,
    /// Shards, 64 to 100000; one of eight is left to age, the others are trimmed when half of the
    /// retention is over
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub shards: u32,
    /// Shards whose tail is followed, 1 to all
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub followed: u32,
}

impl Soak {
    /// The drive as a workload.
    #[must_use]
    pub fn as_workload(&self) -> Workload {
        Workload {
            common: self.common.clone(),
            seconds: self.seconds,
            rate: Rate::PerSecond(self.rate),
            record_bytes: self.record_bytes,
            batch_records: self.batch_records,
            shards: self.shards,
            connections: None,
            window_bytes: 4 << 20,
            node: None,
            input: None,
        }
    }

    /// Bytes a second in the logs.
    #[must_use]
    pub fn stored_bytes_per_s(&self) -> f64 {
        self.rate as f64 * self.as_workload().stored_bytes_per_record()
    }

    /// Seconds whose windows are not compared.
    #[must_use]
    pub fn warm_up_s(&self) -> u64 {
        let least = self.retention_s * 2 + 20;
        self.warm_up_s.unwrap_or(least.next_multiple_of(self.window_s))
    }

    /// Windows that are compared.
    #[must_use]
    pub fn counted_windows(&self) -> u64 {
        (self.seconds / self.window_s).saturating_sub(self.warm_up_s() / self.window_s)
    }

    /// When the shards are trimmed that are not left to age; never without churn.
    #[must_use]
    pub fn trim_after(&self) -> Option<Duration> {
        (!self.no_churn).then(|| Duration::from_secs(self.retention_s) / 2)
    }

    /// For how long a segment has been nearly empty when it is copied forward: so briefly that
    /// this comes before all of it has aged.
    #[must_use]
    pub fn merge_after_s(&self) -> u64 {
        self.retention_s / 8
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn check(&self) -> Result<(), BenchError> {
        in_range("seconds", self.seconds, 1..=30 * 24 * 3600)?;
        in_range("rate", self.rate, 1..=u64::MAX)?;
        in_range("retention-s", self.retention_s, 4..=24 * 3600)?;
        in_range("window-s", self.window_s, 1..=3600)?;
        in_range("shards", u64::from(self.shards), 64..=100_000)?;
        in_range("followed", u64::from(self.followed), 1..=u64::from(self.shards))?;
        self.as_workload().check_sizes()?;
        if self.counted_windows() < 3 {
            let expected = format!("{} at least", self.warm_up_s() + 3 * self.window_s);
            let found = self.seconds.to_string();
            return Err(BenchError::Setting { flag: "seconds", found, expected });
        }
        Ok(())
    }
}

/// Settings of `tenants`.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Tenants {
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Seconds that count, alone and beside the noise each, 1 to 3600; a second of warm-up comes
    /// before
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub seconds: u64,
    /// Shards of the quiet accounts, 1 to 100000
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub accounts: u32,
    /// Records a second of all quiet accounts together
    #[arg(long, default_value_t = 4000, value_name = "N")]
    pub rate: u64,
    /// Bytes of each record's data, 16 to 10485000
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub record_bytes: usize,
    /// Records of each batch of a quiet account, 1 to 16384
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub batch_records: u32,
    /// Bytes of each record's data of the noisy account, 16 to 10485000 [default: as the others']
    #[arg(long, value_name = "N")]
    pub noisy_record_bytes: Option<usize>,
}

/// Data of a batch whose records were not counted.
const BATCH_DATA_BYTES: usize = 512 << 10;

/// How many records to offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Rate {
    /// So many a second.
    PerSecond(u64),
    /// As many as the windows let through.
    #[serde(serialize_with = "max")]
    Max,
}

fn max<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("max")
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        if text == "max" {
            return Ok(Rate::Max);
        }
        let rate = text.replace('_', "").parse::<u64>();
        let rate = rate.map_err(|_| "a number of records a second, or max".to_string())?;
        if rate == 0 { Err("at least 1, or max".into()) } else { Ok(Rate::PerSecond(rate)) }
    }
}

/// Refuses a whole number that is out of its range.
///
/// # Errors
/// [`BenchError::Setting`].
pub fn in_range(
    flag: &'static str,
    found: u64,
    range: RangeInclusive<u64>,
) -> Result<(), BenchError> {
    if range.contains(&found) {
        return Ok(());
    }
    let expected = format!("{} to {}", range.start(), range.end());
    Err(BenchError::Setting { flag, found: found.to_string(), expected })
}

impl Workload {
    /// Bytes that a record takes in a log, nearly: with its entry, and its share of the batch's
    /// header and padding.
    #[must_use]
    pub fn stored_bytes_per_record(&self) -> f64 {
        self.record_bytes as f64 + 64.0 + 4096.0 / f64::from(self.batch_records())
    }

    /// Records of each batch.
    #[must_use]
    pub fn batch_records(&self) -> u32 {
        let most = if self.record_bytes <= 256 { 1000 } else { 500 };
        let fitting = BATCH_DATA_BYTES / self.record_bytes.max(1);
        self.batch_records.unwrap_or(fitting.clamp(1, most) as u32)
    }

    /// Refuses what no batch or no node can hold.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn check(&self) -> Result<(), BenchError> {
        in_range("seconds", self.seconds, 1..=SECONDS_MAX)?;
        self.check_sizes()
    }

    /// As [`Workload::check`], for runs of any length.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn check_sizes(&self) -> Result<(), BenchError> {
        let wrong = |flag, found: String, expected: &str| {
            Err(BenchError::Setting { flag, found, expected: expected.into() })
        };
        if !(1..=100_000).contains(&self.shards) {
            return wrong("shards", self.shards.to_string(), "1 to 100000");
        }
        let largest = RECORD_BYTES_MAX as usize - KEY_BYTES_MAX;
        if !(16..=largest).contains(&self.record_bytes) {
            return wrong("record-bytes", self.record_bytes.to_string(), "16 to 10485000");
        }
        let records = self.batch_records();
        if !(1..=BATCH_RECORDS_MAX).contains(&records) {
            return wrong("batch-records", records.to_string(), "1 to 16384");
        }
        let body = records as usize * (self.record_bytes + KEY_BYTES_MAX + ENTRY_BYTES);
        if records > 1 && body > BODY_BYTES_MANY_RECORDS_MAX as usize - 64 {
            let expected = "so few that a batch of several records stays within 1 MiB";
            return wrong("batch-records", records.to_string(), expected);
        }
        if self.window_bytes < body.min(PRODUCER_WINDOW * body) {
            let expected = "a batch at least";
            return wrong("window-bytes", self.window_bytes.to_string(), expected);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_numbers_or_max() {
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("1_000".parse(), Ok(Rate::PerSecond(1000)));
        assert!("0".parse::<Rate>().is_err() && "fast".parse::<Rate>().is_err());
    }

    #[test]
    fn batches_that_cannot_be_are_refused() {
        let latency = Latency {
            common: Common {
                data_dir: PathBuf::from("x"),
                cores: 0,
                memory_bytes: 1 << 30,
                json: None,
            },
            seconds: 1,
            rate: 1,
            record_bytes: 1024,
            shards: 1,
        };
        let good = latency.as_workload();
        assert!(good.check().is_ok());
        for bad in [
            Workload { seconds: 0, ..good.clone() },
            Workload { record_bytes: 15, ..good.clone() },
            Workload { batch_records: Some(2000), ..good.clone() },
            Workload { shards: 0, ..good.clone() },
            Workload { window_bytes: 10, ..good.clone() },
        ] {
            assert!(bad.check().is_err());
        }
        assert_eq!(Workload { batch_records: None, ..good.clone() }.batch_records(), 500);
        assert_eq!(
            Workload { batch_records: None, record_bytes: 100, ..good.clone() }.batch_records(),
            1000
        );
        let large = Workload { batch_records: None, record_bytes: 100_000, ..good };
        assert_eq!(large.batch_records(), 5);
    }

    #[test]
    fn a_soak_has_windows_to_compare() {
        let soak = Soak {
            common: Common {
                data_dir: PathBuf::from("x"),
                cores: 0,
                memory_bytes: 1 << 30,
                json: None,
            },
            seconds: 300,
            rate: 1000,
            retention_s: 20,
            no_churn: false,
            window_s: 60,
            warm_up_s: None,
            segment_bytes: 64 << 20,
            record_bytes: 1024,
            batch_records: None,
            shards: 64,
            followed: 8,
        };
        assert_eq!((soak.warm_up_s(), soak.counted_windows()), (60, 4));
        assert!(soak.check().is_ok());
        assert!(Soak { seconds: 239, ..soak.clone() }.check().is_err(), "two windows");
        assert!(Soak { seconds: 7200, ..soak.clone() }.check().is_ok(), "longer than others may");
        assert!(Soak { followed: 65, ..soak.clone() }.check().is_err());
        let brief = Soak { window_s: 5, warm_up_s: Some(12), seconds: 30, ..soak };
        assert_eq!(brief.counted_windows(), 4);
    }
}
