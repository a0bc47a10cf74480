//! FP32 to a format of 16 bits, written into the graph: what strongly typed builders need.

use kiln_graph::{Attr, Attrs, DType, Def, Graph, Model, NodeId, Op, Tensor, Type, ValueId, infer};
use rustc_hash::FxHashMap;

use super::bodies::{self, Edge, Slots};
use super::control::bodies;
use super::decisions;
use super::flow::Flow;
use super::format::HalfFormat;
use super::masks;
use super::products;
use super::ranges::{Ranges, fill};
use super::rules;
use super::touch::{is_f32, touches};
use crate::core::pass::{Clamped, Context, PassFailure, Remark};
use crate::precision::calibrated::stats::Stats;

/// What `kiln passes explain` says of the passes, behind what is true of one format.
pub(in crate::precision) const DETAILS: &str = "Nodes keep FP32 that the user names, by name or operator, that have no form in the format, that \
     compute with integers that the format does not tell apart or decide by such, that compute sums and statistics, or \
     guard a divisor by a number that would be 0, and quantization whose scales or offsets the format cannot hold; and those \
     whose weights or, with calibration, whose operands or results the format cannot hold. A mask's -1e12 or -3.4e38 \
     becomes a number that means the same, infinities stay. Graph inputs and outputs keep their types, by a Cast, unless \
     asked for. A value is cast at most once in each direction, and a constant never: it is stored in the type it is read \
     in. Bodies of If, Loop and Scan are converted with the values they capture and carry; that of a node that the user names \
     stays as it is.";

/// Converts a model.
///
/// # Errors
/// When nothing in it can be converted, or a graph has a cycle.
pub(in crate::precision) fn run(
    pass: &'static str,
    format: HalfFormat,
    model: &mut Model,
    cx: &mut Context<'_>,
) -> Result<usize, PassFailure> {
    if cx.is_exhausted() {
        return Ok(0);
    }
    let g = &model.graph;
    let ends = g.outputs().iter().map(|o| o.value);
    let floats = || ends.chain(g.inputs().iter().copied()).any(|v| is_f32(g, v));
    if cx.options.convert_io && floats() && !cx.admit(pass, || "inputs and outputs".into()) {
        return Ok(0);
    }
    bodies::localize(&mut model.graph, cx.options);
    (model.graph).for_each_graph_mut(&mut |g| products::separate_offsets(g, format));
    infer::annotate(&mut model.graph);
    let mut edge = Edge::whole(&model.graph, cx.options.convert_io);
    if cx.target.facts.binds_caches {
        edge.bind(&model.graph);
    }
    let conversion = Conversion { pass, format };
    let stats = cx.options.stats;
    let flow = Flow::of(&model.graph, format);
    let converted = conversion.graph(&mut model.graph, &edge, &flow, stats, cx)?;
    let holds = |dtype| (model.graph.values()).any(|(_, v)| v.ty().dtype() == Some(dtype));
    // A model that computes in the format as it came is what was asked for.
    if converted == 0 && !cx.is_exhausted() && !holds(format.dtype()) {
        return Err(PassFailure::Nothing(nothing(&model.graph, format)));
    }
    Ok(converted)
}

/// Why no node was converted.
fn nothing(g: &Graph, format: HalfFormat) -> String {
    let holds = |dtype| g.values().any(|(_, v)| v.ty().dtype() == Some(dtype));
    let why = match () {
        () if holds(DType::F16) => "it computes in FP16 already",
        () if holds(DType::BF16) => "it computes in BF16 already",
        () if holds(DType::F64) => "it computes in FP64, which stays as it is",
        () => "the model has no FP32 computation that may become half precision",
    };
    format!("no node was converted to {}: {why}", format.name())
}

#[derive(Clone, Copy)]
pub(in crate::precision) struct Conversion {
    pub pass: &'static str,
    pub format: HalfFormat,
}

impl Conversion {
    /// Converts one graph, of which `flow` and `stats` are. Gives the number of converted nodes.
    pub fn graph(
        self,
        g: &mut Graph,
        edge: &Edge,
        flow: &Flow,
        stats: &Stats,
        cx: &mut Context<'_>,
    ) -> Result<usize, PassFailure> {
        let order = g.topo_order()?;
        let mut ranges = Ranges::new(self.format, stats);
        let mut kept = self.kept(g, &order, edge, flow, &mut ranges, cx);
        if !edge.inside {
            self.admitted(g, &order, &mut kept, cx);
        }
        let mut state = State {
            conversion: self,
            half: vec![false; g.value_bound()],
            twins: edge.twins.iter().copied().collect(),
            ranges,
        };
        let slots = Slots::of(g, &order, flow, &kept, cx.options);
        state.retype(g, edge, &slots, &kept);
        let mut converted = 0;
        for id in order {
            let is_half = |v: ValueId| state.half.get(v.index()) == Some(&true);
            if g.node(id).has_subgraphs() {
                let why = kept[id.index()].as_deref();
                converted += state.control(g, id, (slots.node(id), why), flow, cx)?;
                continue;
            }
            if !touches(g, id, |v| is_f32(g, v) || is_half(v)) {
                continue;
            }
            match &kept[id.index()] {
                Some(why) => {
                    cx.kept(g, id, why.clone());
                    state.operands(g, id, false, cx);
                }
                None => {
                    let node = g.label(id);
                    cx.remarks.push(Remark::Narrowed { node });
                    state.operands(g, id, true, cx);
                    self.attributes(g, id);
                    converted += 1;
                }
            }
        }
        for k in 0..g.outputs().len() {
            let v = g.outputs()[k].value;
            let want_half = edge.outputs.get(k) == Some(&true);
            if let Some(cast) = state.wanted(g, v, want_half, cx) {
                g.set_output_value(k, cast);
            }
        }
        Ok(converted)
    }

    /// For each node: `None` if it becomes half precision, else why it keeps its type.
    fn kept(
        self,
        g: &Graph,
        order: &[NodeId],
        edge: &Edge,
        flow: &Flow,
        ranges: &mut Ranges<'_>,
        cx: &Context<'_>,
    ) -> Vec<Option<String>> {
        let masked = ranges.masked(g, order);
        let mut kept = rules::kept(
            g,
            order,
            self.format,
            flow,
            &masked,
            cx.options,
            cx.target.facts,
        );
        let unfit = |v| edge.captured(g, v).is_some_and(|c| !c.fits);
        ranges.keep(g, order, &unfit, &mut kept);
        for &(from, to) in &edge.carried {
            for id in decisions::sums(g, from, to).unwrap_or_default() {
                kept[id.index()].get_or_insert_with(|| "it adds up over the iterations".into());
            }
        }
        let products = cx.target.fp32_products;
        products::keep_offsets(g, order, self.format, products, &mut kept);
        products::keep_together(g, order, products, &mut kept);
        kept
    }

    /// Keeps what is not admitted. Each node is an application of its own, so that a bisection names the one that loses
    /// precision; a node with bodies is one with all that is in them.
    fn admitted(
        self,
        g: &Graph,
        order: &[NodeId],
        kept: &mut [Option<String>],
        cx: &mut Context<'_>,
    ) {
        for &id in order {
            let why = &mut kept[id.index()];
            if why.is_none() && changes(g, id) && !cx.admit(self.pass, || g.label(id)) {
                *why = Some("it is beyond the limit".into());
            }
        }
    }

    /// Attributes that state a type or hold a tensor: Cast to FP32, ConstantOfShape's value.
    fn attributes(self, g: &mut Graph, id: NodeId) {
        let op = g.node(id).op();
        let attrs = g.attrs_mut(id);
        let f32_number = i64::from(DType::F32.to_onnx());
        let half_number = i64::from(self.format.dtype().to_onnx());
        if op.is("Cast") && attrs.int("to") == Some(f32_number) {
            attrs.set("to", half_number);
        }
        if op.is("DequantizeLinear") && attrs.int("output_dtype") == Some(f32_number) {
            attrs.set("output_dtype", half_number);
        }
        if op.is("ConstantOfShape") {
            // Its value is FP32 zero if it is left out.
            let value = attrs.tensor("value").cloned();
            let value = value.unwrap_or_else(|| Tensor::vector(&[0f32]));
            let half = fill(&value, self.format).and_then(|v| v.narrowed(self.format.dtype()));
            if let Some(half) = half {
                attrs.set("value", Attr::Tensor(half));
            }
        }
    }
}

/// Whether a node or its bodies become another when they are converted. What takes any type and gives no floats stays as it is.
fn changes(g: &Graph, id: NodeId) -> bool {
    let node = g.node(id);
    if node.has_subgraphs() {
        let floats = |body: &Graph| body.nodes().any(|(id, _)| changes(body, id));
        return bodies(g, id).any(floats);
    }
    let to = node.attrs().int("to");
    let cast = node.op().is("Cast") && to != Some(i64::from(DType::F32.to_onnx()));
    !cast && !node.op().is_any(&["Shape", "Size"]) && touches(g, id, |v| is_f32(g, v))
}

pub(in crate::precision) struct State<'a> {
    pub conversion: Conversion,
    /// Values that were FP32 and are half now.
    pub half: Vec<bool>,
    /// The other-typed copy of a value: a constant or capture of its own, or a Cast.
    pub twins: FxHashMap<ValueId, ValueId>,
    pub ranges: Ranges<'a>,
}

impl State<'_> {
    /// Gives the types that they will have to values that nodes compute, and to what comes in.
    fn retype(&mut self, g: &mut Graph, edge: &Edge, slots: &Slots, kept: &[Option<String>]) {
        let values = g.values().map(|(id, _)| id);
        let values: Vec<ValueId> = values.filter(|&v| is_f32(g, v)).collect();
        for v in values {
            let to_half = match g.value(v).def() {
                Def::Capture(_) => edge.captured(g, v).is_some_and(|c| c.half),
                Def::Input(k) => edge.inputs.get(*k as usize) == Some(&true),
                Def::Node(node, k) if g.node(*node).has_subgraphs() => {
                    slots.node(*node).results.get(*k as usize) == Some(&true)
                }
                Def::Node(node, _) => kept[node.index()].is_none(),
                _ => false,
            };
            if to_half {
                self.half[v.index()] = true;
                let shape = g.value(v).ty().shape().map(|s| s.into());
                g.set_type(v, Type::tensor(self.conversion.format.dtype(), shape));
            }
        }
    }

    /// Whether the value has become half.
    pub fn is_half(&self, v: ValueId) -> bool {
        self.half.get(v.index()) == Some(&true)
    }

    /// The copy to read instead of a value that has not the type that is wanted; `None` if it has.
    pub fn wanted(
        &mut self,
        g: &mut Graph,
        v: ValueId,
        want_half: bool,
        cx: &mut Context<'_>,
    ) -> Option<ValueId> {
        let is_half = self.is_half(v);
        let other = is_half != want_half && (is_half || is_f32(g, v));
        other.then(|| self.twin(g, v, want_half, cx))
    }

    pub fn twin(
        &mut self,
        g: &mut Graph,
        v: ValueId,
        to_half: bool,
        cx: &mut Context<'_>,
    ) -> ValueId {
        if let Some(&twin) = self.twins.get(&v) {
            return twin;
        }
        let Conversion { pass, format } = self.conversion;
        let name = g.value(v).name().to_string();
        let constant = if to_half {
            self.constant(g, v, cx)
        } else {
            None
        };
        let twin = match constant {
            Some(half) => g.add_constant(&name, half),
            None => {
                let dtype = if to_half { format.dtype() } else { DType::F32 };
                let attrs = Attrs::new().with("to", i64::from(dtype.to_onnx()));
                // What a Cast made half is read in FP32 from where the Cast has it.
                let source = g.producer_if(v, "Cast").filter(|_| !to_half);
                let source = source.and_then(|cast| g.node(cast).input(0)).unwrap_or(v);
                let bounded = match to_half && masks::is_mask(g, v) {
                    true => masks::bounded(g, v, format, pass),
                    false => None,
                };
                let source = bounded.unwrap_or(source);
                let cast = g.add_node(Op::onnx("Cast"), "", [Some(source)], 1, attrs);
                g.notes_mut(cast).set("kiln.pass", pass.into());
                let shape = g.value(v).ty().shape().map(|s| s.into());
                let made = g.node(cast).output(0).unwrap_or(v);
                g.set_type(made, Type::tensor(dtype, shape));
                let suffix = if to_half { format.suffix() } else { "fp32" };
                g.set_value_name(made, &format!("{name}_{suffix}"));
                made
            }
        };
        self.twins.insert(v, twin);
        twin
    }

    /// The constant as half, converted when it is written. Tables in which numbers are replaced are remarked; that a
    /// single -3.4e38 becomes what means the same needs no remark.
    fn constant(&mut self, g: &Graph, v: ValueId, cx: &mut Context<'_>) -> Option<Tensor> {
        let (half, replaced) = self.ranges.narrow(g, v)?;
        if let Some(loss) = replaced.filter(|_| half.len() > 1) {
            cx.remarks.push(Remark::Clamped(Clamped {
                tensor: g.value(v).name().to_string(),
                values: loss.clamped,
                abs_max: loss.abs_max,
            }));
        }
        Some(half)
    }

    /// Makes the node read what it wants: half, or FP32.
    fn operands(&mut self, g: &mut Graph, id: NodeId, want_half: bool, cx: &mut Context<'_>) {
        // A Cast takes any type; a second one in front of it would round twice. So does what asks for sizes alone.
        if g.node(id).op().is_any(&["Cast", "Shape", "Size"]) {
            return;
        }
        for k in 0..g.node(id).inputs().len() {
            let Some(v) = g.node(id).input(k) else {
                continue;
            };
            let want_half = want_half && !rules::input_stays(g.node(id).op(), k);
            if let Some(twin) = self.wanted(g, v, want_half, cx) {
                g.set_input(id, k, Some(twin));
            }
        }
    }
}
