//! Where calibration data comes from: batches, read one at a time and as often as they are wanted.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kiln_graph::{Dim, Graph, Tensor, ValueId};
use sha2::{Digest, Sha256};

use super::batch::{Batch, DataError, Port, SourceOptions};
use super::files::{files, has_extension, hash_file, is_array, slice};
use super::text::Text;
use crate::parity::{self, InputSpec, Npz};
use crate::shapes::{self, Shapes};
use kiln_runtime::{self as runtime, TensorInfo};

/// Calibration data that fits a model.
#[derive(Debug)]
pub struct Source {
    ports: Vec<Port>,
    kind: Kind,
    options: SourceOptions,
}

#[derive(Debug)]
enum Kind {
    Files { given: PathBuf, files: Vec<PathBuf> },
    Text(Box<Text>),
    Made(Vec<InputSpec>),
}

type Batches<'a> = Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>;

/// Batches that are made where there is no data and no number of samples was given.
const MADE: usize = 8;

fn ports(graph: &Graph, options: &SourceOptions) -> Result<Vec<Port>, DataError> {
    let defaults: Vec<_> = graph.defaults().iter().map(|(v, _)| *v).collect();
    let fixed = |v: ValueId| {
        let name = graph.value(v).name();
        options.fixed.iter().any(|(n, _)| n == name)
    };
    let inputs = graph.inputs().iter().filter(|v| !fixed(**v));
    let fed = inputs.filter(|v| !defaults.contains(v));
    fed.map(|&v| {
        let value = graph.value(v);
        let name = value.name().to_string();
        let dtype = value.ty().dtype().ok_or_else(|| DataError::NotTensor {
            input: name.clone(),
            ty: value.ty().to_string(),
        })?;
        let dims = value.ty().shape().map(<[Dim]>::to_vec);
        let shape = dims.iter().flatten().map(|d| match d {
            Dim::Known(n) => runtime::Dim::Fixed(*n),
            Dim::Symbol(s) => runtime::Dim::Symbol(s.to_string()),
            Dim::Unknown => runtime::Dim::Unknown,
        });
        Ok(Port {
            info: TensorInfo {
                name,
                dtype,
                shape: shape.collect(),
            },
            dims,
            kind: shapes::input_kind(graph, v),
        })
    })
    .collect()
}

impl Source {
    /// Opens an `.npz` file (arrays called `NAME` or `in.NAME`), an `.npy` file, a folder of such files, or any other file
    /// as lines of text, and checks it against the inputs of `graph`: that each file has all arrays, and that the first
    /// batch fits.
    ///
    /// # Errors
    /// When a file cannot be read, lacks an array, has one of another shape or type, or holds no samples; for text, when
    /// there is no tokenizer, or an input that is not made of tokens.
    pub fn open(graph: &Graph, path: &Path, options: &SourceOptions) -> Result<Source, DataError> {
        let ports = ports(graph, options)?;
        let kind = match path.is_dir() || is_array(path) {
            true => Kind::Files {
                files: files(path, &ports)?,
                given: path.to_path_buf(),
            },
            false => Kind::Text(Box::new(Text::open(path, options, &ports)?)),
        };
        let source = Source {
            ports,
            kind,
            options: options.clone(),
        };
        let first = source.batches().next();
        match first {
            Some(first) => first.map(|_| source),
            None => Err(DataError::Empty {
                path: path.to_path_buf(),
            }),
        }
    }

    /// These texts, each a sample, tokenized by the tokenizer of the options.
    ///
    /// # Errors
    /// When there is no tokenizer, an input is not made of tokens, or no text has a token.
    pub fn text(
        graph: &Graph,
        lines: &[String],
        options: &SourceOptions,
    ) -> Result<Source, DataError> {
        let ports = ports(graph, options)?;
        let text = Text::of(lines, "the text given", options, &ports)?;
        Ok(Source {
            ports,
            kind: Kind::Text(Box::new(text)),
            options: options.clone(),
        })
    }

    /// Makes inputs up, each batch at the typical sizes and with a seed of its own.
    ///
    /// # Errors
    /// When an input is no tensor, or cannot be made.
    pub fn made(
        graph: &Graph,
        shapes: &Shapes,
        options: &SourceOptions,
    ) -> Result<Source, DataError> {
        let points = shapes.points();
        let typical = points.iter().find(|(name, _)| *name == "typical");
        let specs = typical.map(|(_, point)| crate::shapes::specs(graph, shapes, point));
        let mut specs = specs.unwrap_or_default();
        specs.retain(|s| options.fixed.iter().all(|(n, _)| *n != s.name));
        parity::make(&specs, options.seed)?;
        Ok(Source {
            ports: ports(graph, options)?,
            kind: Kind::Made(specs),
            options: options.clone(),
        })
    }

    /// Whether the data is made up: what is found on it says little about real data.
    pub fn is_made(&self) -> bool {
        matches!(self.kind, Kind::Made(_))
    }

    /// What the data is, for people.
    pub fn description(&self) -> String {
        let mut text = match &self.kind {
            Kind::Files { given, files } if given.is_dir() => {
                format!("{} files of {}", files.len(), given.display())
            }
            Kind::Files { given, .. } => given.display().to_string(),
            Kind::Text(text) => text.description(),
            Kind::Made(_) => {
                let n = self.options.samples.unwrap_or(MADE);
                return format!("{n} made-up batches, seed {}", self.options.seed);
            }
        };
        if let Some(n) = self.options.samples {
            // Writing to a string does not fail.
            let _ = write!(text, ", the first {n} samples");
        }
        text
    }

    /// The batches from the first on. Each is read when it is asked for.
    pub fn batches(&self) -> Batches<'_> {
        let mut left = self.options.samples.unwrap_or(usize::MAX);
        Box::new(self.all().take_while(move |batch| {
            let more = left > 0;
            left = left.saturating_sub(batch.as_ref().map_or(0, |b| b.samples));
            more
        }))
    }

    /// The batches behind the last that [`Source::batches`] gives; none of made inputs.
    pub fn held_out(&self) -> Batches<'_> {
        let mut left = match &self.kind {
            Kind::Made(_) => usize::MAX,
            _ => self.options.samples.unwrap_or(usize::MAX),
        };
        Box::new(self.all().skip_while(move |batch| {
            let used = left > 0;
            left = left.saturating_sub(batch.as_ref().map_or(0, |b| b.samples));
            used && batch.is_ok()
        }))
    }

    /// Leaves the last samples to [`Source::held_out`] if there are none behind those that are taken: an eighth of them, and
    /// at most `most`.
    ///
    /// # Errors
    /// When data cannot be read.
    pub fn reserve(&mut self, most: usize) -> Result<(), DataError> {
        let taken = self.options.samples.unwrap_or(usize::MAX);
        if matches!(self.kind, Kind::Made(_)) || taken == 0 {
            return Ok(());
        }
        let mut there = 0usize;
        for batch in self.all() {
            there += batch?.samples;
            if there >= taken.saturating_add(most) {
                return Ok(());
            }
        }
        self.options.samples = Some(taken.min(there - (there / 8).min(most)));
        Ok(())
    }

    fn all(&self) -> Batches<'_> {
        let fixed = &self.options.fixed;
        Box::new(self.free().map(move |batch| {
            let mut batch = batch?;
            batch.inputs.extend(fixed.iter().cloned());
            Ok(batch)
        }))
    }

    /// The batches without the inputs that are fixed.
    fn free(&self) -> Batches<'_> {
        let size = self.options.batch.max(1);
        match &self.kind {
            Kind::Files { files, .. } => {
                Box::new(files.iter().flat_map(move |path| self.file(path, size)))
            }
            Kind::Text(text) => text.batches(),
            Kind::Made(specs) => {
                let count = self.options.samples.unwrap_or(MADE);
                let seeds = (0..count as u64).map(|k| self.options.seed.wrapping_add(k));
                Box::new(seeds.map(move |seed| {
                    Ok(Batch {
                        name: format!("made inputs of seed {seed}"),
                        inputs: parity::make(specs, seed)?,
                        samples: 1,
                    })
                }))
            }
        }
    }

    /// The batches of one file.
    fn file(&self, path: &Path, size: usize) -> Batches<'_> {
        let inputs = match self.load(path) {
            Ok(inputs) => inputs,
            Err(e) => return Box::new(std::iter::once(Err(e))),
        };
        let name = path.display().to_string();
        let rows = self.rows(&inputs);
        let samples = rows.unwrap_or(1);
        if samples <= size {
            return Box::new(std::iter::once(Ok(Batch {
                name,
                inputs,
                samples,
            })));
        }
        Box::new((0..samples).step_by(size).map(move |from| {
            let to = (from + size).min(samples);
            let part = |t: &Tensor| slice(t, from, to).unwrap_or_else(|| t.clone());
            Ok(Batch {
                name: format!("{name}, rows {from} to {}", to - 1),
                inputs: (inputs.iter()).map(|(n, t)| (n.clone(), part(t))).collect(),
                samples: to - from,
            })
        }))
    }

    fn load(&self, path: &Path) -> Result<Vec<(String, Tensor)>, DataError> {
        let infos: Vec<TensorInfo> = self.ports.iter().map(|p| p.info.clone()).collect();
        Ok(match (has_extension(path, "npy"), &infos[..]) {
            (true, [only]) => vec![(only.name.clone(), parity::from_npy(path, only)?)],
            _ => parity::from_npz(&mut Npz::open(path)?, &infos)?,
        })
    }

    /// The size of the batch, if every input's first dimension is called so and all can be split there.
    fn rows(&self, inputs: &[(String, Tensor)]) -> Option<usize> {
        let batched = |p: &Port| match p.dims.as_deref() {
            Some([Dim::Symbol(s), ..]) => shapes::is_batch(s),
            _ => false,
        };
        let rows = inputs.first()?.1.dims().first().copied()?;
        let all = self.ports.iter().all(batched);
        let equal = (inputs.iter())
            .all(|(_, t)| t.dims().first() == Some(&rows) && slice(t, 0, rows.min(1)).is_some());
        (all && equal).then_some(rows)
    }

    /// The SHA-256 of all data and of what decides how it is read.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String, DataError> {
        let mut hash = Sha256::new();
        let o = &self.options;
        hash.update(format!("{} {:?}\0", o.batch, o.samples));
        for (name, tensor) in &o.fixed {
            hash.update(format!("{name} {}\0", tensor.fingerprint()));
        }
        match &self.kind {
            Kind::Files { files, .. } => {
                for path in files {
                    hash_file(&mut hash, path)?;
                }
            }
            Kind::Text(text) => {
                hash.update(format!("text {}\0", o.max_length));
                for line in text.given() {
                    hash.update(format!("{line}\0"));
                }
                for path in text.files() {
                    hash_file(&mut hash, path)?;
                }
            }
            Kind::Made(specs) => hash.update(format!("made {} {specs:?}", o.seed)),
        }
        Ok(super::cache::hex(hash))
    }
}
