//! The command line: settings from flags and environment, logging, and a receiver until a signal.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use mock_receiver::{MockReceiver, Settings, probe};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A webhook receiver that hangs, dawdles and fails by chance, and checks signatures.
#[derive(Parser)]
#[command(name = "mock-receiver", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Ask the receiver that runs with these settings on this machine whether it answers; exit 0 if
    /// it does.
    Health,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, settings } = Cli::parse();
    if let Some(Command::Health) = command {
        return health(&settings);
    }
    if let Err(error) = settings.check() {
        Cli::command().error(ErrorKind::ValueValidation, error).exit();
    }
    tracing_subscriber::fmt()
        .with_ansi(io::stdout().is_terminal())
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .init();
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "stopped");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a health check is asked for its reason, not for a log")]
fn health(settings: &Settings) -> ExitCode {
    match probe::health(settings.bind, settings.port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mock-receiver: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> io::Result<()> {
    // Before anybody can know that we run: an early signal must not kill.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let Settings { failure_rate, delay_max, hang_rate, .. } = settings;
    let mut receiver = MockReceiver::bind(settings).await?;
    tracing::info!(
        url = receiver.url(),
        local_addr = %receiver.local_addr(),
        seed = receiver.seed(),
        failure_rate,
        ?delay_max,
        hang_rate,
        "listening"
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    receiver.shutdown().await;
    tracing::info!(stats = ?receiver.stats(), "stopped by a signal");
    Ok(())
}
