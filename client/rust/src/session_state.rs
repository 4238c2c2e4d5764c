//! What a session object knows of its session.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Code, Error};
use crate::pb;
use crate::session_config::SessionInfo;
use crate::tensor::Tensor;

/// An append in several calls, of which not all were done.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct UnfinishedAppend {
    pub(crate) digest: u64,
    pub(crate) tokens: usize,
    /// The first so many of them are in the layer, at its end.
    pub(crate) done: usize,
}

/// Tells the tokens of one append from those of another, in this process.
pub(crate) fn digest_of(key: &Tensor, value: Option<&Tensor>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for tensor in [Some(key), value] {
        if let Some(tensor) = tensor {
            tensor.data_type().hash(&mut hasher);
            tensor.shape().hash(&mut hasher);
        }
        tensor.map(|tensor| tensor.bytes()).hash(&mut hasher);
    }
    hasher.finish()
}

/// Invariants:
///   1. At most one append per layer is under way.
///   2. A layer's request id stays the same until an append with it was answered
///      well, or the layer's length is told anew: an append whose outcome is not
///      known has the same id when it is tried again.
///   3. Once the session is gone it stays so.
pub(crate) struct SessionState {
    info: SessionInfo,
    /// What begins every request id: no other object has the same.
    nonce: String,
    known: Mutex<Known>,
}

struct Known {
    layers: Vec<Layer>,
    gone: Option<Error>,
    last_used: Instant,
}

#[derive(Default)]
struct Layer {
    length: usize,
    appending: bool,
    /// Request ids used up.
    appends: u64,
    unfinished: Option<UnfinishedAppend>,
}

impl SessionState {
    pub(crate) fn new(info: SessionInfo) -> Result<Self, Error> {
        if info.id.is_empty() || info.lengths.len() != info.config.layers {
            return Err(Error::malformed(format!(
                "session '{}' of {} layers with {} lengths",
                info.id,
                info.config.layers,
                info.lengths.len()
            )));
        }
        let layers = info.lengths.iter().map(|&length| Layer {
            length,
            ..Default::default()
        });
        let known = Known {
            layers: layers.collect(),
            gone: None,
            last_used: Instant::now(),
        };
        Ok(Self {
            info,
            nonce: random_id()?,
            known: Mutex::new(known),
        })
    }

    pub(crate) fn info(&self) -> &SessionInfo {
        &self.info
    }

    pub(crate) fn id(&self) -> &str {
        &self.info.id
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.info.incarnation
    }

    /// A server tells it always.
    pub(crate) fn lease(&self) -> Duration {
        let told = self.info.config.lease.filter(|lease| !lease.is_zero());
        told.unwrap_or(Duration::from_secs(60))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn lengths(&self) -> Vec<usize> {
        let known = self.known();
        known.layers.iter().map(|layer| layer.length).collect()
    }

    pub(crate) fn length(&self, layer: usize) -> Option<usize> {
        self.known().layers.get(layer).map(|layer| layer.length)
    }

    /// What a query expects: nothing while an append of this object may change it.
    pub(crate) fn expected_length(&self, layer: usize) -> Option<i64> {
        let known = self.known();
        let layer = known.layers.get(layer)?;
        (!layer.appending).then_some(layer.length as i64)
    }

    /// `NotFound` once the session is gone.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.known().gone {
            Some(gone) => Err(gone.clone()),
            None => Ok(()),
        }
    }

    /// To be told how each call ended that named the session, and when it began: it
    /// has begun the lease anew, or found out that the session is gone.
    pub(crate) fn call_ended<T>(&self, result: &Result<T, Error>, begun: Instant) {
        let mut known = self.known();
        match result {
            Ok(_) => known.last_used = known.last_used.max(begun),
            Err(error) if error.has_reason("SESSION_UNKNOWN") => {
                known.gone.get_or_insert_with(|| error.clone());
            }
            Err(_) => {}
        }
    }

    pub(crate) fn deleted(&self) {
        let text = format!("session '{}': it was deleted", self.id());
        let gone = Error::local(Code::NotFound, text).with_reason("SESSION_UNKNOWN");
        self.call_ended::<()>(&Err(gone), Instant::now());
    }

    pub(crate) fn last_used(&self) -> Instant {
        self.known().last_used
    }

    /// Takes over the server's lengths.
    pub(crate) fn set_lengths(&self, session: &pb::Session) {
        let mut known = self.known();
        for (layer, &length) in known.layers.iter_mut().zip(&session.lengths) {
            // What is under way will say itself how it ended.
            if !layer.appending {
                layer.length = length.try_into().unwrap_or(0);
                layer.appends += 1;
                layer.unfinished = None;
            }
        }
    }
}

/// An append to a layer while it is under way: nobody else of this object appends
/// to the layer then. To drop it lets the layer go, and leaves length and request
/// id as they are unless `appended` was called.
pub(crate) struct LayerClaim {
    state: Arc<SessionState>,
    /// None: the session has no such layer. The server will say so.
    layer: Option<usize>,
}

impl LayerClaim {
    /// `Aborted`, with the length, if another append is under way.
    pub(crate) fn of(state: &Arc<SessionState>, layer: usize) -> Result<Self, Error> {
        let mut known = state.known();
        if let Some(gone) = &known.gone {
            return Err(gone.clone());
        }
        let found = known.layers.get_mut(layer);
        let exists = found.is_some();
        if let Some(found) = found {
            if found.appending {
                let text =
                    format!("layer {layer}: another append to it is under way in this client");
                return Err(Error::local(Code::Aborted, text)
                    .with_reason("LENGTH_CONFLICT")
                    .with_length(found.length));
            }
            found.appending = true;
        }
        drop(known);
        Ok(Self {
            state: Arc::clone(state),
            layer: exists.then_some(layer),
        })
    }

    fn with<T>(&self, read: impl FnOnce(&mut Layer) -> T) -> Option<T> {
        self.state.known().layers.get_mut(self.layer?).map(read)
    }

    pub(crate) fn expected_length(&self) -> Option<i64> {
        self.with(|layer| layer.length as i64)
    }

    pub(crate) fn request_id(&self) -> String {
        let id = self.with(|layer| layer.appends);
        match (self.layer, id) {
            (Some(layer), Some(appends)) => format!("{}-{layer}-{appends}", self.state.nonce),
            _ => String::new(),
        }
    }

    /// The tokens are there, the layer has `length` with them. The next append that
    /// the claim is used for has another request id.
    pub(crate) fn appended(&self, length: usize) {
        self.with(|layer| {
            layer.length = length;
            layer.appends += 1;
            layer.unfinished = None;
        });
    }

    /// What was left last, if nothing has been appended or truncated since.
    pub(crate) fn unfinished(&self) -> Option<UnfinishedAppend> {
        self.with(|layer| layer.unfinished.clone()).flatten()
    }

    pub(crate) fn leave_unfinished(&self, append: UnfinishedAppend) {
        self.with(|layer| layer.unfinished = Some(append));
    }
}

impl Drop for LayerClaim {
    fn drop(&mut self) {
        self.with(|layer| layer.appending = false);
    }
}

/// 128 random bits.
pub(crate) fn random_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::local(Code::Internal, format!("no random numbers: {e}")))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session_config::SessionConfig;

    fn session(lengths: &[usize]) -> Arc<SessionState> {
        let info = SessionInfo {
            id: "id".into(),
            incarnation: 7,
            config: SessionConfig::new(1, 2).layers(lengths.len()),
            lengths: lengths.to_vec(),
            first_tokens: Vec::new(),
            least_lengths: Vec::new(),
            expires: None,
        };
        Arc::new(SessionState::new(info).unwrap())
    }

    #[test]
    fn one_append_per_layer() {
        let state = session(&[3, 4]);
        let claim = LayerClaim::of(&state, 0).unwrap();
        let error = LayerClaim::of(&state, 0).err().unwrap();
        assert_eq!(error.code(), Code::Aborted);
        assert_eq!(error.length(), Some(3));
        assert!(LayerClaim::of(&state, 1).is_ok());
        drop(claim);
        assert!(LayerClaim::of(&state, 0).is_ok());
        let none = LayerClaim::of(&state, 2).unwrap();
        assert_eq!(none.request_id(), "");
        assert_eq!(none.expected_length(), None);
    }

    #[test]
    fn request_ids_stay_until_an_answer() {
        let state = session(&[3]);
        let id = |state| LayerClaim::of(state, 0).unwrap().request_id();
        let first = id(&state);
        assert_eq!(id(&state), first);
        LayerClaim::of(&state, 0).unwrap().appended(5);
        assert_eq!(state.length(0), Some(5));
        let second = id(&state);
        assert_ne!(second, first);
        state.set_lengths(&pb::Session {
            lengths: vec![9],
            ..Default::default()
        });
        assert_eq!(state.lengths(), [9]);
        assert_ne!(id(&state), second);
        assert!(first.len() <= 64);
        assert_ne!(id(&session(&[3])), first);
    }

    #[test]
    fn what_the_server_tells_must_be_a_session() {
        let mut info = session(&[3, 4]).info.clone();
        assert!(SessionState::new(info.clone()).is_ok());
        info.config.lease = Some(Duration::ZERO);
        assert!(!SessionState::new(info.clone()).unwrap().lease().is_zero());
        info.lengths.pop();
        let error = SessionState::new(info.clone()).err().unwrap();
        assert!(
            error.message().contains("2 layers with 1 lengths"),
            "{error}"
        );
        info.lengths.push(4);
        info.id.clear();
        assert!(SessionState::new(info).is_err());
    }

    #[test]
    fn what_is_gone_stays_gone() {
        let state = session(&[3]);
        state.deleted();
        state.call_ended(&Ok(()), Instant::now());
        assert_eq!(state.check().unwrap_err().code(), Code::NotFound);
        assert!(LayerClaim::of(&state, 0).is_err());
    }
}
