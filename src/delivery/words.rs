//! Failed exchanges in words: the observation, and the remedy where there is one.

use std::{
    error::Error,
    io::{self, ErrorKind},
};

use rustls::pki_types::InvalidDnsNameError;

use super::{
    connector::ConnectError,
    failure::{causes, is_out_of_files},
    metered::Exhausted,
    resolver::ResolveError,
};
use crate::{domain::ErrorClass, tls};

/// A sentence on a failure. The class says in which phase of the exchange it happened.
pub(super) fn describe(error: &(dyn Error + 'static), phase: ErrorClass) -> String {
    let known = causes(error).find_map(|cause| sentence(cause, phase));
    known.unwrap_or_else(|| innermost(error))
}

fn sentence(cause: &(dyn Error + 'static), phase: ErrorClass) -> Option<String> {
    if cause.is::<ResolveError>() || cause.is::<ConnectError>() || cause.is::<Exhausted>() {
        return Some(cause.to_string());
    }
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(tls::explain(error));
    }
    if cause.is::<InvalidDnsNameError>() {
        return Some("no certificate can be valid for the host of the target".to_owned());
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        // An I/O error hides what it wraps from `source()`.
        let inner = error.get_ref().and_then(|inner| sentence(inner, phase));
        return inner.or_else(|| broken(error, phase));
    }
    cause.downcast_ref().and_then(spoken)
}

/// A connection that was refused, or not answered.
pub(super) fn refused(error: &io::Error) -> String {
    let text = match error.kind() {
        _ if is_out_of_files(error) => return TOO_MANY_FILES.to_owned(),
        ErrorKind::ConnectionRefused => {
            "connection refused: nothing listens on this port, or a firewall rejects connections"
        }
        ErrorKind::ConnectionReset => "the connection was reset as soon as it was opened",
        ErrorKind::TimedOut => "no answer: the host is down, or a firewall drops connections",
        ErrorKind::HostUnreachable => "no route to host: the host or its network is down",
        ErrorKind::NetworkUnreachable => {
            "network unreachable: this machine has no route for addresses of this kind"
        }
        ErrorKind::PermissionDenied => "a firewall of this machine forbids the connection",
        ErrorKind::AddrNotAvailable => {
            "this machine has no address of this kind, or no free port for another connection"
        }
        _ => return error.to_string(),
    };
    text.to_owned()
}

const TOO_MANY_FILES: &str =
    "too many open files: raise the limit of open files of this service (`ulimit -n`)";

/// A connection that broke.
fn broken(error: &io::Error, phase: ErrorClass) -> Option<String> {
    if is_out_of_files(error) {
        return Some(TOO_MANY_FILES.to_owned());
    }
    let is_handshake = phase == ErrorClass::Tls;
    let text = match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe if is_handshake => {
            "the server closed the connection during the TLS handshake; it may not speak TLS on this \
             port, or not serve this host name, or a firewall ends the connection"
        }
        ErrorKind::ConnectionReset if is_handshake => {
            "the connection was reset during the TLS handshake; the server may not speak TLS on this \
             port, or a firewall ends the connection"
        }
        ErrorKind::UnexpectedEof => {
            "the receiver closed the connection before its answer was complete"
        }
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => {
            "the receiver, or a proxy before it, reset the connection before its answer was complete"
        }
        ErrorKind::BrokenPipe => "the receiver closed the connection while the request was sent",
        ErrorKind::TimedOut => "the connection broke: the network did not confirm what was sent",
        _ => return None,
    };
    Some(text.to_owned())
}

/// An answer that is not HTTP. Errors with a cause are left to that.
fn spoken(error: &hyper::Error) -> Option<String> {
    if error.source().is_some() {
        return None;
    }
    let text = if error.is_parse_too_large() {
        "the head of the answer is larger than 64 KiB, or has more than 100 lines"
    } else if error.is_incomplete_message() {
        "the receiver closed the connection before its answer was complete"
    } else if error.is_parse() {
        return Some(format!(
            "the answer is not valid HTTP/1.1 ({error}); if the port speaks TLS, the target must begin \
             with https://"
        ));
    } else {
        return None;
    };
    Some(text.to_owned())
}

/// The innermost causes; what is around them only names the layers of the client.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let texts: Vec<_> = causes(error).map(ToString::to_string).collect();
    match texts.as_slice() {
        [.., before, last] if !before.contains(last.as_str()) => format!("{before}: {last}"),
        [.., before, _] => before.clone(),
        [only] => only.clone(),
        [] => String::new(),
    }
}
