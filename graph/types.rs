//! The type of a value: dtype and symbolic shape.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::DType;

/// One dimension of a shape.
///
/// A computed dimension is a symbol too: its name is the simplified expression, so that `2*seq` equals `2*seq`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    Known(usize),
    /// A named size, or an expression over named sizes. Equal names mean equal sizes within one model.
    Symbol(Arc<str>),
    Unknown,
}

impl Dim {
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Known(n) => Some(*n),
            _ => None,
        }
    }

    /// Whether nothing names it. Exporters write some words for any size that they know nothing of, so that two of them
    /// need not be the same.
    pub fn is_anonymous(&self) -> bool {
        match self {
            Dim::Known(_) => false,
            Dim::Symbol(name) => {
                matches!(
                    &**name,
                    "" | "?" | "-1" | "None" | "unk" | "unknown" | "dynamic"
                )
            }
            Dim::Unknown => true,
        }
    }

    /// Whether both are certainly the same size.
    pub fn certainly_equals(&self, other: &Dim) -> bool {
        *self != Dim::Unknown && self == other
    }

    /// Whether the two sizes are certainly different.
    pub fn conflicts(&self, other: &Dim) -> bool {
        matches!((self, other), (Dim::Known(a), Dim::Known(b)) if a != b)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Symbol(name) => f.write_str(name),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// Dimensions of a value; rank 0 is a scalar.
pub type Shape = SmallVec<[Dim; 4]>;

/// What is known of a value's type.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Type {
    #[default]
    Unknown,
    /// A tensor; either part may be unknown.
    Tensor {
        dtype: Option<DType>,
        shape: Option<Shape>,
    },
    /// A sequence, map, optional or sparse tensor: ONNX's encoded `TypeProto`, carried as it came.
    Opaque(Bytes),
}

impl Type {
    pub fn tensor(dtype: DType, shape: Option<Shape>) -> Type {
        Type::Tensor {
            dtype: Some(dtype),
            shape,
        }
    }

    pub fn dtype(&self) -> Option<DType> {
        match self {
            Type::Tensor { dtype, .. } => *dtype,
            _ => None,
        }
    }

    pub fn shape(&self) -> Option<&[Dim]> {
        match self {
            Type::Tensor { shape, .. } => shape.as_deref(),
            _ => None,
        }
    }

    pub fn rank(&self) -> Option<usize> {
        self.shape().map(<[Dim]>::len)
    }

    /// Whether dtype, rank or a known dimension of the two certainly differ.
    pub fn conflicts(&self, other: &Type) -> bool {
        if let (Some(a), Some(b)) = (self.dtype(), other.dtype())
            && a != b
        {
            return true;
        }
        match (self.shape(), other.shape()) {
            (Some(a), Some(b)) => {
                a.len() != b.len() || a.iter().zip(b).any(|(a, b)| a.conflicts(b))
            }
            _ => false,
        }
    }

    /// This type, with what it leaves open filled in from `other`. Where both speak, this one wins.
    pub fn refined_by(&self, other: &Type) -> Type {
        match (self, other) {
            (Type::Unknown, _) => other.clone(),
            (Type::Tensor { dtype, shape }, Type::Tensor { dtype: d, shape: s }) => Type::Tensor {
                dtype: dtype.or(*d),
                shape: match (shape, s) {
                    (Some(a), Some(b)) if a.len() == b.len() => Some(
                        a.iter()
                            .zip(b)
                            .map(|(a, b)| match (a, b) {
                                (Dim::Unknown, _) | (Dim::Symbol(_), Dim::Known(_)) => b.clone(),
                                _ => a.clone(),
                            })
                            .collect(),
                    ),
                    (Some(a), _) => Some(a.clone()),
                    (None, b) => b.clone(),
                },
            },
            _ => self.clone(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Unknown => f.write_str("?"),
            // The first field of the message; the numbers are those of `proto.rs`.
            Type::Opaque(message) => f.write_str(match message.first().map(|key| key >> 3) {
                Some(4) => "a sequence",
                Some(5) => "a map",
                Some(8) => "a sparse tensor",
                Some(9) => "an optional",
                _ => "opaque",
            }),
            Type::Tensor { dtype, shape } => {
                match dtype {
                    Some(dtype) => write!(f, "{dtype}")?,
                    None => f.write_str("?")?,
                }
                match shape {
                    None => f.write_str("[…]"),
                    Some(dims) => {
                        f.write_str("[")?;
                        for (k, dim) in dims.iter().enumerate() {
                            write!(f, "{}{dim}", if k > 0 { "," } else { "" })?;
                        }
                        f.write_str("]")
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ty(dims: &[Dim]) -> Type {
        Type::tensor(DType::F32, Some(dims.into()))
    }

    #[test]
    fn only_certain_differences_conflict() {
        let batch = Dim::Symbol("batch".into());
        assert!(
            !ty(&[batch.clone(), Dim::Known(4)]).conflicts(&ty(&[Dim::Known(2), Dim::Known(4)]))
        );
        assert!(ty(&[Dim::Known(3)]).conflicts(&ty(&[Dim::Known(2)])));
        assert!(ty(&[Dim::Known(3)]).conflicts(&ty(&[])));
        assert!(!Type::Unknown.conflicts(&ty(&[])));
        assert_eq!(
            ty(&[batch.clone(), Dim::Unknown]).refined_by(&ty(&[Dim::Known(2), batch.clone()])),
            ty(&[Dim::Known(2), batch])
        );
    }
}
