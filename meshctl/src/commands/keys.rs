//! Idempotency keys: what is told again under one is done once.

/// A key from a flag.
pub fn parse(text: &str) -> Result<String, String> {
    if (1..=128).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 128 bytes without control characters".to_owned())
    }
}

/// The person's own, or one that is made up, so that a retry over a broken connection does nothing
/// twice.
pub fn or_new(key: Option<String>) -> String {
    key.unwrap_or_else(|| uuid::Uuid::now_v7().to_string())
}
