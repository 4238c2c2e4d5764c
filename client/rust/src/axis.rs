//! Tensors cut along their tokens.

use bytes::{Bytes, BytesMut};

use crate::memory::{Rope, TENSOR_DATA};
use crate::tensor::{DataType, Tensor};

/// A tensor as [outer, length, inner] around one of its axes.
#[derive(Clone, Debug)]
pub(crate) struct AxisView {
    pub(crate) tensor: Tensor,
    axis: usize,
    pub(crate) outer: usize,
    pub(crate) length: usize,
    pub(crate) inner_bytes: usize,
}

impl AxisView {
    /// None if there is no such axis, and of bits, which rows share bytes of. A
    /// tensor without elements has no runs.
    pub(crate) fn of(tensor: &Tensor, axis: usize) -> Option<Self> {
        if tensor.data_type() == DataType::Bits {
            return None;
        }
        let shape = tensor.shape();
        let length = *shape.get(axis)?;
        let (outer, inner) = if tensor.is_empty() {
            (0, 0)
        } else {
            // Cannot overflow: there are bytes for all of it.
            (
                shape[..axis].iter().product(),
                shape[axis + 1..].iter().product(),
            )
        };
        Some(Self {
            tensor: tensor.clone(),
            axis,
            outer,
            length,
            inner_bytes: inner * tensor.data_type().size(),
        })
    }

    /// Bytes of all of the tensor per element of the axis.
    pub(crate) fn bytes_per_token(&self) -> usize {
        self.outer * self.inner_bytes
    }

    fn run(&self, outer: usize, begin: usize, end: usize) -> Bytes {
        let offset = |token| (outer * self.length + token) * self.inner_bytes;
        self.tensor.bytes().slice(offset(begin)..offset(end))
    }

    fn head(&self, tokens: usize) -> Rope {
        let mut shape = self.tensor.shape().to_vec();
        shape[self.axis] = tokens;
        Rope::tensor_head(self.tensor.data_type().to_wire(), &shape)
    }

    /// Elements [begin, end) of the axis, as a Tensor message.
    pub(crate) fn slice(&self, begin: usize, end: usize) -> Rope {
        let mut message = self.head(end - begin);
        self.push_runs(&mut message, begin, end);
        message
    }

    fn push_runs(&self, message: &mut Rope, begin: usize, end: usize) {
        if self.outer == 0 || begin == end {
            return;
        }
        let run = (end - begin) * self.inner_bytes;
        message.start_field(TENSOR_DATA, run * self.outer);
        for outer in 0..self.outer {
            message.push(self.run(outer, begin, end));
        }
    }

    /// Past tokens [begin, end), (B, Hkv, P, D), as a slice of `current`, in whose
    /// layout heads may stand after tokens.
    pub(crate) fn past_slice(
        &self,
        current: &Self,
        heads: Option<usize>,
        begin: usize,
        end: usize,
    ) -> Rope {
        let mut message = current.head(end - begin);
        let Some(heads) = heads else {
            self.push_runs(&mut message, begin, end);
            return message;
        };
        let mut joined = BytesMut::with_capacity(self.bytes_per_token() * (end - begin));
        for batch in 0..self.outer / heads {
            for token in begin..end {
                for head in 0..heads {
                    joined.extend_from_slice(&self.run(batch * heads + head, token, token + 1));
                }
            }
        }
        message.start_field(TENSOR_DATA, joined.len());
        message.push(joined.freeze());
        message
    }
}
