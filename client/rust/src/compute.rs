//! Attention over the tensors of one request.

use std::time::Duration;

use crate::axes::Axes;
use crate::error::Error;
use crate::memory::Rope;
use crate::options::{Layout, shared_options};
use crate::pb;
use crate::tensor::Tensor;

/// Tensors and options of one computation. What each option means is specified in
/// `attention/v1/attention.proto`.
///
/// ```
/// use attention_client::{Causal, ComputeRequest, Tensor};
///
/// let tensor = Tensor::new([1, 8, 16, 64], vec![0.5_f32; 8 * 16 * 64])?;
/// let request = ComputeRequest::new(&tensor, &tensor, &tensor)
///     .causal(Causal::BottomRight)
///     .window(4, None)
///     .return_log_sum_exp();
/// # Ok::<(), attention_client::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ComputeRequest {
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
    pub(crate) mask: Option<Tensor>,
    pub(crate) past_key: Option<Tensor>,
    pub(crate) past_value: Option<Tensor>,
    indices: Option<Tensor>,
    row_sinks: Option<Tensor>,
    pub(crate) valid_lengths: Vec<i64>,
    pub(crate) query_starts: Vec<i64>,
    pub(crate) key_starts: Vec<i64>,
    pub(crate) options: pb::AttentionOptions,
}

mod field {
    pub(super) const QUERY: u32 = 1;
    pub(super) const KEY: u32 = 2;
    pub(super) const VALUE: u32 = 3;
    pub(super) const MASK: u32 = 4;
    pub(super) const PAST_KEY: u32 = 5;
    pub(super) const PAST_VALUE: u32 = 6;
    pub(super) const INDICES: u32 = 12;
    pub(super) const SINKS: u32 = 13;

    /// Those whose elements stand in the header of a stream.
    pub(super) const IN_HEADER: [u32; 3] = [QUERY, INDICES, SINKS];
}

impl ComputeRequest {
    /// Attention of `query` over `key` and `value`. Their shapes are by the layout:
    /// see [`Layout`].
    #[must_use]
    pub fn new(query: impl Into<Tensor>, key: impl Into<Tensor>, value: impl Into<Tensor>) -> Self {
        Self {
            query: query.into(),
            key: key.into(),
            value: value.into(),
            mask: None,
            past_key: None,
            past_value: None,
            indices: None,
            row_sinks: None,
            valid_lengths: Vec::new(),
            query_starts: Vec::new(),
            key_starts: Vec::new(),
            options: pb::AttentionOptions::default(),
        }
    }

    shared_options!();

    /// Keys before `key`, (B, Hkv, P, D) in every layout. Together with
    /// [`past_value`](Self::past_value).
    #[must_use]
    pub fn past_key(mut self, key: impl Into<Tensor>) -> Self {
        self.past_key = Some(key.into());
        self
    }

    /// Values before `value`, (B, Hkv, P, Dv) in every layout.
    #[must_use]
    pub fn past_value(mut self, value: impl Into<Tensor>) -> Self {
        self.past_value = Some(value.into());
        self
    }

    /// How many keys each batch entry has; further ones are masked.
    #[must_use]
    pub fn valid_lengths(mut self, lengths: impl Into<Vec<i64>>) -> Self {
        self.valid_lengths = lengths.into();
        self
    }

    /// Where the sequences begin in `query`, with [`Layout::Ragged`]: B + 1 numbers
    /// from 0 to its first axis.
    #[must_use]
    pub fn query_starts(mut self, starts: impl Into<Vec<i64>>) -> Self {
        self.query_starts = starts.into();
        self
    }

    /// Where the sequences begin in `key`, with [`Layout::Ragged`].
    #[must_use]
    pub fn key_starts(mut self, starts: impl Into<Vec<i64>>) -> Self {
        self.key_starts = starts.into();
        self
    }

    /// The axes of the tensors. Default: by the rank of the query.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.options.layout = layout.to_wire();
        self
    }

    /// Hq. Needed with [`Layout::Packed`].
    #[must_use]
    pub fn query_heads(mut self, heads: i64) -> Self {
        self.options.query_heads = heads;
        self
    }

    /// Hkv. Needed with [`Layout::Packed`].
    #[must_use]
    pub fn kv_heads(mut self, heads: i64) -> Self {
        self.options.kv_heads = heads;
        self
    }

    /// Returns past and new keys and values joined, too.
    #[must_use]
    pub fn return_present(mut self) -> Self {
        self.options.return_present = true;
        self
    }

    /// The tensors of the message that can have elements elsewhere, by field.
    fn tensors(&self) -> [(u32, Option<&Tensor>); 8] {
        [
            (field::QUERY, Some(&self.query)),
            (field::KEY, Some(&self.key)),
            (field::VALUE, Some(&self.value)),
            (field::MASK, self.mask.as_ref()),
            (field::PAST_KEY, self.past_key.as_ref()),
            (field::PAST_VALUE, self.past_value.as_ref()),
            (field::INDICES, self.indices.as_ref()),
            (field::SINKS, self.row_sinks.as_ref()),
        ]
    }

    pub(crate) fn tensor_bytes(&self) -> usize {
        self.bytes_of(|_| true)
    }

    /// Of the tensors that a stream cuts along the keys.
    pub(crate) fn key_bytes(&self) -> usize {
        self.bytes_of(|field| !field::IN_HEADER.contains(&field))
    }

    fn bytes_of(&self, counts: impl Fn(u32) -> bool) -> usize {
        let tensors = self.tensors();
        let counted = tensors.iter().filter(|(field, _)| counts(*field));
        counted
            .filter_map(|(_, tensor)| tensor.map(|tensor| tensor.bytes().len()))
            .sum()
    }

    /// All but the tensors.
    fn head(&self) -> Rope {
        let default = self.options == pb::AttentionOptions::default();
        Rope::of(&pb::ComputeAttentionRequest {
            valid_lengths: self.valid_lengths.clone(),
            query_starts: self.query_starts.clone(),
            key_starts: self.key_starts.clone(),
            options: (!default).then(|| self.options.clone()),
            ..Default::default()
        })
    }

    /// The whole ComputeAttentionRequest.
    pub(crate) fn message(&self) -> Rope {
        let mut message = self.head();
        for (field, tensor) in self.tensors() {
            if let Some(tensor) = tensor {
                message.tensor(field, tensor);
            }
        }
        message
    }

    /// The header of a stream: all but the elements of past and new keys and values,
    /// and of the mask.
    pub(crate) fn stream_header(&self) -> Rope {
        let mut message = self.head();
        for (field, tensor) in self.tensors() {
            match tensor {
                Some(tensor) if field::IN_HEADER.contains(&field) => message.tensor(field, tensor),
                Some(tensor) => {
                    let head = Rope::tensor_head(tensor.data_type().to_wire(), tensor.shape());
                    message.message(field, head);
                }
                None => {}
            }
        }
        message
    }
}

/// How long the server took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timing {
    /// From the request's arrival to the start of work on it.
    pub queue: Duration,
    /// Reading the message into tensors, checks included.
    pub decode: Duration,
    /// The attention itself.
    pub compute: Duration,
    /// Writing the answer, up to handing it to the transport.
    pub encode: Duration,
}

impl Timing {
    pub(crate) fn from_wire(timing: Option<&pb::Timing>) -> Self {
        let micros = |us: i64| Duration::from_micros(us.try_into().unwrap_or(0));
        timing.map_or_else(Self::default, |timing| Self {
            queue: micros(timing.queue_us),
            decode: micros(timing.decode_us),
            compute: micros(timing.compute_us),
            encode: micros(timing.encode_us),
        })
    }
}

/// The answer to one computation. What was not asked for is absent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ComputeAnswer {
    /// Of the query's type; shape by the layout.
    pub output: Tensor,
    /// (B, Hq, S); with [`Layout::Matrix`] (S), with [`Layout::Ragged`] (sum S, Hq).
    pub log_sum_exp: Option<Tensor>,
    /// (B, Hq, S, T).
    pub scores: Option<Tensor>,
    /// Past and new keys joined, (B, Hkv, T, D).
    pub present_key: Option<Tensor>,
    /// Past and new values joined, (B, Hkv, T, Dv).
    pub present_value: Option<Tensor>,
    /// How long the server took.
    pub timing: Timing,
}

impl ComputeAnswer {
    pub(crate) fn from_wire(
        answer: pb::ComputeAttentionResponse,
        request: &ComputeRequest,
    ) -> Result<Self, Error> {
        let optional = |name: &str, tensor: Option<pb::Tensor>| {
            tensor
                .map(|tensor| Tensor::from_wire(name, tensor))
                .transpose()
        };
        let output = optional("output", answer.output)?
            .ok_or_else(|| Error::malformed("output is missing"))?;
        if output.data_type() != request.query.data_type() {
            return Err(Error::malformed(format!(
                "output is {}, the query {}",
                output.data_type(),
                request.query.data_type()
            )));
        }
        let shapes = Axes::of(request).and_then(|axes| axes.answer_shapes(request));
        if shapes.is_some_and(|(shape, ..)| shape != output.shape()) {
            return Err(Error::malformed(format!(
                "{output:?} for a query {:?}",
                request.query
            )));
        }
        let answer = Self {
            output,
            log_sum_exp: optional("log_sum_exp", answer.log_sum_exp)?,
            scores: optional("scores", answer.scores)?,
            present_key: optional("present_key", answer.present_key)?,
            present_value: optional("present_value", answer.present_value)?,
            timing: Timing::from_wire(answer.timing.as_ref()),
        };
        let options = &request.options;
        for (name, asked, tensor) in [
            (
                "log_sum_exp",
                options.return_log_sum_exp,
                &answer.log_sum_exp,
            ),
            ("scores", options.return_scores != 0, &answer.scores),
            ("present_key", options.return_present, &answer.present_key),
            (
                "present_value",
                options.return_present,
                &answer.present_value,
            ),
        ] {
            if asked != tensor.is_some() {
                let what = if asked {
                    "is missing"
                } else {
                    "was not asked for"
                };
                return Err(Error::malformed(format!("{name} {what}")));
            }
        }
        Ok(answer)
    }
}
