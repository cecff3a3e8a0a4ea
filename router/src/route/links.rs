//! The links to all cores, one each, for one purpose: made when they are first asked for, closed
//! when nobody has used them for a while.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::link::{LinkLimits, NodeLink};
use super::payload::AnswerMemory;

/// How long a link is kept that nobody holds or asks for.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// See the module. A clone is another handle.
#[derive(Clone)]
pub struct NodeLinks {
    limits: LinkLimits,
    memory: AnswerMemory,
    links: Arc<Mutex<HashMap<SocketAddr, Kept>>>,
}

struct Kept {
    link: NodeLink,
    used: Instant,
}

impl NodeLinks {
    /// Without links yet.
    #[must_use]
    pub fn new(limits: LinkLimits, memory: AnswerMemory) -> NodeLinks {
        NodeLinks { limits, memory, links: Arc::default() }
    }

    /// What the answers on all links fill.
    pub(super) fn memory(&self) -> &AnswerMemory {
        &self.memory
    }

    /// The link to a core. To be called within a tokio runtime.
    #[must_use]
    pub fn get(&self, address: SocketAddr) -> NodeLink {
        self.get_or_made(address).0
    }

    /// The link, and whether it was made now.
    pub(super) fn get_or_made(&self, address: SocketAddr) -> (NodeLink, bool) {
        let now = Instant::now();
        let mut links = self.links.lock().expect("nobody panics with it");
        if let Some(kept) = links.get_mut(&address) {
            kept.used = now;
            return (kept.link.clone(), false);
        }
        forget_idle(&mut links, now);
        let link = NodeLink::connect(address, self.limits, &self.memory);
        links.insert(address, Kept { link: link.clone(), used: now });
        (link, true)
    }
}

fn forget_idle(links: &mut HashMap<SocketAddr, Kept>, now: Instant) {
    links.retain(|_, kept| kept.link.is_shared() || now < kept.used + IDLE_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_is_made_once_and_closed_when_it_is_idle() {
        let links = NodeLinks::new(LinkLimits::default(), AnswerMemory::new(0));
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (held, made) = links.get_or_made(address(1));
        assert!(made && !links.get_or_made(address(1)).1);
        assert!(links.get_or_made(address(2)).1);
        let later = Instant::now() + IDLE_MAX;
        let mut kept = links.links.lock().unwrap();
        forget_idle(&mut kept, later - Duration::from_secs(1));
        assert_eq!(kept.len(), 2);
        forget_idle(&mut kept, later);
        assert_eq!(kept.keys().collect::<Vec<_>>(), [&held.address()]);
    }
}
