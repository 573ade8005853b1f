//! What becomes of what was published: moved once, whatever crashes, and held up by nothing.

use std::collections::BTreeSet;

use serde_json::json;
use sqlx::PgConnection;
use webhook_dispatcher::store::{Store, outbox::Mark};

use super::{ask, count, delivered, run, session, subscribe};
use crate::support::{
    Receiver, TestApp, TestDatabase, eventually,
    process::{Process, free_port, on},
};

const LEFT: &str = "select count(*) from outbox";
const REFUSED: &str = "select count(*) from outbox_refused";
const EVENTS: &str = "select count(*) from event";

/// Publishes the numbers of a range in one statement; tells the ids in their order.
async fn publish_numbers(session: &mut PgConnection, first: i64, last: i64) -> Vec<String> {
    let query = "select publish('number.counted', to_json(n)) from generate_series($1, $2) as n";
    sqlx::query_scalar(query).bind(first).bind(last).fetch_all(session).await.unwrap()
}

/// The ids that a receiver got, each once.
fn distinct(receiver: &Receiver) -> BTreeSet<String> {
    receiver.received().iter().map(|request| request.header("webhook-id").to_owned()).collect()
}

async fn emptied(session: &mut PgConnection) {
    eventually("an empty outbox", async || (count(session, LEFT).await == 0).then_some(())).await;
}

/// Catches: an event that is sent before its commit, or in spite of a rollback, or of one to a
/// savepoint; another id than the function has told; bytes that are others than those published.
#[tokio::test]
async fn what_is_committed_is_delivered_and_nothing_else() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    subscribe(&app, &receiver, json!({"payload_format": "raw"})).await;
    let mut session = app.store.pool().acquire().await.unwrap();
    run(&mut session, "begin").await;
    ask(&mut session, "select publish('a.b', '\"rolled back\"')").await.unwrap();
    run(&mut session, "rollback; begin").await;
    let first =
        ask(&mut session, r#"select publish('a.b', ' {"z": 1.0,  "a": "\u00e9é"} ')"#).await;
    run(&mut session, "savepoint a").await;
    ask(&mut session, "select publish('a.b', '\"to a savepoint\"')").await.unwrap();
    run(&mut session, "rollback to a; savepoint b").await;
    let second = ask(&mut session, "select publish('a.b', '2')").await.unwrap();
    run(&mut session, "release b").await;
    // Of another transaction, that ends first: by the time it is delivered, all that was committed
    // has been looked at, and what was not has not been sent.
    let mut other = app.store.pool().acquire().await.unwrap();
    let early =
        ask(&mut other, "select publish('a.b', '3', subject => 's', metadata => '{}')").await;
    let early = delivered(&app, &early.unwrap()).await;
    assert_eq!((&early["subject"], &early["metadata"]), (&json!("s"), &json!({})), "{early}");
    assert_eq!(receiver.count(), 1);
    run(&mut session, "commit").await;
    delivered(&app, &first.unwrap()).await;
    delivered(&app, &second).await;
    let bodies: BTreeSet<_> = receiver.received().into_iter().map(|one| one.body).collect();
    let expected =
        [r#"{"z": 1.0,  "a": "\u00e9é"}"#, "2", "3"].map(|text| text.as_bytes().to_vec());
    assert_eq!(bodies, BTreeSet::from(expected));
    assert_eq!(count(&mut session, EVENTS).await, 3);
    emptied(&mut session).await;
    assert_eq!(count(&mut session, REFUSED).await, 0, "each is moved once");
    drop((session, other));
    app.stop().await;
}

/// Catches: an event that is routed by what a replica knew a moment ago; filters, or types, that
/// are not asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_routed_as_everything_is() {
    let database = TestDatabase::new().await;
    let one = TestApp::on(database.clone(), &["--role=api"]).await;
    let other = TestApp::on(database.clone(), &["--role=api"]).await;
    let mut session = session(&database).await;
    for round in 0..20 {
        let app = if round % 2 == 0 { &one } else { &other };
        let subscription = json!({
            "target_url": format!("http://127.0.0.1:9/{round}"), "event_types": "a.*",
            "filter": {"data.n": {"eq": round}},
        });
        app.make("/subscriptions", subscription).await;
        let publish = async |session: &mut PgConnection, event_type: &str, n: i32| {
            let call = format!("select publish('{event_type}', '{{\"n\": {n}}}')");
            ask(session, &call).await.unwrap()
        };
        let routed = publish(&mut session, "a.b", round).await;
        let others = [("a.b", round + 1), ("b", round)];
        let mut unrouted = Vec::new();
        for (event_type, n) in others {
            unrouted.push(publish(&mut session, event_type, n).await);
        }
        emptied(&mut session).await;
        let event = other.event(&routed).await;
        let target = event["deliveries"][0]["target_url"].as_str().unwrap_or_default();
        assert!(target.ends_with(&format!("/{round}")), "{round}: {event}");
        for id in unrouted {
            assert_eq!(other.event(&id).await["status"], "unrouted");
        }
    }
    one.stop().await;
    other.stop().await;
}

/// Catches: a row that two processes move, or none; a batch that makes more deliveries than a
/// statement may, or that loses what it leaves for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_move_each_row_once() {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let one = TestApp::on(database.clone(), &[]).await;
    let other = TestApp::on(database.clone(), &[]).await;
    subscribe(&one, &receiver, json!({"payload_format": "raw"})).await;
    let mut session = session(&database).await;
    let mut ids = BTreeSet::new();
    for first in (1..2_000).step_by(100) {
        ids.extend(publish_numbers(&mut session, first, first + 99).await);
    }
    eventually("all deliveries", async || (receiver.count() >= 2_000).then_some(())).await;
    let ended = "select count(*) from delivery where state = 'delivered'";
    eventually("all results", async || (count(&mut session, ended).await == 2_000).then_some(()))
        .await;
    assert_eq!((receiver.count(), distinct(&receiver)), (2_000, ids));
    assert_eq!(count(&mut session, EVENTS).await, 2_000);
    assert_eq!(count(&mut session, LEFT).await, 0);
    assert_eq!(count(&mut session, REFUSED).await, 0);
    one.stop().await;
    other.stop().await;
}

/// Catches: many of one transaction that are lost where a batch ends, at rows or at deliveries, or
/// that change their order.
#[tokio::test]
async fn many_of_one_transaction_are_moved_in_their_order() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &["--role=api"]).await;
    for number in 0..20 {
        let url = format!("http://127.0.0.1:9/{number}");
        app.make("/subscriptions", json!({"target_url": url, "event_types": "*"})).await;
    }
    let mut session = session(&database).await;
    let ids = publish_numbers(&mut session, 1, 1_200).await;
    emptied(&mut session).await;
    assert!(ids.is_sorted(), "ids of one transaction sort as they were published");
    let stored: Vec<String> = sqlx::query_scalar(
        "select 'evt_' || replace(event_id::text, '-', '') from event order by event_id",
    )
    .fetch_all(&mut session)
    .await
    .unwrap();
    assert_eq!(stored, ids);
    assert_eq!(count(&mut session, "select count(*) from delivery_queue").await, 24_000);
    app.stop().await;
}

/// Catches: rows that are gone before their events are stored, or events that are stored before
/// their rows are gone: a crash between the two would lose them, or store them twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_amid_moving_loses_nothing_and_stores_nothing_twice() {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let url = database.url();
    let environment = [&on(&url)[..], &[("ALLOWED_TARGET_CIDRS", "127.0.0.0/8")]].concat();
    let port = free_port().await;
    let service = Process::start(port, &environment).await;
    let body = json!({"target_url": receiver.url("/"), "event_types": "*"});
    let made = reqwest::Client::builder().no_proxy().build().unwrap();
    let made = made.post(format!("{}/subscriptions", service.base));
    let made = made.header("content-type", "application/json").body(body.to_string());
    assert_eq!(made.send().await.unwrap().status(), 201);
    let mut session = session(&database).await;
    // So that a batch takes a while, and the kill falls into one.
    let slow = "create function slow() returns trigger language plpgsql as $$
                begin perform pg_sleep(0.001); return new; end $$;
                create trigger slow before insert on event for each row execute function slow()";
    run(&mut session, slow).await;
    let ids: BTreeSet<_> = publish_numbers(&mut session, 1, 2_000).await.into_iter().collect();
    let moved = eventually("the first batch", async || {
        Some(count(&mut session, EVENTS).await).filter(|&moved| moved > 0)
    })
    .await;
    service.kill();
    assert!(moved < 2_000, "killed in the middle: {moved}");
    run(&mut session, "drop trigger slow on event").await;
    let service = Process::start(port, &environment).await;
    eventually("all delivered", async || (distinct(&receiver).len() == 2_000).then_some(())).await;
    assert_eq!(distinct(&receiver), ids);
    let payloads = "select count(distinct payload) from event_payload";
    assert_eq!(count(&mut session, EVENTS).await, 2_000);
    assert_eq!(count(&mut session, payloads).await, 2_000);
    assert_eq!(count(&mut session, LEFT).await, 0);
    drop(service);
}

/// Catches: a row that the rules, a schema or the database refuse and that holds up others, is lost,
/// or keeps its key; a type that left the catalogue after it was published under.
#[tokio::test]
async fn what_is_refused_is_put_aside_and_holds_up_nothing() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    subscribe(&app, &receiver, json!({"payload_format": "raw"})).await;
    app.make("/applications", json!({"uid": "gone"})).await;
    let of_tenant = json!({"target_url": receiver.url("/"), "event_types": "*"});
    app.make("/subscriptions?application=gone", of_tenant).await;
    let schema = json!({"type": "object", "required": ["n"]});
    let checked = json!({"name": "checked", "schema": schema, "checks_payload": true});
    app.make("/event-types?application=default", checked).await;
    let mut session = app.store.pool().acquire().await.unwrap();
    run(&mut session, "alter table event add constraint poison check (subject <> 'poison')").await;
    run(&mut session, "begin").await;
    let publish = async |session: &mut PgConnection, arguments: &str| {
        ask(session, &format!("select publish({arguments})")).await.unwrap()
    };
    let mut good = vec![publish(&mut session, "'a', '1'").await];
    let poison = publish(&mut session, "'a', '2', subject => 'poison'").await;
    good.push(publish(&mut session, "'checked', '{\"n\": 3}'").await);
    let faulty = publish(&mut session, "'checked', '{\"m\": 4}', idempotency_key => 'k'").await;
    let of_deleted = publish(&mut session, "'a', '5', application => 'gone'").await;
    let broken = publish(&mut session, "'a', '6'").await;
    run(&mut session, "update outbox set type = 'no type' where payload = '6'").await;
    good.push(publish(&mut session, "'a', '7'").await);
    let (status, _) = app.call("DELETE", "/applications/gone", None, None).await;
    assert_eq!(status, 204);
    run(&mut session, "commit").await;
    for id in good {
        delivered(&app, &id).await;
    }
    emptied(&mut session).await;
    for (id, reason) in [
        (poison, "the database refused the event: the constraint poison was violated"),
        (faulty.clone(), "`payload` is not what the schema of `checked` asks for: "),
        (of_deleted, "its application is deleted"),
        (broken, "`type` must be a dotted name"),
    ] {
        let query = format!(
            "select reason from outbox_refused
             where 'evt_' || replace(event_id::text, '-', '') = '{id}' and payload is not null"
        );
        let told = ask(&mut session, &query).await.unwrap();
        assert!(told.starts_with(reason), "{told}");
        assert_eq!(app.get(&format!("/events/{id}")).await.0, 404);
    }
    // Corrected, it goes under the same key.
    let arguments = "'checked', '{\"n\": 4}', idempotency_key => 'k'";
    let corrected = publish(&mut session, arguments).await;
    assert_ne!(corrected, faulty);
    delivered(&app, &corrected).await;
    assert_eq!(receiver.count(), 4);
    let metrics = app.get("/metrics").await.1;
    let refused = metrics.as_str().unwrap().lines();
    let refused = refused.filter_map(|line| line.strip_prefix("dispatcher_outbox_refused_total "));
    assert!(refused.map(|count| count.parse::<u64>().unwrap()).sum::<u64>() >= 4);
    // Kept for a while, and no longer.
    let day = std::time::Duration::from_hours(24);
    assert_eq!(app.store.forget_refused(day, 10).await.unwrap(), 0);
    run(&mut session, "update outbox_refused set refused_at = now() - interval '25 hours'").await;
    assert_eq!(app.store.forget_refused(day, 3).await.unwrap(), 3);
    assert_eq!(app.store.forget_refused(day, 3).await.unwrap(), 1);
    drop(session);
    app.stop().await;
}

/// Catches: rows that wait for ever because no process ran while their day was today.
#[tokio::test]
async fn what_waited_for_days_is_moved() {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    subscribe(&app, &receiver, json!({})).await;
    let mut session = app.store.pool().acquire().await.unwrap();
    run(&mut session, "begin").await;
    let id = ask(&mut session, "select publish('a', '1')").await.unwrap();
    let old = "01900000-0000-7000-8000-000000000001";
    run(&mut session, &format!("update outbox set event_id = '{old}'; commit")).await;
    eventually("the delivery", async || (receiver.count() == 1).then_some(())).await;
    assert_eq!(
        receiver.received()[0].header("webhook-id"),
        format!("evt_{}", old.replace('-', ""))
    );
    assert_ne!(receiver.received()[0].header("webhook-id"), id);
    emptied(&mut session).await;
    drop(session);
    app.stop().await;
}

/// Catches: a mark that passes over what was not committed when it was set, or that is set while
/// something that it passes over is left.
#[tokio::test]
async fn a_mark_passes_over_nothing_that_may_still_come() {
    let database = TestDatabase::new().await;
    let store = database.store();
    let (mut early, mut late) = (session(&database).await, session(&database).await);
    run(&mut early, "begin").await;
    publish_numbers(&mut early, 1, 1).await;
    publish_numbers(&mut late, 2, 2).await;
    let start = Mark::default();
    let first = store.look_at_outbox(&start, None).await.unwrap();
    assert!(!first.is_empty && !first.is_all_newer, "{first:?}");
    let second = store.look_at_outbox(&start, Some(&first.here)).await.unwrap();
    assert!(!second.is_all_newer, "what the first saw is left: {second:?}");
    // The later one is moved; another comes, which the first look did not see.
    run(&mut late, "delete from outbox").await;
    publish_numbers(&mut late, 3, 3).await;
    let third = store.look_at_outbox(&start, Some(&first.here)).await.unwrap();
    assert!(!third.is_empty && third.is_all_newer, "{third:?}");
    let fourth = store.look_at_outbox(&first.here, Some(&third.here)).await.unwrap();
    assert!(!fourth.is_empty && !fourth.is_all_newer, "behind the mark: {fourth:?}");
    run(&mut late, "delete from outbox").await;
    let fifth = store.look_at_outbox(&first.here, None).await.unwrap();
    assert!(fifth.is_empty, "{fifth:?}");
    // The one that began first is committed last.
    run(&mut early, "commit").await;
    let sixth = store.look_at_outbox(&fifth.here, Some(&fifth.here)).await.unwrap();
    assert!(!sixth.is_empty && sixth.is_all_newer, "{sixth:?}");
    store.close().await;
}

/// Catches: looks that walk over what was moved long ago, which Postgres cannot clear away while
/// somebody holds an old snapshot. Pages are counted, not time.
#[tokio::test]
async fn a_look_does_not_walk_over_what_was_moved() {
    const ROWS: i64 = 40_000;
    const LOOKS: i64 = 50;
    let database = TestDatabase::new().await;
    let (mut holder, mut session) = (session(&database).await, session(&database).await);
    run(&mut holder, "begin isolation level repeatable read; select 1 from outbox").await;
    publish_numbers(&mut session, 1, ROWS).await;
    run(&mut session, "delete from outbox").await;
    let pages = "select (heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint
                 from pg_statio_user_tables where relname = 'outbox'";
    let mut watcher = self::session(&database).await;
    let mut look = async |mark: &Mark| {
        let store = Store::connect_lazy(database.options.clone(), 1);
        let here = store.look_at_outbox(mark, None).await.unwrap().here;
        for _ in 1..LOOKS {
            assert!(store.look_at_outbox(mark, None).await.unwrap().is_empty);
        }
        // Its backend ends, and reports its counts.
        store.close().await;
        eventually("the end of its session", async || {
            let sessions = "select count(*) from pg_stat_activity
                            where application_name = 'webhook-dispatcher'
                              and datname = current_database() and pid <> pg_backend_pid()";
            (count(&mut watcher, sessions).await == 0).then_some(())
        })
        .await;
        here
    };
    let counted = async |session: &mut PgConnection, before: i64| {
        eventually("the counts", async || {
            Some(count(session, pages).await).filter(|&pages| pages > before)
        })
        .await
    };
    let written = counted(&mut session, ROWS).await;
    let here = look(&Mark::default()).await;
    let all = counted(&mut session, written).await;
    assert!(all - written > 400 * LOOKS, "without a mark it is all looked at: {}", all - written);
    look(&here).await;
    let few = counted(&mut session, all).await;
    // The planner asks the index for its highest value, and gives up after 100 pages, twice.
    assert!(few - all <= 250 * LOOKS, "with one, next to nothing: {}", few - all);
    run(&mut holder, "rollback").await;
}
