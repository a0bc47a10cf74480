//! What a compilation changed: blocks, operators, passes.

use std::collections::{BTreeMap, BTreeSet};

use crate::manifest::{Applied, Manifest};
use crate::report::section::Part;

pub(super) fn changes(m: &Manifest) -> Vec<Part> {
    let found = m.blocks.iter().filter(|b| b.found > 0);
    let found = found.map(|b| {
        let fused = match &b.why {
            Some(why) => format!("{} ({why})", b.fused),
            None => b.fused.to_string(),
        };
        vec![b.kind.to_string(), b.found.to_string(), fused]
    });
    let mut parts = vec![
        Part::Head("Fused blocks".into()),
        Part::Table(vec!["blocks", "found", "fused"], found.collect()),
        Part::Head("Operators, before and after".into()),
    ];
    parts.extend(operators(m));
    if !m.attention.is_empty() {
        let size = |n: usize| if n == 0 { "?".into() } else { n.to_string() };
        let rows = m.attention.iter().map(|a| {
            let guard = if a.guarded {
                ", hidden rows give zeros"
            } else {
                ""
            };
            vec![
                a.name.clone(),
                size(a.heads),
                size(a.kv_heads),
                size(a.head_size),
                format!("{:.4}", a.scale),
                format!("{}{guard}", a.mask),
            ]
        });
        let header = vec![
            "attention",
            "heads",
            "kv heads",
            "head size",
            "scale",
            "mask",
        ];
        let table = Part::Table(header, rows.collect());
        let title = format!("{} attention blocks", m.attention.len());
        parts.push(Part::Fold(title, vec![table]));
    }
    let row = |p: &Applied| {
        vec![
            p.name.clone(),
            p.results.clone(),
            p.applications.to_string(),
            format!("{:.1}", p.milliseconds),
            format!("{} → {}", p.nodes_before, p.nodes_after),
        ]
    };
    let header = || vec!["pass", "results", "applications", "ms", "nodes"];
    let applied = m.passes.iter().filter(|p| p.applications > 0);
    parts.push(Part::Head("Passes that changed something".into()));
    parts.push(Part::Table(header(), applied.map(row).collect()));
    let idle: Vec<_> = m
        .passes
        .iter()
        .filter(|p| p.applications == 0)
        .map(row)
        .collect();
    let title = format!("{} passes that found nothing to do", idle.len());
    parts.push(Part::Fold(title, vec![Part::Table(header(), idle)]));
    parts
}

fn operators(m: &Manifest) -> Vec<Part> {
    let names: BTreeSet<&String> = m.ops_before.keys().chain(m.ops_after.keys()).collect();
    let mut all: Vec<(String, usize, usize)> = (names.into_iter())
        .map(|op| {
            let n = |ops: &BTreeMap<String, usize>| ops.get(op).copied().unwrap_or(0);
            (op.clone(), n(&m.ops_before), n(&m.ops_after))
        })
        .collect();
    all.sort_by_key(|(_, before, after)| std::cmp::Reverse(*before.max(after)));
    let rows = all.iter();
    let rows =
        rows.map(|(op, before, after)| vec![op.clone(), before.to_string(), after.to_string()]);
    let table = Part::Table(vec!["operator", "before", "after"], rows.collect());
    vec![
        Part::Changes(all),
        Part::Fold("The same as a table".into(), vec![table]),
    ]
}
