//! Connections at rest, kept for the next request to the same origin.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// How many connections may rest in all; beyond it the one that has rested longest is closed. One
/// costs some 30 KiB.
const IDLE_MAX: usize = 2_048;

/// What rests: connections, but for the tests.
pub(super) struct Pool<C> {
    idle: Mutex<Idle<C>>,
    per_origin_max: usize,
}

struct Idle<C> {
    /// By number, and so by the time when they were put here.
    resting: BTreeMap<u64, Resting<C>>,
    /// The numbers of each origin, ascending.
    by_origin: HashMap<Arc<str>, VecDeque<u64>>,
    next_number: u64,
}

struct Resting<C> {
    connection: C,
    origin: Arc<str>,
    /// From then on it is not used any more.
    until: Instant,
}

impl<C> Pool<C> {
    /// An empty pool that keeps at most so many connections of one origin.
    pub fn new(per_origin_max: usize) -> Self {
        let (resting, by_origin) = (BTreeMap::new(), HashMap::new());
        Self { idle: Mutex::new(Idle { resting, by_origin, next_number: 0 }), per_origin_max }
    }

    fn idle(&self) -> MutexGuard<'_, Idle<C>> {
        // A panic under this lock leaves a number without its connection at worst.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connection of an origin that was used last and may rest still: the likeliest to be
    /// open.
    pub fn take(&self, origin: &str, now: Instant) -> Option<C> {
        let mut expired = Vec::new();
        let mut guard = self.idle();
        let idle = &mut *guard;
        let numbers = idle.by_origin.get_mut(origin)?;
        let taken = loop {
            let Some(number) = numbers.pop_back() else { break None };
            match idle.resting.remove(&number) {
                Some(resting) if now < resting.until => break Some(resting.connection),
                Some(resting) => expired.push(resting),
                None => {}
            }
        };
        // Closing is a system call, and nobody need wait for it.
        drop(guard);
        drop(expired);
        taken
    }

    /// Keeps a connection for the next request, until then. What exceeds the bounds is closed.
    pub fn put(&self, origin: &str, connection: C, until: Instant) {
        let mut guard = self.idle();
        let idle = &mut *guard;
        let number = idle.next_number;
        idle.next_number += 1;
        let known = idle.by_origin.get_key_value(origin);
        let origin = known.map_or_else(|| Arc::from(origin), |(origin, _)| origin.clone());
        let numbers = idle.by_origin.entry(origin.clone()).or_default();
        numbers.push_back(number);
        let is_over = numbers.len() > self.per_origin_max;
        let surplus = if is_over { numbers.pop_front() } else { None };
        idle.resting.insert(number, Resting { connection, origin, until });
        let surplus = surplus.and_then(|number| idle.resting.remove(&number));
        let eldest = if idle.resting.len() > IDLE_MAX { idle.remove_eldest() } else { None };
        // Closing is a system call, and nobody need wait for it.
        drop(guard);
        drop((surplus, eldest));
    }

    /// Closes all that rests.
    pub fn close_all(&self) {
        let mut idle = self.idle();
        idle.by_origin.clear();
        let closed = std::mem::take(&mut idle.resting);
        drop(idle);
        drop(closed);
    }

    /// Closes what has rested for too long.
    pub fn close_idle(&self, now: Instant) {
        let mut guard = self.idle();
        let Idle { resting, by_origin, .. } = &mut *guard;
        let closed: Vec<_> = resting.extract_if(.., |_, one| one.until <= now).collect();
        by_origin.retain(|_, numbers| {
            numbers.retain(|number| resting.contains_key(number));
            !numbers.is_empty()
        });
        drop(guard);
        drop(closed);
    }
}

impl<C> Idle<C> {
    fn remove_eldest(&mut self) -> Option<C> {
        let (_, eldest) = self.resting.pop_first()?;
        // It is the eldest of its origin too.
        if let Some(numbers) = self.by_origin.get_mut(&eldest.origin) {
            numbers.pop_front();
        }
        Some(eldest.connection)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const REST: Duration = Duration::from_secs(4);

    fn numbered(pool: &Pool<usize>, origin: &str, numbers: std::ops::Range<usize>, now: Instant) {
        for number in numbers {
            pool.put(origin, number, now + REST);
        }
    }

    #[test]
    fn an_origin_gets_its_own_latest_connection() {
        let (pool, now) = (Pool::new(2), Instant::now());
        numbered(&pool, "http://a", 0..2, now);
        numbered(&pool, "http://b", 7..8, now);
        assert_eq!(pool.take("http://a", now), Some(1));
        assert_eq!(pool.take("http://a", now), Some(0));
        assert_eq!(pool.take("http://a", now), None);
        assert_eq!(pool.take("https://b", now), None);
        assert_eq!(pool.take("http://b", now), Some(7));
    }

    #[test]
    fn what_exceeds_a_bound_is_closed_eldest_first() {
        let (pool, now) = (Pool::new(2), Instant::now());
        numbered(&pool, "http://a", 0..3, now);
        let all: Vec<_> = std::iter::from_fn(|| pool.take("http://a", now)).collect();
        assert_eq!(all, [2, 1]);

        let pool = Pool::new(IDLE_MAX);
        pool.put("http://first", 0, now + REST);
        numbered(&pool, "http://a", 1..IDLE_MAX + 1, now);
        assert_eq!(pool.take("http://first", now), None);
        assert_eq!(pool.take("http://a", now), Some(IDLE_MAX));
        assert_eq!(pool.idle().resting.len(), IDLE_MAX - 1);
    }

    #[test]
    fn what_rested_too_long_is_not_used_and_is_closed() {
        let (pool, then) = (Pool::new(9), Instant::now());
        let now = then + REST;
        numbered(&pool, "http://a", 0..2, then);
        assert_eq!(pool.take("http://a", now), None);
        assert_eq!(pool.idle().resting.len(), 0);
        numbered(&pool, "http://a", 2..3, then);
        pool.put("http://b", 5, now + REST);
        pool.put("http://b", 6, then);
        pool.close_idle(now);
        assert_eq!(pool.idle().resting.len(), 1);
        assert_eq!(pool.idle().by_origin.len(), 1, "no origin is remembered without connections");
        assert_eq!(pool.take("http://b", now), Some(5));
    }

    /// Each has its own time: a receiver may name a shorter one later.
    #[test]
    fn one_that_may_rest_longer_is_used_though_a_later_one_may_not() {
        let (pool, now) = (Pool::new(9), Instant::now());
        pool.put("http://a", 1, now + REST);
        pool.put("http://a", 2, now);
        assert_eq!(pool.take("http://a", now), Some(1));
        assert_eq!(pool.take("http://a", now), None);
    }
}
