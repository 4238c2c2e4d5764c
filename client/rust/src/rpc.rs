//! gRPC over a channel: messages are sent in the pieces that they consist of, and
//! received into memory that is aligned for their elements.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use base64::Engine;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use bytes::{Buf, Bytes};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use http_body::Body as _;
use prost::Message;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::Channel;
use tower_service::Service;

use crate::connect::{ConnectError, Connection, chain};
use crate::error::{Code, Delay, Error};
use crate::memory::{Frames, Received, Rope};
use crate::retry::{Attempt, deadline_exceeded};
use crate::token::TokenSource;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_BYTES: HeaderName = HeaderName::from_static("attention-request-bytes");
const MAX_RESPONSE_BYTES: HeaderName = HeaderName::from_static("attention-max-response-bytes");

/// A method, and what is told to the server before the message.
#[derive(Clone, Copy)]
pub(crate) struct Method {
    pub(crate) path: &'static str,
    /// Whether the request tells how large the answer may be.
    pub(crate) computes: bool,
}

impl Method {
    pub(crate) const fn plain(path: &'static str) -> Self {
        Self {
            path,
            computes: false,
        }
    }

    pub(crate) const fn computing(path: &'static str) -> Self {
        Self {
            path,
            computes: true,
        }
    }
}

/// A server, and what each call to it carries.
pub(crate) struct Transport {
    connection: Connection,
    /// Made in the first call, which runs in a runtime.
    channel: OnceLock<Channel>,
    token: Option<TokenSource>,
    pub(crate) max_receive_bytes: Option<usize>,
}

/// The size of the first message of a call.
pub(crate) type RequestBytes = Option<usize>;

impl Transport {
    pub(crate) fn new(
        connection: Connection,
        token: Option<TokenSource>,
        max_receive_bytes: Option<usize>,
    ) -> Self {
        Self {
            connection,
            channel: OnceLock::new(),
            token,
            max_receive_bytes,
        }
    }

    /// Begins a call. Dropping the future, or the answer, cancels it.
    pub(crate) async fn open(
        &self,
        method: Method,
        body: Body,
        request_bytes: RequestBytes,
        attempt: Option<&Attempt>,
    ) -> Result<Incoming, Error> {
        let deadline = attempt.map(|attempt| attempt.deadline);
        let mut request = http::Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = http::Uri::from_static(method.path);
        let headers = request.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(deadline) = deadline {
            headers.insert(GRPC_TIMEOUT, timeout_header(deadline));
        }
        if let Some(id) = attempt.and_then(|attempt| attempt.request_id.as_ref()) {
            headers.insert(REQUEST_ID, id.clone());
        }
        if let Some(bytes) = request_bytes {
            headers.insert(REQUEST_BYTES, bytes.into());
        }
        if let Some(limit) = self.max_receive_bytes
            && method.computes
        {
            headers.insert(MAX_RESPONSE_BYTES, limit.into());
        }
        if let Some(token) = &self.token {
            headers.insert(AUTHORIZATION, token.header());
        }
        let mut channel = self
            .channel
            .get_or_init(|| self.connection.channel())
            .clone();
        let ready = std::future::poll_fn(|context| channel.poll_ready(context)).await;
        let response = match ready {
            Ok(()) => channel.call(request).await,
            Err(error) => Err(error),
        };
        let response = response
            .map_err(|e| unanswered(transport_error(Box::new(e), deadline), &self.connection))?;
        Incoming::new(response, deadline, self.max_receive_bytes)
    }

    /// One message there, one back.
    pub(crate) async fn unary<A: Message + Default>(
        &self,
        method: Method,
        message: &OutMessage,
        attempt: Attempt,
    ) -> Result<A, Error> {
        let body = Body::new(FramesBody(message.frames.clone()));
        let request_bytes = method.computes.then_some(message.len);
        let mut incoming = self
            .open(method, body, request_bytes, Some(&attempt))
            .await?;
        let Some(answer) = incoming.message().await? else {
            return Err(Error::malformed("the call ended well without a message"));
        };
        if incoming.message().await?.is_some() {
            return Err(Error::malformed("more than one message"));
        }
        decode(answer)
    }
}

pub(crate) fn decode<A: Message + Default>(message: Received) -> Result<A, Error> {
    A::decode(message).map_err(|e| Error::malformed(&e).with_source(e))
}

/// A message that can be sent any number of times.
#[derive(Clone)]
pub(crate) struct OutMessage {
    pub(crate) frames: Frames,
    /// Without gRPC's prefix.
    pub(crate) len: usize,
}

impl OutMessage {
    pub(crate) fn new(message: Rope) -> Result<Self, Error> {
        let len = message.len();
        let frames = message.into_frames().ok_or_else(|| {
            Error::local(
                Code::InvalidArgument,
                format!("the request has {len} bytes, a message can have 2147483647"),
            )
        })?;
        Ok(Self { frames, len })
    }

    pub(crate) fn of(message: &impl Message) -> Result<Self, Error> {
        Self::new(Rope::of(message))
    }
}

/// The body of a request with one message.
struct FramesBody(Frames);

impl http_body::Body for FramesBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop().map(|piece| Ok(http_body::Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.0.is_empty()
    }
}

/// What comes back on a call.
pub(crate) struct Incoming {
    body: Body,
    received: Received,
    status: Option<Result<(), Error>>,
    deadline: Option<Instant>,
    /// What may still come, and the limit.
    limit: Option<usize>,
    taken: usize,
}

impl Incoming {
    fn new(
        response: http::Response<Body>,
        deadline: Option<Instant>,
        limit: Option<usize>,
    ) -> Result<Self, Error> {
        let (head, body) = response.into_parts();
        let status = status_of(&head.headers);
        if status.is_none() && head.status != http::StatusCode::OK {
            return Err(http_error(head.status));
        }
        if let Some(Err(error)) = status {
            return Err(error);
        }
        let kind = head.headers.get(CONTENT_TYPE);
        if kind.is_none_or(|kind| !kind.as_bytes().starts_with(b"application/grpc")) {
            let text = format!("the server does not speak gRPC: content-type {kind:?}");
            return Err(Error::local(Code::Unknown, text));
        }
        Ok(Self {
            body,
            received: Received::default(),
            status,
            deadline,
            limit,
            taken: 0,
        })
    }

    /// The next message; none once the call has ended well.
    pub(crate) async fn message(&mut self) -> Result<Option<Received>, Error> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            if let Some(status) = &self.status {
                status.clone()?;
                if self.received.remaining() > 0 {
                    return Err(Error::malformed("the call ended within a message"));
                }
                return Ok(None);
            }
            self.receive().await?;
        }
    }

    fn take_message(&mut self) -> Result<Option<Received>, Error> {
        if self.received.remaining() < 5 {
            return Ok(None);
        }
        let mut prefix = [0; 5];
        peek(&self.received, &mut prefix);
        if prefix[0] != 0 {
            return Err(Error::malformed("a compressed message"));
        }
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if let Some(limit) = self.limit
            && self.taken + len > limit
        {
            return Err(Error::client_limit(self.taken + len, limit));
        }
        if self.received.remaining() < 5 + len {
            return Ok(None);
        }
        self.taken += len;
        self.received.advance(5);
        Ok(Some(self.received.split_to(len)))
    }

    /// On a stream without end each message is counted by itself.
    pub(crate) fn forget_taken(&mut self) {
        self.taken = 0;
    }

    async fn receive(&mut self) -> Result<(), Error> {
        let frame =
            std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.received.push(data),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.status = status_of(&trailers);
                    }
                }
            },
            Some(Err(error)) => return Err(transport_error(Box::new(error), self.deadline)),
            None => {
                let missing = || Err(Error::malformed("the call ended without a status"));
                self.status = Some(missing());
            }
        }
        Ok(())
    }
}

/// Copies the beginning; there must be so many bytes.
fn peek(received: &Received, to: &mut [u8]) {
    let mut filled = 0;
    for piece in received.pieces() {
        let count = piece.len().min(to.len() - filled);
        to[filled..filled + count].copy_from_slice(&piece[..count]);
        filled += count;
        if filled == to.len() {
            return;
        }
    }
}

/// At most eight digits, rounded up so that the server does not give up first. Above a
/// second in milliseconds: the same text for many calls, which HTTP/2 then sends once.
fn timeout_header(deadline: Instant) -> HeaderValue {
    let left = deadline.saturating_duration_since(Instant::now());
    let micros = left.as_micros().max(1);
    let text = if micros < 1_000_000 {
        format!("{micros}u")
    } else if micros < 90_000_000_000 {
        format!("{}m", micros.div_ceil(1000))
    } else {
        format!("{}S", (micros / 1_000_000 + 1).min(99_999_999))
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("60S"))
}

/// gRPC's binary headers come with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The status in headers or trailers, if one is there.
fn status_of(headers: &HeaderMap) -> Option<Result<(), Error>> {
    let code = headers.get("grpc-status")?;
    let code = code.to_str().ok().and_then(|code| code.parse().ok());
    let Some(code) = Code::from_wire(code.unwrap_or(2)) else {
        return Some(Ok(()));
    };
    let message = headers
        .get("grpc-message")
        .map_or_else(String::new, |message| {
            percent_encoding::percent_decode(message.as_bytes())
                .decode_utf8_lossy()
                .into_owned()
        });
    let details = headers
        .get("grpc-status-details-bin")
        .and_then(|details| BASE64.decode(details).ok())
        .unwrap_or_default();
    let mut error = Error::from_status(code, message, &details);
    // Counts before RetryInfo.
    if let Some(pushback) = headers.get("grpc-retry-pushback-ms") {
        let text = pushback.to_str().unwrap_or_default();
        error = error.with_delay(match text.parse::<u32>() {
            Ok(ms) => Delay::After(std::time::Duration::from_millis(ms.into())),
            Err(_) => Delay::Never,
        });
    }
    if code == Code::ResourceExhausted
        && error.reason().is_none()
        && error.message().to_ascii_lowercase().contains("metadata")
    {
        error = error.with_reason("HEADERS_TOO_LARGE");
    }
    Some(Err(error))
}

/// What a proxy or another server says, by gRPC's table.
fn http_error(status: http::StatusCode) -> Error {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Error::local(
        code,
        format!("the server answered with HTTP status {status}"),
    )
}

/// What became of a call that has no status.
fn transport_error(error: Box<dyn StdError + Send + Sync>, deadline: Option<Instant>) -> Error {
    if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
        return deadline_exceeded();
    }
    let mut code = Code::Unavailable;
    let mut next: Option<&(dyn StdError + 'static)> = Some(&*error);
    while let Some(cause) = next {
        if let Some(ConnectError::PlaintextToken) = cause.downcast_ref() {
            return Error::local(Code::FailedPrecondition, cause.to_string());
        }
        if cause.is::<tonic::TimeoutExpired>() {
            return deadline_exceeded();
        }
        if let Some(reason) = cause.downcast_ref().and_then(reset_reason) {
            code = code_of_reset(reason);
        }
        next = cause.source();
    }
    Error::local(code, chain(&*error)).with_source(error)
}

/// The error of a call that no answer has begun to come to, with the server it went to.
fn unanswered(error: Error, connection: &Connection) -> Error {
    if error.code() != Code::Unavailable {
        return error;
    }
    let text = error.message();
    let closed = ["connection closed", "broken pipe", "connection reset"];
    let text = if let Some((_, why)) = text.split_once("invalid peer certificate: ") {
        format!("the server's certificate was refused: {why}")
    } else if text.contains("received corrupt message of type InvalidContentType") {
        "the server does not speak TLS on this port".to_owned()
    } else if !connection.encrypts() && closed.iter().any(|words| text.contains(words)) {
        "the server closed the connection before it answered: it may want TLS".to_owned()
    } else {
        text.to_owned()
    };
    error.with_message(format!("{text} (server {})", connection.target()))
}

/// Why this call alone was ended, by the server or because of what it sent.
fn reset_reason(error: &h2::Error) -> Option<h2::Reason> {
    error.is_reset().then(|| error.reason()).flatten()
}

/// gRPC's table of HTTP/2's reasons.
fn code_of_reset(reason: h2::Reason) -> Code {
    match reason {
        h2::Reason::REFUSED_STREAM => Code::Unavailable,
        h2::Reason::CANCEL => Code::Cancelled,
        h2::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        h2::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn statuses() {
        assert!(status_of(&headers(&[])).is_none());
        assert!(matches!(
            status_of(&headers(&[("grpc-status", "0")])),
            Some(Ok(()))
        ));
        let error = status_of(&headers(&[
            ("grpc-status", "8"),
            ("grpc-message", "caf%C3%A9 %"),
            ("grpc-status-details-bin", "not base64!"),
            ("grpc-retry-pushback-ms", "70"),
        ]));
        let error = error.unwrap().unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert_eq!(error.message(), "café %");
        assert_eq!(error.retry_delay(), Some(Duration::from_millis(70)));
        for wrong in ["-1", "soon", "1.5", ""] {
            let pairs = [("grpc-status", "14"), ("grpc-retry-pushback-ms", wrong)];
            let error = status_of(&headers(&pairs)).unwrap().unwrap_err();
            assert_eq!(error.delay(), Delay::Never, "{wrong}");
        }
        let error = status_of(&headers(&[("grpc-status", "x")]))
            .unwrap()
            .unwrap_err();
        assert_eq!(error.code(), Code::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn timeouts_have_at_most_eight_digits() {
        for (seconds, text) in [
            (0.0, "1u"),
            (0.001, "1000u"),
            (5.0, "5000m"),
            (500.0, "500000m"),
            (1e6, "1000001S"),
            (1e9, "99999999S"),
        ] {
            let deadline = Instant::now() + Duration::from_secs_f64(seconds);
            assert_eq!(timeout_header(deadline), text);
        }
    }
}
