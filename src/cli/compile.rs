//! `kiln compile`

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::build;
use super::check::{Required, required};
use super::conversion::Conversion;
use super::device::DeviceArgs;
use super::generation;
use super::judge::JudgeArgs;
use super::progress::Terminal;
use super::{Failure, Globals, NOT_PROVED, help, known_pass, print, print_json, table::table};
use crate::bundle::Over;
use crate::bundle::about::about;
use crate::cache::{self, Cached, Store};
use crate::compile::{self, CompileError, Options, Outcome, Plan};
use crate::fault::Fault;
use crate::generate::Roles;
use crate::manifest::{Explained, Manifest, Missed};
use crate::options::Extent;
use crate::parity;
use crate::precision::Format;
use crate::recipe::{self, Gates, Latency, Precision, Recipe, Size};
use crate::report;
use crate::summary::{Found, bytes};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) conversion: Conversion,
    /// Prove and time nothing.
    #[arg(long, help_heading = help::PROOF)]
    no_check: bool,
    /// How much of the sizes the proof runs [default: quick].
    ///
    /// quick: where a run at the largest sizes is more than 100 billion operations, a batch of two rows at these and the largest batch at a
    /// short length stand for it; that rows are independent is checked. full: the largest sizes whole. pieces: neither model whole, but
    /// piece by piece as `kiln check --pieces` does, at the smallest and typical sizes; quick does that where the weights take more memory
    /// than is free.
    #[arg(long, value_enum, value_name = "quick|full|pieces", hide_possible_values = true, conflicts_with = "no_check", help_heading = help::PROOF)]
    proof: Option<Extent>,
    /// Prove, but time nothing.
    #[arg(long, conflicts_with = "latency", help_heading = help::PROOF)]
    no_latency: bool,
    /// Time original and result in ONNX Runtime, wherever the result serves.
    ///
    /// By default they are timed where the result serves: for a GPU target on a machine without a GPU they are not.
    #[arg(long, help_heading = help::PROOF)]
    latency: bool,
    /// Fail where the result is out of tolerance, without a search.
    ///
    /// Otherwise kiln searches for nodes that must keep their precision for the result to be within tolerance.
    #[arg(long, help_heading = help::PROOF)]
    no_search: bool,
    /// Fail if the median latency is more than this part of the original's.
    ///
    /// Both run in ONNX Runtime on what the target is: the CPU, or a GPU of this machine. off drops a recipe's gate.
    #[arg(long, value_name = "RATIO|off", value_parser = ratio, help_heading = help::PROOF)]
    max_latency_ratio: Option<Ratio>,
    /// Fail if model.onnx has more bytes than this part of the original.
    ///
    /// off drops a recipe's gate.
    #[arg(long, value_name = "RATIO|off", value_parser = ratio, help_heading = help::PROOF)]
    max_size_ratio: Option<Ratio>,
    /// Fail unless the engine is right on a GPU, multiplies in a precision, or leaves caches where they are.
    ///
    /// engine-parity: the engine runs on a GPU of this machine and gives what the original gives. int8, fp8, int4, fp16, bf16:
    /// the engine's kernels multiply in this precision. cache-in-place: by its plan no step of a decoder copies a cache. Can be
    /// given several times.
    #[arg(long, value_name = "PRECISION|engine-parity|cache-in-place", value_parser = required, help_heading = help::PROOF)]
    require: Vec<Required>,
    /// Where the bundle goes [default: MODEL.kiln beside the model].
    #[arg(short, long, value_name = "BUNDLE", help_heading = help::OUTPUT)]
    output: Option<PathBuf>,
    /// Never replace anything, older bundles included.
    #[arg(long, help_heading = help::OUTPUT)]
    no_clobber: bool,
    /// Write the bundle where something else is.
    ///
    /// A file is replaced; other files in a folder stay.
    #[arg(long, conflicts_with = "no_clobber", help_heading = help::OUTPUT)]
    force: bool,
    /// Write the report to a file too: .md, .html, .json, or .xml (JUnit).
    ///
    /// It is also written where a gate fails. Can be given several times.
    #[arg(long, value_name = "FILE", value_parser = super::report_file(), help_heading = help::OUTPUT)]
    report: Vec<report::Target>,
    /// Take the bundle from this folder or server if the same was compiled before, else keep it there.
    ///
    /// The key is the hash of all that the bundle depends on, and what is taken is verified. A server speaks the HTTP protocol of
    /// Bazel's remote caches (bazel-remote); KILN_CACHE_AUTHORIZATION says who asks.
    #[arg(long, value_name = "DIR|URL", value_parser = store(), help_heading = help::OUTPUT)]
    cache: Option<Store>,
    /// Print the manifest as JSON.
    #[arg(long, help_heading = help::OUTPUT)]
    json: bool,
    /// Print what would be done, as a recipe, and do nothing.
    #[arg(long, help_heading = help::OUTPUT)]
    dry_run: bool,
    /// Build no engine.
    #[arg(long, help_heading = help::ENGINE)]
    no_engine: bool,
    #[command(flatten)]
    build: build::BuildArgs,
    #[command(flatten)]
    judge: JudgeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Passes to run: default,-fuse-gelu or fold-constants,fuse-gelu.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, help_heading = help::DIAGNOSTICS)]
    passes: Option<String>,
    /// Write the model after a pass (or all) into a folder, as ONNX text.
    #[arg(long, num_args = 2, value_names = ["PASS|all", "DIR"], help_heading = help::DIAGNOSTICS)]
    dump_after: Vec<String>,
    /// Say where a pass (or all) came close and what stopped it.
    ///
    /// Can be given several times.
    #[arg(long, value_name = "PASS|all", value_parser = known_pass, help_heading = help::DIAGNOSTICS)]
    explain: Vec<String>,
}

/// A limit on a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ratio {
    Off,
    Most(f64),
}

impl Ratio {
    fn limit(self) -> Option<f64> {
        match self {
            Ratio::Off => None,
            Ratio::Most(limit) => Some(limit),
        }
    }
}

fn ratio(text: &str) -> Result<Ratio, String> {
    match (text, text.parse::<f64>()) {
        ("off", _) => Ok(Ratio::Off),
        (_, Ok(limit)) if limit.is_finite() && limit > 0.0 => Ok(Ratio::Most(limit)),
        _ => Err("write a ratio such as 0.8, or off".into()),
    }
}

fn store() -> impl TypedValueParser<Value = Store> {
    OsStringValueParser::new().try_map(Store::at)
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let dump_after = match args.dump_after.as_slice() {
        [pass, folder] => {
            let pass = known_pass(pass).map_err(Failure::usage)?;
            Some((pass, PathBuf::from(folder)))
        }
        _ => None,
    };
    let more = Recipe {
        output: args.output,
        passes: args.passes,
        precision: Precision {
            search: args.no_search.then_some(false),
            ..Precision::default()
        },
        engine: args.no_engine.then_some(false),
        check: args.no_check.then_some(false),
        proof: args.proof,
        latency: match (args.latency, args.no_latency) {
            (true, _) => Some(true),
            (_, no) => no.then_some(false),
        },
        build: args.build.recipe(),
        gates: Gates {
            latency: Latency {
                max_ratio: args.max_latency_ratio.and_then(Ratio::limit),
            },
            engine_parity: Required::engine_parity(&args.require).then_some(true),
            cache_in_place: Required::in_place(&args.require).then_some(true),
            precision: Required::precision(&args.require),
            judge: args.judge.recipe(),
            size: Size {
                max_ratio: args.max_size_ratio.and_then(Ratio::limit),
                ..Size::default()
            },
            ..Gates::default()
        },
        ..Recipe::default()
    };
    let read = args.conversion.bundle();
    let mut recipe = args.conversion.recipe(more)?;
    if args.max_latency_ratio == Some(Ratio::Off) {
        recipe.gates.latency.max_ratio = None;
    }
    if args.max_size_ratio == Some(Ratio::Off) {
        recipe.gates.size.max_ratio = None;
    }
    let options = Options {
        dump_after,
        explain: args.explain,
        device: args.device.request(),
        ort_lib: globals.ort_lib.clone(),
        trt_lib: globals.trt_lib.clone(),
        builder: Some(super::this_program()),
        over: match (args.no_clobber, args.force) {
            (true, _) => Over::Nothing,
            (_, true) => Over::Anything,
            _ => Over::Bundles,
        },
        ..recipe::resolve(&recipe).map_err(Failure::usage)?
    };
    if let Some(bundle) = read {
        stays(&bundle, &options)?;
    }
    if Roles::are_at(&options.model) {
        return generation::by_roles(globals, Roles::find(&options.model)?, &options);
    }
    let terminal = Terminal::new(globals.quiet);
    if args.dry_run {
        let done = compile::plan(&options, &terminal);
        terminal.clear();
        let plan = done?;
        match args.json {
            true => print_json(&plan)?,
            false => print(&planned(&plan)?)?,
        }
        return Ok(0);
    }
    let done = match &args.cache {
        None => compile::compile(&options, &terminal).map(|o| Cached::Made(Box::new(o))),
        Some(cache) => cache::compile(&options, cache, &terminal),
    };
    terminal.clear();
    if let Err(e) = &done {
        stopped(globals, &options, e, &args.report, args.json)?;
    }
    let outcome = match done? {
        Cached::Made(outcome) => outcome,
        Cached::Hit { bundle, manifest } => {
            return hit(globals, &bundle, &manifest, &args.report, args.json);
        }
    };
    made(globals, &outcome, &args.report, args.json)
}

/// What a compilation made; gives the exit code.
fn made(
    globals: &Globals,
    outcome: &Outcome,
    reports: &[report::Target],
    json: bool,
) -> Result<u8, Failure> {
    for target in reports {
        target.write(&report::BundlePage(&outcome.manifest))?;
    }
    match json {
        true => print_json(&outcome.manifest)?,
        false => {
            for explained in &outcome.manifest.explain {
                globals.show(&explain(explained))?;
            }
            globals.show(&render(globals, &outcome.manifest, Some(&outcome.bundle)))?;
        }
    }
    let proved = |p: &parity::Report| p.pass();
    Ok(match outcome.manifest.parity.as_ref().is_none_or(proved) {
        true => 0,
        false => NOT_PROVED,
    })
}

/// Shows a bundle that was made before. Its reports are those that were written then.
fn hit(
    globals: &Globals,
    bundle: &Path,
    manifest: &serde_json::Value,
    reports: &[report::Target],
    json: bool,
) -> Result<u8, Failure> {
    for target in reports {
        target.copy_of(bundle)?;
    }
    match json {
        true => print_json(manifest)?,
        false => globals.show(&super::inspect::bundle_lines(
            bundle,
            &about(bundle).map_err(Failure::model)?.unwrap_or_default(),
        ))?,
    }
    Ok(match manifest["parity_outcome"].as_str() {
        None | Some("passes") => 0,
        Some(_) => NOT_PROVED,
    })
}

/// Columns of a comment.
const WIDE: usize = 100;

/// Words under a title, in lines that start with `#`.
fn comment(what: &str, said: &str) -> String {
    let mut out = format!("# {what}:");
    let mut column = out.len();
    for word in said.split(' ') {
        if column + 1 + word.len() > WIDE {
            out += "\n#  ";
            column = 3;
        }
        out += " ";
        out += word;
        column += 1 + word.len();
    }
    out + "\n"
}

/// A recipe that says the same, with what has no place in one as comments.
fn planned(plan: &Plan) -> Result<String, Failure> {
    let recipe = serde_saphyr::to_string(&plan.recipe).map_err(Failure::usage)?;
    let mut out = String::from("# Nothing was run or written.\n");
    out += recipe.trim_end();
    out += "\n";
    let sizes = plan.sizes.as_deref().unwrap_or("as in the model");
    for (what, said) in [
        ("sizes", sizes),
        ("stages", &plan.stages.join("; ")),
        ("passes", &plan.passes.join(" ")),
    ] {
        out += &comment(what, said);
    }
    Ok(out)
}

/// Shows and reports what a gate found that ended the compilation.
fn stopped(
    globals: &Globals,
    options: &Options,
    error: &CompileError,
    reports: &[report::Target],
    json: bool,
) -> Result<(), Failure> {
    let manifest = match error {
        CompileError::Gates { manifest, .. } => manifest.as_deref(),
        _ => None,
    };
    let shown = match (error, manifest) {
        (CompileError::NotTheSame { parity, .. }, _) => globals.parity(parity) + "\n",
        (_, Some(manifest)) => render(globals, manifest, None) + "\n",
        _ => String::new(),
    };
    if !json {
        globals.show(&shown)?;
    }
    let failed = report::failed::Page::new(options, error);
    for target in reports.iter().filter(|_| error.fault() == Fault::Result) {
        match manifest {
            Some(manifest) => target.write(&report::BundlePage(manifest))?,
            None => target.write(&failed)?,
        }
    }
    Ok(())
}

/// A bundle that was given as the model is not written over.
fn stays(bundle: &Path, options: &Options) -> Result<(), Failure> {
    let place = compile::output_path(options);
    match (bundle.canonicalize(), place.canonicalize()) {
        (Ok(read), Ok(written)) if read == written => Err(Failure::usage(anyhow!(
            "{bundle} is a bundle, and would be written over: say with -o where its original is compiled to, or make it again in \
             its place with `kiln compile -c {bundle}/manifest.json -o {bundle}`",
            bundle = bundle.display()
        ))),
        _ => Ok(()),
    }
}

/// Misses shown of one pass; `--json` has all.
const SHOWN: usize = 40;

fn explain(explained: &Explained) -> String {
    let Explained { pass, missed, .. } = explained;
    if !explained.ran {
        return format!("{pass}: it is not among the passes that ran\n\n");
    }
    let matched = explained.matched;
    if missed.is_empty() {
        return format!("{pass}: {matched} matched, and nothing came close without matching\n\n");
    }
    // Where there are too many, the deepest say most.
    let mut shown: Vec<(usize, &Missed)> = missed.iter().enumerate().collect();
    shown.sort_by_key(|(_, m)| Reverse(m.depth));
    shown.truncate(SHOWN);
    shown.sort_by_key(|(place, _)| *place);
    let row = |(_, m): &(usize, &Missed)| {
        vec![
            m.root.clone(),
            m.depth.to_string(),
            match m.stopped_at == m.root {
                true => "the root".into(),
                false => m.stopped_at.clone(),
            },
            m.why.clone(),
        ]
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    let header = ["root", "depth", "stopped at", "why"];
    let more = match missed.len() - rows.len() {
        0 => String::new(),
        n => format!("  and {n} more, none deeper; --json has them all\n"),
    };
    format!(
        "{pass}: {matched} matched, {} did not\n{}{more}\n",
        missed.len(),
        table(&header, &rows)
    )
}

fn render(globals: &Globals, m: &Manifest, bundle: Option<&Path>) -> String {
    let mut out = measured(globals, m);
    out.push('\n');
    let sizes = format!(
        "{} → {}",
        bytes(m.source.bytes as usize),
        bytes(m.model_bytes() as usize)
    );
    out += &format!(
        "  model    {} nodes → {}, {sizes}\n",
        m.before.nodes, m.after.nodes
    );
    for caches in &m.after.caches {
        out += &format!("  caches   a row: {}\n", caches.describe());
    }
    let blocks = m.blocks.iter().filter(|b| b.found > 0);
    let blocks: Vec<String> = blocks.map(Found::describe).collect();
    if !blocks.is_empty() {
        out += &format!("  fused    {}\n", blocks.join(", "));
    }
    if let Some(block) = m.options.int4_block {
        out += &format!(
            "  int4     weights of {} linear layers, blocks of {block}\n",
            m.quantized
        );
    }
    let linear = m.options.precision.linear;
    if !m.activations.is_empty() || linear.format() == Some(Format::Int8) {
        let outliers: usize = m.activations.iter().map(|a| a.outliers).sum();
        out += &format!(
            "  {:<8} {} layers, {} ranges, {outliers} channels apart\n",
            m.precision.split('+').next().unwrap_or_default(),
            m.quantized,
            m.activations.len()
        );
    }
    if let Some(search) = &m.search {
        out += &format!(
            "  search   {} of {} nodes keep their precision, found by comparing {} models\n",
            search.kept.len(),
            search.layers,
            search.compared
        );
    }
    if m.options.precision.half().is_some() {
        let half = m.options.precision.floats.format().title();
        out += &format!(
            "  {}     {} nodes converted, {} kept as they are\n",
            half.to_lowercase(),
            m.converted,
            m.kept.len()
        );
    }
    match &m.engine {
        Some(e) => {
            out += &format!(
                "  engine   {} for {}: {} in {:.1} s\n",
                e.runtime,
                e.capabilities.join(", "),
                bytes(e.bytes as usize),
                e.parse_seconds + e.build_seconds
            );
            out += &report::kernel_lines(&e.listed);
        }
        None => out += "  engine   not built\n",
    }
    if let Some(device) = &m.device {
        out += &format!("  device   {device}\n");
    }
    for placed in &m.placements {
        out += &format!(
            "  {:<9} {}\n",
            placed.side.to_string(),
            placed.placement.describe()
        );
    }
    match &m.parity {
        Some(parity) => out += &format!("  parity   {}\n", parity::verdict(parity)),
        None => out += "  parity   not run\n",
    }
    if m.engine.is_some() {
        out += &format!("  engine parity   {}\n", m.engine_parity);
    }
    for also in &m.also {
        let parity = also.manifest.parity.as_ref().map(parity::verdict);
        let parity = parity.unwrap_or("not run".into());
        out += &format!(
            "  {:<8} {}, parity {parity}\n",
            also.manifest.target, also.file
        );
    }
    for gate in &m.gates {
        out += &format!("  {} gate   {gate}\n", gate.gate);
    }
    if let Some(bundle) = bundle {
        out += &format!("  bundle   {}\n", bundle.display());
    }
    out
}

/// Tables of passes, parity and latency.
fn measured(globals: &Globals, m: &Manifest) -> String {
    let mut out = String::new();
    let applied: Vec<Vec<String>> = (m.passes.iter())
        .filter(|p| p.applications > 0)
        .map(|p| {
            vec![
                p.name.clone(),
                p.applications.to_string(),
                format!("{:.1}", p.milliseconds),
                p.nodes_after.to_string(),
            ]
        })
        .collect();
    out += &table(&["pass", "applied", "ms", "nodes"], &applied);
    if let Some(parity) = &m.parity {
        out.push('\n');
        out += &globals.parity(parity);
    }
    if let Some(latency) = &m.latency {
        let (header, rows) = report::latency_rows(latency);
        out.push('\n');
        out += &globals.table(&header, &rows);
    } else if let Some(why) = &m.latency_not_run {
        out += &format!("\n  latency  not run: {why}\n");
    }
    out
}
