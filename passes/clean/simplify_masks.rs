//! Attention masks in one spelling.

mod nothing;
mod step;

use kiln_graph::graph::{Cycle, Slot};
use kiln_graph::infer::{self, Expr, Facts};
use kiln_graph::{DType, Graph, Model, NodeId, Tensor, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::analysis::attention::scores::HIDES;
use crate::analysis::broadcast::Shapes;
use crate::analysis::mask::spell::{Spelling, spell};
use crate::analysis::mask::{self, Mask, Term};
use crate::core::pass::{Context, Exactness, Miss, Pass, PassFailure, in_each_graph};

use step::{MASK, NAME, apply};

/// A mask that is made of another one waits for the next round.
const MAX_ROUNDS: usize = 8;
/// Nodes of one mask; larger ones are left alone.
const MAX_NODES: usize = 512;

#[derive(Debug)]
pub struct SimplifyMasks;

impl Pass for SimplifyMasks {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "write attention masks in one spelling: padding, causal, sliding window"
    }

    fn details(&self) -> String {
        "A bool condition that an Attention reads, or a Where with a large negative number for where it does not hold, and \
         that turns out to be a function of the coordinates and of a padding mask, is rebuilt from as few nodes as it \
         takes:\n\n\
         \x20   padding  Unsqueeze(Cast(mask, bool), {1, 2})      [B, 1, 1, K]\n\
         \x20   causal   LessOrEqual(k, q)                        [1, 1, Q, K]\n\
         \x20   window   LessOrEqual(Abs(q - k), {width})         [1, 1, Q, K]\n\n\
         and And of these, where k and q are Unsqueeze(Range). Gathers at computed indices, conjunctions with True and \
         comparisons that always hold go. A condition may lose a broadcast dimension only if its readers broadcast it \
         again.\n\n\
         A ConstantOfShape, or an Expand of one constant, that is only broadcast becomes that one constant. A Where whose \
         condition always holds becomes its first branch, and an Add of 0 goes if all it leads to is a Softmax, which \
         does not tell 0 from -0."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        in_each_graph(model, &mut |g| match g.opset() {
            // The canonical spelling is written in operators as of version 13.
            ..13 => Ok(0),
            _ => simplify(g, cx),
        })
    }
}

fn simplify(g: &mut Graph, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
    let mut applied = nothing::shrink_splats(g, cx)?;
    for _ in 0..MAX_ROUNDS {
        if conditions(g)?.is_empty() {
            break;
        }
        cx.misses.retain(|m| m.pass != NAME || m.depth != MASK);
        // Masks share parts, so what a rewrite is worth shows when all are done.
        let (mut tried, before) = (g.clone(), cx.applied);
        let now = rewrite_masks(&mut tried, cx)?;
        if now == 0 {
            break;
        }
        if tried.node_count() >= g.node_count() {
            cx.applied = before;
            break;
        }
        *g = tried;
        applied += now;
    }
    Ok(applied + nothing::remove(g, cx)?)
}

fn rewrite_masks(g: &mut Graph, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
    let facts = infer::infer(g);
    let ranges = Ranges::of(g, &facts)?;
    let mut shapes = Shapes::new(&facts);
    let mut applied = 0;
    for (root, cond) in conditions(g)? {
        // A rewrite before this one may have removed it.
        if g.get(root).is_none() || g.value(cond).is_unused() {
            continue;
        }
        let spelling = match plan(g, &facts, &ranges, &shapes, cond) {
            Ok(Some(spelling)) => spelling,
            Ok(None) => continue,
            Err(why) => {
                cx.record(NAME, g, root, Miss::at(cond, MASK, why));
                continue;
            }
        };
        if cx.limit.is_some_and(|limit| cx.applied >= limit) {
            return Ok(applied);
        }
        if let Err(why) = shapes.absorb(g, cond, &spelling.dims) {
            cx.record(NAME, g, root, Miss::at(cond, MASK, why));
            continue;
        }
        cx.admit(NAME, || g.label(root));
        let Spelling {
            mut patch, value, ..
        } = spelling;
        patch.replace(cond, value);
        apply(g, root, patch)?;
        applied += 1;
    }
    Ok(applied)
}

/// Computed bool values that say what is kept, with their nodes, in topological order.
fn conditions(g: &Graph) -> Result<Vec<(NodeId, ValueId)>, Cycle> {
    let hides = |v: ValueId| {
        let numbers = g
            .constant(v)
            .filter(|t| t.len() == 1)
            .and_then(Tensor::as_f64);
        numbers.is_some_and(|x| x <= HIDES)
    };
    let chooses = |v: ValueId| {
        g.value(v).uses().iter().any(|u| {
            let node = g.node(u.node);
            let masks = node.op().is("Where") && node.input(2).is_some_and(hides);
            masks && u.slot == Slot::Input(0)
                || node.op().is("Attention") && u.slot == Slot::Input(3)
        })
    };
    let outputs = g.topo_order()?.into_iter().filter_map(|id| {
        let cond = g.node(id).sole_output()?;
        let computes_bool = g.value(cond).ty().dtype() == Some(DType::Bool);
        (computes_bool && chooses(cond)).then_some((id, cond))
    });
    Ok(outputs.collect())
}

/// The new spelling of a condition, if it has fewer nodes; else the reason, if it is worth reporting.
fn plan(
    g: &Graph,
    facts: &Facts,
    ranges: &Ranges,
    shapes: &Shapes<'_>,
    cond: ValueId,
) -> Result<Option<Spelling>, String> {
    let Some(mask) = mask::analyse(g, facts, cond) else {
        return Ok(None);
    };
    let rank = facts.dims(cond).map_or(0, <[Expr]>::len);
    let sources = sources(&mask);
    let Some(before) = Cone::of(g, &[cond], &sources) else {
        return Err("it is made of too many nodes".into());
    };
    // Facts are of the graph as it was; what a rewrite has touched since is looked at in the next round.
    if before.values.iter().any(|v| shapes.has_changed(*v)) {
        return Ok(None);
    }
    let found = spell(g, facts, &mask, rank, &|size| ranges.before(g, size, cond))?;
    let after = Cone::of(g, &found.reads, &sources).map(|cone| cone.nodes.len() + found.made);
    Ok(after
        .is_some_and(|n| n < before.nodes.len())
        .then_some(found))
}

fn sources(mask: &Mask) -> Vec<ValueId> {
    let value = |t: &Term| match t {
        Term::Padding { value } | Term::Other(value) => Some(*value),
        Term::Causal { .. } | Term::Window { .. } => None,
    };
    mask.terms.iter().filter_map(value).collect()
}

/// What some values are computed from, up to constants, sources and shapes.
struct Cone {
    nodes: FxHashSet<NodeId>,
    values: FxHashSet<ValueId>,
}

impl Cone {
    fn of(g: &Graph, from: &[ValueId], sources: &[ValueId]) -> Option<Cone> {
        let mut cone = Cone {
            nodes: FxHashSet::default(),
            values: FxHashSet::default(),
        };
        let mut open = from.to_vec();
        while let Some(value) = open.pop() {
            if sources.contains(&value) || !cone.values.insert(value) {
                continue;
            }
            let Some(id) = g.producer(value) else {
                continue;
            };
            if !cone.nodes.insert(id) || g.node(id).op().is("Shape") {
                continue;
            }
            if cone.nodes.len() > MAX_NODES {
                return None;
            }
            open.extend(g.node(id).inputs().iter().flatten());
        }
        Some(cone)
    }
}

/// For each size, the first value `[0, 1, …]` of it.
struct Ranges {
    by_size: FxHashMap<Expr, ValueId>,
    place: FxHashMap<NodeId, usize>,
}

impl Ranges {
    fn of(g: &Graph, facts: &Facts) -> Result<Ranges, Cycle> {
        let order = g.topo_order()?;
        let mut by_size = FxHashMap::default();
        for &id in &order {
            let node = g.node(id);
            let only = |k: usize| facts.values(node.input(k)?)?.first()?.as_i64();
            if !node.op().is("Range") || (only(0), only(2)) != (Some(0), Some(1)) {
                continue;
            }
            let Some(value) = node.sole_output() else {
                continue;
            };
            if let (Some(DType::I64), Some([size])) = (facts.ty(value).dtype(), facts.dims(value)) {
                by_size.entry(size.clone()).or_insert(value);
            }
        }
        let place = order
            .into_iter()
            .enumerate()
            .map(|(k, id)| (id, k))
            .collect();
        Ok(Ranges { by_size, place })
    }

    /// The value of this size, if it is computed before `value`, so that reading it makes no cycle.
    fn before(&self, g: &Graph, size: &Expr, value: ValueId) -> Option<ValueId> {
        let range = *self.by_size.get(size)?;
        let place = |v: ValueId| self.place.get(&g.producer(v)?);
        (place(range)? < place(value)?).then_some(range)
    }
}
