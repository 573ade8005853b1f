//! Wake-ups between processes. A notification is a hint: what it says is found by polling too.

use sqlx::postgres::PgListener;

use super::{Store, StoreError, bounded};

/// The channel on which processes tell each other that something is due.
const CHANNEL: &str = "webhook_dispatcher_due";

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
            let mut listener = PgListener::connect_with(&self.pool.apart()).await?;
            listener.listen(CHANNEL).await?;
            Ok(DueListener { listener })
        })
        .await
    }
}

impl DueListener {
    /// Waits for the next notification; an error means that the connection is lost, and with it
    /// perhaps a notification.
    pub async fn heard(&mut self) -> Result<(), StoreError> {
        self.listener.try_recv().await?.map(|_| ()).ok_or(StoreError::TimedOut)
    }
}
