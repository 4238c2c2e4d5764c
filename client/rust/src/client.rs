//! The client.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::call::{Call, CallOptions};
use crate::capabilities::{Capabilities, Health, HealthCheckRequest, HealthCheckResponse};
use crate::compute::{ComputeAnswer, ComputeRequest};
use crate::connect::Connection;
use crate::error::{Code, Error};
use crate::lease::{GET_SESSION, LeaseRenewer};
use crate::pb;
use crate::retry::{Attempts, Twice, retrying};
use crate::rpc::{Method, OutMessage, Transport};
use crate::session::{self, Fork, Session, SessionConfig, SessionInfo, StepAnswer, StepItem};
use crate::session_state::random_id;
use crate::steps::StepStreams;
use crate::stream::{self, KeyChunks};
use crate::target::Target;
use crate::token::TokenSource;

const COMPUTE: Method = Method::computing("/attention.v1.AttentionService/ComputeAttention");
const CAPABILITIES: Method = Method::plain("/attention.v1.AttentionService/GetCapabilities");
const HEALTH: Method = Method::plain("/grpc.health.v1.Health/Check");
const CREATE: Method = Method::plain("/attention.v1.SessionService/CreateSession");
const LIST: Method = Method::plain("/attention.v1.SessionService/ListSessions");

/// How long a server that takes no streams is sent none. Another one may stand
/// there by then.
const NO_STREAMS_FOR: Duration = Duration::from_secs(60);

/// A client of the attention service. To clone it is cheap: clones share a
/// connection. It may be used by any number of tasks at once.
///
/// ```no_run
/// # async fn f() -> Result<(), attention_client::Error> {
/// use attention_client::{Client, ComputeRequest, Tensor};
///
/// let client = Client::new("127.0.0.1:50051")?;
/// let eye = Tensor::new([2, 2], vec![1.0_f32, 0.0, 0.0, 1.0])?;
/// let answer = client.compute(ComputeRequest::new(&eye, &eye, &eye)).await?;
/// println!("{:?}", answer.output.as_slice::<f32>()?);
/// // [0.66976154, 0.33023846, 0.33023846, 0.66976154]
/// # Ok(())
/// # }
/// ```
///
/// The connection is made by the first call, and anew after it was lost. It belongs
/// to the tokio runtime of that call: use one client per runtime.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// What clones of a client, and its sessions, share.
pub(crate) struct Inner {
    target: String,
    pub(crate) transport: Arc<Transport>,
    pub(crate) steps: StepStreams,
    pub(crate) leases: LeaseRenewer,
    pub(crate) options: CallOptions,
    no_streams_until: Mutex<Option<Instant>>,
}

impl Inner {
    /// A call with one message there and one back, and its retries.
    pub(crate) async fn unary<A: prost::Message + Default>(
        &self,
        options: &CallOptions,
        twice: Twice,
        method: Method,
        request: &impl prost::Message,
    ) -> Result<A, Error> {
        self.unary_in(Attempts::new(options, twice), method, request)
            .await
    }

    async fn unary_in<A: prost::Message + Default>(
        &self,
        attempts: Attempts,
        method: Method,
        request: &impl prost::Message,
    ) -> Result<A, Error> {
        let message = OutMessage::of(request)?;
        retrying(attempts, |deadline| {
            self.transport.unary(method, &message, deadline)
        })
        .await
    }

    fn takes_no_streams(&self) -> bool {
        let until = self
            .no_streams_until
            .lock()
            .unwrap_or_else(|e| e.into_inner());
        until.is_some_and(|until| Instant::now() < until)
    }

    fn found_no_streams(&self) {
        let mut until = self
            .no_streams_until
            .lock()
            .unwrap_or_else(|e| e.into_inner());
        *until = Some(Instant::now() + NO_STREAMS_FOR);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.inner.target)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server at `target`: `host:port`, `unix:/path`, or a URL
    /// `http://host:port`, `https://host:port`. Does not wait for the network.
    ///
    /// # Errors
    /// `InvalidArgument` if that is no target.
    pub fn new(target: impl Into<String>) -> Result<Self, Error> {
        Self::builder(target).build()
    }

    /// A client with options.
    pub fn builder(target: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(target.into())
    }

    fn call<T, F, Fut>(&self, start: F) -> Call<T>
    where
        F: FnOnce(Arc<Inner>, CallOptions) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        Call::new(inner.options, move |options| start(inner, options))
    }

    /// Computes attention. A request with more than 4 MiB of keys and values for few
    /// query rows is sent in pieces, by `StreamAttention`, and computed meanwhile,
    /// unless it asks for scores or present keys. The answer's bits are the same.
    ///
    /// ```no_run
    /// # use attention_client::{Causal, Client, ComputeRequest, Scores, Tensor};
    /// # async fn f(client: Client, q: Tensor, k: Tensor, v: Tensor)
    /// #     -> Result<(), attention_client::Error> {
    /// let request = ComputeRequest::new(&q, &k, &v)
    ///     .causal(Causal::TopLeft)
    ///     .return_scores(Scores::Weights);
    /// let answer = client.compute(request).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn compute(&self, request: ComputeRequest) -> Call<ComputeAnswer> {
        self.call(|inner, options| compute(inner, options, request))
    }

    /// The server's limits, types and build.
    pub fn capabilities(&self) -> Call<Capabilities> {
        self.call(|inner, options| async move {
            let request = pb::GetCapabilitiesRequest {};
            let answer = inner
                .unary(&options, Twice::Harmless, CAPABILITIES, &request)
                .await?;
            Ok(Capabilities::from_wire(answer))
        })
    }

    /// The health of a service by its full name, or, if that is empty, of the whole
    /// server. `NotFound` if the server does not know the service.
    pub fn health(&self, service: impl Into<String>) -> Call<Health> {
        let service = service.into();
        self.call(|inner, options| async move {
            let request = HealthCheckRequest { service };
            let answer: HealthCheckResponse = inner
                .unary(&options, Twice::Harmless, HEALTH, &request)
                .await?;
            Ok(answer.into())
        })
    }

    /// Makes a session without tokens, of an id that nobody can guess.
    pub fn create_session(&self, config: SessionConfig) -> Call<Session> {
        self.call(|inner, options| async move {
            let id = random_id()?;
            create_session(inner, options, id, config).await
        })
    }

    /// Makes a session of this id: 1 to 128 characters of printable ASCII, no
    /// spaces. Where there is one, of the same configuration, it is the answer, with
    /// its tokens; `AlreadyExists` if its configuration is another.
    pub fn create_session_as(&self, id: impl Into<String>, config: SessionConfig) -> Call<Session> {
        let id = id.into();
        self.call(|inner, options| create_session(inner, options, id, config))
    }

    /// A session that exists.
    pub fn open_session(&self, id: impl Into<String>) -> Call<Session> {
        let id = id.into();
        self.call(|inner, options| async move {
            let info = get_session(&inner, &options, id).await?;
            Session::new(&inner, info)
        })
    }

    /// Tells of a session, and renews its lease.
    pub fn get_session(&self, id: impl Into<String>) -> Call<SessionInfo> {
        let id = id.into();
        self.call(|inner, options| async move { get_session(&inner, &options, id).await })
    }

    /// Tells of the caller's sessions, in the order of their ids, and renews no
    /// lease.
    pub fn list_sessions(&self) -> Call<Vec<SessionInfo>> {
        self.call(|inner, options| async move {
            let attempts = Attempts::new(&options, Twice::Harmless);
            let mut sessions = Vec::new();
            let mut request = pb::ListSessionsRequest::default();
            loop {
                let page: pb::ListSessionsResponse =
                    inner.unary_in(attempts.anew(), LIST, &request).await?;
                for session in page.sessions {
                    sessions.push(SessionInfo::from_wire(Some(session))?);
                }
                if page.next_page_token.is_empty() {
                    return Ok(sessions);
                }
                request.page_token = page.next_page_token;
            }
        })
    }

    /// Ends the session of this id. No error if there is none.
    pub fn delete_session(&self, id: impl Into<String>) -> Call<()> {
        let id = id.into();
        self.call(|inner, options| async move { session::delete(&inner, &options, &id, 0).await })
    }

    /// Makes new sessions with the tokens of others: all of them or none, in the
    /// order of `forks`, at most 128.
    pub fn fork_sessions(&self, forks: Vec<Fork>) -> Call<Vec<Session>> {
        self.call(|inner, options| session::fork(inner, options, forks))
    }

    /// Appends to and attends over layers of several sessions of this client, in one
    /// message: a decode step of one layer for all sequences. At most 1024 items,
    /// each for itself: one result for each, in their order. A layer may be named
    /// twice only by items that do not append.
    ///
    /// ```no_run
    /// # use attention_client::{Client, Session, StepItem, Tensor};
    /// # async fn f(client: Client, sessions: Vec<Session>, token: Tensor, query: Tensor)
    /// #     -> Result<(), attention_client::Error> {
    /// let items = sessions
    ///     .iter()
    ///     .map(|session| StepItem::new(session, 0).append(&token, &token).attend(&query))
    ///     .collect();
    /// for result in client.step(items).await? {
    ///     println!("{:?}", result?.output);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn step(&self, items: Vec<StepItem>) -> Call<Vec<Result<StepAnswer, Error>>> {
        self.call(|inner, options| session::step(inner, options, items))
    }
}

async fn compute(
    inner: Arc<Inner>,
    options: CallOptions,
    request: ComputeRequest,
) -> Result<ComputeAnswer, Error> {
    let attempts = Attempts::new(&options, Twice::Harmless);
    if !inner.takes_no_streams()
        && let Some(chunks) = KeyChunks::worthwhile(&request)
    {
        let answer = retrying(attempts.anew(), |deadline| {
            stream::compute(&inner.transport, &request, chunks.clone(), deadline)
        })
        .await;
        match answer {
            Err(error) if stream::may_take_one_message(&error) => {
                if error.code() == Code::Unimplemented {
                    inner.found_no_streams();
                }
            }
            answer => return answer,
        }
    }
    let message = OutMessage::new(request.message())?;
    let answer = retrying(attempts, |deadline| {
        inner.transport.unary(COMPUTE, &message, deadline)
    })
    .await?;
    ComputeAnswer::from_wire(answer, &request)
}

async fn create_session(
    inner: Arc<Inner>,
    options: CallOptions,
    id: String,
    config: SessionConfig,
) -> Result<Session, Error> {
    // Only a session with an id may be created twice.
    let twice = if id.is_empty() {
        Twice::Harmful
    } else {
        Twice::Harmless
    };
    let request = pb::CreateSessionRequest {
        id,
        config: Some(config.to_wire()),
    };
    let answer: pb::CreateSessionResponse = inner.unary(&options, twice, CREATE, &request).await?;
    Session::new(&inner, SessionInfo::from_wire(answer.session)?)
}

async fn get_session(
    inner: &Inner,
    options: &CallOptions,
    id: String,
) -> Result<SessionInfo, Error> {
    let request = pb::GetSessionRequest { id, incarnation: 0 };
    let answer: pb::GetSessionResponse = inner
        .unary(options, Twice::Harmless, GET_SESSION, &request)
        .await?;
    SessionInfo::from_wire(answer.session)
}

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
    tls: Tls,
    token: Option<String>,
    token_file: Option<PathBuf>,
    allow_plaintext_token: bool,
    max_receive_bytes: Option<usize>,
    options: CallOptions,
}

/// Where PEM comes from.
enum Pem {
    File(PathBuf),
    Text(Vec<u8>),
}

#[derive(Default)]
struct Tls {
    wanted: bool,
    ca: Option<Pem>,
    certificate: Option<Pem>,
    key: Option<Pem>,
    server_name: Option<String>,
}

impl fmt::Debug for ClientBuilder {
    /// Without token and keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("target", &self.target)
            .field("tls", &self.tls.wanted)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    fn new(target: String) -> Self {
        Self {
            target,
            tls: Tls::default(),
            token: None,
            token_file: None,
            allow_plaintext_token: false,
            max_receive_bytes: None,
            options: CallOptions {
                timeout: Duration::from_secs(60),
                max_attempts: 4,
            },
        }
    }

    fn with_tls(mut self, change: impl FnOnce(&mut Tls)) -> Self {
        self.tls.wanted = true;
        change(&mut self.tls);
        self
    }

    /// Encrypts, and trusts the authorities that the system trusts.
    pub fn tls(self) -> Self {
        self.with_tls(|_| {})
    }

    /// Encrypts, and trusts the authorities in this PEM file instead. Files of TLS
    /// are read once, by [`build`](Self::build).
    pub fn tls_ca(self, file: impl AsRef<Path>) -> Self {
        self.with_tls(|tls| tls.ca = Some(Pem::File(file.as_ref().to_owned())))
    }

    /// As [`tls_ca`](Self::tls_ca), with the PEM itself.
    pub fn tls_ca_pem(self, pem: impl Into<Vec<u8>>) -> Self {
        self.with_tls(|tls| tls.ca = Some(Pem::Text(pem.into())))
    }

    /// The client's own certificate, with its chain, and its key, for a server that
    /// asks for one: PEM files.
    pub fn tls_identity(self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.with_tls(|tls| {
            tls.certificate = Some(Pem::File(certificate.as_ref().to_owned()));
            tls.key = Some(Pem::File(key.as_ref().to_owned()));
        })
    }

    /// As [`tls_identity`](Self::tls_identity), with the PEM itself.
    pub fn tls_identity_pem(
        self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.with_tls(|tls| {
            tls.certificate = Some(Pem::Text(certificate.into()));
            tls.key = Some(Pem::Text(key.into()));
        })
    }

    /// Encrypts, and wants a certificate for this name in place of the target's.
    pub fn tls_server_name(self, name: impl Into<String>) -> Self {
        self.with_tls(|tls| tls.server_name = Some(name.into()))
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
    /// [`Call::timeout`] is that of one call.
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
        let encrypted = self.tls.wanted || https;
        let only_loopback = token.is_some() && !encrypted && !self.allow_plaintext_token;
        if only_loopback && target.is_remote_address() {
            return wrong(
                "token: it would travel in plain text beyond loopback: use TLS (or \
                 allow_plaintext_token)",
            );
        }
        #[cfg(feature = "tls")]
        let connection = {
            let tls = encrypted.then(|| self.tls.config(&target)).transpose()?;
            Connection::new(target, tls, only_loopback)?
        };
        #[cfg(not(feature = "tls"))]
        let connection = {
            if encrypted {
                return wrong("tls: this crate was built without its feature \"tls\"");
            }
            Connection::new(target, only_loopback)?
        };
        Ok(Client {
            inner: Arc::new(Inner {
                target: self.target,
                transport: Arc::new(Transport::new(connection, token, self.max_receive_bytes)),
                steps: StepStreams::default(),
                leases: LeaseRenewer::default(),
                options: self.options,
                no_streams_until: Mutex::new(None),
            }),
        })
    }
}

#[cfg(feature = "tls")]
impl Tls {
    fn config(self, target: &Target) -> Result<tonic::transport::ClientTlsConfig, Error> {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};
        let mut config = ClientTlsConfig::new();
        config = match self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca.read("tls_ca")?)),
            None => config.with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (self.certificate, self.key) {
            let certificate = certificate.read("tls_identity")?;
            config = config.identity(Identity::from_pem(certificate, key.read("tls_identity")?));
        }
        let name = match (self.server_name, target) {
            (Some(name), _) => name,
            (None, Target::Tcp { host, .. }) => host.clone(),
            (None, Target::Unix(_)) => "localhost".to_owned(),
        };
        Ok(config.domain_name(name))
    }
}

#[cfg(feature = "tls")]
impl Pem {
    fn read(self, option: &str) -> Result<Vec<u8>, Error> {
        let (path, text) = match self {
            Self::Text(text) => (None, text),
            Self::File(path) => {
                let text = std::fs::read(&path).map_err(|e| {
                    let text = format!("{option}: {}: {e}", path.display());
                    Error::local(Code::InvalidArgument, text).with_source(e)
                })?;
                (Some(path), text)
            }
        };
        if !text.windows(11).any(|window| window == b"-----BEGIN ") {
            let name = path.map_or_else(String::new, |path| format!("{}: ", path.display()));
            return Err(Error::local(
                Code::InvalidArgument,
                format!("{option}: {name}is no PEM"),
            ));
        }
        Ok(text)
    }
}
