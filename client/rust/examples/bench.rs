//! How fast this client is, beside the generated stub as tutorials use it. The two
//! take turns; only what they have in one run can be compared.
//!
//! ```sh
//! cargo run --release --example bench -- --server HOST:PORT --seconds 10
//! ```
//!
//! Prints a line of JSON for each case and way. The seconds are those of a case.

use std::error::Error;
use std::time::{Duration, Instant};

use attention_client::stubs::attention_service_client::AttentionServiceClient;
use attention_client::stubs::{self, ComputeAttentionRequest};
use attention_client::{Client, ComputeRequest, Tensor};
use tonic::transport::Channel;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Stub = AttentionServiceClient<Channel>;

/// Heads, tokens and sizes of a request.
struct Case {
    name: &'static str,
    query_heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    size: usize,
}

const CASES: [Case; 3] = [
    Case {
        name: "tiny",
        query_heads: 1,
        kv_heads: 1,
        queries: 16,
        keys: 16,
        size: 64,
    },
    Case {
        name: "128",
        query_heads: 8,
        kv_heads: 8,
        queries: 128,
        keys: 128,
        size: 64,
    },
    Case {
        name: "decode",
        query_heads: 32,
        kv_heads: 8,
        queries: 1,
        keys: 8192,
        size: 128,
    },
];

/// A caller's numbers.
struct Array {
    shape: [usize; 4],
    numbers: std::sync::Arc<[f32]>,
}

impl Array {
    fn new(shape: [usize; 4], seed: u32) -> Self {
        let count = shape.iter().product::<usize>() as u32;
        let number = |i: u32| {
            let mixed = i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503);
            (((mixed >> 16) % 255) as f32 - 127.0) / 64.0
        };
        Self {
            shape,
            numbers: (0..count).map(number).collect(),
        }
    }
}

struct Arrays {
    query: Array,
    key: Array,
    value: Array,
}

impl Arrays {
    fn new(case: &Case) -> Self {
        let keys = [1, case.kv_heads, case.keys, case.size];
        Self {
            query: Array::new([1, case.query_heads, case.queries, case.size], 1),
            key: Array::new(keys, 2),
            value: Array::new(keys, 3),
        }
    }
}

async fn by_client(client: &Client, arrays: &Arrays) -> Result<Vec<f32>> {
    let tensor = |array: &Array| Tensor::new(array.shape, array.numbers.clone());
    let (query, key) = (tensor(&arrays.query)?, tensor(&arrays.key)?);
    let request = ComputeRequest::new(query, key, tensor(&arrays.value)?);
    let answer = client.compute(request).await?;
    Ok(answer.output.to_vec()?)
}

fn message(array: &Array) -> stubs::Tensor {
    let bytes: Vec<u8> = array
        .numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    stubs::Tensor {
        data_type: stubs::DataType::Float32 as i32,
        shape: array.shape.iter().map(|&n| n as i64).collect(),
        data: bytes.into(),
        ..Default::default()
    }
}

async fn by_stub(stub: &mut Stub, arrays: &Arrays) -> Result<Vec<f32>> {
    let request = ComputeAttentionRequest {
        query: Some(message(&arrays.query)),
        key: Some(message(&arrays.key)),
        value: Some(message(&arrays.value)),
        ..Default::default()
    };
    let answer = stub.compute_attention(request).await?.into_inner();
    let output = answer.output.ok_or("no output")?;
    let numbers = output
        .data
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(numbers.collect())
}

fn print(case: &Case, way: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let p50 = times[times.len() / 2].as_secs_f64() * 1000.0;
    println!(
        r#"{{"case":"{}","way":"{way}","p50_ms":{p50:.4},"calls":{}}}"#,
        case.name,
        times.len()
    );
}

async fn run(case: &Case, client: &Client, stub: &mut Stub, time: Duration) -> Result<()> {
    let arrays = Arrays::new(case);
    let expected = by_stub(stub, &arrays).await?;
    let same = by_client(client, &arrays).await?;
    let bits = |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
    if bits(&expected) != bits(&same) {
        return Err(format!("{}: the answers differ", case.name).into());
    }
    let (mut clients, mut stubs) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < time || clients.len() < 3 {
        let start = Instant::now();
        by_client(client, &arrays).await?;
        clients.push(start.elapsed());
        let start = Instant::now();
        by_stub(stub, &arrays).await?;
        stubs.push(start.elapsed());
    }
    print(case, "client", &mut clients);
    print(case, "stub", &mut stubs);
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
    let server = flag("--server")?;
    let seconds: f64 = flag("--seconds")?.parse()?;
    let client = Client::new(&server)?;
    let stub = AttentionServiceClient::connect(format!("http://{server}")).await?;
    let mut stub = stub.max_decoding_message_size(usize::MAX);
    let time = Duration::from_secs_f64(seconds);
    for case in &CASES {
        run(case, &client, &mut stub, time).await?;
    }
    Ok(())
}
