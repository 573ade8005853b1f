//! What clients may take: connections, requests, bytes and time.

use std::ops::RangeInclusive;

use super::{
    check::{ConfigError, seconds_within, within},
    settings::Settings,
};
use crate::http::ClientBounds;

/// The bounds of `CONNECTIONS_MAX` and `REQUESTS_MAX`.
const MANY: RangeInclusive<usize> = 16..=1_000_000;
/// The bounds of `REQUEST_HEAD_MAX`, and of `REQUEST_BODIES_MAX`, in bytes.
const HEAD_BYTES: RangeInclusive<usize> = 4 * 1024..=256 * 1024;
const BODIES_BYTES: RangeInclusive<usize> = 1_024..=64 * 1024 * 1024 * 1024;
/// The bounds of the times, in seconds. A head is small, and comes at once.
const HEAD_SECONDS: RangeInclusive<f64> = 0.1..=300.0;
const SECONDS: RangeInclusive<f64> = 0.1..=3_600.0;

impl Settings {
    /// All of them.
    pub(super) fn clients(&self) -> Result<ClientBounds, ConfigError> {
        let all = within("CONNECTIONS_MAX", self.connections_max, &MANY)?;
        let client = self.client_connections_max.unwrap_or(all / 2);
        let client = within("CLIENT_CONNECTIONS_MAX", client, &(1..=*MANY.end()))?;
        if client > all {
            return Err(ConfigError::Clients { client, all });
        }
        let bodies = within("REQUEST_BODIES_MAX", self.request_bodies_max, &BODIES_BYTES)?;
        for (variable, bytes) in
            [("REQUEST_BODY_MAX", self.request_body_max), ("BATCH_BODY_MAX", self.batch_body_max)]
        {
            if bodies < bytes {
                return Err(ConfigError::Bodies { variable });
            }
        }
        Ok(ClientBounds {
            connections_max: all,
            client_connections_max: client,
            requests_max: within("REQUESTS_MAX", self.requests_max, &MANY)?,
            head_bytes_max: within("REQUEST_HEAD_MAX", self.request_head_max, &HEAD_BYTES)?,
            bodies_bytes_max: bodies,
            head_timeout: seconds_within(
                "REQUEST_HEAD_TIMEOUT",
                self.request_head_timeout,
                &HEAD_SECONDS,
            )?,
            body_timeout: seconds_within(
                "REQUEST_BODY_TIMEOUT",
                self.request_body_timeout,
                &SECONDS,
            )?,
            keep_alive: seconds_within("KEEP_ALIVE_TIMEOUT", self.keep_alive_timeout, &SECONDS)?,
            answer_timeout: seconds_within("ANSWER_TIMEOUT", self.answer_timeout, &SECONDS)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::tests::{check, refused};

    #[test]
    fn one_client_has_half_unless_it_is_told() {
        let clients = |flags: &[&str]| check(flags).unwrap().clients;
        let half = clients(&["--connections-max=20"]);
        assert_eq!((half.connections_max, half.client_connections_max), (20, 10));
        let flags = ["--connections-max=20", "--client-connections-max=20"];
        assert_eq!(clients(&flags).client_connections_max, 20);
        let both = ["CLIENT_CONNECTIONS_MAX (21)", "CONNECTIONS_MAX (20)"];
        refused(&[flags[0], "--client-connections-max=21"], &both);
        refused(&["--client-connections-max=0"], &["CLIENT_CONNECTIONS_MAX"]);
        refused(&["--connections-max=15"], &["CONNECTIONS_MAX"]);
        refused(&["--requests-max=15"], &["REQUESTS_MAX"]);
    }

    #[test]
    fn a_body_that_is_allowed_has_room() {
        let one = ["REQUEST_BODIES_MAX", "REQUEST_BODY_MAX"];
        refused(&["--request-bodies-max=1048575"], &one);
        let many = ["REQUEST_BODIES_MAX", "BATCH_BODY_MAX"];
        refused(&["--request-bodies-max=16777215"], &many);
        check(&["--request-bodies-max=16777216"]).unwrap();
        refused(&["--request-head-max=4095"], &["REQUEST_HEAD_MAX"]);
    }

    #[test]
    fn every_wait_ends() {
        for (flag, variable, most) in [
            ("request-head-timeout", "REQUEST_HEAD_TIMEOUT", "300.1"),
            ("request-body-timeout", "REQUEST_BODY_TIMEOUT", "3600.1"),
            ("keep-alive-timeout", "KEEP_ALIVE_TIMEOUT", "3600.1"),
            ("answer-timeout", "ANSWER_TIMEOUT", "3600.1"),
        ] {
            for seconds in ["0.09", most] {
                refused(&[&format!("--{flag}={seconds}")], &[variable]);
            }
            check(&[&format!("--{flag}=0.1")]).unwrap();
        }
    }
}
