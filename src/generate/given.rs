//! Real sources and prompts from a file.

use std::path::Path;

use kiln_graph::{Tensor, onnx};

use super::error::GenerateError;
use super::greedy::tokens_fit;
use super::pair::Source;
use super::ports::{Feed, Ports};
use super::roles::Roles;
use crate::bundle;
use crate::parity::{self, INPUT_PREFIX};
use crate::shapes::{Kinds, Shapes};

/// What a generation goes on from, where it is not made.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// What an encoder reads.
    pub source: Option<Source>,
    /// Tokens of one row for a decoder that runs alone.
    pub prompt: Option<Vec<i64>>,
}

/// The arrays of an `.npz` file, or the one of an `.npy` file, whose name is empty.
///
/// # Errors
/// When the file cannot be read.
pub fn arrays(path: &Path) -> Result<Vec<(String, Tensor)>, GenerateError> {
    let is_npy = (path.extension()).is_some_and(|e| e.eq_ignore_ascii_case("npy"));
    Ok(match is_npy {
        true => vec![(String::new(), parity::npz::read_npy(path, "", None)?)],
        false => parity::npz::read(path)?,
    })
}

/// Whether a file names all that a model reads; a mask over the whole source need not be in it for a generation.
///
/// # Errors
/// When either cannot be read.
pub fn is_whole(path: &Path, model: &Path) -> Result<bool, GenerateError> {
    let arrays = arrays(path)?;
    let graph = onnx::read(bundle::find_model(model)?)?.graph;
    let names = graph.inputs().iter().map(|&v| graph.value(v).name());
    let has = |name: &str| {
        let mut there = arrays
            .iter()
            .map(|(n, _)| n.strip_prefix(INPUT_PREFIX).unwrap_or(n));
        there.any(|n| n == name)
    };
    Ok(names.into_iter().all(has))
}

impl Given {
    /// Reads what the encoder takes, or else the decoder's tokens, which are one array of that name or of any.
    ///
    /// # Errors
    /// When the file cannot be read, or has no tokens of the decoder's where no encoder reads.
    pub fn read(path: &Path, roles: &Roles) -> Result<Given, GenerateError> {
        let arrays = arrays(path)?;
        if roles.encoder.is_some() {
            return Ok(Given {
                source: Some(Source::Features(arrays)),
                prompt: None,
            });
        }
        let refuse = |why: String| GenerateError::Usage {
            what: format!("{}: {why}", path.display()),
        };
        let model = onnx::read(bundle::find_model(&roles.decoder)?)?;
        let ports = Ports::of(&model.graph).map_err(|why| GenerateError::NoDecoder {
            model: roles.decoder.clone(),
            why,
        })?;
        let mut feeds = ports.feeds.iter();
        let Some((port, _)) = feeds.find(|(_, f)| matches!(f, Feed::Tokens { .. })) else {
            return Err(refuse("the decoder reads no tokens".into()));
        };
        let named = |name: &str| name.strip_prefix(INPUT_PREFIX).unwrap_or(name) == port.name;
        let found = arrays.iter().find(|(name, _)| named(name));
        let Some((_, array)) = found.or(arrays.first().filter(|_| arrays.len() == 1)) else {
            let has: Vec<&str> = arrays.iter().map(|(n, _)| n.as_str()).collect();
            return Err(refuse(format!(
                "a prompt is the array \"{}\", and it has: {}",
                port.name,
                has.join(", ")
            )));
        };
        let row = array.dims().iter().rev().skip(1).all(|&n| n == 1);
        let prompt = array.to_i64s().filter(|ids| row && !ids.is_empty());
        let prompt = prompt.ok_or_else(|| {
            refuse(format!(
                "a prompt is one row of token ids, and \"{}\" is {}{:?}",
                port.name,
                array.dtype(),
                array.dims()
            ))
        })?;
        tokens_fit(
            &roles.decoder.display().to_string(),
            ports.vocabulary,
            &prompt,
        )?;
        Ok(Given {
            source: None,
            prompt: Some(prompt),
        })
    }
}

/// Inputs of an encoder by their names, made at its typical sizes.
///
/// # Errors
/// When it cannot be read, or its inputs cannot be made.
pub fn made(encoder: &Path, seed: u64) -> Result<Vec<(String, Tensor)>, GenerateError> {
    let graph = onnx::read(bundle::find_model(encoder)?)?.graph;
    let failed = |why: String| GenerateError::Pair {
        why: format!("{}: no inputs can be made: {why}", encoder.display()),
    };
    let shapes = Shapes::new(&graph, &[], &[]).map_err(|e| failed(e.to_string()))?;
    let specs = Kinds::of(&graph).specs(&shapes, &shapes.typical());
    parity::make(&specs, seed).map_err(|e| failed(e.to_string()))
}
