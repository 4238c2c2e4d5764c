//! Answers that make no sense, from a server of HTTP/2 that says what it is told to.

use std::sync::{Arc, Mutex};

use attention_client::stubs::{ComputeAttentionResponse, DataType as Wire, Tensor as WireTensor};
use attention_client::{Client, Code, ComputeRequest, Error, Tensor};
use bytes::Bytes;
use http::{HeaderMap, Response};
use prost::Message;
use tokio::net::TcpListener;

/// What every call is answered with.
#[derive(Clone)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    trailers: Option<Vec<(&'static str, String)>>,
    reset: Option<h2::Reason>,
}

impl Answer {
    /// A call that ends well, with this body.
    fn body(body: impl Into<Bytes>) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type", "application/grpc".into())],
            body: body.into(),
            trailers: Some(vec![("grpc-status", "0".into())]),
            reset: None,
        }
    }

    fn headers(status: u16, headers: &[(&'static str, &str)]) -> Self {
        Self {
            status,
            headers: headers.iter().map(|&(n, v)| (n, v.to_owned())).collect(),
            trailers: None,
            ..Self::body("")
        }
    }

    async fn send(self, mut respond: h2::server::SendResponse<Bytes>) -> Result<(), h2::Error> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(*name, value);
        }
        if let Some(reason) = self.reset {
            respond.send_reset(reason);
            return Ok(());
        }
        let mut stream = respond.send_response(response.body(()).unwrap(), false)?;
        stream.send_data(self.body, self.trailers.is_none())?;
        if let Some(trailers) = self.trailers {
            let trailers: HeaderMap = trailers
                .into_iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            stream.send_trailers(trailers)?;
        }
        Ok(())
    }
}

async fn ask(answer: Answer) -> Result<Tensor, Error> {
    ask_as(answer, None).await.0
}

/// What a call with this request id is answered, and the one that the server got.
async fn ask_as(answer: Answer, id: Option<&str>) -> (Result<Tensor, Error>, Option<String>) {
    let got = Arc::new(Mutex::new(None));
    let told = Arc::clone(&got);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (answer, told) = (answer.clone(), Arc::clone(&told));
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let answer = answer.clone();
                    let id = request.headers().get("x-request-id");
                    *told.lock().unwrap() = id.map(|id| id.to_str().unwrap().to_owned());
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while body.data().await.is_some() {}
                        let _ = answer.send(respond).await;
                    });
                }
            });
        }
    });
    let client = Client::new(address).unwrap();
    let row = Tensor::new([1, 2], vec![1.0_f32, 2.0]).unwrap();
    let mut call = client.compute(ComputeRequest::new(&row, &row, &row));
    if let Some(id) = id {
        call = call.request_id(id);
    }
    let answer = call.max_attempts(1).await;
    server.abort();
    let got = got.lock().unwrap().take();
    (answer.map(|answer| answer.output), got)
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame
}

fn output(data_type: Wire, shape: &[i64], bytes: usize) -> Vec<u8> {
    let answer = ComputeAttentionResponse {
        output: Some(WireTensor {
            data_type: data_type as i32,
            shape: shape.to_vec(),
            data: vec![0; bytes].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    framed(&answer.encode_to_vec())
}

#[tokio::test]
async fn request_ids() {
    let right = Answer::body(output(Wire::Float32, &[1, 2], 8));
    let (answer, got) = ask_as(right.clone(), Some("mine/7")).await;
    assert_eq!((answer.is_ok(), got.as_deref()), (true, Some("mine/7")));
    let (answer, got) = ask_as(right.clone(), None).await;
    assert_eq!((answer.is_ok(), got), (true, None));
    for bad in ["", "two words", "ü", "line\nbreak", &"x".repeat(129)] {
        let (answer, got) = ask_as(right.clone(), Some(bad)).await;
        let error = answer.unwrap_err();
        assert_eq!(
            (error.code(), got),
            (Code::InvalidArgument, None),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_right_answer() {
    let tensor = ask(Answer::body(output(Wire::Float32, &[1, 2], 8)))
        .await
        .unwrap();
    assert_eq!(tensor.as_slice::<f32>().unwrap(), [0.0, 0.0]);
}

#[tokio::test]
async fn wrong_bodies() {
    let good = output(Wire::Float32, &[1, 2], 8);
    let mut compressed = good.clone();
    compressed[0] = 1;
    let mut endless = vec![0, 0xff, 0xff, 0xff, 0xff];
    endless.extend([0; 100]);
    for (name, body) in [
        ("nothing", Vec::new()),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("a prefix alone", good[..3].to_vec()),
        ("twice", [&good[..], &good[..]].concat()),
        ("compressed", compressed),
        ("4 GiB announced", endless),
        ("garbage", framed(&[0xff; 40])),
        ("an empty message", framed(&[])),
        ("of another type", output(Wire::Float64, &[1, 2], 16)),
        ("of an unknown type", output(Wire::Unspecified, &[1, 2], 8)),
        ("of another shape", output(Wire::Float32, &[2, 1], 8)),
        (
            "of a shape that overflows",
            output(Wire::Float32, &[i64::MAX, i64::MAX], 8),
        ),
        ("of a negative shape", output(Wire::Float32, &[-1, -2], 8)),
        ("too few bytes", output(Wire::Float32, &[1, 2], 7)),
    ] {
        let error = ask(Answer::body(body)).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal, "{name}: {error}");
        assert!(
            error.message().starts_with("malformed answer"),
            "{name}: {error}"
        );
    }
}

#[tokio::test]
async fn wrong_statuses() {
    let grpc = ("content-type", "application/grpc");
    let html = ("content-type", "text/html");
    let large = "x".repeat(100_000);
    for (code, answer) in [
        (Code::Unknown, Answer::headers(200, &[html])),
        (Code::Unknown, Answer::headers(200, &[])),
        (Code::Unavailable, Answer::headers(503, &[html])),
        (Code::Unimplemented, Answer::headers(404, &[html])),
        (Code::Unauthenticated, Answer::headers(401, &[])),
        (Code::Unknown, Answer::headers(418, &[])),
        // Without a status, with ones that are none.
        (Code::Internal, Answer::headers(200, &[grpc])),
        (
            Code::Unknown,
            Answer::headers(200, &[grpc, ("grpc-status", "many")]),
        ),
        (
            Code::Unknown,
            Answer::headers(200, &[grpc, ("grpc-status", "77")]),
        ),
        (
            Code::NotFound,
            Answer::headers(
                200,
                &[
                    grpc,
                    ("grpc-status", "5"),
                    ("grpc-message", "%zz%"),
                    ("grpc-status-details-bin", "!!!"),
                ],
            ),
        ),
        (
            Code::Internal,
            Answer::headers(200, &[grpc, ("large", &large)]),
        ),
    ] {
        let error = ask(answer.clone()).await.unwrap_err();
        assert_eq!(error.code(), code, "{}: {error}", answer.status);
    }
}

#[tokio::test]
async fn resets() {
    for (code, reason) in [
        (Code::Cancelled, h2::Reason::CANCEL),
        (Code::Unavailable, h2::Reason::REFUSED_STREAM),
        (Code::ResourceExhausted, h2::Reason::ENHANCE_YOUR_CALM),
        (Code::Internal, h2::Reason::INTERNAL_ERROR),
        (Code::Internal, h2::Reason::NO_ERROR),
    ] {
        let answer = Answer {
            reset: Some(reason),
            ..Answer::body("")
        };
        let error = ask(answer).await.unwrap_err();
        assert_eq!(error.code(), code, "{reason}: {error}");
    }
}
