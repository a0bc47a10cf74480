//! What was done, as the manifest says it.

use std::path::Path;

use kiln_graph::Model;
use kiln_graph::onnx::Written;
use kiln_passes::{MissReport, PassReport, Remark};

use super::job::Job;
use super::proved::Proved;
use super::typed::Typed;
use super::{build, cuda, gates};
use crate::engine_parity::NotRun;
use crate::environment::environment;
use crate::manifest::Note;
use crate::manifest::{
    Applied, Chosen, EngineFacts, Explained, FORMAT, Files, Manifest, Missed, Requantized,
    SourceFacts, Stage,
};
use crate::options::Options;
use crate::parity;
use crate::pipeline::{Rewritten, Source, calibration};
use crate::precision::{Format, Linear, Precision};
use crate::recipe::Recipe;
use crate::setting::EXPLAIN;
use crate::summary::{self, Found};
use crate::talk::Talk;
use crate::targets::Targets;

/// All that a compilation found out.
pub(super) struct Done<'a> {
    pub source: Source,
    pub written: Written,
    pub typed: &'a Typed,
    pub engine: Option<EngineFacts>,
    pub proved: Proved,
    pub stages: Vec<Stage>,
}

/// The whole manifest, with its warnings told and its gates judged.
pub(super) fn manifest(job: &Job<'_>, found: Done<'_>, talk: &dyn Talk) -> Manifest {
    let (options, prepared) = (job.options, job.prepared);
    let Done { typed, proved, .. } = found;
    let original = &prepared.original;
    let known = record(
        options,
        &prepared.targets,
        &found.source,
        original,
        &typed.rewritten,
        &found.written,
    );
    let proof = proved.proof.as_ref();
    let reference = proof.map(|p| &p.reference);
    let in_pieces = proved.in_pieces.as_ref();
    let fixed = found.engine.as_ref();
    let fixed = fixed.and_then(|built| build::fixed_inputs(built, original));
    fixed.iter().for_each(|why| talk.warn(why));
    let mut manifest = Manifest {
        sizes: prepared.shapes.ranges.clone(),
        runtime: (proof.map(|s| s.runtime_version()))
            .or_else(|| in_pieces.map(|p| p.alone.runtime_version())),
        device: (reference.map(|r| r.device().clone()))
            .or_else(|| in_pieces.map(|p| p.alone.device.clone())),
        optimization: reference.map(|r| r.optimization()),
        placements: reference.map_or(Vec::new(), |r| r.placements().to_vec()),
        parted: (reference.and_then(|r| r.parted.clone()))
            .or_else(|| in_pieces.map(|p| p.shows.clone())),
        ran: reference.map_or(Vec::new(), |r| r.ran()),
        engine_parity: proved.engine_parity,
        engine: found.engine,
        judge: proved.judge,
        parity_outcome: proved.parity.as_ref().map(|p| p.outcome()),
        parity: proved.parity,
        generation: proved.generation,
        latency: proved.latency,
        latency_not_run: proved.latency_not_run,
        search: typed.search.clone(),
        calibration: prepared.measured.as_ref().map(|m| m.facts.clone()),
        stages: found.stages,
        ..known
    };
    let warnings = &mut manifest.warnings;
    warnings.extend(reference.iter().flat_map(|r| r.warnings.iter().cloned()));
    warnings.extend(proved.fallback);
    if prepared.targets == Targets::Cuda {
        let told = cuda::warnings(&typed.rewritten.model, manifest.device.as_ref());
        told.iter().for_each(|why| talk.warn(why));
        manifest.warnings.extend(told);
    }
    let warnings = &mut manifest.warnings;
    warnings.extend(fixed);
    if let Some(search) = &manifest.search {
        let kept = search.kept.iter().cloned();
        manifest.recipe.precision.keep_nodes.extend(kept);
    }
    let doubts = manifest.parity.as_ref().map_or(Vec::new(), parity::doubts);
    doubts.iter().for_each(|doubt| talk.warn(doubt));
    manifest.warnings.extend(doubts);
    if typed.halved.is_some() {
        let block = options.int4_block;
        manifest.warnings.push(format!(
            "INT4 has a scale for each {block} rows: with {} the result was out of tolerance",
            2 * block
        ));
    }
    let ranges = calibration::warning(options, original, manifest.calibration.as_ref());
    let nearest = calibration::nearest(options);
    manifest.warnings.extend(ranges.into_iter().chain(nearest));
    manifest.gates = gates::judge(options, &prepared.targets, &manifest);
    manifest
}

/// What is known before anything is proved or built.
fn record(
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
        source: facts(source),
        target: targets.to_string(),
        precision: options.precision.to_string(),
        recipe: Recipe {
            model: Some(options.model.clone()),
            blake3: Some(source.blake3.clone()),
            ..options.recipe.clone()
        }
        .placed(Path::new(".")),
        options: Chosen {
            precision: options.precision,
            int4_block: (options.precision.linear == Linear::Int4).then_some(options.int4_block),
            standard: options.standard,
            half_io: options.half_io,
            engine: options.engine,
            check: options.check,
            proof: Some(options.proof),
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
        let Precision { floats, linear } = options.precision;
        let ran = |format: Option<Format>| format.and_then(Format::pass) == Some(report.name);
        if ran(Some(floats.format())) {
            manifest.converted = report.applications;
        } else if ran(linear.format()) {
            manifest.quantized = report.applications;
        }
        manifest.passes.push(Applied {
            name: report.name.into(),
            results: report.exactness.to_string(),
            applications: report.applications,
            milliseconds: report.elapsed.as_secs_f64() * 1e3,
            nodes_before: report.nodes_before,
            nodes_after: report.nodes_after,
            removed: report.removed.clone(),
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
            None => format!("; {EXPLAIN} all says why"),
        };
        (manifest.warnings).push(format!(
            "none of {} {} was fused{why}",
            block.found, block.kind
        ));
    }
    manifest
}

fn facts(source: &Source) -> SourceFacts {
    SourceFacts {
        path: source.path.display().to_string(),
        bytes: source.bytes,
        blake3: Some(source.blake3.clone()),
        sha256: source.sha256.clone(),
    }
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
