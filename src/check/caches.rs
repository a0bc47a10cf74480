//! Whether an engine's steps leave a decoder's caches where they are.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::Aliased;
use crate::manifest;

/// What an engine's kernels do to caches, held against the gate.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct InPlace {
    pub pass: bool,
    pub why: String,
}

impl InPlace {
    /// Of an engine's kernels; `None`: it has no caches that are written into, or its kernels are not listed.
    pub fn of(aliased: Option<&Aliased>) -> InPlace {
        let moves = match aliased {
            None => Some(
                "the engine has none that are written into, or did not list its kernels".into(),
            ),
            Some(aliased) => aliased.moves(),
        };
        InPlace {
            pass: moves.is_none(),
            why: match (moves, aliased) {
                (None, Some(aliased)) => aliased.describe(),
                (why, _) => format!("caches in place: {}", why.unwrap_or_default()),
            },
        }
    }
}

/// Of a bundle's engine, as its manifest has it.
pub(super) fn find(candidate: &Path) -> InPlace {
    match manifest::kernels(candidate) {
        Ok(engine) => InPlace::of(engine.aliased.as_ref()),
        Err(_) => InPlace {
            pass: false,
            why: "caches in place: there is no engine".into(),
        },
    }
}
