//! `kiln inspect`

use std::path::PathBuf;

use super::{Failure, print, print_json, table::table};
use crate::bundle;
use crate::manifest;
use crate::report::kernels as report;
use crate::summary::{self, Summary};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// An ONNX file, ONNX text (.onnxtxt), or a bundle.
    model: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the model as ONNX text instead; large tensors are elided.
    #[arg(long)]
    text: bool,
    /// List the kernels of the bundle's engine instead, as its builder listed them.
    #[arg(long, conflicts_with = "text")]
    engine: bool,
}

pub(super) fn run(args: Args) -> Result<u8, Failure> {
    if args.engine {
        return engine(&args);
    }
    let path = bundle::find_model(&args.model).map_err(Failure::model)?;
    let model = kiln_graph::onnx::read(&path).map_err(Failure::model)?;
    if args.text {
        let message = kiln_graph::onnx::to_proto(&model).map_err(Failure::model)?;
        let options = kiln_graph::text::PrintOptions {
            max_elements: Some(16),
        };
        print(&kiln_graph::text::print_model(&message, &options))?;
        return Ok(0);
    }
    let summary = summary::of(&model);
    match args.json {
        true => print_json(&summary)?,
        false => print(&render(&path.display().to_string(), &summary))?,
    }
    Ok(0)
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
    print(&format!(
        "\n  {}\n",
        report::sentence(kernels, &engine.attention, paper)
    ))?;
    let others = engine.otherwise.iter().map(report::otherwise);
    let lines = report::undedicated(&engine.attention, usize::MAX)
        .into_iter()
        .chain(others);
    for line in lines {
        print(&format!("  {line}\n"))?;
    }
    Ok(0)
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
    out += &format!("  found        {}\n\n", found.join(", "));
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
