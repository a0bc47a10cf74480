//! What was done, as the manifest says it.

use std::path::Path;

use kiln_graph::Model;
use kiln_graph::onnx::Written;
use kiln_passes::{MissReport, PassReport, Remark};

use crate::cache::Note;
use crate::engine_parity::NotRun;
use crate::environment::environment;
use crate::manifest::{
    Applied, Chosen, Explained, FORMAT, Files, Manifest, Missed, Requantized, SourceFacts,
};
use crate::options::{Int8, Options};
use crate::pipeline::{Rewritten, Source};
use crate::recipe::Recipe;
use crate::summary::{self, Found};
use crate::targets::Targets;

/// What is known before anything is proved or built.
pub(super) fn record(
    options: &Options,
    targets: &Targets,
    source: &Source,
    original: &Model,
    rewritten: &Rewritten,
    written: &Written,
) -> Manifest {
    let mut ops_after = rewritten.ops_after.clone();
    if written.relays > 0 {
        *ops_after.entry("Identity".into()).or_default() += written.relays;
    }
    let mut manifest = Manifest {
        kiln: env!("CARGO_PKG_VERSION").into(),
        format: FORMAT,
        source: SourceFacts {
            path: source.path.display().to_string(),
            bytes: source.bytes,
            sha256: source.sha256.clone(),
        },
        target: targets.to_string(),
        precision: options.precision(),
        recipe: Recipe {
            model: Some(options.model.clone()),
            sha256: Some(source.sha256.clone()),
            ..options.recipe.clone()
        }
        .placed(Path::new(".")),
        options: Chosen {
            fp16: options.fp16,
            bf16: options.bf16,
            int8: options.int8.map(|form| match form {
                Int8::Static => "static".into(),
                Int8::Dynamic => "dynamic".into(),
            }),
            fp8: options.fp8,
            int4_block: options.int4,
            standard: options.standard,
            half_io: options.half_io,
            engine: options.engine,
            check: options.check,
            passes: options.passes.clone(),
            search: options.search,
            keep: options.keep.as_ref().map(|r| r.to_string()),
            keep_ops: options.keep_ops.iter().map(|op| op.to_string()).collect(),
            inputs: options.inputs.as_ref().map(|p| p.display().to_string()),
            seed: options.seed,
        },
        before: summary::of(original),
        after: summary::of(&rewritten.model).with_relays(written.relays),
        ops_before: rewritten.ops_before.clone(),
        ops_after,
        blocks: rewritten.blocks.clone(),
        attention: rewritten.attention.clone(),
        explain: explained(&options.explain, &rewritten.passes, &rewritten.misses),
        model: Files {
            bytes: written.bytes,
            external: written.external.as_ref().map(|(path, bytes)| {
                let name = path.file_name().unwrap_or_default();
                (name.to_string_lossy().into_owned(), *bytes)
            }),
        },
        cache: options.cache_key.as_ref().map(|key| Note {
            key: key.clone(),
            hit: false,
        }),
        engine_parity: NotRun::no_engine().into(),
        environment: environment(),
        ..Manifest::default()
    };
    for report in &rewritten.passes {
        match report.name {
            "convert-fp16" | "convert-bf16" => manifest.converted = report.applications,
            "quantize-int4" | "quantize-int8" | "quantize-fp8" => {
                manifest.quantized = report.applications
            }
            _ => {}
        }
        manifest.passes.push(Applied {
            name: report.name.into(),
            results: report.exactness.to_string(),
            applications: report.applications,
            milliseconds: report.elapsed.as_secs_f64() * 1e3,
            nodes_before: report.nodes_before,
            nodes_after: report.nodes_after,
        });
    }
    for remark in &rewritten.remarks {
        note(&mut manifest, remark);
    }
    // Whether projections are packed is the target's choice.
    let none = |b: &&Found| b.found > 0 && b.fused == 0 && b.kind != "packed projections";
    for block in rewritten.blocks.iter().filter(none) {
        let why = match &block.why {
            Some(why) => format!(": {why}"),
            None => "; --explain all says why".into(),
        };
        (manifest.warnings).push(format!(
            "none of {} {} was fused{why}",
            block.found, block.kind
        ));
    }
    manifest
}

/// What a pass remarked.
fn note(manifest: &mut Manifest, remark: &Remark) {
    match remark {
        Remark::Quantized { .. } | Remark::Narrowed { .. } => {}
        Remark::Rounded(rounded) => manifest.rounded.push(rounded.clone()),
        Remark::Ranged(a) => {
            let mut known = manifest.activations.iter();
            if !known.any(|known| known.value == a.value) {
                manifest.activations.push(a.clone());
            }
        }
        Remark::Kept(kept) => manifest.kept.push(kept.clone()),
        Remark::Requantized { node, how, exact } => {
            let found = manifest.requantized.iter_mut().find(|r| r.how == *how);
            match found {
                Some(same) => same.nodes.push(node.clone()),
                None => manifest.requantized.push(Requantized {
                    how: (*how).into(),
                    exact: *exact,
                    nodes: vec![node.clone()],
                }),
            }
        }
        Remark::Clamped(clamped) => manifest.clamped.push(clamped.clone()),
        Remark::OverBudget { node, bytes } => manifest.warnings.push(format!(
            "{node} was not folded: its result takes {}",
            summary::bytes(*bytes)
        )),
        Remark::Skipped { why } => manifest.warnings.push(why.clone()),
    }
}

/// What became of the passes of these names; `all` names every pass that ran.
fn explained(names: &[String], passes: &[PassReport], misses: &[MissReport]) -> Vec<Explained> {
    let mut wanted: Vec<&str> = Vec::new();
    for name in names {
        let ran = passes.iter().map(|p| p.name).filter(|_| name == "all");
        let named = Some(name.as_str()).filter(|&name| name != "all");
        for name in ran.chain(named) {
            if !wanted.contains(&name) {
                wanted.push(name);
            }
        }
    }
    let explain = |name: &str| {
        let runs: Vec<_> = passes.iter().filter(|p| p.name == name).collect();
        let misses = misses.iter().filter(|m| m.pass == name);
        let missed = misses.map(|m| Missed {
            root: m.root.clone(),
            depth: m.depth,
            stopped_at: m.at.clone(),
            why: m.why.clone(),
        });
        Explained {
            pass: name.into(),
            ran: !runs.is_empty(),
            matched: runs.iter().map(|p| p.applications).sum(),
            missed: missed.collect(),
        }
    };
    wanted.into_iter().map(explain).collect()
}
