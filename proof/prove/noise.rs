//! How far the reference is from itself. Measured where a result is beyond its limits, and of what rounds to integers.

use kiln_graph::{DType, Element, Graph, Model, Tensor, ValueId};
use rustc_hash::FxHashSet;

use crate::parity::{Floor, Metrics, Tolerance, metrics};

/// Of each output of the reference at one case.
#[derive(Clone, Debug, Default)]
pub(super) struct Noise {
    pub outputs: Vec<OutputNoise>,
}

#[derive(Clone, Debug)]
pub(super) struct OutputNoise {
    pub name: String,
    pub floor: Floor,
    /// Between two runs on the same inputs, where that is beyond the tolerance.
    pub random: Option<f64>,
}

/// Perturbed models that are run.
pub(super) const PERTURBED: u64 = 2;

/// The same of a model that rounds activations to integers: whether a number is at the edge of a step is chance.
pub(super) const PERTURBED_STEPS: u64 = 4;

/// Bytes of weights that are perturbed, the smallest first: each is copied.
const COPIED: usize = 256 << 20;

impl Noise {
    /// A second run on the same inputs.
    pub fn again(
        &mut self,
        expected: &[(String, Tensor)],
        again: &[(String, Tensor)],
        tolerance: &Tolerance,
    ) {
        each(expected, again, |name, m| {
            let output = self.of(name);
            output.floor.add(&m);
            // A limit that nothing can hold says nothing of the reference.
            if m.unequal > 0 && !tolerance.check(name, &m).pass {
                let float = m.float.as_ref().map(|f| f.relative_l2);
                output.random = Some(float.unwrap_or(m.unequal as f64 / m.elements as f64));
            }
        });
    }

    /// A run that ought to give the same but for rounding.
    pub fn add(&mut self, expected: &[(String, Tensor)], found: &[(String, Tensor)]) {
        each(expected, found, |name, m| self.of(name).floor.add(&m));
    }

    fn of(&mut self, name: &str) -> &mut OutputNoise {
        let known = self.outputs.iter().position(|o| o.name == name);
        let at = known.unwrap_or_else(|| {
            self.outputs.push(OutputNoise {
                name: name.to_string(),
                floor: Floor::default(),
                random: None,
            });
            self.outputs.len() - 1
        });
        &mut self.outputs[at]
    }
}

/// Outputs of both sides that can be compared.
fn each(
    expected: &[(String, Tensor)],
    found: &[(String, Tensor)],
    mut f: impl FnMut(&str, Metrics),
) {
    for (name, a) in expected {
        let b = found.iter().find(|(n, _)| n == name);
        if let Some(m) = b.and_then(|(_, b)| metrics(a, b)) {
            f(name, m);
        }
    }
}

/// Whether a model rounds activations to integers: ONNX Runtime's optimizer then puts other kernels in their place, whose
/// sums saturate on some processors, which is no rounding; and a last bit moves a number by a step, or by nothing.
pub(crate) fn quantizes(graph: &Graph) -> bool {
    let mut found = false;
    graph.for_each_graph(&mut |g| {
        found |= g.nodes().any(|(_, n)| {
            let name = n.op().name();
            ["Quantize", "Integer", "QLinear"]
                .iter()
                .any(|part| name.contains(part))
        });
    });
    found
}

/// Operators that calculate with their constants.
const CALCULATE: &[&str] = &[
    "MatMul",
    "Gemm",
    "Conv",
    "ConvTranspose",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Gather",
    "LayerNormalization",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "PRelu",
    "LSTM",
    "GRU",
    "RNN",
];

/// The model with the last bit of its weights changed, up or down as the seed says. Whole numbers stay: they are exact, and
/// may be sizes.
pub(super) fn perturbed(model: &Model, seed: u64) -> Model {
    let mut model = model.clone();
    let mut left = COPIED;
    let mut random = Bits(seed);
    model.graph.for_each_graph_mut(&mut |g| {
        let mut weights: Vec<(usize, ValueId)> = (calculated(g).into_iter())
            .filter_map(|v| Some((g.constant(v)?.byte_len(), v)))
            .collect();
        weights.sort_by_key(|&(bytes, v)| (bytes, v.index()));
        for (bytes, v) in weights {
            if bytes > left {
                break;
            }
            if let Some(moved) = g.constant(v).and_then(|t| nudged(t, &mut random)) {
                left -= bytes;
                g.set_constant(v, moved);
            }
        }
    });
    model
}

/// Inputs of floats with their last bit changed.
pub(super) fn perturbed_inputs(inputs: &[(String, Tensor)], seed: u64) -> Vec<(String, Tensor)> {
    let mut random = Bits(seed);
    let mut moved = |t: &Tensor| nudged(t, &mut random).unwrap_or_else(|| t.clone());
    inputs.iter().map(|(n, t)| (n.clone(), moved(t))).collect()
}

fn calculated(g: &Graph) -> FxHashSet<ValueId> {
    let calculating = g.nodes().filter(|(_, n)| n.op().is_any(CALCULATE));
    let read = calculating.flat_map(|(_, n)| n.inputs().iter().flatten().copied());
    read.filter(|&v| g.constant(v).is_some()).collect()
}

/// `None` for what is not of floats.
fn nudged(tensor: &Tensor, random: &mut Bits) -> Option<Tensor> {
    match tensor.dtype() {
        DType::F64 => moved(tensor, |v: f64| {
            let bits = v.to_bits().wrapping_add_signed(random.sign());
            pick(v, f64::from_bits(bits), v.fract() != 0.0)
        }),
        DType::F32 => moved(tensor, |v: f32| {
            let bits = v.to_bits().wrapping_add_signed(random.sign() as i32);
            pick(v, f32::from_bits(bits), v.fract() != 0.0)
        }),
        DType::F16 => moved(tensor, |v: half::f16| {
            let bits = v.to_bits().wrapping_add_signed(random.sign() as i16);
            pick(v, half::f16::from_bits(bits), v.to_f32().fract() != 0.0)
        }),
        DType::BF16 => moved(tensor, |v: half::bf16| {
            let bits = v.to_bits().wrapping_add_signed(random.sign() as i16);
            pick(v, half::bf16::from_bits(bits), v.to_f32().fract() != 0.0)
        }),
        _ => None,
    }
}

/// The fractional part of an infinity or NaN is NaN, which is not 0.
fn pick<T: Copy + Into<f64>>(old: T, new: T, fraction: bool) -> T {
    let finite = old.into().is_finite() && new.into().is_finite();
    if fraction && finite { new } else { old }
}

fn moved<T: Element>(tensor: &Tensor, f: impl FnMut(T) -> T) -> Option<Tensor> {
    let values: Vec<T> = tensor.values::<T>()?.into_iter().map(f).collect();
    Tensor::from_values(tensor.dims(), &values).ok()
}

/// SplitMix64.
struct Bits(u64);

impl Bits {
    fn sign(&mut self) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) & 1 == 0 { 1 } else { -1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_bit_moves_fractions_and_leaves_whole_numbers() {
        let tensor = Tensor::vector(&[0.1f32, 2.0, -0.3, 0.0, f32::INFINITY, f32::NAN]);
        let moved: Vec<f32> = nudged(&tensor, &mut Bits(1)).unwrap().values().unwrap();
        assert!(moved[0] != 0.1 && (moved[0] - 0.1).abs() < 1e-8);
        assert_eq!(moved[1], 2.0);
        assert!(moved[2] != -0.3 && (moved[2] + 0.3).abs() < 1e-7);
        assert!(moved[3] == 0.0 && moved[4].is_infinite() && moved[5].is_nan());
        assert!(nudged(&Tensor::vector(&[1i64]), &mut Bits(1)).is_none());
    }
}
