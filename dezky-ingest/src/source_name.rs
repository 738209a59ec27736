//! Names of declared sources.

/// Checks the name of a declared source. An error says what is wrong with it.
pub(crate) fn check(name: &str) -> Result<(), String> {
    let is_of_name = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let system = name.split(':').next().unwrap_or_default();
    if matches!(system, "authentik" | "stalwart" | "ocis" | "platform-api") {
        return Err(format!("{name} is the name of a built-in source: choose another"));
    }
    let valid = (1..=48).contains(&name.len())
        && name.bytes().all(is_of_name)
        && name.split('.').all(|word| !word.is_empty());
    if valid {
        return Ok(());
    }
    Err("a source's name has 1 to 48 lower-case letters, digits, . _ and -, and no . at an end or next to another: choose another".into())
}

/// Whether only a declared source can have that name.
pub(crate) fn is_declared(source: &str) -> bool {
    check(source).is_ok()
}
