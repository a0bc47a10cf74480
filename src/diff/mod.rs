//! What is different between two models: by block and operator, with the pass that did it where that is known.
//!
//! Nodes of the two are paired by the names of their results, then by their own names, and where few names are alike by their
//! weights and their order (`pairs.rs`). What is in one model only was made or removed by a pass: kiln notes in a model which pass made a node, and in
//! a manifest which pass removed one.

mod blocks;
mod changes;
mod error;
mod nodes;
mod pairs;
mod rows;
mod sides;

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use nodes::Nodes;

pub use error::Error;
pub use rows::{Blocks, Count, Row};
pub use sides::{Fact, Side};

/// Two models side by side.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Diff {
    pub kiln: &'static str,
    /// They compute the same: nodes, attributes, constants, inputs, outputs and operator sets are equal, and for two bundles
    /// target, precision and sizes, too. Names of nodes and of inner values, producers and documentation may differ.
    pub same: bool,
    pub a: Side,
    pub b: Side,
    /// What differs beside nodes.
    pub facts: Vec<Fact>,
    /// Nodes by operator where anything differs, over the whole model.
    pub operators: Vec<Row>,
    /// The same by block; blocks that changed alike are one entry. Blocks without a change are not here.
    pub blocks: Vec<Blocks>,
    /// What passes did, the most first.
    pub passes: Vec<ByPass>,
    pub only_a: usize,
    pub only_b: usize,
    /// Nodes of both that are not the same.
    pub changed: usize,
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ByPass {
    pub pass: String,
    pub only_a: usize,
    pub only_b: usize,
    pub changed: usize,
}

/// Compares two models or bundles.
///
/// # Errors
/// When one of them, or its manifest, cannot be read.
pub fn diff(a: &Path, b: &Path) -> Result<Diff, Error> {
    let (first, second) = (sides::read(a)?, sides::read(b)?);
    let facts = sides::facts(&first, &second);
    let (left, right) = (Nodes::of(&first.graph), Nodes::of(&second.graph));
    let paired = pairs::find(&left.items, &right.items);
    let changes = changes::all(&first, &second, &left, &right, &paired);
    let named = blocks::name(&left.items, &right.items, &paired);
    let (operators, blocks) = blocks::rows(&left.items, &right.items, &changes, &named);
    let count = |kind: fn(&changes::Kind) -> bool| changes.iter().filter(|c| kind(&c.kind)).count();
    let (only_a, only_b) = (
        count(|k| matches!(k, changes::Kind::OnlyA(_))),
        count(|k| matches!(k, changes::Kind::OnlyB(_))),
    );
    let changed = changes.len() - only_a - only_b;
    Ok(Diff {
        kiln: env!("CARGO_PKG_VERSION"),
        same: changes.is_empty() && facts.iter().all(|f| !f.counts),
        a: first.side(),
        b: second.side(),
        facts,
        operators,
        blocks,
        passes: by_pass(&changes),
        only_a,
        only_b,
        changed,
    })
}

fn by_pass(changes: &[changes::Change]) -> Vec<ByPass> {
    let mut all: BTreeMap<&str, ByPass> = BTreeMap::new();
    for change in changes {
        let Some(pass) = &change.pass else { continue };
        let entry = all.entry(pass).or_insert_with(|| ByPass {
            pass: pass.clone(),
            only_a: 0,
            only_b: 0,
            changed: 0,
        });
        match change.kind {
            changes::Kind::OnlyA(_) => entry.only_a += 1,
            changes::Kind::OnlyB(_) => entry.only_b += 1,
            changes::Kind::Both(..) => entry.changed += 1,
        }
    }
    let mut all: Vec<ByPass> = all.into_values().collect();
    all.sort_by_key(|p| std::cmp::Reverse(p.only_a + p.only_b + p.changed));
    all
}
