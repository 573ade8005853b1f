//! The command line: settings from flags and environment, logging, and a receiver until a signal.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use mock_receiver::{MockReceiver, Settings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    if let Err(error) = settings.check() {
        Settings::command().error(ErrorKind::ValueValidation, error).exit();
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
