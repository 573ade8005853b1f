//! Failures of Postgres and of the way to it: sessions that end, that must not write, that are silent,
//! and how many of them there are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};
use webhook_dispatcher::embedded_postgres::{EmbeddedPostgres, Options};

use crate::{
    pool::Network,
    support::{Receiver, TestApp, TestDatabase, TestServer, eventually, process::Folder},
};

/// The documented number of connections, with `ROLE=all`, `api` and `worker` (docs/deploy.md).
const CONNECTIONS: [(&str, i64); 3] = [("all", 20), ("api", 10), ("worker", 18)];

/// A database that the service uses with a role of the test's own.
struct OwnRole {
    database: TestDatabase,
    admin: PgConnection,
    role: String,
}

impl OwnRole {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        let mut admin = database.options.connect().await.unwrap();
        let role = format!("role_of_{}", database.name);
        let create = format!("create role {role} superuser login");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
        let options = database.options.clone().username(&role);
        Self { database: TestDatabase { options, ..database }, admin, role }
    }

    async fn run(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.admin).await.unwrap();
    }

    async fn alter(&mut self, change: &str) {
        let alter = format!("alter role {} {change}", self.role);
        self.run(&alter).await;
    }

    /// Ends all sessions of the service.
    async fn terminate(&mut self) {
        let terminate = format!(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{}'",
            self.role
        );
        self.run(&terminate).await;
    }

    /// The sessions of the service. Those that end are not counted.
    async fn count(&mut self) -> i64 {
        sqlx::query_scalar("select count(*) from pg_stat_activity where usename = $1")
            .bind(&self.role)
            .fetch_one(&mut self.admin)
            .await
            .unwrap()
    }
}

async fn post(app: &TestApp, receiver: &Receiver) -> u16 {
    let body = json!({"payload": 1, "target_url": receiver.url("/")});
    app.post("/events", &body).await.0.as_u16()
}

async fn arrived(receiver: &Receiver, count: usize) {
    eventually("deliveries", async || (receiver.count() >= count).then_some(())).await;
}

async fn ready(app: &TestApp) -> (u16, Value) {
    let (status, body) = app.get("/readyz").await;
    (status.as_u16(), body)
}

/// Waits until `/readyz` is 503 for a reason that contains `part`.
async fn unready(app: &TestApp, part: &str) {
    eventually(part, async || {
        let (status, body) = ready(app).await;
        if status == 503 {
            assert_eq!(body["type"], "/problems/unavailable", "{body}");
        }
        let detail = body["detail"].as_str().unwrap_or_default();
        (status == 503 && detail.contains(part)).then_some(())
    })
    .await;
}

async fn is_ready_again(app: &TestApp) {
    eventually("/readyz 200", async || (ready(app).await.0 == 200).then_some(())).await;
}

#[tokio::test]
async fn read_only_sessions_are_discarded_and_readiness_says_so() {
    let receiver = Receiver::always(200).await;
    let mut own = OwnRole::new().await;
    let app = TestApp::on(own.database.clone(), &[]).await;
    assert_eq!(post(&app, &receiver).await, 202);
    own.alter("set default_transaction_read_only = on").await;
    own.terminate().await;
    unready(&app, "read-only (25006)").await;
    // Some of the sessions become old meanwhile.
    assert_eq!(post(&app, &receiver).await, 503);
    unready(&app, "read-only (25006)").await;
    own.alter("reset default_transaction_read_only").await;
    let reset_at = Instant::now();
    eventually("202", async || (post(&app, &receiver).await == 202).then_some(())).await;
    assert!(reset_at.elapsed() < Duration::from_secs(10), "{:?}", reset_at.elapsed());
    is_ready_again(&app).await;
    // Recording and claiming have recovered too.
    arrived(&receiver, 2).await;
    app.stop().await;
}

#[tokio::test]
async fn sessions_ended_at_rest_are_replaced_within_the_request() {
    let receiver = Receiver::always(200).await;
    let mut own = OwnRole::new().await;
    let app = TestApp::on(own.database.clone(), &[]).await;
    for _ in 0..3 {
        // Several sessions of the pool, used a moment ago.
        let gets = (0..8).map(|_| app.get("/events?limit=1"));
        for (status, body) in futures_util::future::join_all(gets).await {
            assert_eq!(status, 200, "{body}");
        }
        own.terminate().await;
        for _ in 0..12 {
            let (status, body) = app.get("/events?limit=1").await;
            assert_eq!(status, 200, "{body}");
        }
        assert_eq!(post(&app, &receiver).await, 202);
        assert_eq!(ready(&app).await.0, 200);
    }
    app.stop().await;
}

#[tokio::test]
async fn idle_session_timeout_of_the_server_causes_no_errors() {
    let receiver = Receiver::always(200).await;
    let mut own = OwnRole::new().await;
    own.alter("set idle_session_timeout = '600ms'").await;
    let app = TestApp::on(own.database.clone(), &[]).await;
    for _ in 0..4 {
        // Below and above the time after which a session is checked.
        for pause_ms in [700, 1_200] {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            assert_eq!(post(&app, &receiver).await, 202);
            let (status, body) = app.get("/events?limit=1").await;
            assert_eq!(status, 200, "{body}");
            assert_eq!(ready(&app).await.0, 200);
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn readiness_names_a_missing_library_and_a_refused_role() {
    let receiver = Receiver::always(200).await;
    let mut own = OwnRole::new().await;
    let app = TestApp::on(own.database.clone(), &[]).await;
    assert_eq!(ready(&app).await, (200, json!({"ok": true})));

    let handlers = "where proname in ('plpgsql_call_handler', 'plpgsql_inline_handler')";
    own.run(&format!("update pg_proc set probin = '$libdir/replaced' {handlers}")).await;
    unready(&app, "libraries (58P01)").await;
    own.run(&format!("update pg_proc set probin = '$libdir/plpgsql' {handlers}")).await;
    is_ready_again(&app).await;

    own.alter("nologin").await;
    own.terminate().await;
    unready(&app, "password (28000)").await;
    own.alter("login").await;
    is_ready_again(&app).await;
    assert_eq!(post(&app, &receiver).await, 202);

    own.run("update _sqlx_migrations set success = false where version > 5").await;
    unready(&app, "the schema is at migration 5").await;
    own.run("update _sqlx_migrations set success = true").await;
    is_ready_again(&app).await;
    app.stop().await;
}

#[tokio::test]
async fn first_request_after_a_restart_of_postgres_is_accepted() {
    let receiver = Receiver::always(200).await;
    let folder = Folder::new("restart");
    let start = || {
        EmbeddedPostgres::start(Options {
            data_dir: folder.0.clone(),
            path: std::env::var_os("PATH"),
            extra_settings: Vec::new(),
        })
    };
    let postgres = start().await.unwrap();
    let database = TestDatabase { options: postgres.connect_options(), name: "own".to_owned() };
    let app = TestApp::on(database, &["--role=api"]).await;
    assert_eq!(post(&app, &receiver).await, 202);
    let gets = (0..8).map(|_| app.get("/events?limit=1"));
    futures_util::future::join_all(gets).await;

    postgres.stop().await.unwrap();
    unready(&app, "database").await;
    let postgres = start().await.unwrap();
    assert_eq!(ready(&app).await, (200, json!({"ok": true})), "at once");
    assert_eq!(post(&app, &receiver).await, 202, "the first one");
    let (status, body) = app.get("/events?limit=1").await;
    assert_eq!(status, 200, "{body}");
    app.stop().await;
    postgres.stop().await.unwrap();
}

/// Catches: a batch whose commit is late, stored once more under new ids, because the key that it holds
/// itself was taken for somebody else's.
#[tokio::test]
async fn batch_whose_commit_is_late_is_stored_once() {
    let receiver = Receiver::always(200).await;
    // Commits can wait for a standby, and there is none.
    let settings = [("wal_level", "replica"), ("max_wal_senders", "1")];
    let server = TestServer::start("late-commit", &settings).await;
    let database = server.database("late_commit").await;
    let mut admin = database.options.connect().await.unwrap();
    let app = TestApp::on(database, &[]).await;
    assert_eq!(post(&app, &receiver).await, 202);
    let mut set = async |change: &str| {
        let change = format!("alter system {change}");
        sqlx::raw_sql(AssertSqlSafe(change)).execute(&mut admin).await.unwrap();
        sqlx::raw_sql("select pg_reload_conf()").execute(&mut admin).await.unwrap();
    };
    // `alter system` itself commits nothing.
    set("set synchronous_standby_names = 'nobody'").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let event = |n: usize| json!({"payload": 100 + n, "target_url": receiver.url("/")});
    let mut events: Vec<_> = (0..8).map(event).collect();
    events[0]["idempotency_key"] = json!("key");
    let body = json!({"events": events});
    let posted = app.post("/events/batch", &body);
    let released = async {
        // Longer than the deadline of the statement, and shorter than the patience of the batch.
        tokio::time::sleep(Duration::from_millis(4_600)).await;
        set("reset synchronous_standby_names").await;
    };
    let ((status, answer), ()) = tokio::join!(posted, released);
    let stored = "select count(*), count(distinct payload) from event_payload";
    let (count, different): (i64, i64) =
        sqlx::query_as(AssertSqlSafe(stored)).fetch_one(app.store.pool()).await.unwrap();
    assert_eq!(count, different, "{status} {answer}");
    app.stop().await;
}

/// Catches: probes that wait behind those who read.
#[tokio::test]
async fn readiness_does_not_wait_for_readers() {
    let database = TestDatabase::new().await;
    let mut admin = database.options.connect().await.unwrap();
    let app = TestApp::on(database, &[]).await;
    sqlx::raw_sql("begin; lock table subscription").execute(&mut admin).await.unwrap();
    let reading = futures_util::future::join_all((0..12).map(|_| app.get("/subscriptions")));
    let probing = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let answer = ready(&app).await;
        sqlx::raw_sql("rollback").execute(&mut admin).await.unwrap();
        answer
    };
    let (_, answer) = tokio::join!(reading, probing);
    assert_eq!(answer, (200, json!({"ok": true})));
    app.stop().await;
}

/// Catches: a session that the network has swallowed in a transaction, and that keeps its locks for
/// hours.
#[tokio::test]
async fn sessions_do_not_keep_their_locks_when_the_network_swallows_them() {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let mut admin = database.options.connect().await.unwrap();
    let app = TestApp::on(database, &[]).await;
    let note = "create table noted (name text, value text);
                create function note() returns trigger language plpgsql as $$ begin
                    insert into noted select name, setting from pg_settings
                    where name = 'idle_in_transaction_session_timeout';
                    return null;
                end $$;
                create trigger note after insert on delivery_queue execute function note()";
    sqlx::raw_sql(note).execute(&mut admin).await.unwrap();
    assert_eq!(post(&app, &receiver).await, 202);
    let noted: Vec<(String, String)> =
        sqlx::query_as("select distinct name, value from noted order by 1")
            .fetch_all(&mut admin)
            .await
            .unwrap();
    let idle = ("idle_in_transaction_session_timeout".to_owned(), "10000".to_owned());
    assert!(noted.contains(&idle), "{noted:?}");
    app.stop().await;
}

#[tokio::test]
async fn silent_connections_are_replaced_by_new_ones() {
    let receiver = Receiver::always(200).await;
    let database = TestDatabase::new().await;
    let (network, options) = Network::before(&database).await;
    let app = TestApp::on(TestDatabase { options, ..database }, &[]).await;
    assert_eq!(post(&app, &receiver).await, 202);
    arrived(&receiver, 1).await;
    network.swallow();
    let swallowed_at = Instant::now();
    assert_eq!(post(&app, &receiver).await, 202);
    arrived(&receiver, 2).await;
    let (status, body) = app.get("/events?limit=1").await;
    assert_eq!(status, 200, "{body}");
    // Deadlines of a few seconds, one after the other; without them it is half a minute.
    assert!(swallowed_at.elapsed() < Duration::from_secs(20), "{:?}", swallowed_at.elapsed());
    app.stop().await;
}

#[tokio::test]
async fn connections_are_as_many_as_documented() {
    for (role, documented) in CONNECTIONS {
        let receiver = Receiver::always(200).await;
        let mut own = OwnRole::new().await;
        let app = TestApp::on(own.database.clone(), &[&format!("--role={role}")]).await;
        let mut most = 0;
        for _ in 0..5 {
            let gets = (0..32).map(|_| app.get("/events?limit=1"));
            let posts = (0..32).map(|_| post(&app, &receiver));
            let load = futures_util::future::join(
                futures_util::future::join_all(gets),
                futures_util::future::join_all(posts),
            );
            let (_, count) = futures_util::future::join(load, own.count()).await;
            most = most.max(count).max(own.count().await);
        }
        assert!(most <= documented, "{role}: {most}");
        // The pools are full but for the two of the maintenance, which come and go.
        assert!(most >= documented / 2, "{role}: {most}");
        app.stop().await;
    }
}

#[tokio::test]
async fn requests_wait_for_a_session_where_the_role_may_have_no_more() {
    let receiver = Receiver::always(200).await;
    let mut own = OwnRole::new().await;
    // A limit does not count for superusers.
    let change = format!(
        "alter role {0} nosuperuser connection limit 13; alter schema public owner to {0};
         do $$ declare one record; begin
             for one in select oid::regclass as name from pg_class
                        where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
             loop execute format('alter table %s owner to {0}', one.name); end loop;
         end $$",
        own.role
    );
    own.run(&change).await;
    let app = TestApp::on(own.database.clone(), &[]).await;
    for _ in 0..3 {
        let gets = (0..32).map(|_| app.get("/events?limit=1"));
        let posts = (0..8).map(|_| post(&app, &receiver));
        let load = futures_util::future::join(
            futures_util::future::join_all(gets),
            futures_util::future::join_all(posts),
        );
        let (gets, posts) = load.await;
        assert!(gets.iter().all(|(status, _)| *status == 200), "{gets:?}");
        assert!(posts.iter().all(|status| *status == 202), "{posts:?}");
        assert!(own.count().await <= 13);
    }
    app.stop().await;
}
