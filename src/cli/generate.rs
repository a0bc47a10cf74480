//! `kiln generate`

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::device::DeviceArgs;
use super::{Failure, Globals, help, print, print_json};
use crate::generate::{
    self, End, GenerateError, Generated, Generator, Gpu, Place, Prompt, Roles, Rules, Source,
    Stream, Text,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// A decoder with a cache: an ONNX file or a bundle; or a folder or file generation.json that names models by roles.
    model: PathBuf,
    /// Token ids to go on from: 12,7,9. Several times for several rows.
    #[arg(long, value_name = "IDS", value_delimiter = None, conflicts_with_all = ["text", "features"])]
    ids: Vec<Ids>,
    /// Text to go on from, or for an encoder to read; takes a tokenizer.
    #[arg(long, value_name = "TEXT", conflicts_with = "features")]
    text: Option<String>,
    /// What an encoder reads, as .npz or .npy.
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
    /// The model that reads the source, once.
    #[arg(long, value_name = "MODEL")]
    encoder: Option<PathBuf>,
    /// The model that makes the decoder's caches, once.
    #[arg(long, value_name = "MODEL")]
    first: Option<PathBuf>,
    /// A tokenizer.json [default: what generation.json names, or one beside the model].
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens that a decoder behind an encoder starts with.
    #[arg(long, value_name = "IDS")]
    start: Option<Ids>,
    /// Tokens that end a row.
    #[arg(long, value_name = "IDS")]
    stop: Option<Ids>,
    /// The most new tokens of a row.
    #[arg(long, default_value_t = 64, value_name = "N")]
    new: usize,
    /// The most tokens of a row, prompt included; the length of buffers that the model leaves open.
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Run the engines of bundles on the GPU.
    ///
    /// Instead of their models in ONNX Runtime. A decoder writes into its caches in place, and they stay on the GPU.
    #[arg(long, help_heading = help::ENGINE)]
    engine: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Token ids, separated by commas.
#[derive(Clone, Debug)]
pub(super) struct Ids(Vec<i64>);

impl std::str::FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Ids, String> {
        let id = |t: &str| {
            t.trim()
                .parse::<i64>()
                .map_err(|_| format!("'{t}' is no token id"))
        };
        text.split(',').map(id).collect::<Result<_, _>>().map(Ids)
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    generated: &'a Generated,
    /// The text of each row, where there is a tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Vec<String>>,
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let mut roles = Roles::find(&args.model)?;
    roles.encoder = args.encoder.or(roles.encoder);
    roles.first = args.first.or(roles.first);
    let text = tokenizer(args.tokenizer, &roles)?;
    let request = args.device.request();
    let place = match args.engine {
        true => Place::Engine(Gpu {
            device: request.choice.gpu() as usize,
            libraries: globals.trt_lib.clone(),
        }),
        false => Place::Device(request),
    };
    let options = generate::Options {
        ort_lib: globals.ort_lib.clone(),
        threads: args.device.threads,
        max_length: args.max_length,
        plain: false,
        place,
        ..generate::Options::default()
    };
    let words = match (&args.text, &text) {
        (Some(words), Some(text)) => Some(text.encode(words)?),
        (Some(_), None) => {
            return Err(usage(
                "--text takes a tokenizer: give --tokenizer tokenizer.json",
            ));
        }
        (None, _) => None,
    };
    let features = args.features.as_deref().map(generate::arrays).transpose()?;
    let mut generator = Generator::open(&roles, &options)?;
    let start = args.start.map(|ids| ids.0).unwrap_or(roles.start);
    let ids = args.ids.into_iter().map(|ids| ids.0);
    let mut rows: Vec<Vec<i64>> = ids.chain(words).collect();
    let prompt = match (generator.has_encoder(), features) {
        (true, Some(arrays)) => Prompt::Source(Source::Features(arrays), start),
        (true, None) if rows.len() == 1 => Prompt::Source(Source::Tokens(rows.remove(0)), start),
        (true, None) => {
            return Err(usage(
                "an encoder reads one source: give --text, --ids or --features",
            ));
        }
        (false, Some(_)) => {
            return Err(GenerateError::Pair {
                why: format!(
                    "--features are what an encoder reads, and {} is without one: name it with --encoder",
                    args.model.display()
                ),
            }
            .into());
        }
        (false, None) if rows.is_empty() => {
            return Err(usage("nothing to go on from: give --text or --ids"));
        }
        (false, None) => Prompt::Rows(rows),
    };
    if let Prompt::Source(_, start) = &prompt
        && start.is_empty()
    {
        return Err(usage(
            "a decoder behind an encoder starts with a token of its own: give --start",
        ));
    }
    let rules = Rules {
        stop: args.stop.map(|ids| ids.0).unwrap_or(roles.stop),
        limit: args.new,
        suppress: roles.suppress,
        suppress_first: roles.suppress_first,
    };
    let one = !matches!(&prompt, Prompt::Rows(rows) if rows.len() > 1);
    let streams = one && !args.json && !globals.quiet && io::stdout().is_terminal();
    let mut stream = Stream::default();
    let mut heard = |_: usize, token: i64| {
        if streams {
            let new = match &text {
                Some(text) => stream.push(text, token),
                None => format!("{token} "),
            };
            let mut out = io::stdout().lock();
            // A closed terminal is no reason to fail.
            let _ = write!(out, "{new}").and_then(|()| out.flush());
        }
    };
    let generated = generator.run(&prompt, &rules, &mut heard)?;
    show(&generated, text.as_ref(), streams, args.json)?;
    if !args.json {
        globals.say(summary(&generated));
    }
    Ok(0)
}

/// What was generated, but for what was streamed already.
fn show(
    generated: &Generated,
    text: Option<&Text>,
    streamed: bool,
    json: bool,
) -> Result<(), Failure> {
    let words = |text: &Text| -> Vec<String> {
        let rows = generated.tokens.iter();
        rows.map(|row| text.decode(row).trim().to_string())
            .collect()
    };
    if json {
        print_json(&Told {
            generated,
            text: text.map(words),
        })?;
        return Ok(());
    }
    match (streamed, text) {
        (true, _) => print("\n")?,
        (false, Some(text)) => {
            for row in words(text) {
                print(&format!("{row}\n"))?;
            }
        }
        (false, None) => {
            for row in &generated.tokens {
                let row: Vec<String> = row.iter().map(i64::to_string).collect();
                print(&format!("{}\n", row.join(",")))?;
            }
        }
    }
    Ok(())
}

fn usage(what: &str) -> Failure {
    GenerateError::Usage { what: what.into() }.into()
}

fn tokenizer(given: Option<PathBuf>, roles: &Roles) -> Result<Option<Text>, Failure> {
    let beside = || {
        let folder = match roles.decoder.is_dir() {
            true => Some(roles.decoder.as_path()),
            false => roles.decoder.parent(),
        };
        let file = folder?.join("tokenizer.json");
        file.is_file().then_some(file)
    };
    let path = given.or_else(|| roles.tokenizer.clone()).or_else(beside);
    Ok(path.map(|p| Text::open(&p)).transpose()?)
}

/// `16 tokens, 12.3 ms to the first, then 3.1 ms each (322 tokens/s); ended at the limit`
fn summary(g: &Generated) -> String {
    let tokens: usize = g.tokens.iter().map(Vec::len).sum();
    let steps = g.between_seconds.len();
    let between: f64 = g.between_seconds.iter().sum();
    let each = match steps {
        0 => String::new(),
        n => format!(
            ", then {:.2} ms each ({:.0} tokens/s)",
            1e3 * between / n as f64,
            n as f64 / between.max(f64::MIN_POSITIVE)
        ),
    };
    let mut ends: Vec<&str> = (g.ends.iter())
        .map(|end| match end {
            End::Stop => "a stop token",
            End::Limit => "the limit",
            End::Capacity => "the capacity",
        })
        .collect();
    ends.dedup();
    format!(
        "{tokens} tokens, {:.2} ms to the first{each}; ended at {}",
        1e3 * g.first_seconds,
        ends.join(", ")
    )
}
