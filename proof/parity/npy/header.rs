//! The header of a `.npy` file.

use kiln_graph::{DType, limits};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes before the header's text in the longest version of the format.
pub(in crate::parity) const PREAMBLE: usize = 12;

/// What a `.npy` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::parity) struct Header {
    pub element: Element,
    pub shape: Vec<usize>,
    pub fortran: bool,
}

/// An element as NumPy stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::parity) struct Element {
    pub kind: Kind,
    /// Bytes of one element.
    pub size: usize,
    pub big_endian: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::parity) enum Kind {
    Number(DType),
    /// UTF-32, padded with zeros.
    Unicode,
    /// Bytes, padded with zeros.
    Bytes,
    /// Bytes without a meaning: how types that NumPy does not know are stored.
    Void,
}

impl Header {
    /// Bytes of the array's data.
    pub fn data_len(&self) -> Option<usize> {
        let count = count(&self.shape)?;
        if self.element.size == 0 && count > limits::EMPTY_STRINGS {
            return None;
        }
        count.checked_mul(self.element.size)
    }
}

pub(in crate::parity) fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// The offset of the header's text and its length, from the first bytes of a file.
pub(in crate::parity) fn extent(start: &[u8]) -> Result<(usize, usize), String> {
    let version = match start.strip_prefix(MAGIC) {
        Some([major, _, rest @ ..]) => (*major, rest),
        _ => return Err("it is not in NumPy's .npy format".to_owned()),
    };
    let extent = match version {
        (1, [a, b, ..]) => (10, u16::from_le_bytes([*a, *b]) as usize),
        (2 | 3, [a, b, c, d, ..]) => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        (1..=3, _) => return Err("it ends within its header".to_owned()),
        (other, _) => return Err(format!("its format version {other} is unknown")),
    };
    if extent.1 > limits::ARRAY_HEADER {
        return Err(format!("its header has {} bytes", extent.1));
    }
    Ok(extent)
}

/// Reads the header's text, a Python dictionary with the keys `descr`, `fortran_order` and `shape`.
pub(in crate::parity) fn parse(text: &[u8]) -> Result<Header, String> {
    let text = std::str::from_utf8(text).map_err(|_| "its header is not text".to_owned())?;
    let malformed = || format!("its header is malformed: {}", text.trim());
    let mut rest = text.trim().strip_prefix('{').ok_or_else(malformed)?;
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    loop {
        rest = rest.trim_start().trim_start_matches(',').trim_start();
        if rest.starts_with('}') {
            break;
        }
        let (key, after) = quoted(rest).ok_or_else(malformed)?;
        let after = after.trim_start().strip_prefix(':').ok_or_else(malformed)?;
        let after = after.trim_start();
        rest = match key {
            "descr" if after.starts_with('[') => {
                return Err("records are not supported".to_owned());
            }
            "descr" => {
                let (value, after) = quoted(after).ok_or_else(malformed)?;
                descr = Some(element(value)?);
                after
            }
            "fortran_order" => {
                let (value, after) = boolean(after).ok_or_else(malformed)?;
                fortran = Some(value);
                after
            }
            "shape" => {
                let (value, after) = tuple(after).ok_or_else(malformed)?;
                shape = Some(value);
                after
            }
            _ => return Err(malformed()),
        };
    }
    match (descr, fortran, shape) {
        (Some(element), Some(fortran), Some(shape)) => Ok(Header {
            element,
            shape,
            fortran,
        }),
        _ => Err(malformed()),
    }
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn boolean(text: &str) -> Option<(bool, &str)> {
    let yes = text.strip_prefix("True").map(|rest| (true, rest));
    yes.or_else(|| text.strip_prefix("False").map(|rest| (false, rest)))
}

fn tuple(text: &str) -> Option<(Vec<usize>, &str)> {
    let (inside, rest) = text.strip_prefix('(')?.split_once(')')?;
    let sizes = inside
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    Some((sizes, rest))
}

/// An element by its `descr`: byte order, kind and size, as in `<f4`.
fn element(descr: &str) -> Result<Element, String> {
    let unsupported = || format!("NumPy's type '{descr}' is not supported");
    let (order, rest) = descr.split_at_checked(1).ok_or_else(unsupported)?;
    let (kind, size) = rest.split_at_checked(1).ok_or_else(unsupported)?;
    let size: usize = size.parse().map_err(|_| unsupported())?;
    let number = |dtype| Some((Kind::Number(dtype), size));
    let found = match (kind, size) {
        ("b", 1) => number(DType::Bool),
        ("i", 1) => number(DType::I8),
        ("i", 2) => number(DType::I16),
        ("i", 4) => number(DType::I32),
        ("i", 8) => number(DType::I64),
        ("u", 1) => number(DType::U8),
        ("u", 2) => number(DType::U16),
        ("u", 4) => number(DType::U32),
        ("u", 8) => number(DType::U64),
        // What the package `ml_dtypes` calls this one type of FP8.
        ("f", 1) => number(DType::F8E5M2),
        ("f", 2) => number(DType::F16),
        ("f", 4) => number(DType::F32),
        ("f", 8) => number(DType::F64),
        ("c", 8) => number(DType::C64),
        ("c", 16) => number(DType::C128),
        ("U", _) => size.checked_mul(4).map(|size| (Kind::Unicode, size)),
        ("S", _) => Some((Kind::Bytes, size)),
        ("V", _) => Some((Kind::Void, size)),
        _ => None,
    };
    let (kind, size) = found.ok_or_else(unsupported)?;
    let big_endian = match order {
        "<" | "|" => false,
        "=" => cfg!(target_endian = "big"),
        ">" => true,
        _ => return Err(unsupported()),
    };
    Ok(Element {
        kind,
        size,
        big_endian,
    })
}

/// The header for a row-major array: magic, version and length included.
pub(in crate::parity) fn write(descr: &str, dims: &[usize]) -> Result<Vec<u8>, String> {
    let shape = match dims {
        [single] => format!("({single},)"),
        dims => {
            let dims: Vec<_> = dims.iter().map(usize::to_string).collect();
            format!("({})", dims.join(", "))
        }
    };
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // NumPy aligns the data to 64 bytes; the line break is part of the header.
    let len = (10 + dict.len() + 1).next_multiple_of(64) - 10;
    let stated = u16::try_from(len).map_err(|_| "it has too many dimensions".to_owned())?;
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend(stated.to_le_bytes());
    header.extend(format!("{dict:<width$}\n", width = len - 1).bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(descr: &str, fortran: &str, shape: &str) -> Result<Header, String> {
        let text =
            format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }} \n");
        parse(text.as_bytes())
    }

    #[test]
    fn headers_are_read_as_python_writes_them() {
        let read = header("'<f4'", "False", "(2, 3)").unwrap();
        assert_eq!(read.element.kind, Kind::Number(DType::F32));
        assert_eq!((read.shape, read.fortran), (vec![2, 3], false));
        assert!(header("\"|b1\"", "True", "()").unwrap().shape.is_empty());
        assert_eq!(header("'>i8'", "True", "(7,)").unwrap().shape, [7]);
    }

    #[test]
    fn bad_headers_are_refused_with_a_reason() {
        let refused = |descr, fortran, shape| header(descr, fortran, shape).unwrap_err();
        assert!(refused("'|O'", "False", "()").contains("'|O' is not supported"));
        assert!(refused("'<f16'", "False", "()").contains("'<f16' is not supported"));
        assert!(refused("[('a', '<f4')]", "False", "()").contains("records"));
        for text in [
            "",
            "{",
            "{}",
            "{'descr'",
            "{'descr': '<f4'}",
            "{'é': 1}",
            "{'shape': (-1,)}",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(
            extent(b"\x93NUMPY\x04\0\0\0\0\0")
                .unwrap_err()
                .contains("version 4")
        );
        assert!(
            extent(b"\x93NUMPY\x01\0\0")
                .unwrap_err()
                .contains("ends within")
        );
        assert!(extent(b"\x93NUMPY\x02\0\xff\xff\xff\xff").is_err());
        assert!(extent(b"PK").is_err());
    }
}
