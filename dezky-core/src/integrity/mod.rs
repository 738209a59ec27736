//! Tamper evidence: leaves, commitments and the hash chain (`docs/integrity.md`).
//!
//! Every event has a *leaf*, a permanently fixed sequence of bytes that contains no data of
//! customers or persons: fields that may have to be erased are represented by salted commitments.
//! The chain covers the leaves' hashes in order of `seq`:
//!
//! ```
//! use dezky_core::integrity::{GENESIS, chain_hash};
//! # let (first, second) = ([1; 32], [2; 32]);
//! let hash_of_0 = chain_hash(&GENESIS, &first);
//! let hash_of_1 = chain_hash(&hash_of_0, &second);
//! # assert_ne!(hash_of_0, hash_of_1);
//! ```
//!
//! [`erase`] removes values without changing any hash.

mod evidence;
mod leaf;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

pub use self::evidence::{Erasure, Evidence, MalformedErasure};
pub use self::leaf::{erase, leaf, leaf_hash};
use crate::Field;

/// `prevHash` of the first event: 32 zero bytes.
pub const GENESIS: [u8; 32] = [0; 32];

const CHAIN: &[u8] = b"dezky.audit.chain.v1\0";
const SALT: &[u8] = b"dezky.audit.salt.v1\0";
const FIELD: &[u8] = b"dezky.audit.field.v1\0";

/// The hash of an event in the chain, computed from the previous event's hash and its own leaf
/// hash.
pub fn chain_hash(prev: &[u8; 32], leaf_hash: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(CHAIN).chain_update(prev).chain_update(leaf_hash).finalize().into()
}

/// The salt of one field. A person given this salt and the value can check the field against the
/// leaf without learning anything about other fields.
pub fn field_salt(event_salt: &[u8; 32], field: Field) -> [u8; 32] {
    derive_salt(&keyed(event_salt), field)
}

/// The commitment to a field's value. Without the salt it reveals nothing about the value, even to
/// someone who can guess it.
pub fn commitment(salt: &[u8; 32], field: Field, value: &[u8]) -> [u8; 32] {
    keyed(salt)
        .chain_update(FIELD)
        .chain_update([field.tag()])
        .chain_update(length(value))
        .chain_update(value)
        .finalize()
        .into_bytes()
        .into()
}

fn derive_salt(event_key: &Hmac<Sha256>, field: Field) -> [u8; 32] {
    event_key.clone().chain_update(SALT).chain_update([field.tag()]).finalize().into_bytes().into()
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // HMAC pads a short key with zeros to the block size.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    Hmac::new(&block.into())
}

/// The length prefix of bytes: u32be. Longer values are far out of bounds and never stored.
fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}
