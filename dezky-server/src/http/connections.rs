//! The places for connections, and who makes way when all are taken.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::connection::Line;

/// How long a connection may keep the server waiting before it has to make way.
const MIN_QUIET: Duration = Duration::from_secs(1);
/// How often at most the same trouble is told.
const TOLD_EVERY: Duration = Duration::from_mins(1);

/// A place for one connection, until it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// All the places, and the connections that have one.
pub(super) struct House {
    places: Arc<Semaphore>,
    all: u32,
    guests: Mutex<Guests>,
}

#[derive(Default)]
struct Guests {
    lines: Vec<Weak<Line>>,
    made_way: Tally,
}

/// Counts what goes wrong, to tell it now and then.
#[derive(Default)]
pub(super) struct Tally {
    count: u64,
    told: Option<Instant>,
}

impl Tally {
    /// Counts one more; how many there were since it was told last, if it is time to tell.
    pub(super) fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.told.is_some_and(|told| now < told + TOLD_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

impl House {
    pub(super) fn new(places: usize) -> Self {
        let all = u32::try_from(places).unwrap_or(u32::MAX);
        Self { places: Arc::new(Semaphore::new(places)), all, guests: Mutex::default() }
    }

    /// A place, if one is free.
    pub(super) fn place(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Resolves when a place is free.
    pub(super) async fn changed(&self) {
        // It is never closed.
        let _ = self.places.acquire().await;
    }

    /// Resolves when nobody is there.
    pub(super) async fn empty(&self) {
        let _ = self.places.acquire_many(self.all).await;
    }

    /// A connection from `address` takes its place.
    pub(super) fn enter(&self, place: Place, address: IpAddr) -> Arc<Line> {
        let line = Arc::new(Line::new(place, network_of(address)));
        let mut guests = self.guests();
        if guests.lines.len() >= 2 * self.all as usize {
            guests.lines.retain(|line| line.strong_count() > 0);
        }
        guests.lines.push(Arc::downgrade(&line));
        line
    }

    /// Cuts the connection that makes way: of those that keep the server waiting for a
    /// second or longer, one from where most connections come, and there the one that
    /// has done so for longest. So a crowd of silent clients makes way for itself first; in
    /// one that has more than half of the places a trickle is no better than silence.
    pub(super) fn make_room(&self) {
        self.make_room_at(Instant::now());
    }

    fn make_room_at(&self, now: Instant) {
        let mut guests = self.guests();
        let mut from: HashMap<IpAddr, usize> = HashMap::new();
        guests.lines.retain(|line| {
            let Some(line) = line.upgrade() else { return false };
            *from.entry(line.network()).or_default() += 1;
            true
        });
        let waiting = guests.lines.iter().filter_map(|line| {
            let line = line.upgrade()?;
            let share = from[&line.network()];
            let is_of_crowd = share > self.all as usize / 2;
            let quiet = now.saturating_duration_since(line.quiet_since(is_of_crowd)?);
            (quiet >= MIN_QUIET).then_some((share, quiet, is_of_crowd, line))
        });
        let first = waiting.max_by_key(|(share, quiet, ..)| (*share, *quiet));
        let Some((_, quiet, is_of_crowd, line)) = first else { return };
        // It may have begun a request since it was looked at; then the next try finds another.
        if !line.end_if_quiet(is_of_crowd, now.checked_sub(quiet).unwrap_or(now)) {
            return;
        }
        if let Some(connections) = guests.made_way.add(now) {
            tracing::warn!(connections, "all places are taken: silent connections made way");
        }
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one place that connections come from: an IPv4 address, or the /64
/// that a single IPv6 client usually has.
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

    fn enter(house: &House, address: &str) -> Arc<Line> {
        house.enter(house.place().unwrap(), address.parse().unwrap())
    }

    #[test]
    fn the_crowd_makes_way_and_its_longest_silent_one_first() {
        let house = House::new(4);
        let alone = enter(&house, "203.0.113.7");
        let first = enter(&house, "2001:db8::1");
        let second = enter(&house, "2001:db8::2");
        let busy = enter(&house, "2001:db8::3");
        let _request = busy.begin();
        assert!(house.place().is_none());
        house.make_room_at(Instant::now() + MIN_QUIET);
        assert!(first.is_cut() && !second.is_cut() && !alone.is_cut() && !busy.is_cut());
        drop(first);
        assert!(house.place().is_some());
    }

    #[test]
    fn a_trickle_keeps_no_crowd_in_its_places() {
        let house = House::new(3);
        let crowd = [enter(&house, "203.0.113.7"), enter(&house, "203.0.113.7")];
        let alone = enter(&house, "203.0.113.8");
        let lines = [&crowd[0], &crowd[1], &alone];
        let _requests: Vec<_> =
            lines.iter().map(|line| (line.begin(), line.awaits_body())).collect();
        let now = Instant::now() + MIN_QUIET;
        for line in lines {
            line.came_at(now);
        }
        house.make_room_at(now);
        assert!(crowd[0].is_cut() && !crowd[1].is_cut() && !alone.is_cut());
    }

    #[test]
    fn a_connection_that_has_begun_a_request_meanwhile_goes_on() {
        let house = House::new(1);
        let line = enter(&house, "203.0.113.7");
        let since = line.quiet_since(false).unwrap();
        let request = line.begin();
        assert!(!line.end_if_quiet(false, since) && !line.is_cut());
        drop(request);
        assert!(!line.end_if_quiet(false, since) && !line.is_cut());
        assert!(line.end_if_quiet(false, Instant::now()) && line.is_cut());
    }

    #[test]
    fn trouble_is_told_at_once_and_then_now_and_then_with_its_count() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        assert_eq!(tally.add(now), Some(1));
        assert_eq!((tally.add(now), tally.add(now)), (None, None));
        assert_eq!(tally.add(now + TOLD_EVERY), Some(3));
        assert_eq!(tally.add(now + TOLD_EVERY), None);
    }

    #[test]
    fn nobody_makes_way_at_once() {
        let house = House::new(1);
        let line = enter(&house, "203.0.113.7");
        house.make_room_at(Instant::now() + MIN_QUIET / 2);
        assert!(!line.is_cut());
        house.make_room_at(Instant::now() + MIN_QUIET);
        assert!(line.is_cut());
    }
}
