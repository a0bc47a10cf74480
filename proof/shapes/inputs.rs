//! Inputs to make at a point of the sizes.

use kiln_graph::Graph;

use super::{Kinds, Point, Shapes};
use crate::parity::InputSpec;

/// What to make for each input at a point of the sizes.
pub fn specs(original: &Graph, shapes: &Shapes, point: &Point) -> Vec<InputSpec> {
    Kinds::of(original).specs(shapes, point)
}
