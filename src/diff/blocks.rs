//! Changes by block and operator. Blocks that changed alike are told once.

use std::collections::BTreeMap;

use super::changes::{Change, Kind};
use super::nodes::Item;
use super::pairs::Pairs;
use super::rows::{Blocks, Count, Row};
use crate::engine::blocks;

/// The block of each node of both models; `None` outside of blocks.
#[derive(Debug)]
pub(super) struct Named {
    a: Vec<Option<String>>,
    b: Vec<Option<String>>,
}

/// Names the blocks of both models alike: those of the first by names or by repetition, those of the second by the same names,
/// by their partners, or by what stands around them.
pub(super) fn name(a: &[Item<'_>], b: &[Item<'_>], pairs: &Pairs) -> Named {
    let labels: Vec<_> = a.iter().chain(b).map(Item::label).collect();
    let ops = a.iter().chain(b).map(|item| item.op().name());
    let both: Vec<(&str, &str)> = labels.iter().map(|l| &**l).zip(ops).collect();
    let mut found = blocks::by_name(&both);
    if found.iter().all(Option::is_none) {
        found = blocks::by_repetition(&both[..a.len()]);
        found.resize(both.len(), None);
    }
    // PyTorch's exporters write a module's path with slashes or with dots.
    for block in found.iter_mut().flatten() {
        *block = block.replace('/', ".");
    }
    let mut of_b = found.split_off(a.len());
    for (at, block) in of_b.iter_mut().enumerate() {
        let partner = pairs.of_b[at].or_else(|| pairs.instead.get(&at).copied());
        if let Some(k) = partner {
            block.clone_from(&found[k]);
        }
    }
    surround(&mut of_b, pairs, b);
    Named { a: found, b: of_b }
}

/// Nodes without a partner and a name are in the block that is before and behind them.
fn surround(blocks: &mut [Option<String>], pairs: &Pairs, items: &[Item<'_>]) {
    let known: Vec<bool> = (0..items.len())
        .map(|k| blocks[k].is_some() || pairs.of_b[k].is_some())
        .collect();
    let before: Vec<Option<String>> = {
        let mut last = None;
        let walk = (0..items.len()).map(|k| {
            if known[k] {
                last.clone_from(&blocks[k]);
            }
            last.clone()
        });
        walk.collect()
    };
    let mut next = None;
    for k in (0..items.len()).rev() {
        if known[k] {
            next.clone_from(&blocks[k]);
        } else if before[k] == next {
            blocks[k].clone_from(&next);
        }
    }
}

type Rows = BTreeMap<String, Row>;

/// All operators, and the blocks in which something changed.
pub(super) fn rows(
    a: &[Item<'_>],
    b: &[Item<'_>],
    changes: &[Change],
    named: &Named,
) -> (Vec<Row>, Vec<Blocks>) {
    let mut whole = Rows::new();
    let mut each: BTreeMap<Option<&str>, (usize, usize, Rows)> = BTreeMap::new();
    let mut order: Vec<Option<&str>> = Vec::new();
    for (items, names, first) in [(a, &named.a, true), (b, &named.b, false)] {
        for (item, name) in items.iter().zip(names) {
            let name = name.as_deref();
            let block = each.entry(name).or_insert_with(|| {
                order.push(name);
                (0, 0, Rows::new())
            });
            *(if first { &mut block.0 } else { &mut block.1 }) += 1;
            for rows in [&mut whole, &mut block.2] {
                let row = row(rows, item);
                *(if first { &mut row.a } else { &mut row.b }) += 1;
            }
        }
    }
    for change in changes {
        let (item, block) = match change.kind {
            Kind::OnlyA(k) | Kind::Both(k, _) => (&a[k], named.a[k].as_deref()),
            Kind::OnlyB(k) => (&b[k], named.b[k].as_deref()),
        };
        add(row(&mut whole, item), change);
        if let Some((_, _, rows)) = each.get_mut(&block) {
            add(row(rows, item), change);
        }
    }
    let mut groups: Vec<Blocks> = Vec::new();
    // What is outside of blocks comes last.
    order.sort_by_key(Option::is_none);
    for name in order {
        let Some((nodes_a, nodes_b, rows)) = each.remove(&name) else {
            continue;
        };
        let rows = told(rows);
        if rows.is_empty() {
            continue;
        }
        let names: Vec<String> = name.map(str::to_string).into_iter().collect();
        let like = |g: &&mut Blocks| {
            !g.names.is_empty()
                && name.is_some()
                && (g.nodes_a, g.nodes_b) == (nodes_a, nodes_b)
                && g.rows == rows
        };
        match groups.iter_mut().find(like) {
            Some(group) => group.names.extend(names),
            None => groups.push(Blocks {
                names,
                nodes_a,
                nodes_b,
                rows,
            }),
        }
    }
    (told(whole), groups)
}

fn row<'r>(rows: &'r mut Rows, item: &Item<'_>) -> &'r mut Row {
    let operator = item.op().to_string();
    rows.entry(operator.clone()).or_insert_with(|| Row {
        operator,
        ..Row::default()
    })
}

fn add(row: &mut Row, change: &Change) {
    let list = match change.kind {
        Kind::OnlyA(_) => &mut row.only_a,
        Kind::OnlyB(_) => &mut row.only_b,
        Kind::Both(..) => &mut row.changed,
    };
    let same = |c: &&mut Count| c.what == change.what && c.pass == change.pass;
    match list.iter_mut().find(same) {
        Some(count) => count.nodes += 1,
        None => list.push(Count {
            nodes: 1,
            what: change.what.clone(),
            pass: change.pass.clone(),
        }),
    }
}

/// Rows with a change, the largest first.
fn told(rows: Rows) -> Vec<Row> {
    let mut rows: Vec<Row> = rows
        .into_values()
        .filter(|r| !(r.only_a.is_empty() && r.only_b.is_empty() && r.changed.is_empty()))
        .collect();
    for row in &mut rows {
        for list in [&mut row.only_a, &mut row.only_b, &mut row.changed] {
            list.sort_by(|x, y| y.nodes.cmp(&x.nodes).then_with(|| x.cmp(y)));
        }
    }
    rows.sort_by(|x, y| {
        let most = |r: &Row| r.a.max(r.b);
        most(y)
            .cmp(&most(x))
            .then_with(|| x.operator.cmp(&y.operator))
    });
    rows
}
