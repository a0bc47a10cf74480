//! Integer constants that are made floats by arithmetic, as DequantizeLinear.

use kiln_graph::{Attrs, DType, Graph, Node, NodeId, Op, Tensor, ValueId, ops};

use super::moved::{moved, movers};
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct DequantizeConstants;

impl Rule for DequantizeConstants {
    fn name(&self) -> &'static str {
        "dequantize-constants"
    }

    fn about(&self) -> &'static str {
        "write Cast, Sub and Mul of an 8-bit constant as DequantizeLinear, for targets that take the constant only there"
    }

    fn details(&self) -> String {
        "`Mul(Sub(Cast(q), z), s)` with constants becomes `DequantizeLinear(q, s, z)` where s and z are one number or \
         lie along one axis of q. Where Gather, Slice, Reshape and the like stand between, DequantizeLinear comes in front \
         of them, so that the engine keeps the table in 8 bits; a scale that is more than one number then stays a Mul, and \
         Cast alone is a DequantizeLinear of scale 1. Cast of INT8 to an integer goes through floats, which hold it exactly. \
         UINT8 without an offset stays: it has no form in INT8. TensorRT takes INT8 constants in front of DequantizeLinear \
         only (\"Quantized constant is only allowed before DQ\", 1.7.1)."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["Cast", "Sub", "Mul"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        match node.op().name() {
            "Cast" => cast(g, root, cx),
            "Sub" => merged(g, node, node.input(0), node.input(1), Part::Zero),
            _ => {
                let (a, b) = (node.input(0), node.input(1));
                let first = merged(g, node, a, b, Part::Scale);
                first.or_else(|_| merged(g, node, b, a, Part::Scale))
            }
        }
    }
}

/// The Cast of an integer constant, perhaps of a part of it: DequantizeLinear of scale 1 on the whole.
fn cast(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let node = g.node(root);
    let (Some(x), Some(output)) = (node.input(0), node.output(0)) else {
        return Err(Miss::none());
    };
    let q = moved(g, x);
    let table = g.constant(q).filter(|t| t.rank() > 0);
    let table = table.ok_or_else(Miss::none)?;
    let to = ops::Cast::of(g, root)
        .and_then(|c| c.to())
        .ok_or_else(Miss::none)?;
    match table.dtype() {
        DType::I8 => {}
        // With an offset it becomes INT8 around zero.
        DType::U8 if to.is_float() && offset_behind(g, output) => {}
        DType::U8 => {
            return Err(Miss::at(
                x,
                1,
                "UINT8 without an offset has no form in INT8",
            ));
        }
        _ => return Err(Miss::none()),
    }
    if !cx.target.facts.confines_bytes {
        return Err(Miss::because("the target reads 8-bit constants anywhere"));
    }
    let float = match to {
        DType::F32 => to,
        DType::F16 | DType::BF16 if g.opset() >= 19 => to,
        _ => DType::F32,
    };
    let one = Tensor::scalar(1f32);
    let one = match float {
        DType::F32 => Some(one),
        _ => one.narrowed(float),
    };
    let mut patch = Patch::new();
    let one = patch.constant(one.ok_or_else(Miss::none)?);
    let dequantize = Op::onnx("DequantizeLinear");
    let real = patch.node(dequantize, [q.into(), one], Attrs::new());
    let mut made = again(g, x, real, &mut patch).ok_or_else(Miss::none)?;
    if float != to {
        made = patch.node(node.op(), [made], node.attrs().clone());
    }
    patch.replace(output, made);
    Ok(patch)
}

/// Whether all that reads the value takes constants off it.
fn offset_behind(g: &Graph, v: ValueId) -> bool {
    let uses = g.value(v).uses();
    let offset = |id: NodeId| {
        let node = g.node(id);
        let z = node
            .input(1)
            .filter(|_| node.op().is("Sub") && node.input(0) == Some(v));
        z.and_then(|z| g.constant(z)).is_some()
    };
    !g.value(v).is_output() && !uses.is_empty() && uses.iter().all(|u| offset(u.node))
}

/// The nodes that move `x`'s elements, on other ones.
fn again(g: &Graph, x: ValueId, real: Ref, patch: &mut Patch) -> Option<Ref> {
    let mut made = real;
    for mover in movers(g, x).into_iter().rev() {
        let node = g.node(mover);
        // The one among them that compares.
        if node.op().is("MaxPool") {
            return None;
        }
        let others = node.inputs().iter().skip(1).map(|v| v.map(Ref::from));
        let inputs = std::iter::once(Some(made)).chain(others);
        made = *patch
            .node_with(node.op(), inputs, 1, node.attrs().clone())
            .first()?;
    }
    Some(made)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Scale,
    Zero,
}

/// `x` is a dequantized constant of scale 1, or a part of one; what it is multiplied by, or what is taken off it, becomes its
/// scale or zero point.
fn merged(
    g: &Graph,
    node: &Node,
    x: Option<ValueId>,
    by: Option<ValueId>,
    part: Part,
) -> Result<Patch, Miss> {
    let (Some(x), Some(by), Some(output)) = (x, by, node.output(0)) else {
        return Err(Miss::none());
    };
    let real = moved(g, x);
    let producer = g
        .producer_if(real, "DequantizeLinear")
        .ok_or_else(Miss::none)?;
    let dequantize = ops::DequantizeLinear::of(g, producer).ok_or_else(Miss::none)?;
    let (Some(q), Some(ones)) = (dequantize.constant(0), dequantize.constant(1)) else {
        return Err(Miss::none());
    };
    let unscaled = ones
        .to_f64s()
        .is_some_and(|all| all.iter().all(|&s| s == 1.0));
    if !unscaled || dequantize.block_size() != 0 {
        return Err(Miss::none());
    }
    let by = g
        .constant(by)
        .ok_or_else(|| Miss::at(by, 2, "it is no constant"))?;
    let fits = g.value(x).ty().rank().is_some_and(|rank| by.rank() <= rank);
    let along = along(by, q.dims()).filter(|a| fits && (x == real || *a == Along::Whole));
    let so_far = match ones.rank() {
        0 => Some(Along::Whole),
        _ => ops::resolve_axis(dequantize.axis(), q.rank()).map(Along::Axis),
    };
    let along = match (along, so_far) {
        (Some(a), Some(b)) if a == b || b == Along::Whole => Some(a),
        (Some(Along::Whole), b) => b,
        _ => None,
    };
    let along =
        along.ok_or_else(|| Miss::at(x, 2, "its numbers lie along no axis of the integers"))?;
    let zero = dequantize.constant(2);
    if by.dtype() != ones.dtype() || zero.is_some() && part == Part::Zero {
        return Err(Miss::none());
    }
    let count = match along {
        Along::Whole => None,
        Along::Axis(axis) => Some(q.dims()[axis]),
    };
    let (scale, zero) = match part {
        Part::Scale => (by.clone(), zero.cloned()),
        Part::Zero => {
            let zero = whole_numbers(by, q.dtype());
            let zero = zero
                .ok_or_else(|| Miss::at(x, 2, "the offset is no integer of the constant's type"))?;
            (ones.clone(), Some(zero))
        }
    };
    let fit = |t: &Tensor| spread(t, count);
    let mut patch = Patch::new();
    let mut operands = vec![Some(dequantize.input(0).ok_or_else(Miss::none)?.into())];
    operands.push(Some(patch.constant(fit(&scale).ok_or_else(Miss::none)?)));
    if let Some(zero) = zero {
        operands.push(Some(patch.constant(fit(&zero).ok_or_else(Miss::none)?)));
    }
    let attrs = match along {
        Along::Whole => Attrs::new(),
        Along::Axis(axis) => Attrs::new().with("axis", axis as i64),
    };
    let made = patch.node_with(Op::onnx("DequantizeLinear"), operands, 1, attrs)[0];
    let made = again(g, x, made, &mut patch).ok_or_else(Miss::none)?;
    patch.replace(output, made);
    Ok(patch)
}

/// Where numbers lie against the dimensions of what they scale.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Along {
    Whole,
    Axis(usize),
}

/// `by` as it broadcasts over `dims`; `None` if it has numbers along several axes or makes the result larger.
fn along(by: &Tensor, dims: &[usize]) -> Option<Along> {
    let shift = dims.len().checked_sub(by.rank())?;
    if by.len() == 1 {
        return Some(Along::Whole);
    }
    let mut axes = (by.dims().iter().enumerate()).filter(|&(_, &d)| d != 1);
    let (axis, &size) = axes.next()?;
    let fits = axes.next().is_none() && dims.get(axis + shift) == Some(&size);
    fits.then_some(Along::Axis(axis + shift))
}

/// One number without dimensions, or `count` of them as a vector.
fn spread(t: &Tensor, count: Option<usize>) -> Option<Tensor> {
    match count {
        None => t.reshaped(&[][..]).ok(),
        Some(count) if t.len() == count => t.reshaped(&[count][..]).ok(),
        Some(count) if t.len() == 1 => {
            let bytes = t.bytes().repeat(count);
            Tensor::from_raw(t.dtype(), &[count][..], bytes.into()).ok()
        }
        Some(_) => None,
    }
}

/// Floats that are integers of the type, as such.
fn whole_numbers(t: &Tensor, dtype: DType) -> Option<Tensor> {
    let (low, high) = match dtype {
        DType::I8 => (-128.0, 127.0),
        DType::U8 => (0.0, 255.0),
        _ => return None,
    };
    let numbers = t.to_f64s()?;
    let whole = |&v: &f64| v.fract() == 0.0 && (low..=high).contains(&v);
    if !numbers.iter().all(whole) {
        return None;
    }
    let bytes: Vec<u8> = numbers.iter().map(|&v| v as i64 as u8).collect();
    Tensor::from_raw(dtype, t.dims(), bytes.into()).ok()
}
