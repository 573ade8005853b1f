//! `GET /subscriptions?attention=true`: those that somebody should look at, each with why.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::{SubscriptionBody, shown};
use crate::{
    domain::ApplicationId,
    http::{ApiState, events::Page, explain::because_of, extract::Cursor, problem::Problem},
    store::{attention::Attention, subscriptions::SubscriptionFilter},
};

/// What may be the matter.
const MATTERS: [&str; 3] = ["disabled", "failing", "behind"];

/// Why a subscription wants attention.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Attention")]
pub struct AttentionBody {
    /// The service has disabled it; all fails; or what waits is due for more than a minute.
    #[schemars(extend("enum" = MATTERS))]
    matter: &'static str,
    since: DateTime<Utc>,
    /// The same for people.
    detail: String,
}

/// A page of them, newest first. It may have fewer than the limit, or none, and yet a next one: each
/// looks at a bounded number of subscriptions.
pub async fn page(
    state: &ApiState,
    application: ApplicationId,
    filter: &SubscriptionFilter,
    limit: usize,
) -> Result<Page<SubscriptionBody>, Problem> {
    let found = state.store.subscriptions_in_need(application, filter, limit).await?;
    let data = found.subscriptions.into_iter().map(|(row, attention)| {
        let body = shown(state, application, row, None)?;
        Ok::<_, Problem>(SubscriptionBody { attention: Some(why(attention)), ..body })
    });
    let next_cursor = found.looked_at.map(|id| Cursor::Subscriptions.after(id.uuid()));
    Ok(Page { data: data.collect::<Result<_, _>>()?, next_cursor })
}

fn why(attention: Attention) -> Vec<AttentionBody> {
    let [disabled, failing, behind] = MATTERS;
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
    why
}
