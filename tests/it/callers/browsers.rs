//! Web pages, unknown names and proxies, where the service asks for no key.

use serde_json::json;

use super::raw;
use crate::support::TestApp;

const JSON: (&str, &str) = ("content-type", "application/json");

async fn anybody(hosts: &str) -> TestApp {
    TestApp::with(&["--allow-unauthenticated=true", &format!("--allowed-hosts={hosts}")]).await
}

/// A request with these headers is refused for where it comes from, and with no body as well.
async fn is_refused(app: &TestApp, headers: &[(&str, &str)]) -> bool {
    let mut statuses = Vec::new();
    for (method, path) in
        [("GET", "/events"), ("POST", "/subscriptions/x/enable"), ("POST", "/mcp")]
    {
        let (status, _, answer) = raw(app, method, path, headers, "").await;
        // MCP has problems within errors of its own.
        let problem = answer.pointer("/error/data").unwrap_or(&answer);
        let is_forbidden = problem["type"] == "/problems/forbidden";
        assert_eq!(is_forbidden, status == 403, "{answer}");
        statuses.push(is_forbidden);
    }
    assert!(statuses.iter().all(|one| *one == statuses[0]), "{headers:?}: {statuses:?}");
    statuses[0]
}

/// In every mode without a key, with and without a body, reading and writing.
#[tokio::test]
async fn cross_site_requests_are_refused_without_a_key() {
    for app in [anybody("").await, TestApp::start().await] {
        let base = app.base.clone();
        for headers in [
            vec![("origin", "https://evil.example")],
            vec![("origin", "null")],
            vec![("origin", "http://localhost:3000")],
            vec![("sec-fetch-site", "cross-site")],
            vec![("sec-fetch-site", "same-site")],
            vec![("origin", base.as_str()), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(is_refused(&app, &headers).await, "{headers:?}");
        }
        for headers in [
            vec![],
            vec![("origin", base.as_str())],
            vec![("origin", base.as_str()), ("sec-fetch-site", "same-origin")],
            vec![("sec-fetch-site", "none")],
        ] {
            assert!(!is_refused(&app, &headers).await, "{headers:?}");
        }
        // A link to the page of the API leads there, and probes are answered in any case.
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        for path in ["/docs", "/health"] {
            assert_eq!(raw(&app, "GET", path, &link, "").await.0, 200, "{path}");
        }
        app.stop().await;
    }
}

/// A page under a name of its own that points here (DNS rebinding) is as any other page.
#[tokio::test]
async fn unknown_hosts_are_refused_without_a_key() {
    let app = anybody("hooks.example.com, dispatcher").await;
    for host in ["evil.example", "evil.example:8000", "localhost.evil.example", "example.com", ""] {
        assert!(is_refused(&app, &[("host", host)]).await, "{host}");
    }
    for host in [
        "localhost:8000",
        "127.0.0.1",
        "10.0.0.7:8000",
        "[2001:db8::1]:8000",
        "dispatcher:8000",
        "HOOKS.example.com",
    ] {
        assert!(!is_refused(&app, &[("host", host)]).await, "{host}");
    }
    let origin = [("host", "hooks.example.com"), ("origin", "https://hooks.example.com")];
    assert!(!is_refused(&app, &origin).await);
    assert_eq!(raw(&app, "GET", "/health", &[("host", "evil.example")], "").await.0, 200);
    let (_, _, problem) = raw(&app, "GET", "/events", &[("host", "evil.example")], "").await;
    assert!(problem["detail"].as_str().unwrap().contains("ALLOWED_HOSTS"), "{problem}");
    app.stop().await;
    // On loopback an address of elsewhere is unknown, and a listed name is known.
    let app = TestApp::with(&["--allowed-hosts=dispatcher.localhost"]).await;
    assert!(!is_refused(&app, &[("host", "dispatcher.localhost:8000")]).await);
    for host in ["10.0.0.7:8000", "other.localhost"] {
        assert!(is_refused(&app, &[("host", host)]).await, "{host}");
    }
    app.stop().await;
}

/// With a key, the names count only where they are listed.
#[tokio::test]
async fn listed_hosts_count_with_a_key_too() {
    let keys = crate::applications::WITH_KEYS;
    let key = ("x-api-key", crate::applications::ADMIN_KEY);
    let app = TestApp::with(&keys).await;
    let page = [key, ("host", "any.example"), ("origin", "https://elsewhere.example")];
    assert_eq!(raw(&app, "GET", "/events", &page, "").await.0, 200);
    app.stop().await;
    let app =
        TestApp::with(&[keys.as_slice(), &["--allowed-hosts=hooks.example.com"]].concat()).await;
    for (host, status) in [("any.example", 403), ("hooks.example.com", 200), ("127.0.0.1", 200)] {
        assert_eq!(
            raw(&app, "GET", "/events", &[key, ("host", host)], "").await.0,
            status,
            "{host}"
        );
    }
    app.stop().await;
}

/// On loopback without a key, a proxy on the same machine would make everybody the operator.
#[tokio::test]
async fn proxied_requests_are_refused_on_loopback_without_a_key() {
    let app = TestApp::start().await;
    for header in [
        ("forwarded", "for=192.0.2.60;proto=http"),
        ("x-forwarded-for", "192.0.2.60"),
        ("X-Forwarded-Host", "hooks.example.com"),
        ("x-forwarded-proto", "https"),
        ("via", "1.1 proxy"),
        ("x-real-ip", "192.0.2.60"),
    ] {
        assert!(is_refused(&app, &[header]).await, "{header:?}");
        assert_eq!(raw(&app, "GET", "/readyz", &[header], "").await.0, 200);
    }
    let (_, _, problem) = raw(&app, "GET", "/events", &[("via", "1.1 a")], "").await;
    assert!(problem["detail"].as_str().unwrap().contains("set ADMIN_API_KEY"), "{problem}");
    app.stop().await;
    let app = anybody("").await;
    assert!(!is_refused(&app, &[("x-forwarded-for", "192.0.2.60")]).await);
    app.stop().await;
}

/// Secrets, payloads and figures are kept by no cache between.
#[tokio::test]
async fn answers_are_not_to_be_stored() {
    let app = TestApp::start().await;
    let body = json!({"target_url": "http://127.0.0.1:9/", "event_types": "a", "uid": "mine"});
    for (method, path, body) in [
        ("POST", "/subscriptions", body.to_string()),
        ("GET", "/subscriptions/mine/secret", String::new()),
        ("POST", "/subscriptions/mine/rotate-secret", "{}".to_owned()),
        ("POST", "/applications", "{}".to_owned()),
        ("POST", "/applications/default/api-keys", r#"{"role": "viewer"}"#.to_owned()),
        ("GET", "/events", String::new()),
        ("GET", "/metrics", String::new()),
        ("GET", "/nothing", String::new()),
        ("POST", "/events", "{}".to_owned()),
    ] {
        let (_, headers, _) = raw(&app, method, path, &[JSON], &body).await;
        assert_eq!(headers["cache-control"], "no-store", "{method} {path}");
    }
    let (_, headers, _) = raw(&app, "GET", "/docs/start.js", &[], "").await;
    assert_eq!(headers["cache-control"], "public, max-age=3600");
    app.stop().await;
}
