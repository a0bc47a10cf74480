//! Quantization and its inverse.

use super::view;
use crate::{DType, ValueId};

view! {
    QuantizeLinear: "QuantizeLinear" {
        "axis": Int, "saturate": Int, "block_size": Int, "output_dtype": Int, "precision": Int,
    }
}

impl QuantizeLinear<'_> {
    /// The axis of a scale that is 1-D or blocked (QuantizeLinear-13); negative ones count from the back.
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    /// Elements along the axis that share a scale (QuantizeLinear-21); 0 if the scale is not blocked.
    pub fn block_size(&self) -> i64 {
        self.int("block_size")
    }

    pub fn saturates(&self) -> bool {
        self.flag("saturate")
    }

    /// The dtype of the result: the zero point's if there is one, else `output_dtype` (QuantizeLinear-21), else uint8.
    /// `None` if the zero point's is unknown.
    pub fn to(&self) -> Option<DType> {
        if self.zero_point().is_some() {
            return self.dtype(2);
        }
        match self.int("output_dtype") {
            0 => Some(DType::U8),
            number => DType::from_onnx(i32::try_from(number).ok()?),
        }
    }

    pub fn scale(&self) -> Option<ValueId> {
        self.input(1)
    }

    pub fn zero_point(&self) -> Option<ValueId> {
        self.input(2)
    }

    /// Whether one scale certainly serves the whole tensor.
    pub fn is_per_tensor(&self) -> bool {
        self.rank(1) == Some(0)
    }
}

view! {
    DequantizeLinear: "DequantizeLinear" { "axis": Int, "block_size": Int, "output_dtype": Int }
}

impl DequantizeLinear<'_> {
    /// The axis of a scale that is 1-D or blocked (DequantizeLinear-13); negative ones count from the back.
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    /// Elements along the axis that share a scale (DequantizeLinear-21); 0 if the scale is not blocked.
    pub fn block_size(&self) -> i64 {
        self.int("block_size")
    }

    /// The dtype of the result: `output_dtype` (DequantizeLinear-23) or the scale's; FP32 before
    /// DequantizeLinear-19. `None` if it is the scale's and that is unknown.
    pub fn to(&self) -> Option<DType> {
        match self.int("output_dtype") {
            0 if self.opset() < 19 => Some(DType::F32),
            0 => self.dtype(1),
            number => DType::from_onnx(i32::try_from(number).ok()?),
        }
    }

    pub fn scale(&self) -> Option<ValueId> {
        self.input(1)
    }

    pub fn zero_point(&self) -> Option<ValueId> {
        self.input(2)
    }

    /// Whether one scale certainly serves the whole tensor.
    pub fn is_per_tensor(&self) -> bool {
        self.rank(1) == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attrs, Tensor};

    #[test]
    fn result_types() {
        let scale = Some(Tensor::scalar(0.5f32));
        let (g, n) = node(
            13,
            "QuantizeLinear",
            Attrs::new(),
            std::slice::from_ref(&scale),
        );
        let q = QuantizeLinear::of(&g, n).unwrap();
        assert_eq!(
            (q.to(), q.axis(), q.is_per_tensor()),
            (Some(DType::U8), 1, true)
        );
        let zero = Some(Tensor::scalar(0i8));
        let (g, n) = node(21, "QuantizeLinear", Attrs::new(), &[scale, zero]);
        assert_eq!(QuantizeLinear::of(&g, n).unwrap().to(), Some(DType::I8));
        let scale = Some(Tensor::vector(&[half::f16::ONE]));
        let (g, n) = node(19, "DequantizeLinear", Attrs::new(), &[scale]);
        let dq = DequantizeLinear::of(&g, n).unwrap();
        assert_eq!(
            (dq.to(), dq.is_per_tensor(), dq.block_size()),
            (Some(DType::F16), false, 0)
        );
    }
}
