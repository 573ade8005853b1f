//! The body that subscriptions get by default: the event's own facts around the payload.

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};

use super::{ApplicationId, EventId, ids::unix_ms_of};

/// What goes into an envelope.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The event. Its id also tells when it was accepted.
    pub event: EventId,
    /// Its type, if told.
    pub event_type: Option<&'a str>,
    /// The tenant.
    pub application: ApplicationId,
    /// JSON text, as it came.
    pub payload: &'a [u8],
    /// JSON text, as it came.
    pub metadata: Option<&'a str>,
    /// What the subscription asks for.
    pub schema_version: &'a str,
}

/// Lays out the envelope: the same bytes for the same facts, so that every attempt sends the same
/// body. The payload is in it as it came.
pub fn envelope(facts: &Facts<'_>) -> Bytes {
    /// More than all that is neither payload nor metadata.
    const FRAME_BYTES: usize = 512;
    let metadata = facts.metadata.unwrap_or("null");
    let mut body = Vec::with_capacity(facts.payload.len() + metadata.len() + FRAME_BYTES);
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let at = DateTime::<Utc>::from_timestamp_millis(unix_ms_of(facts.event.uuid()).cast_signed());
    let at = at.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true);
    let event_type = facts.event_type.map_or_else(|| "null".to_owned(), text);
    let head = format!(
        r#"{{"id":"{}","type":{event_type},"timestamp":"{at}","tenant_id":"{}","data":"#,
        facts.event, facts.application
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(facts.payload);
    body.extend_from_slice(br#","metadata":"#);
    body.extend_from_slice(metadata.as_bytes());
    body.extend_from_slice(br#","schema_version":"#);
    body.extend_from_slice(text(facts.schema_version).as_bytes());
    body.push(b'}');
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::DEFAULT_APPLICATION;

    #[test]
    fn an_envelope_holds_the_payload_as_it_came() {
        let facts = Facts {
            event: EventId::new(1_795_219_200_123, [0; 10]),
            event_type: Some("invoice.paid"),
            application: DEFAULT_APPLICATION,
            payload: br#"{ "b": 1.0, "a": [] }"#,
            metadata: Some(r#"{"trace":"x"}"#),
            schema_version: "1\"",
        };
        assert_eq!(
            envelope(&facts),
            concat!(
                r#"{"id":"evt_01a1fb67187b70008000000000000000","type":"invoice.paid","#,
                r#""timestamp":"2026-11-21T00:00:00.123Z","#,
                r#""tenant_id":"app_00000000000070008000000000000000","#,
                r#""data":{ "b": 1.0, "a": [] },"metadata":{"trace":"x"},"schema_version":"1\""}"#,
            )
        );
        let bare = envelope(&Facts { event_type: None, metadata: None, ..facts });
        let bare: serde_json::Value = serde_json::from_slice(&bare).unwrap();
        assert!(bare["type"].is_null() && bare["metadata"].is_null());
    }
}
