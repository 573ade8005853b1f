//! What the CMS is told of waits in the database: whatever ends a delivery puts it there, where a CMS
//! keeps the log.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use webhook_dispatcher::{
    domain::ids::DEFAULT_APPLICATION,
    store::{
        Store,
        applications::ApplicationName,
        cms_log::{Again, Standing},
    },
};

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually};

/// A CMS where nobody listens: what is to be told stays in the queue.
const DOWN: [&str; 3] =
    ["--payload-url=http://127.0.0.1:9", "--payload-api-key=k", "--payload-subscriptions="];

struct Scene {
    app: TestApp,
    receiver: Receiver,
}

impl Scene {
    async fn new(more: &[&str]) -> Self {
        let receiver = Receiver::start(|_, request| {
            Answer::status(request.path.trim_start_matches('/').parse().unwrap())
        })
        .await;
        let app = TestApp::with(&[&["--max-attempts=1"], more].concat()).await;
        Self { app, receiver }
    }

    fn pool(&self) -> &PgPool {
        self.app.store.pool()
    }

    /// How often an event is in the queue.
    async fn queued(&self, event: &str) -> i64 {
        let query = "select count(*) from cms_log_queue where 'evt_' || replace(event_id::text, '-', '') = $1";
        sqlx::query_scalar(query).bind(event).fetch_one(self.pool()).await.unwrap()
    }

    async fn all_queued(&self) -> i64 {
        sqlx::query_scalar("select count(*) from cms_log_queue")
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    async fn act(&self, method: &str, path: &str) {
        let (status, answer) = self.app.call(method, path, None, None).await;
        assert!(status < 300, "{method} {path}: {answer}");
    }

    /// A subscription to one type, as its uid says, that is answered with this status, and tried once
    /// more in an hour.
    async fn subscribe(&self, uid: &str, status: u16) -> String {
        let body = json!({"uid": uid, "event_types": uid, "retry": [3_600],
                          "target_url": self.receiver.url(&format!("/{status}"))});
        let made = self.app.make("/subscriptions", body).await;
        made["id"].as_str().unwrap().to_owned()
    }

    async fn publish(&self, event_type: &str) -> String {
        self.app.publish(json!({"type": event_type, "payload": 1})).await
    }

    /// The only delivery of an event.
    async fn delivery(&self, event: &str) -> Value {
        self.app.event(event).await["deliveries"][0].clone()
    }

    async fn wait_for_state(&self, event: &str, state: &str) -> String {
        let delivery = eventually(state, async || {
            Some(self.delivery(event).await).filter(|delivery| delivery["state"] == state)
        })
        .await;
        delivery["id"].as_str().unwrap().to_owned()
    }
}

/// Catches: an end of which the CMS never hears.
#[tokio::test]
async fn every_end_is_told() {
    let scene = Scene::new(&DOWN).await;
    let url = scene.receiver.url("/200");
    let body = json!({"event": "x", "payload": 1, "targets": [url, scene.receiver.url("/500")]});
    let (_, answer) = scene.app.call("POST", "/dispatch", None, Some(&body)).await;
    let dispatch = answer["dispatchId"].as_str().unwrap();
    assert!((1..=2).contains(&scene.queued(dispatch).await), "delivered and dead");

    // Sent again at somebody's word: also a failure, which shows another attempt.
    let dead = answer["results"][1]["url"].as_str().unwrap().to_owned();
    let event = scene.app.accept(&dead).await;
    let delivery = scene.wait_for_state(&event, "dead").await;
    assert_eq!(scene.queued(&event).await, 1, "dead");
    scene.act("POST", &format!("/deliveries/{delivery}/retry")).await;
    eventually("sent again", async || (scene.queued(&event).await == 2).then_some(())).await;

    scene.subscribe("cancelled", 500).await;
    let event = scene.publish("cancelled").await;
    eventually("it failed once", async || {
        (scene.delivery(&event).await["attempt_count"] == 1).then_some(())
    })
    .await;
    assert_eq!(scene.queued(&event).await, 0, "it has not ended");
    let delivery = scene.delivery(&event).await["id"].clone();
    scene.act("POST", &format!("/deliveries/{}/cancel", delivery.as_str().unwrap())).await;
    assert_eq!(scene.queued(&event).await, 1, "cancelled");

    for (uid, is_disabled) in [("deleted", false), ("deleted-parked", true), ("dropped", true)] {
        let id = scene.subscribe(uid, 500).await;
        if is_disabled {
            scene.act("POST", &format!("/subscriptions/{id}/disable")).await;
        }
        let event = scene.publish(uid).await;
        if is_disabled {
            scene.wait_for_state(&event, "parked").await;
        } else {
            eventually("it failed once", async || {
                (scene.delivery(&event).await["attempt_count"] == 1).then_some(())
            })
            .await;
        }
        if uid == "dropped" {
            let path = format!("/subscriptions/{id}/enable?parked=cancel");
            scene.act("POST", &path).await;
        } else {
            scene.act("DELETE", &format!("/subscriptions/{id}")).await;
        }
        scene.wait_for_state(&event, "cancelled").await;
        assert_eq!(scene.queued(&event).await, 1, "{uid}");
    }

    let id = scene.subscribe("expired", 500).await;
    scene.act("POST", &format!("/subscriptions/{id}/disable")).await;
    let event = scene.publish("expired").await;
    scene.wait_for_state(&event, "parked").await;
    sqlx::query("update delivery_parked set created_at = created_at - interval '11 days'")
        .execute(scene.pool())
        .await
        .unwrap();
    let store = scene.app.store.clone().telling_cms_of(&default());
    store.expire_parked(Duration::from_secs(864_000), 100).await.unwrap();
    assert_eq!(scene.queued(&event).await, 1, "expired");

    scene.subscribe("interrupted", 500).await;
    let event = scene.publish("interrupted").await;
    eventually("it failed once", async || {
        (scene.delivery(&event).await["attempt_count"] == 1).then_some(())
    })
    .await;
    sqlx::query("update delivery_queue set owner = -1, claim_number = 2, interruption_count = 19")
        .execute(scene.pool())
        .await
        .unwrap();
    store.release_all_orphans().await.unwrap();
    scene.wait_for_state(&event, "dead").await;
    assert_eq!(scene.queued(&event).await, 1, "interrupted");

    scene.subscribe("erased", 500).await;
    let event = scene.publish("erased").await;
    eventually("it failed once", async || {
        (scene.delivery(&event).await["attempt_count"] == 1).then_some(())
    })
    .await;
    let (status, body) = scene
        .app
        .call("POST", "/erasures", None, Some(&json!({"scope": "event", "event_id": event})))
        .await;
    assert_eq!(status, 202, "{body}");
    scene.wait_for_state(&event, "cancelled").await;
    assert_eq!(scene.queued(&event).await, 1, "erased");
}

/// Catches: a queue that grows where nobody reads it; another application's results in the CMS.
#[tokio::test]
async fn nothing_is_queued_without_a_cms_and_for_other_applications() {
    let other = ["--payload-application=acme"];
    let no_log = ["--payload-subscriptions=s", "--payload-deliveries="];
    for more in [Vec::new(), [&DOWN[..], &other].concat(), [&DOWN[..2], &no_log].concat()] {
        let scene = Scene::new(&more).await;
        let event = scene.app.accept(&scene.receiver.url("/200")).await;
        scene.app.wait_for(&event, "delivered").await;
        let event = scene.app.accept(&scene.receiver.url("/500")).await;
        let delivery = scene.wait_for_state(&event, "dead").await;
        scene.act("POST", &format!("/deliveries/{delivery}/retry")).await;
        eventually("sent again", async || {
            (scene.delivery(&event).await["attempt_count"] == 2).then_some(())
        })
        .await;
        assert_eq!(scene.all_queued().await, 0, "{more:?}");
        // The application is found by its uid from the moment on that it is made.
        if more.contains(&other[0]) {
            scene.app.make("/applications", json!({"uid": "acme", "name": "Acme"})).await;
            let body = json!({"payload": 1, "target_url": scene.receiver.url("/200"),
                              "application": "acme"});
            scene.app.publish(body).await;
            eventually("its result", async || (scene.all_queued().await == 1).then_some(())).await;
        }
    }
}

fn default() -> ApplicationName {
    ApplicationName::Id(DEFAULT_APPLICATION)
}

async fn add(store: &Store, age_days: i32) -> Uuid {
    sqlx::query_scalar(
        "insert into cms_log_queue (application_id, event_id, queued_at)
         values ($1, gen_random_uuid(), now() - $2 * interval '1 day') returning event_id",
    )
    .bind(DEFAULT_APPLICATION.uuid())
    .bind(age_days)
    .fetch_one(store.pool())
    .await
    .unwrap()
}

/// Catches: two processes that tell at a time; a lease that outlives its process for ever.
#[tokio::test]
async fn one_process_at_a_time_tells() {
    let store = TestDatabase::new().await.store();
    let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let lease = async |owner, seconds| {
        store.lease_cms_log(owner, Duration::from_secs(seconds)).await.unwrap()
    };
    assert!(lease(one, 3_600).await && lease(one, 3_600).await);
    assert!(!lease(other, 3_600).await);
    store.leave_cms_log(other).await.unwrap();
    assert!(!lease(other, 3_600).await, "it was not its own");
    store.leave_cms_log(one).await.unwrap();
    assert!(lease(other, 0).await);
    assert!(lease(one, 3_600).await, "the lease of the other has ended");
}

/// Catches: a queue that grows for ever while the CMS is down; young rows that go with the old ones;
/// old ones behind the first statement's.
#[tokio::test]
async fn what_has_waited_too_long_is_dropped() {
    let store = TestDatabase::new().await.store();
    for age_days in [9, 8, 8, 6] {
        add(&store, age_days).await;
    }
    let week = Duration::from_secs(7 * 86_400);
    assert_eq!(store.drop_old_cms_log(week, 2).await.unwrap(), 2);
    assert_eq!(store.drop_old_cms_log(week, 2).await.unwrap(), 1);
    let standing = store.cms_log_standing().await.unwrap();
    assert_eq!((standing.rows, standing.again), (1, 0));
    assert!((6.0..6.1).contains(&(standing.oldest_seconds / 86_400.0)), "{standing:?}");
}

/// Catches: rows that wait behind those that are told again; an event that is told twice in a step;
/// rows that came meanwhile and are taken for told.
#[tokio::test]
async fn what_is_told_again_shares_each_step() {
    let store = TestDatabase::new().await.store();
    let mut events = Vec::new();
    for _ in 0..4 {
        events.push(add(&store, 0).await);
    }
    let due = store.next_of_cms_log(4).await.unwrap();
    let found: Vec<Uuid> = due.iter().map(|one| one.event.uuid()).collect();
    assert_eq!(found, events, "oldest first");
    let again: Vec<Again> = due
        .iter()
        .map(|one| Again {
            event: one.event,
            application: one.application,
            tries: 1,
            after: Duration::ZERO,
        })
        .collect();
    store.note_cms_log(&due, &again).await.unwrap();
    let standing = store.cms_log_standing().await.unwrap();
    assert_eq!(standing, Standing { rows: 0, oldest_seconds: 0.0, again: 4, is_again_due: true });

    sqlx::query(
        "insert into cms_log_queue (application_id, event_id) select $1, unnest($2::uuid[])",
    )
    .bind(DEFAULT_APPLICATION.uuid())
    .bind(vec![events[0], events[0], Uuid::from_u128(1)])
    .execute(store.pool())
    .await
    .unwrap();
    let due = store.next_of_cms_log(4).await.unwrap();
    let shown: Vec<_> = due.iter().map(|one| (one.tries, one.places.len())).collect();
    assert_eq!(shown.len(), 3, "two of each, and one is both: {due:?}");
    assert!(shown.contains(&(Some(1), 2)) && shown.contains(&(None, 1)), "{due:?}");
    add(&store, 0).await;
    store.note_cms_log(&due, &[]).await.unwrap();
    let standing = store.cms_log_standing().await.unwrap();
    assert_eq!((standing.rows, standing.again), (1, 2));
}
