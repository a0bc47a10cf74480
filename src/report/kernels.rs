//! An engine's kernels, for people.

use std::collections::BTreeMap;

use super::section::Part;
use crate::engine::{Kernel, Kernels, Otherwise, Sizes};
use crate::manifest::EngineFacts;
use crate::summary::bytes;

/// What an engine's kernels do, in a few words: `37 kernels; products 12 int8; attention 3 dedicated`.
pub fn sentence(kernels: &Kernels) -> String {
    let mut parts = vec![format!("{} kernels", kernels.launched().count())];
    let products = kernels.products();
    if !products.is_empty() {
        let all = products.iter().map(|(types, n)| format!("{n} {types}"));
        parts.push(format!("products {}", all.collect::<Vec<_>>().join(", ")));
    }
    match kernels.attention() {
        0 => {}
        n => parts.push(format!("attention {n} dedicated")),
    }
    if let Some(traffic) = Sizes::default().traffic(kernels) {
        parts.push(format!("{} moved", bytes(traffic as usize)));
    }
    parts.join("; ")
}

/// The lines of the terminal's summary.
pub fn kernel_lines(engine: &EngineFacts) -> String {
    if engine.kernels.is_empty() {
        return String::new();
    }
    let mut out = format!("  kernels  {}\n", sentence(&engine.kernels));
    for layer in &engine.otherwise {
        out += &format!("           {}\n", otherwise(layer));
    }
    out
}

/// `multiplies in int8 x fp16, not in int8: LAYER`
fn otherwise(layer: &Otherwise) -> String {
    let Otherwise {
        layer,
        asked,
        multiplies,
    } = layer;
    let asked = asked.short();
    match multiplies {
        Some(types) => format!("multiplies in {types}, not in {asked}: {layer}"),
        None => format!("no kernel says that it multiplies in {asked}: {layer}"),
    }
}

/// Kernels by what they are, the most frequent first.
fn kinds(kernels: &Kernels) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for kernel in kernels.launched() {
        *counts.entry(kind(kernel)).or_default() += 1;
    }
    let mut all: Vec<_> = counts.into_iter().collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all
}

fn kind(kernel: &Kernel) -> String {
    match (kernel.is_attention(), kernel.is_product()) {
        (true, _) => "attention, dedicated".into(),
        (_, true) => format!("product, {}", kernel.multiplies()),
        _ => match kernel.kind.as_str() {
            "kgen" => "elementwise, reductions and moves".into(),
            other => other.into(),
        },
    }
}

/// The part of a bundle's report.
pub(super) fn parts(engine: &EngineFacts) -> Vec<Part> {
    if engine.kernels.is_empty() {
        return vec![Part::Text(
            "The builder did not list the engine's kernels.".into(),
        )];
    }
    let rows = kinds(&engine.kernels);
    let bars = rows
        .iter()
        .map(|(kind, n)| (kind.clone(), *n as f64, n.to_string()));
    let table = rows
        .iter()
        .map(|(kind, n)| vec![kind.clone(), n.to_string()]);
    let mut parts = vec![
        Part::Head("Kernels".into()),
        Part::Text(format!(
            "{}, as the builder lists them.",
            sentence(&engine.kernels)
        )),
        Part::Bars(vec![("Kernels by kind".into(), bars.collect())]),
        Part::Table(vec!["kernels", "number"], table.collect()),
    ];
    parts.extend(
        engine
            .otherwise
            .iter()
            .map(|layer| Part::Loud(otherwise(layer))),
    );
    parts.push(Part::Fold(
        format!("All kernels: {}", engine.kernels.launched().count()),
        vec![Part::Table(HEADER.to_vec(), list(&engine.kernels))],
    ));
    parts
}

/// The columns of [`list`].
pub const HEADER: &[&str] = &["kernel", "kind", "reads", "constants", "writes", "nodes"];

/// One row for each kernel, in the order in which they run.
pub fn list(kernels: &Kernels) -> Vec<Vec<String>> {
    let shapes = |operands: &[crate::engine::Operand]| {
        let all = operands.iter().map(|o| {
            let dims = o.shape.iter().map(|&d| match d {
                -1 => "?".to_string(),
                d => d.to_string(),
            });
            format!(
                "{}[{}]",
                o.dtype.short(),
                dims.collect::<Vec<_>>().join(",")
            )
        });
        all.collect::<Vec<_>>().join(" ")
    };
    let row = |k: &Kernel| {
        let first = k.nodes.first().cloned().unwrap_or_default();
        let nodes = match k.nodes.len() {
            0 | 1 => first,
            n => format!("{first} + {}", n - 1),
        };
        vec![
            k.name.clone(),
            kind(k),
            shapes(&k.inputs),
            shapes(&k.constants),
            shapes(&k.outputs),
            nodes,
        ]
    };
    kernels.launched().map(row).collect()
}
