//! Factors that make the channels of an activation which carry most take the finer numbers of a weight in few bits
//! (Lin et al., "AWQ: Activation-aware Weight Quantization"): `x · w` is `(x / s) · (s · w)`.

use kiln_graph::{DType, Graph, Tensor, ValueId};

use crate::precision::calibrated::plan::Factors;
use crate::precision::calibrated::smooth::{self, Norm};
use crate::precision::linear::Linear;
use crate::precision::numbers::weights::{self, Rounding, to_f32s};

/// Factors are the root mean square of a channel to these powers. 0 is to do nothing.
const ALPHAS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0];

/// The error's power must fall to this part of what it was, in a norm that takes the factors for free,
const WORTH: f64 = 0.98;

/// or with a Mul of its own, which reads and writes the activation once more.
const WORTH_A_MUL: f64 = 0.7;

/// Columns of a weight that the choice looks at.
const SAMPLE: usize = 256;

/// A product whose weight becomes blocks of so many rows.
#[derive(Clone, Copy, Debug)]
pub(in crate::precision) struct Product {
    pub layer: Linear,
    /// `None`: its weight stays as it is.
    pub block: Option<usize>,
}

/// The part of the error's power without factors that must not be reached with them.
pub(in crate::precision) fn worth(norm: Option<Norm>) -> f64 {
    match norm {
        Some(_) => WORTH,
        None => WORTH_A_MUL,
    }
}

/// Factors that lower the error of all products that read `x` when their weights are rounded to nearest; `moments` are
/// E[x_j²], or multiples.
pub(in crate::precision) fn plan(
    g: &Graph,
    x: ValueId,
    products: &[Product],
    rounding: Rounding,
    moments: &[f64],
) -> Option<Factors> {
    let layers: Vec<Linear> = products.iter().map(|p| p.layer).collect();
    let scalable = |l: &Linear| {
        g.value(l.weight).uses().len() == 1
            && l.rows == moments.len()
            && !l.is_scaled(g)
            && g.constant(l.weight)
                .is_some_and(|w| w.dtype() == DType::F32)
    };
    if !layers.iter().all(scalable) || g.value(x).ty().dtype() != Some(DType::F32) {
        return None;
    }
    let norm = smooth::norm(g, x, &layers);
    let factors = choose(g, products, rounding, moments, worth(norm))?;
    Some(Factors { x, norm, factors })
}

/// Scales the weights of the products and divides the activation. Gives the value that the products read then, and its
/// moments.
pub(in crate::precision) fn apply(
    g: &mut Graph,
    plan: &Factors,
    products: &[Product],
    moments: &[f64],
    pass: &str,
) -> Option<(ValueId, Vec<f64>)> {
    let factors = &plan.factors;
    let mut scaled = Vec::with_capacity(products.len());
    for Product { layer, .. } in products {
        let mut values = to_f32s(&layer.matrix(g)?)?;
        for (row, s) in values.chunks_mut(layer.columns.max(1)).zip(factors) {
            row.iter_mut().for_each(|v| *v *= s);
        }
        scaled.push(Tensor::from_values(&[layer.rows, layer.columns][..], &values).ok()?);
    }
    let read = smooth::apply(g, plan.x, plan.norm, (&[], factors), pass)?;
    for (Product { layer, .. }, weight) in products.iter().zip(scaled) {
        let name = format!("{}_scaled", g.value(layer.weight).name());
        let weight = g.add_constant(&name, weight);
        g.set_input(layer.node, 0, Some(read));
        g.set_input(layer.node, 1, Some(weight));
        if layer.transposed {
            g.attrs_mut(layer.node).remove("transB");
        }
        g.remove_unused_value(layer.weight);
    }
    let moments = moments
        .iter()
        .zip(factors)
        .map(|(m, &s)| m / f64::from(s).powi(2));
    Some((read, moments.collect()))
}

/// The factors with the least error, if it is below `worth` of the error without.
fn choose(
    g: &Graph,
    products: &[Product],
    rounding: Rounding,
    moments: &[f64],
    worth: f64,
) -> Option<Vec<f32>> {
    let mut samples = Vec::new();
    for product in products {
        if let Some(block) = product.block {
            samples.push(Sample::of(g, product.layer, block, moments)?);
        }
    }
    let error = |factors: &[f32]| -> Option<f64> {
        let all = samples.iter().map(|s| s.error(factors, rounding, moments));
        all.sum()
    };
    let limit = worth * error(&vec![1.0; moments.len()])?;
    let mut best: Option<(f64, Vec<f32>)> = None;
    for alpha in ALPHAS {
        let Some(factors) = factors(moments, alpha) else {
            continue;
        };
        let found = error(&factors)?;
        if found < limit && best.as_ref().is_none_or(|(least, _)| found < *least) {
            best = Some((found, factors));
        }
    }
    best.map(|(_, factors)| factors)
}

/// `m^(α / 2)` with a geometric mean of 1; `None` if a factor is out of bounds.
fn factors(moments: &[f64], alpha: f64) -> Option<Vec<f32>> {
    let floor = moments.iter().fold(0.0, |most: f64, m| most.max(*m)) * 1e-8;
    if !(floor > 0.0 && floor.is_finite()) {
        return None;
    }
    let log = |m: &f64| alpha / 2.0 * m.max(floor).ln();
    let mean = moments.iter().map(log).sum::<f64>() / moments.len().max(1) as f64;
    let factors = moments.iter().map(|m| (log(m) - mean).exp() as f32);
    let factors: Vec<f32> = factors.collect();
    factors
        .iter()
        .all(|s| (1e-4..1e4).contains(s))
        .then_some(factors)
}

/// Some columns of a weight.
struct Sample {
    values: Vec<f32>,
    rows: usize,
    columns: usize,
    block: usize,
    /// The power of their products with the activation.
    energy: f64,
}

impl Sample {
    fn of(g: &Graph, layer: Linear, block: usize, moments: &[f64]) -> Option<Sample> {
        let whole = to_f32s(&layer.matrix(g)?)?;
        let step = layer.columns.div_ceil(SAMPLE).max(1);
        let rows = whole.chunks(layer.columns.max(1));
        let values: Vec<f32> = rows
            .flat_map(|row| row.iter().step_by(step).copied())
            .collect();
        let columns = layer.columns.div_ceil(step);
        let energy =
            |(row, m): (&[f32], &f64)| m * row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let energy = values.chunks(columns.max(1)).zip(moments).map(energy).sum();
        Some(Sample {
            values,
            rows: layer.rows,
            columns,
            block,
            energy,
        })
    }

    /// The power of the error in the products when the weight is multiplied by the factors first.
    fn error(&self, factors: &[f32], rounding: Rounding, moments: &[f64]) -> Option<f64> {
        let rows = self.values.chunks(self.columns.max(1)).zip(factors);
        let scaled: Vec<f32> = rows
            .flat_map(|(row, s)| row.iter().map(move |v| v * s))
            .collect();
        let moments = moments
            .iter()
            .zip(factors)
            .map(|(m, &s)| m / f64::from(s).powi(2));
        let moments: Vec<f64> = moments.collect();
        let weight = Tensor::from_values(&[self.rows, self.columns][..], &scaled).ok()?;
        let found = weights::quantize(&weight, rounding, self.block, Some(&moments)).ok()?;
        Some(found.error.powi(2) * self.energy)
    }
}
