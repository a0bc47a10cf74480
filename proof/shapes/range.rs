//! What sizes are told in: ranges, points, and inputs whose dimensions are names of ranges.

use std::collections::BTreeMap;
use std::fmt;

use kiln_graph::{DType, Dim};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sizes of one dimension: TensorRT tunes for `opt` and takes all from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Range {
    pub min: usize,
    pub opt: usize,
    pub max: usize,
}

impl Range {
    pub fn fixed(n: usize) -> Range {
        Range {
            min: n,
            opt: n,
            max: n,
        }
    }

    pub fn is_fixed(self) -> bool {
        self.min == self.max
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_fixed() {
            true => write!(f, "{}", self.opt),
            false => write!(f, "{}:{}:{}", self.min, self.opt, self.max),
        }
    }
}

/// One input: its type, and each dimension as a number or the name of a range.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: String,
    pub dtype: DType,
    pub dims: Vec<Dim>,
}

/// A point of the profile: which size each symbol has.
pub type Point = BTreeMap<String, usize>;
