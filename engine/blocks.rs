//! Which block of the Transformer a node belongs to: by names, which exporters make of the modules' names, else by what repeats.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

/// A block for each node, given as (name, operator) in the order of execution; `None` outside of blocks.
pub fn find(nodes: &[(&str, &str)]) -> Vec<Option<String>> {
    let named = by_name(nodes);
    match named.iter().any(Option::is_some) {
        true => named,
        false => by_repetition(nodes),
    }
}

/// Something numbered in a name: the list `encoder/layer`, its item `encoder/layer.0`, and what follows.
#[derive(Debug)]
struct Numbered<'a> {
    list: &'a str,
    item: &'a str,
    rest: &'a str,
}

/// All numbered parts of a name, the outermost first.
fn numbered(name: &str) -> Vec<Numbered<'_>> {
    let name = name.trim_start_matches('/');
    let mut all = Vec::new();
    let mut start = 0;
    for part in name.split_inclusive(['/', '.']) {
        let end = start + part.len();
        let word = part.trim_end_matches(['/', '.']);
        let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        if digits && start > 0 {
            all.push(Numbered {
                list: &name[..start - 1],
                item: &name[..start + word.len()],
                rest: &name[end..],
            });
        }
        start = end;
    }
    all
}

/// Lists of modules whose items are alike: blocks hold the same nodes, other lists (the modules of a pipeline) do not.
pub fn by_name(nodes: &[(&str, &str)]) -> Vec<Option<String>> {
    // For each list, the items that hold a node of this name.
    let mut lists: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for (name, _) in nodes {
        for n in numbered(name) {
            let items = lists.entry(n.list).or_default();
            items.entry(n.rest).or_default().insert(n.item);
        }
    }
    let alike = |rests: &BTreeMap<&str, BTreeSet<&str>>| -> usize {
        let shared = rests.values().filter(|items| items.len() > 1);
        shared.map(BTreeSet::len).sum()
    };
    let mut scored: Vec<(usize, &str)> = (lists.iter())
        .map(|(list, rests)| (alike(rests), *list))
        .filter(|(score, _)| *score > 0)
        .collect();
    scored.sort_by_key(|&(score, list)| (std::cmp::Reverse(score), list.len()));
    let mut chosen: Vec<&str> = Vec::new();
    for (_, list) in scored {
        let inside = |a: &str, b: &str| {
            a.strip_prefix(b)
                .is_some_and(|r| r.is_empty() || r.starts_with(['.', '/']))
        };
        if !chosen.iter().any(|c| inside(c, list) || inside(list, c)) {
            chosen.push(list);
        }
    }
    let of = |name: &str| {
        let all = numbered(name);
        let found = all.iter().find(|n| chosen.contains(&n.list));
        found.map(|n| n.item.to_string())
    };
    nodes.iter().map(|(name, _)| of(name)).collect()
}

/// Nodes of the shortest block: two products and something between them.
const SHORTEST: usize = 4;

/// The longest stretch in which the same operators come again and again; where several have its length, the shortest period.
pub fn by_repetition(nodes: &[(&str, &str)]) -> Vec<Option<String>> {
    let mut codes = FxHashMap::default();
    let ops: Vec<usize> = (nodes.iter())
        .map(|(_, op)| {
            let next = codes.len();
            *codes.entry(*op).or_insert(next)
        })
        .collect();
    // Nodes covered, period, start.
    let mut best = (0, 0, 0);
    for period in SHORTEST..=ops.len() / 2 {
        let mut run = 0;
        for i in 0..ops.len() - period {
            run = if ops[i] == ops[i + period] {
                run + 1
            } else {
                0
            };
            let covered = (run + period) / period * period;
            if run >= period && covered > best.0 {
                best = (covered, period, i + 1 - run);
            }
        }
    }
    let (covered, period, start) = best;
    let block = |i: usize| {
        let at = i.checked_sub(start).filter(|&at| at < covered)?;
        Some(format!("block {}", at / period))
    };
    (0..nodes.len()).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(names: &[&str]) -> Vec<String> {
        let nodes: Vec<_> = names.iter().map(|&n| (n, "MatMul")).collect();
        let found = find(&nodes).into_iter();
        found.map(|b| b.unwrap_or_default()).collect()
    }

    #[test]
    fn blocks_are_lists_of_like_modules() {
        let names = [
            "/model/model.0/encoder/layer.0/attention/MatMul",
            "/model/model.0/encoder/layer.0/output/MatMul",
            "/model/model.0/encoder/layer.1/attention/MatMul",
            "/model/model.0/encoder/layer.1/output/MatMul",
            "/model/model.1/Div",
        ];
        let layer = |k: usize| format!("model/model.0/encoder/layer.{k}");
        assert_eq!(
            blocks(&names),
            [layer(0), layer(0), layer(1), layer(1), String::new()]
        );
        let names = ["/h.0/attn/MatMul", "/h.1/attn/MatMul", "/ln_f/Add", ""];
        assert_eq!(blocks(&names), ["h.0", "h.1", "", ""]);
        // Experts are parts of blocks, encoder and decoder have blocks of their own.
        let names = [
            "enc/layers.0/experts.0/a",
            "enc/layers.0/experts.1/a",
            "enc/layers.0/b",
            "enc/layers.1/experts.0/a",
            "enc/layers.1/experts.1/a",
            "enc/layers.1/b",
            "dec/layers.0/b",
            "dec/layers.1/b",
        ];
        let expected = [
            "enc/layers.0",
            "enc/layers.1",
            "dec/layers.0",
            "dec/layers.1",
        ];
        assert_eq!(
            blocks(&names),
            [0, 0, 0, 1, 1, 1, 2, 3].map(|k: usize| expected[k])
        );
    }

    #[test]
    fn without_names_blocks_are_what_repeats() {
        let block = ["MatMul", "Softmax", "MatMul", "Add", "Norm"];
        let ops = [&["Gather", "Add"][..], &block, &block, &block, &["Tanh"]].concat();
        let nodes: Vec<_> = ops.iter().map(|&op| ("", op)).collect();
        let found = find(&nodes);
        assert_eq!(found[1], None);
        assert_eq!(found[2].as_deref(), Some("block 0"));
        assert_eq!(found[11].as_deref(), Some("block 1"));
        assert_eq!(found[16].as_deref(), Some("block 2"));
        assert_eq!(found[17], None);
        assert_eq!(find(&[("", "Add"); 3]), [None, None, None]);
        assert!(find(&[]).is_empty());
    }
}
