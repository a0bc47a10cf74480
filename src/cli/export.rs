//! `kiln export`

use std::path::PathBuf;

use super::device::DeviceArgs;
use super::progress::Terminal;
use super::{Failure, Globals, exit, print, print_json};
use crate::export::{ExportError, Exported, genai, tei, triton};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    form: Form,
}

#[derive(clap::Subcommand, Debug)]
enum Form {
    /// A model repository for Triton Inference Server.
    Triton(TritonArgs),
    /// A folder for Text Embeddings Inference.
    Tei(TeiArgs),
    /// A folder for onnxruntime-genai.
    Genai(GenaiArgs),
}

#[derive(clap::Args, Debug)]
struct TritonArgs {
    /// The bundle.
    bundle: PathBuf,
    /// The repository, to which the model is added.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The model's name in the repository [default: the bundle's].
    #[arg(long)]
    name: Option<String>,
    /// The model's version.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    model_version: u32,
    /// Add a model NAME-text that takes texts and tokenizes them with this tokenizer.json.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Pool embeddings of tokens to one of the text.
    #[arg(long, requires = "tokenizer")]
    pooling: Option<triton::Pooling>,
    /// Serve this output; can be given several times [default: all].
    #[arg(long, value_name = "OUTPUT")]
    output_name: Vec<String>,
    /// Do not measure the latency over batches, from which preferred batches and the waiting time follow.
    #[arg(long)]
    no_measure: bool,
    /// Do not let the server join requests into batches.
    #[arg(long)]
    no_batching: bool,
    /// Replace models of the same name.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct TeiArgs {
    /// The bundle.
    bundle: PathBuf,
    /// The folder.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The model's folder as it was published, with config.json and tokenizer.json.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// A tokenizer.json instead of the one in that folder.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Call an output as the server calls it: 461=sentence_embedding. Can be given several times.
    #[arg(long, value_name = "FROM=TO", value_parser = renamed)]
    rename: Vec<(String, String)>,
    /// Replace what is in the folder.
    #[arg(long)]
    force: bool,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct GenaiArgs {
    /// The bundle of a decoder with a cache.
    bundle: PathBuf,
    /// The folder.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The model's folder as it was published, for token ids, lengths and the tokenizer.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// A tokenizer.json instead of the one in that folder, or the one that the bundle names.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens that end a row [default: those that the bundle or the published files name].
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    stop: Vec<i64>,
    /// The most tokens of a row, prompt included [default: the model's end].
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Replace what is in the folder.
    #[arg(long)]
    force: bool,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

fn renamed(text: &str) -> Result<(String, String), String> {
    match text.rsplit_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.into(), to.into())),
        _ => Err("write 461=sentence_embedding".into()),
    }
}

impl From<ExportError> for Failure {
    fn from(e: ExportError) -> Failure {
        Failure {
            code: exit::code(e.fault()),
            error: e.into(),
        }
    }
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let terminal = Terminal::new(globals.quiet);
    let (done, json) = match args.form {
        Form::Triton(args) => {
            let options = triton::Options {
                bundle: args.bundle,
                output: args.output,
                name: args.name,
                version: args.model_version,
                tokenizer: args.tokenizer,
                pooling: args.pooling,
                outputs: args.output_name,
                measure: !args.no_measure,
                batching: !args.no_batching,
                force: args.force,
                device: args.device.request(),
                ort_lib: globals.ort_lib.clone(),
            };
            (triton::export(&options, &terminal), args.json)
        }
        Form::Tei(args) => {
            let options = tei::Options {
                bundle: args.bundle,
                output: args.output,
                from: args.from,
                tokenizer: args.tokenizer,
                renamed: args.rename,
                force: args.force,
            };
            (tei::export(&options), args.json)
        }
        Form::Genai(args) => {
            let options = genai::Options {
                bundle: args.bundle,
                output: args.output,
                from: args.from,
                tokenizer: args.tokenizer,
                stop: args.stop,
                max_length: args.max_length,
                force: args.force,
            };
            (genai::export(&options), args.json)
        }
    };
    terminal.clear();
    let Exported { files, notes } = &done?;
    if json {
        print_json(&Exported {
            files: files.clone(),
            notes: notes.clone(),
        })?;
        return Ok(0);
    }
    for note in notes {
        globals.say(note);
    }
    for file in files {
        print(&format!("{}\n", file.display()))?;
    }
    Ok(0)
}
