//! The function: who may call it, what it refuses, and what it does with keys.

use proptest::{
    prelude::*,
    strategy::{Strategy, ValueTree},
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use webhook_dispatcher::{
    domain::{
        EventId, EventType, IdempotencyKey, Payload, Subject, Submission,
        event::{
            EVENT_TYPE_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX, METADATA_BYTES_MAX, Metadata,
            OPERATOR_TYPES, Route, SUBJECT_BYTES_MAX,
        },
        ids::{DEFAULT_APPLICATION, unix_ms_of},
        json::JSON_DEPTH_MAX,
    },
    store::{idempotency::IDEMPOTENCY_HOURS, outbox::PAYLOAD_BYTES_MAX},
};

use super::{ask, count, delivered, publisher, quoted, run, session};
use crate::support::{Receiver, TestApp, TestDatabase};

/// Catches: a function that runs with its caller's rights or path, or that everybody may execute; a
/// grant that opens more than the function.
#[tokio::test]
async fn a_role_that_may_only_execute_it_publishes_and_nothing_else() {
    let database = TestDatabase::new().await;
    let mut owner = session(&database).await;
    let stranger = format!("stranger_of_{}", database.name);
    run(&mut owner, &format!("create role {stranger} login")).await;
    let mut publisher = publisher(&database).await;
    // A path, and tables of the same names in front of it, of its own.
    let fakes = "create temp table outbox (like pg_class); create temp table application (a int);
                 set search_path = pg_temp; set standard_conforming_strings = off";
    run(&mut publisher, fakes).await;
    let id = ask(&mut publisher, "select public.publish('a.b', '{\"a\": \"\\\\u00e9\"}')").await;
    let id: EventId = id.unwrap().parse().unwrap();
    let stored = format!(
        "select convert_from(payload, 'UTF8') from outbox where event_id = '{}'",
        id.uuid()
    );
    assert_eq!(ask(&mut owner, &stored).await.unwrap(), r#"{"a": "\u00e9"}"#);
    let now = "select (extract(epoch from clock_timestamp()) * 1000)::bigint";
    let age = count(&mut owner, now).await - i64::try_from(unix_ms_of(id.uuid())).unwrap();
    assert!((0..60_000).contains(&age), "by the database's clock: {age}");
    assert_eq!(id.uuid().get_version_num(), 7);
    assert_eq!(id.uuid().get_variant(), uuid::Variant::RFC4122);
    for denied in [
        "select count(*)::text from public.outbox",
        "select count(*)::text from public.event",
        "select public.outbox_json_fault('1', false)",
    ] {
        assert_eq!(ask(&mut publisher, denied).await.unwrap_err().code, "42501", "{denied}");
    }
    run(&mut owner, &format!("set session authorization {stranger}")).await;
    let error = ask(&mut owner, "select publish('a', '1')").await.unwrap_err();
    assert_eq!(error.code, "42501", "{error:?}");
}

/// Catches: an argument that is not checked, or whose error does not say which it is; a bound that is
/// another one than over HTTP (each is tried at the bound and one beyond).
#[tokio::test]
async fn a_bad_call_says_what_is_wrong_and_keeps_nothing() {
    let app = TestApp::start().await;
    app.make("/applications", json!({"uid": "strict", "accepts_unknown_types": false})).await;
    let gone = app.make("/applications", json!({"uid": "gone"})).await;
    let gone = gone["id"].as_str().unwrap();
    assert_eq!(app.call("DELETE", &format!("/applications/{gone}"), None, None).await.0, 204);
    let mut session = app.store.pool().acquire().await.unwrap();
    let deep = |depth: usize| quoted(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
    let text = |bytes: usize| quoted(&format!("\"{}\"", "é".repeat((bytes - 2) / 2)));
    let long = |bytes: usize| quoted(&"k".repeat(bytes));
    let metadata = |json: &str| format!("'a', '1', metadata => {json}");
    let subject = |text: &str| format!("'a', '1', subject => {text}");
    let key = |text: &str| format!("'a', '1', idempotency_key => {text}");
    let application = |text: &str| format!("'a', '1', application => '{text}'");
    let good = [
        "'A-b_1.c', '1'".to_owned(),
        format!("{}, '1'", long(EVENT_TYPE_BYTES_MAX)),
        format!("'a', {}", deep(JSON_DEPTH_MAX)),
        format!("'a', {}", text(PAYLOAD_BYTES_MAX)),
        r#"'a', '"\u0000"'"#.to_owned(),
        metadata(&text(METADATA_BYTES_MAX)),
        metadata("'null'"),
        subject(&long(SUBJECT_BYTES_MAX)),
        key(&long(IDEMPOTENCY_KEY_BYTES_MAX)),
        "'invoice.paid', '1', application => 'default'".to_owned(),
        format!("'a', '1', application => '{DEFAULT_APPLICATION}'"),
        "type => 'a', payload => json_build_object('b', 1), application => null".to_owned(),
        "'a', to_jsonb(1)::json".to_owned(),
    ];
    for arguments in &good {
        let id = ask(&mut session, &format!("select publish({arguments})")).await;
        assert!(id.is_ok(), "{arguments:.80}: {id:?}");
    }
    let value = "22023";
    let bad = [
        ("null, '1'".to_owned(), "22004", "type"),
        ("'a b', '1'".to_owned(), value, "type"),
        ("'a.', '1'".to_owned(), value, "type"),
        (format!("'{OPERATOR_TYPES}made', '1'"), value, "type"),
        (format!("{}, '1'", long(EVENT_TYPE_BYTES_MAX + 1)), value, "type"),
        ("'a', null".to_owned(), "22004", "payload"),
        ("'a', '{'".to_owned(), "22P02", ""),
        (format!("'a', {}", deep(JSON_DEPTH_MAX + 1)), value, "payload"),
        ("'a', '[-1e400]'".to_owned(), value, "payload"),
        (r#"'a', '"\ud800"'"#.to_owned(), value, "payload"),
        (format!("'a', {}", text(PAYLOAD_BYTES_MAX + 2)), "54000", "payload"),
        ("'a', '1'::jsonb".to_owned(), "42883", ""),
        (metadata(&text(METADATA_BYTES_MAX + 2)), "54000", "metadata"),
        (metadata(r#"'"\u0000"'"#), value, "metadata"),
        (subject("''"), value, "subject"),
        (subject("E'a\\nb'"), value, "subject"),
        (subject("E'a\\u0085b'"), value, "subject"),
        (subject(&long(SUBJECT_BYTES_MAX + 1)), value, "subject"),
        (key("''"), value, "idempotency_key"),
        (key("'é'"), value, "idempotency_key"),
        (key("E'a\\nb'"), value, "idempotency_key"),
        (key(&long(IDEMPOTENCY_KEY_BYTES_MAX + 1)), value, "idempotency_key"),
        (application("nobody"), "42704", "application"),
        (application(gone), "42704", "application"),
        (application("gone"), "42704", "application"),
        (application("strict"), "42704", "type"),
    ];
    let kept = count(&mut session, "select count(*) from event_payload").await;
    for (arguments, code, argument) in &bad {
        let error = ask(&mut session, &format!("select publish({arguments})")).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.argument.as_str()), (*code, *argument), "{error:?}");
        let is_named = error.message.starts_with("publish: ") && error.message.contains('`');
        assert!(argument.is_empty() || is_named, "{error:?}");
        assert!(
            code == &value
                || argument.is_empty()
                || !error.hint.is_empty()
                || *argument == "metadata",
            "{error:?}"
        );
    }
    // Only what is good is kept, and all of it arrives.
    app.make("/event-types?application=strict", json!({"name": "a"})).await;
    assert!(ask(&mut session, "select publish('a', '1', application => 'strict')").await.is_ok());
    let expected = i64::try_from(good.len()).unwrap() + 1;
    crate::support::eventually("all that is good", async || {
        let moved = count(&mut session, "select count(*) from event_payload").await;
        assert!(moved >= kept && moved <= expected, "{moved}");
        (moved == expected).then_some(())
    })
    .await;
    drop(session);
    app.stop().await;
}

/// Strings and numbers of what is easily got wrong, in arrays that may nest.
fn tricky() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "é",
        "\\\\",
        "\\\"",
        "\\n",
        "\\u0041",
        "\\ud800",
        "\\uDC00",
        "\\ud83d\\ude00",
        "\\u0000",
        "[",
        "}",
        "1e999",
        "ud800",
        "ude00",
        "u0000",
    ]);
    let string = prop::collection::vec(piece, 0..6).prop_map(|p| format!("\"{}\"", p.concat()));
    let number = r"-?(0|[1-9][0-9]{0,4})(\.[0-9]{1,4})?([eE][+-]?0?[0-9]{1,3})?";
    let edge = (0_u32..4, 300_usize..320, 0_usize..30).prop_map(|(kind, digits, shift)| {
        let nines = "9".repeat(digits);
        match kind {
            0 => nines,
            1 => format!("{nines}e-{shift}"),
            2 => format!("0.{}17976931348623157e{}", "0".repeat(shift), 308 + shift),
            _ => format!("1.797693134862315{}e308", shift + 70),
        }
    });
    let fixed = prop::sample::select(vec![
        "0e400",
        "0.0E+999",
        "1e-400",
        "1e99999999999999999999",
        "1e-99999999999999999999",
        "1.7976931348623158e308",
        "1.7976931348623159e308",
        "1e308",
        "1e309",
        "true",
        "null",
    ]);
    let one = prop_oneof![string, number, edge, fixed.prop_map(str::to_owned)];
    let depth = prop_oneof![4 => 0_usize..3, 1 => 120_usize..140];
    (prop::collection::vec(one, 0..5), depth).prop_map(|(items, depth)| {
        let (open, close) = ("[{\"[\": ".repeat(depth / 2), "}]".repeat(depth / 2));
        let (open_one, close_one) = if depth % 2 == 1 { ("[", "]") } else { ("", "") };
        format!("{open}{open_one}[{}]{close_one}{close}", items.join(" ,"))
    })
}

/// Catches: JSON that is taken here and refused over HTTP, or the other way round.
#[tokio::test]
async fn json_is_taken_by_the_same_rules_as_over_http() {
    let database = TestDatabase::new().await;
    let mut session = session(&database).await;
    let mut runner = TestRunner::new(Config::default());
    let texts: Vec<String> =
        (0..2_000).map(|_| tricky().new_tree(&mut runner).unwrap().current()).collect();
    let (mut taken, mut refused) = (0, 0);
    for is_metadata in [false, true] {
        let told: Vec<Option<String>> = sqlx::query_scalar(
            "select outbox_json_fault(text, $2) from unnest($1::text[]) with ordinality as t(text, n)
             order by n",
        )
        .bind(&texts)
        .bind(is_metadata)
        .fetch_all(&mut session)
        .await
        .unwrap();
        for (text, told) in texts.iter().zip(told) {
            let expected = if is_metadata {
                Metadata::from_json(text).map(|_| ())
            } else {
                Payload::from_json(text.clone().into()).map(|_| ())
            };
            // Which of several faults is told first may differ.
            assert_eq!(told.is_none(), expected.is_ok(), "{text}: {told:?} {expected:?}");
            *if told.is_none() { &mut taken } else { &mut refused } += 1;
        }
    }
    assert!(taken > 500 && refused > 500, "{taken} {refused}");
}

/// Catches: a fingerprint that leaves a part out, or has it otherwise than `Submission::fingerprint`.
#[tokio::test]
async fn the_fingerprint_is_that_of_a_submission() {
    let database = TestDatabase::new().await;
    let mut session = session(&database).await;
    let cases = [
        ("a.b", "1", None, None),
        ("a", r#" {"z":  "é\u00e9"} "#, Some("subject é"), None),
        ("a", "[]", None, Some(r#"{"m":  1}"#)),
        ("a", "\n null\t", Some("s"), Some("null")),
    ];
    for (number, (event_type, payload, subject, metadata)) in cases.into_iter().enumerate() {
        let key = number.to_string();
        sqlx::query("select publish($1, $2::text::json, null, $3, $4, $5::text::json)")
            .bind(event_type)
            .bind(payload)
            .bind(&key)
            .bind(subject)
            .bind(metadata)
            .execute(&mut session)
            .await
            .unwrap();
        let kept: Vec<u8> =
            sqlx::query_scalar("select fingerprint from idempotency_key where key = $1")
                .bind(&key)
                .fetch_one(&mut session)
                .await
                .unwrap();
        let submission = Submission {
            application: DEFAULT_APPLICATION,
            event_type: EventType::parse(event_type).ok(),
            payload: Payload::from_json(payload.trim().to_owned().into()).unwrap(),
            route: Route::Subscriptions,
            subject: subject.map(|text| Subject::parse(text).unwrap()),
            metadata: metadata
                .filter(|text| *text != "null")
                .map(|text| Metadata::from_json(text).unwrap()),
            idempotency_key: IdempotencyKey::parse(&key).ok(),
            upstream: webhook_dispatcher::domain::Upstream::default(),
        };
        assert_eq!(kept, submission.fingerprint(), "{number}");
    }
}

async fn post(app: &TestApp, key: &str, payload: i32) -> (u16, Value) {
    let body = json!({"type": "a.b", "payload": payload, "idempotency_key": key});
    app.call("POST", "/events", None, Some(&body)).await
}

/// Catches: keys that are two sets, or taken before the caller commits, or that stand for ever; a
/// repeat that makes a second event.
#[tokio::test]
async fn a_key_stands_for_one_event_whichever_way_it_comes() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    super::subscribe(&app, &receiver, json!({})).await;
    let mut session = app.store.pool().acquire().await.unwrap();
    let call = |key: &str, payload: i32| {
        format!("select publish('a.b', '{payload}', idempotency_key => '{key}')")
    };
    // First from SQL: repeated there, in its own transaction too, and over HTTP.
    run(&mut session, "begin").await;
    let first = ask(&mut session, &call("sql", 1)).await.unwrap();
    assert_eq!(ask(&mut session, &call("sql", 1)).await.unwrap(), first);
    run(&mut session, "commit").await;
    assert_eq!(ask(&mut session, &call("sql", 1)).await.unwrap(), first);
    let (status, accepted) = post(&app, "sql", 1).await;
    assert_eq!((status, accepted["id"].as_str()), (202, Some(first.as_str())), "{accepted}");
    assert_eq!(post(&app, "sql", 2).await.0, 409);
    let error = ask(&mut session, &call("sql", 2)).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.argument.as_str()), ("23505", "idempotency_key"));
    // First over HTTP.
    let (_, accepted) = post(&app, "http", 1).await;
    let second = accepted["id"].as_str().unwrap();
    assert_eq!(ask(&mut session, &call("http", 1)).await.unwrap(), second);
    assert_eq!(ask(&mut session, &call("http", 2)).await.unwrap_err().code, "23505");
    // Rolled back, it is free.
    run(&mut session, "begin").await;
    ask(&mut session, &call("back", 1)).await.unwrap();
    run(&mut session, "rollback").await;
    let third = ask(&mut session, &call("back", 2)).await.unwrap();
    for id in [first.as_str(), second, third.as_str()] {
        delivered(&app, id).await;
    }
    // Past its time it stands for nothing.
    let age = format!(
        "update idempotency_key set created_at = now() - interval '{IDEMPOTENCY_HOURS} hours 1 second'"
    );
    run(&mut session, &age).await;
    let fourth = ask(&mut session, &call("sql", 2)).await.unwrap();
    assert_ne!(fourth, first);
    delivered(&app, &fourth).await;
    assert_eq!(receiver.count(), 4);
    drop(session);
    app.stop().await;
}

/// Catches: events of others that wait for a key which a publisher's open transaction holds; a caller
/// with that key who is told that it stands for something, or that it is free.
#[tokio::test]
async fn an_open_transaction_holds_up_nobody_but_its_own_key() {
    let app = TestApp::start().await;
    let mut session = app.store.pool().acquire().await.unwrap();
    run(&mut session, "begin").await;
    let id =
        ask(&mut session, "select publish('a.b', '1', idempotency_key => 'k7')").await.unwrap();
    let events: Vec<_> = (0..20)
        .map(|n| json!({"type": "a.b", "payload": 1, "idempotency_key": format!("k{n}")}))
        .collect();
    let (status, answer) =
        app.call("POST", "/events/batch", None, Some(&json!({"events": events}))).await;
    assert_eq!(status, 202, "{answer}");
    for (n, result) in answer["results"].as_array().unwrap().iter().enumerate() {
        let problem = result["problem"]["type"].as_str();
        assert_eq!(problem, (n == 7).then_some("/problems/busy"), "{n}: {result}");
    }
    run(&mut session, "commit").await;
    let (status, accepted) = post(&app, "k7", 1).await;
    assert_eq!((status, accepted["id"].as_str()), (202, Some(id.as_str())), "{accepted}");
    drop(session);
    app.stop().await;
}
