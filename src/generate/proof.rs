//! The proof of a generation: that a result generates what its original does, step by step.

mod claims;
mod distance;
mod found;
mod prompt;

use std::path::Path;

use kiln_graph::onnx;

pub use found::{Claim, Outcome, Proof, Step};

use claims::{at_once, edge, greedy, held, rows, scores, unwritten};
use distance::{distance, divergence};
use prompt::made_prompt;

use super::decoder::{Decoder, State, largest};
use super::error::GenerateError;
use super::ports::Ports;
use super::{Options, Rules, generate};
use crate::bundle;
use crate::parity::Tolerance;
use crate::precision::Format;
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
    Ok(Tolerance::from(Format::coarsest(&model).tolerance()))
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

#[cfg(test)]
mod tests {
    use super::claims::is_tie;
    use super::*;
    use crate::parity::Preset;

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
}
