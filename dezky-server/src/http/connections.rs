//! The open connections, up to a bound, and which of them is closed for the next.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::connection::Connection;

/// The time that a connection may keep the server waiting before it can be evicted.
const MIN_QUIET: Duration = Duration::from_secs(1);
/// The least time between two log lines about the same problem.
const REPORT_INTERVAL: Duration = Duration::from_mins(1);

/// The permits for connections, and the connections that hold one.
pub(super) struct Connections {
    permits: Arc<Semaphore>,
    max: u32,
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    connections: Vec<Weak<Connection>>,
    evicted: Tally,
}

/// Counts occurrences of a problem, to report them at intervals.
#[derive(Default)]
pub(super) struct Tally {
    count: u64,
    reported: Option<Instant>,
}

impl Tally {
    /// Counts one more. Returns the number since the last report, if the next report is due.
    pub(super) fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.reported.is_some_and(|reported| now < reported + REPORT_INTERVAL) {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

impl Connections {
    pub(super) fn new(permits: usize) -> Self {
        let max = u32::try_from(permits).unwrap_or(u32::MAX);
        Self { permits: Arc::new(Semaphore::new(permits)), max, registry: Mutex::default() }
    }

    /// A permit, if one is free.
    pub(super) fn try_admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// Resolves when a permit is free.
    pub(super) async fn available(&self) {
        // The semaphore is never closed.
        let _ = self.permits.acquire().await;
    }

    /// Resolves when no connection is open.
    pub(super) async fn all_closed(&self) {
        let _ = self.permits.acquire_many(self.max).await;
    }

    /// Registers a connection from `address`.
    pub(super) fn register(
        &self,
        permit: OwnedSemaphorePermit,
        address: IpAddr,
    ) -> Arc<Connection> {
        let connection = Arc::new(Connection::new(permit, network_of(address)));
        let mut registry = self.registry();
        if registry.connections.len() >= 2 * self.max as usize {
            registry.connections.retain(|connection| connection.strong_count() > 0);
        }
        registry.connections.push(Arc::downgrade(&connection));
        connection
    }

    /// Closes one connection to make room for the next: of those that have kept the server
    /// waiting for a second or longer, one from the network with the most connections, and
    /// there the one that has done so for longest. So a crowd of silent clients evicts its own
    /// connections first. In a crowd with more than half of all permits a client that sends
    /// a trickle counts as silent.
    pub(super) fn evict_one(&self) {
        self.evict_one_at(Instant::now());
    }

    fn evict_one_at(&self, now: Instant) {
        let mut registry = self.registry();
        let mut from: HashMap<IpAddr, usize> = HashMap::new();
        registry.connections.retain(|connection| {
            let Some(connection) = connection.upgrade() else { return false };
            *from.entry(connection.network()).or_default() += 1;
            true
        });
        let waiting = registry.connections.iter().filter_map(|connection| {
            let connection = connection.upgrade()?;
            let share = from[&connection.network()];
            let is_of_majority = share > self.max as usize / 2;
            let quiet = now.saturating_duration_since(connection.quiet_since(is_of_majority)?);
            (quiet >= MIN_QUIET).then_some((share, quiet, is_of_majority, connection))
        });
        let first = waiting.max_by_key(|(share, quiet, ..)| (*share, *quiet));
        let Some((_, quiet, is_of_majority, connection)) = first else { return };
        // It may have begun a request in the meantime; then the next attempt finds another.
        if !connection.close_if_quiet(is_of_majority, now.checked_sub(quiet).unwrap_or(now)) {
            return;
        }
        if let Some(connections) = registry.evicted.add(now) {
            tracing::warn!(
                connections,
                "the limit of connections is reached: silent connections made way"
            );
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The network that counts as one client: an IPv4 address, or the /64 that a single IPv6
/// client usually has.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(connections: &Connections, address: &str) -> Arc<Connection> {
        connections.register(connections.try_admit().unwrap(), address.parse().unwrap())
    }

    #[test]
    fn the_crowd_makes_way_and_its_longest_silent_one_first() {
        let connections = Connections::new(4);
        let alone = enter(&connections, "203.0.113.7");
        let first = enter(&connections, "2001:db8::1");
        let second = enter(&connections, "2001:db8::2");
        let busy = enter(&connections, "2001:db8::3");
        let _request = busy.begin_request();
        assert!(connections.try_admit().is_none());
        connections.evict_one_at(Instant::now() + MIN_QUIET);
        assert!(
            first.is_closed() && !second.is_closed() && !alone.is_closed() && !busy.is_closed()
        );
        drop(first);
        assert!(connections.try_admit().is_some());
    }

    #[test]
    fn a_trickle_keeps_no_crowd_in_its_places() {
        let connections = Connections::new(3);
        let crowd = [enter(&connections, "203.0.113.7"), enter(&connections, "203.0.113.7")];
        let alone = enter(&connections, "203.0.113.8");
        let open = [&crowd[0], &crowd[1], &alone];
        let _requests: Vec<_> = open
            .iter()
            .map(|connection| (connection.begin_request(), connection.awaits_body()))
            .collect();
        let now = Instant::now() + MIN_QUIET;
        for connection in open {
            connection.received_at(now);
        }
        connections.evict_one_at(now);
        assert!(crowd[0].is_closed() && !crowd[1].is_closed() && !alone.is_closed());
    }

    #[test]
    fn a_connection_that_has_begun_a_request_meanwhile_goes_on() {
        let connections = Connections::new(1);
        let connection = enter(&connections, "203.0.113.7");
        let since = connection.quiet_since(false).unwrap();
        let request = connection.begin_request();
        assert!(!connection.close_if_quiet(false, since) && !connection.is_closed());
        drop(request);
        assert!(!connection.close_if_quiet(false, since) && !connection.is_closed());
        assert!(connection.close_if_quiet(false, Instant::now()) && connection.is_closed());
    }

    #[test]
    fn trouble_is_told_at_once_and_then_now_and_then_with_its_count() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        assert_eq!(tally.add(now), Some(1));
        assert_eq!((tally.add(now), tally.add(now)), (None, None));
        assert_eq!(tally.add(now + REPORT_INTERVAL), Some(3));
        assert_eq!(tally.add(now + REPORT_INTERVAL), None);
    }

    #[test]
    fn nobody_makes_way_at_once() {
        let connections = Connections::new(1);
        let connection = enter(&connections, "203.0.113.7");
        connections.evict_one_at(Instant::now() + MIN_QUIET / 2);
        assert!(!connection.is_closed());
        connections.evict_one_at(Instant::now() + MIN_QUIET);
        assert!(connection.is_closed());
    }
}
