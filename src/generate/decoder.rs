//! A decoder, run step after step on its own cache, or on all tokens where it has none.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use half::{bf16, f16};
use kiln_graph::caches::Update;
use kiln_graph::{DType, Tensor};

use super::error::GenerateError;
use super::ports::{CachePort, Feed, Port, Ports};
use super::ran::{At, Ran};
use super::scores::Scores;
use crate::setting::{ENCODER, FIRST, MAX_LENGTH};

/// A model with a cache.
#[derive(Debug)]
pub struct Decoder {
    pub(super) ran: Ran,
    pub ports: Ports,
    /// The length of buffers that the caller chooses, and the most tokens of a row.
    max_length: Option<usize>,
}

/// Where the rows of one generation are.
#[derive(Clone, Debug)]
pub struct State {
    /// In the order of the ports. While they stay where the decoder runs, these are the ones of the start.
    pub caches: Vec<Tensor>,
    /// What stays as it is from step to step.
    given: Vec<(String, Tensor)>,
    /// Tokens of each row so far, without padding.
    pub lengths: Vec<usize>,
    /// Places in front of each row that are padding.
    pads: Vec<usize>,
    /// Places of a cache so far, padding included.
    past: usize,
    /// All tokens of each row, for a model without a cache.
    history: Vec<Vec<i64>>,
    generation: u64,
    /// Whether the caches stay where the decoder runs.
    is_away: bool,
}

/// A number that no other generation has.
fn new_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl State {
    /// Before a first step that makes the caches.
    pub(super) fn unmade(rows: usize) -> State {
        State {
            caches: Vec::new(),
            given: Vec::new(),
            lengths: vec![0; rows],
            pads: vec![0; rows],
            past: 0,
            history: vec![Vec::new(); rows],
            generation: new_generation(),
            is_away: false,
        }
    }

    pub(super) fn is_unmade(&self) -> bool {
        self.caches.is_empty()
    }
}

impl Decoder {
    /// # Errors
    /// When a `--max-length` is beyond what the model holds.
    pub fn new(
        ran: Ran,
        ports: Ports,
        max_length: Option<usize>,
    ) -> Result<Decoder, GenerateError> {
        if let (Some(asked), Some(capacity)) = (max_length, ports.capacity)
            && asked > capacity
        {
            return Err(GenerateError::Usage {
                what: format!(
                    "{MAX_LENGTH} {asked}: {} holds {capacity} tokens",
                    ran.name()
                ),
            });
        }
        Ok(Decoder {
            ran,
            ports,
            max_length,
        })
    }

    pub fn name(&self) -> &str {
        self.ran.name()
    }

    /// The most tokens of a row, if there is an end.
    pub fn capacity(&self) -> Option<usize> {
        self.max_length.or(self.ports.capacity)
    }

    /// Whether so many tokens fit, `new` of which are not given yet.
    ///
    /// # Errors
    /// When they do not, with the numbers.
    pub fn holds(&self, tokens: usize, new: usize) -> Result<(), GenerateError> {
        match self.capacity() {
            Some(capacity) if tokens + new > capacity => Err(GenerateError::TooLong {
                model: self.name().to_string(),
                tokens: tokens + new,
                new,
                capacity,
                written: self.max_length.is_some(),
            }),
            _ => Ok(()),
        }
    }

    /// Rows without tokens. `given` is what an encoder made.
    ///
    /// # Errors
    /// When something is missing of what the model is given once, or does not fit.
    pub fn start(&self, rows: usize, given: &[(String, Tensor)]) -> Result<State, GenerateError> {
        self.start_with(rows, given, 0, None)
    }

    /// As [`Decoder::start`], with buffers full of this byte, of this length where the caller chooses it: caches that grow or are
    /// written into, as the caller likes, are buffers then.
    ///
    /// # Errors
    /// As [`Decoder::start`].
    pub fn start_in(
        &self,
        rows: usize,
        given: &[(String, Tensor)],
        fill: u8,
        length: usize,
    ) -> Result<State, GenerateError> {
        self.start_with(rows, given, fill, Some(length))
    }

    fn start_with(
        &self,
        rows: usize,
        given: &[(String, Tensor)],
        fill: u8,
        length: Option<usize>,
    ) -> Result<State, GenerateError> {
        let missing = |port: &Port| GenerateError::Pair {
            why: format!(
                "{} needs \"{}\", which an encoder or a first step computes: the bundle is without it, or it was not given \
                 ({ENCODER}, {FIRST})",
                self.name(),
                port.name
            ),
        };
        let find = |port: &Port| {
            let found = given.iter().find(|(name, _)| *name == port.name);
            let (_, tensor) = found.ok_or_else(|| missing(port))?;
            fits(self.name(), port, tensor)?;
            Ok::<_, GenerateError>(tensor.clone())
        };
        let mut caches = Vec::new();
        for c in &self.ports.caches {
            let handed = given.iter().any(|(name, _)| *name == c.port.name);
            caches.push(match c.is_given() || handed {
                true => find(&c.port)?,
                false => self.empty(c, rows, fill, length)?,
            });
        }
        let mut steady = Vec::new();
        for (port, feed) in &self.ports.feeds {
            if *feed == Feed::Given {
                steady.push((port.name.clone(), find(port)?));
            }
        }
        Ok(State {
            caches,
            given: steady,
            lengths: vec![0; rows],
            pads: vec![0; rows],
            past: 0,
            history: vec![Vec::new(); rows],
            generation: new_generation(),
            is_away: false,
        })
    }

    /// As [`Decoder::start`] behind a first step that made the caches of so many tokens of each row.
    ///
    /// # Errors
    /// As [`Decoder::start`].
    pub fn resume(
        &self,
        rows: usize,
        tokens: usize,
        given: &[(String, Tensor)],
    ) -> Result<State, GenerateError> {
        let mut state = self.start(rows, given)?;
        state.lengths = vec![tokens; rows];
        state.past = tokens;
        Ok(state)
    }

    fn empty(
        &self,
        c: &CachePort,
        rows: usize,
        fill: u8,
        buffer: Option<usize>,
    ) -> Result<Tensor, GenerateError> {
        let length = match (c.capacity(), c.cache.update) {
            (Some(n), _) => n,
            (None, Update::Written) => {
                let chosen = self.max_length.or(buffer);
                chosen.unwrap_or(DEFAULT_CAPACITY)
            }
            (None, Update::Shared) => buffer.unwrap_or(0),
            (None, _) => 0,
        };
        let mut dims = Vec::with_capacity(c.port.dims.len());
        for (axis, dim) in c.port.dims.iter().enumerate() {
            dims.push(match (axis == c.cache.axis, dim) {
                (true, _) => length,
                (false, Some(n)) => *n,
                // Rows are the axis in front, or behind the one that tells keys from values.
                (false, None) => rows,
            });
        }
        let bytes = c.cache.dtype.packed_len(dims.iter().product());
        let bytes = Bytes::from(vec![fill; bytes.unwrap_or(0)]);
        Tensor::from_raw(c.cache.dtype, dims, bytes).map_err(|e| GenerateError::Output {
            model: self.name().to_string(),
            found: format!("the cache \"{}\"", c.port.name),
            why: e.to_string(),
        })
    }

    /// What the caches of a generation take, those of an encoder included.
    pub fn cache_bytes(&self, state: &State) -> usize {
        let caches = self.ports.caches.iter().zip(&state.caches);
        let bytes = caches.map(|(c, held)| {
            let mut dims = held.dims().to_vec();
            if let Some(places) = dims.get_mut(c.cache.axis)
                && state.is_away
                && !c.is_given()
            {
                // What is here is what it began with.
                *places = state.past.max(*places);
            }
            let elements = dims.iter().product();
            held.dtype().packed_len(elements).unwrap_or(0)
        });
        bytes.sum()
    }

    /// Runs the new tokens of each row. Rows of unequal lengths are padded as the model hides it.
    ///
    /// # Errors
    /// When the tokens do not fit, the rows cannot be padded, or ONNX Runtime fails.
    pub fn step(&mut self, state: &mut State, new: &[Vec<i64>]) -> Result<Scores, GenerateError> {
        if self.ports.caches.is_empty() {
            return self.all_over(state, new);
        }
        let longest = new.iter().map(Vec::len).max().unwrap_or(0);
        let ragged = new.iter().any(|row| row.len() != longest);
        let front = self.ports.pads_in_front();
        if ragged && !self.ports.hides_padding() {
            return Err(GenerateError::Usage {
                what: format!(
                    "{} has no input that hides padding, so all rows must have as many tokens",
                    self.name()
                ),
            });
        }
        if ragged && front && state.past > 0 {
            return Err(GenerateError::Usage {
                what: "rows of unequal lengths are padded in front, which only the first step can"
                    .into(),
            });
        }
        let most = (state.lengths.iter().zip(new)).map(|(n, row)| n + row.len());
        self.holds(most.max().unwrap_or(0), 0)?;
        if ragged && front {
            state.pads = new.iter().map(|row| longest - row.len()).collect();
        }
        let inputs = self.inputs(state, new, longest)?;
        let at = At {
            generation: state.generation,
            past: state.past,
            new: longest,
            is_away: state.is_away,
        };
        let mut outputs = self.ran.step(at, &self.ports, inputs)?;
        state.is_away = self.ran.keeps();
        for (c, held) in self.ports.caches.iter().zip(&mut state.caches) {
            if let Some(name) = c.output.as_ref().filter(|_| !c.is_given())
                && let Some((_, tensor)) = outputs.iter_mut().find(|(n, _)| n == name)
            {
                *held = tensor.clone();
            }
        }
        let rows = new.iter().map(|row| match front {
            true => (longest - row.len(), longest),
            false => (0, row.len()),
        });
        let rows = rows.collect();
        for (n, row) in state.lengths.iter_mut().zip(new) {
            *n += row.len();
        }
        state.past += longest;
        self.scores(outputs, rows, longest)
    }

    /// A step of a model without a cache: all tokens of each row, which are padded behind, where none of a row sees them.
    fn all_over(&mut self, state: &mut State, new: &[Vec<i64>]) -> Result<Scores, GenerateError> {
        let mut whole = state.history.clone();
        for (row, new) in whole.iter_mut().zip(new) {
            row.extend(new);
        }
        let longest = whole.iter().map(Vec::len).max().unwrap_or(0);
        self.holds(longest, 0)?;
        let mut before = State::unmade(new.len());
        before.given = state.given.clone();
        let inputs = self.inputs(&before, &whole, longest)?;
        let outputs = self.ran.run(&inputs)?;
        let rows = whole.iter().zip(new);
        let rows = rows.map(|(all, new)| (all.len() - new.len(), all.len()));
        let rows = rows.collect();
        state.lengths = whole.iter().map(Vec::len).collect();
        state.past = longest;
        state.history = whole;
        self.scores(outputs, rows, longest)
    }

    /// Whether the scores of a token do not depend on those behind it, as far as one run tells. Only models without a cache are run:
    /// one with a cache is asked for no earlier scores again.
    pub(super) fn looks_back(&mut self) -> Result<bool, GenerateError> {
        let alone = self.ports.caches.is_empty() && self.ports.given().next().is_none();
        if !alone || self.holds(PEEKED + 1, 0).is_err() {
            return Ok(true);
        }
        let end = self.ports.vocabulary.max(1);
        let tokens: Vec<i64> = (1..=PEEKED + 1).map(|k| (k % end) as i64).collect();
        let mut scores = |n: usize| {
            let mut state = self.start(1, &[])?;
            self.step(&mut state, &[tokens[..n].to_vec()])
        };
        let (short, long) = (scores(PEEKED)?, scores(PEEKED + 1)?);
        if long.len(0) != PEEKED + 1 {
            return Ok(true);
        }
        let (a, b) = (short.last(0), long.at(0, PEEKED - 1));
        let apart = a.iter().zip(&b).map(|(x, y)| (x - y).abs());
        let most = a.iter().map(|x| x.abs()).fold(0.0, f32::max);
        Ok(apart.fold(0.0, f32::max) <= SAME * most)
    }

    /// The scores among the outputs.
    fn scores(
        &self,
        outputs: Vec<(String, Tensor)>,
        rows: Vec<(usize, usize)>,
        longest: usize,
    ) -> Result<Scores, GenerateError> {
        let found = outputs.into_iter().find(|(n, _)| *n == self.ports.logits);
        let (_, tensor) = found.ok_or_else(|| GenerateError::Output {
            model: self.name().to_string(),
            found: "no scores".into(),
            why: format!("\"{}\" is missing", self.ports.logits),
        })?;
        Scores::new(tensor, rows, longest).map_err(|(found, why)| GenerateError::Output {
            model: self.name().to_string(),
            found,
            why,
        })
    }

    pub(super) fn inputs(
        &self,
        state: &State,
        new: &[Vec<i64>],
        longest: usize,
    ) -> Result<Vec<(String, Tensor)>, GenerateError> {
        let rows = new.len();
        let front = self.ports.pads_in_front();
        let past = state.past;
        let mut inputs = Vec::new();
        for (port, feed) in &self.ports.feeds {
            let places = |of: &dyn Fn(usize, usize) -> i64| -> Vec<i64> {
                let all = (0..rows).flat_map(|r| (0..longest).map(move |j| (r, j)));
                all.map(|(r, j)| of(r, j)).collect()
            };
            let lead = |r: usize| if front { longest - new[r].len() } else { 0 };
            let behind = |r: usize| state.lengths[r] + new[r].len();
            let most = (0..rows).map(behind).max().unwrap_or(0);
            let (dims, numbers): (Vec<usize>, Vec<f64>) = match feed {
                Feed::Given => {
                    let held = state.given.iter().find(|(n, _)| *n == port.name);
                    inputs.extend(held.cloned());
                    continue;
                }
                Feed::Tokens { .. } => {
                    let token = |r: usize, j: usize| {
                        let at = j.checked_sub(lead(r));
                        let token = at.and_then(|at| new[r].get(at));
                        token.or(new[r].first()).copied().unwrap_or(0)
                    };
                    (vec![rows, longest], wide(places(&token)))
                }
                Feed::Positions => {
                    let at = |r: usize, j: usize| {
                        let j = j.saturating_sub(lead(r));
                        (state.lengths[r] + j) as i64
                    };
                    (vec![rows, longest], wide(places(&at)))
                }
                Feed::Mask { kept, hidden } => {
                    let total = match port.dims.last() {
                        // As long as the caches.
                        Some(Some(all)) if !front => *all,
                        _ if front => past + longest,
                        _ => most,
                    };
                    let one = |r: usize, j: usize| match front {
                        true => j >= state.pads[r],
                        false => j < behind(r),
                    };
                    let all = (0..rows).flat_map(|r| (0..total).map(move |j| (r, j)));
                    let all = all.map(|(r, j)| if one(r, j) { *kept } else { *hidden });
                    (vec![rows, total], all.collect())
                }
                Feed::Before => (vec![rows], wide((0..rows).map(|r| state.lengths[r] as i64))),
                Feed::Behind => (vec![rows], wide((0..rows).map(|r| behind(r) as i64))),
                Feed::Last => (vec![rows], wide((0..rows).map(|r| behind(r) as i64 - 1))),
                Feed::Longest => (vec![1; port.dims.len()], vec![most as f64]),
                Feed::Past => {
                    let dims = vec![1; port.dims.len()];
                    (dims, vec![f64::from(u8::from(past > 0))])
                }
            };
            let dims = match (port.dims.len(), &dims[..]) {
                (1, [1, n]) => vec![*n],
                _ => dims,
            };
            let tensor =
                tensor(port.dtype, dims, &numbers).ok_or_else(|| GenerateError::Usage {
                    what: format!(
                        "the input \"{}\" of {} is {}, of which no numbers are made for a step",
                        port.name,
                        self.name(),
                        port.dtype
                    ),
                })?;
            inputs.push((port.name.clone(), tensor));
        }
        for (c, held) in self.ports.caches.iter().zip(&state.caches) {
            inputs.push((c.port.name.clone(), held.clone()));
        }
        Ok(inputs)
    }
}

/// Tokens of a run that tells whether a model looks back alone.
const PEEKED: usize = 4;

/// How far scores of one token may be apart, over the largest, that are the same: other sizes add up in another order, in half
/// precision, too. What a token behind changes is as large as the scores.
const SAME: f32 = 0.01;

/// The length of a buffer of open length where the user gives none.
const DEFAULT_CAPACITY: usize = 2048;

fn wide(all: impl IntoIterator<Item = i64>) -> Vec<f64> {
    all.into_iter().map(|n| n as f64).collect()
}

fn tensor(dtype: DType, dims: Vec<usize>, numbers: &[f64]) -> Option<Tensor> {
    let tensor = match dtype {
        DType::I64 => Tensor::from_values(dims, &each(numbers, |n| n as i64)),
        DType::I32 => Tensor::from_values(dims, &each(numbers, |n| n as i32)),
        DType::F32 => Tensor::from_values(dims, &each(numbers, |n| n as f32)),
        DType::F16 => Tensor::from_values(dims, &each(numbers, f16::from_f64)),
        DType::BF16 => Tensor::from_values(dims, &each(numbers, bf16::from_f64)),
        DType::Bool => Tensor::from_values(dims, &each(numbers, |n| n != 0.0)),
        _ => return None,
    };
    tensor.ok()
}

fn each<T>(numbers: &[f64], to: impl Fn(f64) -> T) -> Vec<T> {
    numbers.iter().map(|n| to(*n)).collect()
}

/// Whether a tensor has the type and the known sizes of an input.
fn fits(model: &str, port: &Port, tensor: &Tensor) -> Result<(), GenerateError> {
    let known = port.dims.len() == tensor.rank()
        && (port.dims.iter().zip(tensor.dims())).all(|(d, n)| d.is_none_or(|d| d == *n));
    if known && tensor.dtype() == port.dtype {
        return Ok(());
    }
    let dims: Vec<String> = (port.dims.iter())
        .map(|d| d.map_or("?".into(), |n| n.to_string()))
        .collect();
    Err(GenerateError::Pair {
        why: format!(
            "\"{}\" of {model} is {}[{}], and {}{:?} was given: the models do not belong together",
            port.name,
            port.dtype,
            dims.join(","),
            tensor.dtype(),
            tensor.dims()
        ),
    })
}
