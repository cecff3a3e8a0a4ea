//! What happens in a history: which faults, how often, among how many.

use thalweg_node::io::sim::SimRandom;

/// The parameters of a history. `0` for "once in so many" means never.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct History {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Cores of the node, at most: each start has another number.
    pub cores_max: u64,
    /// Its disks.
    pub disks: u64,
    /// Shards.
    pub shards: u32,
    /// Producers.
    pub producers: u64,
    /// Batches that each producer sends.
    pub batches: u64,
    /// Readers, half of them subscribers.
    pub readers: u64,
    /// The power fails at this operation.
    pub crash_at: Option<u64>,
    /// The power fails once in so many turns.
    pub crash_every: u64,
    /// A recovery is cut off by another power failure, once in so many.
    pub cut_recoveries: u64,
    /// A write, sync or read fails or is cut short once in so many.
    pub disk_errors: u64,
    /// A connection breaks once in so many receives or sends.
    pub broken_connections: u64,
    /// A shard is trimmed once in so many turns.
    pub trims: u64,
    /// Shard 0 is written little and hardly ever trimmed: its records stay behind in segments of
    /// which nothing else is kept.
    pub keeper: bool,
    /// A shard's extent is fenced, sealed and followed by another once in so many turns.
    pub fences: u64,
    /// A guest comes once in so many turns: a shard that is deleted after a while.
    pub guests: u64,
    /// Retention classes in use.
    pub classes: u8,
    /// Segments that fit on the disks, for a while.
    pub segments_max: Option<u64>,
    /// A bit of what rests flips once in so many turns.
    pub bit_flips: u64,
    /// A write lands at another place once in so many.
    pub misdirected_writes: u64,
}

impl History {
    /// Nothing goes wrong: one core, one disk.
    #[must_use]
    pub fn calm(seed: u64) -> History {
        History {
            seed,
            cores_max: 1,
            disks: 1,
            shards: 3,
            producers: 2,
            batches: 120,
            readers: 2,
            crash_at: None,
            crash_every: 0,
            cut_recoveries: 0,
            disk_errors: 0,
            broken_connections: 0,
            trims: 0,
            keeper: false,
            fences: 0,
            guests: 0,
            classes: 1,
            segments_max: None,
            bit_flips: 0,
            misdirected_writes: 0,
        }
    }

    /// Nothing goes wrong, and not for long.
    #[must_use]
    pub fn short(seed: u64) -> History {
        History { batches: 20, ..History::calm(seed) }
    }

    /// Any of the faults, each in some histories and not in others: what always happens hides what
    /// happens only without it ("swarm testing": Groce et al., ISSTA 2012).
    #[must_use]
    pub fn of_seed(seed: u64) -> History {
        let mut random = SimRandom::new(seed ^ 0x51_4d55_4c41_544f);
        let mut fault = |one_in: u64, range: (u64, u64)| {
            let happens = random.once_in(one_in);
            let rate = range.0 + random.below(range.1 - range.0);
            if happens { rate } else { 0 }
        };
        let crash_every = fault(2, (100, 1500));
        let cut_recoveries = fault(3, (2, 6));
        let disk_errors = fault(4, (100, 1500));
        let broken_connections = fault(3, (60, 600));
        let trims = fault(2, (3, 30));
        let fences = fault(3, (20, 200));
        let bit_flips = fault(6, (20, 400));
        let misdirected_writes = fault(12, (100, 2000));
        let segments_max = fault(4, (6, 16));
        // A shard's class changes from one extent to the next.
        let guests = fault(2, (10, 100));
        let classes = if random.once_in(3) { 2 + random.below(2) as u8 } else { 1 };
        History {
            cores_max: 1 + random.below(3),
            disks: 1 + random.below(2),
            shards: 1 + random.below(6) as u32,
            producers: 1 + random.below(3),
            batches: 30 + random.below(400),
            readers: random.below(4),
            crash_every,
            cut_recoveries,
            disk_errors,
            broken_connections,
            trims,
            keeper: random.once_in(2),
            fences: if classes > 1 { fences.max(20) } else { fences },
            guests,
            classes,
            // Without trims a full disk stays full.
            segments_max: (segments_max > 0 && trims > 0).then_some(segments_max),
            bit_flips,
            misdirected_writes,
            ..History::calm(seed)
        }
    }

    /// Whether what was acked may be gone, as long as nothing else is served in its place: a write
    /// that landed elsewhere cannot be told from one that was never made.
    #[must_use]
    pub fn may_lose(&self) -> bool {
        self.misdirected_writes > 0
    }

    /// Whether stored bytes may be damaged: then they are refused, and the node may be.
    #[must_use]
    pub fn may_damage(&self) -> bool {
        self.bit_flips > 0 || self.misdirected_writes > 0
    }
}

/// What came of a history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Batches sent.
    pub sent: u64,
    /// Batches acked.
    pub acked: u64,
    /// Batches recognised as stored before.
    pub duplicates: u64,
    /// Batches whose producer was told that nobody knows what became of them.
    pub unknown: u64,
    /// Batches that readers and subscribers saw.
    pub read: u64,
    /// Restarts after a crash.
    pub crashes: u64,
    /// Recoveries cut off.
    pub cut_recoveries: u64,
    /// Restarts after a failed log.
    pub failed_logs: u64,
    /// Fences answered.
    pub fences: u64,
    /// Trims answered.
    pub trims: u64,
    /// Shards deleted.
    pub deleted: u64,
    /// Segments released.
    pub released: u64,
    /// Bytes copied forward.
    pub bytes_copied: u64,
    /// Extents whose records were archived.
    pub archived: u64,
    /// Bytes scrubbed.
    pub bytes_scrubbed: u64,
    /// Damaged batches that scrubs found.
    pub damaged: u64,
    /// Bits flipped.
    pub flips: u64,
    /// Reads refused because what was stored is damaged.
    pub refused_reads: u64,
    /// The node refused to start on damaged disks, and the history ended there: 0 or 1.
    pub refused_starts: u64,
    /// Refusals for want of space.
    pub full: u64,
    /// Segments at the end.
    pub segments: u64,
    /// Logs at the end: one for each retention class in use in each directory.
    pub logs: u64,
    /// Operations submitted.
    pub operations: u64,
    /// A hash of all that happened, in order.
    pub trace: u64,
}

impl Outcome {
    /// Adds another's counts to this one's; traces are mixed.
    pub fn add(&mut self, other: &Outcome) {
        let fields = [
            (&mut self.sent, other.sent),
            (&mut self.acked, other.acked),
            (&mut self.duplicates, other.duplicates),
            (&mut self.unknown, other.unknown),
            (&mut self.read, other.read),
            (&mut self.crashes, other.crashes),
            (&mut self.cut_recoveries, other.cut_recoveries),
            (&mut self.failed_logs, other.failed_logs),
            (&mut self.fences, other.fences),
            (&mut self.trims, other.trims),
            (&mut self.deleted, other.deleted),
            (&mut self.released, other.released),
            (&mut self.bytes_copied, other.bytes_copied),
            (&mut self.archived, other.archived),
            (&mut self.bytes_scrubbed, other.bytes_scrubbed),
            (&mut self.damaged, other.damaged),
            (&mut self.flips, other.flips),
            (&mut self.refused_reads, other.refused_reads),
            (&mut self.refused_starts, other.refused_starts),
            (&mut self.full, other.full),
            (&mut self.segments, other.segments),
            (&mut self.logs, other.logs),
            (&mut self.operations, other.operations),
        ];
        for (sum, part) in fields {
            *sum += part;
        }
        self.trace = self.trace.rotate_left(7) ^ other.trace;
    }
}
