//! Steps: appends and queries over any sessions, in one message.

use std::sync::Arc;

use tokio::time::Instant;

use crate::attend::{Attend, AttendAnswer};
use crate::call::CallOptions;
use crate::client::Inner;
use crate::compute::Timing;
use crate::error::{Code, Error};
use crate::memory::Rope;
use crate::pb;
use crate::retry::{Attempts, Twice};
use crate::rpc::OutMessage;
use crate::session::{Handle, Session, layer_number};
use crate::session_config::count;
use crate::session_state::LayerClaim;
use crate::step_streams::exchange_by;
use crate::tensor::Tensor;

/// The most items of a step.
const MOST_ITEMS: usize = 1024;

/// What became of an item of a step.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepAnswer {
    /// (Hq, S, Dv); none where nothing was attended to.
    pub output: Option<Tensor>,
    /// (Hq, S).
    pub log_sum_exp: Option<Tensor>,
    /// (Hq, S, T).
    pub scores: Option<Tensor>,
    /// The layer's length, with the tokens of this item.
    pub length: usize,
    /// How long the server took for the whole step.
    pub timing: Timing,
}

impl StepAnswer {
    fn into_attend(self) -> Result<AttendAnswer, Error> {
        Ok(AttendAnswer {
            output: self
                .output
                .ok_or_else(|| Error::malformed("output is missing"))?,
            log_sum_exp: self.log_sum_exp,
            scores: self.scores,
            length: self.length,
            timing: self.timing,
        })
    }
}

/// A part of [`Client::step`](crate::Client::step): an append to a session's layer,
/// a query over it, or both; then the new tokens are attended to, too.
#[derive(Clone, Debug)]
pub struct StepItem {
    session: Handle,
    layer: usize,
    key: Option<Tensor>,
    value: Option<Tensor>,
    attend: Option<Attend>,
}

impl StepItem {
    /// Of this layer. Does nothing by itself.
    #[must_use]
    pub fn new(session: &Session, layer: usize) -> Self {
        Self {
            session: session.handle.clone(),
            layer,
            key: None,
            value: None,
            attend: None,
        }
    }

    /// Appends these keys, (Hkv, n, D), and values, (Hkv, n, Dv).
    #[must_use]
    pub fn append(mut self, key: impl Into<Tensor>, value: impl Into<Tensor>) -> Self {
        self.key = Some(key.into());
        self.value = Some(value.into());
        self
    }

    /// Appends these keys, where values are their first columns.
    #[must_use]
    pub fn append_keys(mut self, key: impl Into<Tensor>) -> Self {
        self.key = Some(key.into());
        self.value = None;
        self
    }

    /// Attends to the layer.
    #[must_use]
    pub fn attend(mut self, attend: impl Into<Attend>) -> Self {
        self.attend = Some(attend.into());
        self
    }

    fn message(&self, claim: Option<&LayerClaim>) -> Rope {
        let state = &self.session.state;
        let attend = self.attend.as_ref();
        let options = attend.map(|attend| &attend.options);
        let mut message = Rope::of(&pb::StepItem {
            id: state.id().to_owned(),
            layer: layer_number(self.layer),
            expected_length: match claim {
                Some(claim) => claim.expected_length(),
                None if attend.is_some_and(|attend| attend.any_length) => None,
                None => state.expected_length(self.layer),
            },
            request_id: claim.map(LayerClaim::request_id).unwrap_or_default(),
            options: options
                .filter(|&options| *options != pb::AttentionOptions::default())
                .cloned(),
            not_causal: attend.is_some_and(|attend| attend.not_causal),
            mask_begin: attend.map_or(0, |attend| attend.mask_begin),
            incarnation: state.incarnation(),
            ..Default::default()
        });
        for (field, tensor) in [
            (5, self.key.as_ref()),
            (6, self.value.as_ref()),
            (7, attend.map(|attend| &attend.query)),
            (8, attend.and_then(|attend| attend.mask.as_ref())),
            (13, attend.and_then(|attend| attend.indices.as_ref())),
            (14, attend.and_then(|attend| attend.row_sinks.as_ref())),
        ] {
            if let Some(tensor) = tensor {
                message.tensor(field, tensor);
            }
        }
        message
    }

    fn decode(&self, result: pb::StepResult, timing: Timing) -> Result<StepAnswer, Error> {
        if let Some(code) = Code::from_wire(result.code) {
            return Err(Error::from_status(
                code,
                result.message,
                &result.status_details,
            ));
        }
        let optional = |name: &str, tensor: Option<pb::Tensor>| {
            tensor
                .map(|tensor| Tensor::from_wire(name, tensor))
                .transpose()
        };
        let output = optional("output", result.output)?;
        match (&self.attend, &output) {
            (None, None) => {}
            (Some(attend), Some(output)) if attend.fits(output) => {}
            _ => return Err(Error::malformed(format!("output {output:?}"))),
        }
        Ok(StepAnswer {
            output,
            log_sum_exp: optional("log_sum_exp", result.log_sum_exp)?,
            scores: optional("scores", result.scores)?,
            length: count(result.length),
            timing,
        })
    }
}

pub(crate) async fn step_one(
    handle: Handle,
    options: CallOptions,
    item: StepItem,
) -> Result<AttendAnswer, Error> {
    let mut answers = step(handle.client, options, vec![item]).await?;
    let answer = answers.pop().ok_or_else(|| Error::malformed("no result"))?;
    answer?.into_attend()
}

/// An item of a step while it is under way. Each has attempts of its own.
struct Sent {
    item: StepItem,
    claim: Option<LayerClaim>,
    attempts: Attempts,
}

type StepResult = Result<StepAnswer, Error>;

/// Sends the items in one message, and those that may be tried again once more.
pub(crate) async fn step(
    client: Arc<Inner>,
    options: CallOptions,
    items: Vec<StepItem>,
) -> Result<Vec<StepResult>, Error> {
    if items.len() > MOST_ITEMS {
        return Err(Error::local(
            Code::InvalidArgument,
            format!("items: got {}, wanted at most {MOST_ITEMS}", items.len()),
        ));
    }
    let attempts = Attempts::new(&options, Twice::Append);
    let mut results: Vec<Option<StepResult>> = Vec::with_capacity(items.len());
    let mut sent = Vec::with_capacity(items.len());
    for item in items {
        let (claim, result) = match claim_for(&client, &item) {
            Ok(claim) => (claim, None),
            Err(error) => (None, Some(Err(error))),
        };
        results.push(result);
        sent.push(Sent {
            item,
            claim,
            attempts: attempts.anew(),
        });
    }
    let mut pending: Vec<usize> = (0..sent.len()).filter(|&i| results[i].is_none()).collect();
    // Whether some item has a result of its own, which an error of all would hide.
    let mut told = pending.len() < sent.len();
    while !pending.is_empty() {
        let outcomes = match exchange(&client, &sent, &pending, attempts.deadline()).await {
            Ok(outcomes) => {
                told = true;
                outcomes
            }
            Err(error) => vec![Err(error); pending.len()],
        };
        let mut again = Vec::new();
        let mut next = None;
        for (i, outcome) in pending.into_iter().zip(outcomes) {
            if let Err(error) = &outcome
                && let Some(time) = sent[i].attempts.next(error)
            {
                again.push(i);
                next = next.max(Some(time));
            }
            results[i] = Some(outcome);
        }
        pending = again;
        // The one that is to wait longest.
        if let Some(time) = next {
            tokio::time::sleep_until(time).await;
        }
    }
    let missing = || Err(Error::malformed("no result"));
    let results = results
        .into_iter()
        .map(|result| result.unwrap_or_else(missing));
    if told {
        return Ok(results.collect());
    }
    results.map(|result| result.map(Ok)).collect()
}

/// One attempt: the results of these items, in their order.
async fn exchange(
    client: &Inner,
    sent: &[Sent],
    numbers: &[usize],
    deadline: Instant,
) -> Result<Vec<StepResult>, Error> {
    let mut message = Rope::default();
    for &i in numbers {
        message.message(1, sent[i].item.message(sent[i].claim.as_ref()));
    }
    let message = OutMessage::new(message)?;
    let begun = Instant::now();
    let answer = exchange_by(&client.steps, &client.transport, &message, deadline).await?;
    if answer.results.len() != numbers.len() {
        return Err(Error::malformed(format!(
            "{} results for {} items",
            answer.results.len(),
            numbers.len()
        )));
    }
    let timing = Timing::from_wire(answer.timing.as_ref());
    let results = numbers.iter().zip(answer.results);
    Ok(results
        .map(|(&i, result)| take_result(&sent[i], result, timing, begun))
        .collect())
}

fn claim_for(client: &Arc<Inner>, item: &StepItem) -> Result<Option<LayerClaim>, Error> {
    let Handle {
        client: other,
        state,
    } = &item.session;
    if !Arc::ptr_eq(client, other) {
        return Err(Error::local(
            Code::InvalidArgument,
            "session: got one of another client",
        ));
    }
    state.check()?;
    match item.key {
        Some(_) => LayerClaim::of(state, item.layer).map(Some),
        None => Ok(None),
    }
}

fn take_result(sent: &Sent, result: pb::StepResult, timing: Timing, begun: Instant) -> StepResult {
    let done = result.code == 0;
    let length = count(result.length);
    if done && let Some(claim) = &sent.claim {
        claim.appended(length);
    }
    let answer = sent.item.decode(result, timing);
    sent.item.session.state.call_ended(&answer, begun);
    answer
}
