//! Requests with answers.

use attention_client::{Client, DataType, Tensor};
use serde_json::Value;

use crate::places::{need, vectors};
use crate::values::{check_error, compute_request, digest, float16_to_f64, number, tensor};

/// Elements as doubles, and how far the expected ones may be away.
fn elements(tensor: &Tensor) -> Vec<f64> {
    let halves = || {
        let bytes = tensor.bytes().chunks_exact(2);
        bytes.map(|two| u16::from_le_bytes([two[0], two[1]]))
    };
    match tensor.data_type() {
        DataType::Float32 => tensor
            .to_vec::<f32>()
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect(),
        DataType::Float64 => tensor.to_vec::<f64>().unwrap(),
        DataType::Float16 => halves().map(float16_to_f64).collect(),
        DataType::BFloat16 => halves()
            .map(|bits| f64::from(f32::from_bits(u32::from(bits) << 16)))
            .collect(),
        other => panic!("{other}"),
    }
}

fn tolerance(data_type: DataType, expected: f64) -> f64 {
    let last_place = |bits: i32, least: i32| {
        let exponent = expected.abs().log2().floor().max(f64::from(least));
        2f64.powf(exponent - f64::from(bits))
    };
    match data_type {
        DataType::Float32 => 1e-6 + 1e-5 * expected.abs(),
        DataType::Float64 => 1e-14 + 1e-13 * expected.abs(),
        DataType::Float16 => 2.0 * last_place(10, -14) + 1e-6,
        DataType::BFloat16 => 2.0 * last_place(7, -126) + 1e-6,
        other => panic!("{other}"),
    }
}

fn check(name: &str, actual: Option<&Tensor>, expected: Option<&Value>) {
    let (actual, expected) = match (actual, expected) {
        (None, None) => return,
        (Some(actual), Some(expected)) => (actual, expected),
        other => panic!("{name}: {other:?}"),
    };
    let numbers = match expected.get("float_values") {
        Some(values) => values.as_array().unwrap().iter().map(number).collect(),
        None => elements(&tensor(expected)),
    };
    let shape: Vec<usize> = expected["shape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| number(n) as usize)
        .collect();
    assert_eq!(actual.shape(), shape, "{name}");
    let found = elements(actual);
    assert_eq!(found.len(), numbers.len(), "{name}");
    for (found, wanted) in found.into_iter().zip(numbers) {
        let same = found == wanted || (found.is_nan() && wanted.is_nan());
        let near = (found - wanted).abs() <= tolerance(actual.data_type(), wanted);
        assert!(same || near, "{name}: {found} is not {wanted}");
    }
}

#[tokio::test]
async fn answers_in_numbers() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let Some(vectors) = vectors("attention.json") else {
        return;
    };
    for case in vectors["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let answer = client.compute(compute_request(&case["request"])).await;
        if let Some(expected) = case.get("error") {
            check_error(&answer.unwrap_err(), expected, name);
            continue;
        }
        let answer = answer.unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = |field| case["response"].get(field);
        check(name, Some(&answer.output), expected("output"));
        check(name, answer.log_sum_exp.as_ref(), expected("log_sum_exp"));
        check(name, answer.scores.as_ref(), expected("scores"));
        check(name, answer.present_key.as_ref(), expected("present_key"));
        check(
            name,
            answer.present_value.as_ref(),
            expected("present_value"),
        );
    }
}

#[tokio::test]
async fn digests() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let Some(vectors) = vectors("digests.json") else {
        return;
    };
    for case in vectors["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        match client.compute(compute_request(&case["request"])).await {
            Ok(answer) => assert_eq!(digest(&answer.output), case["output_sha256"], "{name}"),
            Err(error) => check_error(&error, &case["error"], name),
        }
    }
}

#[tokio::test]
async fn the_server_tells_of_itself() {
    let client = Client::new(need!("ATTENTION_TEST_SERVER")).unwrap();
    let capabilities = client.capabilities().await.unwrap();
    assert!(capabilities.data_types.contains(&DataType::BFloat16));
    assert_eq!(capabilities.key_block, 256);
    assert!(capabilities.max_request_bytes > 0 && capabilities.threads > 0);
    let health = client.health("").await.unwrap();
    assert_eq!(health, attention_client::Health::Serving);
    let error = client.health("no.such.Service").await.unwrap_err();
    assert_eq!(error.reason(), Some("UNKNOWN_SERVICE"));
}
