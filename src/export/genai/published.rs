//! What a model's published files say: token ids, lengths, how its maker samples, and the tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::{ExportError, Staged};
use crate::setting::{FROM, TOKENIZER};

/// Files of a published model.
#[derive(Debug, Default)]
pub(super) struct Published {
    folder: Option<PathBuf>,
    generation: Value,
    config: Value,
}

const TOKENS: &str = "tokenizer.json";
const SETTINGS: &str = "tokenizer_config.json";
/// Copied where they are.
const OPTIONAL: [&str; 6] = [
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];
/// What `generation_config.json` and the runtime's search have in common, with what stands for greedy search.
const SEARCH: [&str; 9] = [
    "do_sample",
    "top_k",
    "top_p",
    "temperature",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "min_length",
];

impl Published {
    /// # Errors
    /// When the folder is none, or a file in it is no JSON.
    pub fn read(folder: Option<&Path>) -> Result<Published, ExportError> {
        let Some(folder) = folder else {
            return Ok(Published::default());
        };
        if !folder.is_dir() {
            return Err(ExportError::Option {
                option: FROM,
                why: format!("{} is no folder", folder.display()),
            });
        }
        Ok(Published {
            folder: Some(folder.to_path_buf()),
            generation: read_json(&folder.join("generation_config.json"))?,
            config: read_json(&folder.join("config.json"))?,
        })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let known = |json: &'_ Value| json.get(key).is_some_and(|v| !v.is_null());
        let from = [&self.generation, &self.config]
            .into_iter()
            .find(|j| known(j));
        from?.get(key)
    }

    fn id(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_i64()
    }

    fn size(&self, keys: &[&str]) -> Option<usize> {
        let found = keys.iter().find_map(|k| self.config.get(k)?.as_u64());
        usize::try_from(found?).ok()
    }

    /// `eos_token_id`, one or several.
    pub fn stop(&self) -> Vec<i64> {
        match self.get("eos_token_id") {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_i64).collect(),
            Some(one) => one.as_i64().into_iter().collect(),
            None => Vec::new(),
        }
    }

    pub fn pad(&self) -> Option<i64> {
        self.id("pad_token_id")
    }

    pub fn begin(&self) -> Option<i64> {
        self.id("bos_token_id")
    }

    /// Tokens that the model was made for.
    pub fn length(&self) -> Option<usize> {
        self.size(&["max_position_embeddings", "n_positions", "n_ctx"])
    }

    pub fn width(&self) -> Option<usize> {
        self.size(&["hidden_size", "n_embd", "d_model"])
    }

    /// How the model's maker searches; greedily if nobody says.
    pub fn search(&self, notes: &mut Vec<String>) -> Map<String, Value> {
        let mut search = Map::new();
        search.insert("do_sample".into(), false.into());
        for key in SEARCH {
            if let Some(value) = self.generation.get(key).filter(|v| !v.is_null()) {
                search.insert(key.into(), value.clone());
            }
        }
        if search.get("do_sample") == Some(&Value::Bool(true)) {
            notes.push("generation_config.json samples, so the folder does: its tokens are not those of `kiln generate`".into());
        }
        search
    }

    /// Copies the tokenizer's files. The runtime runs on ids without them.
    ///
    /// # Errors
    /// When a file that was given cannot be copied.
    pub fn tokenizer(
        &self,
        staged: &mut Staged,
        given: Option<&Path>,
        notes: &mut Vec<String>,
    ) -> Result<(), ExportError> {
        let beside = |name: &str| {
            let path = self.folder.as_ref()?.join(name);
            path.is_file().then_some(path)
        };
        let Some(tokens) = given.map(Path::to_path_buf).or_else(|| beside(TOKENS)) else {
            notes.push(format!(
                "there is no tokenizer: the folder takes token ids; {TOKENIZER} or {FROM} brings one"
            ));
            return Ok(());
        };
        let known = read_json(&tokens)?;
        let kind = known["model"]["type"].as_str().unwrap_or_default();
        let Some((_, class)) = RUN.iter().find(|(known, _)| *known == kind) else {
            return Err(ExportError::Option {
                option: TOKENIZER,
                why: format!(
                    "{}: onnxruntime-genai runs tokenizers of {} and {}, and this is {}; without it the folder takes token ids",
                    tokens.display(),
                    RUN[0].0,
                    RUN[1].0,
                    if kind.is_empty() { "none" } else { kind }
                ),
            });
        };
        staged.copy(&tokens, TOKENS)?;
        match beside(SETTINGS) {
            Some(settings) => staged.copy(&settings, SETTINGS)?,
            None => {
                let settings = json!({"tokenizer_class": class});
                staged.write(SETTINGS, settings.to_string() + "\n")?;
            }
        }
        for name in OPTIONAL {
            if let Some(file) = beside(name) {
                staged.copy(&file, name)?;
            }
        }
        Ok(())
    }
}

/// A JSON file, if it is there.
fn read_json(path: &Path) -> Result<Value, ExportError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let unread = |why: String| ExportError::Option {
        option: FROM,
        why: format!("{}: {why}", path.display()),
    };
    let text = std::fs::read(path).map_err(|e| unread(format!("it cannot be read: {e}")))?;
    serde_json::from_slice(&text).map_err(|e| unread(format!("it is no JSON: {e}")))
}

/// Models of `tokenizer.json` that the runtime's own tokenizer knows, and a class by which it takes each.
const RUN: [(&str, &str); 2] = [
    ("BPE", "PreTrainedTokenizerFast"),
    ("Unigram", "T5Tokenizer"),
];
