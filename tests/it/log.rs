//! The log of deliveries as one list over queue, parked and history.

use serde_json::{Value, json};

use crate::support::{Answer, Receiver, TestApp, TestDatabase, eventually};

/// All pages of a list, each with at most three; tells how many there were.
async fn all_pages(app: &TestApp, path: &str) -> (Vec<Value>, usize) {
    let (mut all, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let (status, page) = app.get(&format!("{path}{separator}limit=3{cursor}")).await;
        assert_eq!(status, 200, "{path}: {page}");
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 3);
        all.extend(data.iter().cloned());
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (all, pages),
        }
        assert!(pages < 100, "{path}");
    }
}

/// What a query lets through.
type Filter<'a> = Box<dyn Fn(&Value) -> bool + 'a>;

/// Queries, how many of all deliveries each shows, and which.
fn cases<'a>(all: &'a [Value], well: &'a str) -> Vec<(String, usize, Filter<'a>)> {
    let of_all = all.iter().find(|one| one["event_type"] == "all").unwrap();
    let some_event = of_all["event_id"].as_str().unwrap();
    let by = |name: &'static str, value: Value| move |one: &Value| one[name] == value;
    vec![
        (String::new(), 28, Box::new(|_| true)),
        ("state=delivered".to_owned(), 4, Box::new(by("state", json!("delivered")))),
        ("state=dead".to_owned(), 16, Box::new(by("state", json!("dead")))),
        ("state=pending".to_owned(), 4, Box::new(by("state", json!("pending")))),
        ("state=parked".to_owned(), 4, Box::new(by("state", json!("parked")))),
        ("state=cancelled".to_owned(), 0, Box::new(by("state", json!("cancelled")))),
        ("state=in_flight".to_owned(), 0, Box::new(by("state", json!("in_flight")))),
        ("event_type=waits".to_owned(), 2, Box::new(by("event_type", json!("waits")))),
        ("subscription_id=well".to_owned(), 4, Box::new(by("subscription_id", json!(well)))),
        (
            format!("subscription_id={well}&event_type=all"),
            2,
            Box::new(move |one| one["subscription_id"] == well && one["event_type"] == "all"),
        ),
        (
            "subscription_id=waits&state=pending".to_owned(),
            4,
            Box::new(by("state", json!("pending"))),
        ),
        ("subscription_id=waits&state=dead".to_owned(), 0, Box::new(|_| false)),
        ("subscription_id=parked".to_owned(), 4, Box::new(by("state", json!("parked")))),
        (
            "subscription_id=dead&response_status=404".to_owned(),
            4,
            Box::new(by("last_status", json!(404))),
        ),
        ("response_status=503".to_owned(), 4, Box::new(by("last_status", json!(503)))),
        (
            "error_class=http_status".to_owned(),
            20,
            Box::new(by("last_error", json!("http_status"))),
        ),
        ("error_class=timeout".to_owned(), 0, Box::new(|_| false)),
        (format!("event_id={some_event}"), 4, Box::new(by("event_id", json!(some_event)))),
        (
            format!("event_id={some_event}&state=dead"),
            1,
            Box::new(move |one| one["event_id"] == some_event && one["state"] == "dead"),
        ),
        (
            "state=dead&event_type=dead".to_owned(),
            2,
            Box::new(|one| one["state"] == "dead" && one["event_type"] == "dead"),
        ),
        ("created_before=2020-01-01T00:00:00Z".to_owned(), 0, Box::new(|_| false)),
        (
            "created_after=2020-01-01T00:00:00Z&state=pending".to_owned(),
            4,
            Box::new(by("state", json!("pending"))),
        ),
    ]
}

/// Catches: a filter that lets through what it should not, or hides what it should show, in any of the
/// three tables; a page that shows one twice or leaves one out; another application's.
#[tokio::test]
async fn every_filter_shows_what_it_says_page_by_page() {
    let receiver = Receiver::start(|_, request| {
        let status = request.path.trim_start_matches('/').parse().unwrap_or(200);
        Answer::status(status)
    })
    .await;
    let app = TestApp::with(&["--max-attempts=1"]).await;
    let subscribe = async |uid: &str, path: &str, more: Value| {
        let mut body = json!({"uid": uid, "target_url": receiver.url(path),
            "event_types": ["all", uid]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        app.make("/subscriptions", body).await["id"].as_str().unwrap().to_owned()
    };
    let well = subscribe("well", "/200", json!({})).await;
    subscribe("dead", "/404", json!({})).await;
    subscribe("waits", "/503", json!({"retry": [3600]})).await;
    subscribe("parked", "/200", json!({"is_active": false})).await;
    app.make("/applications", json!({"uid": "other"})).await;
    let foreign = json!({"target_url": receiver.url("/404"), "event_types": "all"});
    app.make("/subscriptions?application=other", foreign).await;
    let mut events = Vec::new();
    for round in 0..12 {
        let event_type = ["all", "well", "dead", "waits", "parked", "nobody"][round % 6];
        for application in ["default", "other"] {
            let body = json!({"payload": 1, "type": event_type, "application": application});
            let (_, accepted) = app.call("POST", "/events", None, Some(&body)).await;
            events.push(accepted["id"].as_str().unwrap().to_owned());
        }
        let body = json!({"payload": 1, "target_url": receiver.url("/500")});
        app.call("POST", "/events", None, Some(&body)).await;
    }
    // Two to all four, two each to one, and twelve to a URL.
    let all = eventually("all are at rest", async || {
        let (_, page) = app.get("/deliveries?limit=250").await;
        let data = page["data"].as_array().unwrap().clone();
        let is_at_rest = |one: &Value| one["attempt_count"] == 1 || one["state"] == "parked";
        (data.len() == 28 && data.iter().all(is_at_rest)).then_some(data)
    })
    .await;
    let ids: Vec<&str> = all.iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a > b), "{ids:?}");

    for (query, count, filter) in &cases(&all, &well) {
        let expected: Vec<_> = all.iter().filter(|one| filter(one)).cloned().collect();
        assert_eq!(expected.len(), *count, "{query}");
        let (found, _) = all_pages(&app, &format!("/deliveries?{query}")).await;
        assert_eq!(found, expected, "{query}");
    }
    let of_well = all_pages(&app, "/subscriptions/well/deliveries").await.0;
    assert_eq!(of_well, all_pages(&app, "/deliveries?subscription_id=well").await.0);
    assert_eq!(all_pages(&app, "/deliveries?application=other").await.0.len(), 2);
    for (query, name) in [
        ("state=gone", "state"),
        ("subscription_id=nobody", "subscription_id"),
        ("event_id=dlv_1", "event_id"),
        ("event_type=a%20b", "event_type"),
        ("response_status=99", "response_status"),
        ("error_class=x", "error_class"),
        ("created_after=x", "created_after"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("stat=dead", "stat"),
    ] {
        let (status, problem) = app.get(&format!("/deliveries?{query}")).await;
        assert!(status == 422 || status == 404, "{query}: {problem}");
        assert_eq!(problem["parameter"], name, "{query}: {problem}");
    }
    app.stop().await;
}

/// Catches: a page that looks at rows without a bound, and a page that shows nothing and so seems to be
/// the last.
#[tokio::test]
async fn a_page_of_what_is_rare_looks_at_a_bounded_number_of_rows() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database, &["--role=api"]).await;
    let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a", "uid": "mine"});
    app.make("/subscriptions", body).await;
    let body = json!({"payload": 1, "type": "a"});
    let (_, oldest) = app.call("POST", "/events", None, Some(&body)).await;
    let many = vec![json!({"payload": 1, "target_url": "http://127.0.0.1:9/"}); 1_000];
    for _ in 0..6 {
        let body = json!({"events": many});
        let (status, _) = app.call("POST", "/events/batch", None, Some(&body)).await;
        assert_eq!(status, 202);
    }
    for path in ["/deliveries?event_type=a", "/subscriptions/mine/deliveries"] {
        let (found, pages) = all_pages(&app, path).await;
        assert_eq!((found.len(), &found[0]["event_id"]), (1, &oldest["id"]), "{path}");
        assert!(pages > 1, "{path}");
    }
    app.stop().await;
}
