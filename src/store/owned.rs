//! What processes own, and what those that are gone have left, read page by page of the queue. There is
//! no index by owner, which every delivery would have to pay for.

use std::{ops::Range, time::Duration};

use uuid::Uuid;

use super::{
    Store, StoreError, bounded,
    dispatchers::DispatcherId,
    ending::{from_queue, taken_die, taken_end, told, told_to_cms},
    queue::interval,
    time::ordered_now,
};
use crate::domain::{DeliveryId, LaneId};

/// How many leases may be lost in a row before a delivery is dead.
pub const INTERRUPTIONS_MAX: i16 = 20;
/// How many pages of the queue are read at a time: 2 MiB, a millisecond or two. All of a long queue at
/// once would keep Postgres busy for as long as others then wait.
const PAGES_PER_PART: i64 = 250;
/// The least pause that whoever goes through them makes between two parts.
pub const PART_PAUSE: Duration = Duration::from_millis(10);
/// How many orphans one statement releases, in three or four milliseconds. All that a process held in
/// one kept Postgres busy for a fifth of a second.
const ORPHANS_MAX: i64 = 50;
/// The same where nobody waits yet.
const ORPHANS_MAX_AT_START: i64 = 5_000;

/// The pages of the queue that somebody who goes through them has not come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages(Range<i64>);

impl Pages {
    /// No more.
    pub const DONE: Self = Self(0..0);

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Leaves the next part out.
    pub fn skip(&mut self) {
        self.pass(&self.part());
    }

    /// The next part, in which something may be to do.
    fn part(&self) -> Range<i64> {
        self.0.start..self.0.end.min(self.0.start + PAGES_PER_PART)
    }

    /// Goes on behind it.
    fn pass(&mut self, part: &Range<i64>) {
        self.0.start = part.end;
    }
}

/// A row that a process owns.
#[derive(Debug, sqlx::FromRow)]
pub struct OwnedRow {
    delivery_id: Uuid,
    /// The claim's number.
    pub claim_number: i32,
}

impl OwnedRow {
    /// The delivery.
    pub fn delivery_id(&self) -> DeliveryId {
        DeliveryId::from_uuid(self.delivery_id)
    }
}

/// What releasing the rows of dead processes came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Orphans {
    /// Rows that may be claimed again.
    pub released: i64,
    /// Rows that died as `interrupted`.
    pub buried: i64,
}

impl Orphans {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Adds those of another part.
    pub fn add(&mut self, other: Self) {
        self.released += other.released;
        self.buried += other.buried;
    }

    fn count(&self) -> i64 {
        self.released + self.buried
    }
}

impl Store {
    /// Makes deliveries of these lanes due now that are due further ahead than any retry: a clock that
    /// was wrong has left them there. Returns how many.
    pub async fn bring_forward(
        &self,
        lanes: &[LaneId],
        further_than: Duration,
        rows_max: i64,
    ) -> Result<u64, StoreError> {
        bounded(async {
            let brought = sqlx::query(BRING_FORWARD)
                .bind(lanes.iter().map(|lane| lane.uuid()).collect::<Vec<_>>())
                .bind(interval(further_than))
                .bind(rows_max)
                .bind(self.times().expected)
                .execute(&self.pool)
                .await?;
            Ok(brought.rows_affected())
        })
        .await
    }

    /// All pages that the queue has now.
    pub async fn queue_pages(&self) -> Result<Pages, StoreError> {
        bounded(async {
            let count = sqlx::query_scalar(
                "select pg_relation_size('delivery_queue') / current_setting('block_size')::bigint",
            )
            .fetch_one(&self.pool)
            .await?;
            Ok(Pages(0..count))
        })
        .await
    }

    /// Lists what a process owns in the next part of these pages, to be compared with what it knows of.
    /// A row that is changed meanwhile may move to pages that were read before.
    pub async fn owned_rows(
        &self,
        owner: DispatcherId,
        pages: &mut Pages,
    ) -> Result<Vec<OwnedRow>, StoreError> {
        let part = pages.part();
        let rows = bounded(async {
            Ok(sqlx::query_as(
                "select delivery_id, claim_number from delivery_queue
                 where owner = $1 and ctid >= $2::text::tid and ctid < $3::text::tid",
            )
            .bind(owner)
            .bind(beginning_of(part.start))
            .bind(beginning_of(part.end))
            .fetch_all(&self.pool)
            .await?)
        })
        .await?;
        pages.pass(&part);
        Ok(rows)
    }

    /// Gives rows of the next part of these pages back whose owner is no running process; once it finds
    /// no more, the part is done. What another transaction holds is left to whoever comes next. Each
    /// counts as a lost lease; after [`INTERRUPTIONS_MAX`] in a row the delivery is dead.
    pub async fn release_orphans(&self, pages: &mut Pages) -> Result<Orphans, StoreError> {
        self.release_some_orphans(pages, ORPHANS_MAX).await
    }

    /// Gives all of them back, before the service is ready.
    pub async fn release_all_orphans(&self) -> Result<Orphans, StoreError> {
        let (mut pages, mut all) = (self.queue_pages().await?, Orphans::default());
        while !pages.is_empty() {
            all.add(self.release_some_orphans(&mut pages, ORPHANS_MAX_AT_START).await?);
        }
        Ok(all)
    }

    async fn release_some_orphans(
        &self,
        pages: &mut Pages,
        rows_max: i64,
    ) -> Result<Orphans, StoreError> {
        let part = pages.part();
        let orphans: Orphans = bounded(async {
            // Nearly always there are none, and this is planned in a tenth of the time.
            let are_there: bool = sqlx::query_scalar(ARE_THERE_ORPHANS)
                .bind(beginning_of(part.start))
                .bind(beginning_of(part.end))
                .fetch_one(&self.pool)
                .await?;
            if !are_there {
                return Ok(Orphans::default());
            }
            Ok(sqlx::query_as(RELEASE_ORPHANS)
                .bind(rows_max)
                .bind(INTERRUPTIONS_MAX)
                .bind(self.cms())
                .bind(beginning_of(part.start))
                .bind(beginning_of(part.end))
                .bind(self.times().expected)
                .fetch_one(&self.pool)
                .await?)
        })
        .await?;
        if orphans.count() < rows_max {
            pages.pass(&part);
        }
        Ok(orphans)
    }
}

const BRING_FORWARD: &str = concat!(
    "with clock as materialized (select ",
    ordered_now!("$4"),
    " as now)
    update delivery_queue q set due_at = (select now from clock)
    from (
        select head.place from unnest($1::uuid[]) as lanes(lane_id)
        cross join lateral (
            select ctid as place from delivery_queue
            where lane_id = lanes.lane_id and owner is null
              and due_at > (select now from clock) + $2
            order by lane_id, due_at limit $3
            for update skip locked
        ) as head
    ) as stranded
    where q.ctid = stranded.place"
);

/// The place of a page's first row, as text.
fn beginning_of(page: i64) -> String {
    format!("({page},0)")
}

/// Whether a row of the queue (`q`) lies between these places, and its owner is no running process.
macro_rules! is_orphan {
    ($from:literal, $to:literal) => {
        concat!(
            "q.ctid >= ",
            $from,
            "::text::tid and q.ctid < ",
            $to,
            "::text::tid and q.owner is not null
             and not exists (select from dispatcher d where d.dispatcher_id = q.owner)"
        )
    };
}

const ARE_THERE_ORPHANS: &str =
    concat!("select exists (select from delivery_queue q where ", is_orphan!("$1", "$2"), ")");

// Rows are taken by their place: the planner believes that the queue has one row.
const RELEASE_ORPHANS: &str = concat!(
    "with orphan as (
        select q.ctid as place, interruption_count + 1 as interruptions
        from delivery_queue q
        where ",
    is_orphan!("$4", "$5"),
    "
        limit $1
        for update skip locked
    ),
    released as (
        update delivery_queue q
        set owner = null, due_at = ",
    ordered_now!("$6"),
    ", interruption_count = orphan.interruptions
        from orphan
        where q.ctid = orphan.place and orphan.interruptions < $2
        returning q.delivery_id
    ),
    taken as (
        delete from delivery_queue q using orphan
        where q.ctid = orphan.place and orphan.interruptions >= $2
        ",
    from_queue!(),
    "
    ),
    ",
    taken_die!("interrupted", "$3"),
    "
    select (select count(*) from released) as released, (select count(*) from taken) as buried"
);
