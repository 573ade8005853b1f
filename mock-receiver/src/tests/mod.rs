//! The receiver over real sockets, in process. What needs the binary is in `tests/it`, and so is
//! what each receiver on request does.

mod client;
mod lifetime;
mod on_request;
mod webhook;
