//! Generation: a decoder with a cache, token after token, alone or behind an encoder.
//!
//! [`ports`] reads off the graph what the inputs of a step are for, [`decoder`] runs steps in ONNX Runtime, [`greedy`] is the
//! loop. [`roles`] says which models belong together, and [`pair`] how they meet.

pub mod bench;
mod decoder;
mod error;
mod given;
mod greedy;
mod pair;
mod ports;
pub mod proof;
mod ran;
mod record;
mod roles;
mod scores;
mod text;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kiln_graph::{Tensor, onnx};

use crate::bundle;
use crate::runtime::{Optimization, SessionOptions};
use crate::setting::ENCODER;

pub use decoder::{Decoder, State};
pub use error::GenerateError;
pub use given::{Given, arrays, made};
pub use greedy::{End, Generated, Rules, generate, go_on};
pub use pair::{Once, Source, States, begin, encode};
use ports::NO_CACHE;
pub use ports::{CachePort, Feed, Port, Ports};
pub use ran::{Gpu, Place, Ran};
pub use record::{Recorded, middle, record};
pub use roles::{FILE, Roles};
pub use scores::{Scores, largest};
pub use text::{Stream, Text};

/// How models are opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub ort_lib: Option<PathBuf>,
    pub threads: Option<NonZeroUsize>,
    pub max_length: Option<usize>,
    /// For proofs: ONNX Runtime changes nothing.
    pub plain: bool,
    pub place: Place,
    /// For proofs: where the engine of a bundle runs, beside its model.
    pub gpu: Gpu,
}

impl Options {
    fn open(&self, path: &Path) -> Result<Ran, GenerateError> {
        Ran::open(path, &self.place, self.ort_lib.as_deref(), &self.session())
    }

    fn session(&self) -> SessionOptions {
        SessionOptions {
            optimization: match self.plain {
                true => Optimization::Disabled,
                false => Optimization::All,
            },
            intra_threads: self.threads,
            ..SessionOptions::default()
        }
    }
}

/// Opens a decoder: a model or a bundle. One without a cache runs all tokens at each step.
///
/// # Errors
/// When it cannot be read, is no decoder, or ONNX Runtime refuses it.
pub fn open(path: &Path, options: &Options) -> Result<Decoder, GenerateError> {
    let file = bundle::find_model(path)?;
    let model = onnx::read(&file)?;
    let refuse = |why: String| GenerateError::NoDecoder {
        model: path.to_path_buf(),
        why,
    };
    let ports = Ports::any(&model.graph).map_err(refuse)?;
    let mut decoder = Decoder::new(options.open(path)?, ports, options.max_length)?;
    match decoder.looks_back()? {
        true => Ok(decoder),
        false => Err(refuse(format!(
            "{NO_CACHE}. Nor is it a decoder without: its scores of a token depend on those behind it"
        ))),
    }
}

/// Opens what runs once.
///
/// # Errors
/// As [`open`].
pub fn open_once(path: &Path, options: &Options) -> Result<Once, GenerateError> {
    let file = bundle::find_model(path)?;
    let model = onnx::read(&file)?;
    Once::new(options.open(path)?, &model.graph)
}

/// The models of a generation, opened.
#[derive(Debug)]
pub struct Generator {
    pub decoder: Decoder,
    pub encoder: Option<Once>,
    pub first: Option<Once>,
}

/// What to go on from.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Tokens of one or several rows.
    Rows(Vec<Vec<i64>>),
    /// What an encoder reads, and the first tokens of the decoder.
    Source(Source, Vec<i64>),
}

impl Generator {
    /// # Errors
    /// As [`open`].
    pub fn open(roles: &Roles, options: &Options) -> Result<Generator, GenerateError> {
        let once = |path: &Option<PathBuf>| {
            let path = path.as_deref();
            path.map(|p| open_once(p, options)).transpose()
        };
        Ok(Generator {
            encoder: once(&roles.encoder)?,
            first: once(&roles.first)?,
            decoder: open(&roles.decoder, options)?,
        })
    }

    /// Whether an encoder reads the prompt.
    pub fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// # Errors
    /// When the prompt does not fit, the models do not belong together, or a step fails.
    pub fn run(
        &mut self,
        prompt: &Prompt,
        rules: &Rules,
        heard: &mut dyn FnMut(usize, i64),
    ) -> Result<Generated, GenerateError> {
        let (source, start) = match prompt {
            Prompt::Rows(rows) => return self.rows(rows, rules, heard),
            Prompt::Source(source, start) => (source, start),
        };
        let begun = Instant::now();
        let Some(encoder) = &mut self.encoder else {
            return Err(GenerateError::Pair {
                why: format!(
                    "{} is given what an encoder reads, and there is no encoder: name it with {ENCODER}",
                    self.decoder.name()
                ),
            });
        };
        let states = encode(encoder, source)?;
        let encoded = begun.elapsed().as_secs_f64();
        let encoder_seconds = Some(encoded);
        let Some(first) = &mut self.first else {
            let given: Vec<(String, Tensor)> = states.given(&self.decoder);
            let prompts = [start.clone()];
            let made = generate(&mut self.decoder, &prompts, &given, rules, heard)?;
            return Ok(Generated {
                first_seconds: made.first_seconds + encoded,
                encoder_seconds,
                ..made
            });
        };
        self.decoder.holds(start.len(), 0)?;
        let begun_at = begin(first, &self.decoder, Some(&states), start)?;
        let state = self.decoder.resume(1, begun_at.tokens, &begun_at.given)?;
        let scores = vec![begun_at.scores.last(0)];
        let made = go_on(&mut self.decoder, state, scores, begun, rules, heard)?;
        Ok(Generated {
            encoder_seconds,
            ..made
        })
    }

    fn rows(
        &mut self,
        rows: &[Vec<i64>],
        rules: &Rules,
        heard: &mut dyn FnMut(usize, i64),
    ) -> Result<Generated, GenerateError> {
        let ([row], Some(first)) = (rows, &mut self.first) else {
            return generate(&mut self.decoder, rows, &[], rules, heard);
        };
        let begun = Instant::now();
        greedy::allowed(&self.decoder, rows)?;
        let made = begin(first, &self.decoder, None, row)?;
        let state = self.decoder.resume(1, made.tokens, &made.given)?;
        go_on(
            &mut self.decoder,
            state,
            vec![made.scores.last(0)],
            begun,
            rules,
            heard,
        )
    }
}
