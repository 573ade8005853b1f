//! The schema: the requirements that a database must meet, and the migrations.

use sqlx::{Connection, PgConnection};

use super::{Store, StoreError};

/// Character encoding that a database must have.
const ENCODING: &str = "UTF8";

/// The schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A database that cannot store every payload as it was sent.
    #[error(
        "DATABASE_URL: the database `{database}` has the encoding {encoding}, and {ENCODING} is \
         required: create another database with `create database … encoding 'UTF8' template \
         template0`"
    )]
    Encoding {
        /// Name of the database.
        database: String,
        /// Its encoding, as Postgres spells it.
        encoding: String,
    },
    /// A pooler in transaction mode, where a session is needed.
    #[error(
        "{variable} is the address of a pooler in transaction mode, and migrations and LISTEN need \
         sessions of their own: set DATABASE_DIRECT_URL to the address of Postgres itself"
    )]
    Pooled {
        /// The setting with the address.
        variable: &'static str,
    },
    /// The requirements could not be checked.
    #[error("the database could not be checked: {0}")]
    Unchecked(#[source] StoreError),
    /// A migration failed.
    #[error("the schema could not be brought up to date: {0}")]
    Failed(#[source] sqlx::migrate::MigrateError),
}

impl Store {
    /// Brings the schema up to date. Safe from several processes at once. Nothing is changed in a
    /// database that does not meet the requirements.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        let is_pooled = self.pool.connector().is_pooled();
        let unchecked = |error: sqlx::Error| match StoreError::from(error) {
            StoreError::Pooled(_) if is_pooled => {
                MigrateError::Pooled { variable: "DATABASE_DIRECT_URL" }
            }
            StoreError::Pooled(_) => MigrateError::Pooled { variable: "DATABASE_URL" },
            error => MigrateError::Unchecked(error),
        };
        // Its own: locks of migrations belong to a session, which is closed at the end.
        let connector = self.pool.connector().direct();
        let mut connection = connector.connect().await.map_err(unchecked)?;
        check_encoding(&mut connection).await?;
        sqlx::migrate!().run(&mut connection).await.map_err(MigrateError::Failed)?;
        warn_of_open_schema(&mut connection).await.map_err(unchecked)?;
        connection.close().await.map_err(unchecked)
    }
}

async fn check_encoding(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let (database, encoding): (String, String) = sqlx::query_as(
        "select datname::text, pg_encoding_to_char(encoding)::text
         from pg_database where datname = current_database()",
    )
    .fetch_one(connection)
    .await
    .map_err(|error| MigrateError::Unchecked(error.into()))?;
    if encoding == ENCODING { Ok(()) } else { Err(MigrateError::Encoding { database, encoding }) }
}

/// Logs a warning if every role may create objects in the schema. An overload that another role adds
/// there is called by our statements, with our rights, where it fits their arguments better.
async fn warn_of_open_schema(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let schema: Option<String> = sqlx::query_scalar(
        "select current_schema()::text
         where has_schema_privilege('public', current_schema(), 'create')",
    )
    .fetch_optional(connection)
    .await?;
    if let Some(schema) = schema {
        tracing::warn!(
            event = "schema_open_to_public",
            schema,
            "every role may create functions in the schema of the service, which its statements \
             could call by mistake: run `revoke create on schema {schema} from public`"
        );
    }
    Ok(())
}
