//! Metadata: the rest of an event, as the source said it, bounded.
