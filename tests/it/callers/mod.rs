//! Callers: those with a key, those with a signature, web pages and proxies, and what each learns.

mod browsers;
mod ingest;
mod keys;
mod queries;
mod secrets;
mod views;

use std::process::Command;

use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::support::TestApp;

/// Sends a request as it stands; answers status, headers and body.
async fn raw(
    app: &TestApp,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, HeaderMap, Value) {
    let url = format!("{}{path}", app.base);
    let mut request = app.http.request(method.parse().unwrap(), url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if !body.is_empty() {
        request = request.body(body.to_owned());
    }
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

/// Signs as GitHub does, by code that is not ours.
fn github_signature(secret: &str, body: &str) -> String {
    let output = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", secret, "-r"])
        .stdin({
            let file = std::env::temp_dir().join(format!("signed-{:x}", rand::random::<u64>()));
            std::fs::write(&file, body).unwrap();
            let opened = std::fs::File::open(&file).unwrap();
            std::fs::remove_file(&file).unwrap();
            opened
        })
        .output()
        .expect("openssl");
    let text = String::from_utf8(output.stdout).unwrap();
    format!("sha256={}", text.split_whitespace().next().unwrap_or_else(|| panic!("{text}")))
}
