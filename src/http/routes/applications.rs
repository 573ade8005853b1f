//! `/applications`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::examples::{APPLICATION, CURSOR, TIME};
use crate::{
    domain::{Permission, hosts},
    http::{
        ApiError,
        applications::{self, ApplicationBody},
        events::Page,
        extract::OF_PAGE,
        openapi::{
            Further, Operation, Tag,
            schemas::{self, object, or_null, parameters as take, told},
        },
    },
};

pub fn operations() -> Vec<Operation> {
    vec![create(), list(), show(), change(), delete()]
}

/// The instance's names are the operator's to give, and so is what a tenant may call.
const RENAMES: Further = Further {
    when: "`uid` or `allowed_hosts` is changed",
    permission: Permission::Administer,
    query: None,
};

fn application() -> Value {
    json!({
        "id": APPLICATION, "uid": "acme", "name": "Acme", "accepts_unknown_types": true,
        "payload_retention_days": 7, "allowed_hosts": ["hooks.acme.example", "*.acme.example"],
        "created_at": TIME, "updated_at": TIME,
    })
}

fn settings() -> Value {
    object(
        applications::FIELDS,
        &[],
        [
            ("uid", told(or_null(schemas::uid()), "Your own name for it; by default its id")),
            (
                "name",
                told(
                    or_null(schemas::line(applications::NAME_BYTES_MAX)),
                    "What people call it; by default its uid",
                ),
            ),
            (
                "accepts_unknown_types",
                told(
                    or_null(schemas::boolean()),
                    "Whether events of types that no catalogue has are accepted; by default they are",
                ),
            ),
            (
                "payload_retention_days",
                told(
                    or_null(json!({"type": "integer", "minimum": 1})),
                    "After how many days payloads are dropped, at most PAYLOAD_RETENTION_DAYS, which \
                     is the default",
                ),
            ),
            (
                "allowed_hosts",
                told(
                    or_null(json!({
                        "type": "array", "minItems": 1, "maxItems": hosts::HOSTS_MAX,
                        "items": schemas::line(hosts::HOST_BYTES_MAX),
                    })),
                    "The only hosts that its targets may have: `hooks.example.com`, or `*.example.com` \
                     for all below it; by default all. What is no public address stays refused",
                ),
            ),
        ],
    )
}

fn create() -> Operation {
    Operation::post("/applications", applications::create)
        .named("createApplication", "Makes an application")
        .of(Tag::Applications, Permission::Administer)
        .idempotent()
        .reads("ApplicationRequest", settings())
        .example("With names of your own", json!({"uid": "acme", "name": "Acme"}))
        .answers::<ApplicationBody>(StatusCode::CREATED, "The application", application())
        .fails([ApiError::Conflict("`uid` is the name of another application")])
}

fn list() -> Operation {
    Operation::get("/applications", applications::list)
        .named("listApplications", "Lists the applications that the key may see, newest first")
        .of(Tag::Applications, Permission::Read)
        .parameters(take::query(OF_PAGE, [take::limit(), take::cursor()]))
        .answers::<Page<ApplicationBody>>(
            StatusCode::OK,
            "A page of applications",
            json!({"data": [application()], "next_cursor": CURSOR}),
        )
}

fn show() -> Operation {
    Operation::get("/applications/{id}", applications::show)
        .named("getApplication", "Shows an application")
        .of(Tag::Applications, Permission::Read)
        .parameters([take::application_path()])
        .answers::<ApplicationBody>(StatusCode::OK, "The application", application())
}

fn change() -> Operation {
    Operation::patch("/applications/{id}", applications::change)
        .named("changeApplication", "Changes an application")
        .told("What is not told stays.")
        .of(Tag::Applications, Permission::Manage)
        .further(RENAMES)
        .parameters([take::application_path()])
        .reads("ApplicationRequest", settings())
        .example("Another name", json!({"name": "Acme Ltd"}))
        .example_with("Another uid", json!({"uid": "acme-2"}), Some(Permission::Administer))
        .example_with(
            "Every host again",
            json!({"allowed_hosts": null}),
            Some(Permission::Administer),
        )
        .answers::<ApplicationBody>(StatusCode::OK, "The application as it is now", application())
        .fails([ApiError::Conflict("the uid of `default` cannot be changed")])
}

fn delete() -> Operation {
    Operation::delete("/applications/{id}", applications::delete)
        .named("deleteApplication", "Deletes an application")
        .told(
            "Its keys let nobody in from then on, it accepts nothing, and what waits is cancelled.",
        )
        .of(Tag::Applications, Permission::Administer)
        .parameters([take::application_path()])
        .answers_nothing("It is deleted")
        .fails([ApiError::Conflict("the application `default` cannot be deleted")])
}
