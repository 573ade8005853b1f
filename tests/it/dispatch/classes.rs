//! Every class of error, met over real sockets.

use serde_json::{Value, json};

use super::{complete, id_of, to};
use crate::support::{
    Answer, Receiver, TestApp, TestDatabase, eventually,
    process::{Process, free_port, on},
    raw::{Misdeed, RawReceiver},
    tls::{Authority, Certificate, TlsReceiver},
};

/// Catches: a fault of a target that is told as another one, or told in no words that help.
#[tokio::test]
async fn each_fault_of_a_target_has_its_class() {
    let (trusted, unknown) = (Authority::new(), Authority::new());
    let tls = async |authority, certificate| TlsReceiver::start(authority, certificate).await;
    let (ok, expired, other, stranger) = (
        tls(&trusted, Certificate::Good).await,
        tls(&trusted, Certificate::Expired).await,
        tls(&trusted, Certificate::OfAnotherHost).await,
        tls(&unknown, Certificate::Good).await,
    );
    let (missing, broken) = (Receiver::always(404).await, Receiver::always(500).await);
    let elsewhere = Receiver::always(200).await;
    let location = elsewhere.url("/elsewhere");
    let moved =
        Receiver::start(move |_, _| Answer::status(302).header("location", location.clone())).await;
    let hanging = RawReceiver::start(Misdeed::Hang).await;
    let garbled = RawReceiver::start(Misdeed::Write(b"SSH-2.0-x\r\n\r\n".to_vec())).await;
    let head = b"HTTP/1.1 200 OK\r\nx-a: ".to_vec();
    let flooding = RawReceiver::start(Misdeed::Flood(head)).await;
    let refusing = format!("http://127.0.0.1:{}/", free_port().await);
    let cases = [
        (ok.url(), "", Some(200), ""),
        (missing.url("/"), "http_status", Some(404), "404"),
        (broken.url("/"), "http_status", Some(500), "500"),
        (moved.url("/"), "redirect", Some(302), "not followed"),
        (refusing, "connect", None, "refused"),
        (hanging.url(), "timeout", None, "within 7 s"),
        ("http://does-not-exist.invalid/".to_owned(), "dns", None, "no such host name"),
        ("http://169.254.169.254/".to_owned(), "blocked_address", None, "ALLOWED_TARGET_CIDRS"),
        ("http://10.0.0.1/".to_owned(), "blocked_address", None, "ALLOWED_TARGET_CIDRS"),
        (expired.url(), "tls", None, "expired at"),
        (other.url(), "tls", None, "not valid for name"),
        (stranger.url(), "tls", None, "not trusted"),
        (garbled.url(), "protocol", None, ""),
        (flooding.url(), "response_too_large", None, ""),
    ];
    // The certificates that it trusts are the process's.
    let database = TestDatabase::new().await;
    let url = database.url();
    let authority = trusted.file();
    let more = [
        ("SSL_CERT_FILE", authority.to_str().unwrap()),
        ("ALLOWED_TARGET_CIDRS", "127.0.0.0/8"),
        ("REQUIRE_HTTPS", "false"),
        ("DISPATCH_INLINE_MAX", "20"),
        ("HTTP_TIMEOUT", "7"),
    ];
    let service = Process::start(free_port().await, &[on(&url).as_slice(), &more].concat()).await;
    let targets: Vec<_> = cases.iter().map(|(url, ..)| url.clone()).collect();
    let answer = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(format!("{}/dispatch", service.base))
        .header("content-type", "application/json")
        .body(to(&json!(targets)).to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    for ((url, class, code, words), result) in
        cases.iter().zip(answer["results"].as_array().unwrap())
    {
        assert_eq!(result["url"], *url, "{answer}");
        assert_eq!(result["code"], json!(code), "{result}");
        assert!(result["durationMs"].is_i64(), "{result}");
        if class.is_empty() {
            assert_eq!((&result["status"], &result["error"]), (&json!("delivered"), &Value::Null));
        } else {
            assert_eq!(result["status"], "failed", "{result}");
            assert_eq!(result["error"]["class"], *class, "{result}");
            assert!(result["error"]["message"].as_str().unwrap().contains(words), "{result}");
        }
    }
    assert_eq!(elsewhere.count(), 0);
}

/// Catches: an end that no attempt tells of, without words or told as the attempt before it.
#[tokio::test]
async fn what_ends_without_an_attempt_is_told_too() {
    let database = TestDatabase::new().await;
    let app = TestApp::on(database.clone(), &["--role=api", "--dispatch-wait=0.05"]).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (status, answer) = app.post("/dispatch", &to(&json!(["http://127.0.0.1:9/"]))).await;
        assert_eq!(status, 202, "{answer}");
        ids.push(id_of(&answer).to_owned());
    }
    let event = app.event(&ids[0]).await;
    let path = format!("/deliveries/{}/cancel", event["deliveries"][0]["id"].as_str().unwrap());
    assert_eq!(app.post(&path, &json!({})).await.0, 200);
    let uuid = |id: &str| id.parse::<webhook_dispatcher::domain::EventId>().unwrap().uuid();
    for (id, change) in [
        (&ids[1], "created_at = now() - interval '11 days'"),
        // No process has this number; one more lost lease is one too many.
        (&ids[2], "owner = 999999, claim_number = 1, interruption_count = 19"),
    ] {
        let update = format!("update delivery_queue set {change} where event_id = $1");
        let update = sqlx::query(sqlx::AssertSqlSafe(update)).bind(uuid(id));
        assert_eq!(update.execute(app.store.pool()).await.unwrap().rows_affected(), 1);
    }
    let worker = TestApp::on(database, &["--role=worker"]).await;
    for (id, class, words) in [
        (&ids[0], "cancelled", "cancelled"),
        (&ids[1], "expired", "DELIVERY_AGE_MAX"),
        (&ids[2], "interrupted", "stopped too often"),
    ] {
        let told = complete(&app, id).await;
        let error = &told["results"][0]["error"];
        assert_eq!((&told["status"], &error["class"]), (&json!("failed"), &json!(class)), "{told}");
        assert!(error["message"].as_str().unwrap().contains(words), "{told}");
    }
    eventually("nothing is left", async || {
        let left: i64 = sqlx::query_scalar("select count(*) from delivery_queue")
            .fetch_one(app.store.pool())
            .await
            .unwrap();
        (left == 0).then_some(())
    })
    .await;
    app.stop().await;
    worker.stop().await;
}
