//! No target harms us: which addresses are called, however they are written and whatever DNS says.

mod addresses;
mod hosts;
mod names;
mod table;
