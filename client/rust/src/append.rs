//! Appends: tokens for a layer of a session, in one call or several.

use tokio::time::Instant;

use crate::axis::AxisView;
use crate::call::CallOptions;
use crate::error::Error;
use crate::memory::Rope;
use crate::pb;
use crate::retry::{Attempts, Twice, retrying};
use crate::rpc::{Method, OutMessage};
use crate::session::{Handle, layer_number};
use crate::session_config::count;
use crate::session_state::{LayerClaim, SessionState, UnfinishedAppend, digest_of};
use crate::tensor::Tensor;

const APPEND: Method = Method::plain("/attention.v1.SessionService/AppendKeyValues");

/// An append of more bytes is sent in several calls.
const APPEND_BYTES: usize = 8 << 20;

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

pub(crate) async fn append(
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
        let answer: Result<pb::AppendKeyValuesResponse, _> = retrying(attempts.anew(), |attempt| {
            client.transport.unary(APPEND, &message, attempt)
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
