//! From a body to the settings of a subscription: every field is checked here, and only here.

mod headers;

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    domain::{
        EventTypePatterns, RetryPolicy, SubscriptionId, TargetUrl, Uid,
        address::AddressPolicy,
        event::Metadata,
        filter::Filter,
        limits::{MAX_IN_FLIGHT_MAX, RateLimit},
        sealing::SealingKeys,
        signature::{SECRET_BYTES, inbound_warning, signing_warning},
        subscription::{Method, PayloadFormat, RetrySettings, SignatureHeaders, TIMEOUT, sealed},
    },
    http::{
        ApiError,
        json::{Members, pointer_to},
        problem::{Place, Problem},
    },
    store::subscriptions::SettingsRow,
};

pub use headers::{HEADER_NAME_BYTES_MAX, open_headers};

/// The fields of a subscription, as callers send it: ours, and the names that other systems use.
pub const FIELDS: &[&str; 25] = &[
    "target_url",
    "url",
    "event_types",
    "events",
    "event_type",
    "filter",
    "method",
    "headers",
    "secret",
    "signing",
    "is_active",
    "disable_after_seconds",
    "timeout_seconds",
    "retry",
    "rate_limit",
    "max_in_flight",
    "payload_format",
    "schema_version",
    "signature_headers",
    "inbound_secret",
    "inbound_type_header",
    "description",
    "metadata",
    "uid",
    "application",
];
/// The aliases of a field, the field itself first.
pub const TARGET_URL: &[&str] = &["target_url", "url"];
pub const EVENT_TYPES: &[&str] = &["event_types", "events", "event_type"];
/// How many seconds a subscription may be let fail before it is disabled: thirty days.
pub const DISABLE_AFTER_S_MAX: i32 = 30 * 86_400;
/// How many bytes a description may have.
pub const DESCRIPTION_BYTES_MAX: usize = 2_000;
/// How many bytes a schema version may have.
pub const SCHEMA_VERSION_BYTES_MAX: usize = 64;
/// Whether deliveries are signed.
pub const SIGNING: [&str; 2] = ["standard", "none"];
/// What stands for a header's value in answers, and in requests for the value that is stored.
pub const REDACTED: &str = "[redacted]";

/// What the settings of a subscription are checked against.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Which addresses may be called.
    pub addresses: AddressPolicy,
    /// The deadline over one exchange, where the subscription names none.
    pub http_timeout: Duration,
    /// No retry policy may reach further.
    pub delivery_age_max: Duration,
}

/// What a body says about a subscription.
pub struct Given<'a> {
    members: Members<'a, { FIELDS.len() }>,
    bounds: &'a Bounds,
    sealing: &'a SealingKeys,
}

impl<'a> Given<'a> {
    /// Reads a body.
    pub fn of(
        text: &'a str,
        bounds: &'a Bounds,
        sealing: &'a SealingKeys,
    ) -> Result<Self, Problem> {
        let members = Members::of(text, FIELDS)?;
        Ok(Self { members, bounds, sealing })
    }

    /// The owner's name for it.
    pub fn uid(&self) -> Result<Option<Uid>, Problem> {
        let text = self.members.string("uid")?;
        text.map(|text| Uid::parse(&text)).transpose().map_err(|error| fault("uid", error))
    }

    /// How the application is named, if it is.
    pub fn application(&self) -> Result<Option<String>, Problem> {
        self.members.string("application")
    }

    /// The secret that signs, if the caller brings one.
    pub fn secret(&self) -> Result<Option<String>, Problem> {
        secret(&self.members, "secret")
    }

    /// Warnings about the secrets that the caller brings.
    pub fn warnings(&self) -> Result<Vec<String>, Problem> {
        let warning = |name: &str, warn: fn(&str, &str) -> Option<String>| {
            Ok::<_, Problem>(secret(&self.members, name)?.and_then(|secret| warn(name, &secret)))
        };
        let signs = warning("secret", signing_warning)?;
        Ok(signs.into_iter().chain(warning("inbound_secret", inbound_warning)?).collect())
    }

    /// The owner's new name for it.
    pub fn new_uid(&self) -> Result<Option<Uid>, Problem> {
        let uid = self.uid()?;
        if uid.is_none() && self.members.raw("uid").is_some() {
            return Err(fault("uid", "can be changed, and not be taken away"));
        }
        Ok(uid)
    }

    /// All of the settings of a new subscription: what is not told has its default.
    pub fn settings(&self, id: SubscriptionId) -> Result<SettingsRow, Problem> {
        self.replaced(id, defaults())
    }

    /// All of the settings anew: what is not told has its default. What is shown to nobody cannot be
    /// sent back: the inbound secret stays unless it is told, a redacted header has its value.
    pub fn replaced(
        &self,
        id: SubscriptionId,
        before: SettingsRow,
    ) -> Result<SettingsRow, Problem> {
        for names in [TARGET_URL, EVENT_TYPES] {
            if self.alias(names)?.is_none() {
                return Err(fault(names[0], "is missing"));
            }
        }
        let has_headers = self.members.raw("headers").is_some();
        let kept = SettingsRow {
            // To be compared with the new one, which is there.
            target_url: before.target_url,
            sealed_headers: before.sealed_headers.filter(|_| has_headers),
            sealed_inbound_secret: before.sealed_inbound_secret,
            ..defaults()
        };
        self.changed(id, kept)
    }

    /// The settings, changed by what is told. Null stands for the default.
    pub fn changed(&self, id: SubscriptionId, before: SettingsRow) -> Result<SettingsRow, Problem> {
        let default = defaults();
        let mut row = before;
        if let Some((_, target)) = self.target_url()? {
            self.may_take_headers_along(&row, &target)?;
            target.as_str().clone_into(&mut row.target_url);
        }
        if let Some(name) = self.alias(EVENT_TYPES)? {
            row.event_types = self.event_types(name)?;
        }
        if let Some(filter) = self.members.raw("filter") {
            row.filter =
                self.members.given("filter").map(|_| filter_of(filter.get())).transpose()?;
        }
        self.text("method", &mut row.method, &default.method, |name| {
            Method::from_name(name).map(|_| ()).ok_or_else(|| one_of(Method::ALL, Method::as_str))
        })?;
        self.text("signing", &mut row.signing, &default.signing, |name| {
            let is_known = SIGNING.contains(&name);
            is_known.then_some(()).ok_or_else(|| "must be one of standard, none".to_owned())
        })?;
        self.text("payload_format", &mut row.payload_format, &default.payload_format, |name| {
            let known = PayloadFormat::from_name(name).map(|_| ());
            known.ok_or_else(|| one_of(PayloadFormat::ALL, PayloadFormat::as_str))
        })?;
        let (to, default_headers) = (&mut row.signature_headers, &default.signature_headers);
        self.text("signature_headers", to, default_headers, |name| {
            let known = SignatureHeaders::from_name(name).map(|_| ());
            known.ok_or_else(|| one_of(SignatureHeaders::ALL, SignatureHeaders::as_str))
        })?;
        self.text("schema_version", &mut row.schema_version, &default.schema_version, |text| {
            bounded(text, SCHEMA_VERSION_BYTES_MAX)
        })?;
        if self.members.raw("headers").is_some() {
            row.sealed_headers = self.headers(id, row.sealed_headers.as_deref())?;
        }
        if self.members.raw("is_active").is_some() {
            row.is_active = self.members.boolean("is_active")?.unwrap_or(default.is_active);
        }
        if self.members.raw("disable_after_seconds").is_some() {
            row.disable_after_s = self.whole("disable_after_seconds", 0..=DISABLE_AFTER_S_MAX)?;
        }
        if self.members.raw("timeout_seconds").is_some() {
            row.timeout_ms = self.timeout_ms()?;
        }
        if self.members.raw("retry").is_some() {
            row.retry = self.retry(row.timeout_ms)?;
        }
        self.is_within_age(&row)?;
        if self.members.raw("rate_limit").is_some() {
            row.rate_limit = self.rate_limit()?;
        }
        if self.members.raw("max_in_flight").is_some() {
            row.max_in_flight = self.whole("max_in_flight", 1..=MAX_IN_FLIGHT_MAX)?;
        }
        if self.members.raw("inbound_secret").is_some() {
            let secret = secret(&self.members, "inbound_secret")?;
            row.sealed_inbound_secret = secret.map(|secret| {
                let context = sealed::inbound_secret_of(id);
                self.sealing.seal(secret.as_bytes(), &context, rand::random())
            });
        }
        if self.members.raw("inbound_type_header").is_some() {
            row.inbound_type_header = self.inbound_type_header()?;
        }
        if self.members.raw("description").is_some() {
            row.description = self.members.string("description")?;
            let description = row.description.as_deref().unwrap_or_default();
            bounded(description, DESCRIPTION_BYTES_MAX).map_err(|why| fault("description", why))?;
        }
        if self.members.raw("metadata").is_some() {
            let metadata = self.members.given("metadata");
            let metadata = metadata.map(|json| Metadata::from_json(json.get())).transpose();
            let metadata = metadata.map_err(|error| fault("metadata", error))?;
            row.metadata = metadata.map(|metadata| metadata.as_str().to_owned());
        }
        Ok(row)
    }

    /// Which of the names of a field is there; they exclude each other.
    fn alias(&self, names: &'static [&'static str]) -> Result<Option<&'static str>, Problem> {
        let mut there = names.iter().copied().filter(|name| self.members.raw(name).is_some());
        let first = there.next();
        match there.next() {
            Some(other) => Err(fault(other, format!("is another name for `{}`", names[0]))),
            None => Ok(first),
        }
    }

    /// The target, if it is told, and by what name.
    pub fn target_url(&self) -> Result<Option<(&'static str, TargetUrl)>, Problem> {
        let Some(name) = self.alias(TARGET_URL)? else { return Ok(None) };
        let text = self.members.string(name)?.ok_or_else(|| fault(name, "must not be null"))?;
        Ok(Some((name, self.target(name, &text)?)))
    }

    fn target(&self, name: &str, text: &str) -> Result<TargetUrl, Problem> {
        let target = TargetUrl::parse(text).map_err(|error| fault(name, error))?;
        self.bounds.addresses.vet_target(&target).map_err(|refused| {
            ApiError::TargetRefused(refused.to_string()).at(Place::Pointer(pointer_to(name)))
        })?;
        Ok(target)
    }

    fn event_types(&self, name: &str) -> Result<Vec<String>, Problem> {
        let texts = self.members.strings(name, crate::domain::event_types::PATTERNS_MAX)?;
        EventTypePatterns::parse(&texts).map_err(|error| fault(name, error))?;
        Ok(texts)
    }

    fn whole(
        &self,
        name: &'static str,
        bounds: RangeInclusive<i32>,
    ) -> Result<Option<i32>, Problem> {
        let Some(number) = self.members.number(name)? else { return Ok(None) };
        let (least, most) = (*bounds.start(), *bounds.end());
        let is_one = number.fract() == 0.0 && (least.into()..=most.into()).contains(&number);
        let refused = || fault(name, format!("must be a whole number from {least} to {most}"));
        #[expect(clippy::cast_possible_truncation, reason = "a whole number within the bounds")]
        is_one.then_some(number as i32).map(Some).ok_or_else(refused)
    }

    fn timeout_ms(&self) -> Result<Option<i32>, Problem> {
        let Some(seconds) = self.members.number("timeout_seconds")? else { return Ok(None) };
        // As it is told: a duration is rounded, and might get into the bounds by that.
        let (least, most) = (TIMEOUT.start().as_secs_f64(), TIMEOUT.end().as_secs_f64());
        let is_within = (least..=most).contains(&seconds);
        let timeout = Duration::try_from_secs_f64(seconds).ok().filter(|_| is_within);
        let timeout = timeout
            .ok_or_else(|| fault("timeout_seconds", format!("must be {least} to {most}")))?;
        Ok(i32::try_from(timeout.as_millis()).ok())
    }

    fn retry(&self, timeout_ms: Option<i32>) -> Result<Option<String>, Problem> {
        let settings = retry(&self.members, self.deadline(timeout_ms), self.bounds)?;
        let json = settings.map(|settings| serde_json::to_string(&settings)).transpose();
        Ok(json.map_err(|_| ApiError::Internal)?)
    }

    fn rate_limit(&self) -> Result<Option<String>, Problem> {
        let Some(json) = self.members.given("rate_limit") else { return Ok(None) };
        let form = "must be {\"count\": …, \"per_seconds\": …}, with or without a \"burst\"";
        // A list of three numbers would do for serde.
        let json = Some(json.get()).filter(|json| json.starts_with('{'));
        let limit = json.and_then(|json| serde_json::from_str::<RateLimit>(json).ok());
        let limit = limit.ok_or_else(|| fault("rate_limit", form))?;
        limit.pace().map_err(|error| fault("rate_limit", error))?;
        Ok(Some(serde_json::to_string(&limit).map_err(|_| ApiError::Internal)?))
    }

    /// A delivery must not expire before its last attempt.
    fn is_within_age(&self, row: &SettingsRow) -> Result<(), Problem> {
        let Some(json) = &row.retry else { return Ok(()) };
        let settings: RetrySettings = serde_json::from_str(json).map_err(|_| ApiError::Internal)?;
        let policy = settings.policy().map_err(|_| ApiError::Internal)?;
        is_within_age(&policy, self.deadline(row.timeout_ms), self.bounds)
    }

    fn deadline(&self, timeout_ms: Option<i32>) -> Duration {
        let own = timeout_ms.map(|ms| Duration::from_millis(ms.unsigned_abs().into()));
        own.unwrap_or(self.bounds.http_timeout)
    }

    fn text(
        &self,
        name: &str,
        to: &mut String,
        default: &str,
        check: impl FnOnce(&str) -> Result<(), String>,
    ) -> Result<(), Problem> {
        if self.members.raw(name).is_some() {
            *to = self.members.string(name)?.unwrap_or_else(|| default.to_owned());
            check(to).map_err(|why| fault(name, why))?;
        }
        Ok(())
    }
}

/// The member `retry`: a policy that is possible and, each attempt taking `deadline`, reaches no
/// further than a delivery may become old.
pub fn retry<const N: usize>(
    members: &Members<'_, N>,
    deadline: Duration,
    bounds: &Bounds,
) -> Result<Option<RetrySettings>, Problem> {
    let Some(json) = members.given("retry") else { return Ok(None) };
    let form = "must be a list of delays in seconds such as [60, 300, 900, 3600], or \
                {\"max_attempts\": …, \"base_seconds\": …, \"max_seconds\": …}";
    let settings: RetrySettings =
        serde_json::from_str(json.get()).map_err(|_| fault("retry", form))?;
    let policy =
        settings.policy().map_err(|error| fault("retry", format!("is refused: {error}")))?;
    is_within_age(&policy, deadline, bounds)?;
    Ok(Some(settings))
}

fn is_within_age(policy: &RetryPolicy, deadline: Duration, bounds: &Bounds) -> Result<(), Problem> {
    let horizon = policy.horizon(deadline);
    if horizon <= bounds.delivery_age_max {
        return Ok(());
    }
    let (hours, most) = (horizon.as_secs() / 3_600, bounds.delivery_age_max.as_secs() / 3_600);
    Err(fault("retry", format!("reaches {hours} h ahead, beyond DELIVERY_AGE_MAX ({most} h)")))
}

fn filter_of(text: &str) -> Result<String, Problem> {
    let filter = Filter::parse(text).map_err(|error| {
        ApiError::Invalid(format!("`filter` {error}")).at(Place::Pointer(format!(
            "{}{}",
            pointer_to("filter"),
            error.at
        )))
    })?;
    Ok(filter.as_str().to_owned())
}

/// A secret that the caller brings.
pub fn secret<const N: usize>(
    members: &Members<'_, N>,
    name: &str,
) -> Result<Option<String>, Problem> {
    match members.string(name)? {
        Some(secret) if !SECRET_BYTES.contains(&secret.len()) => {
            let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
            Err(fault(name, format!("must be {least} to {most} bytes")))
        }
        secret => Ok(secret),
    }
}

fn defaults() -> SettingsRow {
    SettingsRow {
        target_url: String::new(),
        method: Method::Post.as_str().to_owned(),
        event_types: Vec::new(),
        filter: None,
        is_active: true,
        disabled_at: None,
        disabled_because: None,
        disable_after_s: None,
        timeout_ms: None,
        retry: None,
        max_in_flight: None,
        rate_limit: None,
        payload_format: PayloadFormat::Envelope.as_str().to_owned(),
        schema_version: "1".to_owned(),
        signing: "standard".to_owned(),
        signature_headers: SignatureHeaders::Standard.as_str().to_owned(),
        sealed_headers: None,
        sealed_inbound_secret: None,
        inbound_type_header: None,
        description: None,
        metadata: None,
    }
}

fn bounded(text: &str, bytes_max: usize) -> Result<(), String> {
    if text.len() <= bytes_max && !text.contains('\0') {
        Ok(())
    } else {
        Err(format!("must be at most {bytes_max} bytes, without NUL"))
    }
}

/// What all of a kind are called.
pub fn names<T: Copy>(all: &[T], name: fn(T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(|one| name(*one)).collect()
}

fn one_of<T: Copy>(all: &[T], name: fn(T) -> &'static str) -> String {
    format!("must be one of {}", names(all, name).join(", "))
}

/// A fault of a field. What is said completes "`name` …".
pub fn fault(name: &str, why: impl std::fmt::Display) -> Problem {
    ApiError::Invalid(format!("`{name}` {why}")).at(Place::Pointer(pointer_to(name)))
}
