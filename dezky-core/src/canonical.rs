//! Canonical JSON from raw text (`docs/integrity.md`).
