//! Which models generate together: `generation.json`, beside a bundle's models or by hand.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::GenerateError;
use crate::bundle::BundleError;

/// The file's name within a folder.
pub use crate::bundle::ROLES as FILE;

/// Models by their roles, and what a generation starts and ends with. Paths are relative to the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// Runs token after token on its cache: a model or a bundle.
    pub decoder: PathBuf,
    /// Runs once, on features or on tokens of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<PathBuf>,
    /// Runs once, on the first tokens and what the encoder gave, and makes the caches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens that the decoder starts with, where there is an encoder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suppress: Vec<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suppress_first: Vec<i64>,
}

impl Roles {
    /// Whether a path names several models by their roles.
    pub fn are_at(path: &Path) -> bool {
        match path.is_dir() {
            true => path.join(FILE).is_file(),
            false => path.extension().is_some_and(|e| e == "json"),
        }
    }

    /// What a path names: `generation.json` itself, a folder with one, or a decoder alone.
    ///
    /// # Errors
    /// When the file cannot be read or says something unknown, or a model that it names is not there.
    pub fn find(path: &Path) -> Result<Roles, GenerateError> {
        let file = match path.is_dir() {
            true => path.join(FILE),
            false => path.to_path_buf(),
        };
        let is_json = file.extension().is_some_and(|e| e == "json");
        if !is_json || !file.is_file() {
            if is_json && !path.is_dir() {
                return Err(GenerateError::Pair {
                    why: format!("{}: there is no such file", file.display()),
                });
            }
            return Ok(Roles {
                decoder: path.to_path_buf(),
                ..Roles::default()
            });
        }
        let refuse = |why: String| GenerateError::Pair {
            why: format!("{}: {why}", file.display()),
        };
        let text = std::fs::read_to_string(&file).map_err(|e| refuse(e.to_string()))?;
        let roles: Roles = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let beside = |p: PathBuf| folder.join(p);
        let roles = Roles {
            decoder: beside(roles.decoder),
            encoder: roles.encoder.map(beside),
            first: roles.first.map(beside),
            tokenizer: roles.tokenizer.map(beside),
            ..roles
        };
        for (role, path) in roles.models() {
            if !path.exists() {
                return Err(refuse(format!(
                    "its {role}, {}, is not there",
                    path.display()
                )));
            }
        }
        Ok(roles)
    }

    /// The models that there are, with their roles.
    pub fn models(&self) -> Vec<(&'static str, &Path)> {
        let all = [
            ("encoder", self.encoder.as_deref()),
            ("first step", self.first.as_deref()),
            ("decoder", Some(self.decoder.as_path())),
        ];
        let there = all.into_iter();
        there.filter_map(|(role, p)| Some((role, p?))).collect()
    }

    /// Writes the file into a folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), GenerateError> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        std::fs::write(&path, text).map_err(|e| {
            GenerateError::Bundle(BundleError::Io {
                path: path.clone(),
                why: "it cannot be written",
                source: e,
            })
        })
    }
}
