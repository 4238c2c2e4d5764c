//! Sessions: keys and values that stay in the server between calls.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::axis::AxisView;
use crate::call::{Call, CallOptions};
use crate::client::Inner;
use crate::compute::Timing;
use crate::error::{Code, Error};
use crate::memory::Rope;
use crate::options::shared_options;
use crate::pb;
use crate::retry::{Attempts, Twice, retrying};
use crate::rpc::{Method, OutMessage};
use crate::session_state::{LayerClaim, SessionState, UnfinishedAppend, digest_of};
use crate::steps::exchange_by;
use crate::tensor::{DataType, Tensor};

const APPEND: Method = Method::plain("/attention.v1.SessionService/AppendKeyValues");
const DELETE: Method = Method::plain("/attention.v1.SessionService/DeleteSession");
const FORK: Method = Method::plain("/attention.v1.SessionService/ForkSessions");
const TRUNCATE: Method = Method::plain("/attention.v1.SessionService/TruncateSession");

/// An append of more bytes is sent in several calls.
const APPEND_BYTES: usize = 8 << 20;
/// The most items of a step.
const MOST_ITEMS: usize = 1024;

/// What a session holds.
///
/// ```
/// use attention_client::{DataType, SessionConfig};
///
/// let config = SessionConfig::new(8, 128)
///     .layers(32)
///     .data_type(DataType::BFloat16)
///     .retain_window([1024]);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SessionConfig {
    /// Layers of the model, numbered from 0.
    pub layers: usize,
    /// Hkv.
    pub kv_heads: usize,
    /// D.
    pub head_size: usize,
    /// Dv. None: as D.
    pub value_head_size: Option<usize>,
    /// The type that keys and values are stored as. None: FLOAT32.
    pub data_type: Option<DataType>,
    /// Whether values are the first columns of keys, as in latent attention (MLA).
    pub value_is_key_prefix: bool,
    /// How long the session lives unused. None: as the server has it, a minute at
    /// most.
    pub lease: Option<Duration>,
    /// How many of the last tokens a query of each layer sees; one number for all
    /// layers or one for each. Empty, and 0: all.
    pub retain_window: Vec<usize>,
    /// How far layers with such a window can be truncated, at least. None: 256.
    pub rollback_tokens: Option<usize>,
}

impl SessionConfig {
    /// One layer, of so many key/value heads of this size.
    #[must_use]
    pub fn new(kv_heads: usize, head_size: usize) -> Self {
        Self {
            layers: 1,
            kv_heads,
            head_size,
            value_head_size: None,
            data_type: None,
            value_is_key_prefix: false,
            lease: None,
            retain_window: Vec::new(),
            rollback_tokens: None,
        }
    }

    /// So many layers.
    #[must_use]
    pub fn layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// Values of another size than keys.
    #[must_use]
    pub fn value_head_size(mut self, size: usize) -> Self {
        self.value_head_size = Some(size);
        self
    }

    /// The type that keys and values are stored as. What is appended may be of
    /// another float type, and is rounded.
    #[must_use]
    pub fn data_type(mut self, data_type: DataType) -> Self {
        self.data_type = Some(data_type);
        self
    }

    /// Values are the first columns of keys: see [`Session::append_keys`].
    #[must_use]
    pub fn value_is_key_prefix(mut self) -> Self {
        self.value_is_key_prefix = true;
        self
    }

    /// How long the session lives unused.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Layers that look back no further than these windows, which release the tokens
    /// before them: one number for all layers or one for each, 0 for all tokens. They
    /// are asked with a `window` of at most one less.
    #[must_use]
    pub fn retain_window(mut self, windows: impl Into<Vec<usize>>) -> Self {
        self.retain_window = windows.into();
        self
    }

    /// How far layers with such a window can be truncated, at least.
    #[must_use]
    pub fn rollback_tokens(mut self, tokens: usize) -> Self {
        self.rollback_tokens = Some(tokens);
        self
    }

    pub(crate) fn to_wire(&self) -> pb::SessionConfig {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        pb::SessionConfig {
            num_layers: number(self.layers),
            kv_heads: number(self.kv_heads),
            head_size: number(self.head_size),
            value_head_size: self.value_head_size.map_or(0, number),
            data_type: self.data_type.map_or(0, DataType::to_wire),
            value_is_key_prefix: self.value_is_key_prefix,
            lease: self.lease.and_then(|lease| lease.try_into().ok()),
            retain_window: self.retain_window.iter().map(|&n| number(n)).collect(),
            rollback_tokens: self.rollback_tokens.map(number),
        }
    }

    fn from_wire(config: pb::SessionConfig) -> Self {
        Self {
            layers: count(config.num_layers),
            kv_heads: count(config.kv_heads),
            head_size: count(config.head_size),
            value_head_size: Some(count(config.value_head_size)),
            data_type: DataType::from_wire(config.data_type),
            value_is_key_prefix: config.value_is_key_prefix,
            lease: config.lease.and_then(|lease| lease.try_into().ok()),
            retain_window: counts(config.retain_window),
            rollback_tokens: config.rollback_tokens.map(count),
        }
    }
}

fn count(number: i64) -> usize {
    number.try_into().unwrap_or(0)
}

fn counts(numbers: Vec<i64>) -> Vec<usize> {
    numbers.into_iter().map(count).collect()
}

/// What the server tells of a session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its name.
    pub id: String,
    /// Tells the session from every other one that had or will have its id.
    pub incarnation: u64,
    /// With every default filled in.
    pub config: SessionConfig,
    /// Tokens of each layer.
    pub lengths: Vec<usize>,
    /// The first token that each layer keeps.
    pub first_tokens: Vec<usize>,
    /// The least length above 0 that each layer can be truncated to.
    pub least_lengths: Vec<usize>,
    /// When the lease is over unless something uses the session, by the server's
    /// clock.
    pub expires: Option<SystemTime>,
}

impl SessionInfo {
    pub(crate) fn from_wire(session: Option<pb::Session>) -> Result<Self, Error> {
        let session = session.ok_or_else(|| Error::malformed("session is missing"))?;
        let config = session
            .config
            .ok_or_else(|| Error::malformed("session.config is missing"))?;
        Ok(Self {
            id: session.id,
            incarnation: session.incarnation,
            config: SessionConfig::from_wire(config),
            lengths: counts(session.lengths),
            first_tokens: counts(session.first_tokens),
            least_lengths: counts(session.least_lengths),
            expires: session.expire_time.and_then(|time| time.try_into().ok()),
        })
    }
}

/// A query over a session's layer, and how it attends. A [`Tensor`] alone is one,
/// with every default: queries are the last tokens of the sequence, and see all
/// tokens up to their own.
#[derive(Clone, Debug)]
pub struct Attend {
    query: Tensor,
    pub(crate) mask: Option<Tensor>,
    indices: Option<Tensor>,
    row_sinks: Option<Tensor>,
    pub(crate) options: pb::AttentionOptions,
    not_causal: bool,
    mask_begin: i64,
}

impl Attend {
    /// A query (Hq, S, D), of the type that the session stores; FLOAT32 where that
    /// is INT8 or FLOAT8_E4M3.
    #[must_use]
    pub fn new(query: impl Into<Tensor>) -> Self {
        Self {
            query: query.into(),
            mask: None,
            indices: None,
            row_sinks: None,
            options: pb::AttentionOptions::default(),
            not_causal: false,
            mask_begin: 0,
        }
    }

    shared_options!();

    /// Whether this can be the answer to the query.
    fn fits(&self, output: &Tensor) -> bool {
        let (query, output_shape) = (self.query.shape(), output.shape());
        output.data_type() == self.query.data_type()
            && output_shape.len() == query.len()
            && output_shape.iter().zip(query).take(2).all(|(a, b)| a == b)
    }

    /// Every query sees every token, but for what mask and options hide.
    #[must_use]
    pub fn not_causal(mut self) -> Self {
        self.not_causal = true;
        self
    }

    /// The token of the mask's first column: a multiple of 256, at most the first
    /// token that a query sees.
    #[must_use]
    pub fn mask_begin(mut self, token: i64) -> Self {
        self.mask_begin = token;
        self
    }
}

impl<T: Into<Tensor>> From<T> for Attend {
    fn from(query: T) -> Self {
        Self::new(query)
    }
}

/// The answer to a query over a session's layer. What was not asked for is absent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AttendAnswer {
    /// (Hq, S, Dv), of the query's type.
    pub output: Tensor,
    /// (Hq, S).
    pub log_sum_exp: Option<Tensor>,
    /// (Hq, S, T).
    pub scores: Option<Tensor>,
    /// The layer's length, T: what was attended to.
    pub length: usize,
    /// How long the server took for the whole step.
    pub timing: Timing,
}

/// What became of an item of a step.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepAnswer {
    /// (Hq, S, Dv); none where nothing was attended to.
    pub output: Option<Tensor>,
    /// (Hq, S).
    pub log_sum_exp: Option<Tensor>,
    /// (Hq, S, T).
    pub scores: Option<Tensor>,
    /// The layer's length, with the tokens of this item.
    pub length: usize,
    /// How long the server took for the whole step.
    pub timing: Timing,
}

impl StepAnswer {
    fn into_attend(self) -> Result<AttendAnswer, Error> {
        Ok(AttendAnswer {
            output: self
                .output
                .ok_or_else(|| Error::malformed("output is missing"))?,
            log_sum_exp: self.log_sum_exp,
            scores: self.scores,
            length: self.length,
            timing: self.timing,
        })
    }
}

/// A part of [`Client::step`](crate::Client::step): an append to a session's layer,
/// a query over it, or both; then the new tokens are attended to, too.
#[derive(Clone, Debug)]
pub struct StepItem {
    session: Handle,
    layer: usize,
    key: Option<Tensor>,
    value: Option<Tensor>,
    attend: Option<Attend>,
}

impl StepItem {
    /// Of this layer. Does nothing by itself.
    #[must_use]
    pub fn new(session: &Session, layer: usize) -> Self {
        Self {
            session: session.handle.clone(),
            layer,
            key: None,
            value: None,
            attend: None,
        }
    }

    /// Appends these keys, (Hkv, n, D), and values, (Hkv, n, Dv).
    #[must_use]
    pub fn append(mut self, key: impl Into<Tensor>, value: impl Into<Tensor>) -> Self {
        self.key = Some(key.into());
        self.value = Some(value.into());
        self
    }

    /// Appends these keys, where values are their first columns.
    #[must_use]
    pub fn append_keys(mut self, key: impl Into<Tensor>) -> Self {
        self.key = Some(key.into());
        self.value = None;
        self
    }

    /// Attends to the layer.
    #[must_use]
    pub fn attend(mut self, attend: impl Into<Attend>) -> Self {
        self.attend = Some(attend.into());
        self
    }

    fn message(&self, claim: Option<&LayerClaim>) -> Rope {
        let state = &self.session.state;
        let attend = self.attend.as_ref();
        let options = attend.map(|attend| &attend.options);
        let mut message = Rope::of(&pb::StepItem {
            id: state.id().to_owned(),
            layer: layer_number(self.layer),
            expected_length: match claim {
                Some(claim) => claim.expected_length(),
                None => state.expected_length(self.layer),
            },
            request_id: claim.map(LayerClaim::request_id).unwrap_or_default(),
            options: options
                .filter(|&options| *options != pb::AttentionOptions::default())
                .cloned(),
            not_causal: attend.is_some_and(|attend| attend.not_causal),
            mask_begin: attend.map_or(0, |attend| attend.mask_begin),
            incarnation: state.incarnation(),
            ..Default::default()
        });
        for (field, tensor) in [
            (5, self.key.as_ref()),
            (6, self.value.as_ref()),
            (7, attend.map(|attend| &attend.query)),
            (8, attend.and_then(|attend| attend.mask.as_ref())),
            (13, attend.and_then(|attend| attend.indices.as_ref())),
            (14, attend.and_then(|attend| attend.row_sinks.as_ref())),
        ] {
            if let Some(tensor) = tensor {
                message.tensor(field, tensor);
            }
        }
        message
    }

    fn decode(&self, result: pb::StepResult, timing: Timing) -> Result<StepAnswer, Error> {
        if let Some(code) = Code::from_wire(result.code) {
            return Err(Error::from_status(
                code,
                result.message,
                &result.status_details,
            ));
        }
        let optional = |name: &str, tensor: Option<pb::Tensor>| {
            tensor
                .map(|tensor| Tensor::from_wire(name, tensor))
                .transpose()
        };
        let output = optional("output", result.output)?;
        match (&self.attend, &output) {
            (None, None) => {}
            (Some(attend), Some(output)) if attend.fits(output) => {}
            _ => return Err(Error::malformed(format!("output {output:?}"))),
        }
        Ok(StepAnswer {
            output,
            log_sum_exp: optional("log_sum_exp", result.log_sum_exp)?,
            scores: optional("scores", result.scores)?,
            length: count(result.length),
            timing,
        })
    }
}

fn layer_number(layer: usize) -> i64 {
    layer.try_into().unwrap_or(i64::MAX)
}

/// A session and the client that it is used by.
#[derive(Clone)]
pub(crate) struct Handle {
    client: Arc<Inner>,
    state: Arc<SessionState>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state.id())
    }
}

/// A session: keys and values of one sequence, which stay in the server between
/// calls, so that a decode step sends only the new token.
///
/// ```
/// # use attention_client::{Client, SessionConfig, Tensor};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), attention_client::Error> {
/// # // Runs where a server is named, as the tests do.
/// # let Ok(server) = std::env::var("ATTENTION_TEST_SERVER") else { return Ok(()) };
/// # let client = Client::new(server)?;
/// # let key = Tensor::new([8, 5, 128], vec![1.0_f32; 8 * 5 * 128])?;
/// # let value = key.clone();
/// # let token = Tensor::new([8, 1, 128], vec![1.0_f32; 8 * 128])?;
/// # let query = Tensor::new([32, 1, 128], vec![1.0_f32; 32 * 128])?;
/// let session = client.create_session(SessionConfig::new(8, 128).layers(32)).await?;
/// for layer in 0..32 {
///     session.append(layer, &key, &value).await?; // The prompt: (8, n, 128) each.
/// }
/// for layer in 0..32 {
///     let answer = session.step(layer, &token, &token, &query).await?; // (32, 1, 128).
///     println!("{:?}", answer.output);
/// }
/// session.delete().await?;
/// # Ok(())
/// # }
/// ```
///
/// **Lengths.** An object knows how long each layer is, from what the server answered
/// to it, and appends and attends only where that is still so. Else nothing is done:
/// the call fails with `Aborted`, and [`Error::length`] is the true length.
/// [`refresh`](Self::refresh) takes over the server's lengths. Several objects may
/// be open of one session; each knows only its own appends.
///
/// **Trying again.** Each append has a request id. Where a call fails without an
/// answer (`DeadlineExceeded`, `Unavailable`, dropped), nobody knows whether its
/// tokens were appended. To append the same tokens with the same object once more is
/// safe: they are there once.
///
/// **Leases.** While the object lives, a task of the client renews the session's
/// lease. To drop the object deletes nothing: the session lives on until its lease
/// is over, and [`Client::open_session`](crate::Client::open_session) finds it.
/// [`delete`](Self::delete) ends it. (Rust has no destructors that can wait for a
/// server.)
///
/// **Concurrency.** An object may be used by any number of tasks at once. While an
/// append to a layer is under way, another one to it fails at once with `Aborted`.
pub struct Session {
    handle: Handle,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id())
            .field("lengths", &self.lengths())
            .finish()
    }
}

impl Session {
    pub(crate) fn new(client: &Arc<Inner>, info: SessionInfo) -> Result<Self, Error> {
        let state = Arc::new(SessionState::new(info)?);
        client.leases.add(&state, &client.transport);
        Ok(Self {
            handle: Handle {
                client: Arc::clone(client),
                state,
            },
        })
    }

    fn state(&self) -> &SessionState {
        &self.handle.state
    }

    fn call<T, F, Fut>(&self, start: F) -> Call<T>
    where
        F: FnOnce(Handle, CallOptions) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let handle = self.handle.clone();
        Call::new(handle.client.options, move |options| start(handle, options))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        self.state().id()
    }

    /// Tells the session from every other one that had or will have its id.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.state().incarnation()
    }

    /// With every default filled in.
    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        &self.state().info().config
    }

    /// The tokens of each layer, as far as this object knows.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        self.state().lengths()
    }

    /// The tokens of a layer, as far as this object knows; `None` if the session has
    /// no such layer.
    #[must_use]
    pub fn length(&self, layer: usize) -> Option<usize> {
        self.state().length(layer)
    }

    /// Adds tokens to a layer: keys (Hkv, n, D) and values (Hkv, n, Dv). The answer
    /// is the layer's length.
    ///
    /// More than 8 MiB are sent in several calls, each of which is done whole or not
    /// at all. If one fails, those before it stay, and [`length`](Self::length)
    /// counts their tokens. Append the same tokens once more, all of them, to go on:
    /// what is there is not sent again. Or truncate; or append something else, which
    /// goes behind those that are there.
    pub fn append(
        &self,
        layer: usize,
        key: impl Into<Tensor>,
        value: impl Into<Tensor>,
    ) -> Call<usize> {
        let (key, value) = (key.into(), Some(value.into()));
        self.call(move |handle, options| append(handle, options, layer, key, value))
    }

    /// Adds tokens to a layer of a session whose values are the first columns of its
    /// keys ([`SessionConfig::value_is_key_prefix`]).
    pub fn append_keys(&self, layer: usize, key: impl Into<Tensor>) -> Call<usize> {
        let key = key.into();
        self.call(move |handle, options| append(handle, options, layer, key, None))
    }

    /// Attends to all tokens that a layer has. The query is (Hq, S, D).
    pub fn attend(&self, layer: usize, attend: impl Into<Attend>) -> Call<AttendAnswer> {
        let item = StepItem::new(self, layer).attend(attend);
        self.call(|handle, options| step_one(handle, options, item))
    }

    /// Appends, then attends to all tokens, the new ones too, in one message: both
    /// or, on an error, neither.
    pub fn step(
        &self,
        layer: usize,
        key: impl Into<Tensor>,
        value: impl Into<Tensor>,
        attend: impl Into<Attend>,
    ) -> Call<AttendAnswer> {
        let item = StepItem::new(self, layer).append(key, value).attend(attend);
        self.call(|handle, options| step_one(handle, options, item))
    }

    /// As [`step`](Self::step), of a session whose values are the first columns of
    /// its keys.
    pub fn step_keys(
        &self,
        layer: usize,
        key: impl Into<Tensor>,
        attend: impl Into<Attend>,
    ) -> Call<AttendAnswer> {
        let item = StepItem::new(self, layer).append_keys(key).attend(attend);
        self.call(|handle, options| step_one(handle, options, item))
    }

    /// A new session with the tokens of this one, which takes no memory for them
    /// until the two part. The server chooses its id. Not tried again where nobody
    /// knows whether it was done.
    pub fn fork(&self) -> Call<Session> {
        let forks = vec![Fork::new(self)];
        self.call(|handle, options| fork_one(handle, options, forks))
    }

    /// As [`fork`](Self::fork), with this id.
    pub fn fork_as(&self, id: impl Into<String>) -> Call<Session> {
        let forks = vec![Fork::new(self).id(id)];
        self.call(|handle, options| fork_one(handle, options, forks))
    }

    /// So many forks, at most 128: all or none.
    pub fn fork_many(&self, count: usize) -> Call<Vec<Session>> {
        let forks = vec![Fork::new(self); count];
        self.call(|handle, options| async move {
            handle.state.check()?;
            fork(handle.client, options, forks).await
        })
    }

    /// Forgets the tokens of every layer from `length` on. An error, and nothing is
    /// changed, if a layer is shorter.
    pub fn truncate(&self, length: usize) -> Call<()> {
        self.call(move |handle, options| async move {
            let Handle { client, state } = handle;
            let request = pb::TruncateSessionRequest {
                id: state.id().to_owned(),
                length: length.try_into().unwrap_or(i64::MAX),
                incarnation: state.incarnation(),
            };
            let answer: pb::TruncateSessionResponse =
                named(&client, &state, &options, TRUNCATE, &request).await?;
            let session = answer
                .session
                .ok_or_else(|| Error::malformed("session is missing"))?;
            state.set_lengths(&session);
            Ok(())
        })
    }

    /// Takes over the lengths that the server has, and renews the lease.
    pub fn refresh(&self) -> Call<()> {
        self.call(|handle, options| async move {
            let Handle { client, state } = handle;
            let request = pb::GetSessionRequest {
                id: state.id().to_owned(),
                incarnation: state.incarnation(),
            };
            let method = crate::lease::GET_SESSION;
            let answer: pb::GetSessionResponse =
                named(&client, &state, &options, method, &request).await?;
            let session = answer
                .session
                .ok_or_else(|| Error::malformed("session is missing"))?;
            state.set_lengths(&session);
            Ok(())
        })
    }

    /// Ends the session. No error if it has ended before.
    pub fn delete(&self) -> Call<()> {
        self.call(|handle, options| async move {
            let Handle { client, state } = handle;
            // A session with the same id would be another.
            if state.check().is_err() {
                return Ok(());
            }
            delete(&client, &options, state.id(), state.incarnation()).await?;
            state.deleted();
            Ok(())
        })
    }
}

/// A call that names the session.
async fn named<A: prost::Message + Default>(
    client: &Inner,
    state: &SessionState,
    options: &CallOptions,
    method: Method,
    request: &impl prost::Message,
) -> Result<A, Error> {
    state.check()?;
    let begun = Instant::now();
    let answer = client
        .unary(options, Twice::Harmless, method, request)
        .await;
    state.call_ended(&answer, begun);
    answer
}

pub(crate) async fn delete(
    client: &Inner,
    options: &CallOptions,
    id: &str,
    incarnation: u64,
) -> Result<(), Error> {
    let request = pb::DeleteSessionRequest {
        id: id.to_owned(),
        incarnation,
    };
    let _: pb::DeleteSessionResponse = client
        .unary(options, Twice::Harmless, DELETE, &request)
        .await?;
    Ok(())
}

/// A fork to make with [`Client::fork_sessions`](crate::Client::fork_sessions).
#[derive(Clone, Debug)]
pub struct Fork {
    source: Handle,
    target: String,
}

impl Fork {
    /// Of this session. The server chooses the new one's id.
    #[must_use]
    pub fn new(source: &Session) -> Self {
        Self {
            source: source.handle.clone(),
            target: String::new(),
        }
    }

    /// The new session's id.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.target = id.into();
        self
    }
}

async fn fork_one(
    handle: Handle,
    options: CallOptions,
    forks: Vec<Fork>,
) -> Result<Session, Error> {
    let mut sessions = fork(handle.client, options, forks).await?;
    sessions.pop().ok_or_else(|| Error::malformed("no session"))
}

pub(crate) async fn fork(
    client: Arc<Inner>,
    options: CallOptions,
    forks: Vec<Fork>,
) -> Result<Vec<Session>, Error> {
    for fork in &forks {
        fork.source.state.check()?;
    }
    let request = pb::ForkSessionsRequest {
        forks: forks
            .iter()
            .map(|fork| pb::fork_sessions_request::Fork {
                source: fork.source.state.id().to_owned(),
                target: fork.target.clone(),
                source_incarnation: fork.source.state.incarnation(),
            })
            .collect(),
    };
    let begun = Instant::now();
    let answer: Result<pb::ForkSessionsResponse, _> =
        client.unary(&options, Twice::Harmful, FORK, &request).await;
    if let [fork] = &forks[..] {
        fork.source.state.call_ended(&answer, begun);
    }
    let sessions = answer?.sessions;
    if sessions.len() != forks.len() {
        return Err(Error::malformed(format!(
            "{} sessions for {} forks",
            sessions.len(),
            forks.len()
        )));
    }
    sessions
        .into_iter()
        .map(|session| Session::new(&client, SessionInfo::from_wire(Some(session))?))
        .collect()
}

/// Tokens [begin, end) of an append; none: all, in one message.
type Range = Option<(usize, usize)>;

/// How an append is cut, and the number of its tokens.
fn ranges_of(key: &Tensor, value: Option<&Tensor>) -> (Vec<Range>, usize) {
    let whole = (vec![None], 0);
    let bytes = key.bytes().len() + value.map_or(0, |value| value.bytes().len());
    let tokens = key.shape().get(1).copied().unwrap_or(0);
    let cut = |tensor: &Tensor| tensor.shape().len() == 3 && tensor.shape()[1] == tokens;
    if bytes <= APPEND_BYTES || tokens == 0 || !cut(key) || !value.is_none_or(cut) {
        return whole;
    }
    let per_call = (APPEND_BYTES / (bytes / tokens)).max(1);
    let ranges = (0..tokens)
        .step_by(per_call)
        .map(|begin| Some((begin, (begin + per_call).min(tokens))))
        .collect();
    (ranges, tokens)
}

async fn append(
    handle: Handle,
    options: CallOptions,
    layer: usize,
    key: Tensor,
    value: Option<Tensor>,
) -> Result<usize, Error> {
    let Handle { client, state } = handle;
    let claim = LayerClaim::of(&state, layer)?;
    let attempts = Attempts::new(&options, Twice::Append);
    let (ranges, tokens) = ranges_of(&key, value.as_ref());
    // The same tokens again go on where they ended.
    let before = claim.unfinished().filter(|before| {
        before.tokens == tokens && before.digest == digest_of(&key, value.as_ref())
    });
    // Dropped before the claim, also where the call is dropped.
    let mut progress = Progress {
        claim: &claim,
        key: &key,
        value: value.as_ref(),
        tokens,
        done: before.map_or(0, |before| before.done),
    };
    let mut length = 0;
    for range in ranges {
        if range.is_some_and(|(_, end)| end <= progress.done) {
            continue;
        }
        let begin = progress.done;
        let message = append_message(&state, &claim, layer, &key, value.as_ref(), range)?;
        let begun = Instant::now();
        let answer: Result<pb::AppendKeyValuesResponse, _> =
            retrying(attempts.anew(), |deadline| {
                client.transport.unary(APPEND, &message, deadline)
            })
            .await;
        state.call_ended(&answer, begun);
        match answer {
            Ok(answer) => length = count(answer.length),
            Err(error) if begin > 0 => {
                let text = format!(
                    "{}; the first {begin} of {tokens} tokens were appended",
                    error.message()
                );
                return Err(error.with_message(text));
            }
            Err(error) => return Err(error),
        }
        claim.appended(length);
        progress.done = range.map_or(tokens, |(_, end)| end);
    }
    Ok(length)
}

/// How far an append in several calls is. Where it ends half-way, that is noted for
/// another one of the same tokens.
struct Progress<'a> {
    claim: &'a LayerClaim,
    key: &'a Tensor,
    value: Option<&'a Tensor>,
    tokens: usize,
    done: usize,
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if (1..self.tokens).contains(&self.done) {
            self.claim.leave_unfinished(UnfinishedAppend {
                digest: digest_of(self.key, self.value),
                tokens: self.tokens,
                done: self.done,
            });
        }
    }
}

fn append_message(
    state: &SessionState,
    claim: &LayerClaim,
    layer: usize,
    key: &Tensor,
    value: Option<&Tensor>,
    range: Range,
) -> Result<OutMessage, Error> {
    let mut message = Rope::of(&pb::AppendKeyValuesRequest {
        id: state.id().to_owned(),
        layer: layer_number(layer),
        expected_length: claim.expected_length(),
        request_id: claim.request_id(),
        incarnation: state.incarnation(),
        ..Default::default()
    });
    for (field, tensor) in [(5, Some(key)), (6, value)] {
        let Some(tensor) = tensor else { continue };
        match range.and_then(|range| Some((range, AxisView::of(tensor, 1)?))) {
            Some(((begin, end), view)) => message.message(field, view.slice(begin, end)),
            None => message.tensor(field, tensor),
        }
    }
    OutMessage::new(message)
}

async fn step_one(
    handle: Handle,
    options: CallOptions,
    item: StepItem,
) -> Result<AttendAnswer, Error> {
    let mut answers = step(handle.client, options, vec![item]).await?;
    let answer = answers.pop().ok_or_else(|| Error::malformed("no result"))?;
    answer?.into_attend()
}

/// An item of a step while it is under way.
struct Sent {
    item: StepItem,
    claim: Option<LayerClaim>,
}

/// Sends the items in one message, and those that may be tried again once more.
pub(crate) async fn step(
    client: Arc<Inner>,
    options: CallOptions,
    items: Vec<StepItem>,
) -> Result<Vec<Result<StepAnswer, Error>>, Error> {
    if items.len() > MOST_ITEMS {
        return Err(Error::local(
            Code::InvalidArgument,
            format!("items: got {}, wanted at most {MOST_ITEMS}", items.len()),
        ));
    }
    let mut results: Vec<Option<Result<StepAnswer, Error>>> = Vec::with_capacity(items.len());
    let mut sent = Vec::with_capacity(items.len());
    for item in items {
        let claim = claim_for(&client, &item);
        let (claim, result) = match claim {
            Ok(claim) => (claim, None),
            Err(error) => (None, Some(Err(error))),
        };
        results.push(result);
        sent.push(Sent { item, claim });
    }
    let mut attempts = Attempts::new(&options, Twice::Append);
    let mut pending: Vec<usize> = (0..sent.len()).filter(|&i| results[i].is_none()).collect();
    while !pending.is_empty() {
        let message = step_message(&sent, &pending)?;
        let begun = Instant::now();
        let streams = &client.steps;
        let deadline = attempts.deadline();
        let answer = exchange_by(streams, &client.transport, &message, deadline).await;
        let answer = answer.and_then(|answer| {
            if answer.results.len() == pending.len() {
                return Ok(answer);
            }
            Err(Error::malformed(format!(
                "{} results for {} items",
                answer.results.len(),
                pending.len()
            )))
        });
        let again = match answer {
            Err(error) => {
                let Err(error) = attempts.after(error).await else {
                    continue;
                };
                // Where some items have an answer, that must not be lost.
                if results.iter().all(Option::is_none) {
                    return Err(error);
                }
                for &i in &pending {
                    results[i].get_or_insert_with(|| Err(error.clone()));
                }
                break;
            }
            Ok(answer) => {
                let timing = Timing::from_wire(answer.timing.as_ref());
                for (&i, result) in pending.iter().zip(answer.results) {
                    let result = take_result(&sent[i], result, timing, begun);
                    results[i] = Some(result);
                }
                pending.retain(|&i| {
                    let result = results[i].as_ref();
                    result.is_some_and(|result| match result {
                        Err(error) => attempts.may_follow(error),
                        Ok(_) => false,
                    })
                });
                // The one that is to wait longest.
                pending
                    .iter()
                    .filter_map(|&i| results[i].as_ref()?.as_ref().err())
                    .max_by_key(|error| error.retry_delay())
                    .cloned()
            }
        };
        let Some(error) = again else { break };
        if attempts.after(error).await.is_err() {
            break;
        }
    }
    let missing = || Err(Error::malformed("no result"));
    Ok(results
        .into_iter()
        .map(|result| result.unwrap_or_else(missing))
        .collect())
}

fn claim_for(client: &Arc<Inner>, item: &StepItem) -> Result<Option<LayerClaim>, Error> {
    let Handle {
        client: other,
        state,
    } = &item.session;
    if !Arc::ptr_eq(client, other) {
        return Err(Error::local(
            Code::InvalidArgument,
            "session: got one of another client",
        ));
    }
    state.check()?;
    match item.key {
        Some(_) => LayerClaim::of(state, item.layer).map(Some),
        None => Ok(None),
    }
}

fn step_message(sent: &[Sent], numbers: &[usize]) -> Result<OutMessage, Error> {
    let mut message = Rope::default();
    for &i in numbers {
        message.message(1, sent[i].item.message(sent[i].claim.as_ref()));
    }
    OutMessage::new(message)
}

fn take_result(
    sent: &Sent,
    result: pb::StepResult,
    timing: Timing,
    begun: Instant,
) -> Result<StepAnswer, Error> {
    let done = result.code == 0;
    let length = count(result.length);
    if done && let Some(claim) = &sent.claim {
        claim.appended(length);
    }
    let answer = sent.item.decode(result, timing);
    sent.item.session.state.call_ended(&answer, begun);
    answer
}
