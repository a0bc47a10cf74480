//! A folder for Text Embeddings Inference: `text-embeddings-router --model-id FOLDER`.
//!
//! Its ONNX backend (router 1.9) reads `model.onnx`, `config.json` and `tokenizer.json`, takes int64 `input_ids`, `attention_mask`,
//! `token_type_ids` and `position_ids`, and float32 outputs by name: `sentence_embedding`, `last_hidden_state` or
//! `token_embeddings`, and `logits` of classifiers.

use std::path::{Path, PathBuf};

use kiln_graph::DType;
use kiln_graph::onnx::{self, WriteOptions};

use super::facts::Facts;
use super::{ExportError, Exported, Staged};
use crate::setting::{FROM, HALF_IO, RENAME};

/// What to export.
#[derive(Clone, Debug)]
pub struct Options {
    pub bundle: PathBuf,
    pub output: PathBuf,
    /// The model's folder as it was published, with `config.json` and `tokenizer.json`.
    pub from: PathBuf,
    /// Instead of the one in that folder.
    pub tokenizer: Option<PathBuf>,
    /// Names of outputs that change: from, to.
    pub renamed: Vec<(String, String)>,
    pub force: bool,
}

const INPUTS: [&str; 4] = [
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
];
const OUTPUTS: [&str; 4] = [
    "sentence_embedding",
    "last_hidden_state",
    "token_embeddings",
    "logits",
];
const NEEDED: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Copied where they are.
const OPTIONAL: [&str; 7] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "1_Pooling/config.json",
    "1_SpladePooling/config.json",
];
/// Keys of config.json that the router does not start without.
const KEYS: [&str; 5] = [
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "max_position_embeddings",
    "vocab_size",
];

/// Writes the folder.
///
/// # Errors
/// When the bundle cannot be read, the server would not take the model, or files are missing or cannot be written.
pub fn export(options: &Options) -> Result<Exported, ExportError> {
    let mut facts = Facts::read(&options.bundle)?;
    rename(&mut facts, &options.renamed)?;
    fits(&facts)?;
    let config = options.from.join(NEEDED);
    describes(&config)?;
    let tokenizer = options.tokenizer.clone();
    let tokenizer = tokenizer.unwrap_or_else(|| options.from.join(TOKENIZER));
    let mut notes = Vec::new();
    if let Some(runtime) = &facts.engine {
        notes.push(format!(
            "the server runs the ONNX model on the CPU, not the engine of {runtime}"
        ));
    }
    let mut staged = Staged::new(&options.output, options.force)?;
    let written = onnx::write(
        &facts.model,
        staged.file("model.onnx")?,
        &WriteOptions::default(),
    )?;
    if let Some((external, _)) = &written.external {
        let name = external.file_name().unwrap_or_default().to_string_lossy();
        staged.file(&name)?;
    }
    staged.copy(&config, NEEDED)?;
    staged.copy(&tokenizer, TOKENIZER)?;
    for name in OPTIONAL {
        let file = options.from.join(name);
        if file.is_file() {
            staged.copy(&file, name)?;
        }
    }
    if !options.from.join("1_Pooling/config.json").is_file()
        && facts.outputs.iter().all(|o| o.name != "sentence_embedding")
    {
        notes.push("there is no 1_Pooling/config.json: start the server with --pooling mean or cls, as the model was trained".into());
    }
    Ok(Exported {
        files: staged.finish()?,
        notes,
    })
}

fn rename(facts: &mut Facts, renamed: &[(String, String)]) -> Result<(), ExportError> {
    for (from, to) in renamed {
        let Some(port) = facts.outputs.iter_mut().find(|o| o.name == *from) else {
            let known: Vec<&str> = facts.outputs.iter().map(|o| o.name.as_str()).collect();
            return Err(ExportError::Option {
                option: RENAME,
                why: format!(
                    "the model has no output \"{from}\"; it has: {}",
                    known.join(", ")
                ),
            });
        };
        port.name = to.clone();
        for output in facts.model.graph.take_outputs() {
            let name = if *output.name == **from {
                to
            } else {
                &*output.name
            };
            facts.model.graph.add_output(name, output.value);
        }
    }
    Ok(())
}

/// Whether the server takes inputs and outputs as they are.
fn fits(facts: &Facts) -> Result<(), ExportError> {
    for input in &facts.inputs {
        if !INPUTS.contains(&input.name.as_str()) || input.dtype != DType::I64 {
            return Err(facts.unfit(format!(
                "the server gives int64 {}, and the model has an input \"{}\" of {}",
                INPUTS.join(", "),
                input.name,
                input.dtype
            )));
        }
    }
    let mut known = facts.outputs.iter();
    match known.find(|o| OUTPUTS.contains(&o.name.as_str())) {
        None => {
            let names: Vec<&str> = facts.outputs.iter().map(|o| o.name.as_str()).collect();
            Err(facts.unfit(format!(
                "the server reads an output called {}, and the model has: {}; {RENAME} {}=sentence_embedding gives one its name",
                OUTPUTS.join(" or "),
                names.join(", "),
                names.first().unwrap_or(&"NAME")
            )))
        }
        Some(output) if output.dtype != DType::F32 => Err(facts.unfit(format!(
            "the server reads float32, and \"{}\" is {}: compile without {HALF_IO}",
            output.name, output.dtype
        ))),
        Some(_) => Ok(()),
    }
}

/// Whether config.json has what the server reads first.
fn describes(config: &Path) -> Result<(), ExportError> {
    let fail = |why: String| ExportError::Option {
        option: FROM,
        why: format!("{}: {why}", config.display()),
    };
    let text = std::fs::read(config).map_err(|e| fail(format!("it cannot be read: {e}")))?;
    let json: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| fail(format!("it is no JSON: {e}")))?;
    let absent: Vec<&str> = KEYS.into_iter().filter(|k| json.get(k).is_none()).collect();
    match absent.is_empty() {
        true => Ok(()),
        false => Err(fail(format!(
            "the server does not start without {}",
            absent.join(", ")
        ))),
    }
}
