//! The conformance suite of [`AuditStore`]: one named test a case.
