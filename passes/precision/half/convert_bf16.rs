//! FP32 to BF16.

use kiln_graph::Model;

use super::convert;
use super::format::HalfFormat;
use crate::core::pass::{Context, Exactness, Pass, PassFailure};

#[derive(Debug)]
pub struct ConvertBf16;

impl Pass for ConvertBf16 {
    fn name(&self) -> &'static str {
        "convert-bf16"
    }

    fn about(&self) -> &'static str {
        "make the model BF16, with FP32 kept where it must be"
    }

    fn details(&self) -> String {
        format!(
            "Every FP32 node becomes BF16, which has FP32's range and 8 significant bits, except normalizations, for whose sums these are too few, \
             and what is kept below. GPUs from sm_80 on compute in it. {}",
            convert::DETAILS
        )
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        convert::run(self.name(), HalfFormat::Bf16, model, cx)
    }
}
