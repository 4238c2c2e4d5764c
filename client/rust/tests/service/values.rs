//! Requests of the vectors, out of JSON.

use attention_client::{Attend, Causal, ComputeRequest, DataType, Error, Layout, Scores, Tensor};
use base64::Engine;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub fn data_type(name: &str) -> DataType {
    match name.strip_prefix("DATA_TYPE_").unwrap() {
        "FLOAT32" => DataType::Float32,
        "FLOAT16" => DataType::Float16,
        "BFLOAT16" => DataType::BFloat16,
        "FLOAT64" => DataType::Float64,
        "BOOL" => DataType::Bool,
        "INT8" => DataType::Int8,
        "INT32" => DataType::Int32,
        "INT64" => DataType::Int64,
        other => panic!("data type {other}"),
    }
}

pub fn number(value: &Value) -> f64 {
    match value {
        Value::String(text) if text == "NaN" => f64::NAN,
        Value::String(text) => text.parse().unwrap(),
        value => value.as_f64().unwrap(),
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

pub fn integers(value: &Value) -> Vec<i64> {
    numbers(value).into_iter().map(|n| n as i64).collect()
}

fn shape(tensor: &Value) -> Vec<usize> {
    integers(&tensor["shape"])
        .into_iter()
        .map(|n| n as usize)
        .collect()
}

/// Element i of the tensors that are a rule, times 64.
fn rule(i: u64, seed: u64) -> i16 {
    let mixed = (i.wrapping_mul(2_654_435_761) + seed * 40503) % (1 << 32);
    ((mixed >> 16) % 255) as i16 - 127
}

/// A tensor of the digests.
pub fn filled(data_type: DataType, shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product::<usize>() as u64;
    let whole = (0..count).map(|i| rule(i, seed));
    let exact = |n: i16| f32::from(n) / 64.0;
    let bytes: Vec<u8> = match data_type {
        DataType::Float32 => whole.flat_map(|n| exact(n).to_le_bytes()).collect(),
        DataType::Float64 => whole
            .flat_map(|n| f64::from(exact(n)).to_le_bytes())
            .collect(),
        DataType::BFloat16 => whole
            .flat_map(|n| ((exact(n).to_bits() >> 16) as u16).to_le_bytes())
            .collect(),
        DataType::Float16 => whole.flat_map(|n| float16(n).to_le_bytes()).collect(),
        DataType::Bool => whole.map(|n| u8::from(n % 2 != 0)).collect(),
        other => panic!("{other}"),
    };
    Tensor::from_bytes(data_type, shape, bytes).unwrap()
}

/// `n` / 64, exactly: eight bits of significance fit into a float16.
fn float16(n: i16) -> u16 {
    if n == 0 {
        return 0;
    }
    let bits = (f32::from(n) / 64.0).to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    assert!((1..31).contains(&exponent));
    ((bits >> 16) & 0x8000) as u16 | (exponent << 10) as u16 | ((bits >> 13) & 0x3ff) as u16
}

pub fn float16_to_f64(bits: u16) -> f64 {
    let fraction = f64::from(bits & 0x3ff) / 1024.0;
    let magnitude = match i32::from(bits >> 10 & 0x1f) {
        0 => fraction * 2f64.powi(-14),
        31 if bits & 0x3ff == 0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1.0 + fraction) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 {
        -magnitude
    } else {
        magnitude
    }
}

pub fn tensor(value: &Value) -> Tensor {
    let shape = shape(value);
    if let Some(seed) = value.get("seed") {
        return filled(
            data_type(value["data_type"].as_str().unwrap()),
            &shape,
            seed.as_u64().unwrap(),
        );
    }
    if let Some(data) = value.get("data") {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(data.as_str().unwrap())
            .unwrap();
        return Tensor::from_bytes(
            data_type(value["data_type"].as_str().unwrap()),
            shape,
            bytes,
        )
        .unwrap();
    }
    let data_type = value
        .get("data_type")
        .map(|name| data_type(name.as_str().unwrap()));
    assert!(data_type.is_none_or(|data_type| data_type == DataType::Float32) || shape.contains(&0));
    let floats: Vec<f32> = value
        .get("float_values")
        .map(numbers)
        .unwrap_or_default()
        .into_iter()
        .map(|n| n as f32)
        .collect();
    Tensor::new(shape, floats).unwrap()
}

macro_rules! set_options {
    ($request:ident, $name:expr, $value:expr) => {
        match $name {
            "scale" => $request.scale(number($value)),
            "softcap" => $request.softcap(number($value)),
            "causal" => $request.causal(match $value.as_str().unwrap() {
                "CAUSAL_TOP_LEFT" => Causal::TopLeft,
                "CAUSAL_BOTTOM_RIGHT" => Causal::BottomRight,
                other => panic!("{other}"),
            }),
            "window" => {
                let side = |name| $value.get(name).map(|n| number(n) as i64);
                $request.window(side("left"), side("right"))
            }
            "chunk_size" => $request.chunk_size(number($value) as i64),
            "alibi_slopes" => $request.alibi_slopes(numbers($value)),
            "sinks" => $request.sinks(numbers($value)),
            "return_log_sum_exp" => $request.return_log_sum_exp(),
            "return_scores" => $request.return_scores(match $value.as_str().unwrap() {
                "SCORES_RAW" => Scores::Raw,
                "SCORES_CAPPED" => Scores::Capped,
                "SCORES_BIASED" => Scores::Biased,
                "SCORES_WEIGHTS" => Scores::Weights,
                other => panic!("{other}"),
            }),
            other => panic!("option {other}"),
        }
    };
}

pub fn compute_request(request: &Value) -> ComputeRequest {
    let named = |name: &str| tensor(&request[name]);
    let mut made = ComputeRequest::new(named("query"), named("key"), named("value"));
    for (name, value) in request.as_object().unwrap() {
        made = match name.as_str() {
            "query" | "key" | "value" | "options" => made,
            "mask" => made.mask(tensor(value)),
            "indices" => made.indices(tensor(value)),
            "sinks" => made.row_sinks(tensor(value)),
            "past_key" => made.past_key(tensor(value)),
            "past_value" => made.past_value(tensor(value)),
            "valid_lengths" => made.valid_lengths(integers(value)),
            "query_starts" => made.query_starts(integers(value)),
            "key_starts" => made.key_starts(integers(value)),
            other => panic!("field {other}"),
        };
    }
    let Some(options) = request.get("options") else {
        return made;
    };
    for (name, value) in options.as_object().unwrap() {
        made = match name.as_str() {
            "layout" => made.layout(match value.as_str().unwrap() {
                "LAYOUT_MATRIX" => Layout::Matrix,
                "LAYOUT_BHSD" => Layout::Bhsd,
                "LAYOUT_BSHD" => Layout::Bshd,
                "LAYOUT_RAGGED" => Layout::Ragged,
                "LAYOUT_PACKED" => Layout::Packed,
                other => panic!("{other}"),
            }),
            "query_heads" => made.query_heads(number(value) as i64),
            "kv_heads" => made.kv_heads(number(value) as i64),
            "return_present" => made.return_present(),
            other => set_options!(made, other, value),
        };
    }
    made
}

/// The query of a step, if it has one.
pub fn attend(step: &Value) -> Option<Attend> {
    let mut made = Attend::new(tensor(step.get("query")?));
    if let Some(mask) = step.get("mask") {
        made = made.mask(tensor(mask));
    }
    if step.get("any_length").is_some() {
        made = made.any_length();
    }
    if step.get("not_causal").is_some() {
        made = made.not_causal();
    }
    if let Some(options) = step.get("options") {
        for (name, value) in options.as_object().unwrap() {
            made = set_options!(made, name.as_str(), value);
        }
    }
    Some(made)
}

pub fn digest(tensor: &Tensor) -> String {
    let sum = Sha256::digest(tensor.bytes());
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the error is the one of the vectors.
pub fn check_error(error: &Error, expected: &Value, name: &str) {
    assert_eq!(error.code().as_str(), expected["code"], "{name}: {error:?}");
    if let Some(reason) = expected.get("reason") {
        assert_eq!(error.reason(), reason.as_str(), "{name}: {error:?}");
    }
    if let Some(field) = expected.get("field") {
        assert_eq!(
            error.field_violations()[0].field,
            *field,
            "{name}: {error:?}"
        );
    }
    if let Some(length) = expected.get("length") {
        assert_eq!(
            error.length().map(|n| n as u64),
            length.as_u64(),
            "{name}: {error:?}"
        );
    }
}
