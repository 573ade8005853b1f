//! The log in a real Payload: the same as ours, whatever was down meanwhile.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Answer, Receiver, TestDatabase, eventually,
    payload::PayloadCms,
    process::{Process, free_port, on},
};

/// Dispatches and events in all.
const EVENTS: usize = 500;
/// What a page of the log in Payload has.
const PAGE: usize = 250;

/// A running dispatcher, and its receiver, which answers with the status that the path begins with.
struct Scene {
    service: Process,
    receiver: Receiver,
    http: reqwest::Client,
}

impl Scene {
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.service.base));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }

    /// A dispatch to one to three targets, an event to subscriptions, or one to a URL; tells its id.
    async fn publish(&self, number: usize) -> String {
        let url = |status: usize| self.receiver.url(&format!("/{status}/{number}"));
        let payload = json!({"number": number});
        let (path, body) = match number % 3 {
            0 => {
                let statuses = [200, 500, 404, 204].into_iter().cycle().skip(number);
                let targets: Vec<_> = statuses.take(1 + number % 4 % 3).map(url).collect();
                ("/dispatch", json!({"event": "job.done", "payload": payload, "targets": targets}))
            }
            1 => ("/events", json!({"type": "order.made", "payload": payload})),
            _ => {
                let status = if number.is_multiple_of(2) { 503 } else { 200 };
                ("/events", json!({"payload": payload, "target_url": url(status)}))
            }
        };
        let (status, answer) = self.call(Method::POST, path, Some(body)).await;
        assert!(matches!(status, 200 | 202), "{status} {answer}");
        let id = answer["dispatchId"].as_str().or(answer["id"].as_str());
        id.unwrap().to_owned()
    }

    /// What our log says of an event, as it should stand in Payload; `None` until all has ended.
    async fn ours(&self, id: &str) -> Option<Value> {
        let (_, told) = self.call(Method::GET, &format!("/dispatch/{id}"), None).await;
        let (_, event) = self.call(Method::GET, &format!("/events/{id}"), None).await;
        if told["status"] == "pending" {
            return None;
        }
        let targets: Vec<_> = told["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|result| {
                let error = &result["error"];
                let text = |name: &str| error[name].as_str().unwrap();
                let error =
                    error.is_object().then(|| format!("{}: {}", text("class"), text("message")));
                json!({"url": result["url"], "status": result["status"], "code": result["code"],
                       "durationMs": result["durationMs"], "error": error})
            })
            .collect();
        let created = DateTime::parse_from_rfc3339(event["created_at"].as_str().unwrap()).unwrap();
        Some(json!({
            "dispatchId": id, "event": event["type"], "targets": targets,
            "createdAt": created.to_utc().to_rfc3339_opts(SecondsFormat::Millis, true),
        }))
    }
}

/// All that Payload has, by the events' ids; fails if it has one twice.
async fn theirs(cms: &PayloadCms) -> BTreeMap<String, Value> {
    let mut documents = BTreeMap::new();
    for page in 1.. {
        let path = format!("/webhookDeliveries?depth=0&sort=id&limit={PAGE}&page={page}");
        let (status, body) = cms.call(Method::GET, &path, None).await;
        assert_eq!(status, 200, "{body}");
        for document in body["docs"].as_array().unwrap() {
            let field = |of: &Value, name: &str| of.get(name).cloned().unwrap_or_default();
            let targets: Vec<_> = document["targets"]
                .as_array()
                .unwrap()
                .iter()
                .map(|target| {
                    let names = ["url", "status", "code", "durationMs", "error"];
                    Value::Object(
                        names
                            .map(|name| (name.to_owned(), field(target, name)))
                            .into_iter()
                            .collect(),
                    )
                })
                .collect();
            let id = document["dispatchId"].as_str().unwrap().to_owned();
            let shown = json!({
                "dispatchId": id, "event": field(document, "event"), "targets": targets,
                "createdAt": document["createdAt"],
            });
            assert!(documents.insert(id, shown).is_none(), "there twice: {document}");
        }
        if body["hasNextPage"] != true {
            break;
        }
    }
    documents
}

/// Catches: results that are told to a CMS that is down and never again; those that only the killed
/// process knew of; documents that are there twice, or stay as they were at the first target.
#[tokio::test]
async fn the_log_there_is_ours_after_payload_was_down_and_the_dispatcher_killed() {
    let Some(mut cms) = PayloadCms::start().await else { return };
    let database = TestDatabase::new().await;
    let (database_url, cms_url) = (database.url(), cms.url());
    let more = [
        ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
        ("REQUIRE_HTTPS", "false"),
        ("MAX_ATTEMPTS", "2"),
        ("BACKOFF_BASE_SECONDS", "0.2"),
        ("WORKER_POLL_INTERVAL", "0.3"),
        ("DISPATCH_WAIT", "1"),
        // One origin answers all, and fails half of them.
        ("BREAKER_FAILURES", "0"),
        ("PAYLOAD_URL", &cms_url),
        ("PAYLOAD_API_KEY", cms.api_key()),
        ("PAYLOAD_SUBSCRIPTIONS", ""),
        // A killed process keeps its lease for some of these.
        ("PAYLOAD_TIMEOUT", "2"),
    ];
    let environment = [on(&database_url).as_slice(), &more].concat();
    let receiver = Receiver::start(|_, request| {
        Answer::status(request.path.split('/').nth(1).unwrap().parse().unwrap())
    })
    .await;
    let port = free_port().await;
    let service = Process::start(port, &environment).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut scene = Scene { service, receiver, http };
    for status in [200, 500] {
        let url = scene.receiver.url(&format!("/{status}/subscribed"));
        let body = json!({"target_url": url, "event_types": ["order.*"]});
        let (status, body) = scene.call(Method::POST, "/subscriptions", Some(body)).await;
        assert_eq!(status, 201, "{body}");
    }

    cms.stop().await;
    let mut ids = Vec::new();
    for number in 0..EVENTS / 2 {
        ids.push(scene.publish(number).await);
    }
    cms.start_again().await;
    // Killed while it tells what has waited.
    eventually("it tells", async || (theirs(&cms).await.len() > 20).then_some(())).await;
    let told = theirs(&cms).await.len();
    assert!(told < EVENTS / 2, "it was killed too late to show anything: {told}");
    scene.service.kill();
    scene.service = Process::start(port, &environment).await;
    for number in EVENTS / 2..EVENTS {
        ids.push(scene.publish(number).await);
    }

    let mut expected = BTreeMap::new();
    for id in &ids {
        let ours = eventually("all has ended", async || scene.ours(id).await).await;
        expected.insert(id.clone(), ours);
    }
    assert_eq!(expected.len(), EVENTS);
    let seen = eventually("the log there is ours", async || {
        let seen = theirs(&cms).await;
        expected.iter().all(|(id, ours)| seen.get(id) == Some(ours)).then_some(seen)
    })
    .await;
    assert_eq!(seen.len(), EVENTS, "there are others");
    let failed = expected.values().flat_map(|one| one["targets"].as_array().unwrap());
    assert!(failed.filter(|target| target["error"].is_string()).count() > EVENTS / 4);
    a_document_follows_its_targets(&scene, &cms).await;
}

/// It is there when the first has ended, and has the second when that has.
async fn a_document_follows_its_targets(scene: &Scene, cms: &PayloadCms) {
    let targets = [scene.receiver.url("/200"), scene.receiver.url("/500")];
    let body = json!({"event": "job.done", "payload": 1, "targets": targets, "retry": [3_600]});
    let (status, answer) = scene.call(Method::POST, "/dispatch", Some(body)).await;
    assert_eq!(status, 202, "{answer}");
    let id = answer["dispatchId"].as_str().unwrap();
    let count = |document: &Value| document["targets"].as_array().unwrap().len();
    eventually("the first target", async || {
        theirs(cms).await.remove(id).filter(|document| count(document) == 1)
    })
    .await;
    let (_, event) = scene.call(Method::GET, &format!("/events/{id}"), None).await;
    let mut deliveries = event["deliveries"].as_array().unwrap().iter();
    let waiting = deliveries.find(|delivery| delivery["state"] == "pending").unwrap();
    let path = format!("/deliveries/{}/cancel", waiting["id"].as_str().unwrap());
    let (status, answer) = scene.call(Method::POST, &path, None).await;
    assert_eq!(status, 200, "{answer}");
    let ours = scene.ours(id).await.expect("all has ended");
    assert_eq!(count(&ours), 2);
    eventually("both targets", async || {
        theirs(cms).await.remove(id).filter(|document| *document == ours)
    })
    .await;
}
