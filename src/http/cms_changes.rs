//! `POST /payload/changes`: the CMS tells that a document has changed, so that it need not be waited for.

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    ApiError, ApiState, body, caller::Caller, extract, json::Members, problem::Problem,
    subscriptions::settings::fault,
};
use crate::{
    domain::{ApplicationId, Permission},
    store::{applications::ApplicationName, cms_subscriptions::DOCUMENT_ID_BYTES_MAX},
};

/// The fields of a change, as Payload calls them.
pub const FIELDS: &[&str; 3] = &["id", "updatedAt", "deleted"];

/// A document of the CMS has changed, or so it says: it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CmsChange {
    /// Its id.
    pub document_id: String,
    /// What is to be seen there.
    pub to_see: ToSee,
}

/// What a change is to lead to. It may not be there yet: the CMS tells before it commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToSee {
    /// It is there, and was changed then or later.
    ChangedAt(DateTime<Utc>),
    /// It is there or not.
    Anything,
    /// It is gone.
    Gone,
}

/// The CMS that keeps the subscriptions of an application, as the API knows it.
#[derive(Debug)]
pub struct CmsLink {
    /// The application.
    pub application: ApplicationName,
    /// The collection of its subscriptions.
    pub collection: String,
    /// Where changes are told that are to be looked at. Bounded; full means 503.
    pub changes: mpsc::Sender<CmsChange>,
}

impl CmsLink {
    /// The application as a request would name it.
    fn named(&self) -> String {
        match &self.application {
            ApplicationName::Id(id) => id.to_string(),
            ApplicationName::Uid(uid) => uid.as_str().to_owned(),
        }
    }

    /// Whether it keeps the subscriptions of this one.
    pub async fn keeps(
        &self,
        state: &ApiState,
        application: ApplicationId,
    ) -> Result<bool, ApiError> {
        match state.known.application(&state.store, &self.named()).await {
            Ok(kept) => Ok(kept == application),
            Err(ApiError::ApplicationNotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A change that will be looked at.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CmsChangeAccepted")]
pub struct CmsChangeBody {
    #[schemars(extend("const" = "accepted"))]
    status: &'static str,
}

/// Takes note of a change: the document itself is read from the CMS, and by and by.
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    request: Request,
) -> Result<(StatusCode, Json<CmsChangeBody>), Problem> {
    caller.must(Permission::Manage)?;
    let cms = state.cms.as_ref().ok_or(ApiError::Conflict(NO_CMS))?;
    caller.application(&state, Some(&cms.named())).await?;
    let body = body::read_json(request, state.body_limit, None).await?;
    let change = change_of(body::text(&body)?)?;
    cms.changes.try_send(change).map_err(|_| ApiError::Busy)?;
    Ok((StatusCode::ACCEPTED, Json(CmsChangeBody { status: "accepted" })))
}

/// Why nobody can tell of changes.
pub const NO_CMS: &str =
    "no CMS keeps subscriptions: PAYLOAD_URL is not set, or PAYLOAD_SUBSCRIPTIONS is empty";

fn change_of(text: &str) -> Result<CmsChange, Problem> {
    let given = Members::of(text, FIELDS)?;
    let id = given.required("id")?.get();
    // A number stands for itself, as it stands in a path.
    let document_id =
        if id.starts_with('"') { given.string("id")?.unwrap_or_default() } else { id.to_owned() };
    let is_number = document_id.bytes().all(|byte| byte.is_ascii_digit());
    let is_id = (1..=DOCUMENT_ID_BYTES_MAX).contains(&document_id.len())
        && !document_id.contains('\0')
        && (id.starts_with('"') || is_number);
    if !is_id {
        let why =
            format!("must be a text of 1 to {DOCUMENT_ID_BYTES_MAX} bytes, or a whole number");
        return Err(fault("id", why));
    }
    let updated_at = given.string("updatedAt")?;
    let updated_at = updated_at.map(|text| extract::time(&text)).transpose();
    let updated_at = updated_at.map_err(|why| fault("updatedAt", why))?;
    let to_see = match (given.boolean("deleted")?, updated_at) {
        (Some(true), _) => ToSee::Gone,
        (_, Some(at)) => ToSee::ChangedAt(at),
        (_, None) => ToSee::Anything,
    };
    Ok(CmsChange { document_id, to_see })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_a_document_and_what_is_to_be_seen() {
        #[track_caller]
        fn check(text: &str, id: &str, to_see: ToSee) {
            assert_eq!(change_of(text).unwrap(), CmsChange { document_id: id.to_owned(), to_see });
        }
        let at = "2026-01-31T12:00:00.123Z";
        let changed = ToSee::ChangedAt(extract::time(at).unwrap());
        check(&format!(r#"{{"id": 7, "updatedAt": "{at}"}}"#), "7", changed);
        check(
            &format!(r#"{{"id": "a-b", "updatedAt": "{at}", "deleted": false}}"#),
            "a-b",
            changed,
        );
        check(&format!(r#"{{"id": 7, "updatedAt": "{at}", "deleted": true}}"#), "7", ToSee::Gone);
        check(r#"{"id": "7"}"#, "7", ToSee::Anything);
        for bad in [
            "{}",
            r#"{"id": ""}"#,
            r#"{"id": null}"#,
            r#"{"id": -1}"#,
            r#"{"id": 1.5}"#,
            r#"{"id": [1]}"#,
            r#"{"id": 1, "updatedAt": "yesterday"}"#,
            r#"{"id": 1, "doc": {}}"#,
        ] {
            assert!(change_of(bad).is_err(), "{bad}");
        }
    }
}
