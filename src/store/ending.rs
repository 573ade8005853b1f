//! What statements share that take deliveries out of the queue, or out of `delivery_parked`, without a
//! result: they end, or are parked.

/// What a statement takes out of the queue, under the names that [`taken_end`] knows.
macro_rules! from_queue {
    () => {
        "returning q.delivery_id, q.event_id, q.application_id, q.lane_id, q.subscription_id,
                   q.target_url, q.prior_count + q.attempt_count as attempt_count, q.created_at,
                   q.run"
    };
}

/// The same out of `delivery_parked`.
macro_rules! from_parked {
    () => {
        "returning p.delivery_id, p.event_id, p.application_id, p.subscription_id as lane_id,
                   p.subscription_id, p.target_url,
                   p.prior_count + p.attempt_count as attempt_count, p.created_at,
                   null::text as run"
    };
}

/// Ends what was `taken` in this state and for this reason, and has the CMS told. What had ended before,
/// and was sent again, is what it was.
macro_rules! taken_end {
    ($state:literal, $reason:literal, $cms:literal) => {
        concat!(
            "ended as (
                insert into delivery (delivery_id, event_id, application_id, lane_id,
                                      subscription_id, event_type, target_url, state, reason,
                                      attempt_count, created_at)
                select delivery_id, event_id, application_id, lane_id, subscription_id,
                       (
                           select type from event e
                           where e.application_id = taken.application_id
                             and e.event_id = taken.event_id
                       ),
                       target_url, '",
            $state,
            "', '",
            $reason,
            "', attempt_count, created_at
                from taken where coalesce(run, 'retry') = 'retry'
                returning *
            ),
            ",
            told_to_cms!("select application_id, event_id from ended", $cms)
        )
    };
}

/// A part of this name that tells of deliveries, each a row with the columns of `delivery`: whoever
/// asked for events of this type gets one (see `migrations/0011_operator_events.sql`). A row costs a
/// look-up or two, so it is for what is rare.
macro_rules! told {
    ($name:literal, $event_type:literal, $rows:literal) => {
        concat!(
            $name,
            " as (
                insert into outbox
                select event.*
                from (",
            $rows,
            ") as over
                cross join lateral event_of_delivery(
                    '",
            $event_type,
            "', application_id, delivery_id, event_id, event_type, subscription_id, target_url,
                    reason, attempt_count, last_status, created_at
                ) as event
            )"
        )
    };
}

/// Ends what was `taken` as dead for this reason, and tells of it.
macro_rules! taken_die {
    ($reason:literal, $cms:literal) => {
        concat!(
            taken_end!("dead", $reason, $cms),
            ", ",
            told!("death", "webhook.delivery.dead", "select * from ended")
        )
    };
}

/// A part that has the CMS told of events, if they are of the application that the parameter `$cms`
/// names. A null names none.
macro_rules! told_to_cms {
    ($rows:literal, $cms:literal) => {
        concat!(
            "for_cms as (
                insert into cms_log_queue (application_id, event_id)
                select distinct application_id, event_id from (",
            $rows,
            ") as over
                where application_id = (select cms_application(",
            $cms,
            "::text))
            )"
        )
    };
}

pub(super) use {from_parked, from_queue, taken_die, taken_end, told, told_to_cms};
