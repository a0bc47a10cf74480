//! FP32 to a format of 16 bits, written into the graph: what strongly typed builders need.

use kiln_graph::{Attr, Attrs, DType, Def, Graph, Model, NodeId, Op, Tensor, Type, ValueId, infer};
use rustc_hash::FxHashMap;

use super::half_format::HalfFormat;
use super::half_masks;
use super::half_ranges::{Ranges, fill};
use super::half_rules::{self, is_f32, touches};
use super::stats::Stats;
use crate::pass::{Context, PassFailure, Remark};

/// What `kiln passes explain` says of the passes, behind what is true of one format.
pub(super) const DETAILS: &str = "Nodes keep FP32 that --keep or --keep-op names, that have no form in the format, that \
     compute angles of positions, sums and statistics, and quantization whose scales the format cannot hold; and those \
     whose weights or, with calibration, whose operands or results the format cannot hold. A mask's -1e12 or -3.4e38 \
     becomes a number that means the same, infinities stay. Graph inputs and outputs keep their types, by a Cast, unless \
     --half-io. A value is cast at most once in each direction, and a constant never: it is stored in the type it is read \
     in. Bodies of If, Loop and Scan are converted with the values they capture.";

/// Converts a model.
///
/// # Errors
/// When nothing in it can be converted, or a graph has a cycle.
pub(super) fn run(
    pass: &'static str,
    format: HalfFormat,
    model: &mut Model,
    cx: &mut Context<'_>,
) -> Result<usize, PassFailure> {
    // Half of a conversion would be Casts everywhere, so it is one application.
    if !cx.admit(pass, || "the whole model".into()) {
        return Ok(0);
    }
    infer::annotate(&mut model.graph);
    let boundary = match cx.options.convert_io {
        true => Boundary::Half,
        false => Boundary::Kept,
    };
    let conversion = Conversion { pass, format };
    let stats = cx.options.stats;
    let converted = conversion.graph(&mut model.graph, boundary, &[], stats, cx)?;
    if converted == 0 {
        return Err(PassFailure::Nothing(format!(
            "no node was converted to {}: the model has no FP32 computation that may become half precision",
            format.name()
        )));
    }
    Ok(converted)
}

/// A value of the graph around that a body reads.
#[derive(Clone, Copy)]
struct Captured {
    /// It arrives as half.
    half: bool,
    /// The format can hold it.
    fits: bool,
}

#[derive(Clone, Copy)]
struct Conversion {
    pass: &'static str,
    format: HalfFormat,
}

/// What becomes of a graph's FP32 inputs and outputs.
#[derive(Clone, Copy, PartialEq)]
enum Boundary {
    Kept,
    Half,
}

impl Conversion {
    /// Converts one graph, of which `stats` are. Gives the number of converted nodes.
    fn graph(
        self,
        g: &mut Graph,
        boundary: Boundary,
        captures: &[Captured],
        stats: &Stats,
        cx: &mut Context<'_>,
    ) -> Result<usize, PassFailure> {
        let order = g.topo_order()?;
        let mut kept = half_rules::kept(g, &order, self.format, cx.options);
        let mut ranges = Ranges::new(self.format, stats);
        let captured = |g: &Graph, v: ValueId| match g.value(v).def() {
            Def::Capture(k) => captures.get(*k as usize).copied(),
            _ => None,
        };
        ranges.keep(
            g,
            &order,
            &|v| captured(g, v).is_some_and(|c| !c.fits),
            &mut kept,
        );
        let mut state = State {
            conversion: self,
            half: vec![false; g.value_bound()],
            twins: FxHashMap::default(),
            ranges,
        };
        let values: Vec<ValueId> = g
            .values()
            .map(|(id, _)| id)
            .filter(|&v| is_f32(g, v))
            .collect();
        for v in values {
            let to_half = match g.value(v).def() {
                Def::Capture(_) => captured(g, v).is_some_and(|c| c.half),
                Def::Input(_) => boundary == Boundary::Half,
                Def::Node(node, _) => kept[node.index()].is_none(),
                _ => false,
            };
            if to_half {
                state.half[v.index()] = true;
                let shape = g.value(v).ty().shape().map(|s| s.into());
                g.set_type(v, Type::tensor(self.format.dtype(), shape));
            }
        }
        let mut converted = 0;
        for id in order {
            let is_half = |v: ValueId| state.half.get(v.index()) == Some(&true);
            if !touches(g, id, |v| is_f32(g, v) || is_half(v)) {
                continue;
            }
            match &kept[id.index()] {
                Some(why) => {
                    cx.kept(g, id, why.clone());
                    state.operands(g, id, false, cx);
                    state.nested(g, id, Boundary::Kept, cx)?;
                }
                None => {
                    let node = g.label(id);
                    cx.remarks.push(Remark::Narrowed { node });
                    state.operands(g, id, true, cx);
                    self.attributes(g, id);
                    converted += state.nested(g, id, Boundary::Half, cx)?;
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

struct State<'a> {
    conversion: Conversion,
    /// Values that were FP32 and are half now.
    half: Vec<bool>,
    /// The other-typed copy of a value: a constant of its own, or a Cast.
    twins: FxHashMap<ValueId, ValueId>,
    ranges: Ranges<'a>,
}

impl State<'_> {
    fn twin(&mut self, g: &mut Graph, v: ValueId, to_half: bool, cx: &mut Context<'_>) -> ValueId {
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
                let bounded = match to_half && half_masks::is_mask(g, v) {
                    true => half_masks::bounded(g, v, format, pass),
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
            cx.remarks.push(Remark::Clamped {
                tensor: g.value(v).name().to_string(),
                values: loss.clamped,
                abs_max: loss.abs_max,
            });
        }
        Some(half)
    }

    /// Makes the node read what it wants: half, or FP32.
    fn operands(&mut self, g: &mut Graph, id: NodeId, want_half: bool, cx: &mut Context<'_>) {
        // A Cast takes any type; a second one in front of it would round twice.
        if g.node(id).op().is("Cast") {
            return;
        }
        for k in 0..g.node(id).inputs().len() {
            let Some(v) = g.node(id).input(k) else {
                continue;
            };
            let want_half = want_half && !half_rules::input_stays(g.node(id).op(), k);
            let is_half = self.half[v.index()];
            if is_half != want_half && (is_half || is_f32(g, v)) {
                let twin = self.twin(g, v, want_half, cx);
                g.set_input(id, k, Some(twin));
            }
        }
        // Captured constants are handed to nested graphs as half; whatever computes decides for itself.
        for k in 0..g.node(id).captures().len() {
            let v = g.node(id).captures()[k];
            if want_half && is_f32(g, v) && self.ranges.fits(g, v) {
                let twin = self.twin(g, v, true, cx);
                let slot = kiln_graph::graph::Slot::Capture(k as u32);
                g.set_use(kiln_graph::Use { node: id, slot }, twin);
            }
        }
    }

    /// Converts the bodies of a control-flow node.
    fn nested(
        &mut self,
        g: &mut Graph,
        id: NodeId,
        boundary: Boundary,
        cx: &mut Context<'_>,
    ) -> Result<usize, PassFailure> {
        if !g.node(id).has_subgraphs()
            || boundary == Boundary::Kept && g.node(id).captures().is_empty()
        {
            return Ok(0);
        }
        let half = |v: &ValueId| {
            g.value(*v).ty().dtype() == Some(self.conversion.format.dtype()) && {
                // A value that was FP32 before, or the half copy of a constant.
                self.half.get(v.index()).copied().unwrap_or(true)
                    || self.twins.values().any(|t| t == v)
            }
        };
        let halves: Vec<bool> = g.node(id).captures().iter().map(half).collect();
        let captures = g.node(id).captures().iter().zip(halves);
        let captures: Vec<Captured> = captures
            .map(|(&v, half)| Captured {
                half,
                fits: half || self.ranges.fits(g, v),
            })
            .collect();
        let none = Stats::default();
        let mut converted = 0;
        for attr in g.attrs_mut(id).values_mut() {
            for body in attr.graphs_mut() {
                converted += self
                    .conversion
                    .graph(body, boundary, &captures, &none, cx)?;
            }
        }
        Ok(converted)
    }
}
