//! Large requests, which are sent in pieces.

use attention_client::{
    Causal, Client, Code, ComputeAnswer, ComputeRequest, DataType, Error, Layout, Tensor,
};

use crate::places::{OwnServer, calls_total};
use crate::values::filled;

fn f32s(shape: &[usize], seed: u64) -> Tensor {
    filled(DataType::Float32, shape, seed)
}

/// Requests that are worth a stream, one per thing that can be cut.
fn requests() -> Vec<(&'static str, ComputeRequest)> {
    let bhsd = |tokens| {
        ComputeRequest::new(
            f32s(&[1, 4, 3, 64], 1),
            f32s(&[1, 4, tokens, 64], 2),
            f32s(&[1, 4, tokens, 64], 3),
        )
    };
    vec![
        ("bhsd", bhsd(5000).return_log_sum_exp()),
        (
            "causal",
            bhsd(5000).causal(Causal::BottomRight).window(700, None),
        ),
        (
            "mask",
            bhsd(5000).mask(filled(DataType::Bool, &[4, 3, 4900], 9)),
        ),
        (
            "past",
            bhsd(4000)
                .past_key(f32s(&[1, 4, 2000, 64], 4))
                .past_value(f32s(&[1, 4, 2000, 64], 5))
                .mask(f32s(&[3, 6000], 9)),
        ),
        (
            "matrix",
            ComputeRequest::new(
                f32s(&[5, 64], 1),
                f32s(&[20_000, 64], 2),
                f32s(&[20_000, 32], 3),
            )
            .return_log_sum_exp(),
        ),
        (
            "indices",
            bhsd(5000)
                .indices(Tensor::new([1, 3, 2], vec![4999_i32, 0, -1, 7, 256, 256]).unwrap())
                .row_sinks(f32s(&[1, 4, 3], 7))
                .return_log_sum_exp(),
        ),
        (
            "bshd",
            ComputeRequest::new(
                f32s(&[2, 3, 4, 64], 1),
                f32s(&[2, 3000, 2, 64], 2),
                f32s(&[2, 3000, 2, 64], 3),
            )
            .layout(Layout::Bshd)
            .past_key(f32s(&[2, 2, 100, 64], 4))
            .past_value(f32s(&[2, 2, 100, 64], 5))
            .return_log_sum_exp(),
        ),
        (
            "packed",
            ComputeRequest::new(
                f32s(&[1, 3, 4 * 64], 1),
                f32s(&[1, 6000, 2 * 64], 2),
                f32s(&[1, 6000, 2 * 32], 3),
            )
            .query_heads(4)
            .kv_heads(2)
            .valid_lengths([5999])
            .return_log_sum_exp(),
        ),
    ]
}

fn same(name: &str, streamed: &ComputeAnswer, whole: &ComputeAnswer) {
    assert_eq!(streamed.output, whole.output, "{name}");
    assert_eq!(streamed.log_sum_exp, whole.log_sum_exp, "{name}");
}

#[tokio::test]
async fn streams_have_the_bits_of_one_message() {
    let Some(server) = OwnServer::start(&["--http-listen=127.0.0.1:0"]) else {
        return;
    };
    // Takes no chunk, however small: the client sends one message.
    let Some(strict) = OwnServer::start(&["--http-listen=127.0.0.1:0", "--max-chunk-bytes=64KiB"])
    else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let without = Client::new(&strict.address).unwrap();
    for (name, request) in requests() {
        let before = calls_total(&server.http, "StreamAttention", "OK");
        let streamed = client
            .compute(request.clone())
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let after = calls_total(&server.http, "StreamAttention", "OK");
        assert_eq!(after, before + 1, "{name} was not streamed");
        let whole = without
            .compute(request)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        same(name, &streamed, &whole);
    }
    let streams = calls_total(&strict.http, "StreamAttention", "OK");
    let messages = calls_total(&strict.http, "ComputeAttention", "OK");
    assert_eq!((streams, messages), (0, requests().len() as u64));
}

#[tokio::test]
async fn small_requests_and_scores_are_one_message() {
    let Some(server) = OwnServer::start(&["--http-listen=127.0.0.1:0"]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let (_, large) = requests().remove(0);
    let scores = large.return_scores(attention_client::Scores::Weights);
    let small = f32s(&[1, 1, 4, 8], 1);
    // A mask of bits is cut nowhere.
    let (_, large) = requests().remove(0);
    let bits = Tensor::from_bytes(DataType::Bits, [3, 5000], vec![0xa5; 1875]).unwrap();
    // Indices are no keys, however many.
    let many = Tensor::new([1, 4, 1 << 20], vec![0_i32; 4 << 20]).unwrap();
    // So many rows that their state is larger than the request.
    let rows = f32s(&[1, 32, 2500, 64], 1);
    let key = f32s(&[1, 8, 2500, 64], 2);
    for request in [
        scores,
        large.mask(bits),
        ComputeRequest::new(&small, &small, &small),
        ComputeRequest::new(&small, &small, &small).indices(many),
        ComputeRequest::new(&rows, &key, &key),
    ] {
        client.compute(request).await.unwrap();
    }
    assert_eq!(calls_total(&server.http, "StreamAttention", "OK"), 0);
    assert_eq!(calls_total(&server.http, "ComputeAttention", "OK"), 5);
}

fn error_of(answer: Result<ComputeAnswer, Error>) -> (Code, String, String) {
    let error = answer.unwrap_err();
    let field = error.field_violations()[0].field.clone();
    (error.code(), field, error.message().to_owned())
}

#[tokio::test]
async fn errors_name_the_same_fields() {
    let Some(server) = OwnServer::start(&[]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let key = f32s(&[1, 4, 5000, 64], 2);
    let query = f32s(&[1, 3, 1, 64], 1);
    let (code, field, message) = error_of(
        client
            .compute(ComputeRequest::new(&query, &key, &key))
            .await,
    );
    assert_eq!((code, field.as_str()), (Code::InvalidArgument, "key.shape"));
    assert!(message.starts_with("key.shape"), "{message}");
    // Wrong in its last chunk only.
    let mut mask = vec![1; 5000];
    mask[4999] = 2;
    let mask = Tensor::from_bytes(DataType::Bool, [5000], mask).unwrap();
    let query = f32s(&[1, 4, 1, 64], 1);
    let request = ComputeRequest::new(&query, &key, &key).mask(mask);
    let (code, field, message) = error_of(client.compute(request).await);
    assert_eq!((code, field.as_str()), (Code::InvalidArgument, "mask.data"));
    assert!(
        message.starts_with("mask") && !message.contains("element"),
        "{message}"
    );
}

#[tokio::test]
async fn answers_above_the_limit_are_refused() {
    let Some(server) = OwnServer::start(&[]) else {
        return;
    };
    let limit = |bytes| {
        Client::builder(&server.address)
            .max_receive_bytes(bytes)
            .build()
            .unwrap()
    };
    let tensor = f32s(&[100, 64], 1);
    let request = ComputeRequest::new(&tensor, &tensor, &tensor);
    // The server is told, and computes nothing.
    let error = limit(1000).compute(request.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(error.reason(), Some("ANSWER_TOO_LARGE"));
    // What tells it not is measured.
    let error = limit(10).capabilities().await.unwrap_err();
    assert_eq!(error.reason(), Some("CLIENT_LIMIT"));
    limit(100 * 64 * 4 + 200).compute(request).await.unwrap();
}
