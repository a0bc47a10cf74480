//! Greedy generation: the token of the largest score, until a stop token or a limit.

use std::time::Instant;

use kiln_graph::Tensor;
use schemars::JsonSchema;
use serde::Serialize;

use super::decoder::{Decoder, State};
use super::error::GenerateError;
use super::scores::largest;

/// When to end, and which tokens never to take.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// A row that gives one of them is done; it is the last of its tokens.
    pub stop: Vec<i64>,
    /// The most new tokens of a row.
    pub limit: usize,
    pub suppress: Vec<i64>,
    /// Not as the first token.
    pub suppress_first: Vec<i64>,
}

/// Why a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum End {
    Stop,
    Limit,
    /// The model holds no more tokens.
    Capacity,
}

/// What was generated, and how fast.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Generated {
    /// The new tokens of each row.
    pub tokens: Vec<Vec<i64>>,
    pub ends: Vec<End>,
    /// Seconds from the prompt to the first token.
    pub first_seconds: f64,
    /// Seconds from each token to the next.
    pub between_seconds: Vec<f64>,
    /// Of the first token, what an encoder took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_seconds: Option<f64>,
    /// What the caches take behind the last step, those of an encoder included.
    pub cache_bytes: usize,
}

impl Rules {
    /// The next token of a row by its scores.
    pub fn pick(&self, scores: Vec<f32>, is_first: bool) -> i64 {
        largest(&self.allowed(scores, is_first)) as i64
    }

    /// The scores with those of tokens that are never taken at minus infinity.
    pub fn allowed(&self, mut scores: Vec<f32>, is_first: bool) -> Vec<f32> {
        let first = self.suppress_first.iter().filter(|_| is_first);
        for token in self.suppress.iter().chain(first) {
            let place = usize::try_from(*token).ok();
            if let Some(score) = place.and_then(|k| scores.get_mut(k)) {
                *score = f32::NEG_INFINITY;
            }
        }
        scores
    }
}

/// Runs a prompt and what follows it. `heard` is told each new token with its row.
///
/// # Errors
/// When the prompt does not fit, or a step fails.
pub fn generate(
    decoder: &mut Decoder,
    prompts: &[Vec<i64>],
    given: &[(String, Tensor)],
    rules: &Rules,
    heard: &mut dyn FnMut(usize, i64),
) -> Result<Generated, GenerateError> {
    let begun = Instant::now();
    allowed(decoder, prompts)?;
    let mut state = decoder.start(prompts.len(), given)?;
    let scores = decoder.step(&mut state, prompts)?;
    let first: Vec<Vec<f32>> = (0..prompts.len()).map(|row| scores.last(row)).collect();
    go_on(decoder, state, first, begun, rules, heard)
}

/// Whether prompts are tokens of the model, and fit.
///
/// # Errors
/// When they do not, naming the token or the numbers.
pub fn allowed(decoder: &Decoder, prompts: &[Vec<i64>]) -> Result<(), GenerateError> {
    for prompt in prompts {
        if prompt.is_empty() {
            return Err(GenerateError::Usage {
                what: "a prompt has no tokens".into(),
            });
        }
        tokens_fit(decoder.name(), decoder.ports.vocabulary, prompt)?;
        decoder.holds(prompt.len(), 0)?;
    }
    Ok(())
}

pub(super) fn tokens_fit(
    model: &str,
    vocabulary: usize,
    tokens: &[i64],
) -> Result<(), GenerateError> {
    let known = |t: &i64| usize::try_from(*t).is_ok_and(|t| t < vocabulary);
    match tokens.iter().find(|t| !known(t)) {
        Some(token) => Err(GenerateError::Usage {
            what: format!(
                "token {token}: {model} has tokens from 0 to {}",
                vocabulary.saturating_sub(1)
            ),
        }),
        None => Ok(()),
    }
}

/// Goes on behind a step that gave these scores.
///
/// # Errors
/// When a step fails.
pub fn go_on(
    decoder: &mut Decoder,
    mut state: State,
    first: Vec<Vec<f32>>,
    begun: Instant,
    rules: &Rules,
    heard: &mut dyn FnMut(usize, i64),
) -> Result<Generated, GenerateError> {
    let rows = state.lengths.len();
    let mut ends: Vec<Option<End>> = vec![None; rows];
    let mut tokens: Vec<Vec<i64>> = vec![Vec::new(); rows];
    let mut between_seconds = Vec::new();
    let mut take = |scores: Vec<Vec<f32>>, tokens: &mut [Vec<i64>], ends: &mut [Option<End>]| {
        for (row, scores) in scores.into_iter().enumerate() {
            if ends[row].is_some() {
                continue;
            }
            let token = rules.pick(scores, tokens[row].is_empty());
            tokens[row].push(token);
            heard(row, token);
            if rules.stop.contains(&token) {
                ends[row] = Some(End::Stop);
            } else if tokens[row].len() >= rules.limit {
                ends[row] = Some(End::Limit);
            }
        }
    };
    if rules.limit > 0 {
        take(first, &mut tokens, &mut ends);
    } else {
        ends.fill(Some(End::Limit));
    }
    let first_seconds = begun.elapsed().as_secs_f64();
    while ends.iter().any(Option::is_none) {
        let longest = state.lengths.iter().max().copied().unwrap_or(0);
        if decoder.holds(longest, 1).is_err() {
            break;
        }
        let start = Instant::now();
        // Rows that are done go along, unread.
        let next: Vec<Vec<i64>> = tokens
            .iter()
            .map(|row| row.last().copied().into_iter().collect())
            .collect();
        let scores = decoder.step(&mut state, &next)?;
        let scores = (0..rows).map(|row| scores.last(row)).collect();
        take(scores, &mut tokens, &mut ends);
        between_seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(Generated {
        tokens,
        ends: ends
            .into_iter()
            .map(|e| e.unwrap_or(End::Capacity))
            .collect(),
        first_seconds,
        between_seconds,
        encoder_seconds: None,
        cache_bytes: decoder.cache_bytes(&state),
    })
}
