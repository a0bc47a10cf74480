//! Parts of packed projections that are reshaped to heads.

use kiln_graph::{Dim, Graph, ValueId};

/// A part of packed projections as [.., count, size].
#[derive(Debug)]
pub struct Heads {
    pub count: i64,
    pub size: i64,
    pub output: ValueId,
}

impl Heads {
    /// The one Reshape that reads `part`, if it takes the channels apart and leaves the leading axes alone.
    pub fn of(g: &Graph, part: ValueId, lead: &[Dim]) -> Option<Heads> {
        let value = g.value(part);
        let [usage] = value.uses() else { return None };
        let reshape = g.node(usage.node);
        (reshape.op().is("Reshape") && reshape.input(0) == Some(part) && !value.is_output())
            .then_some(())?;
        let output = reshape.output(0)?;
        let [front @ .., count, size] = g.value(output).ty().shape()? else {
            return None;
        };
        let same = |a: &Dim, b: &Dim| a == b && !a.is_anonymous();
        let alike = front.len() == lead.len() && front.iter().zip(lead).all(|(a, b)| same(a, b));
        let number = |d: &Dim| i64::try_from(d.known()?).ok();
        alike.then_some(Heads {
            count: number(count)?,
            size: number(size)?,
            output,
        })
    }
}
