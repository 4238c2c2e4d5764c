//! Tests against real servers, which the environment names: `ATTENTION_TEST_SERVER`
//! and the others of tests/polyglot/README.md. A test whose server is not named says
//! that it is skipped.

mod cancellation;
mod hostile;
mod malformed;
mod places;
mod retries;
mod security;
mod selection;
mod sessions;
mod step_streams;
mod streams;
mod values;
mod vectors;
