//! The code of the guide for receivers, as it stands there, against what the service sends: genuine,
//! changed, and old.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::json;
use webhook_dispatcher::domain::SigningKey;

use super::{code, guide, verify};
use crate::{
    support::{Received, Receiver, TestApp, eventually, tools::is_here},
    tidy::root,
    verifiers::{javascript_with_library, python_with_library},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const OTHER_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// Not base64, and not ASCII either.
const TEXT_SECRET: &str = "ein Schlüssel als Text";
const PAYLOAD: &str = r#"{"z":1,  "a":"é\u00e9😀"}"#;
/// Beyond the tolerance of five minutes.
const TOO_FAR: TimeDelta = TimeDelta::minutes(6);
/// Within it, by more than the tests take.
const NEAR: TimeDelta = TimeDelta::minutes(2);

/// What a verifier is given: a secret, the headers that are signed and that sign, and the body.
#[derive(Clone)]
struct Case {
    why: &'static str,
    is_genuine: bool,
    secret: &'static str,
    headers: Vec<Option<String>>,
    body: Vec<u8>,
}

impl Case {
    /// A request as it came.
    fn of(why: &'static str, secret: &'static str, headers: &[&str], request: &Received) -> Self {
        let headers = headers.iter().map(|name| Some(request.header(name).to_owned())).collect();
        Self { why, is_genuine: true, secret, headers, body: request.body.clone() }
    }

    /// The same request, changed so that it must be refused.
    fn forged(&self, why: &'static str, change: impl FnOnce(&mut Self)) -> Self {
        let mut forged = Self { why, is_genuine: false, ..self.clone() };
        change(&mut forged);
        forged
    }

    /// The same request with another value, or none, of one of its headers.
    fn with(&self, why: &'static str, header: usize, value: Option<&str>) -> Self {
        self.forged(why, |case| case.headers[header] = value.map(ToOwned::to_owned))
    }

    /// A line for the drivers.
    fn line(&self) -> String {
        let headers = self.headers.iter().map(|value| value.as_deref().map(str::as_bytes));
        let fields = [Some(self.secret.as_bytes())].into_iter().chain(headers);
        let fields = fields.chain([Some(self.body.as_slice())]);
        let fields: Vec<_> = fields.map(|field| field.map_or("-".to_owned(), hex)).collect();
        fields.join(" ") + "\n"
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// What the service sends under each kind of secret: one that is base64, a text, and one that is
/// being replaced.
async fn deliveries() -> [Received; 3] {
    let receiver = Receiver::always(200).await;
    let app = TestApp::start().await;
    for (uid, secret) in [("base64", SECRET), ("text", TEXT_SECRET), ("rotated", SECRET)] {
        let url = receiver.url(&format!("/{uid}"));
        let body =
            json!({"uid": uid, "target_url": url, "event_types": "user.seen", "secret": secret});
        app.make("/subscriptions", body).await;
    }
    let new = json!({"secret": NEW_SECRET});
    let rotate = "/subscriptions/rotated/rotate-secret";
    assert_eq!(app.call("POST", rotate, None, Some(&new)).await.0, 200);
    let body = format!(r#"{{"type": "user.seen", "payload": {PAYLOAD}}}"#);
    let request = app.http.post(format!("{}/events", app.base)).body(body);
    let request = request.header("content-type", "application/json");
    assert_eq!(request.send().await.unwrap().status(), 202);
    eventually("all deliveries", async || (receiver.count() == 3).then_some(())).await;
    app.stop().await;
    let received = receiver.received();
    ["/base64", "/text", "/rotated"]
        .map(|path| received.iter().find(|request| request.path == path).expect("one each").clone())
}

/// Deliveries with `webhook-signature`, and what was made of them.
async fn standard_cases() -> Vec<Case> {
    const ID: usize = 0;
    const TIMESTAMP: usize = 1;
    const SIGNATURES: usize = 2;
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let [base64, text, rotated] = deliveries().await;
    let genuine = Case::of("as it came", SECRET, &names, &base64);
    let signatures = base64.header("webhook-signature");
    let [id, sent] = ["webhook-id", "webhook-timestamp"].map(|name| base64.header(name));
    let later = (sent.parse::<i64>().unwrap() + 1).to_string();
    // Signed as it should be, at another time.
    let at = |why, distance: TimeDelta| {
        let time = (Utc::now() + distance).timestamp();
        let key = SigningKey::from_secret(SECRET).unwrap();
        genuine.forged(why, |case| {
            case.is_genuine = distance.abs() <= NEAR;
            case.headers[TIMESTAMP] = Some(time.to_string());
            case.headers[SIGNATURES] = Some(key.standard_signature(id, time, &base64.body));
        })
    };
    let [newest, older] = [0, 1].map(|index| {
        rotated.header("webhook-signature").split(' ').nth(index).expect("both sign").to_owned()
    });
    assert_ne!(newest, older);
    vec![
        genuine.clone(),
        Case::of("by a secret that is a text", TEXT_SECRET, &names, &text),
        Case::of("by the secret before a rotation", SECRET, &names, &rotated),
        Case::of("by the secret after a rotation", NEW_SECRET, &names, &rotated),
        Case {
            is_genuine: true,
            ..genuine.with(
                "beside versions that nobody knows",
                SIGNATURES,
                Some(&format!("v2,AAAA v1a,AAAA= {signatures}")),
            )
        },
        at("some time ago", -NEAR),
        at("old", -TOO_FAR),
        at("of the future", TOO_FAR),
        genuine.forged("another body", |case| case.body.push(b' ')),
        genuine.forged("another secret", |case| case.secret = OTHER_SECRET),
        genuine.forged("a secret that is a text", |case| case.secret = TEXT_SECRET),
        genuine.with("another id", ID, Some(&format!("{id}0"))),
        genuine.with("another time", TIMESTAMP, Some(&later)),
        genuine.with("no id", ID, None),
        genuine.with("no time", TIMESTAMP, None),
        genuine.with("no signature", SIGNATURES, None),
        genuine.with("a time that is none", TIMESTAMP, Some("soon")),
        genuine.with("a time beyond all numbers", TIMESTAMP, Some(&"9".repeat(40))),
        genuine.with("an empty signature", SIGNATURES, Some("v1,")),
        genuine.with("a signature without a version", SIGNATURES, Some(&signatures[3..])),
        genuine.with("no signature at all", SIGNATURES, Some("v1")),
        genuine.with("the beginning of one", SIGNATURES, Some(&signatures[..20])),
        genuine.with("as long, and not ASCII", SIGNATURES, Some(&format!("v1,{}", "é".repeat(22)))),
        genuine.with("another version", SIGNATURES, Some(&signatures.replace("v1,", "v1a,"))),
    ]
}

/// The same for `X-Webhook-Signature`.
async fn hexadecimal_cases() -> Vec<Case> {
    const TIMESTAMP: usize = 0;
    const SIGNATURE: usize = 1;
    let names = ["x-webhook-timestamp", "x-webhook-signature"];
    let [base64, text, rotated] = deliveries().await;
    let genuine = Case::of("as it came", SECRET, &names, &base64);
    let signature = base64.header("x-webhook-signature");
    let at = |why, distance: TimeDelta| {
        let time = (Utc::now() + distance).to_rfc3339_opts(SecondsFormat::Millis, true);
        let key = SigningKey::from_secret(SECRET).unwrap();
        genuine.forged(why, |case| {
            case.is_genuine = distance.abs() <= NEAR;
            case.headers[SIGNATURE] = Some(key.hex_signature(&time, &base64.body));
            case.headers[TIMESTAMP] = Some(time);
        })
    };
    vec![
        genuine.clone(),
        Case::of("by a secret that is a text", TEXT_SECRET, &names, &text),
        Case::of("by the newest secret", NEW_SECRET, &names, &rotated),
        Case {
            is_genuine: false,
            ..Case::of("by the secret before a rotation", SECRET, &names, &rotated)
        },
        at("some time ago", -NEAR),
        at("old", -TOO_FAR),
        at("of the future", TOO_FAR),
        genuine.forged("another body", |case| case.body.push(b' ')),
        genuine.forged("another secret", |case| case.secret = OTHER_SECRET),
        genuine.with("no time", TIMESTAMP, None),
        genuine.with("no signature", SIGNATURE, None),
        genuine.with("a time that is none", TIMESTAMP, Some("soon")),
        genuine.with("the beginning of one", SIGNATURE, Some(&signature[..20])),
        genuine.with("as long, and not ASCII", SIGNATURE, Some(&"é".repeat(32))),
    ]
}

/// A folder of a test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = beside.join(format!("guide-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.0.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The program that gives cases to the guide's code.
fn driver(name: &str) -> String {
    fs::read_to_string(root().join("tests/it/guides/drivers").join(name)).unwrap()
}

/// Gives all cases to a program, and compares its verdicts.
async fn judge(mut program: Command, folder: &Folder, cases: Vec<Case>) {
    let lines: String = cases.iter().map(Case::line).collect();
    program.current_dir(&folder.0).stdin(Stdio::piped());
    program.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut child = program.spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{errors}");
    let told: Vec<_> = cases.iter().map(|case| case.why).zip(told.lines()).collect();
    let verdict = |case: &Case| if case.is_genuine { "accepted" } else { "refused" };
    let expected: Vec<_> = cases.iter().map(|case| (case.why, verdict(case))).collect();
    assert_eq!(told, expected, "{errors}");
}

fn program(name: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    command
}

#[tokio::test]
async fn the_code_in_python_verifies() {
    if !is_here("python3", "--version") {
        return;
    }
    let folder = Folder::new("python");
    let guide = guide("receivers.md");
    folder.write(
        "standard.py",
        &(code(&guide, "### Python", "python")[0].clone() + &driver("verify.py")),
    );
    folder.write(
        "hex.py",
        &(code(&guide, "## The hexadecimal form", "python")[0].clone() + &driver("verify.py")),
    );
    judge(program("python3", &["standard.py"]), &folder, standard_cases().await).await;
    judge(program("python3", &["hex.py"]), &folder, hexadecimal_cases().await).await;
}

#[tokio::test]
async fn the_code_with_the_python_library_verifies() {
    let python = tokio::task::spawn_blocking(python_with_library).await.unwrap();
    let Some(python) = python else { return };
    let folder = Folder::new("python-library");
    let code = &code(&guide("receivers.md"), "### Python", "python")[1];
    folder.write("read.py", &(code.clone() + &driver("read.py")));
    judge(program(python, &["read.py"]), &folder, standard_cases().await).await;
}

#[tokio::test]
async fn the_code_in_javascript_verifies() {
    if !is_here("node", "--version") {
        return;
    }
    let guide = guide("receivers.md");
    let standard = &code(&guide, "### JavaScript", "js")[0];
    let hexadecimal = &code(&guide, "## The hexadecimal form", "js")[0];
    for (name, code, cases) in [
        ("javascript", standard, standard_cases().await),
        ("javascript-hex", hexadecimal, hexadecimal_cases().await),
    ] {
        let folder = Folder::new(name);
        folder.write("guide.mjs", code);
        folder.write("verify.mjs", &driver("verify.mjs"));
        judge(program("node", &["verify.mjs"]), &folder, cases).await;
    }
}

#[tokio::test]
async fn the_code_with_the_javascript_library_verifies() {
    let library = tokio::task::spawn_blocking(javascript_with_library).await.unwrap();
    let Some(library) = library else { return };
    let folder = Folder::new("javascript-library");
    std::os::unix::fs::symlink(library.join("node_modules"), folder.0.join("node_modules"))
        .unwrap();
    folder.write("guide.mjs", &code(&guide("receivers.md"), "### JavaScript", "js")[1]);
    folder.write("read.mjs", &driver("read.mjs"));
    judge(program("node", &["read.mjs"]), &folder, standard_cases().await).await;
}

#[tokio::test]
async fn the_code_in_go_verifies() {
    if !is_here("go", "version") {
        return;
    }
    let folder = Folder::new("go");
    folder.write("go.mod", "module guide\n\ngo 1.19\n");
    folder.write("webhook/webhook.go", &code(&guide("receivers.md"), "### Go", "go")[0]);
    folder.write("main.go", &driver("verify.go"));
    let mut program = program("go", &["run", "."]);
    // Nothing of the user's, and nothing from elsewhere.
    program.env("GOCACHE", folder.0.join("cache")).env("GOFLAGS", "-mod=mod");
    program.env("GOPROXY", "off").env("GOPATH", folder.0.join("path"));
    judge(program, &folder, standard_cases().await).await;
}

#[tokio::test]
async fn the_code_in_ruby_verifies() {
    if !is_here("ruby", "--version") {
        return;
    }
    let folder = Folder::new("ruby");
    folder.write("guide.rb", &code(&guide("receivers.md"), "### Ruby", "ruby")[0]);
    folder.write("verify.rb", &driver("verify.rb"));
    judge(program("ruby", &["-w", "verify.rb"]), &folder, standard_cases().await).await;
}

#[tokio::test]
async fn the_code_in_php_verifies() {
    if !is_here("php", "--version") {
        return;
    }
    let folder = Folder::new("php");
    folder.write("guide.php", &code(&guide("receivers.md"), "### PHP", "php")[0]);
    folder.write("verify.php", &driver("verify.php"));
    let arguments = ["-d", "error_reporting=-1", "-d", "display_errors=1", "verify.php"];
    judge(program("php", &arguments), &folder, standard_cases().await).await;
}

#[tokio::test]
async fn the_code_in_java_verifies() {
    if !is_here("java", "-version") {
        return;
    }
    let folder = Folder::new("java");
    let code = &code(&guide("receivers.md"), "### Java", "java")[0];
    let (imports, class) = code.split_once("\nfinal class ").expect("a class after its imports");
    // Of one file, `java` runs the first class.
    let file = format!("{imports}\n{}\nfinal class {class}", driver("Verify.java"));
    folder.write("Verify.java", &file);
    judge(program("java", &["Verify.java"]), &folder, standard_cases().await).await;
}

#[tokio::test]
async fn the_code_in_rust_verifies() {
    let code = &code(&guide("receivers.md"), "### Rust", "rust")[0];
    assert_eq!(code, include_str!("verify.rs"), "the guide shows what is run here");
    for case in standard_cases().await {
        let [id, timestamp, signatures] =
            [0, 1, 2].map(|index| case.headers[index].as_deref().unwrap_or_default());
        let verdict = verify::verify(case.secret, id, timestamp, signatures, &case.body);
        assert_eq!(verdict, case.is_genuine, "{}", case.why);
    }
}

/// The request that the guide shows is signed as it says.
#[test]
fn the_example_of_a_request_can_be_tried() {
    let guide = guide("receivers.md");
    let [head, body] = ["http", "json"].map(|kind| code(&guide, "## What comes", kind)[0].clone());
    let body = body.trim_end().as_bytes();
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name}")).to_owned()
    };
    assert!(guide.contains(&format!("signed with `{SECRET}`")));
    let key = SigningKey::from_secret(SECRET).unwrap();
    let time = header("webhook-timestamp").parse().unwrap();
    let signature = key.standard_signature(&header("webhook-id"), time, body);
    assert_eq!(signature, header("webhook-signature"));
    let signature = key.hex_signature(&header("x-webhook-timestamp"), body);
    assert_eq!(signature, header("x-webhook-signature"));
}

/// What a shell prints is the signature itself.
#[tokio::test]
async fn the_commands_by_hand_make_the_signature() {
    if !is_here("openssl", "version") {
        return;
    }
    let folder = Folder::new("shell");
    let guide = guide("receivers.md");
    let standard = &code(&guide, "### By hand", "sh")[0];
    let hexadecimal = guide.lines().find(|line| line.contains("-hmac \"$secret\"")).unwrap();
    let [base64, text, _] = deliveries().await;
    for (script, secret, request, timestamp, signature) in [
        (standard.as_str(), SECRET, &base64, "webhook-timestamp", "webhook-signature"),
        (standard.as_str(), TEXT_SECRET, &text, "webhook-timestamp", "webhook-signature"),
        (hexadecimal, TEXT_SECRET, &text, "x-webhook-timestamp", "x-webhook-signature"),
    ] {
        fs::write(folder.0.join("body"), &request.body).unwrap();
        let mut shell = program("sh", &["-c", script]);
        shell.current_dir(&folder.0).env("secret", secret).env("file", "body");
        shell.env("id", request.header("webhook-id")).env("timestamp", request.header(timestamp));
        let told = shell.output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        let told = told.trim().rsplit(' ').next().unwrap();
        assert_eq!(told, request.header(signature));
    }
}

/// The receiver of the guide as a process.
struct WholeReceiver {
    process: Child,
    lines: BufReader<ChildStdout>,
    _folder: Folder,
}

impl WholeReceiver {
    fn start() -> Self {
        let guide = guide("receivers.md");
        let folder = Folder::new("whole");
        folder.write("verifying.py", &code(&guide, "### Python", "python")[0]);
        folder.write("receiver.py", &code(&guide, "## A whole receiver", "python")[0]);
        let mut process = program("python3", &["receiver.py"])
            .current_dir(&folder.0)
            .env("WEBHOOK_SECRET", SECRET)
            .env("PORT", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self { process, lines, _folder: folder }
    }

    /// The next line that it prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for WholeReceiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Catches: a receiver that does not verify, or that does twice what comes twice.
#[tokio::test]
async fn the_whole_receiver_takes_what_is_genuine_and_does_it_once() {
    if !is_here("python3", "--version") {
        return;
    }
    let mut receiver = WholeReceiver::start();
    let listening = receiver.line();
    let port =
        listening.strip_prefix("listening on port ").unwrap_or_else(|| panic!("{listening}"));
    let url = format!("http://127.0.0.1:{port}/");
    let app = TestApp::with(&["--max-attempts=1"]).await;
    for (types, secret) in [("order.*", SECRET), ("forged.*", OTHER_SECRET)] {
        let body = json!({"target_url": url, "event_types": types, "secret": secret});
        app.make("/subscriptions", body).await;
    }
    let publish = async |kind: &str, number: u32| {
        let event = json!({"type": kind, "payload": {"number": number}});
        let (status, accepted) = app.call("POST", "/events", None, Some(&event)).await;
        assert_eq!(status, 202, "{accepted}");
        accepted["id"].as_str().unwrap().to_owned()
    };
    let forged = publish("forged.made", 0).await;
    let event = app.wait_for(&forged, "dead").await;
    assert_eq!(event["deliveries"][0]["attempts"][0]["response"]["status"], 401);

    let first = publish("order.made", 1).await;
    let event = app.wait_for(&first, "delivered").await;
    assert_eq!(receiver.line(), "done order.made {'number': 1}");
    let retry = format!("/deliveries/{}/retry", event["deliveries"][0]["id"].as_str().unwrap());
    assert_eq!(app.call("POST", &retry, None, None).await.0, 202);
    eventually("the second time", async || {
        (app.event(&first).await["attempt_count"] == 2).then_some(())
    })
    .await;
    let second = publish("order.made", 2).await;
    app.wait_for(&second, "delivered").await;
    // Not the first one again.
    assert_eq!(receiver.line(), "done order.made {'number': 2}");
    app.stop().await;
}
