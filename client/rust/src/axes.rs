//! Which axis of a request's tensors is which.

use crate::compute::ComputeRequest;
use crate::options::Layout;
use crate::pb;

/// The layout that a request means, and the axis of tokens in it.
#[derive(Clone, Copy)]
pub(crate) struct Axes {
    pub(crate) layout: Layout,
    pub(crate) rank: usize,
    pub(crate) tokens: usize,
}

impl Axes {
    pub(crate) fn of(request: &ComputeRequest) -> Option<Self> {
        let layout = match pb::Layout::try_from(request.options.layout).ok()? {
            pb::Layout::Unspecified => match request.query.shape().len() {
                2 => Layout::Matrix,
                3 => Layout::Packed,
                4 => Layout::Bhsd,
                _ => return None,
            },
            pb::Layout::Matrix => Layout::Matrix,
            pb::Layout::Packed => Layout::Packed,
            pb::Layout::Bhsd => Layout::Bhsd,
            pb::Layout::Bshd => Layout::Bshd,
            pb::Layout::Ragged => Layout::Ragged,
        };
        let (rank, tokens) = match layout {
            Layout::Matrix => (2, 0),
            Layout::Packed => (3, 1),
            Layout::Bhsd => (4, 2),
            Layout::Bshd => (4, 1),
            Layout::Ragged => (3, 0),
        };
        Some(Self {
            layout,
            rank,
            tokens,
        })
    }

    /// The shapes of output and log_sum_exp, and the axis of rows in the latter.
    /// None where the request is not well-formed.
    pub(crate) fn answer_shapes(
        self,
        request: &ComputeRequest,
    ) -> Option<(Vec<usize>, Vec<usize>, usize)> {
        let (query, value) = (request.query.shape(), request.value.shape());
        if query.len() != self.rank || value.len() != self.rank {
            return None;
        }
        let heads = |count: i64| usize::try_from(count).ok();
        let mut output = query.to_vec();
        let value_size = value[self.rank - 1];
        output[self.rank - 1] = value_size;
        let (lse, axis) = match self.layout {
            Layout::Matrix => (vec![query[0]], 0),
            Layout::Ragged => (vec![query[0], query[1]], 0),
            Layout::Bhsd => (query[..3].to_vec(), 2),
            Layout::Bshd => (vec![query[0], query[2], query[1]], 2),
            Layout::Packed => {
                let query_heads = heads(request.options.query_heads)?;
                let size = value_size.checked_div(heads(request.options.kv_heads)?)?;
                output[2] = size.checked_mul(query_heads)?;
                (vec![query[0], query_heads, query[1]], 2)
            }
        };
        Some((output, lse, axis))
    }
}
