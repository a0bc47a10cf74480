//! An engine's kernels, for people.

use std::collections::BTreeMap;
use std::iter;

use super::section::{Bar, Part};
use crate::engine::paper::Bytes;
use crate::engine::{Attended, AttentionKernel, Kernel, Kernels, Otherwise, Paper};
use crate::manifest::EngineKernels;
use crate::summary::bytes;

/// What an engine's kernels do, in a few words: `37 kernels, 10.8 MB moved, products 12 int8, attention 3 dedicated, at least 92 µs on
/// L4 on paper (batch 1, seq 128)`.
pub fn sentence(engine: &EngineKernels) -> String {
    let (kernels, paper) = (&engine.kernels, engine.paper.as_ref());
    let all = kernels.launched().count();
    let mut parts = vec![format!("{all} kernels")];
    parts.extend(paper.map(|p| moved(p.moved(), all)));
    let products = kernels.products();
    if !products.is_empty() {
        let all = products.iter().map(|(types, n)| format!("{n} {types}"));
        parts.push(format!("products {}", all.collect::<Vec<_>>().join(" + ")));
    }
    parts.extend(census(kernels, &engine.attention));
    if let Some(price) = paper.and_then(Paper::told) {
        let (time, card) = (time(price.microseconds), price.short());
        parts.push(format!("at least {time} on {card} on paper"));
    }
    let at = paper.map_or(String::new(), at);
    let mut all = match at.is_empty() {
        true => parts.join(", "),
        false => format!("{} ({at})", parts.join(", ")),
    };
    if !engine.steps.is_empty() {
        all += &format!("; a step of one token: {}", step(&engine.steps));
    }
    if let Some(aliased) = &engine.aliased {
        all += &format!("; {}", aliased.describe());
    }
    all
}

/// `24 kernels, products 9 fp16, attention 2 dedicated`
fn step(kernels: &Kernels) -> String {
    let products = kernels.products();
    let products = products.iter().map(|(types, n)| format!("{n} {types}"));
    let products: Vec<String> = products.collect();
    let mut parts = vec![format!("{} kernels", kernels.launched().count())];
    if !products.is_empty() {
        parts.push(format!("products {}", products.join(" + ")));
    }
    parts.extend(census(kernels, &[]));
    parts.join(", ")
}

/// `attention 2 of 3 dedicated`
fn census(kernels: &Kernels, attention: &[Attended]) -> Option<String> {
    let own = |a: &&Attended| a.kernel == AttentionKernel::Dedicated;
    let named = attention.iter().filter(own).count();
    let (dedicated, others) = (kernels.attention().max(named), attention.len() - named);
    match (dedicated, others) {
        (0, 0) => None,
        (n, 0) => Some(format!("attention {n} dedicated")),
        (n, others) => Some(format!("attention {n} of {} dedicated", n + others)),
    }
}

/// Attentions that the terminal's summary names.
const NAMED: usize = 3;

/// `attention in products: LAYER, LAYER, LAYER and 9 more`, for those without a kernel of their own; names `most` of each kind.
pub fn undedicated(attention: &[Attended], most: usize) -> Vec<String> {
    let kinds = [
        (AttentionKernel::Products, "attention in products"),
        (AttentionKernel::Unnamed, "attention that no kernel names"),
    ];
    let line = |(kernel, words)| {
        let all = attention.iter().filter(|a| a.kernel == kernel);
        let all: Vec<&str> = all.map(|a| a.node.as_str()).collect();
        let more = match all.len().saturating_sub(most) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let first = all[..all.len().min(most)].join(", ");
        (!all.is_empty()).then(|| format!("{words}: {first}{more}"))
    };
    kinds.into_iter().filter_map(line).collect()
}

/// `10.8 MB moved`, and how many kernels are missing in that.
fn moved(sum: Bytes, all: usize) -> String {
    let known = bytes(sum.known as usize);
    match sum.unknown {
        0 => format!("{known} moved"),
        n => format!("at least {known} moved ({n} of {all} kernels not known)"),
    }
}

/// `batch 1, seq 128`
fn at(paper: &Paper) -> String {
    let all = paper.at.iter().map(|(name, n)| format!("{name} {n}"));
    all.collect::<Vec<_>>().join(", ")
}

fn time(microseconds: f64) -> String {
    match microseconds {
        us if us < 10.0 => format!("{us:.1} µs"),
        us if us < 10_000.0 => format!("{us:.0} µs"),
        us => format!("{:.1} ms", us / 1e3),
    }
}

/// The lines of the terminal's summary.
pub fn kernel_lines(engine: &EngineKernels) -> String {
    if engine.kernels.is_empty() {
        return String::new();
    }
    let what = sentence(engine);
    let mut out = format!("           {what}\n");
    let others = engine.otherwise.iter().map(otherwise);
    for line in undedicated(&engine.attention, NAMED)
        .into_iter()
        .chain(others)
    {
        out += &format!("           {line}\n");
    }
    out
}

/// `multiplies in int8 x fp16, not in int8: LAYER`
pub fn otherwise(layer: &Otherwise) -> String {
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

/// Kernels, counted from the first, by what they are; the most frequent first.
fn kinds(kernels: &Kernels) -> Vec<(String, Vec<usize>)> {
    let mut kinds: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, kernel) in kernels.launched().enumerate() {
        kinds.entry(kind(kernel)).or_default().push(at);
    }
    let mut all: Vec<_> = kinds.into_iter().collect();
    all.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then_with(|| a.0.cmp(&b.0)));
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
pub(super) fn parts(engine: &EngineKernels) -> Vec<Part> {
    let kernels = &engine.kernels;
    if kernels.is_empty() {
        return vec![Part::Text(
            "The builder did not list the engine's kernels.".into(),
        )];
    }
    let paper = engine.paper.as_ref();
    let mut parts = vec![
        Part::Head("Kernels".into()),
        Part::Text(format!("{}, as the builder lists them.", sentence(engine))),
    ];
    parts.extend(
        undedicated(&engine.attention, usize::MAX)
            .into_iter()
            .map(Part::Text),
    );
    parts.extend(engine.otherwise.iter().map(|l| Part::Loud(otherwise(l))));
    parts.push(Part::Bars(bars(kernels, paper)));
    if let Some((header, rows)) = paper.and_then(|p| blocks(kernels, p)) {
        parts.push(Part::Table(header, rows));
    }
    parts.push(Part::Table(
        vec!["kernels", "number", "activations", "constants"],
        by_kind(kernels, paper),
    ));
    if let Some(paper) = paper.filter(|p| !p.prices.is_empty()) {
        parts.push(Part::Text(ON_PAPER.into()));
        let rows = paper.prices.iter();
        let rows = rows.map(|p| vec![p.card.clone(), time(p.microseconds)]);
        parts.push(Part::Table(vec!["card", "at least"], rows.collect()));
    }
    parts.push(Part::Fold(
        format!("All kernels: {}", kernels.launched().count()),
        vec![Part::Table(header(paper), list(kernels, paper))],
    ));
    parts
}

const ON_PAPER: &str = "On paper: for each kernel the time of its bytes at the full rate of the card's memory, or that of its operations \
    at the card's peak, whichever is longer, and a launch. It is a bound from below and no latency; nothing of it was measured.";

/// Kernels and bytes by what the kernels are.
fn bars(kernels: &Kernels, paper: Option<&Paper>) -> Vec<(String, Vec<Bar>)> {
    let kinds = kinds(kernels);
    let counts = kinds.iter().map(|(kind, all)| {
        let n = all.len();
        (kind.clone(), n as f64, n.to_string())
    });
    let mut bars = vec![("Kernels by kind".to_string(), counts.collect())];
    if let Some(paper) = paper {
        let mut own: Vec<Bar> = kinds
            .iter()
            .map(|(kind, all)| bar(kind, activations(paper, all)))
            .collect();
        let constants = paper.kernels.iter().map(|k| k.constants);
        own.push(bar("constants, of all kernels", Bytes::of(constants)));
        bars.push(("Where bytes go".into(), own));
    }
    bars
}

fn bar(name: &str, sum: Bytes) -> Bar {
    (name.into(), sum.known as f64, amount(sum))
}

/// `1.2 MB`; `≥ 1.2 MB` where something is missing.
fn amount(sum: Bytes) -> String {
    let known = bytes(sum.known as usize);
    match sum.unknown {
        0 => known,
        _ => format!("≥ {known}"),
    }
}

fn activations(paper: &Paper, kernels: &[usize]) -> Bytes {
    Bytes::of(kernels.iter().map(|&k| paper.kernels.get(k)?.activations))
}

fn by_kind(kernels: &Kernels, paper: Option<&Paper>) -> Vec<Vec<String>> {
    let row = |(kind, all): &(String, Vec<usize>)| {
        let own = paper.map_or(String::new(), |p| amount(activations(p, all)));
        let constants = paper.map_or(String::new(), |p| {
            amount(Bytes::of(all.iter().map(|&k| p.kernels.get(k)?.constants)))
        });
        vec![kind.clone(), all.len().to_string(), own, constants]
    };
    kinds(kernels).iter().map(row).collect()
}

/// Header and rows of a table: the kernels of each block, with blocks that are alike in one row. `None` without blocks.
pub fn blocks(kernels: &Kernels, paper: &Paper) -> Option<(Vec<&'static str>, Vec<Vec<String>>)> {
    let mut order: Vec<(Option<&str>, Vec<usize>)> = Vec::new();
    for (k, cost) in paper.kernels.iter().enumerate() {
        let block = cost.block.as_deref();
        match order.iter_mut().find(|(b, _)| *b == block) {
            Some((_, all)) => all.push(k),
            None => order.push((block, vec![k])),
        }
    }
    order.iter().find(|(block, _)| block.is_some())?;
    let launched: Vec<&Kernel> = kernels.launched().collect();
    let mut rows: Vec<(Vec<&str>, Vec<String>)> = Vec::new();
    for (block, all) in &order {
        let cells = block_cells(&launched, paper, all);
        let name = block.unwrap_or("outside of blocks");
        match rows
            .last_mut()
            .filter(|(_, last)| *last == cells && block.is_some())
        {
            Some((names, _)) => names.push(name),
            None => rows.push((vec![name], cells)),
        }
    }
    let rows = rows.into_iter().map(|(names, cells)| {
        let name = match names[..] {
            [first, .., last] => format!("{first} to {last}, {} times", names.len()),
            _ => names.concat(),
        };
        iter::once(name).chain(cells).collect()
    });
    let header = vec![
        "block",
        "kernels",
        "products",
        "attention",
        "others",
        "activations",
        "constants",
        "on paper",
    ];
    Some((header, rows.collect()))
}

fn block_cells(launched: &[&Kernel], paper: &Paper, all: &[usize]) -> Vec<String> {
    let own: Vec<&Kernel> = all
        .iter()
        .filter_map(|&k| launched.get(k).copied())
        .collect();
    let mut products: BTreeMap<String, usize> = BTreeMap::new();
    for product in own.iter().filter(|k| k.is_product()) {
        *products
            .entry(product.multiplies().to_string())
            .or_default() += 1;
    }
    let multiply: usize = products.values().sum();
    let products = products.iter().map(|(types, n)| format!("{n} {types}"));
    let attention = own.iter().filter(|k| k.is_attention()).count();
    let price = paper.told().map_or(String::new(), |price| {
        let each = all.iter().filter_map(|&k| *price.kernels.get(k)?);
        format!("≥ {} ({})", time(each.sum()), price.short())
    });
    let constants = Bytes::of(all.iter().map(|&k| paper.kernels.get(k)?.constants));
    vec![
        own.len().to_string(),
        products.collect::<Vec<_>>().join(" + "),
        match attention {
            0 => String::new(),
            n => format!("{n} dedicated"),
        },
        (own.len() - multiply - attention).to_string(),
        amount(activations(paper, all)),
        amount(constants),
        price,
    ]
}

/// The columns of [`list`].
pub fn header(paper: Option<&Paper>) -> Vec<&'static str> {
    let mut header = vec!["kernel", "kind", "reads", "constants", "writes"];
    if paper.is_some() {
        header.push("activations");
    }
    header.push("nodes");
    header
}

/// One row for each kernel, in the order in which they run.
pub fn list(kernels: &Kernels, paper: Option<&Paper>) -> Vec<Vec<String>> {
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
    let row = |(at, k): (usize, &Kernel)| {
        let first = k.nodes.first().cloned().unwrap_or_default();
        let nodes = match k.nodes.len() {
            0 | 1 => first,
            n => format!("{first} + {}", n - 1),
        };
        let mut row = vec![
            k.name.clone(),
            kind(k),
            shapes(&k.inputs),
            shapes(&k.constants),
            shapes(&k.outputs),
        ];
        if let Some(paper) = paper {
            let own = paper.kernels.get(at).and_then(|c| c.activations);
            row.push(own.map_or("not known".into(), |n| bytes(n as usize)));
        }
        row.push(nodes);
        row
    };
    kernels.launched().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::paper::{CardPrice, Cost};
    use crate::engine::{DataType, Operand};

    /// Three layers of two kernels, of which `unknown` move what is not known, and one before them.
    fn engine(unknown: usize) -> (Kernels, Paper) {
        let operand = |shape: &[i64]| Operand {
            name: "x".into(),
            shape: shape.to_vec(),
            strides: vec![1; 2],
            dtype: DataType::Float16,
        };
        let kernel = |at: usize| {
            let product = at > 0 && at.is_multiple_of(2);
            Kernel {
                name: format!("k{at}"),
                kind: if product { "gemm" } else { "kgen" }.into(),
                inputs: vec![operand(&[-1, 8])],
                constants: product.then(|| operand(&[8, 8])).into_iter().collect(),
                outputs: vec![operand(&[-1, 8])],
                tactic: String::new(),
                nodes: Vec::new(),
            }
        };
        let cost = |at: usize| Cost {
            kernel: format!("k{at}"),
            block: at.checked_sub(1).map(|n| format!("layer.{}", n / 2)),
            activations: (at >= unknown).then_some(1000),
            constants: Some(128),
            operations: Some(0),
            unknown: None,
        };
        let price = CardPrice {
            card: "NVIDIA L4".into(),
            microseconds: 92.4,
            kernels: vec![Some(1.0); 7],
        };
        let paper = Paper {
            at: [("batch".to_string(), 1), ("seq".to_string(), 128)].into(),
            kernels: (0..7).map(cost).collect(),
            prices: vec![price],
        };
        (Kernels((0..7).map(kernel).collect()), paper)
    }

    fn listed(kernels: &Kernels, attention: &[Attended], paper: Option<Paper>) -> EngineKernels {
        EngineKernels {
            kernels: kernels.clone(),
            attention: attention.to_vec(),
            paper,
            ..EngineKernels::default()
        }
    }

    #[test]
    fn a_sentence_says_what_is_missing_in_it() {
        let (kernels, paper) = engine(0);
        assert_eq!(
            sentence(&listed(&kernels, &[], Some(paper))),
            "7 kernels, 7.0 kB moved, products 3 fp16, at least 92 µs on L4 on paper (batch 1, seq 128)"
        );
        let (kernels, paper) = engine(2);
        let words = sentence(&listed(&kernels, &[], Some(paper)));
        let missing = "at least 5.0 kB moved (2 of 7 kernels not known)";
        assert!(words.contains(missing), "{words}");
        assert_eq!(
            sentence(&listed(&kernels, &[], None)),
            "7 kernels, products 3 fp16"
        );
    }

    #[test]
    fn attention_without_a_kernel_of_its_own_is_named() {
        let (mut kernels, _) = engine(0);
        let all = |kinds: &[AttentionKernel]| -> Vec<Attended> {
            let all = kinds.iter().enumerate().map(|(n, &kernel)| Attended {
                node: format!("layer.{n}/Softmax"),
                kernel,
            });
            all.collect()
        };
        use AttentionKernel::{Dedicated, Products, Unnamed};
        kernels.0[1].name = "_gemm_mha_v2".into();
        let own = all(&[Dedicated]);
        assert!(sentence(&listed(&kernels, &own, None)).ends_with(", attention 1 dedicated"));
        assert!(undedicated(&own, NAMED).is_empty());
        // An older bundle does not say which.
        assert!(sentence(&listed(&kernels, &[], None)).ends_with(", attention 1 dedicated"));
        let some = all(&[Dedicated, Products, Unnamed]);
        assert!(sentence(&listed(&kernels, &some, None)).ends_with(", attention 1 of 3 dedicated"));
        assert_eq!(
            undedicated(&some, NAMED),
            [
                "attention in products: layer.1/Softmax",
                "attention that no kernel names: layer.2/Softmax"
            ]
        );
        kernels.0[1].name = "k1".into();
        let none = all(&[Products; 5]);
        assert!(sentence(&listed(&kernels, &none, None)).ends_with(", attention 0 of 5 dedicated"));
        let line = &undedicated(&none, NAMED)[0];
        assert!(line.ends_with("layer.2/Softmax and 2 more"), "{line}");
        let line = &undedicated(&none, usize::MAX)[0];
        assert!(line.ends_with("layer.3/Softmax, layer.4/Softmax"), "{line}");
    }

    #[test]
    fn blocks_that_are_alike_share_a_row() {
        let (kernels, paper) = engine(0);
        let (header, rows) = blocks(&kernels, &paper).unwrap();
        assert!(rows.iter().all(|r| r.len() == header.len()));
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!(rows[0][..2], ["outside of blocks", "1"]);
        let wanted = [
            "layer.0 to layer.2, 3 times",
            "2",
            "1 fp16",
            "",
            "1",
            "2.0 kB",
            "256 B",
            "≥ 2.0 µs (L4)",
        ];
        assert_eq!(rows[1], wanted);
        let (kernels, paper) = engine(2);
        let (_, rows) = blocks(&kernels, &paper).unwrap();
        assert_eq!(rows[1][5], "≥ 1.0 kB");
        assert_eq!(rows[2][0], "layer.1 to layer.2, 2 times");
        assert_eq!(blocks(&kernels, &Paper::default()), None);
    }
}
