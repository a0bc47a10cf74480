//! Convolutions in INT8.
//!
//! TensorRT takes a convolution of numbers that were quantized and gives floats. ONNX Runtime has integer kernels only for
//! convolutions whose result is quantized too (its QLinearConv), so there the result gets a range of its own.

use kiln_graph::graph::Use;
use kiln_graph::{DType, Graph, NodeId, Tensor, Type, ValueId, ops};

use super::qdq::{self, Weight, Writer};
use crate::precision::calibrated::ranges::Choice;
use crate::precision::linear::Linear;
use crate::precision::numbers::format::Format;
use crate::precision::numbers::weights::{self, Rounding, to_f32s};

/// A convolution with a constant weight: C · kH · kW rows and M columns, as a product.
#[derive(Clone, Debug)]
pub(in crate::precision) struct Conv {
    pub layer: Linear,
    /// ConvTranspose: its weight is [C, M, …] instead of [M, C, …].
    transposed: bool,
    /// The result, or that of the Relu that alone reads it.
    pub end: ValueId,
    /// Operators that only move its elements, each the only reader of the one before, the first of `end`.
    moves: Vec<NodeId>,
}

/// Operators with one operand that they copy, which ONNX Runtime does for bytes as well.
const MOVES: &[&str] = &[
    "DepthToSpace",
    "Flatten",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

impl Conv {
    /// The node as a convolution that can be quantized, or why it is none; `None` if it has no weight.
    pub fn of(g: &Graph, id: NodeId) -> Option<Result<Conv, String>> {
        let conv = ops::Conv::of(g, id)?;
        let (input, weight) = (conv.input(0)?, conv.input(1)?);
        let stored = g.constant(weight).filter(|t| t.dtype().is_float())?;
        if conv.group() != 1 {
            return Some(Err(
                "it has groups, so that bytes and not products take its time".into(),
            ));
        }
        let transposed = conv.node().op().is("ConvTranspose");
        let (&[first, second, ..], output) = (stored.dims(), conv.output(0)?) else {
            return Some(Err(format!("its weight has rank {}", stored.rank())));
        };
        let columns = if transposed { second } else { first };
        let end = (only_reader(g, output))
            .filter(|(_, node)| node.op().is("Relu"))
            .and_then(|(_, node)| node.output(0));
        let end = end.unwrap_or(output);
        let mut moves = Vec::new();
        let mut at = end;
        while let Some((id, node)) = only_reader(g, at)
            && node.op().is_any(MOVES)
            && node.input(0) == Some(at)
            && let Some(next) = node.output(0)
            && !g.value(next).is_output()
        {
            moves.push(id);
            at = next;
        }
        Some(Ok(Conv {
            layer: Linear {
                node: id,
                input,
                weight,
                transposed: false,
                rows: stored.len() / columns.max(1),
                columns,
            },
            transposed,
            end,
            moves,
        }))
    }

    /// Where the element of the stored weight is that stands at a row and column of the product.
    fn place(&self, g: &Graph) -> impl Fn(usize, usize) -> usize + use<> {
        let Linear { rows, columns, .. } = self.layer;
        let taps = (g.constant(self.layer.weight)).map_or(1, |t| t.dims()[2..].iter().product());
        let taps: usize = std::cmp::max(taps, 1);
        let transposed = self.transposed;
        move |row, column| match transposed {
            false => column * rows + row,
            true => (row / taps * columns + column) * taps + row % taps,
        }
    }

    /// The weight in INT8, with one scale for each output channel.
    pub fn quantized(&self, g: &Graph) -> Result<Weight, weights::Unfit> {
        let Linear { rows, columns, .. } = self.layer;
        let stored = g.constant(self.layer.weight).ok_or(weights::Unfit::Type)?;
        let values = to_f32s(stored).ok_or(weights::Unfit::Type)?;
        let place = self.place(g);
        let all = || (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let matrix: Vec<f32> = all().map(|(r, c)| values[place(r, c)]).collect();
        let matrix = Tensor::from_values(&[rows, columns][..], &matrix);
        let matrix = matrix.map_err(|_| weights::Unfit::Type)?;
        let found = weights::quantize(&matrix, Rounding::Int8, rows, None)?;
        let mut codes = vec![0u8; rows * columns];
        for ((r, c), &code) in all().zip(found.values.bytes().iter()) {
            codes[place(r, c)] = code;
        }
        let values = Tensor::from_raw(DType::I8, stored.dims(), codes.into());
        let scales = found.scales.reshaped(&[columns][..]);
        Ok(Weight {
            lost: None,
            values: values.map_err(|_| weights::Unfit::Type)?,
            scales: scales.map_err(|_| weights::Unfit::Type)?,
            factors: None,
            apart: None,
            rounds_apart: false,
        })
    }

    /// The bias in steps of the products, INT32 [M], and the steps [M]; `None` without a bias. `choice` is as in
    /// [`Conv::write`].
    ///
    /// # Errors
    /// When it has no place in 32 bits.
    pub fn bias(
        &self,
        g: &Graph,
        weight: &Weight,
        choice: Option<&Choice>,
        format: Format,
    ) -> Result<Option<(Tensor, Tensor)>, String> {
        let scale = match choice {
            Some(choice) => qdq::parameters(choice, format).0.as_f64(),
            None => dequantized(g, self.layer.input),
        };
        let bias = g.node(self.layer.node).input(2);
        bias.map(|bias| integers(g, bias, scale, &weight.scales))
            .transpose()
    }

    /// Reads quantized numbers, and gives such if `result` says how. `choice` is the input's, unless that is dequantized
    /// already.
    pub fn write(
        &self,
        g: &mut Graph,
        pass: &'static str,
        (weight, bias): (&Weight, Option<(Tensor, Tensor)>),
        choice: Option<&Choice>,
        result: Option<&Choice>,
        format: Format,
    ) {
        let Linear { node, .. } = self.layer;
        let axis = i64::from(self.transposed);
        let mut write = Writer {
            g,
            pass,
            layer: self.layer,
        };
        let x = match choice {
            Some(choice) => write.activation(choice, format).wide,
            None => Some(self.layer.input),
        };
        let w = write.dequantized(weight, axis);
        let b = bias.map(|(values, scales)| write.bias(values, scales));
        g.set_input(node, 0, x);
        g.set_input(node, 1, w);
        g.remove_unused_value(self.layer.weight);
        if let Some(b) = b {
            let old = g.node(node).input(2);
            g.set_input(node, 2, b);
            if let Some(old) = old {
                g.remove_unused_value(old);
            }
        }
        if let Some(result) = result {
            self.round(g, pass, result, format);
        }
    }

    /// Quantizes the result, and dequantizes it behind what only moves it.
    fn round(&self, g: &mut Graph, pass: &'static str, result: &Choice, format: Format) {
        let moved = |g: &Graph, id: &NodeId| g.node(*id).output(0);
        let last = self.moves.last().and_then(|id| moved(g, id));
        let last = last.unwrap_or(self.end);
        let (before, behind) = (
            g.value(self.end).uses().to_vec(),
            g.value(last).uses().to_vec(),
        );
        let read = |g: &mut Graph, uses: &[Use], v: ValueId| {
            uses.iter().for_each(|&u| g.set_use(u, v));
        };
        let mut write = Writer {
            g,
            pass,
            layer: Linear {
                input: self.end,
                ..self.layer
            },
        };
        let q = write.quantize(result, format);
        if self.moves.is_empty() {
            if let Some(wide) = write.widened(q, self.end) {
                read(g, &behind, wide);
            }
            return;
        }
        let wide = write.widened(q.moved(last), last);
        let (Some(values), Some(wide)) = (q.values, wide) else {
            return;
        };
        read(g, &before, values);
        read(g, &behind, wide);
        for v in self
            .moves
            .iter()
            .filter_map(|id| moved(g, id))
            .collect::<Vec<_>>()
        {
            let shape = g.value(v).ty().shape().map(|s| s.into());
            let dtype = g.value(values).ty().dtype().unwrap_or(DType::U8);
            g.set_type(v, Type::tensor(dtype, shape));
        }
    }
}

/// The only reader of a value that is not an output.
fn only_reader(g: &Graph, v: ValueId) -> Option<(NodeId, &kiln_graph::Node)> {
    let id = g.single_use(v)?.node;
    Some((id, g.node(id)))
}

/// The scale of a value that was dequantized: by this pass, or in the model as it came.
pub(in crate::precision) fn dequantized(g: &Graph, v: ValueId) -> Option<f64> {
    let view = ops::DequantizeLinear::of(g, g.producer(v)?)?;
    let scale = view.constant(1).filter(|t| t.rank() == 0)?;
    scale.as_f64()
}

/// A bias in steps of the products: INT32 [M], and the steps [M].
fn integers(
    g: &Graph,
    bias: ValueId,
    scale: Option<f64>,
    scales: &Tensor,
) -> Result<(Tensor, Tensor), String> {
    let bias = g.constant(bias).and_then(to_f32s);
    let (Some(bias), Some(scale), Some(scales)) = (bias, scale, scales.values::<f32>()) else {
        return Err("its bias is no constant".into());
    };
    let steps: Vec<f32> = scales.iter().map(|&s| scale as f32 * s).collect();
    let mut all = Vec::with_capacity(bias.len());
    for (&b, &step) in bias.iter().zip(&steps) {
        let n = (f64::from(b) / f64::from(step)).round_ties_even();
        // As much is left for the products.
        let fits = n.abs() < f64::from(1 << 30);
        all.push(fits.then_some(n as i32));
    }
    let Some(all) = all.into_iter().collect::<Option<Vec<i32>>>() else {
        return Err("its bias is too large for its scales".into());
    };
    match all.len() == steps.len() {
        true => Ok((Tensor::vector(&all), Tensor::vector(&steps))),
        false => Err("its bias has not one number for each output channel".into()),
    }
}
