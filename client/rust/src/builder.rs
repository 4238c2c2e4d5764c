//! How a client is made.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::call::CallOptions;
use crate::client::{Client, Inner};
use crate::connect::Connection;
use crate::error::{Code, Error};
use crate::rpc::Transport;
use crate::target::Target;
#[cfg(feature = "tls")]
use crate::tls::Tls;
use crate::token::TokenSource;

/// How a client connects, and what holds for its calls.
///
/// ```no_run
/// # fn f() -> Result<(), attention_client::Error> {
/// use std::time::Duration;
/// use attention_client::Client;
///
/// let client = Client::builder("attention.example:50051")
///     .tls_ca("/etc/attention/ca.pem")
///     .token_file("/run/secrets/attention-token")
///     .timeout(Duration::from_secs(10))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing unless it is built"]
pub struct ClientBuilder {
    target: String,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    allow_plaintext_token: bool,
    max_receive_bytes: Option<usize>,
    options: CallOptions,
}

impl fmt::Debug for ClientBuilder {
    /// Without token and keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    pub(crate) fn new(target: String) -> Self {
        Self {
            target,
            #[cfg(feature = "tls")]
            tls: None,
            token: None,
            token_file: None,
            allow_plaintext_token: false,
            max_receive_bytes: None,
            options: CallOptions {
                timeout: Duration::from_secs(60),
                max_attempts: 4,
                request_id: None,
            },
        }
    }

    /// Who calls: sent with each call as `authorization: Bearer TOKEN`. No error
    /// and nothing that this crate formats holds it.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The same, from a file with the token on one line. It is read by
    /// [`build`](Self::build), and again with a call when the last time is a second
    /// ago, so that it may be replaced.
    pub fn token_file(mut self, file: impl AsRef<Path>) -> Self {
        self.token_file = Some(file.as_ref().to_owned());
        self
    }

    /// Without TLS a token goes to loopback and Unix sockets only, whatever the
    /// target's name: the connection itself is looked at. Where it leads elsewhere
    /// calls fail with `FailedPrecondition`, and nothing is sent. This lets the token
    /// travel where others can read it.
    pub fn allow_plaintext_token(mut self) -> Self {
        self.allow_plaintext_token = true;
        self
    }

    /// The largest answer that is taken, in bytes. A larger one fails with
    /// `ResourceExhausted`. Default: no limit. Set one where the server is not
    /// trusted.
    pub fn max_receive_bytes(mut self, bytes: usize) -> Self {
        self.max_receive_bytes = Some(bytes);
        self
    }

    /// The time that each call may take, further attempts included: 60 s by default.
    /// [`Call::timeout`](crate::Call::timeout) is that of one call.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// How often each call may be tried, the first time included: 4 by default, 1
    /// for no retries.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts;
        self
    }

    /// Reads the files that the options name. Does not connect: the first call does.
    ///
    /// # Errors
    /// `InvalidArgument` if options cannot be used, such as a file that does not
    /// exist, or a token for an address beyond this machine without TLS.
    pub fn build(self) -> Result<Client, Error> {
        let wrong = |text: &str| Err(Error::local(Code::InvalidArgument, text));
        let (target, https) = Target::parse(&self.target)?;
        let token = match (&self.token, &self.token_file) {
            (Some(_), Some(_)) => return wrong("token, token_file: got both, wanted one"),
            (Some(token), None) => Some(TokenSource::of(token)?),
            (None, Some(file)) => Some(TokenSource::of_file(file)?),
            (None, None) => None,
        };
        #[cfg(feature = "tls")]
        let encrypted = self.tls.is_some() || https;
        #[cfg(not(feature = "tls"))]
        let encrypted = false;
        #[cfg(not(feature = "tls"))]
        if https {
            return wrong("target: this crate was built without its feature \"tls\"");
        }
        let only_loopback = token.is_some() && !encrypted && !self.allow_plaintext_token;
        if only_loopback && target.is_remote_address() {
            return wrong(
                "token: it would travel in plain text beyond loopback: use TLS (or \
                 allow_plaintext_token)",
            );
        }
        let connection = Connection::new(
            target.clone(),
            #[cfg(feature = "tls")]
            match encrypted {
                true => Some(self.tls.unwrap_or_default().config(&target)?),
                false => None,
            },
            only_loopback,
        )?;
        let transport = Transport::new(connection, token, self.max_receive_bytes);
        Ok(Client {
            inner: Arc::new(Inner::new(self.target, transport, self.options)),
        })
    }
}
