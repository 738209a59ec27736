//! The receiving end of a signed post: verify, decode, append, and only then say so.

use dezky_core::Result;

use super::{Mapping, decode};
use crate::intake::{Intake, Taken};
use crate::signature::Secrets;
use crate::webhook::take_in_parts;

/// Takes signed posts of one source into the log.
pub struct GenericReceiver {
    mapping: Mapping,
    secrets: Secrets,
    intake: Intake,
}

impl GenericReceiver {
    /// A receiver for the source that `mapping` was compiled for.
    pub fn new(mapping: Mapping, secrets: Secrets, intake: Intake) -> Self {
        Self { mapping, secrets, intake }
    }

    /// The name under which the events are stored.
    pub fn source(&self) -> &str {
        self.mapping.source()
    }

    /// Verifies `signature` (the `X-Signature` header) over the raw `body` and
    /// takes in what is in it. When this returns, everything but what the mapping passes
    /// over is durably in the log, in the quarantine or, if the
    /// [intake](Intake::with_spool) has one, in the spool; the same body again changes
    /// nothing and answers the same [`Taken::received`].
    ///
    /// # Errors
    /// `signature_invalid`: nothing was read or written. `too_large`: the body has more
    /// than [`MAX_BODY_EVENTS`](super::MAX_BODY_EVENTS), and nothing was written. Those of
    /// [`Intake::take_pushed`]: let the sender come again. A large body is taken in
    /// parts; those before the error are kept and will be duplicates then.
    pub async fn receive(&self, signature: Option<&str>, body: &[u8]) -> Result<Taken> {
        self.secrets.verify(signature, body)?;
        let decoded = decode(&self.mapping, body, self.intake.runtime().now())?;
        let (events, quarantine) = (decoded.events, decoded.quarantine);
        take_in_parts(&self.intake, self.source(), events, quarantine, decoded.skipped).await
    }
}
