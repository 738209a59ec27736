//! Shared parts of document editors: how an event describes a change, and backing off from
//! concurrent editors.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::{NewMetadata, Runtime};

/// Maximum length of a request id in an event, in bytes.
const REQUEST_ID_BYTES: usize = 128;
/// Maximum length of a user agent in an event, in bytes.
const USER_AGENT_BYTES: usize = 512;
/// The longest pause after the first attempt, in milliseconds.
const MAX_PAUSE_MS: u32 = 32;

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

/// Annotates the request behind a change as `_dezky.requestId` and `_dezky.userAgent`, truncated to
/// 128 and 512 bytes.
pub fn annotate_request(
    metadata: &mut NewMetadata,
    request_id: Option<&str>,
    user_agent: Option<&str>,
) {
    for (key, text, max) in
        [("requestId", request_id, REQUEST_ID_BYTES), ("userAgent", user_agent, USER_AGENT_BYTES)]
    {
        if let Some(text) = text {
            metadata.annotate(key, &text[..text.floor_char_boundary(max)]);
        }
    }
}

/// Waits after an attempt (counted from 1) so that editors of the same document get out of step: a
/// random 1 to 32 ms, and up to eight times that after eight attempts, because the others may have
/// many changes to make. Cancel-safe.
pub async fn pause(runtime: &dyn Runtime, attempt: u32) {
    let mut drawn = [0; 4];
    runtime.fill_random(&mut drawn);
    let most = MAX_PAUSE_MS * attempt.clamp(1, 8);
    let ms = 1 + u32::from_le_bytes(drawn) % most;
    runtime.sleep(Duration::from_millis(ms.into())).await;
}
