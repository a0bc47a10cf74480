//! What all results of a LayerNormalization have in common: a sum that is the same for every input.
//!
//! A row is x = γ · n + β, where the numbers n have the mean 0. So Σ x / γ = Σ β / γ, whatever the input: the rows lie in a
//! plane. A bias b behind x · W is therefore part of a weight: x · (W + (1 / γ) bᵀ / Σ β / γ) = x · W + b. Where the sum is
//! small, the weight would be large; adding t · γ to β makes it larger by t for each channel.

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
        let inverse = [width + ratios(2), ratios(1), width];
        let at = |[a, b, c]: [f64; 3], t: f64| a + 2.0 * b * t + c * t * t;
        let products = products.iter().map(|product| {
            let (mut before, mut after) = (0.0, 0.0);
            for (k, bias) in product.bias.iter().enumerate() {
                let [squares, mixed] =
                    [&product.squares, &product.mixed].map(|of| [of[0][k], of[1][k], of[2][k]]);
                let share = (bias - step * mixed[2]) / self.sum(step);
                before += at(squares, 0.0);
                after += at(squares, step)
                    + 2.0 * share * at(mixed, step)
                    + share * share * at(inverse, step);
            }
            let growth: f64 = after / before;
            // A sum of 0 takes nothing.
            if growth.is_finite() {
                growth.sqrt()
            } else {
                f64::INFINITY
            }
        });
        products.fold((row(step) / row(0.0)).sqrt(), f64::max)
    }

    /// What [`Plane::best`] has to know of a weight of [width, columns], its rows one behind the other, and the bias behind it.
    pub fn read(&self, weight: &[f64], bias: &[f64]) -> Sums {
        let none = || [(); 3].map(|()| vec![0.0; bias.len()]);
        let (mut squares, mut mixed) = (none(), none());
        let channels = self.scale.iter().zip(&self.ratios);
        for (row, (&g, &r)) in weight.chunks(bias.len().max(1)).zip(channels) {
            let powers = [1.0 + r * r, r, 1.0];
            for ((squares, mixed), p) in squares.iter_mut().zip(&mut mixed).zip(powers) {
                let (of_square, of_weight) = (g * g * p, g * p);
                for ((square, mixed), w) in squares.iter_mut().zip(mixed).zip(row) {
                    *square += of_square * w * w;
                    *mixed += of_weight * w;
                }
            }
        }
        Sums {
            bias: bias.to_vec(),
            squares,
            mixed,
        }
    }

    /// The weight with its bias in it, for rows that are moved by `step`.
    pub fn weigh(&self, weight: &[f64], product: &Sums, step: f64) -> Vec<f64> {
        let sum = self.sum(step);
        let columns = product.bias.iter().zip(&product.mixed[2]);
        let shares: Vec<f64> = columns.map(|(b, m)| (b - step * m) / sum).collect();
        let rows = weight.chunks(shares.len().max(1)).zip(&self.scale);
        rows.flat_map(|(row, g)| row.iter().zip(&shares).map(move |(w, share)| w + share / g))
            .collect()
    }

    /// What the moved rows add to a product more, by a weight of [width, columns]: the numbers to take from its bias.
    pub fn through(&self, weight: &[f64], columns: usize, step: f64) -> Vec<f64> {
        let mut more = vec![0.0; columns];
        for (row, g) in weight.chunks(columns.max(1)).zip(&self.scale) {
            for (more, w) in more.iter_mut().zip(row) {
                *more += step * g * w;
            }
        }
        more
    }
}

/// A product of a norm's rows: for each column its bias, and sums over the channels as the coefficients of a polynomial in the step.
#[derive(Debug)]
pub struct Sums {
    bias: Vec<f64>,
    /// Of γ² w², times 1 + (β/γ)², β/γ and 1.
    squares: [Vec<f64>; 3],
    /// Of γ w, times the same.
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

    fn product(row: &[f64], weight: &[f64], columns: usize) -> Vec<f64> {
        let column = |j| {
            row.iter()
                .enumerate()
                .map(move |(i, x)| x * weight[i * columns + j])
        };
        (0..columns).map(|j| column(j).sum()).collect()
    }

    const NUMBERS: [f64; 4] = [0.3, -1.2, 2.0, -0.4];
    const WEIGHT: [f64; 8] = [0.5, -0.2, 0.1, 0.9, -0.7, 0.3, 0.4, -0.6];

    #[test]
    fn a_weight_takes_its_bias() {
        let plane = Plane::new(vec![0.5, -2.0, 1.5, 0.25], &[0.1, 0.3, -0.2, 0.4]).unwrap();
        let bias = [0.7, -0.3];
        let read = plane.read(&WEIGHT, &bias);
        let old = product(&row(&plane, &NUMBERS, 0.0), &WEIGHT, 2);
        for step in STEPS {
            let weighed = plane.weigh(&WEIGHT, &read, step);
            let new = product(&row(&plane, &NUMBERS, step), &weighed, 2);
            for ((new, old), b) in new.iter().zip(&old).zip(bias) {
                assert!(
                    (new - old - b).abs() < 1e-12,
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
        for ((old, new), more) in old.iter().zip(new).zip(plane.through(&WEIGHT, 2, 0.25)) {
            assert!((new - old - more).abs() < 1e-12);
        }
    }

    #[test]
    fn rows_are_moved_where_their_sum_is_small() {
        let ones = vec![1.0; 64];
        let weight: Vec<f64> = (0..64).map(|k| f64::from(k % 7) - 3.0).collect();
        let best = |bias: f64, may_move| {
            let plane = Plane::new(ones.clone(), &vec![bias; 64]).unwrap();
            let read = plane.read(&weight, &[2.0]);
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
    fn a_channel_of_no_scale_is_no_part_of_a_plane() {
        assert!(Plane::new(vec![1.0, 0.0], &[1.0, 1.0]).is_none());
        assert!(Plane::new(vec![1.0], &[1.0, 1.0]).is_none());
        assert!(Plane::new(Vec::new(), &[]).is_none());
    }
}
