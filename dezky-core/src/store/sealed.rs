//! Sealed positions: texts that clients keep and send back, and that tell them nothing.
//!
//! A `seq` is a gapless global number. A client that may see only a part of the log could count with
//! it what happens in the rest, so positions are encrypted as well as authenticated. As in RFC 5297
//! (SIV), the tag of the text is also the seed of its mask: no position needs a nonce for safety.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::engine::CursorKey;
use crate::{Error, ErrorKind, Result};

/// The number of bytes that a position becomes longer.
pub(super) const TAG_BYTES: usize = 16;

/// Seals `plain` for `purpose`, bound to `context`.
pub(super) fn seal<const N: usize>(
    key: &CursorKey,
    purpose: &str,
    context: &[u8],
    plain: [u8; N],
) -> Vec<u8> {
    let full = tag_mac(key, purpose, context, &plain).finalize().into_bytes();
    let mut sealed = full[..TAG_BYTES].to_vec();
    sealed.extend(masked(key, purpose, &full[..TAG_BYTES], plain));
    sealed
}

/// Opens what [`seal`] returned for the same purpose and context; `None` for anything else.
pub(super) fn open<const N: usize>(
    key: &CursorKey,
    purpose: &str,
    context: &[u8],
    sealed: &[u8],
) -> Option<[u8; N]> {
    let (tag, text) = sealed.split_at_checked(TAG_BYTES)?;
    let plain = masked(key, purpose, tag, text.try_into().ok()?);
    let is_ours = tag_mac(key, purpose, context, &plain).verify_truncated_left(tag).is_ok();
    is_ours.then_some(plain)
}

fn tag_mac(key: &CursorKey, purpose: &str, context: &[u8], plain: &[u8]) -> Hmac<Sha256> {
    let mut mac = keyed(key, b"dezky.audit.sealed.tag\0", purpose);
    mac.update(&(context.len() as u64).to_be_bytes());
    mac.update(context);
    mac.update(plain);
    mac
}

fn masked<const N: usize>(
    key: &CursorKey,
    purpose: &str,
    tag: &[u8],
    mut text: [u8; N],
) -> [u8; N] {
    const { assert!(N <= 32, "one digest masks the text") };
    let mut mac = keyed(key, b"dezky.audit.sealed.mask\0", purpose);
    mac.update(tag);
    let mask = mac.finalize().into_bytes();
    text.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    text
}

fn keyed(key: &CursorKey, role: &[u8], purpose: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes keys of any length");
    mac.update(role);
    mac.update(purpose.as_bytes());
    mac.update(b"\0");
    mac
}

const STREAM: &str = "stream.v1";
const STREAM_VERSION: u8 = 1;
const NONCE_BYTES: usize = 8;
const STREAM_BYTES: usize = 1 + NONCE_BYTES + TAG_BYTES + 8;

impl CursorKey {
    /// Seals the position in a stream for a client that must not learn it, bound to `audience`, such
    /// as the client's tenant. With a random `nonce`, two texts of one position differ, so that
    /// clients can't tell whether the log has grown.
    pub fn seal_seq(&self, audience: &str, seq: u64, nonce: [u8; 8]) -> String {
        let mut bytes = Vec::with_capacity(STREAM_BYTES);
        bytes.push(STREAM_VERSION);
        bytes.extend(nonce);
        bytes.extend(seal(self, STREAM, &context(nonce, audience), seq.to_be_bytes()));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The position in a text of [`seal_seq`](Self::seal_seq).
    ///
    /// # Errors
    /// `cursor_invalid` if this log did not issue the text for `audience`.
    pub fn open_seq(&self, audience: &str, text: &str) -> Result<u64> {
        let read = || -> Option<u64> {
            // Don't decode longer text.
            let bytes = if text.len() > STREAM_BYTES * 2 {
                return None;
            } else {
                URL_SAFE_NO_PAD.decode(text).ok()?
            };
            let (&[STREAM_VERSION, ref nonce @ ..], sealed) =
                bytes.split_first_chunk::<{ 1 + NONCE_BYTES }>()?
            else {
                return None;
            };
            open(self, STREAM, &context(*nonce, audience), sealed).map(u64::from_be_bytes)
        };
        read().ok_or_else(|| {
            Error::new(
                ErrorKind::CursorInvalid,
                "the position was not issued by this log for this caller: connect without one",
            )
        })
    }
}

fn context(nonce: [u8; NONCE_BYTES], audience: &str) -> Vec<u8> {
    [&nonce, audience.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: CursorKey = CursorKey([7; 32]);

    #[test]
    fn a_position_is_opened_by_its_audience_and_log_alone() {
        for seq in [0, 41, u64::MAX] {
            let text = KEY.seal_seq("acme", seq, [9; 8]);
            assert_eq!(KEY.open_seq("acme", &text).unwrap(), seq);
            assert_eq!(text.len(), 44);
            for (key, audience) in [(KEY, "nordic"), (KEY, ""), (CursorKey([8; 32]), "acme")] {
                let refused = key.open_seq(audience, &text).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::CursorInvalid);
            }
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
                assert!(KEY.open_seq("acme", std::str::from_utf8(&bytes).unwrap()).is_err());
            }
        }
        for broken in ["", "A", "not base64 !!", &"A".repeat(44), &"A".repeat(1 << 20)] {
            assert!(KEY.open_seq("acme", broken).is_err());
        }
    }

    /// The texts of neighbours have no byte in common beyond chance, and neither have two texts of
    /// one position.
    #[test]
    fn a_position_is_not_in_its_text() {
        let bytes = |seq, nonce| URL_SAFE_NO_PAD.decode(KEY.seal_seq("acme", seq, nonce)).unwrap();
        for other in [bytes(8, [1; 8]), bytes(7, [2; 8])] {
            let pairs = bytes(7, [1; 8]).into_iter().zip(other).skip(1 + NONCE_BYTES);
            assert!(pairs.filter(|(a, b)| a == b).count() < 4);
        }
        let plain = 7_u64.to_be_bytes();
        assert!(!bytes(7, [1; 8]).windows(8).any(|window| window == plain));
    }
}
