//! One array in NumPy's `.npy` format.

use bytes::Bytes;
use kiln_graph::{DType, Tensor};

use self::header::{Element, Header, Kind, count};
use super::number;

pub(super) mod header;

/// A tensor of an array's data. `wanted` says what bytes without a meaning (`V1`, `V2`) are; `V2` is
/// BF16 unless F16 is wanted.
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
        (2, Some(DType::F16)) => Ok(DType::F16),
        (2, _) => Ok(DType::BF16),
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
    Ok((header::write(&descr, tensor.dims())?, data))
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
        let text = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}");
        header::parse(text.as_bytes())
    }

    fn read(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Result<Tensor, String> {
        decode(&header(descr, fortran, shape)?, data.to_vec(), None)
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
        let tensor = decode(&two, data, Some(DType::F32)).unwrap();
        assert_eq!(tensor.dtype(), DType::BF16);
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
