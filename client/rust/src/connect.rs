//! The connection: how it is made, and what it may carry.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use crate::error::{Code, Error};
use crate::target::{Target, is_loopback};

/// A server closes connections that ping more often than every 10 s.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Of headers and trailers.
const MOST_HEADER_BYTES: u32 = 64 << 10;
/// What the server may send before it waits for this client to read.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Everything that a channel is made of.
pub(crate) struct Connection {
    target: Target,
    endpoint: Endpoint,
    /// Whether the connection must not leave this machine, since a token would
    /// travel on it in plain text.
    only_loopback: bool,
}

impl Connection {
    pub(crate) fn new(
        target: Target,
        #[cfg(feature = "tls")] tls: Option<tonic::transport::ClientTlsConfig>,
        only_loopback: bool,
    ) -> Result<Self, Error> {
        let wrong = |e: tonic::transport::Error| {
            let text = format!("the connection's options: {}", chain(&e));
            Error::local(Code::InvalidArgument, text).with_source(e)
        };
        #[cfg(feature = "tls")]
        let scheme = if tls.is_some() { "https" } else { "http" };
        #[cfg(not(feature = "tls"))]
        let scheme = "http";
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", target.authority()))
            .map_err(wrong)?
            .user_agent(concat!("attention-client-rust/", env!("CARGO_PKG_VERSION")))
            .map_err(wrong)?
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false)
            .http2_max_header_list_size(MOST_HEADER_BYTES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        #[cfg(feature = "tls")]
        let endpoint = match tls {
            Some(tls) => endpoint.tls_config(tls).map_err(wrong)?,
            None => endpoint,
        };
        Ok(Self {
            target,
            endpoint,
            only_loopback,
        })
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn encrypts(&self) -> bool {
        self.endpoint.uri().scheme_str() == Some("https")
    }

    /// Connects with the first call, and again after the connection was lost. To
    /// be called in a runtime of tokio.
    pub(crate) fn channel(&self) -> Channel {
        self.endpoint.connect_with_connector_lazy(Connector {
            target: self.target.clone(),
            only_loopback: self.only_loopback,
        })
    }
}

#[derive(Clone)]
struct Connector {
    target: Target,
    only_loopback: bool,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connector.connect()).await {
                Ok(stream) => stream.map(TokioIo::new),
                Err(_) => Err(ConnectError::Io(io::ErrorKind::TimedOut.into())),
            }
        })
    }
}

impl Connector {
    async fn connect(&self) -> Result<Stream, ConnectError> {
        match &self.target {
            Target::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                // Looked at in the connection itself, whatever names say.
                if self.only_loopback && !is_loopback(stream.peer_addr()?.ip()) {
                    return Err(ConnectError::PlaintextToken);
                }
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            #[cfg(unix)]
            Target::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
            #[cfg(not(unix))]
            Target::Unix(_) => Err(ConnectError::Io(io::ErrorKind::Unsupported.into())),
        }
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    Io(io::Error),
    PlaintextToken,
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::PlaintextToken => f.write_str(
                "the token was not sent: the connection leads beyond loopback and has no TLS \
                 (allow_plaintext_token)",
            ),
        }
    }
}

impl std::error::Error for ConnectError {}

enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! with_stream {
    ($stream:expr, $inner:ident => $body:expr) => {
        match $stream {
            Stream::Tcp($inner) => $body,
            #[cfg(unix)]
            Stream::Unix($inner) => $body,
        }
    };
}

impl tokio::io::AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with_stream!(self.get_mut(), s => Pin::new(s).poll_read(context, buffer))
    }
}

impl tokio::io::AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self.get_mut(), s => Pin::new(s).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self.get_mut(), s => Pin::new(s).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        with_stream!(self, s => s.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self.get_mut(), s => Pin::new(s).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self.get_mut(), s => Pin::new(s).poll_shutdown(context))
    }
}

/// The texts of an error and of what caused it.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // Many errors repeat their cause.
        if !texts.iter().any(|before| before.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}
