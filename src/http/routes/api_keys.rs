//! `/applications/{id}/api-keys`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::examples::{APPLICATION, CURSOR, TIME};
use crate::{
    domain::{Permission, Role},
    http::{
        ApiError,
        api_keys::{self, ApiKeyBody},
        applications::NAME_BYTES_MAX,
        events::Page,
        extract::OF_PAGE,
        openapi::{
            Operation, Tag,
            schemas::{self, object, or_null, parameters as take, told},
        },
    },
};

pub fn operations() -> Vec<Operation> {
    vec![create(), list(), show(), revoke()]
}

fn api_key() -> Value {
    json!({
        "id": "key_0192d4e012347abc8def0123456789ab", "application_id": APPLICATION,
        "name": "shop", "role": "producer", "hint": "whd_a1b2", "created_at": TIME,
        "expires_at": "2127-01-01T00:00:00Z", "last_used_at": null, "revoked_at": null,
    })
}

fn settings() -> Value {
    let roles = Role::ALL.into_iter().filter(|role| *role != Role::Admin).map(Role::as_str);
    object(
        api_keys::FIELDS,
        &["role"],
        [
            (
                "name",
                told(
                    or_null(schemas::line(NAME_BYTES_MAX)),
                    "What people call it; by default its role",
                ),
            ),
            ("role", told(schemas::one_of(roles), "What it may do")),
            (
                "expires_at",
                told(
                    or_null(json!({"type": "string", "format": "date-time"})),
                    "From when on it lets nobody in: in the future; by default never",
                ),
            ),
        ],
    )
}

fn create() -> Operation {
    let mut made = api_key();
    made["key"] = json!("whd_a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6q7r8s9t0u1v");
    Operation::post("/applications/{id}/api-keys", api_keys::create)
        .named("createApiKey", "Makes an API key")
        .told("The answer has the `key` itself, this once: only its hash is kept.")
        .of(Tag::ApiKeys, Permission::Manage)
        .parameters([take::application_path()])
        .idempotent()
        .reads("ApiKeyRequest", settings())
        .example(
            "A key that publishes",
            json!({"role": "producer", "name": "shop", "expires_at": "2127-01-01T00:00:00Z"}),
        )
        .answers::<ApiKeyBody>(StatusCode::CREATED, "The key", made)
        .fails([ApiError::MADE_AND_DELETED])
}

fn list() -> Operation {
    Operation::get("/applications/{id}/api-keys", api_keys::list)
        .named("listApiKeys", "Lists the API keys of an application, newest first")
        .of(Tag::ApiKeys, Permission::Manage)
        .parameters([take::application_path()])
        .parameters(take::query(OF_PAGE, [take::limit(), take::cursor()]))
        .answers::<Page<ApiKeyBody>>(
            StatusCode::OK,
            "A page of keys",
            json!({"data": [api_key()], "next_cursor": CURSOR}),
        )
}

fn show() -> Operation {
    Operation::get("/applications/{id}/api-keys/{key}", api_keys::show)
        .named("getApiKey", "Shows an API key, but for the key itself")
        .of(Tag::ApiKeys, Permission::Manage)
        .parameters([take::application_path(), take::api_key_path()])
        .answers::<ApiKeyBody>(StatusCode::OK, "The key", api_key())
}

fn revoke() -> Operation {
    Operation::delete("/applications/{id}/api-keys/{key}", api_keys::revoke)
        .named("revokeApiKey", "Revokes an API key")
        .told("Within a second it lets nobody in any more, in any process.")
        .of(Tag::ApiKeys, Permission::Manage)
        .parameters([take::application_path(), take::api_key_path()])
        .answers_nothing("It is revoked")
}
