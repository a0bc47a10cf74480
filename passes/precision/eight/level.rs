//! Attention's projections written apart with one scale (`projections.rs`).

use half::bf16;
use kiln_graph::{Attrs, Graph, Op, Tensor, Type, ValueId};
use rustc_hash::FxHashMap;

use super::compensate::Compensation;
use super::projections::Projections;
use super::qdq::{Quantized, Weight, Writer};
use super::reading::Reading;
use crate::precision::calibrated::stats::{Stats, TensorStats};
use crate::precision::linear::Linear;
use crate::precision::numbers::weights::{self, Rounding, Unfit, to_f32s};

/// What later layers read other numbers of than calibration did.
#[derive(Default)]
pub(super) struct Levelled {
    stats: FxHashMap<ValueId, TensorStats>,
    /// What channels were divided by.
    factors: FxHashMap<ValueId, Vec<f32>>,
}

impl Levelled {
    /// What is known of a value as it is now.
    pub fn stats<'a>(&'a self, all: &'a Stats, v: ValueId) -> Option<&'a TensorStats> {
        self.stats.get(&v).or_else(|| all.get(&v))
    }

    /// Whether its channels were divided by factors, so that rows of the weight that reads it may be wide.
    pub fn divides(&self, v: ValueId) -> bool {
        self.factors.contains_key(&v)
    }

    /// All that the channels of a value that calibration knows are divided by.
    pub fn factors(&self, v: ValueId, more: &[f32]) -> Vec<f32> {
        match self.factors.get(&v) {
            Some(factors) if more.is_empty() => factors.clone(),
            Some(factors) => factors.iter().zip(more).map(|(a, b)| a * b).collect(),
            None => more.to_vec(),
        }
    }
}

/// Weights of queries, keys and values with one scale.
pub(super) struct Level {
    scale: f32,
    /// In 8 bits.
    weights: [Tensor; 3],
    /// What the columns of values are multiplied by behind attention.
    factors: Vec<f64>,
    /// What is added to the values behind attention.
    shift: Vec<f64>,
}

impl Level {
    /// Of the packed weight [K, 3 · width] as `reading` has it.
    ///
    /// # Errors
    /// When the weight has no numbers of the format.
    pub fn of(
        projections: &Projections,
        mut matrix: Vec<f32>,
        reading: &Reading,
        rounding: Rounding,
        compensations: &[Option<Compensation<'_>>; 2],
    ) -> Result<Level, Unfit> {
        let (width, columns) = (projections.width, 3 * projections.width);
        let shift = reading.shift(&projections.bias);
        let plane = reading.freed.as_deref().unwrap_or_default();
        let [queries, keys, values] = projections.parts.map(|(_, at)| at);
        let rows = matrix.len() / columns.max(1);
        for (row, c) in matrix.chunks_mut(columns.max(1)).zip(plane) {
            for (v, b) in row[queries..queries + width]
                .iter_mut()
                .zip(&shift[queries..])
            {
                *v += (c * b) as f32;
            }
        }
        let whole = Tensor::from_values(&[rows, columns][..], &matrix).map_err(|_| Unfit::Type)?;
        let found = weights::quantize(&whole, rounding, rows, reading.moments.as_deref())?;
        let steps = to_f32s(&found.scales).ok_or(Unfit::Type)?;
        let steps = used(&matrix, &steps);
        let shared = |j: usize| (steps[queries + j] * steps[keys + j]).sqrt();
        let widest = (0..width).map(shared).fold(0f32, f32::max);
        // Few digits, which all formats hold. Without queries and keys any scale does.
        let widest = match widest > 0.0 {
            true => widest,
            false => steps.iter().fold(0f32, |m, s| m.max(*s)),
        };
        let scale = bf16::from_f32(widest * 1.004).to_f32();
        if !scale.is_normal() {
            return Err(Unfit::Type);
        }
        let mut times = vec![1f32; columns];
        let mut factors = vec![1f64; width];
        for j in 0..width {
            let (q, k) = (steps[queries + j], steps[keys + j]);
            if q > 0.0 && k > 0.0 {
                times[queries + j] = (k / q).sqrt();
                times[keys + j] = (q / k).sqrt();
            } else {
                // One of the two is zero, and so are the scores.
                let of = |step: f32| if step > 0.0 { scale / step } else { 1.0 };
                (times[queries + j], times[keys + j]) = (of(q), of(k));
            }
            if steps[values + j] > 0.0 {
                times[values + j] = scale / steps[values + j];
                factors[j] = f64::from(times[values + j]).recip();
            }
        }
        for row in matrix.chunks_mut(columns.max(1)) {
            row.iter_mut().zip(&times).for_each(|(v, t)| *v *= t);
        }
        let part = |at: usize| -> Vec<f32> {
            let rows = matrix.chunks(columns.max(1));
            rows.flat_map(|r| r[at..at + width].iter().copied())
                .collect()
        };
        let [read, centred] = compensations;
        let rounded = |at: usize, compensation: &Option<Compensation<'_>>| {
            let floats = part(at);
            let found = weights::with_scale(&floats, width, rounding, scale)?;
            match compensation {
                Some(compensation) => compensation.rounded(&floats, found),
                None => Ok(found),
            }
        };
        let weights = [
            rounded(queries, read)?.values,
            rounded(keys, centred)?.values,
            rounded(values, centred)?.values,
        ];
        let mut shift = shift[values..values + width].to_vec();
        if let (Rounding::Int8, Some(means)) = (rounding, &reading.means) {
            let floats = part(values);
            let codes = weights[2].bytes();
            let each = floats.chunks(width).zip(codes.chunks(width)).zip(means);
            for ((row, codes), mean) in each {
                for (j, (v, &code)) in row.iter().zip(codes).enumerate() {
                    let lost = f64::from(*v) - f64::from(code as i8) * f64::from(scale);
                    shift[j] += mean * lost * factors[j];
                }
            }
        }
        Ok(Level {
            scale,
            weights,
            factors,
            shift,
        })
    }

    /// Writes the products of `x` instead of the packed one, and what they leave to the output projection.
    pub fn write(
        self,
        (g, pass): (&mut Graph, &'static str),
        layer: &Linear,
        projections: &Projections,
        x: Quantized,
        (stats, levelled): (&Stats, &mut Levelled),
    ) -> Option<()> {
        let changes = self.changes(g, projections)?;
        for (values, (part, _)) in self.weights.into_iter().zip(projections.parts) {
            let mut write = Writer {
                g: &mut *g,
                pass,
                layer: *layer,
            };
            let weight = Weight {
                values,
                scales: Tensor::scalar(self.scale),
                factors: None,
                lost: None,
                apart: None,
                rounds_apart: false,
            };
            let product = write.product(x, weight, None)?;
            let ty = g.value(part).ty().clone();
            g.set_type(product, ty);
            g.replace_uses(part, product);
        }
        for &node in &projections.replaced {
            g.remove_node(node);
        }
        g.remove_unused_value(layer.weight);
        let Changes {
            weight,
            bias,
            moved,
            y,
        } = changes;
        let label = |g: &Graph, v: Option<ValueId>| {
            v.map_or(String::new(), |v| g.value(v).name().to_string())
        };
        let old = g.node(projections.output).input(1);
        let name = format!("{}_levelled", label(g, old));
        let weight = g.add_constant(&name, weight);
        g.set_input(projections.output, 1, Some(weight));
        old.map(|v| g.remove_unused_value(v));
        match bias {
            Some((add, slot, bias)) => {
                let old = g.node(add).input(slot);
                let name = format!("{}_levelled", label(g, old));
                let bias = g.add_constant(&name, bias);
                g.set_input(add, slot, Some(bias));
                old.map(|v| g.remove_unused_value(v));
            }
            None if moved.iter().any(|&m| m != 0.0) => added(g, pass, y, &moved)?,
            None => {}
        }
        let narrow: Vec<f32> = self.factors.iter().map(|&f| f as f32).collect();
        let result = projections.result;
        let seen = stats
            .get(&result)
            .and_then(|s| s.changed(&self.shift, &self.factors));
        levelled.factors.insert(result, narrow);
        levelled.stats.extend(seen.map(|s| (result, s)));
        let ones = vec![1.0; moved.len()];
        let seen = stats.get(&y).and_then(|s| s.changed(&moved, &ones));
        levelled.stats.extend(seen.map(|s| (y, s)));
        Some(())
    }

    /// The output projection with what it takes over.
    fn changes(&self, g: &Graph, projections: &Projections) -> Option<Changes> {
        let layer = Linear::of(g, projections.output)?.ok()?;
        let y = g.node(layer.node).output(0)?;
        let mut numbers = g.constant(layer.weight)?.values::<f32>()?;
        let mut moved = vec![0f64; layer.columns];
        let rows = numbers.chunks_mut(layer.columns.max(1));
        for ((row, factor), shift) in rows.zip(&self.factors).zip(&self.shift) {
            for (v, sum) in row.iter_mut().zip(&mut moved) {
                *sum += shift * f64::from(*v);
                *v = (f64::from(*v) * factor) as f32;
            }
        }
        let finite = numbers.iter().all(|v| v.is_finite()) && moved.iter().all(|v| v.is_finite());
        let weight = Tensor::from_values(&[layer.rows, layer.columns][..], &numbers).ok()?;
        let add = g.single_use(y).map(|u| u.node);
        let bias = add
            .filter(|&add| g.node(add).op().is("Add"))
            .and_then(|add| {
                let slot = (0..2).find(|&k| g.node(add).input(k) != Some(y))?;
                let old = g.constant(g.node(add).input(slot)?)?;
                let old = old
                    .values::<f32>()
                    .filter(|_| old.dims() == [moved.len()])?;
                let all = old.iter().zip(&moved);
                let all: Vec<f32> = all.map(|(a, b)| (f64::from(*a) + b) as f32).collect();
                Some((add, slot, Tensor::vector(&all)))
            });
        finite.then_some(Changes {
            weight,
            bias,
            moved,
            y,
        })
    }
}

/// The output projection's new constants.
struct Changes {
    weight: Tensor,
    /// The Add, its operand, and the bias.
    bias: Option<(kiln_graph::NodeId, usize, Tensor)>,
    /// What is added to the columns more.
    moved: Vec<f64>,
    /// The product's result.
    y: ValueId,
}

/// Adds numbers to the columns of a value where nothing is added yet.
fn added(g: &mut Graph, pass: &str, y: ValueId, numbers: &[f64]) -> Option<()> {
    let numbers: Vec<f32> = numbers.iter().map(|&v| v as f32).collect();
    let name = g.value(y).name().to_string();
    let bias = g.add_constant(&format!("{name}_bias"), Tensor::vector(&numbers));
    let made = format!("{name}_biased");
    let shape = g.value(y).ty().shape().map(|s| s.into());
    let add = g.add_node_named(Op::onnx("Add"), "", [], &[Some(&made)], Attrs::new());
    let sum = g.node(add).output(0)?;
    g.set_type(sum, Type::tensor(kiln_graph::DType::F32, shape));
    g.replace_uses(y, sum);
    g.set_inputs(add, [Some(y), Some(bias)].into_iter().collect());
    g.notes_mut(add).set("kiln.pass", pass.into());
    Some(())
}

/// The steps of columns that are not zero; 0 of others.
fn used(matrix: &[f32], steps: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; steps.len()];
    for row in matrix.chunks(steps.len().max(1)) {
        for ((to, v), step) in out.iter_mut().zip(row).zip(steps) {
            if *v != 0.0 {
                *to = *step;
            }
        }
    }
    out
}

/// Rows of a weight [K, columns] that are so wide that all others would have few steps beside them: the fewest with which the
/// error of its rounding is within half as much again of the least. `moments` are the mean squares of what it is multiplied by.
pub(super) fn wide_rows(matrix: &[f32], columns: usize, moments: &[f64]) -> Vec<usize> {
    const COUNTS: [usize; 4] = [0, 1, 2, 4];
    const WORTH: f64 = 1.5;
    let most = |row: &[f32]| row.iter().fold(0f32, |m, v| m.max(v.abs()));
    let rows: Vec<&[f32]> = matrix.chunks(columns.max(1)).collect();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&a, &b| most(rows[b]).total_cmp(&most(rows[a])));
    let noise = |count: usize| {
        let mut largest = vec![0f32; columns];
        for &i in &order[count..] {
            let each = largest.iter_mut().zip(rows[i]);
            each.for_each(|(m, v)| *m = m.max(v.abs()));
        }
        let steps = largest.iter().map(|m| f64::from(m / 127.0).powi(2));
        let all = order[count..].iter().filter_map(|&i| moments.get(i));
        steps.sum::<f64>() / 12.0 * all.sum::<f64>()
    };
    let counts = COUNTS.iter().filter(|&&c| c <= rows.len() / 16);
    let tried: Vec<(usize, f64)> = counts.map(|&c| (c, noise(c))).collect();
    let least = tried.iter().fold(f64::INFINITY, |m, t| m.min(t.1));
    let fits = |t: &&(usize, f64)| t.1 <= WORTH * least;
    let count = tried.iter().find(fits).map_or(0, |t| t.0);
    let mut out = order[..count].to_vec();
    out.sort_unstable();
    out
}
