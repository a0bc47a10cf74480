//! What one run knows of a value, and the steps from and to types and tensors.

use std::cell::Cell;
use std::sync::Arc;

use smallvec::SmallVec;

use super::atom::Atom;
use super::expr::Expr;
use crate::types::Shape;
use crate::{DType, Dim, Tensor, Type};

pub(super) type Dims = SmallVec<[Expr; 4]>;
pub(super) type Values = Arc<[Expr]>;

/// Tensors up to this many elements have their numbers followed.
pub(super) const MAX_VALUES: usize = 1024;
/// Integer tensors up to this many elements get a number for each element that nothing says anything of.
const MAX_ANONYMOUS: usize = 16;
/// Float tensors up to this many elements are read: scales, bounds of ranges.
const MAX_FLOATS: usize = 16;

/// What is known of a value.
#[derive(Clone, Default, Debug)]
pub(super) struct Fact {
    pub dtype: Option<DType>,
    pub dims: Option<Dims>,
    /// All elements in row-major order; the dimensions are known numbers then.
    pub values: Option<Values>,
    /// A size that all elements stay below, where they count up to it.
    pub end: Option<Expr>,
}

/// Gives out numbers for what nothing names.
#[derive(Default, Debug)]
pub(super) struct Fresh(Cell<u32>);

impl Fresh {
    fn atom(&self, size: bool) -> Expr {
        let id = self.0.get();
        self.0.set(id.wrapping_add(1));
        Atom::Fresh { id, size }.into()
    }

    /// An unknown size.
    pub fn size(&self) -> Expr {
        self.atom(true)
    }

    /// An unknown integer of any sign.
    pub fn integer(&self) -> Expr {
        self.atom(false)
    }

    pub fn shape(&self, rank: usize) -> Dims {
        (0..rank).map(|_| self.size()).collect()
    }

    /// A dimension as a type tells it.
    pub fn dim(&self, dim: &Dim) -> Expr {
        match dim {
            Dim::Known(n) => i64::try_from(*n).map_or_else(|_| self.size(), Expr::from),
            dim if dim.is_anonymous() => self.size(),
            Dim::Symbol(text) => Expr::parse(text),
            Dim::Unknown => self.size(),
        }
    }
}

impl Fact {
    pub fn of_dims(dims: Dims) -> Fact {
        Fact {
            dims: Some(dims),
            ..Fact::default()
        }
    }

    pub fn scalar(value: Expr) -> Fact {
        Fact {
            dims: Some(Dims::new()),
            values: Some([value].into()),
            ..Fact::default()
        }
    }

    pub fn vector(values: Vec<Expr>) -> Fact {
        let len = i64::try_from(values.len()).unwrap_or(i64::MAX);
        Fact {
            dims: Some(SmallVec::from_iter([Expr::from(len)])),
            values: (values.len() <= MAX_VALUES).then(|| values.into()),
            ..Fact::default()
        }
    }

    /// Dimensions with values, dropped if they are too many or do not fit.
    pub fn of_values(dims: Dims, values: Option<Vec<Expr>>) -> Fact {
        let count = known_count(&dims);
        Fact {
            values: values.filter(|v| Some(v.len()) == count).map(Into::into),
            ..Fact::of_dims(dims)
        }
    }

    pub fn of_tensor(tensor: &Tensor) -> Fact {
        let dims = tensor
            .dims()
            .iter()
            .map(|&d| Expr::from(i64::try_from(d).unwrap_or(i64::MAX)));
        let dims: Dims = dims.collect();
        let values = read_values(tensor).map(|v| v.into_iter().map(Expr::from).collect());
        Fact {
            dtype: Some(tensor.dtype()),
            ..Fact::of_values(dims, values)
        }
    }

    pub fn of_type(ty: &Type, fresh: &Fresh) -> Fact {
        Fact {
            dtype: ty.dtype(),
            dims: ty.shape().map(|s| s.iter().map(|d| fresh.dim(d)).collect()),
            values: None,
            end: None,
        }
    }

    /// Forgets numbers that the element type cannot hold: arithmetic on them wraps or rounds.
    pub fn forget_unfit(&mut self, fresh: &Fresh) {
        let (Some(dtype), Some(values)) = (self.dtype, &self.values) else {
            return;
        };
        let (least, most) = exact_range(dtype);
        let unfit = |v: &Expr| v.as_i64().is_some_and(|n| n < least || n > most);
        if values.iter().any(unfit) {
            let fit = |v: &Expr| if unfit(v) { fresh.integer() } else { v.clone() };
            self.values = Some(values.iter().map(fit).collect());
        }
    }

    /// Small integer tensors of unknown content get anonymous elements, so that every use of one agrees.
    pub fn number_elements(&mut self, fresh: &Fresh) {
        if self.values.is_some() || !matches!(self.dtype, Some(DType::I64 | DType::I32)) {
            return;
        }
        if let Some(n) = self.dims.as_deref().and_then(known_count)
            && n <= MAX_ANONYMOUS
        {
            self.values = Some((0..n).map(|_| fresh.integer()).collect());
        }
    }

    pub fn to_type(&self) -> Type {
        if self.dtype.is_none() && self.dims.is_none() {
            return Type::Unknown;
        }
        Type::Tensor {
            dtype: self.dtype,
            shape: self
                .dims
                .as_ref()
                .map(|dims| dims.iter().map(to_dim).collect::<Shape>()),
        }
    }
}

/// The range in which the type holds every whole number exactly.
fn exact_range(dtype: DType) -> (i64, i64) {
    let within = |n: i64| (-n, n);
    match dtype {
        DType::I64 => (i64::MIN, i64::MAX),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::U64 => (0, i64::MAX),
        DType::U32 => (0, u32::MAX.into()),
        DType::U16 => (0, u16::MAX.into()),
        DType::U8 => (0, u8::MAX.into()),
        DType::Bool => (0, 1),
        DType::F64 => within(1 << 53),
        DType::F32 => within(1 << 24),
        DType::F16 => within(1 << 11),
        DType::BF16 => within(1 << 8),
        _ => (0, -1),
    }
}

fn to_dim(size: &Expr) -> Dim {
    match size.as_i64() {
        Some(n) => usize::try_from(n).map_or(Dim::Unknown, Dim::Known),
        None if size.is_named() => Dim::Symbol(size.to_string().into()),
        None => Dim::Unknown,
    }
}

/// The dimensions as numbers.
pub(super) fn known(dims: &[Expr]) -> Option<SmallVec<[usize; 4]>> {
    dims.iter()
        .map(|d| usize::try_from(d.as_i64()?).ok())
        .collect()
}

/// The number of elements, if it is known and small enough for values to be followed.
pub(super) fn known_count(dims: &[Expr]) -> Option<usize> {
    let dims = known(dims)?;
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (count <= MAX_VALUES).then_some(count)
}

fn read_values(tensor: &Tensor) -> Option<Vec<i64>> {
    match tensor.dtype() {
        DType::F32 | DType::F64 if tensor.len() <= MAX_FLOATS => {
            let whole = |v: f64| (v.fract() == 0.0 && v.abs() < 1e15).then_some(v as i64);
            tensor.to_f64s()?.into_iter().map(whole).collect()
        }
        DType::F32 | DType::F64 => None,
        _ if tensor.len() <= MAX_VALUES => tensor.to_i64s(),
        _ => None,
    }
}
