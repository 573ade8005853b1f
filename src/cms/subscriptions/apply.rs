//! From a document to the subscription that it is.

use super::{LookError, ROUNDS_MAX, Subscriptions, clean, updated_at};
use crate::{
    cms::Document,
    domain::{AllowedHosts, ApplicationId, SubscriptionId, subscription::sealed},
    http::DocumentFault,
    store::{
        StoreError,
        applications::ApplicationName,
        cms_subscriptions::{KnownDocument, ReadDocument, Wanted},
        subscription_changes::{Changed, NewSubscription},
        subscriptions::SubscriptionName,
    },
};

/// How many deliveries a removal cancels itself, and a disabling parks.
const AT_ONCE_MAX: i64 = 5_000;
/// What is kept of what people call a document.
const NAME_CHARS_MAX: usize = 200;

/// What became of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    /// It is as it says.
    Yes,
    /// It is refused, and that is noted.
    Refused,
    /// Somebody else has read it meanwhile, maybe later.
    Outdated,
}

/// Logs the warnings that a request of the API has in its answer.
fn warn(document: &Document, warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(document = %document.id, warning, "weak secret in a document of the CMS");
    }
}

impl Subscriptions {
    /// Makes a document the subscription that it says, or notes what is wrong with it.
    pub(super) async fn apply(
        &self,
        application: ApplicationId,
        document: &Document,
        known: Option<&KnownDocument>,
    ) -> Result<Applied, LookError> {
        let (text, _) = updated_at(document)?;
        let name = document.fields.get("name").and_then(|name| name.as_str());
        let name = name.map(|name| clean(name, NAME_CHARS_MAX));
        let read = ReadDocument {
            application,
            document_id: document.id.as_str(),
            known_read_count: known.map(|known| known.read_count),
            updated_at: text,
            name: name.as_deref(),
        };
        let applied = match known.and_then(KnownDocument::subscription) {
            None => self.make(read, document).await,
            Some(id) => self.change(read, document, id).await,
        };
        let because = match applied {
            Ok(Changed::Done) => return Ok(Applied::Yes),
            Ok(Changed::Outdated | Changed::Gone) => return Ok(Applied::Outdated),
            Err(Fault::Refused(because)) => clean(&because, usize::MAX),
            Err(Fault::Look(error)) => return Err(error),
        };
        let is_known = known.is_some_and(|known| {
            known.refused_because.as_ref() == Some(&because) && known.document_updated_at == text
        });
        if is_known {
            return Ok(Applied::Refused);
        }
        tracing::warn!(document = %document.id, because, "a document of the CMS is no subscription");
        match self.store.refuse_document(read, &because).await? {
            Changed::Done => Ok(Applied::Refused),
            Changed::Outdated | Changed::Gone => Ok(Applied::Outdated),
        }
    }

    async fn make(&self, read: ReadDocument<'_>, document: &Document) -> Result<Changed, Fault> {
        let allowed = self.allowed_hosts(read.application).await?;
        let made = self.checks.made(&document.fields, allowed.as_ref())?;
        let new = NewSubscription {
            id: made.id,
            application: read.application,
            uid: None,
            settings: &made.settings,
            key: made.key,
        };
        let changed = self.store.apply_document(read, &Wanted::New(&new)).await?;
        if changed == Changed::Done {
            warn(document, &made.warnings);
        }
        Ok(changed)
    }

    async fn change(
        &self,
        read: ReadDocument<'_>,
        document: &Document,
        id: SubscriptionId,
    ) -> Result<Changed, Fault> {
        let allowed = self.allowed_hosts(read.application).await?;
        for _ in 0..ROUNDS_MAX {
            let name = SubscriptionName::Id(id);
            let Some(before) = self.store.subscription(read.application, &name).await? else {
                return Ok(Changed::Gone);
            };
            let secret = self.secret(id).await?;
            let (secret, allowed) = (secret.as_deref(), allowed.as_ref());
            let remade = self.checks.remade(&document.fields, &before, secret, allowed)?;
            let is_other = remade.settings != before.settings;
            let wanted = Wanted::Next {
                id,
                read_revision: before.revision,
                settings: Some(&remade.settings).filter(|_| is_other),
                key: remade.key.as_ref().map(|(key, overlap)| (key, *overlap)),
            };
            // Outdated: the service may have disabled it meanwhile, which does not count against what
            // its owner says; or another process has read the document, and then it stays so.
            if self.store.apply_document(read, &wanted).await? != Changed::Done {
                let known = self.store.known_document(read.application, read.document_id).await?;
                if known.map(|known| known.read_count) == read.known_read_count {
                    continue;
                }
                return Ok(Changed::Outdated);
            }
            if is_other || remade.key.is_some() {
                warn(document, &remade.warnings);
            }
            if before.settings.is_active && !remade.settings.is_active {
                // The rest of a long backlog is parked by and by.
                self.store.park_waiting(id, AT_ONCE_MAX).await?;
            }
            return Ok(Changed::Done);
        }
        Ok(Changed::Outdated)
    }

    /// The hosts that an application may call; `None`: all. A list that cannot be read allows nothing.
    async fn allowed_hosts(
        &self,
        application: ApplicationId,
    ) -> Result<Option<AllowedHosts>, StoreError> {
        let row = self.store.application(&ApplicationName::Id(application)).await?;
        let texts = row.and_then(|row| row.allowed_hosts);
        Ok(texts.map(|texts| AllowedHosts::parse(&texts).unwrap_or_else(|_| AllowedHosts::none())))
    }

    /// What signs a subscription now.
    async fn secret(&self, id: SubscriptionId) -> Result<Option<String>, Fault> {
        let keys = self.store.signing_keys(id).await?;
        let Some(current) = keys.first() else { return Ok(None) };
        let opened = self.checks.sealing.open(&current.sealed, &sealed::signing_key(current.id()));
        let opened = opened.map_err(|error| {
            tracing::error!(%error, subscription = %id, "a secret cannot be opened");
            LookError::Internal
        })?;
        Ok(Some(String::from_utf8_lossy(opened.bytes()).into_owned()))
    }

    /// `false` if somebody else has read the document since.
    pub(super) async fn remove(
        &self,
        application: ApplicationId,
        known: &KnownDocument,
    ) -> Result<bool, LookError> {
        let (id, count) = (&known.document_id, known.read_count);
        let Some(removed) = self.store.remove_document(application, id, count).await? else {
            return Ok(false);
        };
        if let Some(id) = removed {
            // The rest of a long backlog is cancelled by and by.
            self.store.cancel_waiting(id, AT_ONCE_MAX).await?;
        }
        Ok(true)
    }
}

/// Why a document was not applied.
enum Fault {
    Refused(String),
    Look(LookError),
}

impl From<DocumentFault> for Fault {
    fn from(fault: DocumentFault) -> Self {
        match fault {
            DocumentFault::Refused(because) => Self::Refused(because),
            DocumentFault::Internal => Self::Look(LookError::Internal),
        }
    }
}

impl From<LookError> for Fault {
    fn from(error: LookError) -> Self {
        Self::Look(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            // As good as a fault of the document: the others go on.
            StoreError::Full { .. } => Self::Refused(error.to_string()),
            StoreError::Constraint { .. } | StoreError::Refused(_) => {
                tracing::error!(%error, "a document of the CMS cannot be stored");
                Self::Refused("it cannot be stored; the log says why".to_owned())
            }
            other => Self::Look(other.into()),
        }
    }
}
