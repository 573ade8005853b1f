//! The keys that seal secrets: what stands in the database, and when a start is refused.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::Duration,
};

use webhook_dispatcher::{
    app::App,
    domain::sealing::{OpenError, SealingKey, SealingKeys},
    sealing::{self, KEY_FILE, SealingError},
    store::Store,
};

use crate::support::{
    TestDatabase, config,
    process::{Folder, Process, command, free_port},
};

const OLD: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const NEW: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// The keys of a list as `ENCRYPTION_KEY` has it.
fn keys(list: &str) -> SealingKeys {
    let mut keys: Vec<SealingKey> = list.split(',').map(|key| key.parse().unwrap()).collect();
    SealingKeys::new(keys.remove(0), keys).unwrap()
}

async fn check(store: &Store, list: &str) -> Result<(), SealingError> {
    sealing::check(store, &keys(list)).await
}

async fn sealed(store: &Store) -> Vec<u8> {
    // Fails as well if there is more than one.
    let all: Vec<Vec<u8>> = sqlx::query_scalar("select sealed from sealing_check")
        .fetch_all(store.pool())
        .await
        .unwrap();
    let [one] = <[Vec<u8>; 1]>::try_from(all).unwrap();
    one
}

#[tokio::test]
async fn the_first_start_decides_with_which_key_a_database_is_sealed() {
    let store = TestDatabase::new().await.store();
    check(&store, OLD).await.unwrap();
    let first = sealed(&store).await;
    assert!(keys(OLD).is_current(&first));
    check(&store, OLD).await.unwrap();
    assert_eq!(sealed(&store).await, first, "it is not written again");

    let error = check(&store, NEW).await.unwrap_err();
    let (with, current) = (keys(OLD).current_id(), keys(NEW).current_id());
    assert!(
        matches!(&error, SealingError::AnotherKey { sealed_with, current: ours }
            if *sealed_with == with && *ours == current),
        "{error}"
    );
    assert_eq!(sealed(&store).await, first, "whoever is refused changes nothing");
}

#[tokio::test]
async fn the_key_is_rotated_start_by_start() {
    let store = TestDatabase::new().await.store();
    let (both, both_still_old) = (format!("{NEW},{OLD}"), format!("{OLD},{NEW}"));
    check(&store, OLD).await.unwrap();
    check(&store, &both_still_old).await.unwrap();
    assert!(keys(OLD).is_current(&sealed(&store).await));
    check(&store, &both).await.unwrap();
    assert!(keys(NEW).is_current(&sealed(&store).await), "sealed again");
    check(&store, NEW).await.unwrap();
    assert!(matches!(check(&store, OLD).await, Err(SealingError::AnotherKey { .. })));
}

#[tokio::test]
async fn of_two_first_starts_with_different_keys_one_is_refused() {
    let store = TestDatabase::new().await.store();
    // One has begun, and not committed.
    let mut other = store.pool().begin().await.unwrap();
    let theirs = keys(OLD).seal(b"webhook-dispatcher", b"sealing_check", [1; 24]);
    let insert = "insert into sealing_check (sealed) values ($1)";
    sqlx::query(insert).bind(&theirs).execute(&mut *other).await.unwrap();
    let (refused, accepted, ()) = tokio::join!(check(&store, NEW), check(&store, OLD), async {
        // Both wait for it by now, or they find it: the answer is the same.
        other.commit().await.unwrap();
    });
    assert!(matches!(refused, Err(SealingError::AnotherKey { .. })), "{refused:?}");
    accepted.unwrap();
    assert_eq!(sealed(&store).await, theirs);
}

#[tokio::test]
async fn a_value_that_was_replaced_meanwhile_is_left_alone() {
    let store = TestDatabase::new().await.store();
    check(&store, OLD).await.unwrap();
    let read = sealed(&store).await;
    let by = |list| keys(list).seal(b"webhook-dispatcher", b"sealing_check", [2; 24]);
    store.reseal_check(&read, &by(NEW)).await.unwrap();
    assert_eq!(sealed(&store).await, by(NEW));
    store.reseal_check(&read, &by(OLD)).await.unwrap();
    assert_eq!(sealed(&store).await, by(NEW));
}

#[tokio::test]
async fn a_value_that_is_damaged_is_told_from_another_key() {
    let store = TestDatabase::new().await.store();
    let foreign = keys(OLD).seal(b"webhook-dispatcher", b"another row", [1; 24]);
    store.sealing_check_or(&foreign).await.unwrap();
    let error = check(&store, OLD).await.unwrap_err();
    assert!(matches!(error, SealingError::Unreadable(OpenError::DamagedOrMoved)), "{error}");
    assert!(error.to_string().contains("ENCRYPTION_KEY"), "{error}");
}

#[tokio::test]
async fn the_service_has_the_keys_of_the_setting() {
    let list = format!("--encryption-key={NEW},{OLD}");
    let app = App::bind(config(&TestDatabase::new().await, &[&list])).await.unwrap();
    for key in [OLD, NEW] {
        let sealed = keys(key).seal(b"hush", b"row", [1; 24]);
        assert_eq!(app.sealing_keys().open(&sealed, b"row").unwrap().bytes(), b"hush");
        assert_eq!(app.sealing_keys().is_current(&sealed), key == NEW);
    }
}

/// How long a start may take to be refused before a test fails: one that is not goes on for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the binary, which must refuse, and tells what it says. No key is in it.
async fn refusal(environment: &[(&str, &str)]) -> String {
    let mut command = tokio::process::Command::from(command(environment));
    let output = command.env("BIND", "127.0.0.1:0").kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it is refused").unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let log = String::from_utf8_lossy(&output.stdout).into_owned() + &message;
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(!log.contains(OLD) && !log.contains(NEW), "a key was shown: {log}");
    message
}

#[tokio::test]
async fn another_key_stops_the_start_of_every_role() {
    let url = TestDatabase::new().await.url();
    let on = |key| [("DATABASE_URL", url.as_str()), ("ENCRYPTION_KEY", key)];
    let mut service = Process::start(free_port().await, &on(OLD)).await;
    for role in ["all", "api", "worker"] {
        let message = refusal(&[&on(NEW)[..], &[("ROLE", role)]].concat()).await;
        let expected = "ENCRYPTION_KEY: this database was sealed with another key";
        assert!(message.contains(expected), "{role}: {message}");
        let id = keys(OLD).current_id().to_string();
        assert!(message.contains(&id), "{role}: {message}");
    }
    service.signal("TERM");
    assert_eq!(service.ended().await.code(), Some(0));
    let rotated = format!("{NEW},{OLD}");
    for key in [rotated.as_str(), NEW] {
        let mut service = Process::start(free_port().await, &on(key)).await;
        service.signal("TERM");
        assert_eq!(service.ended().await.code(), Some(0), "{}", service.output());
        let output = service.output();
        assert!(!output.contains(OLD) && !output.contains(NEW), "a key was shown: {output}");
    }
    refusal(&on(OLD)).await;
}

#[tokio::test]
async fn the_local_default_keeps_its_key_until_a_setting_replaces_it() {
    let folder = Folder::new("key");
    let local = [("DATA_DIR", folder.str())];
    let with_setting = [local[0], ("ENCRYPTION_KEY", NEW)];
    let file = folder.0.join(KEY_FILE);
    let run = async |environment: &[(&str, &str)]| {
        let mut service = Process::start(free_port().await, environment).await;
        service.signal("TERM");
        assert_eq!(service.ended().await.code(), Some(0), "{}", service.output());
        service.output()
    };
    let output = run(&local).await;
    let meta = fs::metadata(&file).unwrap();
    let ours = rustix::process::geteuid().as_raw();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, ours), "closed to Postgres, too");
    let content = fs::read_to_string(&file).unwrap();
    let key: SealingKey = content.trim().parse().unwrap();
    assert!(!output.contains(content.trim()), "the key was shown: {output}");
    assert!(output.contains(&key.id().to_string()), "{output}");
    run(&local).await;
    assert_eq!(fs::read_to_string(&file).unwrap(), content);

    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    for environment in [&local[..], &with_setting] {
        assert!(refusal(environment).await.contains("encryption-key is open to other accounts"));
    }
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    fs::write(&file, "AAAA").unwrap();
    for environment in [&local[..], &with_setting] {
        assert!(refusal(environment).await.contains("encryption-key is damaged"));
    }
    fs::write(&file, &content).unwrap();

    // What was sealed with the file's key is opened with it, and sealed with the setting's.
    run(&with_setting).await;
    fs::remove_file(&file).unwrap();
    run(&with_setting).await;
    assert!(!file.exists(), "where there is a setting, nothing is made");
    let message = refusal(&local).await;
    assert!(message.contains("encryption-key is missing"), "{message}");
    assert!(!file.exists(), "a new one would open nothing");
    fs::write(&file, &content).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let message = refusal(&local).await;
    assert!(message.contains("ENCRYPTION_KEY: this database was sealed with another"), "{message}");
}
