//! Housekeeping in bounded portions: days of the history (made, frozen, dropped), old idempotency keys, idle lanes, idle
//! connections, what waits for deleted and disabled subscriptions, secrets that an older key has sealed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Shared;
use crate::{store::StoreError, telemetry};

/// The time between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(60);
/// The time between two looks at the partitions. They are made days ahead, and frozen when they are
/// over.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(3_600);
/// Idempotency keys deleted by one statement, and statements of one round.
const KEYS_PER_DELETE: i64 = 5_000;
const DELETES_PER_ROUND: usize = 200;
/// Minutes of statistics deleted by one statement.
const MINUTES_PER_DELETE: i64 = 5_000;
/// How long it is kept how a lane fares of which nothing new is told.
const HEALTH_AGE: Duration = Duration::from_hours(1);
/// Lanes that one statement forgets.
const LANES_PER_DELETE: i64 = 5_000;
/// Events refused from SQL that one statement deletes: each has a payload.
const REFUSED_PER_DELETE: i64 = 500;
/// What the CMS was to be told of that one statement drops.
const CMS_LOG_PER_DROP: i64 = 5_000;
/// Deleted and disabled subscriptions of one round, and deliveries that one statement cancels or
/// parks.
const DRAINED_PER_ROUND: i64 = 200;
const MOVED_PER_STATEMENT: i64 = 1_000;
/// Statements for one subscription in one round.
const STATEMENTS_PER_DRAIN: usize = 100;
/// The time between two looks for secrets that an older key has sealed.
const RESEAL_INTERVAL: Duration = Duration::from_secs(600);
/// Secrets found by one statement, and statements of one look.
const SECRETS_PER_LOOK: i64 = 500;
const LOOKS_PER_RESEALING: usize = 200;

/// The time between two looks at the connections that rest.
const CONNECTIONS_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps house until the end.
pub async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = rounds(&shared) => {}
        () = close_idle_connections(&shared) => {}
        () = freeze_days(&shared) => {}
    }
}

async fn close_idle_connections(shared: &Shared) {
    loop {
        tokio::time::sleep(CONNECTIONS_INTERVAL).await;
        shared.client.close_idle();
    }
}

/// Beside the rounds, which it may outlast.
async fn freeze_days(shared: &Shared) {
    loop {
        match shared.store.freeze_days().await {
            Ok(frozen) => frozen.iter().for_each(|name| tracing::info!(name, "day frozen")),
            Err(error) => {
                telemetry::statement_failed(&error, "days that are over were not all frozen");
            }
        }
        tokio::time::sleep(PARTITIONS_INTERVAL).await;
    }
}

async fn rounds(shared: &Shared) {
    let mut partitions_at = Instant::now();
    let mut reseal_at = Instant::now();
    loop {
        if partitions_at <= Instant::now() {
            match partitions(shared).await {
                Ok(()) => partitions_at = Instant::now() + PARTITIONS_INTERVAL,
                // Tried again at the next round: a lock was not to be had, or Postgres is away.
                Err(error) => {
                    telemetry::statement_failed(&error, "partitions were not looked after");
                }
            }
        }
        if let Err(error) = forget_keys(shared).await {
            telemetry::statement_failed(&error, "old idempotency keys were not deleted");
        }
        if let Err(error) = forget_statistics(shared).await {
            telemetry::statement_failed(&error, "old statistics were not deleted");
        }
        if let Err(error) = forget_health(shared).await {
            telemetry::statement_failed(&error, "how lanes fared long ago was not forgotten");
        }
        if let Err(error) = forget_refused(shared).await {
            telemetry::statement_failed(
                &error,
                "what was refused from SQL long ago was not deleted",
            );
        }
        if let Err(error) = forget_cms_log(shared).await {
            telemetry::statement_failed(
                &error,
                "what the CMS was to be told of long ago was not deleted",
            );
        }
        if let Err(error) = drain(shared).await {
            telemetry::statement_failed(
                &error,
                "what waits for deleted or disabled subscriptions still waits",
            );
        }
        if reseal_at <= Instant::now() {
            match reseal(shared).await {
                Ok(()) => reseal_at = Instant::now() + RESEAL_INTERVAL,
                Err(error) => telemetry::statement_failed(&error, "secrets were not sealed anew"),
            }
        }
        shared.handover.lanes().forget_idle(Instant::now());
        shared.handover.rest(ROUND_INTERVAL).await;
    }
}

async fn partitions(shared: &Shared) -> Result<(), StoreError> {
    for name in shared.store.make_partitions().await? {
        tracing::info!(name, "partition made");
    }
    for name in shared.store.drop_partitions(shared.settings.retention).await? {
        tracing::info!(name, "partition dropped");
    }
    Ok(())
}

/// Deletes in portions of so many rows, until one is not full or the round has had its share.
async fn in_portions<D: Future<Output = Result<u64, StoreError>>>(
    rows_max: i64,
    delete: impl Fn(i64) -> D,
) -> Result<(), StoreError> {
    for _ in 0..DELETES_PER_ROUND {
        if delete(rows_max).await? < rows_max.unsigned_abs() {
            break;
        }
    }
    Ok(())
}

async fn forget_keys(shared: &Shared) -> Result<(), StoreError> {
    in_portions(KEYS_PER_DELETE, |rows| shared.store.forget_idempotency_keys(rows)).await
}

async fn forget_statistics(shared: &Shared) -> Result<(), StoreError> {
    let age = shared.settings.retention.history;
    in_portions(MINUTES_PER_DELETE, |rows| shared.store.forget_statistics(age, rows)).await
}

async fn forget_health(shared: &Shared) -> Result<(), StoreError> {
    in_portions(LANES_PER_DELETE, |rows| shared.store.forget_health(HEALTH_AGE, rows)).await
}

async fn forget_refused(shared: &Shared) -> Result<(), StoreError> {
    let keep = shared.settings.retention.payload;
    in_portions(REFUSED_PER_DELETE, |rows| shared.store.forget_refused(keep, rows)).await
}

/// Also where no CMS is told any more.
async fn forget_cms_log(shared: &Shared) -> Result<(), StoreError> {
    let age_max = shared.settings.cms_log_age_max;
    let mut total = 0;
    for _ in 0..DELETES_PER_ROUND {
        let dropped = shared.store.drop_old_cms_log(age_max, CMS_LOG_PER_DROP).await?;
        total += dropped;
        telemetry::cms_log_too_old(dropped.unsigned_abs());
        if dropped < CMS_LOG_PER_DROP {
            break;
        }
    }
    if total > 0 {
        tracing::warn!(
            results = total,
            "the CMS is never told of these: they have waited too long"
        );
    }
    Ok(())
}

async fn drain(shared: &Shared) -> Result<(), StoreError> {
    for one in shared.store.draining_subscriptions(DRAINED_PER_ROUND).await? {
        for _ in 0..STATEMENTS_PER_DRAIN {
            let moved = if one.is_deleted {
                shared.store.cancel_waiting(one.id(), MOVED_PER_STATEMENT).await?
            } else {
                shared.store.park_waiting(one.id(), MOVED_PER_STATEMENT).await?
            };
            if moved < MOVED_PER_STATEMENT {
                shared.store.mark_drained(one.id()).await?;
                break;
            }
        }
    }
    Ok(())
}

/// Seals anew what an older key of `ENCRYPTION_KEY` has sealed; once that is done, it can go.
async fn reseal(shared: &Shared) -> Result<(), StoreError> {
    let (keys, mut resealed) = (shared.routes.sealing(), 0_usize);
    for _ in 0..LOOKS_PER_RESEALING {
        let found = shared.store.outdated_secrets(keys.current_id(), SECRETS_PER_LOOK).await?;
        let mut unopened = 0_usize;
        for row in &found {
            let Ok(secret) = keys.open(&row.sealed, &row.context()) else {
                unopened += 1;
                continue;
            };
            let fresh = keys.seal(secret.bytes(), &row.context(), rand::random());
            shared.store.reseal(row, &fresh).await?;
            resealed += 1;
        }
        if unopened > 0 {
            tracing::error!(unopened, "secrets are sealed with a key that ENCRYPTION_KEY lacks");
        }
        let is_last = i64::try_from(found.len()).unwrap_or(i64::MAX) < SECRETS_PER_LOOK;
        if is_last || unopened == found.len() {
            break;
        }
    }
    if resealed > 0 {
        tracing::info!(resealed, key = %keys.current_id(), "secrets were sealed with the first key");
    }
    Ok(())
}
