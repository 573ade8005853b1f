//! One HTTP exchange: sign, send, classify. Knows no database and no queue.

pub mod client;
mod connection;
mod connector;
mod egress_proxy;
mod failure;
mod metered;
mod pool;
pub mod request;
pub mod resolver;
mod words;

pub use client::{Client, ClientError, Exchange};
pub use egress_proxy::{EgressProxy, EgressProxyError};
pub use request::Outgoing;
