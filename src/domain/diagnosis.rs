//! What is wrong with a receiver, and what to do about it: read off what was recorded.

use super::{ErrorClass, subscription::DisabledBecause};

/// What is known of a subscription's receiver.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// Why nothing is sent, if nothing is.
    pub disabled: Option<DisabledBecause>,
    /// Attempts in the time that is looked at.
    pub attempts: i64,
    /// Those of them that failed.
    pub failed_attempts: i64,
    /// Nothing but failures has been recorded since some time.
    pub is_failing: bool,
    /// Deliveries that wait to be sent.
    pub queued: i64,
    /// Deliveries that stand aside until it is enabled.
    pub parked: i64,
    /// Deliveries that were given up, of those that were looked at.
    pub dead: usize,
}

/// How a receiver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// What was sent lately arrived.
    Healthy,
    /// Some of what was sent failed, and the latest arrived.
    Troubled,
    /// The latest attempts failed, all of them.
    Failing,
    /// Nothing is sent.
    Disabled,
    /// Nothing was sent in the time that is looked at.
    Idle,
}

impl Health {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::Healthy, Self::Troubled, Self::Failing, Self::Disabled, Self::Idle];

    /// The name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Troubled => "troubled",
            Self::Failing => "failing",
            Self::Disabled => "disabled",
            Self::Idle => "idle",
        }
    }

    /// How a receiver is of which this is known.
    pub const fn of(facts: &Facts) -> Self {
        if facts.disabled.is_some() {
            Self::Disabled
        } else if facts.is_failing {
            Self::Failing
        } else if facts.failed_attempts > 0 {
            Self::Troubled
        } else if facts.attempts == 0 {
            Self::Idle
        } else {
            Self::Healthy
        }
    }

    /// A sentence for people.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Healthy => "what was sent arrived",
            Self::Troubled => "some attempts failed, and the latest one succeeded",
            Self::Failing => "every attempt since `failing_since` failed",
            Self::Disabled => "it is disabled: what comes for it is parked and waits",
            Self::Idle => "no attempt was recorded in this time",
        }
    }
}

/// What failures of a class, answered with this status if with any, mean; and what to do about them.
pub const fn meaning(class: ErrorClass, status: Option<u16>) -> (&'static str, &'static str) {
    match class {
        ErrorClass::Dns => (
            "the name of the host cannot be resolved",
            "check the host in `target_url` for a slip, and whether its DNS record is still there",
        ),
        ErrorClass::Connect => (
            "nothing accepts connections at that host and port",
            "check that the receiver runs, listens on that port, and that no firewall is between",
        ),
        ErrorClass::Tls => (
            "the TLS handshake failed, most often because of the certificate",
            "check that the certificate is not expired, names this host and comes with its chain",
        ),
        ErrorClass::Timeout => (
            "the receiver did not answer in time",
            "let the receiver answer 2xx at once and work afterwards, or raise `timeout_seconds`",
        ),
        ErrorClass::BlockedAddress => (
            "the host must not be called, or resolves to an address that must not",
            "take a public address, or let the operator allow it: an address by ALLOWED_TARGET_CIDRS, a \
             host by the application's `allowed_hosts`; the message names which",
        ),
        ErrorClass::HttpStatus => of_status(status),
        ErrorClass::Redirect => (
            "the receiver answers with a redirect, and redirects are not followed",
            "set `target_url` to where the redirect points (http to https, or a slash at the end)",
        ),
        ErrorClass::Loop => (
            "the receiver is a webhook dispatcher whose events lead back to it",
            "set `target_url` to a receiver that does not publish what it gets, or change where the \
             events go that it publishes",
        ),
        ErrorClass::ResponseTooLarge => (
            "the head of the answer is too large",
            "let the receiver answer with fewer or shorter headers",
        ),
        ErrorClass::Protocol => (
            "what answers does not speak HTTP, or broke off",
            "check the scheme and the port of `target_url`, and what stands before the receiver",
        ),
        ErrorClass::Signing => (
            "the request could not be signed",
            "rotate the secret of the subscription; if that does not help, tell the operator",
        ),
        ErrorClass::Internal => {
            ("the service failed", "tell the operator: the service's log says why")
        }
        ErrorClass::Interrupted => (
            "processes of the service ended again and again while they sent it",
            "tell the operator: the service's log says why",
        ),
        ErrorClass::Expired => (
            "deliveries became too old before they arrived",
            "mend what the attempts before failed of, then replay what is lost",
        ),
        ErrorClass::Cancelled => ("they were cancelled", "nothing, if that was meant"),
    }
}

const fn of_status(status: Option<u16>) -> (&'static str, &'static str) {
    match status {
        Some(401 | 403) => (
            "the receiver refuses the request: a signature or credentials that it does not accept",
            "compare the secret that the receiver verifies with the subscription's, check \
             `signature_headers` and the credentials in `headers`, and the receiver's clock",
        ),
        Some(404 | 405) => (
            "there is nothing at that path, or not for this method",
            "check the path of `target_url` and `method` against the routes of the receiver",
        ),
        Some(400 | 406 | 415 | 422) => (
            "the receiver does not understand the request",
            "compare what it expects with `payload_format`, the payload and `headers`; its answer is \
             in the attempts of a delivery",
        ),
        Some(410) => (
            "the receiver says that it is gone for good",
            "delete the subscription, or set another `target_url` and enable it",
        ),
        Some(413) => (
            "the request is larger than the receiver takes",
            "raise the receiver's limit, or publish smaller payloads",
        ),
        Some(429) => (
            "the receiver is sent more than it takes",
            "nothing is lost: it is sent later. Raise the receiver's limit if this lasts",
        ),
        Some(500..=599) => (
            "the receiver, or what stands before it, fails",
            "look into the receiver's log at the times of the attempts",
        ),
        _ => (
            "the receiver answered with what is no success",
            "let it answer 2xx for what it has taken; its answer is in the attempts of a delivery",
        ),
    }
}

/// What to do, in this order. `remedies` are those of the failures, the most frequent first.
pub fn steps(facts: &Facts, remedies: &[&str], is_changed_before: bool) -> Vec<String> {
    let mut steps = Vec::new();
    let is_ill = matches!(Health::of(facts), Health::Failing | Health::Disabled);
    if is_ill && is_changed_before {
        steps.push(
            "Look at the latest of `changes`: it came shortly before the failures did.".to_owned(),
        );
    }
    for remedy in remedies {
        let sentence = sentence(remedy);
        if !steps.contains(&sentence) {
            steps.push(sentence);
        }
    }
    if is_ill {
        steps.push(
            "Then send an example, and look at its event (`webhook_subscription_test`, \
                    `webhook_event`): disabled ones must be enabled first."
                .to_owned(),
        );
    }
    match facts.disabled {
        Some(DisabledBecause::Owner) => steps.push(
            "Enable it when its owner wants that (`is_active`): somebody has disabled it on purpose."
                .to_owned(),
        ),
        Some(DisabledBecause::Gone | DisabledBecause::Failing) => steps.push(
            "Enable it again once the receiver is mended (`is_active`); what is parked is then sent."
                .to_owned(),
        ),
        None => {}
    }
    if facts.dead > 0 {
        steps.push(
            "Once it works, send again what was given up: one with `webhook_retry`, all with \
             `webhook_replay` and the state `dead` (a dry run first)."
                .to_owned(),
        );
    }
    if facts.queued > 0 && facts.is_failing {
        steps.push("Nothing has to be done for what waits: it is retried by itself.".to_owned());
    }
    if facts.attempts == 0 && facts.disabled.is_none() && steps.is_empty() {
        steps.push(
            "If events should have come: see for one of them why it did not (`webhook_explain`), and \
             compare its type and content with `event_types` and `filter`."
                .to_owned(),
        );
    }
    if steps.is_empty() {
        steps.push("Nothing: it works.".to_owned());
    }
    steps
}

fn sentence(words: &str) -> String {
    let first = words.chars().next().map_or(0, char::len_utf8);
    format!("{}{}.", words[..first].to_uppercase(), &words[first..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_the_worst_that_is_known() {
        let disabled = Some(DisabledBecause::Failing);
        let all = Facts {
            disabled,
            attempts: 9,
            failed_attempts: 9,
            is_failing: true,
            ..Facts::default()
        };
        assert_eq!(Health::of(&all), Health::Disabled);
        assert_eq!(Health::of(&Facts { disabled: None, ..all }), Health::Failing);
        let mended = Facts { disabled: None, is_failing: false, ..all };
        assert_eq!(Health::of(&mended), Health::Troubled);
        assert_eq!(Health::of(&Facts { failed_attempts: 0, ..mended }), Health::Healthy);
        assert_eq!(Health::of(&Facts::default()), Health::Idle);
    }

    #[test]
    fn every_failure_has_a_remedy() {
        for class in ErrorClass::ALL {
            for status in (100..1_000).map(Some).chain([None]) {
                let (meaning, remedy) = meaning(class, status);
                assert!(!meaning.ends_with('.') && !remedy.ends_with('.'), "{class} {status:?}");
            }
        }
        let told = |status| meaning(ErrorClass::HttpStatus, Some(status)).0;
        assert!(told(401).contains("signature") && told(404).contains("path"));
        assert_ne!(told(503), told(200));
    }

    #[test]
    fn steps_begin_with_what_changed_and_end_with_what_was_lost() {
        let facts = Facts {
            attempts: 9,
            failed_attempts: 9,
            is_failing: true,
            dead: 2,
            ..Facts::default()
        };
        let told = steps(&facts, &["mend it", "mend it"], true);
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told[0].contains("changes") && told[1] == "Mend it." && told[3].contains("replay"));
        assert_eq!(
            steps(&Facts { attempts: 1, ..Facts::default() }, &[], true),
            ["Nothing: it works."]
        );
        assert!(steps(&Facts::default(), &[], false)[0].contains("webhook_explain"));
        let owner = Facts { disabled: Some(DisabledBecause::Owner), ..Facts::default() };
        assert!(steps(&owner, &[], false)[1].contains("on purpose"));
    }
}
