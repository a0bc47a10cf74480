//! A session over weights in kiln's own memory.

use kiln_graph::onnx::Parts;

use super::session::{Session, SessionOptions};
use super::values::to_ort_initializer;
use super::{Error, Runtime};

impl Session {
    /// Loads a model from memory whose weights stay where they are; one is copied if it is not aligned. Made for few runs of
    /// a large model: no kernel packs weights, and memory is not planned ahead.
    ///
    /// # Errors
    /// As [`Session::from_bytes`], and when a weight cannot be passed.
    pub fn from_parts(
        runtime: &'static Runtime,
        name: impl Into<String>,
        parts: Parts,
        options: &SessionOptions,
    ) -> Result<Session, Error> {
        let name = name.into();
        let mut held = Vec::with_capacity(parts.weights.len());
        let mut values = Vec::with_capacity(parts.weights.len());
        for (weight, tensor) in parts.weights {
            let input = to_ort_initializer(&tensor).map_err(|reason| Error::Weight {
                model: name.clone(),
                weight: weight.clone(),
                reason,
            })?;
            values.push((weight, input.value));
            held.push(input.bytes);
        }
        // The file that the model names must exist. It is empty: what reads it in spite of the initializers fails.
        let folder = stand_in().map_err(|e| Error::Model {
            model: name.clone(),
            reason: format!("no temporary folder can be made: {e}"),
        })?;
        let path = folder.path().display().to_string();
        let mut session = Session::load(runtime, name, options, |b| {
            let mut builder = b
                .clone()
                .with_prepacking(false)?
                .with_memory_pattern(false)?
                .with_config_entry("session.model_external_initializers_file_folder_path", path)?;
            for (weight, value) in values {
                builder = builder.with_initializer(weight, value)?;
            }
            builder.commit_from_memory(&parts.model)
        })?;
        session.weights = held;
        Ok(session)
    }
}

/// A folder with an empty file of the name that [`Parts`] gives external data.
fn stand_in() -> std::io::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    std::fs::File::create(folder.path().join(Parts::LOCATION))?;
    Ok(folder)
}
