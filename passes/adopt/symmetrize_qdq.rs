//! QuantizeLinear and DequantizeLinear become symmetric where the target knows no zero points.

use kiln_graph::{Attrs, DType, Graph, NodeId, Op, Tensor, ValueId, ops};

use super::moved::{axis_before, is_join, is_movement, taken, takes_constant};
use crate::core::pass::{Context, Exactness, Miss, Remark};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;
use crate::precision::numbers::quantized::{Granularity, Quantized, one_scale};

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
         DequantizeLinear moves in front of Reshape, Transpose, Gather, Concat, Where and others of integers, with scales of an \
         axis too where they leave that alone. What is quantized by axis, \
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
        let mover = g
            .producer(q)
            .filter(|&id| is_movement(g, id) || is_join(g, id));
        if symmetric && !mover.is_some_and(|id| takes_constant(g, id)) {
            return Err(Miss::none());
        }
        if cx.target.facts.zero_points {
            return Err(Miss::because("the target takes zero points and UINT8"));
        }
        if g.constant(q).is_some() {
            return constant(g, root, &dequantize, output);
        }
        let one = one_scale(g, dequantize.scale()).is_some();
        if !one && let Some(mover) = mover {
            let mut patch = Patch::new();
            if let Some(numbers) = Numbers::many(g, mover, &dequantize, &mut patch) {
                return above(g, mover, patch, numbers, output);
            }
            if symmetric {
                return scaled_behind(g, mover, &dequantize, output);
            }
        }
        if !one {
            return Err(Miss::because(
                "its scale is no positive constant for the whole tensor",
            ));
        }
        if let Some(mover) = mover {
            return above(g, mover, Patch::new(), Numbers::whole(&dequantize), output);
        }
        let producer = g
            .producer(q)
            .ok_or_else(|| Miss::at(q, 1, "its integers are no constant"))?;
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

/// The scale, zero point and attributes of a DequantizeLinear in front of the node that stood before it.
struct Numbers {
    scale: Option<Ref>,
    zero: Option<Ref>,
    attrs: Attrs,
}

impl Numbers {
    /// One number each.
    fn whole(dequantize: &ops::DequantizeLinear<'_>) -> Numbers {
        let mut attrs = dequantize.node().attrs().clone();
        attrs.remove("axis");
        Numbers {
            scale: dequantize.scale().map(Ref::from),
            zero: dequantize.zero_point().map(Ref::from),
            attrs,
        }
    }

    /// Constants along an axis that the node leaves alone, or scales in blocks that are gathered as the integers are.
    fn many(
        g: &Graph,
        mover: NodeId,
        dequantize: &ops::DequantizeLinear<'_>,
        patch: &mut Patch,
    ) -> Option<Numbers> {
        let axis = ops::resolve_axis(dequantize.axis(), dequantize.rank(0)?)?;
        let axis = axis_before(g, mover, axis)?;
        let mut numbers = Numbers::whole(dequantize);
        if dequantize.block_size() == 0 {
            dequantize.constant(1).filter(|s| s.rank() == 1)?;
            numbers.attrs.set("axis", axis as i64);
            return Some(numbers);
        }
        let scale = gathered_alike(g, mover, dequantize.scale()?)?;
        let zero = match dequantize.zero_point() {
            Some(zero) => Some(gathered_alike(g, mover, zero)?),
            None => None,
        };
        let size = g
            .value(g.node(mover).input(0)?)
            .ty()
            .shape()?
            .get(axis)?
            .known()?;
        let lines = |t: &Tensor| match (axis, t.dims()) {
            (1, &[count, 1]) => t.reshaped(&[count][..]).ok(),
            _ => None,
        };
        let whole = usize::try_from(dequantize.block_size()).ok()? >= size;
        let (scale, zero) = match lines(scale).filter(|_| whole) {
            // One block in a row is one scale for each row.
            Some(scale) => {
                numbers.attrs.remove("block_size");
                numbers.attrs.set("axis", 0i64);
                (scale, zero.and_then(lines))
            }
            None => {
                numbers.attrs.set("axis", axis as i64);
                (scale.clone(), zero.cloned())
            }
        };
        numbers.scale = Some(patch.constant(scale));
        numbers.zero = zero.map(|zero| patch.constant(zero));
        Some(numbers)
    }
}

/// DequantizeLinear of scale 1 in front of the node, and the scales of an axis as a product behind it.
fn scaled_behind(
    g: &Graph,
    mover: NodeId,
    dequantize: &ops::DequantizeLinear<'_>,
    output: ValueId,
) -> Result<Patch, Miss> {
    let scale = dequantize.constant(1).filter(|s| s.rank() == 1);
    let rank = dequantize.rank(0).filter(|_| dequantize.block_size() == 0);
    let shape = rank.and_then(|rank| {
        let mut shape = vec![1usize; rank];
        *shape.get_mut(ops::resolve_axis(dequantize.axis(), rank)?)? = scale?.len();
        Some(shape)
    });
    let why = "its scales lie along an axis that is moved";
    let factors = shape.and_then(|shape| scale?.reshaped(shape).ok());
    let factors = factors.ok_or_else(|| Miss::because(why))?;
    let one = match factors.dtype() {
        DType::F32 => Some(Tensor::scalar(1f32)),
        narrow => Tensor::scalar(1f32).narrowed(narrow),
    };
    let mut patch = Patch::new();
    let mut numbers = Numbers::whole(dequantize);
    numbers.scale = Some(patch.constant(one.ok_or_else(Miss::none)?));
    numbers.zero = None;
    let moved = moved_floats(g, mover, &mut patch, &numbers);
    let factors = patch.constant(factors);
    let made = patch.node(Op::onnx("Mul"), [moved, factors], Attrs::new());
    patch.replace(output, made);
    Ok(patch)
}

/// The constant of which a Gather takes what `mover` takes of its own.
fn gathered_alike(g: &Graph, mover: NodeId, v: ValueId) -> Option<&Tensor> {
    let gather = |id| ops::Gather::of(g, id).filter(|n| n.node().op().is("Gather"));
    let (one, other) = (gather(mover)?, gather(g.producer(v)?)?);
    let alike = one.input(1) == other.input(1) && one.axis() == other.axis();
    other.constant(0).filter(|_| alike)
}

/// DequantizeLinear in front of the node that moves or joins its integers.
fn above(
    g: &Graph,
    mover: NodeId,
    mut patch: Patch,
    numbers: Numbers,
    output: ValueId,
) -> Result<Patch, Miss> {
    let made = moved_floats(g, mover, &mut patch, &numbers);
    patch.replace(output, made);
    Ok(patch)
}

/// The node on floats.
fn moved_floats(g: &Graph, mover: NodeId, patch: &mut Patch, numbers: &Numbers) -> Ref {
    let node = g.node(mover);
    let data = taken(node);
    let mut inputs = Vec::with_capacity(node.inputs().len());
    for (k, &v) in node.inputs().iter().enumerate() {
        let mut operand = v.map(Ref::from);
        if data.contains(&k) {
            let count = 1 + usize::from(numbers.zero.is_some());
            let known = [numbers.scale, numbers.zero].into_iter().take(count);
            let operands = std::iter::once(operand).chain(known);
            let dequantize = Op::onnx("DequantizeLinear");
            operand = Some(patch.node_with(dequantize, operands, 1, numbers.attrs.clone())[0]);
        }
        inputs.push(operand);
    }
    patch.node_with(node.op(), inputs, 1, node.attrs().clone())[0]
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

/// The zero point of a whole tensor; 0 if it is left out, `None` if it is not a constant.
fn zero_point(g: &Graph, v: Option<ValueId>) -> Option<f64> {
    match v {
        None => Some(0.0),
        Some(v) => Some(g.constant(v)?.as_i64()? as f64),
    }
}
