//! Where a join token comes from: the command line, the environment, or standard input.

use std::io::{self, Read as _};

/// Longest token that is read from standard input, in bytes.
const MAX: u64 = 16 * 1024;

/// The token that `given` stands for: itself, or standard input for `-`.
pub fn read(given: &str) -> io::Result<String> {
    if given != "-" {
        return Ok(given.trim().to_owned());
    }
    let mut text = String::new();
    io::stdin().lock().take(MAX).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}
