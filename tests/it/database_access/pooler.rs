//! PgBouncer in transaction mode between the service and Postgres.

use std::{
    collections::{BTreeSet, HashSet},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use serde_json::json;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row, postgres::PgConnectOptions};

use super::count;
use crate::support::{
    Answer, Receiver, TestDatabase, eventually,
    process::{self, ENCRYPTION_KEY, Folder, Process, free_port},
    tools::is_here,
};

/// Sessions of Postgres that the pooler shares between all clients.
const SESSIONS: usize = 3;
/// Events by each way: of each process, and of `publish()`.
const EVENTS: usize = 25;

/// A running PgBouncer; killed when dropped.
struct Pooler {
    child: Child,
    port: u16,
    _folder: Folder,
}

impl Pooler {
    /// Starts one before a database. `None`: it is not installed.
    async fn before(database: &TestDatabase) -> Option<Self> {
        // Debian keeps it where only root looks.
        let path = "/usr/sbin/pgbouncer";
        let program = if Path::new(path).exists() { path } else { "pgbouncer" };
        if !is_here(program, "--version") {
            return None;
        }
        let port = free_port().await;
        let folder = Folder::new(&format!("pgbouncer-{port}"));
        std::fs::create_dir_all(&folder.0).unwrap();
        let socket = database.options.get_socket().unwrap();
        let (name, user) = (&database.name, database.options.get_username());
        // As in docs/deploy.md, but for the login.
        let settings = format!(
            "[databases]
             {name} = host={} port=5432 dbname={name} user={user} pool_size={SESSIONS}
             [pgbouncer]
             listen_addr = 127.0.0.1
             listen_port = {port}
             unix_socket_dir =
             auth_type = any
             pool_mode = transaction
             max_client_conn = 200
             server_round_robin = 1
             ",
            socket.display()
        );
        let settings: Vec<_> = settings.lines().map(str::trim_start).collect();
        let file = folder.0.join("pgbouncer.ini");
        std::fs::write(&file, settings.join("\n")).unwrap();
        let mut command = Command::new(program);
        // The socket is open to its account only, and PgBouncer does not run as root.
        let account = std::fs::metadata(socket).unwrap().uid();
        if is_root() {
            let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
            let line = passwd.lines().find(|l| l.split(':').nth(2) == Some(&account.to_string()));
            command.args(["-u", line.unwrap().split(':').next().unwrap()]);
        }
        let child = command
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pooler = Self { child, port, _folder: folder };
        eventually("the pooler", async || pooler.client(database).await.ok()).await;
        Some(pooler)
    }

    fn url(&self, database: &TestDatabase) -> String {
        let user = database.options.get_username();
        format!("postgres://{user}@127.0.0.1:{}/{}?sslmode=disable", self.port, database.name)
    }

    /// A client of another application.
    async fn client(&self, database: &TestDatabase) -> sqlx::Result<PgConnection> {
        let options: PgConnectOptions = self.url(database).parse().unwrap();
        options.extra_float_digits(None).connect().await
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The one text that a statement returns, by the simple protocol: one message, one session.
async fn ask(client: &mut PgConnection, sql: &str) -> String {
    let row = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(client).await.unwrap();
    row.get(0)
}

/// Broken by: a startup parameter that the pooler does not know; a statement that is prepared in one
/// session and run in another; names and settings that stay in sessions of other clients; a session
/// lock or LISTEN through the pooler.
#[tokio::test]
async fn service_works_through_a_pooler_in_transaction_mode() {
    let database = TestDatabase::new().await;
    let Some(pooler) = Pooler::before(&database).await else { return };
    let seen = Mutex::new(HashSet::new());
    let receiver = Receiver::start(move |_, received| {
        let is_first = seen.lock().unwrap().insert(received.header("webhook-id").to_owned());
        Answer::status(if is_first { 503 } else { 200 })
    })
    .await;
    let (url, direct) = (pooler.url(&database), database.url());
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_DIRECT_URL", direct.as_str()),
        ("ENCRYPTION_KEY", ENCRYPTION_KEY),
        ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
        ("BACKOFF_BASE_SECONDS", "0.1"),
        ("BREAKER_FAILURES", "0"),
    ];
    let (one, two) = (free_port().await, free_port().await);
    let (one, two) =
        tokio::join!(Process::start(one, &environment), Process::start(two, &environment));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = async |method: &str, url: String, body: serde_json::Value| {
        let request = http.request(method.parse().unwrap(), url);
        let request = request.header("content-type", "application/json").body(body.to_string());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let target = receiver.url("/");
    let subscription = json!({"target_url": target, "event_types": "*"});
    let (status, answer) = call("POST", format!("{}/subscriptions", one.base), subscription).await;
    assert_eq!(status, 201, "{answer}");

    let mut publisher = pooler.client(&database).await.unwrap();
    let publishing = async {
        for number in 0..EVENTS {
            let sql = format!("select publish('a.b', '{{\"n\": {number}}}')");
            assert!(ask(&mut publisher, &sql).await.starts_with("evt_"));
        }
    };
    let accepting = async |service: &Process| {
        for number in 0..EVENTS {
            let body = json!({"type": "a.b", "payload": {"n": number}});
            let (status, answer) = call("POST", format!("{}/events", service.base), body).await;
            assert_eq!(status, 202, "{answer}");
            let list = reqwest::get(format!("{}/events?limit=3", service.base)).await.unwrap();
            assert_eq!(list.status(), 200);
        }
    };
    // What another application finds in the sessions that it shares with the service.
    let mut other = pooler.client(&database).await.unwrap();
    let mut backends = BTreeSet::new();
    let mut watch = async |other: &mut PgConnection| {
        let settings = ask(
            other,
            "select concat_ws(' ', pg_backend_pid(), current_setting('enable_seqscan'),
                              current_setting('enable_hashjoin'), current_setting('lock_timeout'),
                              (select count(*) from pg_prepared_statements))",
        )
        .await;
        let (backend, rest) = settings.split_once(' ').unwrap();
        assert_eq!(rest, "on on 0 0");
        backends.insert(backend.to_owned());
    };
    let watching = async {
        loop {
            watch(&mut other).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = watching => {}
        _ = async { tokio::join!(publishing, accepting(&one), accepting(&two)) } => {}
    }
    let mut owner = database.options.connect().await.unwrap();
    let delivered = "select count(*) from delivery where state = 'delivered'";
    eventually("all deliveries", async || {
        let delivered = count(&mut owner, delivered).await;
        (usize::try_from(delivered).unwrap() == 3 * EVENTS).then_some(())
    })
    .await;
    assert_eq!(receiver.count(), 2 * 3 * EVENTS, "each is retried once");
    let mut other = pooler.client(&database).await.unwrap();
    for _ in 0..2 * SESSIONS {
        watch(&mut other).await;
    }
    assert!(backends.len() > 1, "the sessions changed: {backends:?}");
    // LISTEN goes around the pooler.
    let listeners = "select count(*) from pg_stat_activity
                     where datname = current_database() and query like 'LISTEN%'";
    assert_eq!(count(&mut owner, listeners).await, 2);
    for log in [one.output(), two.output()] {
        assert!(!log.contains("prepared statement"), "{log}");
    }
}

/// Broken by: a start that goes on, or that waits, or that does not say what is missing.
#[tokio::test]
async fn pooler_without_a_direct_way_is_refused_at_start() {
    let database = TestDatabase::new().await;
    let Some(pooler) = Pooler::before(&database).await else { return };
    // A name that a process before this one has left there.
    let mut client = pooler.client(&database).await.unwrap();
    let _: i32 = sqlx::query_scalar("select 1").fetch_one(&mut client).await.unwrap();
    let url = pooler.url(&database);
    let cases = [
        (vec![("DATABASE_URL", url.as_str())], "DATABASE_URL"),
        (
            vec![("DATABASE_URL", url.as_str()), ("DATABASE_DIRECT_URL", url.as_str())],
            "DATABASE_DIRECT_URL",
        ),
    ];
    for (mut environment, variable) in cases {
        environment.push(("ENCRYPTION_KEY", ENCRYPTION_KEY));
        let mut serve = process::command(&environment);
        let output = tokio::task::spawn_blocking(move || serve.output().unwrap()).await.unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{log}");
        let last = log.lines().last().unwrap();
        assert!(last.starts_with(&format!("webhook-dispatcher: {variable}")), "{log}");
        let reason = "the address of a pooler in transaction mode";
        assert!(last.contains(reason) && last.contains("DATABASE_DIRECT_URL"), "{log}");
    }
}
