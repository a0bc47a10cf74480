//! What to make for an input.

use bytes::Bytes;
use kiln_graph::DType;

/// An input to make.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub kind: InputKind,
}

/// What an input's numbers mean to the model, so that made ones are plausible.
#[derive(Clone, Debug, PartialEq)]
pub enum InputKind {
    /// Uniform in `0..upper`: tokens of a vocabulary of that size.
    TokenIds {
        upper: i64,
    },
    /// As [`InputKind::TokenIds`], but each row holds numbers on which decisions turn, next to each other.
    Ids(Ids),
    /// Uniform in `0..upper`: places on an axis of that length.
    Index {
        upper: i64,
    },
    /// One for a token, zero for padding at the end of the last axis. The first sample (along the first axis) has no
    /// padding, the following ones a quarter, a half, three quarters, and again; no row is all padding.
    Mask,
    /// As [`InputKind::Mask`], but the first sample has padding in half of its places, too.
    PaddedMask,
    /// As [`InputKind::Mask`] or [`InputKind::PaddedMask`], in other numbers.
    Masking(Masking),
    /// `0, 1, 2, …` along the last axis.
    Positions,
    /// As [`InputKind::Positions`] in the first half of each row; the second half counts up to `upper - 1`.
    FarPositions {
        upper: i64,
    },
    /// Numbers of places that are no padding, as many as [`InputKind::Mask`] has: all of `most` for the first sample.
    Lengths {
        most: i64,
    },
    /// These, again and again: what a number selects.
    Values(Vec<f64>),
    /// Uniform among these: numbers that the graph compares with, and their neighbours.
    OneOf(Vec<f64>),
    /// These texts, again and again: what a text selects.
    Texts(Vec<Bytes>),
    /// Places on an axis of that length: each of them once, as far as there is room, and then uniform.
    Places {
        upper: i64,
    },
    /// Whole numbers from the first to the last, uniform: bytes of an image.
    Levels(i64, i64),
    Zeros,
    /// A bell curve of mean 0, within six standard deviations.
    Normal {
        std: f32,
    },
    /// A bell curve around the middle of two numbers, each three standard deviations away.
    Within {
        low: f32,
        high: f32,
    },
}

/// Token ids among which the graph decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Ids {
    /// Rows of the table.
    pub upper: i64,
    /// What the graph compares them with, and its neighbours; below `upper`.
    pub marks: Vec<i64>,
    /// The id of padding, if the graph hides one: it stands where a mask has zeros.
    pub padding: Option<i64>,
    /// Whether the first sample has padding, too.
    pub first: bool,
}

impl Ids {
    /// Ids next to each other at the table's end, which only formats of enough bits tell apart. They ascend: the largest
    /// comes last, so that an ArgMax that takes others for equal finds the wrong place.
    const FAR: [i64; 7] = [33, 17, 9, 5, 3, 2, 1];

    /// The marks of a row, in the order of their places.
    pub(super) fn ends(&self) -> Vec<i64> {
        let far = Self::FAR.iter().map(|back| self.upper - back);
        let mut all: Vec<i64> = self.marks.iter().copied().chain(far).collect();
        all.retain(|id| (0..self.upper).contains(id) && Some(*id) != self.padding);
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// A mask's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// For a token.
    pub kept: f64,
    /// For padding.
    pub hidden: f64,
    /// Whether the first sample has padding, too.
    pub first: bool,
}

impl InputKind {
    /// The rows of the table that it indexes, if it is tokens.
    pub fn vocabulary(&self) -> Option<i64> {
        match self {
            InputKind::TokenIds { upper } => Some(*upper),
            InputKind::Ids(ids) => Some(ids.upper),
            _ => None,
        }
    }

    /// With padding in the first sample, too; `None` if there is no padding.
    pub fn padded(&self) -> Option<InputKind> {
        match self {
            InputKind::Mask => Some(InputKind::PaddedMask),
            InputKind::Masking(mask) => Some(InputKind::Masking(Masking {
                first: true,
                ..*mask
            })),
            InputKind::Ids(ids) if ids.padding.is_some() => Some(InputKind::Ids(Ids {
                first: true,
                ..ids.clone()
            })),
            _ => None,
        }
    }
}
