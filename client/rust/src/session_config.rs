//! What sessions hold, and what the server tells of them.

use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::pb;
use crate::tensor::DataType;

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

    /// Values are the first columns of keys: see
    /// [`Session::append_keys`](crate::Session::append_keys).
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

pub(crate) fn count(number: i64) -> usize {
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
