//! CPU that an application may cost: schemas, their checks, and suggestions. A test and its service
//! share one thread, so work on a thread that serves requests would stop everything here.

use futures_util::future::{Either, join_all, select};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection};

use crate::{
    applications::{ADMIN_KEY, WITH_KEYS, tenant},
    support::{TestApp, TestDatabase, eventually},
};

/// A pattern that costs about as much per byte as any that is accepted.
const HEAVY: &str = "^[ab]*a[ab]{380}$";

/// A text that matches [`HEAVY`], without a period that an automaton could learn.
fn heavy_text(bytes: usize) -> String {
    let mut state = 1_u32;
    let letters = (0..bytes).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if state >> 31 == 0 { 'a' } else { 'b' }
    });
    letters.collect::<String>() + "a" + &"b".repeat(380)
}

async fn checked_type(app: &TestApp, key: &str, pattern: &str) -> (u16, Value) {
    let event_type = json!({"name": "a.checked", "checks_payload": true,
        "schema": {"properties": {"text": {"pattern": pattern}}}});
    app.call("POST", "/event-types", Some(key), Some(&event_type)).await
}

/// Catches: schemas whose patterns cost more per byte than their bound.
#[tokio::test]
async fn expensive_pattern_is_refused_when_a_type_is_created_or_changed() {
    let app = TestApp::with(&WITH_KEYS).await;
    let (_, key) = tenant(&app, "acme", "manager").await;
    let expensive = "^[ab]*a[ab]{1500}$";
    let (status, problem) = checked_type(&app, &key, expensive).await;
    assert_eq!((status, &problem["pointer"]), (422, &json!("/schema")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("may cost 400"), "{detail}");
    assert_eq!(checked_type(&app, &key, HEAVY).await.0, 201);
    let schema = json!({"patternProperties": {expensive: {}}});
    let change = json!({"schema": schema});
    let path = "/event-types/a.checked";
    let (status, problem) = app.call("PATCH", path, Some(&key), Some(&change)).await;
    assert_eq!(status, 422, "{problem}");
    // One that cannot be compiled small enough either.
    let huge = json!({"schema": {"pattern": "^([ab]{1000}){1000}$"}});
    let (status, problem) = app.call("PATCH", path, Some(&key), Some(&huge)).await;
    assert_eq!(status, 422, "{problem}");
    app.stop().await;
}

/// Catches: checks on the threads that serve requests, and an application that takes all threads for
/// checks.
#[tokio::test]
async fn long_checks_delay_neither_probes_nor_other_applications() {
    let app = TestApp::with(&WITH_KEYS).await;
    let (_, heavy_key) = tenant(&app, "heavy", "manager").await;
    let (_, other_key) = tenant(&app, "other", "manager").await;
    assert_eq!(checked_type(&app, &heavy_key, HEAVY).await.0, 201);
    assert_eq!(checked_type(&app, &other_key, "^[a-z]+$").await.0, 201);
    let heavy = json!({"type": "a.checked", "payload": {"text": heavy_text(80_000)}});
    let publish = || app.call("POST", "/events", Some(&heavy_key), Some(&heavy));
    let mut under_way = Box::pin(join_all((0..6).map(|_| publish())));
    let others = Box::pin(async {
        let event = json!({"type": "a.checked", "payload": {"text": "abc"}});
        for _ in 0..5 {
            let (status, answer) =
                app.call("POST", "/events", Some(&other_key), Some(&event)).await;
            assert_eq!(status, 202, "{answer}");
            assert_eq!(app.get("/livez").await.0, 200);
            let (status, answer) = checked_type(&app, &other_key, "^[a-z]*$").await;
            assert_eq!(status, 409, "{answer}");
        }
    });
    match select(others, &mut under_way).await {
        Either::Left(_) => {}
        Either::Right((answers, _)) => panic!("others waited for all of them: {answers:?}"),
    }
    for (status, answer) in under_way.await {
        // Under load one may be refused for the time that it took.
        assert!([202, 503].contains(&status), "{answer}");
    }
    app.stop().await;
}

/// Catches: a batch of unknown types that reads the names, and compares them, for each of its events.
#[tokio::test]
async fn batch_of_unknown_types_has_suggestions_for_the_first_few_only() {
    let app = TestApp::with(&WITH_KEYS).await;
    let (id, key) = tenant(&app, "acme", "manager").await;
    let made = json!({"name": "invoice.paid"});
    assert_eq!(app.call("POST", "/event-types", Some(&key), Some(&made)).await.0, 201);
    let strict = json!({"accepts_unknown_types": false});
    let path = format!("/applications/{id}");
    let (status, answer) = app.call("PATCH", &path, Some(ADMIN_KEY), Some(&strict)).await;
    assert_eq!(status, 200, "{answer}");
    let event = |n: usize| json!({"type": format!("invoice.paid{n}"), "payload": 1});
    let batch = json!({"events": (0..50).map(event).collect::<Vec<_>>()});
    let (status, answer) = app.call("POST", "/events/batch", Some(&key), Some(&batch)).await;
    assert_eq!(status, 422, "{answer}");
    let results = answer["results"].as_array().unwrap();
    let has_suggestion = |result: &Value| {
        let detail = result["problem"]["detail"].as_str().unwrap();
        assert!(detail.contains("invoice.paid"), "{detail}");
        detail.contains("did you mean `invoice.paid`?")
    };
    let suggestions: Vec<_> = results.iter().map(has_suggestion).collect();
    assert!(suggestions[..3].iter().all(|is_there| *is_there), "{suggestions:?}");
    assert!(suggestions[3..].iter().all(|is_there| !is_there), "{suggestions:?}");
    app.stop().await;
}

/// Catches: events from SQL of one application that wait for the long checks of another's.
#[tokio::test]
async fn long_checks_of_events_from_sql_are_passed_by_others() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &WITH_KEYS).await;
    let (heavy_id, heavy_key) = tenant(&app, "heavy", "manager").await;
    let (other_id, other_key) = tenant(&app, "other", "manager").await;
    assert_eq!(checked_type(&app, &heavy_key, HEAVY).await.0, 201);
    assert_eq!(checked_type(&app, &other_key, "^[a-z]+$").await.0, 201);
    let mut session = database.options.connect().await.unwrap();
    let mut publish = async |application: &str, text: &str, times: i32| {
        let publish = "select array_agg(publish('a.checked', json_build_object('text', $1::text), \
                       application => $2)) from generate_series(1, $3)";
        let ids: Vec<String> = sqlx::query_scalar(publish)
            .bind(text)
            .bind(application)
            .bind(times)
            .fetch_one(&mut session)
            .await
            .unwrap();
        ids
    };
    let heavy = publish(&heavy_id, &heavy_text(80_000), 6).await;
    let others = publish(&other_id, "abc", 3).await;
    let is_moved = async |key: &str, id: &str| {
        app.call("GET", &format!("/events/{id}"), Some(key), None).await.0 == 200
    };
    for id in &others {
        eventually("the other's event", async || is_moved(&other_key, id).await.then_some(()))
            .await;
    }
    assert!(!is_moved(&heavy_key, heavy.last().unwrap()).await, "it takes longer than that");
    for id in &heavy {
        eventually("the checked event", async || is_moved(&heavy_key, id).await.then_some(()))
            .await;
    }
    session.close().await.unwrap();
    app.stop().await;
}
