//! The command line beside serving, as the binary.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::{
    TestApp, TestDatabase,
    process::{self, Process, free_port},
};

const ADMIN: &str = "the-key-of-the-operator";
const WITH_KEYS: &[&str] =
    &["--admin-api-key=the-key-of-the-operator", "--webhook-secret=a secret for the tests only"];

/// Runs the binary to its end.
async fn run(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command: Command = process::command(environment);
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What it printed, if it went well.
#[track_caller]
fn printed(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(why), "{errors}");
    assert_eq!(output.stdout, b"", "nothing that could be taken for a key");
}

async fn status(app: &TestApp, key: &str, path: &str) -> u16 {
    let request = app.http.get(format!("{}{path}", app.base)).bearer_auth(key);
    request.send().await.unwrap().status().as_u16()
}

/// Broken by: a word beside the key; a key of another role or application; a revocation that is none;
/// an expiry that is not kept.
#[tokio::test]
async fn keys_are_made_listed_and_revoked() {
    let database = TestDatabase::new().await;
    let url = database.url();
    let environment = [("DATABASE_URL", url.as_str())];
    let app = TestApp::on(database, WITH_KEYS).await;
    let create = ["keys", "create", "--name", "ci"];
    let with = |more: &[&'static str]| [&create[..], more].concat();

    let key = printed(run(&environment, &with(&["--role", "admin"])).await);
    let admin = key.strip_suffix('\n').unwrap();
    assert!(admin.starts_with("whd_") && !admin.contains(char::is_whitespace), "{admin:?}");
    assert_eq!(status(&app, admin, "/applications/default/api-keys").await, 200);
    let request = app.http.post(format!("{}/applications", app.base)).bearer_auth(admin);
    let request = request.header("content-type", "application/json").body(r#"{"uid": "ada"}"#);
    assert_eq!(request.send().await.unwrap().status().as_u16(), 201);

    let more = ["--role", "viewer", "--application", "ada", "--expires-in-days", "30"];
    let key = printed(run(&environment, &with(&more)).await);
    let viewer = key.trim();
    assert_eq!(status(&app, viewer, "/applications/ada").await, 200);
    assert_eq!(status(&app, viewer, "/applications/default").await, 404);
    assert_eq!(status(&app, viewer, "/applications/ada/api-keys").await, 403);

    let listed = printed(run(&environment, &["keys", "list"]).await);
    let rows: Vec<Vec<&str>> = listed.lines().map(|row| row.split('\t').collect()).collect();
    assert_eq!((rows.len(), rows[1][1], rows[1][5]), (2, "admin", "-"), "{listed}");
    let listed = printed(run(&environment, &["keys", "list", "--application", "ada"]).await);
    let rows: Vec<Vec<&str>> = listed.lines().map(|row| row.split('\t').collect()).collect();
    assert_eq!((rows.len(), rows[1][1], rows[1][3]), (2, "viewer", "ci"), "{listed}");
    assert!(rows[1][5].ends_with('Z') && rows[1][7] == "-", "it expires: {listed}");
    assert!(!listed.contains(viewer), "a key is shown once");

    printed(run(&environment, &["keys", "revoke", rows[1][0]]).await);
    crate::support::eventually("the key lets nobody in", async || {
        (status(&app, viewer, "/applications/ada").await == 401).then_some(())
    })
    .await;
    assert_eq!(status(&app, admin, "/applications/ada").await, 200);

    let unknown = format!("key_{}", "0".repeat(32));
    refused(&run(&environment, &["keys", "revoke", &unknown]).await, "there is no key");
    let nobody = ["--role", "viewer", "--application", "nobody"];
    refused(&run(&environment, &with(&nobody)).await, "no application `nobody`");
    let both = ["--role", "admin", "--application", "ada"];
    refused(&run(&environment, &with(&both)).await, "opens every application");
    refused(&run(&environment, &with(&["--role", "root"])).await, "one of admin, manager");
    let days = ["--role", "admin", "--expires-in-days", "0"];
    refused(&run(&environment, &with(&days)).await, "0 is not in 1..");
    assert_eq!(status(&app, ADMIN, "/applications/ada").await, 200);
    app.stop().await;
}

/// Broken by: a load into another catalogue than the one that is named.
#[tokio::test]
async fn the_standard_catalogue_is_loaded_for_whom_it_is_said() {
    let database = TestDatabase::new().await;
    let url = database.url();
    let environment = [("DATABASE_URL", url.as_str())];
    let app = TestApp::on(database, &[]).await;
    let load = ["event-types", "load"];
    let all = printed(run(&environment, &load).await);
    assert!(all.starts_with("added 5") && all.ends_with("; 0 were there\n"), "{all}");
    let again = printed(run(&environment, &load).await);
    assert!(again.starts_with("added 0 event types"), "{again}");
    let of = async |scope: &str| {
        let (_, page) = app.get(&format!("/event-types?scope={scope}&limit=250")).await;
        page["data"].as_array().unwrap().len()
    };
    assert_eq!(of("application").await, 0);
    assert!(of("instance").await >= 50);
    printed(run(&environment, &[&load[..], &["--application", "default"]].concat()).await);
    assert_eq!(of("application").await, of("instance").await);
    app.stop().await;
}

/// Broken by: a command that cannot go beside a service, that needs one, or that leaves a Postgres
/// behind.
#[tokio::test]
async fn commands_work_on_the_private_postgres_beside_a_service_and_without() {
    let folder = std::env::temp_dir().join(format!("whd-commands-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let data_dir = folder.to_str().unwrap();
    let environment = [("DATA_DIR", data_dir)];
    let create = ["keys", "create", "--name", "first", "--role", "admin"];
    let pid_file = folder.join("postgres/postmaster.pid");

    let key = printed(run(&environment, &create).await);
    assert!(folder.join("postgres").is_dir());
    assert!(!Path::new(&pid_file).exists(), "what it started is stopped");

    let with_keys = [("ADMIN_API_KEY", ADMIN), ("WEBHOOK_SECRET", "a secret for the tests only")];
    let mut service =
        Process::start(free_port().await, &[&environment[..], &with_keys].concat()).await;
    let second = printed(run(&environment, &create).await);
    assert!(pid_file.exists(), "what it found goes on");
    for key in [key.trim(), second.trim()] {
        let url = format!("{}/event-types", service.base);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(url).bearer_auth(key).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let page: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(page["data"], Value::Array(Vec::new()));
    }
    service.signal("TERM");
    assert!(service.ended().await.success());
    let listed = printed(run(&environment, &["keys", "list"]).await);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(!pid_file.exists());
    std::fs::remove_dir_all(&folder).unwrap();
}
