//! Dropped calls, and deadlines.

use std::time::{Duration, Instant};

use attention_client::{
    Attend, Causal, Client, Code, ComputeRequest, DataType, SessionConfig, Tensor,
};

use crate::places::{OwnServer, calls_total, need};
use crate::values::filled;

fn zeros(shape: [usize; 4]) -> Tensor {
    let bytes = vec![0; 4 * shape.iter().product::<usize>()];
    Tensor::from_bytes(DataType::Float32, shape, bytes).unwrap()
}

/// Seconds of work.
fn long() -> ComputeRequest {
    let key = zeros([1, 1, 8192, 16]);
    ComputeRequest::new(zeros([1, 16, 8192, 16]), &key, &key).softmax_precision(DataType::Float64)
}

/// Its keys take long to send, and to compute.
fn long_stream() -> ComputeRequest {
    let key = zeros([1, 8, 32_768, 128]);
    ComputeRequest::new(zeros([1, 32, 64, 128]), &key, &key)
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
    let Some(server) = OwnServer::start(&["--http-listen=127.0.0.1:0"]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let session = client
        .create_session(SessionConfig::new(1, 16))
        .await
        .unwrap();
    let rows = |heads, tokens| {
        let bytes = vec![0; 4 * heads * tokens * 16];
        Tensor::from_bytes(DataType::Float32, [heads, tokens, 16], bytes).unwrap()
    };
    session
        .append(0, rows(1, 8192), rows(1, 8192))
        .await
        .unwrap();
    // The stream is open, and its next message is dropped.
    session.attend(0, rows(1, 1)).await.unwrap();
    let long = Attend::new(rows(16, 8192)).softmax_precision(DataType::Float64);
    let call = session.attend(0, long);
    let dropped = tokio::time::timeout(Duration::from_millis(200), call).await;
    assert!(dropped.is_err(), "it was too fast: {dropped:?}");
    wait_for(|| calls_total(&server.http, "Step", "CANCELLED") == 1).await;
    session.attend(0, rows(1, 1)).await.unwrap();
}

#[tokio::test]
async fn deadlines_that_cannot_be_kept() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let request = long();
    let begin = Instant::now();
    let error = client
        .compute(request)
        .timeout(Duration::from_millis(300))
        .await
        .unwrap_err();
    // The server refuses what cannot end in time, if it knows.
    assert!(
        error.code() == Code::DeadlineExceeded || error.reason() == Some("DEADLINE_TOO_CLOSE"),
        "{error}"
    );
    assert!(begin.elapsed() < Duration::from_secs(2));
    let small = filled(DataType::Float32, &[1, 4], 1);
    let request = ComputeRequest::new(&small, &small, &small);
    for timeout in [Duration::ZERO, Duration::from_nanos(1)] {
        let error = client
            .compute(request.clone())
            .timeout(timeout)
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    }
    for micros in [10, 100, 1000] {
        let call = client
            .compute(request.clone())
            .timeout(Duration::from_micros(micros));
        if let Err(error) = call.await {
            let refused = error.reason() == Some("DEADLINE_TOO_CLOSE");
            assert!(refused || error.code() == Code::DeadlineExceeded, "{error}");
        }
    }
    client
        .compute(request)
        .timeout(Duration::MAX)
        .await
        .unwrap();
}

#[tokio::test]
async fn dropping_a_stream_ends_its_upload_when_rows_have_come() {
    let Some(server) = OwnServer::start(&["--http-listen=127.0.0.1:0"]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    // The first keys finish every row; a million follow.
    let tensor = |tokens| {
        let bytes = vec![0; 4 * tokens * 64];
        Tensor::from_bytes(DataType::Float32, [tokens, 64], bytes).unwrap()
    };
    let key = tensor(1_000_000);
    let request = ComputeRequest::new(tensor(8000), &key, &key).causal(Causal::TopLeft);
    let call = client.compute(request);
    let dropped = tokio::time::timeout(Duration::from_millis(400), call).await;
    assert!(dropped.is_err(), "it was too fast: {dropped:?}");
    let ended = |code| calls_total(&server.http, "StreamAttention", code);
    wait_for(|| ended("CANCELLED") + ended("OK") == 1).await;
    assert_eq!(ended("CANCELLED"), 1);
}
