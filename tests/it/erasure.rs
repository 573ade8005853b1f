//! What is taken away for good: by request, and payloads after their time.

use std::time::Duration;

use serde_json::{Value, json};
use webhook_dispatcher::{
    domain::{ApplicationId, ErasureId, Subject, erasure::Erasable, ids::DEFAULT_APPLICATION},
    store::{Store, erasures::NewErasure},
};

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually};

/// What is told of somebody, and must not be found any more.
const SECRET: &str = "Ada-Lovelace";
const WHO: &str = "customer 4711";
/// By `printf 'customer 4711' | sha256sum`.
const WHO_SHA256: &str = "b7d0e442cb4f52295736ca320f5b4af2b857bd95a09492618848cd0018ed6041";

/// An event that tells of somebody wherever it can.
fn telling(event_type: &str, subject: &str, secret: &str) -> Value {
    json!({
        "type": event_type, "subject": subject, "payload": {"name": secret},
        "metadata": {"of": secret}, "idempotency_key": format!("{secret} {event_type}"),
    })
}

async fn erase(app: &TestApp, body: Value) -> String {
    let (status, answer) = app.call("POST", "/erasures", None, Some(&body)).await;
    assert_eq!((status, &answer["state"]), (202, &json!("running")), "{answer}");
    answer["id"].as_str().unwrap().to_owned()
}

async fn receipt(app: &TestApp, id: &str) -> Value {
    eventually("an erasure that is done", async || {
        let (status, shown) = app.get(&format!("/erasures/{id}")).await;
        assert_eq!(status, 200, "{shown}");
        (shown["state"] == "completed").then_some(shown)
    })
    .await
}

async fn count(store: &Store, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(store.pool()).await.unwrap()
}

/// A receiver that tells in its answer whom it was about, and fails where the path says so.
async fn telltale() -> Receiver {
    Receiver::start(|_, request| {
        let status = if request.path == "/fails" { 503 } else { 200 };
        let body = String::from_utf8_lossy(&request.body).into_owned();
        Answer::status(status).header("x-told", body.clone()).body(body)
    })
    .await
}

/// One subscription that is well, one that fails and waits for an hour, one that is disabled.
async fn subscribe_three(app: &TestApp, receiver: &Receiver) {
    for (uid, path, active) in [("well", "/", true), ("fails", "/fails", true), ("off", "/", false)]
    {
        let body = json!({"uid": uid, "target_url": receiver.url(path), "event_types": "*",
            "retry": [3600], "is_active": active, "payload_format": "raw"});
        app.make("/subscriptions", body).await;
    }
}

/// Waits until one is delivered, one has failed once, and one is parked.
async fn settled(app: &TestApp, event: &str) -> Value {
    eventually("an event of which all was tried", async || {
        let event = app.event(event).await;
        let deliveries = event["deliveries"].as_array().unwrap();
        let is = |state: &str, attempts: i64| {
            deliveries.iter().any(|one| one["state"] == state && one["attempt_count"] == attempts)
        };
        (is("delivered", 1) && is("pending", 1) && is("parked", 0)).then_some(event.clone())
    })
    .await
}

/// Catches: a place where something of the subject stays (payload, metadata, headers, answers, keys, the
/// receipt itself); a delivery that still waits; another's data, or another application's, that is taken
/// too; counts that are wrong.
#[tokio::test]
async fn nothing_of_a_subject_is_left_and_all_of_others() {
    let receiver = telltale().await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    subscribe_three(&app, &receiver).await;
    let told = app.publish(telling("a", WHO, SECRET)).await;
    let unrouted = json!({"target_url": receiver.url("/"), "payload": SECRET, "subject": WHO});
    let direct = app.publish(unrouted).await;
    let others = app.publish(telling("a", "customer 42", "Charles-Babbage")).await;
    app.make("/applications", json!({"uid": "other"})).await;
    let body =
        json!({"application": "other", "type": "a", "subject": WHO, "payload": "Emmy-Noether"});
    app.publish(body).await;
    settled(&app, &told).await;
    app.wait_for(&direct, "delivered").await;
    let others_before = settled(&app, &others).await;
    let dump = database.dump().await;
    assert!(dump.matches(SECRET).count() > 8, "{}", dump.matches(SECRET).count());

    let id = erase(&app, json!({"scope": "subject", "subject": WHO})).await;
    let shown = receipt(&app, &id).await;
    assert_eq!(
        shown["erased"],
        json!({"events": 2, "payloads": 2, "attempts": 3, "deliveries_cancelled": 2, "idempotency_keys": 1})
    );
    assert_eq!((&shown["subject"], &shown["subject_sha256"]), (&Value::Null, &json!(WHO_SHA256)));
    assert!(shown["ended_at"].is_string(), "{shown}");
    let dump = database.dump().await;
    assert!(!dump.contains(SECRET), "something is left");
    let lines: Vec<_> = dump.lines().filter(|line| line.contains(WHO)).collect();
    // A table and its day are both dumped.
    assert_eq!(lines, [WHO; 2], "but for the other application's event");
    assert!(dump.contains("Emmy-Noether") && dump.contains("Charles-Babbage"));
    assert_eq!(app.event(&others).await, others_before);

    // That it was, and what came of it, is still told.
    let event = app.event(&told).await;
    assert_eq!((&event["status"], &event["type"]), (&json!("delivered"), &json!("a")));
    let states: Vec<_> =
        event["deliveries"].as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["delivered", "cancelled", "cancelled"]);
    let delivery = event["deliveries"][0]["id"].as_str().unwrap();
    let (_, log) = app.get(&format!("/deliveries/{delivery}")).await;
    assert_eq!(log["attempts"][0]["response"]["status"], 200, "{log}");
    let (status, problem) =
        app.call("POST", &format!("/deliveries/{delivery}/retry"), None, None).await;
    assert_eq!(status, 409, "{problem}");
    let (status, _) = app.get(&format!("/events/{told}/explain")).await;
    assert_eq!(status, 200);
    // Its key is free again, and so what is published with it is another event.
    assert_ne!(app.publish(telling("a", WHO, SECRET)).await, told);
    let (_, page) = app.get("/erasures").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1, "{page}");
    let (status, _) = app.get(&format!("/erasures/{id}?application=other")).await;
    assert_eq!(status, 404);
    app.stop().await;
}

/// Catches: an erasure of one event that takes others; one of an application that leaves some, takes what
/// came afterwards, or another's.
#[tokio::test]
async fn one_event_or_all_of_an_application() {
    let receiver = telltale().await;
    let app = TestApp::start().await;
    subscribe_three(&app, &receiver).await;
    let first = app.publish(telling("a", WHO, "one")).await;
    let second = app.publish(telling("b", WHO, "two")).await;
    for event in [&first, &second] {
        settled(&app, event).await;
    }
    app.make("/applications", json!({"uid": "other"})).await;
    let body = json!({"application": "other", "type": "a", "payload": "theirs"});
    app.publish(body).await;
    let payloads = "select count(*) from event_payload";
    assert_eq!(count(&app.store, payloads).await, 3);
    let id = erase(&app, json!({"scope": "event", "event_id": first})).await;
    let shown = receipt(&app, &id).await;
    assert_eq!((&shown["event_id"], &shown["erased"]["events"]), (&json!(first), &json!(1)));
    assert_eq!(count(&app.store, payloads).await, 2);
    assert_eq!(app.event(&second).await["subject"], WHO);
    // Once more, and there is nothing to be done.
    let id = erase(&app, json!({"scope": "event", "event_id": first})).await;
    let shown = receipt(&app, &id).await;
    assert_eq!(
        (&shown["erased"]["payloads"], &shown["erased"]["attempts"]),
        (&json!(0), &json!(0))
    );

    let id = erase(&app, json!({"scope": "application"})).await;
    let shown = receipt(&app, &id).await;
    assert_eq!((&shown["erased"]["events"], &shown["erased"]["payloads"]), (&json!(2), &json!(1)));
    assert_eq!(count(&app.store, payloads).await, 1);
    let after = app.publish(telling("a", WHO, "three")).await;
    settled(&app, &after).await;
    assert_eq!(count(&app.store, payloads).await, 2);
    app.stop().await;
}

/// Catches: an erasure that is done while a delivery is being sent, whose answer is then kept.
#[tokio::test]
async fn what_is_being_sent_is_waited_for() {
    let receiver = Receiver::start(|_, _| {
        Answer::status(503).body(SECRET).after(Duration::from_millis(2_500))
    })
    .await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    let body = json!({"target_url": receiver.url("/"), "event_types": "a", "retry": [3600]});
    app.make("/subscriptions", body).await;
    let event = app.publish(telling("a", WHO, SECRET)).await;
    eventually("a request under way", async || (receiver.count() == 1).then_some(())).await;
    let id = erase(&app, json!({"scope": "subject", "subject": WHO})).await;
    // Its payload is gone at once; the rest when the answer is there.
    eventually("a payload that is gone", async || {
        (count(&app.store, "select count(*) from event_payload").await == 0).then_some(())
    })
    .await;
    let (_, shown) = app.get(&format!("/erasures/{id}")).await;
    assert_eq!(shown["state"], "running", "{shown}");
    let shown = receipt(&app, &id).await;
    assert_eq!(
        (&shown["erased"]["attempts"], &shown["erased"]["deliveries_cancelled"]),
        (&json!(1), &json!(1)),
        "{shown}"
    );
    let shown = app.event(&event).await;
    assert_eq!((&shown["status"], &shown["attempt_count"]), (&json!("cancelled"), &json!(1)));
    assert!(!database.dump().await.contains(SECRET));
    app.stop().await;
}

async fn ask(store: &Store, of: &Erasable) -> ErasureId {
    let unix_ms = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap();
    let id = ErasureId::new(unix_ms, rand::random());
    let new = NewErasure { id, application: DEFAULT_APPLICATION, of, unix_ms };
    store.create_erasure(&new, None).await.unwrap();
    id
}

/// Catches: a step without a bound; one that begins anew after a crash, or leaves some out; two processes
/// that make the same step; what is on its way from SQL, and becomes an event afterwards.
#[tokio::test]
async fn it_goes_on_where_it_was_and_in_bounded_steps() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &[]).await;
    let item = json!({"type": "a", "payload": 1, "subject": WHO});
    let (status, answer) =
        app.call("POST", "/events/batch", None, Some(&json!({"events": vec![item; 450]}))).await;
    assert_eq!(status, 202, "{answer}");
    app.stop().await;
    let store = database.store();
    for (subject, idempotency_key) in [(WHO, "gone"), ("customer 42", "stays")] {
        sqlx::query("select publish('a', '1', subject => $1, idempotency_key => $2)")
            .bind(subject)
            .bind(idempotency_key)
            .execute(store.pool())
            .await
            .unwrap();
    }
    let id = ask(&store, &Erasable::Subject(Subject::parse(WHO).unwrap())).await;
    let (one, other) = tokio::join!(store.step_erasure(), store.step_erasure());
    let (one, other) = (one.unwrap(), other.unwrap());
    // Whoever came second found it taken, or made the second step.
    let first = one.as_ref().or(other.as_ref()).unwrap();
    assert!(!first.is_done());
    let counts = [&one, &other].map(|step| step.as_ref().map_or(0, |row| row.event_count));
    assert!([[201, 0], [0, 201], [201, 401], [401, 201]].contains(&counts), "{counts:?}");
    assert_eq!(count(&store, "select count(*) from outbox").await, 1);
    assert_eq!(count(&store, "select count(*) from idempotency_key").await, 1);
    store.close().await;

    let store = database.store();
    let mut steps = 0;
    let done = loop {
        let row = store.step_erasure().await.unwrap().unwrap();
        steps += 1;
        if row.is_done() {
            break row;
        }
    };
    assert!((2..=3).contains(&steps), "{steps}");
    assert_eq!((done.id(), done.event_count, done.payload_count), (id, 451, 451));
    assert!(store.step_erasure().await.unwrap().is_none());
    assert_eq!(count(&store, "select count(*) from event where subject is not null").await, 0);
    store.close().await;
}

/// Catches: a body that erases more, or less, than it says.
#[tokio::test]
async fn a_body_that_is_not_clear_erases_nothing() {
    let app = TestApp::start().await;
    let event = app.publish(json!({"type": "a", "payload": 1})).await;
    let some = "evt_0192d4e012347abc8def0123456789ab";
    for (body, status, pointer) in [
        (json!({}), 422, "/scope"),
        (json!({"subject": WHO}), 422, "/scope"),
        (json!({"scope": "all"}), 422, "/scope"),
        (json!({"scope": "subject"}), 422, "/subject"),
        (json!({"scope": "subject", "subject": ""}), 422, "/subject"),
        (json!({"scope": "subject", "subject": WHO, "event_id": event}), 422, "/event_id"),
        (json!({"scope": "event"}), 422, "/event_id"),
        (json!({"scope": "event", "event_id": "dlv_1"}), 422, "/event_id"),
        (json!({"scope": "event", "event_id": event, "subject": WHO}), 422, "/subject"),
        (json!({"scope": "application", "subject": WHO}), 422, "/subject"),
        (json!({"scope": "application", "subjects": WHO}), 422, ""),
        (json!({"scope": "event", "event_id": some}), 404, ""),
    ] {
        let (answered, problem) = app.call("POST", "/erasures", None, Some(&body)).await;
        assert_eq!(answered, status, "{body}: {problem}");
        if status == 422 {
            assert_eq!(problem["pointer"], pointer, "{body}: {problem}");
        }
    }
    assert_eq!(count(&app.store, "select count(*) from erasure").await, 0);
    app.stop().await;
}

/// Catches: payloads of other applications, or younger ones, that are dropped; old ones that stay; what
/// waits, and would be sent without its payload; a time that the instance does not keep.
#[tokio::test]
async fn an_application_may_keep_payloads_for_less_time() {
    let receiver = telltale().await;
    let app = TestApp::start().await;
    let days = |app: &Value| app["payload_retention_days"].clone();
    let made =
        app.make("/applications", json!({"uid": "brief", "payload_retention_days": 2})).await;
    assert_eq!(days(&made), 2);
    app.make("/applications", json!({"uid": "long"})).await;
    for days in [json!(0), json!(31), json!(1.5), json!("2")] {
        let body = json!({"payload_retention_days": days});
        let (status, problem) = app.call("PATCH", "/applications/brief", None, Some(&body)).await;
        let pointer = &problem["pointer"];
        assert_eq!((status, pointer), (422, &json!("/payload_retention_days")), "{problem}");
    }
    for application in ["brief", "long"] {
        let body =
            json!({"target_url": receiver.url("/fails"), "event_types": "a", "retry": [3600]});
        app.make(&format!("/subscriptions?application={application}"), body).await;
        for _ in 0..2 {
            app.publish(json!({"application": application, "type": "a", "payload": SECRET})).await;
        }
    }
    eventually("four failures", async || (receiver.count() == 4).then_some(())).await;
    eventually("four recorded failures", async || {
        (count(&app.store, "select count(*) from attempt").await == 4).then_some(())
    })
    .await;
    let brief: ApplicationId = made["id"].as_str().unwrap().parse().unwrap();
    let step = async || app.store.step_payload_retention(brief).await.unwrap();
    assert_eq!((step().await.payloads, step().await.is_done), (0, true));
    // As if time had passed: the days are counted in the database.
    sqlx::query("update payload_retention set days = 0")
        .execute(app.store.pool())
        .await
        .unwrap_err();
    sqlx::query("alter table payload_retention drop constraint payload_retention_days_positive")
        .execute(app.store.pool())
        .await
        .unwrap();
    sqlx::query("update payload_retention set days = 0").execute(app.store.pool()).await.unwrap();
    let dropped = step().await;
    assert_eq!((dropped.payloads, dropped.expired, dropped.is_done), (2, 2, true));
    let (_, page) = app.get("/deliveries?application=brief").await;
    for one in page["data"].as_array().unwrap() {
        assert_eq!((&one["state"], &one["reason"]), (&json!("dead"), &json!("expired")), "{one}");
    }
    let (_, page) = app.get("/deliveries?application=long&state=pending").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 2, "{page}");
    assert_eq!(count(&app.store, "select count(*) from event_payload").await, 2);
    // The next step looks at what came since, and at nothing twice.
    app.publish(json!({"application": "brief", "type": "b", "payload": 1})).await;
    // Ids may be ahead of the database's clock by a moment.
    eventually("the next payload", async || (step().await.payloads == 1).then_some(())).await;
    assert_eq!(step().await.payloads, 0);

    let body = json!({"payload_retention_days": null});
    let (status, shown) = app.call("PATCH", "/applications/brief", None, Some(&body)).await;
    assert_eq!((status, days(&shown)), (200, Value::Null));
    app.publish(json!({"application": "brief", "type": "b", "payload": 1})).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(step().await.payloads, 0);
    app.stop().await;
}
