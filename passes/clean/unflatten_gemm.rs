//! Products of flattened activations become products of the activations themselves.

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::analysis::view::View;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct UnflattenGemm;

impl Rule for UnflattenGemm {
    fn name(&self) -> &'static str {
        "unflatten-gemm"
    }

    fn about(&self) -> &'static str {
        "turn Gemm of a flattened activation into MatMul and Add of the activation"
    }

    fn details(&self) -> String {
        "`Reshape(x, {-1, 768})`, Gemm, Reshape back to [batch, seq, n] becomes `Add(MatMul(x, w), bias)`, the spelling \
         of a linear layer that the other passes know. A batch of one is found by what the result is reshaped to. A transposed constant weight is transposed once, here."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["Gemm"]
    }

    fn needs_facts(&self) -> bool {
        true
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let gemm = ops::Gemm::of(g, root).ok_or_else(Miss::none)?;
        let (Some(a), Some(b), Some(output)) = (gemm.input(0), gemm.input(1), gemm.output(0))
        else {
            return Err(Miss::none());
        };
        if gemm.trans_a() || gemm.alpha() != 1.0 || (gemm.c().is_some() && gemm.beta() != 1.0) {
            return Err(Miss::because("it scales or transposes its first operand"));
        }
        let mut view =
            View::of(g, &cx.facts, a).ok_or_else(|| Miss::at(a, 1, "its shape is unknown"))?;
        let [rows, columns] = view.dims.as_slice() else {
            return Err(Miss::at(a, 1, "it is no matrix"));
        };
        if rows.len() >= 2 {
            let (rows, columns) = (rows.clone(), columns.clone());
            let rows = rows.iter().map(|&atom| vec![atom]);
            view.dims = rows.chain([columns]).collect();
        } else {
            let wanted = unflattened(g, &cx.facts, output).filter(|_| !view.nodes.is_empty());
            let columns = view.product(columns);
            let wanted = wanted.zip(columns).map(|(mut rows, columns)| {
                rows.push(columns);
                rows
            });
            wanted
                .and_then(|dims| view.regroup(&dims))
                .ok_or_else(|| Miss::at(a, 1, "its rows are no flattened dimensions"))?;
        }
        let mut patch = Patch::new();
        let (x, _) = (view.emit(g, &mut patch)).ok_or_else(|| {
            Miss::at(
                a,
                2,
                "the dimensions before flattening would have to be computed",
            )
        })?;
        let w = match (gemm.trans_b(), g.constant(b)) {
            (false, _) => b.into(),
            (true, Some(w)) => {
                let turned = w
                    .transposed()
                    .ok_or_else(|| Miss::at(b, 1, "it is no matrix"))?;
                patch.constant(turned)
            }
            (true, None) => patch.node(Op::onnx("Transpose"), [b.into()], Attrs::new()),
        };
        let mut y = patch.node(Op::onnx("MatMul"), [x, w], Attrs::new());
        if let Some(c) = gemm.c() {
            if g.value(c).ty().rank().is_none_or(|rank| rank > 1) {
                return Err(Miss::at(c, 1, "the bias is no vector"));
            }
            y = patch.node(Op::onnx("Add"), [y, c.into()], Attrs::new());
        }
        let n = (cx.facts.dims(output).and_then(|d| d.last()?.as_i64()))
            .ok_or_else(|| Miss::at(output, 1, "its number of columns is unknown"))?;
        let shape = patch.constant(Tensor::vector(&[-1, n]));
        let flat = patch.node(Op::onnx("Reshape"), [y, shape], Attrs::new());
        patch.replace(output, flat);
        Ok(patch)
    }
}

/// The sizes of all dimensions but the last, of what is made of a matrix again.
fn unflattened(g: &Graph, facts: &Facts, matrix: ValueId) -> Option<Vec<Expr>> {
    let [usage] = g.value(matrix).uses() else {
        return None;
    };
    let reshape = g.node(usage.node);
    let made = reshape
        .sole_output()
        .filter(|_| reshape.op().is("Reshape"))?;
    let (last, rows) = facts.dims(made)?.split_last()?;
    let same = facts.dims(matrix)?.last() == Some(last) && rows.len() >= 2;
    (same && !g.value(matrix).is_output()).then(|| rows.to_vec())
}
