//! The CMS beside us: Payload 3, which may keep an application's subscriptions and its log.
//!
//! It is asked over its REST API, with the operator's key. It is not called `payload` here, since that
//! is what an event carries. Nothing waits for it but what is about it: a CMS that is down delays its
//! log and its changes, and neither accepting nor sending.

pub mod client;
mod log;
pub mod subscriptions;

use std::time::Duration;

use http::HeaderValue;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use self::client::{Client, CmsError, Document, DocumentId, Page, Query};
use crate::{
    store::{Store, applications::ApplicationName},
    tls::{Trust, TrustError},
};

/// Where the CMS is, and what is kept there.
#[derive(Debug, Clone)]
pub struct CmsSettings {
    /// What the routes of its API begin with, such as `https://cms.example.com/api`.
    pub api: Url,
    /// The collection whose key it is.
    pub users: String,
    /// `<collection> API-Key <key>`, marked as sensitive.
    pub authorization: HeaderValue,
    /// The time for one request, its answer included.
    pub timeout: Duration,
    /// The application whose subscriptions and deliveries these are.
    pub application: ApplicationName,
    /// Where subscriptions are kept; `None`: not there.
    pub subscriptions: Option<SubscriptionsIn>,
    /// The collection of the log; `None`: it is not told.
    pub deliveries: Option<String>,
    /// The authorities whose certificates are accepted.
    pub trust: Trust,
}

/// Where subscriptions are kept.
#[derive(Debug, Clone)]
pub struct SubscriptionsIn {
    /// The collection.
    pub collection: String,
    /// The time between two looks.
    pub poll_interval: Duration,
}

/// What the parts of this have in common.
pub struct Cms {
    /// Asks it.
    pub client: Client,
    /// What it keeps.
    pub settings: CmsSettings,
    /// The connections of these parts.
    pub store: Store,
}

impl Cms {
    /// Connects when it is first used. Fails where the machine has no trusted certificates.
    pub fn new(settings: CmsSettings, store: Store) -> Result<Self, TrustError> {
        Ok(Self { client: Client::new(&settings)?, settings, store })
    }

    /// Does until `stop` what is to be done for the CMS.
    pub async fn run(&self, stop: CancellationToken) {
        if let Some(collection) = &self.settings.deliveries {
            log::run(self, collection, &stop).await;
        }
        stop.cancelled().await;
    }
}
