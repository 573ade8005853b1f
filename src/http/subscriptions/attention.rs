//! `GET /subscriptions?attention=true`: those that somebody should look at, each with why.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{SubscriptionBody, shown};
use crate::{
    domain::ApplicationId,
    http::{ApiState, events::Page, explain::because_of, extract::Cursor, problem::Problem},
    store::{
        attention::Attention, cms_subscriptions::RefusedDocument, subscriptions::SubscriptionFilter,
    },
};

/// What may be the matter.
const MATTERS: [&str; 4] = ["disabled", "failing", "behind", "refused"];
/// How many refused documents the first page tells.
const REFUSED_DOCUMENTS_MAX: i64 = 100;

/// Why a subscription wants attention.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Attention")]
pub struct AttentionBody {
    /// The service has disabled it; all fails; what waits is due for more than a minute; or the CMS
    /// keeps it, and what it says there now is refused.
    #[schemars(extend("enum" = MATTERS))]
    matter: &'static str,
    since: DateTime<Utc>,
    /// The same for people.
    detail: String,
}

/// A page of subscriptions.
#[derive(Serialize, JsonSchema)]
pub struct SubscriptionPage {
    #[serde(flatten)]
    pub page: Page<SubscriptionBody>,
    /// On the first page of those that want attention: the latest documents of the CMS that are
    /// refused and never were a subscription, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_documents: Option<Vec<RefusedDocumentBody>>,
}

/// A document of the CMS that is refused and never was a subscription.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RefusedDocument")]
pub struct RefusedDocumentBody {
    document_id: String,
    name: Option<String>,
    since: DateTime<Utc>,
    /// What is wrong with it, for people.
    detail: String,
}

impl From<RefusedDocument> for RefusedDocumentBody {
    fn from(document: RefusedDocument) -> Self {
        let RefusedDocument { document_id, name, refused_at, refused_because } = document;
        Self { document_id, name, since: refused_at, detail: refused_because }
    }
}

/// A page of them, newest first. It may have fewer than the limit, or none, and yet a next one: each
/// looks at a bounded number of subscriptions.
pub async fn page(
    state: &ApiState,
    application: ApplicationId,
    filter: &SubscriptionFilter,
    limit: usize,
) -> Result<SubscriptionPage, Problem> {
    let found = state.store.subscriptions_in_need(application, filter, limit).await?;
    let data = found.subscriptions.into_iter().map(|(row, attention)| {
        let body = shown(state, application, row, None)?;
        Ok::<_, Problem>(body.because(why(attention)))
    });
    let next_cursor = found.looked_at.map(|id| Cursor::Subscriptions.after(id.uuid()));
    let data = data.collect::<Result<_, _>>()?;
    let refused_documents = match filter.older_than {
        None => state.store.refused_documents(application, REFUSED_DOCUMENTS_MAX).await?,
        Some(_) => Vec::new(),
    };
    let refused_documents: Vec<_> = refused_documents.into_iter().map(Into::into).collect();
    Ok(SubscriptionPage {
        page: Page { data, next_cursor },
        refused_documents: Some(refused_documents).filter(|them| !them.is_empty()),
    })
}

fn why(attention: Attention) -> Vec<AttentionBody> {
    let [disabled, failing, behind, refused] = MATTERS;
    let mut why = Vec::new();
    if let Some((since, because)) = attention.disabled_at.zip(attention.disabled_because) {
        let detail = format!("disabled by the service: {}", because_of(&because));
        why.push(AttentionBody { matter: disabled, since, detail });
    }
    if let Some(since) = attention.failing_since {
        let detail = format!(
            "the last {} attempts failed, the latest with {}: {}",
            attention.failures.unwrap_or_default(),
            attention.last_error.unwrap_or_default(),
            attention.last_message.unwrap_or_default()
        );
        why.push(AttentionBody { matter: failing, since, detail });
    }
    if let Some(since) = attention.behind_since {
        let detail = "what waits for it is due for more than a minute".to_owned();
        why.push(AttentionBody { matter: behind, since, detail });
    }
    if let Some((since, because)) = attention.refused_at.zip(attention.refused_because) {
        let detail = format!("its document in the CMS is refused: {because}");
        why.push(AttentionBody { matter: refused, since, detail });
    }
    why
}
