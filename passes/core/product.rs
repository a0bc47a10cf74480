//! Products in their normal form: factors in any order and nesting, and one number.
//!
//! `x · ½ · (1 + e)` has a dozen spellings as nodes of two operands. A body writes one of them; the matcher asks for the factors.

use kiln_graph::{DType, Def, Graph, NodeId, ValueId};
use smallvec::{SmallVec, smallvec};

/// The product that a body asks for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Values of the body, what is computed there first: it tells more than an input.
    pub factors: SmallVec<[ValueId; 4]>,
    pub number: f64,
}

impl Wanted {
    /// The product at a node of a body, if more than two factors or a number make its order matter. A number that the body
    /// binds to an attribute makes it none.
    pub fn of(body: &Graph, node: NodeId) -> Option<Wanted> {
        let mut wanted = Wanted {
            factors: SmallVec::new(),
            number: 1.0,
        };
        let mut numbers = 0;
        wanted.collect(body, node, &mut numbers)?;
        let computed = |v: &ValueId| !matches!(body.value(*v).def(), Def::Node(..));
        wanted.factors.sort_by_key(computed);
        (numbers > 0 || wanted.factors.len() > 2).then_some(wanted)
    }

    fn collect(&mut self, body: &Graph, node: NodeId, numbers: &mut usize) -> Option<()> {
        if !body.node(node).op().is("Mul") {
            return None;
        }
        for &v in body.node(node).inputs().iter().flatten() {
            if let Some(number) = body.constant(v) {
                self.number *= number.as_f64()?;
                *numbers += 1;
                continue;
            }
            if body.producer_if(v, "Constant").is_some() {
                return None;
            }
            match body.producer_if(v, "Mul") {
                Some(inner) if body.value(v).uses().len() == 1 => {
                    self.collect(body, inner, numbers)?;
                }
                _ => self.factors.push(v),
            }
        }
        Some(())
    }
}

/// One way to read a value of the graph as a product.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub factors: SmallVec<[ValueId; 4]>,
    pub number: f64,
    /// How far the number may be from the one that is meant, as a part of it.
    pub off: f64,
    pub nodes: SmallVec<[NodeId; 4]>,
}

/// Nested products that are looked into.
const MAX_DEPTH: usize = 6;

/// Ways to read a value that are kept.
const MAX_READINGS: usize = 32;

/// All readings of `v` as a product of so many factors, the most nested first.
pub(super) fn readings(g: &Graph, v: ValueId, factors: usize) -> Vec<Reading> {
    let mut all = read(g, v, factors, MAX_DEPTH);
    all.retain(|r| r.factors.len() == factors && !r.nodes.is_empty());
    all
}

fn read(g: &Graph, v: ValueId, most: usize, depth: usize) -> Vec<Reading> {
    let plain = Reading {
        factors: SmallVec::new(),
        number: 1.0,
        off: 0.0,
        nodes: SmallVec::new(),
    };
    if let Some(number) = number(g, v) {
        let off = rounding(g, v);
        return vec![Reading {
            number,
            off,
            ..plain
        }];
    }
    let mut out = nested(g, v, most, depth).unwrap_or_default();
    out.truncate(MAX_READINGS - 1);
    if most > 0 {
        out.push(Reading {
            factors: smallvec![v],
            ..plain
        });
    }
    out
}

/// The readings of a product, a quotient by a number or a power, by its operands.
fn nested(g: &Graph, v: ValueId, most: usize, depth: usize) -> Option<Vec<Reading>> {
    let Def::Node(id, 0) = *g.value(v).def() else {
        return None;
    };
    let node = g.node(id);
    let (&[Some(a), Some(b)], true) = (node.inputs(), depth > 0) else {
        return None;
    };
    if node.op().is("Pow") {
        let times = number(g, b).filter(|n| [2.0, 3.0].contains(n) && *n <= most as f64)?;
        return Some(vec![Reading {
            factors: smallvec![a; times as usize],
            number: 1.0,
            off: 0.0,
            nodes: smallvec![id],
        }]);
    }
    let divides = node.op().is("Div");
    let fits = divides && number(g, b).is_some_and(|n| n != 0.0) || node.op().is("Mul");
    if !fits || !keeps_rank(g, a, b) || !keeps_rank(g, b, a) {
        return None;
    }
    let mut out = Vec::new();
    for left in read(g, a, most, depth - 1) {
        for right in read(g, b, most - left.factors.len(), depth - 1) {
            let mut joined = left.clone();
            joined.number = match divides {
                true => left.number / right.number,
                false => left.number * right.number,
            };
            joined.off += right.off;
            joined.factors.extend(right.factors);
            joined.nodes.extend(right.nodes);
            joined.nodes.push(id);
            out.push(joined);
        }
    }
    Some(out)
}

/// The one element of a constant of floats.
fn number(g: &Graph, v: ValueId) -> Option<f64> {
    let tensor = g.constant(v).filter(|t| t.len() == 1);
    tensor.filter(|t| t.dtype().is_float())?.as_f64()
}

/// A one-element constant stands for a scalar only if broadcasting it does not add dimensions.
fn keeps_rank(g: &Graph, v: ValueId, other: ValueId) -> bool {
    let rank = g.constant(v).map_or(0, kiln_graph::Tensor::rank);
    let constant = g.constant(v).is_some_and(|t| t.len() == 1);
    !constant || rank == 0 || g.value(other).ty().rank().is_some_and(|r| r >= rank)
}

fn rounding(g: &Graph, v: ValueId) -> f64 {
    precision(g.value(v).ty().dtype())
}

/// How far a number of this type may be from the decimal that it stands for, as a part of it.
pub(super) fn precision(dtype: Option<DType>) -> f64 {
    match dtype {
        Some(DType::F16) => 1e-3,
        Some(DType::BF16) => 8e-3,
        _ => 1e-6,
    }
}

#[cfg(test)]
mod tests {
    use kiln_graph::onnx;

    use super::*;

    /// The readings of `y` in a graph, as names of factors and a number.
    fn read(nodes: &str, factors: usize) -> Vec<(Vec<String>, f64)> {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 20]>\ng (float[2, 3] x, float[2, 3] z) => (float[2, 3] y)\n\
             <float half = {{0.5}}, float two = {{2.0}}, float three = {{3.0}}, float[1, 1, 1] deep = {{2.0}}> {{ {nodes} }}"
        );
        let model = onnx::read_text(&text).unwrap();
        let g = &model.graph;
        let named = |r: &Reading| {
            let mut names: Vec<String> = (r.factors.iter())
                .map(|v| g.value(*v).name().to_string())
                .collect();
            names.sort_unstable();
            (names, r.number)
        };
        let found = readings(g, g.outputs()[0].value, factors);
        found.iter().map(named).collect()
    }

    #[test]
    fn factors_stand_in_any_nesting_and_numbers_are_multiplied() {
        let wanted = (vec!["x".to_string(), "z".to_string()], 0.25);
        for nodes in [
            "a = Mul(x, half)  b = Mul(z, half)  y = Mul(a, b)",
            "a = Mul(x, z)  b = Mul(half, a)  y = Div(b, two)",
            "a = Div(x, two)  b = Mul(a, z)  y = Mul(b, half)",
        ] {
            let found = read(nodes, 2);
            assert!(found.contains(&wanted), "{nodes}: {found:?}");
        }
    }

    #[test]
    fn powers_are_factors() {
        let cube = vec!["x".to_string(); 3];
        assert_eq!(read("y = Pow(x, three)", 3), [(cube.clone(), 1.0)]);
        assert_eq!(read("q = Mul(x, x)  y = Mul(q, x)", 3), [(cube, 1.0)]);
        assert!(read("y = Pow(x, half)", 1).is_empty());
    }

    #[test]
    fn a_quotient_by_a_value_and_a_number_of_more_axes_are_none() {
        assert!(read("y = Div(x, z)", 2).is_empty());
        assert!(read("y = Mul(x, deep)", 1).is_empty());
    }
}
