//! Caches of keys and values in one tensor, [2, rows, heads, tokens, size], as two.

use kiln_graph::caches;
use kiln_graph::{Graph, NodeId, Type, ValueId};

/// What parts of a whole are called.
const PARTS: [&str; 2] = ["key", "value"];

/// Makes two inputs and outputs of each such cache, whose parts are picked out and joined again, and gives the names of those.
pub fn part_halves(g: &mut Graph) -> Vec<String> {
    let mut parted = Vec::new();
    let wholes = caches::caches(g).into_iter().filter(|c| c.axis == 3);
    let ports = wholes.filter_map(|c| {
        let given = g.outputs().get(c.output?)?;
        Some((c.input, given.name.to_string(), given.value))
    });
    for (whole, output, given) in ports.collect::<Vec<_>>() {
        let name = g.value(whole).name().to_string();
        let (Some(picked), Some(joined)) = (picked(g, whole), joined(g, given)) else {
            continue;
        };
        let names = PARTS.map(|part| (format!("{name}.{part}"), format!("{output}.{part}")));
        if names.iter().any(|(i, o)| is_taken(g, i) || is_taken(g, o)) {
            continue;
        }
        let ty = g.value(whole).ty();
        let (Some(dtype), Some([_, rest @ ..])) = (ty.dtype(), ty.shape()) else {
            continue;
        };
        let half = Type::tensor(dtype, Some(rest.into()));
        for (k, node) in picked.into_iter().enumerate() {
            let input = g.add_input(&names[k].0, half.clone());
            if let Some(part) = g.node(node).sole_output() {
                g.replace_uses(part, input);
            }
            g.remove_node(node);
        }
        g.remove_input(whole);
        for port in g.take_outputs() {
            match *port.name == *output {
                true => {
                    for (k, part) in joined.into_iter().enumerate() {
                        g.add_output(&names[k].1, part);
                    }
                }
                false => g.add_output(&port.name, port.value),
            }
        }
        parted.push(name);
    }
    parted
}

fn is_taken(g: &Graph, name: &str) -> bool {
    let outputs = g.outputs().iter().any(|o| *o.name == *name);
    outputs || g.values().any(|(_, v)| v.name() == name)
}

/// The nodes that pick keys and values, which alone read the whole.
fn picked(g: &Graph, whole: ValueId) -> Option<[NodeId; 2]> {
    let mut found = [None; 2];
    for used in g.value(whole).uses() {
        let node = g.node(used.node);
        let first = node.attrs().int("axis").unwrap_or(0) == 0;
        let at = g.constant(node.input(1)?).filter(|t| t.rank() == 0)?;
        let slot = found.get_mut(usize::try_from(at.as_i64()?).ok()?)?;
        let is_new = slot.replace(used.node).is_none();
        (first && is_new && node.op().is("Gather")).then_some(())?;
    }
    Some([found[0]?, found[1]?])
}

/// Keys and values that are stacked.
fn joined(g: &Graph, whole: ValueId) -> Option<[ValueId; 2]> {
    let concat = g.node(g.producer_if(whole, "Concat")?);
    (concat.attrs().int("axis") == Some(0)).then_some(())?;
    let &[Some(keys), Some(values)] = concat.inputs() else {
        return None;
    };
    let part = |v: ValueId| {
        let node = g.node(g.producer_if(v, "Unsqueeze")?);
        let axes = g.constant(node.input(1)?)?.to_i64s()?;
        (axes == [0]).then_some(node.input(0)?)
    };
    Some([part(keys)?, part(values)?])
}
