//! The settings: read once from flags and environment, checked as a whole. The only place that
//! reads the environment.

mod check;
mod clients;
mod cms;
mod database;
mod dns;
mod encryption;
mod instance;
mod lanes;
mod secrets;
mod settings;
mod signing;

pub use check::{Config, ConfigError};
pub use database::Database;
pub use instance::Instance;
pub use settings::{Days, Hidden, NoDuration, Role, Seconds, Settings, Surroundings};
