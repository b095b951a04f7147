//! The smallest HTTP client that can read a health check or a page of metrics.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// What the server answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

impl Reply {
    /// The figure of a metric's line, labels and all: `mesh_nodes{state="healthy"}`.
    pub fn figure(&self, line: &str) -> Option<i64> {
        let found = self.body.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' '))?;
        found.trim().parse().ok()
    }
}

/// GETs `path` from `address` (host:port). None when nobody answers.
pub fn get(address: &str, path: &str) -> Option<Reply> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Reply { status, body: body.to_owned() })
}
