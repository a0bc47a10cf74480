//! How large the operands of an engine's kernels are where their listed shapes leave dimensions open.
//!
//! The builder names for each kernel the ONNX nodes that it comes from, and no symbols. So an operand is one of the values that
//! those nodes read or write, or a rearrangement of one: one with the constant dimensions that are listed and as many open ones.
//! All kernels that read or write the same operand must agree on how many elements it has; where they leave a choice, its size is
//! not known.

use std::collections::{BTreeMap, BTreeSet};

use kiln_graph::infer::{self, Facts};
use kiln_graph::{DType, Dim, Graph, Node, Op, ValueId};

use super::multiplied::parsed_name;
use super::view::{View, product};
use super::{DataType, Kernel, Kernels};
use kiln_runtime::work;

/// Elements of operands whose listed shapes leave dimensions open.
pub(super) type Elements = BTreeMap<View, u64>;

/// Multiplications of kernels that multiply activations with activations, by the kernels' names.
pub(super) type Multiplications = BTreeMap<String, u64>;

/// What `graph`, as it was handed to the builder, says of `kernels` where its inputs have these shapes.
pub(super) fn at(
    kernels: &Kernels,
    graph: &Graph,
    inputs: &[(String, Vec<usize>)],
) -> (Elements, Multiplications) {
    let model = Values::new(graph, inputs);
    let mut elements = model.elements(kernels);
    for kernel in kernels.launched().filter(|k| k.is_attention()) {
        elements.extend(model.last(kernel, &elements));
    }
    while propagate(kernels, &mut elements) {}
    let multiplied = kernels.launched().filter_map(|k| {
        let all = model.multiplications(k)?;
        Some((k.name.clone(), all))
    });
    (elements, multiplied.collect())
}

/// A value's shape at the sizes asked for; a dimension is open if it depends on them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    dims: Vec<(u64, bool)>,
    kind: Kind,
}

/// Types that stay apart whatever the builder does with precisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    Whole,
    Truth,
}

/// How closely a value fits what is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// In another order at most.
    Same,
    /// With neighbours as one dimension.
    Flattened,
    Merged,
    /// One constant dimension is larger, as kernels like it.
    Padded,
}

/// What is known of the model's values, by the names of its nodes and values.
struct Values {
    nodes: BTreeMap<String, Vec<Seen>>,
    /// Operators that multiply activations with activations, with their multiplications.
    products: BTreeMap<String, (Op, Option<u64>)>,
    named: BTreeMap<String, Seen>,
}

impl Values {
    fn new(graph: &Graph, inputs: &[(String, Vec<usize>)]) -> Values {
        let shape = |dims: &[usize]| dims.iter().map(|&n| Dim::Known(n)).collect();
        let typical: Vec<_> = (graph.inputs().iter())
            .filter_map(|&v| {
                let found = inputs.iter().find(|(n, _)| n == graph.value(v).name())?;
                Some((v, shape(&found.1)))
            })
            .collect();
        let mut values = Values {
            nodes: BTreeMap::new(),
            products: BTreeMap::new(),
            named: BTreeMap::new(),
        };
        let (at, open) = (infer::with_inputs(graph, &typical), infer::infer(graph));
        values.gather(graph, &at, &open);
        values
    }

    fn gather(&mut self, g: &Graph, at: &Facts, open: &Facts) {
        for (v, value) in g.values().filter(|(_, v)| v.constant().is_none()) {
            if let (Some(seen), false) = (seen(at, open, v), value.name().is_empty()) {
                self.named.insert(value.name().to_string(), seen);
            }
        }
        for (id, node) in g.nodes() {
            let name = parsed_name(g, id);
            let values = node.inputs().iter().chain(node.outputs()).flatten();
            let values = values.filter(|&&v| g.constant(v).is_none());
            let mut all: Vec<Seen> = values.filter_map(|&v| seen(at, open, v)).collect();
            all.extend(inner(node, &all));
            self.nodes.entry(name.clone()).or_default().extend(all);
            let activations = node.inputs().iter().take(2).flatten();
            let both = activations.filter(|&&v| g.constant(v).is_none()).count() == 2;
            if let (true, Some(n)) = (both, work::products(g, node, at)) {
                self.products.insert(name, (node.op(), n));
            }
            let graphs = node.attrs().iter().flat_map(|(_, a)| a.graphs());
            let facts = at.nested(id).iter().zip(open.nested(id));
            for (inner, (at, open)) in graphs.zip(facts) {
                self.gather(inner, at, open);
            }
        }
    }

    fn elements(&self, kernels: &Kernels) -> Elements {
        let mut users: BTreeMap<View, Vec<&Kernel>> = BTreeMap::new();
        for kernel in kernels.launched() {
            for operand in kernel.inputs.iter().chain(&kernel.outputs) {
                if operand.open() > 0 {
                    users.entry(View::of(operand)).or_default().push(kernel);
                }
            }
        }
        let mut found = Elements::new();
        for (view, kernels) in &users {
            let n = self.named(view).or_else(|| self.agreed(view, kernels));
            found.extend(n.map(|n| (view.clone(), n)));
        }
        while propagate(kernels, &mut found) {}
        // As many as another view of the tensor has.
        users.retain(|view, _| !found.contains_key(view));
        for (view, kernels) in users {
            let views = found.iter().filter(|(v, _)| v.name == view.name);
            let other: BTreeSet<u64> = views.map(|(_, &n)| n).collect();
            let own = kernels.iter().map(|k| self.choice(&k.nodes, &view));
            let own: Vec<_> = own.filter_map(|c| c.up_to(Fit::Padded)).collect();
            let n = common(own.iter().cloned().chain([other]));
            let n = n.filter(|_| !own.is_empty());
            found.extend(n.map(|n| (view, n)));
        }
        found
    }

    /// What all kernels say of a view that they read or write.
    fn agreed(&self, view: &View, kernels: &[&Kernel]) -> Option<u64> {
        let all: Vec<_> = kernels
            .iter()
            .map(|k| self.choice(&k.nodes, view))
            .collect();
        agreed(&all).or_else(|| {
            // A node in all of them has other operands, too.
            let shared = |n: &&String| kernels.iter().all(|k| k.nodes.contains(n));
            let own = kernels.iter().map(|k| {
                let own = k.nodes.iter().filter(|n| !shared(n));
                self.choice(own, view)
            });
            agreed(&own.collect::<Vec<_>>())
        })
    }

    /// The elements of an operand that has the name of one of the model's values.
    fn named(&self, view: &View) -> Option<u64> {
        let mut name = view.name.as_str();
        loop {
            if let Some(seen) = self.named.get(name) {
                let fit = fit(&view.listed, seen)?;
                return elements(seen).filter(|_| fit < Fit::Padded);
            }
            name = name.rsplit_once(['.', '_'])?.0;
        }
    }

    fn choice<'a>(&self, nodes: impl IntoIterator<Item = &'a String>, view: &View) -> Choice {
        let mut choice = Choice::default();
        let values = nodes.into_iter().filter_map(|n| self.nodes.get(n));
        for seen in values.flatten().filter(|s| s.kind == kind(view.dtype)) {
            let Some(fit) = fit(&view.listed, seen) else {
                continue;
            };
            let all = match fit {
                Fit::Padded => open(seen).and_then(|n| n.checked_mul(view.known())),
                _ => elements(seen),
            };
            if let Some(n) = all {
                choice.0.entry(fit).or_default().insert(n);
            }
        }
        choice
    }

    /// The last of an attention's queries, keys and values, where the others are known.
    fn last(&self, kernel: &Kernel, elements: &Elements) -> Option<(View, u64)> {
        let own = |n: &&String| {
            self.products
                .get(*n)
                .is_some_and(|(op, _)| op.is("Attention"))
        };
        let node = kernel.nodes.iter().find(own)?;
        let three = self.nodes.get(node)?.get(..3)?.iter().map(self::elements);
        let mut left = three.collect::<Option<Vec<u64>>>()?;
        let views = kernel.inputs.iter().map(View::of);
        let (known, unknown): (Vec<_>, Vec<_>) = views.partition(|v| elements.contains_key(v));
        for n in known.iter().filter_map(|v| elements.get(v)) {
            if let Some(at) = left.iter().position(|m| m == n) {
                left.swap_remove(at);
            }
        }
        match (&*unknown, &*left) {
            ([view], [n]) => Some((view.clone(), *n)),
            _ => None,
        }
    }

    fn multiplications(&self, kernel: &Kernel) -> Option<u64> {
        let own = kernel.nodes.iter().filter_map(|n| self.products.get(n));
        let own: Vec<_> = own.collect();
        let attention = |op: &Op| op.is_any(&["Attention", "MultiHeadAttention"]);
        match (kernel.is_attention(), own.as_slice()) {
            (true, [(op, n)]) if attention(op) => *n,
            (true, [(a, n), (b, m)]) if !attention(a) && !attention(b) => (*n)?.checked_add((*m)?),
            (false, [(op, n)]) if kernel.weight().is_none() && !attention(op) => *n,
            _ => None,
        }
    }
}

/// How many elements an operand may have by one kernel, by how closely values fit.
#[derive(Clone, Debug, Default)]
struct Choice(BTreeMap<Fit, BTreeSet<u64>>);

impl Choice {
    /// By all values that fit so closely or more; `None` where there are none.
    fn up_to(&self, fit: Fit) -> Option<BTreeSet<u64>> {
        let sets = self.0.range(..=fit).map(|(_, n)| n.clone());
        sets.reduce(|a, b| &a | &b)
    }
}

/// What all kernels agree on that say anything: by the values that they have whole, else by the values that fit the most closely if
/// several kernels say so, else by all that fit.
fn agreed(choices: &[Choice]) -> Option<u64> {
    let whole = |c: &Choice| c.up_to(Fit::Flattened).or_else(|| c.up_to(Fit::Merged));
    let closest: Vec<_> = choices.iter().filter_map(|c| c.0.values().next()).collect();
    common(choices.iter().filter_map(whole))
        .or_else(|| {
            common(
                closest
                    .iter()
                    .filter(|_| closest.len() > 1)
                    .copied()
                    .cloned(),
            )
        })
        .or_else(|| common(choices.iter().filter_map(|c| c.up_to(Fit::Padded))))
}

fn common(sets: impl Iterator<Item = BTreeSet<u64>>) -> Option<u64> {
    let left = sets.reduce(|a, b| &a & &b)?;
    let mut left = left.into_iter();
    left.next().filter(|_| left.next().is_none())
}

/// Whether a value, rearranged, can have this shape.
fn fit(listed: &[i64], seen: &Seen) -> Option<Fit> {
    let same = |(&l, &(n, open)): (&i64, &(u64, bool))| match u64::try_from(l) {
        Ok(l) => !open && l == n,
        Err(_) => open,
    };
    if listed.len() == seen.dims.len() && listed.iter().zip(&seen.dims).all(same) {
        return Some(Fit::Same);
    }
    if flattens(listed, &seen.dims) {
        return Some(Fit::Flattened);
    }
    let large = |n: &u64| *n != 1;
    let mut known: Vec<u64> = listed
        .iter()
        .filter_map(|&d| u64::try_from(d).ok())
        .collect();
    let mut constant: Vec<u64> = seen.dims.iter().filter(|d| !d.1).map(|d| d.0).collect();
    known.retain(large);
    constant.retain(large);
    known.sort_unstable();
    constant.sort_unstable();
    let opens = listed.iter().filter(|&&d| d < 0).count();
    let vary = seen.dims.iter().filter(|d| d.1).count();
    if opens == vary && known == constant {
        return Some(Fit::Same);
    }
    // Constant dimensions may be part of open ones: heads of a batch, rows of a picture.
    let known = product(&known)?;
    let part = |chosen: u32| {
        let dims = constant.iter().enumerate();
        let dims = dims.filter(|(k, _)| chosen >> k & 1 == 1).map(|(_, &n)| n);
        product(&dims.collect::<Vec<_>>()) == Some(known)
    };
    let few = u32::try_from(constant.len()).ok().filter(|&n| n <= 8)?;
    let parts = opens > 0 && (0..1u32 << few).any(part);
    // What is merged has fewer dimensions, or is made rows of.
    let merges = opens == 1 || listed.len() != seen.dims.len();
    match merges && opens <= vary && parts {
        true => Some(Fit::Merged),
        false => padded(listed, seen).then_some(Fit::Padded),
    }
}

/// Whether each listed dimension is made of neighbours, in their order.
fn flattens(listed: &[i64], dims: &[(u64, bool)]) -> bool {
    let Some((first, rest)) = listed.split_first() else {
        return dims.is_empty();
    };
    let mut of = 1..=dims.len().saturating_sub(rest.len());
    of.any(|n| {
        let (group, others) = dims.split_at(n);
        let own = group.iter().try_fold(1u64, |p, d| p.checked_mul(d.0));
        let fits = match u64::try_from(*first) {
            Ok(l) => own == Some(l) && group.iter().all(|d| !d.1),
            Err(_) => group.iter().any(|d| d.1),
        };
        fits && flattens(rest, others)
    })
}

fn padded(listed: &[i64], seen: &Seen) -> bool {
    // The amounts by which constant dimensions are larger; `None` where a dimension does not fit at all.
    let more = listed.iter().zip(&seen.dims).map(|(&l, &(n, open))| {
        let more = u64::try_from(l).ok().map(|l| l.checked_sub(n));
        match more {
            None => open.then_some(0),
            Some(more) => more.filter(|_| !open),
        }
    });
    let more: Option<Vec<u64>> = more.collect();
    let one = |more: Vec<u64>| more.into_iter().filter(|&n| n > 0).count() == 1;
    listed.len() == seen.dims.len() && more.is_some_and(one)
}

/// What kernels of one node pass on to each other: statistics of the rows of a norm or a softmax, and the heads of an attention.
fn inner(node: &Node, values: &[Seen]) -> Vec<Seen> {
    let rows = node.op().is_any(&[
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "RMSNormalization",
        "Softmax",
    ]);
    let last = |seen: &Seen| {
        let mut seen = seen.clone();
        *seen.dims.last_mut()? = (1, false);
        Some(seen)
    };
    let of = values.iter().filter(|_| rows);
    let heads = |seen: &Seen, heads: u64| {
        let [batch, length, (width, false)] = seen.dims[..] else {
            return None;
        };
        let own = width.checked_div(heads).filter(|w| w * heads == width)?;
        let dims = vec![batch, (heads, false), length, (own, false)];
        Some(Seen { dims, ..*seen })
    };
    let counts = ["q_num_heads", "kv_num_heads", "num_heads"];
    let counts = counts
        .iter()
        .filter_map(|n| u64::try_from(node.attrs().int(n)?).ok());
    let split = counts.flat_map(|n| values.iter().filter_map(move |seen| heads(seen, n)));
    of.filter_map(last).chain(split).collect()
}

/// Goes on from what is known to what follows; whether anything did.
fn propagate(kernels: &Kernels, elements: &mut Elements) -> bool {
    let before = elements.len();
    for kernel in kernels.launched() {
        if let Some((rows, width)) = rows(kernel, elements) {
            for output in kernel.outputs.iter().filter(|o| o.known() == width) {
                let view = View::of(output);
                if output.open() == 1 && !elements.contains_key(&view) {
                    elements.extend(rows.checked_mul(width).map(|n| (view, n)));
                }
            }
        }
        // A conversion, of which the builder says nothing.
        if let ([from], [to], []) = (&*kernel.inputs, &*kernel.outputs, &*kernel.nodes) {
            let (a, b) = (View::of(from), View::of(to));
            if from.shape == to.shape && !elements.contains_key(&b) {
                let found = elements.get(&a).copied();
                elements.extend(found.map(|n| (b, n)));
            }
        }
    }
    // Whole tensors under another shape.
    let mut whole: BTreeMap<(String, u64), BTreeSet<u64>> = BTreeMap::new();
    for (view, &n) in elements.iter().filter(|(v, _)| v.is_whole()) {
        let key = (view.name.clone(), view.known());
        whole.entry(key).or_default().insert(n);
    }
    let operands = kernels
        .launched()
        .flat_map(|k| k.inputs.iter().chain(&k.outputs));
    for view in operands.filter(|o| o.open() > 0).map(View::of) {
        if view.is_whole() && !elements.contains_key(&view) {
            let found = whole.get(&(view.name.clone(), view.known())).cloned();
            let found = found.and_then(|n| common([n].into_iter()));
            elements.extend(found.map(|n| (view, n)));
        }
    }
    elements.len() > before
}

/// The rows that a product with a constant matrix reads, and the columns that it writes of them, those of several matrices of one
/// shape together.
fn rows(kernel: &Kernel, elements: &Elements) -> Option<(u64, u64)> {
    let weight = kernel
        .weight()
        .filter(|_| kernel.is_product() && !kernel.is_convolution())?;
    let whole: Option<Vec<u64>> = weight
        .shape
        .iter()
        .map(|&d| u64::try_from(d).ok())
        .collect();
    let whole = whole?;
    let (several, matrix) = whole.split_at_checked(whole.len().checked_sub(2)?)?;
    let several = product(several)?;
    let [factor] = &*kernel.inputs else {
        return None;
    };
    let inner = factor.known();
    let columns = match (matrix[0] == inner, matrix[1] == inner) {
        (true, false) => matrix[1],
        (false, true) => matrix[0],
        (true, true) => inner,
        _ => return None,
    };
    let all = elements.get(&View::of(factor))?;
    let rows = all.checked_div(inner).filter(|r| r * inner == *all)?;
    Some((rows, several.checked_mul(columns)?))
}

fn seen(at: &Facts, open: &Facts, v: ValueId) -> Option<Seen> {
    let (dims, names) = (at.dims(v)?, open.dims(v));
    let kind = match at.ty(v).dtype()? {
        d if d.is_float() => Kind::Number,
        DType::I8 | DType::U8 | DType::I4 | DType::U4 => Kind::Number,
        DType::Bool => Kind::Truth,
        _ => Kind::Whole,
    };
    let dims = dims.iter().enumerate().map(|(k, n)| {
        let fixed = names.and_then(|d| d.get(k)?.as_i64()).is_some();
        Some((u64::try_from(n.as_i64()?).ok()?, !fixed))
    });
    let dims = dims.collect::<Option<_>>()?;
    Some(Seen { dims, kind })
}

fn kind(dtype: DataType) -> Kind {
    match dtype {
        DataType::Int64 | DataType::Int32 => Kind::Whole,
        DataType::Bool => Kind::Truth,
        _ => Kind::Number,
    }
}

/// The product of the dimensions that are open.
fn open(seen: &Seen) -> Option<u64> {
    let mut open = seen.dims.iter().filter(|d| d.1);
    open.try_fold(1u64, |n, d| n.checked_mul(d.0))
}

fn elements(seen: &Seen) -> Option<u64> {
    seen.dims.iter().try_fold(1u64, |n, d| n.checked_mul(d.0))
}

#[cfg(test)]
mod tests;
