//! Reading bodies: bounded in bytes and in time.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{ApiError, room::Hold};

/// How long a client may send nothing of a body that is not whole, whatever time it has left.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How many bytes of the bodies of batches may be in memory, being received or worked on, in KiB.
const BATCHES_KIB_MAX: usize = 128 * 1024;

/// What a body may take.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// How many bytes it may have.
    pub bytes_max: usize,
    /// The variable that sets it.
    pub setting: &'static str,
    /// How long it may take to arrive.
    pub timeout: Duration,
}

/// The room for the bodies of batches, which are large: what all of them may hold together. Cheap
/// to clone.
#[derive(Debug, Clone)]
pub struct BatchRoom(Arc<Semaphore>);

impl Default for BatchRoom {
    /// All of the room.
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BATCHES_KIB_MAX)))
    }
}

impl BatchRoom {
    /// The share of a body of which nothing has come yet.
    pub fn share(&self) -> Share {
        Share { room: self.clone(), taken: None }
    }
}

/// What one body holds of the [`BatchRoom`]. It grows with what has come, so that who dawdles holds
/// no more than that.
#[derive(Debug)]
pub struct Share {
    room: BatchRoom,
    taken: Option<OwnedSemaphorePermit>,
}

impl Share {
    fn grow_to(&mut self, bytes: usize) -> Result<(), ApiError> {
        let kib = bytes / 1024 + 1;
        let more =
            kib.saturating_sub(self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        let more = u32::try_from(more).map_err(|_| ApiError::Busy)?;
        let more = self.room.0.clone().try_acquire_many_owned(more).map_err(|_| ApiError::Busy)?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        Ok(())
    }
}

/// Reads the body of a request that must be JSON; of a batch, as far as there is room.
pub async fn read_json(
    request: Request,
    limit: Limit,
    mut share: Option<&mut Share>,
) -> Result<Bytes, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::NotJson);
    }
    let hold = request.extensions().get::<Hold>().cloned();
    let reading = read(request.into_body(), limit, hold.as_ref(), &mut share);
    tokio::time::timeout(limit.timeout, reading).await.map_err(|_| ApiError::TooSlow)?
}

/// What is refused is not read on: the connection drops the rest once the answer is sent.
async fn read(
    body: Body,
    limit: Limit,
    hold: Option<&Hold>,
    share: &mut Option<&mut Share>,
) -> Result<Bytes, ApiError> {
    let Limit { bytes_max, setting, .. } = limit;
    let too_large = || ApiError::TooLarge { what: "the body", bytes_max, setting };
    // What a body says of itself is enough to refuse it, and nothing has to be there for that.
    let told = body.size_hint().exact();
    let told = told.map(|told| usize::try_from(told).unwrap_or(usize::MAX));
    if told.is_some_and(|told| told > bytes_max) {
        return Err(too_large());
    }
    if let (Some(told), Some(hold)) = (told, hold) {
        hold.could_grow_to(told)?;
    }
    let mut take = |bytes: usize| {
        hold.map_or(Ok(()), |hold| hold.grow_to(bytes))?;
        share.as_mut().map_or(Ok(()), |share| share.grow_to(bytes))
    };
    let mut limited = Limited::new(body, bytes_max);
    let mut whole = Vec::new();
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, limited.frame()).await;
        let frame = match frame.map_err(|_| ApiError::TooSlow)? {
            Some(Ok(frame)) => frame,
            None => break,
            Some(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
            Some(Err(_)) => return Err(ApiError::Malformed("the body broke off".to_owned())),
        };
        let Ok(data) = frame.into_data() else { continue };
        let bytes = whole.len() + data.len();
        if whole.is_empty() && limited.is_end_stream() {
            take(bytes)?;
            return Ok(data);
        }
        if bytes > whole.capacity() {
            // What is allocated counts, and not what of it is filled.
            let capacity = (2 * bytes).min(told.unwrap_or(bytes_max)).max(bytes);
            take(capacity)?;
            whole.reserve_exact(capacity - whole.len());
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
}

/// A body as text: JSON is UTF-8 (RFC 8259).
pub fn text(body: &Bytes) -> Result<&str, ApiError> {
    str::from_utf8(body)
        .map_err(|error| ApiError::Malformed(format!("no UTF-8 at byte {}", error.valid_up_to())))
}

/// How long a part of a body may be to be copied in any case: a buffer of the HTTP server, of which
/// a small body is a slice, is no smaller.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// A part of a body, to be kept after the request: a slice, unless that would keep far more in
/// memory than it shows, such as a mebibyte of blanks around one digit.
pub fn part_of(body: &Bytes, part: &str) -> Bytes {
    if part.len() <= COPIED_BYTES_MAX || part.len() < body.len() / 2 {
        Bytes::copy_from_slice(part.as_bytes())
    } else {
        body.slice_ref(part.as_bytes())
    }
}

/// Whether a body says that it comes from a form, as some providers send unless they are set up
/// otherwise.
pub fn is_form(headers: &HeaderMap) -> bool {
    essence(headers).is_some_and(|essence| {
        essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
            || essence.eq_ignore_ascii_case("multipart/form-data")
    })
}

fn essence(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(essence) = essence(headers) else { return false };
    essence.eq_ignore_ascii_case("application/json")
        || (essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { bytes_max: 10, setting: "REQUEST_BODY_MAX", timeout: SILENCE_MAX };

    async fn read_all(bytes: &'static [&'static [u8]]) -> Result<Bytes, ApiError> {
        let frames = bytes.iter().map(|part| Ok::<_, std::io::Error>(Bytes::from_static(part)));
        let body = Body::from_stream(futures_util::stream::iter(frames));
        read(body, LIMIT, None, &mut None).await
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        assert_eq!(read_all(&[]).await.unwrap(), "");
        assert_eq!(read_all(&[b"0123456789"]).await.unwrap(), "0123456789");
        assert_eq!(read_all(&[b"01234", b"", b"56", b"789"]).await.unwrap(), "0123456789");
        let too_large =
            ApiError::TooLarge { what: "the body", bytes_max: 10, setting: "REQUEST_BODY_MAX" };
        assert_eq!(read_all(&[b"01234567890"]).await, Err(too_large.clone()));
        assert_eq!(read_all(&[b"01234", b"567890", b"1"]).await, Err(too_large));
    }

    #[test]
    fn batches_share_one_room() {
        let room = BatchRoom::default();
        let half = BATCHES_KIB_MAX * 1024 / 2;
        let (mut one, mut other) = (room.share(), room.share());
        one.grow_to(half).unwrap();
        one.grow_to(half + 5 * 1024).unwrap();
        assert_eq!(other.grow_to(half - 3 * 1024), Err(ApiError::Busy));
        other.grow_to(half - 7 * 1024).unwrap();
        drop(one);
        other.grow_to(2 * half - 1).unwrap();
        drop(other);
        assert_eq!(room.0.available_permits(), BATCHES_KIB_MAX);
    }

    #[test]
    fn a_small_part_of_a_body_does_not_keep_all_of_it() {
        #[track_caller]
        fn check(part_bytes: usize, body_bytes: usize, is_slice: bool) {
            let body = Bytes::from(vec![b'x'; body_bytes]);
            let part = part_of(&body, std::str::from_utf8(&body[..part_bytes]).unwrap());
            assert_eq!(part, body[..part_bytes]);
            assert_eq!(part.as_ptr() == body.as_ptr(), is_slice);
        }
        check(1, 1024 * 1024, false);
        check(500 * 1024, 1024 * 1024, false);
        check(1024 * 1024, 1024 * 1024 + 100, true);
        check(100, 120, false);
    }

    #[test]
    fn json_is_what_says_so() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            is_json(&headers)
        };
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/x+json"] {
            assert!(check(good), "{good}");
        }
        for bad in ["text/plain", "application/x-www-form-urlencoded", "json", "+json", ""] {
            assert!(!check(bad), "{bad}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
