//! Many models, targets and precisions: a plan is crossed into cells, and each cell is a compilation of its own that any
//! engine of jobs can start. kiln schedules nothing.

pub mod collect;
mod plan;
mod template;

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use plan::{Cell, MatrixError, Needs, Plan};
pub use template::Engine;

use crate::bundle;
use crate::cache::{self, Cached};
use crate::compile::{self, CompileError};
use crate::fault::Fault;
use crate::options::Options;
use crate::recipe;
use crate::talk::Talk;

/// How a cell went, as its file says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    pub id: String,
    /// That of `kiln compile`.
    pub exit_code: u8,
    /// What it said, where it failed.
    pub error: Option<String>,
    pub seconds: f64,
    /// The recipe that was run; another one is another cell.
    pub recipe: Value,
    pub host: String,
}

impl Plan {
    /// A script that has an engine run every cell.
    pub fn template(&self, engine: Engine) -> String {
        template::fill(self, engine)
    }
}

/// What became of a cell.
#[derive(Debug)]
pub enum Run {
    /// It was done before, by the same recipe; nothing was run.
    Before(Ended),
    Now(Ended),
}

/// Runs a cell, unless it was done. One that failed or was killed is run again. `code` is the exit code of a failure.
///
/// # Errors
/// When its result cannot be written. A compilation that fails is a result.
pub fn run(
    plan: &Plan,
    cell: &Cell,
    how: &Options,
    code: fn(Fault) -> u8,
    talk: &dyn Talk,
) -> Result<Run, MatrixError> {
    let [bundle, status] = &cell.outputs;
    let recipe = serde_json::to_value(&cell.recipe).unwrap_or_default();
    if let Some(before) = ended(status) {
        let done = matches!(before.exit_code, 0 | 6) && before.recipe == recipe;
        // A model that was replaced is another model.
        if done && bundle.join(bundle::MODEL).is_file() && is_newer(status, cell) {
            return Ok(Run::Before(before));
        }
    }
    let options = Options {
        device: how.device,
        ort_lib: how.ort_lib.clone(),
        trt_lib: how.trt_lib.clone(),
        builder: how.builder.clone(),
        ..recipe::resolve(&cell.recipe)?
    };
    let start = Instant::now();
    let done = compiled(plan, &options, talk);
    let ended = Ended {
        id: cell.id.clone(),
        exit_code: match &done {
            Ok(true) => 0,
            Ok(false) => 6,
            Err(e) => code(e.fault()),
        },
        error: done
            .err()
            .map(|e| bundle::public(&e.to_string()).into_owned()),
        seconds: start.elapsed().as_secs_f64(),
        recipe,
        host: host(),
    };
    // Whole or not at all: a cell that is killed has none.
    let text = serde_json::to_vec_pretty(&ended).unwrap_or_default();
    let part = status.with_extension(format!("json.{}.part", std::process::id()));
    let written = fs::create_dir_all(&plan.output)
        .and_then(|()| fs::write(&part, text))
        .and_then(|()| fs::rename(&part, status));
    written.map_err(|source| MatrixError::Io {
        path: status.clone(),
        why: "the cell's result cannot be written",
        source,
    })?;
    Ok(Run::Now(ended))
}

/// Whether the result was written after the model.
fn is_newer(status: &Path, cell: &Cell) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    match (cell.recipe.model.as_deref().and_then(time), time(status)) {
        (Some(model), Some(status)) => status >= model,
        _ => false,
    }
}

/// Whether the result was proved.
fn compiled(plan: &Plan, options: &Options, talk: &dyn Talk) -> Result<bool, CompileError> {
    let done = match &plan.cache {
        None => compile::compile(options, talk).map(|o| Cached::Made(Box::new(o)))?,
        Some(cache) => cache::compile(options, cache, talk)?,
    };
    Ok(match done {
        Cached::Made(outcome) => outcome.manifest.parity.as_ref().is_none_or(|p| p.pass()),
        Cached::Hit { manifest, .. } => {
            matches!(manifest["parity_outcome"].as_str(), None | Some("passes"))
        }
    })
}

/// What a cell's file says, if there is one.
fn ended(status: &Path) -> Option<Ended> {
    serde_json::from_slice(&fs::read(status).ok()?).ok()
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_string()
}

#[cfg(test)]
mod tests;
