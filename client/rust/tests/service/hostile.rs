//! What goes wrong on the way.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use attention_client::{Client, Code, ComputeRequest, DataType, SessionConfig};

use crate::places::{OwnServer, need};
use crate::values::filled;

fn small() -> ComputeRequest {
    let row = filled(DataType::Float32, &[1, 4], 1);
    ComputeRequest::new(&row, &row, &row)
}

#[tokio::test]
async fn nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let client = Client::new(&address).unwrap();
    let begin = Instant::now();
    let error = client.compute(small()).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::Unavailable, None));
    let text = error.to_string();
    assert!(text.contains("refused"), "{error}");
    assert!(text.ends_with(&format!(" (server {address})")), "{error}");
    // Four attempts.
    assert!((0.7..5.0).contains(&begin.elapsed().as_secs_f64()));
    let error = client.compute(small()).max_attempts(1).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}

#[tokio::test]
async fn what_listens_is_no_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 100]);
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        }
    });
    let client = Client::new(&address).unwrap();
    let error = client.compute(small()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = Client::new(&address).unwrap();
    let begin = Instant::now();
    let call = client.compute(small()).timeout(Duration::from_millis(200));
    assert_eq!(call.await.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back() {
    let Some(mut server) = OwnServer::start(&[]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let session = client
        .create_session(SessionConfig::new(1, 4))
        .await
        .unwrap();
    let token = filled(DataType::Float32, &[1, 1, 4], 1);
    session.step(0, &token, &token, &token).await.unwrap();
    let tensor = filled(DataType::Float32, &[1, 32, 4096, 128], 1);
    let long = ComputeRequest::new(&tensor, &tensor, &tensor);
    let running = tokio::spawn(client.compute(long).max_attempts(1));
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.kill();
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(
        (error.code(), error.reason()),
        (Code::Unavailable, None),
        "{error}"
    );
    let address = server.address.clone();
    let listen = format!("--listen={address}");
    let later = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(250));
        OwnServer::start(&[&listen])
    });
    // Tried again until the server is there.
    client.compute(small()).await.unwrap();
    let _server = later.await.unwrap();
    // The new server has other sessions.
    let error = session.step(0, &token, &token, &token).await.unwrap_err();
    assert_eq!(error.reason(), Some("SESSION_UNKNOWN"), "{error}");
}

#[tokio::test]
async fn a_server_that_drains() {
    let Some(server) = OwnServer::start(&["--drain-delay=0s"]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let session = client
        .create_session(SessionConfig::new(1, 4))
        .await
        .unwrap();
    let token = filled(DataType::Float32, &[1, 1, 4], 1);
    session.step(0, &token, &token, &token).await.unwrap();
    server.drain();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let error = session.step(0, &token, &token, &token).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    // Nobody knows whether it was done, so the length stays what it was.
    assert_eq!(session.length(0), Some(1));
}

#[tokio::test]
async fn thousands_of_calls_at_once() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let expected = client.compute(small()).await.unwrap().output;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..4000 {
        calls.spawn(client.compute(small()));
    }
    let mut answers = 0;
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.unwrap().unwrap().output, expected);
        answers += 1;
    }
    assert_eq!(answers, 4000);
}

#[tokio::test]
async fn a_client_can_be_dropped_before_its_calls() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let call = client.compute(small());
    drop(client);
    call.await.unwrap();
}

#[test]
fn a_client_is_made_without_a_runtime() {
    let address = need!("ATTENTION_TEST_SERVER");
    let client = Client::new(address).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(client.compute(small())).unwrap();
}

#[tokio::test]
async fn large_requests_are_refused_before_they_are_sent() {
    let Some(server) = OwnServer::start(&["--max-request-bytes=1MiB"]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let tensor = filled(DataType::Float32, &[1, 8, 1000, 64], 1);
    let request = ComputeRequest::new(&tensor, &tensor, &tensor).return_present();
    for _ in 0..50 {
        let error = client.compute(request.clone()).await.unwrap_err();
        assert_eq!(error.reason(), Some("REQUEST_TOO_LARGE"), "{error}");
    }
    client.compute(small()).await.unwrap();
}
