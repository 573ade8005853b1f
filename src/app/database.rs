//! The database of a start: found or started, waited for, and given the days of its history.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Database,
    embedded_postgres::{self, EmbeddedPostgres, EmbeddedPostgresError},
    store::{Store, StoreError, connector::Connector},
    telemetry, tls,
};

/// How long the start waits for a database that is starting itself.
const DATABASE_WAIT: Duration = Duration::from_secs(30);

/// Finds the database, or starts it; `None` if `stop` was cancelled before it was ready.
pub(super) async fn database(
    database: &Database,
    stop: &CancellationToken,
) -> anyhow::Result<Option<(Connector, Option<EmbeddedPostgres>)>> {
    match database {
        Database::External(access) => Ok(Some((access.as_ref().clone().into(), None))),
        Database::Private { data_dir, path } => {
            let options = embedded_postgres::Options {
                data_dir: data_dir.clone(),
                path: path.clone(),
                extra_settings: Vec::new(),
            };
            match EmbeddedPostgres::start_until(options, stop).await {
                Ok(embedded) => Ok(Some((embedded.connect_options().into(), Some(embedded)))),
                Err(EmbeddedPostgresError::Cancelled) => Ok(None),
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    Err(error
                        .context("DATABASE_URL is not set, and a private Postgres cannot be had"))
                }
            }
        }
    }
}

/// Waits for a database that is starting.
pub(super) async fn wait_for_database(store: &Store) -> anyhow::Result<()> {
    let give_up_at = Instant::now() + DATABASE_WAIT;
    loop {
        match store.database_time().await {
            Ok(_) => return Ok(()),
            Err(error)
                if error.is_outage() && !error.is_of_pooler() && Instant::now() < give_up_at =>
            {
                telemetry::statement_failed(&error, "waiting for the database");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => {
                let explained = tls::explain_cause(&error).map(anyhow::Error::msg);
                return Err(explained.unwrap_or_else(|| error.into())).context("DATABASE_URL");
            }
        }
    }
}

/// Makes the days of the history, waiting for another process that holds a lock on them.
pub(super) async fn make_partitions(store: &Store) -> Result<(), StoreError> {
    let give_up_at = Instant::now() + DATABASE_WAIT;
    loop {
        match store.make_partitions().await {
            Err(error) if error.is_outage() && Instant::now() < give_up_at => {
                telemetry::statement_failed(&error, "waiting to make the days of the history");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            made => return made.map(|_| ()),
        }
    }
}
