//! One side of a proof: a decoder, alone or behind an encoder that has read its source.

use std::ops::Deref;
use std::path::Path;

use kiln_graph::{Model, Tensor, onnx};

use super::super::Options;
use super::super::decoder::{Decoder, State};
use super::super::error::GenerateError;
use super::super::given;
use super::super::greedy::Rules;
use super::super::pair::{self, Once, Source, States};
use super::super::ports::Ports;
use super::super::ran::{Place, Ran};
use super::super::roles::Roles;
use super::super::scores::Scores;
use crate::bundle;
use crate::prove::{self, Candidate};
use crate::runtime::{DeviceChoice, DeviceRequest, Session};

/// A decoder with what is given to it once.
pub(super) struct Side {
    decoder: Decoder,
    first: Option<Once>,
    states: Option<States>,
}

impl Deref for Side {
    type Target = Decoder;

    fn deref(&self) -> &Decoder {
        &self.decoder
    }
}

/// What an encoder reads.
pub(super) enum Given {
    Real(Source),
    /// All inputs by their names.
    Made(Vec<(String, Tensor)>),
}

/// What was given to an encoder, or is made from its graph; `None` where there is none.
pub(super) fn source(
    roles: &Roles,
    real: Option<&Source>,
    seed: u64,
) -> Result<Option<Given>, GenerateError> {
    let Some(path) = &roles.encoder else {
        return match real {
            Some(_) => Err(GenerateError::Pair {
                why: format!(
                    "{} is without an encoder that reads a source",
                    roles.decoder.display()
                ),
            }),
            None => Ok(None),
        };
    };
    if let Some(real) = real {
        return Ok(Some(Given::Real(real.clone())));
    }
    let made = given::made(path, seed)?;
    Ok(Some(Given::Made(made)))
}

impl Side {
    /// Opens the models, which round where they say, and reads the source.
    pub fn open(
        roles: &Roles,
        source: Option<&Given>,
        options: &Options,
    ) -> Result<Side, GenerateError> {
        let (ran, model) = opened(&roles.decoder, options)?;
        let ports = Ports::any(&model.graph).map_err(|why| GenerateError::NoDecoder {
            model: roles.decoder.clone(),
            why,
        })?;
        let once = |path: &Path| {
            let (ran, model) = opened(path, options)?;
            Once::new(ran, &model.graph)
        };
        let encoder = roles.encoder.as_deref().map(once).transpose()?;
        let states = match (encoder, source) {
            (Some(mut encoder), Some(Given::Made(made))) => Some(pair::read(&mut encoder, made)?),
            (Some(mut encoder), Some(Given::Real(source))) => {
                Some(pair::encode(&mut encoder, source)?)
            }
            _ => None,
        };
        let side = Side {
            decoder: Decoder::new(ran, ports, options.max_length)?,
            first: roles.first.as_deref().map(once).transpose()?,
            states,
        };
        if let (None, Some(given)) = (&side.states, side.decoder.ports.given().next()) {
            return Err(GenerateError::NoDecoder {
                model: roles.decoder.clone(),
                why: format!(
                    "\"{}\" is what an encoder or a first step computes: the proof of a generation takes decoders that run alone, \
                     or a generation.json that names what comes before",
                    given.name
                ),
            });
        }
        Ok(side)
    }

    pub fn has_encoder(&self) -> bool {
        self.states.is_some()
    }

    pub fn start(&self, rows: usize) -> Result<State, GenerateError> {
        match &self.first {
            // The first step makes the caches.
            Some(_) => Ok(State::unmade(rows)),
            None => self.decoder.start(rows, &self.given()),
        }
    }

    /// In buffers full of a byte, of this length where the caller chooses it. Not behind a first step, which makes the caches.
    pub fn start_in(&self, rows: usize, fill: u8, length: usize) -> Result<State, GenerateError> {
        self.decoder.start_in(rows, &self.given(), fill, length)
    }

    /// Whether a first step makes the caches.
    pub fn has_first(&self) -> bool {
        self.first.is_some()
    }

    fn given(&self) -> Vec<(String, Tensor)> {
        let states = self.states.as_ref();
        states.map_or_else(Vec::new, |s| s.given(&self.decoder))
    }

    pub fn step(&mut self, state: &mut State, new: &[Vec<i64>]) -> Result<Scores, GenerateError> {
        let Some(first) = self.first.as_mut().filter(|_| state.is_unmade()) else {
            return self.decoder.step(state, new);
        };
        let tokens = new.first().map_or(&[][..], Vec::as_slice);
        self.decoder.holds(tokens.len(), 0)?;
        let begun = pair::begin(first, &self.decoder, self.states.as_ref(), tokens)?;
        *state = self.decoder.resume(1, begun.tokens, &begun.given)?;
        Ok(begun.scores)
    }

    /// The tokens of the largest scores, behind a prompt, until a stop token or the limit.
    pub fn greedy(&mut self, prompt: &[i64], rules: &Rules) -> Result<Vec<i64>, GenerateError> {
        let mut state = self.start(1)?;
        let mut tokens = Vec::with_capacity(rules.limit);
        let mut next = prompt.to_vec();
        while tokens.len() < rules.limit {
            let scores = self.step(&mut state, &[std::mem::take(&mut next)])?;
            let token = rules.pick(scores.last(0), tokens.is_empty());
            tokens.push(token);
            if rules.stop.contains(&token) {
                break;
            }
            next.push(token);
        }
        Ok(tokens)
    }
}

/// An engine where that is asked for, else a model that rounds.
fn opened(path: &Path, options: &Options) -> Result<(Ran, Model), GenerateError> {
    if let Place::Engine(_) = options.place {
        let model = onnx::read(bundle::find_model(path)?)?;
        return Ok((options.open(path)?, model));
    }
    let (session, model) = rounding(path, options)?;
    Ok((Ran::of(session), model))
}

/// A model that rounds where it says so: ONNX Runtime would take roundings to FP16 out.
fn rounding(path: &Path, options: &Options) -> Result<(Session, Model), GenerateError> {
    let file = bundle::find_model(path)?;
    let model = onnx::read(&file)?;
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
    Ok((opened.session.called(&name), model))
}
