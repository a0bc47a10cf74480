//! Runs of the original at sizes that are tried, within what memory allows.

use kiln_graph::infer::Expr;
use kiln_graph::{Dim, Graph};
use kiln_runtime::units;

use super::paper::{self, Look};
use super::{Point, Shapes};

/// Whether the original model runs at the given shapes of its inputs; the error says why not.
pub type Probe<'a> = dyn FnMut(&Point) -> Result<(), String> + 'a;

/// What had to change.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// Sentences for the user.
    pub warnings: Vec<String>,
}

/// What says whether a size runs.
pub(super) struct Runs<'a> {
    pub(super) original: &'a Graph,
    /// The runtime; without it, inference alone says.
    pub(super) probe: Option<&'a mut Probe<'a>>,
    /// Bytes that a size may take.
    pub(super) limit: u64,
    /// Operations that a run may take; what is more runs in parts.
    pub(super) enough: Option<u64>,
}

impl Runs<'_> {
    pub(super) fn at(&mut self, shapes: &Shapes, point: &Point) -> Result<(), String> {
        let mut point = point.clone();
        shapes.complete(&mut point);
        if let Some(name) = emptied(self.original, shapes, &point) {
            return Err(format!("nothing would be left of '{name}'"));
        }
        let Look {
            conflict, bytes, ..
        } = paper::look(self.original, shapes, &point);
        if bytes > self.limit {
            let wanted = units::bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
            let limit = units::bytes(usize::try_from(self.limit).unwrap_or(usize::MAX));
            return Err(format!(
                "a run would take about {wanted} of memory, more than the {limit} that kiln takes for it"
            ));
        }
        match &mut self.probe {
            Some(probe) => match shapes.parts(self.original, &point, self.enough) {
                Some(parts) => [parts.long, parts.wide].iter().try_for_each(probe),
                None => probe(&point),
            },
            None => conflict.map_or(Ok(()), Err),
        }
    }
}

/// An input of numbers without elements because a size that follows from others is 0: where no token is left there is nothing to
/// prove, and operators refuse it. Caches may be empty, and they are floats.
fn emptied(graph: &Graph, shapes: &Shapes, point: &Point) -> Option<String> {
    let none = |(name, expr): (&String, &Expr)| {
        (expr.as_i64().is_none() && point.get(name) == Some(&0)).then(|| name.clone())
    };
    let sizes: Vec<String> = shapes.relations.iter().filter_map(none).collect();
    let inputs = shapes.inputs.iter().zip(graph.inputs());
    let mut found = inputs.filter(|(input, v)| {
        let integers = graph.value(**v).ty().dtype().is_some_and(|d| d.is_int());
        let has = |d: &Dim| matches!(d, Dim::Symbol(s) if sizes.iter().any(|n| **n == **s));
        integers && input.dims.iter().any(has)
    });
    found.next().map(|(input, _)| input.name.clone())
}
