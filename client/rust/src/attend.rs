//! Queries over a session's layer.

use crate::compute::Timing;
use crate::options::shared_options;
use crate::pb;
use crate::tensor::Tensor;

/// A query over a session's layer, and how it attends. A [`Tensor`] alone is one,
/// with every default: queries are the last tokens of the sequence, and see all
/// tokens up to their own.
#[derive(Clone, Debug)]
pub struct Attend {
    pub(crate) query: Tensor,
    pub(crate) mask: Option<Tensor>,
    pub(crate) indices: Option<Tensor>,
    pub(crate) row_sinks: Option<Tensor>,
    pub(crate) options: pb::AttentionOptions,
    pub(crate) not_causal: bool,
    pub(crate) mask_begin: i64,
    pub(crate) any_length: bool,
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
            any_length: false,
        }
    }

    shared_options!();

    /// Whether this can be the answer to the query.
    pub(crate) fn fits(&self, output: &Tensor) -> bool {
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

    /// Attends to whatever the layer has, whoever has appended it. Without it a layer
    /// that is not as long as the object knows is `Aborted`. Where tokens are appended
    /// in the same step it says nothing.
    #[must_use]
    pub fn any_length(mut self) -> Self {
        self.any_length = true;
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
