//! Wake-ups between processes. A notification is a hint: what it says is found by polling too.

use std::time::Duration;

use sqlx::postgres::PgListener;

use super::{Store, StoreError, bounded, bounded_by};

/// The channel on which processes tell each other that something is due.
const CHANNEL: &str = "webhook_dispatcher_due";

/// Time without a notification after which the connection is checked, and the deadline of the check.
const CHECK_INTERVAL: Duration = Duration::from_secs(20);
const CHECK_TIMEOUT: Duration = Duration::from_secs(4);

/// A connection that hears of work which other processes left in the queue.
#[derive(Debug)]
pub struct DueListener {
    listener: PgListener,
}

impl Store {
    /// Tells every listening process that something is due. In a transaction of its own and seldom:
    /// a notification inside each accepting transaction would serialise their commits.
    pub async fn notify_due(&self) -> Result<(), StoreError> {
        bounded(async {
            sqlx::query("select pg_notify($1, '')").bind(CHANNEL).execute(&self.pool).await?;
            Ok(())
        })
        .await
    }

    /// Begins to listen, on a connection of its own: it is held for good, and a swallowed one would
    /// take a place in the pool for as long.
    pub async fn listen_due(&self) -> Result<DueListener, StoreError> {
        bounded(async {
            let pool = self.pool.connector().direct().listener_pool().await?;
            let mut listener = PgListener::connect_with(&pool).await?;
            // A new listener is made instead: notifications may be lost meanwhile.
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok(DueListener { listener })
        })
        .await
    }
}

impl DueListener {
    /// Waits for the next notification; an error means that the connection is lost, and with it
    /// perhaps a notification. `rest` is the least time between two checks of the connection, where the
    /// database is to be left alone.
    pub async fn heard(&mut self, rest: Option<Duration>) -> Result<(), StoreError> {
        let interval = rest.unwrap_or_default().max(CHECK_INTERVAL);
        loop {
            let heard = tokio::time::timeout(interval, self.listener.try_recv()).await;
            if let Ok(heard) = heard {
                return heard?.map(|_| ()).ok_or(StoreError::TimedOut);
            }
            // Nothing else would ever show that the network has swallowed the connection.
            let check = sqlx::query("select 1").execute(&mut self.listener);
            bounded_by(CHECK_TIMEOUT, async { Ok(check.await?) }).await?;
        }
    }
}
