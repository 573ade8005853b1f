//! What routing knows, in memory. The transaction that stores an event checks the version that it
//! was routed at, so a stale entry costs a round trip and never a wrong delivery.

use std::collections::HashMap;

use crate::{
    domain::{ApplicationId, routing::RoutingSnapshot},
    store::{Store, StoreError},
};

/// How many applications are kept in memory; beyond it everything is forgotten and read again.
const SNAPSHOTS_MAX: usize = 10_000;

/// The snapshots of the applications that were routed for lately. Belongs to the batcher alone.
#[derive(Debug, Default)]
pub struct Routes {
    snapshots: HashMap<ApplicationId, RoutingSnapshot>,
}

impl Routes {
    /// The snapshot of an application, if it is in memory.
    pub fn known(&self, application: ApplicationId) -> Option<&RoutingSnapshot> {
        self.snapshots.get(&application)
    }

    /// Reads the snapshots of applications that are not in memory. Those that do not exist stay
    /// unknown.
    pub async fn learn(
        &mut self,
        store: &Store,
        applications: &[ApplicationId],
    ) -> Result<(), StoreError> {
        for &application in applications {
            if self.snapshots.contains_key(&application) {
                continue;
            }
            if self.snapshots.len() >= SNAPSHOTS_MAX {
                self.snapshots.clear();
            }
            if let Some(snapshot) = store.routing_snapshot(application).await? {
                self.snapshots.insert(application, snapshot);
            }
        }
        Ok(())
    }

    /// Forgets applications whose snapshot was found stale.
    pub fn forget(&mut self, applications: impl IntoIterator<Item = ApplicationId>) {
        for application in applications {
            self.snapshots.remove(&application);
        }
    }
}
