//! EyeLike of open sizes, as a comparison of rows with columns.

use kiln_graph::{Attrs, DType, Graph, NodeId, Op, Tensor, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct LowerEyeLike;

impl Rule for LowerEyeLike {
    fn name(&self) -> &'static str {
        "lower-eye-like"
    }

    fn about(&self) -> &'static str {
        "write EyeLike of open sizes as a comparison, for targets whose EyeLike has known sizes"
    }

    fn details(&self) -> String {
        "TensorRT's parser refuses EyeLike where a size is open. It is `Cast(Equal(row + k, column))`, with the rows and the \
         columns counted by Range."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        15
    }

    fn roots(&self) -> &[&'static str] {
        &["EyeLike"]
    }

    fn needs_facts(&self) -> bool {
        true
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let eye = ops::EyeLike::of(g, root).ok_or_else(Miss::none)?;
        let (Some(x), Some(output)) = (eye.input(0), eye.output(0)) else {
            return Err(Miss::none());
        };
        if !cx.target.facts.needs_sizes_of_eye_like {
            return Err(Miss::none());
        }
        let open = cx
            .facts
            .dims(x)
            .is_none_or(|d| d.iter().any(|d| d.as_i64().is_none()));
        if !open {
            return Err(Miss::because("its sizes are known"));
        }
        let dtype = cx.facts.ty(output).dtype().ok_or_else(Miss::none)?;
        let mut patch = Patch::new();
        let count = |patch: &mut Patch, axis: i64| {
            let ends = Attrs::new().with("start", axis).with("end", axis + 1);
            let size = patch.node(Op::onnx("Shape"), [x.into()], ends);
            let size = patch.node(Op::onnx("Squeeze"), [size], Attrs::new());
            let (zero, one) = (
                patch.constant(Tensor::scalar(0i64)),
                patch.constant(Tensor::scalar(1i64)),
            );
            patch.node(Op::onnx("Range"), [zero, size, one], Attrs::new())
        };
        let (rows, columns) = (count(&mut patch, 0), count(&mut patch, 1));
        let axis = patch.constant(Tensor::vector(&[1i64]));
        let mut rows: Ref = patch.node(Op::onnx("Unsqueeze"), [rows, axis], Attrs::new());
        if eye.k() != 0 {
            let k = patch.constant(Tensor::scalar(eye.k()));
            rows = patch.node(Op::onnx("Add"), [rows, k], Attrs::new());
        }
        let mut made = patch.node(Op::onnx("Equal"), [rows, columns], Attrs::new());
        if dtype != DType::Bool {
            let to = Attrs::new().with("to", i64::from(dtype.to_onnx()));
            made = patch.node(Op::onnx("Cast"), [made], to);
        }
        patch.replace(output, made);
        Ok(patch)
    }
}
