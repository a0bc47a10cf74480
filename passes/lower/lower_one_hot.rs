//! OneHot and Hardmax along an open axis, as a comparison with the places along it.

use kiln_graph::{Attrs, DType, Graph, NodeId, Op, Tensor, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct LowerOneHot;

impl Rule for LowerOneHot {
    fn name(&self) -> &'static str {
        "lower-one-hot"
    }

    fn about(&self) -> &'static str {
        "write OneHot and Hardmax along an open axis as a comparison, for targets whose OneHot has a known depth"
    }

    fn details(&self) -> String {
        "TensorRT makes Hardmax of OneHot, and builds none whose depth is open. OneHot is `Where(Equal(index, places), on, off)` \
         with the places counted by Range, and Hardmax compares the place of the largest number."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["OneHot", "Hardmax"]
    }

    fn needs_facts(&self) -> bool {
        true
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        if !cx.target.facts.needs_depth_of_one_hot {
            return Err(Miss::none());
        }
        match g.node(root).op().is("Hardmax") {
            true => hardmax(g, root, cx),
            false => one_hot(g, root, cx),
        }
    }
}

fn hardmax(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let softmax = ops::Softmax::of(g, root).ok_or_else(Miss::none)?;
    let (Some(x), Some(output)) = (softmax.input(0), softmax.output(0)) else {
        return Err(Miss::none());
    };
    let dims = cx.facts.dims(x).ok_or_else(Miss::none)?;
    let dtype = cx.facts.ty(output).dtype().ok_or_else(Miss::none)?;
    let axis = ops::resolve_axis(softmax.axis(), dims.len()).ok_or_else(Miss::none)?;
    if dims[axis].as_i64().is_some() {
        return Err(Miss::because("its axis has a known size"));
    }
    let mut patch = Patch::new();
    let along = axis as i64;
    let ends = Attrs::new().with("start", along).with("end", along + 1);
    let size = patch.node(Op::onnx("Shape"), [x.into()], ends);
    let places = places(&mut patch, size, dims.len() - 1 - axis);
    let kept = Attrs::new().with("axis", along).with("keepdims", 1i64);
    let best = patch.node(Op::onnx("ArgMax"), [x.into()], kept);
    let equal = patch.node(Op::onnx("Equal"), [best, places], Attrs::new());
    let to = Attrs::new().with("to", i64::from(dtype.to_onnx()));
    let made = patch.node(Op::onnx("Cast"), [equal], to);
    patch.replace(output, made);
    Ok(patch)
}

fn one_hot(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let one_hot = ops::OneHot::of(g, root).ok_or_else(Miss::none)?;
    let (Some(indices), Some(depth), Some(values), Some(output)) = (
        one_hot.input(0),
        one_hot.input(1),
        one_hot.input(2),
        one_hot.output(0),
    ) else {
        return Err(Miss::none());
    };
    if g.constant(depth).is_some() {
        return Err(Miss::because("its depth is known"));
    }
    let rank = cx.facts.dims(indices).ok_or_else(Miss::none)?.len() + 1;
    let axis = ops::resolve_axis(one_hot.axis(), rank).ok_or_else(Miss::none)?;
    let mut patch = Patch::new();
    let whole = |patch: &mut Patch, v, dtype: Option<DType>| -> Ref {
        let to = Attrs::new().with("to", i64::from(DType::I64.to_onnx()));
        match dtype {
            Some(DType::I64) => v,
            _ => patch.node(Op::onnx("Cast"), [v], to),
        }
    };
    let vector = patch.constant(Tensor::vector(&[-1i64]));
    let depth_type = cx.facts.ty(depth).dtype();
    let depth = whole(&mut patch, depth.into(), depth_type);
    let depth = patch.node(Op::onnx("Reshape"), [depth, vector], Attrs::new());
    let index = whole(&mut patch, indices.into(), cx.facts.ty(indices).dtype());
    // Places may be counted from the end.
    let zero = patch.constant(Tensor::scalar(0i64));
    let negative = patch.node(Op::onnx("Less"), [index, zero], Attrs::new());
    let turned = patch.node(Op::onnx("Add"), [index, depth], Attrs::new());
    let index = patch.node(Op::onnx("Where"), [negative, turned, index], Attrs::new());
    let at = patch.constant(Tensor::vector(&[axis as i64]));
    let index = patch.node(Op::onnx("Unsqueeze"), [index, at], Attrs::new());
    let places = places(&mut patch, depth, rank - 1 - axis);
    let equal = patch.node(Op::onnx("Equal"), [index, places], Attrs::new());
    let mut value = |k: i64| {
        let k = patch.constant(Tensor::scalar(k));
        patch.node(Op::onnx("Gather"), [values.into(), k], Attrs::new())
    };
    let (off, on) = (value(0), value(1));
    let made = patch.node(Op::onnx("Where"), [equal, on, off], Attrs::new());
    patch.replace(output, made);
    Ok(patch)
}

/// The places along an axis of a size, a vector of one number, with so many axes behind.
fn places(patch: &mut Patch, size: Ref, behind: usize) -> Ref {
    let size = patch.node(Op::onnx("Squeeze"), [size], Attrs::new());
    let zero = patch.constant(Tensor::scalar(0i64));
    let one = patch.constant(Tensor::scalar(1i64));
    let places = patch.node(Op::onnx("Range"), [zero, size, one], Attrs::new());
    if behind == 0 {
        return places;
    }
    let axes: Vec<i64> = (1..=behind as i64).collect();
    let axes = patch.constant(Tensor::vector(&axes));
    patch.node(Op::onnx("Unsqueeze"), [places, axes], Attrs::new())
}
