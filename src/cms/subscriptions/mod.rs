//! Subscriptions that are kept in the CMS: its documents, all of which are looked at regularly, and one
//! at once when it is told of.
//!
//! What is applied was always read from the CMS itself, and whole. What it does not answer, or answers in
//! another form, changes nothing here.

mod apply;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::apply::Applied;
use super::{Client, CmsError, CmsSettings, Document, DocumentId, Query, SubscriptionsIn};
use crate::{
    domain::ApplicationId,
    http::{CmsChange, CmsLink, DocumentChecks, ToSee},
    store::{
        Store, StoreError,
        applications::ApplicationName,
        cms_subscriptions::{DOCUMENT_ID_BYTES_MAX, KnownDocument},
    },
    telemetry,
};

/// How many documents a page of the list has.
const PAGE_DOCUMENTS: usize = 100;
/// How many documents there may be. What is beyond is told, and not looked at.
const DOCUMENTS_MAX: usize = 10_000;
/// How many documents that are missing in the list one look asks for by their ids.
const MISSING_MAX: usize = 1_000;
/// For how long one process looks before another may. It is renewed with each page and each
/// [`KEPT_EVERY`] documents; an answer takes at most a minute.
const HOLD: Duration = Duration::from_secs(90);
const KEPT_EVERY: usize = 50;
/// The pause after a look that failed doubles from here, up to the interval.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// How many changes that were told of may wait; beyond it whoever tells is told to come back later.
pub const CHANGES_WAITING_MAX: usize = 1_000;
/// How many of them are looked at at a time.
const FOLLOWED_MAX: usize = 16;
/// The pauses before a document is read that was told of: it is told of before it is committed. What
/// is not seen by then is left to the next look.
const FOLLOW_PAUSES_MS: [u64; 10] = [0, 20, 40, 80, 160, 300, 400, 500, 700, 800];
/// No try begins later: a CMS that is slow to answer holds up what else is told.
const FOLLOW_MAX: Duration = Duration::from_secs(10);
/// How often a document is read and applied anew because somebody else was quicker.
const ROUNDS_MAX: usize = 5;

/// Keeps an application's subscriptions as the CMS has them.
#[derive(Clone)]
pub struct Subscriptions {
    client: Client,
    application: ApplicationName,
    of: SubscriptionsIn,
    checks: DocumentChecks,
    store: Store,
}

/// Why a look ended early.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("{0}")]
    Cms(#[from] CmsError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("PAYLOAD_APPLICATION names no application")]
    NoApplication,
    #[error("the CMS does not know PAYLOAD_API_KEY as a key of its collection PAYLOAD_USERS")]
    UnknownKey,
    #[error("another process looks meanwhile")]
    Overtaken,
    #[error("a document could not be taken over; the log says why")]
    Internal,
}

impl LookError {
    fn class(&self) -> &'static str {
        match self {
            Self::Cms(error) => error.class(),
            Self::Store(_) => "database",
            Self::NoApplication => "application",
            Self::UnknownKey => "unknown_key",
            Self::Overtaken => "overtaken",
            Self::Internal => "internal",
        }
    }
}

/// What a look saw.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Seen {
    documents: usize,
    refused: usize,
    /// Whether all that there are were seen.
    is_whole: bool,
}

impl Subscriptions {
    /// `None` if the CMS keeps none.
    pub fn of(
        settings: &CmsSettings,
        client: Client,
        checks: DocumentChecks,
        store: Store,
    ) -> Option<Self> {
        let of = settings.subscriptions.clone()?;
        Some(Self { client, application: settings.application.clone(), of, checks, store })
    }

    /// What the API knows of it.
    pub fn link(&self, changes: mpsc::Sender<CmsChange>) -> CmsLink {
        let (application, collection) = (self.application.clone(), self.of.collection.clone());
        CmsLink { application, collection, changes }
    }

    /// Looks at all documents until `stop`: at once, then every interval, in turn with other processes.
    pub async fn look_regularly(&self, stop: CancellationToken) {
        let owner = Uuid::from_u128(rand::random());
        let (mut pause, mut failures, mut was_well) = (Duration::ZERO, 0_u32, None);
        let mut least_age = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look_in_turn(owner, least_age) => looked,
            };
            // After the first one: what another process saw lately is good for this one too.
            least_age = self.of.poll_interval.mul_f64(0.9);
            match looked {
                Ok(seen) => {
                    (pause, failures) = (self.of.poll_interval, 0);
                    if let Some(seen) = seen {
                        telemetry::cms_looked("ok");
                        telemetry::cms_refused(seen.refused);
                        if was_well != Some(true) {
                            tracing::info!(
                                documents = seen.documents,
                                refused = seen.refused,
                                "subscriptions are kept as the CMS has them"
                            );
                        }
                        was_well = Some(true);
                    }
                }
                Err(error) => {
                    telemetry::cms_looked(error.class());
                    if was_well != Some(false) {
                        tracing::warn!(%error, "the CMS is not followed; subscriptions stay as they are");
                    }
                    was_well = Some(false);
                    pause = FAILED_PAUSE * 2_u32.saturating_pow(failures.min(16));
                    pause = pause.min(self.of.poll_interval);
                    failures += 1;
                }
            }
        }
    }

    /// Looks at what is told of until `stop`.
    pub async fn follow(&self, mut changes: mpsc::Receiver<CmsChange>, stop: CancellationToken) {
        let mut followed = JoinSet::new();
        loop {
            let change = tokio::select! {
                () = stop.cancelled() => return,
                Some(joined) = followed.join_next() => {
                    if let Err(error) = joined {
                        tracing::error!(%error, "a change could not be followed");
                    }
                    continue;
                }
                change = changes.recv(), if followed.len() < FOLLOWED_MAX => change,
            };
            let Some(change) = change else { return };
            let this = self.clone();
            followed.spawn(async move {
                match this.follow_one(&change).await {
                    Ok(true) => {}
                    Ok(false) => tracing::debug!(
                        document = change.document_id,
                        "a change is not seen yet; it is left to the next look"
                    ),
                    Err(error) => tracing::warn!(
                        %error,
                        document = change.document_id,
                        "a change is left to the next look"
                    ),
                }
            });
        }
    }

    /// `None` if it is not this process's turn.
    async fn look_in_turn(
        &self,
        owner: Uuid,
        least_age: Duration,
    ) -> Result<Option<Seen>, LookError> {
        let application = self.application().await?;
        if !self.store.take_cms_look(application, owner, HOLD, least_age).await? {
            return Ok(None);
        }
        let looked = self.look(application, owner).await;
        let is_whole = looked.as_ref().is_ok_and(|seen| seen.is_whole);
        self.store.end_cms_look(application, owner, is_whole).await?;
        looked.map(Some)
    }

    /// Looks at all documents. Nothing is applied before all of the list is there.
    async fn look(&self, application: ApplicationId, owner: Uuid) -> Result<Seen, LookError> {
        self.is_known().await?;
        // Twice the bound: what is beyond it in the CMS is not known here, but what is removed there is.
        let rows_max = i64::try_from(2 * DOCUMENTS_MAX).unwrap_or(i64::MAX);
        let known = self.store.known_documents(application, rows_max).await?;
        let mut known: HashMap<String, KnownDocument> =
            known.into_iter().map(|known| (known.document_id.clone(), known)).collect();
        let (documents, is_whole) = self.list(application, owner).await?;
        let mut seen = Seen { documents: documents.len(), refused: 0, is_whole };
        for (index, document) in documents.iter().enumerate() {
            if index % KEPT_EVERY == KEPT_EVERY - 1 {
                self.keep(application, owner).await?;
            }
            let known = known.remove(document.id.as_str());
            if known.as_ref().is_some_and(|known| is_as_known(document, known)) {
                continue;
            }
            if self.apply(application, document, known.as_ref()).await? == Applied::Refused {
                seen.refused += 1;
            }
        }
        if is_whole {
            self.look_for_missing(application, owner, known).await?;
        }
        Ok(seen)
    }

    /// All documents, each once, and whether there are no more.
    async fn list(
        &self,
        application: ApplicationId,
        owner: Uuid,
    ) -> Result<(Vec<Document>, bool), LookError> {
        let (mut documents, mut ids) = (Vec::new(), HashSet::new());
        for page in 1..=DOCUMENTS_MAX / PAGE_DOCUMENTS {
            let query = Query::all().limit(PAGE_DOCUMENTS).page(page).sort("id");
            let listed = self.client.list(&self.of.collection, &query).await?;
            if listed.documents.len() > PAGE_DOCUMENTS {
                let nonsense = "a page has more documents than were asked for";
                return Err(CmsError::Nonsense(nonsense.to_owned()).into());
            }
            for document in listed.documents {
                updated_at(&document)?;
                if ids.insert(document.id.clone()) {
                    documents.push(document);
                }
            }
            if !listed.has_next {
                return Ok((documents, true));
            }
            self.keep(application, owner).await?;
        }
        tracing::warn!(
            documents_max = DOCUMENTS_MAX,
            "the CMS has more subscriptions than are looked at; the others are not taken over"
        );
        Ok((documents, false))
    }

    /// Removes what is missing in the list and, asked for by its id, is not there. (A list that is read
    /// page by page may leave out what is there.)
    async fn look_for_missing(
        &self,
        application: ApplicationId,
        owner: Uuid,
        missing: HashMap<String, KnownDocument>,
    ) -> Result<(), LookError> {
        for known in missing.into_values().take(MISSING_MAX) {
            self.keep(application, owner).await?;
            let id = DocumentId::from_text(&known.document_id);
            match self.client.document(&self.of.collection, &id).await? {
                Some(document) => {
                    updated_at(&document)?;
                    self.apply(application, &document, Some(&known)).await?;
                }
                None => {
                    self.remove(application, &known).await?;
                }
            }
        }
        Ok(())
    }

    /// To somebody whom it does not know a CMS may show less than there is.
    async fn is_known(&self) -> Result<(), LookError> {
        if self.client.knows_us().await? { Ok(()) } else { Err(LookError::UnknownKey) }
    }

    async fn keep(&self, application: ApplicationId, owner: Uuid) -> Result<(), LookError> {
        if self.store.keep_cms_look(application, owner, HOLD).await? {
            Ok(())
        } else {
            Err(LookError::Overtaken)
        }
    }

    /// Reads a document until it is as it was told, and applies it; `false` if it is not in time.
    async fn follow_one(&self, change: &CmsChange) -> Result<bool, LookError> {
        let give_up_at = Instant::now() + FOLLOW_MAX;
        let application = self.application().await?;
        let id = DocumentId::from_text(&change.document_id);
        let mut failed = None;
        for pause_ms in FOLLOW_PAUSES_MS {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            if Instant::now() > give_up_at {
                break;
            }
            let known = self.store.known_document(application, &change.document_id).await?;
            let document = match self.client.document(&self.of.collection, &id).await {
                Ok(document) => document,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            failed = None;
            let is_done = match (&document, change.to_see) {
                (Some(document), ToSee::ChangedAt(least)) => updated_at(document)?.1 >= least,
                (None, ToSee::ChangedAt(_)) | (Some(_), ToSee::Gone) => false,
                (_, ToSee::Anything) | (None, ToSee::Gone) => true,
            };
            if !is_done {
                continue;
            }
            let is_applied = match (&document, &known) {
                (Some(document), Some(known)) if is_as_known(document, known) => true,
                (Some(document), known) => {
                    let applied = self.apply(application, document, known.as_ref()).await?;
                    applied != Applied::Outdated
                }
                (None, Some(known)) => {
                    self.is_known().await?;
                    self.remove(application, known).await?
                }
                (None, None) => true,
            };
            if is_applied {
                return Ok(true);
            }
        }
        failed.map_or(Ok(false), |error| Err(error.into()))
    }

    async fn application(&self) -> Result<ApplicationId, LookError> {
        let row = self.store.application(&self.application).await?;
        row.map(|row| row.id()).ok_or(LookError::NoApplication)
    }
}

/// Whether a document was applied before as it is. What is refused is looked at again: the settings may
/// allow it by now.
fn is_as_known(document: &Document, known: &KnownDocument) -> bool {
    known.subscription().is_some()
        && known.refused_because.is_none()
        && updated_at(document).is_ok_and(|(text, _)| text == known.document_updated_at)
}

/// When a document was last changed, as it says it and as a time. All have that, and an id that can be
/// kept, or the answer is nonsense.
fn updated_at(document: &Document) -> Result<(&str, DateTime<Utc>), CmsError> {
    let nonsense = |what: &str| CmsError::Nonsense(format!("a document has no {what}"));
    let id = document.id.as_str();
    if id.len() > DOCUMENT_ID_BYTES_MAX || id.contains('\0') {
        return Err(nonsense("id that can be kept"));
    }
    let text = document.fields.get("updatedAt").and_then(|time| time.as_str());
    let text = text.ok_or_else(|| nonsense("`updatedAt`; the collection needs its timestamps"))?;
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| nonsense("time in `updatedAt`"))?;
    Ok((text, time.to_utc()))
}

/// Text that Postgres can hold.
fn clean(text: &str, chars_max: usize) -> String {
    text.chars().filter(|character| *character != '\0').take(chars_max).collect()
}
