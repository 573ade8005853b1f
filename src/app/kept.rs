//! Subscriptions that the CMS keeps: what reads them, and the tasks that do.

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{CMS_CONNECTIONS_MAX, telling};
use crate::{
    clock::Clock,
    cms::{
        Client,
        subscriptions::{CHANGES_WAITING_MAX, Subscriptions},
    },
    config::{Config, Role},
    domain::sealing::SealingKeys,
    http::{CmsLink, DocumentChecks, SubscriptionBounds},
    store::{Store, connector::Connector},
    worker::watched,
};

/// What the settings of subscriptions are checked against, whoever brings them.
pub fn subscription_bounds(config: &Config) -> SubscriptionBounds {
    SubscriptionBounds {
        addresses: config.addresses.clone(),
        http_timeout: config.http_timeout,
        delivery_age_max: config.delivery_age_max,
    }
}

/// Reads the subscriptions that the CMS keeps, if it keeps any.
pub fn subscriptions(
    config: &Config,
    connector: &Connector,
    sealing: &SealingKeys,
    clock: &Clock,
) -> anyhow::Result<Option<Subscriptions>> {
    let Some(settings) = &config.cms else { return Ok(None) };
    let client = Client::new(settings).context("PAYLOAD_URL")?;
    let checks = DocumentChecks {
        bounds: subscription_bounds(config),
        sealing: sealing.clone(),
        clock: clock.clone(),
    };
    let connection = Store::connect_lazy(connector.clone(), CMS_CONNECTIONS_MAX).with_clock(clock);
    let store = telling(connection, Some(settings));
    Ok(Subscriptions::of(settings, client, checks, store))
}

/// Starts to keep subscriptions as the CMS has them: those who send look regularly, those who answer
/// follow what they are told.
pub fn keep(
    kept: &Subscriptions,
    role: Role,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    failed: &CancellationToken,
) -> CmsLink {
    let (changes, told) = mpsc::channel(CHANGES_WAITING_MAX);
    if role != Role::Worker {
        let (kept, until) = (kept.clone(), stop.clone());
        let following = async move { kept.follow(told, until).await };
        tasks.spawn(watched("cms changes", following, stop, failed));
    }
    if role != Role::Api {
        let (kept, until) = (kept.clone(), stop.clone());
        let looking = async move { kept.look_regularly(until).await };
        tasks.spawn(watched("cms subscriptions", looking, stop, failed));
    }
    kept.link(changes)
}
