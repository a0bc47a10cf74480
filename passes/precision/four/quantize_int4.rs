//! Weights of linear layers as INT4, written as DequantizeLinear before the product.

use kiln_graph::{Attrs, Dim, Graph, Model, NodeId, Op, Type, ValueId, opset};
use rustc_hash::{FxHashMap, FxHashSet};

use super::awq::{self, Product};
use super::layer::{MIN_BLOCK, layer};

use crate::core::pass::{Context, Exactness, Pass, PassFailure, Remark};
use crate::precision::calibrated::plan::{Plans, Rounded};
use crate::precision::calibrated::stats::{Stats, TensorStats};
use crate::precision::linear::Linear;
use crate::precision::numbers::weights::{self, Quantized, Rounding, Unfit};

#[derive(Debug)]
pub struct QuantizeInt4;

/// The operator set from which DequantizeLinear has INT4 and blocks.
const SINCE: i64 = 21;

impl Pass for QuantizeInt4 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "store the weights of linear layers as 4-bit integers with a scale for each block"
    }

    fn details(&self) -> String {
        "The constant right operand [K, N] of MatMul and Gemm becomes INT4 in -8..7 with one scale for each column and each \
         block along K (32 elements unless told otherwise), which DequantizeLinear multiplies. Scales \
         minimize the squared error of their block. Where there is calibration it is weighed by the mean squares of the inputs; \
         numbers are rounded so that their errors make up for each other on the data (GPTQ) where that beats the nearest; each block \
         has a zero point where the target takes one; and \
         channels of the input are divided by factors that the rows of the weight take (AWQ): in a norm that nothing else reads for \
         free, else by a Mul if that lowers the error by 30 %. A weight that several nodes read is quantized once. Embedding tables, \
         weights with less than a block of rows or 16 columns, those with infinities and nodes that the user names stay, and \
         the manifest says why. The model's operator set is raised to 21. Activations stay floats: FP16 narrows them \
         and the scales."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        let block = cx.options.int4_block;
        if !block.is_power_of_two() || block < MIN_BLOCK {
            return Err(PassFailure::Nothing(format!(
                "{block} elements are no block of INT4: it takes a power of two from {MIN_BLOCK} on"
            )));
        }
        let mut any = false;
        model.graph.for_each_graph(&mut |g| {
            any |= g
                .nodes()
                .any(|(id, _)| matches!(layer(g, id, cx), Some(Ok(_))));
        });
        let from = model.graph.opset();
        if any && from < SINCE {
            if !cx.admit(NAME, || format!("operator set {from} to {SINCE}")) {
                return Ok(0);
            }
            opset::convert(model, SINCE)?;
        }
        let mut work = Work::default();
        let mut cycle = None;
        let mut found = Some((cx.options.stats, cx.options.plans));
        model.graph.for_each_graph_mut(&mut |g| {
            if cycle.is_none() && !work.refused {
                // The outermost graph comes first; values of others are not calibrated.
                cycle = work.graph(g, found.take(), cx).err();
            }
        });
        if let Some(cycle) = cycle {
            return Err(cycle);
        }
        if work.quantized == 0 && !work.refused && !cx.is_exhausted() {
            return Err(PassFailure::Nothing(
                "no weight was quantized to INT4: the model has no linear layer that is large enough".into(),
            ));
        }
        Ok(work.quantized)
    }
}

const NAME: &str = "quantize-int4";

#[derive(Default)]
struct Work {
    quantized: usize,
    /// A limit stopped the pass.
    refused: bool,
}

impl Work {
    /// `found` is of this graph's values.
    fn graph(
        &mut self,
        g: &mut Graph,
        found: Option<(&Stats, &Plans)>,
        cx: &mut Context<'_>,
    ) -> Result<(), PassFailure> {
        let calibrated = match found {
            Some((stats, plans)) if !stats.is_empty() || !plans.is_empty() => {
                self.scaled(g, stats, plans, cx)?
            }
            _ => Calibrated::default(),
        };
        let mut done: FxHashMap<(ValueId, bool), Result<ValueId, Unfit>> = FxHashMap::default();
        for id in g.topo_order()? {
            let (layer, mut block) = match layer(g, id, cx) {
                None => continue,
                Some(Ok(found)) => found,
                Some(Err(why)) => {
                    cx.kept(g, id, why);
                    continue;
                }
            };
            let key = (layer.weight, layer.transposed);
            let planned = calibrated.planned.get(&id);
            if let Some(planned) = planned {
                block = planned.block;
            }
            let fresh = match done.get(&key) {
                Some(Ok(_)) => None,
                Some(Err(why)) => Some(Err(*why)),
                None => Some(match planned {
                    Some(planned) => Ok(planned.numbers.clone()),
                    None => numbers(g, &layer, block, &calibrated.moments),
                }),
            };
            if let Some(Err(why)) = fresh {
                done.insert(key, Err(why));
                cx.kept(g, id, why.to_string());
                continue;
            }
            if !cx.admit(NAME, || g.label(id)) {
                self.refused = true;
                return Ok(());
            }
            if let Some(Ok(numbers)) = fresh {
                done.insert(key, Ok(dequantized(g, &layer, block, numbers)));
            }
            let Some(Ok(wide)) = done.get(&key) else {
                continue;
            };
            g.set_input(id, 1, Some(*wide));
            if layer.transposed {
                g.attrs_mut(id).remove("transB");
            }
            g.remove_unused_value(layer.weight);
            let layer = g.label(id);
            if let Some(planned) = planned {
                cx.remarks.push(Remark::Rounded(crate::core::pass::Rounded {
                    layer: layer.clone(),
                    method: planned.by.name().into(),
                    factors: calibrated.divided.contains(&id),
                    error: planned.error,
                }));
            }
            cx.remarks.push(Remark::Quantized { layer });
            self.quantized += 1;
        }
        Ok(())
    }

    /// Scales weights and what they are multiplied by where that lowers the error; gives what is known of what the layers read
    /// then.
    fn scaled<'p>(
        &mut self,
        g: &mut Graph,
        stats: &Stats,
        plans: &'p Plans,
        cx: &mut Context<'_>,
    ) -> Result<Calibrated<'p>, PassFailure> {
        let mut groups: Vec<(ValueId, Vec<Product>)> = Vec::new();
        for id in g.topo_order()? {
            let Some(Ok(product)) = Linear::of(g, id) else {
                continue;
            };
            let block = layer(g, id, cx)
                .and_then(Result::ok)
                .map(|(_, block)| block);
            let product = Product {
                layer: product,
                block,
            };
            match groups.iter_mut().find(|(x, _)| *x == product.layer.input) {
                Some((_, group)) => group.push(product),
                None => groups.push((product.layer.input, vec![product])),
            }
        }
        let mut out = Calibrated::default();
        for (x, group) in groups {
            let planned = plans.get(&x);
            let found = match planned {
                Some(plan) => Some(plan.moments.clone()),
                None => stats.get(&x).and_then(TensorStats::channel_moments),
            };
            let Some(found) = found else { continue };
            let any = group.iter().any(|p| p.block.is_some());
            let made;
            let factors = match (any && !self.refused, planned) {
                (false, _) => None,
                (true, Some(plan)) => plan.factors.as_ref(),
                (true, None) => {
                    made = awq::plan(g, x, &group, Rounding::Int4, &found);
                    made.as_ref()
                }
            };
            let scaled = factors.and_then(|plan| {
                let admitted = cx.admit(NAME, || format!("factors of {}", g.value(x).name()));
                self.refused |= !admitted;
                admitted.then(|| awq::apply(g, plan, &group, &found, NAME))?
            });
            // Numbers are those of weights with the plan's factors.
            if let Some(plan) = planned
                && scaled.is_some() == plan.factors.is_some()
            {
                out.planned
                    .extend(plan.layers.iter().map(|(id, r)| (*id, r)));
                let divided = plan.layers.keys().filter(|_| scaled.is_some());
                out.divided.extend(divided.copied());
            }
            let (x, found) = scaled.unwrap_or((x, found));
            out.moments.insert(x, found);
        }
        Ok(out)
    }
}

/// What calibration says of the layers of a graph.
#[derive(Default)]
struct Calibrated<'p> {
    moments: Moments,
    planned: FxHashMap<NodeId, &'p Rounded>,
    /// Layers whose input is divided by factors.
    divided: FxHashSet<NodeId>,
}

/// The mean squares of each channel of values.
type Moments = FxHashMap<ValueId, Vec<f64>>;

/// Errors of rows are weighed by what calibration found them to be multiplied by. A weight that several nodes read takes that
/// of the first.
fn numbers(g: &Graph, layer: &Linear, block: usize, moments: &Moments) -> Result<Quantized, Unfit> {
    let weight = layer.matrix(g).ok_or(Unfit::Type)?;
    let moments = moments.get(&layer.input);
    let moments = moments.filter(|m| m.len() == layer.rows);
    weights::quantize(&weight, Rounding::Int4, block, moments.map(Vec::as_slice))
}

/// A DequantizeLinear of the numbers; gives its result, [K, N] of the weight's type.
fn dequantized(g: &mut Graph, layer: &Linear, block: usize, numbers: Quantized) -> ValueId {
    let name = g.value(layer.weight).name().to_string();
    let dims = numbers.values.dims().iter().map(|&d| Dim::Known(d));
    let ty = Type::tensor(numbers.scales.dtype(), Some(dims.collect()));
    let values = g.add_constant(&format!("{name}_int4"), numbers.values);
    let scales = g.add_constant(&format!("{name}_scale"), numbers.scales);
    let attrs = Attrs::new()
        .with("axis", 0i64)
        .with("block_size", block as i64);
    let zeros = (numbers.zeros).map(|zeros| g.add_constant(&format!("{name}_zero_point"), zeros));
    let inputs = [Some(values), Some(scales)]
        .into_iter()
        .chain(zeros.map(Some));
    let output = format!("{name}_dequantized");
    let op = Op::onnx("DequantizeLinear");
    let id = g.add_node_named(op, "", inputs, &[Some(&output)], attrs);
    g.notes_mut(id).set("kiln.pass", NAME.into());
    let made = g.node(id).output(0).unwrap_or(layer.weight);
    g.set_type(made, ty);
    made
}
