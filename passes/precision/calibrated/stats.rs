//! What the elements of a tensor were over all calibration data, and the range that a quantizer should give them.
//!
//! A [`Collector`] takes elements in any order and any split, and always makes the same [`TensorStats`], bit for bit:
//! counts are integers, extremes are exact, and sums are taken in integers. Only the rows
//! of a tensor, which are its slices along the last axis, must come whole.

mod changed;
mod exact;
mod histogram;
mod range;
#[cfg(test)]
mod tests;

use kiln_graph::ValueId;
use rustc_hash::FxHashMap;

use exact::{ChannelSquares, ChannelSums, ExactSum};

pub use histogram::{BINS, Histogram};

/// Statistics by value.
pub type Stats = FxHashMap<ValueId, TensorStats>;

/// The longest last axis of which statistics are kept for each channel.
pub const MAX_CHANNELS: usize = 1 << 16;

/// What the elements of one tensor were. NaN and infinite elements are counted, and are part of nothing else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorStats {
    /// All elements, NaN and infinite ones included.
    pub count: u64,
    pub nan: u64,
    pub infinite: u64,
    /// Smallest and largest finite element; 0 if there is none. Zeros are positive.
    pub min: f32,
    pub max: f32,
    pub absmax: f32,
    pub sum: f64,
    pub sumsq: f64,
    pub histogram: Histogram,
    /// Rows seen, where there are statistics for each channel.
    pub rows: u64,
    /// The largest magnitude of each channel, which is a place on the last axis. Empty if the tensor has less than two
    /// dimensions, or if its last axis is longer than [`MAX_CHANNELS`] or was not always equally long.
    pub channel_absmax: Vec<f32>,
    /// The smallest and the largest number of each channel.
    pub channel_min: Vec<f32>,
    pub channel_max: Vec<f32>,
    pub channel_sum: Vec<f64>,
    /// The sum of squares of each channel, within 2⁻³¹ of it.
    pub channel_sumsq: Vec<f64>,
}

impl TensorStats {
    /// The number of finite elements.
    pub fn finite(&self) -> u64 {
        self.count - self.nan.saturating_add(self.infinite).min(self.count)
    }

    /// The mean square of each channel; `None` if there are no statistics for channels.
    pub fn channel_moments(&self) -> Option<Vec<f64>> {
        let rows = self.rows as f64;
        let all = self.channel_sumsq.iter().map(|s| s / rows);
        (self.rows > 0 && !self.channel_sumsq.is_empty()).then(|| all.collect())
    }

    /// The mean of each channel; `None` if there are no statistics for channels.
    pub fn channel_means(&self) -> Option<Vec<f64>> {
        let rows = self.rows as f64;
        let all = self.channel_sum.iter().map(|s| s / rows);
        (self.rows > 0 && !self.channel_sum.is_empty()).then(|| all.collect())
    }

    /// About what these would be without the elements beyond ±`most`: counts and ranges, but not sums and channels.
    pub fn truncated(&self, most: f32) -> TensorStats {
        let histogram = self.histogram.truncated(most);
        let (min, max) = (self.min.max(-most), self.max.min(most));
        TensorStats {
            count: histogram.zeros() + histogram.counts().iter().sum::<u64>(),
            min,
            max,
            absmax: max.max(-min),
            histogram,
            ..TensorStats::default()
        }
    }

    /// The mean of the finite elements; 0 if there is none.
    pub fn mean(&self) -> f64 {
        match self.finite() {
            0 => 0.0,
            n => self.sum / n as f64,
        }
    }

    /// The mean square of the finite elements; 0 if there is none.
    pub fn mean_square(&self) -> f64 {
        match self.finite() {
            0 => 0.0,
            n => self.sumsq / n as f64,
        }
    }
}

/// Statistics for each channel, as far as there are any.
#[derive(Clone, Debug, Default)]
enum Channels {
    #[default]
    Unseen,
    Equal {
        rows: u64,
        min: Vec<f32>,
        max: Vec<f32>,
        sums: ChannelSums,
        squares: ChannelSquares,
    },
    /// The last axis is too long, missing, or not always equally long.
    None,
}

/// Gathers [`TensorStats`].
#[derive(Clone, Debug)]
pub struct Collector {
    count: u64,
    nan: u64,
    infinite: u64,
    min: f32,
    max: f32,
    sum: ExactSum,
    sumsq: ExactSum,
    histogram: Histogram,
    channels: Channels,
}

impl Default for Collector {
    fn default() -> Collector {
        Collector {
            count: 0,
            nan: 0,
            infinite: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            sum: ExactSum::default(),
            sumsq: ExactSum::default(),
            histogram: Histogram::default(),
            channels: Channels::default(),
        }
    }
}

impl Collector {
    pub fn new() -> Collector {
        Collector::default()
    }

    /// Takes whole rows of `row` elements each, or, if the tensor has less than two dimensions and `row` is `None`,
    /// elements by themselves. Elements behind the last whole row are taken as a shorter row.
    pub fn add(&mut self, row: Option<usize>, values: &[f32]) {
        if values.is_empty() {
            return;
        }
        self.open_channels(row);
        for row in values.chunks(row.unwrap_or(1).max(1)) {
            self.add_row(row);
        }
    }

    fn open_channels(&mut self, row: Option<usize>) {
        let fits = row.filter(|n| (1..=MAX_CHANNELS).contains(n));
        self.channels = match (std::mem::take(&mut self.channels), fits) {
            (Channels::Unseen, Some(n)) => Channels::Equal {
                rows: 0,
                min: vec![f32::INFINITY; n],
                max: vec![f32::NEG_INFINITY; n],
                sums: ChannelSums::new(n),
                squares: ChannelSquares::new(n),
            },
            (same @ Channels::Equal { .. }, Some(_)) => same,
            _ => Channels::None,
        };
    }

    fn add_row(&mut self, row: &[f32]) {
        let of = Extremes::of(row);
        self.count += row.len() as u64;
        if of.finite < row.len() {
            self.nan += row.iter().filter(|v| v.is_nan()).count() as u64;
            self.infinite += row.iter().filter(|v| v.is_infinite()).count() as u64;
        }
        self.min = self.min.min(of.min);
        self.max = self.max.max(of.max);
        self.sum.add(of.sum);
        self.sumsq.add(of.sumsq);
        let absmax = if of.finite == 0 {
            0.0
        } else {
            of.max.max(-of.min)
        };
        self.histogram.widen(absmax);
        self.histogram.count(row);
        if let Channels::Equal {
            rows,
            min,
            max,
            sums,
            squares,
        } = &mut self.channels
        {
            if min.len() != row.len() {
                self.channels = Channels::None;
                return;
            }
            *rows += 1;
            // Comparisons with NaN are false.
            for ((least, most), &v) in min.iter_mut().zip(max.iter_mut()).zip(row) {
                let finite = v.is_finite();
                *least = if finite && v < *least { v } else { *least };
                *most = if finite && v > *most { v } else { *most };
            }
            sums.add(row);
            squares.add(row);
        }
    }

    /// Takes all that another has seen.
    pub fn merge(&mut self, other: &Collector) {
        self.count += other.count;
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum.merge(&other.sum);
        self.sumsq.merge(&other.sumsq);
        self.histogram.merge(&other.histogram);
        match (&mut self.channels, &other.channels) {
            (_, Channels::Unseen) => {}
            (mine @ Channels::Unseen, theirs) => *mine = theirs.clone(),
            (
                Channels::Equal {
                    rows,
                    min,
                    max,
                    sums,
                    squares,
                },
                Channels::Equal {
                    rows: more,
                    min: their_min,
                    max: their_max,
                    sums: their_sums,
                    squares: their_squares,
                },
            ) if min.len() == their_min.len() => {
                *rows += more;
                for (a, b) in min.iter_mut().zip(their_min) {
                    *a = a.min(*b);
                }
                for (a, b) in max.iter_mut().zip(their_max) {
                    *a = a.max(*b);
                }
                sums.merge(their_sums);
                squares.merge(their_squares);
            }
            (mine, _) => *mine = Channels::None,
        }
    }

    pub fn finish(self) -> TensorStats {
        let any = self.min <= self.max;
        // Adding zero makes a negative zero positive: which of the two came first depends on the order.
        let extreme = |v: f32| if any { v + 0.0 } else { 0.0 };
        let (min, max) = (extreme(self.min), extreme(self.max));
        let (rows, lows, highs, channel_sum, channel_sumsq) = match self.channels {
            Channels::Equal {
                rows,
                min,
                max,
                sums,
                squares,
            } => (rows, min, max, sums.finish(), squares.finish()),
            _ => (0, Vec::new(), Vec::new(), Vec::new(), Vec::new()),
        };
        // A channel without a finite number has none of these.
        let within = |v: f32| if v.is_finite() { v + 0.0 } else { 0.0 };
        let channel_min: Vec<f32> = lows.into_iter().map(within).collect();
        let channel_max: Vec<f32> = highs.into_iter().map(within).collect();
        let channel_absmax = channel_min.iter().zip(&channel_max);
        let channel_absmax = channel_absmax.map(|(a, b)| b.max(-a)).collect();
        TensorStats {
            count: self.count,
            nan: self.nan,
            infinite: self.infinite,
            min,
            max,
            absmax: max.max(-min),
            sum: self.sum.finish(),
            sumsq: self.sumsq.finish(),
            histogram: self.histogram,
            rows,
            channel_absmax,
            channel_min,
            channel_max,
            channel_sum,
            channel_sumsq,
        }
    }
}

/// Of one row: its order of addition is fixed, so that its sums are always the same.
struct Extremes {
    finite: usize,
    min: f32,
    max: f32,
    sum: f64,
    sumsq: f64,
}

const LANES: usize = 8;

impl Extremes {
    fn of(row: &[f32]) -> Extremes {
        let mut finite = [0u32; LANES];
        let mut min = [f32::INFINITY; LANES];
        let mut max = [f32::NEG_INFINITY; LANES];
        let mut sum = [0f64; LANES];
        let mut sumsq = [0f64; LANES];
        let mut total = 0;
        for chunk in row.chunks(LANES) {
            for (i, &v) in chunk.iter().enumerate() {
                let is_finite = v.is_finite();
                finite[i] += u32::from(is_finite);
                min[i] = if is_finite && v < min[i] { v } else { min[i] };
                max[i] = if is_finite && v > max[i] { v } else { max[i] };
                let wide = f64::from(if is_finite { v } else { 0.0 });
                sum[i] += wide;
                sumsq[i] += wide * wide;
            }
        }
        for n in finite {
            total += n as usize;
        }
        Extremes {
            finite: total,
            min: min.into_iter().fold(f32::INFINITY, f32::min),
            max: max.into_iter().fold(f32::NEG_INFINITY, f32::max),
            sum: sum.iter().sum(),
            sumsq: sumsq.iter().sum(),
        }
    }
}
