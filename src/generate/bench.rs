//! The time of a generation: models in turns, from the same prompt.

mod gate;
mod memory;
mod size;
mod spread;
mod subject;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use super::error::GenerateError;
use super::{Generated, Options, Rules};
use crate::bench::baseline::Baseline;
use crate::bench::{Machine, names};
use crate::environment::{Environment, environment};
use crate::runtime::Runtime;
use gate::Saved;
use subject::Subject;

pub use gate::{Gate, Judged};
pub use size::Size;
pub use spread::{Quantiles, Rate};
pub use subject::Model;

/// What to time.
#[derive(Clone, Debug)]
pub struct Request {
    /// Decoders, and pairs by their `generation.json`.
    pub models: Vec<PathBuf>,
    /// What models are called, in their order.
    pub names: Vec<String>,
    pub sizes: Vec<Size>,
    pub repetitions: usize,
    /// A real source or prompt.
    pub inputs: Option<PathBuf>,
    pub baseline: Option<Baseline>,
    pub seed: u64,
    pub options: Options,
}

/// What was timed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Benchmark {
    pub kiln: &'static str,
    pub repetitions: usize,
    /// `null` where ONNX Runtime chooses.
    pub threads: Option<usize>,
    /// In the order given, behind a baseline.
    pub models: Vec<Model>,
    pub points: Vec<Point>,
    pub gate: Option<Gate>,
    pub machine: Machine,
    pub environment: Environment,
}

/// The times at one size.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Point {
    #[serde(flatten)]
    pub size: Size,
    /// Whether all models gave the same tokens.
    pub same_tokens: bool,
    /// In the order of the models.
    pub sides: Vec<Side>,
}

/// The times of one model at one size.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Side {
    pub name: String,
    /// Seconds that an encoder took, which are part of those to the first token.
    pub encoder: Option<Quantiles>,
    /// Seconds to the first token.
    pub first: Quantiles,
    /// Seconds between tokens.
    pub between: Quantiles,
    /// Seconds of the whole generation.
    pub whole: Quantiles,
    /// Tokens of the prompt a second, of a text that an encoder reads by the encoder's time; `null` for features.
    pub prompt_rate: Option<Rate>,
    /// New tokens a second, the first one left out.
    pub token_rate: Option<Rate>,
    /// The median of each position's time, in seconds.
    pub by_position: Vec<f64>,
    /// What its caches take behind the last step, those of an encoder included.
    pub cache_bytes: usize,
    pub tokens: Vec<i64>,
    /// All times to the first token, in nanoseconds.
    pub first_ns: Vec<u64>,
    /// All times between tokens.
    pub between_ns: Vec<u64>,
}

/// Repetitions that a verdict on the first token takes at least: the interval of a median has no ends below.
const JUDGED: usize = 7;

/// Times models in turns, after one run that is not counted.
///
/// # Errors
/// When a model is no decoder, is without its encoder, or the tokens do not fit.
pub fn bench(request: &Request) -> Result<Benchmark, GenerateError> {
    let options = &request.options;
    let saved = match &request.baseline {
        Some(b) if !b.is_model() => Some(Saved::read(&b.path)?),
        _ => None,
    };
    let same_run = request.baseline.as_ref().filter(|b| b.is_model());
    let (paths, given) = ordered(request, same_run.map(|b| b.path.as_path()));
    let called = names::named(&paths, &given);
    let mut subjects = Vec::new();
    for (name, path) in called.into_iter().zip(&paths) {
        let inputs = request.inputs.as_deref();
        subjects.push(Subject::open(name, path, inputs, options)?);
    }
    let repetitions = match &request.baseline {
        Some(_) => request.repetitions.max(JUDGED),
        None => request.repetitions.max(1),
    };
    let mut points = Vec::new();
    for &size in &request.sizes {
        points.push(at(&mut subjects, size, repetitions, request.seed)?);
    }
    let mut models: Vec<Model> = subjects.iter().map(|s| s.model.clone()).collect();
    drop(subjects);
    if let [only] = &mut models[..] {
        only.peak_bytes = memory::peak();
    }
    let runtime = Runtime::load(options.ort_lib.as_deref())?;
    let environment = environment();
    let threads = options.threads.map_or(environment.threads, usize::from);
    // It takes memory of its own, which is no model's.
    let machine = Machine::measure(runtime, &options.session(), threads)?;
    let gate = request.baseline.as_ref();
    let gate = gate.map(|b| judged(b, saved.as_ref(), &machine, &models, &points));
    Ok(Benchmark {
        kiln: env!("CARGO_PKG_VERSION"),
        repetitions,
        threads: options.threads.map(usize::from),
        models,
        points,
        gate,
        machine,
        environment,
    })
}

/// The models with their names, a baseline before the others.
fn ordered(request: &Request, baseline: Option<&Path>) -> (Vec<PathBuf>, Vec<Option<String>>) {
    let names = request.names.iter().cloned().map(Some);
    let names = names.chain(std::iter::repeat(None));
    let mut all: Vec<(PathBuf, Option<String>)> =
        request.models.iter().cloned().zip(names).collect();
    if let Some(baseline) = baseline {
        // One that is one of several models is measured once.
        let among = all.iter().position(|(path, _)| path == baseline);
        let first = match among.filter(|_| all.len() > 1) {
            Some(at) => all.remove(at),
            None => (baseline.to_path_buf(), None),
        };
        all.insert(0, first);
    }
    all.into_iter().unzip()
}

fn at(
    subjects: &mut [Subject],
    size: Size,
    repetitions: usize,
    seed: u64,
) -> Result<Point, GenerateError> {
    let end = subjects.iter().map(Subject::vocabulary).min().unwrap_or(1);
    let mut prompts = Vec::new();
    for subject in subjects.iter() {
        prompts.push(subject.prompt(size, end, seed)?);
    }
    let rules = Rules {
        limit: size.new,
        ..Rules::default()
    };
    let mut runs: Vec<Vec<Generated>> = vec![Vec::new(); subjects.len()];
    for turn in 0..=repetitions {
        for place in 0..subjects.len() {
            // Every other turn is reversed, so that none always runs on the caches that the same other left.
            let k = match turn % 2 {
                0 => place,
                _ => subjects.len() - 1 - place,
            };
            let generator = &mut subjects[k].generator;
            let run = generator.run(&prompts[k], &rules, &mut |_, _| {})?;
            if turn > 0 {
                runs[k].push(run);
            }
        }
    }
    let sides: Vec<Side> = (subjects.iter().zip(&prompts).zip(&runs))
        .map(|((subject, prompt), runs)| side(&subject.model.name, Subject::read(prompt), runs))
        .collect();
    Ok(Point {
        size,
        same_tokens: sides.windows(2).all(|w| w[0].tokens == w[1].tokens),
        sides,
    })
}

/// `read` tokens went before the first new one.
fn side(name: &str, read: Option<usize>, runs: &[Generated]) -> Side {
    let each = |of: &dyn Fn(&Generated) -> f64| -> Vec<f64> { runs.iter().map(of).collect() };
    let first = each(&|r| r.first_seconds);
    let between: Vec<f64> = (runs.iter())
        .flat_map(|r| r.between_seconds.iter().copied())
        .collect();
    let encoder: Option<Vec<f64>> = runs.iter().map(|r| r.encoder_seconds).collect();
    let steps = runs.iter().map(|r| r.between_seconds.len()).min();
    let median = |at: usize| Quantiles::of(&each(&|r| r.between_seconds[at])).p50;
    let ns = |all: &[f64]| all.iter().map(|s| (1e9 * s).round() as u64).collect();
    let whole = each(&|r| r.first_seconds + r.between_seconds.iter().sum::<f64>());
    let rate = |n: usize| {
        let seconds = |r: &Generated| r.encoder_seconds.unwrap_or(r.first_seconds);
        Rate::of(&each(&|r| n as f64 / seconds(r)))
    };
    Side {
        name: name.to_string(),
        encoder: encoder.filter(|e| !e.is_empty()).map(|e| Quantiles::of(&e)),
        first: Quantiles::of(&first),
        between: Quantiles::of(&between),
        whole: Quantiles::of(&whole),
        prompt_rate: read.and_then(rate),
        token_rate: Rate::of(&each(&|r| {
            r.between_seconds.len() as f64 / r.between_seconds.iter().sum::<f64>()
        })),
        by_position: (0..steps.unwrap_or(0)).map(median).collect(),
        cache_bytes: runs.first().map_or(0, |r| r.cache_bytes),
        tokens: (runs.first()).map_or(Vec::new(), |r| r.tokens.concat()),
        first_ns: ns(&first),
        between_ns: ns(&between),
    }
}

fn judged(
    baseline: &Baseline,
    saved: Option<&Saved>,
    machine: &Machine,
    models: &[Model],
    points: &[Point],
) -> Gate {
    let mut gate = Gate {
        baseline: baseline.path.display().to_string(),
        allowed: baseline.allowed,
        machine: saved.map_or(1.0, |s| machine.gflops / s.machine.gflops),
        same_run: saved.is_none(),
        points: Vec::new(),
    };
    for point in points {
        let sides = point.sides.iter().zip(models);
        let first = point.sides.first().filter(|_| gate.same_run);
        for (side, model) in sides.skip(usize::from(gate.same_run)) {
            let base = match (saved, first) {
                (Some(saved), _) => saved.times(point.size, &side.name, &model.path),
                (None, first) => first.map(|f| [&f.first_ns[..], &f.between_ns[..]]),
            };
            let found = [&side.first_ns[..], &side.between_ns[..]];
            gate.judge(&side.name, point.size, found, base);
        }
    }
    gate
}
