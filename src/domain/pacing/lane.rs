//! One lane: how it has answered, and so what it may have.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{
    Limits, Verdict,
    evidence::{ANSWERED, Evidence, UNANSWERED},
    rings::Turn,
    slots::SLOW,
    urls::{Group, Kind, ORIGIN_PAUSE},
};
use crate::domain::{ApplicationId, LaneLimit};

/// The least number of failures one after the other that make a proven lane suspect.
const FAILURES_OF_A_SUSPECT: u16 = 3;
/// Success of a receiver that fails at random within this time: another process that had only
/// failures there has had bad luck.
const RECENT: Duration = Duration::from_secs(10);
/// The first pause of an open breaker; it doubles with each probe that fails.
const BREAKER_PAUSE: Duration = Duration::from_secs(1);

/// What a lane is thought of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Its last answer was a success, and quick.
    Proven,
    /// Nothing is known yet.
    Unproven,
    /// It fails, hangs or is slow.
    Suspect,
}

impl Class {
    pub(super) const COUNT: usize = 3;
    /// In the order in which they are served.
    pub(super) const ALL: [Self; Self::COUNT] = [Self::Proven, Self::Unproven, Self::Suspect];
}

/// Where a lane waits to be claimed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    No,
    /// Until then.
    Until(Instant),
    /// For its turn, since then.
    Turn(Turn, Instant),
}

/// How a lane came to be tried that is not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Its deliveries were born claimed, as far as is known.
    Born,
    /// It was claimed from in a sip.
    Sip,
}

/// What a lane is held to beside its class, after it was quiet or hung.
#[derive(Debug, Clone, Copy, Default)]
struct Caution {
    /// The next answer is to show how it is; until then only this many requests go at a time.
    probes: Option<usize>,
    /// It has not answered well and quickly since it was quiet: it gets its window, which grows with its
    /// answers, and nothing of what is spare.
    recovers: bool,
}

/// A lane, as this process knows it.
#[derive(Debug)]
pub struct Lane<T> {
    pub application: ApplicationId,
    pub kind: Kind,
    /// Of an origin.
    pub group: Group,
    pub class: Class,
    /// How many requests at a time; grows with success, see [`Self::width`].
    window: usize,
    /// Failures one after the other: of attempts that each began after the one before had failed.
    pub failures: u16,
    evidence: Evidence,
    pub last_failure: Option<Instant>,
    pub last_success: Option<Instant>,
    /// Since when attempts fail by faults of this service, and none has said anything of the receiver.
    pub own_fault_since: Option<Instant>,
    /// It takes long, and takes it.
    pub answers_slowly: bool,
    caution: Caution,
    /// The receiver asked for quiet.
    pub paused_until: Option<Instant>,
    /// The breaker is open.
    pub open_until: Option<Instant>,
    /// What its owner bounds.
    pub limit: LaneLimit,
    /// At most so many requests at a time, whatever it deserves: this process's part of that.
    pub share: usize,
    /// When the next request is due by the rate, were there no tolerance.
    pub next_at: Option<Instant>,
    /// When it gets its turn, while it waits for its next time.
    pub alarm: Option<Instant>,
    pub in_flight: usize,
    /// Room promised to deliveries that are being inserted or claimed.
    pub reserved: usize,
    pub queued: VecDeque<T>,
    /// Payload bytes that it holds.
    pub bytes: usize,
    /// When its work in the database is due, as far as is known.
    pub due: Option<Instant>,
    pub source: Source,
    /// A claim that names it is under way; what is noted as due meanwhile is kept for after.
    pub is_claiming: bool,
    /// Its turn to start a request.
    pub turn: Option<Turn>,
    pub wait: Wait,
    pub mark: Option<(DateTime<Utc>, Instant)>,
}

/// What follows from a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What waits in memory goes back to the database.
    pub gives_back: bool,
    /// What others should know of it has changed.
    pub is_news: bool,
}

impl<T> Lane<T> {
    pub fn new(application: ApplicationId) -> Self {
        Self {
            application,
            kind: Kind::default(),
            group: Group::default(),
            class: Class::Unproven,
            window: 1,
            failures: 0,
            evidence: Evidence::default(),
            last_failure: None,
            last_success: None,
            own_fault_since: None,
            answers_slowly: false,
            caution: Caution::default(),
            paused_until: None,
            open_until: None,
            limit: LaneLimit::default(),
            share: usize::MAX,
            next_at: None,
            alarm: None,
            in_flight: 0,
            reserved: 0,
            queued: VecDeque::new(),
            bytes: 0,
            due: None,
            source: Source::Born,
            is_claiming: false,
            turn: None,
            wait: Wait::No,
            mark: None,
        }
    }

    /// Deliveries in memory: reserved, queued and in flight.
    pub fn held(&self) -> usize {
        self.reserved + self.queued.len() + self.in_flight
    }

    /// Until when nothing may be sent.
    pub fn quiet_until(&self) -> Option<Instant> {
        self.paused_until.max(self.open_until)
    }

    pub fn is_quiet(&self, now: Instant) -> bool {
        self.quiet_until().is_some_and(|until| now < until)
    }

    /// How many requests at a time. What is `spare` of the suspects' share goes to those that there
    /// are: so one receiver that fails now and then is not made slow where there is room.
    pub fn width(&self, limits: &Limits, spare: usize) -> usize {
        let width = match (self.caution.probes, self.class) {
            (Some(probes), _) => probes,
            (None, Class::Proven) => self.window,
            (None, Class::Unproven) => 1,
            (None, Class::Suspect) if self.caution.recovers => self.window,
            (None, Class::Suspect) => self.window.max(spare),
        };
        width.min(limits.lane_in_flight_max).max(1).min(self.share)
    }

    /// Notes the result of an attempt that `began` then, and tells what follows. `jitter` is a
    /// number between 0 and 1. Its class may be another one afterwards.
    pub fn conclude(
        &mut self,
        verdict: Verdict,
        began: Instant,
        now: Instant,
        jitter: f64,
        (limits, is_calm): (&Limits, bool),
    ) -> Change {
        let is_slow = now.saturating_duration_since(began) >= SLOW;
        let (was_bad, was_full) = (self.is_bad(), self.in_flight >= self.window);
        let mut gives_back = false;
        if verdict != Verdict::Unsent {
            self.own_fault_since = None;
        }
        match verdict {
            Verdict::Healthy => {
                self.succeed(is_slow, now, (limits, is_calm, was_full));
            }
            Verdict::Unsent => return Change { gives_back: false, is_news: false },
            Verdict::Refused => {
                self.answer(now);
                if self.class == Class::Unproven {
                    self.become_suspect();
                }
                if self.caution.recovers && !is_slow && is_calm {
                    self.widen(was_full, now, limits);
                }
            }
            Verdict::Paused(pause) => {
                self.paused_until = self.paused_until.max(Some(now + pause));
                self.begin_anew();
                gives_back = true;
            }
            Verdict::Failing | Verdict::Unreachable | Verdict::Hung => {
                let weight = if verdict == Verdict::Failing { ANSWERED } else { UNANSWERED };
                let is_refuted = self.last_success.is_some_and(|success| began <= success);
                let is_one_of_many = self.last_failure.is_some_and(|failure| began <= failure);
                if is_refuted {
                    self.evidence.fail_before(weight);
                } else {
                    self.evidence.failed(weight);
                }
                if is_refuted || is_one_of_many {
                    return Change { gives_back: false, is_news: false };
                }
                gives_back = self.fail(verdict, is_slow, now, jitter, limits);
            }
        }
        Change { gives_back, is_news: was_bad || self.is_bad() }
    }

    fn succeed(
        &mut self,
        is_slow: bool,
        now: Instant,
        (limits, is_calm, was_full): (&Limits, bool, bool),
    ) {
        let was_probed = self.caution.probes.is_some();
        self.last_success = Some(now);
        self.answer(now);
        self.answers_slowly = is_slow;
        if is_slow {
            self.class = Class::Suspect;
            if self.caution.probes.is_some() {
                return;
            }
            let wider = if is_calm { self.window + 1 } else { self.window / 2 };
            self.window = wider.clamp(1, limits.lane_in_flight_max);
            return;
        }
        let was_at_ease = self.class == Class::Suspect && !was_probed && !self.caution.recovers;
        if was_at_ease {
            // It has taken what it got of the spare slots, and keeps that.
            self.window = self.window.max(self.in_flight).min(limits.lane_in_flight_max);
        }
        self.class = Class::Proven;
        self.source = Source::Born;
        if !self.widen(was_full, now, limits) {
            self.caution.recovers &= self.caution.probes.is_some();
        }
    }

    /// It is there: its breaker closes, and it is quiet only as long as it asked for that.
    fn answer(&mut self, now: Instant) {
        self.failures = 0;
        self.evidence.answered();
        self.open_until = None;
        self.paused_until = self.paused_until.filter(|&until| now < until);
        self.caution.probes = self.paused_until.map(|_| 1);
    }

    /// Gives it more requests at a time if it has more to send: twice as many if all were under way,
    /// while it recovers one for each answer, and so twice as many with each round of them. Not while it
    /// is to be quiet: what was under way then shows how it was before. Tells whether there is more to
    /// come.
    fn widen(&mut self, was_full: bool, now: Instant, limits: &Limits) -> bool {
        let has_more = !self.queued.is_empty() || self.due.is_some_and(|due| due <= now);
        if self.caution.probes.is_some() || !has_more {
            return false;
        }
        if self.caution.recovers {
            self.window += 1;
        } else if was_full {
            self.window *= 2;
        }
        self.window = self.window.min(limits.lane_in_flight_max);
        self.window < limits.lane_in_flight_max
    }

    fn fail(
        &mut self,
        verdict: Verdict,
        is_slow: bool,
        now: Instant,
        jitter: f64,
        limits: &Limits,
    ) -> bool {
        self.last_failure = Some(now);
        self.failures = self.failures.saturating_add(1);
        // Of a receiver that fails at random an error says no more about its pace than a success.
        self.answers_slowly = is_slow && verdict == Verdict::Failing && self.evidence.is_flaky();
        let is_hung = verdict == Verdict::Hung || (is_slow && !self.answers_slowly);
        if is_hung || !self.evidence.is_flaky() {
            self.window = (self.window / 2).max(1);
        } else if self.caution.recovers && self.caution.probes.is_none() {
            // It answers as it does when it is up.
            self.window = (self.window + 1).min(limits.lane_in_flight_max);
        }
        if is_slow || self.class != Class::Proven || is_hung || self.is_doubtful() {
            let answers_slowly = self.answers_slowly;
            self.become_suspect();
            self.answers_slowly = answers_slowly;
        }
        let opens = self.opens(limits.breaker.failures);
        if opens {
            self.open(now, jitter, limits);
        }
        if is_hung {
            self.caution.probes = Some(1);
        } else if !opens {
            // A receiver that answers, if only with an error, hangs no longer.
            self.caution.probes = None;
        }
        is_hung || opens
    }

    /// Opens the breaker, or keeps it open for longer.
    fn open(&mut self, now: Instant, jitter: f64, limits: &Limits) {
        // Counted from the threshold on, also where it took more failures to open.
        if self.open_until.is_none() || self.kind == Kind::Origin {
            self.failures = limits.breaker.failures;
        }
        let doublings = u32::from(self.failures - limits.breaker.failures).min(16);
        let pause = (BREAKER_PAUSE * 2_u32.pow(doublings)).mul_f64(0.75 + jitter / 2.0);
        let pause_max = match self.kind {
            Kind::Origin => ORIGIN_PAUSE.min(limits.breaker.pause_max),
            _ => limits.breaker.pause_max,
        };
        self.open_until = Some(now + pause.min(pause_max));
        self.begin_anew();
        self.caution.probes = Some(self.evidence.probes(doublings as usize + 1));
    }

    /// Takes what is known of a URL that is down: its breaker opens.
    pub fn take_as_down(&mut self, evidence: Evidence, now: Instant, jitter: f64, limits: &Limits) {
        self.evidence = evidence;
        self.last_failure = Some(now);
        self.open_until = None;
        self.open(now, jitter, limits);
    }

    /// Returns whether it has not answered lately: it hangs, or its breaker is open.
    pub fn is_silent(&self) -> bool {
        self.caution.probes.is_some() || self.open_until.is_some()
    }

    /// Returns whether a failure opens the breaker: a probe's, or one that completes the evidence.
    fn opens(&self, failures_min: u16) -> bool {
        let is_half_open = self.open_until.is_some();
        failures_min > 0
            && self.failures >= failures_min
            && (is_half_open || self.evidence.is_down(failures_min))
    }

    /// Returns whether it fails more than its history explains.
    fn is_doubtful(&self) -> bool {
        self.failures >= FAILURES_OF_A_SUSPECT && self.evidence.is_doubtful()
    }

    /// A request has been under way for long, and there is no answer yet.
    pub fn hang(&mut self) {
        self.become_suspect();
        self.caution.probes = Some(1);
    }

    /// It is to be quiet, and begins with one request afterwards.
    fn begin_anew(&mut self) {
        self.answers_slowly = false;
        self.become_suspect();
        self.caution.probes = Some(1);
        self.caution.recovers = true;
    }

    fn become_suspect(&mut self) {
        if self.class != Class::Suspect {
            self.class = Class::Suspect;
            self.answers_slowly = false;
        }
        if !self.answers_slowly {
            self.window = 1;
        }
    }

    /// Whether others should know of it.
    pub fn is_bad(&self) -> bool {
        self.is_doubtful() || self.quiet_until().is_some()
    }

    /// Takes what another process, or an earlier life of this one, knew of it; not if it is known
    /// better here.
    pub fn learn(
        &mut self,
        failures: u16,
        (open, paused): (Option<Instant>, Option<Instant>),
        now: Instant,
    ) {
        self.paused_until = self.paused_until.max(paused);
        if paused.is_some() {
            self.begin_anew();
        }
        let succeeds = self.last_success.is_some_and(|success| now < success + RECENT);
        if self.in_flight > 0 || (succeeds && self.evidence.is_flaky()) {
            return;
        }
        self.failures = failures;
        // The same may be heard again; what is over was over when it was known first.
        let is_known =
            self.open_until.zip(open).is_some_and(|(known, told)| known.max(told) <= now);
        if !is_known {
            self.open_until = open;
        }
        if failures >= FAILURES_OF_A_SUSPECT || open.is_some() {
            self.begin_anew();
        }
        // If it is well again elsewhere, that shows here with the first answer.
    }
}
