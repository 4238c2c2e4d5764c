//! The client.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::builder::ClientBuilder;
use crate::call::{Call, CallOptions};
use crate::capabilities::{Capabilities, Health, HealthCheckRequest, HealthCheckResponse};
use crate::compute::{ComputeAnswer, ComputeRequest};
use crate::error::{Code, Error};
use crate::fork::{self, Fork};
use crate::lease::{GET_SESSION, LeaseRenewer};
use crate::pb;
use crate::retry::{Attempts, Twice, retrying};
use crate::rpc::{Method, OutMessage, Transport};
use crate::session::{self, Session};
use crate::session_config::{SessionConfig, SessionInfo};
use crate::session_state::random_id;
use crate::step::{self, StepAnswer, StepItem};
use crate::step_streams::StepStreams;
use crate::stream::{self, KeyChunks};

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
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), attention_client::Error> {
/// # // Runs where a server is named, as the tests do.
/// # let Ok(server) = std::env::var("ATTENTION_TEST_SERVER") else { return Ok(()) };
/// use attention_client::{Client, ComputeRequest, Tensor};
///
/// let client = Client::new("127.0.0.1:50051")?;
/// # let client = Client::new(server)?;
/// let eye = Tensor::new([2, 2], vec![1.0_f32, 0.0, 0.0, 1.0])?;
/// let answer = client.compute(ComputeRequest::new(&eye, &eye, &eye)).await?;
/// println!("{:?}", answer.output.as_slice::<f32>()?);
/// // [0.66976154, 0.33023846, 0.33023846, 0.66976154]
/// # assert_eq!(answer.output.as_slice::<f32>()?, [0.66976154, 0.33023846, 0.33023846, 0.66976154]);
/// # Ok(())
/// # }
/// ```
///
/// The connection is made by the first call, and anew after it was lost. It belongs
/// to the tokio runtime of that call: use one client per runtime.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
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
    pub(crate) fn new(target: String, transport: Transport, options: CallOptions) -> Self {
        Self {
            target,
            transport: Arc::new(transport),
            steps: StepStreams::default(),
            leases: LeaseRenewer::default(),
            options,
            no_streams_until: Mutex::new(None),
        }
    }

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
        retrying(attempts, |attempt| {
            self.transport.unary(method, &message, attempt)
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
        Call::new(inner.options.clone(), move |options| start(inner, options))
    }

    /// Computes attention. A request with more than 4 MiB of keys and values for few
    /// query rows is sent in pieces, by `StreamAttention`, and computed meanwhile,
    /// unless it asks for scores or present keys. The answer's bits are the same.
    ///
    /// ```
    /// # use attention_client::{Causal, Client, ComputeRequest, Scores, Tensor};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), attention_client::Error> {
    /// # // Runs where a server is named, as the tests do.
    /// # let Ok(server) = std::env::var("ATTENTION_TEST_SERVER") else { return Ok(()) };
    /// # let client = Client::new(server)?;
    /// # let q = Tensor::new([2, 2], vec![1.0_f32, 0.0, 0.0, 1.0])?;
    /// # let (k, v) = (&q, &q);
    /// let request = ComputeRequest::new(&q, k, v)
    ///     .causal(Causal::TopLeft)
    ///     .return_scores(Scores::Weights);
    /// let answer = client.compute(request).await?;
    /// # assert_eq!(answer.scores.unwrap().as_slice::<f32>()?[..2], [1.0, 0.0]);
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
        self.call(|inner, options| fork::fork(inner, options, forks))
    }

    /// Appends to and attends over layers of several sessions of this client, in one
    /// message: a decode step of one layer for all sequences. At most 1024 items,
    /// each for itself: one result for each, in their order. A layer may be named
    /// twice only by items that do not append.
    ///
    /// ```
    /// # use attention_client::{Client, SessionConfig, StepItem, Tensor};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), attention_client::Error> {
    /// # // Runs where a server is named, as the tests do.
    /// # let Ok(server) = std::env::var("ATTENTION_TEST_SERVER") else { return Ok(()) };
    /// # let client = Client::new(server)?;
    /// # let sessions = [client.create_session(SessionConfig::new(1, 2)).await?];
    /// # let token = Tensor::new([1, 1, 2], vec![1.0_f32, 0.0])?;
    /// # let query = token.clone();
    /// let items = sessions
    ///     .iter()
    ///     .map(|session| StepItem::new(session, 0).append(&token, &token).attend(&query))
    ///     .collect();
    /// for result in client.step(items).await? {
    ///     println!("{:?}", result?.output);
    /// }
    /// # sessions[0].delete().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn step(&self, items: Vec<StepItem>) -> Call<Vec<Result<StepAnswer, Error>>> {
        self.call(|inner, options| step::step(inner, options, items))
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
        let answer = retrying(attempts.anew(), |attempt| {
            stream::compute(&inner.transport, &request, chunks.clone(), attempt)
        })
        .await;
        match answer {
            Err(error)
                if stream::may_take_one_message(&error) && stream::fits_one_message(&request) =>
            {
                if error.code() == Code::Unimplemented {
                    inner.found_no_streams();
                }
            }
            answer => return answer,
        }
    }
    let message = OutMessage::new(request.message())?;
    let answer = retrying(attempts, |attempt| {
        inner.transport.unary(COMPUTE, &message, attempt)
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
