//! A CMS that misbehaves in ways that a real one cannot be asked for: a stand-in that keeps documents as
//! Payload does, and fails as it is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Answer, Receiver, TestApp, eventually};

/// What it does instead of what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// To everything.
    Status(u16),
    /// To everything, with a 200.
    Nonsense,
    /// To what is written of this event type.
    Refuses(&'static str, u16),
    /// It creates documents, and answers far too late.
    SlowToCreate,
    /// It finds nothing, as if another had just created what is there.
    Forgetful,
}

#[derive(Default)]
struct Documents {
    by_dispatch: BTreeMap<String, Value>,
    /// Method and status of each request.
    log: Vec<(String, u16)>,
}

struct StandIn {
    server: Receiver,
    fault: Arc<Mutex<Fault>>,
    documents: Arc<Mutex<Documents>>,
}

impl StandIn {
    async fn start(fault: Fault) -> Self {
        let (fault, documents) = (Arc::new(Mutex::new(fault)), Arc::<Mutex<Documents>>::default());
        let of_server = (fault.clone(), documents.clone());
        let server = Receiver::start(move |_, request| {
            assert_eq!(request.header("authorization"), "users API-Key k");
            let fault = *of_server.0.lock().unwrap();
            let mut documents = of_server.1.lock().unwrap();
            let answer = documents.answer(fault, &request.method, &request.path, &request.body);
            documents.log.push((request.method.clone(), answer.status));
            answer
        })
        .await;
        Self { server, fault, documents }
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// The service beside it.
    async fn app(&self) -> TestApp {
        let url = format!("--payload-url={}", self.server.url(""));
        TestApp::with(&[
            &url,
            "--payload-api-key=k",
            "--payload-subscriptions=",
            "--payload-timeout=1",
            "--max-attempts=1",
        ])
        .await
    }

    fn document(&self, id: &str) -> Option<Value> {
        self.documents.lock().unwrap().by_dispatch.get(id).cloned()
    }

    fn count(&self, method: &str, status: u16) -> usize {
        let documents = self.documents.lock().unwrap();
        documents.log.iter().filter(|one| **one == (method.to_owned(), status)).count()
    }

    async fn wait_for(&self, id: &str) -> Value {
        eventually("a document", async || self.document(id)).await
    }
}

impl Documents {
    fn answer(&mut self, fault: Fault, method: &str, path: &str, body: &[u8]) -> Answer {
        let json = |status: u16, body: Value| Answer::status(status).body(body.to_string());
        match fault {
            Fault::Status(status) => return json(status, json!({"errors": [{"message": "no"}]})),
            Fault::Nonsense => return Answer::status(200).body("<html>"),
            _ => {}
        }
        if method == "GET" {
            let docs: Vec<&Value> = self
                .by_dispatch
                .values()
                .filter(|one| path.contains(one["dispatchId"].as_str().unwrap()))
                .filter(|_| fault != Fault::Forgetful || path.matches("evt_").count() == 1)
                .collect();
            let page = json!({"docs": docs, "hasNextPage": false, "totalDocs": docs.len()});
            return json(200, page);
        }
        let mut fields: Value = serde_json::from_slice(body).unwrap();
        let id = fields["dispatchId"].as_str().unwrap().to_owned();
        if let Fault::Refuses(event_type, status) = fault
            && fields["event"] == event_type
        {
            return json(status, json!({"errors": [{"message": "not this one"}]}));
        }
        if method == "POST" {
            if self.by_dispatch.contains_key(&id) {
                return json(400, json!({"errors": [{"message": "Value must be unique"}]}));
            }
            fields["id"] = (self.by_dispatch.len() + 1).into();
            self.by_dispatch.insert(id, fields.clone());
            let delay = if fault == Fault::SlowToCreate { 3 } else { 0 };
            return json(201, json!({"doc": fields})).after(Duration::from_secs(delay));
        }
        let known = &self.by_dispatch[&id];
        assert!(path.contains(&format!("/{}?", known["id"])), "{path}");
        fields["id"] = known["id"].clone();
        self.by_dispatch.insert(id, fields.clone());
        json(200, json!({"doc": fields}))
    }
}

async fn again(app: &TestApp) -> i64 {
    sqlx::query_scalar("select count(*) from cms_log_again")
        .fetch_one(app.store.pool())
        .await
        .unwrap()
}

async fn make_due(app: &TestApp) {
    sqlx::query("update cms_log_again set due_at = now()").execute(app.store.pool()).await.unwrap();
}

async fn publish(app: &TestApp, target: &Receiver, event_type: &str) -> String {
    app.publish(json!({"type": event_type, "payload": 1, "target_url": target.url("/")})).await
}

/// Catches: results that are lost because the CMS does not let us in, is broken, or is something else.
#[tokio::test]
async fn a_cms_that_fails_delays_its_log_and_nothing_else() {
    let target = Receiver::always(200).await;
    for fault in [Fault::Status(401), Fault::Status(404), Fault::Status(500), Fault::Nonsense] {
        let cms = StandIn::start(fault).await;
        let app = cms.app().await;
        let id = publish(&app, &target, "a").await;
        app.wait_for(&id, "delivered").await;
        eventually("two tries", async || (cms.server.count() >= 2).then_some(())).await;
        assert_eq!(cms.document(&id), None, "{fault:?}");
        cms.set(Fault::None);
        assert_eq!(cms.wait_for(&id).await["targets"][0]["status"], "delivered");
        app.stop().await;
    }
}

/// Catches: one document that holds up all others, whether the CMS says that it is to blame or not;
/// one that is given up.
#[tokio::test]
async fn a_document_that_is_refused_holds_up_no_other() {
    let target = Receiver::always(200).await;
    for status in [400, 500] {
        let cms = StandIn::start(Fault::Refuses("bad", status)).await;
        let app = cms.app().await;
        let mut bad = Vec::new();
        let mut good = Vec::new();
        for _ in 0..15 {
            bad.push(publish(&app, &target, "bad").await);
            good.push(publish(&app, &target, "good").await);
        }
        for id in &good {
            cms.wait_for(id).await;
        }
        eventually("those stand aside", async || (again(&app).await == 15).then_some(())).await;
        let standing = app.store.cms_log_standing().await.unwrap();
        assert_eq!((standing.rows, standing.is_again_due), (0, false), "{status}");
        cms.set(Fault::None);
        make_due(&app).await;
        for id in &bad {
            cms.wait_for(id).await;
        }
        eventually("none stands aside", async || (again(&app).await == 0).then_some(())).await;
        app.stop().await;
    }
}

/// Catches: an answer that came too late, and a document that is there twice for it; a request that
/// comes through after a newer one, and is the last word.
#[tokio::test]
async fn a_request_that_was_given_up_is_made_sure_of() {
    let target = Receiver::always(200).await;
    let cms = StandIn::start(Fault::SlowToCreate).await;
    let app = cms.app().await;
    let id = publish(&app, &target, "a").await;
    cms.wait_for(&id).await;
    eventually("it is told again later", async || (again(&app).await == 1).then_some(())).await;
    cms.set(Fault::None);
    eventually("it is changed", async || (cms.count("PATCH", 200) == 1).then_some(())).await;
    assert_eq!(again(&app).await, 1, "the first request may still come through");
    // As if it came through now, with less than there is.
    cms.documents.lock().unwrap().by_dispatch.get_mut(&id).unwrap()["targets"] = json!([]);
    make_due(&app).await;
    eventually("it is right again", async || {
        let document = cms.document(&id)?;
        (document["targets"][0]["status"] == "delivered").then_some(())
    })
    .await;
    eventually("it is certain", async || (again(&app).await == 0).then_some(())).await;
    assert_eq!(cms.count("POST", 201), 1);
    app.stop().await;
}

/// Catches: a document that another process has just created, and that is refused for good.
#[tokio::test]
async fn a_document_that_is_there_after_all_is_changed() {
    let target = Receiver::always(500).await;
    let cms = StandIn::start(Fault::None).await;
    let app = cms.app().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(publish(&app, &target, "a").await);
    }
    for id in &ids {
        cms.wait_for(id).await;
    }
    cms.set(Fault::Forgetful);
    sqlx::query("insert into cms_log_queue (application_id, event_id) select application_id, event_id from event")
        .execute(app.store.pool())
        .await
        .unwrap();
    eventually("both are changed", async || (cms.count("PATCH", 200) >= 2).then_some(())).await;
    assert_eq!((cms.count("POST", 400), again(&app).await), (2, 0));
    app.stop().await;
}

/// Catches: a document that grows beyond any bound; a row of an event that is gone, for ever.
#[tokio::test]
async fn documents_are_bounded_and_what_is_gone_is_dropped() {
    let target = Receiver::always(200).await;
    let cms = StandIn::start(Fault::None).await;
    let app = cms.app().await;
    let id = publish(&app, &target, "a").await;
    cms.wait_for(&id).await;
    assert_eq!(cms.document(&id).unwrap().get("targetCount"), None);
    // As if it had gone to a thousand more.
    sqlx::query(
        "insert into delivery (delivery_id, event_id, application_id, lane_id, event_type, target_url,
                               state, reason, attempt_count, last_status, created_at)
         select overlay(delivery_id::text placing lpad(to_hex(n), 5, '0') from 32)::uuid, event_id,
                application_id, lane_id, event_type, target_url, 'cancelled', 'cancelled', 0, null,
                created_at
         from delivery cross join generate_series(1, 1005) as n
         on conflict do nothing",
    )
    .execute(app.store.pool())
    .await
    .unwrap();
    sqlx::query(
        "insert into cms_log_queue (application_id, event_id)
         select application_id, event_id from event
         union all select application_id, gen_random_uuid() from event",
    )
    .execute(app.store.pool())
    .await
    .unwrap();
    let document = eventually("it is changed", async || {
        cms.document(&id).filter(|document| document["targetCount"].is_number())
    })
    .await;
    assert_eq!(document["targets"].as_array().unwrap().len(), 1_000);
    let count = document["targetCount"].as_i64().unwrap();
    assert!((1_005..=1_006).contains(&count), "{count}");
    let cancelled =
        document["targets"].as_array().unwrap().iter().find(|one| one["code"].is_null());
    let cancelled = cancelled.unwrap();
    assert_eq!(
        (&cancelled["status"], &cancelled["error"]),
        (&json!("failed"), &json!("cancelled: it was cancelled, or its subscription was deleted"))
    );
    eventually("nothing waits", async || {
        (app.store.cms_log_standing().await.unwrap().rows == 0).then_some(())
    })
    .await;
    assert_eq!(again(&app).await, 0);
    app.stop().await;
}
