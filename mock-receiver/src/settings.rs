//! What the receiver can be told, from the environment, from flags, or literally in a test.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use clap::Parser;

use crate::signature::Secret;

/// The longest `MAX_DELAY_SEC` that is accepted.
pub const DELAY_MAX_LIMIT: Duration = Duration::from_hours(1);

/// What webhook-dispatcher signs with until somebody sets `WEBHOOK_SECRET`.
const SECRET_DEFAULT: &str = "change-me-in-production";

/// All settings. The binary reads each from the flag or the variable named beside it.
///
/// [`Settings::default`] is the chaos that the binary starts with; [`Settings::calm`] is what most
/// tests start from.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "mock-receiver",
    version,
    about = "A webhook receiver that hangs, dawdles and fails by chance, and checks signatures",
    long_about = None // or it would be the documentation of the type
)]
pub struct Settings {
    /// Secret that signatures must be made with: `whsec_` + base64 of 24 to 64 bytes, or any text.
    #[arg(
        long = "webhook-secret",
        env = "WEBHOOK_SECRET",
        value_name = "WEBHOOK_SECRET",
        default_value = SECRET_DEFAULT,
        hide_env_values = true // or `--help` prints the secret
    )]
    pub secret: Secret,

    /// Share of the answered requests, 0 to 1, that are answered with a failure.
    #[arg(
        long,
        env = "FAILURE_RATE",
        value_name = "FAILURE_RATE",
        default_value_t = 0.7,
        allow_negative_numbers = true // so that the range check answers, not "unknown flag"
    )]
    pub failure_rate: f64,

    /// Each answer is delayed by some time between 0 and this many seconds.
    #[arg(
        long = "max-delay-sec",
        env = "MAX_DELAY_SEC",
        value_name = "MAX_DELAY_SEC",
        default_value = "5",
        value_parser = seconds,
        allow_negative_numbers = true
    )]
    pub delay_max: Duration,

    /// Share of the requests, 0 to 1, that are never answered.
    #[arg(
        long,
        env = "HANG_RATE",
        value_name = "HANG_RATE",
        default_value_t = 0.08,
        allow_negative_numbers = true
    )]
    pub hang_rate: f64,

    /// Address to listen on.
    #[arg(
        long,
        env = "BIND",
        value_name = "BIND",
        default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST)
    )]
    pub bind: IpAddr,

    /// Port to listen on; 0 takes a free one.
    #[arg(long, env = "PORT", value_name = "PORT", default_value_t = 8080)]
    pub port: u16,

    /// Decides, with the webhook-id and the attempt, what goes wrong. Without it a random one is
    /// taken and logged.
    #[arg(long, env = "SEED", value_name = "SEED")]
    pub seed: Option<u64>,
}

/// A setting out of its range. The message names the variable.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// `FAILURE_RATE` or `HANG_RATE` is not a share.
    #[error("{variable} must be between 0 and 1, but is {value}")]
    Rate {
        /// Which of the two.
        variable: &'static str,
        /// What it was set to.
        value: f64,
    },
    /// `MAX_DELAY_SEC` is longer than [`DELAY_MAX_LIMIT`].
    #[error(
        "MAX_DELAY_SEC must be at most {} seconds, but is {}",
        DELAY_MAX_LIMIT.as_secs(),
        .0.as_secs_f64()
    )]
    Delay(Duration),
}

impl Settings {
    /// No failures, no delays, no hanging, on a free port of 127.0.0.1, with the default secret.
    pub fn calm() -> Self {
        Self {
            failure_rate: 0.0,
            delay_max: Duration::ZERO,
            hang_rate: 0.0,
            port: 0,
            seed: Some(0),
            ..Self::default()
        }
    }

    /// Checks what the types do not say. [`crate::MockReceiver::bind`] does it too.
    pub fn check(&self) -> Result<(), SettingsError> {
        for (variable, value) in
            [("FAILURE_RATE", self.failure_rate), ("HANG_RATE", self.hang_rate)]
        {
            // Also refuses NaN, which is in no range.
            if !(0.0..=1.0).contains(&value) {
                return Err(SettingsError::Rate { variable, value });
            }
        }
        if DELAY_MAX_LIMIT < self.delay_max {
            return Err(SettingsError::Delay(self.delay_max));
        }
        Ok(())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            secret: SECRET_DEFAULT.parse().expect("the default secret is not empty"),
            failure_rate: 0.7,
            delay_max: Duration::from_secs(5),
            hang_rate: 0.08,
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            seed: None,
        }
    }
}

/// Parses seconds with a fraction, such as `0.25`; refuses what is negative or not finite.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    /// Parses flags as the binary does, but blind to the environment of the test run.
    fn parse(flags: &[&str]) -> Result<Settings, String> {
        let mut command = Settings::command().mut_args(|arg| arg.env(None::<&str>));
        let matches = command
            .try_get_matches_from_mut(std::iter::once("mock-receiver").chain(flags.iter().copied()))
            .map_err(|error| error.to_string())?;
        let settings = Settings::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        settings.check().map_err(|error| error.to_string())?;
        Ok(settings)
    }

    #[track_caller]
    fn check_refused(flags: &[&str], expected: &str) {
        let error = parse(flags).expect_err("the flags must be refused");
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn flags_have_the_same_defaults_as_the_default_settings() {
        let parsed = parse(&[]).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Settings::default()));
        // `Debug` hides secrets, so they are compared apart.
        assert!(parsed.secret.is_same_as(&Settings::default().secret));
    }

    #[test]
    fn all_flags_are_taken() {
        let flags = [
            "--webhook-secret=s3cret",
            "--failure-rate=0.25",
            "--max-delay-sec=0.5",
            "--hang-rate=1",
            "--bind=::1",
            "--port=0",
            "--seed=7",
        ];
        let settings = parse(&flags).unwrap();
        assert!(settings.secret.is_same_as(&"s3cret".parse().unwrap()));
        assert_eq!(
            format!("{settings:?}"),
            "Settings { secret: Secret(redacted), failure_rate: 0.25, delay_max: 500ms, \
             hang_rate: 1.0, bind: ::1, port: 0, seed: Some(7) }"
        );
    }

    #[test]
    fn rates_outside_of_0_to_1_are_refused_by_name() {
        check_refused(&["--failure-rate=1.01"], "FAILURE_RATE must be between 0 and 1");
        check_refused(&["--failure-rate", "-0.1"], "FAILURE_RATE must be between 0 and 1");
        check_refused(&["--failure-rate=NaN"], "FAILURE_RATE must be between 0 and 1");
        check_refused(&["--hang-rate=2"], "HANG_RATE must be between 0 and 1");
        check_refused(&["--hang-rate=often"], "<HANG_RATE>");
    }

    #[test]
    fn delays_that_are_negative_or_endless_are_refused_by_name() {
        check_refused(&["--max-delay-sec=3600.5"], "MAX_DELAY_SEC must be at most 3600 seconds");
        check_refused(&["--max-delay-sec", "-1"], "<MAX_DELAY_SEC>");
        check_refused(&["--max-delay-sec=inf"], "<MAX_DELAY_SEC>");
        check_refused(&["--max-delay-sec=NaN"], "<MAX_DELAY_SEC>");
        assert!(parse(&["--max-delay-sec=3600"]).is_ok());
    }

    #[test]
    fn an_empty_secret_is_refused_by_name() {
        check_refused(&["--webhook-secret="], "<WEBHOOK_SECRET>");
    }

    #[test]
    fn help_does_not_tell_the_secret_in_the_environment() {
        let hidden: Vec<_> = Settings::command()
            .get_arguments()
            .filter(|arg| arg.is_hide_env_values_set())
            .filter_map(|arg| arg.get_env().map(ToOwned::to_owned))
            .collect();
        assert_eq!(hidden, ["WEBHOOK_SECRET"]);
    }
}
