//! A Postgres whose clock can be stepped, under `libfaketime`. One for all tests of this process, one
//! test at a time.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, postgres::PgConnectOptions};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use super::{
    TestDatabase,
    cluster::stop_with_this_process,
    eventually,
    tools::{is_here, run, skip},
};

static CLUSTER: OnceCell<Option<Cluster>> = OnceCell::const_new();
static TURN: Mutex<()> = Mutex::const_new(());
static DATABASES: AtomicU32 = AtomicU32::new(0);

struct Cluster {
    options: PgConnectOptions,
    clock: PathBuf,
    /// Closes when this process ends; then the cluster is stopped and removed.
    _alive: std::process::ChildStdin,
}

/// A new, empty database on the cluster, and its clock until this is dropped.
pub struct SteppedClock {
    pub database: TestDatabase,
    clock: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl SteppedClock {
    /// Waits for a turn. `None`: something is missing, and the test is skipped.
    pub async fn take() -> Option<Self> {
        let turn = TURN.lock().await;
        let cluster = CLUSTER.get_or_init(start).await.as_ref()?;
        let name = format!("stepped_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut admin = cluster.options.clone().database("postgres").connect().await.unwrap();
        let create = format!("create database {name}");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
        admin.close().await.unwrap();
        let options = cluster.options.clone().database(&name);
        Some(Self {
            database: TestDatabase { options, name },
            clock: cluster.clock.clone(),
            _turn: turn,
        })
    }

    /// Puts the clock of Postgres ahead of this machine's by so much, as `+40d`, `-1h` or `+0`.
    pub fn step(&self, ahead: &str) {
        write_clock(&self.clock, ahead);
    }
}

impl Drop for SteppedClock {
    fn drop(&mut self) {
        self.step("+0");
    }
}

/// In one piece: Postgres reads it with each look at its clock.
fn write_clock(path: &Path, ahead: &str) {
    let next = path.with_extension("next");
    fs::write(&next, format!("{ahead}\n")).unwrap();
    fs::rename(&next, path).unwrap();
}

/// The first of these that is there, newest version first.
fn newest(folder: &str, rest: &str) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join(rest)))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop()
}

async fn start() -> Option<Cluster> {
    if !is_here("faketime", "--version") {
        return None;
    }
    let library = newest("/usr/lib", "faketime/libfaketime.so.1");
    let binaries = newest("/usr/lib/postgresql", "bin");
    let (Some(library), Some(binaries)) = (library, binaries) else {
        skip("libfaketime and Postgres of a Debian package are needed");
        return None;
    };
    let folder = std::env::temp_dir().join(format!("whd-stepped-{}", std::process::id()));
    let data = folder.join("postgres");
    fs::create_dir_all(&data).unwrap();
    let clock = folder.join("clock");
    write_clock(&clock, "+0");
    let account = account(&folder);
    let command = |program: &str| {
        let mut command = Command::new(binaries.join(program));
        command.current_dir(&folder).stdin(Stdio::null());
        if let Some((user, group)) = account {
            command.uid(user).gid(group);
        }
        command
    };
    let initialise = ["-U", "dispatcher", "-A", "trust", "-E", "UTF8", "--locale=C", "-N", "-D"];
    run(command("initdb").args(initialise).arg(&data)).unwrap();
    let log = fs::File::create(folder.join("log")).unwrap();
    let (data, socket) = (data.to_str().unwrap(), folder.to_str().unwrap());
    #[expect(clippy::zombie_processes, reason = "stopped by the shell that waits for our end")]
    command("postgres")
        .args(["-D", data, "-k", socket, "-c", "listen_addresses=", "-c", "fsync=off"])
        .args(["-c", "full_page_writes=off", "-c", "max_connections=100"])
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let alive = stop_with_this_process(&folder);
    let options = PgConnectOptions::new_without_pgpass().socket(&folder).username("dispatcher");
    eventually("Postgres with a clock of its own", async || {
        options.clone().database("postgres").connect().await.ok()?.close().await.ok()
    })
    .await;
    Some(Cluster { options, clock, _alive: alive })
}

/// Postgres does not run as root: then the account of its package, which gets the folder.
fn account(folder: &Path) -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().ok()
    };
    if id(&["-u"])? != 0 {
        return None;
    }
    let account = (id(&["-u", "postgres"])?, id(&["-g", "postgres"])?);
    run(Command::new("chown").args(["-R", "postgres:postgres"]).arg(folder)).unwrap();
    Some(account)
}
