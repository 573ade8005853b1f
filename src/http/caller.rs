//! Who calls, and which application a request is about.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    http::request::Parts,
};
use moka::sync::Cache;

use super::{ApiError, ApiState, key_lookups::KeyLookups};
use crate::{
    domain::{
        ApiKey, ApiKeyHash, ApplicationId, Permission, Principal, Uid, ids::DEFAULT_APPLICATION,
    },
    store::{Store, applications::ApplicationName},
};

/// How long an answer of the database about a key, or about the name of an application, is relied
/// on: a revoked key lets in for at most this long.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// How many keys, and how many names, are remembered.
const KNOWN_MAX: u64 = 10_000;
/// Time for which an unknown key is refused without a look-up. Keys are random: none becomes valid
/// after somebody has tried it.
const UNKNOWN_FOR: Duration = Duration::from_mins(1);
/// Time for which a key that was valid does not wait behind unknown ones.
const FAMILIAR_FOR: Duration = Duration::from_mins(10);

/// Who calls: put into every request by the gate.
#[derive(Debug, Clone, Copy)]
pub struct Caller(pub Principal);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Without the gate nobody is let in.
        parts.extensions.get().copied().ok_or(ApiError::Unauthorized)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        // The gate lets a request without a key pass only where a signature may stand for it.
        Ok(parts.extensions.get().copied())
    }
}

impl Caller {
    /// Refuses what the caller's role may not.
    pub fn must(self, permission: Permission) -> Result<(), ApiError> {
        let role = self.0.role;
        if role.may(permission) { Ok(()) } else { Err(ApiError::NotPermitted { role, permission }) }
    }

    /// The application that a request is about: the one that it names, else the caller's own, else
    /// `default`. To a caller of one application there are no others.
    pub async fn application(
        self,
        state: &ApiState,
        named: Option<&str>,
    ) -> Result<ApplicationId, ApiError> {
        let own = self.0.application;
        let Some(text) = named else { return Ok(own.unwrap_or(DEFAULT_APPLICATION)) };
        let Some(own) = own else { return state.known.application(&state.store, text).await };
        // Only the caller's own application is looked up: the names of others leave no trace, not
        // even in the time of the answer.
        let is_own = match application_name(text)? {
            ApplicationName::Id(id) => id == own,
            ApplicationName::Uid(uid) => {
                state.known.uid(&state.store, own).await?.as_deref() == Some(uid.as_str())
            }
        };
        if is_own { Ok(own) } else { Err(ApiError::ApplicationNotFound(None)) }
    }
}

/// What the database said about keys and names in the last second.
#[derive(Debug, Clone)]
pub struct Known {
    principals: Cache<ApiKeyHash, Principal>,
    applications: Cache<String, ApplicationId>,
    /// Uids by id, of applications that callers belong to.
    uids: Cache<ApplicationId, Arc<str>>,
    /// Keys that let nobody in.
    unknown: Cache<ApiKeyHash, ()>,
    /// Keys that let somebody in recently.
    familiar: Cache<ApiKeyHash, ()>,
    of_familiar: KeyLookups,
    of_strangers: KeyLookups,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            principals: cache(KNOWN_FOR),
            applications: cache(KNOWN_FOR),
            uids: cache(KNOWN_FOR),
            unknown: cache(UNKNOWN_FOR),
            familiar: cache(FAMILIAR_FOR),
            of_familiar: KeyLookups::of_familiar(),
            of_strangers: KeyLookups::of_strangers(),
        }
    }
}

impl Known {
    /// The caller that a key lets in, if any. A text that has not the form of a key, and a key that
    /// was unknown a moment ago, cost no statement.
    pub async fn principal(&self, store: &Store, key: &str) -> Result<Option<Principal>, ApiError> {
        if !ApiKey::is_form(key) {
            return Ok(None);
        }
        let hash = ApiKeyHash::of(key);
        if let Some(principal) = self.principals.get(&hash) {
            return Ok(Some(principal));
        }
        if self.unknown.contains_key(&hash) {
            return Ok(None);
        }
        let is_familiar = self.familiar.contains_key(&hash);
        let lookups = if is_familiar { &self.of_familiar } else { &self.of_strangers };
        let principal = lookups.principal(store, hash).await?;
        if let Some(principal) = principal {
            self.principals.insert(hash, principal);
            if !is_familiar {
                self.familiar.insert(hash, ());
            }
        } else {
            self.familiar.invalidate(&hash);
            self.unknown.insert(hash, ());
        }
        Ok(principal)
    }

    /// The uid of an application.
    async fn uid(&self, store: &Store, id: ApplicationId) -> Result<Option<Arc<str>>, ApiError> {
        if let Some(uid) = self.uids.get(&id) {
            return Ok(Some(uid));
        }
        let row = store.application(&ApplicationName::Id(id)).await?;
        let uid = row.map(|row| Arc::<str>::from(row.uid));
        if let Some(uid) = &uid {
            self.uids.insert(id, uid.clone());
        }
        Ok(uid)
    }

    /// The application that a text names, by its id or by its uid.
    pub async fn application(&self, store: &Store, text: &str) -> Result<ApplicationId, ApiError> {
        if let Some(id) = self.applications.get(text) {
            return Ok(id);
        }
        let name = application_name(text)?;
        let row = store.application(&name).await?.ok_or(ApiError::ApplicationNotFound(None))?;
        self.applications.insert(text.to_owned(), row.id());
        Ok(row.id())
    }

    /// Forgets what a change has made wrong. Other processes find out within [`KNOWN_FOR`].
    pub fn forget(&self) {
        self.principals.invalidate_all();
        self.applications.invalidate_all();
        self.uids.invalidate_all();
    }
}

fn cache<K: std::hash::Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static>(
    known_for: Duration,
) -> Cache<K, V> {
    Cache::builder().max_capacity(KNOWN_MAX).time_to_live(known_for).build()
}

/// Reads the name of an application: an id of ours, or a uid.
pub fn application_name(text: &str) -> Result<ApplicationName, ApiError> {
    if text.starts_with(ApplicationId::PREFIX) {
        let id = text.parse().map_err(|error| ApiError::ApplicationNotFound(Some(error)))?;
        return Ok(ApplicationName::Id(id));
    }
    match Uid::parse(text) {
        Ok(uid) => Ok(ApplicationName::Uid(uid)),
        // An id of another kind is told what it is; what can be neither names none.
        Err(_) => Err(ApiError::ApplicationNotFound(text.parse::<ApplicationId>().err())),
    }
}
