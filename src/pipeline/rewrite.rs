//! The passes: which ones, and what they did.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln_graph::{Model, onnx, text};
use kiln_passes::census::{AttentionBlock, census, packed_attentions};
use kiln_passes::precision::stats::Stats;
use kiln_passes::precision::{Grams, Plans};
use kiln_passes::{
    Application, Context, Exactness, MissReport, PassReport, Remark, Step, Target, registry,
};

use super::Error;
use crate::options::Options;
use crate::precision::{Format, Scheme};
use crate::runtime::{self, OrtEvaluator};
use crate::summary::{self, Found};
use crate::talk::Talk;
use crate::targets::Targets;

/// The model after the passes, and what they did.
#[derive(Debug)]
pub struct Rewritten {
    pub model: Model,
    pub passes: Vec<PassReport>,
    pub remarks: Vec<Remark>,
    pub misses: Vec<MissReport>,
    /// Applications that the limit counted, and the one that reached it.
    pub applied: usize,
    pub last: Option<Application>,
    pub blocks: Vec<Found>,
    pub attention: Vec<AttentionBlock>,
    pub ops_before: BTreeMap<String, usize>,
    /// Whether the original rounds activations to integers.
    pub quantized_before: bool,
    pub ops_after: BTreeMap<String, usize>,
}

impl Rewritten {
    /// What both did. Blocks are those before lowering, where each is one operator.
    fn following(mut self, before: &Rewritten) -> Rewritten {
        self.passes.splice(0..0, before.passes.iter().cloned());
        self.remarks.splice(0..0, before.remarks.iter().cloned());
        self.misses.splice(0..0, before.misses.iter().cloned());
        Rewritten {
            applied: before.applied + self.applied,
            blocks: before.blocks.clone(),
            attention: before.attention.clone(),
            ops_before: before.ops_before.clone(),
            quantized_before: before.quantized_before,
            ..self
        }
    }

    /// The layers that were quantized, or else the nodes that were converted, by their labels.
    pub fn converted(&self) -> Vec<String> {
        let quantized = self.remarks.iter().filter_map(|r| match r {
            Remark::Quantized { layer } => Some(layer.clone()),
            _ => None,
        });
        let quantized: Vec<String> = quantized.collect();
        if !quantized.is_empty() {
            return quantized;
        }
        let narrowed = self.remarks.iter().filter_map(|r| match r {
            Remark::Narrowed { node } => Some(node.clone()),
            _ => None,
        });
        narrowed.collect()
    }
}

impl Rewritten {
    /// Whether numbers may fall on another step of a quantization than in the original: it was written anew, or what is
    /// quantized is computed with other roundings.
    pub(super) fn moves_steps(&self) -> bool {
        let anew = |r: &Remark| matches!(r, Remark::Requantized { exact: false, .. });
        let rounds = |p: &PassReport| p.applications > 0 && p.exactness > Exactness::Exact;
        self.remarks.iter().any(anew) || self.quantized_before && self.passes.iter().any(rounds)
    }
}

/// The steps that the options name.
pub(crate) fn steps(options: &Options) -> Result<Vec<Step>, Error> {
    let mut default = registry::DEFAULT.to_vec();
    for format in options.precision.formats() {
        default.extend_from_slice(format.steps());
    }
    match &options.passes {
        Some(list) => Ok(registry::select(list, &default)?),
        None => Ok(default),
    }
}

/// Whether the proof runs models as ONNX Runtime optimizes them: its integer products on the CPU are what is to be proved.
pub(crate) fn proved_as_optimized(options: &Options, targets: &Targets) -> bool {
    options.precision.linear.format() == Some(Format::Int8) && *targets == Targets::Cpu
}

/// The steps before the first that changes number formats, and the others: between them values are calibrated.
pub(crate) fn split(steps: &[Step]) -> (&[Step], &[Step]) {
    let lossy = |s: &Step| matches!(s, Step::Run(p) if p.exactness() == Exactness::Lossy);
    let at = steps.iter().position(lossy);
    steps.split_at(at.unwrap_or(steps.len()))
}

/// What to run, and how far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes<'a> {
    pub steps: &'a [Step],
    /// What ran before: its reports stand before those of `steps`.
    pub before: Option<&'a Rewritten>,
    /// Of values of the model.
    pub stats: Option<&'a Stats>,
    /// Of layers of the model.
    pub plans: Option<&'a Plans>,
    /// Of inputs of INT8 layers.
    pub grams: Option<&'a Grams>,
    /// Symbols of the original that have one size in all runs.
    pub sizes: &'a BTreeMap<String, usize>,
    /// Nodes that keep their precision beside those of the options: from quantization if that is asked for, else from
    /// conversion to half precision.
    pub spared: &'a [String],
    /// The number of applications after which `steps` change nothing more.
    pub limit: Option<usize>,
    /// Runs afterwards, without limit.
    pub finish: &'a [Step],
}

impl<'a> Passes<'a> {
    /// These steps alone, at these sizes.
    pub fn of(steps: &'a [Step], sizes: &'a BTreeMap<String, usize>) -> Passes<'a> {
        Passes {
            steps,
            before: None,
            stats: None,
            plans: None,
            grams: None,
            sizes,
            spared: &[],
            limit: None,
            finish: &[],
        }
    }
}

/// What passes write for.
pub(crate) fn target(options: &Options, targets: &Targets) -> Target {
    match options.standard {
        true => Target::standard(),
        false => targets.for_passes(),
    }
}

pub(crate) fn rewrite(
    options: &Options,
    targets: &Targets,
    passes: &Passes<'_>,
    mut model: Model,
    talk: &dyn Talk,
) -> Result<Rewritten, Error> {
    let target = target(options, targets);
    let ops_before = summary::op_counts(&model.graph);
    let quantized_before = summary::quantizes_activations(&model.graph);
    let census_before = census(&model);
    let keep = |name: &str| options.keep.as_ref().is_some_and(|r| r.is_match(name));
    // What is spared from quantization still becomes half precision.
    let linear = options.precision.linear;
    let quantizes = linear.format().is_some();
    let spared = [options.keep_nodes.as_slice(), passes.spared].concat();
    let none = kiln_passes::Options::default();
    let choices = kiln_passes::Options {
        keep: &keep,
        keep_ops: &options.keep_ops,
        convert_io: options.half_io,
        spared: if quantizes { &spared } else { &[] },
        wide: if quantizes { &[] } else { &spared },
        int4_block: options.int4_block,
        dynamic: linear.scheme() == Some(Scheme::Dynamic),
        stats: passes.stats.unwrap_or(none.stats),
        plans: passes.plans.unwrap_or(none.plans),
        grams: passes.grams.unwrap_or(none.grams),
        sizes: passes.sizes,
        ..none
    };
    let library = options.ort_lib.as_deref();
    let evaluator = OrtEvaluator::new(library);
    let mut cx = Context::new(&target, &choices);
    cx.explain = !options.explain.is_empty();
    cx.limit = passes.limit;
    // Without a check the runtime is not needed, so folding does without it where it is missing.
    if options.check || runtime::locate(library).is_ok() {
        cx.evaluator = Some(&evaluator);
    }
    let mut dumps = Vec::new();
    let mut number = passes.before.map_or(0, |b| b.passes.len());
    let mut after = |report: &PassReport, model: &Model| {
        talk.stage(&format!("passes: {}", report.name));
        if let Some((which, folder)) = &options.dump_after
            && (which == "all" || which == report.name)
        {
            dumps.push(dump(folder, number, report.name, model));
        }
        number += 1;
    };
    let failed = |source| Error::Pass {
        model: options.model.clone(),
        source,
    };
    let mut reports =
        kiln_passes::run(&mut model, passes.steps, &mut cx, &mut after).map_err(failed)?;
    // Between fusion and lowering, where each block is one operator.
    let census_after = census(&model);
    let (applied, last) = (cx.applied, cx.last.take());
    cx.limit = None;
    if !passes.finish.is_empty() {
        let finished = kiln_passes::run(&mut model, passes.finish, &mut cx, &mut after);
        reports.extend(finished.map_err(failed)?);
    }
    dumps.into_iter().collect::<Result<Vec<()>, _>>()?;
    let remarks = std::mem::take(&mut cx.remarks);
    let rewritten = Rewritten {
        blocks: summary::found(&census_before, &census_after),
        attention: census_after.blocks,
        ops_before,
        quantized_before,
        ops_after: summary::op_counts(&model.graph),
        remarks,
        misses: std::mem::take(&mut cx.misses),
        model,
        passes: reports,
        applied,
        last,
    };
    let mut rewritten = match passes.before {
        Some(before) => rewritten.following(before),
        None => rewritten,
    };
    // TensorRT makes kernels of products by itself.
    if !passes.finish.is_empty() && !target.facts.attention.is_empty() {
        summary::write_out(&mut rewritten.blocks, &rewritten.model);
    }
    summary::pack(&mut rewritten.blocks, packed_attentions(&rewritten.model));
    Ok(rewritten)
}

/// ONNX text, in which large constants are elided.
pub(crate) fn print(model: &onnx::proto::ModelProto) -> String {
    let options = text::PrintOptions {
        max_elements: Some(64),
    };
    text::print_model(model, &options)
}

fn dump(folder: &Path, k: usize, pass: &str, model: &Model) -> Result<(), Error> {
    let path = folder.join(format!("{k:02}-{pass}.onnxtxt"));
    let write = || {
        fs::create_dir_all(folder)?;
        let message = onnx::to_proto(model).map_err(std::io::Error::other)?;
        fs::write(&path, print(&message))
    };
    write().map_err(|source| Error::Io {
        path: path.clone(),
        why: "the dump cannot be written",
        source,
    })
}
