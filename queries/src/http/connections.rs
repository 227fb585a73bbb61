//! The connections that are open. At the limit the one that has been idle longest makes room, so that thousands of clients
//! that say nothing keep nobody out; where every one has a request under way, the new one is turned away.
//!
//! The surprise: a head that arrives byte by byte is idle. Only a whole one makes a connection busy.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::counts::Counts;

/// How many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// At once.
    pub total: usize,
    /// At once from one address that is not this machine's; a network of IPv6 counts as one.
    pub per_address: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        ConnectionLimits { total: 2_048, per_address: 256 }
    }
}

/// The connections that are open.
#[derive(Debug)]
pub(super) struct Connections {
    limits: ConnectionLimits,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    entries: HashMap<u64, Entry>,
    of_address: Counts<IpAddr>,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    /// Since when it is idle; `None` while a request is under way.
    idle_since: Option<Instant>,
    closing: CancellationToken,
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Connections> {
        Arc::new(Connections { limits, open: Mutex::default() })
    }

    /// A place for one more; `None` where there is none.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Place>> {
        let address = network(address);
        let mut open = self.lock();
        if !address.is_loopback() && open.of_address.of(&address) >= self.limits.per_address {
            open.make_room(Some(address))?;
        } else if open.entries.len() >= self.limits.total {
            open.make_room(None)?;
        }
        let id = open.next_id;
        open.next_id = id.wrapping_add(1);
        let closing = CancellationToken::new();
        let entry = Entry { address, idle_since: Some(Instant::now()), closing: closing.clone() };
        open.entries.insert(id, entry);
        open.of_address.add(address);
        Some(Arc::new(Place { id, closing, connections: Arc::clone(self) }))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Closes the connection that has been idle longest; `None` where all are busy.
    fn make_room(&mut self, of: Option<IpAddr>) -> Option<()> {
        let candidates = self.entries.iter().filter(|(_, entry)| of.is_none_or(|address| entry.address == address));
        let idle = candidates.filter_map(|(id, entry)| Some((entry.idle_since?, *id)));
        let (_, longest) = idle.min()?;
        if let Some(entry) = self.remove(longest) {
            entry.closing.cancel();
        }
        Some(())
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.of_address.remove(&entry.address);
        Some(entry)
    }
}

/// The place of one connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    closing: CancellationToken,
    connections: Arc<Connections>,
}

impl Place {
    /// Cancelled where the connection has to make room.
    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// A request is under way until what is returned is dropped.
    pub(super) fn busy(self: Arc<Self>) -> Busy {
        self.set(None);
        Busy(self)
    }

    fn set(&self, idle_since: Option<Instant>) {
        if let Some(entry) = self.connections.lock().entries.get_mut(&self.id) {
            entry.idle_since = idle_since;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().remove(self.id);
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Busy(Arc<Place>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(Some(Instant::now()));
    }
}

/// What counts as one address: of IPv6 whoever has one has 2^64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn connections(total: usize, per_address: usize) -> Arc<Connections> {
        Connections::new(ConnectionLimits { total, per_address })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_idle_makes_room_and_a_busy_one_does_not() {
        let connections = connections(3, 99);
        let local = address("127.0.0.1");
        let places: Vec<_> = (0..3).map(|_| connections.admit(local).unwrap()).collect();
        let busy = Arc::clone(&places[0]).busy();
        let fourth = connections.admit(local).unwrap();
        let closing = |place: &Arc<Place>| place.closing().is_cancelled();
        assert_eq!(places.iter().map(closing).collect::<Vec<_>>(), [false, true, false]);
        let others = [Arc::clone(&places[2]).busy(), Arc::clone(&fourth).busy()];
        assert!(connections.admit(local).is_none(), "all are busy");
        drop(busy);
        assert!(connections.admit(local).is_some());
        assert!(closing(&places[0]) && !closing(&fourth));
        drop(others);
    }

    #[test]
    fn one_address_takes_its_part_and_this_machine_all() {
        let connections = connections(100, 2);
        let far: Vec<_> = ["2001:db8::1", "2001:db8::2"].map(|from| connections.admit(address(from)).unwrap()).into();
        let held: Vec<_> = far.iter().map(|place| Arc::clone(place).busy()).collect();
        assert!(connections.admit(address("2001:db8::3")).is_none(), "one network, three connections");
        let other = connections.admit(address("2001:db8:0:1::1"));
        assert!(other.is_some());
        drop(held);
        assert!(connections.admit(address("2001:db8::3")).is_some());
        let local: Vec<_> = (0..50).map(|_| connections.admit(address("::ffff:127.0.0.1")).unwrap()).collect();
        assert!(local.iter().all(|place| !place.closing().is_cancelled()));
        drop((far, local, other));
        let open = connections.lock();
        assert!(open.entries.is_empty() && open.of_address.is_empty(), "places were not given back");
    }
}
