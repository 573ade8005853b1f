//! What came of an attempt, in a closed set of classes.

use std::{fmt, time::Duration};

/// Why an attempt failed, or why a delivery ended without one. A closed set: it labels metrics,
/// filters lists, and is stored as text with a `check` of the same list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The host's name could not be resolved.
    Dns,
    /// No connection: refused, unreachable, reset before the request went out.
    Connect,
    /// The TLS handshake failed, the certificate included.
    Tls,
    /// The deadline over the whole exchange ran out.
    Timeout,
    /// The target's address is one that must not be called.
    BlockedAddress,
    /// An answer other than 2xx and 3xx.
    HttpStatus,
    /// A 3xx answer; redirects are never followed.
    Redirect,
    /// The target leads back to a service that feeds it, and refuses what has come too often.
    Loop,
    /// The answer's head is larger than we read.
    ResponseTooLarge,
    /// The answer is not HTTP, or the connection broke in the middle of the exchange.
    Protocol,
    /// The request could not be signed.
    Signing,
    /// A fault of ours.
    Internal,
    /// The lease was lost too often in a row.
    Interrupted,
    /// The delivery became older than deliveries may be.
    Expired,
    /// An operator ended it.
    Cancelled,
}

impl ErrorClass {
    /// Every class, in the order of the documentation.
    pub const ALL: [Self; 15] = [
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::BlockedAddress,
        Self::HttpStatus,
        Self::Redirect,
        Self::Loop,
        Self::ResponseTooLarge,
        Self::Protocol,
        Self::Signing,
        Self::Internal,
        Self::Interrupted,
        Self::Expired,
        Self::Cancelled,
    ];

    /// The name in JSON, SQL, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::BlockedAddress => "blocked_address",
            Self::HttpStatus => "http_status",
            Self::Redirect => "redirect",
            Self::Loop => "loop",
            Self::ResponseTooLarge => "response_too_large",
            Self::Protocol => "protocol",
            Self::Signing => "signing",
            Self::Internal => "internal",
            Self::Interrupted => "interrupted",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The side that failures of this class count against, unless more is known. A `dns` failure
    /// without an answer of a name server counts against the service.
    pub const fn fault(self) -> Fault {
        match self {
            Self::Dns
            | Self::Connect
            | Self::Tls
            | Self::Timeout
            | Self::HttpStatus
            | Self::Redirect
            | Self::Loop
            | Self::ResponseTooLarge
            | Self::Protocol => Fault::Receiver,
            Self::BlockedAddress
            | Self::Signing
            | Self::Internal
            | Self::Interrupted
            | Self::Expired
            | Self::Cancelled => Fault::Service,
        }
    }

    /// Reads a name as a filter gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The side that a failure counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The target: its host, its certificate, its answer.
    Receiver,
    /// This service: its settings, its machine, its name servers, its operator. It says nothing about
    /// the target.
    Service,
}

/// A failed attempt: its class, the side that it counts against, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The class.
    pub class: ErrorClass,
    /// The side that it counts against: that of its class, unless more is known.
    pub fault: Fault,
    /// What happened, at most [`FAILURE_MESSAGE_BYTES_MAX`] bytes, without secrets.
    pub message: String,
}

/// How many bytes of a failure's message are kept.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 1_024;

impl Failure {
    /// A failure whose message is cut to [`FAILURE_MESSAGE_BYTES_MAX`], counted against the side of its
    /// class.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > FAILURE_MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(FAILURE_MESSAGE_BYTES_MAX));
        }
        Self { class, fault: class.fault(), message }
    }

    /// The same failure, counted against this side.
    #[must_use]
    pub fn counted_against(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }
}

/// What an attempt means for its delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx within the deadline.
    Delivered,
    /// Worth another try.
    Transient {
        /// What happened.
        failure: Failure,
        /// How long the receiver asked us to wait, already held to `RETRY_AFTER_MAX`.
        retry_after: Option<Duration>,
        /// Whether the receiver is asking for quiet (429, or 503 with `Retry-After`): then the
        /// whole lane pauses, not this delivery alone.
        is_throttled: bool,
    },
    /// Never worth another try.
    Permanent {
        /// What happened.
        failure: Failure,
    },
}

impl Outcome {
    /// A failure without an answer.
    pub fn failed(failure: Failure) -> Self {
        Self::Transient { failure, retry_after: None, is_throttled: false }
    }

    /// The same, to be changed.
    pub fn failure_mut(&mut self) -> Option<&mut Failure> {
        match self {
            Self::Delivered => None,
            Self::Transient { failure, .. } | Self::Permanent { failure } => Some(failure),
        }
    }

    /// What went wrong, if anything.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Delivered => None,
            Self::Transient { failure, .. } | Self::Permanent { failure } => Some(failure),
        }
    }
}

/// How long a lane that answered 429 without `Retry-After` is left alone.
pub const THROTTLE_PAUSE: Duration = Duration::from_secs(10);

/// What an answer means. `retry_after` is the header's value as a duration, if it had one.
pub fn classify(status: u16, retry_after: Option<Duration>, retry_after_max: Duration) -> Outcome {
    let retry_after = retry_after.map(|wait| wait.min(retry_after_max));
    let failure = |class, message| Failure::new(class, message);
    match status {
        200..=299 => Outcome::Delivered,
        300..=399 => Outcome::failed(failure(
            ErrorClass::Redirect,
            format!("answered {status}; redirects are not followed"),
        )),
        410 => Outcome::Permanent {
            failure: failure(ErrorClass::HttpStatus, "answered 410 Gone".to_owned()),
        },
        _ => Outcome::Transient {
            failure: failure(ErrorClass::HttpStatus, format!("answered {status}")),
            retry_after: match status {
                429 => Some(retry_after.unwrap_or(THROTTLE_PAUSE)),
                503 => retry_after,
                _ => None,
            },
            is_throttled: status == 429 || (status == 503 && retry_after.is_some()),
        },
    }
}

/// Outcome of an attempt at a webhook dispatcher that refuses the event because of the way that it
/// came. Never worth another try: the event keeps that way.
pub fn looped(status: u16) -> Outcome {
    let message = format!(
        "answered {status}: the target leads back to a webhook dispatcher that feeds it, and the event \
         has passed too many already"
    );
    Outcome::Permanent { failure: Failure::new(ErrorClass::Loop, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(3_600);

    #[track_caller]
    fn check(status: u16, retry_after_s: Option<u64>, expected: &str) {
        let got = match classify(status, retry_after_s.map(Duration::from_secs), MAX) {
            Outcome::Delivered => "delivered".to_owned(),
            Outcome::Permanent { failure } => format!("permanent {}", failure.class),
            Outcome::Transient { failure, retry_after, is_throttled } => format!(
                "transient {} {:?}{}",
                failure.class,
                retry_after.map(|d| d.as_secs()),
                if is_throttled { " throttled" } else { "" }
            ),
        };
        assert_eq!(got, expected, "{status}");
    }

    #[test]
    fn answers_are_classified() {
        check(200, None, "delivered");
        check(299, Some(5), "delivered");
        check(301, None, "transient redirect None");
        check(304, None, "transient redirect None");
        check(400, Some(5), "transient http_status None");
        check(410, None, "permanent http_status");
        check(429, None, "transient http_status Some(10) throttled");
        check(429, Some(7), "transient http_status Some(7) throttled");
        check(429, Some(86_400), "transient http_status Some(3600) throttled");
        check(500, Some(7), "transient http_status None");
        check(503, None, "transient http_status None");
        check(503, Some(7), "transient http_status Some(7) throttled");
        check(101, None, "transient http_status None");
        check(999, None, "transient http_status None");
    }

    #[test]
    fn failures_count_against_the_side_of_their_class_unless_more_is_known() {
        for (class, fault) in [
            (ErrorClass::Dns, Fault::Receiver),
            (ErrorClass::Tls, Fault::Receiver),
            (ErrorClass::BlockedAddress, Fault::Service),
            (ErrorClass::Signing, Fault::Service),
            (ErrorClass::Internal, Fault::Service),
        ] {
            assert_eq!(Failure::new(class, "").fault, fault, "{class}");
        }
        let unanswered = Failure::new(ErrorClass::Dns, "").counted_against(Fault::Service);
        assert_eq!(unanswered.fault, Fault::Service);
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let failure = Failure::new(ErrorClass::Internal, "é".repeat(FAILURE_MESSAGE_BYTES_MAX));
        assert_eq!(failure.message.len(), FAILURE_MESSAGE_BYTES_MAX);
    }
}
