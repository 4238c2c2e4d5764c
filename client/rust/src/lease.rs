//! Sessions that nothing uses are kept alive for as long as their objects live.

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::error::Error;
use crate::pb;
use crate::retry::{Attempt, within};
use crate::rpc::{Method, OutMessage, Transport};
use crate::session_state::SessionState;

pub(crate) const GET_SESSION: Method = Method::plain("/attention.v1.SessionService/GetSession");

/// Renewals at one time.
const MOST_CALLS: usize = 64;

/// One task per client, which begins with the first session and ends with the
/// client and its sessions.
#[derive(Default)]
pub(crate) struct LeaseRenewer {
    sessions: Arc<Sessions>,
    task: OnceLock<AbortHandle>,
}

#[derive(Default)]
struct Sessions {
    /// Those that were added since the task looked last.
    added: Mutex<Vec<Weak<SessionState>>>,
    changed: Notify,
}

impl LeaseRenewer {
    /// Renews the session's lease for as long as its object lives. To be called in
    /// a runtime.
    pub(crate) fn add(&self, session: &Arc<SessionState>, transport: &Arc<Transport>) {
        self.sessions.lock().push(Arc::downgrade(session));
        self.sessions.changed.notify_one();
        self.task.get_or_init(|| {
            let run = run(Arc::clone(&self.sessions), Arc::clone(transport));
            tokio::spawn(run).abort_handle()
        });
    }
}

impl Drop for LeaseRenewer {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<SessionState>>> {
        self.added.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A session, and when to look at it next.
struct Planned {
    session: Weak<SessionState>,
    time: Instant,
}

async fn run(sessions: Arc<Sessions>, transport: Arc<Transport>) {
    let mut planned: Vec<Planned> = Vec::new();
    let mut calls = JoinSet::new();
    loop {
        let added = std::mem::take(&mut *sessions.lock());
        planned.extend(added.into_iter().filter_map(|session| {
            let time = next_time(&*session.upgrade()?);
            Some(Planned { session, time })
        }));
        planned.retain(|plan| plan.session.upgrade().is_some_and(|s| s.check().is_ok()));
        let now = Instant::now();
        let mut i = 0;
        while i < planned.len() && calls.len() < MOST_CALLS {
            let plan = &mut planned[i];
            let Some(session) = plan.session.upgrade().filter(|_| plan.time <= now) else {
                i += 1;
                continue;
            };
            plan.time = next_time(&session);
            if plan.time > now {
                i += 1;
                continue;
            }
            let plan = planned.swap_remove(i);
            calls.spawn(renew(plan.session, Arc::clone(&transport)));
        }
        let next = planned.iter().map(|plan| plan.time).min();
        let idle = calls.len() >= MOST_CALLS;
        tokio::select! {
            () = sessions.changed.notified() => {}
            Some(done) = calls.join_next() => {
                planned.extend(done.ok().flatten());
            }
            () = sleep_until(next), if !idle => {}
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// When nothing will have used the session for a third of its lease, or up to a
/// quarter less.
fn next_time(session: &SessionState) -> Instant {
    // Without randomness they are all renewed at once.
    let random = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
    let interval = (session.lease() / 3).mul_f64(0.75 + 0.25 * random);
    session.last_used() + interval.min(Duration::from_secs(24 * 3600))
}

async fn renew(session: Weak<SessionState>, transport: Arc<Transport>) -> Option<Planned> {
    let state = session.upgrade()?;
    let begun = Instant::now();
    let timeout = (state.lease() / 3).clamp(Duration::from_secs(1), Duration::from_secs(10));
    let result = get(&state, &transport, begun + timeout).await;
    state.call_ended(&result, begun);
    let time = match result {
        Ok(_) => next_time(&state),
        // Soon again: there is time for some more attempts.
        Err(_) => Instant::now() + state.lease() / 12,
    };
    Some(Planned { session, time })
}

async fn get(
    session: &SessionState,
    transport: &Transport,
    deadline: Instant,
) -> Result<pb::GetSessionResponse, Error> {
    let message = OutMessage::of(&pb::GetSessionRequest {
        id: session.id().to_owned(),
        incarnation: session.incarnation(),
    })?;
    let attempt = Attempt {
        deadline,
        request_id: None,
    };
    within(deadline, transport.unary(GET_SESSION, &message, attempt)).await
}
