//! Which nodes of two models are the same one.

use rustc_hash::{FxHashMap, FxHasher};
use std::hash::{Hash, Hasher};

use kiln_graph::Attr;
use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::nodes::Item;

/// For each node its partner in the other model.
#[derive(Clone, Debug, Default)]
pub(super) struct Pairs {
    pub of_a: Vec<Option<usize>>,
    pub of_b: Vec<Option<usize>>,
    /// Nodes of the second model whose result has the name of another operator's in the first, and that one.
    pub instead: FxHashMap<usize, usize>,
}

impl Pairs {
    fn join(&mut self, a: usize, b: usize) {
        self.of_a[a] = Some(b);
        self.of_b[b] = Some(a);
    }

    fn len(&self) -> usize {
        self.of_a.iter().flatten().count()
    }
}

/// Pairs nodes by names. Where that pairs less than half of the smaller model, the two were named by different tools, and nodes are
/// paired by their weights, and then by their order.
pub(super) fn find(a: &[Item<'_>], b: &[Item<'_>]) -> Pairs {
    let mut pairs = Pairs {
        of_a: vec![None; a.len()],
        of_b: vec![None; b.len()],
        instead: FxHashMap::default(),
    };
    by_result(a, b, &mut pairs);
    by_key(a, b, &mut pairs, |item| {
        let name = item.node().name();
        (!name.is_empty()).then(|| name.to_string())
    });
    if 2 * pairs.len() < a.len().min(b.len()) {
        by_key(a, b, &mut pairs, weights);
        by_order(a, b, &mut pairs);
    }
    pairs
}

/// What has the same result is the same node, if it is the same operator.
fn by_result(a: &[Item<'_>], b: &[Item<'_>], pairs: &mut Pairs) {
    let named = a.iter().enumerate();
    let known: FxHashMap<(&str, &str), usize> = named
        .filter(|(_, i)| !i.result().is_empty())
        .map(|(k, i)| ((i.within.as_str(), i.result()), k))
        .collect();
    for (at, item) in b.iter().enumerate() {
        match known.get(&(item.within.as_str(), item.result())) {
            Some(&k) if a[k].op() == item.op() => pairs.join(k, at),
            Some(&k) => {
                pairs.instead.insert(at, k);
            }
            None => {}
        }
    }
}

/// Pairs what has a key that no other node of its model has.
fn by_key<K: Hash + Eq>(
    a: &[Item<'_>],
    b: &[Item<'_>],
    pairs: &mut Pairs,
    key: fn(&Item<'_>) -> Option<K>,
) {
    let unique = |items: &[Item<'_>], taken: &[Option<usize>]| {
        let mut places: FxHashMap<(String, K), Option<usize>> = FxHashMap::default();
        for (k, item) in items
            .iter()
            .enumerate()
            .filter(|(k, _)| taken[*k].is_none())
        {
            if let Some(key) = key(item) {
                let place = places.entry((item.within.clone(), key));
                place.and_modify(|p| *p = None).or_insert(Some(k));
            }
        }
        places
    };
    let (first, second) = (unique(a, &pairs.of_a), unique(b, &pairs.of_b));
    for (key, at) in second {
        if let (Some(at), Some(Some(k))) = (at, first.get(&key))
            && a[*k].op() == b[at].op()
        {
            pairs.join(*k, at);
        }
    }
}

/// Elements of a constant that tells a node apart.
const WEIGHTS: usize = 8;

/// The numbers of the largest constant operand.
fn weights(item: &Item<'_>) -> Option<u64> {
    let constants = item.node().inputs().iter().flatten();
    let constants = constants.filter_map(|&v| item.graph.constant(v));
    let largest = constants.max_by_key(|t| t.len())?;
    (largest.len() >= WEIGHTS).then(|| largest.fingerprint())
}

/// The longest common sequence of nodes that are alike by themselves, between those that are paired.
fn by_order(a: &[Item<'_>], b: &[Item<'_>], pairs: &mut Pairs) {
    let codes = |items: &[Item<'_>], pair: &dyn Fn(usize) -> Option<usize>| -> Vec<(u64, bool)> {
        let code = |(k, item)| match pair(k) {
            Some(pair) => (pair as u64, true),
            None => (likeness(item), false),
        };
        items.iter().enumerate().map(code).collect()
    };
    // A pair is known by its place in the first model.
    let first = codes(a, &|k| pairs.of_a[k].map(|_| k));
    let second = codes(b, &|k| pairs.of_b[k]);
    for op in capture_diff_slices(Algorithm::Patience, &first, &second) {
        if let DiffOp::Equal {
            old_index,
            new_index,
            len,
        } = op
        {
            for k in 0..len {
                pairs.join(old_index + k, new_index + k);
            }
        }
    }
}

/// Operator, attributes, and the types and sizes of constants.
fn likeness(item: &Item<'_>) -> u64 {
    let mut hash = FxHasher::default();
    let node = item.node();
    (node.op().to_string(), node.inputs().len()).hash(&mut hash);
    for (name, attr) in node.attrs().iter() {
        if !matches!(attr, Attr::Tensor(_)) && attr.graphs().is_empty() {
            (name, format!("{attr:?}")).hash(&mut hash);
        }
    }
    for v in node.inputs().iter().flatten() {
        item.graph.constant(*v).map(|t| t.dims()).hash(&mut hash);
    }
    hash.finish()
}
