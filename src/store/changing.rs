//! What changes of subscriptions are made of: each one takes the application's row, raises its routing
//! version, and stamps what it changes with the new one.

use std::time::Duration;

use super::{
    StoreError,
    queue::{interval, micros},
    session::{Session, Transaction},
    subscription_changes::{
        Changed, NewSigningKey, NewSubscription, SIGNING_KEYS_MAX, SUBSCRIPTIONS_MAX,
    },
    subscriptions::SettingsRow,
    time::{Times, ordered_now},
};
use crate::domain::{
    ApplicationId, Pace, RateLimit, SubscriptionId, event::OPERATOR_TYPES, operator,
    subscription::DisabledBecause,
};

/// A change under way: the application is taken until its end.
pub(super) struct Change<'c> {
    /// What the change is made in; without a commit nothing of it is.
    pub(super) transaction: Transaction<'c>,
    version: i64,
    times: Times,
}

/// What a subscription is to say from now on.
pub(super) struct NextRevision<'a> {
    /// Which subscription.
    pub(super) id: SubscriptionId,
    /// The revision that it must still be at.
    pub(super) read_revision: i32,
    /// All of its settings.
    pub(super) settings: &'a SettingsRow,
    /// Its new name, if it gets one.
    pub(super) uid: Option<&'a str>,
    /// A key to be made: signing was off.
    pub(super) key: Option<&'a NewSigningKey>,
}

/// Takes an application for a change. `None` if there is no such application. Changes of one
/// application wait for each other here.
pub(super) async fn begin(
    connection: &mut Session,
    application: ApplicationId,
    times: Times,
) -> Result<Option<Change<'_>>, StoreError> {
    let mut transaction = connection.begin().await?;
    let version: Option<i64> = sqlx::query_scalar(
        "update application set routing_version = routing_version + 1
         where application_id = $1 and deleted_at is null
         returning routing_version",
    )
    .bind(application.uuid())
    .fetch_optional(&mut *transaction)
    .await?;
    Ok(version.map(|version| Change { transaction, version, times }))
}

impl Change<'_> {
    /// Makes a subscription with its first revision and its first key. Full at [`SUBSCRIPTIONS_MAX`].
    pub(super) async fn insert_subscription(
        &mut self,
        new: &NewSubscription<'_>,
    ) -> Result<(), StoreError> {
        let inserted = sqlx::query(
            "insert into subscription
                 (subscription_id, application_id, uid, revision, routing_version)
             select $1, $2, $3, 1, $4
             where (select count(*) from subscription
                    where application_id = $2 and deleted_at is null) < $5",
        )
        .bind(new.id.uuid())
        .bind(new.application.uuid())
        .bind(new.uid)
        .bind(self.version)
        .bind(SUBSCRIPTIONS_MAX)
        .execute(&mut *self.transaction)
        .await?;
        if inserted.rows_affected() == 0 {
            let count_max = SUBSCRIPTIONS_MAX;
            return Err(StoreError::Full { what: "subscriptions", count_max });
        }
        self.insert_revision(new.id, 1, new.settings).await?;
        if let Some(key) = &new.key {
            insert_key(&mut self.transaction, new.application, Some(new.id), key).await?;
        }
        Ok(())
    }

    /// Gives a subscription its next revision, if it is still at the one that was read.
    pub(super) async fn change_subscription(
        &mut self,
        application: ApplicationId,
        next: &NextRevision<'_>,
    ) -> Result<Changed, StoreError> {
        let NextRevision { id, read_revision, settings, uid, key } = *next;
        let current: Option<(i32, bool)> = sqlx::query_as(
            "select s.revision, r.is_active from subscription s
             join subscription_revision r using (subscription_id, revision)
             where s.application_id = $1 and s.subscription_id = $2 and s.deleted_at is null",
        )
        .bind(application.uuid())
        .bind(id.uuid())
        .fetch_optional(&mut *self.transaction)
        .await?;
        let was_active = match current {
            None => return Ok(Changed::Gone),
            Some((revision, _)) if revision != read_revision => return Ok(Changed::Outdated),
            Some((_, is_active)) => is_active,
        };
        self.move_to(id, read_revision + 1, uid).await?;
        self.set_draining(id, !settings.is_active).await?;
        self.insert_revision(id, read_revision + 1, settings).await?;
        if let Some(key) = key {
            insert_key(&mut self.transaction, application, Some(id), key).await?;
        }
        match (was_active, settings.is_active) {
            (true, false) => self.tell(id, operator::SUBSCRIPTION_DISABLED).await?,
            (false, true) => self.tell(id, operator::SUBSCRIPTION_ENABLED).await?,
            _ => {}
        }
        Ok(Changed::Done)
    }

    /// Deletes a subscription; `false` if there is no such one.
    pub(super) async fn delete_subscription(
        &mut self,
        application: ApplicationId,
        id: SubscriptionId,
    ) -> Result<bool, StoreError> {
        let deleted = sqlx::query(
            "update subscription
             set deleted_at = now(), drains_since = now(), updated_at = now(),
                 routing_version = $3
             where application_id = $1 and subscription_id = $2 and deleted_at is null",
        )
        .bind(application.uuid())
        .bind(id.uuid())
        .bind(self.version)
        .execute(&mut *self.transaction)
        .await?;
        sqlx::query("delete from lane_limit where lane_id = $1")
            .bind(id.lane().uuid())
            .execute(&mut *self.transaction)
            .await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Tells the claims what a revision bounds. The times that are taken stay so.
    async fn set_lane_limit(
        &mut self,
        id: SubscriptionId,
        revision: i32,
        settings: &SettingsRow,
    ) -> Result<(), StoreError> {
        let refused = || StoreError::Refused(sqlx::Error::Encode("no such rate".into()));
        let pace = settings.rate_limit.as_deref().map(|json| {
            let limit: RateLimit = serde_json::from_str(json).map_err(|_| refused())?;
            limit.pace().map_err(|_| refused())
        });
        let pace = pace.transpose()?;
        let of_pace = |part: fn(&Pace) -> Duration| pace.as_ref().map(part).map(micros);
        sqlx::query(
            "with changed as (
                 update lane_limit
                 set revision = $2, max_in_flight = $3, step_us = $4,
                     tolerance_us = coalesce($5, 0), slack_us = coalesce($6, 0),
                     -- What a slower rate has spent does not hold up a faster one.
                     next_at = least(next_at, now() + ($4 + $5) * interval '1 microsecond')
                 where lane_id = $1
                 returning lane_id
             )
             insert into lane_limit
                 (lane_id, revision, max_in_flight, step_us, tolerance_us, slack_us)
             select $1, $2, $3, $4, coalesce($5, 0), coalesce($6, 0)
             where ($3::int is not null or $4::bigint is not null)
               and not exists (select from changed)",
        )
        .bind(id.lane().uuid())
        .bind(revision)
        .bind(settings.max_in_flight)
        .bind(of_pace(|pace| pace.step))
        .bind(of_pace(|pace| pace.tolerance))
        .bind(of_pace(|pace| pace.slack))
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// Makes a key the current one of a subscription. Those before sign beside it for the overlap.
    /// `false` if there is no such subscription.
    pub(super) async fn rotate_signing_key(
        &mut self,
        application: ApplicationId,
        id: SubscriptionId,
        key: &NewSigningKey,
        overlap: Duration,
    ) -> Result<bool, StoreError> {
        let revision: Option<i32> = sqlx::query_scalar(
            "select revision from subscription
             where application_id = $1 and subscription_id = $2 and deleted_at is null",
        )
        .bind(application.uuid())
        .bind(id.uuid())
        .fetch_optional(&mut *self.transaction)
        .await?;
        let Some(revision) = revision else { return Ok(false) };
        sqlx::query(concat!(
            "update signing_key set retires_at = ",
            ordered_now!("$4"),
            " + $3
             where application_id = $1 and subscription_id = $2 and retires_at is null",
        ))
        .bind(application.uuid())
        .bind(id.uuid())
        .bind(interval(overlap))
        .bind(self.times.expected)
        .execute(&mut *self.transaction)
        .await?;
        insert_key(&mut self.transaction, application, Some(id), key).await?;
        sqlx::query(concat!(
            "update signing_key set retires_at = ",
            ordered_now!("$4"),
            "
             where signing_key_id in (
                 select signing_key_id from signing_key
                 where application_id = $1 and subscription_id = $2
                   and (retires_at is null or retires_at > ",
            ordered_now!("$4"),
            ")
                 order by retires_at is not null, signing_key_id desc offset $3
             )",
        ))
        .bind(application.uuid())
        .bind(id.uuid())
        .bind(SIGNING_KEYS_MAX)
        .bind(self.times.expected)
        .execute(&mut *self.transaction)
        .await?;
        self.move_to(id, revision + 1, None).await?;
        self.copy_revision(id, revision, None).await?;
        Ok(true)
    }

    pub(super) async fn move_to(
        &mut self,
        id: SubscriptionId,
        revision: i32,
        uid: Option<&str>,
    ) -> Result<(), StoreError> {
        sqlx::query(concat!(
            "update subscription
             set revision = $2, routing_version = $3, uid = coalesce($4, uid), updated_at = ",
            ordered_now!("$5"),
            " where subscription_id = $1",
        ))
        .bind(id.uuid())
        .bind(revision)
        .bind(self.version)
        .bind(uid)
        .bind(self.times.expected)
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// What waits in the queue for a disabled subscription is to be parked.
    pub(super) async fn set_draining(
        &mut self,
        id: SubscriptionId,
        drains: bool,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "update subscription set drains_since = case when $2 then now() end
             where subscription_id = $1 and (drains_since is not null) <> $2",
        )
        .bind(id.uuid())
        .bind(drains)
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    pub(super) async fn insert_revision(
        &mut self,
        id: SubscriptionId,
        revision: i32,
        settings: &SettingsRow,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "insert into subscription_revision (
                 subscription_id, revision, routing_version, target_url, method, event_types,
                 filter, is_active, timeout_ms, retry, payload_format, schema_version, signing,
                 signature_headers, sealed_headers, sealed_inbound_secret, description, metadata,
                 disabled_at, disabled_because, disable_after_s, max_in_flight, rate_limit,
                 inbound_type_header
             ) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
                       $18, $19, $20, $21, $22, $23, $24)",
        )
        .bind(id.uuid())
        .bind(revision)
        .bind(self.version)
        .bind(&settings.target_url)
        .bind(&settings.method)
        .bind(&settings.event_types)
        .bind(settings.filter.as_deref())
        .bind(settings.is_active)
        .bind(settings.timeout_ms)
        .bind(settings.retry.as_deref())
        .bind(&settings.payload_format)
        .bind(&settings.schema_version)
        .bind(&settings.signing)
        .bind(&settings.signature_headers)
        .bind(settings.sealed_headers.as_deref())
        .bind(settings.sealed_inbound_secret.as_deref())
        .bind(settings.description.as_deref())
        .bind(settings.metadata.as_deref())
        .bind(settings.disabled_at)
        .bind(settings.disabled_because.as_deref())
        .bind(settings.disable_after_s)
        .bind(settings.max_in_flight)
        .bind(settings.rate_limit.as_deref())
        .bind(settings.inbound_type_header.as_deref())
        .execute(&mut *self.transaction)
        .await?;
        self.set_lane_limit(id, revision, settings).await?;
        let names_operators =
            settings.event_types.iter().any(|pattern| pattern.starts_with(OPERATOR_TYPES));
        sqlx::query(
            "update subscription set names_operator_types = $2
             where subscription_id = $1 and names_operator_types <> $2",
        )
        .bind(id.uuid())
        .bind(names_operators)
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// Publishes an operator event about a subscription as it is now, if anybody asks for it.
    pub(super) async fn tell(
        &mut self,
        id: SubscriptionId,
        event_type: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "insert into outbox
             select * from event_of_subscription($1, $2)",
        )
        .bind(event_type)
        .bind(id.uuid())
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// The next revision says what this one says: the keys have changed, or it is disabled.
    pub(super) async fn copy_revision(
        &mut self,
        id: SubscriptionId,
        revision: i32,
        disabled: Option<DisabledBecause>,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "insert into subscription_revision (
                 subscription_id, revision, routing_version, target_url, method, event_types,
                 filter, is_active, timeout_ms, retry, payload_format, schema_version, signing,
                 signature_headers, sealed_headers, sealed_inbound_secret, description, metadata,
                 disabled_at, disabled_because, disable_after_s, max_in_flight, rate_limit,
                 inbound_type_header
             )
             select subscription_id, revision + 1, $3, target_url, method, event_types,
                    filter, is_active and $4::text is null, timeout_ms, retry, payload_format, schema_version, signing,
                    signature_headers, sealed_headers, sealed_inbound_secret, description, metadata,
                    case when $4 is null then disabled_at else now() end,
                    coalesce($4, disabled_because), disable_after_s, max_in_flight, rate_limit,
                    inbound_type_header
             from subscription_revision where subscription_id = $1 and revision = $2",
        )
        .bind(id.uuid())
        .bind(revision)
        .bind(self.version)
        .bind(disabled.map(DisabledBecause::as_str))
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }
}

/// Inserts a key of a subscription, or of an application's explicit targets.
pub(super) async fn insert_key(
    connection: &mut Session,
    application: ApplicationId,
    subscription: Option<SubscriptionId>,
    key: &NewSigningKey,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into signing_key (signing_key_id, application_id, subscription_id, sealed)
         values ($1, $2, $3, $4)",
    )
    .bind(key.id.uuid())
    .bind(application.uuid())
    .bind(subscription.map(SubscriptionId::uuid))
    .bind(&key.sealed)
    .execute(connection)
    .await?;
    Ok(())
}
