//! The scores that a step gives.

use half::{bf16, f16};
use kiln_graph::{DType, Tensor};

/// The scores that a step gave.
#[derive(Clone, Debug)]
pub struct Scores {
    tensor: Tensor,
    /// For each row, the places of its new tokens in the tensor: first, and one behind the last.
    rows: Vec<(usize, usize)>,
}

impl Scores {
    pub(super) fn new(
        tensor: Tensor,
        rows: Vec<(usize, usize)>,
        longest: usize,
    ) -> Result<Scores, (String, String)> {
        let dims = tensor.dims().to_vec();
        let places = match dims[..] {
            [_, _] => 1,
            [_, places, _] => places,
            _ => 0,
        };
        let whole = matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
        if !whole || dims.first() != Some(&rows.len()) || (places != longest && places != 1) {
            return Err((
                format!("scores of {}{dims:?}", tensor.dtype()),
                format!(
                    "those of {} rows of {longest} tokens were expected",
                    rows.len()
                ),
            ));
        }
        // A model may score the last place alone.
        let rows = match places == longest {
            true => rows,
            false => vec![(0, 1); rows.len()],
        };
        Ok(Scores { tensor, rows })
    }

    /// Scores of one row, all of whose places are tokens.
    pub fn of_row(tensor: Tensor) -> Scores {
        let places = tensor.dims().get(1).copied().unwrap_or(0);
        Scores {
            tensor,
            rows: vec![(0, places)],
        }
    }

    /// Places of a row that were scored.
    pub fn len(&self, row: usize) -> usize {
        self.rows.get(row).map_or(0, |(a, b)| b - a)
    }

    /// Whether a row has no scores.
    pub fn is_empty(&self, row: usize) -> bool {
        self.len(row) == 0
    }

    /// The scores at a place of a row, counted without padding.
    pub fn at(&self, row: usize, place: usize) -> Vec<f32> {
        let dims = self.tensor.dims();
        let (Some(&width), Some((first, _))) = (dims.last(), self.rows.get(row)) else {
            return Vec::new();
        };
        let places = if dims.len() == 3 { dims[1] } else { 1 };
        let start = (row * places + first + place) * width;
        let bytes = self.tensor.bytes();
        let size = self.tensor.dtype().bits() as usize / 8;
        let Some(slice) = bytes.get(start * size..(start + width) * size) else {
            return Vec::new();
        };
        let pairs = || slice.chunks_exact(2).map(|c| [c[0], c[1]]);
        match self.tensor.dtype() {
            DType::F16 => pairs().map(|c| f16::from_le_bytes(c).to_f32()).collect(),
            DType::BF16 => pairs().map(|c| bf16::from_le_bytes(c).to_f32()).collect(),
            _ => (slice.chunks_exact(4))
                .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                .collect(),
        }
    }

    /// The scores of the token that follows a row.
    pub fn last(&self, row: usize) -> Vec<f32> {
        match self.len(row) {
            0 => Vec::new(),
            n => self.at(row, n - 1),
        }
    }
}

/// The place of the largest score; the first of equal ones.
pub fn largest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (k, s) in scores.iter().enumerate() {
        if *s > scores[best] || scores[best].is_nan() {
            best = k;
        }
    }
    best
}
