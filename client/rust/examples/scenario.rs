//! Does a little of everything, and prints what came of it: the same lines as the
//! clients in other languages (tests/polyglot/README.md of the repository).
//!
//! ```sh
//! cargo run --example scenario -- --server HOST:PORT --misbehaving HOST:PORT \
//!     --misbehaving-http HOST:PORT
//! ```

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attention_client::{Causal, Client, ComputeRequest, DataType, SessionConfig, Tensor};
use sha2::{Digest, Sha256};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Multiples of 1/64 below 2, which are exact in every type.
fn numbers(shape: &[usize], seed: u64) -> Vec<f32> {
    let count = shape.iter().product::<usize>() as u64;
    let number = |i: u64| {
        let mixed = (i.wrapping_mul(2_654_435_761) + seed * 40_503) % (1 << 32);
        (((mixed >> 16) % 255) as f32 - 127.0) / 64.0
    };
    (0..count).map(number).collect()
}

fn f32s(shape: &[usize], seed: u64) -> Tensor {
    Tensor::new(shape, numbers(shape, seed)).expect("as many numbers as the shape has")
}

fn bf16s(shape: &[usize], seed: u64) -> Tensor {
    let numbers = numbers(shape, seed).into_iter();
    let bytes: Vec<u8> = numbers
        .flat_map(|number| ((number.to_bits() >> 16) as u16).to_le_bytes())
        .collect();
    Tensor::from_bytes(DataType::BFloat16, shape, bytes).expect("two bytes for each")
}

fn digest(tensor: &Tensor) -> String {
    let sum = Sha256::digest(tensor.bytes());
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn compute(client: &Client) -> Result<()> {
    let request = ComputeRequest::new(
        f32s(&[2, 8, 33, 64], 1),
        f32s(&[2, 2, 57, 64], 2),
        f32s(&[2, 2, 57, 64], 3),
    )
    .causal(Causal::BottomRight)
    .window(40, None);
    let answer = client.compute(request).await?;
    println!("compute f32 {}", digest(&answer.output));

    let tensor = |seed| bf16s(&[1, 4, 16, 32], seed);
    let request = ComputeRequest::new(tensor(4), tensor(5), tensor(6));
    let answer = client.compute(request).await?;
    println!("compute bf16 {}", digest(&answer.output));
    Ok(())
}

async fn refused(client: &Client) -> Result<()> {
    let request = ComputeRequest::new(f32s(&[2, 2], 1), f32s(&[3, 4], 2), f32s(&[2, 2], 3));
    let error = client
        .compute(request)
        .await
        .expect_err("the key is of another size");
    let (reason, field) = (
        error.reason().unwrap_or(""),
        &error.field_violations()[0].field,
    );
    println!("refused {} {reason} {field}", error.code());
    Ok(())
}

fn row() -> ComputeRequest {
    let row = f32s(&[1, 4], 1);
    ComputeRequest::new(&row, &row, &row)
}

/// A token that begins a case of the misbehaving server anew.
fn token(case: &str) -> Result<String> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(format!(
        "{case}.rust-{}-{}",
        std::process::id(),
        time.as_nanos()
    ))
}

async fn busy(address: &str, http: &str) -> Result<()> {
    let token = token("busy_then_ok")?;
    let client = Client::builder(address).token(&token).build()?;
    client.compute(row()).await?;
    let mut stream = TcpStream::connect(http)?;
    write!(stream, "GET /attempts?token={token} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP")?;
    let attempts: Vec<serde_json::Value> = serde_json::from_str(body)?;
    println!("busy OK {}", attempts.len());
    Ok(())
}

async fn session(client: &Client) -> Result<()> {
    let token = |seed| f32s(&[2, 1, 16], seed);
    let query = |seed| f32s(&[4, 1, 16], seed);
    let first = client.create_session(SessionConfig::new(2, 16)).await?;
    let length = first
        .append(0, f32s(&[2, 7, 16], 7), f32s(&[2, 7, 16], 8))
        .await?;
    println!("session append {length}");
    let answer = first.step(0, token(9), token(10), query(11)).await?;
    println!("session step {} {}", answer.length, digest(&answer.output));

    let fork = first.fork().await?;
    let before = fork.lengths()[0];
    fork.truncate(5).await?;
    let answer = fork.attend(0, query(12)).await?;
    println!(
        "session fork {before} truncate {} {}",
        answer.length,
        digest(&answer.output)
    );

    let second = client.open_session(first.id()).await?;
    second.append(0, token(13), token(14)).await?;
    let error = first
        .append(0, token(15), token(16))
        .await
        .expect_err("somebody else was first");
    let (reason, length) = (error.reason().unwrap_or(""), error.length().unwrap_or(0));
    println!("session conflict {} {reason} {length}", error.code());
    first.refresh().await?;
    let answer = first.attend(0, query(12)).await?;
    println!(
        "session parent {} {}",
        answer.length,
        digest(&answer.output)
    );

    fork.delete().await?;
    first.delete().await?;
    Ok(())
}

async fn cancel(address: &str) -> Result<()> {
    let client = Client::builder(address).token(token("hang")?).build()?;
    let call = tokio::spawn(client.compute(row()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    call.abort(); // Drops the call, which cancels it.
    if call.await.is_err_and(|error| error.is_cancelled()) {
        println!("cancel CANCELLED");
    }
    Ok(())
}

/// The value of `--NAME VALUE` or `--NAME=VALUE`.
fn flag(name: &str) -> Result<String> {
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix(name) {
            Some("") => return Ok(arguments.next().ok_or(format!("{name}: no value"))?),
            Some(rest) if rest.starts_with('=') => return Ok(rest[1..].to_owned()),
            _ => {}
        }
    }
    Err(format!("{name} is missing").into())
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::new(flag("--server")?)?;
    let misbehaving = flag("--misbehaving")?;
    compute(&client).await?;
    refused(&client).await?;
    busy(&misbehaving, &flag("--misbehaving-http")?).await?;
    session(&client).await?;
    cancel(&misbehaving).await
}
