//! Headers in the settings of a subscription: those that it sends, and the one that names the type of
//! what comes in.

use std::collections::BTreeMap;

use axum::http::HeaderName;

use super::{Given, REDACTED, fault};
use crate::{
    domain::{
        SubscriptionId, TargetUrl,
        sealing::SealingKeys,
        subscription::{CustomHeaders, sealed},
    },
    http::{ApiError, problem::Problem},
    store::subscriptions::SettingsRow,
};

/// Maximum length of the name of a header, in bytes.
pub const HEADER_NAME_BYTES_MAX: usize = 64;
/// Headers whose values must not become event types.
const HOLD_SECRETS: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "x-api-key"];

impl Given<'_> {
    /// Stored headers may be credentials of the receiver at the former URL: they go to another origin
    /// only if the request gives them again.
    pub(super) fn may_take_headers_along(
        &self,
        row: &SettingsRow,
        target: &TargetUrl,
    ) -> Result<(), Problem> {
        let is_same = TargetUrl::parse(&row.target_url)
            .is_ok_and(|before| before.url().origin() == target.url().origin());
        if is_same || row.sealed_headers.is_none() {
            return Ok(());
        }
        let given = match self.members.raw("headers") {
            Some(_) => Some(self.members.text_map("headers")?.unwrap_or_default()),
            None => None,
        };
        if given.is_some_and(|headers| headers.values().all(|value| value != REDACTED)) {
            return Ok(());
        }
        Err(fault(
            "headers",
            "must be given again, with their values, or be null: the new `target_url` has another \
             origin, and stored headers are not sent there",
        ))
    }

    /// The headers, sealed. A value that is redacted stands for the one that is stored.
    pub(super) fn headers(
        &self,
        id: SubscriptionId,
        stored: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>, Problem> {
        let Some(mut headers) = self.members.text_map("headers")? else { return Ok(None) };
        if headers.values().any(|value| value == REDACTED) {
            let stored = stored.map(|sealed| open_headers(id, sealed, self.sealing));
            let stored = stored.transpose()?.unwrap_or_default();
            for (name, value) in &mut headers {
                if value == REDACTED {
                    let known = stored.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                    let known = known.map(|(_, value)| value.clone());
                    *value = known.ok_or_else(|| {
                        fault("headers", format!("has no stored value for `{REDACTED}`"))
                    })?;
                }
            }
        }
        let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let checked = CustomHeaders::new(pairs).map_err(|error| fault("headers", error))?;
        if checked.is_empty() {
            return Ok(None);
        }
        let json = serde_json::to_vec(&headers).map_err(|_| ApiError::Internal)?;
        Ok(Some(self.sealing.seal(&json, &sealed::headers_of(id), rand::random())))
    }

    pub(super) fn inbound_type_header(&self) -> Result<Option<String>, Problem> {
        let name = "inbound_type_header";
        let Some(text) = self.members.string(name)? else { return Ok(None) };
        let header = HeaderName::from_bytes(text.as_bytes());
        match header.ok().filter(|_| text.len() <= HEADER_NAME_BYTES_MAX) {
            Some(header) if HOLD_SECRETS.contains(&header.as_str()) => {
                Err(fault(name, "must not name a header that carries credentials"))
            }
            Some(header) => Ok(Some(header.as_str().to_owned())),
            None => Err(fault(
                name,
                format!(
                    "must be the name of a header such as `X-GitHub-Event`, at most \
                     {HEADER_NAME_BYTES_MAX} bytes"
                ),
            )),
        }
    }
}

/// The headers of a subscription, opened.
pub fn open_headers(
    id: SubscriptionId,
    sealed_headers: &[u8],
    sealing: &SealingKeys,
) -> Result<BTreeMap<String, String>, ApiError> {
    let opened = sealing.open(sealed_headers, &sealed::headers_of(id)).map_err(|error| {
        tracing::error!(%error, subscription = %id, "headers cannot be opened");
        ApiError::Internal
    })?;
    serde_json::from_slice(opened.bytes()).map_err(|_| ApiError::Internal)
}
