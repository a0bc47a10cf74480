//! What the inputs and outputs of a decoder are for, read off its graph.

use kiln_graph::caches::{self, Cache, Update};
use kiln_graph::graph::Slot;
use kiln_graph::infer::{self, Demand, Facts};
use kiln_graph::{DType, Def, Dim, Graph, Node, Tensor, ValueId};

use crate::parity::InputKind;
use crate::shapes::{Shapes, SpecError, input_kind};

/// An input: its name, type and the sizes that are known.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: String,
    pub dtype: DType,
    pub dims: Vec<Option<usize>>,
}

/// What an input is given at each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Feed {
    /// The new tokens, below the size of the vocabulary.
    Tokens { vocabulary: i64 },
    /// One number for a token of the past and of the step, another for padding.
    Mask { kept: f64, hidden: f64 },
    /// The places of the new tokens in their row.
    Positions,
    /// How many tokens each row has before the step: `write_indices`.
    Before,
    /// How many tokens each row has behind the step: `nonpad_kv_seqlen`.
    Behind,
    /// The place of each row's last token: `seqlens_k`.
    Last,
    /// How many tokens the longest row has behind the step: `total_sequence_length`.
    Longest,
    /// Whether there is a past: `use_cache_branch`.
    Past,
    /// The same at all steps, given by the caller: states of an encoder, their mask.
    Given,
}

/// A cache and its names.
#[derive(Clone, Debug)]
pub struct CachePort {
    pub port: Port,
    pub output: Option<String>,
    pub cache: Cache,
}

impl CachePort {
    /// Whether the caller gives it, once.
    pub fn is_given(&self) -> bool {
        self.cache.update == Update::Kept
    }

    /// The length of a buffer whose length the file holds.
    pub fn capacity(&self) -> Option<usize> {
        self.port.dims[self.cache.axis].filter(|_| !self.is_given())
    }
}

/// Why a model is no decoder with a cache.
pub(super) const NO_CACHE: &str = "it has no cache: no input is joined with what a run computes, feeds an attention and comes out again. \
     Export the model with its past (optimum: --task text-generation-with-past)";

/// A decoder's inputs and outputs.
#[derive(Clone, Debug)]
pub struct Ports {
    pub feeds: Vec<(Port, Feed)>,
    pub caches: Vec<CachePort>,
    pub logits: String,
    pub vocabulary: usize,
    /// The most tokens of a row: the length of a buffer, or the end of a table of positions.
    pub capacity: Option<usize>,
}

impl Ports {
    /// Reads a graph.
    ///
    /// # Errors
    /// In words, when it is no decoder with a cache.
    pub fn of(graph: &Graph) -> Result<Ports, String> {
        let ports = Ports::any(graph);
        match caches::caches(graph)
            .iter()
            .any(|c| c.update != Update::Kept)
        {
            true => ports,
            false => Err(NO_CACHE.into()),
        }
    }

    /// As [`Ports::of`], of a decoder without a cache, too, which scores at least as many tokens as it takes.
    ///
    /// # Errors
    /// In words, when it is no decoder.
    pub fn any(graph: &Graph) -> Result<Ports, String> {
        let found = caches::caches(graph);
        let cached = found.iter().any(|c| c.update != Update::Kept);
        let ports = Ports::with(graph, found).map_err(|why| match cached {
            true => why,
            false => format!("{NO_CACHE}. Nor is it a decoder without: {why}"),
        })?;
        let narrow = |f: &Feed| matches!(f, Feed::Tokens { vocabulary } if *vocabulary > ports.vocabulary as i64);
        match !cached && ports.feeds.iter().any(|(_, f)| narrow(f)) {
            true => Err(NO_CACHE.into()),
            false => Ok(ports),
        }
    }

    fn with(graph: &Graph, found: Vec<Cache>) -> Result<Ports, String> {
        let shapes = Shapes::new(graph, &[], &[]).map_err(|e: SpecError| e.to_string())?;
        let defaults: Vec<ValueId> = graph.defaults().iter().map(|(v, _)| *v).collect();
        let caches: Vec<CachePort> = found
            .into_iter()
            .map(|cache| CachePort {
                port: port(graph, cache.input),
                output: cache.output.map(|k| graph.outputs()[k].name.to_string()),
                cache,
            })
            .collect();
        if let Some(lost) = caches.iter().find(|c| !c.is_given() && c.output.is_none()) {
            return Err(format!(
                "the cache \"{}\" is written, and no output gives it back",
                lost.port.name
            ));
        }
        let steady = steady(graph, &caches, &shapes);
        let mut feeds = Vec::new();
        for &v in graph.inputs() {
            if defaults.contains(&v) || caches.iter().any(|c| c.cache.input == v) {
                continue;
            }
            feeds.push((port(graph, v), feed(graph, v, &steady, &shapes)?));
        }
        let feeds = one_of_tokens(feeds)?;
        let (logits, vocabulary) = logits(graph, &caches)?;
        Ok(Ports {
            capacity: capacity(graph, &caches, &feeds),
            feeds,
            caches,
            logits,
            vocabulary,
        })
    }

    /// Whether rows of unequal lengths stand at the end of a step, with padding in front: what a cache that grows by the same
    /// for all rows demands. Buffers that are written into have the padding behind.
    pub fn pads_in_front(&self) -> bool {
        let own = self.caches.iter().filter(|c| !c.is_given());
        own.into_iter().any(|c| c.cache.update == Update::Grows)
    }

    /// Whether padding can be hidden from the model.
    pub fn hides_padding(&self) -> bool {
        let hides = |f: &Feed| {
            matches!(
                f,
                Feed::Mask { .. } | Feed::Before | Feed::Behind | Feed::Last
            )
        };
        self.feeds.iter().any(|(_, f)| hides(f))
    }

    /// What the caller gives, once: caches first.
    pub fn given(&self) -> impl Iterator<Item = &Port> {
        let caches = self.caches.iter().filter(|c| c.is_given()).map(|c| &c.port);
        let feeds = self.feeds.iter().filter(|(_, f)| *f == Feed::Given);
        caches.chain(feeds.map(|(p, _)| p))
    }
}

pub(super) fn port(graph: &Graph, v: ValueId) -> Port {
    let value = graph.value(v);
    let dims = value.ty().shape().unwrap_or_default();
    Port {
        name: value.name().to_string(),
        dtype: value.ty().dtype().unwrap_or(DType::F32),
        dims: dims.iter().map(Dim::known).collect(),
    }
}

/// Sizes that stay as they are from step to step: those of what an encoder gave.
fn steady(graph: &Graph, caches: &[CachePort], shapes: &Shapes) -> Vec<String> {
    let mut all = Vec::new();
    for &v in graph.inputs() {
        let name = graph.value(v).name();
        let Some(input) = shapes.inputs.iter().find(|i| i.name == name) else {
            continue;
        };
        let axis = match caches.iter().find(|c| c.cache.input == v) {
            Some(c) if c.is_given() => c.cache.axis,
            Some(_) => continue,
            None if input.dtype.is_float() && input.dims.len() == 3 => 1,
            None => continue,
        };
        all.extend(input.dims.get(axis).and_then(|d| resolved(shapes, d)));
    }
    all
}

/// The size that a dimension is as long as, by its name.
fn resolved(shapes: &Shapes, dim: &Dim) -> Option<String> {
    let Dim::Symbol(name) = dim else {
        return None;
    };
    let same = shapes.relations.get(&**name).and_then(|e| e.lone_symbol());
    Some(same.unwrap_or(name).to_string())
}

fn feed(graph: &Graph, v: ValueId, steady: &[String], shapes: &Shapes) -> Result<Feed, String> {
    let value = graph.value(v);
    let name = value.name();
    let dtype = value.ty().dtype().unwrap_or(DType::F32);
    let rank = value.ty().rank().unwrap_or(0);
    if let Some(count) = counts(graph, v, 8) {
        return Ok(count);
    }
    let input = shapes.inputs.iter().find(|i| i.name == name);
    let length = input.and_then(|i| resolved(shapes, i.dims.last()?));
    let is_steady = length.is_some_and(|l| steady.contains(&l));
    if dtype.is_float() && rank >= 3 || rank == 2 && is_steady {
        return Ok(Feed::Given);
    }
    if dtype == DType::Bool && rank < 2 {
        return Ok(Feed::Past);
    }
    let mask = |kept, hidden| match rank {
        2 => Ok(Feed::Mask { kept, hidden }),
        _ => Err(format!(
            "the mask \"{name}\" has {rank} axes, and only masks of [rows, tokens] can be made for a step"
        )),
    };
    match input_kind(graph, v) {
        InputKind::TokenIds { upper } if rank <= 2 => Ok(Feed::Tokens { vocabulary: upper }),
        InputKind::Ids(ids) if rank <= 2 => Ok(Feed::Tokens {
            vocabulary: ids.upper,
        }),
        InputKind::Mask | InputKind::PaddedMask => mask(1.0, 0.0),
        InputKind::Masking(m) => mask(m.kept, m.hidden),
        InputKind::Positions | InputKind::FarPositions { .. } => Ok(Feed::Positions),
        other => Err(format!(
            "what a step gives its input \"{name}\" ({}) is not known: its numbers are {other:?} to the graph",
            value.ty()
        )),
    }
}

/// Of several inputs that index tables, the tokens are those of the largest; the others count places.
fn one_of_tokens(mut feeds: Vec<(Port, Feed)>) -> Result<Vec<(Port, Feed)>, String> {
    let size = |f: &Feed| match f {
        Feed::Tokens { vocabulary } => Some(*vocabulary),
        _ => None,
    };
    let most = feeds.iter().filter_map(|(_, f)| size(f)).max();
    let most = most.ok_or("no input is token ids, that is whole numbers that index a table")?;
    let mut seen = false;
    for (_, feed) in &mut feeds {
        match size(feed) {
            Some(n) if n == most && !seen => seen = true,
            Some(_) => *feed = Feed::Positions,
            None => {}
        }
    }
    Ok(feeds)
}

/// What an input of whole numbers counts, by the operand that it becomes.
fn counts(graph: &Graph, v: ValueId, depth: usize) -> Option<Feed> {
    if depth == 0 {
        return None;
    }
    let mut uses = graph.value(v).uses().to_vec();
    uses.sort_unstable_by_key(|u| (u.node, u.slot));
    uses.iter().find_map(|used| {
        let Slot::Input(k) = used.slot else {
            return None;
        };
        let node = graph.node(used.node);
        match (node.op().domain(), node.op().name(), k) {
            ("", "TensorScatter", 2) => Some(Feed::Before),
            ("", "Attention", 6) => Some(Feed::Behind),
            ("com.microsoft", "GroupQueryAttention", 5) => Some(Feed::Last),
            ("com.microsoft", "GroupQueryAttention", 6) => Some(Feed::Longest),
            ("", "Cast" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze", 0) => {
                counts(graph, node.output(0)?, depth - 1)
            }
            _ => None,
        }
    })
}

/// The output that scores tokens: floats of three axes that no cache gives, the last one known.
fn logits(graph: &Graph, caches: &[CachePort]) -> Result<(String, usize), String> {
    let facts = infer::infer(graph);
    let mut best: Option<(String, usize)> = None;
    for (k, output) in graph.outputs().iter().enumerate() {
        if caches.iter().any(|c| c.cache.output == Some(k)) {
            continue;
        }
        let ty = facts.ty(output.value);
        let last = ty.shape().and_then(|s| s.last()?.known());
        if let (Some(dtype), Some(2 | 3), Some(n)) = (ty.dtype(), ty.rank(), last)
            && dtype.is_float()
            && best.as_ref().is_none_or(|(_, known)| n > *known)
        {
            best = Some((output.name.to_string(), n));
        }
    }
    best.ok_or_else(|| {
        "no output scores tokens: there is none of floats whose last axis is a vocabulary".into()
    })
}

/// The end of a table that past and new tokens together index, or of a buffer.
fn capacity(graph: &Graph, caches: &[CachePort], feeds: &[(Port, Feed)]) -> Option<usize> {
    let buffers = caches.iter().filter_map(CachePort::capacity).min();
    let facts = infer::infer(graph);
    let mut pasts: Vec<String> = (caches.iter().filter(|c| !c.is_given()))
        .filter_map(|c| Some(dim_name(&facts, c.cache.input, c.cache.axis)?.to_string()))
        .collect();
    if pasts.is_empty() {
        // Without a cache, each step runs all tokens.
        let tokens = (feeds.iter()).find(|(_, f)| matches!(f, Feed::Tokens { .. }));
        let named = tokens.map(|(port, _)| &port.name);
        let mut inputs = graph.inputs().iter();
        let input = inputs.find(|&&v| Some(graph.value(v).name()) == named.map(String::as_str));
        pasts.extend(input.and_then(|&v| Some(dim_name(&facts, v, 1)?.to_string())));
    }
    let ends = facts.demands().iter().filter_map(|demand| match demand {
        Demand::AtMost(size, end) => {
            let names = size.names();
            let grows = names.iter().any(|n| pasts.contains(n)) && size.grows();
            // A table may begin with rows for padding: a single token without a past then ends behind them.
            let single = size.eval(&|n| Some(i64::from(!pasts.iter().any(|p| p == n))));
            let ahead = single.unwrap_or(1) - 1;
            end.as_i64().filter(|_| grows).map(|n| n - ahead)
        }
        _ => None,
    });
    let table = ends.min().and_then(|n| usize::try_from(n).ok());
    let tables = graph.inputs().iter().filter_map(|&v| {
        let whole = graph.value(v).ty().dtype().is_some_and(|d| !d.is_float());
        let is_input = matches!(graph.value(v).def(), Def::Input(_));
        let kind = (whole && is_input).then(|| input_kind(graph, v))?;
        match kind {
            // What sines are taken of has no end; 4096 stands for it.
            InputKind::FarPositions { upper } if upper != 4096 => usize::try_from(upper).ok(),
            _ => None,
        }
    });
    let counted = counted_tables(graph).into_iter();
    (buffers.into_iter().chain(table))
        .chain(tables)
        .chain(counted)
        .min()
}

/// The ends of tables that are indexed by counting a mask, and of those that rotate inside an operator: the most tokens for
/// which no index is beyond them.
fn counted_tables(graph: &Graph) -> Vec<usize> {
    let mut ends = Vec::new();
    within(graph, &|_| None, &mut ends);
    ends
}

/// Constants that a graph captures, by their place.
type Captured<'a> = &'a dyn Fn(u32) -> Option<Tensor>;

fn constant(g: &Graph, v: ValueId, captured: Captured<'_>) -> Option<Tensor> {
    match g.value(v).def() {
        Def::Constant(t) => Some(t.clone()),
        Def::Capture(k) => captured(*k),
        _ => None,
    }
}

fn within(g: &Graph, captured: Captured<'_>, ends: &mut Vec<usize>) {
    for (_, node) in g.nodes() {
        let rows = |k: usize| {
            let table = constant(g, node.input(k)?, captured)?;
            (table.rank() == 2).then(|| table.dims()[0] as i64)
        };
        let end = match (node.op().domain(), node.op().name()) {
            ("", "Gather" | "GatherND") if of_rows(node) => {
                let beyond = node.input(1);
                let beyond = beyond.and_then(|v| beyond_count(g, v, captured, COUNTED));
                rows(0).zip(beyond).map(|(rows, beyond)| rows - 1 - beyond)
            }
            ("com.microsoft", "GroupQueryAttention") => rows(7),
            // Its tables are as long as they are, however their rows are found.
            ("com.microsoft", "RotaryEmbedding") => rows(2),
            ("", "RotaryEmbedding") if node.input(3).is_some() => rows(1),
            _ => None,
        };
        ends.extend(end.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0));
        let of_body = |k: u32| constant(g, *node.captures().get(k as usize)?, captured);
        for body in node.attrs().iter().flat_map(|(_, a)| a.graphs()) {
            within(body, &of_body, ends);
        }
    }
}

/// Whether indices are of the table's rows.
fn of_rows(node: &Node) -> bool {
    let first = |name: &str| node.attrs().int(name).unwrap_or(0) == 0;
    first("axis") && first("batch_dims")
}

/// Nodes between a count of tokens and the table that it indexes.
const COUNTED: usize = 12;

/// By how much the largest of some indices is above the number of tokens that a mask counts; `None` if none is counted.
fn beyond_count(g: &Graph, v: ValueId, captured: Captured<'_>, depth: usize) -> Option<i64> {
    let node = g.node(g.producer(v)?);
    let before = |k: usize| beyond_count(g, node.input(k)?, captured, depth.checked_sub(1)?);
    let number = |k: usize| constant(g, node.input(k)?, captured)?.as_i64();
    match (node.op().domain(), node.op().name()) {
        ("", "CumSum") => Some(0),
        ("", "Add") => match (number(0), number(1)) {
            (Some(n), _) => Some(before(1)? + n),
            (_, Some(n)) => Some(before(0)? + n),
            _ => None,
        },
        ("", "Sub") => Some(before(0)? - number(1)?),
        ("", "Where") => before(2).or_else(|| before(1)),
        ("", "Mul" | "Max" | "Min") => before(0).or_else(|| before(1)),
        (
            "",
            "Cast" | "Clip" | "Slice" | "Unsqueeze" | "Squeeze" | "Reshape" | "Identity" | "Expand"
            | "Gather" | "ScatterND",
        ) => before(0),
        _ => None,
    }
}

fn dim_name(facts: &Facts, v: ValueId, axis: usize) -> Option<&str> {
    facts.dims(v)?.get(axis)?.lone_symbol()
}
