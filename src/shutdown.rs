//! Signals: the first asks for an orderly end, the second ends at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports for a process that SIGINT ended.
const EXIT_INTERRUPTED: i32 = 130;

/// Cancels `stop` at SIGTERM or SIGINT (Ctrl-C), and ends the process at a second one: claims then
/// return with the lease's end, and a private Postgres is adopted by the next start.
pub async fn watch_signals(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for round in 0.. {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if round > 0 {
            tracing::warn!("stopping at once");
            std::process::exit(EXIT_INTERRUPTED);
        }
        tracing::info!("stopping; a second signal stops at once");
        stop.cancel();
    }
    Ok(())
}
