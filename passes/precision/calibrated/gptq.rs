//! Rounding that makes up for its own errors (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
//! Pre-trained Transformers").
//!
//! With H = XᵀX of a layer's inputs, an error E [K, N] of its weight costs tr(EᵀHE) in the products. For H = RᵀR with an upper
//! triangular R that is ‖RE‖²: row i of RE has the error of row i and those of later rows. So rows are rounded from the last
//! to the first, each to what cancels the errors behind it best. That is GPTQ, which eliminates rows of the inverse of H,
//! without the inverse. Rows of large inputs come first, when there is the most left to make up for them.
//! Then each row is rounded anew, a few times, with all others as they are: the error never grows.

use std::thread;

use crate::precision::calibrated::gram::Gram;
use crate::precision::numbers::weights::{LANES, Lane, whole};

/// What is added to the diagonal of H, of its mean: directions that the data hardly has cost something too (the paper's).
const DAMPING: f64 = 0.01;

/// Rounds of rounding again. A third changes the error by less than 1 % (MiniLM-L3).
pub(in crate::precision) const SWEEPS: usize = 2;

/// H of one activation, made ready for all layers that read it. Rows are in the order of their squares.
pub(in crate::precision) struct Curvature {
    /// The channel of each row.
    order: Vec<usize>,
    /// [K, K]: R_ij / R_ii for j > i, 0 elsewhere.
    feedback: Vec<f32>,
    /// [K, K]: H_ij / H_ii for j ≠ i, 0 elsewhere, of the damped H.
    coupling: Vec<f32>,
    /// Of the damped H.
    diagonal: Vec<f64>,
    damping: f64,
}

/// Steps of a weight [K, N]: [ceil(K / block), N] scales, and as many zero points or none.
#[derive(Clone, Copy, Debug)]
pub(in crate::precision) struct Steps<'a> {
    pub scales: &'a [f32],
    pub zeros: Option<&'a [f32]>,
    pub block: usize,
    /// The least and the greatest integer.
    pub range: (f32, f32),
    /// Rounds of rounding again.
    pub sweeps: usize,
}

impl Curvature {
    /// `None` if H is not finite or zero.
    pub fn of(gram: &Gram) -> Option<Curvature> {
        let size = gram.size();
        let squares = gram.diagonal();
        let mean = squares.iter().sum::<f64>() / size.max(1) as f64;
        if !(gram.is_finite() && mean > 0.0) {
            return None;
        }
        let damping = DAMPING * mean;
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| squares[a].total_cmp(&squares[b]));
        let mut h = vec![0f64; size * size];
        for (i, row) in h.chunks_mut(size).enumerate() {
            for (v, &channel) in row.iter_mut().zip(&order) {
                *v = gram.at(order[i], channel);
            }
            row[i] += damping;
        }
        let diagonal: Vec<f64> = (0..size).map(|i| h[i * (size + 1)]).collect();
        let mut coupling = vec![0f32; size * size];
        for (i, (to, from)) in coupling.chunks_mut(size).zip(h.chunks(size)).enumerate() {
            for (to, from) in to.iter_mut().zip(from) {
                *to = (from / diagonal[i]) as f32;
            }
            to[i] = 0.0;
        }
        factorize(&mut h, size)?;
        let mut feedback = vec![0f32; size * size];
        for (j, row) in h.chunks(size).enumerate() {
            for (i, l) in row.iter().enumerate().take(j) {
                feedback[i * size + j] = (l / h[i * (size + 1)]) as f32;
            }
        }
        Some(Curvature {
            order,
            feedback,
            coupling,
            diagonal,
            damping,
        })
    }

    /// The integers of a weight [K, columns].
    pub fn rounded(&self, weight: &[f32], columns: usize, steps: Steps<'_>) -> Vec<i8> {
        let solved = self.tiles(columns, |tile| {
            let mut tile = Tile::load(self, weight, columns, tile, steps);
            tile.solve(self);
            tile
        });
        let mut codes = vec![0i8; weight.len()];
        for (k, tile) in solved.iter().enumerate() {
            let column = k * LANES;
            let width = LANES.min(columns - column);
            for (row, &channel) in self.order.iter().enumerate() {
                let at = channel * columns + column;
                let code = tile.code(row);
                for (to, code) in codes[at..at + width].iter_mut().zip(code) {
                    *to = code as i8;
                }
            }
        }
        codes
    }

    /// tr(EᵀHE) of an error E [K, columns].
    pub fn cost(&self, error: &[f32], columns: usize) -> f64 {
        let costs = self.tiles(columns, |tile| {
            let rows = lanes(self, error, columns, tile);
            let mut cost = 0f64;
            for (i, row) in rows.iter().enumerate() {
                let pull = along(&self.coupling, &rows, i, 0, *row);
                let dot = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
                let square = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                cost += self.diagonal[i] * row.iter().zip(&pull).map(dot).sum::<f64>();
                cost -= self.damping * square;
            }
            cost
        });
        costs.iter().sum::<f64>().max(0.0)
    }

    /// Runs over tiles of columns on all cores. No tile sees another, so the result does not depend on how many there are.
    fn tiles<T: Send>(&self, columns: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let all = columns.div_ceil(LANES);
        let threads = rayon::current_num_threads();
        let share = all.div_ceil(threads).max(1);
        let mut out: Vec<Option<T>> = (0..all).map(|_| None).collect();
        thread::scope(|scope| {
            for (k, part) in out.chunks_mut(share).enumerate() {
                let work = &work;
                scope.spawn(move || {
                    for (at, slot) in part.iter_mut().enumerate() {
                        *slot = Some(work(k * share + at));
                    }
                });
            }
        });
        out.into_iter().flatten().collect()
    }
}

/// Rows of a tile of columns, in H's order; missing columns are zero.
fn lanes(h: &Curvature, values: &[f32], columns: usize, tile: usize) -> Vec<Lane> {
    let column = tile * LANES;
    let width = LANES.min(columns - column);
    let row = |&channel: &usize| {
        let at = channel * columns + column;
        let mut lane = [0f32; LANES];
        lane[..width].copy_from_slice(&values[at..at + width]);
        lane
    };
    h.order.iter().map(row).collect()
}

/// `start` and the rows from `from` on by row i of a matrix of coefficients.
fn along(matrix: &[f32], rows: &[Lane], i: usize, from: usize, start: Lane) -> Lane {
    let size = rows.len();
    let coefficients = &matrix[i * size + from..(i + 1) * size];
    let mut sum = start;
    for (c, row) in coefficients.iter().zip(&rows[from..]) {
        for l in 0..LANES {
            sum[l] += c * row[l];
        }
    }
    sum
}

/// Columns that are rounded together.
struct Tile {
    weight: Vec<Lane>,
    scales: Vec<Lane>,
    zeros: Vec<Lane>,
    range: (f32, f32),
    sweeps: usize,
    /// What the weight is over what it is rounded to.
    error: Vec<Lane>,
}

impl Tile {
    fn load(h: &Curvature, weight: &[f32], columns: usize, tile: usize, steps: Steps<'_>) -> Tile {
        let column = tile * LANES;
        let width = LANES.min(columns - column);
        let of = |all: &[f32], missing: f32| -> Vec<Lane> {
            let row = |&channel: &usize| {
                let at = channel / steps.block * columns + column;
                let mut lane = [missing; LANES];
                lane[..width].copy_from_slice(&all[at..at + width]);
                lane
            };
            h.order.iter().map(row).collect()
        };
        let weight = lanes(h, weight, columns, tile);
        Tile {
            scales: of(steps.scales, 1.0),
            zeros: match steps.zeros {
                Some(zeros) => of(zeros, 0.0),
                None => vec![[0f32; LANES]; weight.len()],
            },
            range: steps.range,
            sweeps: steps.sweeps,
            error: vec![[0f32; LANES]; weight.len()],
            weight,
        }
    }

    fn solve(&mut self, h: &Curvature) {
        for i in (0..self.weight.len()).rev() {
            let wanted = along(&h.feedback, &self.error, i, i + 1, self.weight[i]);
            self.round(i, &wanted);
        }
        for _ in 0..self.sweeps {
            for i in (0..self.weight.len()).rev() {
                let wanted = along(&h.coupling, &self.error, i, 0, self.weight[i]);
                self.round(i, &wanted);
            }
        }
    }

    fn round(&mut self, i: usize, wanted: &Lane) {
        let (scales, zeros) = (&self.scales[i], &self.zeros[i]);
        let (least, most) = self.range;
        for l in 0..LANES {
            let bounded = (wanted[l] / scales[l]).clamp(least - zeros[l], most - zeros[l]);
            self.error[i][l] = self.weight[i][l] - whole(bounded) * scales[l];
        }
    }

    fn code(&self, i: usize) -> Lane {
        std::array::from_fn(|l| {
            let near = self.weight[i][l] - self.error[i][l];
            ((near / self.scales[i][l]).round() + self.zeros[i][l])
                .clamp(self.range.0, self.range.1)
        })
    }
}

/// The Cholesky factor L of `a` [size, size] in its lower triangle, `a = LLᵀ`; `None` if `a` is not positive.
fn factorize(a: &mut [f64], size: usize) -> Option<()> {
    for i in 0..size {
        let (before, rest) = a.split_at_mut(i * size);
        let row = &mut rest[..size];
        for (j, other) in before.chunks(size).enumerate() {
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let pivot = row[i] - dot(&row[..i], &row[..i]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        row[i] = pivot.sqrt();
    }
    Some(())
}

/// In eight sums, which vectorize.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const WIDTH: usize = 8;
    let mut sums = [0f64; WIDTH];
    let (a_chunks, b_chunks) = (a.chunks_exact(WIDTH), b.chunks_exact(WIDTH));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f64 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for l in 0..WIDTH {
            sums[l] += a[l] * b[l];
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
#[path = "gptq_tests.rs"]
mod tests;
