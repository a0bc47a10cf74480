//! Text to tokens and back.

use std::path::{Path, PathBuf};

use kiln_graph::limits;
use tokenizers::Tokenizer;

use super::error::GenerateError;

/// A tokenizer and its file.
#[derive(Debug)]
pub struct Text {
    path: PathBuf,
    tokenizer: Tokenizer,
}

impl Text {
    /// # Errors
    /// When the file is no tokenizer.
    pub fn open(path: &Path) -> Result<Text, GenerateError> {
        let refuse = |why: String| GenerateError::Tokenizer {
            path: path.to_path_buf(),
            why,
        };
        let size = std::fs::metadata(path).map_or(0, |m| m.len());
        if size > limits::TOKENIZER as u64 {
            return Err(refuse(format!(
                "it has {size} bytes, more than any tokenizer"
            )));
        }
        let mut tokenizer = Tokenizer::from_file(path).map_err(|e| refuse(e.to_string()))?;
        tokenizer.with_padding(None);
        Ok(Text {
            path: path.to_path_buf(),
            tokenizer,
        })
    }

    /// # Errors
    /// When the text cannot be written in tokens, or has none.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, GenerateError> {
        let refuse = |why: String| GenerateError::Tokenizer {
            path: self.path.clone(),
            why,
        };
        let encoded = self.tokenizer.encode(text, true);
        let encoded = encoded.map_err(|e| refuse(e.to_string()))?;
        match encoded.is_empty() {
            true => Err(refuse("it makes no token of the text".into())),
            false => Ok(encoded.get_ids().iter().map(|&id| i64::from(id)).collect()),
        }
    }

    /// The text of tokens, without those that only steer.
    pub fn decode(&self, tokens: &[i64]) -> String {
        let ids = tokens.iter().filter_map(|&t| u32::try_from(t).ok());
        let ids: Vec<u32> = ids.collect();
        // What cannot be decoded is no text.
        self.tokenizer.decode(&ids, true).unwrap_or_default()
    }
}

/// What is new of a text that grows token by token. A character of several tokens is held back until it is whole.
#[derive(Debug, Default)]
pub struct Stream {
    tokens: Vec<i64>,
    shown: usize,
}

impl Stream {
    /// The text that one more token makes certain.
    pub fn push(&mut self, text: &Text, token: i64) -> String {
        self.tokens.push(token);
        let whole = text.decode(&self.tokens);
        if whole.ends_with('\u{fffd}') {
            return String::new();
        }
        let new = whole.get(self.shown..).unwrap_or_default().to_string();
        self.shown = self.shown.max(whole.len());
        new
    }
}
