//! FP32 to FP16, written into the graph: what strongly typed builders need.

use kiln_graph::{Attr, Attrs, DType, Def, Graph, Model, NodeId, Op, Tensor, Type, ValueId, infer};
use rustc_hash::FxHashMap;

use super::half_rules::{self, is_f32};
use crate::pass::{Context, Exactness, Pass, PassFailure, Remark};

#[derive(Debug)]
pub struct ConvertFp16;

impl Pass for ConvertFp16 {
    fn name(&self) -> &'static str {
        "convert-fp16"
    }

    fn about(&self) -> &'static str {
        "make the model half precision, with FP32 kept where it must be"
    }

    fn details(&self) -> String {
        "Every FP32 node becomes FP16, except normalizations and sums (squares overflow beyond 256), the angles of \
         rotary and sinusoidal positions, operators that have no half-precision form, quantization whose scales half \
         precision cannot hold, and nodes that --keep or --keep-op names. \
         Weights are rounded to nearest even and clamped to ±65504, which is reported; -3.4e38 in a mask becomes -65504, \
         infinities stay. Graph inputs and outputs keep their types, by a Cast, unless --fp16-io. A value is cast at \
         most once in each direction, and a constant never: it is stored in the type it is read in. Bodies of If, Loop \
         and Scan are converted with the values they capture."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        // Half of a conversion would be Casts everywhere, so it is one application.
        if !cx.admit(self.name(), || "the whole model".into()) {
            return Ok(0);
        }
        infer::annotate(&mut model.graph);
        let boundary = match cx.options.convert_io {
            true => Boundary::Half,
            false => Boundary::Kept,
        };
        let converted = convert(&mut model.graph, boundary, &[], cx)?;
        if converted == 0 {
            return Err(PassFailure::Nothing(
                "no node was converted to FP16: the model has no FP32 computation that may become half precision".into(),
            ));
        }
        Ok(converted)
    }
}

/// What becomes of a graph's FP32 inputs and outputs.
#[derive(Clone, Copy, PartialEq)]
enum Boundary {
    Kept,
    Half,
}

/// Converts one graph; `captures` says which captured values arrive as half. Gives the number of converted nodes.
fn convert(
    g: &mut Graph,
    boundary: Boundary,
    captures: &[bool],
    cx: &mut Context<'_>,
) -> Result<usize, PassFailure> {
    let order = g.topo_order()?;
    let kept = half_rules::kept(g, &order, cx.options);
    let mut state = State {
        half: vec![false; g.value_bound()],
        twins: FxHashMap::default(),
    };
    let values: Vec<ValueId> = g
        .values()
        .map(|(id, _)| id)
        .filter(|&v| is_f32(g, v))
        .collect();
    for v in values {
        let to_half = match g.value(v).def() {
            Def::Capture(k) => captures.get(*k as usize) == Some(&true),
            Def::Input(_) => boundary == Boundary::Half,
            Def::Node(node, _) => kept[node.index()].is_none(),
            _ => false,
        };
        if to_half {
            state.half[v.index()] = true;
            retype(g, v);
        }
    }
    let mut converted = 0;
    for id in order {
        let float = touches_float(g, id, &state);
        if !float {
            continue;
        }
        match &kept[id.index()] {
            Some(why) => {
                cx.remarks.push(Remark::Kept {
                    node: g.label(id),
                    why: why.clone(),
                });
                operands(g, id, false, &mut state, cx);
                nested(g, id, Boundary::Kept, &state, cx)?;
            }
            None => {
                let node = g.label(id);
                cx.remarks.push(Remark::Narrowed { node });
                operands(g, id, true, &mut state, cx);
                attributes(g, id);
                converted += nested(g, id, Boundary::Half, &state, cx)?;
                converted += 1;
            }
        }
    }
    for k in 0..g.outputs().len() {
        let v = g.outputs()[k].value;
        let is_half = state.half.get(v.index()).copied().unwrap_or(false);
        let want_half = boundary == Boundary::Half;
        if is_half != want_half && (is_half || is_f32(g, v)) {
            let cast = state.twin(g, v, want_half, cx);
            g.set_output_value(k, cast);
        }
    }
    Ok(converted)
}

struct State {
    /// Values that were FP32 and are half now.
    half: Vec<bool>,
    /// The other-typed copy of a value: a constant of its own, or a Cast.
    twins: FxHashMap<ValueId, ValueId>,
}

impl State {
    fn twin(&mut self, g: &mut Graph, v: ValueId, to_half: bool, cx: &mut Context<'_>) -> ValueId {
        if let Some(&twin) = self.twins.get(&v) {
            return twin;
        }
        let name = g.value(v).name().to_string();
        let dtype = if to_half { DType::F16 } else { DType::F32 };
        let constant = g.constant(v).filter(|_| to_half).cloned();
        let twin = match constant.as_ref().and_then(|t| narrow(&name, t, cx)) {
            Some(half) => g.add_constant(&name, half),
            None => {
                let attrs = Attrs::new().with("to", i64::from(dtype.to_onnx()));
                let cast = g.add_node(Op::onnx("Cast"), "", [Some(v)], 1, attrs);
                g.notes_mut(cast).set("kiln.pass", "convert-fp16".into());
                let shape = g.value(v).ty().shape().map(|s| s.into());
                let made = g.node(cast).output(0).unwrap_or(v);
                g.set_type(made, Type::tensor(dtype, shape));
                let suffix = if to_half { "fp16" } else { "fp32" };
                g.set_value_name(made, &format!("{name}_{suffix}"));
                made
            }
        };
        self.twins.insert(v, twin);
        twin
    }
}

/// The constant as half, converted when it is written; clamped weights are remarked. A single number, such as a mask's
/// -3.4e38, is clamped as what it means: the most negative finite number.
fn narrow(name: &str, tensor: &Tensor, cx: &mut Context<'_>) -> Option<Tensor> {
    let half = tensor.narrowed(DType::F16)?;
    let loss = tensor.loss_to_f16()?;
    if loss.clamped > 0 && tensor.len() > 1 {
        cx.remarks.push(Remark::Clamped {
            tensor: name.to_string(),
            values: loss.clamped,
            abs_max: loss.abs_max,
        });
    }
    Some(half)
}

fn retype(g: &mut Graph, v: ValueId) {
    let shape = g.value(v).ty().shape().map(|s| s.into());
    g.set_type(v, Type::tensor(DType::F16, shape));
}

fn touches_float(g: &Graph, id: NodeId, state: &State) -> bool {
    let node = g.node(id);
    let all = node
        .inputs()
        .iter()
        .chain(node.outputs())
        .flatten()
        .copied();
    let mut all = all.chain(node.captures().iter().copied());
    all.any(|v| is_f32(g, v) || state.half.get(v.index()) == Some(&true))
}

/// Makes the node read what it wants: half, or FP32.
fn operands(g: &mut Graph, id: NodeId, want_half: bool, state: &mut State, cx: &mut Context<'_>) {
    // A Cast takes any type; a second one in front of it would round twice.
    if g.node(id).op().is("Cast") {
        return;
    }
    for k in 0..g.node(id).inputs().len() {
        let Some(v) = g.node(id).input(k) else {
            continue;
        };
        let want_half = want_half && !half_rules::input_stays(g.node(id).op(), k);
        let is_half = state.half[v.index()];
        if is_half != want_half && (is_half || is_f32(g, v)) {
            let twin = state.twin(g, v, want_half, cx);
            g.set_input(id, k, Some(twin));
        }
    }
    // Captured constants are handed to nested graphs as half; whatever computes decides for itself.
    for k in 0..g.node(id).captures().len() {
        let v = g.node(id).captures()[k];
        if is_f32(g, v) && g.constant(v).is_some() && want_half {
            let twin = state.twin(g, v, true, cx);
            let slot = kiln_graph::graph::Slot::Capture(k as u32);
            g.set_use(kiln_graph::Use { node: id, slot }, twin);
        }
    }
}

/// Attributes that state a type or hold a tensor: Cast to FP32, ConstantOfShape's value.
fn attributes(g: &mut Graph, id: NodeId) {
    let op = g.node(id).op();
    let attrs = g.attrs_mut(id);
    let f32_number = i64::from(DType::F32.to_onnx());
    if op.is("Cast") && attrs.int("to") == Some(f32_number) {
        attrs.set("to", i64::from(DType::F16.to_onnx()));
    }
    if op.is("DequantizeLinear") && attrs.int("output_dtype") == Some(f32_number) {
        attrs.set("output_dtype", i64::from(DType::F16.to_onnx()));
    }
    if op.is("ConstantOfShape") {
        // Its value is FP32 zero if it is left out.
        let value = attrs.tensor("value").cloned();
        let value = value.unwrap_or_else(|| Tensor::vector(&[0f32]));
        if let Some(half) = value.narrowed(DType::F16) {
            attrs.set("value", Attr::Tensor(half));
        }
    }
}

/// Converts the bodies of a control-flow node.
fn nested(
    g: &mut Graph,
    id: NodeId,
    boundary: Boundary,
    state: &State,
    cx: &mut Context<'_>,
) -> Result<usize, PassFailure> {
    if !g.node(id).has_subgraphs() || boundary == Boundary::Kept && g.node(id).captures().is_empty()
    {
        return Ok(0);
    }
    let half = |v: &ValueId| {
        g.value(*v).ty().dtype() == Some(DType::F16) && {
            // A value that was FP32 before, or the half copy of a constant.
            state.half.get(v.index()).copied().unwrap_or(true)
                || state.twins.values().any(|t| t == v)
        }
    };
    let captures: Vec<bool> = g.node(id).captures().iter().map(half).collect();
    let mut converted = 0;
    for attr in g.attrs_mut(id).values_mut() {
        for body in attr.graphs_mut() {
            converted += convert(body, boundary, &captures, cx)?;
        }
    }
    Ok(converted)
}
