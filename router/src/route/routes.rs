//! Routes, as the way to the nodes asks for them. Who keeps them is another module's affair.

use std::net::SocketAddr;
use std::pin::Pin;

use thalweg_wire::error::Refusal;
use thalweg_wire::ids::{Epoch, ShardId};

/// Which core leads a shard, and under which tenure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Epoch of the tenure.
    pub epoch: Epoch,
    /// Address of the core.
    pub address: SocketAddr,
}

/// Why a route is asked for anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale {
    /// The route that was followed, if there was one.
    pub route: Option<Route>,
    /// What the node said to it: `StaleEpoch`, `WrongCore` (its hint is the right port),
    /// `ExtentClosed`, `UnknownShard`, `LogFailed` or `Stopping`. None when it could not be
    /// reached.
    pub refusal: Option<Refusal>,
}

/// A route that is being found out.
pub type RouteFuture<'a> = Pin<Box<dyn Future<Output = Option<Route>> + Send + 'a>>;

/// Knows where shards are.
pub trait Routes: Send + Sync + 'static {
    /// The route as far as it is known; asks nobody and does not block.
    fn route(&self, shard: ShardId) -> Option<Route>;

    /// A route failed: finds out where the shard is now. None when there is no such shard any
    /// more. Without news it answers what is known: it is asked again after a pause, no more often
    /// than some fifty times a second for each shard.
    fn refresh(&self, shard: ShardId, stale: Stale) -> RouteFuture<'_>;
}
