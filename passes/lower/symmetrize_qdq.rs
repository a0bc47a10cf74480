//! QuantizeLinear and DequantizeLinear become symmetric where the target knows no zero points.

use kiln_graph::{Attrs, DType, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::pass::{Context, Exactness, Miss, Remark};
use crate::patch::{Patch, Ref};
use crate::precision::quantized::{Granularity, Quantized, one_scale};
use crate::rule::Rule;

#[derive(Debug)]
pub struct SymmetrizeQdq;

impl Rule for SymmetrizeQdq {
    fn name(&self) -> &'static str {
        "symmetrize-qdq"
    }

    fn about(&self) -> &'static str {
        "write quantization with zero points, UINT8 or INT32 as symmetric INT8 for TensorRT"
    }

    fn details(&self) -> String {
        "TensorRT takes INT8 around zero only. A constant behind DequantizeLinear becomes INT8 less its zero point, where \
         that fits (UINT8 around 128 always does; UINT4 in blocks becomes INT4), and else floats, as do INT32 biases and \
         single numbers and what has negative scales, as ONNX Runtime's 4-bit weights do. An activation in UINT8 around 128 becomes INT8 of the same scale: the same numbers. Around \
         another zero point z it is quantized as x + c and c is subtracted again, with c = (z - 128) · scale: the same \
         steps and the same range, so the same numbers, except where a rounding is a tie. A symmetric range around the old \
         one would have steps up to twice as large. `absorb-offsets` takes c out of the way of products with weights. \
         DequantizeLinear moves in front of Reshape, Transpose, Gather and others of integers. What is quantized by axis, \
         in 16 bits or with computed scales stays, and is refused before TensorRT sees it."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["DequantizeLinear"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let dequantize = ops::DequantizeLinear::of(g, root).ok_or_else(Miss::none)?;
        let (Some(q), Some(output)) = (dequantize.input(0), dequantize.output(0)) else {
            return Err(Miss::none());
        };
        let symmetric = is_symmetric(&dequantize);
        let behind = moved(g, q);
        if symmetric && (behind == q || g.constant(behind).is_none()) {
            return Err(Miss::none());
        }
        if !cx.target.quantizes_symmetrically() {
            return Err(Miss::because("the target takes zero points and UINT8"));
        }
        if g.constant(q).is_some() {
            return constant(g, root, &dequantize, output);
        }
        if one_scale(g, dequantize.scale()).is_none() {
            return Err(Miss::because(
                "its scale is no positive constant for the whole tensor",
            ));
        }
        let producer = g
            .producer(q)
            .ok_or_else(|| Miss::at(q, 1, "its integers are no constant"))?;
        if is_movement(g, producer) {
            return above(g, producer, &dequantize, output);
        }
        match ops::QuantizeLinear::of(g, producer) {
            Some(quantize) => activation(g, root, &quantize, &dequantize),
            None => Err(Miss::at(q, 1, "its integers are computed")),
        }
    }
}

/// Whether it is of a type that the pass leaves alone, or INT8 or INT4 with zero points of 0 and positive scales.
fn is_symmetric(dequantize: &ops::DequantizeLinear<'_>) -> bool {
    let dtype = dequantize.dtype(0);
    let zero = dequantize.constant(2);
    let none = zero.is_some_and(|z| z.bytes().iter().all(|&b| b == 0));
    let single = dequantize.constant(0).is_some_and(|t| t.rank() == 0);
    let scale = dequantize.constant(1).and_then(Tensor::to_f64s);
    let turns = scale.is_some_and(|all| all.iter().any(|&s| s <= 0.0));
    match dtype {
        Some(DType::I8 | DType::I4) => {
            !single && !turns && (dequantize.zero_point().is_none() || none)
        }
        Some(DType::U8 | DType::I16 | DType::U16 | DType::I32 | DType::U4) => false,
        _ => true,
    }
}

/// Operators whose result is elements of their first operand, whatever these are.
const MOVEMENT: &[&str] = &[
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// MaxPool is among them because it commutes with a positive scale.
fn is_movement(g: &Graph, id: NodeId) -> bool {
    let node = g.node(id);
    node.op().is_any(MOVEMENT) && node.sole_output().is_some()
}

/// Where a value's elements come from.
fn moved(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(id) = g.producer(v).filter(|&id| is_movement(g, id)) {
        match g.node(id).input(0) {
            Some(x) => v = x,
            None => break,
        }
    }
    v
}

fn constant(
    g: &Graph,
    root: NodeId,
    dequantize: &ops::DequantizeLinear<'_>,
    output: ValueId,
) -> Result<Patch, Miss> {
    let numbers = Quantized::of(dequantize).map_err(Miss::because)?;
    let mut patch = Patch::new();
    let wide = dequantize.dtype(0) == Some(DType::I32);
    let single = dequantize.rank(0) == Some(0);
    let symmetric = match wide || single {
        true => None,
        false => numbers.symmetric(),
    };
    let how = match symmetric {
        Some(q) => {
            let (q, scale) = (patch.constant(q), patch.constant(numbers.scale.clone()));
            let mut attrs = dequantize.node().attrs().clone();
            if numbers.granularity == Granularity::PerTensor {
                attrs.remove("axis");
            }
            let made = patch.node(Op::onnx("DequantizeLinear"), [q, scale], attrs);
            patch.replace(output, made);
            "a constant lost its zero point: the same numbers"
        }
        None => {
            let real = numbers.real().ok_or_else(Miss::none)?;
            let real = patch.constant(real);
            patch.replace(output, real);
            match wide {
                true => "a constant in INT32 became floats: the same numbers",
                false if single => "a single number became a float: the same number",
                false => {
                    "a constant became floats, as it fits no INT8 or INT4 around zero: the same numbers"
                }
            }
        }
    };
    patch.remark(Remark::Requantized {
        node: g.label(root),
        how,
        exact: true,
    });
    Ok(patch)
}

/// The DequantizeLinear in front of the node that moves its integers.
fn above(
    g: &Graph,
    mover: NodeId,
    dequantize: &ops::DequantizeLinear<'_>,
    output: ValueId,
) -> Result<Patch, Miss> {
    let node = g.node(mover);
    let mut patch = Patch::new();
    let operands = [node.input(0), dequantize.scale(), dequantize.zero_point()];
    let operands = operands.map(|v| v.map(Ref::from));
    let mut attrs = dequantize.node().attrs().clone();
    attrs.remove("axis");
    let real = patch.node_with(Op::onnx("DequantizeLinear"), operands, 1, attrs)[0];
    let others = node.inputs().iter().skip(1).map(|v| v.map(Ref::from));
    let inputs = std::iter::once(Some(real)).chain(others);
    let made = patch.node_with(node.op(), inputs, 1, node.attrs().clone())[0];
    patch.replace(output, made);
    Ok(patch)
}

/// The middle of the integers of a type that activations are quantized to.
fn middle(dtype: Option<DType>) -> Option<f64> {
    match dtype {
        Some(DType::U8) => Some(128.0),
        Some(DType::I8) => Some(0.0),
        _ => None,
    }
}

/// A pair of Q and DQ. With the zero point `z` and the middle `m` of the integers' type, `round(x / s) + z` lies m above
/// `round((x + c) / s)` for `c = (z - m) * s`, so that INT8 around zero holds x + c as the old integers held x.
fn activation(
    g: &Graph,
    root: NodeId,
    quantize: &ops::QuantizeLinear<'_>,
    dequantize: &ops::DequantizeLinear<'_>,
) -> Result<Patch, Miss> {
    let (Some(x), Some(q), Some(output)) =
        (quantize.input(0), quantize.output(0), dequantize.output(0))
    else {
        return Err(Miss::none());
    };
    let numbers = |scale, zero| Some((one_scale(g, scale)?, zero_point(g, zero)?));
    let found = numbers(quantize.scale(), quantize.zero_point());
    let Some((scale, zero)) = found else {
        return Err(Miss::at(
            q,
            2,
            "its scale or zero point is no constant for the whole tensor",
        ));
    };
    if found != numbers(dequantize.scale(), dequantize.zero_point()) {
        let why = "it is quantized by other numbers than it is dequantized by";
        return Err(Miss::at(q, 2, why));
    }
    let Some(middle) = middle(quantize.to()) else {
        let why = "activations in other than 8 bits have no form in INT8";
        return Err(Miss::at(q, 2, why));
    };
    if quantize.constant(1).map(Tensor::dtype) != Some(DType::F32) {
        return Err(Miss::at(q, 2, "its scale is not of FP32"));
    }
    let offset = ((zero - middle) * scale) as f32;
    let mut patch = Patch::new();
    let factor = patch.constant(Tensor::scalar(scale as f32));
    let int8 = patch.constant(Tensor::scalar(0i8));
    let write = |patch: &mut Patch, x: Ref| {
        let operands = [x, factor, int8];
        let q = patch.node(Op::onnx("QuantizeLinear"), operands, Attrs::new());
        let operands = [q, factor, int8];
        patch.node(Op::onnx("DequantizeLinear"), operands, Attrs::new())
    };
    let real = match offset == 0.0 {
        true => write(&mut patch, x.into()),
        false => {
            let offset = patch.constant(Tensor::scalar(offset));
            let above = patch.node(Op::onnx("Add"), [x.into(), offset], Attrs::new());
            let real = write(&mut patch, above);
            patch.node(Op::onnx("Sub"), [real, offset], Attrs::new())
        }
    };
    patch.replace(output, real);
    patch.remark(Remark::Requantized {
        node: g.label(root),
        how: match offset == 0.0 {
            true => "an activation in UINT8 around 128 became INT8: the same numbers",
            false => "an activation became INT8 around zero of the same scale, by an offset: the same numbers but for ties",
        },
        exact: offset == 0.0,
    });
    Ok(patch)
}

/// The zero point of a whole tensor; 0 if it is left out, `None` if it is no constant.
fn zero_point(g: &Graph, v: Option<ValueId>) -> Option<f64> {
    match v {
        None => Some(0.0),
        Some(v) => Some(g.constant(v)?.as_i64()? as f64),
    }
}
