//! What is asked of replays: refusals, repeats, bounds, lists, and whose they are.

use serde_json::{Value, json};

use crate::applications::{WITH_KEYS, tenant};

use super::*;

/// Catches: a restriction that is dropped in silence, so that more is sent than was meant.
#[tokio::test]
async fn what_is_wrong_is_told_and_makes_nothing() {
    let app = quiet().await;
    let with =
        |name: &str, value: Value| (json!({"filter": {name: value}}), format!("/filter/{name}"));
    let beside = |name: &str, value: Value| {
        (json!({"filter": {"state": "dead"}, name: value}), format!("/{name}"))
    };
    let mut cases = vec![
        (json!({"filter": {"state": [1]}}), "/filter/state/0".to_owned(), "strings only"),
        (json!([]), String::new(), "a JSON object"),
        (json!({}), "/filter".to_owned(), "missing"),
        (json!({"filter": {}}), "/filter".to_owned(), "at least"),
        (json!({"filter": null}), "/filter".to_owned(), "null"),
        (json!({"filter": "dead"}), "/filter".to_owned(), "a string"),
        (
            json!({"filter": {"state": "dead"}, "dryrun": true}),
            String::new(),
            "did you mean `dry_run`",
        ),
        (json!({"filter": {"states": "dead"}}), "/filter".to_owned(), "did you mean `state`"),
    ];
    for (name, value, says) in [
        ("state", json!("pending"), "one of delivered, dead, cancelled"),
        ("state", json!("parked"), "one of delivered"),
        ("state", json!(["dead", "in_flight"]), "one of delivered"),
        ("state", json!([]), "1 to 3"),
        ("state", json!(null), "null"),
        ("subscription_id", json!(null), "null"),
        ("subscription_id", json!(7), "a string"),
        ("event_id", json!("dlv_0192d4e012347abc8def0123456789ab"), "that of a delivery"),
        ("event_type", json!("a b"), "dotted"),
        ("response_status", json!(99), "100 to 999"),
        ("response_status", json!(500.5), "whole"),
        ("response_status", json!("500"), "a number"),
        ("error_class", json!("bad luck"), "one of dns"),
        ("created_after", json!("yesterday"), "RFC 3339"),
        ("created_before", json!(5), "a string"),
    ] {
        let (body, pointer) = with(name, value);
        cases.push((body, pointer, says));
    }
    for (name, value, says) in [
        ("rate_per_second", json!(0), "1 to 1000"),
        ("rate_per_second", json!(1001), "1 to 1000"),
        ("rate_per_second", json!(1.5), "whole"),
        ("rate_per_second", json!("fast"), "a number"),
        ("include_unrouted", json!(1), "true or false"),
        ("dry_run", json!("yes"), "true or false"),
    ] {
        let (body, pointer) = beside(name, value);
        cases.push((body, pointer, says));
    }
    let subscription = subscribe(&app, "http://127.0.0.1:9/", "a").await;
    for (name, value) in [
        ("subscription_id", json!(subscription)),
        ("response_status", json!(500)),
        ("error_class", json!("dns")),
    ] {
        let body = json!({"filter": {name: value}, "include_unrouted": true});
        cases.push((body, format!("/filter/{name}"), "reached nobody"));
    }
    for (body, pointer, says) in &cases {
        let (status, problem) = app.call("POST", "/replays", None, Some(body)).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{body}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{body}: {problem}");
    }
    let body = json!({"filter": {"subscription_id": "nobody"}});
    let (status, problem) = app.call("POST", "/replays", None, Some(&body)).await;
    assert_eq!((status, &problem["pointer"]), (404, &json!("/filter/subscription_id")));
    for path in ["", "/pause", "/resume", "/cancel"] {
        let method = if path.is_empty() { "GET" } else { "POST" };
        for id in
            ["rpl_0192d4e012347abc8def0123456789ab", "evt_0192d4e012347abc8def0123456789ab", "x"]
        {
            let (status, problem) =
                app.call(method, &format!("/replays/{id}{path}"), None, None).await;
            assert_eq!((status, &problem["type"]), (404, &json!("/problems/replay-not-found")));
        }
    }
    for query in ["limit=0", "cursor=x", "state=running"] {
        assert_eq!(
            app.call("GET", &format!("/replays?{query}"), None, None).await.0,
            422,
            "{query}"
        );
    }
    assert_eq!(app.get("/replays").await.1["data"], json!([]));
    app.stop().await;
}

/// Catches: a request that is sent again and makes a second replay; more of them at a time than there
/// may be; a list without an end.
#[tokio::test]
async fn one_wish_is_one_replay_and_there_are_ten_at_most() {
    let app = quiet().await;
    let body = json!({"filter": {"state": "dead"}, "rate_per_second": 7}).to_string();
    let once = async |body: &str| {
        let request = app.http.post(format!("{}/replays", app.base)).body(body.to_owned());
        let request = request.header("content-type", "application/json");
        let answer = request.header("idempotency-key", "k").send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap())
    };
    let (status, first) = once(&body).await;
    assert_eq!((status, &first["rate_per_second"]), (202, &json!(7)));
    assert_eq!(first["filter"], json!({"state": ["dead"]}));
    assert_eq!(once(&body).await, (202, first.clone()));
    assert_eq!(once(r#"{"filter":{"state":"dead"}}"#).await.0, 409);

    let body = json!({"filter": {"event_type": "a"}});
    let mut all = vec![first["id"].clone()];
    for _ in 1..10 {
        all.push(replay(&app, body.clone()).await["id"].clone());
    }
    // One that is halted is not over.
    assert_eq!(act(&app, &first, "pause").await.0, 200);
    let (status, problem) = app.call("POST", "/replays", None, Some(&body)).await;
    assert_eq!((status, &problem["type"]), (409, &json!("/problems/conflict")));
    assert!(problem["detail"].as_str().unwrap().contains("10 replays"), "{problem}");
    assert_eq!(act(&app, &first, "cancel").await.0, 200);
    all.push(replay(&app, body).await["id"].clone());

    let (mut found, mut path) = (Vec::new(), "/replays?limit=4".to_owned());
    loop {
        let (_, page) = app.get(&path).await;
        found.extend(page["data"].as_array().unwrap().iter().map(|one| one["id"].clone()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/replays?limit=4&cursor={cursor}");
    }
    let order = |ids: &[Value]| -> Vec<String> {
        let mut ids: Vec<_> = ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids
    };
    assert_eq!(found.iter().map(|id| id.as_str().unwrap()).collect::<Vec<_>>(), order(&all));
    app.stop().await;
}

/// Catches: a replay of what another application has.
#[tokio::test]
async fn it_is_of_one_application() {
    let app = TestApp::with(&[WITH_KEYS.as_slice(), &["--role=api"]].concat()).await;
    let (_, theirs) = tenant(&app, "acme", "manager").await;
    let (_, ours) = tenant(&app, "rival", "manager").await;
    let mut subscriptions = Vec::new();
    for key in [&theirs, &ours] {
        let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a"});
        let (_, made) = app.call("POST", "/subscriptions", Some(key), Some(&body)).await;
        subscriptions.push(made["id"].clone());
        for event_type in ["a", "b"] {
            let body = json!({"payload": 1, "type": event_type});
            assert_eq!(app.call("POST", "/events", Some(key), Some(&body)).await.0, 202);
        }
    }
    end_all(&app, "dead", Some("timeout"), None).await;
    let wish = json!({"filter": {"subscription_id": subscriptions[0]}});
    let (status, problem) = app.call("POST", "/replays", Some(&ours), Some(&wish)).await;
    assert_eq!((status, &problem["type"]), (404, &json!("/problems/subscription-not-found")));
    for filter in [
        json!({"state": "dead"}),
        json!({"event_type": "a"}),
        json!({"created_after": "2020-01-01T00:00:00Z"}),
    ] {
        let wish = json!({"filter": filter, "include_unrouted": true, "dry_run": true});
        let (status, count) = app.call("POST", "/replays", Some(&ours), Some(&wish)).await;
        assert_eq!((status, &count["matched"]), (200, &json!(1)), "{count}");
        let unrouted = i64::from(filter["event_type"].is_null());
        assert_eq!(count["unrouted"]["events"], unrouted, "{count}");
    }
    let wish = json!({"filter": {"state": "dead"}, "include_unrouted": true});
    let (_, made) = app.call("POST", "/replays", Some(&ours), Some(&wish)).await;
    let ended = step(&app, &made).await;
    assert_eq!((ended.queued, ended.replay.has_all_ended), (1, true));
    let events = app.store.unrouted_events(&ended.replay).await.unwrap().events;
    assert_eq!(events.len(), 1);
    let of_theirs: i64 = sqlx::query_scalar(
        "select count(*) from delivery_queue q join application a using (application_id)
         where a.uid <> 'rival'",
    )
    .fetch_one(app.store.pool())
    .await
    .unwrap();
    assert_eq!(of_theirs, 0);
    app.stop().await;
}
