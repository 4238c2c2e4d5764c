//! Requests that are sent in pieces, by StreamAttention, and computed meanwhile.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::body::Body;

use crate::axes::Axes;
use crate::axis::AxisView;
use crate::compute::{ComputeAnswer, ComputeRequest, Timing};
use crate::error::{Code, Error};
use crate::memory::{AlignedBytes, Frames, Rope};
use crate::options::Layout;
use crate::pb;
use crate::retry::Attempt;
use crate::rpc::{Method, OutMessage, Transport, decode};
use crate::tensor::{DataType, Tensor, byte_count};

const METHOD: Method = Method::computing("/attention.v1.AttentionService/StreamAttention");

/// Bytes of keys, values and mask per message, about.
const CHUNK_BYTES: usize = 2 << 20;
/// With fewer bytes of keys and values a single message is as fast, or faster.
const STREAMED_BYTES: usize = 4 << 20;
/// Of one token of all sequences. Servers take 8 MiB by default.
const MOST_TOKEN_BYTES: usize = (8 << 20) - (4 << 10);
/// The most that a message holds, but for its small fields.
const MOST_MESSAGE_BYTES: usize = (1 << 31) - (1 << 20);
/// Keys of a block of the server's.
const BLOCK: usize = 256;

/// A request cut along its keys.
#[derive(Clone)]
pub(crate) struct KeyChunks {
    key: AxisView,
    value: AxisView,
    mask: Option<AxisView>,
    past: Option<Past>,
    tokens_per_chunk: usize,
    /// Past ones included.
    keys: usize,
    next: usize,
}

#[derive(Clone)]
struct Past {
    key: AxisView,
    value: AxisView,
    length: usize,
    /// Where heads stand after tokens in the layout: how many.
    heads: Option<usize>,
}

impl KeyChunks {
    /// None where the request is better sent in one message, or cannot be cut, or
    /// is not well-formed: the server then tells what is wrong with it.
    pub(crate) fn worthwhile(request: &ComputeRequest) -> Option<Self> {
        if request.key_bytes() <= STREAMED_BYTES {
            return None;
        }
        let chunks = Self::of(request)?;
        let state = state_bytes(request, Axes::of(request)?, chunks.keys)?;
        let worthwhile = state <= request.tensor_bytes() as f64;
        (worthwhile || !fits_one_message(request)).then_some(chunks)
    }

    fn of(request: &ComputeRequest) -> Option<Self> {
        let options = &request.options;
        if options.return_scores != 0 || options.return_present {
            return None;
        }
        let axes = Axes::of(request)?;
        if axes.layout == Layout::Ragged {
            return None;
        }
        for tensor in [&request.query, &request.key, &request.value] {
            if tensor.shape().len() != axes.rank {
                return None;
            }
        }
        let key = AxisView::of(&request.key, axes.tokens)?;
        let value = AxisView::of(&request.value, axes.tokens)?;
        if key.length != value.length || key.tensor.is_empty() || value.tensor.is_empty() {
            return None;
        }
        let mut chunks = Self {
            keys: key.length,
            past: None,
            mask: None,
            tokens_per_chunk: 0,
            next: 0,
            key,
            value,
        };
        chunks.take_past(request, axes)?;
        let mut token_bytes = chunks.key.bytes_per_token() + chunks.value.bytes_per_token();
        if let Some(mask) = &request.mask {
            let view = AxisView::of(mask, mask.shape().len().checked_sub(1)?)?;
            if view.length > chunks.keys {
                return None;
            }
            token_bytes += view.bytes_per_token();
            chunks.mask = Some(view);
        }
        if token_bytes > MOST_TOKEN_BYTES {
            return None;
        }
        let tokens = (CHUNK_BYTES / token_bytes).max(1);
        // Whole blocks of the server's, where that is possible.
        chunks.tokens_per_chunk = if tokens > BLOCK {
            tokens - tokens % BLOCK
        } else {
            tokens
        };
        Some(chunks)
    }

    fn take_past(&mut self, request: &ComputeRequest, axes: Axes) -> Option<()> {
        let (key, value) = match (&request.past_key, &request.past_value) {
            (None, None) => return Some(()),
            (key, value) => (key.as_ref()?, value.as_ref()?),
        };
        if key.shape().len() != 4 || value.shape().len() != 4 {
            return None;
        }
        let heads = key.shape()[1];
        let (key, value) = (AxisView::of(key, 2)?, AxisView::of(value, 2)?);
        if key.length == 0 && value.length == 0 {
            return Some(());
        }
        let fits = |past: &AxisView, new: &AxisView| {
            let same = past.outer == new.outer && past.inner_bytes == new.inner_bytes;
            past.tensor.data_type() == new.tensor.data_type()
                && past.bytes_per_token() == new.bytes_per_token()
                && (axes.layout != Layout::Bhsd || same)
        };
        if key.length != value.length
            || key.tensor.is_empty()
            || value.tensor.is_empty()
            || value.tensor.shape()[1] != heads
            || !fits(&key, &self.key)
            || !fits(&value, &self.value)
        {
            return None;
        }
        self.keys += key.length;
        let after_tokens = matches!(axes.layout, Layout::Bshd | Layout::Packed);
        self.past = Some(Past {
            length: key.length,
            heads: after_tokens.then_some(heads),
            key,
            value,
        });
        Some(())
    }

    /// The next chunk as a StreamAttentionRequest; none after the last.
    fn next(&mut self) -> Option<Rope> {
        if self.next == self.keys {
            return None;
        }
        let begin = self.next;
        let past_length = self.past.as_ref().map_or(0, |past| past.length);
        let mut chunk = Rope::default();
        let end = match &self.past {
            // No chunk has past and new keys: they lie in different tensors.
            Some(past) if begin < past_length => {
                let end = (begin + self.tokens_per_chunk).min(past_length);
                let key = past.key.past_slice(&self.key, past.heads, begin, end);
                chunk.message(1, key);
                let value = past.value.past_slice(&self.value, past.heads, begin, end);
                chunk.message(2, value);
                end
            }
            _ => {
                let end = (begin + self.tokens_per_chunk).min(self.keys);
                let range = (begin - past_length, end - past_length);
                chunk.message(1, self.key.slice(range.0, range.1));
                chunk.message(2, self.value.slice(range.0, range.1));
                end
            }
        };
        if let Some(mask) = &self.mask
            && begin < mask.length
        {
            chunk.message(3, mask.slice(begin, end.min(mask.length)));
        }
        self.next = end;
        let mut message = Rope::default();
        message.message(2, chunk);
        Some(message)
    }
}

/// Whether the request can go as one message, too.
pub(crate) fn fits_one_message(request: &ComputeRequest) -> bool {
    request.tensor_bytes() <= MOST_MESSAGE_BYTES
}

/// About what the server keeps for the query's rows: for each row and head Dv + 2
/// numbers, times the levels of the tree over blocks of keys that are open at once.
/// None if it cannot be told.
fn state_bytes(request: &ComputeRequest, axes: Axes, keys: usize) -> Option<f64> {
    let options = &request.options;
    let (query_heads, kv_heads) = match axes.layout {
        Layout::Packed => (
            usize::try_from(options.query_heads).ok()?,
            usize::try_from(options.kv_heads).ok()?,
        ),
        _ => (1, 1),
    };
    let last = |tensor: &Tensor| tensor.shape().last().copied();
    let head_size = last(&request.query)?.checked_div(query_heads)?;
    let value_size = last(&request.value)?.checked_div(kv_heads)?;
    let rows = request.query.len().checked_div(head_size)?;
    let levels = 2.0 + (1.0 + keys as f64 / BLOCK as f64).log2();
    let elements = request.query.len() as f64 + rows as f64 * levels * (value_size + 2) as f64;
    Some(request.query.data_type().size().max(size_of::<f32>()) as f64 * elements)
}

/// The body of the call: the header, then the chunks as they are asked for.
struct ChunksBody {
    frames: Frames,
    chunks: KeyChunks,
}

impl http_body::Body for ChunksBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.frames.pop() {
                return Poll::Ready(Some(Ok(http_body::Frame::data(piece))));
            }
            // A chunk is far below what a message can have.
            match self.chunks.next().and_then(Rope::into_frames) {
                Some(frames) => self.frames = frames,
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Sends the request as a stream, and puts the rows of its answer together.
pub(crate) async fn compute(
    transport: &Transport,
    request: &ComputeRequest,
    chunks: KeyChunks,
    attempt: Attempt,
) -> Result<ComputeAnswer, Error> {
    compute_in_chunks(transport, request, chunks, attempt)
        .await
        .map_err(Error::named_as_in_request)
}

async fn compute_in_chunks(
    transport: &Transport,
    request: &ComputeRequest,
    chunks: KeyChunks,
    attempt: Attempt,
) -> Result<ComputeAnswer, Error> {
    let mut header = Rope::default();
    header.message(1, request.stream_header());
    let header = OutMessage::new(header)?;
    let body = Body::new(ChunksBody {
        frames: header.frames,
        chunks,
    });
    // hyper sends the body on a task of its own while the rows are read here.
    let mut incoming = transport
        .open(METHOD, body, Some(header.len), Some(&attempt))
        .await?;
    let mut rows = AnswerRows::new(request)?;
    while let Some(message) = incoming.message().await? {
        rows.add(decode(message)?)?;
    }
    rows.finish()
}

/// Whether the server may take as one message what it does not take as a stream:
/// it knows none, takes no chunks of this size, or can have no room for the state
/// of all rows.
pub(crate) fn may_take_one_message(error: &Error) -> bool {
    match error.code() {
        Code::Unimplemented => !error.has_reason("INVALID_FIELD"),
        Code::ResourceExhausted => {
            error.has_reason("REQUEST_TOO_LARGE") || error.has_reason("MEMORY_TOO_LARGE")
        }
        _ => false,
    }
}

/// The answer of a stream, put together from chunks of rows.
struct AnswerRows {
    output: TensorRows,
    log_sum_exp: Option<TensorRows>,
    timing: Option<Timing>,
}

impl AnswerRows {
    fn new(request: &ComputeRequest) -> Result<Self, Error> {
        let options = &request.options;
        let axes = Axes::of(request);
        let shapes = axes.and_then(|axes| Some((axes, axes.answer_shapes(request)?)));
        let (axes, (shape, lse_shape, lse_axis)) =
            shapes.ok_or_else(|| Error::local(Code::Internal, "a stream of what cannot be cut"))?;
        Ok(Self {
            output: TensorRows {
                name: "output",
                shape,
                axis: axes.tokens,
                data_type: Some(request.query.data_type()),
                elements: None,
                filled: 0,
            },
            log_sum_exp: options.return_log_sum_exp.then_some(TensorRows {
                name: "log_sum_exp",
                shape: lse_shape,
                axis: lse_axis,
                data_type: None,
                elements: None,
                filled: 0,
            }),
            timing: None,
        })
    }

    fn add(&mut self, message: pb::StreamAttentionResponse) -> Result<(), Error> {
        if self.timing.is_some() {
            return Err(Error::malformed("a message after the last"));
        }
        if let Some(output) = message.output {
            self.output.add(output)?;
        }
        if let Some(rows) = message.log_sum_exp {
            self.log_sum_exp
                .as_mut()
                .ok_or_else(|| Error::malformed("log_sum_exp was not asked for"))?
                .add(rows)?;
        }
        self.timing = message.timing.as_ref().map(|t| Timing::from_wire(Some(t)));
        Ok(())
    }

    fn finish(self) -> Result<ComputeAnswer, Error> {
        let timing = self
            .timing
            .ok_or_else(|| Error::malformed("the last message is missing"))?;
        Ok(ComputeAnswer {
            output: self.output.finish()?,
            log_sum_exp: self.log_sum_exp.map(TensorRows::finish).transpose()?,
            scores: None,
            present_key: None,
            present_value: None,
            timing,
        })
    }
}

/// A tensor of the answer, filled along one of its axes.
struct TensorRows {
    name: &'static str,
    shape: Vec<usize>,
    axis: usize,
    /// None: that of the first chunk.
    data_type: Option<DataType>,
    elements: Option<AlignedBytes>,
    filled: usize,
}

impl TensorRows {
    fn add(&mut self, rows: pb::Tensor) -> Result<(), Error> {
        let rows = Tensor::from_wire(self.name, rows)?;
        let data_type = *self.data_type.get_or_insert(rows.data_type());
        let mut whole = rows.shape().to_vec();
        let count = whole.get(self.axis).copied().unwrap_or(0);
        if let Some(length) = whole.get_mut(self.axis) {
            *length = self.shape[self.axis];
        }
        let left = self.shape[self.axis] - self.filled;
        if whole != self.shape || rows.data_type() != data_type || count > left {
            return Err(Error::malformed(format!(
                "{}: {rows:?} after {} rows of {data_type} {:?}",
                self.name, self.filled, self.shape
            )));
        }
        if self.elements.is_none() {
            let bytes = byte_count(data_type, &self.shape)
                .ok_or_else(|| Error::malformed(format!("{} is too large", self.name)))?;
            self.elements = Some(AlignedBytes::zeroed(bytes));
        }
        if let Some(elements) = &mut self.elements
            && !rows.is_empty()
        {
            let inner: usize =
                self.shape[self.axis + 1..].iter().product::<usize>() * data_type.size();
            let (run, whole_run) = (count * inner, self.shape[self.axis] * inner);
            let to = elements.as_mut();
            for (outer, from) in rows.bytes().chunks_exact(run).enumerate() {
                let begin = outer * whole_run + self.filled * inner;
                to[begin..begin + run].copy_from_slice(from);
            }
        }
        self.filled += count;
        Ok(())
    }

    fn finish(self) -> Result<Tensor, Error> {
        let wanted = self.shape[self.axis];
        match (self.elements, self.data_type) {
            (Some(elements), Some(data_type)) if self.filled == wanted => {
                Tensor::from_bytes(data_type, self.shape, elements.freeze())
            }
            _ => Err(Error::malformed(format!(
                "{} has {} rows of {wanted}",
                self.name, self.filled
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key of 4 bytes and one value of 4 * `value_size` for each token; untouched
    /// memory takes no room.
    fn wide(rows: usize, tokens: usize, value_size: usize) -> ComputeRequest {
        let zeros =
            |shape: [usize; 2]| Tensor::new(shape, vec![0.0_f32; shape[0] * shape[1]]).unwrap();
        ComputeRequest::new(
            zeros([rows, 1]),
            zeros([tokens, 1]),
            zeros([tokens, value_size]),
        )
    }

    #[test]
    fn streams_take_less_memory_than_a_message_or_what_none_can_hold() {
        let many = 1 << 19;
        let worthwhile = |request| KeyChunks::worthwhile(&request).is_some();
        assert!(worthwhile(wide(1, 64, many)));
        assert!(!worthwhile(wide(1024, 64, many)));
        let huge = wide(1024, 1024, many);
        assert!(!fits_one_message(&huge));
        assert!(worthwhile(huge));
        // A token that no chunk can hold.
        assert!(!worthwhile(wide(1, 64, 1 << 21)));
    }
}
