//! Constants in integers with scales and zero points, as numbers: `real = (q - zero) * scale`.

use kiln_graph::{DType, Graph, Tensor, ValueId, ops};

use super::weights::{pack, unpack};

/// Which scale serves which element of a tensor (ONNX DequantizeLinear-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    PerTensor,
    /// One scale for each index along the axis.
    PerAxis(usize),
    /// One scale for each block of so many elements along the axis, and for each index of the other axes.
    Blocked {
        axis: usize,
        block: usize,
    },
}

impl Granularity {
    /// That of a scale of these dimensions for a tensor of those; `None` where they do not fit.
    pub fn of(scale: &[usize], dims: &[usize], axis: i64, block: i64) -> Option<Granularity> {
        let one = scale.iter().product::<usize>() == 1;
        if one && scale.len() <= 1 {
            return Some(Granularity::PerTensor);
        }
        let axis = ops::resolve_axis(axis, dims.len())?;
        if scale.len() == 1 && block == 0 {
            return (scale[0] == dims[axis]).then_some(Granularity::PerAxis(axis));
        }
        let block = usize::try_from(block).ok().filter(|&b| b > 0)?;
        let mut blocks = dims.to_vec();
        blocks[axis] = blocks[axis].div_ceil(block);
        (scale == blocks).then_some(Granularity::Blocked { axis, block })
    }

    /// For each element of a tensor of these dimensions, in order, the index of its scale.
    fn indices(self, dims: &[usize]) -> impl Iterator<Item = usize> {
        let (axis, block) = match self {
            Granularity::PerTensor => (0, 0),
            Granularity::PerAxis(axis) => (axis, 0),
            Granularity::Blocked { axis, block } => (axis, block),
        };
        let along = dims.get(axis).copied().unwrap_or(1);
        let inner = dims.iter().skip(axis + 1).product::<usize>().max(1);
        let all = dims.iter().product::<usize>();
        (0..all).map(move |k| match self {
            Granularity::PerTensor => 0,
            Granularity::PerAxis(_) => k / inner % along,
            Granularity::Blocked { .. } => {
                let (outer, at) = (k / inner / along, k / inner % along);
                (outer * along.div_ceil(block) + at / block) * inner + k % inner
            }
        })
    }
}

/// A constant of integers, with what makes them numbers.
#[derive(Clone, Debug)]
pub struct Quantized {
    dims: Vec<usize>,
    /// The integers less their zero points.
    pub centred: Vec<i32>,
    /// One of F32, F16 and BF16.
    pub scale: Tensor,
    pub granularity: Granularity,
}

impl Quantized {
    /// The constant operand of a DequantizeLinear. `Err` says what is in the way.
    pub fn of(dequantize: &ops::DequantizeLinear<'_>) -> Result<Quantized, &'static str> {
        let (q, scale) = match (dequantize.constant(0), dequantize.constant(1)) {
            (Some(q), Some(scale)) => (q, scale),
            _ => return Err("its integers or their scale are no constants"),
        };
        let zero = match dequantize.zero_point() {
            None => None,
            Some(_) => Some(
                dequantize
                    .constant(2)
                    .ok_or("its zero point is no constant")?,
            ),
        };
        if dequantize.to() != Some(scale.dtype()) {
            return Err("its result is of another type than its scale");
        }
        let (axis, block) = (dequantize.axis(), dequantize.block_size());
        let granularity = Granularity::of(scale.dims(), q.dims(), axis, block)
            .ok_or("its scale does not fit its integers")?;
        let mut centred = integers(q).ok_or("it holds no integers of 4 to 32 bits")?;
        if let Some(zero) = zero {
            let zero = integers(zero).filter(|z| z.len() == scale.len());
            let zero = zero.ok_or("its zero point does not fit its scale")?;
            for (q, k) in centred.iter_mut().zip(granularity.indices(q.dims())) {
                *q = q.saturating_sub(zero.get(k).copied().unwrap_or(0));
            }
        }
        let scale = match granularity {
            Granularity::PerTensor => scale.reshaped(&[][..]).ok(),
            _ => Some(scale.clone()),
        };
        Ok(Quantized {
            dims: q.dims().to_vec(),
            centred,
            scale: scale.ok_or("its scale has no number")?,
            granularity,
        })
    }

    /// The numbers, of the scale's type, rounded as DequantizeLinear rounds: the integer times the scale in FP32.
    pub fn real(&self) -> Option<Tensor> {
        let scales: Vec<f32> = self.scale.to_f64s()?.iter().map(|&s| s as f32).collect();
        let indices = self.granularity.indices(&self.dims);
        let products = self.centred.iter().zip(indices);
        let values: Option<Vec<f32>> = products
            .map(|(&q, k)| Some(q as f32 * scales.get(k)?))
            .collect();
        let tensor = Tensor::from_values(&self.dims[..], &values?).ok()?;
        match self.scale.dtype() {
            DType::F32 => Some(tensor),
            narrow => tensor.narrowed(narrow),
        }
    }

    fn within(&self, low: i32, high: i32) -> bool {
        self.centred.iter().all(|q| (low..=high).contains(q))
    }

    /// The integers in the shortest signed type that holds them without a zero point: INT4 if they came in blocks, which
    /// INT8 has not for TensorRT, else INT8. `None` if they do not fit, or if a scale is not positive.
    pub fn symmetric(&self) -> Option<Tensor> {
        let scales = self.scale.to_f64s()?;
        if !scales.iter().all(|&s| s > 0.0) {
            return None;
        }
        if matches!(self.granularity, Granularity::Blocked { .. }) {
            let codes: Vec<u8> = self.centred.iter().map(|&q| q as u8 & 0xf).collect();
            return self
                .within(-8, 7)
                .then(|| pack(DType::I4, &self.dims, codes))?;
        }
        let bytes: Vec<i8> = self.centred.iter().map(|&q| q as i8).collect();
        let fits = self.within(i8::MIN.into(), i8::MAX.into());
        fits.then(|| Tensor::from_values(&self.dims[..], &bytes).ok())?
    }
}

/// The elements of a tensor of 4- to 32-bit integers.
pub fn integers(tensor: &Tensor) -> Option<Vec<i32>> {
    match tensor.dtype() {
        DType::I4 => {
            let signed = |code: u8| i32::from((code << 4) as i8 >> 4);
            Some(unpack(tensor)?.into_iter().map(signed).collect())
        }
        DType::U4 => Some(unpack(tensor)?.into_iter().map(i32::from).collect()),
        DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::I32 => {
            let wide = tensor.to_i64s()?;
            wide.into_iter().map(|v| i32::try_from(v).ok()).collect()
        }
        _ => None,
    }
}

/// The number of a scale that is a positive constant and serves the whole tensor.
pub(crate) fn one_scale(g: &Graph, v: Option<ValueId>) -> Option<f64> {
    let scale = g.constant(v?).filter(|t| t.rank() <= 1)?.as_f64()?;
    (scale > 0.0 && scale.is_finite()).then_some(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_element_has_its_scale() {
        let of = |g: Granularity| g.indices(&[2, 3, 2]).collect::<Vec<_>>();
        assert_eq!(of(Granularity::PerTensor), [0; 12]);
        assert_eq!(
            of(Granularity::PerAxis(1)),
            [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
        );
        let blocked = Granularity::Blocked { axis: 1, block: 2 };
        assert_eq!(of(blocked), [0, 1, 0, 1, 2, 3, 4, 5, 4, 5, 6, 7]);
    }

    #[test]
    fn a_scale_fits_its_tensor_or_is_refused() {
        let of = Granularity::of;
        assert_eq!(of(&[], &[2, 3], 1, 0), Some(Granularity::PerTensor));
        assert_eq!(of(&[1], &[2, 3], 1, 0), Some(Granularity::PerTensor));
        assert_eq!(of(&[3], &[2, 3], -1, 0), Some(Granularity::PerAxis(1)));
        let blocked = Granularity::Blocked { axis: 0, block: 2 };
        assert_eq!(of(&[2, 3], &[4, 3], 0, 2), Some(blocked));
        assert_eq!(of(&[2], &[2, 3], 1, 0), None);
        assert_eq!(
            of(&[2, 3], &[4, 3], 0, 3),
            Some(Granularity::Blocked { axis: 0, block: 3 })
        );
        assert_eq!(of(&[3, 3], &[4, 3], 0, 2), None);
    }

    #[test]
    fn four_bits_are_signed_or_not() {
        let codes = pack(DType::I4, &[3], vec![0x7, 0x8, 0xf]).unwrap();
        assert_eq!(integers(&codes), Some(vec![7, -8, -1]));
        let bytes = codes.bytes();
        let unsigned = Tensor::from_raw(DType::U4, &[3usize][..], bytes).unwrap();
        assert_eq!(integers(&unsigned), Some(vec![7, 8, 15]));
        assert_eq!(integers(&Tensor::scalar(1i64)), None);
    }
}
