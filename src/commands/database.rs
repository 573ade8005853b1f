//! The database of the settings, opened for one command.

use anyhow::Context;

use crate::{
    config::Database,
    embedded_postgres::{EmbeddedPostgres, EmbeddedPostgresError, Options},
    store::{Store, connector::Connector},
};

/// Commands do one thing after another.
const CONNECTIONS_MAX: u32 = 1;

/// The database, with the schema up to date.
pub struct Opened {
    pub store: Store,
    /// The private Postgres, if it was started for this command.
    started: Option<EmbeddedPostgres>,
}

impl Opened {
    /// Opens the database. A private one is that of the service that runs on its folder, or is
    /// started if none does.
    pub async fn open(database: Database) -> anyhow::Result<Self> {
        let (connector, started): (Connector, _) = match database {
            Database::External(access) => ((*access).into(), None),
            Database::Private { data_dir, path } => {
                let options =
                    Options { data_dir: data_dir.clone(), path, extra_settings: Vec::new() };
                match EmbeddedPostgres::start(options).await {
                    Ok(started) => (started.connect_options().into(), Some(started)),
                    // The lock says so: a service runs here, and its Postgres takes us too.
                    Err(EmbeddedPostgresError::AlreadyInUse { .. }) => {
                        let attached = EmbeddedPostgres::attach(&data_dir).await;
                        (attached.context("the service's private Postgres")?.into(), None)
                    }
                    Err(error) => Err(error)
                        .context("DATABASE_URL is not set, and a private Postgres cannot be had")?,
                }
            }
        };
        let opened = Self { store: Store::connect_lazy(connector, CONNECTIONS_MAX), started };
        match opened.store.migrate().await {
            Ok(()) => Ok(opened),
            Err(error) => {
                opened.close().await?;
                Err(error.into())
            }
        }
    }

    /// Closes it, and stops what was started for it.
    pub async fn close(self) -> anyhow::Result<()> {
        self.store.close().await;
        if let Some(started) = self.started {
            started.stop().await.context("the private Postgres did not stop")?;
        }
        Ok(())
    }
}
