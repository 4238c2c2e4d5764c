//! Keeps sentences by their meaning, and finds those that are like another one.
//!
//!     search --listen 127.0.0.1:0 --attention 127.0.0.1:50051

mod index;
mod pooling;
mod service;

use std::collections::HashMap;
use std::error::Error;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::TcpListenerStream;

use attention_client::Client;
use service::{Search, SearcherServer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flags = flags(std::env::args().skip(1))?;
    let flag = |name: &str| flags.get(name).ok_or(format!("--{name} is missing"));
    // Connects when it is first needed, and again whenever the connection is lost.
    let attention = Client::new(flag("attention")?)?;
    let listener = TcpListener::bind(flag("listen")?).await?;
    println!("listening on {}", listener.local_addr()?);

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SearcherServer<Search>>().await;
    let mut terminate = signal(SignalKind::terminate())?;
    tonic::transport::Server::builder()
        .add_service(health_service)
        .add_service(SearcherServer::new(Search::new(attention)))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}

/// The values of `--name value`.
fn flags(mut arguments: impl Iterator<Item = String>) -> Result<HashMap<String, String>, String> {
    let mut flags = HashMap::new();
    while let Some(argument) = arguments.next() {
        let name = argument
            .strip_prefix("--")
            .ok_or(format!("'{argument}' is no flag"))?;
        let value = arguments.next().ok_or(format!("--{name} has no value"))?;
        flags.insert(name.to_owned(), value);
    }
    Ok(flags)
}
