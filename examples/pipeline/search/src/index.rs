//! Sentences and their embeddings, in memory.

use crate::pooling::WIDTH;

/// The most sentences that are kept: 150 MB of embeddings.
const MOST: usize = 100_000;

#[derive(Default)]
pub struct Index {
    sentences: Vec<String>,
    /// [sentences, WIDTH], row-major; each row has length 1.
    embeddings: Vec<f32>,
}

/// There is no room for another sentence.
#[derive(Debug)]
pub struct Full;

impl Index {
    pub fn sentences(&self) -> &[String] {
        &self.sentences
    }

    /// Keeps a sentence, unless it is there.
    pub fn add(&mut self, sentence: String, embedding: &[f32]) -> Result<(), Full> {
        if self.sentences.contains(&sentence) {
            return Ok(());
        }
        if self.sentences.len() == MOST {
            return Err(Full);
        }
        self.sentences.push(sentence);
        self.embeddings.extend_from_slice(embedding);
        Ok(())
    }

    /// At most `limit` sentences and the cosines of their angles with `embedding`, the
    /// largest first.
    ///
    /// One product of a matrix and a vector: it is done here, since to send the index to
    /// the attention service would take longer than that.
    pub fn nearest(&self, embedding: &[f32], limit: usize) -> Vec<(&str, f32)> {
        let rows = self.embeddings.chunks_exact(WIDTH);
        let scores = rows.map(|row| row.iter().zip(embedding).map(|(x, y)| x * y).sum());
        let sentences = self.sentences.iter().map(String::as_str);
        let mut matches: Vec<(&str, f32)> = sentences.zip(scores).collect();
        matches.sort_by(|(_, x), (_, y)| y.total_cmp(x));
        matches.truncate(limit);
        matches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(i: usize) -> Vec<f32> {
        let mut row = vec![0.0; WIDTH];
        row[i] = 1.0;
        row
    }

    #[test]
    fn the_nearest_comes_first() {
        let mut index = Index::default();
        for (i, name) in ["x", "y", "z"].into_iter().enumerate() {
            index.add(name.to_owned(), &axis(i)).unwrap();
        }
        let mut between = axis(1);
        between[2] = 0.5;
        assert_eq!(index.nearest(&between, 2), [("y", 1.0), ("z", 0.5)]);
    }

    #[test]
    fn a_sentence_is_kept_once() {
        let mut index = Index::default();
        index.add("x".to_owned(), &axis(0)).unwrap();
        index.add("x".to_owned(), &axis(1)).unwrap();
        assert_eq!(index.sentences(), ["x"]);
        assert_eq!(index.nearest(&axis(0), 9), [("x", 1.0)]);
    }

    #[test]
    fn an_empty_index_has_no_match() {
        assert!(Index::default().nearest(&axis(0), 5).is_empty());
    }
}
