//! A decoder whose caches grow, written anew with caches of one length that new keys and values are written into: the form that
//! TensorRT takes (`IKVCacheUpdateLayer`), and ONNX Runtime too.
//!
//! Each `Concat(past, new)` becomes `TensorScatter(cache, new, write_indices)`. What was as long as past and new tokens together
//! is as long as the cache. Numbers that came of the past's length come of `write_indices` [rows], how many tokens each row has:
//! positions and masks are then those of each row. The length of the past is found in the contents of shapes, as inference
//! follows them, so that no spelling of it is named here; and inference on the result says whether every size is what it was.
//!
//! Inputs keep their names. A mask of past and new tokens is as long as the cache; it is 1 for tokens so far and 0 behind them.

mod halves;
mod hide;
mod places;
mod rows;
mod stays;

use kiln_graph::caches::{self, Update};
use kiln_graph::infer::{self, Expr, Facts};
use kiln_graph::{Attrs, DType, Dim, Graph, Model, NodeId, Op, Type, ValueId, opset};

pub use halves::part_halves;
use rows::Rows;
use rustc_hash::FxHashMap;
pub use stays::Stays;
use stays::{Sizes, because};

/// TensorScatter is of this operator set.
pub const OPSET: i64 = 24;

/// The input that says how many tokens each row has.
pub const WRITE_INDICES: &str = "write_indices";

/// What was written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The input that says how many tokens each row has.
    pub indices: String,
    /// Tokens that the caches hold.
    pub capacity: usize,
    /// The inputs that are caches of this length.
    pub caches: Vec<String>,
}

/// Writes a model anew, whose caches then hold `capacity` tokens. `same` says what a named size of an input follows from, such as
/// that of a mask from past and new tokens; `masks` are inputs whose last axis is as long as both. The model should have its shapes folded; it is changed only if all of it can be.
///
/// # Errors
/// When no cache grows, or what depends on the length of the past is not understood.
pub fn write(
    model: &mut Model,
    capacity: usize,
    same: &dyn Fn(&str) -> Option<Expr>,
    masks: &[String],
) -> Result<Written, Stays> {
    let mut made = model.clone();
    name_alike(&mut made.graph, same);
    let g = &made.graph;
    let found: Vec<_> = (caches::caches(g).into_iter())
        .filter(|c| c.update == Update::Grows)
        .collect();
    if found.is_empty() {
        return Err(Stays::None);
    }
    if let Some((id, _)) = g.nodes().find(|(_, n)| n.has_subgraphs()) {
        return because(format!(
            "{} has bodies: name the branch with a cache (use_cache_branch fixed to true, and left out)",
            g.label(id)
        ));
    }
    let joins = joins(g, &found)?;
    let facts = infer::infer(g);
    let sizes = sizes(g, &facts, &joins, capacity)?;
    let longer = lengthen(&mut made.graph, masks, &sizes);
    let facts = match longer {
        true => infer::infer(&made.graph),
        false => facts,
    };
    let totals = totals(&made.graph, &facts, &sizes, &joins)?;
    let before: Vec<ValueId> = made.graph.values().map(|(v, _)| v).collect();
    let indices = rewrite(&mut made.graph, &facts, &sizes, &joins)?;
    for (v, axis) in totals {
        resize(&mut made.graph, v, axis, Dim::Known(capacity));
    }
    forget_shapes(&mut made.graph);
    agree(&made.graph, &facts, &before, &sizes)?;
    infer::annotate(&mut made.graph);
    if made.graph.opset() < OPSET {
        let raised = opset::convert(&mut made, OPSET);
        raised.map_err(|e| Stays::Because(e.to_string()))?;
    }
    let names = joins
        .iter()
        .map(|j| made.graph.value(j.cache).name().to_string());
    let written = Written {
        indices: made.graph.value(indices).name().to_string(),
        capacity,
        caches: names.collect(),
    };
    *model = made;
    Ok(written)
}

/// Makes buffers of one length that an operator updates as the caller likes ones of any length.
pub fn open_buffers(g: &mut Graph) {
    let found = caches::caches(g).into_iter();
    for cache in found.filter(|c| c.update == Update::Shared) {
        if cache.capacity(g).is_some() {
            resize(g, cache.input, cache.axis, Dim::Symbol(PAST.into()));
        }
        let given = cache.output.and_then(|k| g.outputs().get(k));
        if let Some(given) = given.map(|port| port.value) {
            resize(g, given, cache.axis, Dim::Unknown);
        }
    }
}

/// What the length of such a buffer is called.
const PAST: &str = "past_length";

/// A cache and the node that joins it with what is new.
struct Join {
    cache: ValueId,
    new: ValueId,
    node: NodeId,
}

/// TensorRT takes caches [rows, heads, tokens, size].
const AXIS: usize = 2;

fn joins(g: &Graph, found: &[caches::Cache]) -> Result<Vec<Join>, Stays> {
    let mut joins = Vec::new();
    for c in found {
        let name = g.value(c.input).name();
        if g.value(c.input).ty().rank() != Some(4) || c.axis != AXIS {
            return because(format!(
                "the cache \"{name}\" is not [rows, heads, tokens, size]"
            ));
        }
        let readers = g.value(c.input).uses().iter().map(|u| u.node);
        let mut readers: Vec<NodeId> = readers
            .filter(|n| !g.node(*n).op().is_any(&["Shape"]))
            .collect();
        readers.dedup();
        let join = match readers[..] {
            [node] if g.node(node).op().is("Concat") => g.node(node).inputs().to_vec(),
            _ => Vec::new(),
        };
        match join[..] {
            [Some(cache), Some(new)] if cache == c.input && new != cache => joins.push(Join {
                cache,
                new,
                node: readers[0],
            }),
            _ => {
                return because(format!(
                    "the cache \"{name}\" is read by more than what joins it with the new tokens"
                ));
            }
        }
    }
    Ok(joins)
}

fn sizes(g: &Graph, facts: &Facts, joins: &[Join], capacity: usize) -> Result<Sizes, Stays> {
    let mut found: Option<Sizes> = None;
    for join in joins {
        let name = g.value(join.cache).name();
        let (Some(cache), Some(new)) = (facts.dims(join.cache), facts.dims(join.new)) else {
            return because(format!("the sizes of the cache \"{name}\" are not known"));
        };
        let Some(past) = cache[AXIS].lone_symbol() else {
            return because(format!("the cache \"{name}\" is of one length"));
        };
        let new = new[AXIS].clone();
        let total = cache[AXIS].add(&new);
        let here = total.map(|total| Sizes {
            past: past.to_string(),
            new,
            total,
            rows: cache[0].clone(),
            capacity,
        });
        match (&found, here) {
            (None, here @ Some(_)) => found = here,
            (Some(one), Some(here)) if one.total == here.total && one.rows == here.rows => {}
            _ => return because(format!("the cache \"{name}\" grows by itself")),
        }
    }
    found.ok_or(Stays::None)
}

/// Gives sizes of inputs the names of what they follow from.
fn name_alike(g: &mut Graph, same: &dyn Fn(&str) -> Option<Expr>) {
    let mut named = Vec::new();
    for &v in g.inputs() {
        let dims = g.value(v).ty().shape().unwrap_or_default();
        for (axis, dim) in dims.iter().enumerate() {
            if let Dim::Symbol(name) = dim {
                named.push((v, axis, name.to_string()));
            }
        }
    }
    let mut totals = FxHashMap::default();
    for (_, _, name) in &named {
        if let Some((total, past)) = same(name).as_ref().and_then(difference) {
            let sum = Expr::symbol(&past).add(&Expr::symbol(name));
            totals.extend(sum.map(|sum| (total, sum)));
        }
    }
    for (v, axis, name) in named {
        let is_new = same(&name).as_ref().and_then(difference).is_some();
        let follows = totals.get(&name).cloned();
        if let Some(e) = follows.or_else(|| same(&name).filter(|_| !is_new)) {
            resize(g, v, axis, Dim::Symbol(e.to_string().into()));
        }
    }
}

/// Makes masks as long as past and new tokens together, where the graph would take longer ones.
fn lengthen(g: &mut Graph, masks: &[String], sizes: &Sizes) -> bool {
    let mut longer = false;
    for v in g.inputs().to_vec() {
        let value = g.value(v);
        let last = value.ty().rank().and_then(|r| r.checked_sub(1));
        if let Some(axis) = last.filter(|_| masks.iter().any(|m| m == value.name())) {
            resize(g, v, axis, Dim::Symbol(sizes.total.to_string().into()));
            longer = true;
        }
    }
    longer
}

/// What is left of a total behind the past, as a Slice computes it: the names of both.
fn difference(e: &Expr) -> Option<(String, String)> {
    let names: Vec<String> = e.names().into_iter().collect();
    let [a, b] = &names[..] else { return None };
    let at = |total: &str, t: i64, p: i64| e.eval(&|n| Some(if n == total { t } else { p }));
    let left = |total: &str| at(total, 10, 3) == Some(7) && at(total, 5, 0) == Some(5);
    match (left(a), left(b)) {
        (true, _) => Some((a.clone(), b.clone())),
        (_, true) => Some((b.clone(), a.clone())),
        _ => None,
    }
}

/// Axes of inputs that are as long as past and new tokens together.
fn totals(
    g: &Graph,
    facts: &Facts,
    sizes: &Sizes,
    joins: &[Join],
) -> Result<Vec<(ValueId, usize)>, Stays> {
    let mut totals = Vec::new();
    for &v in g.inputs() {
        if joins.iter().any(|j| j.cache == v) {
            continue;
        }
        for (axis, dim) in facts.dims(v).unwrap_or_default().iter().enumerate() {
            if *dim == sizes.total {
                totals.push((v, axis));
            } else if sizes.has_past(dim) {
                return because(format!(
                    "the input \"{}\" is as long as {dim}, which is not all tokens",
                    g.value(v).name()
                ));
            }
        }
    }
    Ok(totals)
}

fn resize(g: &mut Graph, v: ValueId, axis: usize, dim: Dim) {
    let ty = g.value(v).ty();
    let (Some(dtype), Some(shape)) = (ty.dtype(), ty.shape()) else {
        return;
    };
    let mut shape: kiln_graph::Shape = shape.into();
    if let Some(d) = shape.get_mut(axis) {
        *d = dim;
    }
    g.set_type(v, Type::tensor(dtype, Some(shape)));
}

/// What values were told to be before says nothing now.
fn forget_shapes(g: &mut Graph) {
    let computed: Vec<(ValueId, DType)> = g
        .values()
        .filter(|(v, _)| g.producer(*v).is_some())
        .filter_map(|(v, value)| Some((v, value.ty().dtype()?)))
        .collect();
    for (v, dtype) in computed {
        g.set_type(v, Type::tensor(dtype, None));
    }
}

fn rewrite(g: &mut Graph, facts: &Facts, sizes: &Sizes, joins: &[Join]) -> Result<ValueId, Stays> {
    let order = g.topo_order().map_err(|e| Stays::Because(e.to_string()))?;
    let rows = (g.value(joins[0].cache).ty().shape()).map_or(Dim::Unknown, |s| s[0].clone());
    let name = match g
        .inputs()
        .iter()
        .any(|v| g.value(*v).name() == WRITE_INDICES)
    {
        true => "kiln_write_indices",
        false => WRITE_INDICES,
    };
    let ty = Type::tensor(DType::I64, Some([rows].into_iter().collect()));
    let indices = g.add_input(name, ty);
    let mut rows = Rows::new(g, facts, sizes, indices);
    for &id in &order {
        if joins.iter().any(|j| j.node == id) {
            continue;
        }
        if !places::sizes_of(&mut rows, id)? {
            rows.node(id)?;
        }
    }
    hide::unwritten(&mut rows, &order);
    for join in joins {
        let inputs = [Some(join.cache), Some(join.new), Some(indices)];
        let g = &mut *rows.g;
        g.set_op(join.node, Op::onnx("TensorScatter"));
        g.set_inputs(join.node, inputs.into_iter().collect());
        *g.attrs_mut(join.node) = Attrs::new()
            .with("axis", AXIS as i64)
            .with("mode", "linear");
        resize(g, join.cache, AXIS, Dim::Known(sizes.capacity));
    }
    Ok(indices)
}

/// Whether each value has the size that it had, but for what grew and what each row has for itself now.
fn agree(g: &Graph, old: &Facts, values: &[ValueId], sizes: &Sizes) -> Result<(), Stays> {
    let new = infer::infer(g);
    if let Some(conflict) = new.conflicts().first() {
        return because(conflict.describe(g));
    }
    for &v in values {
        if g.value(v).is_unused() || g.producer(v).is_none() {
            continue;
        }
        let (Some(was), Some(is)) = (old.dims(v), new.dims(v)) else {
            continue;
        };
        let same = was.len() == is.len()
            && was.iter().zip(is).enumerate().all(|(axis, (was, is))| {
                let fixed = sizes.fixed(was);
                let own = axis == 0 && was.as_i64() == Some(1) && *is == sizes.rows;
                own || !was.is_named() || fixed.as_ref() == Some(is)
            });
        if !same {
            return because(format!(
                "\"{}\" would have other sizes with a cache of one length",
                g.value(v).name()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
