//! Dropped calls, and deadlines.

use std::time::{Duration, Instant};

use attention_client::{Client, Code, ComputeRequest, DataType, Tensor};

use crate::places::{OwnServer, calls_total, need};
use crate::values::filled;

/// More than a second of work.
fn long() -> ComputeRequest {
    let tensor = filled(DataType::Float32, &[1, 32, 4096, 128], 1);
    ComputeRequest::new(&tensor, &tensor, &tensor)
        .return_log_sum_exp()
        .softmax_precision(DataType::Float64)
}

/// Its keys take long to send, and to compute.
fn long_stream() -> ComputeRequest {
    let query = filled(DataType::Float32, &[1, 32, 64, 128], 1);
    let key = Tensor::from_bytes(
        DataType::Float32,
        [1, 8, 32_768, 128],
        vec![0; 8 * 32_768 * 128 * 4],
    )
    .unwrap();
    ComputeRequest::new(query, &key, &key)
}

async fn wait_for(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "the server went on"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn dropping_a_call_cancels_it_at_the_server() {
    let Some(server) = OwnServer::start(&["--http-listen=127.0.0.1:0"]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    for (method, request) in [
        ("ComputeAttention", long()),
        ("StreamAttention", long_stream()),
    ] {
        client.health("").await.unwrap();
        let call = client.compute(request);
        let dropped = tokio::time::timeout(Duration::from_millis(250), call).await;
        assert!(dropped.is_err(), "{method} was too fast: {dropped:?}");
        wait_for(|| calls_total(&server.http, method, "CANCELLED") == 1).await;
    }
    // The connection is as good as before.
    client.health("").await.unwrap();
}

#[tokio::test]
async fn dropping_a_step_cancels_it() {
    let address = need!("ATTENTION_TEST_MISBEHAVING");
    let token = format!("hang.{}", crate::places::nonce());
    let client = Client::builder(address).token(token).build().unwrap();
    let row = filled(DataType::Float32, &[1, 4], 1);
    let call = client.compute(ComputeRequest::new(&row, &row, &row));
    let task = tokio::spawn(call);
    tokio::time::sleep(Duration::from_millis(100)).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn deadlines_end_calls_here_and_there() {
    let Some(server) = OwnServer::start(&["--http-listen=127.0.0.1:0"]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let begin = Instant::now();
    let error = client
        .compute(long())
        .timeout(Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(begin.elapsed() < Duration::from_secs(2));
    let ended = |code| calls_total(&server.http, "ComputeAttention", code);
    wait_for(|| ended("CANCELLED") + ended("DEADLINE_EXCEEDED") >= 1).await;
    let small = filled(DataType::Float32, &[1, 4], 1);
    let request = ComputeRequest::new(&small, &small, &small);
    for timeout in [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_micros(50),
    ] {
        match client.compute(request.clone()).timeout(timeout).await {
            Ok(_) => assert_eq!(timeout, Duration::from_micros(50)),
            Err(error) => assert!(
                matches!(
                    error.code(),
                    Code::DeadlineExceeded | Code::ResourceExhausted
                ),
                "{error}"
            ),
        }
    }
    client
        .compute(request)
        .timeout(Duration::MAX)
        .await
        .unwrap();
}
