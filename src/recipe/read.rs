//! Reading recipes: YAML, JSON, or the manifest of a bundle.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_graph::limits;
use serde_json::Value;

use super::Recipe;
use crate::bundle::MANIFEST;
use crate::manifest::{self, ManifestError};
use crate::nearest;

/// A recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("{}: unknown key '{key}'{}; known keys: {known}", path.display(), nearest.as_ref().map_or(String::new(), |n| format!(" (do you mean '{n}'?)")))]
    UnknownKey {
        path: PathBuf,
        key: String,
        nearest: Option<String>,
        known: String,
    },
    #[error("{}: this manifest has no recipe: it was written by an older kiln", .0.display())]
    NoRecipe(PathBuf),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{key}: {reason}")]
    Value { key: String, reason: String },
    #[error("no model: name it on the command line, or as `model` in the recipe")]
    NoModel,
}

/// Reads a recipe, with its paths made absolute. Of a manifest it is the recipe that made the bundle, without the bundle's
/// place.
///
/// # Errors
/// When the file cannot be read, is no YAML or JSON, or has keys or values that mean nothing.
pub fn read(path: &Path) -> Result<Recipe, RecipeError> {
    let io = |source| RecipeError::Io {
        path: path.to_path_buf(),
        source,
    };
    let syntax = |reason: String| RecipeError::Syntax {
        path: path.to_path_buf(),
        reason,
    };
    let mut text = String::new();
    // A device has no length and may have no end.
    let file = File::open(path).map_err(io)?;
    let most = limits::RECIPE as u64 + 1;
    let read = file.take(most).read_to_string(&mut text).map_err(io)?;
    if read > limits::RECIPE {
        return Err(syntax("it is too large for a recipe".into()));
    }
    let json = path.extension().is_some_and(|e| e == "json");
    let value: Value = match json {
        true => serde_json::from_str(&text).map_err(|e| syntax(e.to_string()))?,
        false => {
            let parsed = serde_saphyr::from_str_with_options(&text, yaml());
            parsed.map_err(|e| syntax(e.to_string()))?
        }
    };
    // A manifest names the kiln that wrote it; a recipe has no such key.
    let (value, made) = match value.get("kiln") {
        Some(_) if json => {
            manifest::is_known(path, text.as_bytes())?;
            match value.get("recipe") {
                Some(recipe) => (recipe.clone(), true),
                None => return Err(RecipeError::NoRecipe(path.to_path_buf())),
            }
        }
        _ => (value, false),
    };
    let value = if value.is_null() {
        Value::Object(Default::default())
    } else {
        value
    };
    known_keys(path, &value, "")?;
    let mut recipe: Recipe = serde_json::from_value(value).map_err(|e| syntax(e.to_string()))?;
    if made {
        recipe.output = None;
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok(recipe.placed(folder))
}

/// The recipe that made a bundle; `None` where a folder has no manifest, or one without a recipe that can be read.
///
/// # Errors
/// When a newer kiln made the bundle.
pub fn of_bundle(folder: &Path) -> Result<Option<Recipe>, RecipeError> {
    let path = folder.join(MANIFEST);
    if !path.is_file() {
        return Ok(None);
    }
    match read(&path) {
        Err(newer @ RecipeError::Manifest(ManifestError::Newer { .. })) => Err(newer),
        read => Ok(read.ok()),
    }
}

/// A recipe is written by people, who refer to little: the parser's own limit lets some hundred bytes take seconds.
fn yaml() -> serde_saphyr::Options {
    serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: limits::REPLAYED,
        },
    }
}

/// Refuses keys of a recipe inside another file, whose place there is `at`.
pub(crate) fn known_keys(path: &Path, value: &Value, at: &str) -> Result<(), RecipeError> {
    known(path, value, Recipe::schema().as_value(), at)
}

/// Refuses keys that the schema does not have; serde lets them pass, since a newer kiln's manifest may have some.
fn known(path: &Path, value: &Value, schema: &Value, at: &str) -> Result<(), RecipeError> {
    let Some(properties) = schema["properties"].as_object() else {
        return Ok(());
    };
    let Some(entries) = value.as_object() else {
        let what = if at.is_empty() { "a recipe" } else { at };
        return Err(RecipeError::Syntax {
            path: path.to_path_buf(),
            reason: format!("{what} is a map of keys and values, not {value}"),
        });
    };
    for (key, value) in entries {
        let full = if at.is_empty() {
            key.clone()
        } else {
            format!("{at}.{key}")
        };
        let Some(schema) = properties.get(key) else {
            let names = || properties.keys();
            let nearest = nearest::slip(names().map(String::as_str), key);
            return Err(RecipeError::UnknownKey {
                path: path.to_path_buf(),
                key: full,
                nearest: nearest.map(String::from),
                known: names().cloned().collect::<Vec<_>>().join(", "),
            });
        };
        known(path, value, schema, &full)?;
    }
    Ok(())
}
