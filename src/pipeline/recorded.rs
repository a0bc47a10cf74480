//! Data of decoders: their caches, and states of an encoder, are what a generation computes, so generations are run on what was given.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use kiln_graph::caches::{self, Update};
use kiln_graph::{Graph, Model};

use super::Error;
use super::written::Portable;
use crate::generate::{self, Given, Recorded, Roles, arrays, record};
use crate::options::Options;
use crate::parity::INPUT_PREFIX;
use crate::runtime::scratch::Temporary;
use crate::talk::Talk;

/// What a decoder read in generations, in files.
#[derive(Debug)]
pub(crate) struct Runs {
    data: Option<PathBuf>,
    /// One step.
    inputs: Option<PathBuf>,
    /// What the data is, for people.
    pub described: Option<String>,
    _folder: Temporary,
}

impl Runs {
    /// The options with these files in place of what was given.
    pub fn within<'a>(runs: Option<&Runs>, options: &'a Options) -> Cow<'a, Options> {
        let Some(runs) = runs else {
            return Cow::Borrowed(options);
        };
        let mut options = options.clone();
        if runs.data.is_some() {
            options.calibration.data.clone_from(&runs.data);
        }
        if runs.inputs.is_some() {
            options.inputs.clone_from(&runs.inputs);
        }
        Cow::Owned(options)
    }
}

/// Generates on the data and the inputs that were given, where they are without what a decoder reads; `None` where they are whole, or
/// the model is no decoder that the models given generate with. The decoder that runs is the one that is calibrated.
///
/// # Errors
/// When the data cannot be read, or does not fit the models.
pub(crate) fn runs(
    options: &Options,
    model: &Model,
    portable: Option<&Portable>,
    talk: &dyn Talk,
) -> Result<Option<Runs>, Error> {
    let (data, inputs) = (&options.calibration.data, &options.inputs);
    let found = caches::caches(&model.graph);
    let has_own = found.iter().any(|c| c.update != Update::Kept);
    let alone = found.iter().all(|c| c.update != Update::Kept);
    let given = options.calibration.generation.clone();
    if !has_own || (data.is_none() && inputs.is_none()) || (given.is_none() && !alone) {
        return Ok(None);
    }
    let data = data.as_deref().map(|p| lacks(p, &model.graph));
    let inputs = inputs.as_deref().map(|p| lacks(p, &model.graph));
    let (data, inputs) = (data.transpose()?.flatten(), inputs.transpose()?.flatten());
    if data.is_none() && inputs.is_none() {
        return Ok(None);
    }
    let roles = Roles {
        decoder: portable.map_or_else(|| options.model.clone(), |p| p.path.clone()),
        ..given.unwrap_or_default()
    };
    let folder = Temporary::new().map_err(|source| Error::Io {
        path: std::env::temp_dir(),
        why: "no folder can be made there",
        source,
    })?;
    let run = |path: &Path, name: &str, samples: usize| {
        let tokenizer = options.calibration.tokenizer.as_deref();
        let given = Given::all(path, tokenizer, &roles, samples)?;
        let how = generate::Options {
            ort_lib: options.ort_lib.clone(),
            max_length: options.max_length.filter(|_| portable.is_none()),
            ..generate::Options::default()
        };
        let to = folder.path().join(name);
        record(&roles, &given, samples, &to, &how).map_err(Error::from)
    };
    talk.stage("generations");
    let (mut recorded, mut step, mut described) = (None, None, None);
    if let Some(path) = data {
        let Recorded { decoder, steps, .. } = run(path, "data", options.calibration.samples)?;
        let told = format!("{steps} steps of generations from {}", path.display());
        talk.note(&format!("calibration: {told}"));
        recorded = Some(decoder);
        described = Some(told);
    }
    if let Some(path) = inputs {
        let Recorded { decoder, .. } = run(path, "inputs", PROOF)?;
        step = generate::middle(&decoder);
    }
    Ok(Some(Runs {
        data: recorded,
        inputs: step,
        described,
        _folder: folder,
    }))
}

/// Steps of a generation of which one is an input of the proof.
const PROOF: usize = 3;

/// The path, where it is without some of a model's inputs.
fn lacks<'a>(path: &'a Path, g: &Graph) -> Result<Option<&'a Path>, Error> {
    let defaults = g.defaults();
    let fed = g
        .inputs()
        .iter()
        .filter(|v| defaults.iter().all(|(d, _)| d != *v));
    let is_array = |p: &Path| p.extension().is_some_and(|e| e == "npz" || e == "npy");
    let mut first = path.to_path_buf();
    if path.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let file = entries.map(|e| e.path()).find(|p| is_array(p));
        let Some(file) = file else {
            return Ok(None);
        };
        first = file;
    }
    if !is_array(&first) {
        return Ok(Some(path));
    }
    let names: Vec<String> = (arrays(&first)?.into_iter())
        .map(|(n, _)| {
            n.strip_prefix(INPUT_PREFIX)
                .map_or(n.clone(), str::to_string)
        })
        .collect();
    let mut fed = fed.map(|&v| g.value(v).name());
    Ok(fed
        .any(|name| !names.iter().any(|n| n == name))
        .then_some(path))
}
