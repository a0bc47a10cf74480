//! Slices that share a product among them become one Split.

use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct JoinSlices;

impl Rule for JoinSlices {
    fn name(&self) -> &'static str {
        "join-slices"
    }

    fn about(&self) -> &'static str {
        "turn Slices that take a product's columns apart into one Split"
    }

    fn details(&self) -> String {
        "`y[..., :n]`, `y[..., n:2n]` and `y[..., 2n:]` of `y = Add(MatMul(x, w), b)` become the outputs of one Split, the spelling \
         of packed projections and gates that the other passes know. torch's older exporter writes `chunk` as Slices. \
         Applied where they read all columns, each once and in any order, and nothing else reads the product."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["Slice"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        let data = g.node(root).input(0).ok_or_else(Miss::none)?;
        let (all, _) = columns(g, root).ok_or_else(Miss::none)?;
        if !is_product(g, data) {
            return Err(Miss::because("it takes no product apart"));
        }
        let value = g.value(data);
        let parts = value.uses().iter().map(|usage| {
            let (_, range) = columns(g, usage.node)?;
            Some((range, g.node(usage.node).sole_output()?))
        });
        let parts: Option<Vec<_>> = parts.collect();
        let parts = parts.filter(|_| !value.is_output());
        let mut parts = parts.ok_or_else(|| Miss::at(data, 1, "something else reads it"))?;
        parts.sort_by_key(|((start, _), _)| *start);
        let mut next = 0;
        for ((start, width), _) in &parts {
            if *start != next {
                return Err(Miss::at(data, 2, "the parts do not lie side by side"));
            }
            next += width;
        }
        if next != all || parts.len() < 2 {
            return Err(Miss::at(data, 2, "some of its columns are in no part"));
        }
        let mut patch = Patch::new();
        let widths: Vec<i64> = parts.iter().map(|((_, width), _)| *width as i64).collect();
        let widths = patch.constant(Tensor::vector(&widths));
        let made = patch.node_with(
            Op::onnx("Split"),
            [Some(data.into()), Some(widths)],
            parts.len(),
            Attrs::new().with("axis", -1),
        );
        for ((_, part), made) in parts.into_iter().zip(made) {
            patch.replace(part, made);
        }
        Ok(patch)
    }
}

/// A product with a weight, and a bias behind it if it has one.
fn is_product(g: &Graph, v: ValueId) -> bool {
    let Some(node) = g.producer(v).map(|id| g.node(id)) else {
        return false;
    };
    let inputs = || node.inputs().iter().flatten();
    if node.op().is("Add") {
        let biased = inputs().any(|&v| g.constant(v).is_some());
        return biased && inputs().any(|&v| g.producer_if(v, "MatMul").is_some());
    }
    node.op().is("MatMul")
}

/// How many columns there are, and start and width of those that a Slice of the last axis alone takes.
fn columns(g: &Graph, id: NodeId) -> Option<(usize, (usize, usize))> {
    let slice = ops::Slice::of(g, id)?;
    let shape = g.value(slice.input(0)?).ty().shape()?;
    let all = shape.last()?.known()?;
    let ranges = slice.ranges()?;
    let [range] = ranges.as_slice() else {
        return None;
    };
    let last = ops::resolve_axis(range.axis, shape.len()) == Some(shape.len() - 1);
    let place = |at: i64| match usize::try_from(at) {
        Ok(at) => Some(at.min(all)),
        Err(_) => all.checked_sub(usize::try_from(at.unsigned_abs()).ok()?),
    };
    let (start, end) = (place(range.start)?, place(range.end)?);
    let width = end.checked_sub(start).filter(|&n| n > 0)?;
    (last && range.step == 1).then_some((all, (start, width)))
}
