//! What is sent: the headers and signatures of one attempt. Pure.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, SecondsFormat, Utc};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use url::{Position, Url};

use crate::domain::{
    AllowedHosts, DeliveryId, EventId, KeyName, TargetUrl, Upstream,
    signature::SigningKeys,
    subscription::{CustomHeaders, Method, SignatureHeaders},
    upstream,
};

const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const X_SIGNATURE: HeaderName = HeaderName::from_static("x-webhook-signature");
const X_BODY_SIGNATURE: HeaderName = HeaderName::from_static("x-signature");
const X_TIMESTAMP: HeaderName = HeaderName::from_static("x-webhook-timestamp");
const X_DELIVERY_ID: HeaderName = HeaderName::from_static("x-webhook-delivery-id");
const X_ATTEMPT: HeaderName = HeaderName::from_static("x-webhook-attempt");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const X_HOPS: HeaderName = HeaderName::from_static(upstream::HOPS);
const X_KEY_ID: HeaderName = HeaderName::from_static("x-webhook-key-id");
const X_EVENT: HeaderName = HeaderName::from_static("x-webhook-event");
const X_EVENT_TYPE: HeaderName = HeaderName::from_static("x-webhook-event-type");
const X_EVENT_ID: HeaderName = HeaderName::from_static("x-webhook-event-id");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const AGENT: &str = concat!("webhook-dispatcher/", env!("CARGO_PKG_VERSION"));

/// One attempt, before it is signed.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The event; its id is the `webhook-id`.
    pub event_id: EventId,
    /// The event's type, if told.
    pub event_type: Option<&'a str>,
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The attempt's number, from 1.
    pub number: u32,
    /// When it starts, by the database's clock.
    pub at: DateTime<Utc>,
    /// The way that its event came.
    pub upstream: &'a Upstream,
    /// Its method.
    pub method: Method,
    /// Where it goes.
    pub target: &'a TargetUrl,
    /// Headers beside ours.
    pub headers: &'a CustomHeaders,
    /// What signs it.
    pub signature: Signature<'a>,
    /// The name of the key that signs it, if it was chosen by name.
    pub signing_key: Option<&'a KeyName>,
    /// The bytes to sign and to send.
    pub body: &'a Bytes,
}

/// What signs an attempt.
#[derive(Debug, Clone, Copy)]
pub enum Signature<'a> {
    /// Nothing, as the subscription asks.
    None,
    /// These keys, in these headers.
    By(&'a SigningKeys, SignatureHeaders),
    /// Keys that do not open: nothing is sent without the signature that is expected.
    Unreadable,
    /// A key that was chosen by name, and is not there any more: the same.
    Missing(&'a KeyName),
}

/// A request, ready to go.
#[derive(Debug)]
pub struct Outgoing {
    /// Its method.
    pub method: hyper::Method,
    /// Where it goes.
    pub url: Url,
    /// Its headers, in their order, but for those that HTTP itself adds.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The only hosts that may be called; `None`: all.
    pub hosts: Option<Arc<AllowedHosts>>,
}

/// Why an attempt cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum RequestRefused {
    /// A header of ours could not be made of a value.
    #[error("the header {0} cannot carry its value")]
    Header(HeaderName),
    /// See [`Signature::Unreadable`].
    #[error("the signing key is sealed with a key that ENCRYPTION_KEY does not name")]
    Key,
    /// See [`Signature::Missing`].
    #[error(
        "the signing key `{0}` is not among the SIGNING_KEYS of the application any more: put it back \
         and retry, or send it anew with another one"
    )]
    NoSuchKey(KeyName),
}

impl Outgoing {
    /// Signs an attempt and lays out its headers.
    pub fn of(attempt: &Attempt<'_>) -> Result<Self, RequestRefused> {
        let mut headers = HeaderMap::with_capacity(16);
        let mut values = Values::default();
        // Headers go out in the order in which they are inserted here, and `Host` should be the first
        // (RFC 9110, section 7.2): some firewalls look no further.
        let url = attempt.target.url();
        let authority = &url[Position::BeforeHost..Position::BeforePath];
        headers.insert(HOST, values.put(format_args!("{authority}")));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let unix_seconds = attempt.at.timestamp();
        let time = attempt.at.to_rfc3339_opts(SecondsFormat::Millis, true);
        let event_id = values.put(format_args!("{}", attempt.event_id));
        let id = event_id.to_str().unwrap_or_default();
        match attempt.signature {
            Signature::None => {}
            Signature::By(keys, names) => {
                if names != SignatureHeaders::XSignature {
                    let signatures = keys.standard_signatures(id, unix_seconds, attempt.body);
                    headers.insert(WEBHOOK_SIGNATURE, values.put(format_args!("{signatures}")));
                    let signature = keys.newest().hex_signature(&time, attempt.body);
                    headers.insert(X_SIGNATURE, values.put(format_args!("{signature}")));
                }
                if names != SignatureHeaders::Standard {
                    let signature = keys.newest().hex_body_signature(attempt.body);
                    headers.insert(X_BODY_SIGNATURE, values.put(format_args!("{signature}")));
                }
            }
            Signature::Unreadable => return Err(RequestRefused::Key),
            Signature::Missing(name) => return Err(RequestRefused::NoSuchKey(name.clone())),
        }
        if let Some(name) = attempt.signing_key {
            headers.insert(X_KEY_ID, values.put(format_args!("{name}")));
        }
        headers.insert(WEBHOOK_TIMESTAMP, values.put(format_args!("{unix_seconds}")));
        headers.insert(X_TIMESTAMP, values.put(format_args!("{time}")));
        headers.insert(X_DELIVERY_ID, values.put(format_args!("{}", attempt.delivery_id)));
        headers.insert(X_ATTEMPT, values.put(format_args!("{}", attempt.number)));
        // At most `HOPS_MAX` were accepted.
        headers.insert(
            X_HOPS,
            values.put(format_args!("{}", attempt.upstream.hops.saturating_add(1))),
        );
        if let Some(trace) = &attempt.upstream.traceparent {
            // Unchanged: this service is no part of the trace, and its spans would be nowhere.
            headers.insert(TRACEPARENT, values.put(format_args!("{}", trace.as_str())));
        }
        if let Some(event_type) = attempt.event_type {
            let refused = |_| RequestRefused::Header(X_EVENT_TYPE);
            let event_type = HeaderValue::from_str(event_type).map_err(refused)?;
            headers.insert(X_EVENT, event_type.clone());
            headers.insert(X_EVENT_TYPE, event_type);
        }
        headers.insert(X_EVENT_ID, event_id.clone());
        headers.insert(WEBHOOK_ID, event_id);
        for (name, value) in attempt.headers.iter() {
            headers.insert(name, value.clone());
        }
        let method = match attempt.method {
            Method::Post => hyper::Method::POST,
            Method::Put => hyper::Method::PUT,
            Method::Patch => hyper::Method::PATCH,
        };
        Ok(Self { method, url: url.clone(), headers, body: attempt.body.clone(), hosts: None })
    }
}

/// Makes the values of a request's headers, all in one allocation.
struct Values(BytesMut);

impl Default for Values {
    fn default() -> Self {
        // More than all of them take, with two keys that sign and a host name that is not long.
        Self(BytesMut::with_capacity(640))
    }
}

impl Values {
    /// A value of characters that are ours, and so sound in a header.
    fn put(&mut self, value: fmt::Arguments<'_>) -> HeaderValue {
        // Writing into memory cannot fail.
        let _ = self.0.write_fmt(value);
        HeaderValue::from_maybe_shared(self.0.split().freeze())
            .expect("hosts, ids, numbers, times and signatures are visible ASCII")
    }
}

/// What is kept of a value that may be a credential.
const REDACTED: &str = "[redacted]";

/// Header lines as they are kept: without what a subscription's own headers say, which may be
/// credentials. Values beyond ASCII are read as UTF-8, or else as Latin-1, which cannot fail.
pub fn header_lines(headers: &HeaderMap) -> String {
    let mut lines = String::with_capacity(headers.len() * 48);
    for (name, value) in headers {
        lines.push_str(name.as_str());
        lines.push_str(": ");
        match str::from_utf8(value.as_bytes()) {
            _ if value.is_sensitive() => lines.push_str(REDACTED),
            Ok(text) => lines.push_str(text),
            Err(_) => lines.extend(value.as_bytes().iter().copied().map(char::from)),
        }
        lines.push('\n');
    }
    lines.pop();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::SigningKey;

    #[test]
    fn the_headers_of_the_contract_are_all_there() {
        let event_id: EventId = "evt_0192d4e012347abc8def0123456789ab".parse().unwrap();
        let target = TargetUrl::parse("https://example.com/hook").unwrap();
        let keys = SigningKeys::single(SigningKey::from_secret("secret").unwrap());
        let attempt = Attempt {
            event_id,
            event_type: Some("invoice.paid"),
            delivery_id: DeliveryId::of_event(event_id, 0),
            number: 3,
            at: DateTime::from_timestamp_millis(1_795_219_200_123).unwrap(),
            upstream: &Upstream::default(),
            method: Method::Post,
            headers: &CustomHeaders::default(),
            signature: Signature::By(&keys, SignatureHeaders::Standard),
            target: &target,
            signing_key: None,
            body: &Bytes::from_static(b"{}"),
        };
        let outgoing = Outgoing::of(&attempt).unwrap();
        let mut lines: Vec<_> =
            header_lines(&outgoing.headers).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        // Signatures by: printf '%s' "$signed" | openssl dgst -sha256 -hmac secret [-binary | base64]
        assert_eq!(
            lines,
            [
                "accept: */*",
                "content-type: application/json",
                "host: example.com",
                concat!("user-agent: webhook-dispatcher/", env!("CARGO_PKG_VERSION")),
                "webhook-id: evt_0192d4e012347abc8def0123456789ab",
                "webhook-signature: v1,ATnPuEjzAIZsW+L2LbojH6SfmjDcSjyjdmhDh5T6qQU=",
                "webhook-timestamp: 1795219200",
                "x-webhook-attempt: 3",
                "x-webhook-delivery-id: dlv_0192d4e012347abc8def012345600000",
                "x-webhook-event-id: evt_0192d4e012347abc8def0123456789ab",
                "x-webhook-event-type: invoice.paid",
                "x-webhook-event: invoice.paid",
                "x-webhook-hops: 1",
                "x-webhook-signature: 20b8887cd416d68b00486311239aafcd0eaba669bdc9a909cc71a062dd043b7e",
                "x-webhook-timestamp: 2026-11-21T00:00:00.123Z",
            ]
        );
    }

    #[test]
    fn a_subscription_chooses_its_headers_and_their_values_are_not_kept() {
        let event_id = EventId::new(1, [1; 10]);
        let keys = SigningKeys::single(SigningKey::from_secret("secret").unwrap());
        let own = CustomHeaders::new([("Authorization", "Bearer hush"), ("user-agent", "mine")]);
        let own = own.unwrap();
        let names = |signature| {
            let attempt = Attempt {
                event_id,
                event_type: None,
                delivery_id: DeliveryId::of_event(event_id, 0),
                number: 1,
                at: DateTime::UNIX_EPOCH,
                upstream: &Upstream::default(),
                method: Method::Patch,
                headers: &own,
                signature,
                target: &TargetUrl::parse("http://a/").unwrap(),
                signing_key: None,
                body: &Bytes::from_static(b"{}"),
            };
            Outgoing::of(&attempt).map(|outgoing| {
                assert_eq!(outgoing.method, hyper::Method::PATCH);
                let lines = header_lines(&outgoing.headers);
                assert!(lines.contains("authorization: [redacted]"), "{lines}");
                assert!(lines.contains("user-agent: [redacted]"), "{lines}");
                assert!(!lines.contains("hush"), "{lines}");
                let has = |name: &str| lines.lines().any(|line| line.starts_with(name));
                (has("webhook-signature: v1,"), has("x-webhook-signature: "), has("x-signature: "))
            })
        };
        let by = |headers| names(Signature::By(&keys, headers)).unwrap();
        assert_eq!(by(SignatureHeaders::Standard), (true, true, false));
        assert_eq!(by(SignatureHeaders::XSignature), (false, false, true));
        assert_eq!(by(SignatureHeaders::Both), (true, true, true));
        assert_eq!(names(Signature::None).unwrap(), (false, false, false));
        assert!(names(Signature::Unreadable).is_err(), "nothing goes out unsigned by mistake");
    }

    #[test]
    fn an_untyped_event_has_no_type_headers_and_a_traced_one_its_callers_trace() {
        let event_id = EventId::new(1, [1; 10]);
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let upstream = Upstream { hops: 2, traceparent: upstream::TraceParent::parse(trace) };
        let attempt = Attempt {
            event_id,
            event_type: None,
            delivery_id: DeliveryId::of_event(event_id, 0),
            number: 1,
            at: DateTime::UNIX_EPOCH,
            upstream: &upstream,
            method: Method::Put,
            headers: &CustomHeaders::default(),
            signature: Signature::None,
            target: &TargetUrl::parse("http://a/").unwrap(),
            signing_key: None,
            body: &Bytes::new(),
        };
        let headers = Outgoing::of(&attempt).unwrap().headers;
        assert!(!headers.contains_key("x-webhook-event"));
        assert_eq!(headers["traceparent"], trace);
        assert_eq!(headers["x-webhook-hops"], "3");
    }

    #[test]
    fn any_header_value_can_be_kept() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        headers.append("x-a", HeaderValue::from_bytes("naïve 日本".as_bytes()).unwrap());
        assert_eq!(header_lines(&headers), "x-a: café\nx-a: naïve 日本");
        assert_eq!(header_lines(&HeaderMap::new()), "");
    }
}
