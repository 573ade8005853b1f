//! How fast the unproven and the suspect are claimed from, and the suspect sent to: in sips. What begins
//! together ends together when receivers hang, and a thousand connections that are opened at once, or
//! time-outs that are recorded at once, hold up who has nothing to do with them. The first request of
//! a new lane is not held up: new receivers that work would wait behind a thousand that do not.

use std::time::{Duration, Instant};

use super::lane::{Class, Source};

/// Lanes of one sip of a class: few at first, and while those of the sips before do not answer well;
/// more, by one for each that does.
const LANES: (usize, usize) = (4, 128);
/// The time between two sips of requests.
const SIP_PAUSE: Duration = Duration::from_millis(10);
/// The time between two claims that sip: each takes Postgres some milliseconds, of however few lanes.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);
/// How long a process is young, from its first claim on, and the time between two claims that sip
/// meanwhile: it plans its statements and reads of every application what it must know, while each
/// lane's first event wants both.
const YOUNG_FOR: Duration = Duration::from_secs(2);
const YOUNG_CLAIM_PAUSE: Duration = Duration::from_millis(100);

/// The sips of each class. Nobody asks for that of the proven.
#[derive(Debug)]
pub struct Sips {
    sizes: [usize; Class::COUNT],
    /// Requests of suspects that have begun since the latest sip.
    begun: usize,
    /// When the next one is.
    next: Option<Instant>,
    /// Somebody waits for it.
    is_awaited: bool,
    /// Set by the first claim.
    young_until: Option<Instant>,
}

impl Default for Sips {
    fn default() -> Self {
        Self {
            sizes: [LANES.0; Class::COUNT],
            begun: 0,
            next: None,
            is_awaited: false,
            young_until: None,
        }
    }
}

impl Sips {
    /// How many lanes may be claimed from at a time.
    pub fn size(&self, class: Class) -> usize {
        self.sizes[class as usize]
    }

    /// When the next claim may sip after one that does now.
    pub fn next_claim(&mut self, now: Instant) -> Instant {
        let is_young = now < *self.young_until.get_or_insert(now + YOUNG_FOR);
        now + if is_young { YOUNG_CLAIM_PAUSE } else { CLAIM_PAUSE }
    }

    /// Learns from a good answer of a lane that was of this class. Of the unproven those count that were
    /// claimed from in a sip: who was born claimed says nothing of those who wait to be.
    pub fn answered(&mut self, class: Class, source: Source) {
        if source == Source::Sip || class != Class::Unproven {
            self.resize(class, |size| size + 1);
        }
    }

    /// Learns from another answer of a lane that was of this class, or from its absence.
    pub fn failed(&mut self, class: Class) {
        self.resize(class, |size| size / 2);
    }

    fn resize(&mut self, class: Class, resized: impl Fn(usize) -> usize) {
        let size = &mut self.sizes[class as usize];
        *size = resized(*size).clamp(LANES.0, LANES.1);
    }

    /// Says that all that can begin begins now: nobody waits so far.
    pub fn look(&mut self) {
        self.is_awaited = false;
    }

    /// Whether a request may begin that is ready to. If not, it waits for the next sip.
    pub fn may_begin(&mut self, class: Class, now: Instant) -> bool {
        let may_begin = class != Class::Suspect
            || self.next.is_none_or(|next| next <= now)
            || self.begun < self.size(class);
        self.is_awaited |= !may_begin;
        may_begin
    }

    /// Notes one that begins.
    pub fn begin(&mut self, class: Class, now: Instant) {
        if class != Class::Suspect {
            return;
        }
        if self.next.is_none_or(|next| next <= now) {
            self.begun = 0;
            self.next = Some(now + SIP_PAUSE);
        }
        self.begun += 1;
    }

    /// When the next sip is that somebody waits for.
    pub fn awaited(&self) -> Option<Instant> {
        self.next.filter(|_| self.is_awaited)
    }

    /// As after many good answers, of a process that is not young.
    #[cfg(test)]
    pub fn wide(now: Instant) -> Self {
        Self { sizes: [LANES.1; Class::COUNT], young_until: Some(now), ..Self::default() }
    }
}
