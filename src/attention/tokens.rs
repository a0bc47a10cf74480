//! What stands beside the rows and columns of a map.

use std::path::Path;

use kiln_graph::{Graph, Tensor};
use tokenizers::Tokenizer;

use super::error::AttentionError;
use crate::shapes;

/// The tokens of one input of ids, by sample.
#[derive(Clone, Debug)]
struct Ids {
    input: String,
    /// Rows of the table behind it: of several inputs, the one with the most has the words.
    table: i64,
    samples: Vec<Vec<String>>,
}

/// The tokens of a run's inputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens(Vec<Ids>);

impl Tokens {
    /// Reads the ids among a run's inputs, which are [samples, length]. Without a tokenizer a token is its id.
    ///
    /// # Errors
    /// When the tokenizer cannot be read.
    pub fn of(
        graph: &Graph,
        inputs: &[(String, Tensor)],
        tokenizer: Option<&Path>,
    ) -> Result<Tokens, AttentionError> {
        let open = |path: &Path| {
            Tokenizer::from_file(path).map_err(|e| AttentionError::Tokenizer {
                path: path.to_path_buf(),
                reason: e.to_string(),
            })
        };
        let tokenizer = tokenizer.map(open).transpose()?;
        let mut found = Vec::new();
        for (name, tensor) in inputs {
            let mut ports = graph.inputs().iter().copied();
            let port = ports.find(|&v| graph.value(v).name() == name);
            let kind = port.map(|v| shapes::input_kind(graph, v));
            let Some(upper) = kind.and_then(|kind| kind.vocabulary()) else {
                continue;
            };
            let lower = name.to_ascii_lowercase();
            let [_, length] = *tensor.dims() else {
                continue;
            };
            if lower.contains("token_type") || lower.contains("segment") {
                continue;
            }
            let ids = tensor.to_i64s().unwrap_or_default();
            let samples = ids.chunks(length.max(1)).map(|row| {
                let labels = row.iter().map(|&id| label(tokenizer.as_ref(), id));
                labels.collect()
            });
            found.push(Ids {
                input: name.clone(),
                table: upper,
                samples: samples.collect(),
            });
        }
        Ok(Tokens(found))
    }

    /// The input whose tokens stand along an axis of this length that is made of these inputs; `None` if there is none, as
    /// for the patches of an image.
    pub fn axis(&self, from: &[String], samples: usize, length: usize) -> Option<&str> {
        let fits = |ids: &&Ids| {
            from.contains(&ids.input)
                && ids.samples.len() == samples
                && ids.samples.iter().all(|s| s.len() == length)
        };
        // A decoder is made of the encoder's tokens as well as of its own.
        let rank = |ids: &&Ids| (ids.input.contains("decoder"), ids.table);
        let best = self.0.iter().filter(fits).max_by_key(rank);
        best.map(|ids| ids.input.as_str())
    }

    /// The tokens of an input, by sample.
    pub fn samples(&self, input: &str) -> &[Vec<String>] {
        let found = self.0.iter().find(|ids| ids.input == input);
        found.map_or(&[], |ids| &ids.samples)
    }
}

/// A token as a reader knows it: what the tokenizer writes for it alone, or its name if that is nothing or half a letter.
fn label(tokenizer: Option<&Tokenizer>, id: i64) -> String {
    let named = tokenizer.zip(u32::try_from(id).ok());
    let text = named.and_then(|(tokenizer, id)| {
        let token = tokenizer.id_to_token(id)?;
        let written = tokenizer.decode(&[id], false).ok();
        Some(match written {
            Some(text) if !text.is_empty() && !text.contains('\u{fffd}') => text,
            _ => token,
        })
    });
    text.unwrap_or_else(|| id.to_string())
}
