//! What accepting and sending share: the lanes, who this process is, and what it holds.
//!
//! Accepting asks here for room before it inserts a delivery as its own, and hands it over after
//! the commit; sending takes from here. The locks are held for some hundred nanoseconds and never
//! across a wait, so plain mutexes serve better than messages.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Idle, Waiters};
use crate::{
    domain::{
        ApplicationId, DeliveryId, LaneId, LaneLimit, TargetUrl,
        pacing::{Begin, DUE_HORIZON, Lanes, Limits, Members, Slot, Verdict},
    },
    store::{
        Store,
        dispatchers::DispatcherId,
        queue::{Claim, ClaimToken, Release},
    },
    telemetry,
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
    /// Until when the last heartbeat counts, in milliseconds since `base`: later nobody may claim or
    /// send, however long this process was kept from noticing.
    fenced_at_ms: AtomicU64,
    base: Instant,
    /// The service is ending: nothing new is born claimed.
    is_closing: AtomicBool,
    /// Something can be started.
    startable: Notify,
    /// Something may be claimable.
    claimable: Notify,
    /// Other processes should be told that something is due.
    tell_others: Notify,
    /// Some of the requests under way are to be given up.
    cut: Notify,
    /// Who waits for results.
    waiters: Waiters,
    idle: Idle,
}

impl Handover {
    /// A desk where nobody may claim yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            lanes: Mutex::new(Lanes::new(limits)),
            held: Mutex::default(),
            owner: AtomicI32::new(0),
            fenced_at_ms: AtomicU64::new(0),
            base: Instant::now(),
            is_closing: AtomicBool::new(false),
            startable: Notify::new(),
            claimable: Notify::new(),
            tell_others: Notify::new(),
            cut: Notify::new(),
            waiters: Waiters::default(),
            idle: Idle::new(None),
        }
    }

    /// The same, of a process that rests while it has nothing to do: at most so long at a time.
    #[must_use]
    pub fn with_idle(self, interval: Option<Duration>) -> Self {
        Self { idle: Idle::new(interval), ..self }
    }

    /// Whether the process rests.
    pub fn idle(&self) -> &Idle {
        &self.idle
    }

    /// The pause between looks of a process that rests. One that holds something does not.
    pub fn resting(&self) -> Option<Duration> {
        self.idle.resting().filter(|_| self.held().is_empty())
    }

    /// Sleeps for `pause`, or for longer while the process rests.
    pub async fn rest(&self, pause: Duration) {
        if self.resting().is_none() {
            tokio::time::sleep(pause).await;
        } else {
            self.idle.sleep(pause).await;
        }
    }

    /// The last id of this process, also where its heartbeat is old: to read with.
    pub fn last_owner(&self) -> Option<DispatcherId> {
        Some(self.owner.load(Ordering::Acquire)).filter(|id| *id != 0).map(DispatcherId::from_raw)
    }

    /// Who waits for results.
    pub fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// The lanes, locked.
    pub fn lanes(&self) -> MutexGuard<'_, Lanes<Claim>> {
        // A panic under this lock leaves counts that are off by some at worst.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<DeliveryId, ClaimToken>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who this process is, while it may claim and send.
    pub fn owner(&self) -> Option<DispatcherId> {
        let now_ms = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        match self.owner.load(Ordering::Acquire) {
            0 => None,
            _ if self.fenced_at_ms.load(Ordering::Acquire) <= now_ms => None,
            id => Some(DispatcherId::from_raw(id)),
        }
    }

    /// Says who this process is, after a heartbeat that began so long before `fenced_at`.
    pub fn confirm_owner(&self, owner: DispatcherId, fenced_at: Instant) {
        let fenced_at = fenced_at.saturating_duration_since(self.base);
        let fenced_at_ms = u64::try_from(fenced_at.as_millis()).unwrap_or(u64::MAX);
        self.fenced_at_ms.store(fenced_at_ms, Ordering::Release);
        self.owner.store(owner.get(), Ordering::Release);
    }

    /// Says that this process may not claim.
    pub fn clear_owner(&self) {
        self.owner.store(0, Ordering::Release);
    }

    /// From now on nothing is born claimed.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    /// The lane for a new delivery to an explicit target.
    pub fn explicit_lane(&self, target: &TargetUrl, application: ApplicationId) -> LaneId {
        let (origin, url) = (target.lane(application), target.url_lane(application));
        self.lanes().explicit_lane(origin, url, Instant::now())
    }

    /// Asks for room for a delivery that is about to be inserted, and says what its subscription
    /// bounds. `Some` is the owner to insert it with; it must be followed by [`Self::hand_over`] or [`Self::take_back`].
    pub fn reserve(
        &self,
        id: DeliveryId,
        lane: LaneId,
        (application, limit): (ApplicationId, Option<LaneLimit>),
        bytes: usize,
    ) -> Option<DispatcherId> {
        self.idle.wake();
        let owner = self.owner().filter(|_| !self.is_closing.load(Ordering::Acquire))?;
        let of = (application, limit.as_ref());
        let mut lanes = self.lanes();
        let is_granted = lanes.reserve(lane, of, bytes, Instant::now());
        let has_astray = lanes.has_astray();
        drop(lanes);
        if has_astray {
            self.startable.notify_one();
        }
        if !is_granted {
            return None;
        }
        self.hold(id, ClaimToken { owner, number: 1 });
        Some(owner)
    }

    /// Returns the room of a delivery that was not inserted, or must not be sent from here.
    pub fn take_back(&self, id: DeliveryId, token: ClaimToken, lane: LaneId, bytes: usize) {
        self.lanes().give_back(lane, bytes);
        self.forget(id, token);
    }

    /// Gives committed deliveries to the sender. Returns those whose lane was paused meanwhile, each
    /// with the rest of the pause; they are still held, and must be released.
    #[must_use]
    pub fn hand_over(&self, claims: Vec<Claim>) -> Vec<(Claim, Duration)> {
        if claims.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let mut lanes = self.lanes();
        let refused = claims.into_iter().filter_map(|claim| lanes.push(claim, now).err()).collect();
        drop(lanes);
        self.startable.notify_one();
        refused
    }

    /// Gives back to the database what [`Self::hand_over`] returned.
    pub async fn release_paused(&self, store: &Store, refused: Vec<(Claim, Duration)>) {
        // One statement for all, so one pause: the longest. The others are late by the difference.
        let Some(pause) = refused.iter().map(|(_, pause)| *pause).max() else { return };
        let claims: Vec<_> =
            refused.iter().map(|(claim, _)| (claim.delivery_id, claim.token)).collect();
        if let Err(error) = store.release(&claims, Release::After(pause)).await {
            tracing::debug!(%error, "left to the reconciliation");
        }
        self.forget_all(claims);
        for (claim, _) in refused {
            self.note_due(claim.lane, claim.application, pause);
        }
    }

    /// Notes that committed deliveries of these lanes wait in the queue for a claim.
    pub fn leave_in_queue(&self, lanes: impl IntoIterator<Item = (LaneId, ApplicationId)>) {
        self.idle.wake();
        // A process that never claims has nobody who would clear these notes.
        if self.owner.load(Ordering::Acquire) != 0 {
            let now = Instant::now();
            let mut desk = self.lanes();
            for (lane, application) in lanes {
                desk.note_due(lane, application, now);
            }
        }
        self.claimable.notify_one();
        self.tell_others.notify_one();
    }

    /// Notes when a lane's work in the queue will be due.
    pub fn note_due(&self, lane: LaneId, application: ApplicationId, after: Duration) {
        if after <= DUE_HORIZON {
            self.lanes().note_due(lane, application, Instant::now() + after);
            self.claimable.notify_one();
        }
    }

    /// Keeps track of a claim.
    pub fn hold(&self, id: DeliveryId, token: ClaimToken) {
        self.held().insert(id, token);
    }

    /// Loses track of a claim: it is recorded or given back.
    pub fn forget(&self, id: DeliveryId, token: ClaimToken) {
        self.forget_all([(id, token)]);
    }

    /// Loses track of many claims. A later claim of the same delivery is another one, and stays.
    pub fn forget_all(&self, claims: impl IntoIterator<Item = (DeliveryId, ClaimToken)>) {
        let mut held = self.held();
        for (id, token) in claims {
            if held.get(&id) == Some(&token) {
                held.remove(&id);
            }
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

    /// Says what the owner of a lane bounds.
    pub fn set_limit(&self, lane: LaneId, limit: &LaneLimit) {
        self.lanes().set_limit(lane, limit, Instant::now());
        self.startable.notify_one();
    }

    /// Waits until a request may begin by the rate of its lane, if that has one; `false` if it may not
    /// any more.
    pub async fn begin(&self, lane: LaneId, time: Option<Instant>) -> bool {
        loop {
            let begin = self.lanes().begin(lane, time, Instant::now());
            match begin {
                Begin::Now => return true,
                Begin::At(at) => tokio::time::sleep_until(at.into()).await,
                Begin::Late => return false,
            }
        }
    }

    /// Says which processes there are; tells whether that is news.
    pub fn set_members(&self, members: Members) -> bool {
        let is_news = self.lanes().set_members(members);
        if is_news {
            self.startable.notify_one();
        }
        is_news
    }

    /// Gives back to the database what is in memory and not to be sent from here, or not now.
    pub async fn release_astray(&self, store: &Store) {
        let (astray, misplaced) = {
            let mut lanes = self.lanes();
            (lanes.take_astray(), lanes.take_misplaced())
        };
        if !misplaced.is_empty() {
            self.release_misplaced(store, misplaced).await;
        }
        if !astray.is_empty() {
            self.release_unsent(store, astray).await;
        }
    }

    /// Gives back to the database what belongs to another lane.
    async fn release_misplaced(&self, store: &Store, misplaced: Vec<(Claim, LaneId)>) {
        let claims: Vec<_> =
            misplaced.iter().map(|(claim, lane)| (claim.delivery_id, claim.token, *lane)).collect();
        if let Err(error) = store.release_to(&claims).await {
            tracing::debug!(%error, "left to the reconciliation");
        }
        self.forget_all(claims.into_iter().map(|(id, token, _)| (id, token)));
        let mut lanes: Vec<_> =
            misplaced.iter().map(|(claim, lane)| (*lane, claim.application)).collect();
        lanes.sort_unstable();
        lanes.dedup();
        self.leave_in_queue(lanes);
    }

    /// Gives back to the database what is not sent from here, or not now, each in its place.
    pub async fn release_unsent(&self, store: &Store, astray: Vec<Claim>) {
        telemetry::went_astray(astray.len());
        let claims: Vec<_> = astray.iter().map(|claim| (claim.delivery_id, claim.token)).collect();
        if let Err(error) = store.release(&claims, Release::InPlace).await {
            tracing::debug!(%error, "left to the reconciliation");
        }
        self.forget_all(claims);
        let mut lanes: Vec<_> =
            astray.iter().map(|claim| (claim.lane, claim.application)).collect();
        lanes.sort_unstable();
        lanes.dedup();
        {
            let mut desk = self.lanes();
            for (lane, _) in &lanes {
                desk.forget_mark(*lane);
            }
        }
        self.leave_in_queue(lanes);
    }

    /// Notes what an attempt says about its lane; returns what waited for one that is now paused or
    /// hangs.
    /// `url` is the lane of the URL of an explicit target.
    pub fn conclude(
        &self,
        slot: Slot,
        lane: LaneId,
        url: Option<LaneId>,
        verdict: Verdict,
    ) -> Vec<Claim> {
        let (now, jitter) = (Instant::now(), rand::random());
        let (returned, has_misplaced) = self.and_wake_claimer(|lanes| {
            let returned = match url {
                Some(url) => lanes.conclude_explicit(slot, (lane, url), verdict, now, jitter),
                None => lanes.conclude(slot, lane, verdict, now, jitter),
            };
            (returned, lanes.has_misplaced())
        });
        if has_misplaced {
            self.startable.notify_one();
        }
        returned
    }

    /// Notes a failure without an answer; returns whether no receiver answers at present.
    pub fn note_unanswered(&self, lane: LaneId, host: u64) -> bool {
        let mut lanes = self.lanes();
        let before = lanes.has_outage();
        let is_on = lanes.note_unanswered(lane, host, Instant::now());
        drop(lanes);
        if is_on && !before {
            tracing::warn!(
                event = "own_outage",
                "no receiver answers; failures without an answer are not counted until one does"
            );
        }
        is_on
    }

    /// Notes a failure by a fault of this service; returns for how long such faults of its lane have
    /// lasted.
    pub fn note_own_fault(&self, lane: LaneId) -> Duration {
        self.lanes().note_own_fault(lane, Instant::now())
    }

    /// Looks at requests that take long; returns what waited for their lanes. Those that are to be
    /// given up are told.
    pub fn look_at_slow(&self) -> Vec<Claim> {
        let looked = self.and_wake_claimer(|lanes| lanes.look_at_slow(Instant::now()));
        if looked.has_cut {
            self.cut.notify_waiters();
        }
        if looked.has_demoted {
            self.startable.notify_one();
        }
        looked.returned
    }

    /// Resolves when this request is to be given up.
    pub async fn cut(&self, slot: Slot) {
        loop {
            // Told from here on, so that nothing is missed between the look and the wait.
            let told = self.cut.notified();
            if self.lanes().is_cut(slot) {
                return;
            }
            told.await;
        }
    }

    /// Frees the slots of deliveries whose results are recorded: lanes and payload bytes.
    pub fn free(&self, slots: impl IntoIterator<Item = (LaneId, usize)>) {
        self.and_wake_claimer(|lanes| {
            for (lane, bytes) in slots {
                lanes.free(lane, bytes);
            }
        });
        self.startable.notify_one();
    }

    /// Changes the lanes, and wakes the claimer if it has something to do earlier than before.
    fn and_wake_claimer<R>(&self, change: impl FnOnce(&mut Lanes<Claim>) -> R) -> R {
        let now = Instant::now();
        let mut lanes = self.lanes();
        let before = lanes.next_due(now);
        let result = change(&mut lanes);
        let after = lanes.next_due(now);
        drop(lanes);
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.claimable.notify_one();
        }
        result
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
