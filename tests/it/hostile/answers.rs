//! Answers that are wrong, cut off, or something else than HTTP/1.1.

use super::{Case, PERHAPS, after_head, case, meet, service};
use crate::support::raw::{Misdeed, Reads, Then};

const OK: &str = "HTTP/1.1 200 OK\r\n";
/// The first frame that a server speaks in HTTP/2: SETTINGS, empty; and a GOAWAY.
const H2_SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const H2_GOAWAY: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";

/// An answer, and then the end of the receiver's half.
fn answers(name: &'static str, text: &str, class: &'static str, status: Option<u16>) -> Case {
    case(name, Misdeed::Write(text.as_bytes().to_vec()), class, status)
}

/// The head of a 200 with these lines, and a body.
fn ok(lines: &str, body: &str) -> String {
    let lines = lines.replace('\n', "\r\n");
    format!("{OK}{lines}\r\n\r\n{body}")
}

/// A chunked 200.
fn chunks(body: &str) -> String {
    ok("transfer-encoding: chunked", body)
}

/// Catches: an answer that is believed though it contradicts itself, or a good one that is not.
#[tokio::test]
async fn lengths_and_chunks_that_are_wrong() {
    let app = service("60").await;
    let protocol = "protocol";
    let cases = vec![
        answers("too long", &ok("content-length: 9", "x"), "", Some(200)),
        answers("too short", &ok("content-length: 1", "xyz"), "", Some(200)),
        answers("negative", &ok("content-length: -1", "x"), protocol, None),
        answers("signed", &ok("content-length: +1", "x"), protocol, None),
        answers("no number", &ok("content-length: x", "x"), protocol, None),
        answers("empty", &ok("content-length: ", "x"), protocol, None),
        answers("over 64 bits", &ok("content-length: 99999999999999999999", "x"), protocol, None),
        answers("two", &ok("content-length: 1\ncontent-length: 2", "xy"), protocol, None),
        answers("a list of two", &ok("content-length: 1, 2", "xy"), protocol, None),
        answers("folded", &ok("content-length: 1\n 2", "xy"), protocol, None),
        answers(
            "two, one with a space",
            &ok("content-length: 1\nContent-Length : 2", "xy"),
            protocol,
            None,
        ),
        answers("with a space", &ok("Content-Length : 1", "xyz"), "", Some(200)),
        answers("twice the same", &ok("content-length: 1\ncontent-length: 1", "x"), "", Some(200)),
        answers(
            "beside chunks",
            &ok("content-length: 9\ntransfer-encoding: chunked", "1\r\nx\r\n0\r\n\r\n"),
            "",
            Some(200),
        ),
        answers("chunks", &chunks("1\r\nx\r\n0\r\n\r\n"), "", Some(200)),
        answers("no size", &chunks("zz\r\nx\r\n0\r\n\r\n"), "", Some(200)),
        answers("negative size", &chunks("-1\r\nx\r\n0\r\n\r\n"), "", Some(200)),
        answers("size over 64 bits", &chunks("fffffffffffffffff\r\nx"), "", Some(200)),
        answers("chunk without its end", &chunks("1\r\nxyz\r\n0\r\n\r\n"), "", Some(200)),
        answers("chunk that is cut", &chunks("ff\r\nx"), "", Some(200)),
        answers("no last chunk", &chunks("1\r\nx\r\n"), "", Some(200)),
        answers("trailers that are none", &chunks("0\r\n: x\r\n\r\n"), "", Some(200)),
        answers("until the end", &ok("x-a: b", "xyz"), "", Some(200)),
        answers(
            "a body where there is none",
            "HTTP/1.1 204 No\r\ncontent-length: 1\r\n\r\nx",
            "",
            Some(204),
        ),
    ];
    meet(&app, cases).await;
    app.stop().await;
}

/// Catches: words that are no answer and are taken for one; a redirect that is followed.
#[tokio::test]
async fn words_that_are_no_answer() {
    let app = service("60").await;
    let protocol = "protocol";
    let to_metadata =
        "HTTP/1.1 307 Go\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
    let upgrade = "HTTP/1.1 101 Go\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n\0\0\0";
    let mut cases = vec![
        answers("nothing", "", protocol, None),
        answers("HTTP/0.9", "<html>hello</html>\r\n\r\n", protocol, None),
        answers("HTTP/2 in words", "HTTP/2 200 OK\r\n\r\n", protocol, None),
        answers("another version", "HTTP/3.1 200 OK\r\n\r\n", protocol, None),
        answers("HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nbody", "", Some(200)),
        answers("a request", "POST / HTTP/1.1\r\nhost: x\r\n\r\n", protocol, None),
        answers("another protocol", "220 mail.example ESMTP\r\n\r\n", protocol, None),
        answers("status of two digits", "HTTP/1.1 20 OK\r\n\r\n", protocol, None),
        answers("status of four digits", "HTTP/1.1 2000 OK\r\n\r\n", protocol, None),
        answers("status in words", "HTTP/1.1 OK\r\n\r\n", protocol, None),
        answers(
            "status 999",
            "HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n",
            "http_status",
            Some(999),
        ),
        answers("status 099", "HTTP/1.1 099 What\r\ncontent-length: 0\r\n\r\n", protocol, None),
        answers("a header without a name", &ok(": x", ""), "", Some(200)),
        answers("a header without a value", &ok("x", ""), "", Some(200)),
        answers("NUL in a header", &ok("x-a: \0", ""), protocol, None),
        answers("CR in a header", &ok("x-a: b\rc: d", ""), protocol, None),
        answers("a name with a space", &ok("X Odd: 1", ""), "", Some(200)),
        answers("a space before the colon", &ok("x-odd : 1", ""), "", Some(200)),
        answers("a tab in a name", &ok("x\todd: 1", ""), "", Some(200)),
        answers("a control character", &ok("x-a: \x01", ""), "", Some(200)),
        answers("bytes beyond ASCII in a name", &ok("x-ä: 1", ""), "", Some(200)),
        answers("bytes beyond ASCII in a value", &ok("x-a: ä", ""), "", Some(200)),
        answers("a fold before any header", &ok(" x", ""), "", Some(200)),
        answers("a folded header", &ok("x-a: b\n  c", ""), "", Some(200)),
        answers("to the metadata", to_metadata, "redirect", Some(307)),
        answers("switching protocols", upgrade, "http_status", Some(101)),
        answers("100 and no answer", "HTTP/1.1 100 Go on\r\n\r\n", protocol, None),
        answers(
            "100 and an answer",
            &format!("HTTP/1.1 100 Go on\r\n\r\n{}", ok("content-length: 0", "")),
            "",
            Some(200),
        ),
        answers(
            "103 and an answer",
            &format!("HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n{}", ok("content-length: 0", "")),
            "",
            Some(200),
        ),
        answers("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", protocol, None),
    ];
    let frames = [H2_SETTINGS, H2_GOAWAY].concat();
    cases.push(case("frames of HTTP/2", Misdeed::Write(frames), protocol, None));
    meet(&app, cases).await;
    app.stop().await;
}

/// Catches: an end in the middle that is told as another fault, or not at all.
#[tokio::test]
async fn ends_in_every_phase() {
    let app = service("60").await;
    let protocol = "protocol";
    let body = ok("content-length: 9", "x");
    let at_once = |then| Misdeed::Script(Reads::Nothing, Vec::new(), then);
    let mut cases = vec![
        case("reset before the request", at_once(Then::Reset), "connect|protocol", None),
        case("closed before the request", at_once(Then::Close), protocol, None),
        case("half-closed before the request", at_once(Then::HalfClose), protocol, None),
    ];
    for (name, then, status) in [
        ("reset", Then::Reset, PERHAPS),
        ("closed", Then::Close, PERHAPS),
        ("half-closed", Then::HalfClose, Some(200)),
    ] {
        let middle = |bytes: &str| after_head(bytes, then.clone());
        cases.extend([
            case(name, middle(""), protocol, None),
            case(name, middle("HTTP/1.1 20"), protocol, None),
            case(name, middle("HTTP/1.1 200 OK\r\nx-a: "), protocol, None),
            case(name, middle(&body), if status == PERHAPS { "|protocol" } else { "" }, status),
        ]);
    }
    // An answer without a length ends with the connection.
    cases.push(case(
        "half-closed after all",
        after_head(ok("x-a: b", "all"), Then::HalfClose),
        "",
        Some(200),
    ));
    cases.push(case(
        "reset after all",
        after_head(ok("x-a: b", "all"), Then::Reset),
        "|protocol",
        PERHAPS,
    ));
    meet(&app, cases).await;
    app.stop().await;
}
