//! What the models of a generation read on real sources, as files: states and caches are computed, and made ones are not like them.

use std::path::{Path, PathBuf};

use kiln_graph::Tensor;

use super::error::GenerateError;
use super::greedy::{Rules, generate, go_on};
use super::pair::{self, States};
use super::roles::Roles;
use super::{Generator, Given, Options};
use crate::parity::npz;

/// Folders of `.npz` files, one for each run that was recorded.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    pub encoder: Option<PathBuf>,
    pub first: Option<PathBuf>,
    pub decoder: PathBuf,
    /// Steps of the decoder.
    pub steps: usize,
}

/// Steps of one generation that are kept, from its first to its last: neighbours see nearly the same caches.
const STEPS: usize = 8;
/// The most tokens that are generated from a source.
const TOKENS: usize = 64;
/// Bytes of all files: the caches of an encoder stand in each step.
const BYTES: usize = 2 << 30;

/// Generates from each source or prompt with the models, and keeps what each of them read: of the decoder at most `samples` runs.
///
/// # Errors
/// When the models do not belong together or fail, or a file cannot be written.
pub fn record(
    roles: &Roles,
    given: &[Given],
    samples: usize,
    folder: &Path,
    options: &Options,
) -> Result<Recorded, GenerateError> {
    let mut models = Generator::open(roles, options)?;
    let place = |role: &str, there: bool| there.then(|| folder.join(role));
    let mut found = Recorded {
        encoder: place("encoder", models.encoder.is_some()),
        first: place("first", models.first.is_some()),
        decoder: folder.join("decoder"),
        steps: 0,
    };
    let folders = [&found.encoder, &found.first, &Some(found.decoder.clone())];
    for folder in folders.into_iter().flatten() {
        std::fs::create_dir_all(folder).map_err(|e| GenerateError::Usage {
            what: format!("{}: {e}", folder.display()),
        })?;
    }
    let each = (samples / given.len().max(1)).clamp(1, STEPS);
    let mut left = BYTES;
    let mut keep = |folder: &Path, name: String, inputs: &[(String, Tensor)]| {
        let bytes: usize = inputs.iter().map(|(_, t)| t.byte_len()).sum();
        if bytes > left {
            return Ok(false);
        }
        left -= bytes;
        npz::write(&folder.join(name), inputs)?;
        Ok::<bool, GenerateError>(true)
    };
    for (k, given) in given.iter().enumerate() {
        let source = Source::of(&mut models, roles, given)?;
        if let (Some(inputs), Some(folder)) = (&source.encoder, &found.encoder) {
            keep(folder, format!("{k:04}.npz"), inputs)?;
        }
        if let (Some(inputs), Some(folder)) = (&source.first, &found.first) {
            keep(folder, format!("{k:04}.npz"), inputs)?;
        }
        let tokens = source.tokens(&mut models, roles)?;
        // The first step runs all tokens at once, too: where a proof holds one run against as many steps.
        if let (Some(inputs), Some(folder)) = (source.whole(&models, &tokens)?, &found.first) {
            keep(folder, format!("{k:04}-whole.npz"), &inputs)?;
        }
        for (step, inputs) in source.steps(&mut models, &tokens, each)? {
            let name = format!("{k:04}-{step:04}.npz");
            found.steps += usize::from(keep(&found.decoder, name, &inputs)?);
        }
    }
    Ok(found)
}

/// A file from the middle of a folder that was recorded.
pub fn middle(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut files: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    files.sort();
    files.get(files.len() / 2).cloned()
}

type Inputs = Vec<(String, Tensor)>;

/// One source, read by what runs once.
struct Source {
    encoder: Option<Inputs>,
    first: Option<Inputs>,
    states: Option<States>,
    /// What the decoder, or the first step, begins with.
    start: Vec<i64>,
}

impl Source {
    fn of(models: &mut Generator, roles: &Roles, given: &Given) -> Result<Source, GenerateError> {
        let mut encoder = None;
        let mut states = None;
        if let (Some(once), Some(source)) = (&mut models.encoder, &given.source) {
            let inputs = pair::reads(once, source)?;
            states = Some(pair::read(once, &inputs)?);
            encoder = Some(inputs);
        }
        let start = match (&given.prompt, &roles.start[..]) {
            (Some(prompt), _) => prompt.clone(),
            (None, []) => vec![0],
            (None, start) => start.to_vec(),
        };
        let once = models.first.as_ref();
        let first = once.map(|once| pair::begins(once, states.as_ref(), &start));
        Ok(Source {
            encoder,
            first: first.transpose()?,
            states,
            start,
        })
    }

    /// What the decoder reads at some of the steps of a greedy generation, its first and last among them.
    fn steps(
        &self,
        models: &mut Generator,
        tokens: &[i64],
        most: usize,
    ) -> Result<Vec<(usize, Inputs)>, GenerateError> {
        let (decoder, states) = (&mut models.decoder, self.states.as_ref());
        let given = states.map_or_else(Vec::new, |s| s.given(decoder));
        let (mut state, mut next, ahead) = match &mut models.first {
            Some(first) => {
                let begun = pair::begin(first, decoder, states, &self.start)?;
                let state = decoder.resume(1, begun.tokens, &begun.given)?;
                (state, tokens.first().copied().into_iter().collect(), 1)
            }
            None => (decoder.start(1, &given)?, self.start.clone(), 0),
        };
        // What the last token would give is not run.
        let runs = tokens.len().saturating_sub(ahead);
        let kept = |k: usize| match most {
            _ if runs <= most => true,
            1 => k + 1 == runs,
            _ => (0..most).any(|n| n * (runs - 1) / (most - 1) == k),
        };
        let mut found = Vec::new();
        for k in 0..runs {
            let new = [std::mem::take(&mut next)];
            if kept(k) {
                found.push((k, decoder.inputs(&state, &new, new[0].len())?));
            }
            decoder.step(&mut state, &new)?;
            next = tokens.get(k + ahead).copied().into_iter().collect();
        }
        Ok(found)
    }

    /// What a first step reads of what it begins with and all tokens but the last.
    fn whole(&self, models: &Generator, tokens: &[i64]) -> Result<Option<Inputs>, GenerateError> {
        let (Some(first), Some((_, ahead))) = (&models.first, tokens.split_last()) else {
            return Ok(None);
        };
        let all: Vec<i64> = self.start.iter().chain(ahead).copied().collect();
        pair::begins(first, self.states.as_ref(), &all).map(Some)
    }

    fn tokens(&self, models: &mut Generator, roles: &Roles) -> Result<Vec<i64>, GenerateError> {
        let rules = Rules {
            stop: roles.stop.clone(),
            limit: TOKENS,
            suppress: roles.suppress.clone(),
            suppress_first: roles.suppress_first.clone(),
        };
        let (decoder, states) = (&mut models.decoder, self.states.as_ref());
        let heard = &mut |_, _| {};
        let made = match &mut models.first {
            Some(first) => {
                let begun = pair::begin(first, decoder, states, &self.start)?;
                let state = decoder.resume(1, begun.tokens, &begun.given)?;
                let scores = vec![begun.scores.last(0)];
                go_on(
                    decoder,
                    state,
                    scores,
                    std::time::Instant::now(),
                    &rules,
                    heard,
                )?
            }
            None => {
                let given = states.map_or_else(Vec::new, |s| s.given(decoder));
                generate(
                    decoder,
                    std::slice::from_ref(&self.start),
                    &given,
                    &rules,
                    heard,
                )?
            }
        };
        Ok(made.tokens.concat())
    }
}
