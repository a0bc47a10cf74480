//! Which nodes keep FP32 when a model becomes half precision because of their numbers: what calibration saw of their
//! operands and results, and the weights themselves.

use kiln_graph::tensor::NarrowingLoss;
use kiln_graph::{Def, Graph, Model, NodeId, Tensor, ValueId, ops};
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::flow::Flow;
use super::format::HalfFormat;
use super::operands::{MOVES, SCORES, SOFTMAX, SOFTMAX_ERROR};
use super::rules;
use super::touch::{is_f32, touches};
use crate::core::pass::Options;
use crate::precision::calibrated::stats::Stats;
use crate::targets::standard;

/// What was measured may reach so many times as far on other inputs: calibration sees a sample.
const MARGIN: f64 = 2.0;

/// The relative error at which a weight does not become half: what the tolerance `fp16` allows a whole model, where
/// rounding alone is off by 3e-4 in FP16 and 2e-3 in BF16.
const WEIGHT_ERROR: f64 = 1e-2;

/// Numbers from here on stand for infinity, whatever their sign: masks are spelled with 1e9, 1e12, 1e30 and the largest
/// FP32.
const INFINITE: f64 = 1e9;

/// What may be between the constant of a mask and the softmax.
const MASKS: &[&str] = &[
    "Add",
    "Cast",
    "Clip",
    "Concat",
    "Expand",
    "Gather",
    "GatherElements",
    "GatherND",
    "Max",
    "Min",
    "Mul",
    "Pad",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "Sub",
    "Tile",
    "Where",
];

/// Operators whose result is a product with each of these operands, or a copy of the first.
fn multiplies(g: &Graph, id: NodeId, k: usize) -> bool {
    let op = g.node(id).op();
    match k {
        0 => op.is_any(&[
            "Mul",
            "Div",
            "MatMul",
            "Gemm",
            "Gather",
            "GatherElements",
            "Einsum",
        ]),
        1 => op.is_any(&[
            "Mul",
            "Div",
            "MatMul",
            "Gemm",
            "Conv",
            "ConvTranspose",
            "Einsum",
            "PRelu",
            "GRU",
            "LSTM",
            "RNN",
        ]),
        2 => op.is_any(&["GRU", "LSTM", "RNN"]),
        _ => false,
    }
}

/// Elements of a constant that is worth a thread.
const LARGE: usize = 1 << 14;

/// What a format does to the numbers of one graph.
#[derive(Debug)]
pub(in crate::precision) struct Ranges<'a> {
    format: HalfFormat,
    /// Of values of this graph; empty if nothing was measured.
    stats: &'a Stats,
    losses: FxHashMap<ValueId, Option<NarrowingLoss>>,
    /// Values in which a mask may have put what stands for infinity.
    masked: Vec<bool>,
}

impl<'a> Ranges<'a> {
    pub fn new(format: HalfFormat, stats: &'a Stats) -> Ranges<'a> {
        Ranges {
            format,
            stats,
            losses: FxHashMap::default(),
            masked: Vec::new(),
        }
    }

    /// Reads the constants, and gives for each value whether a mask may have put into it what stands for infinity.
    pub fn masked(&mut self, g: &Graph, order: &[NodeId]) -> Vec<bool> {
        self.measure(g, order);
        self.mark_masked(g, order);
        self.masked.clone()
    }

    /// Gives reasons to nodes that have none, where numbers forbid to convert them. `unfit` says which captured values
    /// the format cannot hold. Behind [`Ranges::masked`].
    pub fn keep(
        &mut self,
        g: &Graph,
        order: &[NodeId],
        unfit: &dyn Fn(ValueId) -> bool,
        why: &mut [Option<String>],
    ) {
        for &id in order {
            if why[id.index()].is_none() {
                let reason = self.weight(g, id).or_else(|| self.activation(g, id));
                let format = self.format.name();
                let captured = || {
                    let unfit = touches(g, id, unfit);
                    unfit.then(|| format!("{format} cannot hold a value of the graph around it"))
                };
                why[id.index()] = reason.or_else(captured);
            }
        }
        for &id in order {
            self.keep_scores(g, id, why);
        }
    }

    /// Reads the large constants of all nodes, on all cores.
    fn measure(&mut self, g: &Graph, order: &[NodeId]) {
        let operands = order
            .iter()
            .flat_map(|&id| g.node(id).inputs().iter().copied().flatten());
        let large = |v: &ValueId| g.constant(*v).is_some_and(|t| t.len() >= LARGE);
        let mut weights: Vec<ValueId> = operands.filter(large).collect();
        weights.sort_unstable();
        weights.dedup();
        let dtype = self.format.dtype();
        let losses = weights.into_par_iter().map(|v| {
            let loss = g.constant(v).and_then(|t| t.narrowing_loss(dtype));
            (v, loss)
        });
        self.losses.extend(losses.collect::<Vec<_>>());
    }

    /// What converting a constant loses; `None` if it is no FP32 constant.
    fn loss(&mut self, g: &Graph, v: ValueId) -> Option<NarrowingLoss> {
        let dtype = self.format.dtype();
        let computed = || g.constant(v)?.narrowing_loss(dtype);
        *self.losses.entry(v).or_insert_with(computed)
    }

    /// Whether the numbers of a constant that are beyond the format stand for infinity, so that another one so far out
    /// can replace them. A weight or a bias with an outlier is none of these.
    fn is_fill(&mut self, g: &Graph, v: ValueId) -> bool {
        let Some(loss) = self.loss(g, v) else {
            return false;
        };
        let Some((least, most)) = loss.beyond else {
            return false;
        };
        let one = g.constant(v).is_some_and(|t| t.len() == 1);
        let infinite = |number: f32| f64::from(number.abs()) >= INFINITE;
        one && most < 0.0 || infinite(least) && infinite(most)
    }

    /// Whether a value can become half for readers of any kind, as far as its numbers are known.
    pub fn fits(&mut self, g: &Graph, v: ValueId) -> bool {
        match self.loss(g, v) {
            Some(loss) => loss.clamped == 0 || self.is_fill(g, v),
            None => {
                let reach = self.reach(g, v);
                reach.is_none_or(|reach| reach * MARGIN <= self.format.max())
            }
        }
    }

    /// Whether a constant may be half for whatever reads it, products included.
    pub fn suits(&mut self, g: &Graph, v: ValueId) -> bool {
        let small = self.loss(g, v).is_some_and(|l| l.relative() > WEIGHT_ERROR);
        !small && self.fits(g, v)
    }

    /// Why a constant operand forbids to convert a node.
    fn weight(&mut self, g: &Graph, id: NodeId) -> Option<String> {
        let node = g.node(id);
        let format = self.format.name();
        for (k, v) in node.inputs().iter().enumerate() {
            let Some(v) = v.filter(|&v| g.constant(v).is_some() && is_f32(g, v)) else {
                continue;
            };
            let Some(loss) = self
                .loss(g, v)
                .filter(|_| !rules::input_stays(node.op(), k))
            else {
                continue;
            };
            let name = g.value(v).name();
            let fills = node.op().is_any(MASKS)
                || node.op().is_any(MOVES)
                || node.op().name() == "Attention";
            if loss.clamped > 0 && !(fills && self.is_fill(g, v)) && !bounds(g, id, k) {
                return Some(format!(
                    "its constant \"{name}\" reaches {:.1e}, and {format} ends at {}",
                    loss.abs_max,
                    end(self.format)
                ));
            }
            if loss.clamped == 0 && loss.relative() > WEIGHT_ERROR && multiplies(g, id, k) {
                return Some(format!(
                    "its constant \"{name}\" is too small for {format}, which would move it by {:.0} %",
                    100.0 * loss.relative()
                ));
            }
        }
        None
    }

    /// Why what was measured of a node's operands and results forbids to convert it.
    fn activation(&self, g: &Graph, id: NodeId) -> Option<String> {
        let node = g.node(id);
        let of = |v: &ValueId| Some((*v, self.reach(g, *v)?));
        let results = node.outputs().iter().flatten().filter_map(of);
        let results = results.map(|(_, reach)| ("its result".to_string(), reach));
        let operands = node.inputs().iter().flatten().filter_map(of);
        let operands =
            operands.map(|(v, reach)| (format!("its operand \"{}\"", g.value(v).name()), reach));
        results.chain(operands).find_map(|(what, reach)| {
            let format = self.format.name();
            if reach * MARGIN > self.format.max() {
                let end = end(self.format);
                Some(format!(
                    "{what} reaches {reach:.1e}, and {format} ends at {end}"
                ))
            } else if reach > 0.0 && reach < self.format.normal() {
                Some(format!(
                    "{what} reaches {reach:.1e} only, and {format} has fewer digits below {:.1e}",
                    self.format.normal()
                ))
            } else {
                None
            }
        })
    }

    /// The largest magnitude that was measured of a value, if it was. Where a mask fills one side, the other one counts.
    fn reach(&self, g: &Graph, v: ValueId) -> Option<f64> {
        let stats = self.stats.get(&moved(g, v)).filter(|_| float(g, v))?;
        let (down, up) = (
            -f64::from(stats.min).min(0.0),
            f64::from(stats.max).max(0.0),
        );
        Some(match self.masked.get(v.index()) {
            Some(true) => down.min(up),
            _ => down.max(up),
        })
    }

    fn mark_masked(&mut self, g: &Graph, order: &[NodeId]) {
        self.masked = vec![false; g.value_bound()];
        for &id in order {
            let node = g.node(id);
            let filled = match ops::ConstantOfShape::of(g, id) {
                Some(_) => {
                    let value = node.attrs().tensor("value").and_then(Tensor::as_f64);
                    value.is_some_and(|v| v.abs() > self.format.max())
                }
                None if node.op().is_any(MASKS) || node.op().is_any(MOVES) => {
                    let inputs = node.inputs().iter().flatten();
                    let mut inputs = inputs.copied().filter(|&v| float(g, v));
                    inputs.any(|v| self.masked[v.index()] || self.is_fill(g, v))
                }
                None => false,
            };
            for v in node.outputs().iter().flatten().filter(|_| filled) {
                self.masked[v.index()] = true;
            }
        }
    }

    /// Keeps a softmax of large scores, and what computes them: rounding the scores would move its probabilities.
    fn keep_scores(&self, g: &Graph, softmax: NodeId, why: &mut [Option<String>]) {
        let large = |v: ValueId| {
            let reach = self.reach(g, v)?;
            (reach * self.format.unit() > SOFTMAX_ERROR).then_some(reach)
        };
        let node = g.node(softmax);
        let scores = node.input(0).filter(|_| node.op().is_any(SOFTMAX));
        let Some(reach) = scores.and_then(large) else {
            return;
        };
        let mut todo = vec![softmax];
        while let Some(id) = todo.pop() {
            if why[id.index()].is_some() && id != softmax {
                continue;
            }
            why[id.index()].get_or_insert_with(|| {
                format!(
                    "the scores of a softmax reach {reach:.0}, where {} rounds them by {:.1}",
                    self.format.name(),
                    reach * self.format.unit()
                )
            });
            let op = g.node(id).op();
            if id == softmax || op.is_any(SCORES) || op.is_any(MOVES) {
                let inputs = g.node(id).inputs().iter().flatten();
                let inputs = inputs.filter(|v| large(**v).is_some());
                todo.extend(inputs.filter_map(|v| g.producer(*v)));
            }
        }
    }

    /// A constant as half, and whether numbers in it were replaced; `None` if it is not FP32.
    ///
    /// What stands for infinity becomes the format's number for it, unless its readers only compare with it.
    pub fn narrow(&mut self, g: &Graph, v: ValueId) -> Option<(Tensor, Option<NarrowingLoss>)> {
        let tensor = g.constant(v)?.clone();
        let dtype = self.format.dtype();
        let loss = self.loss(g, v)?;
        if loss.clamped == 0 {
            return Some((tensor.narrowed(dtype)?, None));
        }
        let uses = g.value(v).uses();
        let compared = uses.iter().all(|u| match u.slot {
            kiln_graph::graph::Slot::Input(k) => bounds(g, u.node, k as usize),
            kiln_graph::graph::Slot::Capture(_) => false,
        });
        let filled = match compared {
            true => tensor,
            false => fill(&tensor, self.format)?,
        };
        Some((filled.narrowed(dtype)?, Some(loss)))
    }
}

/// The end of a format in a few digits.
fn end(format: HalfFormat) -> String {
    match format {
        HalfFormat::Fp16 => "65504".into(),
        HalfFormat::Bf16 => format!("{:.1e}", format.max()),
    }
}

/// The tensor with the format's number for infinity wherever a finite number is beyond the format.
pub(in crate::precision) fn fill(tensor: &Tensor, format: HalfFormat) -> Option<Tensor> {
    let (max, fill) = (format.max() as f32, format.fill() as f32);
    let values =
        tensor
            .values::<f32>()?
            .into_iter()
            .map(|v| match v.is_finite() && v.abs() > max {
                true => fill.copysign(v),
                false => v,
            });
    Tensor::from_values(tensor.dims(), &values.collect::<Vec<f32>>()).ok()
}

/// An operand that is only compared with others, so that the end of the range does for all numbers beyond it.
fn bounds(g: &Graph, id: NodeId, k: usize) -> bool {
    let op = g.node(id).op();
    let compares = [
        "Max",
        "Min",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
    ];
    op.is_any(&compares) || op.is("Clip") && k > 0
}

fn float(g: &Graph, v: ValueId) -> bool {
    g.value(v).ty().dtype().is_some_and(|d| d.is_float())
}

/// The value whose numbers these are in another order.
fn moved(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(id) = g.producer(v).filter(|&id| g.node(id).op().is_any(MOVES)) {
        match g.node(id).input(0) {
            Some(source) => v = source,
            None => break,
        }
    }
    v
}

/// The values of the outermost graph whose ranges conversion to a format would use, in ascending order: FP32 operands and
/// results of nodes that may be converted. BF16 has the range of FP32, so it asks for the scores of softmaxes only.
///
/// The model's types must be inferred.
pub fn wanted(model: &Model, format: HalfFormat) -> Vec<ValueId> {
    let g = &model.graph;
    let Ok(order) = g.topo_order() else {
        return Vec::new();
    };
    let flow = Flow::of(g, format);
    let facts = &standard::FACTS;
    let kept = rules::kept(g, &order, format, &flow, &[], &Options::default(), facts);
    let mut all = Vec::new();
    for id in order {
        let node = g.node(id);
        let scores = node.op().is_any(SOFTMAX) || node.op().is_any(SCORES);
        if kept[id.index()].is_some() || (format == HalfFormat::Bf16 && !scores) {
            continue;
        }
        let values = node.inputs().iter().chain(node.outputs()).flatten();
        all.extend(values.map(|&v| moved(g, v)).filter(|&v| {
            is_f32(g, v) && matches!(g.value(v).def(), Def::Node(..) | Def::Input(_))
        }));
    }
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
#[path = "ranges_tests.rs"]
mod tests;
