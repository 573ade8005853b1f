//! The service in process, on a database of its own.

use std::time::{Duration, Instant};

use clap::Parser;
use reqwest::StatusCode;
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use webhook_dispatcher::{
    app::App,
    config::{Config, Database, Settings},
    store::Store,
};

use super::TestDatabase;

/// How long anything may take before a test fails. Never what a test measures.
const PATIENCE: Duration = Duration::from_secs(120);

/// Retries fast, so that tests do not wait for policies.
const FAST: &[&str] = &[
    "--backoff-base-seconds=0.05",
    "--backoff-max-seconds=0.2",
    "--max-attempts=5",
    "--worker-poll-interval=0.3",
    "--shutdown-grace=5",
    "--bind=127.0.0.1:0",
    // Replaced by the test's database; it keeps the local default away.
    "--database-url=postgres://replaced/",
    "--encryption-key=YSBrZXkgdGhhdCBldmVyeSB0ZXN0IG1heSBrbm93LiE=",
    "--allowed-target-cidrs=127.0.0.0/8,::1/128",
    "--require-https=false",
];

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// A running service.
pub struct TestApp {
    pub base: String,
    pub store: Store,
    pub http: reqwest::Client,
    stop: CancellationToken,
    run: Option<AbortOnDropHandle<anyhow::Result<()>>>,
}

impl TestApp {
    /// The service with the fast settings.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// The service with more flags; later ones win.
    pub async fn with(flags: &[&str]) -> Self {
        Self::on(TestDatabase::new().await, flags).await
    }

    /// The service on a database that may be another service's too.
    pub async fn on(database: TestDatabase, flags: &[&str]) -> Self {
        // Boxed, or every test would carry it.
        let app = Box::pin(App::bind(config(&database, flags))).await.unwrap();
        let base = format!("http://{}", app.local_addr().unwrap());
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "joined in `stop`, or aborted when dropped")]
        let run = tokio::spawn(app.run(stop.clone()));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let store = database.store();
        Self { base, store, http, stop, run: Some(AbortOnDropHandle::new(run)) }
    }

    /// Stops in order, and fails the test if that fails.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let run = self.run.take().unwrap();
        tokio::time::timeout(PATIENCE, run).await.expect("stops in time").unwrap().unwrap();
    }

    /// Posts JSON; answers status and body.
    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let url = format!("{}{path}", self.base);
        let response = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        answer(response).await
    }

    /// Gets; answers status and body.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.http.get(format!("{}{path}", self.base)).send().await.unwrap()).await
    }

    /// Sends a request, with a key and a body where there is one; answers status and body. What is
    /// refused must be a problem document.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let mut request =
            self.http.request(method.parse().unwrap(), format!("{}{path}", self.base));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let (status, body) = answer(request.send().await.unwrap()).await;
        let is_problem = body["type"].as_str().is_some_and(|name| name.starts_with("/problems/"));
        assert_eq!(is_problem, status.as_u16() >= 400, "{method} {path}: {status} {body}");
        (status.as_u16(), body)
    }

    /// Makes something with a POST that must succeed, and shows it.
    pub async fn make(&self, path: &str, body: Value) -> Value {
        let (status, made) = self.call("POST", path, None, Some(&body)).await;
        assert_eq!(status, 201, "{path} {body}: {made}");
        made
    }

    /// Publishes an event; tells its id.
    pub async fn publish(&self, body: Value) -> String {
        let (status, accepted) = self.call("POST", "/events", None, Some(&body)).await;
        assert_eq!(status, 202, "{accepted}");
        accepted["id"].as_str().unwrap().to_owned()
    }

    /// Accepts an event to a URL and tells its id.
    pub async fn accept(&self, target_url: &str) -> String {
        let body = serde_json::json!({"payload": {"hello": "world"}, "target_url": target_url});
        let (status, body) = self.post("/events", &body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// One event as the API shows it.
    pub async fn event(&self, id: &str) -> Value {
        let (status, body) = self.get(&format!("/events/{id}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// Waits until an event has this status, and shows it.
    pub async fn wait_for(&self, id: &str, status: &str) -> Value {
        eventually(status, async || {
            let event = self.event(id).await;
            (event["status"] == status).then_some(event)
        })
        .await
    }

    /// Waits for the first attempt at an event.
    pub async fn wait_for_attempt(&self, id: &str) -> Value {
        eventually("an attempt", async || {
            let event = self.event(id).await;
            (event["attempt_count"] != 0).then_some(event)
        })
        .await
    }
}

/// The configuration that the flags come to.
pub fn config(database: &TestDatabase, flags: &[&str]) -> Config {
    // Of the environment only what the tests need may count: flags win over it.
    let arguments = std::iter::once("webhook-dispatcher").chain(FAST.iter().copied());
    let mut arguments: Vec<_> = arguments.collect();
    for flag in flags {
        let name = flag.split('=').next().unwrap();
        arguments.retain(|known| known.split('=').next() != Some(name));
        arguments.push(flag);
    }
    let mut config = Flags::parse_from(arguments).settings.check().unwrap();
    config.database = Database::External(Box::new(database.options.clone().into()));
    config
}

async fn answer(response: reqwest::Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Waits until a look finds something. For the outer edge only: inside, tests call one step and
/// look at what it did.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let what = what.to_owned();
    async move {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(Instant::now() < give_up_at, "waited in vain: {what}");
            // Between two looks only; nothing is measured by it.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
