//! Tokens: what a caller is given to come back with. Opaque, authenticated, expiring, of one kind.
//!
//! A token holds its content and the time it was issued, sealed by AES-256-GCM. Nothing else is
//! kept of it: any router opens what any other one sealed. The kind is authenticated with it, so
//! that none passes for one of another kind.
//!
//! The keys are one document in the store, made by whoever comes first and replaced once a day. A
//! new key rests until every router has had the time to learn it, an old one stays until the last
//! token under it has expired. What seals is not a key itself but one derived from it for each start
//! of a router (HKDF, RFC 5869): under it, a count can be the nonce, and none is ever used twice,
//! however many tokens a second there are. Random nonces would be good for 2^32 tokens a key
//! (NIST SP 800-38D, 8.3): half a day of 100,000 readers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64_simd::STANDARD;
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::hkdf::{HKDF_SHA256, Salt};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::error::ApiError;
use crate::control::NowMs;
use crate::control::record::{RECORD_VERSION, RecordError, decode_record, encode_record};
use crate::control::store::{CommitError, Expectation, ReadError, Store, Transaction};

/// The store's key of the keys.
pub const TOKEN_KEYS_KEY: &str = "token/keys";
/// Longest life of a token. The API's live for 300 s (API reference, GetShardIterator and
/// ListShards).
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(300);
/// Largest content in bytes: with everything around it, a token has at most the 512 characters of
/// a shard iterator (API model, `ShardIterator.max`).
pub const TOKEN_CONTENT_BYTES_MAX: usize = 512 / 4 * 3 - TOKEN_OVERHEAD_BYTES;

/// Version of tokens: the first byte.
const TOKEN_VERSION: u8 = 1;
/// Bytes of a token beside its content: version, number of the key, salt, nonce's count, time of
/// issue, tag.
const TOKEN_OVERHEAD_BYTES: usize = HEAD_BYTES + TIME_BYTES + TAG_BYTES;
const HEAD_BYTES: usize = 1 + KEY_NUMBER_BYTES + SALT_BYTES + COUNT_BYTES;
const KEY_NUMBER_BYTES: usize = 4;
const SALT_BYTES: usize = 16;
const COUNT_BYTES: usize = 8;
const TIME_BYTES: usize = 8;
const TAG_BYTES: usize = 16;

/// How long a key seals before another takes its place.
const KEY_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// How often a router looks for new keys.
const KEYS_LOOK: Duration = Duration::from_secs(60);
/// How long a new key rests: every router has looked by then.
const KEY_REST: Duration = Duration::from_secs(300);
/// How long a key is kept that does not seal any more, clocks that differ included.
const KEY_KEPT: Duration = Duration::from_secs(3600);
/// At least so long between looks that tokens of unknown keys cause: anybody can send those.
const UNKNOWN_KEY_LOOK: Duration = Duration::from_secs(1);
/// Times that keys are judged and written anew when another router was quicker.
const WRITE_ATTEMPTS_MAX: u32 = 5;
/// What the derived keys are for.
const KEY_PURPOSE: &[u8] = b"thalweg token v1";

const _: () = assert!(TOKEN_LIFETIME_MAX.as_secs() < KEY_KEPT.as_secs());
const _: () = assert!(2 * KEYS_LOOK.as_secs() < KEY_REST.as_secs());

/// What tokens are for. None passes for one of another kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TokenKind {
    /// Where a listing of shards goes on.
    ListShards = 1,
    /// Where a listing of streams goes on.
    ListStreams = 2,
    /// Where reading goes on.
    ShardIterator = 3,
    /// Where a listing of consumers goes on.
    ListStreamConsumers = 4,
}

/// What a token of some kind holds.
pub trait TokenContent: Sized {
    /// Its kind.
    const KIND: TokenKind;
    /// How long such a token can be used, [`TOKEN_LIFETIME_MAX`] at most.
    const LIFETIME: Duration = TOKEN_LIFETIME_MAX;

    /// Writes the content at the end of a buffer: [`TOKEN_CONTENT_BYTES_MAX`] bytes at most where
    /// the token is a shard iterator.
    fn encode(&self, to: &mut Vec<u8>);

    /// Reads what [`TokenContent::encode`] of this or an earlier version wrote; `None` when it is
    /// something else.
    fn decode(content: &[u8]) -> Option<Self>;
}

/// Why a token cannot be used or made.
#[derive(Debug, Error)]
pub enum TokenError {
    /// It is none, or one of another kind, or one that was changed, or is too old for its key.
    #[error("the token is not one that was given out for this: begin anew")]
    Invalid,
    /// Its time is over.
    #[error(
        "the token was issued at {issued_ms} ms and is no more good at {now_ms} ms: begin anew"
    )]
    Expired {
        /// When it was issued, milliseconds since 1970.
        issued_ms: u64,
        /// The time now.
        now_ms: u64,
        /// How long it was good for.
        lifetime: Duration,
    },
    /// The keys are not known.
    #[error(transparent)]
    Keys(#[from] TokenKeysError),
}

/// Why the keys of tokens cannot be had.
#[derive(Debug, Error)]
pub enum TokenKeysError {
    /// The store does not answer.
    #[error("the keys of tokens cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The store does not take them.
    #[error("the keys of tokens cannot be written: {0}")]
    Commit(#[from] CommitError),
    /// What it has cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Others write them all the time.
    #[error(
        "the keys of tokens were changed by other routers {WRITE_ATTEMPTS_MAX} times: try again"
    )]
    Contended,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes ({cause})")]
    Random {
        /// What it said.
        cause: String,
    },
}

/// What a NextToken that cannot be used or made is answered with, by each operation that lists (API
/// reference, ListShards, ListStreams and ListStreamConsumers: InvalidArgumentException, and
/// ExpiredNextTokenException after 300 seconds).
pub(super) fn next_token_error(error: TokenError) -> ApiError {
    match error {
        TokenError::Invalid => ApiError::invalid_argument(
            "NextToken is invalid: it is not one that this listing was answered with. Begin the \
             listing anew.",
        ),
        TokenError::Expired { lifetime, .. } => ApiError::expired_next_token(format!(
            "NextToken is expired: it can be used for {} seconds. Begin the listing anew.",
            lifetime.as_secs()
        )),
        TokenError::Keys(error) => {
            tracing::error!(%error, "a token can be neither made nor read");
            ApiError::internal_failure()
        }
    }
}

/// Seals and opens tokens under the keys that a store has.
pub struct Tokens<S> {
    store: S,
    now_ms: NowMs,
    keys: ArcSwapOption<Keys>,
    /// When to look for new keys.
    look_at_ms: AtomicU64,
    /// One looks at a time.
    looking: tokio::sync::Mutex<()>,
}

impl<S: Store> Tokens<S> {
    /// The tokens of all routers on this store. The keys are looked up, or made, when they are
    /// needed first.
    #[must_use]
    pub fn new(store: S, now_ms: NowMs) -> Tokens<S> {
        Tokens {
            store,
            now_ms,
            keys: ArcSwapOption::empty(),
            look_at_ms: AtomicU64::new(0),
            looking: tokio::sync::Mutex::const_new(()),
        }
    }

    /// A token that holds this content, issued now: text of base64's characters.
    ///
    /// # Errors
    /// [`TokenError::Keys`].
    pub async fn seal<C: TokenContent>(&self, content: &C) -> Result<String, TokenError> {
        let now_ms = (self.now_ms)();
        let keys = self.keys(now_ms).await?;
        let mut bytes = Vec::new();
        content.encode(&mut bytes);
        Ok(keys.sealing_key(now_ms).seal(C::KIND, now_ms, &bytes))
    }

    /// What a token holds, if it is one of the content's kind and its time is not over.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn open<C: TokenContent>(&self, token: &str) -> Result<C, TokenError> {
        const { assert!(C::LIFETIME.as_secs() <= TOKEN_LIFETIME_MAX.as_secs()) };
        let now_ms = (self.now_ms)();
        let mut bytes = STANDARD.decode_to_vec(token).map_err(|_| TokenError::Invalid)?;
        let number = key_number(&bytes).ok_or(TokenError::Invalid)?;
        let mut keys = self.keys(now_ms).await?;
        if keys.key(number).is_none() {
            keys = self.look_for(number, now_ms).await?;
        }
        let key = keys.key(number).ok_or(TokenError::Invalid)?;
        let (issued_ms, content) = key.open(C::KIND, &mut bytes).ok_or(TokenError::Invalid)?;
        let content = C::decode(content).ok_or(TokenError::Invalid)?;
        let age_ms = now_ms.saturating_sub(issued_ms);
        if u128::from(age_ms) > C::LIFETIME.as_millis() {
            return Err(TokenError::Expired { issued_ms, now_ms, lifetime: C::LIFETIME });
        }
        Ok(content)
    }

    /// The keys, looked up again when it is time to.
    async fn keys(&self, now_ms: u64) -> Result<Arc<Keys>, TokenKeysError> {
        if let Some(keys) = self.keys.load_full() {
            if now_ms < self.look_at_ms.load(Ordering::Relaxed) {
                return Ok(keys);
            }
            // Who finds another one looking goes on with what is known.
            let Ok(_looking) = self.looking.try_lock() else { return Ok(keys) };
            return Ok(self.look(now_ms).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "tokens are sealed under the keys that are known");
                keys
            }));
        }
        let _looking = self.looking.lock().await;
        match self.keys.load_full() {
            Some(keys) => Ok(keys),
            None => self.look(now_ms).await,
        }
    }

    /// The keys, with one that another router may have made lately.
    async fn look_for(&self, number: u32, now_ms: u64) -> Result<Arc<Keys>, TokenKeysError> {
        let _looking = self.looking.lock().await;
        let known = self.keys.load_full();
        if let Some(keys) = known.filter(|keys| {
            keys.key(number).is_some() || now_ms < keys.looked_ms + millis(UNKNOWN_KEY_LOOK)
        }) {
            return Ok(keys);
        }
        self.look(now_ms).await
    }

    /// Reads the keys and, if it is time, changes them.
    async fn look(&self, now_ms: u64) -> Result<Arc<Keys>, TokenKeysError> {
        let key = Bytes::from_static(TOKEN_KEYS_KEY.as_bytes());
        // Whether it succeeds or not, the next look is some time off.
        self.look_at_ms.store(now_ms + millis(KEYS_LOOK), Ordering::Relaxed);
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let entry = self.store.get(key.clone()).await?;
            let (record, expected) = match &entry {
                Some(entry) => (
                    decode_record(&key, &entry.value.0)?,
                    Expectation::ModRevision(entry.mod_revision),
                ),
                None => (KeysRecord::default(), Expectation::Absent),
            };
            let wanted = record.turned(now_ms)?;
            let record = match wanted {
                None => record,
                Some(wanted) => {
                    let transaction = Transaction::new()
                        .expect(key.clone(), expected)
                        .put(key.clone(), encode_record(&wanted));
                    match self.store.commit(transaction).await {
                        Ok(_) => wanted,
                        // Another router was quicker, or it is not known if this one was: what
                        // counts is what the store has.
                        Err(CommitError::Conflict(_) | CommitError::OutcomeUnknown { .. }) => {
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            let keys = Arc::new(Keys::new(&record, self.keys.load().as_deref(), now_ms)?);
            self.keys.store(Some(Arc::clone(&keys)));
            return Ok(keys);
        }
        Err(TokenKeysError::Contended)
    }
}

impl<S> fmt::Debug for Tokens<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tokens").finish_non_exhaustive()
    }
}

/// The keys as the store has them: the oldest first.
#[derive(Clone, Serialize, Deserialize)]
struct KeysRecord {
    version: u32,
    keys: Vec<KeyRecord>,
}

#[derive(Clone, Serialize, Deserialize)]
struct KeyRecord {
    number: u32,
    /// Base64 of 32 random bytes.
    secret: String,
    /// It seals from then on, milliseconds since 1970.
    seals_from_ms: u64,
}

impl Default for KeysRecord {
    fn default() -> KeysRecord {
        KeysRecord { version: RECORD_VERSION, keys: Vec::new() }
    }
}

impl KeysRecord {
    /// The keys as they are to be now; `None` when nothing is to change.
    fn turned(&self, now_ms: u64) -> Result<Option<KeysRecord>, TokenKeysError> {
        let mut keys = self.keys.clone();
        match self.keys.last() {
            None => keys.push(KeyRecord::new(1, now_ms)?),
            Some(last) if now_ms >= last.seals_from_ms + millis(KEY_PERIOD - KEY_REST) => {
                keys.push(KeyRecord::new(last.number + 1, now_ms + millis(KEY_REST))?);
            }
            Some(_) => {}
        }
        // A key is of no use any more when its successor has sealed for long enough.
        let is_over = |next: &KeyRecord| now_ms >= next.seals_from_ms + millis(KEY_KEPT);
        let over = keys.iter().skip(1).take_while(|next| is_over(next)).count();
        keys.drain(..over);
        let is_same = keys.len() == self.keys.len() && over == 0;
        Ok((!is_same).then(|| KeysRecord { keys, ..self.clone() }))
    }
}

impl KeyRecord {
    fn new(number: u32, seals_from_ms: u64) -> Result<KeyRecord, TokenKeysError> {
        let secret = STANDARD.encode_to_string(random::<32>()?);
        Ok(KeyRecord { number, secret, seals_from_ms })
    }
}

/// The keys as they are used: the oldest first, at least one.
struct Keys {
    keys: Vec<Arc<Key>>,
    looked_ms: u64,
}

impl Keys {
    /// The keys of a record. Those that are known stay, and go on counting.
    fn new(
        record: &KeysRecord,
        known: Option<&Keys>,
        looked_ms: u64,
    ) -> Result<Keys, TokenKeysError> {
        let keys =
            record.keys.iter().map(|key| match known.and_then(|known| known.key(key.number)) {
                Some(known) if *known.secret == *key.secret => Ok(Arc::clone(known)),
                _ => Key::new(key).map(Arc::new),
            });
        let keys = keys.collect::<Result<Vec<_>, TokenKeysError>>()?;
        assert!(!keys.is_empty(), "there is a key from the first look on");
        Ok(Keys { keys, looked_ms })
    }

    fn key(&self, number: u32) -> Option<&Arc<Key>> {
        self.keys.iter().find(|key| key.number == number)
    }

    /// The newest that does not rest any more.
    fn sealing_key(&self, now_ms: u64) -> &Key {
        let seals = self.keys.iter().rev().find(|key| key.seals_from_ms <= now_ms);
        // By a clock that was set back, none is old enough.
        seals.unwrap_or(&self.keys[0])
    }
}

/// A key in this start of this router.
struct Key {
    number: u32,
    seals_from_ms: u64,
    /// As the store has it.
    secret: String,
    /// What it is derived from, by salt.
    prk_secret: Vec<u8>,
    /// Of this start.
    salt: [u8; SALT_BYTES],
    /// Derived for this start.
    derived: LessSafeKey,
    /// Tokens sealed.
    count: AtomicU64,
}

impl Key {
    fn new(record: &KeyRecord) -> Result<Key, TokenKeysError> {
        let wrong = |cause: &str| RecordError::Document {
            key: TOKEN_KEYS_KEY.to_owned(),
            cause: cause.to_owned(),
        };
        let secret = STANDARD.decode_to_vec(&record.secret);
        let secret = secret.map_err(|_| wrong("a key is no base64"))?;
        if secret.len() != 32 {
            return Err(wrong("a key has not 32 bytes").into());
        }
        let salt = random()?;
        Ok(Key {
            number: record.number,
            seals_from_ms: record.seals_from_ms,
            secret: record.secret.clone(),
            derived: derive(&secret, &salt),
            prk_secret: secret,
            salt,
            count: AtomicU64::new(0),
        })
    }

    fn seal(&self, kind: TokenKind, now_ms: u64, content: &[u8]) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut bytes = Vec::with_capacity(TOKEN_OVERHEAD_BYTES + content.len());
        bytes.push(TOKEN_VERSION);
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&count.to_be_bytes());
        let aad = authenticated(kind, &bytes);
        bytes.extend_from_slice(&now_ms.to_be_bytes());
        bytes.extend_from_slice(content);
        let tag = self
            .derived
            .seal_in_place_separate_tag(nonce(count), aad, &mut bytes[HEAD_BYTES..])
            .expect("a token is short");
        bytes.extend_from_slice(tag.as_ref());
        STANDARD.encode_to_string(bytes)
    }

    /// When a token was issued, and its content; `None` when it is none of this key and kind.
    fn open<'t>(&self, kind: TokenKind, token: &'t mut [u8]) -> Option<(u64, &'t [u8])> {
        let (head, sealed) = token.split_at_mut_checked(HEAD_BYTES)?;
        let (salt, count) = head[1 + KEY_NUMBER_BYTES..].split_first_chunk::<SALT_BYTES>()?;
        let count = u64::from_be_bytes(count.try_into().ok()?);
        let aad = authenticated(kind, head);
        let opened = if *salt == self.salt {
            self.derived.open_in_place(nonce(count), aad, sealed)
        } else {
            derive(&self.prk_secret, salt).open_in_place(nonce(count), aad, sealed)
        };
        let (issued_ms, content) = opened.ok()?.split_first_chunk::<TIME_BYTES>()?;
        Some((u64::from_be_bytes(*issued_ms), content))
    }
}

/// The number of a token's key, if it may be a token.
fn key_number(token: &[u8]) -> Option<u32> {
    let (version, rest) = token.split_first()?;
    let number = rest.first_chunk::<KEY_NUMBER_BYTES>()?;
    (*version == TOKEN_VERSION).then(|| u32::from_be_bytes(*number))
}

/// What is authenticated and not hidden: the kind, and the token's head.
fn authenticated(kind: TokenKind, head: &[u8]) -> Aad<[u8; HEAD_BYTES + 1]> {
    let mut bytes = [kind as u8; HEAD_BYTES + 1];
    bytes[1..].copy_from_slice(head);
    Aad::from(bytes)
}

fn nonce(count: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - COUNT_BYTES..].copy_from_slice(&count.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn derive(secret: &[u8], salt: &[u8; SALT_BYTES]) -> LessSafeKey {
    let purpose = [KEY_PURPOSE];
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    let derived = extracted.expand(&purpose, &AES_256_GCM).expect("a key is short");
    LessSafeKey::new(derived.into())
}

fn random<const BYTES: usize>() -> Result<[u8; BYTES], TokenKeysError> {
    let mut bytes = [0; BYTES];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(TokenKeysError::Random { cause: error.to_string() }),
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::control::store::embedded::{EmbeddedOptions, EmbeddedStore};

    #[derive(Clone, PartialEq, Eq, Debug)]
    struct Place(Vec<u8>);

    impl TokenContent for Place {
        const KIND: TokenKind = TokenKind::ShardIterator;

        fn encode(&self, to: &mut Vec<u8>) {
            to.extend_from_slice(&self.0);
        }

        fn decode(content: &[u8]) -> Option<Place> {
            Some(Place(content.to_vec()))
        }
    }

    #[derive(PartialEq, Eq, Debug)]
    struct Page(Vec<u8>);

    impl TokenContent for Page {
        const KIND: TokenKind = TokenKind::ListShards;
        const LIFETIME: Duration = Duration::from_secs(10);

        fn encode(&self, to: &mut Vec<u8>) {
            to.extend_from_slice(&self.0);
        }

        fn decode(content: &[u8]) -> Option<Page> {
            (!content.is_empty()).then(|| Page(content.to_vec()))
        }
    }

    const START_MS: u64 = 1_795_521_600_000;

    /// A store in a directory, and a clock that is set.
    struct World {
        store: EmbeddedStore,
        clock_ms: Arc<AtomicU64>,
        _directory: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("store");
            let store = EmbeddedStore::open(&path, EmbeddedOptions::default()).expect("a store");
            World { store, clock_ms: Arc::new(AtomicU64::new(START_MS)), _directory: directory }
        }

        /// Another start of a router, or another router.
        fn tokens(&self) -> Tokens<EmbeddedStore> {
            let clock_ms = self.clock_ms.clone();
            let now_ms: NowMs = Arc::new(move || clock_ms.load(Ordering::Relaxed));
            Tokens::new(self.store.clone(), now_ms)
        }

        fn pass(&self, time: Duration) {
            self.clock_ms.fetch_add(millis(time), Ordering::Relaxed);
        }

        async fn stored(&self) -> KeysRecord {
            let key = Bytes::from_static(TOKEN_KEYS_KEY.as_bytes());
            let entry = self.store.get(key.clone()).await.expect("it reads").expect("keys");
            decode_record(&key, &entry.value.0).expect("a record")
        }
    }

    #[tokio::test]
    async fn a_token_is_opened_by_every_router_and_in_its_time_only() {
        let world = World::new();
        let (first, second) = (world.tokens(), world.tokens());
        let place = Place(vec![7; TOKEN_CONTENT_BYTES_MAX]);
        let token = first.seal(&place).await.expect("sealed");
        assert!(token.len() <= 512, "{}", token.len());
        for tokens in [&first, &second] {
            assert_eq!(tokens.open::<Place>(&token).await.expect("opened"), place);
        }
        assert_eq!(world.stored().await.keys.len(), 1);
        world.pass(TOKEN_LIFETIME_MAX);
        assert_eq!(second.open::<Place>(&token).await.expect("opened"), place);
        world.pass(Duration::from_millis(1));
        let expired = second.open::<Place>(&token).await.expect_err("it is too old");
        let TokenError::Expired { issued_ms, now_ms, lifetime } = expired else {
            panic!("{expired:?}")
        };
        assert_eq!((issued_ms, now_ms), (START_MS, START_MS + 300_001));
        assert_eq!(lifetime, TOKEN_LIFETIME_MAX);
    }

    #[tokio::test]
    async fn no_other_token_passes() {
        let world = World::new();
        let tokens = world.tokens();
        let token = tokens.seal(&Place(vec![1, 2, 3])).await.expect("sealed");
        let is_invalid = async |token: &str| {
            matches!(tokens.open::<Place>(token).await, Err(TokenError::Invalid))
        };
        assert!(matches!(tokens.open::<Page>(&token).await, Err(TokenError::Invalid)));
        let empty = tokens.seal(&Page(Vec::new())).await.expect("sealed");
        assert!(matches!(tokens.open::<Page>(&empty).await, Err(TokenError::Invalid)));
        for other in ["", "x", "AAAA", "not base64!", &token[..token.len() - 4]] {
            assert!(is_invalid(other).await, "{other}");
        }
        let bytes = STANDARD.decode_to_vec(&token).expect("base64");
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(is_invalid(&STANDARD.encode_to_string(changed)).await, "bit {bit}");
        }
        let elsewhere = World::new().tokens().seal(&Place(vec![1])).await.expect("sealed");
        assert!(is_invalid(&elsewhere).await);
        assert_eq!(tokens.open::<Place>(&token).await.expect("opened"), Place(vec![1, 2, 3]));
    }

    #[tokio::test]
    async fn the_same_content_is_another_token_each_time() {
        let world = World::new();
        let (first, second) = (world.tokens(), world.tokens());
        let mut seen = HashSet::new();
        for _ in 0..100 {
            for tokens in [&first, &second] {
                assert!(seen.insert(tokens.seal(&Place(vec![1])).await.expect("sealed")));
            }
        }
    }

    #[tokio::test]
    async fn keys_turn_and_no_router_misses_one() {
        let world = World::new();
        let (first, second) = (world.tokens(), world.tokens());
        let number = |token: &str| {
            key_number(&STANDARD.decode_to_vec(token).expect("base64")).expect("a token")
        };
        let mut numbers = Vec::new();
        // Three days, of which each router sees other moments.
        for minute in 0..3 * 24 * 60 {
            world.pass(Duration::from_secs(60));
            let (one, other) = if minute % 3 == 0 { (&first, &second) } else { (&second, &first) };
            let token = one.seal(&Page(vec![1])).await.expect("sealed");
            numbers.push(number(&token));
            world.pass(Duration::from_secs(5));
            assert_eq!(other.open::<Page>(&token).await.expect("opened"), Page(vec![1]));
        }
        numbers.dedup();
        assert!(numbers.is_sorted(), "{numbers:?}");
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert_eq!(world.stored().await.keys.len(), 1, "old keys go");
    }

    #[tokio::test]
    async fn routers_that_start_at_once_agree_on_one_key() {
        let world = World::new();
        let routers: Vec<_> = (0..8).map(|_| world.tokens()).collect();
        let place = Place(vec![9]);
        let sealed = futures_util::future::join_all(routers.iter().map(|t| t.seal(&place))).await;
        for token in sealed {
            let token = token.expect("sealed");
            for router in &routers {
                assert_eq!(router.open::<Place>(&token).await.expect("opened"), place);
            }
        }
        assert_eq!(world.stored().await.keys.len(), 1);
    }

    #[tokio::test]
    async fn keys_outlive_a_store_that_stops() {
        let world = World::new();
        let tokens = world.tokens();
        let token = tokens.seal(&Place(vec![5])).await.expect("sealed");
        world.store.clone().close().await;
        world.pass(Duration::from_secs(120));
        assert_eq!(tokens.open::<Place>(&token).await.expect("opened"), Place(vec![5]));
        assert!(matches!(world.tokens().seal(&Place(vec![5])).await, Err(TokenError::Keys(_))));
    }

    #[test]
    fn secrets_are_not_shown() {
        let record = KeyRecord::new(1, 0).expect("random bytes");
        let value = crate::control::store::Value(encode_record(&KeysRecord {
            version: RECORD_VERSION,
            keys: vec![record.clone()],
        }));
        assert!(!format!("{value:?}").contains(&record.secret));
    }
}
