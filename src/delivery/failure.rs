//! From the errors of the HTTP client to the closed set of classes. By type, never by text.

use std::{error::Error, io};

use super::{connector::ConnectError, metered::Exhausted, resolver::ResolveError, words::describe};
use crate::domain::{
    ErrorClass,
    outcome::{Failure, Fault},
};

/// Too many open files, in this process or in the system: our fault, not the receiver's.
pub(super) const OUT_OF_FILES: [i32; 2] =
    [rustix::io::Errno::MFILE.raw_os_error(), rustix::io::Errno::NFILE.raw_os_error()];

/// Which class an error of an exchange belongs to: what its causes say for certain, or else what
/// the phase that it happened in says.
pub(super) fn failure_of(error: &(dyn Error + 'static), otherwise: ErrorClass) -> Failure {
    let known = causes(error).find_map(class_of);
    let (class, fault) = known.unwrap_or((otherwise, otherwise.fault()));
    Failure::new(class, describe(error, class)).counted_against(fault)
}

/// Whether an exchange failed since no file could be opened.
pub(super) fn is_out_of_files(error: &(dyn Error + 'static)) -> bool {
    causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).any(says_out_of_files)
}

fn says_out_of_files(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| OUT_OF_FILES.contains(&code))
}

/// The class that the type of one cause says for certain, and the side that it counts against.
fn class_of(cause: &(dyn Error + 'static)) -> Option<(ErrorClass, Fault)> {
    if let Some(resolve) = cause.downcast_ref::<ResolveError>() {
        return Some(resolve.class());
    }
    if let Some(connect) = cause.downcast_ref::<ConnectError>() {
        return Some(connect.class());
    }
    let class = if let Some(exhausted) = cause.downcast_ref::<Exhausted>() {
        match exhausted {
            Exhausted::Head => ErrorClass::ResponseTooLarge,
            Exhausted::Body => ErrorClass::Protocol,
        }
    } else if cause.is::<rustls::Error>() {
        ErrorClass::Tls
    } else if let Some(io) = cause.downcast_ref::<io::Error>() {
        if !says_out_of_files(io) {
            // An I/O error hides what it wraps from `source()`.
            return io.get_ref().and_then(|inner| class_of(inner));
        }
        ErrorClass::Internal
    } else if cause.downcast_ref::<hyper::Error>()?.is_parse_too_large() {
        ErrorClass::ResponseTooLarge
    } else {
        return None;
    };
    Some((class, class.fault()))
}

/// The causes of an error, the outermost first.
pub(super) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    // No chain of ours is this deep; a cycle must not hang us.
    const CAUSES_MAX: usize = 16;
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
    .take(CAUSES_MAX)
}
