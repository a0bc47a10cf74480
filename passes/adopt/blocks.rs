//! Weights that com.microsoft keeps in blocks of few bits, as floats.

use kiln_graph::{DType, Graph, Node, Tensor, ValueId};

use crate::precision::numbers::weights::{to_f32s, unpack};

/// Rows of numbers with a scale for each block of a row (ONNX Runtime `docs/ContribOperators.md`).
pub(super) struct Blocks<'g> {
    pub(super) g: &'g Graph,
    pub(super) rows: usize,
    /// Numbers of a row; its last block may have fewer.
    pub(super) columns: usize,
    pub(super) block: usize,
    /// Of a number in a byte.
    pub(super) bits: usize,
    /// Numbers of a row that are stored.
    pub(super) stride: usize,
}

impl<'g> Blocks<'g> {
    /// The weight of a MatMulNBits, whose rows are columns of the product.
    pub(super) fn of_product(g: &'g Graph, node: &Node) -> Option<Blocks<'g>> {
        let size = |name: &str| -> Option<usize> { node.attrs().int(name)?.try_into().ok() };
        let (columns, block) = (size("K")?, size("block_size").filter(|&b| b > 0)?);
        Some(Blocks {
            g,
            rows: size("N")?,
            columns,
            block,
            bits: size("bits").unwrap_or(4),
            stride: columns.div_ceil(block).checked_mul(block)?,
        })
    }

    /// The table of a GatherBlockQuantized whose blocks lie along its last axis.
    pub(super) fn of_table(g: &'g Graph, node: &Node, table: &Tensor) -> Option<Blocks<'g>> {
        let int = |name: &str, default: i64| node.attrs().int(name).unwrap_or(default);
        let bits: usize = int("bits", 4).try_into().ok()?;
        let (&last, lead) = table.dims().split_last()?;
        let axis = int("quantize_axis", 1);
        let rank = table.rank() as i64;
        let along_last = axis == rank - 1 || axis == -1;
        let packed = match table.dtype() {
            DType::U8 => 8usize.checked_div(bits)?,
            _ => 1,
        };
        let columns = last.checked_mul(packed)?;
        let block = usize::try_from(int("block_size", 128)).ok();
        Some(Blocks {
            g,
            rows: lead.iter().product(),
            columns,
            block: block.filter(|&b| b > 0 && along_last)?,
            bits,
            stride: columns,
        })
    }

    /// The numbers as floats of the scales' type, a row after another.
    pub(super) fn floats(
        &self,
        values: ValueId,
        scales: ValueId,
        zeros: Option<ValueId>,
    ) -> Option<(Vec<f32>, DType)> {
        let blocks = self.columns.div_ceil(self.block);
        let count = self.rows.checked_mul(blocks)?;
        let values = self.g.constant(values)?;
        let scales = self.g.constant(scales)?;
        let dtype = scales.dtype();
        let codes = self.codes(values, self.stride)?;
        let zeros = match zeros {
            Some(zeros) => self.zeros(self.g.constant(zeros)?, blocks)?,
            None if values.dtype() == DType::U8 => vec![self.middle()?; count],
            None => vec![0.0; count],
        };
        let scales = to_f32s(scales)?;
        if scales.len() != count || zeros.len() != count || self.columns == 0 {
            return None;
        }
        let mut made = Vec::with_capacity(self.rows.checked_mul(self.columns)?);
        for (row, codes) in codes.chunks_exact(self.stride).enumerate() {
            for (column, code) in codes.iter().take(self.columns).enumerate() {
                let at = row * blocks + column / self.block;
                made.push((code - zeros.get(at)?) * scales.get(at)?);
            }
        }
        Some((made, dtype))
    }

    fn middle(&self) -> Option<f32> {
        (1..=8)
            .contains(&self.bits)
            .then(|| (1u32 << (self.bits - 1)) as f32)
    }

    /// Zero points, those of a row from a byte of their own where they are packed; or floats.
    fn zeros(&self, zeros: &Tensor, blocks: usize) -> Option<Vec<f32>> {
        if let Some(floats) = to_f32s(zeros) {
            return Some(floats);
        }
        let stride = match zeros.dtype() {
            DType::U8 => {
                let each = 8usize.checked_div(self.bits)?;
                blocks.div_ceil(each) * each
            }
            _ => blocks,
        };
        let codes = self.codes(zeros, stride)?;
        let rows = codes.chunks_exact(stride.max(1));
        Some(
            rows.flat_map(|row| row.iter().take(blocks).copied())
                .collect(),
        )
    }

    /// So many numbers for each row, the first of a byte in its low bits.
    fn codes(&self, packed: &Tensor, stride: usize) -> Option<Vec<f32>> {
        let codes: Vec<f32> = match packed.dtype() {
            DType::U8 if matches!(self.bits, 2 | 4 | 8) => {
                let shifts = (0..8).step_by(self.bits);
                let mask = u8::MAX >> (8 - self.bits);
                let bytes = packed.bytes();
                let each = bytes
                    .iter()
                    .flat_map(|&byte| shifts.clone().map(move |by| f32::from(byte >> by & mask)));
                each.collect()
            }
            DType::U4 => unpack(packed)?.into_iter().map(f32::from).collect(),
            DType::I4 => {
                let signed = |code: u8| f32::from(((code << 4) as i8) >> 4);
                unpack(packed)?.into_iter().map(signed).collect()
            }
            _ => return None,
        };
        (codes.len() == self.rows.checked_mul(stride)?).then_some(codes)
    }
}

/// A tensor of a float type.
pub(super) fn tensor(values: &[f32], dims: &[usize], dtype: DType) -> Option<Tensor> {
    let made = Tensor::vector(values).reshaped(dims).ok()?;
    match dtype {
        DType::F32 => Some(made),
        narrow => made.narrowed(narrow),
    }
}

/// [rows, columns] as [columns, rows].
pub(super) fn turned(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let column = |c: usize| values.iter().skip(c).step_by(columns.max(1)).take(rows);
    (0..columns).flat_map(column).copied().collect()
}
