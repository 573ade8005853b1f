//! What came back from a receiver, as it is kept.

use bytes::Bytes;

/// An answer: its head, and as much of its body as we read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// `name: value` lines, separated by newlines; bytes beyond ASCII are read as Latin-1.
    pub headers: String,
    /// The first bytes of the body, as they came.
    pub body: Bytes,
    /// Whether there was more.
    pub is_truncated: bool,
}
