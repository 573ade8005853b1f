//! The command line. No logic: it reads the settings, starts the service or runs a command, and
//! waits for a signal.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use webhook_dispatcher::{
    app::{App, threads_per_half},
    bridge, commands,
    config::{Config, Instance, Settings, Surroundings},
    http::Access,
    probe, shutdown, telemetry,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Delivers webhooks from one binary beside one Postgres, and loses none.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (the same as no subcommand).
    Serve,
    /// Ask the service that runs with these settings on this machine whether it is ready; exit 0 if
    /// it is.
    Health,
    /// Speak MCP over stdio: carry it to `/mcp` of a running instance.
    Mcp(Instance),
    #[command(flatten)]
    InDatabase(commands::Command),
}

fn main() -> ExitCode {
    let Cli { command, mut settings } = Cli::parse();
    settings.surroundings = Surroundings::from_env();
    match command {
        None | Some(Command::Serve) => {}
        Some(Command::Health) => return health(&settings),
        Some(Command::Mcp(instance)) => return mcp(&instance, &settings),
        Some(Command::InDatabase(command)) => return run(command, &settings),
    }
    telemetry::start_logging(&settings.log, settings.log_format);
    let config = match settings.check() {
        Ok(config) => config,
        Err(error) => return refuse(&error.to_string()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads_per_half())
        .thread_name("accept")
        .enable_all()
        .build();
    let served = runtime.map_err(anyhow::Error::from).and_then(|rt| rt.block_on(serve(config)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&format!("{error:#}")),
    }
}

#[expect(clippy::print_stderr, reason = "the one message that must be seen whatever is logged")]
fn refuse(message: &str) -> ExitCode {
    eprintln!("webhook-dispatcher: {message}");
    ExitCode::FAILURE
}

/// Looks at `BIND` and `PORT` only: a check that runs every few seconds should not fail for more.
fn health(settings: &Settings) -> ExitCode {
    let bind = match settings.bind() {
        Ok(bind) => bind,
        Err(error) => return refuse(&error.to_string()),
    };
    match probe::ready(bind) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error.to_string()),
    }
}

/// Runs a command in the database.
fn run(command: commands::Command, settings: &Settings) -> ExitCode {
    telemetry::start_logging(&settings.log, settings.log_format);
    let database = match settings.database() {
        Ok(database) => database,
        Err(error) => return refuse(&error.to_string()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(commands::run(command, database, &mut std::io::stdout()))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&format!("{error:#}")),
    }
}

/// Carries messages until the input ends.
fn mcp(instance: &Instance, settings: &Settings) -> ExitCode {
    telemetry::start_logging(&settings.log, settings.log_format);
    let trust = match settings.trust() {
        Ok(trust) => trust,
        Err(error) => return refuse(&error.to_string()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(bridge::run(instance, &trust, tokio::io::stdin(), tokio::io::stdout()))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&format!("{error:#}")),
    }
}

async fn serve(mut config: Config) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.signs_with_default_secret {
        tracing::warn!(
            "WEBHOOK_SECRET is the default that everybody knows: anyone can forge signatures. \
             Set it before real receivers are called"
        );
    }
    let clients = &mut config.clients;
    let connections_max = clients.connections_max;
    clients.afford(telemetry::raise_open_files(config.in_flight_max, connections_max));
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(shutdown::watch_signals(stop.clone()));
    let Some(app) = App::bind_until(config, &stop).await? else {
        tracing::info!(event = "stopped_at_start", "stopped before the service was ready");
        return Ok(());
    };
    greet(&app)?;
    app.run(stop).await
}

/// Says where it listens, and how to try it.
#[expect(clippy::print_stdout, reason = "for the person who has just started it")]
fn greet(app: &App) -> anyhow::Result<()> {
    let base = format!("http://{}", probe::reachable(app.local_addr()?));
    let key = match app.config().access {
        Access::Key(_) => " -H \"Authorization: Bearer $ADMIN_API_KEY\"",
        Access::LoopbackOnly | Access::Anybody => "",
    };
    let (body, target) = if let Some(target) = &app.config().target_url {
        (r#"{"payload": {"hello": "world"}}"#.to_owned(), target.to_string())
    } else {
        let target = "https://example.com/webhook".to_owned();
        (format!(r#"{{"payload": {{"hello": "world"}}, "target_url": "{target}"}}"#), target)
    };
    println!("listening on {base}; try:\n");
    println!(
        "  curl -X POST {base}/events -H \"Content-Type: application/json\"{key} -d '{body}'\n"
    );
    println!("which is sent to {target}");
    Ok(())
}
