//! oCIS: the tail of the audit log file.
//!
//! [`OcisTail`] follows the file through appends, rotation by rename,
//! truncation and restarts, and gives its lines as events. Only changes pass:
//! the 28 [mutations](MUTATIONS) of users, groups, spaces, shares, links and
//! files. Known reads are skipped and counted, everything else is quarantined.
//!
//! Every part is a value that takes bytes and gives data, and can be used on its
//! own: [`Framer`] cuts lines, [`decode_line`] says what one means,
//! [`Cursor`] is the state as text, [`Reading`] puts them together. Only
//! [`OcisTail`] touches files.
//!
//! Completeness can't be promised: oCIS itself writes no line for some events,
//! and drops some uploads.

mod core;
mod frame;
mod map;
mod proto;
mod tail;
#[cfg(test)]
mod tests;

pub use self::core::{
    Age, Batch, Cursor, GENERATION_MAX_BYTES, GapReason, GenerationHash, LastLine, MAX_LINE_BYTES,
    Place, Reading, Rotated, Settings, gap_event,
};
pub use self::frame::{Frame, Framer, LONG_LINE_KEPT_BYTES};
pub(crate) use self::map::redecode;
pub use self::map::{
    ActionContext, Class, Decoded, Digest, LineContext, MUTATIONS, OcisOptions, Optional, SYSTEM,
    classify_action, classify_type, decode_line, decode_unterminated, line_key, too_long,
};
pub use self::proto::REDACTED;
pub use self::tail::{OcisConfig, OcisTail};
