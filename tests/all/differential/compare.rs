//! Judging what a compiled graph computes.

use std::collections::HashMap;

use kiln::parity::{self, InputKind};
use kiln::runtime::{Optimization, Runtime};
use kiln_graph::{DType, Def, Graph, Model, Tensor, onnx};

use crate::common::{self, Named};

/// An original with inputs and outputs, and how far its outputs move when its inputs do.
pub struct Judge {
    runtime: &'static Runtime,
    inputs: Named,
    expected: Named,
    /// By output and element: what a relative change of the inputs by a few units in the last place does.
    moves: Vec<Vec<f64>>,
}

const SEED: u64 = 5;
/// Rewrites round a few operations differently, each by a unit in the last place.
const NUDGE: f32 = 3e-7;
/// Of the largest element of an output: the roundings of the last operations themselves.
const ROUNDING: f64 = 2e-5;
/// How much more than a nudge of the inputs other roundings inside may move an output.
const MOVES: f64 = 64.0;

impl Judge {
    pub fn new(runtime: &'static Runtime, model: &Model) -> Result<Judge, String> {
        let specs = common::specs(model, 1.0);
        let inputs = parity::make(&specs, SEED).map_err(|e| e.to_string())?;
        let expected = run(runtime, model, &inputs)?;
        let mut moves: Vec<Vec<f64>> = Vec::new();
        for (k, sign) in [(1, 1.0f32), (2, -1.0), (3, 1.0)] {
            let nudged: Named = (inputs.iter().zip(&specs))
                .map(|((name, t), spec)| match spec.kind {
                    InputKind::Normal { .. } if t.dtype() == DType::F32 => {
                        let values = t.values::<f32>().unwrap();
                        let nudge = |(i, v): (usize, &f32)| {
                            let up = if i % (k + 1) == 0 { sign } else { -sign };
                            v * (1.0 + NUDGE * up)
                        };
                        let values: Vec<f32> = values.iter().enumerate().map(nudge).collect();
                        (
                            name.clone(),
                            Tensor::from_values(t.dims(), &values).unwrap(),
                        )
                    }
                    _ => (name.clone(), t.clone()),
                })
                .collect();
            let found = run(runtime, model, &nudged)?;
            for (at, ((_, a), (_, b))) in expected.iter().zip(&found).enumerate() {
                let moved = (floats(a).into_iter().zip(floats(b))).map(|(a, b)| {
                    let d = (a - b).abs();
                    if d.is_nan() { f64::INFINITY } else { d }
                });
                match moves.get_mut(at) {
                    None => moves.push(moved.collect()),
                    Some(most) => most.iter_mut().zip(moved).for_each(|(m, d)| *m = m.max(d)),
                }
            }
        }
        Ok(Judge {
            runtime,
            inputs,
            expected,
            moves,
        })
    }

    /// What is wrong with a candidate's outputs; empty if nothing is.
    pub fn differs(&mut self, candidate: &Model) -> Result<String, String> {
        let found = run(self.runtime, candidate, &self.inputs)
            .map_err(|e| format!("the result does not run: {e}"))?;
        for (((name, expected), (other, found)), moves) in
            self.expected.iter().zip(&found).zip(&self.moves)
        {
            if name != other || expected.dtype() != found.dtype() || expected.dims() != found.dims()
            {
                return Ok(format!(
                    "{name} {}{:?} became {other} {}{:?}",
                    expected.dtype(),
                    expected.dims(),
                    found.dtype(),
                    found.dims()
                ));
            }
            if !expected.dtype().is_float() {
                if expected.same_bits(found) {
                    continue;
                }
                return Ok(format!("{name} has other numbers"));
            }
            let (a, b) = (floats(expected), floats(found));
            let finite = |v: &f64| if v.is_finite() { v.abs() } else { 0.0 };
            let largest = a.iter().map(finite).fold(0.0, f64::max);
            // The moves of single elements are a matter of luck.
            let most = moves.iter().map(finite).fold(0.0, f64::max);
            for (k, (a, b)) in a.iter().zip(&b).enumerate() {
                let same = a == b || a.is_nan() && b.is_nan() || moves[k].is_infinite();
                let allowed = ROUNDING * largest + MOVES * most;
                let near = (a - b).abs() <= allowed;
                if !same && !near {
                    return Ok(format!(
                        "{name}[{k}] is {b} instead of {a}, where {allowed:e} is allowed"
                    ));
                }
            }
        }
        Ok(String::new())
    }
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.to_f64s().unwrap_or_default()
}

fn run(runtime: &'static Runtime, model: &Model, inputs: &Named) -> Result<Named, String> {
    let bytes = onnx::to_bytes(model).map_err(|e| e.to_string())?;
    let mut session =
        common::session(runtime, &bytes, Optimization::Disabled).map_err(|e| e.to_string())?;
    session.run(inputs).map_err(|e| e.to_string())
}

const COMMUTATIVE: &[&str] = &["Add", "Mul", "Max", "Min", "Sum", "Equal", "And", "Or"];

/// A graph as lines, one for each node, in an order that depends on what they compute only.
pub fn meaning(g: &Graph) -> String {
    let mut names = HashMap::new();
    let mut lines = Vec::new();
    for id in g.topo_order().unwrap() {
        let node = g.node(id);
        let mut parts: Vec<String> = (node.inputs().iter())
            .map(|v| match v {
                None => "_".to_string(),
                Some(v) => match g.value(*v).def() {
                    Def::Input(_) => g.value(*v).name().to_string(),
                    Def::Constant(t) => constant(t),
                    _ => names.get(v).cloned().unwrap_or_else(|| "?".to_string()),
                },
            })
            .collect();
        // Of equal nodes whose operands are exchanged, either may stay.
        if node.op().is_any(COMMUTATIVE) {
            parts.sort();
        }
        let line = format!("{}({}) {:?}", node.op(), parts.join(", "), node.attrs());
        let hash = hash(line.as_bytes());
        for (k, v) in node.outputs().iter().enumerate() {
            names.extend(v.map(|v| (v, format!("{hash:08x}.{k}"))));
        }
        lines.push(format!("{hash:08x} = {line}"));
    }
    lines.sort();
    for output in g.outputs() {
        let value = g.value(output.value);
        let from = match value.def() {
            Def::Constant(t) => constant(t),
            Def::Input(_) => value.name().to_string(),
            _ => names.get(&output.value).cloned().unwrap_or_default(),
        };
        lines.push(format!("{} = {from}", output.name));
    }
    lines.join("\n")
}

fn constant(t: &Tensor) -> String {
    let hash = hash(&t.bytes());
    format!("{}{:?}#{hash:08x}", t.dtype(), t.dims())
}

fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| {
        (h ^ u32::from(*b)).wrapping_mul(0x0100_0193)
    })
}
