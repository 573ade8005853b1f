//! `webhook-dispatcher keys …`.

use std::io::Write;

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::Subcommand;

use super::{application, database::Opened, tell};
use crate::{
    domain::{ApiKey, ApiKeyId, Role},
    store::{api_keys::NewApiKey, applications::ApplicationRow},
};

/// How many keys are read at a time.
const PAGE_ROWS: i64 = 250;
/// How many bytes the name of a key may have.
const NAME_BYTES_MAX: usize = 255;
/// How many days a key may last, if it is to expire: a century.
const DAYS_MAX: i64 = 36_500;
/// Whose key it is, where nobody says.
const DEFAULT_APPLICATION: &str = "default";

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key. It is printed, and nothing else: KEY=$(webhook-dispatcher keys create …).
    Create {
        /// What people call it.
        #[arg(long, value_parser = name)]
        name: String,
        /// What it lets its holder do: admin, manager, dispatcher, producer or viewer.
        #[arg(long, value_parser = role)]
        role: Role,
        /// The application that it opens, by id or uid [default: `default`]; an admin's opens all.
        #[arg(long)]
        application: Option<String>,
        /// After how many days it lets nobody in any more [default: never].
        #[arg(long, value_parser = clap::value_parser!(i64).range(1..=DAYS_MAX))]
        expires_in_days: Option<i64>,
    },
    /// List keys, newest first, revoked and expired ones too: those of an application, or the
    /// instance's.
    List {
        /// The application, by id or uid.
        #[arg(long)]
        application: Option<String>,
    },
    /// Revoke a key: within a second it lets nobody in any more.
    Revoke {
        /// Its id, such as `key_0192d4e0…`.
        id: ApiKeyId,
    },
}

pub async fn run(command: Command, opened: &Opened, output: &mut impl Write) -> anyhow::Result<()> {
    match command {
        Command::Create { name, role, application, expires_in_days } => {
            let key = create(opened, &name, role, application, expires_in_days).await?;
            writeln!(output, "{}", key.reveal())?;
        }
        Command::List { application } => list(opened, application, output).await?,
        Command::Revoke { id } => {
            anyhow::ensure!(opened.store.revoke_api_key_of_any(id).await?, "there is no key {id}");
            tell(&format!("{id} is revoked: within a second it lets nobody in any more"));
        }
    }
    Ok(())
}

async fn create(
    opened: &Opened,
    name: &str,
    role: Role,
    named: Option<String>,
    expires_in_days: Option<i64>,
) -> anyhow::Result<ApiKey> {
    let owner = match (role, named) {
        (Role::Admin, None) => None,
        (Role::Admin, Some(_)) => {
            anyhow::bail!("an admin's key opens every application: leave --application out")
        }
        (_, named) => {
            let named = named.as_deref().unwrap_or(DEFAULT_APPLICATION);
            Some(application(opened, named).await?)
        }
    };
    let now = opened.store.database_time().await?;
    let expires_at = expires_in_days.map(|days| now + TimeDelta::days(days));
    let unix_ms = u64::try_from(now.timestamp_millis()).context("the database's clock is off")?;
    let (id, key) = (ApiKeyId::new(unix_ms, rand::random()), ApiKey::from_random(rand::random()));
    let new = NewApiKey {
        id,
        application: owner.as_ref().map(ApplicationRow::id),
        name,
        role,
        hint: key.hint(),
        hash: key.hash(),
        expires_at,
    };
    opened.store.create_api_key(&new, None).await?;
    let opens = owner.map_or_else(
        || "every application".to_owned(),
        |row| format!("the application {} ({})", row.uid, row.id()),
    );
    let until = expires_at.map_or_else(String::new, |time| format!(", until {}", shown(time)));
    tell(&format!("made {id}, of the role {role}, for {opens}{until}; it is shown this once"));
    Ok(key)
}

async fn list(
    opened: &Opened,
    named: Option<String>,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    let owner = match named {
        Some(named) => Some(application(opened, &named).await?.id()),
        None => None,
    };
    writeln!(output, "id\trole\thint\tname\tcreated\texpires\tlast used\trevoked")?;
    let mut older_than = None;
    loop {
        let rows = opened.store.api_keys(owner, older_than, PAGE_ROWS).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        older_than = Some(last.id());
        for row in &rows {
            let time = |time: Option<DateTime<Utc>>| time.map_or_else(|| "-".to_owned(), shown);
            writeln!(
                output,
                "{}\t{}\t{}…\t{}\t{}\t{}\t{}\t{}",
                row.id(),
                row.role(),
                row.hint,
                row.name,
                shown(row.created_at),
                time(row.expires_at),
                time(row.last_used_at),
                time(row.revoked_at),
            )?;
        }
    }
}

fn shown(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn role(text: &str) -> Result<Role, String> {
    Role::from_name(text).ok_or_else(|| {
        let names = Role::ALL.map(Role::as_str).join(", ");
        format!("must be one of {names}")
    })
}

fn name(text: &str) -> Result<String, String> {
    let is_sound =
        (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    if is_sound {
        Ok(text.to_owned())
    } else {
        Err(format!("must be 1 to {NAME_BYTES_MAX} bytes without control characters"))
    }
}
