//! The catalogue of event types, of the instance and of each application.

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    idempotency::{Reservation, Standing, stand},
};
use crate::domain::{ApplicationId, Definition, EventType, catalogue::StandardType};

/// How many types a catalogue may have.
pub const EVENT_TYPES_MAX: i64 = 10_000;

/// Whose catalogue: an application's, or with `None` the instance's.
pub type Owner = Option<ApplicationId>;

/// An event type as it is shown.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct EventTypeRow {
    application_id: Option<Uuid>,
    /// Its name.
    pub name: String,
    description: Option<String>,
    schema: Option<String>,
    checks_payload: bool,
    version: Option<String>,
    example: Option<String>,
    /// Raised by every change.
    pub revision: i32,
    /// Since when it is not to be used any more.
    pub deprecated_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

impl EventTypeRow {
    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.application_id.map(ApplicationId::from_uuid)
    }

    /// What it is defined by.
    pub fn definition(&self) -> Definition {
        Definition {
            description: self.description.clone(),
            schema: self.schema.clone(),
            checks_payload: self.checks_payload,
            version: self.version.clone(),
            example: self.example.clone(),
        }
    }
}

/// What publishing must know of a type.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct PublishedType {
    /// Whether the application takes types that are in no catalogue.
    pub accepts_unknown_types: bool,
    /// `None` if the type is in no catalogue that the application sees.
    pub event_type_id: Option<i64>,
    /// Raised by every change.
    pub revision: Option<i32>,
    /// The schema, if payloads are checked.
    pub schema: Option<String>,
}

/// Which types are listed.
#[derive(Debug)]
pub struct EventTypeFilter<'a> {
    /// Whose types.
    pub catalogue: Listed,
    /// What their names begin with.
    pub prefix: Option<&'a str>,
    /// Whether they are deprecated.
    pub is_deprecated: Option<bool>,
    /// Only names after this one.
    pub after: Option<&'a str>,
}

/// Whose types a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// All that an application sees: its own, and those of the instance that they do not hide.
    SeenBy(ApplicationId),
    /// Those of one catalogue.
    Of(Owner),
}

const COLUMNS: &str = "application_id, name, description, schema, checks_payload, version, \
                       example, revision, deprecated_at, created_at, updated_at";

/// Adds the condition that a row is of this catalogue. Apart for each, since each has an index.
fn push_owner(query: &mut QueryBuilder<Postgres>, owner: Owner) {
    match owner {
        Some(id) => query.push("application_id = ").push_bind(id.uuid()),
        None => query.push("application_id is null"),
    };
}

impl Store {
    /// Makes a type, unless `once` was answered before: then only its standing is told. Violates
    /// `event_type_application_key` or `event_type_instance_key` if there is one of this name; full
    /// at [`EVENT_TYPES_MAX`], which several at the same time may pass by their number.
    pub async fn create_event_type(
        &self,
        owner: Owner,
        name: &EventType,
        definition: &Definition,
        is_deprecated: bool,
        once: Option<Reservation<'_>>,
    ) -> Result<Standing, StoreError> {
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            let mut transaction = connection.begin().await?;
            let standing = stand(&mut transaction, once, self.times()).await?;
            if standing != Standing::New {
                return Ok(standing);
            }
            let inserted = sqlx::query(
                "insert into event_type (application_id, name, description, schema, checks_payload,
                                         version, example, deprecated_at)
                 select $1, $2, $3, $4, $5, $6, $7, case when $8 then now() end
                 where (select count(*) from event_type
                        where application_id is not distinct from $1) < $9",
            )
            .bind(owner.map(ApplicationId::uuid))
            .bind(name.as_str())
            .bind(&definition.description)
            .bind(&definition.schema)
            .bind(definition.checks_payload)
            .bind(&definition.version)
            .bind(&definition.example)
            .bind(is_deprecated)
            .bind(EVENT_TYPES_MAX)
            .execute(&mut *transaction)
            .await?;
            if inserted.rows_affected() == 0 {
                return Err(StoreError::Full { what: "event types", count_max: EVENT_TYPES_MAX });
            }
            transaction.commit().await?;
            Ok(Standing::New)
        })
        .await
    }

    /// Adds those of the types that their catalogue does not have; tells their names.
    pub async fn add_event_types(
        &self,
        owner: Owner,
        types: &[StandardType],
    ) -> Result<Vec<String>, StoreError> {
        bounded(async {
            let names: Vec<&str> = types.iter().map(|one| one.name.as_str()).collect();
            let texts = |of: fn(&Definition) -> &Option<String>| -> Vec<Option<&str>> {
                types.iter().map(|one| of(&one.definition).as_deref()).collect()
            };
            Ok(sqlx::query_scalar(
                "insert into event_type (application_id, name, description, example)
                 select $1, name, description, example
                 from unnest($2::text[], $3::text[], $4::text[]) as new(name, description, example)
                 order by name
                 on conflict do nothing
                 returning name",
            )
            .bind(owner.map(ApplicationId::uuid))
            .bind(&names)
            .bind(texts(|definition| &definition.description))
            .bind(texts(|definition| &definition.example))
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// One type of a catalogue.
    pub async fn event_type(
        &self,
        owner: Owner,
        name: &EventType,
    ) -> Result<Option<EventTypeRow>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("select ");
            query.push(COLUMNS).push(" from event_type where ");
            push_owner(&mut query, owner);
            query.push(" and name = ").push_bind(name.as_str());
            Ok(query.build_query_as().fetch_optional(&self.pool).await?)
        })
        .await
    }

    /// Lists types by name, up to `rows_max`.
    pub async fn event_types(
        &self,
        filter: &EventTypeFilter<'_>,
        rows_max: i64,
    ) -> Result<Vec<EventTypeRow>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("select ");
            query.push(COLUMNS).push(" from event_type as shown where ");
            match filter.catalogue {
                Listed::Of(owner) => push_owner(&mut query, owner),
                Listed::SeenBy(application) => {
                    query.push("(application_id = ").push_bind(application.uuid());
                    query.push(
                        " or application_id is null and not exists (
                             select from event_type as own
                             where own.name = shown.name and own.application_id = ",
                    );
                    query.push_bind(application.uuid()).push("))");
                }
            }
            if let Some(prefix) = filter.prefix {
                query.push(" and name >= ").push_bind(prefix);
                query.push(" and starts_with(name, ").push_bind(prefix).push(")");
            }
            if let Some(after) = filter.after {
                query.push(" and name > ").push_bind(after);
            }
            match filter.is_deprecated {
                Some(true) => drop(query.push(" and deprecated_at is not null")),
                Some(false) => drop(query.push(" and deprecated_at is null")),
                None => {}
            }
            query.push(" order by name limit ").push_bind(rows_max);
            Ok(query.build_query_as().fetch_all(&self.pool).await?)
        })
        .await
    }

    /// The names of the types that an application sees, up to `rows_max`.
    pub async fn event_type_names(
        &self,
        application: ApplicationId,
        rows_max: i64,
    ) -> Result<Vec<String>, StoreError> {
        bounded(async {
            Ok(sqlx::query_scalar(
                "select name from event_type where application_id = $1
                 union
                 select name from event_type where application_id is null
                 limit $2",
            )
            .bind(application.uuid())
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// Changes a type that is still at `revision`; `None` if it is not, or is gone.
    pub async fn change_event_type(
        &self,
        owner: Owner,
        name: &EventType,
        revision: i32,
        definition: &Definition,
        is_deprecated: Option<bool>,
    ) -> Result<Option<EventTypeRow>, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("update event_type set description = ");
            query.push_bind(&definition.description);
            query.push(", schema = ").push_bind(&definition.schema);
            query.push(", checks_payload = ").push_bind(definition.checks_payload);
            query.push(", version = ").push_bind(&definition.version);
            query.push(", example = ").push_bind(&definition.example);
            match is_deprecated {
                Some(true) => drop(query.push(", deprecated_at = coalesce(deprecated_at, now())")),
                Some(false) => drop(query.push(", deprecated_at = null")),
                None => {}
            }
            query.push(", revision = revision + 1, updated_at = now() where ");
            push_owner(&mut query, owner);
            query.push(" and name = ").push_bind(name.as_str());
            query.push(" and revision = ").push_bind(revision);
            query.push(" returning ").push(COLUMNS);
            Ok(query.build_query_as().fetch_optional(&self.pool).await?)
        })
        .await
    }

    /// Takes a type out of its catalogue; `false` if it is in none. Events keep their types.
    pub async fn delete_event_type(
        &self,
        owner: Owner,
        name: &EventType,
    ) -> Result<bool, StoreError> {
        bounded(async {
            let mut query = QueryBuilder::<Postgres>::new("delete from event_type where ");
            push_owner(&mut query, owner);
            query.push(" and name = ").push_bind(name.as_str());
            Ok(query.build().execute(&self.pool).await?.rows_affected() > 0)
        })
        .await
    }

    /// What publishing must know of a type: the application's own, else the instance's. `None` if
    /// there is no such application.
    pub async fn published_type(
        &self,
        application: ApplicationId,
        name: &EventType,
    ) -> Result<Option<PublishedType>, StoreError> {
        bounded(async {
            Ok(sqlx::query_as(
                "select accepts_unknown_types, event_type_id, revision, schema
                 from application left join lateral (
                     select event_type_id, revision,
                            case when checks_payload then schema end as schema
                     from (
                         (select *, 1 as rank from event_type
                          where application_id = $1 and name = $2)
                         union all
                         (select *, 2 as rank from event_type
                          where application_id is null and name = $2)
                     ) as found
                     order by rank limit 1
                 ) as known on true
                 where application.application_id = $1 and deleted_at is null",
            )
            .bind(application.uuid())
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await?)
        })
        .await
    }
}
