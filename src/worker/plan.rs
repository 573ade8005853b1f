//! How a claim is to be sent: as its subscription says at this moment, or as the settings say.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::Shared;
use crate::{
    delivery::request::{Attempt, Outgoing, RequestRefused, Signature},
    domain::{
        AllowedHosts, KeyName, RetryPolicy, Subscription, TargetUrl,
        envelope::{Facts, envelope},
        ids::DEFAULT_APPLICATION,
        routing::{Place, Snapshot},
        signature::SigningKeys,
        subscription::{CustomHeaders, Method, PayloadFormat, SignatureHeaders, Signing},
        target::TargetSettings,
    },
    store::{queue::Claim, targets::Calling},
};

/// How long a delivery waits whose subscription cannot be read here.
const WAIT: Duration = Duration::from_secs(60);

/// What is to be done with a claim.
pub enum Plan {
    /// Send it.
    Send(Way),
    /// Look again after a while; it is no attempt.
    Wait(Duration),
    /// Its subscription is disabled.
    Park,
    /// Its subscription, or its application, is gone.
    Cancel,
}

/// How a claim is sent.
pub struct Way {
    says: Says,
    /// The hosts that its application may call; `None`: all.
    hosts: Option<Arc<AllowedHosts>>,
}

/// Who says how a claim is sent.
enum Says {
    /// A subscription.
    Subscription(Arc<Subscription>),
    /// The request, which named the URL.
    Explicit(Signer, Option<Arc<TargetSettings>>),
}

/// Whose keys sign explicit targets.
enum Signer {
    /// An application's.
    Application(Arc<Snapshot>),
    /// Those of `default`, which are in the settings.
    Default,
}

/// Decides how a claim is sent. Waits for the database as long as that takes: a delivery must not
/// end because it could not be asked.
pub async fn plan(shared: &Shared, claim: &Claim) -> Plan {
    match claim.subscription {
        None => {
            let settings = match &claim.calling {
                Calling::Usual => None,
                Calling::As(settings) => Some(settings.clone()),
                Calling::Unreadable => return Plan::Wait(WAIT),
            };
            let Some(snapshot) = snapshot(shared, claim, false).await else { return Plan::Cancel };
            let hosts = snapshot.allowed_hosts.clone();
            let signer = match claim.application {
                DEFAULT_APPLICATION => Signer::Default,
                _ => Signer::Application(snapshot),
            };
            Plan::Send(Way { says: Says::Explicit(signer, settings), hosts })
        }
        Some(id) => {
            let mut snapshot = snapshot(shared, claim, false).await;
            let is_known = |snapshot: &Arc<Snapshot>| snapshot.subscription(id).is_some();
            if !snapshot.as_ref().is_some_and(is_known) {
                // It may be younger than what is known here.
                snapshot = self::snapshot(shared, claim, true).await;
            }
            let hosts = snapshot.as_ref().and_then(|snapshot| snapshot.allowed_hosts.clone());
            match snapshot.as_ref().and_then(|snapshot| snapshot.subscription(id)) {
                Some(Place::Subscription(subscription)) if subscription.is_active => {
                    Plan::Send(Way { says: Says::Subscription(subscription.clone()), hosts })
                }
                Some(Place::Subscription(_)) => Plan::Park,
                Some(Place::Unreadable) => Plan::Wait(WAIT),
                None => Plan::Cancel,
            }
        }
    }
}

async fn snapshot(shared: &Shared, claim: &Claim, must_be_latest: bool) -> Option<Arc<Snapshot>> {
    let (store, application) = (&shared.store, claim.application);
    loop {
        let read = if must_be_latest {
            shared.routes.latest(store, application).await
        } else {
            shared.routes.fresh(store, application).await
        };
        match read {
            Ok(snapshot) => return snapshot,
            // While the database is away, what was last known goes on to count.
            Err(error) => {
                let known = shared.routes.known(application).filter(|_| !must_be_latest);
                if known.is_some() {
                    return known;
                }
                tracing::debug!(%error, "a delivery waits for what is known of its application");
                tokio::time::sleep(super::OUTAGE_PAUSE).await;
            }
        }
    }
}

impl Signer {
    /// The key of this name, of this application alone.
    fn named<'a>(
        &self,
        shared: &'a Shared,
        claim: &Claim,
        name: &KeyName,
    ) -> Option<&'a SigningKeys> {
        let uid = match self {
            Self::Application(snapshot) => snapshot.uid.as_deref(),
            Self::Default => None,
        };
        shared.keys.named.of(claim.application, uid, name)
    }
}

impl Way {
    /// Whether it is a target of a dispatch without retries: its caller waits for the result of the one
    /// attempt, and decides whether to repeat it.
    pub fn is_single_attempt(&self) -> bool {
        match &self.says {
            Says::Explicit(_, Some(settings)) => settings.retry.is_none(),
            Says::Explicit(_, None) | Says::Subscription(_) => false,
        }
    }

    /// The request of one attempt.
    pub fn request(
        &self,
        shared: &Shared,
        claim: &Claim,
        at: DateTime<Utc>,
    ) -> Result<Outgoing, RequestRefused> {
        let none = CustomHeaders::default();
        let body = self.body(claim);
        let mut attempt = Attempt {
            event_id: claim.event_id,
            event_type: claim.event_type.as_deref(),
            delivery_id: claim.delivery_id,
            number: claim.number(),
            at,
            upstream: &claim.upstream,
            method: self.method(),
            target: self.target(claim),
            headers: &none,
            signature: Signature::Unreadable,
            signing_key: None,
            body: &body,
        };
        let signed;
        match &self.says {
            Says::Explicit(whose, settings) => {
                if let Some(settings) = settings {
                    attempt.headers = &settings.headers;
                    attempt.signing_key = settings.signing_key.as_ref();
                }
                attempt.signature = match (attempt.signing_key, whose) {
                    (Some(name), whose) => {
                        whose.named(shared, claim, name).map_or(Signature::Missing(name), |keys| {
                            Signature::By(keys, SignatureHeaders::Standard)
                        })
                    }
                    (None, Signer::Default) => {
                        Signature::By(&shared.keys.own, SignatureHeaders::Standard)
                    }
                    (None, Signer::Application(snapshot)) => match &snapshot.keys {
                        None => Signature::Unreadable,
                        Some(keys) => {
                            signed = keys.at(at);
                            Signature::By(&signed, SignatureHeaders::Standard)
                        }
                    },
                };
            }
            Says::Subscription(subscription) => {
                let sending = &subscription.sending;
                attempt.headers = &sending.headers;
                attempt.signature = match &sending.signing {
                    Signing::None => Signature::None,
                    Signing::Unreadable => Signature::Unreadable,
                    Signing::Keys(keys) => {
                        signed = keys.at(at);
                        Signature::By(&signed, sending.signature_headers)
                    }
                };
            }
        }
        let outgoing = Outgoing::of(&attempt)?;
        Ok(Outgoing { hosts: self.hosts.clone(), ..outgoing })
    }

    /// The subscription, if it is one's.
    pub fn subscription(&self) -> Option<&Arc<Subscription>> {
        match &self.says {
            Says::Subscription(subscription) => Some(subscription),
            Says::Explicit(..) => None,
        }
    }

    fn settings(&self) -> Option<&TargetSettings> {
        match &self.says {
            Says::Explicit(_, settings) => settings.as_deref(),
            Says::Subscription(_) => None,
        }
    }

    /// Its method.
    pub fn method(&self) -> Method {
        match &self.says {
            Says::Subscription(subscription) => subscription.sending.method,
            Says::Explicit(..) => self.settings().map_or(Method::Post, |one| one.method),
        }
    }

    /// Where it goes.
    pub fn target<'a>(&'a self, claim: &'a Claim) -> &'a TargetUrl {
        match &self.says {
            Says::Subscription(subscription) => &subscription.sending.target,
            Says::Explicit(..) => &claim.target,
        }
    }

    /// The deadline over the exchange.
    pub fn timeout(&self, shared: &Shared) -> Duration {
        let own = match &self.says {
            Says::Subscription(subscription) => subscription.sending.timeout,
            Says::Explicit(..) => None,
        };
        own.unwrap_or(shared.settings.http_timeout)
    }

    /// When it is tried again.
    pub fn retry<'a>(&'a self, shared: &'a Shared) -> &'a RetryPolicy {
        let own = match &self.says {
            Says::Subscription(subscription) => subscription.sending.retry.as_ref(),
            Says::Explicit(..) => self.settings().map(TargetSettings::policy),
        };
        own.unwrap_or(&shared.settings.retry)
    }

    fn body(&self, claim: &Claim) -> Bytes {
        match &self.says {
            Says::Subscription(subscription)
                if subscription.sending.format == PayloadFormat::Envelope =>
            {
                envelope(&Facts {
                    event: claim.event_id,
                    event_type: claim.event_type.as_deref(),
                    application: claim.application,
                    payload: &claim.payload,
                    metadata: claim.metadata.as_deref(),
                    schema_version: &subscription.sending.schema_version,
                })
            }
            _ => claim.payload.clone(),
        }
    }
}
