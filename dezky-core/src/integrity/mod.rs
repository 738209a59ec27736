//! Tamper evidence: leaf, commitments, chain (`docs/integrity.md`).
