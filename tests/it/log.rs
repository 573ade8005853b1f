//! The log of deliveries as one list over queue, parked and history.

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

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

/// Makes deliveries of a subscription that ended today, straight in the table: one in one state, and
/// after it 1,500 in another.
async fn make_ended(database: &TestDatabase, subscription: &str, first: &str, others: &str) {
    let insert = format!(
        "insert into delivery (delivery_id, event_id, application_id, lane_id, subscription_id,
                               target_url, state, reason, attempt_count, created_at)
         select id, id, application_id, subscription_id, subscription_id, 'http://a/', state,
                case when state <> 'delivered' then 'cancelled' end, 0, now()
         from subscription
         cross join generate_series(0, 1500) as n
         cross join lateral (
             select (lpad(to_hex((extract(epoch from now()) * 1000)::bigint), 12, '0') || '-7'
                     || lpad(to_hex(n), 3, '0') || right(gen_random_uuid()::text, 18))::uuid as id,
                    case when n = 0 then '{first}' else '{others}' end as state
         ) as made
         where uid = '{subscription}'"
    );
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(database.store().pool()).await.unwrap();
}

/// Catches: a page of a state that the index does not tell apart, for which all is read that the index
/// has: a subscription's history, or that of all that was cancelled.
#[tokio::test]
async fn a_page_of_a_rare_state_looks_at_a_bounded_number_of_rows() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &["--role=api"]).await;
    for (uid, first, others) in [("one", "dead", "delivered"), ("other", "dead", "cancelled")] {
        let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a", "uid": uid});
        app.make("/subscriptions", body).await;
        make_ended(&database, uid, first, others).await;
        let path = format!("/subscriptions/{uid}/deliveries?state=dead");
        let (found, pages) = all_pages(&app, &path).await;
        assert_eq!((found.len(), pages), (1, 4), "{uid}");
    }
    let (found, pages) = all_pages(&app, "/deliveries?state=dead").await;
    assert_eq!((found.len(), pages), (2, 4));
    app.stop().await;
}

/// Catches: a look at today that waits for another day, which may be dropped at that moment: planning it
/// takes a lock on each day that is not left out beforehand, and a month of them takes 15 ms.
#[tokio::test]
async fn what_is_of_today_does_not_wait_for_another_day() {
    let receiver = Receiver::start(|_, _| Answer::status(404)).await;
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &["--max-attempts=1"]).await;
    let mut events = Vec::new();
    for _ in 0..3 {
        let body = json!({"payload": 1, "target_url": receiver.url("/")});
        let (_, accepted) = app.call("POST", "/events", None, Some(&body)).await;
        events.push(accepted["id"].as_str().unwrap().to_owned());
    }
    for event in &events {
        app.wait_for(event, "dead").await;
    }
    let (_, shown) = app.get(&format!("/events/{}", events[0])).await;
    let delivery = shown["deliveries"][0]["id"].as_str().unwrap().to_owned();
    let event = &events[0];

    let mut dropper = database.store().pool().begin().await.unwrap();
    let lock = "do $$
        declare name text;
        begin
            for name in
                select relname from pg_class
                where relkind = 'r' and relname ~ '^(event_payload|delivery|attempt)_[0-9]{8}$'
                  and right(relname, 8) < to_char(now() at time zone 'UTC', 'YYYYMMDD')
            loop
                execute format('lock table %I in access exclusive mode', name);
            end loop;
        end
        $$";
    sqlx::raw_sql(lock).execute(&mut *dropper).await.unwrap();
    let an_hour_ago = (Utc::now() - TimeDelta::hours(1)).max(start_of_today());
    let since = an_hour_ago.format("created_after=%Y-%m-%dT%H:%M:%SZ");
    for path in [
        "/events?limit=1".to_owned(),
        format!("/events?status=dead&{since}"),
        format!("/events/{event}"),
        format!("/events/{event}/explain"),
        "/deliveries?limit=1".to_owned(),
        format!("/deliveries?event_id={event}"),
        format!("/deliveries?response_status=404&{since}"),
        format!("/deliveries?state=dead&{since}"),
        format!("/deliveries?state=pending&{since}"),
        format!("/deliveries/{delivery}"),
        format!("/status/{delivery}"),
    ] {
        let (status, shown) = app.get(&path).await;
        assert_eq!(status, 200, "{path}: {shown}");
    }
    dropper.rollback().await.unwrap();
    app.stop().await;
}

fn start_of_today() -> DateTime<Utc> {
    Utc::now().date_naive().and_time(NaiveTime::MIN).and_utc()
}
