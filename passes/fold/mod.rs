//! Folding: what can be known before the model runs.

pub mod fold_branches;
pub mod fold_constants;
pub mod fold_shapes;
