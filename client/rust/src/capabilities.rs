//! What a server can do, and whether it does.

use crate::options::MathMode;
use crate::pb;
use crate::tensor::DataType;

/// What a server can do, and its limits.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The server's version, as in semver.org.
    pub version: String,
    /// The SIMD target in use, by Google Highway's name.
    pub simd_target: String,
    /// Threads that compute.
    pub threads: usize,
    /// Types accepted for query, key and value.
    pub data_types: Vec<DataType>,
    /// Modes accepted.
    pub math_modes: Vec<MathMode>,
    /// Largest request message in bytes.
    pub max_request_bytes: usize,
    /// Largest response message in bytes.
    pub max_response_bytes: usize,
    /// Partial results merge bit-exactly only when split at multiples of so many
    /// keys.
    pub key_block: usize,
    /// Largest head size, D and Dv alike. Here and below 0 is not told.
    pub max_head_size: usize,
    /// Most query heads.
    pub max_heads: usize,
    /// Largest batch.
    pub max_batch: usize,
    /// Largest B · Hkv.
    pub max_batch_heads: usize,
    /// Most work, in multiply-adds.
    pub max_work: u64,
    /// Largest message of a stream after its header, in bytes.
    pub max_chunk_bytes: usize,
    /// Where clients on the server's machine register memory to share with it; empty
    /// is nowhere. This client does not.
    pub shared_memory: String,
}

impl Capabilities {
    pub(crate) fn from_wire(answer: pb::GetCapabilitiesResponse) -> Self {
        let size = |n: i64| n.try_into().unwrap_or(0);
        Self {
            version: answer.version,
            simd_target: answer.simd_target,
            threads: size(answer.threads.into()),
            // Types and modes that this version does not know it cannot name.
            data_types: answer
                .data_types
                .into_iter()
                .filter_map(DataType::from_wire)
                .collect(),
            math_modes: answer
                .math_modes
                .into_iter()
                .filter_map(MathMode::from_wire)
                .collect(),
            max_request_bytes: size(answer.max_request_bytes),
            max_response_bytes: size(answer.max_response_bytes),
            key_block: size(answer.key_block.into()),
            max_head_size: size(answer.max_head_size),
            max_heads: size(answer.max_heads),
            max_batch: size(answer.max_batch),
            max_batch_heads: size(answer.max_batch_heads),
            max_work: answer.max_work.try_into().unwrap_or(0),
            max_chunk_bytes: size(answer.max_chunk_bytes),
            shared_memory: answer.shared_memory,
        }
    }
}

/// Whether a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Health {
    /// It does not say.
    Unknown,
    /// It does.
    Serving,
    /// It does not, such as one that is shutting down.
    NotServing,
}

// The standard gRPC health service, grpc.health.v1.

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub(crate) status: i32,
}

impl From<HealthCheckResponse> for Health {
    fn from(answer: HealthCheckResponse) -> Self {
        match answer.status {
            1 => Self::Serving,
            2 => Self::NotServing,
            _ => Self::Unknown,
        }
    }
}
