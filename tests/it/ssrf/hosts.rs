//! `allowed_hosts` of an application: it narrows every way in and what is sent, and widens nothing.

use serde_json::{Value, json};

use crate::support::{
    Receiver, TestApp, TestDatabase,
    dns::{DnsServer, Reply},
    eventually,
};

const ACME: &str = "/applications/acme";

/// Every name leads to the receivers of the test, but for one that leads to where nobody may call.
async fn dns() -> DnsServer {
    DnsServer::start(|name, _| match name {
        "private.test" => Reply::addresses(&["127.0.0.2"]),
        _ => Reply::addresses(&["127.0.0.1"]),
    })
    .await
}

async fn on(database: TestDatabase, dns: &DnsServer, more: &[&str]) -> TestApp {
    let servers = format!("--dns-servers={}", dns.address());
    let flags = [
        servers.as_str(),
        "--allowed-target-cidrs=127.0.0.1/32",
        "--max-attempts=1",
        "--dispatch-wait=100",
    ];
    TestApp::on(database, &[&flags, more].concat()).await
}

/// Sets the list; `null` lifts it.
async fn narrow(app: &TestApp, hosts: Value) {
    let body = json!({"allowed_hosts": hosts});
    let (status, shown) = app.call("PATCH", ACME, None, Some(&body)).await;
    assert_eq!((status, &shown["allowed_hosts"]), (200, &body["allowed_hosts"]), "{shown}");
}

#[track_caller]
fn is_refused(problem: &Value, host: &str) {
    assert_eq!(problem["type"], "/problems/target-refused", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(host) && detail.contains("`allowed_hosts`"), "{detail}");
}

/// Catches: a way in that does not ask the list, or that asks that of another application.
#[tokio::test]
async fn every_way_in_asks_the_list() {
    let app = on(TestDatabase::new().await, &dns().await, &["--role=api"]).await;
    let list = json!(["good.test", "*.below.test", "127.0.0.1"]);
    let made = app.make("/applications", json!({"uid": "acme", "allowed_hosts": list})).await;
    assert_eq!(made["allowed_hosts"], list);
    let subscription = async |of: &str, host: &str| {
        let body = json!({"target_url": format!("http://{host}/"), "event_types": "a"});
        app.call("POST", &format!("/subscriptions?application={of}"), None, Some(&body)).await
    };
    let (status, own) = subscription("acme", "good.test").await;
    assert_eq!(status, 201, "{own}");
    let path = format!("/subscriptions/{}", own["id"].as_str().unwrap());
    let in_acme = format!("{path}?application=acme");
    let good = ["good.test", "GOOD.test.:81", "a.below.test", "a.b.below.test", "127.1:9"];
    let bad =
        ["bad.test", "a.good.test", "below.test", "good.test.evil.test", "127.0.0.1.nip.test"];
    let ways: [(&str, &str, fn(&str) -> Value); 5] = [
        ("POST", "/subscriptions?application=acme", |url| json!({"url": url, "event_types": "a"})),
        ("PATCH", &in_acme, |url| json!({"target_url": url})),
        ("PUT", &in_acme, |url| json!({"target_url": url, "event_types": "a"})),
        ("POST", "/events", |url| json!({"payload": 1, "target_url": url, "application": "acme"})),
        (
            "POST",
            "/events/batch",
            |url| json!({"events": [{"payload": 1, "target_url": url, "application": "acme"}]}),
        ),
    ];
    for (method, path, body) in ways {
        for host in good {
            let body = body(&format!("http://{host}/"));
            let (status, answer) = app.call(method, path, None, Some(&body)).await;
            assert!(status < 300, "{method} {path} {host}: {answer}");
        }
        for host in bad {
            let body = body(&format!("https://{host}/"));
            let (status, mut answer) = app.call(method, path, None, Some(&body)).await;
            assert_eq!(status, 422, "{method} {path} {host}: {answer}");
            let is_of_item = answer["results"].is_array();
            let problem = if is_of_item { answer["results"][0]["problem"].take() } else { answer };
            is_refused(&problem, host);
            assert!(problem["pointer"].as_str().unwrap().ends_with("url"), "{problem}");
        }
    }
    // Others are not narrowed, and what is not about the target is not asked.
    assert_eq!(subscription("default", "bad.test").await.0, 201);
    app.accept("http://bad.test/").await;
    narrow(&app, json!(["other.test"])).await;
    let body = json!({"description": "still here"});
    assert_eq!(app.call("PATCH", &in_acme, None, Some(&body)).await.0, 200);
    let test = format!("{path}/test?application=acme");
    let (status, problem) = app.call("POST", &test, None, Some(&json!({}))).await;
    assert_eq!(status, 422);
    is_refused(&problem, "127.0.0.1");
    narrow(&app, Value::Null).await;
    assert_eq!(app.call("POST", &test, None, Some(&json!({}))).await.0, 202);
    app.stop().await;
}

/// Catches: a list that is asked when something is stored, and not when it is sent; one that another
/// process does not hear of; an application that is not asked because it is `default`.
#[tokio::test]
async fn what_is_sent_goes_by_the_list_as_it_is_now() {
    let (dns, database) = (dns().await, TestDatabase::new().await);
    let receiver = Receiver::always(200).await;
    let url = |host: &str| format!("http://{host}:{}/", receiver.port());
    let api = on(database.clone(), &dns, &["--role=api"]).await;
    for application in ["acme", "default"] {
        if application == "acme" {
            api.make("/applications", json!({"uid": "acme"})).await;
        }
        let of = format!("?application={application}");
        let body = json!({"target_url": url("old.test"), "event_types": "a"});
        api.make(&format!("/subscriptions{of}"), body).await;
        let publish = async || {
            let of_subscription = json!({"type": "a", "payload": 1, "application": application});
            let explicit =
                json!({"payload": 1, "target_url": url("old.test"), "application": application});
            [api.publish(of_subscription).await, api.publish(explicit).await]
        };
        let (before, received) = (publish().await, receiver.count());
        let path = format!("/applications/{application}");
        let narrow = async |hosts: Value| {
            let body = json!({"allowed_hosts": hosts});
            assert_eq!(api.call("PATCH", &path, None, Some(&body)).await.0, 200);
        };
        narrow(json!(["new.test"])).await;
        let worker = on(database.clone(), &dns, &["--role=worker"]).await;
        let ended = async |id: &str| {
            let path = format!("/events/{id}?application={application}");
            eventually("an end", async || {
                let (_, event) = api.get(&path).await;
                (event["status"] != "pending").then_some(event)
            })
            .await
        };
        for id in &before {
            let event = eventually("an attempt", async || {
                let (_, event) = api.get(&format!("/events/{id}{of}")).await;
                (event["attempt_count"] != 0).then_some(event)
            })
            .await;
            assert_eq!(event["last_error"]["class"], "blocked_address", "{event}");
            let told = event["last_error"]["message"].to_string();
            assert!(told.contains("allowed_hosts") && told.contains("old.test"), "{event}");
            // It would be sent once it may be.
            let delivery = event["deliveries"][0]["id"].as_str().unwrap();
            let cancel = format!("/deliveries/{delivery}/cancel{of}");
            eventually("its end", async || {
                (api.post(&cancel, &json!({})).await.0 == 200).then_some(())
            })
            .await;
        }
        assert_eq!(receiver.count(), received);
        // A dispatch tells it of each target.
        let targets = json!([url("old.test"), url("new.test")]);
        let body = json!({"event": "b", "payload": 1, "targets": targets});
        let (status, told) = api.post(&format!("/dispatch{of}"), &body).await;
        assert_eq!(status, 200, "{told}");
        assert_eq!(told["results"][0]["error"]["class"], "blocked_address", "{told}");
        assert_eq!(told["results"][1]["status"], "delivered", "{told}");
        narrow(Value::Null).await;
        // The worker knows it within a second; until then it goes by what it knows.
        eventually("a delivery", async || {
            let [of_subscription, explicit] = publish().await;
            // Both, so that none is received later.
            ended(&explicit).await;
            (ended(&of_subscription).await["status"] == "delivered").then_some(())
        })
        .await;
        worker.stop().await;
    }
    api.stop().await;
}

/// Catches: a list that opens what is closed, one that is lifted by being misread, one of anybody.
#[tokio::test]
async fn a_list_widens_nothing() {
    let (dns, database) = (dns().await, TestDatabase::new().await);
    let app = on(
        database,
        &dns,
        &[
            "--admin-api-key=the-key-of-the-operator",
            "--webhook-secret=a secret for the tests only",
        ],
    )
    .await;
    let admin = Some("the-key-of-the-operator");
    let call =
        async |method, path: &str, key, body: Value| app.call(method, path, key, Some(&body)).await;
    let list = json!(["private.test", "127.0.0.2", "good.test"]);
    let (_, made) =
        call("POST", "/applications", admin, json!({"uid": "acme", "allowed_hosts": list})).await;
    assert_eq!(made["allowed_hosts"], list, "{made}");
    let (_, key) =
        call("POST", &format!("{ACME}/api-keys"), admin, json!({"role": "manager"})).await;
    let manager = Some(key["key"].as_str().unwrap());
    let to = async |url: &str| {
        call("POST", "/events", manager, json!({"payload": 1, "target_url": url})).await
    };

    let (status, problem) = to("http://127.0.0.2/").await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(status == 422 && detail.contains("ALLOWED_TARGET_CIDRS"), "{problem}");
    let (status, accepted) = to("http://private.test/").await;
    assert_eq!(status, 202, "{accepted}");
    let path = format!("/events/{}", accepted["id"].as_str().unwrap());
    let told = eventually("blocked", async || {
        let (_, event) = app.call("GET", &path, manager, None).await;
        (event["attempt_count"] != 0).then_some(event.to_string())
    })
    .await;
    assert!(told.contains("blocked_address") && told.contains("ALLOWED_TARGET_CIDRS"), "{told}");

    // Its own manager sees the list, and cannot change it.
    for change in [json!(["*.test"]), Value::Null] {
        let (status, problem) =
            call("PATCH", ACME, manager, json!({"allowed_hosts": change, "name": "x"})).await;
        assert_eq!(
            (status, &problem["type"]),
            (403, &json!("/problems/not-permitted")),
            "{problem}"
        );
    }
    for (wrong, words) in [
        (json!([]), "1 to 100"),
        (json!(vec!["a.test"; 101]), "1 to 100"),
        (json!("a.test"), "an array"),
        (json!([1]), "strings"),
        (json!(["https://a.test"]), "neither a host"),
        (json!(["*"]), "neither a host"),
        (json!(["a.test", "*.127.0.0.1"]), "neither a host"),
    ] {
        let body = json!({"allowed_hosts": wrong, "name": "x"});
        let (status, problem) = call("PATCH", ACME, admin, body).await;
        assert_eq!(status, 422, "{wrong}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{wrong}: {problem}");
        assert!(problem["pointer"].as_str().unwrap().starts_with("/allowed_hosts"), "{problem}");
    }
    let (_, shown) = app.call("GET", ACME, manager, None).await;
    assert_eq!((&shown["allowed_hosts"], &shown["name"]), (&list, &json!("acme")));

    // What a later version may write, and this one cannot read.
    sqlx::query(
        "update application set allowed_hosts = '{cidr:10.0.0.0/8}',
             routing_version = routing_version + 1
         where uid = 'acme'",
    )
    .execute(app.store.pool())
    .await
    .unwrap();
    eventually("nothing is allowed", async || {
        let (status, problem) = to("http://good.test/").await;
        (status == 422).then(|| is_refused(&problem, "good.test"))
    })
    .await;
    app.stop().await;
}
