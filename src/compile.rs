//! The pipeline: read → canonical → fused → typed → built → proved → reported.

mod build;
mod error;
mod gates;
mod plan;
mod proof;
mod record;
pub mod search;

use std::cell::LazyCell;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kiln_graph::{DType, Model};
use kiln_passes::registry;

pub use error::CompileError;
pub use plan::{Plan, plan};

use crate::bundle::{self, Partial};
use crate::engine_parity::{EngineParity, NotRun};
pub use crate::manifest::Calibrated;
use crate::manifest::{Manifest, Stage};
pub use crate::options::{Calibration, Gates, Int8, Options, Quantization, SAMPLES};
use crate::parity;
use crate::pipeline::{self, calibration, named};
pub use crate::pipeline::{Rewritten, Source};
use crate::prove;
use crate::report;
use crate::talk::{Silent, Talk};
use crate::targets::Targets;
use crate::twin;

/// A finished compilation.
#[derive(Debug)]
pub struct Outcome {
    pub bundle: PathBuf,
    pub manifest: Manifest,
}

/// Compiles a model into a bundle. On failure nothing is left behind, and an older bundle stays as it was.
///
/// # Errors
/// Each stage has its variant of [`CompileError`], which knows its exit code.
pub fn compile(options: &Options, talk: &dyn Talk) -> Result<Outcome, CompileError> {
    let mut clock = Clock {
        stages: Vec::new(),
        talk,
    };
    let targets = pipeline::targets(options, talk)?;
    pipeline::fit(options, &targets)?;
    gates::possible(options, &targets)?;
    let device = pipeline::device(options, &targets);
    pipeline::data_is_there(options)?;
    let output = output_path(options);
    pipeline::spares_inputs(options, &output, &[])?;
    let mut original = clock.time("read", || pipeline::read(options))?;
    pipeline::spares_inputs(options, &output, &original.sources)?;
    named::outputs(options, &original)?;
    let fixed = pipeline::fix(options, &mut original)?;
    let mut shapes = pipeline::shapes(options, &original)?;
    let partial = Partial::new(&output, options.over)?;
    for swept in &partial.swept {
        talk.warn(&swept.to_string());
    }

    let steps = pipeline::steps(options)?;
    let (exact, lossy) = pipeline::split(&steps);
    let fusing = pipeline::Passes {
        steps: exact,
        before: None,
        stats: None,
        plans: None,
        spared: &[],
        limit: None,
        finish: &[],
    };
    let builder = match targets {
        Targets::Engines(_) if options.engine => Some(build::builder(options, &partial)?),
        _ => None,
    };
    let hash = pipeline::fingerprint(options, &original);
    let source = LazyCell::new(|| hash.join().unwrap_or_else(|panic| resume_unwind(panic)));
    if options.sha256.is_some() {
        pipeline::is_asked_for(options, &source)?;
    }
    let mut fused = clock.time("passes", || {
        pipeline::rewrite(options, &targets, &fusing, original.clone(), talk)
    })?;
    named::kept(options, &original, &fused.model)?;
    if builder.is_some() {
        build::readable(&fused.model)?;
    }
    let mut reference = match options.check {
        true => Some(clock.time("sizes", || {
            let request = prove::Request {
                reference: &bundle::model_path(&options.model),
                original: &original,
                folded: &fused.model.graph,
                inputs: options.inputs.as_deref(),
                fixed: &fixed,
                seed: options.seed,
                optimized: pipeline::proved_as_optimized(options, &targets),
                thorough: false,
                half_io: options.half_io,
                one_profile: builder.is_some(),
                result: Some(result_name(options)),
                device,
                ort_lib: options.ort_lib.as_deref(),
            };
            prove::open(&request, &mut shapes, talk)
        })?),
        false => None,
    };
    for warning in shapes.told() {
        talk.warn(&warning);
    }
    if let Some(sizes) = shapes.describe() {
        talk.note(&format!("sizes: {sizes}"));
    }
    let (chosen, selecting) = reference.as_ref().map_or_else(Default::default, |r| {
        (r.chosen.clone(), r.selecting.clone())
    });
    if let Some(baked) = pipeline::narrowed(&original, &shapes, &chosen) {
        fused = clock.time("passes", || {
            pipeline::rewrite(options, &targets, &fusing, baked, talk)
        })?;
    }
    let measured = clock.time("calibration", || {
        calibration::measure(options, &targets, device, &fused.model, &shapes, talk)
    })?;
    let (stats, plans, calibrated) = match measured {
        None => (None, None, None),
        Some(m) => {
            if let Some(reference) = &mut reference {
                reference.prefer(m.cases);
            }
            (Some(m.stats), Some(m.plans), Some(m.facts))
        }
    };
    let typing = pipeline::Passes {
        steps: lossy,
        before: Some(&fused),
        stats: stats.as_ref(),
        plans: plans.as_ref(),
        // Whatever was chosen, no internal operator may be left.
        finish: registry::LOWER,
        ..fusing
    };
    let mut rewritten = clock.time("precision", || {
        pipeline::rewrite(options, &targets, &typing, fused.model.clone(), talk)
    })?;
    let halved = match (&mut reference, calibration::halved(options)) {
        (Some(reference), Some(halved)) => clock.time("blocks", || {
            let hold = search::hold(options, reference, &rewritten, &partial);
            let hold = hold.map_err(|e| e.in_search(options))?;
            Ok::<_, CompileError>((!hold).then_some(halved))
        })?,
        _ => None,
    };
    let (options, shorter) = match &halved {
        None => (options, None),
        Some(halved) => {
            let plans = clock.time("calibration", || {
                calibration::plans(halved, &targets, device, &fused.model, &shapes, talk)
            })?;
            (halved, Some(plans))
        }
    };
    let typing = pipeline::Passes {
        plans: shorter.as_ref().or(plans.as_ref()),
        ..typing
    };
    if halved.is_some() {
        rewritten = clock.time("precision", || {
            pipeline::rewrite(options, &targets, &typing, fused.model.clone(), talk)
        })?;
    }
    let engine_for = match (&targets, &builder) {
        (Targets::Engines(capabilities), Some(builder)) => {
            build::has_kernels(options, capabilities, &rewritten)?;
            Some((capabilities.as_slice(), builder.as_ref()))
        }
        _ => None,
    };
    let engine_of = |model: &Model| {
        engine_for.map(|(capabilities, builder)| {
            build::build(
                options,
                builder,
                capabilities,
                model,
                &shapes,
                &partial,
                talk,
            )
            .map_err(|e| e.beside(&selecting))
        })
    };
    let mut search = None;
    if let (Some(reference), true) = (&mut reference, !lossy.is_empty() && options.search) {
        let candidates = search::Candidates {
            sparing: &|spared: &[String]| {
                let passes = pipeline::Passes { spared, ..typing };
                Ok(pipeline::rewrite(
                    options,
                    &targets,
                    &passes,
                    fused.model.clone(),
                    &Silent,
                )?)
            },
            bound: build::bound(
                engine_for.map(|(capabilities, _)| capabilities),
                &fused.model,
            ),
            builds: &|model| engine_of(model).transpose().map(|_| ()),
        };
        (rewritten, search) = clock.time("search", || {
            let found = search::run(options, reference, rewritten, &candidates, &partial, talk);
            found.map_err(|e| e.in_search(options))
        })?;
    }
    let written = clock.time("write", || proof::write(&rewritten.model, &partial))?;
    let mut proof = match reference {
        Some(reference) => Some(reference.against(&partial.file(bundle::MODEL), &rewritten.model)?),
        None => None,
    };
    let engine = match engine_for {
        Some(_) => clock.time("engine", || engine_of(&rewritten.model).transpose())?,
        None => None,
    };
    let fixed = (engine.as_ref()).and_then(|built| build::fixed_inputs(built, &original));
    if let Some(why) = &fixed {
        talk.warn(why);
    }
    let (mut parity, mut latency, mut latency_not_run) = (None, None, None);
    let mut engine_parity = EngineParity::from(match &engine {
        Some(_) => NotRun::unchecked(),
        None => NotRun::no_engine(),
    });
    let (mut fallback, mut judge) = (None, None);
    if let Some(proof) = &mut proof {
        parity = Some(clock.time("parity", || {
            proof::prove(options, &rewritten, proof, &partial)
        })?);
        fallback = proof::fallback(options, proof, talk)?;
        if engine.is_some() {
            engine_parity = clock.time("engine parity", || {
                proof::prove_engine(options, &rewritten, proof, &partial)
            })?;
        }
        if let Some(asked) = &options.judge {
            judge = Some(clock.time("judge", || proof.ask(asked, talk))?);
        }
        match (
            options.latency,
            twin::formats(&rewritten.model).contains(&DType::BF16),
        ) {
            (false, _) => {}
            (true, true) => latency_not_run = Some(NO_BF16.to_string()),
            // What was proved is right, whether or not it can be timed here.
            (true, false) => match clock.time("latency", || proof::latency(proof)) {
                Ok(measured) => latency = Some(measured),
                Err(e) => {
                    let why = bundle::public(&e.to_string()).into_owned();
                    talk.warn(&format!("the result was not timed: {why}"));
                    latency_not_run = Some(why);
                }
            },
        }
    }

    clock.time("hash", || {
        LazyCell::force(&source);
        Ok::<(), CompileError>(())
    })?;
    let mut manifest = Manifest {
        sizes: shapes.ranges.clone(),
        runtime: proof.as_ref().map(|s| s.runtime_version()),
        device: proof.as_ref().map(|s| s.reference.device().clone()),
        placements: (proof.as_ref()).map_or(Vec::new(), |s| s.reference.placements().to_vec()),
        engine_parity,
        engine,
        judge,
        parity_outcome: parity.as_ref().map(|p| p.outcome()),
        parity,
        latency,
        latency_not_run,
        search,
        calibration: calibrated,
        stages: clock.stages,
        ..record::record(options, &targets, &source, &original, &rewritten, &written)
    };
    if let Some(proof) = &proof {
        manifest
            .warnings
            .extend(proof.reference.warnings.iter().cloned());
    }
    manifest.warnings.extend(fallback);
    manifest.warnings.extend(fixed);
    if let Some(search) = &manifest.search {
        let kept = search.kept.iter().cloned();
        manifest.recipe.precision.keep_nodes.extend(kept);
    }
    let doubts = manifest.parity.as_ref().map_or(Vec::new(), parity::doubts);
    for doubt in &doubts {
        talk.warn(doubt);
    }
    manifest.warnings.extend(doubts);
    if let (Some(_), Some(block)) = (&halved, options.int4) {
        manifest.warnings.push(format!(
            "INT4 has a scale for each {block} rows: with {} the result was out of tolerance",
            2 * block
        ));
    }
    let ranges = calibration::warning(options, &original, manifest.calibration.as_ref());
    let nearest = calibration::nearest(options);
    let told = ranges.into_iter().chain(nearest).map(String::from);
    manifest.warnings.extend(told);
    manifest.gates = gates::judge(options, &targets, &manifest);
    let manifest = gates::pass(options, manifest)?;
    pipeline::is_unchanged(&original)?;
    let json = serde_json::to_vec_pretty(&manifest).map_err(CompileError::Manifest)?;
    partial.write(bundle::MANIFEST, &json)?;
    partial.write(bundle::REPORT, report::markdown(&manifest).as_bytes())?;
    partial.write(bundle::REPORT_PAGE, report::html(&manifest).as_bytes())?;
    let (bundle, kept) = partial.finish()?;
    if !kept.is_empty() {
        let kept: Vec<_> = kept.iter().map(|name| name.to_string_lossy()).collect();
        talk.note(&format!("kept in the bundle: {}", kept.join(", ")));
    }
    Ok(Outcome { bundle, manifest })
}

const NO_BF16: &str =
    "ONNX Runtime's CPU provider has no BF16 kernels, and its CUDA provider not all";

/// What messages call the model in the bundle that is being written.
pub(crate) fn result_name(options: &Options) -> String {
    format!("the result of compiling {}", options.model.display())
}

/// Where the bundle goes.
pub(crate) fn output_path(options: &Options) -> PathBuf {
    let chosen = options.output.clone();
    chosen.unwrap_or_else(|| bundle::default_path(Path::new(&options.model)))
}

/// Names each stage to the user and keeps its time.
struct Clock<'a> {
    stages: Vec<Stage>,
    talk: &'a dyn Talk,
}

impl Clock<'_> {
    fn time<T, E>(&mut self, name: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.talk.stage(name);
        let start = Instant::now();
        let done = work()?;
        self.stages.push(Stage {
            name: name.into(),
            seconds: start.elapsed().as_secs_f64(),
        });
        Ok(done)
    }
}
