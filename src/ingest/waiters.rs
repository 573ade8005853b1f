//! Who waits for the results of an event: told at once by the recorder of this process, and of what
//! other processes record by a look into the database, one for all who wait.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{DeliveryId, EventId},
    store::Store,
};

/// How many may wait at a time. Who finds no room is answered at once with what there is.
pub const WAITERS_MAX: usize = 1_000;
/// The time between two looks for results that other processes have recorded.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Who waits. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// By the least id of an event that its deliveries' ids allow.
    events: Mutex<HashMap<EventId, Waited>>,
    /// So that the recorder need not ask for the lock where nobody waits.
    count: AtomicUsize,
    somebody_waits: Notify,
    /// The service is ending: nobody waits any more.
    closing: CancellationToken,
}

#[derive(Debug)]
struct Waited {
    event: EventId,
    changed: watch::Sender<()>,
}

/// A place among those who wait, given up when it is dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Waiters,
    key: EventId,
    changed: watch::Receiver<()>,
}

impl Waiters {
    fn events(&self) -> MutexGuard<'_, HashMap<EventId, Waited>> {
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place; `None` if there is none. What is recorded from now on is told: look once after
    /// this, before you wait.
    pub fn enter(&self, event: EventId) -> Option<Waiter> {
        let taken = self.0.count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            (count < WAITERS_MAX).then_some(count + 1)
        });
        taken.ok()?;
        let (key, _) = DeliveryId::of_event(event, 0).event_range();
        let mut events = self.events();
        let waited =
            events.entry(key).or_insert_with(|| Waited { event, changed: watch::Sender::new(()) });
        let changed = waited.changed.subscribe();
        drop(events);
        self.0.somebody_waits.notify_one();
        Some(Waiter { waiters: self.clone(), key, changed })
    }

    /// Tells of deliveries whose results are recorded.
    pub fn tell(&self, deliveries: impl IntoIterator<Item = DeliveryId>) {
        if self.0.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let events = self.events();
        for delivery in deliveries {
            let (key, _) = delivery.event_range();
            if let Some(waited) = events.get(&key) {
                waited.changed.send_replace(());
            }
        }
    }

    /// Looks into the database for as long as anybody waits, until `stop`; then nobody waits any
    /// more.
    pub async fn look(self, store: Store, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.0.somebody_waits.notified() => {}
            }
            while self.0.count.load(Ordering::SeqCst) > 0 && !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                }
                let events: Vec<EventId> = self.events().values().map(|one| one.event).collect();
                match store.settled_events(&events).await {
                    Ok(settled) => {
                        self.tell(settled.into_iter().map(|event| DeliveryId::of_event(event, 0)));
                    }
                    // Who waits does so until its time is over.
                    Err(error) => tracing::debug!(%error, "results were not looked for"),
                }
            }
        }
        self.0.closing.cancel();
    }
}

impl Waiter {
    /// Resolves when something of the event was recorded since the last time; `false` if there is
    /// nothing to wait for any more.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            () = self.waiters.0.closing.cancelled() => false,
            changed = self.changed.changed() => changed.is_ok(),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut events = self.waiters.events();
        // Its own receiver is one.
        if events.get(&self.key).is_some_and(|one| one.changed.receiver_count() <= 1) {
            events.remove(&self.key);
        }
        drop(events);
        self.waiters.0.count.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u8) -> EventId {
        EventId::new(u64::from(n), [n; 10])
    }

    #[tokio::test]
    async fn who_waits_is_told_of_its_own_event() {
        let waiters = Waiters::default();
        waiters.tell([DeliveryId::of_event(event(1), 0)]);
        let (mut one, mut two) =
            (waiters.enter(event(1)).unwrap(), waiters.enter(event(2)).unwrap());
        let mut again = waiters.enter(event(1)).unwrap();
        waiters.tell([DeliveryId::of_event(event(1), 7)]);
        assert!(one.changed().await && again.changed().await);
        assert!(futures_util::poll!(std::pin::pin!(two.changed())).is_pending());
        drop(one);
        waiters.tell([DeliveryId::of_event(event(1), 7)]);
        assert!(again.changed().await, "one who leaves takes nobody with it");
        drop((again, two));
        assert!(waiters.events().is_empty());
        assert_eq!(waiters.0.count.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn only_so_many_wait_and_nobody_at_the_end() {
        let waiters = Waiters::default();
        let mut all: Vec<_> = (0..WAITERS_MAX).map(|_| waiters.enter(event(1)).unwrap()).collect();
        assert!(waiters.enter(event(2)).is_none());
        waiters.0.closing.cancel();
        assert!(!all[0].changed().await);
        all.pop();
        assert!(waiters.enter(event(2)).is_some());
    }
}
