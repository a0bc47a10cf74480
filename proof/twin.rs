//! A model that rounds where another one computes in FP16 or BF16, in operators that ONNX Runtime's CPU provider has.
//!
//! The provider has no BF16 kernels but those of Cast and of operators that only move elements, and few FP16 ones: it
//! computes chains of FP16 nodes in FP32, even with optimization disabled, so that nothing between them is rounded and
//! nothing overflows (ONNX Runtime 1.31, `insert_cast_transformer.cc`). A cast to a short format and back that the model
//! itself has stays, as long as optimization is disabled.
//!
//! The twin rounds results, not what an operator adds up inside, as GPUs do that add products in FP32.

use std::collections::BTreeSet;

use half::{bf16, f16};
use kiln_graph::{Attr, Attrs, DType, Def, Graph, Model, NodeId, Op, Tensor, Type, ValueId, infer};

/// The twin; `None` if nothing in the model is FP16 or BF16.
///
/// Inputs and outputs are those of the model. Inside, each FP16 or BF16 value is one of FP32 whose number the format has:
/// constants are widened (large ones by a Cast, so that they are not all in memory), and a Cast to the format and one to FP32 stand behind each result of a node.
pub fn rounding(model: &Model) -> Option<Model> {
    let mut twin = model.clone();
    infer::annotate(&mut twin.graph);
    let mut widened = 0;
    let mut outermost = true;
    twin.graph.for_each_graph_mut(&mut |g| {
        widened += widen(g, std::mem::take(&mut outermost));
    });
    (widened > 0).then_some(twin)
}

/// Constants of so many bytes are widened when they are read.
const LARGE: usize = 1 << 18;

/// Which of FP16 and BF16 the results of the model's nodes have. Its types must be inferred. ONNX Runtime's CPU provider
/// cannot run what has BF16.
pub fn formats(model: &Model) -> BTreeSet<DType> {
    let mut found = BTreeSet::new();
    model.graph.for_each_graph(&mut |g| {
        let results = g.values().filter(|(_, v)| matches!(v.def(), Def::Node(..)));
        found.extend(results.filter_map(|(id, _)| half(g, id)));
    });
    found
}

/// The value's type, if it is one of 16 bits.
fn half(g: &Graph, v: ValueId) -> Option<DType> {
    let dtype = g.value(v).ty().dtype();
    dtype.filter(|d| matches!(d, DType::F16 | DType::BF16))
}

fn retype(g: &mut Graph, v: ValueId, dtype: DType) {
    let shape = g.value(v).ty().shape().map(|s| s.into());
    g.set_type(v, Type::tensor(dtype, shape));
}

/// A Cast to a value of `dtype` in the shape of `like`, with its operand still open.
fn add_cast(g: &mut Graph, like: ValueId, dtype: DType) -> Option<(NodeId, ValueId)> {
    let attrs = Attrs::new().with("to", i64::from(dtype.to_onnx()));
    let cast = g.add_node(Op::onnx("Cast"), "", [], 1, attrs);
    let made = g.node(cast).output(0)?;
    let shape = g.value(like).ty().shape().map(|s| s.into());
    g.set_type(made, Type::tensor(dtype, shape));
    Some((cast, made))
}

/// Makes the FP16 and BF16 values of one graph FP32 ones and gives their number.
fn widen(g: &mut Graph, outermost: bool) -> usize {
    let values = g.values().filter_map(|(id, _)| Some((id, half(g, id)?)));
    let halves: Vec<(ValueId, DType)> = values.collect();
    let nodes: Vec<NodeId> = g.nodes().map(|(id, _)| id).collect();
    for &(v, dtype) in &halves {
        match g.value(v).def() {
            Def::Constant(tensor) if tensor.byte_len() < LARGE => {
                if let Some(wide) = widened(tensor) {
                    g.set_constant(v, wide);
                }
            }
            Def::Constant(_) => cast(g, v),
            Def::Input(_) if outermost => cast(g, v),
            Def::Node(..) => round(g, v, dtype, outermost),
            Def::Input(_) | Def::Capture(_) => retype(g, v, DType::F32),
            Def::Removed => {}
        }
    }
    for id in nodes {
        attributes(g, id);
    }
    halves.len()
}

/// Puts a Cast to FP32 between a value and its readers.
fn cast(g: &mut Graph, v: ValueId) {
    if let Some((cast, wide)) = add_cast(g, v, DType::F32) {
        g.replace_uses(v, wide);
        g.set_input(cast, 0, Some(v));
        give(g, wide, v);
    }
}

/// Behind an FP32 result that was `dtype`: Cast to it, and Cast to FP32. The outputs of a model are not cast back.
fn round(g: &mut Graph, v: ValueId, dtype: DType, outermost: bool) {
    retype(g, v, DType::F32);
    let Some((narrow, short)) = add_cast(g, v, dtype) else {
        return;
    };
    let Some((back, wide)) = add_cast(g, v, DType::F32) else {
        return;
    };
    g.replace_uses(v, wide);
    g.set_input(narrow, 0, Some(v));
    g.set_input(back, 0, Some(short));
    if outermost {
        give(g, wide, short);
    }
}

/// Makes the graph's outputs that are `old` give `new`.
fn give(g: &mut Graph, old: ValueId, new: ValueId) {
    for k in 0..g.outputs().len() {
        if g.outputs()[k].value == old {
            g.set_output_value(k, new);
        }
    }
}

/// Attributes that state a type, or hold a tensor.
const TYPES: &[&str] = &[
    "to",
    "dtype",
    "output_dtype",
    "output_datatype",
    "precision",
    "softmax_precision",
    "stash_type",
];

fn attributes(g: &mut Graph, id: NodeId) {
    if !g.node(id).op().domain().is_empty() {
        return;
    }
    let attrs = g.attrs_mut(id);
    for name in TYPES {
        let halves = [DType::F16, DType::BF16].map(|d| i64::from(d.to_onnx()));
        if attrs.int(name).is_some_and(|n| halves.contains(&n)) {
            attrs.set(name, i64::from(DType::F32.to_onnx()));
        }
    }
    for attr in attrs.values_mut() {
        if let Attr::Tensor(tensor) = attr
            && let Some(wide) = widened(tensor)
        {
            *tensor = wide;
        }
    }
}

/// An FP16 or BF16 tensor as FP32.
fn widened(tensor: &Tensor) -> Option<Tensor> {
    let values: Vec<f32> = match tensor.dtype() {
        DType::F16 => tensor.values::<f16>()?.iter().map(|v| v.to_f32()).collect(),
        _ => tensor
            .values::<bf16>()?
            .iter()
            .map(|v| v.to_f32())
            .collect(),
    };
    Tensor::from_values(tensor.dims(), &values).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::onnx;
    use kiln_runtime::testing::runtime;
    use kiln_runtime::{Optimization, Session, SessionOptions};

    /// The twin's outputs as FP32, without optimization; `None` without a runtime.
    fn run(text: &str, x: &[f32]) -> Option<Vec<Vec<f32>>> {
        let runtime = runtime()?;
        let model = onnx::read_text(text).unwrap();
        let twin = rounding(&model).unwrap();
        let options = SessionOptions {
            optimization: Optimization::Disabled,
            ..SessionOptions::default()
        };
        let bytes = onnx::to_bytes(&twin).unwrap();
        let mut session = Session::from_bytes(runtime, "twin", &bytes, &options).unwrap();
        let input = session.inputs()[0].clone();
        let x = Tensor::from_values(vec![x.len()], x).unwrap();
        let x = match input.dtype {
            DType::F32 => x,
            dtype => x.narrowed(dtype).unwrap(),
        };
        let outputs = session.run(&[(input.name, x)]).unwrap();
        let wide = |t: &Tensor| -> Vec<f32> {
            let values = t.to_f64s().unwrap();
            values.into_iter().map(|v| v as f32).collect()
        };
        Some(outputs.iter().map(|(_, t)| wide(t)).collect())
    }

    fn rounded(values: &[f32]) -> Vec<f32> {
        let round = |v: &f32| bf16::from_f32(*v).to_f32();
        values.iter().map(round).collect()
    }

    #[test]
    fn bf16_results_are_rounded_each() {
        // In FP32, or rounded at the end alone, the small numbers would survive.
        let text = r#"<ir_version: 10, opset_import: ["" : 22]>
            g (float[n] x) => (float[n] y, float[n] a) <bfloat16 c = {256.0}> {
              h = Cast<to = 16>(x)
              s = Add(h, c)
              d = Sub(s, c)
              y = Cast<to = 1>(d)
              a = Cast<to = 1>(h)
            }"#;
        let x = [1.001, 0.5, 3.0, -2.5, 0.25, 3.2e38];
        let Some(found) = run(text, &x) else { return };
        let h = rounded(&x);
        assert_ne!(h[0], x[0]);
        let s = rounded(&h.iter().map(|v| v + 256.0).collect::<Vec<_>>());
        let y = rounded(&s.iter().map(|v| v - 256.0).collect::<Vec<_>>());
        assert_eq!((y[1], y[2]), (0.0, 4.0));
        assert_eq!(found, [y, h]);
    }

    #[test]
    fn bf16_ends_where_it_does() {
        let text = r#"<ir_version: 10, opset_import: ["" : 22]>
            g (float[n] x) => (float[n] y) <bfloat16 c = {2.0}> {
              h = Cast<to = 16>(x)
              s = Mul(h, c)
              t = Div(s, c)
              y = Cast<to = 1>(t)
            }"#;
        let Some(found) = run(text, &[1e38, 2e38, f32::MAX]) else {
            return;
        };
        assert!(found[0][0].is_finite());
        assert_eq!(found[0][1..], [f32::INFINITY; 2]);
    }

    #[test]
    fn inputs_and_outputs_keep_their_type() {
        let text = r#"<ir_version: 10, opset_import: ["" : 22]>
            g (bfloat16[n] x) => (bfloat16[n] y, bfloat16[n] x) { y = Mul(x, x) }"#;
        let model = onnx::read_text(text).unwrap();
        let twin = rounding(&model).unwrap();
        let dtype = |v: ValueId| twin.graph.value(v).ty().dtype();
        assert_eq!(dtype(twin.graph.inputs()[0]), Some(DType::BF16));
        for output in twin.graph.outputs() {
            assert_eq!(dtype(output.value), Some(DType::BF16));
        }
        let Some(found) = run(text, &[1.0078125, 3.0]) else {
            return;
        };
        assert_eq!(found, [[1.015625, 9.0], [1.0078125, 3.0]]);
    }

    #[test]
    fn bodies_and_types_in_attributes_are_widened_too() {
        let text = r#"<ir_version: 10, opset_import: ["" : 22]>
            g (float[n] x) => (float[n] y) <bool yes = {1}, bfloat16 c = {256.0}> {
              h = Cast<to = 16>(x)
              size = Shape(x)
              filled = ConstantOfShape<value = bfloat16[1] {1.0}>(size)
              s = If(yes) <
                then_branch = yes () => (bfloat16[n] t) { t = Add(h, c) },
                else_branch = no () => (bfloat16[n] e) { e = Sub(h, c) }
              >
              d = Sub(s, c)
              p = Mul(d, filled)
              y = Cast<to = 1>(p)
            }"#;
        let Some(found) = run(text, &[0.5, 3.0]) else {
            return;
        };
        assert_eq!(found, [[0.0, 4.0]]);
    }

    #[test]
    fn fp16_results_are_rounded_each() {
        let text = r#"<ir_version: 10, opset_import: ["" : 22]>
            g (float[n] x) => (float[n] y) <float16 c = {2048.0}> {
              h = Cast<to = 10>(x)
              s = Add(h, c)
              d = Sub(s, c)
              y = Cast<to = 1>(d)
            }"#;
        let x = [1.0, 3.0, 65000.0];
        let Some(found) = run(text, &x) else { return };
        let round = |v: f32| f16::from_f32(v).to_f32();
        let want = x.map(|v| round(round(round(v) + 2048.0) - 2048.0));
        assert_eq!(found, [want]);
    }

    #[test]
    fn what_computes_in_fp32_needs_none() {
        let text = r#"<ir_version: 10, opset_import: ["" : 22]> g (float[2] x) => (float[2] y) { y = Neg(x) }"#;
        let mut model = onnx::read_text(text).unwrap();
        infer::annotate(&mut model.graph);
        assert!(rounding(&model).is_none() && formats(&model).is_empty());
    }
}
