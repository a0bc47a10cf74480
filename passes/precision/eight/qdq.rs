//! Quantized products as operators of ONNX.

use kiln_graph::{Attrs, DType, Dim, Graph, Op, Tensor, Type, ValueId, ops};

use crate::precision::calibrated::ranges::Choice;
use crate::precision::linear::Linear;
use crate::precision::numbers::format::Format;

/// A quantized weight.
pub(in crate::precision) struct Weight {
    /// [K, N], or a convolution's.
    pub values: Tensor,
    /// [N], or of no dimensions where `factors` has the rest.
    pub scales: Tensor,
    /// [N]: what the product's columns are multiplied by.
    pub factors: Option<Tensor>,
    /// [N]: what rounding takes from the means of the product's columns.
    pub lost: Option<Vec<f64>>,
    /// Rows that are multiplied apart: which, and their floats.
    pub apart: Option<(Tensor, Tensor)>,
    /// These rows are multiplied by the quantized numbers.
    pub rounds_apart: bool,
}

impl Weight {
    /// The sums of the columns, as rounded to INT8, and of the rows apart.
    pub fn sums(&self) -> Option<Vec<f64>> {
        let factors = self.factors.as_ref()?.values::<f32>()?;
        let scale = self.scales.as_f64()?;
        let mut sums = vec![0f64; factors.len()];
        for row in self.values.bytes().chunks(factors.len().max(1)) {
            for ((sum, &code), &factor) in sums.iter_mut().zip(row).zip(&factors) {
                *sum += f64::from(code as i8) * scale * f64::from(factor);
            }
        }
        if let Some((_, rows)) = &self.apart {
            for row in rows.values::<f32>()?.chunks(factors.len().max(1)) {
                sums.iter_mut()
                    .zip(row)
                    .for_each(|(sum, &v)| *sum += f64::from(v));
            }
        }
        Some(sums)
    }
}

/// A quantized activation: its numbers, scale and zero point, and the dequantized value where there is one.
#[derive(Clone, Copy)]
pub(in crate::precision) struct Quantized {
    pub values: Option<ValueId>,
    scale: Option<ValueId>,
    zero: Option<ValueId>,
    pub wide: Option<ValueId>,
}

impl Quantized {
    /// The same numbers in another place.
    pub fn moved(self, to: ValueId) -> Quantized {
        Quantized {
            values: Some(to),
            ..self
        }
    }
}

pub(in crate::precision) struct Writer<'g> {
    pub g: &'g mut Graph,
    pub pass: &'static str,
    pub layer: Linear,
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

    /// Quantize and dequantize the layer's input.
    pub fn activation(&mut self, choice: &Choice, format: Format) -> Quantized {
        let q = self.quantize(choice, format);
        Quantized {
            wide: self.widened(q, self.layer.input),
            ..q
        }
    }

    /// Quantize the layer's input. Zero points are written out: ONNX takes a missing one for UINT8, TensorRT for INT8.
    pub fn quantize(&mut self, choice: &Choice, format: Format) -> Quantized {
        let x = self.layer.input;
        let name = self.g.value(x).name().to_string();
        let (scale, zero, dtype) = parameters(choice, format);
        let scale = Some(self.g.add_constant(&format!("{name}_scale"), scale));
        let zero = Some(self.g.add_constant(&format!("{name}_zero_point"), zero));
        let values = self.node(
            "QuantizeLinear",
            &[Some(x), scale, zero],
            &format!("{name}_quantized"),
            Attrs::new(),
        );
        self.typed(values, x, dtype);
        Quantized {
            values,
            scale,
            zero,
            wide: None,
        }
    }

    /// Quantized numbers as floats again, named after the value that they stand for.
    pub fn widened(&mut self, q: Quantized, like: ValueId) -> Option<ValueId> {
        let name = self.g.value(like).name().to_string();
        let wide = self.node(
            "DequantizeLinear",
            &[q.values, q.scale, q.zero],
            &format!("{name}_dequantized"),
            Attrs::new(),
        );
        self.typed(wide, like, DType::F32);
        wide
    }

    /// Quantize the layer's input by the range of each run, in which these channels have no part: they become zero.
    pub fn dynamic(&mut self, outliers: &[usize]) -> Quantized {
        let mut x = self.layer.input;
        let name = self.g.value(x).name().to_string();
        if !outliers.is_empty() {
            let channel = |k: usize| f32::from(u8::from(!outliers.contains(&k)));
            let mask: Vec<f32> = (0..self.layer.rows).map(channel).collect();
            let mask = self
                .g
                .add_constant(&format!("{name}_mask"), Tensor::vector(&mask));
            let rest = [Some(x), Some(mask)];
            let rest = self.node("Mul", &rest, &format!("{name}_rest"), Attrs::new());
            self.typed(rest, x, DType::F32);
            x = rest.unwrap_or(x);
        }
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
        // A zero of 8 bits has one byte.
        let zeros = vec![0u8; weight.scales.len()];
        let dtype = weight.values.dtype();
        let zeros = Tensor::from_raw(dtype, weight.scales.dims(), zeros.into()).ok();
        let mut add = |suffix: &str, t: Tensor| self.g.add_constant(&format!("{name}_{suffix}"), t);
        [
            Some(add("quantized", weight.values.clone())),
            Some(add("scale", weight.scales.clone())),
            zeros.map(|z| add("zero_point", z)),
        ]
    }

    /// A weight as floats again, with a scale for each place of an axis.
    pub fn dequantized(&mut self, weight: &Weight, axis: i64) -> Option<ValueId> {
        let parts = self.weight(weight);
        let name = self.g.value(self.layer.weight).name().to_string();
        let axis = match weight.scales.rank() {
            0 => Attrs::new(),
            _ => Attrs::new().with("axis", axis),
        };
        let w = self.node(
            "DequantizeLinear",
            &parts,
            &format!("{name}_dequantized"),
            axis,
        );
        let dims: Vec<Dim> = weight
            .values
            .dims()
            .iter()
            .map(|&d| Dim::Known(d))
            .collect();
        if let Some(w) = w {
            self.g
                .set_type(w, Type::tensor(DType::F32, Some(dims.into())));
        }
        w
    }

    /// A bias in INT32 with a step for each channel, as floats again.
    pub fn bias(&mut self, values: Tensor, steps: Tensor) -> Option<ValueId> {
        let name = format!("{}_bias", self.output_name());
        let dims = values.dims().to_vec();
        let zeros = Tensor::from_values(&dims[..], &vec![0i32; values.len()]).ok();
        let mut add = |suffix: &str, t: Tensor| self.g.add_constant(&format!("{name}_{suffix}"), t);
        let parts = [
            Some(add("quantized", values)),
            Some(add("scale", steps)),
            zeros.map(|z| add("zero_point", z)),
        ];
        let axis = Attrs::new().with("axis", 0i64);
        let wide = self.node("DequantizeLinear", &parts, &name, axis);
        if let Some(wide) = wide {
            let dims: Vec<Dim> = dims.into_iter().map(Dim::Known).collect();
            self.g
                .set_type(wide, Type::tensor(DType::F32, Some(dims.into())));
        }
        wide
    }

    /// Floats, of numbers that were quantized: what TensorRT and ONNX Runtime take for a product of integers. `handed` is the scale
    /// in which the product is INT8 itself.
    pub fn product(
        &mut self,
        x: Quantized,
        weight: Weight,
        handed: Option<f32>,
    ) -> Option<ValueId> {
        let w = self.dequantized(&weight, 1);
        let output = self.output_name();
        let mut product = self.matmul(&[x.wide, w], &format!("{output}_product"));
        if let (Some(scale), Some(bare)) = (handed, product) {
            product = self.handed(bare, scale);
        }
        if let Some(factors) = weight.factors {
            let name = self.g.value(self.layer.weight).name();
            let factors = self.g.add_constant(&format!("{name}_factors"), factors);
            let columns = [product, Some(factors)];
            product = self.node("Mul", &columns, &format!("{output}_scaled"), Attrs::new());
            self.like_output(product);
        }
        let from = match weight.rounds_apart {
            true => x.wide?,
            false => self.layer.input,
        };
        self.with_outliers(product, weight.apart, from)
    }

    /// A value as INT8 of one scale, and as floats again.
    fn handed(&mut self, x: ValueId, scale: f32) -> Option<ValueId> {
        let name = self.g.value(x).name().to_string();
        let parts = [Tensor::scalar(scale), Tensor::scalar(0i8)];
        let [scale, zero] = ["scale", "zero_point"].map(|s| format!("{name}_{s}"));
        let [first, second] = parts;
        let scale = Some(self.g.add_constant(&scale, first));
        let zero = Some(self.g.add_constant(&zero, second));
        let to = format!("{name}_quantized");
        let values = self.node("QuantizeLinear", &[Some(x), scale, zero], &to, Attrs::new());
        self.typed(values, x, DType::I8);
        let q = Quantized {
            values,
            scale,
            zero,
            wide: None,
        };
        self.widened(q, x)
    }

    /// MatMulInteger, and its integers as floats.
    pub fn integer_product(&mut self, x: Quantized, weight: Weight) -> Option<ValueId> {
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
        self.with_outliers(product, weight.apart, self.layer.input)
    }

    /// What the layer's new values are called after: its result, or itself where that has no name.
    fn output_name(&self) -> String {
        let layer = self.g.node(self.layer.node);
        let output = layer.output(0).map(|v| self.g.value(v).name());
        output
            .filter(|name| !name.is_empty())
            .unwrap_or(layer.name())
            .to_string()
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
        from: ValueId,
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
            &[Some(from), Some(indices)],
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

    /// The product instead of the layer's result. A Gemm adds its bias, and offsets of the columns are part of a bias behind the
    /// product, if there is one. Gives the result that was, and what stands for it.
    pub fn finish(
        &mut self,
        product: Option<ValueId>,
        offsets: Option<&[f64]>,
    ) -> Option<(ValueId, ValueId)> {
        let node = self.layer.node;
        let (mut product, output) = (product?, self.g.node(node).output(0)?);
        let mut bias = ops::Gemm::of(self.g, node).and_then(|gemm| gemm.c());
        if let Some(offsets) = offsets {
            let joined = bias.and_then(|c| self.with_offsets(c, offsets));
            if bias.is_some() && joined.is_some() {
                bias = joined;
            } else if !self.joins_bias(output, offsets) {
                let offsets: Vec<f32> = offsets.iter().map(|&d| d as f32).collect();
                let name = format!("{}_offsets", self.output_name());
                let offsets = self.g.add_constant(&name, Tensor::vector(&offsets));
                product = self.added(product, offsets, "shifted");
            }
        }
        if let Some(bias) = bias {
            product = self.added(product, bias, "biased");
        }
        self.g.replace_uses(output, product);
        Some((output, product))
    }

    fn added(&mut self, product: ValueId, bias: ValueId, what: &str) -> ValueId {
        let name = format!("{}_{what}", self.output_name());
        let sum = self.node("Add", &[Some(product), Some(bias)], &name, Attrs::new());
        self.like_output(sum);
        sum.unwrap_or(product)
    }

    /// A constant bias of the columns and their offsets.
    fn with_offsets(&mut self, bias: ValueId, offsets: &[f64]) -> Option<ValueId> {
        let old = self
            .g
            .constant(bias)
            .filter(|t| t.dims() == [offsets.len()]);
        let values = old?.values::<f32>()?;
        let all = values.iter().zip(offsets);
        let all: Vec<f32> = all.map(|(v, d)| (f64::from(*v) + d) as f32).collect();
        let name = format!("{}_shifted", self.g.value(bias).name());
        Some(self.g.add_constant(&name, Tensor::vector(&all)))
    }

    /// Adds the offsets to the bias that is added to the layer's result and to nothing else, if there is one.
    fn joins_bias(&mut self, output: ValueId, offsets: &[f64]) -> bool {
        let Some(reader) = self.g.single_use(output).map(|u| u.node) else {
            return false;
        };
        if !self.g.node(reader).op().is("Add") || self.g.value(output).is_output() {
            return false;
        }
        for k in 0..2 {
            let Some(bias) = self.g.node(reader).input(k).filter(|&v| v != output) else {
                continue;
            };
            if let Some(joined) = self.with_offsets(bias, offsets) {
                self.g.set_input(reader, k, Some(joined));
                self.g.remove_unused_value(bias);
                return true;
            }
        }
        false
    }
}

/// Scale, zero point and dtype of an activation.
pub(in crate::precision) fn parameters(choice: &Choice, format: Format) -> (Tensor, Tensor, DType) {
    let (lo, hi) = (f64::from(choice.lo.min(0.0)), f64::from(choice.hi.max(0.0)));
    let most = hi.max(-lo);
    let usable = |s: f64| {
        if s >= f64::from(f32::MIN_POSITIVE) {
            s
        } else {
            1.0
        }
    };
    let dtype = format.dtype();
    if format.has_zero_point() {
        let scale = usable((hi - lo) / format.max());
        let zero = (-lo / scale).round_ties_even().clamp(0.0, format.max()) as u8;
        return (Tensor::scalar(scale as f32), Tensor::scalar(zero), dtype);
    }
    let zero = Tensor::from_raw(
        dtype,
        &[][..],
        vec![0u8; dtype.bits().div_ceil(8) as usize].into(),
    );
    (
        Tensor::scalar(usable(most / format.max()) as f32),
        zero.unwrap_or_else(|_| Tensor::scalar(0i8)),
        dtype,
    )
}
