//! Removes nodes that give their input back unchanged.

use kiln_graph::{Graph, Node, NodeId, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct EliminateNoop;

impl Rule for EliminateNoop {
    fn name(&self) -> &'static str {
        "eliminate-noop"
    }

    fn about(&self) -> &'static str {
        "remove Identity, Dropout, and Casts, Reshapes, Transposes, Expands and Slices that change nothing"
    }

    fn details(&self) -> String {
        "A Cast to the type a value has, a Reshape or Expand to the shape it certainly has, a Transpose that keeps the \
         order, a Slice of everything, a Concat or Sum of one, a Dropout outside training: each gives its first input \
         back. Shapes are compared symbolically, so `[batch, seq, 64]` equals `[batch, seq, 64]`."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn roots(&self) -> &[&'static str] {
        &[
            "Identity",
            "Dropout",
            "Cast",
            "Reshape",
            "Transpose",
            "Expand",
            "Slice",
            "Concat",
            "Sum",
            "Max",
            "Min",
            "Mean",
            "Unsqueeze",
            "Squeeze",
            "Flatten",
            "Pad",
            "Mul",
            "Div",
        ]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let (Some(output), Some(x)) = (node.output(0), node.input(0)) else {
            return Err(Miss::none());
        };
        // A second output, Dropout's mask, must not be wanted.
        if node
            .outputs()
            .iter()
            .skip(1)
            .flatten()
            .any(|&v| !g.value(v).is_unused())
        {
            return Err(Miss::because("its second output is used"));
        }
        match is_noop(g, root, node, x, output) {
            true => Ok(Patch::replacing(output, x)),
            false => Err(Miss::because("it changes its input")),
        }
    }
}

fn is_noop(g: &Graph, id: NodeId, node: &Node, x: ValueId, output: ValueId) -> bool {
    let (from, to) = (g.value(x).ty(), g.value(output).ty());
    let sole = node.inputs().len() == 1;
    match node.op().name() {
        "Identity" => true,
        "Dropout" => ops::Dropout::of(g, id).is_some_and(|d| d.is_inference()),
        "Cast" => {
            let to = ops::Cast::of(g, id).and_then(|c| c.to());
            to.is_some() && from.dtype() == to
        }
        "Concat" | "Sum" | "Max" | "Min" | "Mean" => sole,
        "Transpose" => {
            let perm = node.attrs().ints("perm");
            perm.is_some_and(|p| p.iter().enumerate().all(|(k, &p)| p == k as i64))
        }
        "Squeeze" | "Unsqueeze" => {
            let axes = node.input(1).and_then(|a| g.constant(a));
            axes.is_some_and(|t| t.is_empty())
        }
        "Slice" => whole_slice(g, node),
        "Pad" => {
            let pads = node
                .input(1)
                .and_then(|p| g.constant(p))
                .and_then(|t| t.to_i64s());
            pads.is_some_and(|p| p.iter().all(|&n| n == 0))
        }
        "Mul" | "Div" => {
            let one = node.input(1).and_then(|v| g.constant(v));
            let one = one.filter(|t| t.as_f64() == Some(1.0) || t.as_i64() == Some(1));
            one.is_some_and(|t| from.rank().is_some_and(|r| r >= t.rank()))
        }
        _ => same_shape(from.shape(), to.shape()),
    }
}

fn same_shape(a: Option<&[kiln_graph::Dim]>, b: Option<&[kiln_graph::Dim]>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.certainly_equals(b))
        }
        _ => false,
    }
}

/// Starts at 0, ends beyond every size, steps by 1 (Slice-10 and later, whose bounds are inputs).
fn whole_slice(g: &Graph, node: &Node) -> bool {
    let ints = |k: usize| {
        node.input(k)
            .and_then(|v| g.constant(v))
            .and_then(|t| t.to_i64s())
    };
    let (Some(starts), Some(ends)) = (ints(1), ints(2)) else {
        return false;
    };
    let steps = match node.input(4) {
        None => true,
        Some(_) => ints(4).is_some_and(|s| s.iter().all(|&s| s == 1)),
    };
    // Exporters write "to the end" as the largest 32- or 64-bit integer.
    let everything = i64::from(i32::MAX);
    steps && starts.iter().all(|&s| s == 0) && ends.iter().all(|&e| e >= everything)
}
