//! Queries that name the keys they see, and rows with sinks of their own.

use attention_client::{
    Attend, Client, Code, ComputeRequest, DataType, Element, SessionConfig, Tensor,
};

use crate::places::need;
use crate::values::filled;

fn f32s(shape: &[usize], seed: u64) -> Tensor {
    filled(DataType::Float32, shape, seed)
}

fn of<T: Element + 'static>(shape: &[usize], elements: Vec<T>) -> Tensor {
    Tensor::new(shape, elements).unwrap()
}

/// Three rows' lists of six keys.
fn indices() -> Tensor {
    of(&[3, 3], vec![0_i32, 5, -1, 2, 2, 1, -1, -1, -1])
}

/// The mask that says the same, as bools and as bits.
fn masks() -> [Tensor; 2] {
    let mut seen = vec![false; 3 * 6];
    let mut bits = vec![0_u8; 3];
    for at in [0, 5, 6 + 1, 6 + 2] {
        seen[at] = true;
        bits[at / 8] |= 1 << (at % 8);
    }
    let bits = Tensor::from_bytes(DataType::Bits, [3, 6], bits);
    [of(&[3, 6], seen), bits.unwrap()]
}

#[tokio::test]
async fn indices_have_the_bits_of_the_mask_that_says_the_same() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let (query, key, value) = (
        f32s(&[1, 2, 3, 4], 1),
        f32s(&[1, 1, 6, 4], 2),
        f32s(&[1, 1, 6, 4], 3),
    );
    let request = || ComputeRequest::new(&query, &key, &value);
    let all = client.compute(request()).await.unwrap();
    let listed = client.compute(request().indices(indices())).await.unwrap();
    assert_ne!(all.output, listed.output);
    for mask in masks() {
        let masked = client.compute(request().mask(mask)).await.unwrap();
        assert_eq!(listed.output, masked.output);
    }
    let sinks = of(&[1, 2, 3], vec![0.5_f32, 0.5, 0.5, -1.0, -1.0, -1.0]);
    let of_rows = client.compute(request().row_sinks(sinks)).await.unwrap();
    let of_heads = client.compute(request().sinks([0.5, -1.0])).await.unwrap();
    assert_eq!(of_rows.output, of_heads.output);
    assert_ne!(of_rows.output, all.output);
}

#[tokio::test]
async fn sessions_take_indices_and_sinks_of_rows() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let session = client.create_session(SessionConfig::new(1, 4)).await;
    let session = session.unwrap();
    let (key, value) = (f32s(&[1, 6, 4], 2), f32s(&[1, 6, 4], 3));
    session.append(0, &key, &value).await.unwrap();
    let query = f32s(&[2, 3, 4], 1);
    let attend = || Attend::new(&query).not_causal();
    let output = async |attend| session.attend(0, attend).await.unwrap().output;
    let listed = output(attend().indices(indices())).await;
    assert_ne!(listed, output(attend()).await);
    for mask in masks() {
        assert_eq!(listed, output(attend().mask(mask)).await);
    }
    let sinks = of(&[2, 3], vec![0.5_f32, 0.5, 0.5, -1.0, -1.0, -1.0]);
    let of_rows = output(attend().row_sinks(sinks)).await;
    assert_eq!(of_rows, output(attend().sinks([0.5, -1.0])).await);

    let none = attend().indices(of(&[3, 1], vec![6_i64; 3]));
    let error = session.attend(0, none).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(error.reason(), Some("INVALID_FIELD"));

    // A step appends a token, and sees it and the first one.
    let (key, value) = (f32s(&[1, 1, 4], 4), f32s(&[1, 1, 4], 5));
    let query = f32s(&[2, 1, 4], 6);
    let listed = Attend::new(&query).indices(of(&[1, 2], vec![6_i64, 0]));
    let stepped = session.step(0, &key, &value, listed).await.unwrap();
    let seen = vec![true, false, false, false, false, false, true];
    let masked = Attend::new(&query).mask(of(&[1, 7], seen));
    assert_eq!(stepped.output, output(masked).await);
    session.delete().await.unwrap();
}
