//! What accepting and sending share: the lanes, who this process is, and what it holds.
//!
//! Accepting asks here for room before it inserts a delivery as its own, and hands it over after
//! the commit; sending takes from here. The locks are held for some hundred nanoseconds and never
//! across a wait, so plain mutexes serve better than messages.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    domain::{
        DeliveryId, LaneId,
        pacing::{Lanes, Limits, Verdict},
    },
    store::{
        dispatchers::DispatcherId,
        queue::{Claim, ClaimToken},
    },
};

/// The desk between accepting and sending.
#[derive(Debug)]
pub struct Handover {
    lanes: Mutex<Lanes<Claim>>,
    /// Every claim of this process, from before its row can exist until after its result is
    /// recorded. A row that is ours and not in here has been lost track of.
    held: Mutex<HashMap<DeliveryId, ClaimToken>>,
    /// This process's id; 0 while it may not claim (not registered, or no sender here at all).
    owner: AtomicI32,
    /// Something can be started.
    startable: Notify,
    /// Something may be claimable.
    claimable: Notify,
    /// Other processes should be told that something is due.
    tell_others: Notify,
}

impl Handover {
    /// A desk where nobody may claim yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            lanes: Mutex::new(Lanes::new(limits)),
            held: Mutex::default(),
            owner: AtomicI32::new(0),
            startable: Notify::new(),
            claimable: Notify::new(),
            tell_others: Notify::new(),
        }
    }

    /// The lanes, locked.
    pub fn lanes(&self) -> MutexGuard<'_, Lanes<Claim>> {
        // A panic under this lock leaves counts that are off by some at worst.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<DeliveryId, ClaimToken>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who this process is, while it may claim.
    pub fn owner(&self) -> Option<DispatcherId> {
        match self.owner.load(Ordering::Acquire) {
            0 => None,
            id => Some(DispatcherId::from_raw(id)),
        }
    }

    /// Says who this process is, or that it may not claim.
    pub fn set_owner(&self, owner: Option<DispatcherId>) {
        self.owner.store(owner.map_or(0, DispatcherId::get), Ordering::Release);
    }

    /// Asks for room for a delivery that is about to be inserted. `Some` is the owner to insert it
    /// with; it must be followed by [`Self::hand_over`] or [`Self::take_back`].
    pub fn reserve(&self, id: DeliveryId, lane: LaneId, bytes: usize) -> Option<DispatcherId> {
        let owner = self.owner()?;
        if !self.lanes().reserve(lane, bytes, Instant::now()) {
            return None;
        }
        self.hold(id, ClaimToken { owner, number: 1 });
        Some(owner)
    }

    /// Returns the room of a delivery that was not inserted, or must not be sent from here.
    pub fn take_back(&self, id: DeliveryId, lane: LaneId, bytes: usize) {
        self.lanes().give_back(lane, bytes);
        self.forget(id);
    }

    /// Gives committed deliveries to the sender.
    pub fn hand_over(&self, claims: Vec<Claim>) {
        if claims.is_empty() {
            return;
        }
        let mut lanes = self.lanes();
        for claim in claims {
            lanes.push(claim);
        }
        drop(lanes);
        self.startable.notify_one();
    }

    /// Notes that committed deliveries of these lanes wait in the queue for a claim.
    pub fn leave_in_queue(&self, lanes: impl IntoIterator<Item = LaneId>) {
        let now = Instant::now();
        let mut desk = self.lanes();
        for lane in lanes {
            desk.note_due(lane, now);
        }
        drop(desk);
        self.claimable.notify_one();
        self.tell_others.notify_one();
    }

    /// Notes when a lane's work in the queue will be due.
    pub fn note_due(&self, lane: LaneId, after: Duration) {
        self.lanes().note_due(lane, Instant::now() + after);
        self.claimable.notify_one();
    }

    /// Keeps track of a claim.
    pub fn hold(&self, id: DeliveryId, token: ClaimToken) {
        self.held().insert(id, token);
    }

    /// Loses track of a claim: it is recorded or given back.
    pub fn forget(&self, id: DeliveryId) {
        self.held().remove(&id);
    }

    /// Loses track of many claims.
    pub fn forget_all(&self, ids: impl IntoIterator<Item = DeliveryId>) {
        let mut held = self.held();
        for id in ids {
            held.remove(&id);
        }
    }

    /// Whether this claim is known here.
    pub fn holds(&self, id: DeliveryId, token: ClaimToken) -> bool {
        self.held().get(&id) == Some(&token)
    }

    /// Every claim that is known here.
    pub fn all_held(&self) -> Vec<(DeliveryId, ClaimToken)> {
        self.held().iter().map(|(&id, &token)| (id, token)).collect()
    }

    /// Resolves when something can be started.
    pub async fn startable(&self) {
        self.startable.notified().await;
    }

    /// Wakes whoever starts.
    pub fn wake_starter(&self) {
        self.startable.notify_one();
    }

    /// Notes the end of an attempt; returns what waited for a lane that is now paused.
    pub fn finish(&self, lane: LaneId, bytes: usize, verdict: Verdict) -> Vec<Claim> {
        let now = Instant::now();
        let mut lanes = self.lanes();
        let returned = lanes.finish(lane, bytes, verdict, now);
        let is_due = lanes.next_due().is_some_and(|due| due <= now);
        drop(lanes);
        if is_due {
            self.claimable.notify_one();
        }
        returned
    }

    /// Resolves when something may be claimable.
    pub async fn claimable(&self) {
        self.claimable.notified().await;
    }

    /// Wakes whoever claims.
    pub fn wake_claimer(&self) {
        self.claimable.notify_one();
    }

    /// Resolves when other processes should be told.
    pub async fn others_to_tell(&self) {
        self.tell_others.notified().await;
    }
}
