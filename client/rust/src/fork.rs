//! Sessions made of others.

use std::sync::Arc;

use tokio::time::Instant;

use crate::call::CallOptions;
use crate::client::Inner;
use crate::error::Error;
use crate::pb;
use crate::retry::Twice;
use crate::rpc::Method;
use crate::session::{Handle, Session};
use crate::session_config::SessionInfo;

const FORK: Method = Method::plain("/attention.v1.SessionService/ForkSessions");

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

pub(crate) async fn fork_one(
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
