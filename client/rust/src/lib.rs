//! Attention over the network: a client of the attention service.
//!
//! ```no_run
//! use attention_client::{Client, ComputeRequest, Tensor};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), attention_client::Error> {
//!     let client = Client::new("127.0.0.1:50051")?;
//!     let eye = Tensor::new([2, 2], vec![1.0_f32, 0.0, 0.0, 1.0])?;
//!     let answer = client.compute(ComputeRequest::new(&eye, &eye, &eye)).await?;
//!     println!("{:?}", answer.output.as_slice::<f32>()?);
//!     // [0.66976154, 0.33023846, 0.33023846, 0.66976154]
//!     Ok(())
//! }
//! ```

mod axis;
mod call;
mod capabilities;
mod client;
mod compute;
mod connect;
mod error;
mod lease;
mod memory;
mod options;
mod retry;
mod rpc;
mod session;
mod session_state;
mod steps;
mod stream;
mod target;
mod tensor;
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

pub use call::Call;
pub use capabilities::{Capabilities, Health};
pub use client::{Client, ClientBuilder};
pub use compute::{ComputeAnswer, ComputeRequest, Timing};
pub use error::{Code, Error, FieldViolation};
pub use options::{Causal, Layout, MathMode, Scores};
pub use session::{
    Attend, AttendAnswer, Fork, Session, SessionConfig, SessionInfo, StepAnswer, StepItem,
};
pub use tensor::{DataType, Element, Tensor};
