//! The two float formats of 16 bits: their numbers, and which operators take them.

use kiln_graph::ops::kind::{Kind, kind};
use kiln_graph::ops::schema::{self, Port, Schema, Types};
use kiln_graph::{DType, Op};

use crate::precision::numbers::format::{Floats, Format};

/// What a conversion makes of FP32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfFormat {
    Fp16,
    Bf16,
}

use HalfFormat::{Bf16, Fp16};

impl HalfFormat {
    pub fn format(self) -> Format {
        match self {
            Fp16 => Format::Fp16,
            Bf16 => Format::Bf16,
        }
    }

    pub fn dtype(self) -> DType {
        self.format().dtype()
    }

    pub fn name(self) -> &'static str {
        self.format().name()
    }

    /// What the name of a converted copy ends in.
    pub fn suffix(self) -> &'static str {
        match self {
            Fp16 => "fp16",
            Bf16 => "bf16",
        }
    }

    /// The largest finite number.
    pub fn max(self) -> f64 {
        self.format().max()
    }

    /// What a mask's -1e12 or -3.4e38 becomes: so low that nothing of it is left behind a softmax, and so far from the end
    /// of the range that a score can be added to it. In the middle of FP16's last binade scores below 16 are lost in it, as
    /// they are in FP32, and scores up to 16 thousand do not make it infinite, which is NaN where a row is all masked.
    pub fn fill(self) -> f64 {
        match self {
            Fp16 => 49152.0,
            Bf16 => self.max(),
        }
    }

    /// The smallest positive normal number; below it, numbers have fewer digits.
    pub fn normal(self) -> f64 {
        self.format().floats().map_or(0.0, Floats::normal)
    }

    /// The smallest positive number.
    pub fn tiny(self) -> f64 {
        self.format().floats().map_or(0.0, Floats::tiny)
    }

    /// The largest relative error of a rounding: half a unit in the last of the significant bits.
    pub fn unit(self) -> f64 {
        self.format().floats().map_or(0.0, Floats::unit)
    }

    /// Why no node of an operator can compute in this format, whatever its operands are.
    pub fn refuses(self, op: Op, opset: i64) -> Option<String> {
        let name = self.name();
        let none = Some(format!("ONNX's {op} has no form in {name}"));
        if op.is_any(NO_HALF) || matches!(kind(op), Kind::Random | Kind::Collection) {
            return none;
        }
        let Some(schema) = schema::schema(op, opset) else {
            return Some(format!("kiln does not know whether {op} takes {name}"));
        };
        if takes(op, schema, self.dtype()) {
            return None;
        }
        let newer = schema::versions(op).iter().filter(|s| s.since() > opset);
        match newer.into_iter().find(|s| takes(op, s, self.dtype())) {
            Some(schema) => Some(format!(
                "ONNX's {op} takes {name} from operator set {} on only",
                schema.since()
            )),
            None => none,
        }
    }
}

/// Whether the operands that may be FP32 may be of this dtype instead. Where no operand may, the results are asked.
fn takes(op: Op, schema: &Schema, dtype: DType) -> bool {
    let of = |ports: &[Port]| -> Vec<Types> {
        let types = ports.iter().map(Port::types);
        types.filter(|t| t.has(DType::F32)).collect()
    };
    let mut floats = of(schema.inputs());
    if op.is("Resize") {
        // Its regions of interest and scales keep their type: `half_rules::input_stays`.
        floats.truncate(1);
    } else if floats.is_empty() {
        floats = of(schema.outputs());
    }
    let (fixed, free): (Vec<_>, Vec<_>) = floats.into_iter().partition(|t| t.sole().is_some());
    free.iter().all(|t| t.has(dtype)) && (fixed.is_empty() || !free.is_empty())
}

/// Operators of the default domain that keep their type whatever their schemas admit.
const NO_HALF: &[&str] = &[
    // The type of the result is written in an attribute.
    "BlackmanWindow",
    "EyeLike",
    "HammingWindow",
    "HannWindow",
    "MelWeightMatrix",
    // ONNX Runtime has no kernels.
    "DFT",
    "QLinearMatMul",
    "STFT",
    // They mean what newer operators do, which are converted.
    "SequenceMap",
    "Upsample",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_sets_decide() {
        let why = |format: HalfFormat, op, opset| format.refuses(Op::onnx(op), opset);
        assert_eq!(why(Fp16, "Conv", 11), None);
        assert!(why(Fp16, "IsInf", 13).is_some());
        assert_eq!(
            why(Bf16, "Conv", 20).as_deref(),
            Some("ONNX's Conv takes BF16 from operator set 22 on only")
        );
        assert_eq!(why(Bf16, "Conv", 22), None);
        assert_eq!(
            why(Bf16, "Shrink", 22).as_deref(),
            Some("ONNX's Shrink has no form in BF16")
        );
        assert_eq!(why(Fp16, "Shrink", 22), None);
        assert_eq!(
            why(Fp16, "Range", 22).as_deref(),
            Some("ONNX's Range takes FP16 from operator set 27 on only")
        );
        assert_eq!(
            why(Fp16, "DequantizeLinear", 13).as_deref(),
            Some("ONNX's DequantizeLinear takes FP16 from operator set 19 on only")
        );
        for op in [
            "Resize",
            "LayerNormalization",
            "Where",
            "ConstantOfShape",
            "If",
            "Not",
            "Gather",
        ] {
            assert_eq!(why(Fp16, op, 17), None, "{op}");
        }
        assert!(why(Bf16, "ConstantOfShape", 19).is_some());
        for op in [
            "RandomNormal",
            "EyeLike",
            "NonMaxSuppression",
            "QLinearConv",
            "SequenceAt",
        ] {
            assert!(why(Fp16, op, 22).is_some(), "{op}");
        }
        assert_eq!(
            why(Fp16, "Whatever", 22).as_deref(),
            Some("kiln does not know whether Whatever takes FP16")
        );
    }
}
