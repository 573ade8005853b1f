//! Erasures: what is taken away for good, by request.

use super::{EventId, Subject, subscription::names};

/// What can be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erasable {
    /// One event.
    Event(EventId),
    /// All events about somebody that were accepted by now.
    Subject(Subject),
    /// All events of the application that were accepted by now.
    Application,
}

impl Erasable {
    /// The names of all kinds.
    pub const SCOPES: [&'static str; 3] = ["event", "subject", "application"];

    /// Its kind.
    pub fn scope(&self) -> &'static str {
        let [event, subject, application] = Self::SCOPES;
        match self {
            Self::Event(_) => event,
            Self::Subject(_) => subject,
            Self::Application => application,
        }
    }

    /// The event, if it is one.
    pub fn event(&self) -> Option<EventId> {
        if let Self::Event(id) = self { Some(*id) } else { None }
    }

    /// Whom it is about, if that is asked.
    pub fn subject(&self) -> Option<&str> {
        if let Self::Subject(subject) = self { Some(subject.as_str()) } else { None }
    }
}

names! {
    /// How far an erasure is.
    ErasureState {
        /// It has more to do.
        Running = "running",
        /// It is done.
        Completed = "completed",
    }
}
