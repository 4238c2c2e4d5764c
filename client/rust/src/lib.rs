//! Attention over the network: a client of the attention service.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), attention_client::Error> {
//! # // Runs where a server is named, as the tests do.
//! # let Ok(server) = std::env::var("ATTENTION_TEST_SERVER") else { return Ok(()) };
//! use attention_client::{Client, ComputeRequest, Tensor};
//!
//! let client = Client::new("127.0.0.1:50051")?;
//! # let client = Client::new(server)?;
//! let eye = Tensor::new([2, 2], vec![1.0_f32, 0.0, 0.0, 1.0])?;
//! let answer = client.compute(ComputeRequest::new(&eye, &eye, &eye)).await?;
//! println!("{:?}", answer.output.as_slice::<f32>()?);
//! // [0.66976154, 0.33023846, 0.33023846, 0.66976154]
//! # Ok(())
//! # }
//! ```
//!
//! | start here | |
//! |---|---|
//! | [`Client`] | a connection to a server; [`ClientBuilder`] has the options: TLS, tokens, timeouts |
//! | [`Tensor`] | a type, a shape and bytes, which are shared rather than copied |
//! | [`ComputeRequest`] | tensors and options of one computation |
//! | [`Session`] | keys and values that stay in the server, for decoding |
//! | [`Call`] | what every method gives: a future with a timeout; to drop it cancels the call |
//! | [`Error`] | why a call failed, and when to try again |
//!
//! # What the client does by itself
//!
//! - **Retries.** A call is tried up to four times within its timeout, where the
//!   server refused it before it did anything, or the connection was lost and the
//!   call may be made twice: all may but forks. It waits as long as the server says.
//!   [`ClientBuilder::max_attempts`] turns that off.
//! - **Streams.** A request with more than 4 MiB of keys and values for few rows is
//!   sent in pieces and computed meanwhile. The answer has the same bits.
//! - **Deadlines.** Every call has one, of 60 s unless told otherwise. The server
//!   knows it, and stops.
//! - **Leases.** Sessions are kept alive while their objects live.
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `tls` (default) | TLS by rustls, with ring |
//! | `ndarray` | tensors from arrays of the crate `ndarray`, and back |
//! | `half` | `half::f16` and `half::bf16` as elements |
//! | `stubs` | the generated messages and stubs, for calls that this crate lacks |
//!
//! The crate needs a runtime of tokio with its timers and I/O enabled.

mod append;
mod attend;
mod axes;
mod axis;
mod builder;
mod call;
mod capabilities;
mod client;
mod compute;
mod connect;
mod error;
mod fork;
mod lease;
mod memory;
mod options;
mod retry;
mod rpc;
mod session;
mod session_config;
mod session_state;
mod step;
mod step_streams;
mod stream;
mod target;
mod tensor;
#[cfg(feature = "tls")]
mod tls;
mod token;

/// The generated messages, and stubs that make calls with them: for what this crate
/// does not have. They have none of what [`Client`] does besides: no retries, no
/// deadlines, no tokens.
#[cfg(feature = "stubs")]
pub mod stubs {
    #![allow(dead_code, missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    include!(concat!(env!("OUT_DIR"), "/attention.v1.rs"));
}
#[cfg(not(feature = "stubs"))]
mod stubs {
    #![allow(dead_code, missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
    include!(concat!(env!("OUT_DIR"), "/attention.v1.rs"));
}
use stubs as pb;

pub use attend::{Attend, AttendAnswer};
pub use builder::ClientBuilder;
pub use call::Call;
pub use capabilities::{Capabilities, Health};
pub use client::Client;
pub use compute::{ComputeAnswer, ComputeRequest, Timing};
pub use error::{Code, Error, FieldViolation};
pub use fork::Fork;
pub use options::{Causal, Layout, MathMode, Scores};
pub use session::Session;
pub use session_config::{SessionConfig, SessionInfo};
pub use step::{StepAnswer, StepItem};
pub use tensor::{DataType, Element, Tensor};
