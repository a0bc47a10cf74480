//! Lines of text as token ids, masks, segments and positions.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use half::f16;
use kiln_graph::{DType, Tensor, limits};
use tokenizers::{Encoding, Tokenizer, TruncationParams};

use super::data::{Batch, DataError, Port, SourceOptions};
use crate::parity::InputKind;

/// What an input takes of a text.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// Token ids, below the size of the model's table.
    Tokens {
        upper: i64,
    },
    /// One number for a token, another for padding.
    Mask {
        kept: i64,
        hidden: i64,
    },
    /// Which of two texts a token is of.
    Segments,
    Positions,
}

#[derive(Clone, Debug)]
struct Field {
    name: String,
    dtype: DType,
    role: Role,
}

/// A file of text, one sample in each line, or lines that were given.
#[derive(Debug)]
pub(super) struct Text {
    path: PathBuf,
    given: Option<Vec<String>>,
    tokenizer_path: PathBuf,
    tokenizer: Tokenizer,
    fields: Vec<Field>,
    batch: usize,
    /// Whether the model takes batches of this size only.
    whole_batches: bool,
    max_length: usize,
    /// The one length that the model takes.
    length: Option<usize>,
    pad: i64,
}

impl Text {
    pub fn open(path: &Path, options: &SourceOptions, ports: &[Port]) -> Result<Text, DataError> {
        let tokenizer_path = options.tokenizer.clone();
        let tokenizer_path = tokenizer_path.ok_or_else(|| DataError::NoTokenizer {
            path: path.to_path_buf(),
        })?;
        let fields = ports.iter().map(field).collect::<Result<Vec<_>, _>>()?;
        let fixed = |axis: usize| {
            let mut sizes = ports
                .iter()
                .filter_map(|p| p.dims.as_ref()?.get(axis)?.known());
            sizes.next()
        };
        let (batch, length) = (fixed(0), fixed(1));
        let max_length = length.unwrap_or(options.max_length);
        let refuse = |e: tokenizers::Error| DataError::Tokenizer {
            path: tokenizer_path.clone(),
            reason: e.to_string(),
        };
        let size = fs::metadata(&tokenizer_path).map_or(0, |m| m.len());
        if size > limits::TOKENIZER as u64 {
            let why = format!("it has {size} bytes, more than any tokenizer");
            return Err(refuse(why.into()));
        }
        let mut tokenizer = Tokenizer::from_file(&tokenizer_path).map_err(refuse)?;
        let padding = tokenizer.get_padding().map(|p| p.pad_id);
        let pad = padding
            .or_else(|| {
                ["[PAD]", "<pad>"]
                    .iter()
                    .find_map(|t| tokenizer.token_to_id(t))
            })
            .unwrap_or(0);
        tokenizer.with_padding(None);
        let truncation = TruncationParams {
            max_length,
            ..TruncationParams::default()
        };
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(refuse)?;
        Ok(Text {
            path: path.to_path_buf(),
            given: None,
            tokenizer_path,
            tokenizer,
            fields,
            batch: batch.unwrap_or(options.batch).max(1),
            whole_batches: batch.is_some(),
            max_length,
            length,
            pad: i64::from(pad),
        })
    }

    /// These lines in place of a file's; `name` stands for them in messages.
    pub fn of(
        lines: &[String],
        name: &str,
        options: &SourceOptions,
        ports: &[Port],
    ) -> Result<Text, DataError> {
        let text = Text::open(Path::new(name), options, ports)?;
        Ok(Text {
            given: Some(lines.to_vec()),
            ..text
        })
    }

    pub fn description(&self) -> String {
        format!(
            "lines of {} tokenized by {}, up to {} tokens",
            self.path.display(),
            self.tokenizer_path.display(),
            self.max_length
        )
    }

    /// The files that decide what the data is.
    pub fn files(&self) -> Vec<&Path> {
        let file = self.given.is_none().then_some(self.path.as_path());
        file.into_iter()
            .chain([self.tokenizer_path.as_path()])
            .collect()
    }

    /// The lines that were given in place of a file.
    pub fn given(&self) -> &[String] {
        self.given.as_deref().unwrap_or_default()
    }

    /// Reads as many lines at a time as a batch has. Lines without a token are left out; so is the rest at the end, if the
    /// model takes whole batches only.
    pub fn batches(&self) -> Box<dyn Iterator<Item = Result<Batch, DataError>> + '_> {
        let fail = |source| DataError::Io {
            path: self.path.clone(),
            source,
        };
        type Lines<'a> = Box<dyn Iterator<Item = std::io::Result<Vec<u8>>> + 'a>;
        let lines: Lines<'_> = match &self.given {
            Some(given) => Box::new(given.iter().map(|line| Ok(line.clone().into_bytes()))),
            None => match File::open(&self.path) {
                Ok(file) => Box::new(BufReader::new(file).split(b'\n')),
                Err(e) => return Box::new(std::iter::once(Err(fail(e)))),
            },
        };
        let mut lines = lines.zip(1..);
        Box::new(std::iter::from_fn(move || {
            let mut samples = Vec::with_capacity(self.batch);
            for (line, number) in lines.by_ref() {
                let encoded = line
                    .map_err(fail)
                    .and_then(|bytes| self.encode(&bytes, number));
                match encoded {
                    Err(e) => return Some(Err(e)),
                    Ok(None) => {}
                    Ok(Some(encoding)) => samples.push((encoding, number)),
                }
                if samples.len() == self.batch {
                    break;
                }
            }
            let short = self.whole_batches && samples.len() < self.batch;
            (!samples.is_empty() && !short).then(|| self.assemble(&samples))
        }))
    }

    fn refuse(&self, line: usize, reason: impl Into<String>) -> DataError {
        DataError::Line {
            path: self.path.clone(),
            line,
            reason: reason.into(),
        }
    }

    fn encode(&self, bytes: &[u8], line: usize) -> Result<Option<Encoding>, DataError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.refuse(line, "it is not UTF-8"))?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let encoding = self.tokenizer.encode(text.trim(), true);
        let encoding = encoding.map_err(|e| self.refuse(line, e.to_string()))?;
        for field in &self.fields {
            let Role::Tokens { upper } = field.role else {
                continue;
            };
            if let Some(id) = encoding
                .get_ids()
                .iter()
                .find(|id| i64::from(**id) >= upper)
            {
                return Err(self.refuse(
                    line,
                    format!(
                        "the tokenizer gives token {id}, but the table behind \"{}\" has {upper} rows; \
                         it is not this model's tokenizer",
                        field.name
                    ),
                ));
            }
        }
        Ok((!encoding.is_empty()).then_some(encoding))
    }

    fn assemble(&self, samples: &[(Encoding, usize)]) -> Result<Batch, DataError> {
        let longest = samples.iter().map(|(e, _)| e.len()).max().unwrap_or(0);
        let length = self.length.unwrap_or(longest);
        let (first, last) = match samples {
            [(_, first), .., (_, last)] => (*first, *last),
            [(_, only)] => (*only, *only),
            [] => (0, 0),
        };
        let inputs = self.fields.iter().map(|field| {
            let mut numbers = Vec::with_capacity(samples.len() * length);
            for (encoding, _) in samples {
                let tokens = encoding.len().min(length);
                let ids = encoding.get_ids().iter().map(|&v| i64::from(v));
                let types = encoding.get_type_ids().iter().map(|&v| i64::from(v));
                let end = numbers.len() + length;
                match field.role {
                    Role::Tokens { .. } => numbers.extend(ids.take(tokens)),
                    Role::Mask { kept, .. } => {
                        numbers.extend(std::iter::repeat_n(kept, tokens));
                    }
                    Role::Segments => numbers.extend(types.take(tokens)),
                    Role::Positions => numbers.extend(0..length as i64),
                }
                let padding = match field.role {
                    Role::Tokens { .. } => self.pad,
                    Role::Mask { hidden, .. } => hidden,
                    _ => 0,
                };
                numbers.resize(end, padding);
            }
            let tensor = tensor(field.dtype, samples.len(), length, &numbers);
            let tensor = tensor.map_err(|reason| self.refuse(first, reason))?;
            Ok((field.name.clone(), tensor))
        });
        Ok(Batch {
            name: match first == last {
                true => format!("{}, line {first}", self.path.display()),
                false => format!("{}, lines {first} to {last}", self.path.display()),
            },
            inputs: inputs.collect::<Result<_, DataError>>()?,
            samples: samples.len(),
        })
    }
}

const TYPES: &[DType] = &[DType::I64, DType::I32, DType::F32, DType::F16, DType::Bool];

fn tensor(dtype: DType, rows: usize, length: usize, numbers: &[i64]) -> Result<Tensor, String> {
    let dims = [rows, length];
    let made = match dtype {
        DType::I64 => Tensor::from_values(&dims[..], numbers),
        DType::I32 => {
            let narrow: Vec<i32> = numbers.iter().map(|&n| n as i32).collect();
            Tensor::from_values(&dims[..], &narrow)
        }
        DType::F32 => {
            let floats: Vec<f32> = numbers.iter().map(|&n| n as f32).collect();
            Tensor::from_values(&dims[..], &floats)
        }
        DType::F16 => {
            let floats: Vec<f16> = numbers.iter().map(|&n| f16::from_f32(n as f32)).collect();
            Tensor::from_values(&dims[..], &floats)
        }
        DType::Bool => {
            let bools: Vec<bool> = numbers.iter().map(|&n| n != 0).collect();
            Tensor::from_values(&dims[..], &bools)
        }
        other => return Err(format!("no {other} input is made from text")),
    };
    made.map_err(|e| e.to_string())
}

/// What an input takes, by its name and by what the graph does with it.
fn field(port: &Port) -> Result<Field, DataError> {
    let name = &port.info.name;
    let refuse = |reason: String| DataError::NotText {
        input: name.clone(),
        reason,
    };
    if let Some(dims) = &port.dims
        && dims.len() != 2
    {
        return Err(refuse(format!("it is {}, not [batch, length]", port.info)));
    }
    let lower = name.to_ascii_lowercase();
    let role = match &port.kind {
        _ if lower.contains("token_type") || lower.contains("segment") => Role::Segments,
        InputKind::TokenIds { upper } => Role::Tokens { upper: *upper },
        InputKind::Ids(ids) => Role::Tokens { upper: ids.upper },
        InputKind::Mask => Role::Mask { kept: 1, hidden: 0 },
        InputKind::Masking(mask) => Role::Mask {
            kept: mask.kept as i64,
            hidden: mask.hidden as i64,
        },
        InputKind::Positions | InputKind::FarPositions { .. } => Role::Positions,
        _ => return Err(refuse(format!("it is {}", port.info))),
    };
    if !TYPES.contains(&port.info.dtype) {
        return Err(refuse(format!("it is {}", port.info)));
    }
    Ok(Field {
        name: name.clone(),
        dtype: port.info.dtype,
        role,
    })
}
