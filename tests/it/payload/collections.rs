//! What the collections of `docs/payload` hold to, asked of Payload itself.

use reqwest::Method;
use serde_json::json;

use crate::support::payload::PayloadCms;

#[tokio::test]
async fn a_secret_is_read_by_the_dispatcher_only() {
    let Some(cms) = PayloadCms::start().await else { return };
    let editor = cms.editor().await;
    let made = json!({"name": "orders", "url": "https://example.com/", "events": ["order.*"],
                      "secret": "0123456789abcdef"});
    let path = "/webhookSubscriptions";
    let (status, body) = cms.call_as(&editor, Method::POST, path, Some(&made)).await;
    assert_eq!(status, 201, "{body}");
    let path = format!("{path}/{}", body["doc"]["id"]);

    let change = json!({"name": "orders of all shops"});
    let (status, body) = cms.call_as(&editor, Method::PATCH, &path, Some(&change)).await;
    assert_eq!((status, &body["doc"]["secret"]), (200, &json!(null)), "{body}");
    let (_, read) = cms.call_as(&editor, Method::GET, &path, None).await;
    assert_eq!((&read["name"], &read["secret"]), (&change["name"], &json!(null)));
    let (_, read) = cms.call(Method::GET, &path, None).await;
    assert_eq!((&read["name"], &read["secret"]), (&change["name"], &made["secret"]));
}

#[tokio::test]
async fn a_result_is_written_once_and_by_the_dispatcher_only() {
    let Some(mut cms) = PayloadCms::start().await else { return };
    let editor = cms.editor().await;
    let result = json!({
        "dispatchId": "evt_1", "event": "order.created", "createdAt": "2026-01-02T03:04:05.678Z",
        "targets": [{"url": "https://example.com/", "status": "delivered", "code": 200,
                     "durationMs": 12}],
    });
    let path = "/webhookDeliveries";
    let (status, _) = cms.call_as(&editor, Method::POST, path, Some(&result)).await;
    assert_eq!(status, 403);
    let (status, body) = cms.call(Method::POST, path, Some(&result)).await;
    assert_eq!((status, &body["doc"]["createdAt"]), (201, &result["createdAt"]), "{body}");
    cms.stop().await;
    cms.start_again().await;
    let (status, body) = cms.call(Method::POST, path, Some(&result)).await;
    assert_eq!(
        (status, &body["errors"][0]["data"]["errors"][0]["path"]),
        (400, &json!("dispatchId"))
    );

    let path = format!("{path}/1");
    let (status, _) = cms.call_as(&editor, Method::DELETE, &path, None).await;
    assert_eq!(status, 403);
    let (status, read) = cms.call_as(&editor, Method::GET, &path, None).await;
    assert_eq!((status, &read["targets"][0]["durationMs"]), (200, &json!(12)));
}
