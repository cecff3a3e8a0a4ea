//! The workload `catchup` through the API: fills a stream, then reads all of it by GetRecords, from
//! the first record to the tip, every shard, as fast as it goes.

use serde_json::json;

use super::ledger::{Book, Keys, RecordSource};
use super::put::PutPlan;
use super::run::{Run, StreamOfRun, put_watched};
use super::settings::{CatchupArgs, PutSettings, RECORDS_MAX, Target};
use crate::error::BenchError;
use crate::settings::in_range;

/// Runs the workload; answers whether everything that was acknowledged is there.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(args: &CatchupArgs, url: &str) -> Result<bool, BenchError> {
    let access = &args.through.access;
    let target = Target::new(url, access)?;
    let settings = PutSettings::of_catchup(args, access.http2)?;
    let records = records_of(args)?;
    let source = RecordSource::new(settings.record_bytes);
    let keys = Keys::of_shards(
        settings.lanes() as u32,
        settings.shards,
        u64::from(settings.request_records),
        u64::from(settings.request_shards),
    );
    let stream = StreamOfRun::create(&target, settings.shards, settings.record_bytes)?;
    let put = put_watched(
        &PutPlan {
            settings: &settings,
            client: &target.plan,
            streams: std::slice::from_ref(&stream.name),
            keys: &keys,
            source: &source,
        },
        Some(records),
    )?;
    let mut of_workload = settings.report();
    of_workload["records"] = json!(records);
    // It ends with its records.
    of_workload["seconds"] = json!(null);
    let mut run = Run::new("catchup", &target, of_workload, settings.shards);
    run.api.created_ms = Some(stream.created_ms);
    if put.records > 0 {
        run.take_put(&put);
    } else {
        // All of it went through in the warm-up: that rate would be none.
        run.take_counts(&put);
    }
    let acknowledged: u64 = put.books.iter().map(Book::acknowledged).sum();
    if acknowledged < records {
        let what = format!("{acknowledged} of {records} records were acknowledged in time");
        run.report.failures.push(what);
    }
    let shards = stream.shards_to_read();
    let written = (put.books.as_slice(), &keys, &source);
    run.read_back(&target.plan, &shards, settings.connections, written)?;
    drop(stream);
    run.finish(args.catchup.common.json.as_deref())
}

/// Records that are asked for, or whose data are as much as is.
fn records_of(args: &CatchupArgs) -> Result<u64, BenchError> {
    let record_bytes = args.catchup.record_bytes as u64;
    let records = match args.records {
        Some(records) => records,
        None => {
            in_range("gib", args.catchup.gib, 1..=65_536)?;
            (args.catchup.gib << 30).div_ceil(record_bytes)
        }
    };
    // What is under way when it is enough comes on top.
    let flag = if args.records.is_some() { "records" } else { "gib" };
    let most = RECORDS_MAX / 2;
    let (in_unit, most) = match args.records {
        Some(records) => (records, most),
        None => (args.catchup.gib, (most * record_bytes) >> 30),
    };
    in_range(flag, in_unit, 1..=most.max(1))?;
    Ok(records)
}
