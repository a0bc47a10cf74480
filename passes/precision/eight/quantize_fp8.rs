//! Linear layers in FP8.

use kiln_graph::Model;

use super::quantize::Quantizer;
use super::reading::Form;
use crate::core::pass::{Context, Exactness, Pass, PassFailure};
use crate::precision::numbers::format::Format;
use crate::precision::numbers::weights::Rounding;

#[derive(Debug)]
pub struct QuantizeFp8;

const NAME: &str = "quantize-fp8";

impl Pass for QuantizeFp8 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "multiply in FP8 (E4M3) in linear layers"
    }

    fn details(&self) -> String {
        "`x · w` with a constant w [K, N] becomes a product of FP8 numbers (E4M3, up to 448): w has one scale for each \
         column, in the product or in a Mul behind it, x one for all, from calibration, both written as QuantizeLinear and \
         DequantizeLinear of operator set 19. Steps \
         are relative, so that outlier channels rarely matter; those that do are multiplied apart, as with `quantize-int8`, or lose their mean where a norm \
         makes them for TensorRT. \
         Attention's projections get one scale and no biases, as with `quantize-int8`. \
         TensorRT multiplies in FP8 from sm_89 on."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        Quantizer {
            pass: NAME,
            weight: Rounding::Fp8,
            activation: Form::Static(Format::Fp8),
            since: 19,
        }
        .run(model, cx)
    }
}
