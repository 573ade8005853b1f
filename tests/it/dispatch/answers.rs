//! What a dispatch is answered with, when, and that nothing is sent twice or given up for it.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Notify};

use super::{complete, id_of, shown, to};
use crate::support::{
    Answer, Receiver, TestApp, TestDatabase, eventually,
    raw::{Misdeed, RawReceiver},
};

/// Catches: results in another order than the targets, more attempts than one, an answer that does not
/// wait, names that are not those of the contract.
#[tokio::test]
async fn one_answer_tells_what_became_of_each_target() {
    let app = TestApp::start().await;
    let good = Receiver::always(204).await;
    let bad = Receiver::always(500).await;
    let body = to(&json!([good.url("/a"), bad.url("/b"), {"url": good.url("/c")}]));
    let (status, answer) = app.post("/dispatch", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer.as_object().unwrap().len(), 2, "{answer}");
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for (result, path) in [(&results[0], "/a"), (&results[2], "/c")] {
        assert!(result["durationMs"].is_i64(), "{result}");
        let told = json!({"deliveryId": result["deliveryId"], "url": good.url(path),
            "status": "delivered", "code": 204, "durationMs": result["durationMs"]});
        assert_eq!(*result, told);
    }
    let error = json!({"class": "http_status", "message": "answered 500"});
    let told = json!({"deliveryId": results[1]["deliveryId"], "url": bad.url("/b"),
        "status": "failed", "code": 500,
        "durationMs": results[1]["durationMs"], "error": error});
    assert_eq!(results[1], told);

    let id = id_of(&answer);
    let deliveries = app.event(id).await["deliveries"].clone();
    for (result, delivery) in results.iter().zip(deliveries.as_array().unwrap()) {
        assert_eq!(result["deliveryId"], delivery["id"]);
    }
    let later = shown(&app, id).await;
    assert_eq!((&later["status"], &later["results"]), (&json!("failed"), &answer["results"]));
    let event = app.event(id).await;
    assert_eq!((&event["status"], &event["attempt_count"]), (&json!("dead"), &json!(3)));
    assert_eq!(event["type"], "invoice.paid");
    let (_, told) = app.get(&format!("/events/{id}/explain")).await;
    assert_eq!((&told["route"], told["data"].as_array().unwrap().len()), (&json!("targets"), 3));
    let request = &good.received()[0];
    assert_eq!(
        (request.header("webhook-id"), request.body.as_slice()),
        (id, &b"{\"amount\":120}"[..])
    );
    assert_eq!((good.count(), bad.count()), (2, 1));
    app.stop().await;
}

/// Catches: an answer that waits for more than it may, or for what nobody waits for.
#[tokio::test]
async fn what_takes_long_and_what_is_much_is_told_later() {
    let app = TestApp::with(&["--dispatch-wait=0.3", "--dispatch-inline-max=2"]).await;
    let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let slow = Receiver::start({
        let open = open.clone();
        move |_, _| {
            let wait = if open.load(std::sync::atomic::Ordering::SeqCst) { 0 } else { 900 };
            Answer::status(200).after(Duration::from_millis(wait))
        }
    })
    .await;
    let (status, answer) = app.post("/dispatch", &to(&json!([slow.url("/slow")]))).await;
    assert_eq!(status, 202, "{answer}");
    let told = json!([{"deliveryId": answer["results"][0]["deliveryId"], "url": slow.url("/slow"),
        "status": "pending", "code": null, "durationMs": null}]);
    assert_eq!(answer["results"], told);
    assert_eq!(complete(&app, id_of(&answer)).await["status"], "delivered");

    open.store(true, std::sync::atomic::Ordering::SeqCst);
    let many: Vec<_> = (0..3).map(|n| slow.url(&format!("/{n}"))).collect();
    let (status, answer) = app.post("/dispatch", &to(&json!(many))).await;
    assert_eq!(
        (status.as_u16(), answer["results"].as_array().unwrap().len()),
        (202, 3),
        "{answer}"
    );
    let later = complete(&app, id_of(&answer)).await;
    assert_eq!(later["status"], "delivered", "{later}");
    app.stop().await;
}

/// Catches: a policy that is not kept, or one that goes for targets that did not ask for it.
#[tokio::test]
async fn there_is_one_attempt_unless_more_are_asked_for() {
    let app = TestApp::start().await;
    let receiver =
        Receiver::start(|before, _| Answer::status(if before < 2 { 503 } else { 200 })).await;
    let mut body = to(&json!([receiver.url("/")]));
    body["retry"] = json!([0.05, 0.05]);
    let (status, answer) = app.post("/dispatch", &body).await;
    assert_eq!((status.as_u16(), &answer["results"][0]["status"]), (200, &json!("delivered")));
    assert_eq!(receiver.count(), 3);
    let failing = Receiver::always(503).await;
    let (_, answer) = app.post("/dispatch", &to(&json!([failing.url("/")]))).await;
    assert_eq!(answer["results"][0]["status"], "failed", "{answer}");
    assert_eq!(app.event(id_of(&answer)).await["attempt_count"], 1);
    app.stop().await;
}

/// Catches: an event that goes nowhere, or results that are not those of the subscriptions.
#[tokio::test]
async fn without_targets_it_goes_to_the_subscriptions_that_match() {
    let app = TestApp::start().await;
    let receiver = Receiver::always(200).await;
    let subscription = |path: &str, event_type: &str| json!({"target_url": receiver.url(path), "event_types": event_type});
    app.make("/subscriptions", subscription("/meant", "invoice.paid")).await;
    app.make("/subscriptions", subscription("/other", "user.created")).await;
    let body = json!({"event": "invoice.paid", "payload": 1});
    let (status, answer) = app.post("/dispatch", &body).await;
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[0]["url"]), (1, &json!(receiver.url("/meant"))));
    assert_eq!(results[0]["status"], "delivered");

    // What is parked is not waited for.
    let mut parked = subscription("/parked", "user.gone");
    parked["is_active"] = json!(false);
    app.make("/subscriptions", parked).await;
    let (status, answer) =
        app.post("/dispatch", &json!({"event": "user.gone", "payload": 1})).await;
    assert_eq!((status.as_u16(), &answer["results"][0]["status"]), (202, &json!("pending")));

    let (status, answer) = app.post("/dispatch", &json!({"event": "nobody", "payload": 1})).await;
    assert_eq!((status.as_u16(), &answer["results"]), (200, &json!([])));
    assert_eq!(shown(&app, id_of(&answer)).await["status"], "unrouted");
    app.stop().await;
}

async fn post_with(app: &TestApp, key: Option<&str>, body: &Value) -> (u16, Value) {
    let mut request = app.http.post(format!("{}/dispatch", app.base));
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let request = request.header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

/// Catches: a repeat that sends again, that does not wait while the first one is still under way, that
/// is told of another dispatch; a change that the fingerprint does not see.
#[tokio::test]
async fn a_repeat_sends_nothing_and_waits_for_the_same() {
    let app = TestApp::start().await;
    let (arrived, go) = (Arc::new(Notify::new()), Duration::from_millis(400));
    let receiver = Receiver::start({
        let arrived = arrived.clone();
        move |_, _| {
            arrived.notify_one();
            Answer::status(201).after(go)
        }
    })
    .await;
    let mut body = to(&json!([receiver.url("/")]));
    body["idempotencyKey"] = json!("run-1");
    let first = post_with(&app, None, &body);
    let second = async {
        // The first one is at the receiver by then.
        arrived.notified().await;
        let mut bare = body.clone();
        bare.as_object_mut().unwrap().remove("idempotencyKey");
        post_with(&app, Some("run-1"), &bare).await
    };
    let (first, second) = futures_util::future::join(first, second).await;
    assert_eq!(first.0, 200, "{}", first.1);
    assert_eq!(first.1["results"][0]["code"], 201);
    assert_eq!(second, first, "while it was under way");
    assert_eq!(post_with(&app, Some("run-1"), &body).await, first, "and when it was over");
    assert_eq!(receiver.count(), 1);

    let refused = |(status, problem): (u16, Value)| (status, problem["type"].clone());
    let differ = refused(post_with(&app, Some("run-2"), &body).await);
    assert_eq!(differ, (422, json!("/problems/invalid-request")));
    for (pointer, value) in [
        ("/targets/0", json!(receiver.url("/x"))),
        ("/targets/0", json!({"url": receiver.url("/"), "method": "PUT"})),
        ("/targets/0", json!({"url": receiver.url("/"), "headers": {"a": "b"}})),
        ("/payload", json!(2)),
    ] {
        let mut other = body.clone();
        *other.pointer_mut(pointer).unwrap() = value.clone();
        let reused = refused(post_with(&app, None, &other).await);
        assert_eq!(reused, (409, json!("/problems/idempotency-key-reused")), "{value}");
    }
    for (name, value) in [("headers", json!({"a": "b"})), ("retry", json!([1]))] {
        let mut other = body.clone();
        other[name] = value;
        assert_eq!(post_with(&app, None, &other).await.0, 409, "{name}");
    }
    assert_eq!(receiver.count(), 1);
    app.stop().await;
}

/// Catches: a dispatch that is dropped with the request that brought it.
#[tokio::test]
async fn who_hangs_up_cancels_nothing() {
    const CALLERS: usize = 40;
    let app = TestApp::start().await;
    let receiver = Receiver::always(200).await;
    let address = app.base.trim_start_matches("http://").to_owned();
    // Nothing can be stored for now: the first one hangs in the database, the others wait for it.
    let mut held = app.store.pool().begin().await.unwrap();
    sqlx::query("lock table event in exclusive mode").execute(&mut *held).await.unwrap();
    let mut streams = Vec::new();
    for n in 0..CALLERS {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let body = to(&json!([receiver.url(&format!("/{n}"))])).to_string();
        let head = format!(
            "POST /dispatch HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        streams.push(stream);
    }
    eventually("the first one hangs", async || {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_locks where not granted and relation = 'event'::regclass)",
        )
        .fetch_one(app.store.pool())
        .await
        .unwrap();
        waits.then_some(())
    })
    .await;
    // What came before is read by the time that these are answered.
    for _ in 0..3 {
        assert_eq!(app.get("/health").await.0, 200);
    }
    drop(streams);
    for _ in 0..3 {
        assert_eq!(app.get("/health").await.0, 200);
    }
    held.rollback().await.unwrap();
    eventually("all are delivered", async || {
        let (_, page) = app.get("/events?status=delivered&limit=100").await;
        (page["data"].as_array().unwrap().len() == CALLERS).then_some(())
    })
    .await;
    assert_eq!(receiver.count(), CALLERS);
    app.stop().await;
}

/// Catches: a process that only accepts and does not see what others have done.
#[tokio::test]
async fn a_process_that_only_accepts_answers_with_results_of_others() {
    let database = TestDatabase::new().await;
    let api = TestApp::on(database.clone(), &["--role=api"]).await;
    let worker = TestApp::on(database, &["--role=worker"]).await;
    let (good, bad) = (Receiver::always(200).await, Receiver::always(404).await);
    let body = to(&json!([good.url("/"), bad.url("/")]));
    let (status, answer) = api.post("/dispatch", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["results"][0]["status"], "delivered", "{answer}");
    assert_eq!(answer["results"][1]["code"], 404, "{answer}");
    api.stop().await;
    worker.stop().await;
}

/// Catches: a service that does not end because somebody waits, or that tells such a caller nothing.
#[tokio::test]
async fn who_waits_at_the_end_of_the_service_is_answered() {
    let app = TestApp::start().await;
    let receiver = RawReceiver::start(Misdeed::Hang).await;
    let request = app
        .http
        .post(format!("{}/dispatch", app.base))
        .header("content-type", "application/json")
        .body(to(&json!([receiver.url()])).to_string());
    let asking = async { request.send().await.unwrap() };
    let stopping = async {
        eventually("it is sent", async || (receiver.connections() > 0).then_some(())).await;
        app.stop().await;
    };
    let (answer, ()) = futures_util::future::join(asking, stopping).await;
    assert_eq!(answer.status(), 202);
}

/// Catches: a producer who names targets, refusals that store something, problems without a place.
#[tokio::test]
async fn what_is_refused_is_told_and_not_stored() {
    let app = TestApp::start().await;
    let target = "http://127.0.0.1:9/";
    for (body, problem, pointer) in [
        (json!({"payload": 1}), "invalid-request", "/event"),
        (json!({"event": "a"}), "invalid-request", "/payload"),
        (json!({"event": "a", "payload": 1, "url": target}), "invalid-request", ""),
        (to(&json!([target, {"url": target, "body": 1}])), "invalid-request", "/targets/1"),
        (
            to(&json!([target, {"url": target, "signatureKeyId": "k"}])),
            "unknown-signing-key",
            "/targets/1/signatureKeyId",
        ),
    ] {
        let (status, answer) = app.call("POST", "/dispatch", None, Some(&body)).await;
        assert_eq!((status, &answer["pointer"]), (422, &json!(pointer)), "{body}: {answer}");
        assert_eq!(answer["type"], format!("/problems/{problem}"), "{body}");
    }
    let (status, problem) = app.call("GET", "/dispatch/evt_1", None, None).await;
    assert_eq!((status, &problem["type"]), (404, &json!("/problems/event-not-found")));
    let (_, page) = app.get("/events").await;
    assert_eq!(page["data"], json!([]));
    app.stop().await;
}
