//! The memory of bodies that are read before anybody vouches for them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::connections::network_of;

/// What each body has room for from its beginning.
pub(crate) const SMALL_BYTES: usize = 64 << 10;
/// What that counts for, with the buffers of the connection that it comes by.
const SMALL_COST: usize = 2 * SMALL_BYTES;
/// How many large bodies are worked on at a time: each takes memory beside its own.
const LARGE_AT_WORK: usize = 4;

/// The bodies under way. One half of the memory is for the first 64 KiB of each, so that
/// large ones never take the place of small ones; the other is for the rest of them. One
/// address gets half of either at most.
pub struct Bodies {
    ledger: Arc<Ledger>,
    at_work: Semaphore,
}

struct Ledger {
    /// How many bodies, and how many bytes beyond the first 64 KiB.
    all: Held,
    of_one: Held,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: Held,
    by: HashMap<IpAddr, Held>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    bodies: usize,
    bytes: usize,
}

impl Held {
    fn plus(self, more: Self) -> Self {
        Self { bodies: self.bodies + more.bodies, bytes: self.bytes.saturating_add(more.bytes) }
    }

    fn minus(self, less: Self) -> Self {
        Self { bodies: self.bodies - less.bodies, bytes: self.bytes - less.bytes }
    }

    fn fits(self, bound: Self) -> bool {
        self.bodies <= bound.bodies && self.bytes <= bound.bytes
    }
}

/// The room of one body, until it is dropped.
pub struct Room {
    ledger: Arc<Ledger>,
    from: IpAddr,
    /// Beyond the first 64 KiB.
    bytes: usize,
}

impl Bodies {
    /// Room for `memory` bytes, and for one body of `max_body_bytes` whatever that is.
    pub fn new(memory: usize, max_body_bytes: usize) -> Self {
        let half = memory / 2;
        let (bodies, bytes) = ((half / SMALL_COST).max(2), half.max(max_body_bytes));
        let ledger = Ledger {
            all: Held { bodies, bytes },
            of_one: Held { bodies: bodies / 2, bytes: (bytes / 2).max(max_body_bytes) },
            taken: Mutex::default(),
        };
        Self { ledger: Arc::new(ledger), at_work: Semaphore::new(LARGE_AT_WORK) }
    }

    /// The room for a body from `address`; `None` if there is none. What is announced takes
    /// nothing: anybody can announce.
    pub fn begin(&self, address: IpAddr) -> Option<Room> {
        let from = network_of(address);
        let first = Held { bodies: 1, bytes: 0 };
        let ledger = Arc::clone(&self.ledger);
        // Made only if it was taken: when it is dropped it gives back.
        ledger.take(from, first).then(|| Room { ledger, from, bytes: 0 })
    }

    /// Waits until a body of `bytes` may be worked on, which lasts until the permit is
    /// dropped.
    pub async fn turn(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        if bytes <= SMALL_BYTES {
            return None;
        }
        // It is never closed.
        self.at_work.acquire().await.ok()
    }
}

impl Room {
    /// Takes what a body needs that holds `bytes`; `false` if there is not so much, and the
    /// room is what it was.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(SMALL_BYTES).saturating_sub(self.bytes);
        let is_there = self.ledger.take(self.from, Held { bodies: 0, bytes: more });
        self.bytes += if is_there { more } else { 0 };
        is_there
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.ledger.give_back(self.from, Held { bodies: 1, bytes: self.bytes });
    }
}

impl Ledger {
    fn take(&self, from: IpAddr, more: Held) -> bool {
        let mut taken = self.taken();
        let all = taken.all.plus(more);
        let of_one = taken.by.get(&from).copied().unwrap_or_default().plus(more);
        let fits = all.fits(self.all) && of_one.fits(self.of_one);
        if fits {
            taken.all = all;
            taken.by.insert(from, of_one);
        }
        fits
    }

    fn give_back(&self, from: IpAddr, less: Held) {
        let mut taken = self.taken();
        taken.all = taken.all.minus(less);
        if let Some(held) = taken.by.get_mut(&from) {
            *held = held.minus(less);
            if *held == Held::default() {
                taken.by.remove(&from);
            }
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([203, 0, 113, last])
    }

    #[test]
    fn a_body_takes_room_as_it_comes_in() {
        let bodies = Bodies::new(8 * MIB, 1);
        let mut one = bodies.begin(address(1)).unwrap();
        let mut other = bodies.begin(address(2)).unwrap();
        assert!(one.grow(SMALL_BYTES) && one.grow(SMALL_BYTES + 2 * MIB));
        assert!(other.grow(SMALL_BYTES + MIB));
        assert!(other.grow(SMALL_BYTES + 2 * MIB));
        drop(one);
        drop(other);
        assert_eq!(bodies.ledger.taken().all, Held::default());
        assert!(bodies.ledger.taken().by.is_empty());
    }

    #[test]
    fn large_bodies_leave_small_ones_their_room() {
        let bodies = Bodies::new(8 * MIB, 1);
        let mut large: Vec<_> = (1..=2).map(|n| bodies.begin(address(n)).unwrap()).collect();
        assert!(large.iter_mut().all(|room| room.grow(SMALL_BYTES + 2 * MIB)));
        let mut third = bodies.begin(address(3)).expect("small ones have room");
        assert!(third.grow(SMALL_BYTES));
        assert!(!third.grow(SMALL_BYTES + 1), "the memory of large ones is taken");
    }

    #[test]
    fn one_address_takes_half_at_most() {
        let bodies = Bodies::new(8 * MIB, 1);
        let rooms: Vec<_> = std::iter::from_fn(|| bodies.begin(address(1))).take(64).collect();
        assert_eq!(rooms.len(), 16);
        let mut other = bodies.begin(address(2)).expect("others have room");
        assert!(!other.grow(SMALL_BYTES + 2 * MIB + 1));
        assert!(other.grow(SMALL_BYTES + 2 * MIB));
    }

    #[test]
    fn one_body_alone_always_fits() {
        let bodies = Bodies::new(MIB, 16 * MIB);
        let mut room = bodies.begin(address(1)).unwrap();
        assert!(room.grow(16 * MIB));
    }
}
