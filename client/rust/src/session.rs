//! Sessions: keys and values that stay in the server between calls.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use crate::append::append;
use crate::attend::{Attend, AttendAnswer};
use crate::call::{Call, CallOptions};
use crate::client::Inner;
use crate::error::Error;
use crate::fork::{Fork, fork, fork_one};
use crate::pb;
use crate::retry::Twice;
use crate::rpc::Method;
use crate::session_config::{SessionConfig, SessionInfo};
use crate::session_state::SessionState;
use crate::step::{StepItem, step_one};
use crate::tensor::Tensor;

const DELETE: Method = Method::plain("/attention.v1.SessionService/DeleteSession");
const TRUNCATE: Method = Method::plain("/attention.v1.SessionService/TruncateSession");

/// A session and the client that it is used by.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) client: Arc<Inner>,
    pub(crate) state: Arc<SessionState>,
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
/// to it, and appends and attends only where that is still so
/// ([`Attend::any_length`] attends to whatever is there). Else nothing is done:
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
    pub(crate) handle: Handle,
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
        Call::new(handle.client.options.clone(), move |options| {
            start(handle, options)
        })
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

pub(crate) fn layer_number(layer: usize) -> i64 {
    layer.try_into().unwrap_or(i64::MAX)
}
