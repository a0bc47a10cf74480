//! The model that is compiled: read, identified, and held against what it was.

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use kiln_graph::onnx::{self, SourceFile};
use kiln_graph::{INTERNAL_DOMAIN, Model};
use sha2::{Digest, Sha256};

use super::Error;
use crate::bundle;
use crate::options::Options;

pub(crate) fn read(options: &Options) -> Result<Model, Error> {
    let model = onnx::read(bundle::find_model(&options.model)?)?;
    let mut internal = None;
    model.graph.for_each_graph(&mut |g| {
        let mut nodes = g.nodes();
        let found = nodes.find(|(_, n)| n.op().domain() == INTERNAL_DOMAIN);
        internal = internal.take().or(found.map(|(id, _)| g.label(id)));
    });
    match internal {
        None => Ok(model),
        Some(node) => Err(Error::Read(onnx::ReadError {
            path: model.path,
            kind: onnx::ReadErrorKind::Node {
                node,
                why: format!("operators of the domain '{INTERNAL_DOMAIN}' are the compiler's own"),
            },
        })),
    }
}

/// Whether the files that are read later are there: whoever misspells one hears of it at once.
pub(crate) fn data_is_there(options: &Options) -> Result<(), Error> {
    let data = &options.calibration;
    let given = [&options.inputs, &data.data, &data.tokenizer];
    for path in given.into_iter().flatten() {
        fs::metadata(path).map_err(|source| Error::Io {
            path: path.clone(),
            why: "the data cannot be read",
            source,
        })?;
    }
    Ok(())
}

/// Whether the bundle is written beside what is read, and not over it: the model with its external data, and what inputs and
/// calibration come from.
pub(crate) fn spares_inputs(
    options: &Options,
    output: &Path,
    sources: &[SourceFile],
) -> Result<(), Error> {
    let model = bundle::model_path(&options.model);
    let data = &options.calibration;
    let given = [&options.inputs, &data.data, &data.tokenizer];
    let given = given.into_iter().flatten().map(PathBuf::as_path);
    let read = sources.iter().map(|s| s.path.as_path());
    Ok(bundle::spares(
        output,
        given.chain([model.as_path()]).chain(read),
    )?)
}

/// What identifies the input.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub bytes: u64,
    pub blake3: String,
    /// Where it is asked for, or a proof takes much longer.
    pub sha256: Option<String>,
}

/// Bytes that are hashed at once.
const CHUNK: usize = 32 << 20;

/// Hashes the mapping that was decoded already: a second one would count twice in memory. Another core does it, while
/// passes run that read no weights.
pub(crate) enum Fingerprint {
    Running(JoinHandle<Source>),
    Done(Source),
}

impl Fingerprint {
    /// Begins; ends at once where the options ask for a hash.
    ///
    /// # Errors
    /// When the model is not the one that the options name.
    pub fn begin(options: &Options, original: &Model) -> Result<Fingerprint, Error> {
        let bytes = original.bytes.clone().unwrap_or_default();
        let path = bundle::model_path(&options.model);
        // A proof opens the model beside this mapping, whose pages would count twice.
        let sources = match options.check {
            true => original.sources.clone(),
            false => Vec::new(),
        };
        let mut sha256 = (options.check || options.sha256.is_some()).then(Sha256::new);
        let running = Fingerprint::Running(thread::spawn(move || {
            let mut blake3 = blake3::Hasher::new();
            for chunk in bytes.chunks(CHUNK) {
                blake3.update(chunk);
                if let Some(sha256) = &mut sha256 {
                    sha256.update(chunk);
                }
                sources.iter().for_each(SourceFile::release);
            }
            let digits =
                |hash: Sha256| hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
            Source {
                path,
                bytes: bytes.len() as u64,
                blake3: blake3.finalize().to_hex().to_string(),
                sha256: sha256.map(digits),
            }
        }));
        if options.sha256.is_none() && options.blake3.is_none() {
            return Ok(running);
        }
        let source = running.end();
        is_asked_for(options, &source)?;
        Ok(Fingerprint::Done(source))
    }

    /// Waits for it.
    pub fn end(self) -> Source {
        match self {
            Fingerprint::Done(source) => source,
            Fingerprint::Running(hash) => hash.join().unwrap_or_else(|panic| resume_unwind(panic)),
        }
    }
}

/// Whether the model is the one that the recipe names.
fn is_asked_for(options: &Options, source: &Source) -> Result<(), Error> {
    let hashes = [
        ("BLAKE3", &options.blake3, Some(&source.blake3)),
        ("SHA-256", &options.sha256, source.sha256.as_ref()),
    ];
    for (hash, asked, found) in hashes {
        if let (Some(asked), Some(found)) = (asked, found)
            && !asked.eq_ignore_ascii_case(found)
        {
            return Err(Error::OtherModel {
                model: options.model.clone(),
                hash,
                found: found.clone(),
                asked: asked.clone(),
            });
        }
    }
    Ok(())
}

/// Whether the model's files are still those that were read: ONNX Runtime opens them by their names, and so may have proved
/// the result against another model.
pub(crate) fn is_unchanged(original: &Model) -> Result<(), Error> {
    match original.sources.iter().find(|s| !s.is_unchanged()) {
        Some(changed) => Err(Error::Changed(changed.path.clone())),
        None => Ok(()),
    }
}
