//! One private cluster for all tests of this process, made by the code that the service uses, and
//! a database of its own for each test, copied from a migrated template.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::sync::OnceCell;
use webhook_dispatcher::{
    embedded_postgres::{EmbeddedPostgres, Options},
    store::Store,
};

const TEMPLATE: &str = "template_of_tests";

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

struct Cluster {
    postgres: EmbeddedPostgres,
    /// Closes when this process ends, however it ends; then the cluster is stopped and removed.
    _alive: ChildStdin,
}

/// A database of one test, with the schema of the service.
#[derive(Clone, Debug)]
pub struct TestDatabase {
    pub options: PgConnectOptions,
    pub name: String,
}

impl TestDatabase {
    /// A new, migrated database.
    pub async fn new() -> Self {
        Self::copied(TEMPLATE).await
    }

    /// A new database like that one, which nobody may be connected to.
    pub async fn copied(template: &str) -> Self {
        let cluster = CLUSTER.get_or_init(start).await;
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{number}");
        let options = cluster.postgres.connect_options();
        let mut admin = options.clone().database("postgres").connect().await.unwrap();
        let create = format!("create database {name} template {template}");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
        admin.close().await.unwrap();
        Self { options: options.database(&name), name }
    }

    /// A store over it.
    pub fn store(&self) -> Store {
        Store::connect_lazy(self.options.clone(), 5)
    }

    /// All rows of all tables as text, those with bytes as Latin-1 too: for what must not be there.
    pub async fn dump(&self) -> String {
        let mut connection = self.options.connect().await.unwrap();
        let columns: Vec<(String, String, String)> = sqlx::query_as(
            "select table_name::text, column_name::text, data_type::text
             from information_schema.columns where table_schema = 'public'",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let mut dump = String::new();
        for (table, column, kind) in columns {
            let value = if kind == "bytea" {
                format!("encode(\"{column}\", 'escape')")
            } else {
                format!("\"{column}\"::text")
            };
            let query = format!("select {value} from \"{table}\" where \"{column}\" is not null");
            let values: Vec<String> =
                sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut connection).await.unwrap();
            dump.extend(values.into_iter().map(|value| value + "\n"));
        }
        connection.close().await.unwrap();
        dump
    }

    /// How another process connects to it.
    pub fn url(&self) -> String {
        let host = self.options.get_socket().expect("the private cluster listens on a socket");
        let host = host.to_str().unwrap().replace('/', "%2F");
        format!("postgres://{}@{host}/{}", self.options.get_username(), self.name)
    }
}

async fn start() -> Cluster {
    // `cargo test` of two checkouts must not meet in one folder.
    let data_dir = std::env::temp_dir().join(format!("webhook-dispatcher-{}", std::process::id()));
    let settings = [("fsync", "off"), ("max_connections", "400"), ("full_page_writes", "off")];
    let postgres = EmbeddedPostgres::start(Options {
        data_dir: data_dir.clone(),
        path: std::env::var_os("PATH"),
        extra_settings: settings.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
    })
    .await
    .expect("Postgres must be installed to run these tests");
    let alive = stop_with_this_process(&data_dir);

    let mut admin = postgres.connect_options().database("postgres").connect().await.unwrap();
    let create = format!("create database {TEMPLATE}");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
    let store = Store::connect_lazy(postgres.connect_options().database(TEMPLATE), 1);
    store.migrate().await.unwrap();
    store.make_partitions().await.unwrap();
    store.close().await;
    Cluster { postgres, _alive: alive }
}

/// A Postgres of one test, beside the cluster of all tests.
pub struct TestServer {
    pub postgres: EmbeddedPostgres,
    _alive: ChildStdin,
}

impl TestServer {
    /// Starts one, with more settings.
    pub async fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        let process = std::process::id();
        let data_dir = std::env::temp_dir().join(format!("webhook-dispatcher-{name}-{process}"));
        let settings = [("fsync", "off"), ("full_page_writes", "off")].iter().chain(settings);
        let postgres = EmbeddedPostgres::start(Options {
            data_dir: data_dir.clone(),
            path: std::env::var_os("PATH"),
            extra_settings: settings.map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
        })
        .await
        .expect("Postgres must be installed to run these tests");
        Self { postgres, _alive: stop_with_this_process(&data_dir) }
    }

    /// A session of the administrator.
    pub async fn admin(&self) -> PgConnection {
        self.postgres.connect_options().database("postgres").connect().await.unwrap()
    }

    /// A new database without a schema.
    pub async fn database(&self, name: &str) -> TestDatabase {
        let create = format!("create database {name}");
        let mut admin = self.admin().await;
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
        let options = self.postgres.connect_options().database(name);
        TestDatabase { options, name: name.to_owned() }
    }

    /// Writes a file into the folder of the cluster, for nobody but its account.
    pub fn write(&self, file: &str, text: &[u8]) {
        let folder = self.postgres.data_dir().join("postgres");
        let path = folder.join(file);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let owner = std::fs::metadata(folder).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

/// Statics are not dropped at exit, and a panic or `kill -9` runs nothing at all. A shell that waits
/// for the end of its input outlives us by a moment and cleans up.
pub(super) fn stop_with_this_process(data_dir: &Path) -> ChildStdin {
    const CLEAN_UP: &str = r#"
        trap '' INT TERM HUP
        read -r _
        kill -INT "$(head -n 1 "$1/postgres/postmaster.pid")"
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            [ -e "$1/postgres/postmaster.pid" ] || break
            sleep 0.3
        done
        rm -rf "$1""#;
    #[expect(clippy::zombie_processes, reason = "it outlives this process on purpose")]
    let shell = Command::new("sh")
        .args(["-c", CLEAN_UP, "sh"])
        .arg(data_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    shell.stdin.unwrap()
}
