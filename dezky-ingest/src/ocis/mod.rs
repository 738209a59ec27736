//! oCIS: the tail of the audit log file.
//!
//! [`OcisTail`] follows the file through appends, rotation by rename, truncation and restarts, and
//! returns its lines as events. Only changes pass: the 28 [mutations](MUTATIONS) of users, groups,
//! spaces, shares, links and files. Known reads are skipped and counted, everything else is
//! quarantined.
//!
//! [`decode_line`] decodes a single line, without files; the tail itself is [`tail`](crate::tail).
//!
//! Completeness can't be promised: oCIS itself writes no line for some events,
//! and drops some uploads.

mod accounts;
mod map;
mod proto;
mod spaces;
mod tail;
#[cfg(test)]
mod tests;

pub use self::map::{
    ActionContext, Class, LineContext, MUTATIONS, OcisOptions, Optional, SYSTEM, classify_action,
    classify_type, decode_line, decode_unterminated, line_key, too_long,
};
pub(crate) use self::map::{redecode, without_secrets};
pub use self::proto::REDACTED;
pub use self::tail::{OcisConfig, OcisTail};
