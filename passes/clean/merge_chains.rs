//! Merges a shape or type operator with the one of its kind that feeds it.

use kiln_graph::{Attrs, DType, Graph, Node, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct MergeChains;

impl Rule for MergeChains {
    fn name(&self) -> &'static str {
        "merge-chains"
    }

    fn about(&self) -> &'static str {
        "merge chains of Transpose, Reshape, Unsqueeze, Squeeze and Cast"
    }

    fn details(&self) -> String {
        "`Transpose(Transpose(x))` becomes one Transpose, `Reshape(Reshape(x))` the last one, \
         `Unsqueeze(Unsqueeze(x))` one Unsqueeze, and `Squeeze(Unsqueeze(x))` over the same axes x itself. \
         `Cast(Cast(x, A), B)` becomes `Cast(x, B)` where A holds every value of x's type exactly."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn roots(&self) -> &[&'static str] {
        &["Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let (Some(middle), Some(output)) = (node.input(0), node.output(0)) else {
            return Err(Miss::none());
        };
        let inner = g.producer(middle).ok_or_else(Miss::none)?;
        let (first, x) = (
            g.node(inner),
            g.node(inner).input(0).ok_or_else(Miss::none)?,
        );
        let link = Link {
            g,
            outer: node,
            inner: first,
            x,
            middle,
            output,
        };
        match (first.op().name(), node.op().name()) {
            _ if !first.op().domain().is_empty() => Err(Miss::none()),
            ("Transpose", "Transpose") => link.transposes(),
            ("Reshape" | "Flatten" | "Unsqueeze" | "Squeeze", "Reshape") => link.reshape(),
            ("Unsqueeze", "Unsqueeze") => link.unsqueezes(),
            ("Unsqueeze", "Squeeze") => link.undone(),
            ("Cast", "Cast") => link.casts(root),
            _ => Err(Miss::none()),
        }
    }
}

struct Link<'a> {
    g: &'a Graph,
    outer: &'a Node,
    inner: &'a Node,
    x: ValueId,
    middle: ValueId,
    output: ValueId,
}

impl Link<'_> {
    fn axes(&self, node: &Node) -> Result<Vec<i64>, Miss> {
        let axes = node
            .input(1)
            .and_then(|v| self.g.constant(v))
            .and_then(|t| t.to_i64s());
        axes.ok_or_else(|| Miss::because("its axes are not constant"))
    }

    fn rank(&self, v: ValueId) -> Result<usize, Miss> {
        let rank = self.g.value(v).ty().rank();
        rank.ok_or_else(|| Miss::at(v, 2, "its rank is unknown"))
    }

    fn transposes(&self) -> Result<Patch, Miss> {
        let rank = self.rank(self.x)?;
        let perm = |node: &Node| match node.attrs().ints("perm") {
            Some(p) => p.to_vec(),
            None => (0..rank as i64).rev().collect(),
        };
        let (first, second) = (perm(self.inner), perm(self.outer));
        let composed: Option<Vec<i64>> = (second.iter())
            .map(|&k| first.get(usize::try_from(k).ok()?).copied())
            .collect();
        let composed = composed.ok_or_else(|| Miss::because("its permutation is malformed"))?;
        if composed.iter().enumerate().all(|(k, &p)| p == k as i64) {
            return Ok(Patch::replacing(self.output, self.x));
        }
        Ok(self.one(
            Op::onnx("Transpose"),
            None,
            Attrs::new().with("perm", composed),
        ))
    }

    fn reshape(&self) -> Result<Patch, Miss> {
        let shape = self.outer.input(1).ok_or_else(Miss::none)?;
        let target = self.g.constant(shape).and_then(Tensor::to_i64s);
        let target = target.ok_or_else(|| Miss::at(shape, 2, "the second shape is computed"))?;
        let allowzero = self.outer.attrs().int("allowzero").unwrap_or(0) != 0;
        // A 0 copies the dimension of what is reshaped; it may copy from x instead only if that one is the same.
        let dims = |v: ValueId| self.g.value(v).ty().shape().unwrap_or_default();
        let (before, between) = (dims(self.x), dims(self.middle));
        let copies_same = target.iter().enumerate().all(|(k, &d)| {
            d != 0
                || allowzero
                || matches!((before.get(k), between.get(k)), (Some(a), Some(b)) if a.certainly_equals(b))
        });
        if !copies_same {
            return Err(Miss::because(
                "the second Reshape copies a dimension that the first one made",
            ));
        }
        let mut patch = Patch::new();
        let made = patch.node(
            self.outer.op(),
            [self.x.into(), shape.into()],
            self.outer.attrs().clone(),
        );
        patch.replace(self.output, made);
        Ok(patch)
    }

    fn unsqueezes(&self) -> Result<Patch, Miss> {
        let rank = self.rank(self.x)?;
        let place = |axes: Vec<i64>, rank: usize| -> Option<Vec<usize>> {
            let wrap = |a: i64| usize::try_from(if a < 0 { a + rank as i64 } else { a }).ok();
            axes.into_iter().map(wrap).collect()
        };
        let (first, second) = (self.axes(self.inner)?, self.axes(self.outer)?);
        let (middle, outer) = (rank + first.len(), rank + first.len() + second.len());
        let malformed = || Miss::because("its axes are malformed");
        let first = place(first, middle).ok_or_else(malformed)?;
        let second = place(second, outer).ok_or_else(malformed)?;
        let kept = (0..outer).filter(|k| !second.contains(k));
        let moved = kept
            .enumerate()
            .filter(|(k, _)| first.contains(k))
            .map(|(_, at)| at);
        let mut axes: Vec<i64> = second
            .iter()
            .copied()
            .chain(moved)
            .map(|k| k as i64)
            .collect();
        axes.sort_unstable();
        Ok(self.one(
            Op::onnx("Unsqueeze"),
            Some(Tensor::vector(&axes)),
            Attrs::new(),
        ))
    }

    fn undone(&self) -> Result<Patch, Miss> {
        let rank = self.rank(self.middle)? as i64;
        let sorted = |axes: Vec<i64>| {
            let mut axes: Vec<i64> = axes.iter().map(|a| a.rem_euclid(rank.max(1))).collect();
            axes.sort_unstable();
            axes
        };
        let (added, removed) = (
            sorted(self.axes(self.inner)?),
            sorted(self.axes(self.outer)?),
        );
        match added == removed {
            true => Ok(Patch::replacing(self.output, self.x)),
            false => Err(Miss::because(
                "the Squeeze removes other axes than were added",
            )),
        }
    }

    fn casts(&self, root: NodeId) -> Result<Patch, Miss> {
        let ty = |v: ValueId| self.g.value(v).ty().dtype();
        let to = ops::Cast::of(self.g, root)
            .and_then(|c| c.to())
            .ok_or_else(Miss::none)?;
        match (ty(self.x), ty(self.middle)) {
            (Some(from), Some(through)) if holds(through, from) => {
                if from == to {
                    return Ok(Patch::replacing(self.output, self.x));
                }
                Ok(self.one(Op::onnx("Cast"), None, self.outer.attrs().clone()))
            }
            _ => Err(Miss::because("the first Cast loses values")),
        }
    }

    fn one(&self, op: Op, second: Option<Tensor>, attrs: Attrs) -> Patch {
        let mut patch = Patch::new();
        let mut inputs = vec![self.x.into()];
        inputs.extend(second.map(|t| patch.constant(t)));
        let made = patch.node(op, inputs, attrs);
        patch.replace(self.output, made);
        patch
    }
}

/// Whether every value of `narrow` is a value of `wide`.
fn holds(wide: DType, narrow: DType) -> bool {
    use DType::*;
    wide == narrow
        || match narrow {
            F16 | BF16 => matches!(wide, F32 | F64),
            F32 => wide == F64,
            I8 => matches!(wide, I16 | I32 | I64 | F16 | F32 | F64),
            U8 => matches!(wide, I16 | U16 | I32 | U32 | I64 | U64 | F16 | F32 | F64),
            I16 | U16 => {
                matches!(wide, I32 | I64 | F32 | F64)
                    || (narrow == U16 && matches!(wide, U32 | U64))
            }
            I32 => matches!(wide, I64 | F64),
            U32 => matches!(wide, I64 | U64 | F64),
            Bool => wide.is_int() && wide.bits() >= 8 || matches!(wide, F16 | BF16 | F32 | F64),
            _ => false,
        }
}
