//! Statistics in a file, for when the same model is compiled again on the same data.

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use kiln_graph::onnx::{self, WriteError};
use kiln_graph::{Graph, Model, ValueId, limits};
use kiln_passes::precision::stats::{Histogram, MAX_CHANNELS, TensorStats};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Stats;

/// What says that a file is such a cache, and in which format.
const FORMAT: &str = "kiln calibration";
const VERSION: u32 = 2;

/// A cache file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not a kiln calibration cache ({reason}); it is neither read nor replaced", path.display())]
    Foreign { path: PathBuf, reason: String },
    #[error("the model cannot be identified for the calibration cache: {0}")]
    Model(#[from] WriteError),
}

/// What statistics belong to, as SHA-256 in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub model: String,
    pub data: String,
}

/// The head of a file, which any version can read.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
    kiln: String,
    key: Key,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: String,
    version: u32,
    kiln: String,
    key: Key,
    values: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// The id and the name in the graph that was calibrated. Passes give ids in the same order each time.
    id: usize,
    name: String,
    count: u64,
    nan: u64,
    infinite: u64,
    // FP32 numbers are written as FP64, which read back to the same bits.
    min: f64,
    max: f64,
    absmax: f64,
    sum: f64,
    sumsq: f64,
    range_exponent: i32,
    zeros: u64,
    /// The number of the first filled bin, and the counts from there to the last.
    first_bin: usize,
    bins: Vec<u64>,
    rows: u64,
    channel_min: Vec<f64>,
    channel_max: Vec<f64>,
    channel_sum: Vec<f64>,
    channel_sumsq: Vec<f64>,
}

impl Entry {
    fn new(id: usize, name: &str, s: &TensorStats) -> Entry {
        let counts = s.histogram.counts();
        let first = counts.iter().position(|n| *n > 0).unwrap_or(0);
        let end = counts.iter().rposition(|n| *n > 0).map_or(first, |k| k + 1);
        Entry {
            id,
            name: name.to_string(),
            count: s.count,
            nan: s.nan,
            infinite: s.infinite,
            min: s.min.into(),
            max: s.max.into(),
            absmax: s.absmax.into(),
            sum: s.sum,
            sumsq: s.sumsq,
            range_exponent: s.histogram.exponent(),
            zeros: s.histogram.zeros(),
            first_bin: first,
            bins: counts[first..end].to_vec(),
            rows: s.rows,
            channel_min: s.channel_min.iter().map(|v| f64::from(*v)).collect(),
            channel_max: s.channel_max.iter().map(|v| f64::from(*v)).collect(),
            channel_sum: s.channel_sum.clone(),
            channel_sumsq: s.channel_sumsq.clone(),
        }
    }

    /// `None` if no tensor has such statistics.
    fn stats(self) -> Option<TensorStats> {
        let elements = [self.nan, self.infinite, self.zeros];
        let elements = elements.iter().chain(&self.bins);
        let counted = elements.copied().try_fold(0u64, u64::checked_add)?;
        let narrow = |v: f64| Some(v as f32).filter(|v| v.is_finite());
        let all = |channels: &[f64]| channels.iter().map(|v| narrow(*v)).collect();
        let (lows, highs): (Option<Vec<f32>>, Option<Vec<f32>>) =
            (all(&self.channel_min), all(&self.channel_max));
        let (lows, highs) = (lows?, highs?);
        let others = [
            highs.len(),
            self.channel_sum.len(),
            self.channel_sumsq.len(),
        ];
        let lengths = others.iter().all(|&n| n == lows.len()) && lows.len() <= MAX_CHANNELS;
        let squares = [self.sumsq];
        let mut squares = squares.iter().chain(&self.channel_sumsq);
        let finite = self.channel_sum.iter().all(|s| s.is_finite());
        let positive = squares.all(|s| *s >= 0.0) && finite;
        let ordered = self.min <= self.max && self.absmax == self.max.max(-self.min);
        let ordered = ordered && lows.iter().zip(&highs).all(|(a, b)| a <= b);
        (counted == self.count && lengths && positive && ordered).then_some(())?;
        let blank = Histogram::default();
        let mut counts = blank.counts().to_vec();
        let end = self.first_bin.checked_add(self.bins.len())?;
        counts
            .get_mut(self.first_bin..end)?
            .copy_from_slice(&self.bins);
        Some(TensorStats {
            count: self.count,
            nan: self.nan,
            infinite: self.infinite,
            min: narrow(self.min)?,
            max: narrow(self.max)?,
            absmax: narrow(self.absmax)?,
            sum: self.sum,
            sumsq: self.sumsq,
            histogram: Histogram::from_parts(self.range_exponent, self.zeros, counts)?,
            rows: self.rows,
            channel_absmax: lows.iter().zip(&highs).map(|(a, b)| b.max(-a)).collect(),
            channel_min: lows,
            channel_max: highs,
            channel_sum: self.channel_sum,
            channel_sumsq: self.channel_sumsq,
        })
    }
}

pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The SHA-256 of the model as it would be written, external data included.
pub(super) fn model_key(model: &Model) -> Result<String, CacheError> {
    struct Hasher(Sha256);
    impl Write for Hasher {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let parts = onnx::to_parts(model)?;
    let mut hash = Hasher(Sha256::new());
    hash.0.update(&parts.model);
    for (_, tensor) in parts.weights {
        // Hashing does not fail.
        let _ = tensor.write_to(&mut hash);
    }
    Ok(hex(hash.0))
}

/// The statistics of `values`, or `None` if there is no file, or it is for another key, version or set of values.
///
/// # Errors
/// When the file cannot be read, or is none that [`write`] wrote.
pub fn read(
    path: &Path,
    key: &Key,
    graph: &Graph,
    values: &[ValueId],
) -> Result<Option<Stats>, CacheError> {
    // A device has no length and may have no end.
    let most = limits::CACHE as u64 + 1;
    let mut bytes = Vec::new();
    let file = fs::File::open(path);
    match file.and_then(|f| f.take(most).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CacheError::Io {
                path: path.to_path_buf(),
                source,
            });
        }
    };
    let foreign = |reason: String| CacheError::Foreign {
        path: path.to_path_buf(),
        reason,
    };
    if bytes.len() > limits::CACHE {
        return Err(foreign("it is too large for one".into()));
    }
    let head: Head = serde_json::from_slice(&bytes).map_err(|e| foreign(e.to_string()))?;
    if head.format != FORMAT {
        return Err(foreign(format!("its format is \"{}\"", head.format)));
    }
    let ours = head.version == VERSION && head.kiln == env!("CARGO_PKG_VERSION");
    if !ours || head.key != *key {
        return Ok(None);
    }
    let file: File = serde_json::from_slice(&bytes).map_err(|e| foreign(e.to_string()))?;
    let mut stats = Stats::default();
    for entry in file.values {
        let same = |v: &&ValueId| v.index() == entry.id && name(graph, **v) == entry.name;
        let Some(&v) = values.iter().find(same) else {
            return Ok(None);
        };
        let Some(read) = entry.stats() else {
            let what = format!(
                "the statistics of the value \"{}\" are malformed",
                name(graph, v)
            );
            return Err(foreign(what));
        };
        stats.insert(v, read);
    }
    let complete = values.iter().all(|v| stats.contains_key(v));
    Ok(complete.then_some(stats))
}

fn name(graph: &Graph, v: ValueId) -> &str {
    match v.index() < graph.value_bound() {
        true => graph.value(v).name(),
        false => "",
    }
}

/// Writes a temporary file beside `path` and renames it.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, key: &Key, graph: &Graph, stats: &Stats) -> Result<(), CacheError> {
    let fail = |source| CacheError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut values: Vec<_> = stats.iter().collect();
    values.sort_by_key(|(v, _)| **v);
    let file = File {
        format: FORMAT.into(),
        version: VERSION,
        kiln: env!("CARGO_PKG_VERSION").into(),
        key: key.clone(),
        values: (values.into_iter())
            .map(|(v, s)| Entry::new(v.index(), name(graph, *v), s))
            .collect(),
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    let mut out = BufWriter::new(temporary.as_file_mut());
    serde_json::to_writer(&mut out, &file).map_err(|e| fail(e.into()))?;
    out.flush().map_err(fail)?;
    drop(out);
    temporary.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}
