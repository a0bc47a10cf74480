//! FP32 to FP16.

use kiln_graph::Model;

use super::convert;
use super::format::HalfFormat;
use crate::core::pass::{Context, Exactness, Pass, PassFailure};

#[derive(Debug)]
pub struct ConvertFp16;

impl Pass for ConvertFp16 {
    fn name(&self) -> &'static str {
        "convert-fp16"
    }

    fn about(&self) -> &'static str {
        "make the model half precision, with FP32 kept where it must be"
    }

    fn details(&self) -> String {
        format!(
            "Every FP32 node becomes FP16, except normalizations, whose squares overflow beyond 256, and what is kept below. Its \
             numbers end at 65504, and have fewer digits below 6.1e-5. {}",
            convert::DETAILS
        )
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        convert::run(self.name(), HalfFormat::Fp16, model, cx)
    }
}
