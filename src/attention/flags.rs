//! What the probabilities of a head say of it.

use serde::Serialize;

/// A row that sums to less gives no key any weight. A softmax sums to 1 but for rounding, or to 0 (or NaN) where all keys
/// are hidden; nothing lies between, so the middle tells them apart in every precision.
pub const EMPTY_SUM: f64 = 0.5;

/// A row is even if its entropy is this share of the most that its visible keys allow. Over 64 keys the weights then
/// differ from their mean by 30 % (standard deviation) at most: no key stands out.
pub const EVEN_ENTROPY: f64 = 0.99;

/// The weight from which a row looks at one key only: all others together have less than a ninth of it.
pub const ONE_KEY_WEIGHT: f64 = 0.9;

/// The share of rows that makes a property one of the head. One row in twenty may differ, as those of the first and last
/// tokens often do.
pub const MOST_ROWS: f64 = 0.95;

/// Rows that are needed before a head is judged by them. Two rows agree by chance too often.
pub const FEWEST_ROWS: usize = 3;

/// What is notable about a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flag {
    /// Some rows give no key any weight: all of their keys are hidden, or they are NaN.
    EmptyRows,
    /// It spreads its weight evenly over all visible keys.
    Uniform,
    /// Nearly all rows put nearly all weight on the same key.
    OneKey,
}

impl Flag {
    /// In a few words.
    pub fn words(self) -> &'static str {
        match self {
            Flag::EmptyRows => "rows without any weight",
            Flag::Uniform => "even over all keys",
            Flag::OneKey => "one key only",
        }
    }
}

/// A head in numbers, over all samples. Rows of padding do not count, and only rows that see two keys or more say where
/// the head looks.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    pub head: usize,
    /// Mean entropy of the judged rows, in bits.
    pub entropy: f64,
    /// Mean of the entropy as a share of the most that each row's visible keys allow: 0 for one key, 1 for all evenly.
    pub evenness: f64,
    /// Rows that are not padding, and those among them that see two keys or more.
    pub rows: usize,
    pub judged: usize,
    /// Rows whose weights sum to nothing or are NaN; those of padding count as well.
    pub empty_rows: usize,
    /// The share of judged rows with more than [`ONE_KEY_WEIGHT`] on the key that most of them favour, and that key in the
    /// first sample.
    pub one_key_share: f64,
    pub key: Option<usize>,
    pub flags: Vec<Flag>,
}

/// The queries of each sample, [samples][queries], that are padding: in self-attention, those at whose own place no row of
/// any head puts weight. `weights` are [samples, heads, queries, keys].
pub fn padding(weights: &[f32], dims: [usize; 4], is_self: bool) -> Vec<Vec<bool>> {
    let [samples, heads, queries, keys] = dims;
    let mut padded = vec![vec![false; queries]; samples];
    if !is_self || queries != keys || heads * queries * keys == 0 {
        return padded;
    }
    for (sample, hidden) in weights.chunks(heads * queries * keys).zip(&mut padded) {
        let mut seen = vec![false; keys];
        for row in sample.chunks(keys) {
            for (seen, weight) in seen.iter_mut().zip(row) {
                *seen |= *weight > 0.0;
            }
        }
        // If nothing is seen at all, the rows are empty, not padding.
        if seen.contains(&true) {
            *hidden = seen.iter().map(|s| !s).collect();
        }
    }
    padded
}

/// Judges head `head` of `weights`, which are [samples, heads, queries, keys]; `padded` is of [`padding`].
pub fn judge(weights: &[f32], dims: [usize; 4], head: usize, padded: &[Vec<bool>]) -> Head {
    let [_, heads, queries, keys] = dims;
    let mut found = Head {
        head,
        entropy: 0.0,
        evenness: 0.0,
        rows: 0,
        judged: 0,
        empty_rows: 0,
        one_key_share: 0.0,
        key: None,
        flags: Vec::new(),
    };
    let (mut even, mut favoured) = (0usize, 0usize);
    let block = queries * keys;
    for (sample, padded) in padded.iter().enumerate() {
        let from = (sample * heads + head) * block;
        let map = weights.get(from..from + block).unwrap_or_default();
        let mut votes = vec![0usize; keys];
        for (row, padded) in map.chunks(keys.max(1)).zip(padded) {
            let sum: f64 = row.iter().map(|&w| f64::from(w)).sum();
            let empty = sum.is_nan() || sum < EMPTY_SUM;
            found.empty_rows += usize::from(empty);
            found.rows += usize::from(!padded);
            let visible = row.iter().filter(|w| **w > 0.0).count();
            if *padded || empty || visible < 2 {
                continue;
            }
            found.judged += 1;
            let bits = entropy(row);
            let share = bits / (visible as f64).log2();
            found.entropy += bits;
            found.evenness += share;
            even += usize::from(share >= EVEN_ENTROPY);
            let best = row.iter().position(|&w| f64::from(w) > ONE_KEY_WEIGHT);
            if let Some(vote) = best.and_then(|key| votes.get_mut(key)) {
                *vote += 1;
            }
        }
        let most = votes.iter().copied().max().unwrap_or(0);
        favoured += most;
        if sample == 0 && most > 0 {
            found.key = votes.iter().position(|&n| n == most);
        }
    }
    let judged = found.judged.max(1) as f64;
    found.entropy /= judged;
    found.evenness /= judged;
    found.one_key_share = favoured as f64 / judged;
    if found.empty_rows > 0 {
        found.flags.push(Flag::EmptyRows);
    }
    if found.judged >= FEWEST_ROWS {
        if even as f64 >= MOST_ROWS * judged {
            found.flags.push(Flag::Uniform);
        }
        if found.one_key_share >= MOST_ROWS {
            found.flags.push(Flag::OneKey);
        }
    }
    found
}

/// Shannon's entropy of a row, in bits.
fn entropy(row: &[f32]) -> f64 {
    let weights = row.iter().map(|&w| f64::from(w)).filter(|w| *w > 0.0);
    let nats: f64 = weights.map(|w| -w * w.ln()).sum();
    // A weight of 1 + rounding would make it negative.
    (nats / std::f64::consts::LN_2).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sample, one head, of these rows.
    fn head<R: AsRef<[f32]>>(rows: &[R], is_self: bool) -> Head {
        let keys = rows[0].as_ref().len();
        let weights: Vec<f32> = rows.iter().flat_map(|r| r.as_ref().to_vec()).collect();
        let dims = [1, 1, rows.len(), keys];
        judge(&weights, dims, 0, &padding(&weights, dims, is_self))
    }

    #[test]
    fn an_even_head_is_uniform_over_what_it_sees() {
        let all = head(&[[0.25; 4]; 4], true);
        assert_eq!(all.flags, [Flag::Uniform]);
        assert!((all.entropy - 2.0).abs() < 1e-9 && (all.evenness - 1.0).abs() < 1e-9);
        let third = 1.0 / 3.0;
        let causal: &[&[f32]] = &[
            &[1.0, 0.0, 0.0, 0.0],
            &[0.5, 0.5, 0.0, 0.0],
            &[third, third, third, 0.0],
            &[0.25; 4],
        ];
        let causal = head(causal, true);
        assert_eq!((causal.rows, causal.judged), (4, 3));
        assert_eq!(causal.flags, [Flag::Uniform]);
        let tilted = head(&[[0.4, 0.2, 0.2, 0.2]; 4], true);
        assert!(tilted.flags.is_empty(), "{tilted:?}");
    }

    #[test]
    fn one_key_is_the_same_key_in_all_rows() {
        let sink = head(&[[0.01, 0.95, 0.02, 0.02]; 4], true);
        assert_eq!((sink.flags, sink.key), (vec![Flag::OneKey], Some(1)));
        let diagonal: &[&[f32]] = &[
            &[0.97, 0.01, 0.01, 0.01],
            &[0.01, 0.97, 0.01, 0.01],
            &[0.01, 0.01, 0.97, 0.01],
            &[0.01, 0.01, 0.01, 0.97],
        ];
        assert!(head(diagonal, true).flags.is_empty());
        // Rows that see one key only have no choice.
        assert!(head(&[[1.0, 0.0]; 4], false).flags.is_empty());
        let few = head(&[[0.01, 0.99], [0.01, 0.99]], false);
        assert!(few.flags.is_empty());
    }

    #[test]
    fn rows_without_weight_are_counted() {
        let nan = f32::NAN;
        let rows: &[&[f32]] = &[&[0.0, 0.0, 0.0], &[nan; 3], &[0.5, 0.25, 0.25]];
        let found = head(rows, false);
        assert_eq!(found.empty_rows, 2);
        assert_eq!(found.flags, [Flag::EmptyRows]);
        let none = head(&[[0.0, 0.0]; 2], true);
        assert_eq!((none.empty_rows, none.rows), (2, 2));
    }

    #[test]
    fn padding_does_not_count() {
        // The last token is padding: nothing looks at it, and where it looks does not matter.
        let rows: &[&[f32]] = &[
            &[0.95, 0.03, 0.02, 0.0],
            &[0.95, 0.03, 0.02, 0.0],
            &[0.95, 0.03, 0.02, 0.0],
            &[0.1, 0.8, 0.1, 0.0],
        ];
        let found = head(rows, true);
        assert_eq!((found.rows, found.judged), (3, 3));
        assert_eq!(found.flags, [Flag::OneKey]);
        assert_eq!(head(rows, false).rows, 4);
    }
}
