//! Caches of keys and values: inputs that hold what earlier runs computed, found by what the graph does with them.
//!
//! A cache is an input that is joined with new keys or values along one axis, or that these are written into, and that feeds
//! an attention; what comes of it leaves the graph as an output. One that is only read, as the caches of an encoder's states
//! are, counts too. Names play no part.

mod kinds;
mod walk;

use rustc_hash::FxHashSet;

use crate::infer::{self, Facts};
use crate::{DType, Dim, Graph, ValueId};
pub use kinds::{Holds, Update};
use walk::{Attention, Place, Room, SAME, STEPS};

/// One tensor of a cache.
#[derive(Clone, Debug)]
pub struct Cache {
    pub input: ValueId,
    /// The place of the graph's output that gives it back.
    pub output: Option<usize>,
    pub update: Update,
    pub holds: Holds,
    /// The axis of the input that counts tokens.
    pub axis: usize,
    pub dtype: DType,
    pub heads: Option<usize>,
    /// Elements of one head, or of a token where heads are not apart.
    pub size: Option<usize>,
    /// Which of the graph's attentions with a cache reads it, counted from 0.
    pub attention: usize,
}

impl Cache {
    /// Bytes that one token of one row takes, where the sizes are known.
    pub fn bytes(&self) -> Option<usize> {
        let halves = if self.holds == Holds::Both { 2 } else { 1 };
        let bits = self.size? * self.heads.unwrap_or(1) * self.dtype.bits() as usize;
        Some(halves * bits.div_ceil(8))
    }

    /// Tokens that it holds, if it is a buffer of one length.
    pub fn capacity(&self, graph: &Graph) -> Option<usize> {
        let dims = graph.value(self.input).ty().shape()?;
        dims.get(self.axis)?.known()
    }
}

/// The caches of a graph, in the order of its inputs; none where none is updated: then keys and values are what it computes on.
pub fn caches(graph: &Graph) -> Vec<Cache> {
    let facts = infer::infer(graph);
    let mut found = Vec::new();
    for &v in graph.inputs() {
        let ty = facts.ty(v);
        let (Some(dtype), Some(rank)) = (ty.dtype(), ty.rank()) else {
            continue;
        };
        if rank < 3 || !(dtype.is_float() || dtype == DType::I8 || dtype == DType::U8) {
            continue;
        }
        let room = Room { graph, outer: None };
        let axes: Vec<usize> = (0..rank).collect();
        if let Some(place) = room.search(v, &axes, &mut FxHashSet::default(), rank) {
            found.push((v, dtype, place));
        }
    }
    if found.iter().all(|(_, _, p)| p.update == Update::Kept) {
        return Vec::new();
    }
    let mut attentions: Vec<Attention> = found.iter().map(|(_, _, p)| p.attention).collect();
    attentions.sort_unstable();
    attentions.dedup();
    let cache = |(input, dtype, place): (ValueId, DType, Place)| {
        let (heads, size) = sizes(&facts, input, place.axis);
        Cache {
            input,
            output: place.output,
            update: place.update,
            holds: place.holds,
            axis: place.axis,
            dtype,
            heads,
            size,
            attention: attentions
                .binary_search(&place.attention)
                .unwrap_or_default(),
        }
    };
    found.into_iter().map(cache).collect()
}

/// The named size that counts the new tokens of a run, where they are written into caches.
pub fn new_tokens(graph: &Graph) -> Option<String> {
    let written = caches(graph).into_iter();
    let cache = written.into_iter().find(|c| c.update == Update::Written)?;
    let readers = graph.value(cache.input).uses().iter().map(|u| u.node);
    let mut scatters = readers.filter(|n| graph.node(*n).op().is("TensorScatter"));
    let new = graph.node(scatters.next()?).input(1)?;
    let facts = infer::infer(graph);
    let size = facts.dims(new)?.get(cache.axis)?;
    size.lone_symbol().map(str::to_string)
}

/// Heads and their size: what is left of the axes besides the rows in front and the tokens.
fn sizes(facts: &Facts, input: ValueId, axis: usize) -> (Option<usize>, Option<usize>) {
    let Some(shape) = facts.ty(input).shape() else {
        return (None, None);
    };
    let known = |k: &usize| match shape[*k] {
        Dim::Known(n) => Some(n),
        _ => None,
    };
    let rest: Vec<usize> = (0..shape.len()).filter(|k| *k != axis).collect();
    match &rest[..] {
        [.., heads, size] if shape.len() > 3 => (known(heads), known(size)),
        [.., size] => (None, known(size)),
        [] => (None, None),
    }
}

/// Keys or values that leave a graph as an output without having come in: what a first step makes of a prompt or of an
/// encoder's states, for the caches of later steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// The place of the graph's output.
    pub output: usize,
    pub holds: Holds,
    /// Which of the attentions whose keys or values leave the graph, counted from 0.
    pub attention: usize,
}

/// The keys and values that a graph makes, in the order of its attentions, keys first.
pub fn made(graph: &Graph) -> Vec<Made> {
    let room = Room { graph, outer: None };
    let mut found = Vec::new();
    for (output, port) in graph.outputs().iter().enumerate() {
        let mut v = port.value;
        // What leaves may be another view of what the attention reads.
        for _ in 0..STEPS {
            if let Some((attention, holds)) = room.reads(v) {
                found.push((attention, holds, output));
                break;
            }
            match before(graph, v) {
                Some(before) => v = before,
                None => break,
            }
        }
    }
    found.sort_unstable();
    let mut attentions: Vec<Attention> = found.iter().map(|(a, ..)| *a).collect();
    attentions.dedup();
    let made = |(attention, holds, output): (Attention, Holds, usize)| Made {
        output,
        holds,
        attention: attentions.binary_search(&attention).unwrap_or_default(),
    };
    found.into_iter().map(made).collect()
}

/// What a value is a view of, or has a bias added to: an attention may add that itself, and split heads.
fn before(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let node = graph.node(graph.producer(v)?);
    let op = node.op();
    if op.is("Add") {
        let constant = |k: usize| graph.constant(node.input(k)?);
        let k = usize::from(constant(0).is_some());
        return constant(1 - k).and(node.input(k));
    }
    let view = op.is_any(SAME) || op.is_any(&["Transpose", "Reshape", "Unsqueeze", "Squeeze"]);
    node.input(0).filter(|_| view)
}

#[cfg(test)]
mod tests;
