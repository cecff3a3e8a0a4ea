//! The places of connections: when all are taken, the connection that has been idle longest goes
//! for the one that comes.
//!
//! Whoever opens connections and says nothing would otherwise keep all others out for as long as
//! connections may be idle. Clients expect that an idle connection may be closed, and open another.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::unconstrained;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::exchange::Activity;

/// Connections that wait for the place of one that goes, at a time: files that are open beside the
/// places. One that goes is gone at once, unless it speaks HTTP/2 and does not answer.
pub const ARRIVALS_MAX: usize = 256;

/// How long they wait: longer than one that goes may take to tell its client.
const ARRIVAL_TIME: Duration = Duration::from_secs(5);

/// The connections of a server.
pub(super) struct Connections {
    places: Arc<Semaphore>,
    connections_max: usize,
    arrivals: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_number: HashMap<u64, Asked>,
    last_number: u64,
}

/// A connection as far as it can be asked to go.
struct Asked {
    activity: Arc<Activity>,
    leave: CancellationToken,
}

/// A place that will be free.
type FuturePlace = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// A connection that comes.
pub(super) enum Arrival {
    /// It has a place.
    Placed(OwnedSemaphorePermit),
    /// It has one when another connection has gone.
    Waiting { place: FuturePlace, arrival: OwnedSemaphorePermit },
}

impl Arrival {
    /// Its place; `None` when none became free in time.
    pub(super) async fn place(self) -> Option<OwnedSemaphorePermit> {
        match self {
            Arrival::Placed(place) => Some(place),
            Arrival::Waiting { place, arrival: _arrival } => {
                timeout(ARRIVAL_TIME, place).await.ok()?.ok()
            }
        }
    }
}

/// A connection that is open, for as long as this lives.
pub(super) struct OpenConnection {
    connections: Arc<Connections>,
    number: u64,
    pub(super) activity: Arc<Activity>,
    /// Cancelled when it is to go for another one.
    pub(super) leave: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.connections.open().by_number.remove(&self.number);
    }
}

impl Connections {
    pub(super) fn new(connections_max: usize) -> Connections {
        Connections {
            places: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            arrivals: Arc::new(Semaphore::new(ARRIVALS_MAX)),
            open: Mutex::default(),
        }
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.connections_max - self.places.available_permits()
    }

    /// A connection comes. If all places are taken, another one is asked to go; `None` when none is
    /// idle, or too many wait.
    pub(super) fn admit(&self) -> Option<Arrival> {
        // It stands in line from now on: a place that becomes free before it is waited for is not for
        // who comes later. So each one that is asked to go makes room for one.
        let mut place: FuturePlace = Box::pin(unconstrained(self.places.clone().acquire_owned()));
        let polled = place.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(place) = polled {
            return place.ok().map(Arrival::Placed);
        }
        let arrival = self.arrivals.clone().try_acquire_owned().ok()?;
        let open = self.open();
        let staying = open.by_number.values().filter(|asked| !asked.leave.is_cancelled());
        let idle = staying.filter_map(|asked| Some((asked.activity.idle_since()?, &asked.leave)));
        let (_, leave) = idle.min_by_key(|(since, _)| *since)?;
        leave.cancel();
        Some(Arrival::Waiting { place, arrival })
    }

    /// A connection that has its place is open.
    pub(super) fn open_in(self: &Arc<Self>, place: OwnedSemaphorePermit) -> OpenConnection {
        let (activity, leave) = (Arc::new(Activity::new()), CancellationToken::new());
        let mut open = self.open();
        open.last_number += 1;
        let number = open.last_number;
        let asked = Asked { activity: activity.clone(), leave: leave.clone() };
        open.by_number.insert(number, asked);
        drop(open);
        OpenConnection { connections: self.clone(), number, activity, leave, _place: place }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::exchange::UnderWay;
    use super::*;

    fn placed(connections: &Arc<Connections>) -> OpenConnection {
        match connections.admit() {
            Some(Arrival::Placed(place)) => connections.open_in(place),
            Some(Arrival::Waiting { .. }) => panic!("there is a place"),
            None => panic!("it is refused"),
        }
    }

    fn pause() {
        std::thread::sleep(Duration::from_millis(3));
    }

    #[tokio::test]
    async fn the_one_that_has_been_idle_longest_goes() {
        let connections = Arc::new(Connections::new(4));
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(placed(&connections));
            pause();
        }
        // The first had a request after the others came, the second has one, the third takes
        // nothing of its answer.
        let busy = UnderWay::new(open[1].activity.clone());
        open[2].activity.blocked();
        drop(UnderWay::new(open[0].activity.clone()));
        let is_leaving = |open: &[OpenConnection]| -> Vec<bool> {
            open.iter().map(|one| one.leave.is_cancelled()).collect()
        };
        let fifth = connections.admit().expect("one goes");
        assert_eq!(is_leaving(&open), [false, false, false, true]);
        let sixth = connections.admit().expect("another one goes");
        assert_eq!(is_leaving(&open), [true, false, false, true]);
        assert!(connections.admit().is_none(), "nobody is asked twice, and the others are busy");
        drop(busy);
        open.pop();
        assert!(fifth.place().await.is_some());
        assert!(sixth.place().await.is_some(), "it is dropped, and there is nobody else in line");
        assert_eq!(connections.count(), 3);
    }

    #[tokio::test]
    async fn who_comes_later_does_not_take_the_place_of_who_waits() {
        let connections = Arc::new(Connections::new(1));
        let open = placed(&connections);
        let waits = connections.admit().expect("the other one goes");
        assert!(open.leave.is_cancelled());
        drop(open);
        assert!(connections.admit().is_none());
        assert!(waits.place().await.is_some());
    }

    #[test]
    fn what_begins_to_be_a_request_is_idle_since_it_began() {
        let connections = Arc::new(Connections::new(2));
        let slow = placed(&connections);
        pause();
        let silent = placed(&connections);
        pause();
        slow.activity.received();
        let _third = connections.admit().expect("one goes");
        assert_eq!((slow.leave.is_cancelled(), silent.leave.is_cancelled()), (false, true));
        let _fourth = connections.admit().expect("the other one goes");
        assert!(slow.leave.is_cancelled());
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let connections = Arc::new(Connections::new(ARRIVALS_MAX + 10));
        let open: Vec<_> = (0..ARRIVALS_MAX + 10).map(|_| placed(&connections)).collect();
        let waiting: Vec<_> = (0..ARRIVALS_MAX).map_while(|_| connections.admit()).collect();
        assert_eq!(waiting.len(), ARRIVALS_MAX);
        assert!(connections.admit().is_none());
        drop(waiting);
        assert!(connections.admit().is_some());
        drop(open);
        assert_eq!(connections.count(), 0);
        assert!(connections.open().by_number.is_empty());
    }
}
