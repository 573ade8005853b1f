//! What came, and what was answered. The oldest entries leave when the record is full.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;

use crate::signature::SignatureError;

/// How many requests the record keeps.
pub const RECORD_ENTRIES_MAX: usize = 200_000;

/// How many bytes of bodies, headers and paths the record keeps in all.
pub const RECORD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One request to `/webhook` or to a receiver on request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Received {
    /// Counts from 0, in the order in which the requests' headers arrived.
    pub number: u64,
    /// When the headers had arrived, to compare with clocks elsewhere.
    pub arrived_at: SystemTime,
    /// The same moment, to measure the time between requests.
    pub arrived_at_monotonic: Instant,
    /// POST from a sender, anything from a person who tries a receiver on request.
    pub method: Method,
    /// Path and query as they came.
    pub path: Arc<str>,
    /// All headers.
    pub headers: Headers,
    /// The whole body; empty until it has arrived, and if it was refused.
    pub body: Bytes,
    /// Whether the signatures were good.
    pub verdict: Verdict,
    /// What the client got.
    pub answer: Answer,
}

/// All headers of a request, with names in lower case.
///
/// One text instead of a map, since there are many: one allocation, and it holds no part of the
/// connection's read buffer alive.
#[derive(Clone)]
pub struct Headers(Arc<str>);

/// Whether the signatures of a request were good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The body has not arrived, or was refused.
    Unchecked,
    /// Both signatures are good.
    Good,
    /// `/webhook` does not process the request; receivers on request do not mind.
    Bad(SignatureError),
}

/// What a client got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet; it will be answered.
    Pending,
    /// This status.
    Status(StatusCode),
    /// Nothing, on purpose: the request is or was held without an answer.
    Hang,
    /// A reset connection, before the answer, or in its head or its body.
    Reset,
    /// Nothing: the client hung up, or the receiver was stopped, before the answer was due.
    Abandoned,
}

impl Received {
    /// The header `webhook-id`.
    pub fn webhook_id(&self) -> Option<&str> {
        self.headers.get("webhook-id")
    }

    /// The header `X-Webhook-Delivery-Id`.
    pub fn delivery_id(&self) -> Option<&str> {
        self.headers.get("x-webhook-delivery-id")
    }

    /// The header `X-Webhook-Attempt`, if it is a number.
    pub fn attempt(&self) -> Option<u32> {
        self.headers.get("x-webhook-attempt")?.parse().ok()
    }

    fn bytes(&self) -> usize {
        self.path.len() + self.headers.0.len() + self.body.len()
    }
}

impl Headers {
    pub(crate) fn copy(headers: &HeaderMap) -> Self {
        let mut text = String::new();
        for (name, value) in headers {
            text.push_str(name.as_str());
            text.push_str(": ");
            text.push_str(&String::from_utf8_lossy(value.as_bytes()));
            text.push('\n'); // in no value: HTTP forbids it
        }
        Self(text.into())
    }

    /// The first value of a header; the name in any case. What is not UTF-8 is replaced.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All names and values; a name that came twice is there twice.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split_terminator('\n').filter_map(|line| line.split_once(": "))
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Verdict {
    /// Whether both signatures were checked and are good.
    pub fn is_good(self) -> bool {
        self == Self::Good
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchecked => f.write_str("unchecked"),
            Self::Good => f.write_str("good"),
            Self::Bad(error) => write!(f, "bad: {error}"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("pending"),
            Self::Status(status) => write!(f, "{}", status.as_u16()),
            Self::Hang => f.write_str("hang"),
            Self::Reset => f.write_str("reset"),
            Self::Abandoned => f.write_str("abandoned"),
        }
    }
}

/// The entries, oldest first, with the numbers `first_number..next_number`.
pub(crate) struct Record {
    entries: VecDeque<Received>,
    first_number: u64,
    bytes: usize,
    entries_max: usize,
    bytes_max: usize,
}

impl Record {
    pub(crate) fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), first_number: 0, bytes: 0, entries_max, bytes_max }
    }

    /// Adds an entry, whose number is set here and returned.
    pub(crate) fn push(&mut self, mut received: Received) -> u64 {
        let number = self.next_number();
        received.number = number;
        self.bytes += received.bytes();
        self.entries.push_back(received);
        self.forget_oldest();
        number
    }

    /// Changes an entry, unless it has already been forgotten.
    pub(crate) fn update(&mut self, number: u64, change: impl FnOnce(&mut Received)) {
        let Some(index) = number.checked_sub(self.first_number) else { return };
        let Some(entry) = usize::try_from(index).ok().and_then(|i| self.entries.get_mut(i)) else {
            return;
        };
        self.bytes -= entry.bytes();
        change(entry);
        self.bytes += entry.bytes();
        self.forget_oldest();
    }

    pub(crate) fn to_vec(&self) -> Vec<Received> {
        self.entries.iter().cloned().collect()
    }

    /// How many entries have been forgotten.
    pub(crate) fn forgotten(&self) -> u64 {
        self.first_number
    }

    fn next_number(&self) -> u64 {
        self.first_number + self.entries.len() as u64
    }

    fn forget_oldest(&mut self) {
        while self.entries_max < self.entries.len() || self.bytes_max < self.bytes {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.bytes();
            self.first_number += 1;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// A request that has just arrived, without a body.
    pub(crate) fn arrived(path: &str) -> Received {
        Received {
            number: 0,
            arrived_at: SystemTime::now(),
            arrived_at_monotonic: Instant::now(),
            method: Method::POST,
            path: path.into(),
            headers: Headers::copy(&HeaderMap::new()),
            body: Bytes::new(),
            verdict: Verdict::Unchecked,
            answer: Answer::Pending,
        }
    }

    /// Shows the entries as `number path body-length answer`.
    fn show(record: &Record) -> Vec<String> {
        let line = |entry: Received| {
            format!("{} {} {} {}", entry.number, entry.path, entry.body.len(), entry.answer)
        };
        record.to_vec().into_iter().map(line).collect()
    }

    #[test]
    fn the_oldest_leave_when_there_are_too_many_entries() {
        let mut record = Record::new(2, usize::MAX);
        for path in ["/a", "/b", "/c"] {
            record.push(arrived(path));
        }
        assert_eq!(show(&record), ["1 /b 0 pending", "2 /c 0 pending"]);
        assert_eq!(record.forgotten(), 1);
    }

    #[test]
    fn the_oldest_leave_when_there_are_too_many_bytes() {
        let mut record = Record::new(usize::MAX, 10);
        for path in ["/a", "/b", "/c"] {
            record.push(arrived(path));
        }
        record.update(2, |entry| entry.body = Bytes::from_static(b"12345"));
        assert_eq!(show(&record), ["1 /b 0 pending", "2 /c 5 pending"]);
        record.update(1, |entry| entry.body = Bytes::from_static(b"1234"));
        assert_eq!(show(&record), ["2 /c 5 pending"]);
    }

    #[test]
    fn updates_reach_their_entry_also_after_others_were_forgotten() {
        let mut record = Record::new(2, usize::MAX);
        for path in ["/a", "/b", "/c"] {
            record.push(arrived(path));
        }
        record.update(0, |entry| entry.answer = Answer::Hang);
        record.update(1, |entry| entry.answer = Answer::Abandoned);
        record.update(7, |entry| entry.answer = Answer::Hang);
        assert_eq!(show(&record), ["1 /b 0 abandoned", "2 /c 0 pending"]);
    }

    #[test]
    fn headers_are_found_in_any_case_and_kept_when_repeated() {
        let mut map = HeaderMap::new();
        map.append("webhook-id", HeaderValue::from_static("evt: 1"));
        map.append("x-empty", HeaderValue::from_static(""));
        map.append("x-twice", HeaderValue::from_static("a"));
        map.append("x-twice", HeaderValue::from_static("b"));
        map.append("x-binary", HeaderValue::from_bytes(b"\xff").unwrap());
        let headers = Headers::copy(&map);
        assert_eq!(headers.get("Webhook-ID"), Some("evt: 1"));
        assert_eq!(headers.get("x-empty"), Some(""));
        assert_eq!(headers.get("x-binary"), Some("\u{fffd}"));
        assert_eq!(headers.get("x-none"), None);
        let twice: Vec<_> = headers.iter().filter(|(name, _)| *name == "x-twice").collect();
        assert_eq!(twice, [("x-twice", "a"), ("x-twice", "b")]);
    }
}
