//! From the body of `POST /dispatch` to a submission: every field is checked here, and only here.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{
    ApiError, SubscriptionBounds,
    body::part_of,
    json::{Members, pointer_to},
    problem::{Place, Problem},
    submission::{self, OuterKey, fault},
    subscriptions::retry,
};
use crate::domain::{
    ApplicationId, EventType, IdempotencyKey, KeyName, Payload, Permission, Submission, TargetUrl,
    Upstream,
    event::Route,
    subscription::{CustomHeaders, Method, RetrySettings},
    target::{NamedTarget, TargetSettings},
};

/// The fields of a dispatch.
pub const FIELDS: &[&str; 7] =
    &["event", "payload", "targets", "headers", "signatureKeyId", "retry", "idempotencyKey"];
/// The fields of a target that is more than a URL.
pub const TARGET_FIELDS: &[&str; 4] = &["url", "method", "headers", "signatureKeyId"];
/// How many targets one dispatch may name.
pub const TARGETS_MAX: usize = 1_000;
/// How many bytes the headers of all targets of one dispatch may have together, those that they share
/// counted for each.
pub const HEADER_BYTES_OF_ALL_MAX: usize = 4 * 1024 * 1024;

/// A dispatch that is well, but for the keys that it names.
pub struct Draft {
    event_type: EventType,
    payload: Payload,
    route: Route,
    idempotency_key: Option<IdempotencyKey>,
    /// The keys that it names, and where.
    pub signing_keys: Vec<(KeyName, Place)>,
}

impl Draft {
    /// The targets that it names.
    pub fn urls(&self) -> Vec<String> {
        match &self.route {
            Route::Targets(targets) => {
                targets.iter().map(|target| target.url.as_str().to_owned()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The submission, of this application.
    pub fn of(self, application: ApplicationId, upstream: Upstream) -> Submission {
        let Self { event_type, payload, route, idempotency_key, .. } = self;
        Submission {
            application,
            event_type: Some(event_type),
            payload,
            route,
            subject: None,
            metadata: None,
            idempotency_key,
            upstream,
        }
    }
}

type Headers = BTreeMap<String, String>;

/// What goes for all targets, unless they say otherwise.
struct Common {
    headers: Headers,
    signing_key: Option<KeyName>,
    retry: Option<RetrySettings>,
}

/// Reads a dispatch. `text` is `body`, and the payload becomes a part of it. `must` refuses what the
/// caller may not.
pub fn read(
    body: &Bytes,
    text: &str,
    outer_key: Option<OuterKey>,
    bounds: &SubscriptionBounds,
    must: impl Fn(Permission) -> Result<(), ApiError>,
) -> Result<Draft, Problem> {
    let given = Members::of(text, FIELDS)?;
    let has_targets = given.given("targets").is_some();
    if has_targets {
        must(Permission::NameTargets)?;
    }
    let event_type = submission::field(&given, "event", submission::published_type)?;
    let event_type = event_type.ok_or_else(|| fault("event", "is missing"))?;
    let payload = Payload::from_json(part_of(body, given.required("payload")?.get()));
    let payload = payload.map_err(|error| fault("payload", error))?;
    let idempotency_key = submission::key(&given, "idempotencyKey", outer_key)?;
    let mut signing_keys = Vec::new();
    let common = Common {
        headers: headers(&given)?,
        signing_key: signing_key(&given, "", &mut signing_keys)?,
        retry: retry(&given, bounds.http_timeout, bounds)?,
    };
    let route = if has_targets {
        Route::Targets(targets(&given, &common, &mut signing_keys)?)
    } else {
        for name in ["headers", "signatureKeyId", "retry"] {
            if given.given(name).is_some() {
                let why = "goes with `targets`: subscriptions have their own";
                return Err(fault(name, why));
            }
        }
        Route::Subscriptions
    };
    Ok(Draft { event_type, payload, route, idempotency_key, signing_keys })
}

fn targets<const N: usize>(
    given: &Members<'_, N>,
    common: &Common,
    signing_keys: &mut Vec<(KeyName, Place)>,
) -> Result<Vec<NamedTarget>, Problem> {
    // Shared by all targets that say nothing of their own.
    let usual = Arc::new(
        settings(Method::Post, &common.headers, common.signing_key.clone(), common)
            .map_err(|why| fault("headers", why))?,
    );
    let (mut targets, mut header_bytes) = (Vec::new(), 0);
    for (index, element) in given.elements("targets", TARGETS_MAX)?.into_iter().enumerate() {
        let place = format!("{}/{index}", pointer_to("targets"));
        let target = target(element, common, &usual, &place, signing_keys);
        let target = target.map_err(|problem| problem.within(&place))?;
        header_bytes += target.settings.headers.bytes();
        if header_bytes > HEADER_BYTES_OF_ALL_MAX {
            let why = format!(
                "must have at most {HEADER_BYTES_OF_ALL_MAX} bytes over all targets, counted for each"
            );
            return Err(fault("headers", why));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn target(
    element: &RawValue,
    common: &Common,
    usual: &Arc<TargetSettings>,
    place: &str,
    signing_keys: &mut Vec<(KeyName, Place)>,
) -> Result<NamedTarget, Problem> {
    if !element.get().starts_with('{') {
        let whole = |why: String| ApiError::Invalid(why).at(Place::Pointer(String::new()));
        let text: String = serde_json::from_str(element.get())
            .map_err(|_| whole("a target must be a URL, or an object with a `url`".to_owned()))?;
        let url = TargetUrl::parse(&text).map_err(|error| whole(format!("the target {error}")))?;
        return Ok(NamedTarget { url, settings: usual.clone() });
    }
    let given = Members::of(element.get(), TARGET_FIELDS)?;
    let text = given.string("url")?.ok_or_else(|| fault("url", "is missing"))?;
    let url = TargetUrl::parse(&text).map_err(|error| fault("url", error))?;
    let method = match given.string("method")? {
        None => Method::Post,
        Some(name) => Method::from_name(&name).ok_or_else(|| {
            let names: Vec<_> = Method::ALL.iter().map(|method| method.as_str()).collect();
            fault("method", format!("must be one of {}", names.join(", ")))
        })?,
    };
    let own_headers = headers(&given)?;
    let own_key = signing_key(&given, place, signing_keys)?;
    if own_headers.is_empty() && own_key.is_none() && method == Method::Post {
        return Ok(NamedTarget { url, settings: usual.clone() });
    }
    // A target's own value takes the place of the common one, however the name is written.
    let is_overridden = |name: &str| own_headers.keys().any(|own| own.eq_ignore_ascii_case(name));
    let mut headers: Headers = common.headers.clone();
    headers.retain(|name, _| !is_overridden(name));
    headers.extend(own_headers.clone());
    let key = own_key.or_else(|| common.signing_key.clone());
    let settings = settings(method, &headers, key, common).map_err(|why| fault("headers", why))?;
    Ok(NamedTarget { url, settings: settings.into() })
}

fn settings(
    method: Method,
    headers: &Headers,
    signing_key: Option<KeyName>,
    common: &Common,
) -> Result<TargetSettings, String> {
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let headers = CustomHeaders::new(headers).map_err(|error| error.to_string())?;
    // The policy was found possible before.
    TargetSettings::new(method, headers, signing_key, common.retry.clone())
        .map_err(|error| error.to_string())
}

fn headers<const N: usize>(given: &Members<'_, N>) -> Result<Headers, Problem> {
    Ok(given.text_map("headers")?.unwrap_or_default())
}

/// The key that a request names, which is noted with its place in it.
fn signing_key<const N: usize>(
    given: &Members<'_, N>,
    part: &str,
    noted: &mut Vec<(KeyName, Place)>,
) -> Result<Option<KeyName>, Problem> {
    let name = "signatureKeyId";
    let Some(text) = given.string(name)? else { return Ok(None) };
    let key = KeyName::parse(&text).map_err(|error| fault(name, error))?;
    noted.push((key.clone(), Place::Pointer(format!("{part}{}", pointer_to(name)))));
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::domain::address::AddressPolicy;

    fn read_alone(body: &str) -> Result<Draft, Problem> {
        let bounds = SubscriptionBounds {
            addresses: AddressPolicy::new(Vec::new(), true),
            http_timeout: Duration::from_secs(15),
            delivery_age_max: Duration::from_hours(240),
        };
        let body = Bytes::copy_from_slice(body.as_bytes());
        read(&body, super::super::body::text(&body)?, None, &bounds, |_| Ok(()))
    }

    #[expect(clippy::needless_pass_by_value, reason = "made where it is called")]
    fn with(more: Value) -> String {
        let mut body = json!({"event": "a.b", "payload": {"x": 1}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    }

    fn targets_of(draft: Draft) -> Vec<NamedTarget> {
        match draft.route {
            Route::Targets(targets) => targets,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_common_goes_for_every_target_that_says_nothing_else() {
        let draft = read_alone(&with(json!({
            "targets": [
                "https://a.example",
                {"url": "https://b.example/", "method": "PUT", "signatureKeyId": "own",
                 "headers": {"X-TENANT": "7", "x-more": "m"}},
                {"url": "https://c.example/", "method": null, "headers": null},
            ],
            "headers": {"x-tenant": "common", "authorization": "Bearer t"},
            "signatureKeyId": "common",
            "retry": [1, 2],
        })))
        .unwrap();
        let places: Vec<_> = draft
            .signing_keys
            .iter()
            .map(|(key, place)| (key.as_str().to_owned(), place.clone()))
            .collect();
        let at = |pointer: &str| Place::Pointer(pointer.to_owned());
        assert_eq!(
            places,
            [
                ("common".to_owned(), at("/signatureKeyId")),
                ("own".to_owned(), at("/targets/1/signatureKeyId")),
            ]
        );
        let targets = targets_of(draft);
        let header = |n: usize, name: &str| {
            let found = targets[n].settings.headers.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.to_str().unwrap())
        };
        assert_eq!(targets[0].url.as_str(), "https://a.example/");
        assert_eq!((header(0, "x-tenant"), header(1, "x-tenant")), (Some("common"), Some("7")));
        assert_eq!(
            (header(1, "authorization"), header(1, "x-more")),
            (Some("Bearer t"), Some("m"))
        );
        let key = |n: usize| targets[n].settings.signing_key.as_ref().unwrap().as_str();
        assert_eq!((key(0), key(1), key(2)), ("common", "own", "common"));
        assert_eq!(targets[1].settings.method, Method::Put);
        assert!(Arc::ptr_eq(&targets[0].settings, &targets[2].settings));
        assert!(targets.iter().all(|one| one.settings.retry.is_some()));
    }

    #[test]
    fn what_is_wrong_is_told_by_name_and_place() {
        #[track_caller]
        #[expect(clippy::needless_pass_by_value, reason = "made where it is called")]
        fn check(more: Value, detail: &str, pointer: &str) {
            let Err(problem) = read_alone(&with(more.clone())) else { panic!("{more}") };
            let problem = serde_json::to_value(problem).unwrap();
            let told = problem["detail"].as_str().unwrap();
            assert!(told.contains(detail), "{more}: {told}");
            assert_eq!(problem["pointer"], pointer, "{more}: {problem}");
        }
        let one = "https://a.example/";
        check(json!({"event": null}), "`event` is missing", "/event");
        check(json!({"event": "webhook.x"}), "`event` must not begin", "/event");
        check(json!({"target": [one]}), "did you mean `targets`?", "");
        check(json!({"targets": []}), "`targets` must hold 1 to 1000 items", "/targets");
        check(json!({"targets": vec![one; 1_001]}), "1 to 1000 items", "/targets");
        check(json!({"targets": one}), "`targets` must be an array", "/targets");
        check(json!({"targets": [one, 5]}), "must be a URL, or an object", "/targets/1");
        check(json!({"targets": ["ftp://a/"]}), "the target must begin with http", "/targets/0");
        check(json!({"targets": [{}]}), "`url` is missing", "/targets/0/url");
        check(json!({"targets": [{"url": "x"}]}), "`url` is not an absolute", "/targets/0/url");
        check(json!({"targets": [{"url": one, "key": 1}]}), "unknown field `key`", "/targets/0");
        let get = json!({"targets": [{"url": one, "method": "GET"}]});
        check(get, "must be one of POST, PUT, PATCH", "/targets/0/method");
        let host = json!({"targets": [{"url": one, "headers": {"host": "x"}}]});
        check(host, "may not name `host`", "/targets/0/headers");
        check(json!({"targets": [one], "headers": {"a": 1}}), "an object of strings", "/headers");
        check(
            json!({"targets": [one], "headers": {"webhook-id": "x"}}),
            "may not name",
            "/headers",
        );
        check(json!({"targets": [one], "signatureKeyId": "a b"}), "letters", "/signatureKeyId");
        check(json!({"targets": [one], "retry": [-1]}), "is refused", "/retry");
        check(json!({"targets": [one], "retry": [9e6]}), "DELIVERY_AGE_MAX", "/retry");
        check(json!({"headers": {"a": "b"}}), "goes with `targets`", "/headers");
        check(json!({"signatureKeyId": "k"}), "goes with `targets`", "/signatureKeyId");
        check(json!({"retry": [1]}), "goes with `targets`", "/retry");
        check(json!({"idempotencyKey": ""}), "1 to 255 printable", "/idempotencyKey");
        let large = json!({"targets": vec![one; 600], "headers": {"a": "x".repeat(8_000)}});
        check(large, "bytes over all targets", "/headers");
    }
}
