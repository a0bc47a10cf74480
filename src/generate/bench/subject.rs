//! A model of a benchmark: opened, with what is known of it and what it goes on from.

use std::path::Path;
use std::time::Instant;

use kiln_graph::{Graph, Tensor, ValueId, onnx};
use schemars::JsonSchema;
use serde::Serialize;

use super::size::Size;
use crate::bundle;
use crate::generate::error::GenerateError;
use crate::generate::ports::Feed;
use crate::generate::{Generator, Given, Options, Place, Prompt, Roles, Source, made};
use crate::runtime::DeviceRequest;

/// What is known of a model, or of the models of a pair together.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Model {
    pub name: String,
    pub path: String,
    /// Bytes of its weights.
    pub weights: u64,
    /// Weights of floats, and integers that stand for them.
    pub parameters: u64,
    /// Seconds until it was opened.
    pub load_seconds: f64,
    /// Whether each step runs all tokens.
    pub without_cache: bool,
    /// The most memory of a process that runs this model alone, mapped files and ONNX Runtime included. `null` where that is not told.
    pub peak_bytes: Option<u64>,
}

pub(super) struct Subject {
    pub model: Model,
    pub generator: Generator,
    roles: Roles,
    given: Given,
}

/// What is no bundle has no engine, and runs in ONNX Runtime beside those that have one.
fn on(path: &Path, options: &Options) -> Options {
    let place = match &options.place {
        Place::Engine(_) if !path.is_dir() => Place::Device(DeviceRequest::default()),
        place => place.clone(),
    };
    Options {
        place,
        ..options.clone()
    }
}

impl Subject {
    pub fn open(
        name: String,
        path: &Path,
        inputs: Option<&Path>,
        options: &Options,
    ) -> Result<Subject, GenerateError> {
        let roles = Roles::find(path)?;
        let (mut weights, mut parameters) = (0, 0);
        for (_, path) in roles.models() {
            let model = onnx::read(bundle::find_model(path)?)?;
            weights += model.constant_bytes() as u64;
            parameters += counted(&model.graph);
        }
        let given = match inputs {
            Some(inputs) => Given::read(inputs, &roles)?,
            None => Given::default(),
        };
        let begun = Instant::now();
        let options = on(path, options);
        let generator = Generator::open(&roles, &options)?;
        Ok(Subject {
            model: Model {
                name,
                path: path.display().to_string(),
                weights,
                parameters,
                load_seconds: begun.elapsed().as_secs_f64(),
                without_cache: generator.decoder.ports.caches.is_empty(),
                peak_bytes: None,
            },
            generator,
            roles,
            given,
        })
    }

    /// The end of the tokens that a prompt may have: of the encoder's where it reads tokens.
    pub fn vocabulary(&self) -> i64 {
        let encoder = self.generator.encoder.as_ref();
        let feeds = self.generator.decoder.ports.feeds.iter();
        let tokens = feeds.filter_map(|(_, f)| match f {
            Feed::Tokens { vocabulary } => Some(*vocabulary),
            _ => None,
        });
        let read = encoder.and_then(|e| e.vocabulary());
        tokens.chain(read).min().unwrap_or(1).max(1)
    }

    /// What to go on from at a size, of tokens below `end`: real where it was given.
    pub fn prompt(&self, size: Size, end: i64, seed: u64) -> Result<Prompt, GenerateError> {
        // Spread over the table; the same for all.
        let tokens: Vec<i64> = (0..size.prompt as i64)
            .map(|k| (7 + 31 * k) % end)
            .collect();
        let decoder = &self.generator.decoder;
        let Some(encoder) = &self.generator.encoder else {
            let tokens = self.given.prompt.clone().unwrap_or(tokens);
            decoder.holds(tokens.len(), size.new.saturating_sub(1))?;
            return Ok(Prompt::Rows(vec![tokens]));
        };
        let start = match self.roles.start.is_empty() {
            true => vec![0],
            false => self.roles.start.clone(),
        };
        decoder.holds(start.len(), size.new.saturating_sub(1))?;
        let path = self.roles.encoder.as_deref().unwrap_or(Path::new(""));
        let source = match (&self.given.source, encoder.vocabulary()) {
            (Some(source), _) => source.clone(),
            (None, Some(_)) => Source::Tokens(tokens),
            (None, None) => Source::Features(made(path, seed)?),
        };
        Ok(Prompt::Source(source, start))
    }

    /// Tokens that are read before the first new one: of the prompt, or of the source; `None` for features.
    pub fn read(prompt: &Prompt) -> Option<usize> {
        match prompt {
            Prompt::Rows(rows) => Some(rows.iter().map(Vec::len).sum()),
            Prompt::Source(Source::Tokens(tokens), _) => Some(tokens.len()),
            Prompt::Source(Source::Features(arrays), _) => {
                let whole = |t: &Tensor| !t.dtype().is_float();
                arrays.iter().find(|(_, t)| whole(t)).map(|(_, t)| t.len())
            }
        }
    }
}

/// Numbers of floats, and of integers that a scale makes floats of; those are of 8 bits at most. A scale counts, too.
fn counted(graph: &Graph) -> u64 {
    let mut all = 0;
    graph.for_each_graph(&mut |g| {
        let packed = g.nodes().filter_map(|(_, n)| {
            let (k, m) = (n.attrs().int("K")?, n.attrs().int("N")?);
            let numbers = u64::try_from(k.checked_mul(m)?).ok()?;
            (n.op().name() == "MatMulNBits").then_some((n.input(1)?, numbers))
        });
        // Several in a byte.
        let packed: Vec<(ValueId, u64)> = packed.collect();
        all += packed.iter().map(|(_, numbers)| numbers).sum::<u64>();
        let constants = (g.values()).filter_map(|(v, value)| Some((v, value.constant()?)));
        let weights = constants.filter(|(v, t)| {
            let number = t.dtype().is_float() || t.dtype().bits() <= 8;
            number && packed.iter().all(|(p, _)| p != v)
        });
        all += weights.map(|(_, t)| t.len() as u64).sum::<u64>();
    });
    all
}
