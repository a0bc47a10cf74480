//! Queries and keys of one attention are rotated as one tensor.

use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct RotateTogether;

/// The axis of the heads in [batch, heads, seq, size].
const HEADS: usize = 1;

/// What moves a projection's columns to heads.
const MOVES: &[&str] = &[
    "Add",
    "Reshape",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// What reads rotated heads on the way to the scores. Caches are written where they lie.
const SCORES: &[&str] = &["MatMul", "Mul", "Reshape", "Transpose", "Unsqueeze"];

impl Rule for RotateTogether {
    fn name(&self) -> &'static str {
        "rotate-together"
    }

    fn about(&self) -> &'static str {
        "rotate the queries and keys of one attention as one tensor"
    }

    fn details(&self) -> String {
        "Two RotaryEmbedding with the same tables, of heads that are projections of one value, become one over the heads of both, and \
         a Split behind it. TensorRT for RTX computes the tables in the kernel that rotates first, for queries and keys. In layers \
         behind it, which read them, queries and keys are rotated by a kernel each; together they are one (ModernBERT's third layer: 29 kernels \
         become 28)."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        23
    }

    fn roots(&self) -> &[&'static str] {
        &["RotaryEmbedding"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        if !cx.target.facts.rotates_apart {
            return Err(Miss::because("the target rotates each by itself as well"));
        }
        how(g, root).ok_or_else(Miss::none)?;
        let first = g.node(root);
        let (x, y) = first
            .input(0)
            .zip(first.sole_output())
            .ok_or_else(Miss::none)?;
        let source = projected(g, x).ok_or_else(|| Miss::at(x, 1, "it is no projection"))?;
        let (other, other_x, other_y) = partner(g, root, source)
            .ok_or_else(|| Miss::at(x, 1, "no other projection has its rotation"))?;
        let sizes = heads(g, x).zip(heads(g, other_x));
        let (a, b) = sizes.ok_or_else(|| Miss::at(x, 1, "the number of heads is not known"))?;
        for v in [y, other_y] {
            let value = g.value(v);
            let scores = value
                .uses()
                .iter()
                .all(|u| g.node(u.node).op().is_any(SCORES));
            if value.is_output() || !scores {
                return Err(Miss::at(v, 1, "something else than scores reads it"));
            }
        }
        let mut patch = Patch::new();
        let axis = || Attrs::new().with("axis", HEADS as i64);
        let both = [x, other_x].map(Ref::from);
        let joined = patch.node(Op::onnx("Concat"), both, axis());
        let rest = g.node(other).inputs().iter().skip(1);
        let mut inputs = vec![Some(joined)];
        inputs.extend(rest.map(|v| v.map(Ref::from)));
        let attrs = first.attrs().clone();
        let rotated = patch.node_with(first.op(), inputs, 1, attrs);
        let rotated = rotated.first().copied().ok_or_else(Miss::none)?;
        let counts = patch.constant(Tensor::vector(&[a, b]));
        let inputs = [Some(rotated), Some(counts)];
        let parts = patch.node_with(Op::onnx("Split"), inputs, 2, axis());
        for (old, new) in [y, other_y].into_iter().zip(parts) {
            patch.replace(old, new);
        }
        Ok(patch)
    }
}

/// The other RotaryEmbedding with the tables of this one, of heads that are projections of the same value.
fn partner(g: &Graph, root: NodeId, source: ValueId) -> Option<(NodeId, ValueId, ValueId)> {
    let first = g.node(root);
    let table = first.input(1)?;
    let alike = |id: NodeId| {
        let node = g.node(id);
        id != root
            && how(g, id) == how(g, root)
            && node.inputs().get(1..) == first.inputs().get(1..)
            && node.input(0).and_then(|v| projected(g, v)) == Some(source)
    };
    let readers = g.value(table).uses().iter().map(|u| u.node);
    let mut found: Vec<NodeId> = readers.filter(|&id| alike(id)).collect();
    found.dedup();
    let &[id] = found.as_slice() else { return None };
    let node = g.node(id);
    Some((id, node.input(0)?, node.sole_output()?))
}

/// How heads are rotated; `None` of another operator.
fn how(g: &Graph, id: NodeId) -> Option<(bool, Option<i64>, i64)> {
    let rotary = ops::RotaryEmbedding::of(g, id)?;
    Some((
        rotary.is_interleaved(),
        rotary.num_heads(),
        rotary.rotary_embedding_dim(),
    ))
}

/// What a product multiplies whose columns are these heads.
fn projected(g: &Graph, mut v: ValueId) -> Option<ValueId> {
    loop {
        let node = g.node(g.producer(v)?);
        if node.op().is("MatMul") {
            return node.input(0);
        }
        let mut inputs = node.inputs().iter().flatten();
        let mut data = inputs.by_ref().filter(|&&i| g.constant(i).is_none());
        let next = data.next().copied().filter(|_| node.op().is_any(MOVES))?;
        v = next;
    }
}

fn heads(g: &Graph, v: ValueId) -> Option<i64> {
    let shape = g.value(v).ty().shape().filter(|s| s.len() == 4)?;
    i64::try_from(shape.get(HEADS)?.known()?).ok()
}
