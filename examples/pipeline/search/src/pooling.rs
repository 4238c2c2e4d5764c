//! From vectors of tokens to one embedding for each sentence.

use attention_client::{Client, ComputeRequest, DataType, Error, Layout, Tensor};

use crate::service::TokenVectors;

/// The model's.
pub const WIDTH: usize = 384;

/// The mean over the tokens of each sentence, of length 1: [B, WIDTH], row-major.
///
/// The mean is attention: a query of zeros has the same score with every key, so that
/// the softmax weighs all tokens alike. The service does it for sentences of any
/// lengths in one call, without padding.
pub async fn pool(attention: &Client, tokens: TokenVectors) -> Result<Vec<f32>, Error> {
    let rows = tokens.vectors.len() / size_of::<f32>() / WIDTH;
    let sentences = tokens.starts.len().saturating_sub(1);
    let query = Tensor::new([sentences, 1, WIDTH], vec![0.0_f32; sentences * WIDTH])?;
    // Its memory is shared by key and value, not copied.
    let vectors = Tensor::from_bytes(DataType::Float32, [rows, 1, WIDTH], tokens.vectors)?;
    let request = ComputeRequest::new(query, &vectors, &vectors)
        .layout(Layout::Ragged)
        .query_starts((0..=sentences as i64).collect::<Vec<_>>())
        .key_starts(tokens.starts);
    // tonic drops this future where the caller goes away or its deadline passes. That
    // cancels the call at the service.
    let mut means = attention.compute(request).await?.output.to_vec::<f32>()?;
    for mean in means.chunks_exact_mut(WIDTH) {
        let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        mean.iter_mut().for_each(|x| *x /= length);
    }
    Ok(means)
}
