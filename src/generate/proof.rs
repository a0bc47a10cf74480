//! The proof of a generation: that a result generates what its original does, step by step.

mod claims;
mod distance;
mod engine;
mod found;
mod prompt;
mod side;

use std::path::Path;

use kiln_graph::onnx;

pub use found::{Claim, Outcome, Proof, Step};

use claims::{at_once, edge, greedy, held, rows, scores, unwritten};
use distance::{centred, divergence, scores_apart};
use prompt::made_prompt;
use side::Side;

use super::Options;
use super::decoder::State;
use super::error::GenerateError;
use super::greedy::Rules;
use super::pair::Source;
use super::roles::Roles;
use super::scores::largest;
use crate::bundle;
use crate::parity::Tolerance;
use crate::precision::Format;

/// What was asked of a pair of models.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub original: &'a Path,
    pub result: &'a Path,
    pub steps: usize,
    /// Tokens to go on from; made if there are none.
    pub prompt: Option<Vec<i64>>,
    /// What the encoder reads; made if there is none. Behind a real source, the generation ends at its stop token.
    pub source: Option<Source>,
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
    let roles = (Roles::find(request.original)?, Roles::find(request.result)?);
    let source = side::source(&roles.0, request.source.as_ref(), request.seed)?;
    let mut original = Side::open(&roles.0, source.as_ref(), &request.options)?;
    let mut result = Side::open(&roles.1, source.as_ref(), &request.options)?;
    let prompt = match &request.prompt {
        Some(prompt) => prompt.clone(),
        // What a decoder behind an encoder starts with.
        None if !roles.0.start.is_empty() => roles.0.start.clone(),
        None if original.has_encoder() => made_prompt(&original, request.seed, 1),
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
    let limits = request
        .tolerance
        .limits_of(&original.ports.logits.clone())
        .to_owned();
    let rules = Rules {
        // What is made has no end.
        stop: match request.source {
            Some(_) => roles.0.stop.clone(),
            None => Vec::new(),
        },
        limit: steps,
        suppress: roles.0.suppress.clone(),
        suppress_first: roles.0.suppress_first.clone(),
    };
    let tokens = original.greedy(&prompt, &rules)?;
    let result_tokens = result.greedy(&prompt, &rules)?;

    let (steps, states) = forced(&mut original, &mut result, &prompt, &tokens, &rules)?;
    let mut claims = vec![
        scores(&steps, &limits),
        greedy(&tokens, &result_tokens, &steps, &limits),
        at_once(&mut original, &mut result, &prompt, &tokens, &limits)?,
        held(&original, &result, &states, &limits),
        rows(
            &mut original,
            &mut result,
            &prompt,
            &tokens,
            &limits,
            request.seed,
        )?,
        unwritten(&mut result, &prompt, &tokens, &limits)?,
        edge(&mut result, &prompt)?,
    ];
    if engine::has(&roles.1) {
        let forced_on = |side: &mut Side| {
            let (steps, _) = forced(&mut original, side, &prompt, &tokens, &rules)?;
            Ok(scores(&steps, &limits))
        };
        claims.push(engine::claim(
            &roles.1,
            source.as_ref(),
            &request.options,
            forced_on,
        )?);
    }
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
    let mut coarsest = Format::Fp32;
    for (_, path) in Roles::find(path)?.models() {
        let model = onnx::read(bundle::find_model(path)?)?;
        coarsest = coarsest.max(Format::coarsest(&model));
    }
    Ok(Tolerance::from(coarsest.tolerance()))
}

/// Both models on the original's tokens, one after the other; the states behind the last.
fn forced(
    original: &mut Side,
    result: &mut Side,
    prompt: &[i64],
    tokens: &[i64],
    rules: &Rules,
) -> Result<(Vec<Step>, (State, State)), GenerateError> {
    let mut states = (original.start(1)?, result.start(1)?);
    let mut steps = Vec::new();
    let mut next = prompt.to_vec();
    for (k, &token) in tokens.iter().enumerate() {
        let new = [std::mem::take(&mut next)];
        let a = original.step(&mut states.0, &new)?.last(0);
        let b = result.step(&mut states.1, &new)?.last(0);
        let allowed = |scores: &[f32]| rules.allowed(scores.to_vec(), k == 0);
        let chosen = (allowed(&a), allowed(&b));
        steps.push(step(prompt.len() + k, (&a, &b), (&chosen.0, &chosen.1)));
        next = vec![token];
    }
    Ok((steps, states))
}

/// Of the scores of both models, and of those that tokens are taken by.
fn step(position: usize, (a, b): (&[f32], &[f32]), allowed: (&[f32], &[f32])) -> Step {
    let (relative_l2, cosine) = scores_apart(a, b);
    let best = largest(allowed.0);
    let second = allowed.0.iter().enumerate().filter(|(k, _)| *k != best);
    let second = second.map(|(_, s)| *s).fold(f32::NEG_INFINITY, f32::max);
    let squares = centred(a).into_iter().map(|x| f64::from(x).powi(2));
    let rms = (squares.sum::<f64>() / a.len().max(1) as f64).sqrt();
    let above = f64::from(a.get(best).copied().unwrap_or(0.0) - second);
    Step {
        position,
        relative_l2,
        cosine,
        kl: divergence(a, b),
        original: best as i64,
        result: largest(allowed.1) as i64,
        // JSON has no infinity: where no other token may be taken.
        margin: (above / rms.max(f64::MIN_POSITIVE)).min(f64::MAX),
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
        let both = |a: &[f32], b: &[f32]| step(9, (a, b), (a, b));
        let near = both(&[1.0, 0.999, -1.0], &[0.999, 1.0, -1.0]);
        let far = both(&[1.0, 0.5, -1.0], &[0.5, 1.0, -1.0]);
        assert!(is_tie(&near, &limits));
        let held = greedy(&[0], &[1], std::slice::from_ref(&near), &limits);
        assert_eq!(held.outcome, Outcome::Holds);
        let wrong = greedy(&[0], &[1], &[far], &limits);
        assert!(matches!(wrong.outcome, Outcome::Fails(_)), "{wrong:?}");
    }
}
