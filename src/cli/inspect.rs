//! `kiln inspect`

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use kiln_graph::Model;

use super::{Failure, Globals, help, print, print_json, table::table};
use crate::bundle;
use crate::bundle::about::{About, about};
use crate::engine::run::RunOptions;
use crate::manifest;
use crate::recipe::Recipe;
use crate::report::kernels as report;
use crate::runtime::DeviceChoice;
use crate::summary::{self, Summary};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// An ONNX file, ONNX text (.onnxtxt), a bundle, or - for a model from stdin.
    model: PathBuf,
    /// Print JSON.
    #[arg(long, help_heading = help::OUTPUT)]
    json: bool,
    /// Print the model as ONNX text instead; large tensors are elided.
    #[arg(long, help_heading = help::OUTPUT)]
    text: bool,
    /// List the kernels of the bundle's engine instead.
    ///
    /// As TensorRT's builder listed them, with what they cost on paper.
    #[arg(long, conflicts_with = "text", help_heading = help::OUTPUT)]
    engine: bool,
    /// Open the engine on this machine's GPU, and hold that list against what TensorRT tells of it.
    ///
    /// Exit code 1 if a kernel, the type of an operand or a size differs.
    #[arg(long, requires = "engine", help_heading = help::OUTPUT)]
    opened: bool,
    /// The GPU that opens it: cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto", requires = "opened", help_heading = help::RUNTIME)]
    device: DeviceChoice,
}

/// The name that stands for standard input.
const STDIN: &str = "-";

/// The model, and what it is called.
fn read(path: &Path) -> Result<(Model, String), Failure> {
    if path != Path::new(STDIN) {
        let path = bundle::find_model(path).map_err(Failure::model)?;
        let model = kiln_graph::onnx::read(&path).map_err(Failure::model)?;
        return Ok((model, path.display().to_string()));
    }
    let mut data = Vec::new();
    io::stdin().lock().read_to_end(&mut data)?;
    // A message of protobuf does not begin so: ONNX text does, by its header.
    let model = match data.trim_ascii_start().first() {
        Some(b'<') => kiln_graph::onnx::read_text(&String::from_utf8_lossy(&data)),
        // External data is looked for in the current folder.
        _ => kiln_graph::onnx::read_bytes(data.into(), Some(Path::new("."))),
    };
    let model = model.map_err(|e| Failure::model(anyhow!("standard input: {e}")))?;
    Ok((model, "standard input".into()))
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    if args.opened {
        return opened(globals, &args);
    }
    if args.engine {
        return engine(&args);
    }
    let (model, name) = read(&args.model)?;
    if args.text {
        let message = kiln_graph::onnx::to_proto(&model).map_err(Failure::model)?;
        let options = kiln_graph::text::PrintOptions {
            max_elements: Some(16),
        };
        print(&kiln_graph::text::print_model(&message, &options))?;
        return Ok(0);
    }
    let summary = summary::of(&model);
    let about = about(&args.model).unwrap_or_else(|e| {
        globals.say(format!("kiln: {e}"));
        None
    });
    if args.json {
        print_json(&Whole {
            summary: &summary,
            bundle: about.as_ref(),
        })?;
        return Ok(0);
    }
    let bundle = about.as_ref().map(|a| bundle_lines(&args.model, a));
    let model = render(&name, &summary);
    print(&format!("{}{model}", bundle.unwrap_or_default()))?;
    Ok(0)
}

/// A model, and the bundle that it is in.
#[derive(serde::Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<&'a About>,
}

pub(super) fn bundle_lines(folder: &Path, a: &About) -> String {
    let mut out = format!("{}\n\n", folder.display());
    let made = match a.runtime.as_str() {
        "" => format!("kiln {}", a.kiln),
        runtime => format!("kiln {}, proved by {runtime}", a.kiln),
    };
    for (what, said) in [
        ("original", a.original.as_str()),
        ("target", &a.target),
        ("precision", &a.precision),
        ("sizes", &a.sizes.join(", ")),
        ("parity", &a.parity),
        ("engine", &a.engine),
        ("its parity", &a.engine_parity),
        ("also for", &a.also.join("; ")),
        ("made by", &made),
    ] {
        if !said.is_empty() {
            out += &format!("  {what:<12} {said}\n");
        }
    }
    if let Ok(recipe) = serde_saphyr::to_string(&a.recipe)
        && a.recipe != Recipe::default()
    {
        let lines = recipe.trim_end().lines();
        let lines: String = lines.map(|l| format!("    {l}\n")).collect();
        let again = format!(
            "kiln compile -c {}",
            folder.join(bundle::MANIFEST).display()
        );
        out += &format!("  recipe       (`{again}` runs it again)\n{lines}");
    }
    out + "\n"
}

fn engine(args: &Args) -> Result<u8, Failure> {
    let engine = manifest::kernels(&args.model).map_err(Failure::model)?;
    if args.json {
        print_json(&engine)?;
        return Ok(0);
    }
    let (kernels, paper) = (&engine.kernels, engine.paper.as_ref());
    print(&table(
        &report::header(paper),
        &report::list(kernels, paper),
    ))?;
    if let Some((header, rows)) = paper.and_then(|p| report::blocks(kernels, p)) {
        print(&format!("\n{}", table(&header, &rows)))?;
    }
    print(&format!("\n  {}\n", report::sentence(&engine)))?;
    let others = engine.otherwise.iter().map(report::otherwise);
    let lines = report::undedicated(&engine.attention, usize::MAX)
        .into_iter()
        .chain(others);
    for line in lines {
        print(&format!("  {line}\n"))?;
    }
    Ok(0)
}

fn opened(globals: &Globals, args: &Args) -> Result<u8, Failure> {
    let options = RunOptions {
        device: usize::try_from(args.device.gpu()).unwrap_or(0),
        libraries: globals.trt_lib.clone(),
        ..RunOptions::default()
    };
    let compared = crate::bench::gpu::opened(&args.model, &options)?;
    let differ = !compared.differences.is_empty();
    if args.json {
        print_json(&compared)?;
    } else {
        let (listed, told) = (compared.listed, compared.told);
        print(&format!(
            "  {listed} kernels in the builder's list, {told} in the opened engine\n"
        ))?;
        for line in &compared.differences {
            print(&format!("  {line}\n"))?;
        }
    }
    Ok(u8::from(differ))
}

fn render(path: &str, s: &Summary) -> String {
    let mut out = format!("{path}\n\n");
    let opsets: Vec<String> = (s.opsets.iter())
        .map(|(d, v)| format!("{} {v}", if d.is_empty() { "ai.onnx" } else { d }))
        .collect();
    out += &format!("  producer     {}\n", s.producer);
    out += &format!(
        "  opsets       {} (IR {})\n",
        opsets.join(", "),
        s.ir_version
    );
    out += &format!("  nodes        {}\n", s.nodes);
    out += &format!(
        "  parameters   {} ({})\n",
        summary::count(s.parameters),
        summary::bytes(s.constant_bytes)
    );
    let found: Vec<String> = (s.blocks.iter().filter(|b| b.found > 0))
        .map(|b| match b.fused {
            n if n == b.found => format!("{n} {}", b.kind),
            n => format!("{} {} ({n} as one operator)", b.found, b.kind),
        })
        .collect();
    out += &format!("  found        {}\n", found.join(", "));
    for (k, caches) in s.caches.iter().enumerate() {
        let title = if k == 0 { "caches" } else { "" };
        out += &format!("  {title:<12} {}\n", caches.describe());
    }
    out.push('\n');
    let rows = |values: &[(String, String)]| -> Vec<Vec<String>> {
        values
            .iter()
            .map(|(n, t)| vec![n.clone(), t.clone()])
            .collect()
    };
    out += &table(&["input", "type"], &rows(&s.inputs));
    out.push('\n');
    out += &table(&["output", "type"], &rows(&s.outputs));
    out.push('\n');
    let ops: Vec<Vec<String>> = s
        .ops
        .iter()
        .map(|(op, n)| vec![op.clone(), n.to_string()])
        .collect();
    out += &table(&["operator", "nodes"], &ops);
    out
}
