//! Tensors: a type, a shape and bytes that are shared rather than copied.

use std::fmt;

use bytemuck::{CheckedBitPattern, NoUninit};
use bytes::Bytes;

use crate::error::{Code, Error};
use crate::memory::AlignedBytes;
use crate::pb;

#[cfg(target_endian = "big")]
compile_error!("tensors are little-endian on the wire, and this crate does not swap bytes");

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataType {
    /// IEEE 754 binary32.
    Float32,
    /// IEEE 754 binary16.
    Float16,
    /// The upper 16 bits of a binary32.
    BFloat16,
    /// IEEE 754 binary64.
    Float64,
    /// One byte per element, 0 or 1. Masks only.
    Bool,
    /// Masks, and what a session may store.
    Int8,
    /// Masks and indices only.
    Int32,
    /// Masks and indices only.
    Int64,
    /// OCP's E4M3. Not in tensors: what a session may store.
    Float8E4M3,
    /// One bit per element, of masks only: 1 attends. Element i, row-major and
    /// without gaps between rows, is bit i % 8, counted from the least significant,
    /// of byte i / 8. Made by [`Tensor::from_bytes`].
    Bits,
}

impl DataType {
    /// Bytes per element; 0 for [`Bits`](Self::Bits), eight of which share one.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Bits => 0,
            Self::Bool | Self::Int8 | Self::Float8E4M3 => 1,
            Self::Float16 | Self::BFloat16 => 2,
            Self::Float32 | Self::Int32 => 4,
            Self::Float64 | Self::Int64 => 8,
        }
    }

    pub(crate) fn to_wire(self) -> i32 {
        let wire = match self {
            Self::Float32 => pb::DataType::Float32,
            Self::Float16 => pb::DataType::Float16,
            Self::BFloat16 => pb::DataType::Bfloat16,
            Self::Float64 => pb::DataType::Float64,
            Self::Bool => pb::DataType::Bool,
            Self::Int8 => pb::DataType::Int8,
            Self::Int32 => pb::DataType::Int32,
            Self::Int64 => pb::DataType::Int64,
            Self::Float8E4M3 => pb::DataType::Float8E4m3,
            Self::Bits => pb::DataType::Bits,
        };
        wire as i32
    }

    /// None for a type that this version does not know.
    pub(crate) fn from_wire(wire: i32) -> Option<Self> {
        Some(match pb::DataType::try_from(wire).ok()? {
            pb::DataType::Unspecified => return None,
            pb::DataType::Float32 => Self::Float32,
            pb::DataType::Float16 => Self::Float16,
            pb::DataType::Bfloat16 => Self::BFloat16,
            pb::DataType::Float64 => Self::Float64,
            pb::DataType::Bool => Self::Bool,
            pb::DataType::Int8 => Self::Int8,
            pb::DataType::Int32 => Self::Int32,
            pb::DataType::Int64 => Self::Int64,
            pb::DataType::Float8E4m3 => Self::Float8E4M3,
            pb::DataType::Bits => Self::Bits,
        })
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "FLOAT32",
            Self::Float16 => "FLOAT16",
            Self::BFloat16 => "BFLOAT16",
            Self::Float64 => "FLOAT64",
            Self::Bool => "BOOL",
            Self::Int8 => "INT8",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Float8E4M3 => "FLOAT8_E4M3",
            Self::Bits => "BITS",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that elements of a tensor can have: `f32`, `f64`, `bool`, `i8`,
/// `i32`, `i64`, and with the feature `half` its `f16` and `bf16`.
///
/// Masks of other integers are sent in a wider type: convert them to `i32` or
/// `i64`. A mask of integers is *added* to the scores, 0 and 1 hide nothing; to
/// hide keys send `bool`s.
pub trait Element: sealed::Sealed + NoUninit + CheckedBitPattern + Send + Sync {
    /// The type on the wire.
    const DATA_TYPE: DataType;
}

macro_rules! element {
    ($rust:ty, $wire:ident) => {
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DATA_TYPE: DataType = DataType::$wire;
        }
    };
}

element!(f32, Float32);
element!(f64, Float64);
element!(bool, Bool);
element!(i8, Int8);
element!(i32, Int32);
element!(i64, Int64);
#[cfg(feature = "half")]
element!(half::f16, Float16);
#[cfg(feature = "half")]
element!(half::bf16, BFloat16);

/// A dense tensor, row-major.
///
/// The elements lie in [`Bytes`], which are reference-counted: to clone a tensor
/// copies no element, and tensors are sent from the memory that they are in.
///
/// ```
/// use attention_client::{DataType, Tensor};
///
/// // Takes the vector over, without a copy.
/// let query = Tensor::new([2, 2], vec![1.0_f32, 0.0, 0.0, 1.0])?;
/// assert_eq!(query.as_slice::<f32>()?, [1.0, 0.0, 0.0, 1.0]);
///
/// // Bytes as they are, such as bfloat16 out of a file.
/// let ones = Tensor::from_bytes(DataType::BFloat16, [1, 2], vec![0x80, 0x3f, 0x80, 0x3f])?;
/// assert_eq!(ones.shape(), [1, 2]);
/// # Ok::<(), attention_client::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Tensor {
    data_type: DataType,
    shape: Vec<usize>,
    // Exactly the elements of `shape`.
    data: Bytes,
}

/// Owner of elements that were handed over without a copy.
struct Owned<O, T>(O, std::marker::PhantomData<fn() -> T>);

impl<O: AsRef<[T]>, T: Element> AsRef<[u8]> for Owned<O, T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.0.as_ref())
    }
}

/// Bytes of a tensor of this shape; `None` if they cannot be counted.
pub(crate) fn byte_count(data_type: DataType, shape: &[usize]) -> Option<usize> {
    // A later 0 makes it empty, whatever the dimensions before multiply to.
    if shape.contains(&0) {
        return Some(0);
    }
    let elements = shape
        .iter()
        .try_fold(1, |product: usize, &n| product.checked_mul(n))?;
    let bytes = match data_type {
        DataType::Bits => elements.div_ceil(8),
        other => elements.checked_mul(other.size())?,
    };
    (bytes <= isize::MAX as usize).then_some(bytes)
}

impl Tensor {
    /// A tensor of these elements, row-major. The memory of `elements` (a `Vec`, a
    /// boxed slice, an `Arc<[T]>` and the like) is taken over, not copied.
    ///
    /// # Errors
    /// `InvalidArgument` if `shape` has another number of elements.
    pub fn new<T: Element>(
        shape: impl AsRef<[usize]>,
        elements: impl AsRef<[T]> + Send + 'static,
    ) -> Result<Self, Error> {
        let owner = Owned(elements, std::marker::PhantomData);
        Self::from_bytes(T::DATA_TYPE, shape, Bytes::from_owner(owner))
    }

    /// A copy of these elements.
    ///
    /// # Errors
    /// `InvalidArgument` if `shape` has another number of elements.
    pub fn copy_from<T: Element>(
        shape: impl AsRef<[usize]>,
        elements: &[T],
    ) -> Result<Self, Error> {
        let bytes = AlignedBytes::copy_of(bytemuck::cast_slice(elements));
        Self::from_bytes(T::DATA_TYPE, shape, bytes.freeze())
    }

    /// A tensor of these bytes: row-major, no padding, little-endian. Elements of
    /// [`DataType::Bits`] take their number / 8 bytes, rounded up. `Bytes` and
    /// `Vec<u8>` are taken over, not copied.
    ///
    /// # Errors
    /// `InvalidArgument` if `shape` has another number of bytes.
    pub fn from_bytes(
        data_type: DataType,
        shape: impl AsRef<[usize]>,
        data: impl Into<Bytes>,
    ) -> Result<Self, Error> {
        let (shape, data) = (shape.as_ref().to_vec(), data.into());
        if byte_count(data_type, &shape) != Some(data.len()) {
            return Err(Error::local(
                Code::InvalidArgument,
                format!(
                    "a tensor of type {data_type} and shape {shape:?} cannot have {} bytes",
                    data.len()
                ),
            ));
        }
        Ok(Self {
            data_type,
            shape,
            data,
        })
    }

    /// The type of the elements.
    #[must_use]
    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// Dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        // Cannot overflow: there are bytes for all of them.
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements' bytes, little-endian.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// The elements' bytes, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.data
    }

    /// The elements where they are. Always possible for the tensors of an answer,
    /// whose memory is aligned.
    ///
    /// # Errors
    /// `InvalidArgument` if they are of another type, or, in a tensor made of
    /// bytes, not aligned for `T`: [`to_vec`](Self::to_vec) takes those, too.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], Error> {
        self.check_type::<T>()?;
        if self.is_empty() {
            // Its bytes, of which there are none, may lie anywhere.
            return Ok(&[]);
        }
        bytemuck::checked::try_cast_slice(&self.data)
            .map_err(|e| Error::local(Code::InvalidArgument, format!("the tensor's bytes: {e}")))
    }

    /// A copy of the elements.
    ///
    /// # Errors
    /// `InvalidArgument` if they are of another type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, Error> {
        if let Ok(elements) = self.as_slice() {
            return Ok(elements.to_vec());
        }
        self.check_type::<T>()?;
        self.data
            .chunks_exact(size_of::<T>())
            .map(|bytes| {
                bytemuck::checked::try_pod_read_unaligned(bytes).map_err(|e| {
                    Error::local(Code::InvalidArgument, format!("the tensor's bytes: {e}"))
                })
            })
            .collect()
    }

    fn check_type<T: Element>(&self) -> Result<(), Error> {
        if self.data_type == T::DATA_TYPE {
            return Ok(());
        }
        Err(Error::local(
            Code::InvalidArgument,
            format!(
                "the tensor's elements are {}, not {}",
                self.data_type,
                T::DATA_TYPE
            ),
        ))
    }

    /// A tensor of an answer. Checks what the server says of it.
    pub(crate) fn from_wire(name: &str, tensor: pb::Tensor) -> Result<Self, Error> {
        let malformed = |what: String| Error::malformed(format!("{name}: {what}"));
        let data_type = DataType::from_wire(tensor.data_type)
            .filter(|&data_type| data_type != DataType::Bits)
            .ok_or_else(|| malformed(format!("unknown data type {}", tensor.data_type)))?;
        let shape: Vec<usize> = tensor
            .shape
            .iter()
            .map(|&n| usize::try_from(n))
            .collect::<Result<_, _>>()
            .map_err(|_| malformed(format!("shape {:?}", tensor.shape)))?;
        if !tensor.float_values.is_empty() || tensor.shared_memory.is_some() {
            return Err(malformed("elements elsewhere than in data".to_owned()));
        }
        if byte_count(data_type, &shape) != Some(tensor.data.len()) {
            return Err(malformed(format!(
                "{} bytes of type {data_type} and shape {shape:?}",
                tensor.data.len()
            )));
        }
        Ok(Self {
            data_type,
            shape,
            data: tensor.data,
        })
    }
}

impl fmt::Debug for Tensor {
    /// Type and shape, not the elements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.data_type, self.shape)
    }
}

impl From<&Tensor> for Tensor {
    /// Shares the elements.
    fn from(tensor: &Tensor) -> Self {
        tensor.clone()
    }
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use super::{AlignedBytes, Element, Error, Tensor};
    use ::ndarray::{ArrayBase, ArrayD, ArrayViewD, Data, Dimension, IxDyn, OwnedRepr};

    impl<T: Element, D: Dimension> From<ArrayBase<OwnedRepr<T>, D>> for Tensor {
        /// Takes the array's memory over where it is row-major, else copies it.
        fn from(array: ArrayBase<OwnedRepr<T>, D>) -> Self {
            if !array.is_standard_layout() {
                return Self::from(&array);
            }
            let shape = array.shape().to_vec();
            let (elements, offset) = array.into_raw_vec_and_offset();
            let begin = offset.unwrap_or(0);
            let count: usize = shape.iter().product();
            let bytes = bytes::Bytes::from_owner(super::Owned(elements, std::marker::PhantomData));
            let size = size_of::<T>();
            Self {
                data_type: T::DATA_TYPE,
                shape,
                data: bytes.slice(begin * size..(begin + count) * size),
            }
        }
    }

    impl<T: Element, S: Data<Elem = T>, D: Dimension> From<&ArrayBase<S, D>> for Tensor {
        /// Copies the elements, in row-major order.
        fn from(array: &ArrayBase<S, D>) -> Self {
            let standard = array.as_standard_layout();
            let elements = standard.as_slice().unwrap_or_default();
            Self {
                data_type: T::DATA_TYPE,
                shape: array.shape().to_vec(),
                data: AlignedBytes::copy_of(bytemuck::cast_slice(elements)).freeze(),
            }
        }
    }

    impl Tensor {
        /// The elements where they are, as an array of the crate `ndarray`.
        ///
        /// # Errors
        /// As [`as_slice`](Self::as_slice).
        pub fn as_ndarray<T: Element>(&self) -> Result<ArrayViewD<'_, T>, Error> {
            ArrayViewD::from_shape(IxDyn(&self.shape), self.as_slice()?)
                .map_err(|e| Error::malformed(e.to_string()))
        }

        /// A copy of the elements, as an array of the crate `ndarray`.
        ///
        /// # Errors
        /// As [`to_vec`](Self::to_vec).
        pub fn to_ndarray<T: Element>(&self) -> Result<ArrayD<T>, Error> {
            ArrayD::from_shape_vec(IxDyn(&self.shape), self.to_vec()?)
                .map_err(|e| Error::malformed(e.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_vectors_over() -> Result<(), Error> {
        let elements = vec![1.0_f64, 2.0, 3.0];
        let address = elements.as_ptr().cast::<u8>();
        let tensor = Tensor::new([3], elements)?;
        assert_eq!(tensor.bytes().as_ptr(), address);
        assert_eq!(tensor.clone().bytes().as_ptr(), address);
        assert_eq!(tensor.len(), 3);
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        for shape in [vec![2, 2], vec![usize::MAX, 2], vec![1 << 62, 4], vec![]] {
            let error = Tensor::new(&shape, vec![0.0_f32; 3]).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{shape:?}");
        }
        assert!(Tensor::new([usize::MAX, usize::MAX, 0], Vec::<f32>::new()).is_ok());
        assert!(Tensor::new([], vec![1.0_f32]).is_ok());
    }

    #[test]
    fn bits_share_bytes() -> Result<(), Error> {
        for (shape, bytes) in [(vec![3, 5], 2), (vec![16], 2), (vec![17], 3), (vec![], 1)] {
            assert_eq!(byte_count(DataType::Bits, &shape), Some(bytes), "{shape:?}");
            let tensor = Tensor::from_bytes(DataType::Bits, &shape, vec![0; bytes])?;
            assert_eq!(tensor.len(), shape.iter().product::<usize>());
            assert!(Tensor::from_bytes(DataType::Bits, &shape, vec![0; bytes + 1]).is_err());
        }
        assert_eq!(byte_count(DataType::Bits, &[usize::MAX, 0]), Some(0));
        assert_eq!(byte_count(DataType::Bits, &[usize::MAX, 2]), None);
        let wire = DataType::Bits.to_wire();
        assert_eq!(DataType::from_wire(wire), Some(DataType::Bits));
        let answered = pb::Tensor {
            data_type: wire,
            shape: vec![8],
            data: vec![0].into(),
            ..Default::default()
        };
        assert!(Tensor::from_wire("scores", answered).is_err());
        Ok(())
    }

    #[test]
    fn elements_have_one_type() -> Result<(), Error> {
        let tensor = Tensor::new([2], vec![true, false])?;
        assert_eq!(tensor.bytes().as_ref(), [1, 0]);
        assert!(tensor.as_slice::<i8>().is_err());
        assert_eq!(tensor.to_vec::<bool>()?, [true, false]);
        let wrong = Tensor::from_bytes(DataType::Bool, [1], vec![2])?;
        assert!(wrong.as_slice::<bool>().is_err());
        assert!(wrong.to_vec::<bool>().is_err());
        Ok(())
    }

    #[test]
    fn no_elements_are_a_slice_too() -> Result<(), Error> {
        let tensor = Tensor::from_bytes(DataType::Float64, [3, 0], Bytes::from_static(&[]))?;
        assert_eq!(tensor.as_slice::<f64>()?, [0.0; 0]);
        assert_eq!(tensor.to_vec::<f64>()?, []);
        Ok(())
    }

    #[test]
    fn unaligned_elements_can_be_copied() -> Result<(), Error> {
        let bytes = AlignedBytes::copy_of(&[0, 0, 0, 0x80, 0x3f]).freeze();
        let tensor = Tensor::from_bytes(DataType::Float32, [1], bytes.slice(1..))?;
        assert!(tensor.as_slice::<f32>().is_err());
        assert_eq!(tensor.to_vec::<f32>()?, [1.0]);
        Ok(())
    }

    #[test]
    fn answers_that_do_not_fit_are_malformed() {
        let good = pb::Tensor {
            data_type: pb::DataType::Float32 as i32,
            shape: vec![1, 2],
            data: vec![0; 8].into(),
            ..Default::default()
        };
        assert!(Tensor::from_wire("output", good.clone()).is_ok());
        let bad = [
            pb::Tensor {
                data_type: 77,
                ..good.clone()
            },
            pb::Tensor {
                data_type: 0,
                ..good.clone()
            },
            pb::Tensor {
                shape: vec![-1, 2],
                ..good.clone()
            },
            pb::Tensor {
                shape: vec![i64::MAX, i64::MAX],
                ..good.clone()
            },
            pb::Tensor {
                data: vec![0; 7].into(),
                ..good.clone()
            },
            pb::Tensor {
                float_values: vec![1.0],
                ..good
            },
        ];
        for tensor in bad {
            let error = Tensor::from_wire("output", tensor).unwrap_err();
            assert_eq!(error.code(), Code::Internal);
        }
    }

    #[cfg(feature = "half")]
    #[test]
    fn half_floats_are_elements() -> Result<(), Error> {
        let tensor = Tensor::new([1], vec![half::bf16::from_f32(1.0)])?;
        assert_eq!(tensor.bytes().as_ref(), [0x80, 0x3f]);
        assert_eq!(tensor.as_slice::<half::bf16>()?[0].to_f32(), 1.0);
        assert_eq!(half::f16::DATA_TYPE, DataType::Float16);
        Ok(())
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn arrays_become_tensors_and_back() -> Result<(), Error> {
        use ::ndarray::{Array2, Axis, Slice, arr2};
        let array = arr2(&[[1.0_f32, 2.0], [3.0, 4.0]]);
        let transposed = Tensor::from(&array.t());
        assert_eq!(transposed.as_slice::<f32>()?, [1.0, 3.0, 2.0, 4.0]);
        // A part that begins behind the memory's first element.
        let mut rest: Array2<f32> = array.clone();
        rest.slice_axis_inplace(Axis(0), Slice::from(1..));
        assert_eq!(Tensor::from(rest).as_slice::<f32>()?, [3.0, 4.0]);
        let tensor = Tensor::from(array.clone());
        assert_eq!(tensor.as_ndarray::<f32>()?, array.view().into_dyn());
        assert_eq!(tensor.to_ndarray::<f32>()?, array.into_dyn());
        Ok(())
    }
}
