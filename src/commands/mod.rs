//! What the command line does beside serving: keys and the catalogue, straight in the database.
//!
//! They need no running service and no key: whoever may open the database is its operator.

mod database;
mod event_types;
mod keys;

use std::io::Write;

use anyhow::Context;
use clap::Subcommand;

use self::database::Opened;
use crate::{
    config::Database,
    domain::{ApplicationId, Uid},
    store::applications::{ApplicationName, ApplicationRow},
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// API keys: make one, list them, revoke one.
    #[command(subcommand)]
    Keys(keys::Command),
    /// The catalogue of event types.
    #[command(subcommand)]
    EventTypes(event_types::Command),
}

/// Does what is asked for, with the database of the settings. What there is to say goes to the
/// standard error; what is asked for, and nothing else, to `output`.
pub async fn run(
    command: Command,
    database: Database,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    let opened = Opened::open(database).await?;
    let done = match command {
        Command::Keys(command) => keys::run(command, &opened, output).await,
        Command::EventTypes(command) => event_types::run(&command, &opened, output).await,
    };
    // What was started is stopped, whatever became of the command.
    let closed = opened.close().await;
    done.and(closed)
}

/// The application that a text names, by its id or its uid.
async fn application(opened: &Opened, text: &str) -> anyhow::Result<ApplicationRow> {
    let name = match text.parse::<ApplicationId>() {
        Ok(id) => ApplicationName::Id(id),
        Err(_) => ApplicationName::Uid(
            Uid::parse(text).map_err(|error| anyhow::anyhow!("the application's uid {error}"))?,
        ),
    };
    let row = opened.store.application(&name).await?;
    row.with_context(|| format!("there is no application `{text}`"))
}

/// Says something to who watches, beside what is asked for.
#[expect(clippy::print_stderr, reason = "for the person who runs the command")]
fn tell(message: &str) {
    eprintln!("{message}");
}
