//! `webhook-dispatcher event-types …`.

use std::io::Write;

use clap::Subcommand;

use super::{application, database::Opened};
use crate::domain::catalogue::standard_catalogue;

/// What can be done with the catalogue.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the standard catalogue. Types that are there already are left as they are.
    Load {
        /// The application, by id or uid, to load it for [default: the instance, for all].
        #[arg(long)]
        application: Option<String>,
    },
}

pub async fn run(
    command: &Command,
    opened: &Opened,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    let Command::Load { application: named } = command;
    let owner = match named {
        Some(named) => Some(application(opened, named).await?.id()),
        None => None,
    };
    let types = standard_catalogue();
    let added = opened.store.add_event_types(owner, types).await?.len();
    writeln!(output, "added {added} event types; {} were there", types.len() - added)?;
    Ok(())
}
