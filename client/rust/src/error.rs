//! Why a call failed.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tonic_types::pb as rpc;

/// A status code of gRPC, with its meaning there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The caller gave up.
    Cancelled,
    /// An error that does not say what it is.
    Unknown,
    /// A field of the request is wrong.
    InvalidArgument,
    /// The deadline passed.
    DeadlineExceeded,
    /// There is no such session.
    NotFound,
    /// There is a session of this id already.
    AlreadyExists,
    /// The token may not be used for this.
    PermissionDenied,
    /// Over a limit, or the server is busy: then there is a
    /// [`retry_delay`](Error::retry_delay).
    ResourceExhausted,
    /// What the call needs is not there.
    FailedPrecondition,
    /// A session's layer has another length than was expected.
    Aborted,
    /// The session has no such layer.
    OutOfRange,
    /// The server does not have this.
    Unimplemented,
    /// A bug of the server, or an answer that makes no sense.
    Internal,
    /// The server cannot be reached, or is shutting down.
    Unavailable,
    /// Data was lost.
    DataLoss,
    /// The server wants a token that it knows.
    Unauthenticated,
}

impl Code {
    /// `None` is OK.
    pub(crate) fn from_wire(code: i32) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Cancelled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        })
    }

    /// As gRPC writes it, such as `INVALID_ARGUMENT`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A field of the request that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldViolation {
    /// Its path in the request, such as `key.shape`.
    pub field: String,
    /// What came, and what was wanted.
    pub description: String,
}

/// When the server says to try again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Delay {
    /// It says nothing.
    #[default]
    Untold,
    After(Duration),
    /// It says not to.
    Never,
}

/// Why a call failed: a code, a text, and what else the server said.
///
/// ```
/// # use attention_client::{Client, ComputeRequest, Tensor};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), attention_client::Error> {
/// # // Runs where a server is named, as the tests do.
/// # let Ok(server) = std::env::var("ATTENTION_TEST_SERVER") else { return Ok(()) };
/// # let client = Client::new(server)?;
/// # let eye = Tensor::new([2, 2], vec![1.0_f32, 0.0, 0.0, 1.0])?;
/// # let request = ComputeRequest::new(&eye, Tensor::new([1, 3], vec![0.0_f32; 3])?, &eye);
/// use attention_client::Code;
///
/// match client.compute(request).await {
///     Ok(answer) => println!("{:?}", answer.output),
///     Err(error) if error.code() == Code::InvalidArgument => {
///         # assert_eq!(error.field_violations()[0].field, "key.shape");
///         for violation in error.field_violations() {
///             println!("{}: {}", violation.field, violation.description);
///         }
///     }
///     Err(error) => println!("{error}, reason {:?}", error.reason()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    message: String,
    reason: Option<String>,
    metadata: HashMap<String, String>,
    violations: Vec<FieldViolation>,
    delay: Delay,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The domain of reasons that the service gives.
const DOMAIN: &str = "attention";

impl Error {
    /// The status code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What went wrong, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Tells errors of one code apart, such as `QUEUE_FULL` and
    /// `REQUEST_TOO_LARGE`. Every error of the server has one; more may come.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    /// The fields of the request that are wrong.
    #[must_use]
    pub fn field_violations(&self) -> &[FieldViolation] {
        &self.0.violations
    }

    /// The length that a session's layer has in truth, where that is not the one
    /// that was expected (`LENGTH_CONFLICT`).
    #[must_use]
    pub fn length(&self) -> Option<usize> {
        self.metadata("length")?.parse().ok()
    }

    /// More of what the server said, such as `first_token` and `least_length` with
    /// `TOKENS_RELEASED`.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.0.metadata.get(key).map(String::as_str)
    }

    /// After which time to try again, where the server says so.
    #[must_use]
    pub fn retry_delay(&self) -> Option<Duration> {
        match self.0.delay {
            Delay::After(delay) => Some(delay),
            Delay::Untold | Delay::Never => None,
        }
    }

    pub(crate) fn delay(&self) -> Delay {
        self.0.delay
    }

    pub(crate) fn has_reason(&self, reason: &str) -> bool {
        self.reason() == Some(reason)
    }

    /// One that this client found out by itself.
    pub(crate) fn local(code: Code, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            code,
            message: message.into(),
            reason: None,
            metadata: HashMap::new(),
            violations: Vec::new(),
            delay: Delay::Untold,
            source: None,
        }))
    }

    pub(crate) fn malformed(what: impl fmt::Display) -> Self {
        Self::local(Code::Internal, format!("malformed answer: {what}"))
    }

    /// The answer is larger than the client takes.
    pub(crate) fn client_limit(bytes: usize, limit: usize) -> Self {
        let message = format!(
            "the answer has {bytes} bytes or more, this client takes {limit} (max_receive_bytes)"
        );
        Self::local(Code::ResourceExhausted, message).with_reason("CLIENT_LIMIT")
    }

    /// From a status of the wire: of a call or of an item of a step. `details` is a
    /// serialized google.rpc.Status; what cannot be read of it is left out.
    pub(crate) fn from_status(code: Code, message: String, details: &[u8]) -> Self {
        let mut inner = Inner {
            code,
            message,
            reason: None,
            metadata: HashMap::new(),
            violations: Vec::new(),
            delay: Delay::Untold,
            source: None,
        };
        for any in rpc::Status::decode(details).unwrap_or_default().details {
            inner.take_detail(&any);
        }
        Self(Arc::new(inner))
    }

    fn change(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.0);
        change(&mut inner);
        Self(Arc::new(inner))
    }

    pub(crate) fn with_reason(self, reason: &str) -> Self {
        self.change(|inner| inner.reason = Some(reason.to_owned()))
    }

    pub(crate) fn with_length(self, length: usize) -> Self {
        self.change(|inner| {
            inner
                .metadata
                .insert("length".to_owned(), length.to_string());
        })
    }

    pub(crate) fn with_delay(self, delay: Delay) -> Self {
        self.change(|inner| inner.delay = delay)
    }

    pub(crate) fn with_source(
        self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.change(|inner| inner.source = Some(Arc::from(source.into())))
    }

    pub(crate) fn with_message(self, message: String) -> Self {
        self.change(|inner| inner.message = message)
    }

    /// An error of a stream, whose fields are named as in the request: without
    /// "header." and "chunk.". Elements of a chunk are counted within it, so that
    /// their numbers would mislead.
    pub(crate) fn named_as_in_request(self) -> Self {
        self.change(|inner| {
            if inner.violations.is_empty() {
                return;
            }
            inner.message = renamed(&inner.message);
            for violation in &mut inner.violations {
                if violation.field.starts_with("chunk.") {
                    violation.description = without_element(&violation.description);
                }
                violation.field = renamed(&violation.field);
            }
        })
    }
}

fn renamed(text: &str) -> String {
    if let Some(rest) = text.strip_prefix("chunk.") {
        return without_element(rest);
    }
    text.strip_prefix("header.").unwrap_or(text).to_owned()
}

fn without_element(text: &str) -> String {
    let Some((before, after)) = text.split_once(" at element ") else {
        return text.to_owned();
    };
    format!(
        "{before}{}",
        after.trim_start_matches(|c: char| c.is_ascii_digit())
    )
}

impl Inner {
    fn take_detail(&mut self, any: &prost_types::Any) {
        let value = any.value.as_slice();
        match any.type_url.rsplit('/').next() {
            Some("google.rpc.ErrorInfo") => {
                let info = rpc::ErrorInfo::decode(value).unwrap_or_default();
                if info.domain == DOMAIN && !info.reason.is_empty() {
                    self.reason = Some(info.reason);
                    self.metadata = info.metadata;
                }
            }
            Some("google.rpc.BadRequest") => {
                let request = rpc::BadRequest::decode(value).unwrap_or_default();
                self.violations = request
                    .field_violations
                    .into_iter()
                    .map(|violation| FieldViolation {
                        field: violation.field,
                        description: violation.description,
                    })
                    .collect();
            }
            Some("google.rpc.RetryInfo") => {
                let info = rpc::RetryInfo::decode(value).unwrap_or_default();
                let delay = info.retry_delay.and_then(|delay| delay.try_into().ok());
                if let Some(delay) = delay {
                    self.delay = Delay::After(delay);
                }
            }
            _ => {}
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)?;
        match self.reason() {
            Some(reason) if reason != self.0.code.as_str() => write!(f, " [{reason}]"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Error");
        text.field("code", &self.0.code)
            .field("message", &self.0.message);
        if let Some(reason) = self.reason() {
            text.field("reason", &reason);
        }
        if !self.0.violations.is_empty() {
            text.field("field_violations", &self.0.violations);
        }
        if !self.0.metadata.is_empty() {
            text.field("metadata", &self.0.metadata);
        }
        if let Some(delay) = self.retry_delay() {
            text.field("retry_delay", &delay);
        }
        if let Some(source) = &self.0.source {
            text.field("source", source);
        }
        text.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, message: &impl Message) -> prost_types::Any {
        prost_types::Any {
            type_url: format!("type.googleapis.com/google.rpc.{name}"),
            value: message.encode_to_vec(),
        }
    }

    fn status(details: Vec<prost_types::Any>) -> Vec<u8> {
        rpc::Status {
            details,
            ..Default::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn details_are_taken_over() {
        let details = status(vec![
            any(
                "ErrorInfo",
                &rpc::ErrorInfo {
                    reason: "LENGTH_CONFLICT".into(),
                    domain: "attention".into(),
                    metadata: [("length".to_owned(), "9".to_owned())].into(),
                },
            ),
            any(
                "RetryInfo",
                &rpc::RetryInfo {
                    retry_delay: Some(prost_types::Duration {
                        seconds: 1,
                        nanos: 500_000_000,
                    }),
                },
            ),
        ]);
        let error = Error::from_status(Code::Aborted, "layer 0".into(), &details);
        assert_eq!(error.reason(), Some("LENGTH_CONFLICT"));
        assert_eq!(error.length(), Some(9));
        assert_eq!(error.retry_delay(), Some(Duration::from_millis(1500)));
        assert_eq!(error.to_string(), "ABORTED: layer 0 [LENGTH_CONFLICT]");
    }

    #[test]
    fn what_others_say_is_no_reason() {
        let info = rpc::ErrorInfo {
            reason: "RATE_LIMIT_EXCEEDED".into(),
            domain: "googleapis.com".into(),
            metadata: HashMap::new(),
        };
        let error = Error::from_status(
            Code::Unavailable,
            String::new(),
            &status(vec![any("ErrorInfo", &info)]),
        );
        assert_eq!(error.reason(), None);
        let garbage = Error::from_status(Code::Internal, "x".into(), &[0xff; 9]);
        assert_eq!(garbage.reason(), None);
    }

    #[test]
    fn fields_of_streams_have_the_names_of_the_request() {
        let violation = |field: &str, description: &str| rpc::bad_request::FieldViolation {
            field: field.into(),
            description: description.into(),
            ..Default::default()
        };
        let details = status(vec![any(
            "BadRequest",
            &rpc::BadRequest {
                field_violations: vec![
                    violation("header.key.shape", "got (3, 4)"),
                    violation("chunk.mask", "got 2 at element 17, wanted 0 or 1"),
                ],
            },
        )]);
        let message = "chunk.mask: got 2 at element 17, wanted 0 or 1";
        let error = Error::from_status(Code::InvalidArgument, message.into(), &details)
            .named_as_in_request();
        assert_eq!(error.message(), "mask: got 2, wanted 0 or 1");
        assert_eq!(error.field_violations()[0].field, "key.shape");
        assert_eq!(error.field_violations()[1].field, "mask");
        assert_eq!(
            error.field_violations()[1].description,
            "got 2, wanted 0 or 1"
        );
    }
}
