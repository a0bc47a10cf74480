//! Real sources and prompts from a file.

use std::path::Path;

use kiln_graph::{Tensor, onnx};

use super::error::GenerateError;
use super::greedy::tokens_fit;
use super::pair::Source;
use super::ports::{Feed, Ports};
use super::roles::Roles;
use super::text::Text;
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

impl Given {
    /// Reads all sources or prompts of a path: files of arrays, a folder of such, each row of a file for itself, or lines of text where
    /// there is a tokenizer. At most so many.
    ///
    /// # Errors
    /// As [`Given::read`], and for text when there is no tokenizer.
    pub fn all(
        path: &Path,
        tokenizer: Option<&Path>,
        roles: &Roles,
        most: usize,
    ) -> Result<Vec<Given>, GenerateError> {
        let is_array = |p: &Path| {
            let e = p.extension().unwrap_or_default().to_ascii_lowercase();
            e == "npz" || e == "npy"
        };
        let unread = |e: std::io::Error| GenerateError::Usage {
            what: format!("{}: {e}", path.display()),
        };
        let mut files = vec![path.to_path_buf()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(unread)?;
            files = entries.flatten().map(|e| e.path()).collect();
            files.retain(|p| is_array(p));
            files.sort();
        } else if !is_array(path) {
            let tokenizer = tokenizer.or(roles.tokenizer.as_deref());
            let tokenizer = tokenizer.ok_or_else(|| GenerateError::Usage {
                what: format!(
                    "{} is read as lines of text, for which a tokenizer is needed",
                    path.display()
                ),
            })?;
            let text = Text::open(tokenizer)?;
            let lines = std::fs::read_to_string(path).map_err(unread)?;
            let lines = lines.lines().filter(|l| !l.trim().is_empty()).take(most);
            let given = lines.map(|line| {
                let tokens = text.encode(line.trim())?;
                Ok(match roles.encoder {
                    Some(_) => Given {
                        source: Some(Source::Tokens(tokens)),
                        prompt: None,
                    },
                    None => Given {
                        source: None,
                        prompt: Some(tokens),
                    },
                })
            });
            return given.collect();
        }
        let mut all = Vec::new();
        for file in files {
            for arrays in each_row(arrays(&file)?) {
                if all.len() < most {
                    all.push(Given::of(&file, arrays, roles)?);
                }
            }
        }
        match all.is_empty() {
            true => Err(GenerateError::Usage {
                what: format!("{} holds no sources or prompts", path.display()),
            }),
            false => Ok(all),
        }
    }

    /// Reads what the encoder takes, or else the decoder's tokens, which are one array of that name or of any.
    ///
    /// # Errors
    /// When the file cannot be read, or has no tokens of the decoder's where no encoder reads.
    pub fn read(path: &Path, roles: &Roles) -> Result<Given, GenerateError> {
        Given::of(path, arrays(path)?, roles)
    }

    fn of(
        path: &Path,
        arrays: Vec<(String, Tensor)>,
        roles: &Roles,
    ) -> Result<Given, GenerateError> {
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

/// Arrays row by row, where all have as many.
fn each_row(arrays: Vec<(String, Tensor)>) -> Vec<Vec<(String, Tensor)>> {
    let rows = |t: &Tensor| t.dims().first().copied().filter(|_| t.rank() > 1);
    let first = arrays.first().and_then(|(_, t)| rows(t));
    let whole = |t: &Tensor| t.dtype().bits() >= 8 && t.strings().is_none();
    let Some(n) =
        first.filter(|n| *n > 1 && arrays.iter().all(|(_, t)| whole(t) && rows(t) == Some(*n)))
    else {
        return vec![arrays];
    };
    let row = |t: &Tensor, k: usize| {
        let size = t.byte_len() / n;
        let mut dims = t.dims().to_vec();
        dims[0] = 1;
        Tensor::from_raw(t.dtype(), dims, t.bytes().slice(k * size..(k + 1) * size))
    };
    (0..n)
        .map(|k| {
            let all = arrays.iter();
            all.filter_map(|(name, t)| Some((name.clone(), row(t, k).ok()?)))
                .collect()
        })
        .collect()
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
