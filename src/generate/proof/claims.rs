//! What a proof of a generation claims, each held against the limits.

use kiln_graph::Tensor;
use kiln_graph::caches::Update;

use super::super::decoder::{Decoder, State};
use super::super::error::GenerateError;
use super::super::ports::Feed;
use super::super::scores::Scores;
use super::distance::{distance, scores_apart};
use super::found::{Claim, Outcome, Step};
use super::prompt::made_prompt;
use super::side::Side;
use crate::parity::{self, Limits};

/// How many times the limit on relative L2 caches may be off: errors of a layer are of that layer alone, which the sum over
/// the residual stream averages out in the scores.
const CACHE_FACTOR: f64 = 4.0;

/// How many times the limits a single step may be off. They are for a whole tensor of many rows, and a step's scores are one row: over
/// the shapes of docs/generation.md, the worst of 64 steps is off by 1.2 to 2.4 times what all are together. All steps together are held
/// to the limits as they are.
const STEP_FACTOR: f64 = 2.0;

fn claim(name: &'static str, wrong: Option<String>, details: String) -> Claim {
    Claim {
        name: name.into(),
        outcome: wrong.map_or(Outcome::Holds, Outcome::Fails),
        details,
    }
}

fn not_run(name: &'static str, why: impl Into<String>) -> Claim {
    Claim {
        name: name.into(),
        outcome: Outcome::NotRun(why.into()),
        details: String::new(),
    }
}

/// Whether two vectors are within the limits, by relative L2 and cosine.
fn within(limits: &Limits, relative_l2: f64, cosine: f64, factor: f64) -> bool {
    let near = limits
        .relative_l2
        .is_none_or(|most| relative_l2 <= most * factor);
    let along = limits
        .cosine
        .is_none_or(|least| 1.0 - cosine <= (1.0 - least) * factor * factor);
    // A comparison with NaN is false.
    near && along && relative_l2.is_finite()
}

const SCORES: &str = "scores at each step";

pub(super) fn scores(steps: &[Step], limits: &Limits) -> Claim {
    let worst = steps
        .iter()
        .max_by(|a, b| a.relative_l2.total_cmp(&b.relative_l2));
    let Some(worst) = worst else {
        return not_run(SCORES, "the model holds no step behind the prompt");
    };
    let all = steps.iter().map(|s| s.rms.powi(2)).sum::<f64>();
    let off = steps.iter().map(|s| (s.relative_l2 * s.rms).powi(2));
    let joint = (off.sum::<f64>() / all).sqrt();
    let mean = steps.iter().map(|s| s.cosine).sum::<f64>() / steps.len() as f64;
    let bad = (steps.iter())
        .find(|s| !within(limits, s.relative_l2, s.cosine, STEP_FACTOR))
        .or_else(|| (!within(limits, joint, mean, 1.0)).then_some(worst));
    let kl = steps.iter().map(|s| s.kl).fold(0.0, f64::max);
    let top = steps.iter().filter(|s| s.original == s.result).count();
    let details = format!(
        "{} steps: relative L2 {joint:.2e}, of one at most {:.2e}, cosine at least {:.7}, KL at most {:.2e}, first choice the same in {top}",
        steps.len(),
        worst.relative_l2,
        steps.iter().map(|s| s.cosine).fold(1.0, f64::min),
        kl
    );
    let limit = limits.relative_l2.unwrap_or(f64::INFINITY);
    let wrong = bad.map(|s| {
        format!(
            "relative L2 is {joint:.2e} (limit {limit}); at position {} it is {:.2e}, cosine {:.6}",
            s.position, s.relative_l2, s.cosine
        )
    });
    claim(SCORES, wrong, details)
}

/// How close the original's first and second choice may be that a result takes the other: both scores may be off by the
/// limit on relative L2.
pub(super) fn is_tie(step: &Step, limits: &Limits) -> bool {
    step.margin <= limits.relative_l2.unwrap_or(0.0) * parity::MARGIN_FACTOR
}

pub(super) fn greedy(tokens: &[i64], result: &[i64], steps: &[Step], limits: &Limits) -> Claim {
    let name = "tokens of a greedy generation";
    let parted = tokens.iter().zip(result).position(|(a, b)| a != b);
    let Some(at) = parted else {
        let same = tokens.len() == result.len();
        let wrong = (!same).then(|| format!("{} tokens, and {}", tokens.len(), result.len()));
        return claim(name, wrong, format!("{} tokens are equal", tokens.len()));
    };
    let Some(step) = steps.get(at) else {
        return not_run(name, "no step is known where they part");
    };
    let tie = is_tie(step, limits);
    let details = format!(
        "equal up to position {}, where the original has {} by {:.2e} of the scores' magnitude, and the result {}{}",
        step.position,
        tokens[at],
        step.margin,
        result[at],
        if tie { ": a tie" } else { "" }
    );
    claim(name, (!tie).then(|| details.clone()), details)
}

/// How many times as far as the original's own two ways the result's may be apart, where that is beyond the limit: products of one row
/// and of many add up in other orders, and a trained model makes more of that than its limit on rewrites. The two differ by chance.
const OWN_FACTOR: f64 = 2.0;

/// The result's scores of all tokens in one run against those of single steps. Beyond the limit, the original's own are the measure.
pub(super) fn at_once(
    original: &mut Side,
    result: &mut Side,
    prompt: &[i64],
    tokens: &[i64],
    limits: &Limits,
) -> Result<Claim, GenerateError> {
    let name = "one run is as many steps";
    let Some(found) = ways(result, prompt, tokens, limits)? else {
        return Ok(not_run(name, "the model scores the last token alone"));
    };
    let details = format!("relative L2 at most {:.2e}", found.worst);
    let Some(at) = found.bad else {
        return Ok(claim(name, None, details));
    };
    let own = ways(original, prompt, tokens, limits)?;
    Ok(match own {
        Some(own) if found.worst <= own.worst * OWN_FACTOR => {
            let own = format!(
                "{details}, and {:.2e} between the original's own",
                own.worst
            );
            claim(name, None, own)
        }
        _ => claim(
            name,
            Some(format!("at position {at} they differ: {details}")),
            details,
        ),
    })
}

/// How far a model's scores of all tokens in one run are from those of single steps.
struct Ways {
    worst: f64,
    /// The first position that is beyond the limit.
    bad: Option<usize>,
}

/// `None` if the model scores the last token alone.
fn ways(
    model: &mut Side,
    prompt: &[i64],
    tokens: &[i64],
    limits: &Limits,
) -> Result<Option<Ways>, GenerateError> {
    let mut state = model.start(1)?;
    let whole: Vec<i64> = prompt.iter().chain(tokens).copied().collect();
    let all = model.step(&mut state, std::slice::from_ref(&whole))?;
    if all.len(0) != whole.len() {
        return Ok(None);
    }
    let mut state = model.start(1)?;
    let mut found = Ways {
        worst: 0.0,
        bad: None,
    };
    let mut next = prompt.to_vec();
    for k in 0..=tokens.len() {
        let one = model
            .step(&mut state, &[std::mem::take(&mut next)])?
            .last(0);
        let (l2, cosine) = scores_apart(&all.at(0, prompt.len() + k - 1), &one);
        found.worst = found
            .worst
            .max(if l2.is_nan() { f64::INFINITY } else { l2 });
        if !within(limits, l2, cosine, STEP_FACTOR) {
            found.bad.get_or_insert(prompt.len() + k);
        }
        next = tokens.get(k).copied().into_iter().collect();
    }
    Ok(Some(found))
}

/// What the caches hold behind the last step.
pub(super) fn held(
    original: &Side,
    result: &Side,
    states: &(State, State),
    limits: &Limits,
) -> Claim {
    let name = "what the caches hold";
    let mut worst = 0.0f64;
    let mut wrong = None;
    let mut compared = 0;
    for (k, c) in original.ports.caches.iter().enumerate() {
        let other = result
            .ports
            .caches
            .iter()
            .position(|o| o.port.name == c.port.name);
        let Some(other) = other else {
            continue;
        };
        let part = |model: &Decoder, state: &State, k: usize| {
            let tokens = state.lengths.first().copied()?;
            tokens_of(&state.caches[k], model.ports.caches[k].cache.axis, tokens)
        };
        let (a, b) = (part(original, &states.0, k), part(result, &states.1, other));
        let (Some(x), Some(y)) = (a, b) else {
            continue;
        };
        if x.len() != y.len() {
            continue;
        }
        compared += 1;
        let (l2, cosine) = distance(&x, &y);
        worst = worst.max(l2);
        if !within(limits, l2, cosine, CACHE_FACTOR) && wrong.is_none() {
            wrong = Some(format!(
                "\"{}\" is off by relative L2 {l2:.2e}",
                c.port.name
            ));
        }
    }
    match compared {
        0 => not_run(name, "the caches of the two have other names or sizes"),
        n => claim(
            name,
            wrong,
            format!("{n} tensors: relative L2 at most {worst:.2e}"),
        ),
    }
}

/// What a cache holds of the first tokens; a buffer is longer than they are.
fn tokens_of(t: &Tensor, axis: usize, tokens: usize) -> Option<Vec<f32>> {
    let dims = t.dims();
    let inner: usize = dims.get(axis + 1..)?.iter().product();
    let whole = dims.get(axis)? * inner;
    let numbers = t.to_f64s()?;
    let rows = numbers.chunks_exact(whole.max(1));
    let part = rows.flat_map(|row| row.iter().take(tokens * inner));
    Some(part.map(|x| *x as f32).collect())
}

/// A batch of rows of unequal lengths against each row alone. Where the original's rows see each other, a result's may.
pub(super) fn rows(
    original: &mut Side,
    result: &mut Side,
    prompt: &[i64],
    tokens: &[i64],
    limits: &Limits,
    seed: u64,
) -> Result<Claim, GenerateError> {
    let name = "rows do not see each other";
    if result.has_encoder() {
        return Ok(not_run(name, "an encoder reads one source"));
    }
    if !result.ports.hides_padding() {
        return Ok(not_run(name, "the model has no input that hides padding"));
    }
    let fixed = (result.ports.feeds.iter())
        .find(|(_, f)| matches!(f, Feed::Tokens { .. }))
        .and_then(|(p, _)| p.dims.first().copied().flatten());
    if fixed.is_some_and(|n| n < 2) {
        return Ok(not_run(name, "the model takes one row"));
    }
    let short = made_prompt(result, seed + 1, prompt.len().div_ceil(2));
    let prompts = [prompt.to_vec(), short];
    let forced = &tokens[..tokens.len().min(ROW_STEPS)];
    let (worst, wrong) = apart(result, &prompts, forced, limits)?;
    if let Some(wrong) = wrong {
        return Ok(match apart(original, &prompts, forced, limits)? {
            (_, Some(_)) => not_run(
                name,
                "those of the original do: where padding in front moves its positions, it takes rows of one length only",
            ),
            _ => claim(name, Some(wrong), String::new()),
        });
    }
    let steps = forced.len();
    let details =
        format!("2 rows of unequal lengths, {steps} steps: relative L2 at most {worst:.2e}");
    Ok(claim(name, None, details))
}

/// Steps that rows of unequal lengths take together.
const ROW_STEPS: usize = 4;

/// How far rows of a batch are from each of them alone, and what is wrong with that.
fn apart(
    model: &mut Side,
    prompts: &[Vec<i64>],
    tokens: &[i64],
    limits: &Limits,
) -> Result<(f64, Option<String>), GenerateError> {
    let mut together = model.start(prompts.len())?;
    let mut both = vec![model.step(&mut together, prompts)?];
    for token in tokens {
        both.push(model.step(&mut together, &vec![vec![*token]; prompts.len()])?);
    }
    let mut worst = 0.0f64;
    let mut wrong = None;
    for (row, prompt) in prompts.iter().enumerate() {
        let mut alone = model.start(1)?;
        let mut next = prompt.clone();
        for (k, scores) in both.iter().enumerate() {
            let one: Scores = model.step(&mut alone, &[std::mem::take(&mut next)])?;
            let (l2, cosine) = scores_apart(&one.last(0), &scores.last(row));
            worst = worst.max(if l2.is_nan() { f64::INFINITY } else { l2 });
            if !within(limits, l2, cosine, STEP_FACTOR) && wrong.is_none() {
                wrong = Some(format!(
                    "row {row} of {} tokens is off by relative L2 {l2:.2e} at step {k} beside a row of another length",
                    prompt.len()
                ));
            }
            next = tokens.get(k).copied().into_iter().collect();
        }
    }
    Ok((worst, wrong))
}

/// Bytes of floats that a generation may have left in a buffer: 48.6 in FP32, 48.5 in BF16, 3.1 in FP16.
const STALE: u8 = 0x42;
/// NaN in every format of floats.
const NAN: u8 = 0xff;
/// Tokens of a buffer whose length the caller chooses, beyond those that are run.
const SPARE: usize = 16;

/// Whether what stands in the unwritten part of a buffer reaches the scores: nothing that an earlier generation left may. NaN may where
/// a mask hides keys and values, since what multiplies NaN by zero is NaN: such a model relies on its runtime to give it zeros once,
/// which is said. Whoever counts tokens itself, as GroupQueryAttention does, reads nothing there.
pub(super) fn unwritten(
    result: &mut Side,
    prompt: &[i64],
    tokens: &[i64],
    limits: &Limits,
) -> Result<Claim, GenerateError> {
    let name = "the unwritten part of a buffer is not read";
    let own = result.ports.caches.iter().filter(|c| !c.is_given());
    let update = own.map(|c| c.cache.update).find(|u| *u != Update::Grows);
    let Some(update) = update else {
        return Ok(not_run(name, "no cache is a buffer: all of them grow"));
    };
    if result.has_first() {
        return Ok(not_run(
            name,
            "a first step makes the caches, with zeros behind its tokens",
        ));
    }
    let forced = &tokens[..tokens.len().min(ROW_STEPS)];
    let length = prompt.len() + forced.len() + SPARE;
    let zeros = buffered(result, prompt, forced, 0, length)?;
    if update == Update::Shared {
        let grown = grown(result, prompt, forced)?;
        if off(&grown, &zeros, limits).is_some() {
            let why = "in a buffer the scores are others: the model counts by the length of its past, so its caches grow";
            return Ok(not_run(name, why));
        }
    }
    let stale = off(
        &zeros,
        &buffered(result, prompt, forced, STALE, length)?,
        limits,
    );
    if let Some(far) = stale {
        let wrong = format!("what an earlier generation left there is read: relative L2 {far:.2e}");
        return Ok(claim(name, Some(wrong), String::new()));
    }
    let nan = off(
        &zeros,
        &buffered(result, prompt, forced, NAN, length)?,
        limits,
    );
    Ok(match (nan, update) {
        (None, _) => claim(name, None, "neither numbers nor NaN there reach a score".into()),
        (Some(_), Update::Written) => claim(
            name,
            None,
            "numbers there reach no score; NaN does, as in every cache behind a mask: whoever runs the model gives it zeros once, as kiln \
             generate does"
                .into(),
        ),
        (Some(_), _) => claim(name, Some("NaN there reaches the scores".into()), String::new()),
    })
}

/// The scores of each step, in buffers full of a byte.
fn buffered(
    model: &mut Side,
    prompt: &[i64],
    tokens: &[i64],
    fill: u8,
    length: usize,
) -> Result<Vec<Vec<f32>>, GenerateError> {
    let state = model.start_in(1, fill, length)?;
    along(model, state, prompt, tokens)
}

fn grown(model: &mut Side, prompt: &[i64], tokens: &[i64]) -> Result<Vec<Vec<f32>>, GenerateError> {
    let state = model.start(1)?;
    along(model, state, prompt, tokens)
}

fn along(
    model: &mut Side,
    mut state: State,
    prompt: &[i64],
    tokens: &[i64],
) -> Result<Vec<Vec<f32>>, GenerateError> {
    let mut scores = vec![model.step(&mut state, &[prompt.to_vec()])?.last(0)];
    for token in tokens {
        scores.push(model.step(&mut state, &[vec![*token]])?.last(0));
    }
    Ok(scores)
}

/// How far scores are apart at a step where that is beyond the limit; infinite where some are not finite.
fn off(right: &[Vec<f32>], found: &[Vec<f32>], limits: &Limits) -> Option<f64> {
    right.iter().zip(found).find_map(|(a, b)| {
        let (l2, cosine) = scores_apart(a, b);
        let beyond = !within(limits, l2, cosine, STEP_FACTOR);
        beyond.then(|| if l2.is_finite() { l2 } else { f64::INFINITY })
    })
}

/// Whether the end of the capacity is an error, and not a wrong token.
pub(super) fn edge(result: &mut Side, prompt: &[i64]) -> Result<Claim, GenerateError> {
    let name = "the edge of the capacity";
    let Some(capacity) = result.capacity() else {
        return Ok(not_run(
            name,
            "the model has no end: no buffer, no table of positions",
        ));
    };
    let token = prompt.first().copied().unwrap_or(0);
    let mut state = result.start(1)?;
    let full = result.step(&mut state, &[vec![token; capacity]]);
    let scores = match full {
        Ok(scores) => scores.last(0),
        Err(e) => {
            return Ok(claim(
                name,
                Some(format!("{capacity} tokens do not run: {e}")),
                String::new(),
            ));
        }
    };
    let finite = scores.iter().all(|x| x.is_finite());
    let stops = matches!(
        result.step(&mut state, &[vec![token]]),
        Err(GenerateError::TooLong { .. })
    );
    let wrong = match (finite, stops) {
        (false, _) => Some(format!(
            "the scores behind {capacity} tokens are not finite"
        )),
        (_, false) => Some(format!("token {} is taken", capacity + 1)),
        _ => None,
    };
    Ok(claim(
        name,
        wrong,
        format!("{capacity} tokens run, and one more is refused"),
    ))
}
