//! Linear layers in 8 bits: what INT8 and FP8 have in common.

use kiln_graph::{DType, Graph, Model, NodeId, Tensor, ValueId, opset};
use rustc_hash::FxHashMap;

use super::compensate::{Compensation, Without};
use super::conv::{self, Conv};
use super::level::Levelled;
use super::projections::Projections;
use super::qdq::{Weight, Writer};
use super::reading::{self, Form, Reading};
use super::results;
use super::weighed::{Matrix, Operand};
use crate::core::pass::{Activation, Context, OUT_OF_TOLERANCE, PassFailure, Remark};
use crate::precision::calibrated::ranges::{self, Choice};
use crate::precision::calibrated::stats::TensorStats;
use crate::precision::linear::{self, Linear};
use crate::precision::numbers::format::Format;
use crate::precision::numbers::weights::{self, Rounding, to_f32s};

/// Fewer rows or columns save nothing that would show (ModelOpt leaves the same).
const MIN_SIZE: usize = 16;

/// The inputs of all linear layers, and what convolutions read and give, that 8 bits could be for: the values of the
/// outermost graph that a calibration is asked for.
pub fn wanted(model: &Model) -> Vec<ValueId> {
    let g = &model.graph;
    let layers = g.nodes().filter_map(|(id, _)| Linear::of(g, id)?.ok());
    let convs = g.nodes().filter_map(|(id, _)| Conv::of(g, id)?.ok());
    let all = (layers.map(|l| l.input)).chain(convs.flat_map(|c| [c.layer.input, c.end]));
    linear::floats(g, all)
}

/// What layers become.
#[derive(Clone, Copy, Debug)]
pub(in crate::precision) struct Quantizer {
    pub pass: &'static str,
    pub weight: Rounding,
    pub activation: Form,
    /// The operator set that the written operators need.
    pub since: i64,
}

/// What chooses the range of an activation that is quantized dynamically.
const EACH_RUN: &str = "each run";
const NOT_FP32: &str = "only products in FP32 are quantized";
const NO_RANGES: &str = "its input has no ranges";

/// Whether a user, a search or the size speaks against quantizing a layer.
fn fits(g: &Graph, layer: &Linear, cx: &Context<'_>) -> Result<(), String> {
    let Linear { rows, columns, .. } = *layer;
    if let Some(why) = cx.options.keeps(g, layer.node) {
        return Err(why);
    }
    if cx.options.spared.contains(&g.label(layer.node)) {
        return Err(OUT_OF_TOLERANCE.into());
    }
    match rows < MIN_SIZE || columns < MIN_SIZE {
        true => Err(format!(
            "its weight [{rows}, {columns}] is too small to gain"
        )),
        false => Ok(()),
    }
}

/// A convolution and how its numbers are rounded.
struct Rounded {
    conv: Conv,
    /// `None` if the input is rounded already.
    input: Option<Choice>,
    /// Where the target wants the result rounded too.
    result: Option<Choice>,
    format: Format,
}

impl Rounded {
    /// The weight and the bias in integers.
    fn prepared(&self, g: &Graph) -> Result<(Weight, Option<(Tensor, Tensor)>), String> {
        let weight = self.conv.quantized(g).map_err(|why| why.to_string())?;
        let bias = match self.result {
            Some(_) => (self.conv).bias(g, &weight, self.input.as_ref(), self.format)?,
            None => None,
        };
        Ok((weight, bias))
    }

    fn write(
        &self,
        g: &mut Graph,
        pass: &'static str,
        (weight, bias): (Weight, Option<(Tensor, Tensor)>),
    ) {
        let (input, result) = (self.input.as_ref(), self.result.as_ref());
        self.conv
            .write(g, pass, (&weight, bias), input, result, self.format);
    }
}

/// What earlier groups changed for later ones.
#[derive(Default)]
struct State {
    /// What stands for the results of layers that are quantized already.
    written: FxHashMap<ValueId, ValueId>,
    levelled: Levelled,
}

/// Layers that read the same value.
struct Group {
    input: ValueId,
    layers: Vec<Linear>,
}

impl Group {
    /// The layers as they are now, reading `input`: weights of output projections may have become others.
    fn now(&self, g: &Graph, input: ValueId) -> Vec<Linear> {
        let again = |l: &Linear| Linear::of(g, l.node).and_then(Result::ok).unwrap_or(*l);
        let layers = self.layers.iter().map(again);
        layers.map(|l| Linear { input, ..l }).collect()
    }
}

impl Quantizer {
    pub fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        if matches!(self.activation, Form::Static(_)) && cx.options.stats.is_empty() {
            return Err(PassFailure::Nothing(
                "there are no ranges of activations: static quantization takes calibration".into(),
            ));
        }
        let g = &model.graph;
        let any = g.nodes().any(|(id, _)| {
            matches!(self.layer(g, id, cx), Some(Ok(_)))
                || matches!(self.conv(g, id, cx), Some(Ok(_)))
        });
        let from = model.graph.opset();
        if any && from < self.since {
            let since = self.since;
            if !cx.admit(self.pass, || format!("operator set {from} to {since}")) {
                return Ok(0);
            }
            opset::convert(model, since)?;
        }
        let g = &mut model.graph;
        let (groups, refused) = self.groups(g, cx)?;
        let mut quantized = 0;
        let mut state = State::default();
        for group in &groups {
            quantized += self.group(g, group, &mut state, cx);
        }
        // After linear layers, whose ranges are those of values that this replaces.
        let refused = !self.convolutions(g, &mut quantized, cx)? || refused;
        nested(g, cx);
        if quantized == 0 && !refused && !cx.is_exhausted() {
            return Err(PassFailure::Nothing(format!(
                "no layer was quantized to {}: the model has no linear layer or convolution that is large enough, or all must keep \
                 their precision",
                self.weight.format().dtype()
            )));
        }
        Ok(quantized)
    }

    /// Layers by what they read, in the graph's order, and whether a limit stopped before the last.
    fn groups(&self, g: &Graph, cx: &mut Context<'_>) -> Result<(Vec<Group>, bool), PassFailure> {
        let mut groups: Vec<Group> = Vec::new();
        let mut places: FxHashMap<ValueId, usize> = FxHashMap::default();
        for id in g.topo_order()? {
            let layer = match self.layer(g, id, cx) {
                None => continue,
                Some(Ok(layer)) => layer,
                Some(Err(why)) => {
                    cx.kept(g, id, why);
                    continue;
                }
            };
            if !cx.admit(self.pass, || g.label(id)) {
                return Ok((groups, true));
            }
            let place = *places.entry(layer.input).or_insert_with(|| {
                groups.push(Group {
                    input: layer.input,
                    layers: Vec::new(),
                });
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(place) {
                group.layers.push(layer);
            }
        }
        Ok((groups, false))
    }

    /// The layer of a node, or why it keeps its precision; `None` if it is none.
    fn layer(&self, g: &Graph, id: NodeId, cx: &Context<'_>) -> Option<Result<Linear, String>> {
        let fit = |layer: Linear| {
            let Linear { rows, .. } = layer;
            fits(g, &layer, cx)?;
            let weight = g.constant(layer.weight).map(Tensor::dtype);
            let input = g.value(layer.input).ty();
            if weight != Some(DType::F32) || input.dtype() != Some(DType::F32) {
                return Err(NOT_FP32.into());
            }
            if input.rank().is_none_or(|rank| rank < 2) {
                return Err("its input is no matrix".into());
            }
            if layer.is_scaled(g) {
                return Err("it scales or transposes an operand".into());
            }
            let Form::Static(_) = self.activation else {
                return Ok(layer);
            };
            match cx.options.stats.get(&layer.input) {
                None => Err(NO_RANGES.into()),
                Some(s) if s.finite() < s.count => Err("its input is not always finite".into()),
                Some(s) if s.rows == 0 || s.channel_absmax.len() != rows => {
                    Err("its input has no ranges for each channel".into())
                }
                Some(s) if s.absmax == 0.0 => Err("its input is always zero".into()),
                Some(_) => Ok(layer),
            }
        };
        Some(Linear::of(g, id)?.and_then(fit))
    }

    /// The convolution of a node, or why it keeps its precision; `None` if it is none.
    fn conv(&self, g: &Graph, id: NodeId, cx: &Context<'_>) -> Option<Result<Rounded, String>> {
        let fit = |conv: Conv| {
            let layer = &conv.layer;
            fits(g, layer, cx)?;
            let format = match (self.activation, self.weight) {
                (Form::Static(format), Rounding::Int8) => format,
                (Form::Dynamic, _) => {
                    return Err(
                        "integer convolutions of dynamic ranges are slower than float ones".into(),
                    );
                }
                _ => return Err("convolutions are quantized to INT8 only".into()),
            };
            let weight = g.constant(layer.weight).map(Tensor::dtype);
            let all = [layer.input, conv.end].map(|v| g.value(v).ty().dtype());
            if weight != Some(DType::F32) || all != [Some(DType::F32); 2] {
                return Err(NOT_FP32.into());
            }
            let range = |v: ValueId, what: &str| {
                let stats = cx.options.stats.get(&v).ok_or(NO_RANGES)?;
                let choice = ranges::whole(stats, format);
                let choice = choice.ok_or(format!("its {what} is not always finite, or zero"))?;
                match choice.noise <= ranges::ENOUGH {
                    true => Ok(choice),
                    false => Err(format!(
                        "few steps of one scale would be left for most of its {what}"
                    )),
                }
            };
            let input = match conv::dequantized(g, layer.input) {
                Some(_) => None,
                None => Some(range(layer.input, "input")?),
            };
            let rounds = cx.target.facts.quantizes_results_of_conv;
            if rounds && g.value(conv.end).is_output() {
                return Err("its result is the model's, which is not rounded".into());
            }
            let result = match rounds {
                true => Some(range(conv.end, "result")?),
                false => None,
            };
            Ok(Rounded {
                conv,
                input,
                result,
                format,
            })
        };
        Some(Conv::of(g, id)?.and_then(fit))
    }

    /// Quantizes convolutions in the graph's order; false where a limit stopped before the last.
    fn convolutions(
        &self,
        g: &mut Graph,
        quantized: &mut usize,
        cx: &mut Context<'_>,
    ) -> Result<bool, PassFailure> {
        for id in g.topo_order()? {
            let found = match self.conv(g, id, cx) {
                None => continue,
                Some(Ok(found)) => found,
                Some(Err(why)) => {
                    cx.kept(g, id, why);
                    continue;
                }
            };
            let prepared = match found.prepared(g) {
                Ok(prepared) => prepared,
                Err(why) => {
                    cx.kept(g, id, why);
                    continue;
                }
            };
            let label = g.label(id);
            if !cx.admit(self.pass, || label.clone()) {
                return Ok(false);
            }
            let read = ranges_remark(g, &found.conv.layer, found.input.as_ref(), None);
            found.write(g, self.pass, prepared);
            *quantized += 1;
            cx.remarks.push(Remark::Quantized { layer: label });
            cx.remarks.extend(read);
        }
        Ok(true)
    }

    /// Quantizes the layers of a group, whose input may be the result of an earlier one.
    fn group(
        &self,
        g: &mut Graph,
        group: &Group,
        state: &mut State,
        cx: &mut Context<'_>,
    ) -> usize {
        let input = state.written.get(&group.input);
        let input = input.copied().unwrap_or(group.input);
        let mut layers = group.now(g, input);
        let mut matrices: Vec<Option<Vec<f32>>> = (layers.iter())
            .map(|l| l.matrix(g).and_then(|m| to_f32s(&m)))
            .collect();
        let projections = self.projections(g, &layers, cx);
        let known = (&state.levelled, projections.as_ref());
        let reading = self.reading(g, group, (&mut layers, &mut matrices), known, cx);
        let choice = &reading.choice;
        let behind = cx.target.facts.scales_columns_behind;
        if let (Some(projections), Some(_)) = (&projections, &reading.freed) {
            let matrix = matrices.first_mut().and_then(Option::take);
            let of = (&layers[..], projections, &reading);
            let seen = (group.input, &mut state.levelled);
            return self.level(g, of, matrix, seen, cx);
        }
        let wide = self.wide_rows((group.input, &layers), &matrices, &reading, &state.levelled);
        let outliers = choice.as_ref().map_or(&[][..], |c| &c.outliers);
        let outliers = wide.as_deref().unwrap_or(outliers);
        let compensation = self.compensation(
            g,
            (group, &layers),
            (&reading, outliers),
            &state.levelled,
            cx,
        );
        let mut activation = None;
        let mut done = 0;
        for (k, (layer, matrix)) in layers.iter().zip(matrices).enumerate() {
            let input = Operand {
                outliers,
                rounds_apart: wide.is_some(),
                moments: reading.moments.as_deref(),
                means: reading
                    .means
                    .as_deref()
                    .filter(|_| self.weight == Rounding::Int8),
                behind: choice.as_ref().map(|c| c.hi.max(-c.lo)).filter(|_| behind),
            };
            let matrix = matrix.ok_or(weights::Unfit::Type);
            let matrix = matrix.and_then(|m| Matrix::of(layer, m, self.weight, &input));
            let weight = matrix.and_then(|m| Ok((m.nearest()?, m)));
            let (mut weight, matrix) = match weight {
                Ok(weight) => weight,
                Err(why) => {
                    cx.kept(g, layer.node, why.to_string());
                    continue;
                }
            };
            let mut offset = self.offset(g, layer, reading.given_back(k, &weight), &weight);
            let results = self.results(g, group, (layer, &state.levelled), cx);
            let known = (offset.as_deref(), input.moments);
            let handed = results.and_then(|s| results::handed(g, layer, s, &weight, known));
            let mut scale = handed.as_ref().map(|h| h.scale);
            let coarser = handed.as_ref().map_or(&[][..], |h| &h.coarser);
            if let Some(Ok(other)) = matrix.rounded_anew(coarser, compensation.as_ref()) {
                scale = handed.and_then(|h| h.with(&weight, &other));
                weight = other;
                offset = self.offset(g, layer, reading.given_back(k, &weight), &weight);
            }
            let mut write = Writer {
                g,
                pass: self.pass,
                layer: *layer,
            };
            let product = match (choice, self.activation) {
                (Some(choice), Form::Static(format)) => {
                    let x = *activation.get_or_insert_with(|| write.activation(choice, format));
                    write.product(x, weight, scale)
                }
                (_, Form::Dynamic) => {
                    let x = *activation.get_or_insert_with(|| write.dynamic(outliers));
                    write.integer_product(x, weight)
                }
                _ => continue,
            };
            let finished = write.finish(product, offset.as_deref());
            state.written.extend(finished);
            done += 1;
            let label = g.label(layer.node);
            cx.remarks.push(Remark::Quantized { layer: label });
            let mut read = ranges_remark(g, layer, choice.as_ref(), reading.smoothing);
            if let (Form::Dynamic, Some(Remark::Ranged(range))) = (self.activation, &mut read) {
                range.method = EACH_RUN.into();
            }
            cx.remarks.extend(read);
            g.remove_node(layer.node);
            g.remove_unused_value(layer.weight);
        }
        done
    }

    fn reading(
        &self,
        g: &mut Graph,
        group: &Group,
        (layers, matrices): (&mut [Linear], &mut [Option<Vec<f32>>]),
        (levelled, projections): (&Levelled, Option<&Projections>),
        cx: &Context<'_>,
    ) -> Reading {
        let Some(stats) = levelled.stats(cx.options.stats, group.input) else {
            return Reading::default();
        };
        let how = reading::How {
            form: self.activation,
            joins: cx.target.facts.joins_elementwise,
            projections,
            pass: self.pass,
        };
        reading::of(g, stats, layers, matrices, how)
    }

    /// What was seen of a layer's results, if it may write them in INT8. Products of one input become one, which writes all or nothing
    /// in bytes.
    fn results<'s>(
        &self,
        g: &Graph,
        group: &Group,
        (layer, levelled): (&Linear, &'s Levelled),
        cx: &Context<'s>,
    ) -> Option<&'s TensorStats> {
        let int8 = matches!(self.activation, Form::Static(Format::Int8));
        let may = int8 && cx.target.facts.writes_bytes && group.layers.len() == 1;
        let y = g.node(layer.node).output(0).filter(|_| may)?;
        levelled.stats(cx.options.stats, y)
    }

    /// What errors of the layers' weights cost, if it is known.
    fn compensation<'s>(
        &self,
        g: &Graph,
        (group, layers): (&Group, &[Linear]),
        (reading, outliers): (&Reading, &[usize]),
        levelled: &Levelled,
        cx: &Context<'s>,
    ) -> Option<Compensation<'s>> {
        let int8 = self.weight == Rounding::Int8 && matches!(self.activation, Form::Static(_));
        let stats = cx.options.stats.get(&group.input).filter(|_| int8)?;
        // What rounding takes from the means is given back.
        let biased = layers.iter().all(|l| results::bias(g, l).is_some());
        let without = match reading.gives_back() || biased {
            true => Without::Means,
            false => Without::Nothing,
        };
        let factors = levelled.factors(group.input, &reading.factors);
        let of = (cx.options.grams, group.input);
        Compensation::of(of, stats, without, factors, outliers)
    }

    /// What the columns of a layer get back behind the product. What rounding the weights takes from the means of the columns is
    /// given back where a bias is added anyway.
    fn offset(
        &self,
        g: &Graph,
        layer: &Linear,
        offset: Option<Vec<f64>>,
        weight: &Weight,
    ) -> Option<Vec<f64>> {
        let lost = (weight.lost.as_ref())
            .filter(|_| offset.is_some() || results::bias(g, layer).is_some());
        match (offset, lost) {
            (Some(offset), Some(lost)) => {
                Some(offset.iter().zip(lost).map(|(a, b)| a + b).collect())
            }
            (offset, lost) => offset.or_else(|| lost.cloned()),
        }
    }
}

pub(super) fn ranges_remark(
    g: &Graph,
    layer: &Linear,
    choice: Option<&Choice>,
    smoothing: Option<&'static str>,
) -> Option<Remark> {
    let choice = choice?;
    Some(Remark::Ranged(Activation {
        value: g.value(layer.input).name().to_string(),
        lo: choice.lo,
        hi: choice.hi,
        method: choice.by.name().into(),
        outliers: choice.outliers.len(),
        smoothing: smoothing.map(Into::into),
        noise: choice.noise,
    }))
}

/// Layers in bodies of control flow have no ranges.
fn nested(g: &Graph, cx: &mut Context<'_>) {
    g.for_each_graph(&mut |inner| {
        if std::ptr::eq(inner, g) {
            return;
        }
        for (id, _) in inner.nodes() {
            if matches!(Linear::of(inner, id), Some(Ok(_))) {
                cx.kept(inner, id, "it is in the body of another node".into());
            }
        }
    });
}
