//! Ids: UUIDv7 (RFC 9562) with a prefix that says what they name.
//!
//! Two properties carry weight elsewhere:
//! - an id begins with the time in milliseconds, so tables partition by range on the id, and a
//!   look-up by id touches one partition;
//! - a delivery's id shares all but its last 20 bits with its event's id, so that the deliveries of
//!   an event are one range of the primary key. This saves an index on `event_id` in the queue and
//!   in the history, on the hottest tables there are.

use std::fmt;

use uuid::Uuid;

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdError {
    prefix: &'static str,
    /// The prefix and the name of what it is an id of, if it is one.
    found: Option<(&'static str, &'static str)>,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.prefix;
        if let Some((found, kind)) = self.found {
            write!(f, "an id that begins with `{found}` is that of {kind}; ")?;
        }
        write!(
            f,
            "expected an id such as `{prefix}0192d4e0…` (`{prefix}` and 32 hexadecimal digits)"
        )
    }
}

impl std::error::Error for IdError {}

/// What ids there are: what each begins with, and what it names.
const KINDS: [(&str, &str); 8] = [
    (ApplicationId::PREFIX, "an application"),
    (EventId::PREFIX, "an event"),
    (DeliveryId::PREFIX, "a delivery"),
    (AttemptId::PREFIX, "an attempt"),
    (SubscriptionId::PREFIX, "a subscription"),
    (LaneId::PREFIX, "a lane"),
    (ReplayId::PREFIX, "a replay"),
    (ErasureId::PREFIX, "an erasure"),
];

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// What the text form begins with.
            pub const PREFIX: &'static str = $prefix;

            /// Takes a UUID as it is, from the database for instance.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID without its prefix.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.as_simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse(text, $prefix).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

id!(
    /// A tenant.
    ApplicationId,
    "app_"
);
id!(
    /// Something that happened. Its text form is the `webhook-id` that receivers see.
    EventId,
    "evt_"
);
id!(
    /// One event to one target.
    DeliveryId,
    "dlv_"
);
id!(
    /// One HTTP exchange of a delivery.
    AttemptId,
    "att_"
);
id!(
    /// A stored wish to get some of an application's events.
    SubscriptionId,
    "sub_"
);
id!(
    /// What lets a caller in.
    ApiKeyId,
    "key_"
);
id!(
    /// A job that sends again.
    ReplayId,
    "rpl_"
);
id!(
    /// What is taken away for good, as one job.
    ErasureId,
    "ers_"
);
id!(
    /// A secret that signs.
    SigningKeyId,
    "sgk_"
);
id!(
    /// What shares one queue order and one set of limits: a subscription, or the origin of an
    /// explicit target within its application.
    LaneId,
    "lane_"
);

fn parse(text: &str, prefix: &'static str) -> Result<Uuid, IdError> {
    with_prefix(text, prefix).ok_or_else(|| {
        let found = KINDS.into_iter().find(|(other, _)| with_prefix(text, other).is_some());
        IdError { prefix, found }
    })
}

fn with_prefix(text: &str, prefix: &str) -> Option<Uuid> {
    let hex = text.strip_prefix(prefix)?;
    // `Uuid::parse_str` also takes braces, hyphens and URNs: one id, one spelling.
    if hex.len() == 32 { Uuid::try_parse(hex).ok() } else { None }
}

/// The application that owns what no other application is named for; made by the first migration.
pub const DEFAULT_APPLICATION: ApplicationId =
    ApplicationId(Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0000));

/// How many of a delivery id's last bits are its own; the others are its event's.
const ORDINAL_BITS: u32 = 20;
const ORDINAL_MASK: u128 = (1 << ORDINAL_BITS) - 1;

/// How many deliveries one event can have.
pub const DELIVERIES_PER_EVENT_MAX: usize = 1 << (ORDINAL_BITS - 1);

impl EventId {
    /// The id of an event accepted at `unix_ms` (milliseconds, the database's clock).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(v7(unix_ms, random))
    }

    /// The lowest and the highest id that a delivery of this event can have.
    pub fn delivery_range(self) -> (DeliveryId, DeliveryId) {
        let low = self.0.as_u128() & !ORDINAL_MASK;
        (DeliveryId(Uuid::from_u128(low)), DeliveryId(Uuid::from_u128(low | ORDINAL_MASK)))
    }
}

impl DeliveryId {
    /// The id of the `ordinal`-th delivery (from 0) of an event.
    pub fn of_event(event: EventId, ordinal: usize) -> Self {
        debug_assert!(ordinal < DELIVERIES_PER_EVENT_MAX);
        Self(Uuid::from_u128(
            (event.0.as_u128() & !ORDINAL_MASK) | (ordinal as u128 & ORDINAL_MASK),
        ))
    }

    /// The least and the greatest id that its event may have.
    pub fn event_range(self) -> (EventId, EventId) {
        let low = self.0.as_u128() & !ORDINAL_MASK;
        (EventId(Uuid::from_u128(low)), EventId(Uuid::from_u128(low | ORDINAL_MASK)))
    }
}

impl ApplicationId {
    /// The id of an application made at `unix_ms` (milliseconds, the database's clock).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(v7(unix_ms, random))
    }
}

impl ApiKeyId {
    /// The id of a key made at `unix_ms` (milliseconds, the database's clock).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(v7(unix_ms, random))
    }
}

impl SubscriptionId {
    /// The id of a subscription made at `unix_ms` (milliseconds, the database's clock).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(v7(unix_ms, random))
    }

    /// The lane of a subscription: its own.
    pub fn lane(self) -> LaneId {
        LaneId(self.0)
    }
}

impl ReplayId {
    /// The id of a replay made at `unix_ms` (milliseconds, the database's clock).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(v7(unix_ms, random))
    }
}

impl ErasureId {
    /// The id of an erasure made at `unix_ms` (milliseconds, the database's clock).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(v7(unix_ms, random))
    }
}

impl SigningKeyId {
    /// The id of a key made at `unix_ms` (milliseconds, the database's clock).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(v7(unix_ms, random))
    }
}

impl AttemptId {
    /// The id of an attempt that started at `unix_ms` (milliseconds, the database's clock).
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(v7(unix_ms, random))
    }
}

/// Below every UUIDv7 made at `unix_ms` or later: the bound between two partitions.
pub fn lower_bound(unix_ms: u64) -> Uuid {
    Uuid::from_u128(u128::from(unix_ms) << 80)
}

/// When a UUIDv7 was made, in milliseconds since the Unix epoch.
pub fn unix_ms_of(id: Uuid) -> u64 {
    u64::try_from(id.as_u128() >> 80).expect("48 bits fit into 64")
}

fn v7(unix_ms: u64, random: [u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: EventId = EventId(Uuid::from_u128(0x0192_d4e0_1234_7abc_8def_0123_4567_89ab));

    #[test]
    fn text_form_is_the_prefix_and_32_digits() {
        assert_eq!(EVENT.to_string(), "evt_0192d4e012347abc8def0123456789ab");
        assert_eq!("evt_0192d4e012347abc8def0123456789ab".parse(), Ok(EVENT));
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "",
            "evt_",
            "0192d4e012347abc8def0123456789ab",
            "dlv_0192d4e012347abc8def0123456789ab",
            "evt_0192d4e0-1234-7abc-8def-0123456789ab",
            "evt_0192d4e012347abc8def0123456789a",
            "evt_0192d4e012347abc8def0123456789abc",
            "evt_{192d4e012347abc8def0123456789a}",
        ] {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_id_of_another_kind_is_told_by_its_kind() {
        let error = |text: &str| text.parse::<EventId>().unwrap_err().to_string();
        for (prefix, kind) in KINDS.into_iter().filter(|(prefix, _)| *prefix != "evt_") {
            let message = error(&format!("{prefix}0192d4e012347abc8def0123456789ab"));
            assert!(message.contains(prefix) && message.contains(kind), "{message}");
            assert!(message.contains("`evt_0192d4e0…`"), "{message}");
        }
        for no_id in ["", "dlv_", "dlv_0192", "xyz_0192d4e012347abc8def0123456789ab"] {
            assert!(error(no_id).starts_with("expected an id such as `evt_"), "{no_id}");
        }
    }

    #[test]
    fn deliveries_of_an_event_are_one_range() {
        let (low, high) = EVENT.delivery_range();
        let last = DeliveryId::of_event(EVENT, DELIVERIES_PER_EVENT_MAX - 1);
        assert_eq!(DeliveryId::of_event(EVENT, 0), low);
        assert!(low < last && last < high);
        let next = EventId(Uuid::from_u128(EVENT.0.as_u128() + (1 << 20)));
        assert!(high < next.delivery_range().0);
    }

    #[test]
    fn ids_sort_by_time_and_partition_bounds_lie_below_them() {
        let id = EventId::new(1_763_000_000_000, [0; 10]);
        assert!(lower_bound(1_763_000_000_000) < id.uuid());
        assert!(id.uuid() < lower_bound(1_763_000_000_001));
        assert_eq!(unix_ms_of(id.uuid()), 1_763_000_000_000);
        assert_eq!(id.uuid().get_version_num(), 7);
    }
}
