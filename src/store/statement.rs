//! A statement, apart from its connection.

use sqlx::{
    Error, Execute, Postgres, SqlSafeStr, SqlStr,
    error::BoxDynError,
    postgres::{PgArguments, PgStatement},
};

/// The beginnings of the parts of a query that write.
const WRITES: [&str; 3] = ["insert into ", "update ", "delete from "];

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

    /// Whether it changes nothing that outlives its session: a query, also of several parts, none of
    /// which writes.
    pub fn is_harmless(&self) -> bool {
        let sql = self.sql.as_str().trim_start();
        let writes = || WRITES.iter().any(|write| sql.contains(write));
        self.begins || sql.starts_with("select") || (sql.starts_with("with") && !writes())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statements_that_write_nothing_are_harmless() {
        let is_harmless = |sql: &'static str| Statement::plain(sql).is_harmless();
        assert!(is_harmless("select 1"));
        assert!(is_harmless("\n    with seen as (select 1) select * from seen"));
        assert!(!is_harmless("insert into event select 1"));
        assert!(!is_harmless(
            "with gone as (delete from dispatcher returning 1) select * from gone"
        ));
        assert!(!is_harmless("with beat as (update dispatcher set x = 1) select 1"));
        assert!(!is_harmless("with stored as (insert into event select 1) select 1"));
        assert!(!is_harmless("commit"));
        assert!(Statement { begins: true, ..Statement::plain("begin") }.is_harmless());
    }
}
