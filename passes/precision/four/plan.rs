//! How the weights of one activation's layers are rounded to INT4, decided once: a search for layers to keep rewrites the
//! model many times.

use kiln_graph::{Graph, Model, NodeId, Tensor, ValueId};
use rustc_hash::FxHashMap;

use super::awq::{self, Product};
use super::layer::fit;
use crate::Target;
use crate::core::pass::Options;
use crate::precision::calibrated::gptq::{Curvature, SWEEPS, Steps};
use crate::precision::calibrated::gram::Gram;
use crate::precision::calibrated::plan::{Method, Plan, Rounded};
use crate::precision::linear::{self, Linear};
use crate::precision::numbers::weights::{self, Quantized, Rounding, pack, to_f32s, unpack};

/// The activations that plans are made for, and those that are too long for a [`Gram`].
pub fn wanted(model: &Model) -> (Vec<ValueId>, Vec<ValueId>) {
    let g = &model.graph;
    let short = |v: &ValueId| {
        let layers = g.value(*v).uses().iter();
        let rows = layers.filter_map(|u| Some(Linear::of(g, u.node)?.ok()?.rows));
        rows.max().is_some_and(|rows| rows <= Gram::MAX_SIZE)
    };
    linear::wanted(model).into_iter().partition(short)
}

/// The plan of `x`, of which `gram` is what calibration found; `None` if no layer that reads it can become INT4. Nothing that
/// [`Options::spared`] says changes it.
pub fn plan(
    g: &Graph,
    x: ValueId,
    gram: &Gram,
    target: &Target,
    options: &Options<'_>,
) -> Option<Plan> {
    let mut products: Vec<Product> = Vec::new();
    for usage in g.value(x).uses() {
        let Some(Ok(layer)) = Linear::of(g, usage.node) else {
            continue;
        };
        if layer.input != x || layer.rows != gram.size() {
            continue;
        }
        let kept = options.keeps(g, layer.node).is_some();
        let block = fit(g, &layer, target, options.int4_block).ok();
        products.push(Product {
            layer,
            block: block.filter(|_| !kept),
        });
    }
    let rounding = rounding(target);
    let moments = gram.diagonal();
    let plain = Candidate::of(g, &products, rounding, gram, None)?;
    let scaled = awq::plan(g, x, &products, rounding, &moments).and_then(|found| {
        let gram = gram.divided(&found.factors);
        let scaled = Candidate::of(g, &products, rounding, &gram, Some(&found.factors))?;
        (scaled.cost < awq::worth(found.norm) * plain.cost).then_some((found, scaled))
    });
    let (factors, chosen) = match scaled {
        Some((factors, scaled)) => (Some(factors), scaled),
        None => (None, plain),
    };
    (!chosen.layers.is_empty()).then_some(Plan {
        factors,
        moments,
        layers: chosen.layers,
    })
}

/// The numbers that weights become where their rounding is planned.
fn rounding(target: &Target) -> Rounding {
    match target.facts.zero_points {
        true => Rounding::Int4Affine,
        false => Rounding::Int4,
    }
}

/// All layers of an activation, rounded.
struct Candidate {
    layers: FxHashMap<NodeId, Rounded>,
    /// The squared error of all products.
    cost: f64,
}

impl Candidate {
    /// `None` if the activation was always zero or not always finite.
    fn of(
        g: &Graph,
        products: &[Product],
        rounding: Rounding,
        gram: &Gram,
        factors: Option<&[f32]>,
    ) -> Option<Candidate> {
        let curvature = Curvature::of(gram)?;
        let moments = gram.diagonal();
        let mut out = Candidate {
            layers: FxHashMap::default(),
            cost: 0.0,
        };
        for Product { layer, block } in products {
            let Some(block) = *block else { continue };
            let Some(mut weight) = layer.matrix(g) else {
                continue;
            };
            if let Some(factors) = factors {
                weight = multiplied(&weight, factors)?;
            }
            let Ok(nearest) = weights::quantize(&weight, rounding, block, Some(&moments)) else {
                continue;
            };
            let (rounded, cost) = best(&weight, nearest, block, &curvature)?;
            out.cost += cost;
            out.layers.insert(layer.node, rounded);
        }
        Some(out)
    }
}

/// Rows times their factors.
pub(in crate::precision) fn multiplied(weight: &Tensor, factors: &[f32]) -> Option<Tensor> {
    let mut values = to_f32s(weight)?;
    let columns = values.len() / factors.len().max(1);
    for (row, s) in values.chunks_mut(columns.max(1)).zip(factors) {
        row.iter_mut().for_each(|v| *v *= s);
    }
    Tensor::from_values(weight.dims(), &values).ok()
}

/// The rounding with the smaller error, and that error squared.
fn best(
    weight: &Tensor,
    nearest: Quantized,
    block: usize,
    curvature: &Curvature,
) -> Option<(Rounded, f64)> {
    let values = to_f32s(weight)?;
    let &[_, columns] = weight.dims() else {
        return None;
    };
    let scales = to_f32s(&nearest.scales)?;
    let zeros = match &nearest.zeros {
        Some(zeros) => Some(unpack(zeros)?.iter().map(|&c| signed(c)).collect()),
        None => None,
    };
    let zeros: Option<Vec<f32>> = zeros;
    let steps = Steps {
        scales: &scales,
        zeros: zeros.as_deref(),
        block,
        range: (-8.0, 7.0),
        sweeps: SWEEPS,
    };
    let cost = |codes: &mut dyn Iterator<Item = f32>| {
        let off = values.iter().zip(codes).enumerate().map(|(at, (w, code))| {
            let step = at / columns / block * columns + at % columns;
            let zero = steps.zeros.map_or(0.0, |z| z[step]);
            w - (code - zero) * steps.scales[step]
        });
        let off: Vec<f32> = off.collect();
        curvature.cost(&off, columns)
    };
    let whole = curvature.cost(&values, columns);
    let by_nearest = cost(&mut unpack(&nearest.values)?.into_iter().map(signed));
    let codes = curvature.rounded(&values, columns, steps);
    let compensated = cost(&mut codes.iter().map(|&c| f32::from(c)));
    let (numbers, by, lost) = match compensated < by_nearest {
        true => {
            let bytes = codes.iter().map(|&c| c as u8 & 0xf).collect();
            let values = pack(nearest.values.dtype(), weight.dims(), bytes)?;
            let numbers = Quantized { values, ..nearest };
            (numbers, Method::Compensated, compensated)
        }
        false => (nearest, Method::Nearest, by_nearest),
    };
    let rounded = Rounded {
        numbers,
        block,
        by,
        error: if whole > 0.0 {
            (lost / whole).sqrt()
        } else {
            0.0
        },
    };
    Some((rounded, lost))
}

/// Of a number of 4 bits in two's complement.
fn signed(code: u8) -> f32 {
    f32::from((code << 4) as i8 >> 4)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
