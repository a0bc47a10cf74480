//! What reads the rows that a LayerNormalization makes: products with weights, residual sums, and others.

use kiln_graph::graph::Slot;
use kiln_graph::infer::Facts;
use kiln_graph::ops::{self, InternalAttention};
use kiln_graph::{DType, Graph, NodeId, ValueId};

use super::attention::operand_bias::MOVES;

/// A constant row that is added.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    pub add: NodeId,
    /// What it is added to.
    pub term: ValueId,
    pub constant: ValueId,
    pub value: ValueId,
}

/// A node that reads rows, as they are or moved: `at`.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    pub at: ValueId,
    pub node: NodeId,
    pub role: Role,
}

#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// A product with a weight in FP32, and the bias behind it.
    Product {
        sum: Option<Sum>,
        attends: bool,
    },
    /// What adds the rows to another value, and the sum with a constant that this is, if it is one.
    Residual {
        other: ValueId,
        inner: Option<Sum>,
    },
    Other,
}

/// Moves in a row that are followed.
const MOST_MOVES: usize = 16;

impl Reader {
    /// All readers of `rows`; `None` where they are moved about too often to be followed.
    pub fn all(g: &Graph, facts: &Facts, rows: ValueId) -> Option<Vec<Reader>> {
        let mut forms = vec![rows];
        let mut next = 0;
        let mut readers = Vec::new();
        while let Some(&at) = forms.get(next) {
            next += 1;
            (forms.len() <= MOST_MOVES).then_some(())?;
            for usage in g.value(at).uses() {
                match moved(g, facts, at, usage.node, usage.slot) {
                    Some(form) => forms.push(form),
                    None => readers.push((at, usage.node, usage.slot)),
                }
            }
        }
        let outputs = forms.iter().filter(|&&v| g.value(v).is_output());
        let outputs = outputs.filter_map(|&at| Some((at, g.producer(at)?)));
        let outputs: Vec<_> = outputs
            .map(|(at, node)| Reader {
                at,
                node,
                role: Role::Other,
            })
            .collect();
        let readers = readers.into_iter().map(|(at, node, slot)| {
            let role = Role::of(g, facts, &forms, at, node, slot);
            let role = role.unwrap_or(Role::Other);
            Reader { at, node, role }
        });
        Some(readers.chain(outputs).collect())
    }

    pub fn is_other(&self) -> bool {
        matches!(self.role, Role::Other)
    }

    /// Whether it is a projection of attention with a bias.
    pub fn is_biased_projection(&self) -> bool {
        let Role::Product { sum, attends } = self.role else {
            return false;
        };
        attends && sum.is_some()
    }
}

/// The same rows in other places, if that is all that the node makes of them.
fn moved(g: &Graph, facts: &Facts, at: ValueId, id: NodeId, slot: Slot) -> Option<ValueId> {
    let node = g.node(id);
    let made = node.sole_output().filter(|_| slot == Slot::Input(0))?;
    let (old, new) = (facts.dims(at)?, facts.dims(made)?);
    let whole = old.last()?.as_i64().is_some() && old.last() == new.last();
    let channels = old.len().checked_sub(1)?;
    let keeps = match ops::Transpose::of(g, id) {
        Some(transpose) => transpose.perm()?.last() == Some(&channels),
        None if node.op().is("Gather") => {
            let axis = ops::Gather::of(g, id)?.axis();
            ops::resolve_axis(axis, old.len()) != Some(channels)
        }
        None => node.op().is_any(MOVES),
    };
    (keeps && whole).then_some(made)
}

impl Role {
    fn of(
        g: &Graph,
        facts: &Facts,
        forms: &[ValueId],
        at: ValueId,
        id: NodeId,
        slot: Slot,
    ) -> Option<Role> {
        let node = g.node(id);
        let made = node.sole_output()?;
        if node.op().is("Add") {
            let other = *node.inputs().iter().flatten().find(|&&v| v != at)?;
            let alike = facts.dims(other).is_some() && facts.dims(other) == facts.dims(at);
            // A product of the same rows is one of the other readers.
            let reads = |v: ValueId| {
                let inputs = g.producer(v).map(|n| g.node(n).inputs());
                inputs.is_some_and(|all| all.iter().flatten().any(|v| forms.contains(v)))
            };
            let inner = g.producer(other).and_then(|add| Sum::of(g, facts, add));
            let inner = inner.filter(|sum| is_sole(g, other) && !reads(sum.term));
            return (alike && !forms.contains(&other)).then_some(Role::Residual { other, inner });
        }
        let weight = node.input(1).filter(|_| node.op().is("MatMul"))?;
        let stored = g.constant(weight)?;
        // Weights of fewer bits would be rounded twice.
        let whole = matches!(stored.dtype(), DType::F32 | DType::F64) && stored.rank() == 2;
        (whole && slot == Slot::Input(0)).then_some(())?;
        let sum = Sum::behind(g, facts, made);
        let attends = goes_to_attention(g, sum.map_or(made, |s| s.value));
        Some(Role::Product { sum, attends })
    }
}

impl Sum {
    fn of(g: &Graph, facts: &Facts, add: NodeId) -> Option<Sum> {
        let node = g.node(add);
        let (a, b) = (node.input(0)?, node.input(1)?);
        let (term, constant) = match (g.constant(a), g.constant(b)) {
            (None, Some(_)) => (a, b),
            (Some(_), None) => (b, a),
            _ => return None,
        };
        let value = node.sole_output()?;
        let dims = facts.dims(value)?;
        let (last, lead) = g.constant(constant)?.dims().split_last()?;
        let row = usize::try_from(dims.last()?.as_i64()?) == Ok(*last);
        let row = row && lead.len() < dims.len() && lead.iter().all(|&d| d == 1);
        let alike = facts.dims(term) == Some(dims);
        (row && alike && node.op().is("Add")).then_some(Sum {
            add,
            term,
            constant,
            value,
        })
    }

    /// The sum that alone reads a product.
    fn behind(g: &Graph, facts: &Facts, made: ValueId) -> Option<Sum> {
        let sole = g.value(made).uses().first().filter(|_| is_sole(g, made))?;
        Sum::of(g, facts, sole.node)
    }
}

/// Whether exactly one node reads the value, once.
fn is_sole(g: &Graph, v: ValueId) -> bool {
    g.value(v).uses().len() == 1 && !g.value(v).is_output()
}

/// Whether attention reads what a product makes, moved to its heads.
fn goes_to_attention(g: &Graph, value: ValueId) -> bool {
    let mut open = vec![value];
    for _ in 0..MOST_MOVES {
        let Some(at) = open.pop() else { break };
        for usage in g.value(at).uses() {
            let node = g.node(usage.node);
            if InternalAttention::of(g, usage.node).is_some() {
                return true;
            }
            if node.op().is_any(MOVES) || node.op().is("Split") {
                open.extend(node.outputs().iter().flatten());
            }
        }
    }
    false
}
