//! Linear layers and convolutions in INT8.

use kiln_graph::Model;

use super::quantize::Quantizer;
use super::reading::Form;
use crate::core::pass::{Context, Exactness, Pass, PassFailure};
use crate::precision::numbers::weights::Rounding;

#[derive(Debug)]
pub struct QuantizeInt8;

const NAME: &str = "quantize-int8";

impl Pass for QuantizeInt8 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "multiply in 8-bit integers in linear layers, outlier channels apart, and in convolutions"
    }

    fn details(&self) -> String {
        "`x · w` with a constant w [K, N] becomes a product of quantized numbers: w is INT8 with one scale for each column, x \
         has one scale for all, from calibration. For TensorRT, what the columns' scales have in common is the scale of w, and a Mul \
         behind the product has the rest: its kernels apply one scale only. TensorRT takes x as INT8 around zero, ONNX Runtime as UINT8 with a zero \
         point; both are written as QuantizeLinear and DequantizeLinear, which they fuse into the product. Ranges are those \
         with the least expected error of min-max, percentile, entropy and MSE; weights are clamped where that lowers the error \
         of the product, and on data of the user rounded so that errors make up for each other (GPTQ), for inputs of up to 2048 channels. Up to 16 channels of x that are much larger than the others are multiplied apart as floats, or channels are \
         divided by factors that the rows of w take (SmoothQuant): in a norm that nothing else reads for free, else by a Mul if \
         that halves the error. \
         For TensorRT, whose kernels compute what is elementwise on the way, the result of a norm loses an offset in each channel and is divided by \
         factors, and no channel stands apart there; where half of a range around zero would be empty, as behind Gelu, its middle is \
         taken away. The bias gives back what that takes, and, for all targets, what rounding the weight takes from the means of the columns. \
         TensorRT's products write INT8 themselves where the result is no output of the model, and one scale \
         leaves an error 33 dB below it and 30 dB below the changes of its columns; in front of Gelu and Relu, columns much wider than the \
         others get coarser weights, so that all have more steps. \
         Queries, keys and values that one product projects become three with one scale and no biases where nothing else reads what is projected, or there is \
         one batch: attention then reads their result where it lies. Scales of columns go from queries to keys and from values to the output projection, \
         biases into weights and the output projection's bias. \
         A Conv (for TensorRT also ConvTranspose) has INT8 weights with one scale for each output channel, where one scale leaves its \
         input, and for ONNX Runtime its result, an error 33 dB below them; ONNX Runtime convolves integers only if the result is \
         quantized too, so there it stays bytes through Reshape, Slice and their like. Where ranges are \
         dynamic, x is quantized by the range of each run (ONNX Runtime only); calibration, if there is any, finds channels to leave apart and \
         factors. Products of two \
         activations, residual sums, convolutions with groups, weights below 16 rows or columns and nodes that the user names stay, and the manifest \
         says why."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        let facts = cx.target.facts;
        let activation = match (cx.options.dynamic, facts.dynamic_int8) {
            (true, false) => {
                return Err(PassFailure::Nothing(format!(
                    "{} has no dynamic quantization: it wants ranges from calibration data",
                    facts.runtime
                )));
            }
            (true, true) => Form::Dynamic,
            (false, _) => Form::Static(facts.int8),
        };
        Quantizer {
            pass: NAME,
            weight: Rounding::Int8,
            activation,
            since: 13,
        }
        .run(model, cx)
    }
}
