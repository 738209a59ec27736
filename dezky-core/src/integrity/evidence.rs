use std::collections::BTreeMap;
use std::fmt;

use crate::Field;

/// Data stored with an event from which its leaf can be recomputed. Secret: `Debug` shows no salt.
#[derive(Clone, PartialEq, Eq)]
pub enum Evidence {
    /// The event's salt: nothing was erased.
    Salt([u8; 32]),
    /// The replacement for the salt after fields were erased.
    Erased(Box<Erasure>),
}

impl Evidence {
    /// The erased fields in the order of their tags.
    pub fn erased_fields(&self) -> Vec<Field> {
        match self {
            Self::Salt(_) => Vec::new(),
            Self::Erased(erasure) => erasure.commitments.keys().copied().collect(),
        }
    }
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Salt(_) => f.write_str("Salt(..)"),
            Self::Erased(erasure) => f.debug_tuple("Erased").field(erasure).finish(),
        }
    }
}

/// The evidence of an event with erased fields. The event's salt is gone, because with it an erased
/// value could be confirmed by guessing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Erasure {
    /// The salts of fields that are present and not erased.
    pub salts: BTreeMap<Field, [u8; 32]>,
    /// The commitments to the erased fields.
    pub commitments: BTreeMap<Field, [u8; 32]>,
}

const VERSION: u8 = 1;
const SALT: u8 = 1;
const COMMITMENT: u8 = 2;
/// Tag, kind, and a salt or commitment.
const ENTRY: usize = 34;

impl Erasure {
    /// The form for a database column: a version byte `1`, then for each field in the order of the
    /// tags `u8 tag ‖ u8 kind ‖ 32 bytes`, where kind 1 is a salt and 2 a commitment. Equal
    /// erasures have equal bytes.
    ///
    /// A field with both a salt and a commitment counts as erased.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + ENTRY * (self.salts.len() + self.commitments.len()));
        bytes.push(VERSION);
        for field in Field::ALL {
            let (kind, value) = match (self.commitments.get(&field), self.salts.get(&field)) {
                (Some(commitment), _) => (COMMITMENT, commitment),
                (None, Some(salt)) => (SALT, salt),
                (None, None) => continue,
            };
            bytes.extend_from_slice(&[field.tag(), kind]);
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// Reads the output of [`Self::to_bytes`] and rejects anything else: tags must be strictly
    /// ascending and those of committed fields.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MalformedErasure> {
        let Some((&VERSION, entries)) = bytes.split_first() else { return Err(MalformedErasure) };
        let (entries, []) = entries.as_chunks::<ENTRY>() else { return Err(MalformedErasure) };
        let mut erasure = Self::default();
        let mut last = 0;
        for &[tag, kind, ref value @ ..] in entries {
            let field = Field::from_tag(tag).filter(|f| f.is_committed() && tag > last);
            let field = field.ok_or(MalformedErasure)?;
            last = tag;
            match kind {
                SALT => erasure.salts.insert(field, *value),
                COMMITMENT => erasure.commitments.insert(field, *value),
                _ => return Err(MalformedErasure),
            };
        }
        // An erasure without erased fields is invalid: it would be a salt.
        if erasure.commitments.is_empty() { Err(MalformedErasure) } else { Ok(erasure) }
    }
}

impl fmt::Debug for Erasure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commitments: BTreeMap<_, _> =
            self.commitments.iter().map(|(field, bytes)| (field, hex::encode(bytes))).collect();
        f.debug_struct("Erasure")
            .field("salts", &self.salts.keys())
            .field("commitments", &commitments)
            .finish()
    }
}

/// The bytes are not an [`Erasure`] of a known version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedErasure;

impl fmt::Display for MalformedErasure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stored erasure is malformed or of an unknown version")
    }
}

impl std::error::Error for MalformedErasure {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Erasure {
        Erasure {
            salts: [(Field::ActorId, [7; 32]), (Field::ExternalId, [8; 32])].into(),
            commitments: [(Field::ActorEmail, [9; 32])].into(),
        }
    }

    #[test]
    fn bytes_there_and_back() {
        let bytes = sample().to_bytes();
        assert_eq!(bytes.len(), 1 + 3 * 34);
        assert_eq!(bytes[..4], [1, 8, 1, 8]);
        assert_eq!(Erasure::from_bytes(&bytes), Ok(sample()));
    }

    #[test]
    fn other_bytes_are_refused() {
        let good = sample().to_bytes();
        let change = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        for bad in [
            vec![],
            vec![1], // nothing erased
            Erasure { commitments: BTreeMap::new(), ..sample() }.to_bytes(),
            good[..good.len() - 1].to_vec(),
            [&good[..], &[0]].concat(),
            change(0, 2),  // an unknown version
            change(1, 0),  // no field
            change(1, 7),  // the source is never erased
            change(1, 12), // twice the same
            change(1, 17), // out of order
            change(2, 3),  // an unknown kind
        ] {
            assert_eq!(Erasure::from_bytes(&bad), Err(MalformedErasure), "{bad:?}");
        }
    }

    #[test]
    fn debug_shows_no_salt() {
        let evidence = Evidence::Erased(Box::new(sample()));
        let text = format!("{evidence:?} {:?}", Evidence::Salt([7; 32]));
        assert!(text.contains(&"09".repeat(32)) && text.contains("ActorId"), "{text}");
        assert!(!text.contains('7') && !text.contains("08"), "{text}");
    }
}
