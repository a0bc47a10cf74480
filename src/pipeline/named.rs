//! Options that name something of the model, and name nothing: what they ask for would be let through unseen.

use kiln_graph::{Graph, INTERNAL_DOMAIN, Model, Op};

use super::Error;
use crate::nearest;
use crate::options::Options;
use crate::setting::{KEEP, KEEP_OP};

/// Whether limits are for outputs of the model.
///
/// # Errors
/// [`Error::Tolerance`] with the outputs that it has.
pub(crate) fn outputs(options: &Options, original: &Model) -> Result<(), Error> {
    let outputs = original.graph.outputs().iter().map(|o| &*o.name);
    Ok(super::tolerance(options, None)?.names_outputs_of(outputs)?)
}

/// Whether there is a node for everything that is to keep its precision, in the graph of which the precision changes.
///
/// # Errors
/// [`Error::Keep`] with the nearest names; a node of the original may have become part of another.
pub(crate) fn kept(options: &Options, original: &Model, fused: &Model) -> Result<(), Error> {
    let refuse = |option: String, wanted: &str, gone: bool, names: Vec<String>| {
        Err(Error::Keep {
            option,
            gone: if gone { GONE } else { "" },
            instead: nearest::instead(names.iter().map(String::as_str), wanted),
        })
    };
    if let Some(keep) = &options.keep {
        let (before, after) = (names(&original.graph), names(&fused.graph));
        let matched = |names: &[String]| names.iter().any(|name| keep.is_match(name));
        if !matched(&after) {
            let option = format!("{KEEP} '{keep}'");
            return refuse(option, keep.as_str(), matched(&before), after);
        }
    }
    for op in &options.keep_ops {
        let choices = kiln_passes::Options {
            keep_ops: std::slice::from_ref(op),
            ..kiln_passes::Options::default()
        };
        let mut found = false;
        fused.graph.for_each_graph(&mut |g| {
            found |= g.nodes().any(|(id, _)| choices.keeps(g, id).is_some());
        });
        if !found {
            let gone = ops(&original.graph).contains(op);
            let names = ops(&fused.graph).iter().map(option).collect();
            return refuse(format!("{KEEP_OP} {}", option(op)), op.name(), gone, names);
        }
    }
    Ok(())
}

const GONE: &str =
    "; what it matches in the original has become part of other nodes, or was not needed";

fn names(graph: &Graph) -> Vec<String> {
    let mut names = Vec::new();
    graph.for_each_graph(&mut |g| {
        names.extend(g.nodes().map(|(_, node)| node.name().to_string()));
    });
    names
}

fn ops(graph: &Graph) -> Vec<Op> {
    let mut ops = Vec::new();
    graph.for_each_graph(&mut |g| ops.extend(g.nodes().map(|(_, node)| node.op())));
    ops
}

/// As [`KEEP_OP`] takes it.
fn option(op: &Op) -> String {
    match op.domain() {
        "" | INTERNAL_DOMAIN => op.name().to_string(),
        domain => format!("{domain}:{}", op.name()),
    }
}
