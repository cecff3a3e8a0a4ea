//! Which server a workload drives, how, and what it does there.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::connection::{ClientPlan, Endpoint, HttpVersion};
use super::control::random_name;
use super::credentials::{Credentials, region};
use super::encode::Encoding;
use super::ledger::{KEY_BYTES_MAX, STAMP_BYTES};
use crate::error::BenchError;
use crate::settings::{Catchup, Common, Latency, Rate, Workload, in_range};

/// Records of a PutRecords request (API reference, PutRecords).
pub const REQUEST_RECORDS_MAX: u32 = 500;
/// Data and partition keys of a PutRecords request (API reference, PutRecords).
const REQUEST_BYTES_MAX: u64 = 10 << 20;
/// Largest data of a record (service model, `Data`).
const RECORD_BYTES_MAX: u64 = 10 << 20;
const CONNECTIONS_MAX: u64 = 1024;
const IN_FLIGHT_MAX: u64 = 128;
/// Partition keys are made for each lane and shard, in about a microsecond each.
const LANE_SHARDS_MAX: u64 = 4_000_000;
/// Records of which a run remembers where they are, eight bytes each, and a byte while they are
/// read.
pub const RECORDS_MAX: u64 = 256 << 20;

/// How the API is spoken.
#[derive(Clone, Debug, Args)]
pub struct Access {
    /// Name of the stream, which must not exist; it is deleted after the run [default:
    /// thalweg-bench-RANDOM]
    #[arg(long, value_name = "NAME", requires = "target")]
    pub stream: Option<String>,
    /// Encoding of the calls that carry records: json is what most SDKs send, cbor what those for
    /// Java send
    #[arg(long, value_enum, value_name = "NAME", default_value = "json", requires = "target")]
    pub encoding: Encoding,
    /// HTTP/2 instead of HTTP/1.1; without TLS with prior knowledge (h2c)
    #[arg(long, requires = "target")]
    pub http2: bool,
    /// File with the access key, as `thalweg dev` makes it [default: AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN of the environment]
    #[arg(long, value_name = "FILE", requires = "target")]
    pub credentials: Option<PathBuf>,
    /// Region that requests are signed for [default: AWS_REGION or AWS_DEFAULT_REGION of the
    /// environment, else us-east-1]
    #[arg(long, value_name = "NAME", requires = "target")]
    pub region: Option<String>,
}

/// Whether a workload goes through the API.
#[derive(Clone, Debug, Args)]
pub struct Through {
    /// Server of the Kinesis API to drive, instead of a node of the run's own by the native
    /// protocol: http://HOST:PORT or https://HOST
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = ["data_dir", "cores", "memory_bytes"]
    )]
    pub target: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: Access,
}

/// Settings of `million`.
#[derive(Clone, Debug, Args)]
pub struct MillionArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub workload: Workload,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub through: Through,
    /// Requests under way on each connection, 1 to 128; more than one needs --http2
    #[arg(long, default_value_t = 1, value_name = "N", requires = "target")]
    pub in_flight: usize,
    /// Shards that each request has records for, 1 to all [default: as many as it has records,
    /// which is what keys at random come to]
    #[arg(long, value_name = "N", requires = "target")]
    pub shards_per_request: Option<u32>,
}

/// Settings of `latency`.
#[derive(Clone, Debug, Args)]
pub struct LatencyArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub latency: Latency,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub through: Through,
    /// Connections that the records take in turns, 1 to 1024
    #[arg(long, default_value_t = 8, value_name = "N", requires = "target")]
    pub connections: usize,
    /// Subscribes to every shard as well (SubscribeToShard, over HTTP/2), and tells how long after
    /// its intended send each record was delivered
    #[arg(long, requires = "target")]
    pub subscribe: bool,
}

/// Settings of `catchup`.
#[derive(Clone, Debug, Args)]
pub struct CatchupArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub catchup: Catchup,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub through: Through,
    /// Records to write and read back, instead of --gib
    #[arg(long, value_name = "N", requires = "target", conflicts_with = "gib")]
    pub records: Option<u64>,
    /// Connections that write, and then read, 1 to 1024; each reads one shard at a time
    #[arg(long, default_value_t = 8, value_name = "N", requires = "target")]
    pub connections: usize,
}

/// Settings of `burst`.
#[derive(Clone, Debug, Args)]
pub struct BurstArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub through: Through,
}

/// Settings of `streams`.
#[derive(Clone, Debug, Args)]
pub struct StreamsArgs {
    /// Server of the Kinesis API: http://HOST:PORT or https://HOST
    #[arg(long, value_name = "URL")]
    pub target: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub access: Access,
    /// Streams to create, 1 to 100000; --stream names what their names begin with
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub streams: u32,
    /// Shards of all of them together, as many as streams at least, 1000000 at most
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub shards: u32,
    /// Seconds that count, 1 to 3600; a second of warm-up comes before
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub seconds: u64,
    /// Records a second, each to a random stream and shard
    #[arg(long, default_value_t = 500, value_name = "N")]
    pub rate: u64,
    /// Bytes of each record's data, 16 to 1048000
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub record_bytes: usize,
    /// Connections, 1 to 1024: streams that are created, or deleted, at a time, and what the
    /// records take in turns
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub connections: usize,
    /// Writes the report as one JSON object to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A server and how it is spoken to, checked.
#[derive(Clone)]
pub struct Target {
    /// As it was named.
    pub url: String,
    /// For the calls that carry records.
    pub plan: ClientPlan,
    /// The stream, or what the names of several begin with.
    pub stream: String,
}

impl Target {
    /// Looks at everything that can be wrong before the server is asked.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn new(url: &str, access: &Access) -> Result<Target, BenchError> {
        let endpoint = Endpoint::parse(url)?;
        let plan = ClientPlan {
            endpoint,
            version: if access.http2 { HttpVersion::Two } else { HttpVersion::One },
            encoding: access.encoding,
            credentials: Credentials::find(access.credentials.as_deref())?,
            region: region(access.region.as_deref()),
        };
        let stream = access.stream.clone().unwrap_or_else(random_name);
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        // The service model's StreamName.
        if !matches!(stream.len(), 1..=128) || !stream.bytes().all(is_part) {
            let expected = "1 to 128 letters, digits, and _ . -".into();
            return Err(BenchError::Setting { flag: "stream", found: stream, expected });
        }
        Ok(Target { url: url.to_owned(), plan, stream })
    }

    /// The version of HTTP as reports have it.
    #[must_use]
    pub fn http_name(&self) -> &'static str {
        match self.plan.version {
            HttpVersion::One => "1.1",
            HttpVersion::Two => "2",
        }
    }

    /// What a report's settings say of it.
    #[must_use]
    pub fn settings(&self) -> Value {
        json!({
            "target": self.url,
            "stream": self.stream,
            "encoding": self.plan.encoding,
            "http": self.plan.version,
            "region": self.plan.region,
        })
    }

    /// The same, with settings of a workload beside it.
    #[must_use]
    pub fn settings_with(&self, of_workload: Value) -> Value {
        let mut settings = self.settings();
        if let (Value::Object(all), Value::Object(more)) = (&mut settings, of_workload) {
            all.extend(more);
        }
        settings
    }
}

/// A workload of puts through the API, checked.
#[derive(Clone, Debug)]
pub struct PutSettings {
    /// Seconds that count.
    pub seconds: u64,
    /// Records a second.
    pub rate: Rate,
    /// Bytes of each record's data.
    pub record_bytes: usize,
    /// Records of each request; a request of one is PutRecord.
    pub request_records: u32,
    /// Shards that each request has records for.
    pub request_shards: u32,
    /// Shards of the stream.
    pub shards: u32,
    /// Connections.
    pub connections: usize,
    /// Requests under way on each.
    pub in_flight: usize,
}

/// Connections of `million`, unless it is told otherwise: enough that a server is never without a
/// request while the generator makes another.
const CONNECTIONS: usize = 8;

impl PutSettings {
    /// Those of `million`.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn of_million(args: &MillionArgs, http2: bool) -> Result<PutSettings, BenchError> {
        let workload = &args.workload;
        let request_records = request_records(workload);
        let most = request_records.min(workload.shards);
        let settings = PutSettings {
            seconds: workload.seconds,
            rate: workload.rate,
            record_bytes: workload.record_bytes,
            request_records,
            request_shards: args.shards_per_request.unwrap_or(most),
            shards: workload.shards,
            connections: workload.connections.unwrap_or(CONNECTIONS),
            in_flight: args.in_flight,
        };
        let settings = settings.check(http2)?;
        let shards = u64::from(settings.request_shards);
        in_range("shards-per-request", shards, 1..=u64::from(most))?;
        Ok(settings)
    }

    /// Those of `latency`: PutRecord.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn of_latency(args: &LatencyArgs, http2: bool) -> Result<PutSettings, BenchError> {
        let latency = &args.latency;
        in_range("rate", latency.rate, 1..=1_000_000)?;
        let settings = PutSettings {
            seconds: latency.seconds,
            rate: Rate::PerSecond(latency.rate),
            record_bytes: latency.record_bytes,
            request_records: 1,
            request_shards: 1,
            shards: latency.shards,
            connections: args.connections,
            in_flight: 1,
        };
        settings.check(http2)
    }

    /// Those of the writing half of `catchup`, which ends with its records.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn of_catchup(args: &CatchupArgs, http2: bool) -> Result<PutSettings, BenchError> {
        let workload = args.catchup.as_workload();
        let request_records = request_records(&workload);
        let settings = PutSettings {
            seconds: workload.seconds,
            rate: Rate::Max,
            record_bytes: workload.record_bytes,
            request_records,
            // Requests for one shard each are stored as they come, which fills a stream fastest.
            request_shards: 1,
            shards: workload.shards,
            connections: args.connections,
            in_flight: 1,
        };
        settings.check(http2)
    }

    /// Those of `streams`: PutRecord.
    ///
    /// # Errors
    /// [`BenchError::Setting`].
    pub fn of_streams(args: &StreamsArgs) -> Result<PutSettings, BenchError> {
        in_range("streams", u64::from(args.streams), 1..=100_000)?;
        in_range("shards", u64::from(args.shards), u64::from(args.streams)..=1_000_000)?;
        in_range("rate", args.rate, 1..=1_000_000)?;
        in_range("record-bytes", args.record_bytes as u64, STAMP_BYTES as u64..=1_048_000)?;
        let settings = PutSettings {
            seconds: args.seconds,
            rate: Rate::PerSecond(args.rate),
            record_bytes: args.record_bytes,
            request_records: 1,
            request_shards: 1,
            shards: 1,
            connections: args.connections,
            in_flight: 1,
        };
        settings.check(args.access.http2)
    }

    fn check(self, http2: bool) -> Result<PutSettings, BenchError> {
        in_range("seconds", self.seconds, 1..=3600)?;
        in_range("shards", u64::from(self.shards), 1..=100_000)?;
        let largest = RECORD_BYTES_MAX - KEY_BYTES_MAX as u64;
        in_range("record-bytes", self.record_bytes as u64, STAMP_BYTES as u64..=largest)?;
        in_range("connections", self.connections as u64, 1..=CONNECTIONS_MAX)?;
        in_range("in-flight", self.in_flight as u64, 1..=IN_FLIGHT_MAX)?;
        if self.in_flight > 1 && !http2 {
            let expected = "1 without --http2".into();
            let found = self.in_flight.to_string();
            return Err(BenchError::Setting { flag: "in-flight", found, expected });
        }
        // Every lane has keys of its own for each shard.
        if self.lanes() as u64 * u64::from(self.shards) > LANE_SHARDS_MAX {
            let expected = format!(
                "so few that requests under way ({}) times shards are {LANE_SHARDS_MAX} at most",
                self.lanes()
            );
            let found = self.shards.to_string();
            return Err(BenchError::Setting { flag: "shards", found, expected });
        }
        let records = u64::from(self.request_records);
        in_range("batch-records", records, 1..=u64::from(REQUEST_RECORDS_MAX))?;
        if records * (self.record_bytes + KEY_BYTES_MAX) as u64 > REQUEST_BYTES_MAX {
            let expected = "so few that a request stays within 10 MiB".into();
            let found = records.to_string();
            return Err(BenchError::Setting { flag: "batch-records", found, expected });
        }
        Ok(self)
    }

    /// Lanes: requests under way at a time.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.connections * self.in_flight
    }

    /// As a report has them.
    #[must_use]
    pub fn report(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "rate": self.rate,
            "record_bytes": self.record_bytes,
            "batch_records": self.request_records,
            "shards_per_request": self.request_shards,
            "shards": self.shards,
            "connections": self.connections,
            "in_flight": self.in_flight,
        })
    }
}

/// Records of a request: what was asked for, or as many as a request takes, of up to 1 MiB.
fn request_records(workload: &Workload) -> u32 {
    let fitting = (1 << 20) / (workload.record_bytes + KEY_BYTES_MAX).max(1);
    let most = (fitting as u32).clamp(1, REQUEST_RECORDS_MAX);
    workload.batch_records.unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use clap::{Parser, Subcommand};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Subcommand)]
    enum Command {
        Million(MillionArgs),
        Latency(LatencyArgs),
        Catchup(CatchupArgs),
        Burst(BurstArgs),
        Streams(StreamsArgs),
    }

    fn parse(line: &str) -> Result<Command, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    fn million(line: &str) -> Result<PutSettings, String> {
        let Command::Million(args) = parse(line)? else { panic!("{line} is another") };
        let http2 = args.through.access.http2;
        PutSettings::of_million(&args, http2).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_api_with_a_target() {
        let settings = million("million --target http://a").unwrap();
        assert_eq!((settings.shards, settings.request_records), (8, 500));
        assert_eq!((settings.request_shards, settings.lanes()), (8, 8));
        let Ok(Command::Million(native)) = parse("million") else { panic!("no defaults") };
        assert_eq!(native.workload.shards, 1024);
        let Ok(Command::Catchup(args)) = parse("catchup --target http://a") else { panic!("no") };
        assert_eq!((args.catchup.shards, args.catchup.gib), (8, 1));
        let Ok(Command::Catchup(args)) = parse("catchup") else { panic!("no") };
        assert_eq!((args.catchup.shards, args.catchup.gib), (64, 10));
        let large = million("million --target http://a --record-bytes 100000").unwrap();
        assert_eq!(large.request_records, 10);
        assert!(matches!(parse("burst --target http://a"), Ok(Command::Burst(_))));
        assert!(matches!(parse("latency --target http://a --subscribe"), Ok(Command::Latency(_))));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        for line in [
            "million --encoding cbor",
            "million --http2",
            "million --in-flight 2",
            "million --target http://a --node 127.0.0.1:1",
            "million --target http://a --data-dir d",
            "million --target http://a --window-bytes 5",
            "million --target http://a --input f",
            "million --target http://a --encoding xml",
            "latency --subscribe",
            "catchup --records 5",
            "catchup --target http://a --records 5 --gib 1",
            "burst --target http://a --cores 2",
            "streams",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn settings_out_of_their_range_are_refused_by_name() {
        for (line, flag) in [
            ("--batch-records 501", "--batch-records"),
            ("--batch-records 0", "--batch-records"),
            ("--batch-records 500 --record-bytes 30000", "--batch-records"),
            ("--record-bytes 15", "--record-bytes"),
            ("--record-bytes 10485760", "--record-bytes"),
            ("--in-flight 2", "--http2"),
            ("--in-flight 129 --http2", "--in-flight"),
            ("--connections 0", "--connections"),
            ("--shards 0", "--shards"),
            ("--shards 4 --shards-per-request 5", "--shards-per-request"),
            ("--seconds 0", "--seconds"),
            ("--shards 100000 --connections 41", "--shards"),
        ] {
            let error = million(&format!("million --target http://a {line}")).unwrap_err();
            assert!(error.contains(flag), "{line}: {error}");
        }
        let Ok(Command::Streams(args)) = parse("streams --target http://a --shards 9999") else {
            panic!("streams is not taken");
        };
        assert!(PutSettings::of_streams(&args).is_err(), "a stream has a shard at least");
        let enough = StreamsArgs { shards: 10_000, ..args };
        assert!(PutSettings::of_streams(&enough).is_ok());
    }
}
