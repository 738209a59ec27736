//! The memory of bodies that are read before their sender is authenticated.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::connections::network_of;

/// The size that each body may have without further reservation.
pub(crate) const SMALL_BYTES: usize = 64 << 10;
/// The memory reserved for it, with the buffers of its connection.
const SMALL_COST: usize = 2 * SMALL_BYTES;
/// The number of large bodies processed at a time: processing takes further memory.
const MAX_LARGE_IN_PROCESS: usize = 4;

/// The memory budget of request bodies. One half is for the first 64 KiB of each, so that large
/// bodies never displace small ones; the other half is for the rest of large bodies. One client
/// network gets at most half of either.
pub struct BodyBudget {
    ledger: Arc<Ledger>,
    processing: Semaphore,
}

struct Ledger {
    /// The bounds of all clients together, and of one.
    max: Usage,
    max_of_one: Usage,
    reserved: Mutex<Reserved>,
}

#[derive(Default)]
struct Reserved {
    all: Usage,
    by: HashMap<IpAddr, Usage>,
}

/// Bodies, and their bytes beyond the first 64 KiB of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    bodies: usize,
    bytes: usize,
}

impl Usage {
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

/// The reservation of one body, until it is dropped.
pub struct BodyPermit {
    ledger: Arc<Ledger>,
    from: IpAddr,
    /// Bytes beyond the first 64 KiB.
    bytes: usize,
}

impl BodyBudget {
    /// A budget of `memory` bytes, or enough for one body of `max_body_bytes` if that is more.
    pub fn new(memory: usize, max_body_bytes: usize) -> Self {
        let half = memory / 2;
        let (bodies, bytes) = ((half / SMALL_COST).max(2), half.max(max_body_bytes));
        let ledger = Ledger {
            max: Usage { bodies, bytes },
            max_of_one: Usage { bodies: bodies / 2, bytes: (bytes / 2).max(max_body_bytes) },
            reserved: Mutex::default(),
        };
        Self { ledger: Arc::new(ledger), processing: Semaphore::new(MAX_LARGE_IN_PROCESS) }
    }

    /// Admits a body from `address`; `None` if the budget is used up. `Content-Length` reserves
    /// nothing, because a client can claim any length.
    pub fn admit(&self, address: IpAddr) -> Option<BodyPermit> {
        let from = network_of(address);
        let first = Usage { bodies: 1, bytes: 0 };
        let ledger = Arc::clone(&self.ledger);
        // Built only after the reservation: dropping it releases.
        ledger.reserve(from, first).then(|| BodyPermit { ledger, from, bytes: 0 })
    }

    /// Waits until a body of `bytes` may be processed. Small bodies need no permit.
    pub async fn processing_permit(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        if bytes <= SMALL_BYTES {
            return None;
        }
        // The semaphore is never closed.
        self.processing.acquire().await.ok()
    }
}

impl BodyPermit {
    /// Extends the reservation to a body of `bytes`. Returns `false`, and changes nothing, if
    /// the budget does not suffice.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(SMALL_BYTES).saturating_sub(self.bytes);
        let has_room = self.ledger.reserve(self.from, Usage { bodies: 0, bytes: more });
        self.bytes += if has_room { more } else { 0 };
        has_room
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.ledger.release(self.from, Usage { bodies: 1, bytes: self.bytes });
    }
}

impl Ledger {
    fn reserve(&self, from: IpAddr, more: Usage) -> bool {
        let mut reserved = self.reserved();
        let all = reserved.all.plus(more);
        let of_one = reserved.by.get(&from).copied().unwrap_or_default().plus(more);
        let fits = all.fits(self.max) && of_one.fits(self.max_of_one);
        if fits {
            reserved.all = all;
            reserved.by.insert(from, of_one);
        }
        fits
    }

    fn release(&self, from: IpAddr, less: Usage) {
        let mut reserved = self.reserved();
        reserved.all = reserved.all.minus(less);
        if let Some(held) = reserved.by.get_mut(&from) {
            *held = held.minus(less);
            if *held == Usage::default() {
                reserved.by.remove(&from);
            }
        }
    }

    fn reserved(&self) -> MutexGuard<'_, Reserved> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
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
        let budget = BodyBudget::new(8 * MIB, 1);
        let mut one = budget.admit(address(1)).unwrap();
        let mut other = budget.admit(address(2)).unwrap();
        assert!(one.grow(SMALL_BYTES) && one.grow(SMALL_BYTES + 2 * MIB));
        assert!(other.grow(SMALL_BYTES + MIB));
        assert!(other.grow(SMALL_BYTES + 2 * MIB));
        drop(one);
        drop(other);
        assert_eq!(budget.ledger.reserved().all, Usage::default());
        assert!(budget.ledger.reserved().by.is_empty());
    }

    #[test]
    fn large_bodies_leave_small_ones_their_room() {
        let budget = BodyBudget::new(8 * MIB, 1);
        let mut large: Vec<_> = (1..=2).map(|n| budget.admit(address(n)).unwrap()).collect();
        assert!(large.iter_mut().all(|permit| permit.grow(SMALL_BYTES + 2 * MIB)));
        let mut third = budget.admit(address(3)).expect("small ones have room");
        assert!(third.grow(SMALL_BYTES));
        assert!(!third.grow(SMALL_BYTES + 1), "the memory of large ones is reserved");
    }

    #[test]
    fn one_address_takes_half_at_most() {
        let budget = BodyBudget::new(8 * MIB, 1);
        let permits: Vec<_> = std::iter::from_fn(|| budget.admit(address(1))).take(64).collect();
        assert_eq!(permits.len(), 16);
        let mut other = budget.admit(address(2)).expect("others have room");
        assert!(!other.grow(SMALL_BYTES + 2 * MIB + 1));
        assert!(other.grow(SMALL_BYTES + 2 * MIB));
    }

    #[test]
    fn one_body_alone_always_fits() {
        let budget = BodyBudget::new(MIB, 16 * MIB);
        let mut permit = budget.admit(address(1)).unwrap();
        assert!(permit.grow(16 * MIB));
    }
}
