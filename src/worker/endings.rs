//! Requests that time out end one after the other: a thousand that began together would time out
//! together, and what follows from each, its connection, its result and the next claim, would hold up
//! deliveries that have nothing to do with them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// From one end to the next. Two thousand end in a second.
const PAUSE: Duration = Duration::from_micros(500);

/// When the next one may end.
#[derive(Debug, Default)]
pub struct Endings(Mutex<Option<Instant>>);

impl Endings {
    /// Waits for its turn: not at all, if nothing has timed out just before. Slots are held meanwhile,
    /// so there are never more that wait than slots.
    pub async fn turn(&self) {
        let now = Instant::now();
        let at = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.map_or(now, |next| next.max(now));
            *next = Some(at + PAUSE);
            at
        };
        if at > now {
            tokio::time::sleep_until(at.into()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn they_end_one_after_the_other() {
        let endings = Endings::default();
        let began = Instant::now();
        futures_util::future::join_all((0..20).map(|_| endings.turn())).await;
        assert!(began.elapsed() >= PAUSE * 19);
    }
}
