//! Integers and bools that a comparison of numbers decides: a result that decides otherwise is right if the numbers were so
//! close that its precision may swap them.

use kiln_graph::{DType, Graph, Model, Tensor, ValueId};
use rustc_hash::FxHashSet;

use crate::parity::Margin;

/// How an output is decided.
pub(super) struct Decision {
    /// Numbers of the original that are compared: those of which a place is chosen, or two.
    operands: Vec<ValueId>,
    /// The axis of the places; `None` where two numbers are compared.
    axis: Option<i64>,
}

/// Operators that pass elements on in their order.
const RELAYS: &[&str] = &[
    "Identity",
    "Cast",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
];

/// How the output of this name is decided, if by one comparison of floats that are rounded. Of ids and positions no two are
/// close: a result that takes one for another is wrong.
pub(super) fn decision(g: &Graph, output: &str) -> Option<Decision> {
    let mut v = g.outputs().iter().find(|o| &*o.name == output)?.value;
    // A chain is no longer than the graph.
    for _ in 0..=g.node_count() {
        let node = g.node(g.producer(v)?);
        let axis = |default| node.attrs().int("axis").unwrap_or(default);
        let op = node.op();
        let (operands, axis) = if op.is_any(&["ArgMax", "ArgMin"]) {
            (vec![node.input(0)?], Some(axis(0)))
        } else if op.is("TopK") && node.output(1) == Some(v) {
            (vec![node.input(0)?], Some(axis(-1)))
        } else if op.is_any(&["Greater", "GreaterOrEqual", "Less", "LessOrEqual"]) {
            (vec![node.input(0)?, node.input(1)?], None)
        } else if op.is_any(RELAYS) {
            v = node.input(0)?;
            continue;
        } else {
            return None;
        };
        let whole = operands.iter().all(|&v| is_made_of_integers(g, v));
        return (!whole).then_some(Decision { operands, axis });
    }
    None
}

/// Operators that sum up many numbers.
const SUMS: &[&str] = &["MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"];

/// Whether floats are computed from nothing but integers and constants, without a table of floats and without products.
fn is_made_of_integers(g: &Graph, v: ValueId) -> bool {
    let is_float = |v: ValueId| g.value(v).ty().dtype().is_none_or(DType::is_float);
    let (mut seen, mut open) = (FxHashSet::default(), vec![v]);
    while let Some(v) = open.pop() {
        if !seen.insert(v) || g.constant(v).is_some() || !is_float(v) {
            continue;
        }
        let Some(id) = g.producer(v) else {
            return false;
        };
        let node = g.node(id);
        let table = node
            .input(0)
            .filter(|&v| is_float(v))
            .and_then(|v| g.constant(v));
        let embeds = node.op().name().starts_with("Gather") && table.is_some_and(|t| t.len() > 1);
        if embeds || node.op().is_any(SUMS) || node.has_subgraphs() {
            return false;
        }
        open.extend(node.inputs().iter().flatten());
    }
    true
}

impl Decision {
    /// The numbers that are compared: constants, inputs, or what `run` gives for a model with these outputs.
    pub fn operands(
        &self,
        original: &Model,
        inputs: &[(String, Tensor)],
        run: impl FnOnce(&Model) -> Option<Vec<(String, Tensor)>>,
    ) -> Option<Vec<(String, Tensor)>> {
        let g = &original.graph;
        let known = |v: ValueId| {
            let given = inputs.iter().find(|(n, _)| n == g.value(v).name());
            let given = given.filter(|_| g.inputs().contains(&v));
            g.constant(v).cloned().or(given.map(|(_, t)| t.clone()))
        };
        let name = |k: usize| format!("operand {k}");
        let mut exposed = original.clone();
        exposed.graph.take_outputs();
        let mut any = false;
        for (k, &v) in self.operands.iter().enumerate() {
            if known(v).is_none() {
                exposed.graph.add_output(&name(k), v);
                any = true;
            }
        }
        let found = if any { run(&exposed)? } else { Vec::new() };
        let of = |(k, &v): (usize, &ValueId)| {
            let computed = || found.iter().find(|(n, _)| *n == name(k));
            let tensor = known(v).or_else(|| computed().map(|(_, t)| t.clone()))?;
            Some((name(k), tensor))
        };
        self.operands.iter().enumerate().map(of).collect()
    }

    /// By how much the numbers differ between which both sides decided differently. `None` where that cannot be told.
    pub fn margin(
        &self,
        operands: &[(String, Tensor)],
        expected: &Tensor,
        found: &Tensor,
        limit: f64,
    ) -> Option<Margin> {
        let numbers: Vec<Vec<f64>> = (operands.iter())
            .map(|(_, t)| t.dtype().is_float().then(|| t.to_f64s())?)
            .collect::<Option<_>>()?;
        let all = || numbers.iter().flatten().filter(|v| v.is_finite());
        let rms = (all().map(|v| v * v).sum::<f64>() / all().count().max(1) as f64).sqrt();
        let between = |a: f64, b: f64| {
            // Infinities and NaN are no close decision.
            let scaled = (a - b).abs() / a.abs().max(b.abs()).max(rms);
            if a == b { 0.0 } else { scaled }
        };
        let (expected, found) = (places(expected)?, places(found)?);
        if expected.len() != found.len() {
            return None;
        }
        let mut largest = 0.0f64;
        let differing = (0..expected.len()).filter(|&k| expected[k] != found[k]);
        for k in differing {
            let scaled = match (self.axis, operands, &numbers[..]) {
                (Some(axis), [(_, scores)], [numbers]) => {
                    let at = Scores::new(scores.dims(), axis, expected.len())?;
                    let of = |place| numbers.get(at.index(k, place)?).copied();
                    between(of(expected[k])?, of(found[k])?)
                }
                (None, [(_, a), (_, b)], [left, right]) => {
                    let dims = broadcast(a.dims(), b.dims())?;
                    let a = left.get(element(k, &dims, a.dims()))?;
                    between(*a, *right.get(element(k, &dims, b.dims()))?)
                }
                _ => return None,
            };
            if scaled.is_nan() {
                return None;
            }
            largest = largest.max(scaled);
        }
        Some(Margin { largest, limit })
    }
}

fn places(tensor: &Tensor) -> Option<Vec<i64>> {
    match tensor.values::<bool>() {
        Some(bools) => Some(bools.into_iter().map(i64::from).collect()),
        None => tensor.to_i64s(),
    }
}

/// Where the scores of an axis are, in row-major order.
struct Scores {
    width: usize,
    inner: usize,
    /// Places chosen of each row.
    chosen: usize,
}

impl Scores {
    fn new(dims: &[usize], axis: i64, places: usize) -> Option<Scores> {
        let axis = if axis < 0 {
            axis + dims.len() as i64
        } else {
            axis
        };
        let axis = usize::try_from(axis).ok().filter(|&a| a < dims.len())?;
        let inner: usize = dims[axis + 1..].iter().product();
        let rows = dims[..axis].iter().product::<usize>() * inner;
        let chosen = places.checked_div(rows)?;
        (chosen > 0 && rows * chosen == places).then_some(Scores {
            width: dims[axis],
            inner,
            chosen,
        })
    }

    /// The score that the `k`-th choice names; `None` beyond the axis.
    fn index(&self, k: usize, place: i64) -> Option<usize> {
        let place = match place < 0 {
            true => place + self.width as i64,
            false => place,
        };
        let place = usize::try_from(place).ok().filter(|&p| p < self.width)?;
        let (outer, inner) = (k / (self.chosen * self.inner), k % self.inner);
        Some((outer * self.width + place) * self.inner + inner)
    }
}

/// The shape of two operands' result; `None` if they do not fit.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let of = |dims: &[usize], k: usize| match (k + dims.len()).checked_sub(rank) {
        Some(at) => dims[at],
        None => 1,
    };
    (0..rank)
        .map(|k| match (of(a, k), of(b, k)) {
            (1, n) | (n, 1) => Some(n),
            (n, m) => (n == m).then_some(n),
        })
        .collect()
}

/// The element of an operand that belongs to the `k`-th of the result.
fn element(mut k: usize, dims: &[usize], operand: &[usize]) -> usize {
    let skipped = dims.len() - operand.len();
    let (mut at, mut stride) = (0, 1);
    for axis in (0..dims.len()).rev() {
        let place = k % dims[axis].max(1);
        k /= dims[axis].max(1);
        if axis >= skipped {
            let size = operand[axis - skipped];
            at += if size == 1 { 0 } else { place * stride };
            stride *= size;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dims: &[usize], values: &[f32]) -> (String, Tensor) {
        let tensor = Tensor::from_values(dims.to_vec(), values).unwrap();
        ("operand".to_string(), tensor)
    }

    fn largest(decision: &Decision, operands: &[(String, Tensor)], a: &[i64], b: &[i64]) -> f64 {
        let (a, b) = (Tensor::vector(a), Tensor::vector(b));
        let margin = decision.margin(operands, &a, &b, 0.1);
        margin.map_or(f64::INFINITY, |m| m.largest)
    }

    #[test]
    fn places_are_found_along_their_axis() {
        let decision = Decision {
            operands: Vec::new(),
            axis: Some(1),
        };
        // Two rows of three scores, for two columns each.
        let scores = [one(
            &[2, 3, 2],
            &[1., 9., 1.01, 2., 0., 3., 5., 5., 5., 5., 4., 5.],
        )];
        let found = largest(&decision, &scores, &[1, 0, 0, 0], &[0, 0, 0, 0]);
        assert!(found > 0.0 && found < 0.01, "{found}");
        assert_eq!(
            largest(&decision, &scores, &[1, 0, 0, 0], &[1, 0, 1, 2]),
            0.0
        );
        let wrong = largest(&decision, &scores, &[1, 0, 0, 0], &[1, 1, 0, 0]);
        assert!(wrong > 0.5, "{wrong}");
        assert!(largest(&decision, &scores, &[1, 0, 0, 0], &[3, 0, 0, 0]).is_infinite());
    }

    #[test]
    fn numbers_that_are_compared_are_broadcast() {
        let decision = Decision {
            operands: Vec::new(),
            axis: None,
        };
        let operands = [one(&[2, 2], &[1., 2., 3., 1.001]), one(&[], &[1.])];
        let close = largest(&decision, &operands, &[0, 1, 1, 1], &[0, 1, 1, 0]);
        assert!(close > 0.0 && close < 1e-3, "{close}");
        assert!(largest(&decision, &operands, &[0, 1, 1, 1], &[0, 0, 1, 1]) > 0.4);
        let infinite = [one(&[1], &[f32::INFINITY]), one(&[1], &[1.])];
        assert!(largest(&decision, &infinite, &[1], &[0]).is_infinite());
    }
}
