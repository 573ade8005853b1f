//! What the API is, for programs and for people: `/openapi.json` and `/docs`.
//!
//! Each operation is declared once, in [`super::routes`], as an [`Operation`]; the router and the
//! document are made of the same list, so that there is no route that is not told, and none told
//! that is not there. A request's schema is asserted to have the members that its reader knows.

mod document;
mod operation;
mod page;
pub mod schemas;

pub use operation::{Caller, Content, Further, In, Operation, Parameter, Tag};
pub use page::{is_public, routes};
