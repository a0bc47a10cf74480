//! Bytes that lie elsewhere: matrices side by side, with a sum of rank one.

use std::sync::Arc;

use bytes::Bytes;

/// Elements converted at a time while a narrowed tensor is streamed.
const CHUNK: usize = 256 * 1024;

/// Matrices side by side; a tensor that is none is one row of one part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lazy {
    pub(super) parts: Arc<[Part]>,
    /// The parts are FP32 numbers that become the tensor's dtype, F16 or BF16.
    pub(super) narrows: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Part {
    data: Bytes,
    /// Bytes of a row.
    width: usize,
    added: Option<Outer>,
}

/// The product of a column and a row, in FP64.
#[derive(Clone, Debug, PartialEq)]
struct Outer {
    /// A number for each row of the part.
    rows: Arc<[f64]>,
    /// A number for each FP32 element of a row.
    columns: Arc<[f64]>,
}

impl PartialEq for Part {
    fn eq(&self, other: &Part) -> bool {
        self.width == other.width
            && self.added == other.added
            && same_bytes(&self.data, &other.data)
    }
}

/// Whether they are equal, which one range of a mapped file is with itself without being read.
pub(super) fn same_bytes(a: &Bytes, b: &Bytes) -> bool {
    (a.as_ptr() == b.as_ptr() && a.len() == b.len()) || a == b
}

impl Part {
    pub(super) fn new(data: Bytes, width: usize) -> Part {
        Part {
            data,
            width,
            added: None,
        }
    }

    /// The part with the product of a column and a row of FP32 added; `None` if it has one already.
    pub(super) fn plus(&self, rows: &Arc<[f64]>, columns: &[f64]) -> Option<Part> {
        let added = Outer {
            rows: rows.clone(),
            columns: columns.into(),
        };
        self.added.is_none().then(|| Part {
            added: Some(added),
            ..self.clone()
        })
    }

    /// Bytes of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn data(&self) -> &Bytes {
        &self.data
    }

    fn push_row(&self, row: usize, out: &mut Vec<u8>) {
        let (start, end) = (row * self.width, out.len());
        out.extend_from_slice(&self.data[start..start + self.width]);
        if let Some(Outer { rows, columns }) = &self.added {
            let numbers = out[end..].as_chunks_mut().0;
            for (number, column) in numbers.iter_mut().zip(&columns[..]) {
                let sum = f64::from(f32::from_le_bytes(*number)) + rows[row] * column;
                *number = (sum as f32).to_le_bytes();
            }
        }
    }
}

impl Lazy {
    pub(super) fn whole(data: &Bytes) -> Arc<[Part]> {
        Arc::new([Part::new(data.clone(), data.len())])
    }

    pub(super) fn source_len(&self) -> usize {
        self.parts.iter().map(|p| p.data.len()).sum()
    }

    /// The bytes of the parts, row by row, in chunks of whole rows or, of a single part, whole elements.
    pub(super) fn chunks<E>(&self, out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        const LEN: usize = CHUNK * 4;
        if let [
            Part {
                data, added: None, ..
            },
        ] = &self.parts[..]
        {
            return data.chunks(LEN).try_for_each(out);
        }
        let mut gathered = Vec::with_capacity(LEN);
        let rows = |part: &Part| part.data.len() / part.width.max(1);
        for row in 0..self.parts.first().map_or(0, rows) {
            for part in self.parts.iter() {
                part.push_row(row, &mut gathered);
            }
            if gathered.len() >= LEN {
                out(&gathered)?;
                gathered.clear();
            }
        }
        out(&gathered)
    }
}
