//! What all results of a LayerNormalization have in common: a sum that is the same for every input.
//!
//! A row is x = γ · n + β, where the numbers n have the mean 0. So Σ x / γ = Σ β / γ, whatever the input: the rows lie in a
//! plane. A bias b behind x · W is therefore part of a weight: x · (W + (1 / γ) bᵀ / Σ β / γ) = x · W + b. Where the sum is
//! small, the weight would be large; adding t · γ to β makes it larger by t for each channel.

use kiln_graph::Tensor;

/// A norm's scale γ, none of it 0, and the ratios β / γ.
#[derive(Debug)]
pub struct Plane {
    scale: Vec<f64>,
    ratios: Vec<f64>,
}

/// How far β is moved, in scales, least first. Powers of two, as a step changes the result by little.
const STEPS: [f64; 9] = [0.0, 0.0625, -0.0625, 0.125, -0.125, 0.25, -0.25, 0.5, -0.5];

impl Plane {
    /// `None` where the lengths differ, or the plane is not one: a channel that is 0 times its number, or one beyond floats.
    pub fn new(scale: Vec<f64>, bias: &[f64]) -> Option<Plane> {
        let ratios: Vec<f64> = scale.iter().zip(bias).map(|(g, b)| b / g).collect();
        let whole = scale.len() == bias.len() && ratios.iter().all(|r| r.is_finite());
        let inverse = scale.iter().all(|g| g.recip().is_finite());
        (whole && inverse && !scale.is_empty()).then_some(Plane { scale, ratios })
    }

    pub fn width(&self) -> usize {
        self.scale.len()
    }

    /// What is added to the norm's bias.
    pub fn moved(&self, step: f64) -> Vec<f64> {
        self.scale.iter().map(|g| g * step).collect()
    }

    /// The sum that all rows have.
    fn sum(&self, step: f64) -> f64 {
        self.ratios.iter().sum::<f64>() + step * self.width() as f64
    }

    /// The step by which rounding grows least, and by how much: rows that are moved are rounded, and so are weights that have
    /// taken a bias, each in proportion to its size. `products` have been read by [`Plane::read`].
    pub fn best(&self, products: &[&Sums], may_move: bool) -> Option<(f64, f64)> {
        let steps = STEPS.into_iter().filter(|&s| s == 0.0 || may_move);
        let growths = steps.map(|step| (step, self.growth(products, step)));
        let finite = growths.filter(|(_, growth)| growth.is_finite());
        finite.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// By how much the root mean square of the rows, or that of what the products add up, is larger. Channels are taken for
    /// independent, and n for numbers of variance 1.
    fn growth(&self, products: &[&Sums], step: f64) -> f64 {
        let row = |t: f64| -> f64 {
            let channels = self.scale.iter().zip(&self.ratios);
            channels
                .map(|(g, r)| g * g * (1.0 + (r + t) * (r + t)))
                .sum()
        };
        let ratios = |k: i32| self.ratios.iter().map(|r| r.powi(k)).sum::<f64>();
        let width = self.width() as f64;
        let at = |[a, b, c]: [f64; 3]| a + 2.0 * b * step + c * step * step;
        let inverse = at([width + ratios(2), ratios(1), width]);
        let sum = self.sum(step);
        let products = products.iter().map(|product| {
            let [plain, ratio, twice] = &product.mixed;
            let columns = product.bias.iter().zip(plain).zip(ratio).zip(twice);
            let taken = columns.map(|(((bias, &plain), &ratio), &twice)| {
                let share = (bias - step * plain) / sum;
                share * (2.0 * at([twice, ratio, plain]) + share * inverse)
            });
            let growth = (at(product.squares) + taken.sum::<f64>()) / product.squares[0];
            // A sum of 0 takes nothing.
            if growth.is_finite() {
                growth.sqrt()
            } else {
                f64::INFINITY
            }
        });
        products.fold((row(step) / row(0.0)).sqrt(), f64::max)
    }

    /// What [`Plane::best`] has to know of an FP32 weight of [width, columns] and of the bias behind it. `None` of another weight.
    pub fn read(&self, weight: &Tensor, bias: Vec<f64>) -> Option<Sums> {
        let mut squares = [0.0; 3];
        let [mut plain, mut ratio, mut twice] = [(); 3].map(|()| vec![0.0; bias.len()]);
        self.rows(weight, bias.len(), &mut |row, g, r| {
            let square = g * g * sum_of_squares(row);
            squares[0] += square * (1.0 + r * r);
            squares[1] += square * r;
            squares[2] += square;
            let sums = plain.iter_mut().zip(&mut ratio).zip(&mut twice);
            for (((plain, ratio), twice), &w) in sums.zip(row) {
                let weighed = g * f64::from(w);
                *plain += weighed;
                *ratio += r * weighed;
                *twice += (1.0 + r * r) * weighed;
            }
        })?;
        Some(Sums {
            bias,
            squares,
            mixed: [plain, ratio, twice],
        })
    }

    /// The FP32 weight with its bias in it, for rows that are moved by `step`; it is computed where it is read. `None` where a number
    /// may be too large.
    pub fn weigh(&self, weight: &Tensor, product: &Sums, step: f64) -> Option<Tensor> {
        let sum = self.sum(step);
        let columns = product.bias.iter().zip(&product.mixed[0]);
        let shares: Vec<f64> = columns.map(|(b, m)| (b - step * m) / sum).collect();
        let inverse: Vec<f64> = self.scale.iter().map(|g| g.recip()).collect();
        let most = |numbers: &[f64]| numbers.iter().fold(0.0, |m: f64, n| m.max(n.abs()));
        // No |w| is more than the root of Σ γ² w² over the least |γ|. Neither bound is finite if a number is not.
        let weights = product.squares[2].sqrt() * most(&inverse);
        let added: f64 = shares.iter().map(|s| s.abs()).sum::<f64>() * most(&inverse);
        let finite = weights + added < f64::from(f32::MAX);
        finite.then(|| weight.plus_outer(&inverse, &shares))?
    }

    /// What the moved rows add to a product more, by an FP32 weight of [width, columns]: the numbers to take from its bias.
    pub fn through(&self, weight: &Tensor, columns: usize, step: f64) -> Option<Vec<f64>> {
        let mut more = vec![0.0; columns];
        self.rows(weight, columns, &mut |row, g, _| {
            for (more, &w) in more.iter_mut().zip(row) {
                *more += step * g * f64::from(w);
            }
        })?;
        Some(more)
    }

    /// Each row of an FP32 weight of [width, columns] with the scale and the ratio of its channel. `None` of another weight.
    fn rows(
        &self,
        weight: &Tensor,
        columns: usize,
        take: &mut dyn FnMut(&[f32], f64, f64),
    ) -> Option<()> {
        (weight.dims() == [self.width(), columns]).then_some(())?;
        let mut channels = self.scale.iter().zip(&self.ratios);
        weight.f32_rows(&mut |row| {
            if let Some((&g, &r)) = channels.next() {
                take(row, g, r);
            }
        })
    }
}

fn sum_of_squares(row: &[f32]) -> f64 {
    // Numbers that compilers take together in vectors.
    const LANES: usize = 8;
    let (whole, rest) = row.as_chunks::<LANES>();
    let mut sums = [0f64; LANES];
    for lanes in whole {
        for (sum, &w) in sums.iter_mut().zip(lanes) {
            *sum += f64::from(w) * f64::from(w);
        }
    }
    let rest = rest.iter().map(|&w| f64::from(w) * f64::from(w));
    sums.into_iter().chain(rest).sum()
}

/// A product of a norm's rows: the bias of each column, and sums over the channels as the coefficients of a polynomial in the step.
#[derive(Debug)]
pub struct Sums {
    bias: Vec<f64>,
    /// Of γ² w² over all columns, times 1 + (β/γ)², β/γ and 1.
    squares: [f64; 3],
    /// Of γ w, for each column, times 1, β/γ and 1 + (β/γ)².
    mixed: [Vec<f64>; 3],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(plane: &Plane, numbers: &[f64], step: f64) -> Vec<f64> {
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let channels = plane.scale.iter().zip(&plane.ratios).zip(numbers);
        channels
            .map(|((g, r), n)| g * (n - mean + r + step))
            .collect()
    }

    fn product(row: &[f64], weight: &[f32], columns: usize) -> Vec<f64> {
        let column = |j| {
            row.iter()
                .enumerate()
                .map(move |(i, x)| x * f64::from(weight[i * columns + j]))
        };
        (0..columns).map(|j| column(j).sum()).collect()
    }

    const NUMBERS: [f64; 4] = [0.3, -1.2, 2.0, -0.4];
    const WEIGHT: [f32; 8] = [0.5, -0.2, 0.1, 0.9, -0.7, 0.3, 0.4, -0.6];

    #[test]
    fn a_weight_takes_its_bias() {
        let plane = Plane::new(vec![0.5, -2.0, 1.5, 0.25], &[0.1, 0.3, -0.2, 0.4]).unwrap();
        let bias = [0.7, -0.3];
        let weight = Tensor::from_values([4, 2].as_slice(), &WEIGHT).unwrap();
        let read = plane.read(&weight, bias.to_vec()).unwrap();
        let old = product(&row(&plane, &NUMBERS, 0.0), &WEIGHT, 2);
        for step in STEPS {
            let weighed = plane.weigh(&weight, &read, step).unwrap();
            let weighed: Vec<f32> = weighed.values().unwrap();
            let new = product(&row(&plane, &NUMBERS, step), &weighed, 2);
            for ((new, old), b) in new.iter().zip(&old).zip(bias) {
                assert!(
                    (new - old - b).abs() < 1e-6,
                    "{step}: {new} is not {old} + {b}"
                );
            }
        }
    }

    #[test]
    fn what_is_moved_goes_through_a_product() {
        let plane = Plane::new(vec![0.5, -2.0, 1.5, 0.25], &[0.1, 0.3, -0.2, 0.4]).unwrap();
        let old = product(&row(&plane, &NUMBERS, 0.0), &WEIGHT, 2);
        let new = product(&row(&plane, &NUMBERS, 0.25), &WEIGHT, 2);
        let weight = Tensor::from_values([4, 2].as_slice(), &WEIGHT).unwrap();
        let through = plane.through(&weight, 2, 0.25).unwrap();
        for ((old, new), more) in old.iter().zip(new).zip(through) {
            assert!((new - old - more).abs() < 1e-12);
        }
    }

    #[test]
    fn rows_are_moved_where_their_sum_is_small() {
        let ones = vec![1.0; 64];
        let weight: Vec<f32> = (0..64u8).map(|k| f32::from(k % 7) - 3.0).collect();
        let weight = Tensor::from_values([64, 1].as_slice(), &weight).unwrap();
        let best = |bias: f64, may_move| {
            let plane = Plane::new(ones.clone(), &vec![bias; 64]).unwrap();
            let read = plane.read(&weight, vec![2.0]).unwrap();
            plane.best(&[&read], may_move)
        };
        // The sum is 64 as it is.
        assert!(best(1.0, false).unwrap().1 < 1.1);
        let (step, growth) = best(1e-3, true).unwrap();
        assert!(step != 0.0 && growth < 1.1, "{step}, {growth}");
        assert!(best(1e-3, false).unwrap().1 > 1.1);
        assert_eq!(best(0.0, false), None);
    }

    #[test]
    fn numbers_beyond_the_type_are_none() {
        let plane = Plane::new(vec![1.0, 1.0], &[1.0, 1.0]).unwrap();
        let weigh = |bias: f64| {
            let weight = Tensor::from_values([2, 1].as_slice(), &[0.5f32, -0.5]).unwrap();
            let read = plane.read(&weight, vec![bias]).unwrap();
            plane.weigh(&weight, &read, 0.0)
        };
        assert!(weigh(1e3).is_some());
        assert!(weigh(1e40).is_none());
    }

    #[test]
    fn a_channel_of_no_scale_is_no_part_of_a_plane() {
        assert!(Plane::new(vec![1.0, 0.0], &[1.0, 1.0]).is_none());
        assert!(Plane::new(vec![1.0], &[1.0, 1.0]).is_none());
        assert!(Plane::new(Vec::new(), &[]).is_none());
    }
}
