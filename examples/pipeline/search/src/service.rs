//! The calls of pipeline.proto.

use std::sync::RwLock;

use attention_client::{Client, Error};
use tonic::{Code, Request, Response, Status};

use crate::index::Index;
use crate::pooling::{WIDTH, pool};

tonic::include_proto!("pipeline");
use searcher_server::Searcher;
pub use searcher_server::SearcherServer;

pub struct Search {
    attention: Client,
    index: RwLock<Index>,
}

impl Search {
    pub fn new(attention: Client) -> Self {
        let index = RwLock::default();
        Self { attention, index }
    }

    async fn embeddings(&self, tokens: Option<TokenVectors>) -> Result<Vec<f32>, Status> {
        let tokens = tokens.ok_or_else(|| Status::invalid_argument("tokens are missing"))?;
        pool(&self.attention, tokens).await.map_err(told)
    }
}

/// What the caller is told of a failed call to the attention service.
fn told(error: Error) -> Status {
    let code = match error.code() {
        attention_client::Code::InvalidArgument => Code::InvalidArgument,
        attention_client::Code::ResourceExhausted => Code::ResourceExhausted,
        attention_client::Code::DeadlineExceeded => Code::DeadlineExceeded,
        attention_client::Code::Cancelled => Code::Cancelled,
        attention_client::Code::Unavailable => Code::Unavailable,
        _ => Code::Internal,
    };
    Status::new(code, format!("attention: {error}"))
}

#[tonic::async_trait]
impl Searcher for Search {
    async fn pool(&self, request: Request<TokenVectors>) -> Result<Response<PoolResponse>, Status> {
        let embeddings = self.embeddings(Some(request.into_inner())).await?;
        let embeddings = embeddings.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(Response::new(PoolResponse { embeddings }))
    }

    async fn add(&self, request: Request<AddRequest>) -> Result<Response<AddResponse>, Status> {
        let AddRequest { sentences, tokens } = request.into_inner();
        let embeddings = self.embeddings(tokens).await?;
        if embeddings.len() != sentences.len() * WIDTH {
            return Err(Status::invalid_argument(
                "tokens: wanted those of each sentence",
            ));
        }
        let mut index = self.index.write().expect("nothing panics while it writes");
        for (sentence, embedding) in sentences.into_iter().zip(embeddings.chunks_exact(WIDTH)) {
            index
                .add(sentence, embedding)
                .map_err(|_| Status::resource_exhausted("the index is full"))?;
        }
        let kept = index.sentences().len() as i64;
        Ok(Response::new(AddResponse { kept }))
    }

    async fn find(&self, request: Request<FindRequest>) -> Result<Response<FindResponse>, Status> {
        let FindRequest { tokens, limit } = request.into_inner();
        let limit = usize::try_from(limit)
            .map_err(|_| Status::invalid_argument("limit: wanted a number from 0"))?;
        let embeddings = self.embeddings(tokens).await?;
        if embeddings.len() != WIDTH {
            return Err(Status::invalid_argument("tokens: wanted one sentence"));
        }
        let index = self.index.read().expect("nothing panics while it writes");
        let matches = index.nearest(&embeddings, limit);
        let matches = matches.into_iter().map(|(sentence, score)| Match {
            sentence: sentence.to_owned(),
            score,
        });
        let matches = matches.collect();
        Ok(Response::new(FindResponse { matches }))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let index = self.index.read().expect("nothing panics while it writes");
        let sentences = index.sentences().to_vec();
        Ok(Response::new(ListResponse { sentences }))
    }
}
