//! Memory of messages: aligned bytes for elements, messages in pieces that are
//! sent without being joined, and received ones that are read likewise.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::tensor::Tensor;

/// Bytes that are aligned for every element type. Zeroed at first.
pub(crate) struct AlignedBytes {
    words: Vec<u128>,
    len: usize,
}

impl AlignedBytes {
    pub(crate) fn zeroed(len: usize) -> Self {
        Self {
            words: vec![0; len.div_ceil(size_of::<u128>())],
            len,
        }
    }

    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.as_mut().copy_from_slice(bytes);
        copy
    }

    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

impl AsMut<[u8]> for AlignedBytes {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

/// Shorter pieces are copied together: each piece is a frame of HTTP/2 of its own,
/// which costs more than the copy. Larger ones are split into frames of this size.
const LEAST_PIECE: usize = 16 << 10;

/// A protobuf message under construction. Large tensors stay where they are: the
/// message refers to them.
#[derive(Default, Clone)]
pub(crate) struct Rope {
    pieces: Vec<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Rope {
    /// A message with these fields; more can be added behind them, since fields
    /// may stand in any order.
    pub(crate) fn of(message: &impl Message) -> Self {
        let mut rope = Self::default();
        rope.tail.reserve(message.encoded_len());
        // Cannot fail: a BytesMut grows.
        message.encode_raw(&mut rope.tail);
        rope.len = rope.tail.len();
        rope
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn small(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.len += self.tail.len() - before;
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < LEAST_PIECE {
            return self.small(|tail| tail.put_slice(&bytes));
        }
        self.end_piece();
        self.len += bytes.len();
        self.pieces.push(bytes);
    }

    fn end_piece(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
    }

    fn append(&mut self, mut other: Self) {
        other.end_piece();
        for piece in other.pieces {
            self.push(piece);
        }
    }

    /// The beginning of a field of `len` bytes, which the caller pushes.
    pub(crate) fn start_field(&mut self, field: u32, len: usize) {
        self.small(|tail| {
            encode_key(field, WireType::LengthDelimited, tail);
            encode_varint(len as u64, tail);
        });
    }

    pub(crate) fn message(&mut self, field: u32, message: Self) {
        self.start_field(field, message.len());
        self.append(message);
    }

    pub(crate) fn tensor(&mut self, field: u32, tensor: &Tensor) {
        let mut message = Self::tensor_head(tensor.data_type().to_wire(), tensor.shape());
        if !tensor.is_empty() {
            message.start_field(TENSOR_DATA, tensor.bytes().len());
            message.push(tensor.bytes().clone());
        }
        self.message(field, message);
    }

    /// A Tensor message without elements.
    pub(crate) fn tensor_head(data_type: i32, shape: &[usize]) -> Self {
        Self::of(&crate::pb::Tensor {
            data_type,
            shape: shape.iter().map(|&n| n as i64).collect(),
            ..Default::default()
        })
    }

    /// The message with gRPC's prefix; `None` if it is too large for one.
    pub(crate) fn into_frames(self) -> Option<Frames> {
        if self.len > i32::MAX as usize {
            return None;
        }
        let mut framed = Self::default();
        framed.small(|tail| {
            tail.put_u8(0); // Not compressed.
            tail.put_u32(self.len as u32);
        });
        framed.append(self);
        framed.end_piece();
        Some(Frames(framed.pieces.into()))
    }
}

/// `Tensor.data`.
pub(crate) const TENSOR_DATA: u32 = 3;

/// A message that is ready to be sent, any number of times.
#[derive(Clone, Default)]
pub(crate) struct Frames(pub(crate) VecDeque<Bytes>);

impl Frames {
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        self.0.pop_front()
    }
}

/// What came of an answer, in the pieces in which it came. Large fields are
/// copied out of it once, to memory that is aligned for their elements.
#[derive(Default)]
pub(crate) struct Received {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Received {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }

    /// The first `len` bytes, which must be there.
    pub(crate) fn split_to(&mut self, len: usize) -> Self {
        let mut taken = Self::default();
        while taken.len < len {
            let Some(mut piece) = self.pieces.pop_front() else {
                break;
            };
            let missing = len - taken.len;
            if piece.len() > missing {
                let rest = piece.split_off(missing);
                self.pieces.push_front(rest);
            }
            self.len -= piece.len();
            taken.push(piece);
        }
        taken
    }
}

impl Buf for Received {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "advanced past the end");
        self.len -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        let mut copy = AlignedBytes::zeroed(len);
        self.copy_to_slice(copy.as_mut());
        copy.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    fn joined(frames: Frames) -> Vec<u8> {
        frames.0.iter().flat_map(|piece| piece.to_vec()).collect()
    }

    #[test]
    fn a_rope_is_the_message() {
        for elements in [0, 3, 5000] {
            let tensor = Tensor::new([elements], vec![1.5_f32; elements]).unwrap();
            let mut rope = Rope::of(&pb::ComputeAttentionRequest {
                valid_lengths: vec![1, 300],
                ..Default::default()
            });
            rope.tensor(2, &tensor);
            let len = rope.len();
            let frames = rope.into_frames().unwrap();
            if elements == 5000 {
                let address = tensor.bytes().as_ptr();
                assert!(frames.0.iter().any(|piece| piece.as_ptr() == address));
            } else {
                assert_eq!(frames.0.len(), 1);
            }
            let bytes = joined(frames);
            assert_eq!(bytes.len(), len + 5);
            assert_eq!(bytes[..5], [&[0], &(len as u32).to_be_bytes()[..]].concat());
            let message = pb::ComputeAttentionRequest::decode(&bytes[5..]).unwrap();
            assert_eq!(message.valid_lengths, [1, 300]);
            assert_eq!(message.key.unwrap().data, tensor.bytes());
        }
    }

    #[test]
    fn received_pieces_are_one_message() {
        let message = pb::AttendResponse {
            output: Some(pb::Tensor {
                shape: vec![2, 300],
                data: (0..255).collect::<Vec<u8>>().into(),
                ..Default::default()
            }),
            length: 1 << 40,
            ..Default::default()
        };
        let bytes = Bytes::from(message.encode_to_vec());
        for size in [1, 2, 7, 100, 1000] {
            let mut received = Received::default();
            received.push(Bytes::from_static(b"before"));
            for piece in bytes.chunks(size) {
                received.push(bytes.slice_ref(piece));
            }
            received.push(Bytes::from_static(b"after"));
            received.advance(6);
            let answer = pb::AttendResponse::decode(received.split_to(bytes.len())).unwrap();
            assert_eq!(answer, message);
            assert_eq!(answer.output.unwrap().data.as_ptr() as usize % 16, 0);
            assert_eq!(received.remaining(), 5);
            assert_eq!(received.chunk(), b"after");
        }
    }
}
