//! One array in NumPy's `.npy` format.

use bytes::Bytes;
use kiln_graph::{DType, Tensor};

use super::number;

const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes before the header's text in the longest version of the format.
pub(super) const PREAMBLE: usize = 12;
/// NumPy itself refuses headers beyond 10 000 bytes unless it is told to trust the file.
pub(super) const MAX_HEADER: usize = 64 * 1024;
/// Strings of no length take no bytes in a file but some in memory.
const MAX_EMPTY_STRINGS: usize = 1 << 20;

/// What a `.npy` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub element: Element,
    pub shape: Vec<usize>,
    pub fortran: bool,
}

/// An element as NumPy stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub kind: Kind,
    /// Bytes of one element.
    pub size: usize,
    pub big_endian: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
        if self.element.size == 0 && count > MAX_EMPTY_STRINGS {
            return None;
        }
        count.checked_mul(self.element.size)
    }
}

fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// The offset of the header's text and its length, from the first bytes of a file.
pub(super) fn header_extent(start: &[u8]) -> Result<(usize, usize), String> {
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
    if extent.1 > MAX_HEADER {
        return Err(format!("its header has {} bytes", extent.1));
    }
    Ok(extent)
}

/// Reads the header's text, a Python dictionary with the keys `descr`, `fortran_order` and `shape`.
pub(super) fn parse_header(text: &[u8]) -> Result<Header, String> {
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

/// A tensor of an array's data. `wanted` says what bytes without a meaning (`V1`, `V2`) are; without it, `V2` is
/// BF16.
pub(super) fn decode(
    header: &Header,
    mut data: Vec<u8>,
    wanted: Option<DType>,
) -> Result<Tensor, String> {
    let Element {
        kind,
        size,
        big_endian,
    } = header.element;
    if header.data_len() != Some(data.len()) {
        return Err(format!("it has {} bytes of data", data.len()));
    }
    if header.fortran && header.shape.len() > 1 {
        data = to_row_major(&data, &header.shape, size);
    }
    let word = match kind {
        Kind::Number(DType::C64 | DType::C128) => size / 2,
        Kind::Unicode => 4,
        Kind::Bytes => 1,
        _ => size,
    };
    if big_endian && word > 1 {
        data.chunks_exact_mut(word).for_each(<[u8]>::reverse);
    }
    let shape = header.shape.clone();
    let tensor = match kind {
        Kind::Number(dtype) => Tensor::from_raw(dtype, shape, data.into()),
        Kind::Void => {
            let dtype = meaning(size, wanted)?;
            if dtype.bits() < 8 {
                return number::pack(dtype, &shape, &data);
            }
            Tensor::from_raw(dtype, shape, data.into())
        }
        Kind::Bytes | Kind::Unicode => {
            let strings = strings(&data, count(&shape).unwrap_or(0), size, kind)?;
            Tensor::from_strings(shape, strings)
        }
    };
    tensor.map_err(|e| e.to_string())
}

fn meaning(size: usize, wanted: Option<DType>) -> Result<DType, String> {
    match (size, wanted) {
        (2, None) => Ok(DType::BF16),
        (2, Some(dtype @ (DType::BF16 | DType::F16))) => Ok(dtype),
        (1, Some(dtype)) if (1..=8).contains(&dtype.bits()) => Ok(dtype),
        (_, Some(dtype)) => Err(format!("its type 'V{size}' cannot be {dtype}")),
        (_, None) => Err(format!("its type 'V{size}' does not say what it holds")),
    }
}

fn strings(data: &[u8], count: usize, size: usize, kind: Kind) -> Result<Vec<Bytes>, String> {
    if size == 0 {
        return Ok(vec![Bytes::new(); count]);
    }
    data.chunks_exact(size)
        .map(|cell| match kind {
            Kind::Unicode => unicode(cell).ok_or_else(|| "a string is not Unicode".to_owned()),
            _ => Ok(Bytes::copy_from_slice(without_zeros(cell))),
        })
        .collect()
}

fn without_zeros(cell: &[u8]) -> &[u8] {
    let end = cell
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    &cell[..end]
}

fn unicode(cell: &[u8]) -> Option<Bytes> {
    let text = cell
        .chunks_exact(4)
        .map(|c| char::from_u32(u32::from_le_bytes([c[0], c[1], c[2], c[3]])))
        .collect::<Option<String>>()?;
    Some(Bytes::from(text.trim_end_matches('\0').to_owned()))
}

fn to_row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = size;
    for &dim in shape {
        strides.push(stride);
        stride = stride.saturating_mul(dim);
    }
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0usize; shape.len()];
    let mut offset = 0;
    while out.len() < data.len() {
        out.extend_from_slice(&data[offset..offset + size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            offset -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}

/// The header and the data of `tensor` as NumPy writes them.
pub(super) fn encode(tensor: &Tensor) -> Result<(Vec<u8>, Bytes), String> {
    let (descr, data) = match (tensor.dtype(), tensor.strings()) {
        (_, Some(strings)) => encode_strings(strings),
        (dtype, None) => (descr(dtype).to_owned(), number::unpacked(tensor)),
    };
    let shape = match tensor.dims() {
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
    Ok((header, data))
}

/// Types that NumPy does not know are stored as bytes without a meaning, as the package `ml_dtypes` does; integers
/// of less than 8 bits as 8-bit integers.
fn descr(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "|b1",
        DType::I8 | DType::I4 | DType::I2 => "|i1",
        DType::U8 | DType::U4 | DType::U2 => "|u1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::C64 => "<c8",
        DType::C128 => "<c16",
        DType::BF16 => "<V2",
        DType::String
        | DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0
        | DType::F6E2M3
        | DType::F6E3M2
        | DType::F4E2M1 => "|V1",
    }
}

fn encode_strings(strings: &[Bytes]) -> (String, Bytes) {
    let texts: Option<Vec<&str>> = strings
        .iter()
        .map(|s| std::str::from_utf8(s).ok())
        .collect();
    match texts {
        Some(texts) => {
            let longest = texts.iter().map(|t| t.chars().count()).max();
            let width = longest.unwrap_or(0).max(1);
            let mut data = Vec::new();
            for (i, text) in texts.iter().enumerate() {
                data.extend(text.chars().flat_map(|c| u32::from(c).to_le_bytes()));
                data.resize((i + 1) * width * 4, 0);
            }
            (format!("<U{width}"), data.into())
        }
        None => {
            let width = strings.iter().map(Bytes::len).max().unwrap_or(0).max(1);
            let mut data = Vec::new();
            for (i, string) in strings.iter().enumerate() {
                data.extend_from_slice(string);
                data.resize((i + 1) * width, 0);
            }
            (format!("|S{width}"), data.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(descr: &str, fortran: &str, shape: &str) -> Result<Header, String> {
        let text =
            format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }} \n");
        parse_header(text.as_bytes())
    }

    fn read(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Result<Tensor, String> {
        decode(&header(descr, fortran, shape)?, data.to_vec(), None)
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
            assert!(parse_header(text.as_bytes()).is_err(), "{text}");
        }
        assert!(
            header_extent(b"\x93NUMPY\x04\0\0\0\0\0")
                .unwrap_err()
                .contains("version 4")
        );
        assert!(
            header_extent(b"\x93NUMPY\x01\0\0")
                .unwrap_err()
                .contains("ends within")
        );
        assert!(header_extent(b"\x93NUMPY\x02\0\xff\xff\xff\xff").is_err());
        assert!(header_extent(b"PK").is_err());
    }

    #[test]
    fn sizes_beyond_memory_are_refused() {
        let huge = "(18446744073709551615, 2)";
        assert_eq!(header("'<f4'", "False", huge).unwrap().data_len(), None);
        let empty = header("'<U0'", "False", "(1000000000000,)").unwrap();
        assert_eq!(empty.data_len(), None);
        assert!(read("'<f4'", "False", "(2,)", &[0; 4]).is_err());
    }

    #[test]
    fn fortran_order_and_big_endian_are_converted() {
        // [[1, 2, 3], [4, 5, 6]] by columns.
        let data: Vec<u8> = [1i16, 4, 2, 5, 3, 6]
            .iter()
            .flat_map(|v| v.to_be_bytes())
            .collect();
        let tensor = read("'>i2'", "True", "(2, 3)", &data).unwrap();
        assert_eq!(tensor.dims(), [2, 3]);
        assert_eq!(tensor.values::<i16>().unwrap(), [1, 2, 3, 4, 5, 6]);
        let complex = [0x3f80_0000u32, 0x4000_0000].map(u32::to_be_bytes).concat();
        let tensor = read("'>c8'", "False", "()", &complex).unwrap();
        assert_eq!(&tensor.bytes()[..], [0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]);
    }

    #[test]
    fn strings_lose_their_padding() {
        let wide: Vec<u8> = "ab\0ö\0\0"
            .chars()
            .flat_map(|c| u32::from(c).to_be_bytes())
            .collect();
        let tensor = read("'>U3'", "False", "(2,)", &wide).unwrap();
        assert_eq!(tensor.strings().unwrap(), ["ab", "ö"]);
        let tensor = read("'|S3'", "False", "(2,)", b"a\0bc\0\0").unwrap();
        assert_eq!(tensor.strings().unwrap(), [&b"a\0b"[..], b"c"]);
        let surrogate = 0xd800u32.to_le_bytes();
        assert!(read("'<U1'", "False", "()", &surrogate).is_err());
    }

    #[test]
    fn bytes_without_a_meaning_take_the_wanted_one() {
        let two = header("'<V2'", "False", "(2,)").unwrap();
        let data = vec![0x80, 0x3f, 0, 0x40];
        let tensor = decode(&two, data.clone(), None).unwrap();
        assert_eq!(tensor.dtype(), DType::BF16);
        assert_eq!(tensor.to_f64s().unwrap(), [1., 2.]);
        assert!(decode(&two, data, Some(DType::F32)).is_err());
        let one = header("'|V1'", "False", "(3,)").unwrap();
        assert!(decode(&one, vec![1, 2, 3], None).is_err());
        let tensor = read("'<f1'", "False", "()", &[1]).unwrap();
        assert_eq!(tensor.dtype(), DType::F8E5M2);
        let tensor = decode(&one, vec![1, 2, 3], Some(DType::F8E5M2)).unwrap();
        assert_eq!(&tensor.bytes()[..], [1, 2, 3]);
        let tensor = decode(&one, vec![1, 2, 3], Some(DType::F4E2M1)).unwrap();
        assert_eq!(&tensor.bytes()[..], [0x21, 0x03]);
    }
}
