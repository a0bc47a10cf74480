//! Which tensor is the first that diverges: values of the same name in both graphs, compared in the order of computation.

use kiln_graph::{Graph, Model, Tensor, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use super::Error;
use crate::inner::{common, exposed, wide};
use crate::parity::{self, Report, Side, Tolerance};
use crate::prove::Reference;

/// What the comparison of inner values found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Layers {
    /// The case that was run.
    pub case: String,
    /// Values that both graphs compute under one name, in the reference's order.
    pub compared: Vec<Layer>,
    /// The first value beyond the tolerance whose operands are within it, and which something after it does not make good (as
    /// a softmax does with how negative a mask is); `null` if there is none.
    pub first: Option<Divergence>,
}

/// One value.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Layer {
    pub value: String,
    /// The node that computes it, in the candidate.
    pub node: String,
    pub relative_l2: f64,
    pub cosine: f64,
    pub pass: bool,
}

/// Where two graphs part.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Divergence {
    pub layer: Layer,
    /// What the candidate's node reads.
    pub operands: Vec<Operand>,
}

/// An operand and its numbers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Operand {
    pub value: String,
    pub constant: bool,
    pub min: f64,
    pub max: f64,
    /// `null` if the reference has no such value.
    pub relative_l2: Option<f64>,
}

/// Values that become outputs at once.
const GROUP: usize = 64;

pub(super) fn find(
    reference: &Reference,
    original: &Model,
    candidate: &Model,
    report: &Report,
    tolerance: &Tolerance,
) -> Result<Layers, Error> {
    // The first case that fails is the smallest.
    let failed = report.cases.iter().find(|c| c.failed());
    let Some(case) = reference.case(failed.map(|c| c.name.as_str())) else {
        return Ok(Layers {
            case: String::new(),
            compared: Vec::new(),
            first: None,
        });
    };
    let pairs = common(&original.graph, &candidate.graph);
    let mut layers: Vec<Layer> = Vec::new();
    let mut suspects: Vec<(ValueId, usize)> = Vec::new();
    let mut errors: FxHashMap<String, (f64, bool)> = FxHashMap::default();
    for group in pairs.chunks(GROUP) {
        let names: Vec<&str> = group.iter().map(|p| p.name.as_str()).collect();
        let left = exposed(
            original,
            &group.iter().map(|p| p.original).collect::<Vec<_>>(),
            &names,
        );
        let right = exposed(
            candidate,
            &group.iter().map(|p| p.candidate).collect::<Vec<_>>(),
            &names,
        );
        let left = reference.run(&left, &case.inputs, Side::Reference)?;
        let right = reference.run(&right, &case.inputs, Side::Candidate)?;
        for pair in group {
            let of = |side: &[(String, Tensor)]| {
                side.iter()
                    .find(|(n, _)| *n == pair.name)
                    .map(|(_, t)| wide(t))
            };
            let (Some(Some(a)), Some(Some(b))) = (of(&left), of(&right)) else {
                continue;
            };
            let Some(metrics) = parity::metrics(&a, &b) else {
                continue;
            };
            let Some(float) = &metrics.float else {
                continue;
            };
            let pass = tolerance.limits.check(&metrics).pass;
            errors.insert(pair.name.clone(), (float.relative_l2, pass));
            layers.push(Layer {
                value: pair.name.clone(),
                node: label(&candidate.graph, pair.candidate),
                relative_l2: float.relative_l2,
                cosine: float.cosine,
                pass,
            });
            if !pass && sound(&candidate.graph, pair.candidate, &errors) {
                suspects.push((pair.candidate, layers.len() - 1));
            }
        }
    }
    let mut suspects = suspects.into_iter();
    let first = suspects.find(|&(v, _)| !made_good(&candidate.graph, v, &errors));
    let first = match first {
        Some((value, at)) => layers.get(at).cloned().map(|layer| (value, layer)),
        None => None,
    };
    let first = match first {
        Some((value, layer)) => Some(Divergence {
            operands: operands(reference, candidate, value, case, &errors)?,
            layer,
        }),
        None => None,
    };
    Ok(Layers {
        case: case.name.clone(),
        compared: layers,
        first,
    })
}

fn label(g: &Graph, v: ValueId) -> String {
    g.producer(v)
        .map_or_else(|| "an input".into(), |id| g.label(id))
}

/// Whether all operands that were compared are within the tolerance.
fn sound(g: &Graph, v: ValueId, errors: &FxHashMap<String, (f64, bool)>) -> bool {
    let Some(id) = g.producer(v) else {
        return true;
    };
    let mut operands = g.node(id).inputs().iter().flatten();
    operands.all(|&v| errors.get(g.value(v).name()).is_none_or(|(_, pass)| *pass))
}

/// Whether every way from the value leads to one that was compared and is within the tolerance, before it leads out.
fn made_good(g: &Graph, v: ValueId, errors: &FxHashMap<String, (f64, bool)>) -> bool {
    let is_output = |v: ValueId| g.outputs().iter().any(|o| o.value == v);
    let mut todo = vec![v];
    let mut seen = FxHashSet::default();
    while let Some(at) = todo.pop() {
        if is_output(at) {
            return false;
        }
        for user in g.value(at).uses() {
            for &next in g.node(user.node).outputs().iter().flatten() {
                if !seen.insert(next) {
                    continue;
                }
                match errors.get(g.value(next).name()) {
                    Some((_, true)) => {}
                    Some((_, false)) => return false,
                    None => todo.push(next),
                }
            }
        }
    }
    true
}

fn operands(
    reference: &Reference,
    candidate: &Model,
    value: ValueId,
    case: &parity::Case,
    errors: &FxHashMap<String, (f64, bool)>,
) -> Result<Vec<Operand>, Error> {
    let g = &candidate.graph;
    let Some(id) = g.producer(value) else {
        return Ok(Vec::new());
    };
    let inputs: Vec<ValueId> = g.node(id).inputs().iter().flatten().copied().collect();
    let computed: Vec<ValueId> = inputs
        .iter()
        .copied()
        .filter(|&v| g.producer(v).is_some())
        .collect();
    let names: Vec<&str> = computed.iter().map(|&v| g.value(v).name()).collect();
    let run = match computed.is_empty() {
        true => Vec::new(),
        false => reference.run(
            &exposed(candidate, &computed, &names),
            &case.inputs,
            Side::Candidate,
        )?,
    };
    let mut all = Vec::new();
    for v in inputs {
        let name = g.value(v).name();
        let constant = g.constant(v);
        let given = case.inputs.iter().chain(&run).find(|(n, _)| n == name);
        let Some(numbers) = constant.or(given.map(|(_, t)| t)).and_then(Tensor::to_f64s) else {
            continue;
        };
        let finite = numbers.iter().copied().filter(|v| v.is_finite());
        all.push(Operand {
            value: name.to_string(),
            constant: constant.is_some(),
            min: finite.clone().fold(f64::INFINITY, f64::min),
            max: finite.fold(f64::NEG_INFINITY, f64::max),
            relative_l2: errors.get(name).map(|(e, _)| *e),
        });
    }
    Ok(all)
}
