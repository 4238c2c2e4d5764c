//! What is tried again, against a server that answers as it is told to.

use std::time::{Duration, Instant};

use attention_client::{Client, ComputeRequest, DataType, Error, Session, SessionConfig, StepItem};
use serde_json::{Value, json};

use crate::places::{http_get, need, nonce, vectors};
use crate::values::{check_error, filled};

async fn call(client: &Client, case: &Value) -> Result<(), Error> {
    let row = filled(DataType::Float32, &[1, 4], 1);
    let token = filled(DataType::Float32, &[2, 1, 16], 2);
    let session = || client.create_session(SessionConfig::new(2, 16));
    match case["call"].as_str().unwrap() {
        "compute" => client
            .compute(ComputeRequest::new(&row, &row, &row))
            .await
            .map(drop),
        "capabilities" => client.capabilities().await.map(drop),
        "health" => client.health("").await.map(drop),
        "create" => session().await.map(drop),
        "fork" => session().await?.fork().await.map(drop),
        "truncate" => session().await?.truncate(0).await,
        "delete" => session().await?.delete().await,
        "append" => session().await?.append(0, &token, &token).await.map(drop),
        kind => {
            let session = session().await?;
            let result = steps(client, &session, kind, case).await;
            if let Some(length) = case.get("length_then") {
                assert_eq!(
                    session.lengths(),
                    [length.as_u64().unwrap() as usize],
                    "{case}"
                );
            }
            result
        }
    }
}

async fn steps(client: &Client, session: &Session, kind: &str, case: &Value) -> Result<(), Error> {
    let token = filled(DataType::Float32, &[2, 1, 16], 2);
    let step = || session.step(0, &token, &token, &token);
    match kind {
        "step" => step().await.map(drop),
        "step_again" => {
            step().await.unwrap();
            step().await.map(drop)
        }
        "batch" => {
            let other = client.create_session(SessionConfig::new(2, 16)).await?;
            let item = |session| {
                StepItem::new(session, 0)
                    .append(&token, &token)
                    .attend(&token)
            };
            let mut results = client.step(vec![item(session), item(&other)]).await?;
            let second = results.pop().unwrap().unwrap_err();
            assert_eq!(second.code().as_str(), case["second"], "{case}");
            results.pop().unwrap().map(drop)
        }
        other => panic!("{other}"),
    }
}

async fn play(case: &Value, address: &str, http: &str) {
    let name = case["name"].as_str().unwrap();
    let token = format!("{name}.{}", nonce());
    let timeout = case
        .get("timeout_ms")
        .map_or(10_000, |ms| ms.as_u64().unwrap());
    let client = Client::builder(address)
        .token(&token)
        .timeout(Duration::from_millis(timeout))
        .build()
        .unwrap();
    let begin = Instant::now();
    let result = call(&client, case).await;
    if let Some(most) = case.get("most_ms") {
        assert!(
            begin.elapsed().as_millis() < most.as_u64().unwrap().into(),
            "{name}"
        );
    }
    match result {
        Ok(()) => assert_eq!(case["result"], "OK", "{name}"),
        Err(error) => {
            let mut expected = case.clone();
            expected["code"] = case["result"].clone();
            check_error(&error, &expected, name);
            assert!(
                !format!("{error} {error:?} {client:?}").contains(&token),
                "{name}"
            );
        }
    }
    let path = format!("/attempts?token={token}");
    let http = http.to_owned();
    let body = tokio::task::spawn_blocking(move || http_get(&http, &path))
        .await
        .unwrap();
    let calls: Vec<Value> = serde_json::from_str(&body).unwrap();
    let calls: Vec<&Value> = calls
        .iter()
        .filter(|call| call["method"] == case["method"])
        .collect();
    assert_eq!(calls.len() as u64, case["attempts"], "{name}");
    let gaps = case
        .get("least_gaps_ms")
        .map(|gaps| gaps.as_array().unwrap().clone());
    for (i, gap) in gaps.unwrap_or_default().iter().enumerate() {
        let passed = calls[i + 1]["ms"].as_f64().unwrap() - calls[i]["ms"].as_f64().unwrap();
        // The server's clock begins when a thread takes the call.
        assert!(passed >= gap.as_f64().unwrap() - 5.0, "{name}: {passed} ms");
    }
    if case.get("same_request_id").is_some() {
        assert_ne!(calls[0]["request_id"], "", "{name}");
        assert!(
            calls
                .iter()
                .all(|c| c["request_id"] == calls[0]["request_id"]),
            "{name}"
        );
    }
}

#[tokio::test]
async fn what_is_tried_again() {
    let address = need!("ATTENTION_TEST_MISBEHAVING");
    let http = need!("ATTENTION_TEST_MISBEHAVING_HTTP");
    let Some(vectors) = vectors("retries.json") else {
        return;
    };
    let cases = vectors["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    let mut running = tokio::task::JoinSet::new();
    for case in cases.clone() {
        let (address, http) = (address.clone(), http.clone());
        running.spawn(async move { play(&case, &address, &http).await });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn retries_can_be_turned_off() {
    let address = need!("ATTENTION_TEST_MISBEHAVING");
    let token = format!("busy_then_ok.{}", nonce());
    let client = Client::builder(&address)
        .token(token)
        .max_attempts(1)
        .build()
        .unwrap();
    let error = call(&client, &json!({"call": "compute"}))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some("QUEUE_FULL"));
    assert_eq!(error.retry_delay(), Some(Duration::from_millis(60)));
    let row = filled(DataType::Float32, &[1, 4], 1);
    let request = ComputeRequest::new(&row, &row, &row);
    // The second reply, then the third.
    client.compute(request).max_attempts(2).await.unwrap();
}

#[tokio::test]
async fn dropping_ends_a_pause_at_once() {
    let address = need!("ATTENTION_TEST_MISBEHAVING");
    let http = need!("ATTENTION_TEST_MISBEHAVING_HTTP");
    let token = format!("draining.{}", nonce());
    let client = Client::builder(&address).token(&token).build().unwrap();
    let dropped = tokio::time::timeout(
        Duration::from_millis(80),
        call(&client, &json!({"call": "compute"})),
    )
    .await;
    assert!(dropped.is_err());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let path = format!("/attempts?token={token}");
    let body = tokio::task::spawn_blocking(move || http_get(&http, &path))
        .await
        .unwrap();
    let calls: Vec<Value> = serde_json::from_str(&body).unwrap();
    assert_eq!(calls.len(), 1);
}
