//! Why clients are refused: a closed set.

/// Why a client is refused, or cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There are enough connections.
    Connections,
    /// There are enough connections of this client.
    ClientConnections,
    /// A connection beyond the bounds made room for another one.
    Displaced,
    /// Nobody could be accepted: no descriptors, most likely.
    NotAccepted,
    /// The target is too long.
    UriTooLong,
    /// The head is too large.
    HeadTooLarge,
    /// The head is not HTTP/1.
    HeadMalformed,
    /// The head came too slowly.
    HeadTooSlow,
    /// The body is too large.
    BodyTooLarge,
    /// The body came too slowly.
    BodyTooSlow,
    /// There are enough requests under way.
    Requests,
    /// There are enough bytes of bodies.
    Bodies,
    /// There are enough bytes of answers.
    Answers,
    /// The client does not take its answer.
    AnswerNotTaken,
    /// Enough waits to be stored.
    Waiting,
    /// Too many checks by schemas wait, or one took too long.
    Checks,
    /// Postgres is away, or too slow.
    Unavailable,
}

impl Refusal {
    /// Every one.
    pub(super) const ALL: [Self; 17] = [
        Self::Connections,
        Self::ClientConnections,
        Self::Displaced,
        Self::NotAccepted,
        Self::UriTooLong,
        Self::HeadTooLarge,
        Self::HeadMalformed,
        Self::HeadTooSlow,
        Self::BodyTooLarge,
        Self::BodyTooSlow,
        Self::Requests,
        Self::Bodies,
        Self::Answers,
        Self::AnswerNotTaken,
        Self::Waiting,
        Self::Checks,
        Self::Unavailable,
    ];

    /// The `reason` that it is counted under.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ClientConnections => "client_connections",
            Self::Displaced => "displaced",
            Self::NotAccepted => "not_accepted",
            Self::UriTooLong => "uri_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadMalformed => "head_malformed",
            Self::HeadTooSlow => "head_too_slow",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTooSlow => "body_too_slow",
            Self::Requests => "requests",
            Self::Bodies => "bodies",
            Self::Answers => "answers",
            Self::AnswerNotTaken => "answer_not_taken",
            Self::Waiting => "waiting",
            Self::Checks => "checks",
            Self::Unavailable => "unavailable",
        }
    }
}
