//! Who calls, and which application a request is about.

use std::time::Duration;

use axum::{extract::FromRequestParts, http::request::Parts};
use moka::sync::Cache;

use super::{ApiError, ApiState};
use crate::{
    domain::{ApiKeyHash, ApplicationId, Permission, Principal, Uid, ids::DEFAULT_APPLICATION},
    store::{Store, StoreError, applications::ApplicationName},
};

/// How long an answer of the database about a key, or about the name of an application, is relied
/// on: a revoked key lets in for at most this long.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// How many keys, and how many names, are remembered.
const KNOWN_MAX: u64 = 10_000;

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
        let id = state.known.application(&state.store, text).await?;
        if own.is_none_or(|own| own == id) {
            Ok(id)
        } else {
            Err(ApiError::ApplicationNotFound(None))
        }
    }
}

/// What the database said about keys and names in the last second.
#[derive(Debug, Clone)]
pub struct Known {
    principals: Cache<ApiKeyHash, Principal>,
    applications: Cache<String, ApplicationId>,
}

impl Default for Known {
    fn default() -> Self {
        Self { principals: cache(), applications: cache() }
    }
}

impl Known {
    /// Whom a key lets in, if anybody.
    pub async fn principal(
        &self,
        store: &Store,
        key: &str,
    ) -> Result<Option<Principal>, StoreError> {
        let hash = ApiKeyHash::of(key);
        if let Some(principal) = self.principals.get(&hash) {
            return Ok(Some(principal));
        }
        let principal = store.principal_of(hash).await?;
        if let Some(principal) = principal {
            self.principals.insert(hash, principal);
        }
        Ok(principal)
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
    }
}

fn cache<K: std::hash::Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static>()
-> Cache<K, V> {
    Cache::builder().max_capacity(KNOWN_MAX).time_to_live(KNOWN_FOR).build()
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
