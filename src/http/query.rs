//! Parameters of the query that a route does not know: refused before its handler runs.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::Uri,
    middleware::{self, Next},
    response::IntoResponse,
    routing::MethodRouter,
};
use url::form_urlencoded;

use super::{
    ApiError, ApiState, names,
    problem::{Place, Problem},
};

/// The parameters that a route takes. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct KnownQuery {
    /// Names of the parameters.
    pub parameters: Arc<[&'static str]>,
    /// Names of the body's fields, which callers may have meant.
    pub fields: Arc<[String]>,
}

impl KnownQuery {
    /// A route that takes no parameters.
    pub fn none() -> Self {
        Self::default()
    }

    /// Puts the check before a route.
    pub fn guard(self, route: MethodRouter<ApiState>) -> MethodRouter<ApiState> {
        route.route_layer(middleware::from_fn(move |request: Request, next: Next| {
            let checked = self.check(request.uri());
            async move {
                match checked {
                    Ok(()) => next.run(request).await,
                    Err(problem) => problem.into_response(),
                }
            }
        }))
    }

    /// Refuses a query that names anything else.
    pub fn check(&self, uri: &Uri) -> Result<(), Problem> {
        let Some(query) = uri.query() else { return Ok(()) };
        let mut names = form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
        match names.find(|name| !self.parameters.iter().any(|known| known == name)) {
            None => Ok(()),
            Some(name) => {
                let place = Place::Parameter(names::shown(&name));
                Err(ApiError::Invalid(self.unknown(&name)).at(place))
            }
        }
    }

    fn unknown(&self, name: &str) -> String {
        let shown = names::shown(name);
        let is_field = self.fields.iter().any(|field| field == name);
        match names::near_miss(&shown, &self.parameters) {
            None if is_field => {
                format!("unknown parameter `{shown}`: send it as a field of the body")
            }
            None if self.parameters.is_empty() => {
                format!("unknown parameter `{shown}`: this route takes none")
            }
            _ => names::unknown("parameter", name, &self.parameters),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_parameters_are_named_with_what_was_meant() {
        let known = KnownQuery {
            parameters: ["application", "limit"].into(),
            fields: ["payload".to_owned()].into(),
        };
        let check = |known: &KnownQuery, query: &str| {
            known.check(&format!("/events{query}").parse().unwrap())
        };
        for good in ["", "?", "?application=a&limit=1", "?limit=&", "?%6cimit=1"] {
            assert_eq!(check(&known, good), Ok(()), "{good}");
        }
        for (bad, name, said) in [
            ("?limt=1", "limt", "unknown parameter `limt`: did you mean `limit`?"),
            ("?limit=1&Payload=2", "Payload", "there are `application`, `limit`"),
            ("?payload", "payload", "send it as a field of the body"),
            ("?=1", "", "unknown parameter ``"),
            ("?a%0Ab=1", "a\\nb", "unknown parameter `a\\nb`"),
        ] {
            let problem = check(&known, bad).unwrap_err();
            assert!(problem.error().to_string().contains(said), "{problem:?}");
            assert_eq!(problem, problem.error().clone().at(Place::Parameter(name.to_owned())));
        }
        let problem = check(&KnownQuery::none(), "?x=1").unwrap_err();
        assert!(problem.error().to_string().contains("this route takes none"), "{problem:?}");
    }
}
