//! Reading everything back: gapless, once, with the bytes that were acked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use thalweg_client::{ClientError, Reader, ReaderConfig};
use thalweg_wire::checksum::Chain;
use thalweg_wire::ids::Offset;

use crate::drive::ShardLog;
use crate::embedded::Target;
use crate::error::BenchError;

/// What reading came to.
#[derive(Clone, PartialEq, Debug)]
pub struct ReadBack {
    /// Bytes of batches.
    pub bytes: u64,
    /// Records.
    pub records: u64,
    /// How long it took.
    pub span: Duration,
    /// The first thing that was not as acked.
    pub deviation: Option<String>,
}

impl ReadBack {
    /// Bytes a second.
    #[must_use]
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.span.as_secs_f64().max(1e-9)
    }
}

/// Reads all shards from their beginning and holds them against what was acked.
///
/// # Errors
/// [`BenchError::Client`] when the node is lost. Damage and gaps are deviations, not errors.
pub fn read_back(target: &Target, acked: &[ShardLog]) -> Result<ReadBack, BenchError> {
    let mut found = vec![ShardLog::default(); acked.len()];
    let started = Instant::now();
    let mut reader = connect(target)?;
    let (mut bytes, mut records) = (0, 0);
    let outcome = reader.read_all(|shard, batch| {
        bytes += batch.header.batch_bytes() as u64;
        records += u64::from(batch.header.records);
        let log = &mut found[shard];
        let first = batch.header.first_offset.0;
        log.chain.absorb(first, batch.header.records, batch.body());
        log.end = batch.header.end_offset().0;
    });
    let span = started.elapsed();
    let deviation = match outcome {
        Ok(()) => compare(&found, acked),
        Err(error @ (ClientError::Damaged { .. } | ClientError::Gap { .. })) => {
            Some(error.to_string())
        }
        Err(ClientError::Refused(refusal)) => Some(refusal.to_string()),
        Err(error) => return Err(error.into()),
    };
    Ok(ReadBack { bytes, records, span, deviation })
}

fn compare(found: &[ShardLog], acked: &[ShardLog]) -> Option<String> {
    let differs = |(found, acked): (&ShardLog, &ShardLog)| found != acked;
    let shard = found.iter().zip(acked).position(differs)?;
    let (found, acked) = (found[shard], acked[shard]);
    Some(if found.end == acked.end {
        format!("shard {shard}: its {} records are not those that were acked", acked.end)
    } else {
        format!("shard {shard}: {} records were acked and {} are there", acked.end, found.end)
    })
}

/// Reads the batches acked last, over and over for about `span`: from memory, if the node still
/// has them there.
///
/// # Errors
/// [`BenchError::Client`].
pub fn read_tail(
    target: &Target,
    tail: &[(u32, u64)],
    span: Duration,
) -> Result<ReadBack, BenchError> {
    let mut reader = connect(target)?;
    // The oldest of each shard; later ones follow it.
    let firsts: HashMap<u32, u64> = tail.iter().rev().copied().collect();
    let (mut bytes, mut records) = (0, 0);
    let started = Instant::now();
    while started.elapsed() < span {
        reader.seek(|shard| {
            let first = firsts.get(&shard.id.index);
            first.map_or(shard.until, |first| Offset(*first))
        });
        let mut chain = Chain::default();
        reader.read_all(|_, batch| {
            bytes += batch.header.batch_bytes() as u64;
            records += u64::from(batch.header.records);
            chain.absorb(batch.header.first_offset.0, batch.header.records, batch.body());
        })?;
        if records == 0 {
            break;
        }
    }
    Ok(ReadBack { bytes, records, span: started.elapsed(), deviation: None })
}

fn connect(target: &Target) -> Result<Reader, BenchError> {
    Ok(Reader::connect(ReaderConfig::new(target.addresses[0], target.stream))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_record_and_a_changed_one_are_told_apart() {
        let log = |end, chain| ShardLog { end, chain: Chain(chain) };
        assert_eq!(compare(&[log(3, 1), log(4, 2)], &[log(3, 1), log(4, 2)]), None);
        let missing = compare(&[log(3, 1), log(3, 2)], &[log(3, 1), log(4, 2)]).unwrap();
        assert_eq!(missing, "shard 1: 4 records were acked and 3 are there");
        let changed = compare(&[log(3, 9)], &[log(3, 1)]).unwrap();
        assert_eq!(changed, "shard 0: its 3 records are not those that were acked");
    }
}
