//! Functions with the rights of their owner, in a schema in which every role may create objects.

use std::collections::BTreeSet;

use sqlx::ConnectOptions;

use super::run;
use crate::support::TestDatabase;

/// Overloads that fit arguments of `publish()` better than the functions of Postgres: the calls in
/// its body pass an `integer` where Postgres has `bigint`, or `text` where it has `"any"`.
const OVERLOADS: &[(&str, &str)] = &[
    ("int8send(integer)", "bytea"),
    ("format(text, integer)", "text"),
    ("format(text, text)", "text"),
];

/// Broken by: a body whose calls are resolved in the schema (the error is then the overload's own).
#[tokio::test]
async fn publish_ignores_overloads_of_other_roles() {
    let database = TestDatabase::new().await;
    let mut owner = database.options.connect().await.unwrap();
    let role = format!("stranger_of_{}", database.name);
    let grants = format!(
        "create role {role} login; grant create on schema public to public;
         grant execute on function publish to {role}"
    );
    run(&mut owner, &grants).await;
    let mut stranger = database.options.clone().username(&role).connect().await.unwrap();
    for (signature, returns) in OVERLOADS {
        let create = format!(
            "create function public.{signature} returns {returns} language plpgsql as
             $$ begin raise exception 'overload called with the rights of %', current_user; end $$"
        );
        run(&mut stranger, &create).await;
    }
    run(&mut owner, "create table seen (id text); select int8send(7::bigint)").await;
    let hijacked = sqlx::query("select int8send(7)").execute(&mut owner).await.unwrap_err();
    assert!(hijacked.to_string().contains("overload called"), "the overloads work: {hijacked}");
    let publish = "select publish('a.b', '{\"n\": [1e400000000]}'::json)";
    let error = sqlx::query(publish).execute(&mut stranger).await.unwrap_err();
    assert!(error.to_string().contains("must not hold a number"), "{error}");
    let publish = "select publish('a.b', '{}', idempotency_key => 'k', subject => 's',
                                  metadata => '{}')";
    for _ in 0..2 {
        let id: String = sqlx::query_scalar(publish).fetch_one(&mut stranger).await.unwrap();
        assert!(id.starts_with("evt_"), "{id}");
    }
    let again = "select publish('a.b', '[]', idempotency_key => 'k')";
    let error = sqlx::query(again).execute(&mut stranger).await.unwrap_err();
    assert!(error.to_string().contains("was used for another event"), "{error}");
    let error = sqlx::query("select publish('a.b', '[]', application => 'none')");
    let error = error.execute(&mut stranger).await.unwrap_err();
    assert!(error.to_string().contains("there is no application `none`"), "{error}");
}

/// Broken by: a function with the rights of its owner whose names are found outside of `pg_catalog`,
/// or whose body has a call without a schema.
#[tokio::test]
async fn security_definer_functions_have_a_pinned_path_and_qualified_calls() {
    let database = TestDatabase::new().await;
    let mut session = database.options.connect().await.unwrap();
    let functions: Vec<(String, Option<Vec<String>>, String)> = sqlx::query_as(
        "select proname::text, proconfig, prosrc from pg_proc
         where prosecdef and pronamespace = current_schema()::regnamespace",
    )
    .fetch_all(&mut session)
    .await
    .unwrap();
    let names: BTreeSet<_> = functions.iter().map(|(name, ..)| name.as_str()).collect();
    assert!(names.contains("publish"), "{names:?}");
    for (name, settings, body) in functions {
        let path = "search_path=pg_catalog, pg_temp".to_owned();
        assert!(settings.unwrap_or_default().contains(&path), "{name}");
        let unqualified = unqualified_calls(&body);
        assert!(unqualified.is_empty(), "{name} calls {unqualified:?} without a schema");
    }
}

/// Names in front of a parenthesis without a schema, but for words of the language. Comments and
/// texts hold none.
fn unqualified_calls(body: &str) -> Vec<String> {
    const WORDS: &[&str] =
        &["and", "between", "coalesce", "conflict", "exists", "extract", "nullif", "or", "values"];
    let mut code = String::new();
    for line in body.lines().filter(|line| !line.trim_start().starts_with("--")) {
        for (index, part) in line.split('\'').enumerate() {
            code.push_str(if index % 2 == 0 { part } else { "''" });
        }
        code.push('\n');
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let mut calls = Vec::new();
    for (at, _) in code.match_indices('(') {
        let before = &code[..at];
        let start = before.rfind(|c| !is_name(c)).map_or(0, |index| index + 1);
        let name = &before[start..];
        // The columns of `insert into … [as k] (` stand behind a space.
        if !name.is_empty() && !name.contains('.') && !WORDS.contains(&name) {
            calls.push(name.to_owned());
        }
    }
    calls
}

#[test]
fn unqualified_calls_are_found() {
    assert_eq!(unqualified_calls("a := pg_catalog.left(format('x(%s)', 1), 2);"), ["format"]);
    assert_eq!(
        unqualified_calls("-- left(1)\nif a and (b) then x := coalesce(left(c), '');"),
        ["left"]
    );
}
