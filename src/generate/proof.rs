//! The proof of a generation: that a result generates what its original does, step by step.

mod claims;

use std::path::Path;

use kiln_graph::onnx;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use claims::{at_once, edge, greedy, held, rows, scores, unwritten};

use super::decoder::{Decoder, State, largest};
use super::error::GenerateError;
use super::ports::{Feed, Ports};
use super::{Options, Rules, generate};
use crate::bundle;
use crate::parity::{self, Preset, Tolerance};
use crate::prove::{self, Candidate};
use crate::runtime::{DeviceChoice, DeviceRequest};

/// What was asked of a pair of models.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub original: &'a Path,
    pub result: &'a Path,
    pub steps: usize,
    /// Tokens to go on from; made if there are none.
    pub prompt: Option<Vec<i64>>,
    pub tolerance: Tolerance,
    pub seed: u64,
    pub options: Options,
}

/// One step, both models given the original's tokens.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    pub position: usize,
    pub relative_l2: f64,
    pub cosine: f64,
    /// Kullback-Leibler divergence of the result's distribution of tokens from the original's, in nats.
    pub kl: f64,
    /// The tokens of the largest scores.
    pub original: i64,
    pub result: i64,
    /// How far the original's largest score is above its second, over the root of the mean square of all.
    pub margin: f64,
    /// That root.
    pub rms: f64,
}

/// A statement about the result.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    pub name: String,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The number that decided it, in words.
    pub details: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "why")]
pub enum Outcome {
    Holds,
    Fails(String),
    NotRun(String),
}

/// What the proof found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Proof {
    pub original: String,
    pub result: String,
    pub tolerance: String,
    pub prompt: Vec<i64>,
    /// What the original generates.
    pub tokens: Vec<i64>,
    pub result_tokens: Vec<i64>,
    pub steps: Vec<Step>,
    pub claims: Vec<Claim>,
}

impl Proof {
    pub fn failed(&self) -> bool {
        let failed = |c: &Claim| matches!(c.outcome, Outcome::Fails(_));
        self.claims.iter().any(failed)
    }
}

/// Tokens of a prompt that is made.
const PROMPT: usize = 9;

/// Runs both models.
///
/// # Errors
/// When one is no decoder that runs alone, or a run fails. What differs is in the proof.
pub fn prove(request: &Request<'_>) -> Result<Proof, GenerateError> {
    let mut original = rounding(request.original, &request.options)?;
    let mut result = rounding(request.result, &request.options)?;
    let prompt = match &request.prompt {
        Some(prompt) => prompt.clone(),
        None => made_prompt(&original, request.seed, PROMPT),
    };
    let room = original
        .capacity()
        .into_iter()
        .chain(result.capacity())
        .min();
    let steps = room.map_or(request.steps, |n| {
        request.steps.min(n.saturating_sub(prompt.len()))
    });
    let rules = Rules {
        limit: steps,
        ..Rules::default()
    };
    let limits = request
        .tolerance
        .limits_of(&original.ports.logits.clone())
        .to_owned();
    let prompts = [prompt.clone()];
    let tokens = generate(&mut original, &prompts, &[], &rules, &mut |_, _| {})?;
    let tokens = tokens.tokens.into_iter().next().unwrap_or_default();
    let alone = generate(&mut result, &prompts, &[], &rules, &mut |_, _| {})?;
    let result_tokens = alone.tokens.into_iter().next().unwrap_or_default();

    let (steps, states) = forced(&mut original, &mut result, &prompt, &tokens)?;
    let claims = vec![
        scores(&steps, &limits),
        greedy(&tokens, &result_tokens, &steps, &limits),
        at_once(&mut result, &prompt, &tokens, &limits)?,
        held(&original, &result, &states, &limits),
        rows(
            &mut original,
            &mut result,
            &prompt,
            &tokens,
            &limits,
            request.seed,
        )?,
        unwritten(&mut result, &prompt, &tokens)?,
        edge(&mut result, &prompt)?,
    ];
    Ok(Proof {
        original: request.original.display().to_string(),
        result: request.result.display().to_string(),
        tolerance: request.tolerance.name.clone(),
        prompt,
        tokens,
        result_tokens,
        steps,
        claims,
    })
}

/// The limits for what a model's numbers are, where none are named.
pub fn tolerance_of(path: &Path) -> Result<Tolerance, GenerateError> {
    let model = onnx::read(bundle::find_model(path)?)?;
    let preset: Preset = crate::check::preset(&model);
    Ok(Tolerance::from(preset))
}

/// A decoder that rounds where the model does: ONNX Runtime would take roundings to FP16 out.
fn rounding(path: &Path, options: &Options) -> Result<Decoder, GenerateError> {
    let file = bundle::find_model(path)?;
    let model = onnx::read(&file)?;
    let ports = Ports::of(&model.graph).map_err(|why| GenerateError::NoDecoder {
        model: path.to_path_buf(),
        why,
    })?;
    if let Some(given) = ports.given().next() {
        return Err(GenerateError::NoDecoder {
            model: path.to_path_buf(),
            why: format!(
                "\"{}\" is what an encoder or a first step computes: the proof of a generation takes decoders that run alone",
                given.name
            ),
        });
    }
    let device = DeviceRequest {
        choice: DeviceChoice::Cpu,
        ..DeviceRequest::default()
    };
    let opened = Candidate::open(&file, &model, device, options.ort_lib.as_deref());
    let opened = opened.map_err(|e| match e {
        prove::Error::Runtime(e) => GenerateError::Runtime(e),
        other => GenerateError::NoDecoder {
            model: path.to_path_buf(),
            why: other.to_string(),
        },
    })?;
    let name = path.display().to_string();
    Decoder::new(opened.session.called(&name), ports, options.max_length)
}

fn made_prompt(decoder: &Decoder, seed: u64, length: usize) -> Vec<i64> {
    let vocabulary = decoder.ports.feeds.iter().find_map(|(_, f)| match f {
        Feed::Tokens { vocabulary } => Some(*vocabulary),
        _ => None,
    });
    let spec = parity::InputSpec {
        name: "prompt".into(),
        dtype: kiln_graph::DType::I64,
        shape: vec![1, length],
        kind: parity::InputKind::TokenIds {
            upper: vocabulary.unwrap_or(1),
        },
    };
    let made = parity::make(&[spec], seed).unwrap_or_default();
    made.first()
        .and_then(|(_, t)| t.to_i64s())
        .unwrap_or_else(|| vec![0; length])
}

/// Both models on the original's tokens, one after the other; the states behind the last.
fn forced(
    original: &mut Decoder,
    result: &mut Decoder,
    prompt: &[i64],
    tokens: &[i64],
) -> Result<(Vec<Step>, (State, State)), GenerateError> {
    let mut states = (original.start(1, &[])?, result.start(1, &[])?);
    let mut steps = Vec::new();
    let mut next = prompt.to_vec();
    for (k, &token) in tokens.iter().enumerate() {
        let new = [std::mem::take(&mut next)];
        let a = original.step(&mut states.0, &new)?.last(0);
        let b = result.step(&mut states.1, &new)?.last(0);
        steps.push(step(prompt.len() + k, &a, &b));
        next = vec![token];
    }
    Ok((steps, states))
}

fn step(position: usize, a: &[f32], b: &[f32]) -> Step {
    let (relative_l2, cosine) = distance(a, b);
    let best = largest(a);
    let second = a.iter().enumerate().filter(|(k, _)| *k != best);
    let second = second.map(|(_, s)| *s).fold(f32::NEG_INFINITY, f32::max);
    let rms = (a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / a.len().max(1) as f64).sqrt();
    Step {
        position,
        relative_l2,
        cosine,
        kl: divergence(a, b),
        original: best as i64,
        result: largest(b) as i64,
        margin: f64::from(a.get(best).copied().unwrap_or(0.0) - second)
            / rms.max(f64::MIN_POSITIVE),
        rms,
    }
}

/// Relative L2 and cosine; NaN where a side is not finite.
fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    let (mut aa, mut bb, mut ab, mut dd) = (0.0, 0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        aa += x * x;
        bb += y * y;
        ab += x * y;
        dd += (x - y) * (x - y);
    }
    if a.len() != b.len() {
        return (f64::NAN, f64::NAN);
    }
    match aa == 0.0 && bb == 0.0 {
        true => (0.0, 1.0),
        false => ((dd / aa).sqrt(), ab / (aa * bb).sqrt()),
    }
}

/// `Σ p (ln p − ln q)` of the distributions that scores stand for.
fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let log_sum = |s: &[f32]| {
        let top = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = s.iter().map(|x| f64::from(x - top).exp()).sum();
        f64::from(top) + sum.ln()
    };
    let (za, zb) = (log_sum(a), log_sum(b));
    let terms = a.iter().zip(b).map(|(x, y)| {
        let (p, q) = (f64::from(*x) - za, f64::from(*y) - zb);
        // What has no chance adds nothing.
        if p == f64::NEG_INFINITY {
            0.0
        } else {
            p.exp() * (p - q)
        }
    });
    // What cannot happen for the result is written as the largest number: JSON has no infinity.
    terms.sum::<f64>().min(f64::MAX)
}

#[cfg(test)]
mod tests {
    use super::claims::is_tie;
    use super::*;

    #[test]
    fn a_tie_is_told_from_a_wrong_token() {
        let limits = Preset::Fp16.limits();
        let near = step(9, &[1.0, 0.999, -1.0], &[0.999, 1.0, -1.0]);
        let far = step(9, &[1.0, 0.5, -1.0], &[0.5, 1.0, -1.0]);
        assert!(is_tie(&near, &limits));
        let held = greedy(&[0], &[1], std::slice::from_ref(&near), &limits);
        assert_eq!(held.outcome, Outcome::Holds);
        let wrong = greedy(&[0], &[1], &[far], &limits);
        assert!(matches!(wrong.outcome, Outcome::Fails(_)), "{wrong:?}");
    }

    #[test]
    fn divergence_is_zero_for_the_same_and_grows() {
        let a = [1.0, 2.0, 3.0];
        assert!(divergence(&a, &a).abs() < 1e-12);
        // A shift of all scores is the same distribution.
        assert!(divergence(&a, &[11.0, 12.0, 13.0]).abs() < 1e-6);
        let p = [0.0f32, 2f32.ln()];
        // p = (1/3, 2/3), q = (1/2, 1/2): 1/3 ln 2/3 + 2/3 ln 4/3.
        let right = (2f64 / 3.0).ln() / 3.0 + 2.0 * (4f64 / 3.0).ln() / 3.0;
        assert!((divergence(&p, &[0.0, 0.0]) - right).abs() < 1e-7);
    }
}
