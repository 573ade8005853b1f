//! A real Payload CMS with the collections of `docs/payload`, on a database of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::OnceCell,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    TestDatabase, eventually,
    process::{Folder, free_port},
    tools::{install, prepared, run, skip},
};
use crate::tidy::root;

/// What Payload runs on: it says so in its `package.json`.
const NODE_LEAST: (u32, u32) = (20, 9);
/// The key of the user that is the dispatcher.
const API_KEY: &str = "00000000-0000-4000-8000-000000000000";

/// `None` without Node.
static TEMPLATE: OnceCell<Option<Template>> = OnceCell::const_new();
static INSTANCES: AtomicU32 = AtomicU32::new(0);

/// What all have in common: made once.
struct Template {
    /// The installed packages.
    modules: PathBuf,
    /// With the tables and the users.
    database: TestDatabase,
}

/// A running Payload; killed when dropped.
pub struct PayloadCms {
    database: TestDatabase,
    port: u16,
    folder: Folder,
    running: Option<Running>,
    http: reqwest::Client,
}

struct Running {
    child: Child,
    input: ChildStdin,
    /// All that it has said so far.
    said: Arc<Mutex<String>>,
    _reading: AbortOnDropHandle<()>,
}

impl PayloadCms {
    /// A new one with empty collections. `None` without Node: the test says so and is skipped.
    pub async fn start() -> Option<Self> {
        let template = TEMPLATE.get_or_init(template).await.as_ref()?;
        let database = TestDatabase::copied(&template.database.name).await;
        Some(Self::on(database, &template.modules, false).await)
    }

    async fn on(database: TestDatabase, modules: &Path, is_new: bool) -> Self {
        let number = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let folder = Folder::new(&format!("payload-{number}"));
        fs::create_dir_all(&folder.0).unwrap();
        let run = root().join("tests/it/payload/run.ts");
        for file in pasted().into_iter().chain([run]) {
            fs::copy(&file, folder.0.join(file.file_name().unwrap())).unwrap();
        }
        fs::write(folder.0.join("package.json"), json!({"type": "module"}).to_string()).unwrap();
        std::os::unix::fs::symlink(modules, folder.0.join("node_modules")).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut cms = Self { database, port: free_port().await, folder, running: None, http };
        cms.run(is_new).await;
        cms
    }

    async fn run(&mut self, is_new: bool) {
        let log = fs::File::create(self.folder.0.join("errors")).unwrap();
        let mut node = Command::new("node");
        if is_new {
            node.env("API_KEY", API_KEY);
        } else {
            // It makes no tables then.
            node.env("NODE_ENV", "production");
        }
        let mut child = node
            .args(["--import", "tsx", "run.ts"])
            .current_dir(&self.folder.0)
            .env_remove("WEBHOOK_DISPATCHER_URL")
            .env_remove("WEBHOOK_DISPATCHER_API_KEY")
            .env("DATABASE_URL", self.database.url())
            .env("PAYLOAD_SECRET", "for tests only")
            .env("PORT", self.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let said = Arc::<Mutex<String>>::default();
        #[expect(clippy::disallowed_methods, reason = "aborted when it is stopped")]
        let reading = tokio::spawn(read(output, said.clone()));
        let mut running = Running { child, input, said, _reading: AbortOnDropHandle::new(reading) };
        running.says("ready\n", &self.folder).await;
        self.running = Some(running);
    }

    /// `kill -9`, and gone.
    pub async fn stop(&mut self) {
        self.running.take().expect("it runs").child.kill().await.unwrap();
    }

    /// Starts again where it was, with what it had.
    pub async fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs");
        self.run(false).await;
    }

    /// Where it is, as `PAYLOAD_URL` says it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The key of a user of the collection `users`, as `PAYLOAD_API_KEY` says it.
    #[expect(clippy::unused_self, reason = "it is the key of this one")]
    pub fn api_key(&self) -> &'static str {
        API_KEY
    }

    /// From now on the hooks tell this dispatcher, which asks for no key.
    pub async fn tells(&mut self, dispatcher: &str) {
        let running = self.running.as_mut().expect("it runs");
        let line = format!("WEBHOOK_DISPATCHER_URL={dispatcher}\n");
        running.input.write_all(line.as_bytes()).await.unwrap();
        running.says(&format!("set {line}"), &self.folder).await;
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.running.as_ref().expect("it runs").said.lock().unwrap().clone()
    }

    /// Asks its REST API with the dispatcher's key; answers status and body.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.call_as(&format!("users API-Key {API_KEY}"), method, path, body).await
    }

    /// Asks its REST API as somebody; answers status and body.
    pub async fn call_as(
        &self,
        authorization: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}/api{path}", self.url()));
        request = request.header("authorization", authorization);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    /// The authorization of somebody who logs in, as people do in the admin panel.
    pub async fn editor(&self) -> String {
        let who = json!({"email": "editor@example.com", "password": "for tests only"});
        let (status, body) = self.call(Method::POST, "/users/login", Some(&who)).await;
        assert_eq!(status, 200, "{body}");
        format!("JWT {}", body["token"].as_str().unwrap())
    }
}

impl Running {
    /// Waits until it has said this.
    async fn says(&mut self, what: &str, folder: &Folder) {
        eventually(what, async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                let errors = fs::read_to_string(folder.0.join("errors")).unwrap_or_default();
                panic!("Payload ended with {status}: {errors}");
            }
            self.said.lock().unwrap().contains(what).then_some(())
        })
        .await;
    }
}

/// Keeps what it says, until it says no more.
async fn read(output: ChildStdout, said: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        said.lock().unwrap().push_str(&(line + "\n"));
    }
}

async fn template() -> Option<Template> {
    let modules = tokio::task::spawn_blocking(modules).await.unwrap()?;
    let database = TestDatabase::copied("template0").await;
    let mut cms = PayloadCms::on(database.clone(), &modules, true).await;
    cms.stop().await;
    Some(Template { modules, database })
}

/// What a user of Payload pastes.
fn pasted() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("docs/payload")).unwrap().map(|file| file.unwrap().path());
    files.collect()
}

/// The packages, installed once.
fn modules() -> Option<PathBuf> {
    if let Err(why) = node() {
        skip(&format!("node and npm are needed: {why}"));
        return None;
    }
    let sources = root().join("tests/it/payload");
    let names = [".npmrc", "package-lock.json", "package.json"];
    let texts = names.map(|name| fs::read(sources.join(name)).unwrap());
    let key: Vec<_> = texts.iter().map(Vec::as_slice).collect();
    let made = prepared("payload", &key, |folder| {
        fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        for (name, text) in names.iter().zip(&texts) {
            fs::write(folder.join(name), text).map_err(|error| error.to_string())?;
        }
        install(folder)
    });
    Some(made.expect("npm installs what the lock file names").join("node_modules"))
}

/// Whether there is a Node that Payload runs on.
fn node() -> Result<(), String> {
    run(std::process::Command::new("node").arg("--version"))?;
    let (major, minor) = NODE_LEAST;
    let is_new_enough = format!(
        "const [major, minor] = process.versions.node.split('.').map(Number);
         process.exit(major > {major} || (major === {major} && minor >= {minor}) ? 0 : 1)"
    );
    run(std::process::Command::new("node").args(["-e", &is_new_enough]))
        .map_err(|_| format!("Payload needs {major}.{minor} or newer"))
}
