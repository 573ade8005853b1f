//! The REST API of Payload 3: lists, single documents, creating and changing. One request at a time
//! under one deadline, with a bounded answer; nothing is tried again here.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::CmsSettings;
use crate::peer::{Peer, PeerError};
use crate::tls::TrustError;

/// How many bytes an answer may have.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many characters of what the CMS says of an error are kept.
const MESSAGE_CHARS_MAX: usize = 500;

/// Why the CMS did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CmsError {
    /// Nobody was reached: the request was not sent.
    #[error("the CMS cannot be reached: {0}")]
    Unreachable(String),
    /// No whole answer came, or not in time. It may have done what it was asked for.
    #[error("the CMS did not answer: {0}")]
    Unclear(String),
    /// It answered that it did not do it.
    #[error("the CMS answered {status}: {message}")]
    Status {
        /// The status, neither 2xx nor, of a document by its id, the 404 of a missing one.
        status: StatusCode,
        /// What it says, cut short.
        message: String,
    },
    /// The answer is not what it should be. It may have done what it was asked for.
    #[error("the CMS answered nonsense: {0}")]
    Nonsense(String),
}

impl CmsError {
    /// Its name, for metrics: one of a closed set.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Unclear(_) => "unclear",
            Self::Status { .. } => "status",
            Self::Nonsense(_) => "nonsense",
        }
    }
}

/// A document's id: a number or a text, as its database has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DocumentId(String);

impl DocumentId {
    /// Takes the id of a document.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) if !text.is_empty() => Some(Self(text.clone())),
            Value::Number(number) => Some(Self(number.to_string())),
            _ => None,
        }
    }

    /// Takes an id as text.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The id as it stands in paths.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A document.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its id.
    pub id: DocumentId,
    /// All its fields, `id` among them.
    pub fields: Map<String, Value>,
}

impl Document {
    fn of(value: Value) -> Result<Self, CmsError> {
        let Value::Object(fields) = value else {
            return Err(CmsError::Nonsense("a document is no object".to_owned()));
        };
        let id = fields.get("id").and_then(DocumentId::of);
        let id = id.ok_or_else(|| CmsError::Nonsense("a document has no id".to_owned()))?;
        Ok(Self { id, fields })
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    /// The documents.
    pub documents: Vec<Document>,
    /// Whether there is another page.
    pub has_next: bool,
    /// How many documents there are on all pages.
    pub total: u64,
}

/// Which documents of a collection are meant. Relations are not followed: `depth` is 0.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// All of them, by the page.
    pub fn all() -> Self {
        Self(vec![("depth".to_owned(), "0".to_owned())])
    }

    /// Those of which a field compares so (`equals`, `in`, `greater_than_equal`, …) with a value.
    #[must_use]
    pub fn matching(self, field: &str, operator: &str, value: &str) -> Self {
        self.with(&format!("where[{field}][{operator}]"), value)
    }

    /// So many at most.
    #[must_use]
    pub fn limit(self, documents_max: usize) -> Self {
        self.with("limit", &documents_max.to_string())
    }

    /// This page, counted from 1.
    #[must_use]
    pub fn page(self, page: usize) -> Self {
        self.with("page", &page.to_string())
    }

    /// By this field; descending with a `-` before it.
    #[must_use]
    pub fn sort(self, field: &str) -> Self {
        self.with("sort", field)
    }

    /// With this field only; beside it comes the id.
    #[must_use]
    pub fn select(self, field: &str) -> Self {
        self.with(&format!("select[{field}]"), "true")
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageBody {
    docs: Vec<Value>,
    has_next_page: bool,
    total_docs: u64,
}

/// Asks a CMS. Cheap to clone; clones share the connections.
#[derive(Debug, Clone)]
pub struct Client {
    peer: Peer,
    api: Url,
    users: String,
    authorization: HeaderValue,
    timeout: Duration,
}

impl Client {
    /// Connects when it is first used. Fails where the machine has no trusted certificates.
    pub fn new(settings: &CmsSettings) -> Result<Self, TrustError> {
        Ok(Self {
            peer: Peer::new(&settings.trust)?,
            api: settings.api.clone(),
            users: settings.users.clone(),
            authorization: settings.authorization.clone(),
            timeout: settings.timeout,
        })
    }

    /// Whether the key is known there; `false` only if the CMS itself says that it is not. A key that
    /// is not known may be shown less than there is, and not be told so.
    pub async fn knows_us(&self) -> Result<bool, CmsError> {
        let answer = self.ask(Method::GET, &self.url(&[&self.users, "me"]), None).await?;
        let user = answer.json().get("user").cloned();
        Ok(!answer.status.is_success() || user.is_none_or(|user| !user.is_null()))
    }

    /// Lists a page of a collection.
    pub async fn list(&self, collection: &str, query: &Query) -> Result<Page, CmsError> {
        let mut url = self.url(&[collection]);
        url.query_pairs_mut().extend_pairs(&query.0);
        let body = success(&self.ask(Method::GET, &url, None).await?)?;
        let page: PageBody = serde_json::from_value(body).map_err(|error| {
            CmsError::Nonsense(format!("this is no page of documents: {error}"))
        })?;
        Ok(Page {
            documents: page.docs.into_iter().map(Document::of).collect::<Result<_, _>>()?,
            has_next: page.has_next_page,
            total: page.total_docs,
        })
    }

    /// Finds a document by its id. `None` only if the CMS itself says that there is none: a 404 of
    /// another server, or of a collection that is called otherwise, is an error.
    pub async fn document(
        &self,
        collection: &str,
        id: &DocumentId,
    ) -> Result<Option<Document>, CmsError> {
        let mut url = self.url(&[collection, id.as_str()]);
        url.query_pairs_mut().extend_pairs(&Query::all().0);
        let answer = self.ask(Method::GET, &url, None).await?;
        if answer.status == StatusCode::NOT_FOUND && answer.json()["errors"].is_array() {
            return Ok(None);
        }
        Document::of(success(&answer)?).map(Some)
    }

    /// Creates a document.
    pub async fn create(&self, collection: &str, fields: &Value) -> Result<Document, CmsError> {
        let answer = self.ask(Method::POST, &self.writing(&[collection]), Some(fields)).await?;
        written(success(&answer)?)
    }

    /// Changes these fields of a document.
    pub async fn update(
        &self,
        collection: &str,
        id: &DocumentId,
        fields: &Value,
    ) -> Result<Document, CmsError> {
        let url = self.writing(&[collection, id.as_str()]);
        written(success(&self.ask(Method::PATCH, &url, Some(fields)).await?)?)
    }

    /// A route, each part of which is one segment of its path.
    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// The same, answered without the documents that relations lead to.
    fn writing(&self, segments: &[&str]) -> Url {
        let mut url = self.url(segments);
        url.query_pairs_mut().extend_pairs(&Query::all().0);
        url
    }

    async fn ask(
        &self,
        method: Method,
        url: &Url,
        body: Option<&Value>,
    ) -> Result<Answer, CmsError> {
        let mut request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("webhook-dispatcher/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = request
            .body(Full::new(body))
            .map_err(|error| CmsError::Unreachable(format!("this is no request: {error}")))?;
        let asked = self.peer.ask(request, ANSWER_BYTES_MAX);
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(answer)) => {
                let (parts, body) = answer.into_parts();
                Ok(Answer { status: parts.status, body })
            }
            Ok(Err(error @ PeerError::Connect(_))) => Err(CmsError::Unreachable(error.to_string())),
            Ok(Err(error @ PeerError::Broken(_))) => Err(CmsError::Unclear(error.to_string())),
            Ok(Err(error @ PeerError::TooLong(_))) => Err(CmsError::Nonsense(error.to_string())),
            Err(_) => {
                Err(CmsError::Unclear(format!("no answer within {} s", self.timeout.as_secs_f64())))
            }
        }
    }
}

struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The JSON of an answer, if its status is 2xx.
fn success(answer: &Answer) -> Result<Value, CmsError> {
    if answer.status.is_success() {
        return serde_json::from_slice(&answer.body)
            .map_err(|error| CmsError::Nonsense(format!("this is no JSON: {error}")));
    }
    Err(CmsError::Status { status: answer.status, message: messages(answer) })
}

/// The document of the answer to a write.
fn written(mut body: Value) -> Result<Document, CmsError> {
    Document::of(body.get_mut("doc").map_or(Value::Null, Value::take))
}

/// What a CMS says of an error: its messages, and those of fields with their paths.
fn messages(answer: &Answer) -> String {
    let body = answer.json();
    let mut said = Vec::new();
    for error in body["errors"].as_array().into_iter().flatten() {
        said.extend(error["message"].as_str().map(str::to_owned));
        for field in error["data"]["errors"].as_array().into_iter().flatten() {
            let text = |name: &str| field[name].as_str().unwrap_or_default();
            said.push(format!("{}: {}", text("path"), text("message")));
        }
    }
    said.extend(body["message"].as_str().map(str::to_owned));
    let said = if said.is_empty() {
        String::from_utf8_lossy(&answer.body).into_owned()
    } else {
        said.join("; ")
    };
    said.chars().take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        domain::ids::DEFAULT_APPLICATION, store::applications::ApplicationName, tls::Trust,
    };

    fn client(api: &str) -> Client {
        let settings = CmsSettings {
            api: api.parse().unwrap(),
            users: "users".to_owned(),
            authorization: HeaderValue::from_static("users API-Key x"),
            timeout: Duration::from_secs(1),
            application: ApplicationName::Id(DEFAULT_APPLICATION),
            subscriptions: None,
            deliveries: None,
            trust: Trust::default(),
        };
        Client::new(&settings).unwrap()
    }

    #[test]
    fn routes_are_below_the_api_and_ids_are_one_segment() {
        let of = |api: &str, segments: &[&str]| client(api).url(segments).to_string();
        assert_eq!(of("http://cms/api", &["hooks"]), "http://cms/api/hooks");
        assert_eq!(of("http://cms/api/", &["hooks", "7"]), "http://cms/api/hooks/7");
        assert_eq!(
            of("http://cms/a/b", &["hooks", "a/../b?c"]),
            "http://cms/a/b/hooks/a%2F..%2Fb%3Fc"
        );
    }

    #[test]
    fn a_query_says_what_is_meant() {
        let query = Query::all().matching("dispatchId", "in", "a,b").limit(2).page(3);
        let mut url = client("http://cms/api").url(&["hooks"]);
        url.query_pairs_mut().extend_pairs(&query.0);
        let pairs: Vec<String> = url.query_pairs().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["depth=0", "where[dispatchId][in]=a,b", "limit=2", "page=3"]);
    }

    #[test]
    fn ids_are_numbers_or_texts() {
        let id = |value: Value| DocumentId::of(&value).map(|id| id.to_string());
        assert_eq!(id(json!(7)).as_deref(), Some("7"));
        assert_eq!(id(json!("65f0")).as_deref(), Some("65f0"));
        assert_eq!((id(json!("")), id(json!(null)), id(json!({}))), (None, None, None));
    }

    #[test]
    fn what_an_error_says_is_told_in_short() {
        #[track_caller]
        fn told(body: impl Into<Bytes>, expected: &str) {
            let answer = Answer { status: StatusCode::BAD_REQUEST, body: body.into() };
            let error = success(&answer).unwrap_err().to_string();
            assert_eq!(error, format!("the CMS answered 400 Bad Request: {expected}"));
        }
        let fields = json!([{"path": "url", "message": "required"}]);
        let errors = json!([{"message": "invalid", "data": {"errors": fields}}]);
        told(json!({"errors": errors}).to_string(), "invalid; url: required");
        told(json!({"message": "Route not found"}).to_string(), "Route not found");
        told("<html>", "<html>");
        told("x".repeat(5_000), &"x".repeat(500));
    }

    #[test]
    fn what_is_no_document_is_nonsense() {
        let nonsense = |body: Value| matches!(written(body), Err(CmsError::Nonsense(_)));
        assert!(nonsense(json!({"doc": 1})) && nonsense(json!({"doc": {}})) && nonsense(json!(7)));
        let document = written(json!({"doc": {"id": 7, "url": "x"}})).unwrap();
        assert_eq!((document.id.as_str(), &document.fields["url"]), ("7", &json!("x")));
        let answer = Answer { status: StatusCode::OK, body: "<html>".into() };
        assert!(matches!(success(&answer), Err(CmsError::Nonsense(_))));
    }
}
