//! The receiver over real sockets, in process. What needs the binary is in `tests/it`.

mod client;
mod lifetime;
mod webhook;
