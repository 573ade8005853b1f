//! A CMS that is down, or answers nonsense, changes nothing; what is missing in a list is not gone.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::ConnectOptions;

use super::{all, following, kept};
use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually, payload::PayloadCms};

/// How long a list is on its way that is long on its way.
const LONG: Duration = Duration::from_secs(3);

/// What the stand-in answers: to a list, and to a document by its id.
#[derive(Clone)]
struct Says {
    list: Vec<Answer>,
    document: Answer,
    me: Answer,
}

fn found(body: &Value) -> Answer {
    Answer::status(200).header("content-type", "application/json").body(body.to_string())
}

fn not_found() -> Answer {
    Answer::status(404).body(json!({"errors": [{"message": "Not Found"}]}).to_string())
}

fn me() -> Answer {
    found(&json!({"user": {"id": 1}}))
}

fn document(id: u32, time: &str) -> Value {
    json!({"id": id, "name": format!("{id}"), "url": format!("http://127.0.0.1:9/{time}"),
           "events": ["a"], "updatedAt": format!("2026-01-01T00:00:0{time}.000Z")})
}

fn page(documents: &[Value], has_next: bool) -> Answer {
    found(&json!({"docs": documents, "hasNextPage": has_next, "totalDocs": documents.len()}))
}

/// A stand-in for the CMS, and what it says from the next request on.
async fn stand_in(says: Says) -> (Receiver, Arc<Mutex<Says>>) {
    let says = Arc::new(Mutex::new(says));
    let script = says.clone();
    let cms = Receiver::start(move |_, request| {
        let says = script.lock().unwrap();
        if request.path == "/api/users/me" {
            return says.me.clone();
        }
        let Some((_, query)) = request.path.split_once('?') else { return Answer::status(500) };
        if !request.path.starts_with("/api/webhookSubscriptions?") {
            return says.document.clone();
        }
        let page = query.split('&').find_map(|part| part.strip_prefix("page=")).unwrap();
        says.list.get(page.parse::<usize>().unwrap() - 1).cloned().unwrap_or(Answer::status(500))
    })
    .await;
    (cms, says)
}

/// Waits until so many looks have begun, whatever they saw.
async fn looked(cms: &Receiver, times: usize) {
    let begun = || {
        let received = cms.received();
        received.iter().filter(|request| request.path == "/api/users/me").count()
    };
    let until = begun() + times;
    eventually("looks", async || (begun() >= until).then_some(())).await;
}

async fn stays(app: &TestApp, before: &[Value], what: &str) {
    assert_eq!(all(app).await, before, "{what}");
    let (_, needy) = app.get("/subscriptions?attention=true").await;
    assert_eq!(needy, json!({"data": [], "next_cursor": null}), "{what}");
}

#[tokio::test]
async fn nonsense_changes_nothing() {
    let both = [document(1, "1"), document(2, "1")];
    let good = Says { list: vec![page(&both, false)], document: Answer::status(500), me: me() };
    let (cms, says) = stand_in(good.clone()).await;
    let app = following(&cms.url(""), "1").await;
    eventually("both", async || (all(&app).await.len() == 2).then_some(())).await;
    let before = all(&app).await;

    let changed = [document(1, "2"), document(3, "2")];
    let mut endless = json!({"docs": changed, "totalDocs": 2});
    endless["hasNextPage"] = json!("maybe");
    let list = |answers: Vec<Answer>| Says { list: answers, document: not_found(), me: me() };
    let cases = [
        ("an error", list(vec![Answer::status(500)])),
        ("a login page", list(vec![Answer::status(200).body("<html>")])),
        ("half an answer", list(vec![Answer::status(200).body(r#"{"docs": [{"id": 1"#)])),
        ("another shape", list(vec![found(&json!([document(1, "2")]))])),
        ("no documents", list(vec![found(&json!({"hasNextPage": false, "totalDocs": 0}))])),
        ("no word of a next page", list(vec![found(&json!({"docs": changed}))])),
        ("another word of it", list(vec![found(&endless)])),
        ("no ids", list(vec![page(&[json!({"url": "http://127.0.0.1:9/"})], false)])),
        ("no times", list(vec![page(&[json!({"id": 1, "url": "http://127.0.0.1:9/"})], false)])),
        ("a second page that fails", list(vec![page(&changed, true), Answer::status(502)])),
        ("a redirect", list(vec![Answer::status(302).header("location", "/login")])),
    ];
    for (what, nonsense) in cases {
        *says.lock().unwrap() = nonsense;
        // The second one begins when the first one is over.
        looked(&cms, 2).await;
        stays(&app, &before, what).await;
    }
    // That it would have changed something: it is the first page of the last but one.
    *says.lock().unwrap() = list(vec![page(&changed, false)]);
    eventually("changed", async || {
        let gone = kept(&app, "2").await.is_none();
        (gone && kept(&app, "3").await.is_some()).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn what_is_missing_in_a_list_is_gone_only_if_it_is_not_there() {
    let one = document(1, "1");
    let good = Says {
        list: vec![page(std::slice::from_ref(&one), false)],
        document: found(&one),
        me: me(),
    };
    let (cms, says) = stand_in(good).await;
    let app = following(&cms.url(""), "1").await;
    eventually("made", async || kept(&app, "1").await).await;
    let before = all(&app).await;
    let missing = |document: Answer| Says { list: vec![page(&[], false)], document, me: me() };
    for (what, document) in [
        ("it is there", found(&one)),
        ("nobody knows", Answer::status(500)),
        ("no access", Answer::status(403).body(r#"{"errors": [{"message": "no"}]}"#)),
        ("another server's 404", Answer::status(404).body("<html>")),
    ] {
        *says.lock().unwrap() = missing(document);
        looked(&cms, 2).await;
        stays(&app, &before, what).await;
    }
    // To somebody whom it does not know it may show nothing at all.
    let unknown = found(&json!({"user": null, "message": "Account"}));
    *says.lock().unwrap() = Says { me: unknown, ..missing(not_found()) };
    looked(&cms, 2).await;
    stays(&app, &before, "an unknown key").await;
    *says.lock().unwrap() = missing(not_found());
    eventually("removed", async || all(&app).await.is_empty().then_some(())).await;
    app.stop().await;
}

#[tokio::test]
async fn a_payload_that_is_down_changes_nothing() {
    let Some(mut cms) = PayloadCms::start().await else { return };
    let id = super::make(&cms, &super::document("orders", "http://127.0.0.1:9/")).await;
    let database = TestDatabase::new().await;
    let flags = super::flags(&cms.url(), "1");
    let app = TestApp::on(database.clone(), &flags.each_ref().map(String::as_str)).await;
    let before = eventually("made", async || kept(&app, &id).await).await;
    cms.stop().await;
    let (mut connection, mut looks) = (database.options.connect().await.unwrap(), HashSet::new());
    eventually("looks that failed", async || {
        let ended_at: DateTime<Utc> = sqlx::query_scalar("select held_until from cms_look")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        looks.insert(ended_at);
        (looks.len() > 6).then_some(())
    })
    .await;
    assert_eq!(kept(&app, &id).await.unwrap(), before);
    cms.start_again().await;
    super::change(&cms, &id, json!({"isActive": false})).await;
    eventually("followed again", async || {
        kept(&app, &id).await.filter(|now| now["is_active"] == false)
    })
    .await;
    app.stop().await;
}

/// Catches: a list that was asked for before a change, and comes in after it, undoing the change.
#[tokio::test]
async fn what_was_read_earlier_does_not_undo_what_was_read_later() {
    let (old, new) = (document(1, "1"), document(1, "2"));
    let list = vec![page(std::slice::from_ref(&old), false)];
    let (cms, says) = stand_in(Says { list, document: found(&new), me: me() }).await;
    let app = following(&cms.url(""), "1").await;
    eventually("made", async || kept(&app, "1").await).await;
    // From now on a list is long on its way.
    let late = page(
        &[json!({"id": 1, "name": "late", "url": "http://127.0.0.1:9/late",
                             "events": ["a"], "updatedAt": "2026-01-01T00:00:03.000Z"})],
        false,
    );
    says.lock().unwrap().list = vec![late.after(LONG)];
    let lists = || {
        let received = cms.received();
        received.iter().filter(|request| request.path.contains("page=1&")).count()
    };
    let before = lists();
    eventually("a list is asked for", async || (lists() > before).then_some(())).await;
    let told = json!({"id": 1, "updatedAt": new["updatedAt"]});
    let (status, _) = app.call("POST", "/payload/changes", None, Some(&told)).await;
    assert_eq!(status, 202);
    // No later list mends what the late one does.
    says.lock().unwrap().list = vec![Answer::status(500)];
    let is_new = async || {
        let kept = kept(&app, "1").await.unwrap();
        assert_ne!(kept["description"], "late");
        kept["target_url"] == new["url"]
    };
    eventually("the change is seen", async || is_new().await.then_some(())).await;
    looked(&cms, 2).await;
    assert!(is_new().await, "it is as it was read last");
    app.stop().await;
}

/// Catches: a change that is told of before it is committed, and looked for once.
#[tokio::test]
async fn a_change_is_waited_for_until_it_is_committed() {
    let (old, new) = (document(1, "1"), document(1, "2"));
    let list = vec![page(&[], false)];
    let (cms, says) = stand_in(Says { list, document: not_found(), me: me() }).await;
    let app = following(&cms.url(""), "3600").await;
    looked(&cms, 1).await;
    let asked = || {
        let received = cms.received();
        received.iter().filter(|request| request.path.contains("/webhookSubscriptions/1")).count()
    };
    let waits = async |told: Value| {
        let until = asked() + 3;
        let (status, _) = app.call("POST", "/payload/changes", None, Some(&told)).await;
        assert_eq!(status, 202);
        eventually("it looks again", async || (asked() >= until).then_some(())).await;
    };
    waits(json!({"id": 1, "updatedAt": old["updatedAt"]})).await;
    says.lock().unwrap().document = found(&old);
    eventually("made", async || kept(&app, "1").await).await;
    waits(json!({"id": 1, "updatedAt": new["updatedAt"]})).await;
    says.lock().unwrap().document = found(&new);
    eventually("changed", async || {
        kept(&app, "1").await.filter(|now| now["target_url"] == new["url"])
    })
    .await;
    waits(json!({"id": 1, "updatedAt": new["updatedAt"], "deleted": true})).await;
    says.lock().unwrap().document = not_found();
    eventually("removed", async || kept(&app, "1").await.is_none().then_some(())).await;
    app.stop().await;
}
