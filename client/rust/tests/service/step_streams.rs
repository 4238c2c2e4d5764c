//! How many calls a decode loop opens, as a server sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use attention_client::stubs::{
    CreateSessionRequest, CreateSessionResponse, Session, StepRequest, StepResponse, StepResult,
};
use attention_client::{Client, Code, SessionConfig, Tensor};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::net::TcpListener;

fn framed(message: &impl Message) -> Bytes {
    let mut frame = vec![0];
    frame.extend((message.encoded_len() as u32).to_be_bytes());
    frame.extend(message.encode_to_vec());
    frame.into()
}

/// The next message of a call.
async fn next<M: Message + Default>(
    body: &mut h2::RecvStream,
    received: &mut BytesMut,
) -> Option<M> {
    loop {
        if received.len() >= 5 {
            let len = (&received[1..5]).get_u32() as usize;
            if received.len() >= 5 + len {
                received.advance(5);
                return Some(M::decode(received.split_to(len)).unwrap());
            }
        }
        let data = body.data().await?.ok()?;
        let _ = body.flow_control().release_capacity(data.len());
        received.extend_from_slice(&data);
    }
}

/// Answers steps with their queries, one stream per call.
async fn serve(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    streams: Arc<AtomicUsize>,
) -> Result<(), h2::Error> {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let mut body = request.into_body();
    let mut received = BytesMut::new();
    let head = Response::builder().header("content-type", "application/grpc");
    let mut stream = respond.send_response(head.body(()).unwrap(), false)?;
    if method == "Step" {
        streams.fetch_add(1, Ordering::Relaxed);
        while let Some(step) = next::<StepRequest>(&mut body, &mut received).await {
            let results = step.items.into_iter().map(|item| StepResult {
                // Of another shape, if it is asked to.
                output: item.query.map(|mut query| {
                    if query.data[..4] == 9.0_f32.to_le_bytes() {
                        query.shape.reverse();
                    }
                    query
                }),
                length: item.expected_length.unwrap() + 1,
                ..Default::default()
            });
            let answer = StepResponse {
                results: results.collect(),
                ..Default::default()
            };
            stream.send_data(framed(&answer), false)?;
        }
    } else {
        assert_eq!(method, "CreateSession");
        let create: CreateSessionRequest = next(&mut body, &mut received).await.unwrap();
        // Clients choose an id that nobody can guess.
        assert_eq!(create.id.len(), 32);
        let answer = CreateSessionResponse {
            session: Some(Session {
                id: create.id,
                config: create.config,
                lengths: vec![0],
                incarnation: 7,
                ..Default::default()
            }),
        };
        stream.send_data(framed(&answer), false)?;
    }
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    stream.send_trailers(trailers)
}

#[tokio::test]
async fn a_decode_loop_opens_one_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(listener.local_addr().unwrap().to_string()).unwrap();
    let streams = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&streams);
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(serve(request, respond, Arc::clone(&counted)));
        }
    });
    let config = SessionConfig::new(1, 2);
    let session = client.create_session(config.clone()).await.unwrap();
    let other = client.create_session(config).await.unwrap();
    let token = Tensor::new([1, 1, 2], vec![1.0_f32, 2.0]).unwrap();
    for length in 1..=20 {
        let answer = session.step(0, &token, &token, &token).await.unwrap();
        assert_eq!((answer.length, &answer.output), (length, &token));
    }
    assert_eq!(streams.load(Ordering::Relaxed), 1);
    // Two at once need one more, which stays.
    for _ in 0..5 {
        let (first, second) = tokio::join!(
            session.step(0, &token, &token, &token),
            other.step(0, &token, &token, &token),
        );
        first.unwrap();
        second.unwrap();
    }
    assert_eq!(streams.load(Ordering::Relaxed), 2);
    let wrong = Tensor::new([1, 1, 2], vec![9.0_f32, 2.0]).unwrap();
    let error = other.attend(0, &wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error}");
}
