//! Runs of the original at sizes that are tried, within what memory allows.

use kiln_graph::Graph;
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
