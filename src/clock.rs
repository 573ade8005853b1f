//! The database's clock, as this process sees it: the monotonic clock and a sampled offset.
//!
//! Ids, signed timestamps and the times of attempts follow it. Decisions about due times are made by
//! Postgres with its own clock, unless that is further from this one than a tolerance (see
//! [`crate::store`]): then it has jumped, and this one goes on until the jump has lasted. The
//! judgement is in [`crate::domain::witness`].

use std::{
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use chrono::{DateTime, Utc};

use crate::{
    domain::witness::{Doubt, HELD_AFTER, Reading, TOLERANCE, Verdict, Witness},
    telemetry::{self, Seldom},
};

/// Cheap to clone; all clones share the state.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Offsets from the monotonic clock: of the time that orders work, and of the time by which
    /// things end for good.
    offset_us: AtomicI64,
    settled_us: AtomicI64,
    latest_us: AtomicI64,
    is_sampled: AtomicBool,
    /// How long a jump lasts until it is accepted.
    held_after: Duration,
    judged: Mutex<Judged>,
    warned: Seldom,
}

#[derive(Debug, Default)]
struct Judged {
    witness: Witness,
    is_host_off: bool,
}

/// A sample may set the clock back by less than this without any reader seeing it.
const STEP_BACK_MAX_US: i64 = 1_000_000;
/// A shorter suspension makes no difference.
#[cfg(target_os = "linux")]
const SUSPENDED_MIN_US: i64 = 100_000;
/// Time between two warnings about a clock that stays wrong.
const WARN_INTERVAL: Duration = Duration::from_mins(1);

/// Zero of the monotonic clock, and how long this machine had been suspended then.
static BASE: LazyLock<(Instant, i64)> = LazyLock::new(|| (Instant::now(), suspended_us()));

/// Time since [`BASE`], the time in which this machine was suspended included.
fn monotonic_us(at: Instant) -> i64 {
    let (base, suspended) = *BASE;
    let awake = i64::try_from(at.saturating_duration_since(base).as_micros()).unwrap_or(i64::MAX);
    awake.saturating_add(suspended_us() - suspended)
}

/// Time for which this machine has been suspended since it was booted, to some microseconds. [`Instant`]
/// does not count it.
#[cfg(target_os = "linux")]
fn suspended_us() -> i64 {
    use rustix::time::{ClockId, clock_gettime};
    let us = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1_000)
    };
    let awake = us(ClockId::Monotonic);
    let suspended = us(ClockId::Boottime).saturating_sub(awake);
    // Below it: the time between the two readings.
    if suspended < SUSPENDED_MIN_US { 0 } else { suspended }
}

/// Elsewhere the monotonic clock is taken as it is.
#[cfg(not(target_os = "linux"))]
fn suspended_us() -> i64 {
    0
}

fn host_us() -> i64 {
    DateTime::<Utc>::from(SystemTime::now()).timestamp_micros()
}

/// A jump of the database's clock that has not lasted long enough to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alarm {
    /// How far the database's clock is ahead of the expected time, in seconds; negative: behind.
    pub ahead_s: i64,
    /// For how long.
    pub lasts: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(HELD_AFTER)
    }
}

impl Clock {
    /// A clock that accepts a jump after `held_after`. Until the first sample it is this machine's.
    pub fn new(held_after: Duration) -> Self {
        let offset_us = host_us() - monotonic_us(Instant::now());
        Self(Arc::new(Shared {
            offset_us: offset_us.into(),
            settled_us: offset_us.into(),
            latest_us: AtomicI64::default(),
            is_sampled: AtomicBool::default(),
            held_after,
            judged: Mutex::default(),
            warned: Seldom::each(WARN_INTERVAL),
        }))
    }

    /// Takes the first sample. `evidence` is the newest time that the database knew before.
    pub fn start(
        &self,
        database_time: DateTime<Utc>,
        evidence: Option<DateTime<Utc>>,
        (began, ended): (Instant, Instant),
    ) {
        let (reading, host_us) = (reading(database_time, began, ended), host_us());
        let evidence_us = evidence.map(|at| at.timestamp_micros());
        self.judge(reading, host_us, |witness| witness.start(reading, evidence_us, host_us));
    }

    /// Takes a sample: the database's time, read between the moments `began` and `ended`.
    pub fn sample(&self, database_time: DateTime<Utc>, (began, ended): (Instant, Instant)) {
        let reading = reading(database_time, began, ended);
        let held_after = self.0.held_after;
        self.judge(reading, host_us(), |witness| witness.observe(reading, held_after));
    }

    fn judge(&self, reading: Reading, host_us: i64, judge: impl FnOnce(&mut Witness) -> Verdict) {
        let mut judged = self.0.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let before = judged.witness.offset_us();
        let verdict = judge(&mut judged.witness);
        if let Some(offset_us) = judged.witness.offset_us() {
            let settled_us = judged.witness.settled_offset_us().unwrap_or(offset_us);
            self.0.offset_us.store(offset_us, Ordering::Relaxed);
            self.0.settled_us.store(settled_us, Ordering::Relaxed);
            self.0.is_sampled.store(true, Ordering::Release);
            if before.is_none_or(|before| (before - offset_us).abs() > STEP_BACK_MAX_US) {
                // A time that was wrong is no bound for the ids after it.
                self.0.latest_us.store(0, Ordering::Relaxed);
            }
        }
        self.report(verdict, judged.witness.doubt());
        self.compare_with_host(&mut judged, reading, host_us);
    }

    fn report(&self, verdict: Verdict, doubt: Option<Doubt>) {
        let ahead = doubt.map_or(0, |doubt| doubt.ahead_us);
        telemetry::clock_jump(seconds(ahead));
        match verdict {
            Verdict::Same => {}
            Verdict::Jumped(Doubt { ahead_us, is_from_start: true, .. }) => {
                telemetry::clock_jumped();
                tracing::warn!(
                    event = "clock_start_in_doubt",
                    ahead_seconds = seconds(ahead_us),
                    waits = ?self.0.held_after,
                    "the database's clock is far from the newest time that the database knew: \
                     the service was off, or the clock is wrong; nothing expires or is dropped yet"
                );
            }
            Verdict::Jumped(Doubt { ahead_us, .. }) => {
                telemetry::clock_jumped();
                tracing::error!(
                    event = "clock_jumped",
                    ahead_seconds = seconds(ahead_us),
                    waits = ?self.0.held_after,
                    "the database's clock has jumped; it is not followed unless the jump lasts"
                );
            }
            Verdict::WentBack => {
                tracing::info!(event = "clock_went_back", "the database's clock is right again");
            }
            Verdict::Accepted => {
                tracing::warn!(
                    event = "clock_jump_accepted",
                    "the jump of the database's clock has lasted; it is the time now"
                );
            }
        }
    }

    /// Warns while the database's clock and this machine's differ: receivers go by the world's time,
    /// and one of the two is wrong.
    fn compare_with_host(&self, judged: &mut Judged, reading: Reading, host_us: i64) {
        let ahead_us = reading.database_us - host_us;
        telemetry::clock_offset(seconds(ahead_us));
        let limit_us =
            i64::try_from(TOLERANCE.as_micros()).unwrap_or(i64::MAX) + 2 * reading.uncertainty_us;
        let is_off = ahead_us.abs() > limit_us;
        let was_off = std::mem::replace(&mut judged.is_host_off, is_off);
        if is_off && self.0.warned.is_time() {
            tracing::warn!(
                event = "clock_offset",
                database_ahead_seconds = seconds(ahead_us),
                "the clocks of the database and of this machine differ; signatures carry the \
                 database's time, and receivers refuse those that are minutes off"
            );
        } else if was_off && !is_off {
            tracing::info!(event = "clock_offset_ended", "the two clocks agree again");
        }
    }

    /// The time.
    pub fn now(&self) -> DateTime<Utc> {
        let now_us = monotonic_us(Instant::now()) + self.0.offset_us.load(Ordering::Relaxed);
        // Ids sort by this: a new sample that is some milliseconds behind must not reorder them.
        let latest_us = self.0.latest_us.fetch_max(now_us, Ordering::Relaxed);
        let steps_back = now_us < latest_us && latest_us - now_us < STEP_BACK_MAX_US;
        let us = if steps_back { latest_us } else { now_us };
        DateTime::from_timestamp_micros(us).unwrap_or_default()
    }

    /// The time in milliseconds since the Unix epoch, for ids.
    pub fn unix_ms(&self) -> u64 {
        u64::try_from(self.now().timestamp_millis()).unwrap_or_default()
    }

    /// The time that the database's clock must be near to; `None` before the first sample.
    pub fn expected(&self) -> Option<DateTime<Utc>> {
        self.at(&self.0.offset_us)
    }

    /// The time by which things may end for good: not later than the database's clock, the newest
    /// time that it knew at the start, and the monotonic clock say. `None` before the first sample.
    pub fn settled(&self) -> Option<DateTime<Utc>> {
        self.at(&self.0.settled_us)
    }

    fn at(&self, offset_us: &AtomicI64) -> Option<DateTime<Utc>> {
        if !self.0.is_sampled.load(Ordering::Acquire) {
            return None;
        }
        let us = monotonic_us(Instant::now()) + offset_us.load(Ordering::Relaxed);
        DateTime::from_timestamp_micros(us)
    }

    /// The jump in question, if there is one.
    pub fn alarm(&self) -> Option<Alarm> {
        let judged = self.0.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let doubt = judged.witness.doubt()?;
        let lasts_us = monotonic_us(Instant::now()).saturating_sub(doubt.since_us);
        Some(Alarm {
            ahead_s: doubt.ahead_us / 1_000_000,
            lasts: Duration::from_micros(lasts_us.max(0).unsigned_abs()),
        })
    }
}

fn reading(database_time: DateTime<Utc>, began: Instant, ended: Instant) -> Reading {
    let half = ended.saturating_duration_since(began) / 2;
    Reading {
        database_us: database_time.timestamp_micros(),
        monotonic_us: monotonic_us(began + half),
        uncertainty_us: i64::try_from(half.as_micros()).unwrap_or(i64::MAX),
    }
}

fn seconds(us: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown to people, and exact for centuries")]
    let seconds = us as f64 / 1e6;
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_is_taken_from_the_middle_of_the_round_trip() {
        let clock = Clock::default();
        assert_eq!(clock.expected(), None);
        let (host, began) = (DateTime::<Utc>::from(SystemTime::now()), Instant::now());
        let ended = began + Duration::from_secs(2);
        clock.start(host + chrono::Duration::seconds(3_601), None, (began, ended));
        let ahead = clock.now().signed_duration_since(DateTime::<Utc>::from(SystemTime::now()));
        assert!((3_599..=3_600).contains(&ahead.num_seconds()));
        assert_eq!(clock.alarm(), None);
    }

    #[test]
    fn jump_raises_an_alarm_and_does_not_move_the_time() {
        let clock = Clock::default();
        let (host, began) = (DateTime::<Utc>::from(SystemTime::now()), Instant::now());
        clock.start(host, None, (began, began));
        clock.sample(host + chrono::Duration::days(40), (began, began));
        assert_eq!(clock.alarm().unwrap().ahead_s, 40 * 86_400);
        for time in [clock.now(), clock.expected().unwrap(), clock.settled().unwrap()] {
            assert!(time.signed_duration_since(host).num_seconds().abs() < 60);
        }
        clock.sample(host, (began, began));
        assert_eq!(clock.alarm(), None);
    }
}
