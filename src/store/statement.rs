//! A statement, apart from its connection.

use sqlx::{
    Error, Execute, Postgres, SqlSafeStr, SqlStr,
    error::BoxDynError,
    postgres::{PgArguments, PgStatement},
};

/// A statement that can be copied.
#[derive(Clone)]
pub(super) struct Statement {
    pub sql: SqlStr,
    /// `None`: without a plan that is kept.
    pub arguments: Option<PgArguments>,
    pub is_persistent: bool,
    /// Whether it begins a transaction.
    pub begins: bool,
}

impl Statement {
    /// A statement without arguments.
    pub fn plain(sql: &'static str) -> Self {
        Self { sql: sql.into_sql_str(), arguments: None, is_persistent: false, begins: false }
    }

    /// A statement as it is given to sqlx.
    pub fn new<'q>(mut query: impl Execute<'q, Postgres>) -> Result<Self, Error> {
        Ok(Self {
            arguments: query.take_arguments().map_err(Error::Encode)?,
            is_persistent: query.persistent(),
            sql: query.sql(),
            begins: false,
        })
    }

    /// Whether it changes nothing that outlives its session. Queries that write begin with another
    /// word than `select`.
    pub fn is_harmless(&self) -> bool {
        self.begins || self.sql.as_str().trim_start().starts_with("select")
    }
}

impl Execute<'_, Postgres> for Statement {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.is_persistent
    }
}
