//! The private Postgres, started for real: as root (then it runs as another account) or as a user.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use webhook_dispatcher::embedded_postgres::{EmbeddedPostgres, EmbeddedPostgresError, Options};

use crate::support::eventually;

#[tokio::test]
async fn a_second_start_finds_the_data_again() {
    let folder = Folder::new();
    let server = start(&folder.data_dir()).await.unwrap();
    assert!(!server.was_adopted());
    write_note(&server, "kept").await;
    server.stop().await.unwrap();
    assert_eq!(postmaster_pid(&folder.data_dir()), None);

    let server = start(&folder.data_dir()).await.unwrap();
    assert!(!server.was_adopted());
    assert_eq!(notes(&server).await, ["kept"]);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn the_database_is_durable_private_and_utf8() {
    let folder = Folder::new();
    let mut options = options(&folder.data_dir());
    options.extra_settings.clear();
    let server = EmbeddedPostgres::start(options).await.unwrap();
    let mut connection = connect(&server).await;
    let settings = [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
        ("log_timezone", "UTC"),
    ];
    for (name, value) in settings {
        let query = sqlx::query_scalar("select current_setting($1)").bind(name);
        let found: String = query.fetch_one(&mut connection).await.unwrap();
        assert_eq!(found, value, "{name}");
    }
    let query = "select datcollate from pg_database where datname = current_database()";
    let row = connection.fetch_one(query).await.unwrap();
    assert_eq!(row.get::<String, _>(0), "C");
    let owner = fs::metadata(server.data_dir().join("postgres")).unwrap().uid();
    for dir in [server.socket_dir(), &server.data_dir().join("postgres")] {
        let meta = fs::metadata(dir).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid()), (0o700, owner), "{}", dir.display());
    }
    assert_eq!(fs::metadata(server.data_dir().join("postgres.log")).unwrap().mode() & 0o777, 0o600);
    server.stop().await.unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn postgres_runs_without_root_and_apart_from_our_group_and_environment() {
    let folder = Folder::new();
    let server = start(&folder.data_dir()).await.unwrap();
    let pid = postmaster_pid(&folder.data_dir()).unwrap();

    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(|id| id.parse().unwrap()).collect::<Vec<u32>>()
    };
    if geteuid().is_root() {
        assert!(ids("Uid:").iter().all(|uid| *uid != 0), "{status}");
        assert!(ids("Gid:").iter().all(|gid| *gid != 0), "{status}");
        assert_eq!(ids("Groups:"), Vec::<u32>::new());
    } else {
        assert_eq!(ids("Uid:"), [geteuid().as_raw(); 4]);
    }
    // Ctrl-C in a terminal goes to its foreground group, which is ours.
    assert_eq!(rustix::process::getpgid(Some(pid)).unwrap(), pid);
    // The service's secrets are in its environment; here cargo's variables stand for them.
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    assert!(!String::from_utf8_lossy(&environ).contains("CARGO"));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_postgres_that_outlived_its_service_is_adopted() {
    let folder = Folder::new();
    let server = start(&folder.data_dir()).await.unwrap();
    write_note(&server, "kept").await;
    let pid = postmaster_pid(&folder.data_dir()).unwrap();
    // What `kill -9` of the service does: its lock is gone, its Postgres is not.
    drop(server);

    let server = start(&folder.data_dir()).await.unwrap();
    assert!(server.was_adopted());
    assert_eq!(postmaster_pid(&folder.data_dir()), Some(pid));
    assert_eq!(notes(&server).await, ["kept"]);
    server.stop().await.unwrap();
    assert_eq!(postmaster_pid(&folder.data_dir()), None);
    assert!(has_ended(pid).await);
}

#[tokio::test]
async fn it_recovers_after_all_its_processes_were_killed() {
    let folder = Folder::new();
    let server = start(&folder.data_dir()).await.unwrap();
    write_note(&server, "kept").await;
    let pid = postmaster_pid(&folder.data_dir()).unwrap();
    let children = children_of(pid);
    drop(server);
    for pid in children.into_iter().chain([pid]) {
        let _ = kill_process(pid, Signal::KILL);
    }

    let server = start(&folder.data_dir()).await.unwrap();
    assert!(!server.was_adopted());
    assert_eq!(notes(&server).await, ["kept"]);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_waits_for_the_backends_of_a_killed_postmaster() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    let server = start(&data_dir).await.unwrap();
    write_note(&server, "kept").await;
    let mut connection = connect(&server).await;
    let row = connection.fetch_one("select pg_backend_pid()").await.unwrap();
    let backend = Pid::from_raw(row.get(0)).unwrap();
    let pid = postmaster_pid(&data_dir).unwrap();
    drop(server);
    // A stopped process cannot notice that its postmaster has died.
    kill_process(backend, Signal::STOP).unwrap();
    kill_process(pid, Signal::KILL).unwrap();

    let mut starting = Box::pin(start(&data_dir));
    // It must be refused by Postgres a few times in this while, and go on.
    let early = timeout(Duration::from_secs(2), &mut starting).await;
    assert!(early.is_err(), "it must wait, but: {early:?}");
    kill_process(backend, Signal::KILL).unwrap();
    let server = starting.await.unwrap();
    assert!(!server.was_adopted());
    assert_eq!(notes(&server).await, ["kept"]);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_waits_for_a_postmaster_that_shuts_down() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    let server = start(&data_dir).await.unwrap();
    let connection = connect(&server).await;
    let pid = postmaster_pid(&data_dir).unwrap();
    drop(server);
    // A smart shutdown lasts as long as its last client, and takes no new ones.
    kill_process(pid, Signal::TERM).unwrap();

    let mut starting = Box::pin(start(&data_dir));
    let early = timeout(Duration::from_secs(1), &mut starting).await;
    assert!(early.is_err(), "it must wait, but: {early:?}");
    connection.close().await.unwrap();
    let server = starting.await.unwrap();
    assert!(!server.was_adopted());
    assert_ne!(postmaster_pid(&data_dir), Some(pid));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_postmaster_that_lost_its_pid_file_is_not_taken_for_the_new_one() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    let server = start(&data_dir).await.unwrap();
    write_note(&server, "kept").await;
    let pid = postmaster_pid(&data_dir).unwrap();
    drop(server);
    // It serves on, and notices within a minute. The socket is there, too.
    fs::remove_file(pid_file(&data_dir)).unwrap();

    let mut starting = Box::pin(start(&data_dir));
    let early = timeout(Duration::from_secs(3), &mut starting).await;
    assert!(early.is_err(), "it must wait, but: {early:?}");
    kill_process(pid, Signal::INT).unwrap();
    let server = starting.await.unwrap();
    assert!(!server.was_adopted());
    assert_ne!(postmaster_pid(&data_dir), Some(pid));
    assert_eq!(notes(&server).await, ["kept"]);
    server.stop().await.unwrap();
}

/// A postmaster whose own file was deleted deletes that of the next one when it ends.
#[tokio::test]
async fn a_start_that_loses_its_pid_file_begins_anew() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    start(&data_dir).await.unwrap().stop().await.unwrap();

    let mut options = options(&data_dir);
    // So long it is ready and has not answered.
    options.extra_settings.push(("pre_auth_delay".to_owned(), "1".to_owned()));
    let starting = EmbeddedPostgres::start(options);
    let is_ready = || {
        let text = fs::read_to_string(pid_file(&data_dir)).unwrap_or_default();
        text.lines().nth(7).is_some_and(|state| state.trim() == "ready")
    };
    let losing = async {
        while !is_ready() {
            sleep(Duration::from_millis(5)).await;
        }
        let pid = postmaster_pid(&data_dir).unwrap();
        fs::remove_file(pid_file(&data_dir)).unwrap();
        pid
    };
    let (server, pid) = tokio::join!(starting, losing);
    let server = server.unwrap();
    assert!(!server.was_adopted());
    let new = postmaster_pid(&data_dir).unwrap();
    assert_ne!(new, pid);
    assert!(has_ended(pid).await);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_postgres_that_lost_its_pid_file_is_stopped() {
    let folder = Folder::new();
    let server = start(&folder.data_dir()).await.unwrap();
    let pid = postmaster_pid(&folder.data_dir()).unwrap();
    fs::remove_file(pid_file(&folder.data_dir())).unwrap();
    server.stop().await.unwrap();
    assert!(has_ended(pid).await);
}

#[tokio::test]
async fn lock_file_without_a_pid_is_removed_once_it_is_old() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    start(&data_dir).await.unwrap().stop().await.unwrap();
    let owner = fs::metadata(data_dir.join("postgres")).unwrap();
    let socket_lock = data_dir.join("run/.s.PGSQL.5432.lock");
    // What a power cut leaves: an empty file, or one whose blocks were never written.
    for (blank, file) in
        [("", pid_file(&data_dir)), ("\0\0\0\0", pid_file(&data_dir)), ("", socket_lock)]
    {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, blank).unwrap();
        std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3_600);
        fs::File::options().write(true).open(&file).unwrap().set_modified(hour_ago).unwrap();
        let server = start(&data_dir).await.unwrap();
        assert!(!server.was_adopted(), "{}", file.display());
        server.stop().await.unwrap();
    }

    // A fresh one may be of a postmaster that is just starting, so it is waited for.
    fs::write(pid_file(&data_dir), "").unwrap();
    let mut starting = Box::pin(start(&data_dir));
    let early = timeout(Duration::from_secs(1), &mut starting).await;
    assert!(early.is_err(), "it must wait, but: {early:?}");
    starting.await.unwrap().stop().await.unwrap();
}

/// Supervises a server until the returned token is cancelled.
fn supervised(server: EmbeddedPostgres) -> (CancellationToken, JoinHandle<EmbeddedPostgres>) {
    let stop = CancellationToken::new();
    (stop.clone(), TaskTracker::new().spawn(server.supervise(stop)))
}

/// The pid of a postmaster that is not `old` and serves.
async fn next_postmaster(data_dir: &Path, old: Pid) -> Pid {
    eventually("another postmaster", async || {
        let pid = postmaster_pid(data_dir).filter(|pid| *pid != old)?;
        let text = fs::read_to_string(pid_file(data_dir)).ok()?;
        (text.lines().nth(7)?.trim() == "ready").then_some(pid)
    })
    .await
}

#[tokio::test]
async fn ended_postgres_is_started_again() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    let server = start(&data_dir).await.unwrap();
    write_note(&server, "kept").await;
    let (stop, supervising) = supervised(server);
    let mut pid = postmaster_pid(&data_dir).unwrap();
    // The second time it ends in order, as by somebody's `pg_ctl stop`.
    for signal in [Signal::KILL, Signal::INT] {
        kill_process(pid, signal).unwrap();
        pid = next_postmaster(&data_dir, pid).await;
    }
    stop.cancel();
    let server = supervising.await.unwrap();
    assert_eq!(notes(&server).await, ["kept"]);

    // So does one that an earlier service has started.
    drop(server);
    let server = start(&data_dir).await.unwrap();
    assert!(server.was_adopted());
    let (stop, supervising) = supervised(server);
    kill_process(pid, Signal::KILL).unwrap();
    next_postmaster(&data_dir, pid).await;
    stop.cancel();
    let server = supervising.await.unwrap();
    assert_eq!(notes(&server).await, ["kept"]);
    server.stop().await.unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn upgraded_postgres_is_restarted() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    let installed = start(&data_dir).await.unwrap();
    let bin_dir = installed.bin_dir().to_owned();
    installed.stop().await.unwrap();
    // A build of its own, whose program can be replaced. It looks for its other files beside itself.
    let build = folder.path.join("usr");
    let layout =
        Command::new(bin_dir.join("pg_config")).args(["--pkglibdir", "--sharedir"]).output();
    let layout = String::from_utf8(layout.unwrap().stdout).unwrap();
    let bin = relocated(&build, &bin_dir);
    for dir in layout.lines() {
        let link = relocated(&build, Path::new(dir));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(dir, link).unwrap();
    }
    fs::create_dir_all(&bin).unwrap();
    for program in ["postgres", "initdb", "pg_ctl"] {
        fs::copy(bin_dir.join(program), bin.join(program)).unwrap();
    }
    fs::set_permissions(&folder.path, Permissions::from_mode(0o755)).unwrap();

    let mut options = options(&data_dir);
    options.path = Some(bin.clone().into_os_string());
    let server = EmbeddedPostgres::start(options).await.unwrap();
    assert_eq!(server.bin_dir(), bin);
    write_note(&server, "kept").await;
    let mut connection = connect(&server).await;
    let row = connection.fetch_one("show shared_preload_libraries").await.unwrap();
    assert_eq!(row.get::<String, _>(0), "plpgsql", "old sessions outlive the upgrade");
    let pid = postmaster_pid(&data_dir).unwrap();
    let (stop, supervising) = supervised(server);
    // As a package manager does it: written beside, and renamed over.
    fs::copy(bin.join("postgres"), bin.join("postgres.new")).unwrap();
    fs::rename(bin.join("postgres.new"), bin.join("postgres")).unwrap();

    next_postmaster(&data_dir, pid).await;
    stop.cancel();
    let server = supervising.await.unwrap();
    assert_eq!(notes(&server).await, ["kept"]);
    server.stop().await.unwrap();
}

/// The same folder under another `/usr`.
fn relocated(usr: &Path, dir: &Path) -> PathBuf {
    usr.join(dir.strip_prefix("/usr").expect("Postgres is installed under /usr"))
}

#[tokio::test]
async fn a_second_service_on_the_folder_is_refused() {
    let folder = Folder::new();
    let server = start(&folder.data_dir()).await.unwrap();
    let error = start(&folder.data_dir()).await.unwrap_err();
    assert!(matches!(error, EmbeddedPostgresError::AlreadyInUse { .. }), "{error:?}");
    let expected = format!(
        "another webhook-dispatcher already uses DATA_DIR {} (pid {})",
        server.data_dir().display(),
        std::process::id()
    );
    assert_eq!(error.to_string(), expected);
    server.stop().await.unwrap();
    start(&folder.data_dir()).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn a_pid_that_another_program_got_is_no_postmaster() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    let server = start(&data_dir).await.unwrap();
    let text = fs::read_to_string(pid_file(&data_dir)).unwrap();
    server.stop().await.unwrap();

    // Postgres by itself refuses to start beside a live process of its own user.
    let mut stranger = Stranger::spawn(&data_dir);
    write_pid_file(&data_dir, &text, stranger.pid());
    let begun = Instant::now();
    let server = start(&data_dir).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(!server.was_adopted());
    server.stop().await.unwrap();
    assert!(stranger.is_alive());
}

#[tokio::test]
async fn stop_signals_no_other_program() {
    let folder = Folder::new();
    let data_dir = folder.data_dir();
    drop(start(&data_dir).await.unwrap());
    let server = start(&data_dir).await.unwrap();
    assert!(server.was_adopted());
    let text = fs::read_to_string(pid_file(&data_dir)).unwrap();
    kill_all(postmaster_pid(&data_dir).unwrap()).await;

    let mut stranger = Stranger::spawn(&data_dir);
    write_pid_file(&data_dir, &text, stranger.pid());
    server.stop().await.unwrap();
    // A signal would need a moment to end it.
    sleep(Duration::from_millis(200)).await;
    assert!(stranger.is_alive());
}

#[tokio::test]
async fn stop_is_content_with_a_postgres_that_ended_by_itself() {
    let folder = Folder::new();
    let server = start(&folder.data_dir()).await.unwrap();
    kill_all(postmaster_pid(&folder.data_dir()).unwrap()).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_copy_of_a_running_database_is_a_database_of_its_own() {
    let folder = Folder::new();
    let original = start(&folder.data_dir()).await.unwrap();
    write_note(&original, "in both").await;
    // `postmaster.pid` is copied, too. As root, the copy belongs to root.
    let copy = folder.path.join("copy");
    fs::create_dir(&copy).unwrap();
    let from = folder.data_dir().join("postgres");
    assert!(Command::new("cp").arg("-r").arg(from).arg(&copy).status().unwrap().success());

    let server = start(&copy).await.unwrap();
    assert!(!server.was_adopted());
    write_note(&server, "in the copy").await;
    assert_eq!(notes(&server).await, ["in both", "in the copy"]);
    assert_eq!(notes(&original).await, ["in both"]);
    server.stop().await.unwrap();
    assert_eq!(notes(&original).await, ["in both"]);
    original.stop().await.unwrap();
}

#[tokio::test]
async fn leftovers_of_an_interrupted_initdb_are_removed() {
    let folder = Folder::new();
    let leftover = folder.data_dir().join("postgres.new-1-1");
    fs::create_dir_all(leftover.join("base")).unwrap();
    fs::write(leftover.join("PG_VERSION"), "15\n").unwrap();
    let server = start(&folder.data_dir()).await.unwrap();
    assert!(!leftover.exists());
    write_note(&server, "works").await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_folder_with_blanks_quotes_and_commas_works() {
    let folder = Folder::new();
    let data_dir = folder.path.join("a b\"c'd, $e\\ ");
    drop(start(&data_dir).await.unwrap());
    let server = start(&data_dir).await.unwrap();
    assert!(server.was_adopted());
    assert!(server.socket_dir().starts_with(server.data_dir()));
    write_note(&server, "works").await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_very_long_folder_works_with_its_socket_elsewhere() {
    let folder = Folder::new();
    let data_dir = folder.path.join("long".repeat(40)).join("longer".repeat(30));
    drop(start(&data_dir).await.unwrap());
    let server = start(&data_dir).await.unwrap();
    assert!(server.was_adopted());
    let socket_dir = server.socket_dir().to_owned();
    assert!(socket_dir.starts_with("/tmp"), "{}", socket_dir.display());
    assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);
    write_note(&server, "works").await;
    server.stop().await.unwrap();
    assert!(!socket_dir.exists());
}

#[tokio::test]
async fn a_database_of_another_version_is_refused_and_left_alone() {
    let folder = Folder::new();
    let cluster = folder.data_dir().join("postgres");
    fs::create_dir_all(&cluster).unwrap();
    fs::write(cluster.join("PG_VERSION"), "11\n").unwrap();
    let error = start(&folder.data_dir()).await.unwrap_err().to_string();
    assert!(error.contains("made by PostgreSQL 11, but only "), "{error}");
    assert!(error.contains("/bin)"), "{error}");
    assert_eq!(fs::read_to_string(cluster.join("PG_VERSION")).unwrap(), "11\n");
}

#[tokio::test]
async fn a_folder_that_is_no_database_is_refused_and_left_alone() {
    let folder = Folder::new();
    let note = folder.data_dir().join("postgres/note");
    fs::create_dir_all(note.parent().unwrap()).unwrap();
    fs::write(&note, "mine").unwrap();
    let error = start(&folder.data_dir()).await.unwrap_err().to_string();
    assert!(error.contains("holds no database"), "{error}");
    assert_eq!(fs::read_to_string(&note).unwrap(), "mine");
}

#[tokio::test]
async fn an_early_end_of_postgres_is_told_with_its_last_words() {
    let folder = Folder::new();
    let mut options = options(&folder.data_dir());
    options.extra_settings.push(("shared_buffers".to_owned(), "nonsense".to_owned()));
    let error = EmbeddedPostgres::start(options).await.unwrap_err().to_string();
    assert!(error.contains("postgres.log"), "{error}");
    assert!(error.contains("invalid value for parameter \"shared_buffers\""), "{error}");
    // The cluster was made all the same.
    start(&folder.data_dir()).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn a_folder_that_the_account_cannot_reach_is_refused_by_name() {
    if !geteuid().is_root() {
        return; // Only root runs Postgres as someone else.
    }
    let folder = Folder::new();
    let closed = folder.path.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("private"), "").unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let data_dir = closed.join("data/dispatcher");
    let error = start(&data_dir).await.unwrap_err();
    assert!(matches!(error, EmbeddedPostgresError::NotEnterable { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains(&format!("DATA_DIR {}", data_dir.display())), "{error}");
    assert!(error.contains(&format!("{} (mode 700)", closed.display())), "{error}");
    assert!(!closed.join("data").exists(), "nothing may be left where it is of no use");

    // As DATA_DIR itself it stays closed, too: it holds what is not ours.
    let error = start(&closed).await.unwrap_err();
    assert!(matches!(error, EmbeddedPostgresError::NotEnterable { .. }), "{error:?}");
    assert_eq!(fs::metadata(&closed).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn an_empty_closed_folder_will_do() {
    let folder = Folder::new();
    let data_dir = folder.path.join("as mktemp makes it");
    fs::create_dir(&data_dir).unwrap();
    fs::set_permissions(&data_dir, Permissions::from_mode(0o700)).unwrap();
    start(&data_dir).await.unwrap().stop().await.unwrap();
}

fn options(data_dir: &Path) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        path: None,
        extra_settings: vec![
            ("fsync".to_owned(), "off".to_owned()),
            ("shared_buffers".to_owned(), "16MB".to_owned()),
        ],
    }
}

async fn start(data_dir: &Path) -> Result<EmbeddedPostgres, EmbeddedPostgresError> {
    EmbeddedPostgres::start(options(data_dir)).await
}

async fn connect(server: &EmbeddedPostgres) -> PgConnection {
    PgConnection::connect_with(&server.connect_options()).await.unwrap()
}

async fn write_note(server: &EmbeddedPostgres, text: &str) {
    let mut connection = connect(server).await;
    connection.execute("create table if not exists note (text text)").await.unwrap();
    sqlx::query("insert into note values ($1)").bind(text).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn notes(server: &EmbeddedPostgres) -> Vec<String> {
    let mut connection = connect(server).await;
    let notes = sqlx::query_scalar("select text from note order by text")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    notes
}

/// A folder of one test that any account may enter. Its end ends what runs in it.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("embpg-{}-{count}", std::process::id());
        let path = fs::canonicalize(std::env::temp_dir()).unwrap().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Self { path }
    }

    fn data_dir(&self) -> PathBuf {
        self.path.join("data")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Only what a failed test left; the others have stopped theirs.
        for entry in fs::read_dir(&self.path).unwrap().flatten() {
            if let Some(pid) = postmaster_pid(&entry.path()) {
                for pid in children_of(pid).into_iter().chain([pid]) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A process of the account that runs Postgres, and not Postgres.
struct Stranger(Child);

impl Stranger {
    fn spawn(data_dir: &Path) -> Self {
        let owner = fs::metadata(data_dir.join("postgres")).unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        if geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pid_file(data_dir: &Path) -> PathBuf {
    data_dir.join("postgres/postmaster.pid")
}

/// As it was, but for the pid.
fn write_pid_file(data_dir: &Path, text: &str, pid: u32) {
    let (_, rest) = text.split_once('\n').unwrap();
    fs::write(pid_file(data_dir), format!("{pid}\n{rest}")).unwrap();
    let owner = fs::metadata(data_dir.join("postgres")).unwrap();
    std::os::unix::fs::chown(pid_file(data_dir), Some(owner.uid()), Some(owner.gid())).unwrap();
}

fn postmaster_pid(data_dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(pid_file(data_dir)).ok()?;
    Pid::from_raw(text.lines().next()?.parse().ok()?)
}

/// Read from /proc; elsewhere none, and they end by themselves after their postmaster.
fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, in parentheses: state, parent.
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split(' ').nth(1) == Some(&parent.as_raw_nonzero().to_string())
    };
    pids.filter(is_child).filter_map(Pid::from_raw).collect()
}

async fn kill_all(postmaster: Pid) {
    let children = children_of(postmaster);
    for pid in children.iter().chain([&postmaster]) {
        let _ = kill_process(*pid, Signal::KILL);
    }
    assert!(has_ended(postmaster).await);
}

/// Whether the process ends within some seconds. One that was not waited for yet has ended, too.
async fn has_ended(pid: Pid) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let raw = pid.as_raw_nonzero();
        let stat = fs::read_to_string(format!("/proc/{raw}/stat")).unwrap_or_default();
        if test_kill_process(pid).is_err() || stat.contains(") Z ") {
            return true;
        }
        // Nothing tells of the end of a process that is not our child.
        sleep(Duration::from_millis(20)).await;
    }
    false
}
