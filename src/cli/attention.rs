//! `kiln attention`

use std::path::PathBuf;

use super::device::DeviceArgs;
use super::progress::Terminal;
use super::{Failure, Globals, help, print_json};
use crate::attention::flags::{Flag, Head};
use crate::attention::{self, Data, Kind, Layer, Options, Summary};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// An ONNX file or a bundle.
    model: PathBuf,
    /// Inputs, as .npz, or as .npy for a model with one input.
    #[arg(long, value_name = "DATA.npz", required_unless_present = "text", help_heading = help::DATA)]
    inputs: Option<PathBuf>,
    /// A text instead of --inputs. Can be given several times.
    ///
    /// Each text is a sample.
    #[arg(long, conflicts_with = "inputs", requires = "tokenizer", help_heading = help::DATA)]
    text: Vec<String>,
    /// The model's tokenizer.json.
    ///
    /// It makes tokens of --text, and words of the ids in --inputs.
    #[arg(long, value_name = "FILE", help_heading = help::DATA)]
    tokenizer: Option<PathBuf>,
    /// The most tokens of a text; longer ones are cut.
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = help::DATA)]
    max_length: usize,
    /// Only this attention, counted from 0. Can be given several times.
    ///
    /// In the order of computation.
    #[arg(long, value_name = "N", help_heading = help::OUTPUT)]
    layer: Vec<usize>,
    /// Only this head, counted from 0. Can be given several times.
    #[arg(long, value_name = "N", help_heading = help::OUTPUT)]
    head: Vec<usize>,
    /// The page; the probabilities go beside it as .npz.
    #[arg(long, short, value_name = "PAGE.html", default_value = "attention.html", help_heading = help::OUTPUT)]
    output: PathBuf,
    /// Print JSON.
    #[arg(long, help_heading = help::OUTPUT)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let options = Options {
        model: args.model,
        data: match args.inputs {
            Some(path) => Data::Arrays(path),
            None => Data::Text(args.text),
        },
        tokenizer: args.tokenizer,
        max_length: args.max_length,
        layers: args.layer,
        heads: args.head,
        page: args.output,
        device: args.device.request(),
        ort_lib: globals.ort_lib.clone(),
    };
    let terminal = Terminal::new(globals.quiet);
    let done = attention::attention(&options, &terminal);
    terminal.clear();
    let summary = done?;
    match args.json {
        true => print_json(&summary)?,
        false => globals.show(&render(globals, &summary))?,
    }
    Ok(0)
}

/// Words for people, who read "self" rather than "self-attention" in a column.
fn kind(layer: &Layer) -> &'static str {
    match layer.kind {
        Kind::SelfAttention => "self",
        Kind::CrossAttention => "cross",
    }
}

fn render(globals: &Globals, summary: &Summary) -> String {
    let rows: Vec<Vec<String>> = (summary.layers.iter())
        .map(|layer| {
            let entropies = layer.heads.iter().map(|h| h.entropy);
            let (low, high) = entropies.fold((f64::INFINITY, 0.0f64), |(low, high), e| {
                (low.min(e), high.max(e))
            });
            let flagged = layer.heads.iter().filter(|h| !h.flags.is_empty());
            vec![
                layer.layer.to_string(),
                kind(layer).into(),
                layer.mask.clone(),
                layer.heads.len().to_string(),
                format!("{} × {}", layer.queries, layer.keys),
                format!("{low:.2} – {high:.2}"),
                flagged.count().to_string(),
            ]
        })
        .collect();
    let header = [
        "layer",
        "kind",
        "mask",
        "heads",
        "queries × keys",
        "entropy (bits)",
        "flagged",
    ];
    let mut out = globals.table(&header, &rows);
    let mut flagged = String::new();
    for layer in &summary.layers {
        for head in layer.heads.iter().filter(|h| !h.flags.is_empty()) {
            let words: Vec<String> = head.flags.iter().map(|f| words(*f, head)).collect();
            flagged += &format!(
                "  layer {} head {}: {}\n",
                layer.layer,
                head.head,
                words.join("; ")
            );
        }
    }
    if !flagged.is_empty() {
        out += &format!("\n{flagged}");
    }
    out += &format!(
        "\n  device   {}\n  page     {}\n  arrays   {}\n",
        summary.device,
        summary.page.display(),
        summary.arrays.display()
    );
    out
}

fn words(flag: Flag, head: &Head) -> String {
    match (flag, head.key) {
        (Flag::EmptyRows, _) => format!("{} {}", head.empty_rows, flag.words()),
        (Flag::OneKey, Some(key)) => format!("{} ({key})", flag.words()),
        _ => flag.words().to_string(),
    }
}
