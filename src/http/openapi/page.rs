//! `/openapi.json`, and `/docs`: a page to read it and to try it, with all that it loads.
//!
//! Both are for anybody who may reach the service: they say what the API is, and nothing of what is
//! in it.

use axum::{Router, http::header, response::IntoResponse, routing::get};
use bytes::Bytes;

use super::{Operation, document::document};
use crate::http::ApiState;

/// How long a browser may keep what the page loads, which changes with the binary only.
const KEPT: &str = "public, max-age=3600";
/// Nothing from elsewhere, and nothing in a frame. Swagger UI sets styles of elements.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                      img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>webhook-dispatcher API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<noscript>The document is at <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"#;

/// Without the validator of others, which would be told of the document.
const START: &str = "SwaggerUIBundle({url: '/openapi.json', dom_id: '#api', deepLinking: true, \
                     validatorUrl: null, persistAuthorization: false, tryItOutEnabled: true});\n";

const SCRIPT: &[u8] = include_bytes!("swagger-ui/swagger-ui-bundle.js.gz");
const STYLE: &[u8] = include_bytes!("swagger-ui/swagger-ui.css.gz");

/// Whether a path is one of these, which are read without a key.
pub fn is_public(path: &str) -> bool {
    path == "/openapi.json" || path == "/docs" || path.starts_with("/docs/")
}

/// The document and the page.
pub fn routes(operations: &[Operation]) -> Router<ApiState> {
    let document = Bytes::from(document(operations).to_string());
    Router::new()
        .route("/openapi.json", get(async move || json(document)))
        .route("/docs", get(page))
        .route("/docs/start.js", get(async || asset("text/javascript", START.as_bytes(), None)))
        .route(
            "/docs/swagger-ui-bundle.js",
            get(async || asset("text/javascript", SCRIPT, Some("gzip"))),
        )
        .route("/docs/swagger-ui.css", get(async || asset("text/css", STYLE, Some("gzip"))))
}

fn json(document: Bytes) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document)
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE)
}

/// What the page loads. Every browser takes gzip, so nothing else is at hand.
fn asset(
    content_type: &'static str,
    bytes: &'static [u8],
    encoding: Option<&'static str>,
) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, KEPT),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let encoding = encoding.map(|encoding| [(header::CONTENT_ENCODING, encoding)]);
    (headers, encoding.map(axum::response::AppendHeaders), bytes)
}
