//! Who may take a slot: one request under way, or its result that is not recorded yet.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::lane::Class;
use crate::domain::{ApplicationId, LaneId};

/// After this long without an answer the lane of a request counts as suspect.
pub const SLOW: Duration = Duration::from_secs(1);
/// How old a request of a suspect lane gets while slots are short, and while there are none.
const CUT_AFTER: Duration = Duration::from_secs(5);
const CUT_AFTER_WHEN_FULL: Duration = Duration::from_secs(2);
/// What one application may have, of the slots of a class or of what is held, is at most so many times
/// what nobody has: so there is always some for who has none, and nearly all for who is alone (a
/// dynamic threshold; Choudhury and Hahne, 1998).
pub const APPLICATION_FACTOR: usize = 4;

/// A request under way. A later one never has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    place: u32,
    number: u32,
}

#[derive(Debug, Clone, Copy)]
struct UnderWay {
    number: u32,
    lane: LaneId,
    began: Instant,
    is_cut: bool,
}

/// All slots.
#[derive(Debug)]
pub struct Slots {
    max: usize,
    used: [usize; Class::COUNT],
    /// Of the classes that have a share, per application.
    of_application: HashMap<(Class, ApplicationId), usize>,
    under_way: Vec<Option<UnderWay>>,
    free: Vec<u32>,
    next_number: u32,
    /// In the order in which they began; those that have ended are passed over.
    young: VecDeque<Slot>,
    /// Those that were looked at after [`SLOW`] and went on.
    old: VecDeque<Slot>,
}

impl Slots {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            used: [0; Class::COUNT],
            of_application: HashMap::new(),
            under_way: Vec::new(),
            free: Vec::new(),
            next_number: 0,
            young: VecDeque::new(),
            old: VecDeque::new(),
        }
    }

    pub fn total(&self) -> usize {
        self.used.iter().sum()
    }

    pub fn used(&self, class: Class) -> usize {
        self.used[class as usize]
    }

    /// How many slots a class may have.
    pub fn share(&self, class: Class) -> usize {
        match class {
            Class::Proven => self.max - self.kept(),
            Class::Unproven => (self.max / 4).max(1),
            Class::Suspect => (self.max / 2).max(1),
        }
    }

    /// Slots that the proven leave to the others, so that a lane can be proven however busy these are.
    fn kept(&self) -> usize {
        if self.max > 1 { (self.max / 16).max(1) } else { 0 }
    }

    /// A quarter is left to the proven.
    fn is_short(&self) -> bool {
        self.total() >= self.max - self.max / 4
    }

    /// Whether a lane of this class may start a request.
    pub fn has_room(&self, class: Class) -> bool {
        let others = self.used(Class::Unproven) + self.used(Class::Suspect);
        self.total() < self.max
            && self.used(class) < self.share(class)
            && (class == Class::Proven || !self.is_short() || others < self.kept())
    }

    /// Whether an application may have one more of this class.
    pub fn has_room_for(&self, class: Class, application: ApplicationId) -> bool {
        if class == Class::Proven {
            return true;
        }
        let free = self.share(class).saturating_sub(self.used(class));
        let own = self.of_application.get(&(class, application)).copied().unwrap_or_default();
        own < free * APPLICATION_FACTOR
    }

    /// Whether lanes of this class may be claimed from: for what can be started soon.
    pub fn may_claim(&self, class: Class) -> bool {
        let others = self.used(Class::Unproven) + self.used(Class::Suspect);
        let is_calm = others < (self.max / 2).max(1);
        match class {
            Class::Proven => self.total() < self.max,
            Class::Unproven => {
                is_calm && self.has_room(class) && self.used(class) < (self.max / 8).max(1)
            }
            Class::Suspect => self.has_room(class),
        }
    }

    /// Charges, or with a negative count frees, slots.
    pub fn charge(&mut self, class: Class, application: ApplicationId, count: isize) {
        let used = &mut self.used[class as usize];
        *used = used.saturating_add_signed(count);
        if class == Class::Proven || count == 0 {
            return;
        }
        let own = self.of_application.entry((class, application)).or_default();
        *own = own.saturating_add_signed(count);
        if *own == 0 {
            self.of_application.remove(&(class, application));
        }
    }

    /// Notes a request that begins.
    pub fn begin(&mut self, lane: LaneId, now: Instant) -> Slot {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        let one = UnderWay { number, lane, began: now, is_cut: false };
        let place = self.free.pop().unwrap_or_else(|| {
            self.under_way.push(None);
            u32::try_from(self.under_way.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(at) = self.under_way.get_mut(place as usize) {
            *at = Some(one);
        }
        let slot = Slot { place, number };
        self.young.push_back(slot);
        slot
    }

    /// When a request under way began.
    pub fn began(&self, slot: Slot) -> Option<Instant> {
        self.get(slot).map(|one| one.began)
    }

    /// Notes that a request has ended, and tells when it began.
    pub fn end(&mut self, slot: Slot) -> Option<Instant> {
        let began = self.get(slot)?.began;
        self.under_way[slot.place as usize] = None;
        self.free.push(slot.place);
        Some(began)
    }

    /// Whether a request was told to give up, so that others have its slot.
    pub fn is_cut(&self, slot: Slot) -> bool {
        self.get(slot).is_some_and(|one| one.is_cut)
    }

    fn get(&self, slot: Slot) -> Option<&UnderWay> {
        self.under_way.get(slot.place as usize)?.as_ref().filter(|one| one.number == slot.number)
    }

    /// The next lane of which a request has been under way for [`SLOW`].
    pub fn next_slow(&mut self, now: Instant) -> Option<LaneId> {
        while let Some(&slot) = self.young.front() {
            let slow = match self.get(slot) {
                Some(one) if now < one.began + SLOW => return None,
                slow => slow.map(|one| one.lane),
            };
            self.young.pop_front();
            if slow.is_some() {
                self.old.push_back(slot);
                return slow;
            }
        }
        None
    }

    /// Marks requests as cut while slots are short: those that `may_be_cut`, the oldest first. Tells
    /// how many.
    pub fn cut(&mut self, now: Instant, may_be_cut: impl Fn(LaneId) -> bool) -> usize {
        let mut old = std::mem::take(&mut self.old);
        old.retain(|&slot| self.get(slot).is_some());
        self.old = old;
        if !self.is_short() {
            return 0;
        }
        let after = if self.total() >= self.max { CUT_AFTER_WHEN_FULL } else { CUT_AFTER };
        let mut count = 0;
        for slot in &self.old {
            let Some(Some(one)) = self.under_way.get_mut(slot.place as usize) else { continue };
            if now < one.began + after {
                break;
            }
            if !one.is_cut && may_be_cut(one.lane) {
                one.is_cut = true;
                count += 1;
            }
        }
        count
    }
}
