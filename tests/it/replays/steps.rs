//! What a step queues, and what it leaves.

use serde_json::{Value, json};
use webhook_dispatcher::{
    domain::{DeliveryId, ids::unix_ms_of},
    store::{
        replay_steps::DUE_IN_LANE_MAX,
        rerouting::{LateDelivery, Rerouted},
    },
};

use super::*;

const TARGET: &str = "http://127.0.0.1:9/";

/// Catches: a filter that is dropped, or read as another; one that the dry run reads otherwise.
#[tokio::test]
async fn each_filter_means_what_it_says() {
    let app = quiet().await;
    let (a, b) = (subscribe(&app, TARGET, "a").await, subscribe(&app, TARGET, "b").await);
    let dead_a = dead(&app, "a", 3).await;
    let dead_b = dead(&app, "b", 2).await;
    // What comes now has ids of a later millisecond.
    let last: webhook_dispatcher::domain::EventId = dead_b[1].parse().unwrap();
    let between = i64::try_from(unix_ms_of(last.uuid()) + 1).unwrap();
    eventually("a later id", async || {
        (chrono::Utc::now().timestamp_millis() > between + 10).then_some(())
    })
    .await;
    let between = chrono::DateTime::from_timestamp_millis(between).unwrap().to_rfc3339();
    let timed_out = publish(&app, "a", 2).await;
    end_all(&app, "dead", Some("timeout"), None).await;
    let gone = publish(&app, "a", 1).await;
    end_all(&app, "cancelled", Some("cancelled"), None).await;
    let delivered = publish(&app, "b", 2).await;
    end_all(&app, "delivered", None, Some(204)).await;
    let waiting = publish(&app, "a", 1).await;

    let dead_all = [&dead_a[..], &dead_b, &timed_out].concat();
    let later = [&timed_out[..], &gone, &delivered].concat();
    let of_a = [&dead_a[..], &timed_out, &gone].concat();
    let cases: Vec<(Value, Vec<String>)> = vec![
        (json!({"state": "dead"}), dead_all.clone()),
        (json!({"state": ["dead", "cancelled"]}), [&dead_all[..], &gone].concat()),
        (json!({"state": "delivered"}), delivered.clone()),
        (json!({"subscription_id": a}), of_a.clone()),
        (json!({"subscription_id": b, "state": "dead"}), dead_b.clone()),
        (json!({"event_type": "a"}), of_a),
        (json!({"response_status": 500}), [&dead_a[..], &dead_b].concat()),
        (json!({"response_status": 204}), delivered.clone()),
        (json!({"error_class": "timeout"}), timed_out.clone()),
        (json!({"event_id": dead_a[1]}), dead_a[1..2].to_vec()),
        (json!({"event_id": waiting[0]}), vec![]),
        (json!({"created_after": between}), later.clone()),
        (json!({"created_before": between}), [&dead_a[..], &dead_b].concat()),
        (json!({"created_after": between, "state": "dead", "event_type": "a"}), timed_out),
        (json!({"event_type": "c"}), vec![]),
    ];
    for (filter, expected) in cases {
        let body = json!({"filter": filter, "dry_run": true});
        let (status, count) = app.call("POST", "/replays", None, Some(&body)).await;
        assert_eq!((status, &count["is_exact"]), (200, &json!(true)), "{filter}: {count}");
        let made = replay(&app, json!({"filter": filter, "rate_per_second": 1000})).await;
        let done = run(&app, &made).await;
        assert_eq!(queued(&app).await, set(&expected), "{filter}");
        for name in ["matched", "queued"] {
            assert_eq!(done[name], json!(expected.len()), "{filter}: {done}");
            assert_eq!(count[name], done[name], "{filter}: {count}");
        }
        assert_eq!(done["state"], "completed");
        execute(&app, "delete from delivery_queue where run = 'replay'").await;
    }
    // A dry run makes nothing.
    let (_, list) = app.get("/replays?limit=250").await;
    assert_eq!(list["data"].as_array().unwrap().len(), 15);
    app.stop().await;
}

/// Catches: what cannot be sent again and is, or is not told apart; a dry run that says otherwise.
#[tokio::test]
async fn what_is_in_the_way_is_counted() {
    let app = quiet().await;
    let mut subscriptions = Vec::new();
    for event_type in ["kept", "deleted", "disabled"] {
        subscriptions.push(subscribe(&app, TARGET, event_type).await);
    }
    let kept = dead(&app, "kept", 7).await;
    dead(&app, "deleted", 2).await;
    dead(&app, "disabled", 3).await;
    let path = format!("/subscriptions/{}", subscriptions[1]);
    assert_eq!(app.call("DELETE", &path, None, None).await.0, 204);
    let path = format!("/subscriptions/{}/disable", subscriptions[2]);
    assert_eq!(app.call("POST", &path, None, None).await.0, 200);
    execute(
        &app,
        "delete from event_payload where event_id in (
                       select event_id from delivery where event_type = 'kept'
                       order by event_id limit 1)",
    )
    .await;
    // Two are retried by hand, and wait.
    let (_, list) = app.get("/deliveries?state=dead&event_type=kept").await;
    for delivery in list["data"].as_array().unwrap().iter().take(2) {
        let path = format!("/deliveries/{}/retry", delivery["id"].as_str().unwrap());
        assert_eq!(app.call("POST", &path, None, None).await.0, 202);
    }

    let filter = json!({"state": ["dead"]});
    let body = json!({"filter": filter, "dry_run": true});
    let (_, count) = app.call("POST", "/replays", None, Some(&body)).await;
    let done = run(&app, &replay(&app, json!({"filter": filter})).await).await;
    let skipped = json!({"in_progress": 2, "payload_gone": 1, "subscription_deleted": 2,
                         "subscription_disabled": 3});
    for told in [&count, &done] {
        assert_eq!((&told["matched"], &told["queued"]), (&json!(12), &json!(4)), "{told}");
        assert_eq!(told["skipped"], skipped, "{told}");
    }
    assert_eq!(queued(&app).await, set(&kept[1..5]));
    let once: i64 = sqlx::query_scalar("select count(*) from delivery_queue where run = 'once'")
        .fetch_one(app.store.pool())
        .await
        .unwrap();
    assert_eq!(once, 2, "by hand is by hand");
    app.stop().await;
}

/// Catches: a replay without an end, that sends again what came, or ended, after it was made; and one
/// that is out of order.
#[tokio::test]
async fn what_comes_after_it_is_not_in_it() {
    let app = quiet().await;
    subscribe(&app, TARGET, "a").await;
    let before = dead(&app, "a", 3).await;
    let pending = publish(&app, "a", 1).await;
    let made = replay(&app, json!({"filter": {"event_type": "a"}})).await;
    end_all(&app, "dead", Some("timeout"), None).await;
    let after = dead(&app, "a", 2).await;
    let done = run(&app, &made).await;
    assert_eq!((&done["matched"], &done["state"]), (&json!(3), &json!("completed")));
    assert_eq!(queued(&app).await, set(&before));
    assert!(pending.len() == 1 && after.len() == 2);
    let order: bool = sqlx::query_scalar(
        "select array_agg(delivery_id order by due_at) = array_agg(delivery_id order by delivery_id)
         from delivery_queue where run = 'replay'",
    )
    .fetch_one(app.store.pool())
    .await
    .unwrap();
    assert!(order, "oldest first");
    app.stop().await;
}

/// Catches: a step that looks at more, or at less, than its bound and goes on wrongly after it.
#[tokio::test]
async fn a_step_is_bounded_and_the_next_one_goes_on() {
    let app = quiet().await;
    subscribe(&app, TARGET, "a").await;
    // More than a step looks at, without one that is meant; then some that are.
    publish(&app, "a", 1_100).await;
    end_all(&app, "delivered", None, Some(200)).await;
    let meant = dead(&app, "a", 10).await;
    let filter = json!({"response_status": 500});
    let made = replay(&app, json!({"filter": filter, "rate_per_second": 16})).await;
    let first = step(&app, &made).await;
    assert_eq!((first.queued, first.replay.matched_count), (0, 0));
    assert!(first.replay.reached_at().is_some() && first.replay.ended_at.is_none());
    // Nothing was queued, so the next one is due at once; and after it there is a pause.
    let second = step(&app, &made).await;
    assert_eq!(second.queued, 4, "a quarter of a second");
    assert!(second.lanes.len() == 1 && second.replay.ended_at.is_none());
    let done = run(&app, &made).await;
    assert_eq!(done["queued"], 10);
    assert_eq!(queued(&app).await, set(&meant));
    app.stop().await;
}

/// Catches: a queue that grows without a bound; a replay that does not go on when there is room.
#[tokio::test]
async fn a_full_lane_holds_it_up() {
    let app = quiet().await;
    let id = subscribe(&app, TARGET, "a").await;
    let meant = dead(&app, "a", 3).await;
    publish(&app, "a", usize::try_from(DUE_IN_LANE_MAX).unwrap()).await;
    let made = replay(&app, json!({"filter": {"subscription_id": id}})).await;
    let held_up = step(&app, &made).await;
    assert_eq!((held_up.queued, held_up.replay.is_held_up), (0, true));
    assert_eq!(shown(&app, &made).await["is_held_up"], true);
    assert!(queued(&app).await.is_empty());
    execute(
        &app,
        "delete from delivery_queue where ctid in (select ctid from delivery_queue limit 1)",
    )
    .await;
    let done = run(&app, &made).await;
    assert_eq!((&done["queued"], &done["is_held_up"]), (&json!(3), &json!(false)));
    assert_eq!(queued(&app).await, set(&meant));
    app.stop().await;
}

/// Catches: a step after a pause, a cancellation or the end of the application was answered; what is
/// over and goes on; what was queued and is taken back.
#[tokio::test]
async fn it_is_paused_resumed_and_cancelled() {
    let app = quiet().await;
    subscribe(&app, TARGET, "a").await;
    dead(&app, "a", 5).await;
    let body = json!({"filter": {"state": "dead"}, "rate_per_second": 4});
    let made = replay(&app, body).await;
    let id = id_of(&made);
    assert_eq!(step(&app, &made).await.queued, 1);
    // Due whenever it runs.
    execute(&app, "update replay set next_step_at = now() - interval '1 hour'").await;
    for _ in 0..2 {
        let (status, paused) = act(&app, &made, "pause").await;
        assert_eq!(
            (status, &paused["state"], &paused["queued"]),
            (200, &json!("paused"), &json!(1))
        );
    }
    assert!(app.store.step_replay(id).await.unwrap().is_none());
    assert!(app.store.running_replays(10).await.unwrap().is_empty());
    let (status, resumed) = act(&app, &made, "resume").await;
    assert_eq!((status, &resumed["state"]), (200, &json!("running")));
    assert_eq!(app.store.step_replay(id).await.unwrap().unwrap().queued, 1);
    // What was missed in an hour is made up for by one step, and not by an hour of them.
    let is_made_up: bool = sqlx::query_scalar("select next_step_at = updated_at from replay")
        .fetch_one(app.store.pool())
        .await
        .unwrap();
    assert!(is_made_up);
    assert_eq!(app.store.step_replay(id).await.unwrap().unwrap().queued, 1);

    for _ in 0..2 {
        let (status, cancelled) = act(&app, &made, "cancel").await;
        assert_eq!((status, &cancelled["state"]), (200, &json!("cancelled")));
        assert_ne!(cancelled["ended_at"], Value::Null);
    }
    execute(&app, "update replay set next_step_at = now() - interval '1 hour'").await;
    assert!(app.store.step_replay(id).await.unwrap().is_none());
    for what in ["pause", "resume"] {
        let (status, problem) = act(&app, &made, what).await;
        assert_eq!((status, &problem["type"]), (409, &json!("/problems/conflict")));
        assert!(problem["detail"].as_str().unwrap().contains("over"), "{problem}");
    }
    assert_eq!(queued(&app).await.len(), 3, "it stays");

    let (status, other) =
        app.call("POST", "/applications", None, Some(&json!({"uid": "acme"}))).await;
    assert_eq!(status, 201, "{other}");
    let body = json!({"filter": {"state": "dead"}});
    let (_, of_other) = app.call("POST", "/replays?application=acme", None, Some(&body)).await;
    assert_eq!(app.call("DELETE", "/applications/acme", None, None).await.0, 204);
    assert!(app.store.step_replay(id_of(&of_other)).await.unwrap().is_none());
    let state: String = sqlx::query_scalar("select state from replay where replay_id = $1")
        .bind(id_of(&of_other).uuid())
        .fetch_one(app.store.pool())
        .await
        .unwrap();
    assert_eq!(state, "cancelled");

    // Kept as long as the history, and no longer.
    let days = |days: u64| std::time::Duration::from_secs(days * 86_400);
    execute(&app, "update replay set ended_at = now() - interval '2 days'").await;
    assert_eq!(app.store.forget_replays(days(3), 10).await.unwrap(), 0);
    assert_eq!(app.store.forget_replays(days(1), 1).await.unwrap(), 1);
    assert_eq!(app.store.forget_replays(days(1), 10).await.unwrap(), 1);
    app.stop().await;
}

/// Catches: events that are routed twice by two replays at a time, routed by what subscriptions were a
/// moment before, or of which the replay forgets how far it got.
#[tokio::test]
async fn events_are_routed_once_and_by_what_holds() {
    let app = quiet().await;
    let events = publish(&app, "a", 3).await;
    let subscription = subscribe(&app, TARGET, "a").await;
    let body = json!({"filter": {"event_type": "a"}, "include_unrouted": true});
    let (first, second) = (replay(&app, body.clone()).await, replay(&app, body).await);
    let first_row = step(&app, &first).await.replay;
    let first_row =
        if first_row.has_all_ended { step(&app, &first).await.replay } else { first_row };
    let second_row = step(&app, &second).await.replay;
    let version =
        sqlx::query_scalar("select routing_version from application where uid = 'default'");
    let version: i64 = version.fetch_one(app.store.pool()).await.unwrap();

    let unrouted = app.store.unrouted_events(&first_row).await.unwrap();
    let found: Vec<_> = unrouted.events.iter().map(|one| one.event_id().to_string()).collect();
    assert_eq!(set(&found), set(&events));
    let deliveries: Vec<_> = unrouted
        .events
        .iter()
        .map(|event| LateDelivery {
            delivery_id: DeliveryId::of_event(event.event_id(), 0),
            event_id: event.event_id(),
            subscription: subscription.parse().unwrap(),
            target: webhook_dispatcher::domain::TargetUrl::parse(TARGET).unwrap(),
            payload_bytes: event.payload.as_ref().unwrap().len(),
            is_parked: false,
        })
        .collect();
    let reroute =
        async |row, version| app.store.reroute(row, &unrouted, version, &deliveries).await.unwrap();
    assert_eq!(reroute(&first_row, version - 1).await, Rerouted::Stale);
    assert_eq!(shown(&app, &first).await["unrouted"]["events"], 0);
    assert_eq!(reroute(&first_row, version).await, Rerouted::Stored(3));
    assert_eq!(reroute(&first_row, version).await, Rerouted::Overtaken);
    assert_eq!(reroute(&second_row, version).await, Rerouted::Stored(0));
    let expected = json!({"events": 3, "payload_gone": 0, "routed": 3, "deliveries": 3});
    assert_eq!(shown(&app, &first).await["unrouted"], expected);
    let second = shown(&app, &second).await;
    let expected = json!({"events": 3, "payload_gone": 0, "routed": 0, "deliveries": 0});
    assert_eq!((&second["unrouted"], &second["state"]), (&expected, &json!("completed")));
    let rows: (i64, i64) = sqlx::query_as(
        "select (select count(*) from delivery_queue where run is null),
                (select count(*) from event where delivery_count = 1 and routing_version = $1)",
    )
    .bind(version)
    .fetch_one(app.store.pool())
    .await
    .unwrap();
    assert_eq!(rows, (3, 3));
    app.stop().await;
}
