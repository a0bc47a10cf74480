//! Linear layers in 8 bits: what INT8 and FP8 have in common.

use kiln_graph::{Attrs, DType, Dim, Graph, Model, NodeId, Op, Tensor, Type, ValueId, ops, opset};
use rustc_hash::FxHashMap;

use super::linear::Linear;
use super::ranges::{self, Choice};
use super::smooth::{self, Smooth};
use super::stats::Scheme;
use super::weights::{self, Format, to_f32s};
use crate::pass::{Activation, Context, OUT_OF_TOLERANCE, PassFailure, Remark};

/// Fewer rows or columns save nothing that would show (ModelOpt leaves the same).
const MIN_SIZE: usize = 16;

/// The inputs of all linear layers that 8 bits could be for: the values of the outermost graph that a calibration is
/// asked for.
pub fn wanted(model: &Model) -> Vec<ValueId> {
    let g = &model.graph;
    let layers = g.nodes().filter_map(|(id, _)| Linear::of(g, id)?.ok());
    let float = |v: &ValueId| {
        matches!(g.value(*v).ty().dtype(), Some(DType::F32 | DType::F16))
            && g.constant(*v).is_none()
    };
    let mut all: Vec<ValueId> = layers.map(|l| l.input).filter(float).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// What layers become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantizer {
    pub pass: &'static str,
    pub weight: Format,
    pub activation: Form,
    /// The operator set that the written operators need.
    pub since: i64,
}

/// How activations are quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// By ranges that were measured before.
    Static(Scheme),
    /// UINT8, by the range of each run.
    Dynamic,
}

/// Layers that read the same value.
struct Group {
    input: ValueId,
    layers: Vec<Linear>,
}

impl Quantizer {
    pub fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        if matches!(self.activation, Form::Static(_)) && cx.options.stats.is_empty() {
            return Err(PassFailure::Nothing(
                "there are no ranges of activations: static quantization takes calibration".into(),
            ));
        }
        let any = (model.graph.nodes())
            .any(|(id, _)| matches!(self.layer(&model.graph, id, cx), Some(Ok(_))));
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
        for group in &groups {
            quantized += self.group(g, group, cx);
        }
        nested(g, cx);
        if quantized == 0 && !refused {
            return Err(PassFailure::Nothing(format!(
                "no layer was quantized to {}: the model has no linear layer that is large enough, or all must keep \
                 their precision",
                self.weight.dtype()
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
            let Linear { rows, columns, .. } = layer;
            if let Some(why) = cx.options.keeps(g, id) {
                return Err(why);
            }
            if cx.options.spared.contains(&g.label(id)) {
                return Err(OUT_OF_TOLERANCE.into());
            }
            if rows < MIN_SIZE || columns < MIN_SIZE {
                return Err(format!(
                    "its weight [{rows}, {columns}] is too small to gain"
                ));
            }
            let weight = g.constant(layer.weight).map(Tensor::dtype);
            let input = g.value(layer.input).ty();
            if weight != Some(DType::F32) || input.dtype() != Some(DType::F32) {
                return Err("only products in FP32 are quantized".into());
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
                None => Err("its input has no ranges".into()),
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

    fn group(&self, g: &mut Graph, group: &Group, cx: &mut Context<'_>) -> usize {
        let mut layers = group.layers.clone();
        let mut matrices: Vec<Option<Vec<f32>>> = (group.layers.iter())
            .map(|l| l.matrix(g).and_then(|m| to_f32s(&m)))
            .collect();
        let (mut choice, mut moments, mut smoothing) = (None, None, None);
        if let (Form::Static(scheme), Some(stats)) =
            (self.activation, cx.options.stats.get(&group.input))
        {
            let gains = gains(&group.layers, &matrices, stats.channel_absmax.len());
            choice = ranges::choose(stats, scheme, &gains);
            moments = stats.channel_moments();
            let readers = smooth::Readers {
                layers: &layers,
                matrices: &matrices,
                gains: &gains,
            };
            let norm = smooth::norm(g, group.input, &layers);
            let found = choice
                .as_ref()
                .and_then(|plain| smooth::choose(stats, scheme, &readers, plain, norm.is_some()));
            if let Some(Smooth {
                factors,
                choice: smoothed,
            }) = found
                && let Some(x) = smooth::apply(g, group.input, norm, &factors, self.pass)
            {
                choice = Some(smoothed);
                smoothing = Some(if norm.is_some() { "norm" } else { "mul" });
                for (layer, matrix) in layers.iter_mut().zip(matrices.iter_mut().flatten()) {
                    layer.input = x;
                    for (row, s) in matrix.chunks_mut(layer.columns.max(1)).zip(&factors) {
                        row.iter_mut().for_each(|v| *v *= s);
                    }
                }
                let scaled = moments.iter_mut().flatten().zip(&factors);
                scaled.for_each(|(m, s)| *m /= f64::from(s * s));
            }
        }
        let mut activation = None;
        let mut done = 0;
        for (layer, matrix) in layers.iter().zip(matrices) {
            let outliers = choice.as_ref().map_or(&[][..], |c| &c.outliers);
            let weight = matrix.ok_or(weights::Unfit::Type);
            let weight = weight.and_then(|m| self.weight(layer, m, outliers, moments.as_deref()));
            let weight = match weight {
                Ok(weight) => weight,
                Err(why) => {
                    cx.kept(g, layer.node, why.to_string());
                    continue;
                }
            };
            let mut write = Writer {
                g,
                pass: self.pass,
                layer: *layer,
            };
            let product = match (&choice, self.activation) {
                (Some(choice), Form::Static(scheme)) => {
                    let x = *activation.get_or_insert_with(|| write.activation(choice, scheme));
                    write.product(x, weight)
                }
                (None, Form::Dynamic) => {
                    let x = *activation.get_or_insert_with(|| write.dynamic());
                    write.integer_product(x, weight)
                }
                _ => continue,
            };
            write.finish(product);
            done += 1;
            let label = g.label(layer.node);
            cx.remarks.push(Remark::Quantized { layer: label });
            let read = ranges_remark(g, layer, choice.as_ref(), smoothing);
            cx.remarks.extend(read);
            g.remove_node(layer.node);
            g.remove_unused_value(layer.weight);
        }
        done
    }

    fn weight(
        &self,
        layer: &Linear,
        mut matrix: Vec<f32>,
        outliers: &[usize],
        moments: Option<&[f64]>,
    ) -> Result<Weight, weights::Unfit> {
        let Linear { rows, columns, .. } = *layer;
        let mut apart = Vec::with_capacity(outliers.len() * columns);
        for &row in outliers {
            let row = matrix
                .get_mut(row * columns..(row + 1) * columns)
                .ok_or(weights::Unfit::Moments)?;
            apart.extend_from_slice(row);
            row.fill(0.0);
        }
        let tensor = |dims: &[usize], values: &[f32]| {
            Tensor::from_values(dims, values).map_err(|_| weights::Unfit::Type)
        };
        let whole = tensor(&[rows, columns], &matrix)?;
        let found = weights::quantize(&whole, self.weight, rows, moments)?;
        let scales = found.scales.reshaped(&[columns][..]);
        let indices: Vec<i64> = outliers.iter().map(|&j| j as i64).collect();
        Ok(Weight {
            values: found.values,
            scales: scales.map_err(|_| weights::Unfit::Type)?,
            apart: match outliers.is_empty() {
                true => None,
                false => Some((
                    Tensor::vector(&indices),
                    tensor(&[outliers.len(), columns], &apart)?,
                )),
            },
        })
    }
}

/// A quantized weight.
struct Weight {
    /// [K, N].
    values: Tensor,
    /// [N].
    scales: Tensor,
    /// Rows that are multiplied apart: which, and their floats.
    apart: Option<(Tensor, Tensor)>,
}

/// The squared norm of each row of all weights that a value is multiplied by.
fn gains(layers: &[Linear], matrices: &[Option<Vec<f32>>], rows: usize) -> Vec<f64> {
    let mut gains = vec![0f64; rows];
    for (layer, matrix) in layers.iter().zip(matrices) {
        let Some(matrix) = matrix else { continue };
        for (gain, row) in gains.iter_mut().zip(matrix.chunks(layer.columns.max(1))) {
            *gain += row.iter().map(|v| f64::from(v * v)).sum::<f64>();
        }
    }
    gains
}

fn ranges_remark(
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
        method: choice.by.name(),
        outliers: choice.outliers.len(),
        smoothing,
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

/// A quantized activation: its numbers, scale and zero point, and the dequantized value where there is one.
#[derive(Clone, Copy)]
struct Quantized {
    values: Option<ValueId>,
    scale: Option<ValueId>,
    zero: Option<ValueId>,
    wide: Option<ValueId>,
}

struct Writer<'g> {
    g: &'g mut Graph,
    pass: &'static str,
    layer: Linear,
}

impl Writer<'_> {
    fn node(
        &mut self,
        op: &str,
        inputs: &[Option<ValueId>],
        name: &str,
        attrs: Attrs,
    ) -> Option<ValueId> {
        self.nodes(op, inputs, &[name], attrs)[0]
    }

    fn nodes<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[Option<ValueId>],
        names: &[&str; N],
        attrs: Attrs,
    ) -> [Option<ValueId>; N] {
        let outputs = names.map(Some);
        let inputs = inputs.iter().copied();
        let id = self
            .g
            .add_node_named(Op::onnx(op), "", inputs, &outputs, attrs);
        self.g.notes_mut(id).set("kiln.pass", self.pass.into());
        std::array::from_fn(|k| self.g.node(id).output(k))
    }

    fn typed(&mut self, v: Option<ValueId>, like: ValueId, dtype: DType) {
        if let Some(v) = v {
            let shape = self.g.value(like).ty().shape().map(|s| s.into());
            self.g.set_type(v, Type::tensor(dtype, shape));
        }
    }

    /// Quantize and dequantize the layer's input. Zero points are written out: ONNX takes a missing one for UINT8, TensorRT
    /// for INT8.
    fn activation(&mut self, choice: &Choice, scheme: Scheme) -> Quantized {
        let x = self.layer.input;
        let name = self.g.value(x).name().to_string();
        let (scale, zero, dtype) = parameters(choice, scheme);
        let scale = self.g.add_constant(&format!("{name}_scale"), scale);
        let zero = self.g.add_constant(&format!("{name}_zero_point"), zero);
        let parameters = [Some(scale), Some(zero)];
        let q = self.node(
            "QuantizeLinear",
            &[Some(x), parameters[0], parameters[1]],
            &format!("{name}_quantized"),
            Attrs::new(),
        );
        self.typed(q, x, dtype);
        let wide = self.node(
            "DequantizeLinear",
            &[q, parameters[0], parameters[1]],
            &format!("{name}_dequantized"),
            Attrs::new(),
        );
        self.typed(wide, x, DType::F32);
        Quantized {
            values: q,
            scale: parameters[0],
            zero: parameters[1],
            wide,
        }
    }

    fn dynamic(&mut self) -> Quantized {
        let x = self.layer.input;
        let name = self.g.value(x).name().to_string();
        let names = ["quantized", "scale", "zero_point"].map(|s| format!("{name}_{s}"));
        let names = [&names[0][..], &names[1][..], &names[2][..]];
        let [values, scale, zero] =
            self.nodes("DynamicQuantizeLinear", &[Some(x)], &names, Attrs::new());
        self.typed(values, x, DType::U8);
        Quantized {
            values,
            scale,
            zero,
            wide: None,
        }
    }

    /// The values, scales and zero points of a weight.
    fn weight(&mut self, weight: &Weight) -> [Option<ValueId>; 3] {
        let name = self.g.value(self.layer.weight).name().to_string();
        let zeros = vec![0u8; self.layer.columns];
        let zeros = Tensor::from_raw(
            weight.values.dtype(),
            &[self.layer.columns][..],
            zeros.into(),
        )
        .ok();
        let mut add = |suffix: &str, t: Tensor| self.g.add_constant(&format!("{name}_{suffix}"), t);
        [
            Some(add("quantized", weight.values.clone())),
            Some(add("scale", weight.scales.clone())),
            zeros.map(|z| add("zero_point", z)),
        ]
    }

    /// Floats, of numbers that were quantized: what TensorRT and ONNX Runtime take for a product of integers.
    fn product(&mut self, x: Quantized, weight: Weight) -> Option<ValueId> {
        let parts = self.weight(&weight);
        let name = self.g.value(self.layer.weight).name().to_string();
        let axis = Attrs::new().with("axis", 1i64);
        let w = self.node(
            "DequantizeLinear",
            &parts,
            &format!("{name}_dequantized"),
            axis,
        );
        let dims = [self.layer.rows, self.layer.columns].map(Dim::Known);
        if let Some(w) = w {
            self.g
                .set_type(w, Type::tensor(DType::F32, Some(dims.to_vec().into())));
        }
        let output = self.output_name();
        let product = self.matmul(&[x.wide, w], &format!("{output}_product"));
        self.with_outliers(product, weight.apart)
    }

    /// MatMulInteger, and its integers as floats.
    fn integer_product(&mut self, x: Quantized, weight: Weight) -> Option<ValueId> {
        let [values, scales, zeros] = self.weight(&weight);
        let output = self.output_name();
        let none = Attrs::new;
        let sum = self.node(
            "MatMulInteger",
            &[x.values, values, x.zero, zeros],
            &format!("{output}_integers"),
            none(),
        );
        let to = Attrs::new().with("to", i64::from(DType::F32.to_onnx()));
        let wide = self.node("Cast", &[sum], &format!("{output}_floats"), to);
        let scale = self.node(
            "Mul",
            &[x.scale, scales],
            &format!("{output}_scale"),
            none(),
        );
        let product = self.node("Mul", &[wide, scale], &format!("{output}_product"), none());
        self.with_outliers(product, weight.apart)
    }

    fn output_name(&self) -> String {
        let output = self.g.node(self.layer.node).output(0);
        output.map_or(String::new(), |v| self.g.value(v).name().to_string())
    }

    fn matmul(&mut self, inputs: &[Option<ValueId>], name: &str) -> Option<ValueId> {
        let made = self.node("MatMul", inputs, name, Attrs::new());
        self.like_output(made);
        made
    }

    fn like_output(&mut self, v: Option<ValueId>) {
        if let Some(output) = self.g.node(self.layer.node).output(0) {
            self.typed(v, output, DType::F32);
        }
    }

    fn with_outliers(
        &mut self,
        product: Option<ValueId>,
        apart: Option<(Tensor, Tensor)>,
    ) -> Option<ValueId> {
        let Some((indices, rows)) = apart else {
            return product;
        };
        let output = self.output_name();
        let name = self.g.value(self.layer.input).name().to_string();
        let indices = self.g.add_constant(&format!("{name}_outliers"), indices);
        let rows = self.g.add_constant(&format!("{output}_outlier_rows"), rows);
        let last = Attrs::new().with("axis", -1i64);
        let x = self.node(
            "Gather",
            &[Some(self.layer.input), Some(indices)],
            &format!("{name}_outlier_channels"),
            last,
        );
        let apart = self.matmul(&[x, Some(rows)], &format!("{output}_outliers"));
        let sum = self.node(
            "Add",
            &[product, apart],
            &format!("{output}_sum"),
            Attrs::new(),
        );
        self.like_output(sum);
        sum
    }

    /// The product instead of the layer's result. A Gemm adds its bias.
    fn finish(&mut self, product: Option<ValueId>) {
        let node = self.layer.node;
        let (Some(mut product), Some(output)) = (product, self.g.node(node).output(0)) else {
            return;
        };
        let bias = ops::Gemm::of(self.g, node).and_then(|gemm| gemm.c());
        if bias.is_some() {
            let name = self.output_name();
            let sum = self.node(
                "Add",
                &[Some(product), bias],
                &format!("{name}_biased"),
                Attrs::new(),
            );
            self.like_output(sum);
            product = sum.unwrap_or(product);
        }
        self.g.replace_uses(output, product);
    }
}

/// Scale, zero point and dtype of an activation.
fn parameters(choice: &Choice, scheme: Scheme) -> (Tensor, Tensor, DType) {
    let (lo, hi) = (f64::from(choice.lo.min(0.0)), f64::from(choice.hi.max(0.0)));
    let most = hi.max(-lo);
    let usable = |s: f64| {
        if s >= f64::from(f32::MIN_POSITIVE) {
            s
        } else {
            1.0
        }
    };
    match scheme {
        Scheme::Asymmetric { .. } => {
            let scale = usable((hi - lo) / 255.0);
            let zero = (-lo / scale).round_ties_even().clamp(0.0, 255.0) as u8;
            (
                Tensor::scalar(scale as f32),
                Tensor::scalar(zero),
                DType::U8,
            )
        }
        Scheme::Symmetric { .. } => (
            Tensor::scalar(usable(most / 127.0) as f32),
            Tensor::scalar(0i8),
            DType::I8,
        ),
        Scheme::Fp8E4M3 => {
            let zero = Tensor::from_raw(DType::F8E4M3FN, &[][..], vec![0u8].into());
            (
                Tensor::scalar(usable(most / 448.0) as f32),
                zero.unwrap_or_else(|_| Tensor::scalar(0i8)),
                DType::F8E4M3FN,
            )
        }
    }
}
