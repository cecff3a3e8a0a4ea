//! The timer service: the one source of time for leases and routes.
//!
//! It answers an [`Interval`] that the true time lies in, as long as the machine's clock is within
//! the error that is configured. Nothing's safety rests on that; leases and routes only live as
//! long as they should.
//!
//! The earliest time never falls, whatever the clock does and through restarts: before it is
//! answered, a mark at or above it is in the store. To spare the store the mark is set ahead, by a
//! step of a second; a timer that starts waits until its clock has passed the mark. Should the
//! clock be farther behind than an honest one can be, the timer goes on from the mark at once.
//!
//! Between readings time goes on with the monotonic clock. A reading of the wall clock narrows the
//! interval when both agree. When they do not, the wall clock was set: the timer follows it no
//! faster than a clock may drift, so that whoever extrapolates an earlier answer stays right.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use thalweg_wire::codec::{put, u64_at};
use thiserror::Error;

use super::store::{CommitError, Expectation, ReadError, Revision, Store, Transaction};

/// The key of the mark: two little-endian `u64`, the mark in microseconds and who set it.
pub const MARK_KEY: &[u8] = b"timer/mark";
const MARK_BYTES: usize = 16;
/// Largest configured error of the clock, in microseconds. Ours: leases last some seconds.
pub const CLOCK_ERROR_US_MAX: u64 = 10_000_000;
/// Largest configured drift, in parts per million. Ours: 1 %, a clock that is broken.
pub const DRIFT_PPM_MAX: u32 = 10_000;
/// Largest configured step of the mark, in microseconds. Ours: a start waits for as long.
pub const STEP_US_MAX: u64 = 60_000_000;

/// Steps to set the mark, of finding out and putting. Ours: two of each.
const MARK_ATTEMPTS_MAX: u32 = 4;

/// The clocks of a machine.
pub trait Clock: Send + Sync + 'static {
    /// Microseconds since 1970 as the machine knows them. May be set at any time.
    fn wall_us(&self) -> u64;

    /// Microseconds since some moment. Nobody sets it, and it counts while the machine sleeps.
    fn monotonic_us(&self) -> u64;

    /// Waits, for so many microseconds at least.
    fn sleep(&self, duration_us: u64) -> impl Future<Output = ()> + Send;
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_us(&self) -> u64 {
        // A clock before 1970 is as wrong as one that stands there.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn monotonic_us(&self) -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
    }

    async fn sleep(&self, duration_us: u64) {
        tokio::time::sleep(Duration::from_micros(duration_us)).await;
    }
}

/// Between which times the true time is, in microseconds since 1970. `earliest <= latest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interval {
    /// Not before this.
    pub earliest_us: u64,
    /// Not after this.
    pub latest_us: u64,
}

impl Interval {
    /// If it is surely before a time: a route is valid iff it is so before its lease's end.
    #[must_use]
    pub fn is_before(&self, time_us: u64) -> bool {
        self.latest_us < time_us
    }

    /// If it is surely after a time: a lease may be taken over iff it is so after its end.
    #[must_use]
    pub fn is_after(&self, time_us: u64) -> bool {
        self.earliest_us > time_us
    }

    /// What has become of it after `elapsed_us` on a clock that drifts by `drift_ppm` at most.
    #[must_use]
    pub fn later(&self, elapsed_us: u64, drift_ppm: u32) -> Interval {
        let drift_us = u128::from(elapsed_us) * u128::from(drift_ppm);
        let drift_us = u64::try_from(drift_us.div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let slow_us = elapsed_us.saturating_sub(drift_us);
        let fast_us = elapsed_us.saturating_add(drift_us);
        Interval {
            earliest_us: self.earliest_us.saturating_add(slow_us),
            latest_us: self.latest_us.saturating_add(fast_us),
        }
    }
}

/// How far the clocks are trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerOptions {
    /// How far the wall clock is off at most, in microseconds.
    pub clock_error_us: u64,
    /// How far the monotonic clock drifts at most, in parts per million. The kernel slews it by up
    /// to 500 (adjtimex(2)), beside the error of its oscillator.
    pub drift_ppm: u32,
    /// How far ahead the mark is set, in microseconds.
    pub step_us: u64,
}

impl Default for TimerOptions {
    fn default() -> TimerOptions {
        TimerOptions { clock_error_us: 100_000, drift_ppm: 1000, step_us: 1_000_000 }
    }
}

/// Why there is no time.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TimerError {
    /// The options are out of range.
    #[error(
        "timer options out of range: the clock's error is at most {CLOCK_ERROR_US_MAX} us, the \
         drift at most {DRIFT_PPM_MAX} ppm, the step 1 to {STEP_US_MAX} us"
    )]
    Options,
    /// There are no random numbers to tell timers apart.
    #[error("the system gives no random numbers: check that getrandom(2) is allowed")]
    Random,
    /// Another timer has started on the store.
    #[error("another router is the timer now: ask the controller that was elected")]
    Superseded,
    /// Attempts that were given up came between, again and again.
    #[error("the timer's mark is being set by calls that were given up: ask again")]
    Contended,
    /// The mark in the store is none.
    #[error(
        "the timer's mark in the store has {bytes} bytes instead of {MARK_BYTES}: delete its key \
         while the clock is right"
    )]
    Mark {
        /// How many it has.
        bytes: usize,
    },
    /// The mark cannot be read.
    #[error("the timer's mark cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The mark cannot be set.
    #[error("the timer's mark cannot be set: {0}")]
    Commit(CommitError),
}

/// The timer.
///
/// `answered earliest <= mark in the store`, always.
#[derive(Debug)]
pub struct Timer<S, C> {
    store: S,
    clock: C,
    options: TimerOptions,
    /// Who this timer is, among those that set the mark.
    id: u64,
    face: Mutex<Face>,
    /// Held while the mark is set.
    mark: tokio::sync::Mutex<Known>,
}

/// What the timer shows.
#[derive(Clone, Copy, Debug)]
struct Face {
    interval: Interval,
    /// When it showed that, on the monotonic clock.
    read_at_us: u64,
    /// What is durable.
    mark_us: u64,
    /// If the wall clock and the timer disagree.
    is_apart: bool,
}

/// What is known of the mark's key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// As it was last put; `None` when it never was.
    At(Option<Revision>),
    /// The last attempt to put it may have succeeded or not; as it was put before.
    Unknown(Option<Revision>),
    /// Another timer has put it.
    Superseded,
}

impl<S: Store, C: Clock> Timer<S, C> {
    /// Starts the timer of a store, and ends the one before: it can answer nothing later than its
    /// mark. Waits until the clock has passed the mark, a step and twice the clock's error at most.
    ///
    /// # Errors
    /// [`TimerError`].
    pub async fn start(store: S, clock: C, options: TimerOptions) -> Result<Self, TimerError> {
        options.check()?;
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|_| TimerError::Random)?;
        let entry = store.get(Bytes::from_static(MARK_KEY)).await?;
        let (mark_us, known) = match &entry {
            Some(entry) => (decode(&entry.value.0)?.0, Some(entry.mod_revision)),
            None => (0, None),
        };
        let (interval, read_at_us) = read_clock(&clock, &options);
        let face = Face { interval, read_at_us, mark_us, is_apart: false };
        let timer = Timer {
            store,
            clock,
            options,
            id: u64::from_le_bytes(id),
            face: Mutex::new(face),
            mark: tokio::sync::Mutex::new(Known::At(known)),
        };
        timer.pass_mark().await;
        timer.now().await?;
        Ok(timer)
    }

    /// What time it is.
    ///
    /// # Errors
    /// [`TimerError`], when the mark would have to be set and cannot be.
    pub async fn now(&self) -> Result<Interval, TimerError> {
        let shown = self.read();
        if shown.interval.earliest_us <= shown.mark_us {
            return Ok(shown.interval);
        }
        self.set_mark(shown.interval.earliest_us).await?;
        // It has got later meanwhile. An earlier bound than the timer knows is right as well.
        let Face { interval, mark_us, .. } = self.read();
        Ok(Interval { earliest_us: interval.earliest_us.min(mark_us), ..interval })
    }

    /// If the wall clock is farther from the timer than its error allows: one of them is wrong.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        self.face().is_apart
    }

    /// Waits until an honest clock has passed the mark; takes the mark for the time when it has
    /// not, or is too far behind.
    async fn pass_mark(&self) {
        let Face { interval, mark_us, .. } = *self.face();
        let behind_us = mark_us.saturating_sub(interval.earliest_us);
        let error_us = 2 * self.options.clock_error_us;
        if (1..=self.options.step_us + error_us).contains(&behind_us) {
            // Twice the error: the reading may have been fast and the next be slow.
            let wait_us = behind_us + error_us;
            let drift_us = wait_us * u64::from(self.options.drift_ppm) / 1_000_000 + 1;
            self.clock.sleep(wait_us + drift_us).await;
        }
        let Face { interval, .. } = self.read();
        if interval.earliest_us < mark_us {
            let behind_us = mark_us - interval.earliest_us;
            tracing::warn!(behind_us, "the clock is behind the time that leases have seen already");
            let latest_us = interval.latest_us.max(mark_us.saturating_add(error_us));
            self.face().interval = Interval { earliest_us: mark_us, latest_us };
        }
    }

    /// Reads the clocks and moves the face on.
    fn read(&self) -> Face {
        let mut face = self.face();
        let (reading, at_us) = read_clock(&self.clock, &self.options);
        let was_apart = face.is_apart;
        face.move_to(reading, at_us, &self.options);
        if face.is_apart && !was_apart {
            let wall_us = reading.earliest_us.saturating_add(self.options.clock_error_us);
            let timer_us = face.interval.earliest_us;
            tracing::warn!(wall_us, timer_us, "the wall clock was set, the timer follows slowly");
        }
        *face
    }

    /// Sets the mark a step above a time, unless it is above it already.
    async fn set_mark(&self, time_us: u64) -> Result<(), TimerError> {
        let mut known = self.mark.lock().await;
        for _ in 0..MARK_ATTEMPTS_MAX {
            if time_us <= self.face().mark_us {
                return Ok(());
            }
            let revision = match *known {
                Known::At(revision) => revision,
                Known::Superseded => return Err(TimerError::Superseded),
                Known::Unknown(before) => {
                    *known = self.learn(before).await?;
                    continue;
                }
            };
            // Whoever asked may go while it is under way.
            *known = Known::Unknown(revision);
            let mark_us = time_us.saturating_add(self.options.step_us);
            match self.put_mark(mark_us, revision).await {
                Ok(revision) => {
                    *known = Known::At(Some(revision));
                    self.face().mark_us = mark_us;
                    return Ok(());
                }
                // By another timer, or by an attempt of this one that had been given up.
                Err(CommitError::Conflict(_)) => {}
                Err(error) => {
                    if !matches!(error, CommitError::OutcomeUnknown { .. }) {
                        *known = Known::At(revision);
                    }
                    return Err(TimerError::Commit(error));
                }
            }
        }
        Err(TimerError::Contended)
    }

    async fn put_mark(
        &self,
        mark_us: u64,
        revision: Option<Revision>,
    ) -> Result<Revision, CommitError> {
        let expectation = revision.map_or(Expectation::Absent, Expectation::ModRevision);
        let transaction = Transaction::new().expect(MARK_KEY, expectation);
        self.store.commit(transaction.put(MARK_KEY, encode(mark_us, self.id))).await
    }

    /// Finds out what became of the last attempt. One that is still under way is met when the
    /// mark is put the next time.
    async fn learn(&self, before: Option<Revision>) -> Result<Known, TimerError> {
        let entry = self.store.get(Bytes::from_static(MARK_KEY)).await?;
        let revision = entry.as_ref().map(|entry| entry.mod_revision);
        if revision == before {
            return Ok(Known::At(before));
        }
        let Some(entry) = entry else { return Ok(Known::Superseded) };
        let (mark_us, id) = decode(&entry.value.0)?;
        if id != self.id {
            return Ok(Known::Superseded);
        }
        self.face().mark_us = mark_us;
        Ok(Known::At(revision))
    }

    fn face(&self) -> MutexGuard<'_, Face> {
        // Nothing panics while it is held half-changed.
        self.face.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Face {
    /// Goes on to a moment, and takes a reading of the wall clock at it into account.
    fn move_to(&mut self, reading: Interval, at_us: u64, options: &TimerOptions) {
        let elapsed_us = at_us.saturating_sub(self.read_at_us);
        let Interval { earliest_us, latest_us } =
            self.interval.later(elapsed_us, options.drift_ppm);
        let width_us = 2 * options.clock_error_us;
        self.is_apart = reading.latest_us < earliest_us || reading.earliest_us > latest_us;
        self.interval = if reading.latest_us < earliest_us {
            // The wall clock is behind: as slow as the monotonic clock may have been.
            Interval { earliest_us, latest_us: latest_us.min(earliest_us.saturating_add(width_us)) }
        } else if reading.earliest_us > latest_us {
            // It is ahead: as fast as that may have been.
            Interval { earliest_us: earliest_us.max(latest_us.saturating_sub(width_us)), latest_us }
        } else {
            Interval {
                earliest_us: earliest_us.max(reading.earliest_us),
                latest_us: latest_us.min(reading.latest_us),
            }
        };
        self.read_at_us = self.read_at_us.max(at_us);
    }
}

/// The time by the wall clock, and the monotonic clock's when it was that.
fn read_clock(clock: &impl Clock, options: &TimerOptions) -> (Interval, u64) {
    let before_us = clock.monotonic_us();
    let wall_us = clock.wall_us();
    let at_us = clock.monotonic_us();
    let error_us = options.clock_error_us;
    let read = Interval {
        earliest_us: wall_us.saturating_sub(error_us),
        latest_us: wall_us.saturating_add(error_us),
    };
    // The thread may have been halted between the readings.
    let passed = read.later(at_us.saturating_sub(before_us), options.drift_ppm);
    (Interval { latest_us: passed.latest_us, ..read }, at_us)
}

impl TimerOptions {
    fn check(&self) -> Result<(), TimerError> {
        let is_valid = self.clock_error_us <= CLOCK_ERROR_US_MAX
            && self.drift_ppm <= DRIFT_PPM_MAX
            && (1..=STEP_US_MAX).contains(&self.step_us);
        if is_valid { Ok(()) } else { Err(TimerError::Options) }
    }
}

fn encode(mark_us: u64, id: u64) -> Vec<u8> {
    let mut bytes = vec![0; MARK_BYTES];
    put(&mut bytes, 0, mark_us.to_le_bytes());
    put(&mut bytes, 8, id.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<(u64, u64), TimerError> {
    if bytes.len() != MARK_BYTES {
        return Err(TimerError::Mark { bytes: bytes.len() });
    }
    Ok((u64_at(bytes, 0), u64_at(bytes, 8)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::store::embedded::faults::{Disk, Plan};
    use super::super::store::embedded::{EmbeddedOptions, EmbeddedStore};
    use super::*;

    /// Some moment in microseconds.
    const BEGIN_US: u64 = 1_700_000_000_000_000;
    const OPTIONS: TimerOptions =
        TimerOptions { clock_error_us: 20_000, drift_ppm: 500, step_us: 1_000_000 };

    /// A clock in a simulated world. Clones are one.
    #[derive(Clone)]
    struct SimClock(Arc<Mutex<World>>);

    struct World {
        true_us: u64,
        /// What the wall clock shows beside the true time.
        wall_error_us: i64,
        wall_frozen_at_us: Option<u64>,
        monotonic_us: u64,
        monotonic_ppm: i64,
        is_monotonic_frozen: bool,
        slept_us: u64,
    }

    impl World {
        fn pass(&mut self, elapsed_us: u64) {
            self.true_us += elapsed_us;
            if !self.is_monotonic_frozen {
                let drift_us = elapsed_us as i64 * self.monotonic_ppm / 1_000_000;
                self.monotonic_us += elapsed_us.saturating_add_signed(drift_us);
            }
        }
    }

    impl SimClock {
        fn new() -> SimClock {
            SimClock(Arc::new(Mutex::new(World {
                true_us: BEGIN_US,
                wall_error_us: 0,
                wall_frozen_at_us: None,
                monotonic_us: 5,
                monotonic_ppm: 0,
                is_monotonic_frozen: false,
                slept_us: 0,
            })))
        }

        fn world(&self) -> MutexGuard<'_, World> {
            self.0.lock().unwrap()
        }

        fn pass(&self, elapsed_us: u64) {
            self.world().pass(elapsed_us);
        }

        fn true_us(&self) -> u64 {
            self.world().true_us
        }
    }

    impl Clock for SimClock {
        fn wall_us(&self) -> u64 {
            let world = self.world();
            let true_us = world.true_us.saturating_add_signed(world.wall_error_us);
            world.wall_frozen_at_us.unwrap_or(true_us)
        }

        fn monotonic_us(&self) -> u64 {
            self.world().monotonic_us
        }

        async fn sleep(&self, duration_us: u64) {
            let mut world = self.world();
            world.pass(duration_us);
            world.slept_us += duration_us;
        }
    }

    fn store() -> EmbeddedStore {
        Disk::default().open(EmbeddedOptions::default())
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    async fn mark_of(store: &EmbeddedStore) -> u64 {
        let entry = store.get(Bytes::from_static(MARK_KEY)).await.unwrap().unwrap();
        decode(&entry.value.0).unwrap().0
    }

    #[tokio::test]
    async fn the_mark_is_durable_before_the_time_is_told_and_set_once_a_step() {
        let (store, clock) = (store(), SimClock::new());
        let timer = Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
        let begin = store.status().revision;
        for _ in 0..100 {
            clock.pass(50_000);
            let now = timer.now().await.unwrap();
            assert!(now.earliest_us <= mark_of(&store).await);
        }
        let commits = store.status().revision.0 - begin.0;
        assert!((4..=5).contains(&commits), "{commits} in 5 s");
        assert_eq!(clock.world().slept_us, 0, "the first start has nothing to wait for");
    }

    #[tokio::test]
    async fn a_restart_waits_until_the_clock_has_passed_the_mark() {
        let (store, clock) = (store(), SimClock::new());
        clock.world().wall_error_us = 20_000;
        let timer = Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
        let told = timer.now().await.unwrap();
        let mark_us = mark_of(&store).await;
        drop(timer);
        clock.pass(100_000);
        clock.world().wall_error_us = -20_000;
        let timer = Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
        let now = timer.now().await.unwrap();
        assert!(now.earliest_us >= mark_us && now.earliest_us > told.earliest_us);
        assert!((now.earliest_us..=now.latest_us).contains(&clock.true_us()));
        let slept_us = clock.world().slept_us;
        assert!((900_000..1_200_000).contains(&slept_us), "{slept_us}");
        assert!(!timer.is_apart());
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_does_not_hold_time_up() {
        let (store, clock) = (store(), SimClock::new());
        drop(Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap());
        let mark_us = mark_of(&store).await;
        clock.world().wall_error_us = -3_600_000_000;
        let timer = Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
        assert_eq!(clock.world().slept_us, 0, "no honest clock is an hour behind");
        let begin = timer.now().await.unwrap();
        assert_eq!(begin.earliest_us, mark_us);
        clock.pass(10_000_000);
        let end = timer.now().await.unwrap();
        let passed_us = end.earliest_us - begin.earliest_us;
        assert!((9_990_000..=10_000_000).contains(&passed_us), "{passed_us}");
        assert!(end.latest_us - end.earliest_us <= 2 * OPTIONS.clock_error_us);
        assert!(timer.is_apart());
    }

    #[tokio::test]
    async fn a_jump_of_the_wall_clock_is_followed_slowly() {
        // In 10 s, as much slower or faster as the clock may drift.
        for (jump_us, expected_us) in [(-7_200_000_000, 9_995_000), (7_200_000_000, 10_005_000)] {
            let clock = SimClock::new();
            let timer = Timer::start(store(), clock.clone(), OPTIONS).await.unwrap();
            let begin = timer.now().await.unwrap();
            clock.world().wall_error_us = jump_us;
            for _ in 0..200 {
                clock.pass(50_000);
                timer.now().await.unwrap();
            }
            let end = timer.now().await.unwrap();
            assert!(timer.is_apart());
            let passed_us = end.earliest_us - begin.earliest_us;
            assert!(passed_us.abs_diff(expected_us) < 500, "{passed_us}");
            assert!(end.latest_us - end.earliest_us <= 2 * OPTIONS.clock_error_us);
            clock.world().wall_error_us = 0;
            clock.pass(50_000);
            timer.now().await.unwrap();
            assert!(!timer.is_apart(), "they agree again");
        }
    }

    #[tokio::test]
    async fn the_next_timer_ends_the_one_before() {
        let (store, clock) = (store(), SimClock::new());
        let first = Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
        let second = Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
        let told = second.now().await.unwrap();
        match first.now().await {
            Ok(late) => assert!(late.earliest_us <= told.earliest_us),
            Err(error) => assert_eq!(error, TimerError::Superseded),
        }
        clock.pass(10_000_000);
        assert_eq!(first.now().await, Err(TimerError::Superseded));
        assert_eq!(first.now().await, Err(TimerError::Superseded), "it stays so");
        second.now().await.unwrap();
    }

    #[tokio::test]
    async fn what_became_of_an_unanswered_mark_is_found_out() {
        let (store, clock) = (store(), SimClock::new());
        let timer = Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
        for _ in 0..20 {
            clock.pass(3_000_000);
            // Given up while the commit is under way.
            drop(tokio::time::timeout(Duration::ZERO, timer.now()).await);
            let now = timer.now().await.unwrap();
            assert!(now.earliest_us <= mark_of(&store).await);
        }
        let before = timer.now().await.unwrap();
        clock.pass(3_000_000);
        // It was not done, and somebody else sets the mark meanwhile.
        *timer.mark.lock().await = Known::Unknown(Some(Revision(1)));
        let foreign = encode(before.latest_us + 9_000_000, timer.id ^ 1);
        store.commit(Transaction::new().put(MARK_KEY, foreign)).await.unwrap();
        assert_eq!(timer.now().await, Err(TimerError::Superseded));
    }

    #[tokio::test]
    async fn without_the_store_no_time_beyond_the_mark_is_told() {
        let (disk, clock) = (Disk::default(), SimClock::new());
        let store = disk.open(EmbeddedOptions::default());
        let timer = Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
        let before = timer.now().await.unwrap();
        disk.plan(Plan { fail_sync: Some(1), ..Plan::default() });
        clock.pass(500_000);
        let within = timer.now().await.expect("the mark is ahead");
        assert!(within.earliest_us > before.earliest_us);
        clock.pass(1_000_000);
        let failed = timer.now().await;
        assert!(matches!(failed, Err(TimerError::Commit(_))), "{failed:?}");
        assert!(timer.now().await.is_err());
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused() {
        let clock = SimClock::new();
        for options in [
            TimerOptions { clock_error_us: CLOCK_ERROR_US_MAX + 1, ..OPTIONS },
            TimerOptions { drift_ppm: DRIFT_PPM_MAX + 1, ..OPTIONS },
            TimerOptions { step_us: 0, ..OPTIONS },
            TimerOptions { step_us: STEP_US_MAX + 1, ..OPTIONS },
        ] {
            let refused = Timer::start(store(), clock.clone(), options).await.map(|_| ());
            assert_eq!(refused, Err(TimerError::Options));
        }
        let store = store();
        store.commit(Transaction::new().put(MARK_KEY, "now")).await.unwrap();
        let refused = Timer::start(store, clock.clone(), OPTIONS).await.map(|_| ());
        assert_eq!(refused, Err(TimerError::Mark { bytes: 3 }));
    }

    #[tokio::test]
    async fn the_clocks_of_this_machine_go() {
        let clock = SystemClock;
        let (wall_us, monotonic_us) = (clock.wall_us(), clock.monotonic_us());
        clock.sleep(2000).await;
        assert!(clock.monotonic_us() - monotonic_us >= 2000);
        assert!(wall_us > BEGIN_US);
        let timer = Timer::start(store(), clock, TimerOptions::default()).await.unwrap();
        let now = timer.now().await.unwrap();
        assert!((now.earliest_us..=now.latest_us).contains(&clock.wall_us()));
    }

    #[test]
    fn an_interval_widens_by_the_drift() {
        let interval = Interval { earliest_us: 1000, latest_us: 2000 };
        let later = interval.later(1_000_000, 500);
        assert_eq!((later.earliest_us, later.latest_us), (1_000_500, 1_002_500));
        assert_eq!(interval.later(0, 500), interval);
        assert!(interval.is_before(2001) && !interval.is_before(2000));
        assert!(interval.is_after(999) && !interval.is_after(1000));
        let end = Interval { earliest_us: u64::MAX, latest_us: u64::MAX };
        assert_eq!(end.later(u64::MAX, 500), end);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pass {
            elapsed_us: u64,
        },
        /// The clock is slewed, within its error.
        Slew {
            error_us: i64,
        },
        Drift {
            ppm: i64,
        },
        Restart,
        /// From here on the clocks are not within their error.
        Jump {
            by_us: i64,
        },
        FreezeWall,
        FreezeAll,
        Thaw,
    }

    fn step() -> impl Strategy<Value = Step> {
        let error_us = OPTIONS.clock_error_us as i64;
        let drift_ppm = i64::from(OPTIONS.drift_ppm);
        prop_oneof![
            12 => prop_oneof![0..200_000_u64, 0..5_000_000_u64]
                .prop_map(|elapsed_us| Step::Pass { elapsed_us }),
            4 => (-error_us..=error_us).prop_map(|error_us| Step::Slew { error_us }),
            2 => (-drift_ppm + 1..drift_ppm).prop_map(|ppm| Step::Drift { ppm }),
            3 => Just(Step::Restart),
            1 => prop_oneof![-4_000_000_000..4_000_000_000_i64, -100_000..100_000_i64]
                .prop_map(|by_us| Step::Jump { by_us }),
            1 => Just(Step::FreezeWall),
            1 => Just(Step::FreezeAll),
            1 => Just(Step::Thaw),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn time_never_falls_and_is_true_while_the_clock_is(
            steps in prop::collection::vec(step(), 1..80),
            is_honest in any::<bool>(),
        ) {
            runtime().block_on(async {
                let (store, clock) = (store(), SimClock::new());
                let mut timer =
                    Timer::start(store.clone(), clock.clone(), OPTIONS).await.unwrap();
                let (mut last_us, mut is_true) = (0, true);
                for step in steps {
                    let is_lie = matches!(
                        step,
                        Step::Jump { .. } | Step::FreezeWall | Step::FreezeAll | Step::Thaw
                    );
                    if is_lie && is_honest {
                        continue;
                    }
                    is_true &= !is_lie;
                    match step {
                        Step::Pass { elapsed_us } => clock.pass(elapsed_us),
                        Step::Slew { error_us } => clock.world().wall_error_us = error_us,
                        Step::Drift { ppm } => clock.world().monotonic_ppm = ppm,
                        Step::Jump { by_us } => clock.world().wall_error_us += by_us,
                        Step::FreezeWall => {
                            let wall_us = clock.wall_us();
                            clock.world().wall_frozen_at_us = Some(wall_us);
                        }
                        Step::FreezeAll => {
                            let wall_us = clock.wall_us();
                            let mut world = clock.world();
                            world.wall_frozen_at_us = Some(wall_us);
                            world.is_monotonic_frozen = true;
                        }
                        Step::Thaw => {
                            let mut world = clock.world();
                            world.wall_frozen_at_us = None;
                            world.is_monotonic_frozen = false;
                        }
                        Step::Restart => {
                            let before_us = clock.world().slept_us;
                            timer = Timer::start(store.clone(), clock.clone(), OPTIONS)
                                .await
                                .unwrap();
                            let slept_us = clock.world().slept_us - before_us;
                            assert!(slept_us <= OPTIONS.step_us + 5 * OPTIONS.clock_error_us);
                        }
                    }
                    let now = timer.now().await.unwrap();
                    assert!(now.earliest_us >= last_us, "{} < {last_us}", now.earliest_us);
                    assert!(now.earliest_us <= now.latest_us);
                    assert!(now.earliest_us <= mark_of(&store).await);
                    if is_true {
                        let true_us = clock.true_us();
                        assert!(
                            (now.earliest_us..=now.latest_us).contains(&true_us),
                            "{true_us} is not in {now:?}"
                        );
                        assert!(now.latest_us - now.earliest_us <= 2 * OPTIONS.clock_error_us);
                    }
                    last_us = now.earliest_us;
                }
            });
        }
    }
}
