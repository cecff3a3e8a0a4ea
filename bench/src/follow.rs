//! Who follows the tail of a node for as long as it is driven, and who lets go of what is old.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thalweg_client::{Admin, ClientError, Event, Subscriber, SubscriberConfig};
use thalweg_wire::control::TrimShard;
use thalweg_wire::error::ErrorCode;
use thalweg_wire::fetch::FetchFrom;

use crate::drive::ShardLog;
use crate::embedded::Target;
use crate::error::BenchError;

/// How long what was acked may take to come.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Longest sleep of a thread: how late it sees that all is over.
const NAP: Duration = Duration::from_millis(100);
/// How often records are let go of.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// One shard of so many is left to age.
pub const KEPT_SHARE: u32 = 8;
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// What came of following some shards.
pub struct Followed {
    /// Each shard's index with what came of it.
    logs: Vec<(u32, ShardLog)>,
    /// Why following ended early.
    ended: Option<String>,
}

impl Followed {
    /// What is not as it was acked, shard by shard.
    #[must_use]
    pub fn deviations(&self, acked: &[ShardLog]) -> Vec<String> {
        let mut deviations: Vec<String> = self.ended.clone().into_iter().collect();
        for (index, came) in &self.logs {
            let acked = &acked[*index as usize];
            if came != acked {
                deviations.push(format!(
                    "shard {index}: {} records were acked and {} came, or others",
                    acked.end, came.end
                ));
            }
        }
        deviations
    }
}

/// Subscribes to `count` of the shards, spread over all, from their first record on.
///
/// # Errors
/// [`BenchError::Client`].
pub fn subscribe(target: &Target, shards: u32, count: u32) -> Result<Subscriber, BenchError> {
    let spread = |number| (u64::from(number) * u64::from(shards) / u64::from(count)) as u32;
    let config = SubscriberConfig {
        shards: (0..count).map(spread).collect(),
        from: FetchFrom::Earliest,
        ..SubscriberConfig::new(target.addresses[0], target.stream)
    };
    Ok(Subscriber::connect(config)?)
}

/// Takes what is pushed until everything has come that `ends` says was acked, or nothing comes
/// any more.
///
/// # Errors
/// [`BenchError::Client`] when the node is lost. Damage, gaps and refusals are deviations.
pub fn follow(
    mut subscriber: Subscriber,
    ends: &OnceLock<Vec<ShardLog>>,
) -> Result<Followed, BenchError> {
    let shards = subscriber.shards().iter().map(|shard| (shard.id.index, ShardLog::default()));
    let mut followed = Followed { logs: shards.collect(), ended: None };
    let mut last = Instant::now();
    loop {
        if let Some(acked) = ends.get() {
            let behind = |(index, came): &(u32, ShardLog)| came.end < acked[*index as usize].end;
            if !followed.logs.iter().any(behind) || last.elapsed() > ARRIVAL {
                return Ok(followed);
            }
        }
        let Followed { logs, ended } = &mut followed;
        let polled = subscriber.poll(NAP, |place, event| match event {
            Event::Batch(batch) => {
                last = Instant::now();
                let (_, log) = &mut logs[place];
                log.chain.absorb(batch.header.first_offset.0, batch.header.records, batch.body());
                log.end = batch.header.end_offset().0;
            }
            Event::Silence => {}
            Event::Sealed => *ended = Some(format!("shard {} was sealed", logs[place].0)),
            Event::Refused(refusal) => {
                *ended = Some(format!("shard {} is not pushed any more: {refusal}", logs[place].0));
            }
        });
        match polled {
            Ok(_) => {}
            Err(error @ (ClientError::Damaged { .. } | ClientError::Gap { .. })) => {
                followed.ended = Some(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
        if followed.ended.is_some() {
            return Ok(followed);
        }
    }
}

/// Lets go, every second, of what is older than `after` in all shards but one of
/// [`KEPT_SHARE`], until it is over: what is left of each segment then is so little that it is
/// copied forward before it ages.
///
/// # Errors
/// [`BenchError::Client`] when the node is lost or refuses.
pub fn trim_steadily(
    target: &Target,
    after: Duration,
    done: &AtomicBool,
) -> Result<(), BenchError> {
    let mut ends: VecDeque<(Instant, Vec<TrimShard>)> = VecDeque::new();
    let mut next = Instant::now();
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(NAP.min(next.saturating_duration_since(Instant::now())));
        if Instant::now() < next {
            continue;
        }
        next += TRIM_EVERY;
        let mut now = Vec::new();
        let mut due = Vec::new();
        while ends.front().is_some_and(|(at, _)| at.elapsed() >= after) {
            // What was committed later includes what was before.
            due = ends.pop_front().map(|(_, trims)| trims).unwrap_or_default();
        }
        for (core, address) in target.addresses.iter().enumerate() {
            let mut admin = Admin::connect(*address, ADMIN_TIMEOUT)?;
            let shards = admin.describe(target.stream)?;
            let trimmed = shards.iter().filter(|shard| !is_kept(shard.extent.shard.index));
            now.extend(
                trimmed.map(|shard| TrimShard {
                    shard: shard.extent.shard,
                    first_kept: shard.committed,
                }),
            );
            let cores = target.addresses.len();
            let of_core: Vec<TrimShard> = due
                .iter()
                .filter(|trim| trim.shard.index as usize % cores == core)
                .copied()
                .collect();
            match admin.trim_shards(&of_core) {
                // For want of memory or a segment, for a moment; the next trims more.
                Err(ClientError::Refused(refusal)) if refusal.code == ErrorCode::Overloaded => {}
                outcome => outcome?,
            }
        }
        ends.push_back((Instant::now(), now));
    }
    Ok(())
}

/// Whether a shard's records are left to age. Not by every so-manieth index: neighbours are on
/// different cores, and each core should have some of both.
fn is_kept(index: u32) -> bool {
    (index / KEPT_SHARE).is_multiple_of(KEPT_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use thalweg_wire::checksum::Chain;

    #[test]
    fn what_did_not_come_is_told() {
        let log = |end, chain| ShardLog { end, chain: Chain(chain) };
        let acked = [log(5, 1), log(6, 2), log(7, 3)];
        let all = Followed { logs: vec![(0, acked[0]), (2, acked[2])], ended: None };
        assert!(all.deviations(&acked).is_empty());
        let some = Followed { logs: vec![(1, log(4, 9))], ended: Some("it ended".into()) };
        let told = some.deviations(&acked);
        assert_eq!(told[0], "it ended");
        assert_eq!(told[1], "shard 1: 6 records were acked and 4 came, or others");
    }

    #[test]
    fn each_core_has_shards_of_both_kinds() {
        for cores in 1..=8 {
            for core in 0..cores {
                let of_core = (0..64).filter(|index| index % cores == core);
                let (kept, trimmed): (Vec<u32>, _) = of_core.partition(|index| is_kept(*index));
                // A segment is copied forward when less than a quarter of it is kept.
                assert!(!kept.is_empty() && kept.len() * 3 < trimmed.len(), "{cores} cores");
            }
        }
    }
}
