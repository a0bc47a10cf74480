//! An encoder, the decoder's first step, and the decoder. They meet by what their values are, not by their names: caches by the
//! order of the attentions that read them.

use kiln_graph::caches::{self, Holds};
use kiln_graph::{DType, Graph, Tensor, ValueId};

use super::decoder::Decoder;
use super::error::GenerateError;
use super::ports::{CachePort, Port, port};
use super::ran::Ran;
use super::scores::Scores;
use crate::parity::{self, InputKind};
use crate::setting::{ENCODER, FEATURES};
use crate::shapes::input_kind;

/// What runs once, before the decoder.
#[derive(Debug)]
pub struct Once {
    pub(super) ran: Ran,
    tokens: Option<Port>,
    mask: Option<Port>,
    /// Floats: features of an encoder, states of a first step.
    floats: Vec<Port>,
    /// Caches by the order of their attentions, with the name of the output.
    made: Vec<(Holds, String)>,
    vocabulary: Option<i64>,
}

impl Once {
    /// Reads what a model's inputs are for.
    ///
    /// # Errors
    /// When an input is neither tokens, a mask nor floats.
    pub fn new(ran: Ran, graph: &Graph) -> Result<Once, GenerateError> {
        let mut once = Once {
            ran,
            tokens: None,
            mask: None,
            floats: Vec::new(),
            made: Vec::new(),
            vocabulary: None,
        };
        let defaults: Vec<ValueId> = graph.defaults().iter().map(|(v, _)| *v).collect();
        for &v in graph.inputs().iter().filter(|v| !defaults.contains(v)) {
            let p = port(graph, v);
            if p.dtype.is_float() && p.dims.len() > 2 {
                once.floats.push(p);
                continue;
            }
            match input_kind(graph, v) {
                InputKind::TokenIds { upper } if once.tokens.is_none() => {
                    once.vocabulary = Some(upper);
                    once.tokens = Some(p);
                }
                InputKind::Ids(ids) if once.tokens.is_none() => {
                    once.vocabulary = Some(ids.upper);
                    once.tokens = Some(p);
                }
                InputKind::Mask | InputKind::PaddedMask | InputKind::Masking(_)
                    if once.mask.is_none() =>
                {
                    once.mask = Some(p);
                }
                _ => {
                    return Err(GenerateError::Pair {
                        why: format!(
                            "what {} wants of its input \"{}\" is not known",
                            once.ran.name(),
                            p.name
                        ),
                    });
                }
            }
        }
        let name = |k: usize| graph.outputs()[k].name.to_string();
        once.made = (caches::made(graph).into_iter())
            .map(|m| (m.holds, name(m.output)))
            .collect();
        Ok(once)
    }

    /// The end of its tokens, where it reads any.
    pub fn vocabulary(&self) -> Option<i64> {
        self.tokens.as_ref().and(self.vocabulary)
    }

    fn refuse(&self, why: String) -> GenerateError {
        GenerateError::Pair {
            why: format!("{}: {why}", self.ran.name()),
        }
    }
}

/// What an encoder read.
#[derive(Clone, Debug)]
pub enum Source {
    /// Tokens of one row.
    Tokens(Vec<i64>),
    /// Inputs by their names, or one by any name.
    Features(Vec<(String, Tensor)>),
}

/// The states that an encoder gave, and the mask of what it read.
#[derive(Clone, Debug)]
pub struct States {
    states: Vec<(String, Tensor)>,
    length: usize,
}

/// Runs an encoder.
///
/// # Errors
/// When the source is not what it takes, or it does not run.
pub fn encode(encoder: &mut Once, source: &Source) -> Result<States, GenerateError> {
    let inputs = reads(encoder, source)?;
    read(encoder, &inputs)
}

/// The inputs of an encoder for a source.
///
/// # Errors
/// When the source is not what it takes.
pub(super) fn reads(
    encoder: &Once,
    source: &Source,
) -> Result<Vec<(String, Tensor)>, GenerateError> {
    let mut inputs = Vec::new();
    let mut length = 0;
    match source {
        Source::Tokens(tokens) => {
            let Some(port) = &encoder.tokens else {
                return Err(encoder.refuse(format!("it takes features ({FEATURES}), not tokens")));
            };
            let vocabulary = encoder.vocabulary.and_then(|n| usize::try_from(n).ok());
            let end = vocabulary.unwrap_or(usize::MAX);
            super::greedy::tokens_fit(encoder.ran.name(), end, tokens)?;
            length = tokens.len();
            inputs.push((port.name.clone(), row(port.dtype, tokens)));
        }
        Source::Features(arrays) => {
            for port in encoder.floats.iter().chain(&encoder.tokens) {
                let prefixed = format!("{}{}", crate::parity::INPUT_PREFIX, port.name);
                let named = arrays
                    .iter()
                    .find(|(n, _)| *n == port.name || *n == prefixed);
                let only = arrays.first().filter(|_| arrays.len() == 1);
                let Some((_, tensor)) = named.or(only) else {
                    let has: Vec<&str> = arrays.iter().map(|(n, _)| n.as_str()).collect();
                    return Err(encoder.refuse(format!(
                        "it takes \"{}\", and the features have: {}",
                        port.name,
                        has.join(", ")
                    )));
                };
                length = tensor.dims().last().copied().unwrap_or(0);
                inputs.push((port.name.clone(), tensor.clone()));
            }
        }
    }
    if let Some(port) = &encoder.mask {
        inputs.push((port.name.clone(), row(port.dtype, &vec![1; length])));
    }
    Ok(inputs)
}

/// Runs an encoder on its inputs by their names.
///
/// # Errors
/// When it does not run, or gives no states.
pub fn read(encoder: &mut Once, inputs: &[(String, Tensor)]) -> Result<States, GenerateError> {
    let outputs = encoder.ran.run(inputs)?;
    let states: Vec<_> = (outputs.into_iter())
        .filter(|(_, t)| t.dtype().is_float() && t.rank() == 3)
        .collect();
    let length = states.first().map_or(0, |(_, t)| t.dims()[1]);
    match states.is_empty() {
        true => Err(encoder.refuse("it gives no states: no output is floats of three axes".into())),
        false => Ok(States { states, length }),
    }
}

fn row(dtype: DType, numbers: &[i64]) -> Tensor {
    let dims = vec![1, numbers.len()];
    let made = match dtype {
        DType::I32 => {
            let narrow: Vec<i32> = numbers.iter().map(|n| *n as i32).collect();
            Tensor::from_values(dims, &narrow)
        }
        DType::F32 => {
            let floats: Vec<f32> = numbers.iter().map(|n| *n as f32).collect();
            Tensor::from_values(dims, &floats)
        }
        DType::Bool => {
            let flags: Vec<bool> = numbers.iter().map(|n| *n != 0).collect();
            Tensor::from_values(dims, &flags)
        }
        _ => Tensor::from_values(dims, numbers),
    };
    made.unwrap_or_else(|_| Tensor::vector::<i64>(&[]))
}

impl States {
    /// The state that an input takes: of its type and width.
    fn for_input(&self, port: &Port) -> Option<Tensor> {
        let fits = |t: &Tensor| {
            t.dtype() == port.dtype
                && t.rank() == port.dims.len()
                && (t.dims().iter().zip(&port.dims)).all(|(n, d)| d.is_none_or(|d| d == *n))
        };
        let states = self.states.iter();
        states.map(|(_, t)| t).find(|t| fits(t)).cloned()
    }

    fn mask(&self, dtype: DType) -> Tensor {
        row(dtype, &vec![1; self.length])
    }

    /// What a decoder is given of an encoder at each step.
    pub fn given(&self, decoder: &Decoder) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for port in decoder.ports.given() {
            let tensor = match port.dims.len() {
                2 => Some(self.mask(port.dtype)),
                3 => self.for_input(port),
                _ => None,
            };
            all.extend(tensor.map(|t| (port.name.clone(), t)));
        }
        all
    }
}

/// What a first step gave: the caches, by the names of the decoder's inputs, and the scores of the first token.
#[derive(Debug)]
pub struct Begun {
    pub given: Vec<(String, Tensor)>,
    pub scores: Scores,
    pub tokens: usize,
}

/// Runs the decoder's first step on the first tokens of a row.
///
/// # Errors
/// When the models do not fit, or it does not run.
pub fn begin(
    first: &mut Once,
    decoder: &Decoder,
    states: Option<&States>,
    tokens: &[i64],
) -> Result<Begun, GenerateError> {
    let inputs = begins(first, states, tokens)?;
    let outputs = first.ran.run(&inputs)?;
    let mut given = states.map_or_else(Vec::new, |s| s.given(decoder));
    let mut order: Vec<_> = decoder.ports.caches.iter().collect();
    order.sort_by_key(|c| (c.cache.attention, c.cache.holds));
    if order.len() != first.made.len() {
        return Err(first.refuse(format!(
            "it makes {} caches, and the decoder takes {}: the models do not belong together",
            first.made.len(),
            order.len()
        )));
    }
    for (c, (holds, output)) in order.iter().zip(&first.made) {
        let found = outputs.iter().find(|(n, _)| n == output);
        if let (Some((_, tensor)), true) = (found, *holds == c.cache.holds) {
            given.push((c.port.name.clone(), laid(tensor, c)));
        }
    }
    let scores = outputs.into_iter().find(|(name, t)| {
        let caches = first.made.iter().any(|(_, made)| made == name);
        !caches && t.rank() == 3 && t.dims()[2] == decoder.ports.vocabulary
    });
    let (_, scores) =
        scores.ok_or_else(|| first.refuse("it scores no tokens of the decoder's".into()))?;
    Ok(Begun {
        given,
        scores: Scores::of_row(scores),
        tokens: tokens.len(),
    })
}

/// A cache as the decoder takes it: in its type, at the beginning of its buffer.
fn laid(made: &Tensor, c: &CachePort) -> Tensor {
    let dtype = c.cache.dtype;
    let typed = match made.dtype() == dtype {
        true => made.clone(),
        false => parity::rounded(made, dtype).unwrap_or_else(|| made.clone()),
    };
    let mut dims = typed.dims().to_vec();
    let (axis, bytes) = (c.cache.axis, dtype.bits() as usize / 8);
    let (Some(capacity), Some(&tokens)) = (c.capacity(), dims.get(axis)) else {
        return typed;
    };
    if tokens >= capacity {
        return typed;
    }
    let inner = dims[axis + 1..].iter().product::<usize>() * bytes;
    let mut buffer = Vec::new();
    for row in typed.bytes().chunks_exact((tokens * inner).max(1)) {
        buffer.extend_from_slice(row);
        buffer.resize(buffer.len() + (capacity - tokens) * inner, 0);
    }
    dims[axis] = capacity;
    Tensor::from_raw(dtype, dims, buffer.into()).unwrap_or(typed)
}

/// The inputs of a first step.
///
/// # Errors
/// When the models do not fit.
pub(super) fn begins(
    first: &Once,
    states: Option<&States>,
    tokens: &[i64],
) -> Result<Vec<(String, Tensor)>, GenerateError> {
    let Some(port) = &first.tokens else {
        return Err(first.refuse("no input of the first step is tokens".into()));
    };
    let end = first.vocabulary.and_then(|n| usize::try_from(n).ok());
    super::greedy::tokens_fit(first.ran.name(), end.unwrap_or(usize::MAX), tokens)?;
    let mut inputs = vec![(port.name.clone(), row(port.dtype, tokens))];
    for port in &first.floats {
        let found = states.and_then(|s| s.for_input(port));
        let Some(tensor) = found else {
            return Err(first.refuse(match states {
                Some(_) => format!(
                    "the encoder gives nothing of the type and width of \"{}\": the models do not belong together",
                    port.name
                ),
                None => format!(
                    "it needs \"{}\", which an encoder computes: the bundle is without it, or it was not given ({ENCODER})",
                    port.name
                ),
            }));
        };
        inputs.push((port.name.clone(), tensor));
    }
    if let (Some(port), Some(states)) = (&first.mask, states) {
        inputs.push((port.name.clone(), states.mask(port.dtype)));
    }
    Ok(inputs)
}
