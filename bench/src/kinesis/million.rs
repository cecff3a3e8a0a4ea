//! The workload `million` through the API: PutRecords as fast as it goes, or at a rate; everything
//! acknowledged is read back by GetRecords.

use super::ledger::{Keys, RecordSource};
use super::put::PutPlan;
use super::run::{Run, StreamOfRun, put_watched};
use super::settings::{MillionArgs, PutSettings, Target};
use crate::error::BenchError;

/// Runs the workload; answers whether it passed.
///
/// # Errors
/// [`BenchError`] when it could not be run.
pub fn run(args: &MillionArgs, url: &str) -> Result<bool, BenchError> {
    let access = &args.through.access;
    let target = Target::new(url, access)?;
    let settings = PutSettings::of_million(args, access.http2)?;
    let source = RecordSource::new(settings.record_bytes);
    let keys = Keys::of_shards(
        settings.lanes() as u32,
        settings.shards,
        u64::from(settings.request_records),
        u64::from(settings.request_shards),
    );
    let stream = StreamOfRun::create(&target, settings.shards, settings.record_bytes)?;
    eprintln!(
        "{} connections, {} requests under way, {} records of {} bytes in each",
        settings.connections,
        settings.lanes(),
        settings.request_records,
        settings.record_bytes
    );
    let put = put_watched(
        &PutPlan {
            settings: &settings,
            client: &target.plan,
            streams: std::slice::from_ref(&stream.name),
            keys: &keys,
            source: &source,
        },
        None,
    )?;
    let mut run = Run::new("million", &target, settings.report(), settings.shards);
    run.api.created_ms = Some(stream.created_ms);
    run.take_put(&put);
    let shards = stream.shards_to_read();
    let written = (put.books.as_slice(), &keys, &source);
    run.read_back(&target.plan, &shards, settings.connections, written)?;
    drop(stream);
    run.finish(args.workload.common.json.as_deref())
}
