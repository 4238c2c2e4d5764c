//! What to compute: the options that requests share.

use crate::pb;

/// How the axes of query, key, value and output are laid out. Letters: B batch
/// size, S query length, L key length, Hq query heads, Hkv key/value heads, D head
/// size, Dv value head size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// query (S, D), key (L, D), value (L, Dv), output (S, Dv). The default for
    /// queries of rank 2.
    Matrix,
    /// query (B, S, Hq·D), key (B, L, Hkv·D), value (B, L, Hkv·Dv), output
    /// (B, S, Hq·Dv). Needs both numbers of heads. The default for rank 3.
    Packed,
    /// query (B, Hq, S, D), key (B, Hkv, L, D), value (B, Hkv, L, Dv), output
    /// (B, Hq, S, Dv). The default for rank 4.
    Bhsd,
    /// query (B, S, Hq, D), key (B, L, Hkv, D), value (B, L, Hkv, Dv), output
    /// (B, S, Hq, Dv).
    Bshd,
    /// Sequences of different length along one axis: query (sum S, Hq, D), key
    /// (sum L, Hkv, D), value (sum L, Hkv, Dv), output (sum S, Hq, Dv). Needs
    /// `query_starts` and `key_starts`.
    Ragged,
}

/// Which keys a causal mask lets query row i see: those with j <= i + offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Causal {
    /// offset = P with past; valid_lengths\[b\] - S with valid lengths; else 0.
    /// ONNX's and PyTorch's `is_causal`.
    TopLeft,
    /// The last query sees the last key. FlashAttention's convention.
    BottomRight,
}

/// A stage of the computation to return as scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scores {
    /// scale · dot(query, key), masked keys included.
    Raw,
    /// After the soft cap, masked keys included.
    Capped,
    /// After the bias; -inf where masked.
    Biased,
    /// After the softmax.
    Weights,
}

/// What the arithmetic promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MathMode {
    /// The same request gives the same bits on every server and CPU. The default.
    Reproducible,
    /// May use what the CPU has to multiply bfloat16: faster, and the same bits on
    /// the same CPU model only.
    Fast,
}

impl Layout {
    pub(crate) fn to_wire(self) -> i32 {
        let wire = match self {
            Self::Matrix => pb::Layout::Matrix,
            Self::Packed => pb::Layout::Packed,
            Self::Bhsd => pb::Layout::Bhsd,
            Self::Bshd => pb::Layout::Bshd,
            Self::Ragged => pb::Layout::Ragged,
        };
        wire as i32
    }
}

impl Causal {
    pub(crate) fn to_wire(self) -> i32 {
        let wire = match self {
            Self::TopLeft => pb::Causal::TopLeft,
            Self::BottomRight => pb::Causal::BottomRight,
        };
        wire as i32
    }
}

impl Scores {
    pub(crate) fn to_wire(self) -> i32 {
        let wire = match self {
            Self::Raw => pb::Scores::Raw,
            Self::Capped => pb::Scores::Capped,
            Self::Biased => pb::Scores::Biased,
            Self::Weights => pb::Scores::Weights,
        };
        wire as i32
    }
}

impl MathMode {
    pub(crate) fn to_wire(self) -> i32 {
        let wire = match self {
            Self::Reproducible => pb::MathMode::Reproducible,
            Self::Fast => pb::MathMode::Fast,
        };
        wire as i32
    }

    pub(crate) fn from_wire(wire: i32) -> Option<Self> {
        match pb::MathMode::try_from(wire).ok()? {
            pb::MathMode::Unspecified => None,
            pb::MathMode::Reproducible => Some(Self::Reproducible),
            pb::MathMode::Fast => Some(Self::Fast),
        }
    }
}

/// The options that [`ComputeRequest`](crate::ComputeRequest) and
/// [`Attend`](crate::Attend) have in common, as methods of both.
macro_rules! shared_options {
    () => {
        /// Which keys a query must not see, or what is added to its scores; broadcast
        /// by numpy's rules. `bool`s and [`Bits`](crate::DataType::Bits) select: true
        /// attends. Numbers are added, whatever their type, so that a mask of integers 0
        /// and 1 hides nothing.
        #[must_use]
        pub fn mask(mut self, mask: impl Into<$crate::Tensor>) -> Self {
            self.mask = Some(mask.into());
            self
        }

        /// Sparse attention: the keys that each query sees, of those that all else lets
        /// it see. No other key is read. `i32`s or `i64`s: (B, S, k), or (B, Hq, S, k)
        /// for each query head; (S, k) where B is 1; with
        /// [`Layout::Ragged`](crate::Layout::Ragged) (sum S, k) or (sum S, Hq, k). Over a
        /// session (S, k) or (Hq, S, k). They count from the first key of the sequence,
        /// past or released ones too, and -1 is none.
        #[must_use]
        pub fn indices(mut self, indices: impl Into<$crate::Tensor>) -> Self {
            self.indices = Some(indices.into());
            self
        }

        /// Attention sinks as [`sinks`](Self::sinks), in their place: floats, one for
        /// each row, (B, Hq, S). With [`Layout::Matrix`](crate::Layout::Matrix) (S), too,
        /// with [`Layout::Ragged`](crate::Layout::Ragged) (sum S, Hq), over a session
        /// (Hq, S).
        #[must_use]
        pub fn row_sinks(mut self, sinks: impl Into<$crate::Tensor>) -> Self {
            self.row_sinks = Some(sinks.into());
            self
        }

        /// Factor of the dot products. Default: 1 / sqrt(D).
        #[must_use]
        pub fn scale(mut self, scale: f64) -> Self {
            self.options.scale = Some(scale);
            self
        }

        /// Soft cap of the scores, >= 0; 0, the default, is none.
        #[must_use]
        pub fn softcap(mut self, softcap: f64) -> Self {
            self.options.softcap = softcap;
            self
        }

        /// A causal mask.
        #[must_use]
        pub fn causal(mut self, causal: $crate::Causal) -> Self {
            self.options.causal = causal.to_wire();
            self
        }

        /// Sees only so many keys before and after the query's own position, which is
        /// not counted. `None` is unbounded.
        #[must_use]
        pub fn window(
            mut self,
            left: impl Into<Option<i64>>,
            right: impl Into<Option<i64>>,
        ) -> Self {
            self.options.window = Some($crate::pb::Window {
                left: left.into(),
                right: right.into(),
            });
            self
        }

        /// Chunked local attention: a query sees only the keys of its own chunk of so
        /// many positions. 0, the default, is none.
        #[must_use]
        pub fn chunk_size(mut self, size: i64) -> Self {
            self.options.chunk_size = size;
            self
        }

        /// ALiBi: a slope per query head.
        #[must_use]
        pub fn alibi_slopes(mut self, slopes: impl Into<Vec<f64>>) -> Self {
            self.options.alibi_slopes = slopes.into();
            self
        }

        /// Attention sinks: a further logit per query head, without a value. For one per
        /// row see [`row_sinks`](Self::row_sinks).
        #[must_use]
        pub fn sinks(mut self, sinks: impl Into<Vec<f64>>) -> Self {
            self.options.sinks = sinks.into();
            self
        }

        /// What the arithmetic promises. Default: the same bits everywhere.
        #[must_use]
        pub fn math_mode(mut self, mode: $crate::MathMode) -> Self {
            self.options.math_mode = mode.to_wire();
            self
        }

        /// The least precision of scores, softmax and sums. `Float64` asks for double
        /// precision throughout.
        #[must_use]
        pub fn softmax_precision(mut self, precision: $crate::DataType) -> Self {
            self.options.softmax_precision = precision.to_wire();
            self
        }

        /// Returns the natural logarithm of the softmax's denominator, too.
        #[must_use]
        pub fn return_log_sum_exp(mut self) -> Self {
            self.options.return_log_sum_exp = true;
            self
        }

        /// Returns the scores of this stage, too: B·Hq·S·T elements.
        #[must_use]
        pub fn return_scores(mut self, stage: $crate::Scores) -> Self {
            self.options.return_scores = stage.to_wire();
            self
        }
    };
}
pub(crate) use shared_options;
