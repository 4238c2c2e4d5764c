//! Sessions.

use std::collections::HashMap;
use std::time::Duration;

use attention_client::{
    Client, Code, DataType, Error, Fork, Session, SessionConfig, StepAnswer, StepItem, Tensor,
};
use serde_json::Value;

use crate::places::{OwnServer, need, nonce, vectors};
use crate::values::{attend, check_error, data_type, digest, filled, integers, tensor};

fn rows(shape: [usize; 3], seed: u64) -> Tensor {
    filled(DataType::Float32, &shape, seed)
}

fn config(config: &Value) -> SessionConfig {
    let number = |name| config.get(name).map(|n| n.as_u64().unwrap() as usize);
    let mut made = SessionConfig::new(number("kv_heads").unwrap(), number("head_size").unwrap())
        .layers(number("num_layers").unwrap_or(1));
    if let Some(name) = config.get("data_type") {
        made = made.data_type(data_type(name.as_str().unwrap()));
    }
    if let Some(windows) = config.get("retain_window") {
        let windows: Vec<usize> = integers(windows).into_iter().map(|n| n as usize).collect();
        made = made.retain_window(windows);
    }
    if let Some(tokens) = number("rollback_tokens") {
        made = made.rollback_tokens(tokens);
    }
    let known = [
        "kv_heads",
        "head_size",
        "num_layers",
        "data_type",
        "retain_window",
        "rollback_tokens",
    ];
    for name in config.as_object().unwrap().keys() {
        assert!(known.contains(&name.as_str()), "{name}");
    }
    made
}

/// What a step is answered.
enum Answer {
    Nothing,
    Length(usize),
    Lengths(Vec<usize>),
    Output(Tensor),
}

impl From<StepAnswer> for Answer {
    fn from(answer: StepAnswer) -> Self {
        match answer.output {
            Some(output) => Self::Output(output),
            None => Self::Length(answer.length),
        }
    }
}

fn check(name: &str, answer: Result<Answer, Error>, step: &Value) {
    match answer {
        Err(error) => {
            assert!(step.get("error").is_some(), "{name}: {step}: {error}");
            check_error(&error, &step["error"], name);
        }
        Ok(answer) => {
            assert!(step.get("error").is_none(), "{name}: {step}");
            match answer {
                Answer::Nothing => {}
                Answer::Length(length) => assert_eq!(length as u64, step["length_then"], "{name}"),
                Answer::Lengths(lengths) => {
                    let wanted = integers(&step["lengths_then"]);
                    assert!(
                        lengths.iter().map(|&n| n as i64).eq(wanted),
                        "{name}: {lengths:?}"
                    );
                }
                Answer::Output(output) => {
                    assert_eq!(digest(&output), step["output_sha256"], "{name}: {step}");
                }
            }
        }
    }
}

fn item(sessions: &HashMap<String, Session>, step: &Value) -> StepItem {
    let session = &sessions[step["session"].as_str().unwrap()];
    let mut item = StepItem::new(session, step["layer"].as_u64().unwrap() as usize);
    if let Some(key) = step.get("key") {
        item = item.append(tensor(key), tensor(&step["value"]));
    }
    match attend(step) {
        Some(attend) => item.attend(attend),
        None => item,
    }
}

async fn play(
    client: &Client,
    sessions: &mut HashMap<String, Session>,
    step: &Value,
) -> Result<Answer, Error> {
    let session = &sessions[step["session"].as_str().unwrap()];
    let layer = || step["layer"].as_u64().unwrap() as usize;
    let target = || step["target"].as_str().unwrap().to_owned();
    match step["do"].as_str().unwrap() {
        "append" => {
            let (key, value) = (tensor(&step["key"]), tensor(&step["value"]));
            let length = session.append(layer(), key, value).await?;
            assert_eq!(session.length(layer()), Some(length));
            Ok(Answer::Length(length))
        }
        "attend" => {
            let answer = session.attend(layer(), attend(step).unwrap()).await?;
            Ok(Answer::Output(answer.output))
        }
        "step" => {
            let (key, value) = (tensor(&step["key"]), tensor(&step["value"]));
            let query = attend(step).unwrap();
            Ok(Answer::Output(
                session.step(layer(), key, value, query).await?.output,
            ))
        }
        "fork" => {
            let fork = session.fork().await?;
            let lengths = fork.lengths();
            sessions.insert(target(), fork);
            Ok(Answer::Lengths(lengths))
        }
        "open" => {
            let opened = client.open_session(session.id()).await?;
            let lengths = opened.lengths();
            sessions.insert(target(), opened);
            Ok(Answer::Lengths(lengths))
        }
        "truncate" => {
            session
                .truncate(step["length"].as_u64().unwrap() as usize)
                .await?;
            Ok(Answer::Lengths(session.lengths()))
        }
        "refresh" => {
            session.refresh().await?;
            Ok(Answer::Lengths(session.lengths()))
        }
        "delete" => session.delete().await.map(|()| Answer::Nothing),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn scripts() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let Some(vectors) = vectors("sessions.json") else {
        return;
    };
    for case in vectors["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let session = client
            .create_session(config(&case["config"]))
            .await
            .unwrap();
        let mut sessions = HashMap::from([("a".to_owned(), session)]);
        for step in case["steps"].as_array().unwrap() {
            if step["do"] == "batch" {
                let steps = step["items"].as_array().unwrap();
                let items = steps.iter().map(|step| item(&sessions, step)).collect();
                let results = client.step(items).await.unwrap();
                assert_eq!(results.len(), steps.len());
                for (result, step) in results.into_iter().zip(steps) {
                    check(name, result.map(Answer::from), step);
                }
                continue;
            }
            check(name, play(&client, &mut sessions, step).await, step);
        }
        for session in sessions.values() {
            session.delete().await.unwrap();
        }
    }
}

#[tokio::test]
async fn ids_and_lists() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let id = nonce();
    let session = client
        .create_session_as(
            &id,
            SessionConfig::new(1, 2)
                .layers(3)
                .lease(Duration::from_secs(90)),
        )
        .await
        .unwrap();
    assert_eq!(session.id(), id);
    assert_eq!(session.lengths(), [0, 0, 0]);
    assert_eq!(session.length(3), None);
    assert_eq!(session.config().value_head_size, Some(2));
    assert_eq!(session.config().lease, Some(Duration::from_secs(90)));
    let other = client
        .create_session_as(&id, SessionConfig::new(1, 4))
        .await;
    assert_eq!(other.unwrap_err().reason(), Some("SESSION_EXISTS"));
    let found = client.list_sessions().await.unwrap();
    let info = found.iter().find(|info| info.id == id).unwrap();
    assert_eq!(info.incarnation, session.incarnation());
    assert!(info.expires.is_some());
    let forks = vec![
        Fork::new(&session),
        Fork::new(&session).id(format!("{id}-fork")),
    ];
    let forks = client.fork_sessions(forks).await.unwrap();
    assert_eq!(forks[1].id(), format!("{id}-fork"));
    let more = session.fork_many(3).await.unwrap();
    assert_eq!(more.len(), 3);
    let taken = session.fork_as(&id).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    for session in forks.iter().chain(&more).chain([&session]) {
        session.delete().await.unwrap();
        session.delete().await.unwrap();
    }
    client.delete_session(&id).await.unwrap();
    assert_eq!(
        client.get_session(&id).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        client.open_session(&id).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn another_session_of_the_same_id_is_not_touched() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let id = nonce();
    let first = client
        .create_session_as(&id, SessionConfig::new(1, 2))
        .await
        .unwrap();
    client.delete_session(&id).await.unwrap();
    let second = client
        .create_session_as(&id, SessionConfig::new(1, 2))
        .await
        .unwrap();
    let token = rows([1, 1, 2], 1);
    let error = first.append(0, &token, &token).await.unwrap_err();
    assert_eq!(error.reason(), Some("SESSION_UNKNOWN"));
    assert_eq!(
        first.attend(0, &token).await.unwrap_err().code(),
        Code::NotFound
    );
    first.delete().await.unwrap();
    assert_eq!(second.append(0, &token, &token).await.unwrap(), 1);
    second.delete().await.unwrap();
}

#[tokio::test]
async fn one_append_per_layer_at_a_time() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let session = client
        .create_session(SessionConfig::new(4, 64).layers(2))
        .await
        .unwrap();
    let large = rows([4, 4000, 64], 1);
    let (first, second, other) = tokio::join!(
        session.append(0, &large, &large),
        session.append(0, &large, &large),
        session.append(1, &large, &large),
    );
    assert_eq!(first.unwrap(), 4000);
    let error = second.unwrap_err();
    assert_eq!(
        (error.code(), error.reason()),
        (Code::Aborted, Some("LENGTH_CONFLICT"))
    );
    assert_eq!(other.unwrap(), 4000);
    session.delete().await.unwrap();
}

#[tokio::test]
async fn a_dropped_append_can_be_made_again() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let session = client
        .create_session(SessionConfig::new(4, 64))
        .await
        .unwrap();
    // 33 MB, in five calls: dropped at any of their moments.
    let large = rows([4, 16_384, 64], 1);
    let mut append = std::pin::pin!(session.append(0, &large, &large));
    let mut dropped = 0;
    for millis in [1, 5, 10, 20, 40] {
        let slice = Duration::from_millis(millis);
        if tokio::time::timeout(slice, append.as_mut()).await.is_ok() {
            break;
        }
        dropped += 1;
        append.set(session.append(0, &large, &large));
    }
    assert!(dropped > 0);
    let length = match session.length(0) {
        Some(16_384) => 16_384,
        _ => append.await.unwrap(),
    };
    assert_eq!(length, 16_384);
    session.refresh().await.unwrap();
    assert_eq!(session.length(0), Some(16_384));
    let answer = session.attend(0, rows([4, 1, 64], 2)).await.unwrap();
    let reference = client
        .create_session(SessionConfig::new(4, 64))
        .await
        .unwrap();
    reference.append(0, &large, &large).await.unwrap();
    let expected = reference.attend(0, rows([4, 1, 64], 2)).await.unwrap();
    assert_eq!(answer.output, expected.output);
    session.delete().await.unwrap();
    reference.delete().await.unwrap();
}

#[tokio::test]
async fn values_can_be_a_part_of_keys() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let config = SessionConfig::new(1, 16)
        .value_head_size(8)
        .value_is_key_prefix();
    let session = client.create_session(config).await.unwrap();
    assert_eq!(
        session.append_keys(0, rows([1, 5, 16], 1)).await.unwrap(),
        5
    );
    let answer = session
        .step_keys(0, rows([1, 1, 16], 2), rows([4, 1, 16], 3))
        .await
        .unwrap();
    assert_eq!(answer.output.shape(), [4, 1, 8]);
    assert_eq!(answer.length, 6);
    session.delete().await.unwrap();
}

#[tokio::test]
async fn leases_are_renewed_while_objects_live() {
    let Some(server) = OwnServer::start(&[]) else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let config = SessionConfig::new(1, 2).lease(Duration::from_secs(1));
    let kept = client.create_session(config.clone()).await.unwrap();
    let dropped = client.create_session(config).await.unwrap().id().to_owned();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // List renews no lease.
    let ids: Vec<String> = client
        .list_sessions()
        .await
        .unwrap()
        .into_iter()
        .map(|s| s.id)
        .collect();
    assert!(ids.contains(&kept.id().to_owned()));
    assert!(!ids.contains(&dropped));
    drop(kept);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(client.list_sessions().await.unwrap().is_empty());
}

#[tokio::test]
async fn steps_go_on_when_their_stream_has_ended() {
    // It ends streams that are idle for a second.
    let Some(server) = OwnServer::start(&["--default-deadline=1s", "--http-listen=127.0.0.1:0"])
    else {
        return;
    };
    let client = Client::new(&server.address).unwrap();
    let session = client
        .create_session(SessionConfig::new(1, 2))
        .await
        .unwrap();
    let token = rows([1, 1, 2], 1);
    for length in 1..=5 {
        assert_eq!(
            session
                .step(0, &token, &token, &token)
                .await
                .unwrap()
                .length,
            length
        );
    }
    tokio::time::sleep(Duration::from_millis(1800)).await;
    assert_eq!(
        session
            .step(0, &token, &token, &token)
            .await
            .unwrap()
            .length,
        6
    );
    let ended = crate::places::calls_total(&server.http, "Step", "OK");
    assert_eq!(ended, 6);
}

#[tokio::test]
async fn items_of_a_step_stand_for_themselves() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let other = client.clone();
    let session = client
        .create_session(SessionConfig::new(1, 2))
        .await
        .unwrap();
    let token = rows([1, 1, 2], 1);
    let items = vec![
        StepItem::new(&session, 0).append(&token, &token),
        StepItem::new(&session, 7).attend(&token),
    ];
    // A clone is the same client.
    let results = other.step(items).await.unwrap();
    let appended = results[0].as_ref().unwrap();
    assert_eq!((appended.length, appended.output.is_none()), (1, true));
    assert_eq!(results[1].as_ref().unwrap_err().code(), Code::OutOfRange);
    let stranger = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let results = stranger
        .step(vec![StepItem::new(&session, 0).attend(&token)])
        .await
        .unwrap();
    assert_eq!(
        results[0].as_ref().unwrap_err().code(),
        Code::InvalidArgument
    );
    assert!(client.step(Vec::new()).await.unwrap().is_empty());
    let many = vec![StepItem::new(&session, 0).attend(&token); 1025];
    assert_eq!(
        client.step(many).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    session.delete().await.unwrap();
}
