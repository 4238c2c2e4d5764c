//! A call that can be adjusted before it is awaited.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;

use crate::error::{Code, Error};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// What holds for one call.
#[derive(Clone, Debug)]
pub(crate) struct CallOptions {
    pub(crate) timeout: Duration,
    pub(crate) max_attempts: u32,
    /// The header `x-request-id`.
    pub(crate) request_id: Option<HeaderValue>,
}

/// A call of the service: a future, to be awaited.
///
/// Nothing happens before it is polled for the first time; its timeout begins
/// then. To drop it cancels the call: the server stops working on it. It refers
/// to nothing, so it can be spawned as it is.
///
/// ```
/// # use attention_client::{Client, ComputeRequest, Tensor};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), attention_client::Error> {
/// # // Runs where a server is named, as the tests do.
/// # let Ok(server) = std::env::var("ATTENTION_TEST_SERVER") else { return Ok(()) };
/// # let client = Client::new(server)?;
/// # let eye = Tensor::new([2, 2], vec![1.0_f32, 0.0, 0.0, 1.0])?;
/// # let request = ComputeRequest::new(&eye, &eye, &eye);
/// use std::time::Duration;
///
/// let answer = client.compute(request).timeout(Duration::from_secs(5)).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a call does nothing unless it is awaited"]
pub struct Call<T> {
    options: CallOptions,
    state: State<T>,
}

type Start<T> = Box<dyn FnOnce(CallOptions) -> BoxFuture<T> + Send>;

enum State<T> {
    /// An option cannot be used.
    Refused(Error),
    Waiting(Option<Start<T>>),
    Running(BoxFuture<T>),
}

impl<T> Call<T> {
    pub(crate) fn new<F, Fut>(options: CallOptions, start: F) -> Self
    where
        F: FnOnce(CallOptions) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        Self {
            options,
            state: State::Waiting(Some(Box::new(|options| Box::pin(start(options))))),
        }
    }

    /// The time that the call may take, further attempts and the pauses before
    /// them included; then it fails with `DeadlineExceeded`, and server and client
    /// stop working on it. In place of that of
    /// [`ClientBuilder::timeout`](crate::ClientBuilder::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// How often the call may be tried, 1 for no retries. In place of that of
    /// [`ClientBuilder::max_attempts`](crate::ClientBuilder::max_attempts).
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts;
        self
    }

    /// An id of 1 to 128 printable ASCII characters by which the call is found in the
    /// server's log (the header `x-request-id`); with others the call fails with
    /// `InvalidArgument`. Steps and attends to sessions, which share a stream, do not
    /// have it.
    pub fn request_id(mut self, id: &str) -> Self {
        let printable = (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        match HeaderValue::from_str(id) {
            Ok(header) if printable => self.options.request_id = Some(header),
            _ => {
                let text = format!("request_id: got {id:?}, wanted 1 to 128 printable characters");
                self.state = State::Refused(Error::local(Code::InvalidArgument, text));
            }
        }
        self
    }
}

impl<T> Future for Call<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Waiting(start) = &mut self.state {
            let start = start.take().expect("a call that began is running");
            self.state = State::Running(start(self.options.clone()));
        }
        match &mut self.state {
            State::Running(future) => future.as_mut().poll(context),
            State::Refused(error) => Poll::Ready(Err(error.clone())),
            State::Waiting(_) => unreachable!("it was begun above"),
        }
    }
}

impl<T> fmt::Debug for Call<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("options", &self.options)
            .finish()
    }
}
