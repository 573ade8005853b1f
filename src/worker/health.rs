//! Tells other processes, and the next life of this one, how lanes fare that do not answer well; and
//! hears it of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Shared, executor::return_queued};
use crate::{
    domain::pacing::Verdict,
    store::{StoreError, lane_health::ROWS_MAX},
};

/// The time between two rounds.
const INTERVAL: Duration = Duration::from_secs(2);
/// Lanes of one statement, and statements of one round.
const LANES_PER_STATEMENT: usize = 1_000;
const STATEMENTS_PER_ROUND: usize = 10;
/// Looks of one round, and at the start.
const LOOKS_PER_ROUND: usize = 10;
const LOOKS_AT_START: usize = 20;
/// What was written by a transaction that was slow to commit is looked at again for so long.
const SLACK: TimeDelta = TimeDelta::seconds(10);

/// What was heard last.
#[derive(Debug, Default)]
pub struct Heard(Option<DateTime<Utc>>);

/// Goes on until the end, from what was heard at the start.
pub async fn run(shared: Arc<Shared>, mut heard: Heard) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.handover.rest(INTERVAL) => {}
        }
        let round = async {
            tell(&shared).await?;
            hear(&shared, &mut heard, LOOKS_PER_ROUND).await
        };
        if let Err(error) = round.await {
            tracing::debug!(%error, "how lanes fare was not exchanged");
        }
    }
}

/// What is known of lanes when this process starts.
pub async fn at_start(shared: &Shared) -> Result<Heard, StoreError> {
    let mut heard = Heard::default();
    hear(shared, &mut heard, LOOKS_AT_START).await?;
    Ok(heard)
}

async fn tell(shared: &Shared) -> Result<(), StoreError> {
    let Some(owner) = shared.handover.owner() else { return Ok(()) };
    for _ in 0..STATEMENTS_PER_ROUND {
        let mut news = shared.handover.lanes().take_news(Instant::now(), LANES_PER_STATEMENT);
        if news.is_empty() {
            break;
        }
        if let Err(error) = shared.store.tell_health(owner, &mut news).await {
            shared.handover.lanes().keep_news(news.iter().map(|one| one.lane));
            return Err(error);
        }
    }
    Ok(())
}

async fn hear(shared: &Shared, heard: &mut Heard, looks: usize) -> Result<(), StoreError> {
    let own = shared.handover.owner();
    let mut from = heard.0.map(|at| at - SLACK);
    for _ in 0..looks {
        let rows = shared.store.health_since(from).await?;
        from = rows.last().map(|row| row.updated_at).or(from);
        // What was written in the future, by a clock that was wrong, hides nothing that is written now.
        heard.0 = heard.0.max(from).map(|at| at.min(shared.clock.now()));
        let mut returned = Vec::new();
        {
            let (now, mut lanes) = (Instant::now(), shared.handover.lanes());
            for row in rows.iter().filter(|row| Some(row.told_by) != own) {
                returned.extend(lanes.learn(&row.health(), now));
            }
        }
        if !returned.is_empty() {
            return_queued(shared, returned, Verdict::Hung).await;
        }
        if rows.len() < ROWS_MAX {
            break;
        }
    }
    Ok(())
}
