//! Shared parts of document editors: who edits and why, retries when another editor was faster, and
//! how an event describes a change.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::{Actor, Error, ErrorKind, NewMetadata, Result, Runtime};

/// Maximum length of a note, in bytes.
pub const MAX_NOTE_BYTES: usize = 1_000;
/// Maximum length of a request id in an event, in bytes.
const REQUEST_ID_BYTES: usize = 128;
/// Maximum length of a user agent in an event, in bytes.
const USER_AGENT_BYTES: usize = 512;
/// Maximum number of attempts while other editors commit in between. Fifty concurrent editors in
/// separate processes needed up to 17.
///
/// An editor holds its turn, for which the other editors of its process wait, during all attempts:
/// at most 14.3 seconds of pauses (about 7 on average) and the duration of 60 attempts.
const MAX_ATTEMPTS: u32 = 60;
/// The longest pause after the first attempt, in milliseconds.
const MAX_PAUSE_MS: u32 = 32;

/// The actor of an edit and the context in which it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The actor, and from where.
    pub actor: Actor,
    /// The reason, at most 1,000 bytes without control characters other than line feeds and tabs.
    pub note: Option<String>,
    /// The id of the originating request, truncated to 128 bytes.
    pub request_id: Option<String>,
    /// The user agent of the originating request, truncated to 512 bytes.
    pub user_agent: Option<String>,
    /// Refuse the edit with `version_mismatch` unless the document has this version; `None` edits
    /// any version. Ignored when a document is created; edits of several documents at once refuse
    /// it.
    pub if_version: Option<u64>,
}

impl Edit {
    /// An edit with an actor and nothing else.
    pub const fn by(actor: Actor) -> Self {
        Self { actor, note: None, request_id: None, user_agent: None, if_version: None }
    }

    /// Returns the same edit, of this version of the document only.
    #[must_use]
    pub fn of_version(&self, version: u64) -> Self {
        Self { if_version: Some(version), ..self.clone() }
    }

    /// Annotates the event of a change with the note (`_dezky.note`) and the request
    /// (`_dezky.requestId` and `_dezky.userAgent`).
    pub fn annotate(&self, metadata: &mut NewMetadata) {
        for (key, text, max) in [
            ("note", &self.note, MAX_NOTE_BYTES),
            ("requestId", &self.request_id, REQUEST_ID_BYTES),
            ("userAgent", &self.user_agent, USER_AGENT_BYTES),
        ] {
            if let Some(text) = text {
                metadata.annotate(key, &text[..text.floor_char_boundary(max)]);
            }
        }
    }
}

/// Checks the bounds of a note.
///
/// # Errors
/// `field_invalid`.
pub fn check_note(note: Option<&str>) -> Result<()> {
    let is_valid = |note: &str| {
        note.len() <= MAX_NOTE_BYTES
            && !note.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t'))
    };
    if note.is_none_or(is_valid) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::FieldInvalid,
        "note must be at most 1000 bytes without control characters other than line feeds and tabs",
    ))
}

/// Runs `attempt`, which reads documents, changes them and commits, again whenever another editor
/// has committed in between (`version_mismatch`): up to 60 times, pausing in between. An edit that
/// `expects` a version is attempted once.
///
/// `attempt` may therefore run several times: it must read the documents anew each time, and have no
/// effects other than its commit. As cancel-safe as `attempt`: dropping this future drops the
/// attempt that is running, or ends the pause; the attempts before it committed nothing. A lock that
/// the caller holds meanwhile is held through all pauses, up to 14.3 seconds in total.
///
/// # Errors
/// The last error of `attempt`.
pub async fn retry<T, F: Future<Output = Result<T>>>(
    runtime: &dyn Runtime,
    expects: Option<u64>,
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match attempt().await {
            Err(error)
                if error.kind() == ErrorKind::VersionMismatch
                    && expects.is_none()
                    && attempts < MAX_ATTEMPTS =>
            {
                pause(runtime, attempts).await;
            }
            done => return done,
        }
    }
}

/// Returns a document's member as shown in a change: a list or an object whose JSON exceeds
/// `max_bytes` becomes `{"count": n, "only": …}`, with as many as fit of the items that the `other`
/// side of the change lacks.
///
/// ```
/// use dezky_core::change::shown;
/// use serde_json::json;
/// let (from, to) = (json!(["a", "b"]), json!(["b", "c"]));
/// assert_eq!(shown(&to, Some(&from), 100), to);
/// assert_eq!(shown(&to, Some(&from), 8), json!({"count": 2, "only": ["c"]}));
/// ```
pub fn shown(value: &Value, other: Option<&Value>, max_bytes: usize) -> Value {
    if value.to_string().len() <= max_bytes {
        return value.clone();
    }
    let mut room = max_bytes;
    let mut fits = |name: &str, value: &Value| {
        let left = room.checked_sub(name.len() + value.to_string().len() + 4);
        room = left.unwrap_or(room);
        left.is_some()
    };
    match value {
        Value::Array(all) => {
            let theirs = other.and_then(Value::as_array);
            let is_ours = |value: &&Value| !theirs.is_some_and(|theirs| theirs.contains(value));
            let only: Vec<_> = all.iter().filter(is_ours).filter(|v| fits("", v)).collect();
            json!({"count": all.len(), "only": only})
        }
        Value::Object(all) => {
            let is_ours = |name: &str, value| other.and_then(|o| o.get(name)) != Some(value);
            let only: Map<_, _> = all
                .iter()
                .filter(|(name, value)| is_ours(name, value) && fits(name, value))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            json!({"count": all.len(), "only": only})
        }
        // Strings have their own bounds.
        text => text.clone(),
    }
}

/// Waits after an attempt (counted from 1) so that editors of the same document get out of step: a
/// random 1 to 32 ms, and up to eight times that after eight attempts, because the others may have
/// many changes to make. Cancel-safe.
async fn pause(runtime: &dyn Runtime, attempt: u32) {
    let mut drawn = [0; 4];
    runtime.fill_random(&mut drawn);
    let most = MAX_PAUSE_MS * attempt.clamp(1, 8);
    let ms = 1 + u32::from_le_bytes(drawn) % most;
    runtime.sleep(Duration::from_millis(ms.into())).await;
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::testkit::ManualRuntime;

    /// The number of attempts on a store in which another editor is always faster, and the
    /// milliseconds that passed.
    async fn attempts(expects: Option<u64>) -> (u32, u128) {
        let runtime = ManualRuntime::new(5).with_sleep_advancing();
        let (begun, attempts) = (runtime.now(), Cell::new(0));
        let refused = retry(&runtime, expects, || async {
            attempts.set(attempts.get() + 1);
            Err::<(), _>(Error::new(ErrorKind::VersionMismatch, "changed in the meantime"))
        });
        assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::VersionMismatch);
        (attempts.get(), runtime.now().saturating_since(begun).as_millis())
    }

    #[tokio::test]
    async fn an_edit_of_a_version_is_attempted_once_and_any_other_up_to_the_bound() {
        assert_eq!(attempts(Some(1)).await, (1, 0));
        let (attempts, ms) = attempts(None).await;
        assert_eq!(attempts, MAX_ATTEMPTS);
        assert!((1_000..=14_300).contains(&ms), "{ms} ms");
    }
}
