//! Sets of types.

use crate::DType;

/// What an operand may be: element types of tensors, or no tensor at all.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Types(u32);

/// No tensor: sequences, optional values. ONNX numbers no element type 0.
const OTHER: Types = Types(1);

/// Names for several types at once.
pub(super) const GROUPS: &[(&str, &[DType])] = &[
    ("uints", &[DType::U8, DType::U16, DType::U32, DType::U64]),
    ("ints", &[DType::I8, DType::I16, DType::I32, DType::I64]),
    ("floats", &[DType::F16, DType::F32, DType::F64]),
    ("complex", &[DType::C64, DType::C128]),
    (
        "float8s",
        &[
            DType::F8E4M3FN,
            DType::F8E4M3FNUZ,
            DType::F8E5M2,
            DType::F8E5M2FNUZ,
        ],
    ),
];

impl Types {
    /// The types that a name of the tables stands for; `None` for unknown names.
    pub(super) fn named(name: &str) -> Option<Types> {
        if name == "other" {
            return Some(OTHER);
        }
        if let Some((_, members)) = GROUPS.iter().find(|(group, _)| *group == name) {
            let members = members.iter().map(|&d| Types::one(d));
            return Some(members.fold(Types::default(), Types::union));
        }
        DType::from_name(name).map(Types::one)
    }

    pub(super) fn one(dtype: DType) -> Types {
        Types(1 << dtype as u32)
    }

    pub fn union(self, other: Types) -> Types {
        Types(self.0 | other.0)
    }

    /// Whether tensors of this element type are among these.
    pub fn has(self, dtype: DType) -> bool {
        self.0 & Types::one(dtype).0 != 0
    }

    /// Whether none but tensors are among these.
    pub fn are_tensors(self) -> bool {
        self.0 & OTHER.0 == 0
    }

    /// The element types, as ONNX numbers them.
    pub fn iter(self) -> impl Iterator<Item = DType> {
        (1..32)
            .filter_map(DType::from_onnx)
            .filter(move |&d| self.has(d))
    }

    /// The one type that these are.
    pub fn sole(self) -> Option<DType> {
        let mut all = self.iter();
        let first = all.next().filter(|_| self.are_tensors())?;
        all.next().is_none().then_some(first)
    }

    /// Whether all of these are floating-point numbers.
    pub fn are_floats(self) -> bool {
        self.are_tensors() && self.0 != 0 && self.iter().all(DType::is_float)
    }
}

impl std::fmt::Debug for Types {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
