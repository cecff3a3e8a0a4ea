//! What was acknowledged, and whether reading finds all of it: each record once, where it was said
//! to be, with its bytes, and a key's records in the order of their requests.
//!
//! A record is told by its lane and its number in it, which stand in its data. All else of it
//! follows from these two: its key, its bytes, its request. So a record that was acknowledged takes
//! eight bytes here, the hash of its place, and every record that is read can be judged alone.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use thalweg_wire::hash_range::{HashKey, HashRange};

use super::scan::{RecordRead, shown};

/// Bytes at the start of a record that tell it from any other.
pub const STAMP_BYTES: usize = 16;
/// Longest partition key that is made.
pub const KEY_BYTES_MAX: usize = 16;
/// The end of a stamp.
const MARK: [u8; 4] = *b"TWA1";
/// Random bytes that records are cut from, beside the length of one.
const POOL_BYTES: usize = 1 << 20;
/// How far apart the cuts of two records are: odd, so that all places come.
const CUT_STEP: u64 = 8191;
/// Keys of each lane in each shard.
const KEYS_PER_SHARD: u64 = 2;
/// Deviations that are told in words.
const DEVIATIONS_SHOWN_MAX: usize = 8;
/// After so many deviations nothing more is read: a server may answer the same page for ever.
const DEVIATIONS_MAX: u64 = 100_000;

/// A record's name: who wrote it, and its number there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RecordId {
    /// The lane.
    pub lane: u32,
    /// From 0 on, in the order of sending.
    pub number: u64,
}

impl RecordId {
    /// The name that a record's data begin with; none if they are not ours.
    #[must_use]
    pub fn of_data(data: &[u8]) -> Option<RecordId> {
        let (number, rest) = data.split_first_chunk::<8>()?;
        let (lane, rest) = rest.split_first_chunk::<4>()?;
        if !rest.starts_with(&MARK) {
            return None;
        }
        Some(RecordId { lane: u32::from_le_bytes(*lane), number: u64::from_le_bytes(*number) })
    }
}

/// Makes records' data.
pub struct RecordSource {
    pool: Vec<u8>,
    record_bytes: usize,
}

impl RecordSource {
    /// Records of so many bytes, [`STAMP_BYTES`] at least.
    #[must_use]
    pub fn new(record_bytes: usize) -> RecordSource {
        let mut pool = vec![0; POOL_BYTES + record_bytes];
        getrandom::fill(&mut pool).expect("the system's random source works once it has started");
        RecordSource { pool, record_bytes }
    }

    /// Puts a record's data into `out`, which is emptied before.
    pub fn fill(&self, id: RecordId, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&id.number.to_le_bytes());
        out.extend_from_slice(&id.lane.to_le_bytes());
        out.extend_from_slice(&MARK);
        out.extend_from_slice(self.behind_stamp(id));
    }

    /// Whether data are those of a record.
    #[must_use]
    pub fn is(&self, id: RecordId, data: &[u8]) -> bool {
        data.len() == self.record_bytes && data[STAMP_BYTES..] == *self.behind_stamp(id)
    }

    fn behind_stamp(&self, id: RecordId) -> &[u8] {
        let cut = id.number.wrapping_add(u64::from(id.lane)).wrapping_mul(CUT_STEP);
        let cut = (cut % POOL_BYTES as u64) as usize;
        &self.pool[cut..cut + self.record_bytes - STAMP_BYTES]
    }
}

/// Which partition key, and which stream, a record has. Lanes share no key: each lane waits for an
/// answer before it sends again, so what it says of a key's order is true.
pub enum Keys {
    /// Keys whose hashes fall into chosen shards of a new stream.
    OfShards {
        /// Shards of the stream.
        shards: u32,
        /// Records of a request.
        request_records: u64,
        /// Shards that a request has records for.
        request_shards: u64,
        /// Keys by lane, shard and number.
        keys: Vec<Vec<Box<str>>>,
    },
    /// A key for each record, and streams at random.
    Alone {
        /// Streams.
        streams: u32,
    },
}

impl Keys {
    /// Keys of so many lanes for each shard.
    #[must_use]
    pub fn of_shards(lanes: u32, shards: u32, request_records: u64, request_shards: u64) -> Keys {
        let keys = (0..lanes).map(|lane| keys_of_lane(lane, shards)).collect();
        Keys::OfShards { shards, request_records, request_shards, keys }
    }

    /// The key of a record.
    #[must_use]
    pub fn key(&self, id: RecordId) -> Cow<'_, str> {
        match self {
            Keys::OfShards { shards, request_records, request_shards, keys } => {
                let (request, at) = (id.number / request_records, id.number % request_records);
                // Lanes begin at different shards.
                let first = u64::from(id.lane).wrapping_add(request).wrapping_mul(*request_shards);
                let shard = first.wrapping_add(at % request_shards) % u64::from(*shards);
                let which = (at / request_shards) % KEYS_PER_SHARD;
                // Of a lane that there is not, nothing has a key.
                let Some(keys) = keys.get(id.lane as usize) else { return Cow::Borrowed("") };
                Cow::Borrowed(&keys[(shard * KEYS_PER_SHARD + which) as usize])
            }
            Keys::Alone { .. } => Cow::Owned(format!("{}-{}", id.lane, id.number)),
        }
    }

    /// The stream of a record.
    #[must_use]
    pub fn stream(&self, id: RecordId) -> u32 {
        match self {
            Keys::OfShards { .. } => 0,
            Keys::Alone { streams } => {
                let mut hasher = DefaultHasher::new();
                hasher.write_u32(id.lane);
                hasher.write_u64(id.number);
                (hasher.finish() % u64::from(*streams)) as u32
            }
        }
    }

    /// The request that a record belongs to, of its lane.
    fn request(&self, id: RecordId) -> u64 {
        match self {
            Keys::OfShards { request_records, .. } => id.number / request_records,
            Keys::Alone { .. } => id.number,
        }
    }
}

fn keys_of_lane(lane: u32, shards: u32) -> Vec<Box<str>> {
    let mut keys: Vec<Option<Box<str>>> = vec![None; shards as usize * KEYS_PER_SHARD as usize];
    let mut missing = keys.len();
    for number in 0_u64.. {
        let key = format!("{lane}-{number}");
        let shard = HashRange::initial_shard_of(HashKey::of_partition_key(key.as_bytes()), shards);
        let first = shard as usize * KEYS_PER_SHARD as usize;
        let free =
            keys[first..first + KEYS_PER_SHARD as usize].iter_mut().find(|key| key.is_none());
        if let Some(free) = free {
            debug_assert!(key.len() <= KEY_BYTES_MAX);
            *free = Some(key.into_boxed_str());
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    keys.into_iter().flatten().collect()
}

/// What a place comes to: of stream, shard and sequence number, never 0.
#[must_use]
pub fn place_of(stream: u32, shard: &[u8], number: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u32(stream);
    hasher.write(shard);
    hasher.write_u8(0);
    hasher.write(number);
    hasher.finish().max(1)
}

/// What one lane's records came to, by their numbers: the place of each that was acknowledged, and
/// 0 for the others, of which some may be stored without anybody having been told.
#[derive(Clone, Default, Debug)]
pub struct Book {
    places: Vec<u64>,
}

impl Book {
    /// Makes room for so many more records.
    pub fn begin(&mut self, records: u64) {
        self.places.resize(self.places.len() + records as usize, 0);
    }

    /// A record was acknowledged.
    pub fn acknowledge(&mut self, number: u64, place: u64) {
        self.places[number as usize] = place;
    }

    /// Records that were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.places.iter().filter(|place| **place != 0).count() as u64
    }

    /// The numbers and places of those that were acknowledged.
    pub fn acknowledged_places(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..).zip(&self.places).filter(|(_, place)| **place != 0).map(|(at, place)| (at, *place))
    }

    /// The place of a record, if it was acknowledged.
    #[must_use]
    pub fn place(&self, number: u64) -> Option<u64> {
        let place = self.places.get(usize::try_from(number).ok()?)?;
        (*place != 0).then_some(*place)
    }
}

/// Judges what is read, on several threads.
pub struct Audit<'b> {
    books: &'b [Book],
    keys: &'b Keys,
    source: &'b RecordSource,
    /// Whether a record was read, by lane and number.
    seen: Vec<Box<[AtomicBool]>>,
    records: AtomicU64,
    deviations: Mutex<Deviations>,
}

#[derive(Default)]
struct Deviations {
    count: u64,
    shown: Vec<String>,
}

/// Judges the records of one shard, in the order in which they are read.
pub struct ShardAudit<'a, 'b> {
    audit: &'a Audit<'b>,
    stream: u32,
    shard: String,
    last_number: Vec<u8>,
    /// The request of the last record, by key.
    last_requests: HashMap<Vec<u8>, u64>,
}

/// What reading everything came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Audited {
    /// Records that were read.
    pub records: u64,
    /// What is not as it was acknowledged, some of it in words.
    pub deviations: Vec<String>,
}

impl<'b> Audit<'b> {
    /// Judges by what the lanes' books say.
    #[must_use]
    pub fn new(books: &'b [Book], keys: &'b Keys, source: &'b RecordSource) -> Audit<'b> {
        let unseen = |book: &Book| {
            book.places.iter().map(|_| AtomicBool::new(false)).collect::<Box<[AtomicBool]>>()
        };
        let seen = books.iter().map(unseen).collect();
        let (records, deviations) = (AtomicU64::new(0), Mutex::default());
        Audit { books, keys, source, seen, records, deviations }
    }

    /// Begins with a shard, from its first record on.
    #[must_use]
    pub fn shard(&self, stream: u32, shard: &str) -> ShardAudit<'_, 'b> {
        ShardAudit {
            audit: self,
            stream,
            shard: shard.to_owned(),
            last_number: Vec::new(),
            last_requests: HashMap::new(),
        }
    }

    /// Something is not as it should be.
    pub fn deviate(&self, what: impl FnOnce() -> String) {
        let mut deviations = self.deviations.lock().unwrap_or_else(PoisonError::into_inner);
        deviations.count += 1;
        if deviations.shown.len() < DEVIATIONS_SHOWN_MAX {
            deviations.shown.push(what());
        }
    }

    /// Whether there is no sense in reading on.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        let deviations = self.deviations.lock().unwrap_or_else(PoisonError::into_inner);
        deviations.count > DEVIATIONS_MAX
    }

    /// All shards were read: what was not found is missing.
    #[must_use]
    pub fn finish(self) -> Audited {
        for (lane, (book, seen)) in self.books.iter().zip(&self.seen).enumerate() {
            let is_lost =
                |(place, seen): &(&u64, &AtomicBool)| **place != 0 && !seen.load(Ordering::Relaxed);
            let lost = book.places.iter().zip(seen.iter()).filter(is_lost).count();
            if lost > 0 {
                let first = book.places.iter().zip(seen.iter()).position(|pair| is_lost(&pair));
                self.deviate(|| {
                    let first = first.unwrap_or_default();
                    format!(
                        "{lost} acknowledged records of lane {lane} are not there, the first: \
                         record {first}"
                    )
                });
            }
        }
        let deviations = self.deviations.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut shown = deviations.shown;
        if deviations.count > shown.len() as u64 {
            shown.push(format!("and {} more of the kind", deviations.count - shown.len() as u64));
        }
        Audited { records: self.records.load(Ordering::Relaxed), deviations: shown }
    }
}

impl ShardAudit<'_, '_> {
    /// The next record.
    pub fn take(&mut self, record: &RecordRead<'_>) {
        let audit = self.audit;
        audit.records.fetch_add(1, Ordering::Relaxed);
        if let Err(what) = self.judge(record) {
            audit.deviate(|| {
                format!("shard {}, record {}: {what}", self.shard, shown(record.number))
            });
        }
    }

    fn judge(&mut self, record: &RecordRead<'_>) -> Result<(), String> {
        if !is_above(record.number, &self.last_number) {
            return Err(format!("it comes behind {}", shown(&self.last_number)));
        }
        self.last_number.clear();
        self.last_number.extend_from_slice(record.number);
        let Audit { books, keys, source, seen, .. } = self.audit;
        let id = RecordId::of_data(record.data).ok_or("nobody here wrote it")?;
        let seen = seen.get(id.lane as usize).and_then(|seen| seen.get(id.number as usize));
        let seen = seen.ok_or("it was not written yet")?;
        if !source.is(id, record.data) {
            return Err("its data are not those that were written".into());
        }
        let key = keys.key(id);
        if record.partition_key != Some(key.as_bytes()) {
            return Err(format!("its key is not {key}"));
        }
        if seen.swap(true, Ordering::Relaxed) {
            return Err("it is there twice".into());
        }
        // One whose acknowledgement did not come may be there, and come late.
        let Some(acknowledged) = books[id.lane as usize].place(id.number) else { return Ok(()) };
        if place_of(self.stream, self.shard.as_bytes(), record.number) != acknowledged {
            return Err("it was acknowledged at another place".into());
        }
        let request = keys.request(id);
        let last = self.last_requests.get_mut(key.as_bytes());
        match last {
            Some(last) if request < *last => {
                return Err(format!("a later record of its key {key} comes before it"));
            }
            Some(last) => *last = request,
            None => drop(self.last_requests.insert(key.as_bytes().to_vec(), request)),
        }
        Ok(())
    }
}

/// Whether a decimal number without leading zeros is above another, or the other is none.
#[must_use]
pub fn is_above(number: &[u8], other: &[u8]) -> bool {
    (number.len(), number) > (other.len(), other)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        source: RecordSource,
        keys: Keys,
        books: Vec<Book>,
    }

    const SHARD: &str = "shardId-000000000000";

    /// One lane whose records are all acknowledged in one shard, at 100 and on.
    fn world(records: u64) -> World {
        let mut book = Book::default();
        book.begin(records);
        for number in 0..records {
            book.acknowledge(number, place_of(0, SHARD.as_bytes(), number_at(number).as_bytes()));
        }
        let keys = Keys::of_shards(1, 1, 2, 1);
        World { source: RecordSource::new(50), keys, books: vec![book] }
    }

    fn number_at(number: u64) -> String {
        (100 + number).to_string()
    }

    impl World {
        /// Reads records, each by its number and the place where it is found.
        fn read(&self, found: &[(u64, u64)]) -> Audited {
            self.read_changed(found, |_, _, _| {})
        }

        fn read_changed(
            &self,
            found: &[(u64, u64)],
            change: impl Fn(u64, &mut Vec<u8>, &mut String),
        ) -> Audited {
            let audit = Audit::new(&self.books, &self.keys, &self.source);
            let mut shard = audit.shard(0, SHARD);
            let mut data = Vec::new();
            for (number, at) in found {
                let id = RecordId { lane: 0, number: *number };
                self.source.fill(id, &mut data);
                let mut key = self.keys.key(id).into_owned();
                change(*number, &mut data, &mut key);
                shard.take(&RecordRead {
                    number: number_at(*at).as_bytes(),
                    partition_key: Some(key.as_bytes()),
                    data: &data,
                });
            }
            audit.finish()
        }
    }

    fn only(audited: &Audited) -> &str {
        assert_eq!(audited.deviations.len(), 1, "{audited:?}");
        &audited.deviations[0]
    }

    #[test]
    fn what_was_acknowledged_is_all_there() {
        let audited = world(4).read(&[(0, 0), (1, 1), (2, 2), (3, 3)]);
        assert_eq!(audited, Audited { records: 4, deviations: vec![] });
    }

    #[test]
    fn missing_doubled_and_moved_records_are_told() {
        let world = world(3);
        assert!(only(&world.read(&[(0, 0), (2, 2)])).contains("1 acknowledged records"));
        let doubled = world.read(&[(0, 0), (1, 1), (2, 2), (2, 3)]);
        assert!(only(&doubled).contains("it is there twice"), "{doubled:?}");
        let moved = world.read(&[(0, 0), (1, 1), (2, 3)]);
        assert!(only(&moved).contains("at another place"), "{moved:?}");
        let back = world.read(&[(0, 0), (2, 2), (1, 1)]);
        assert!(back.deviations[0].contains("comes behind 102"), "{back:?}");
        let unknown = world.read(&[(0, 0), (1, 1), (2, 2), (7, 7)]);
        assert!(only(&unknown).contains("not written"), "{unknown:?}");
    }

    #[test]
    fn changed_data_and_keys_are_told() {
        let world = world(2);
        let all = [(0, 0), (1, 1)];
        let changed = world.read_changed(&all, |number, data, _| {
            if number == 1 {
                *data.last_mut().unwrap() ^= 1;
            }
        });
        assert!(changed.deviations[0].contains("not those that were written"), "{changed:?}");
        let cut = world.read_changed(&all, |_, data, _| data.truncate(49));
        assert_eq!(cut.deviations.len(), 3, "two and what is missing: {cut:?}");
        let other = world.read_changed(&all, |_, _, key| key.push('x'));
        assert!(other.deviations[0].contains("its key is not"), "{other:?}");
        let foreign = world.read_changed(&all, |_, data, _| data[12] = 0);
        assert!(foreign.deviations[0].contains("nobody here"), "{foreign:?}");
    }

    #[test]
    fn a_record_that_was_not_acknowledged_may_be_there_once() {
        let mut world = world(3);
        world.books[0].places[1] = 0;
        assert_eq!(world.books[0].acknowledged(), 2);
        assert!(world.read(&[(0, 0), (2, 2)]).deviations.is_empty());
        assert!(world.read(&[(0, 0), (2, 2), (1, 9)]).deviations.is_empty(), "it came late");
        let twice = world.read(&[(0, 0), (2, 2), (1, 8), (1, 9)]);
        assert!(only(&twice).contains("twice"), "{twice:?}");
    }

    #[test]
    fn a_keys_records_are_in_the_order_of_their_requests() {
        // Records 0 and 1 are of one request, 2 and 3 of the next; each has its key.
        let mut world = world(4);
        for (number, at) in [(0, 2), (1, 1), (2, 0), (3, 3)] {
            let place = place_of(0, SHARD.as_bytes(), number_at(at).as_bytes());
            world.books[0].acknowledge(number, place);
        }
        let audited = world.read(&[(2, 0), (1, 1), (0, 2), (3, 3)]);
        assert!(only(&audited).contains("a later record of its key"), "{audited:?}");
    }

    #[test]
    fn deviations_are_counted_and_some_are_told() {
        let world = world(1);
        let audited = world.read(&(0..40).map(|at| (0, at)).collect::<Vec<_>>());
        assert_eq!(audited.deviations.len(), DEVIATIONS_SHOWN_MAX + 1);
        assert_eq!(audited.deviations.last().unwrap(), "and 31 more of the kind");
    }

    #[test]
    fn keys_fall_into_the_shards_of_their_request_and_no_lane_has_anothers() {
        let keys = Keys::of_shards(3, 8, 10, 4);
        let mut owners: HashMap<String, u32> = HashMap::new();
        for lane in 0..3 {
            for request in 0..8 {
                let mut shards = std::collections::HashSet::new();
                for at in 0..10 {
                    let id = RecordId { lane, number: request * 10 + at };
                    let key = keys.key(id).into_owned();
                    let hash = HashKey::of_partition_key(key.as_bytes());
                    shards.insert(HashRange::initial_shard_of(hash, 8));
                    assert_eq!(*owners.entry(key).or_insert(lane), lane);
                }
                assert_eq!(shards.len(), 4);
            }
        }
        assert_eq!(owners.len(), 3 * 8 * 2);
        assert_eq!(keys.key(RecordId { lane: 3, number: u64::MAX }), "");
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert!(is_above(b"1", b""));
        assert!(is_above(b"10", b"9") && !is_above(b"9", b"10") && !is_above(b"9", b"9"));
        assert!(is_above(b"495", b"494"));
    }
}
