//! Transposed convolutions as convolutions, where those have integer kernels and the transposed ones have none.

use kiln_graph::{Attrs, DType, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct SplitTransposedConv;

impl Rule for SplitTransposedConv {
    fn name(&self) -> &'static str {
        "split-transposed-conv"
    }

    fn about(&self) -> &'static str {
        "write ConvTranspose as Conv and DepthToSpace, for targets that convolve integers only forward"
    }

    fn details(&self) -> String {
        "A ConvTranspose with stride s in both dimensions computes s² images, one for each place of a pixel in its s × s square, \
         each a convolution with every s-th row and column of the kernel turned around (Shi et al., \"Is the deconvolution \
         layer the same as a convolutional layer?\"). So it becomes one Conv with s² times the channels, DepthToSpace, and \
         Slice, which takes what `pads` cut off. The products are the same; they are added in another order. A Relu behind it \
         moves to the Conv. Only for INT8 with calibration, and for FP32 weights."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    /// Slice and DepthToSpace with modes.
    fn since(&self) -> i64 {
        11
    }

    fn roots(&self) -> &[&'static str] {
        &["ConvTranspose"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        if cx.target.facts.quantizes_transposed_conv {
            return Err(Miss::because("the target has it in integers"));
        }
        if cx.options.dynamic {
            return Err(Miss::because("convolutions take calibration"));
        }
        if let Some(why) = cx.options.keeps(g, root) {
            return Err(Miss::because(why));
        }
        let node = g.node(root);
        let (Some(x), Some(weight), Some(output)) = (node.input(0), node.input(1), node.output(0))
        else {
            return Err(Miss::none());
        };
        let shape = Square::of(g, root)?;
        let kernel = float(g, weight)?;
        let mut patch = Patch::new();
        let mut operands = vec![x.into(), patch.constant(shape.forward(kernel)?)];
        if let Some(bias) = node.input(2) {
            let bias: Vec<f32> = float(g, bias)?.values().unwrap_or_default();
            if bias.len() != shape.channels(kernel) {
                return Err(Miss::because(
                    "its bias has not one number for each channel",
                ));
            }
            let each = bias.iter().flat_map(|&b| vec![b; shape.phases()]);
            operands.push(patch.constant(Tensor::vector(&each.collect::<Vec<f32>>())));
        }
        let taps = shape.taps as i64;
        let attrs = Attrs::new()
            .with("group", shape.group as i64)
            .with("kernel_shape", vec![taps; 2])
            .with("pads", vec![taps - 1; 4]);
        let mut made = patch.node(Op::onnx("Conv"), operands, attrs);
        let mut end = output;
        if let Some(relu) = only_relu(g, output) {
            made = patch.node(Op::onnx("Relu"), [made], Attrs::new());
            end = relu;
        }
        if shape.stride > 1 {
            let attrs = Attrs::new()
                .with("blocksize", shape.stride as i64)
                .with("mode", "CRD");
            made = patch.node(Op::onnx("DepthToSpace"), [made], attrs);
        }
        if shape.cut != [0; 4] {
            made = shape.slice(&mut patch, made);
        }
        patch.replace(end, made);
        Ok(patch)
    }
}

/// The result of the Relu that alone reads a value.
fn only_relu(g: &Graph, v: ValueId) -> Option<ValueId> {
    let reader = g.single_use(v)?.node;
    let node = g.node(reader);
    node.op().is("Relu").then(|| node.output(0)).flatten()
}

fn float(g: &Graph, v: ValueId) -> Result<&Tensor, Miss> {
    let constant = g.constant(v).filter(|t| t.dtype() == DType::F32);
    constant.ok_or_else(|| Miss::at(v, 1, "it is no constant in FP32"))
}

/// A transposed convolution over two dimensions.
struct Square {
    group: usize,
    stride: usize,
    /// Rows and columns of the kernel.
    kernel: [usize; 2],
    /// Rows and columns of the kernels of the convolution: the kernel's over the stride, rounded up.
    taps: usize,
    /// Rows and columns to cut off, before and behind.
    cut: [i64; 4],
}

impl Square {
    fn of(g: &Graph, root: NodeId) -> Result<Square, Miss> {
        let conv = ops::Conv::of(g, root).ok_or_else(Miss::none)?;
        let attrs = conv.node().attrs();
        let (Some(strides), Some(dilations), Some(pads), Some(kernel)) =
            (conv.strides(), conv.dilations(), conv.pads(), conv.kernel())
        else {
            return Err(Miss::because("its kernel is unknown"));
        };
        let (&[stride, other], &[top, left, bottom, right], &[rows, columns]) =
            (&strides[..], &pads[..], &kernel[..])
        else {
            return Err(Miss::because("it is not over two dimensions"));
        };
        if conv.auto_pad() != Some(ops::AutoPad::NotSet) || attrs.ints("output_shape").is_some() {
            return Err(Miss::because("its padding depends on the input's size"));
        }
        if stride != other || dilations.iter().any(|&d| d != 1) {
            return Err(Miss::because("its strides differ, or it has dilations"));
        }
        let more = attrs.ints("output_padding").unwrap_or(&[0, 0]);
        let &[below, beside] = more else {
            return Err(Miss::because("its output_padding has not two numbers"));
        };
        let numbers = [stride, rows, columns, conv.group()];
        let limits = numbers.iter().all(|n| (1..=LARGEST).contains(n))
            && [top, left, bottom, right, below, beside]
                .iter()
                .all(|n| (0..=LARGEST).contains(n));
        if !limits {
            return Err(Miss::because("its sizes are no sizes of an image's kernel"));
        }
        // What output_padding adds behind the kernel's reach are rows that only the bias is in.
        let reach = (rows + (below - bottom).max(0)).max(columns + (beside - right).max(0));
        let taps = reach.div_euclid(stride) + i64::from(reach.rem_euclid(stride) > 0);
        let whole = taps * stride;
        Ok(Square {
            group: conv.group() as usize,
            stride: stride as usize,
            kernel: [rows as usize, columns as usize],
            taps: taps as usize,
            cut: [
                top,
                left,
                whole - rows - below + bottom,
                whole - columns - beside + right,
            ],
        })
    }

    /// Images that are interleaved.
    fn phases(&self) -> usize {
        self.stride * self.stride
    }

    /// Channels of the result.
    fn channels(&self, weight: &Tensor) -> usize {
        let each = weight.dims().get(1).copied().unwrap_or(0);
        each.saturating_mul(self.group)
    }

    /// The weight [C, M / group, kH, kW] as that of a convolution, [M · s², C / group, taps, taps].
    fn forward(&self, weight: &Tensor) -> Result<Tensor, Miss> {
        let wrong = || Miss::because("its weight is none of a transposed convolution");
        let [rows, columns] = self.kernel;
        let &[inputs, outputs, r, c] = weight.dims() else {
            return Err(wrong());
        };
        if [r, c] != self.kernel || inputs % self.group != 0 {
            return Err(wrong());
        }
        let values: Vec<f32> = weight.values().ok_or_else(wrong)?;
        let each = inputs / self.group;
        let (stride, taps) = (self.stride, self.taps);
        let dims = [self.group * outputs * self.phases(), each, taps, taps];
        let size = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let size = size.filter(|&n| n <= values.len().saturating_mul(4).saturating_add(1 << 16));
        let size =
            size.ok_or_else(|| Miss::because("its kernel is far from a multiple of its stride"))?;
        let mut made = Vec::with_capacity(size);
        for image in 0..self.group * outputs {
            let (group, output) = (image / outputs, image % outputs);
            for phase in 0..self.phases() {
                let (down, right) = (phase / stride, phase % stride);
                for input in 0..each {
                    let start = ((group * each + input) * outputs + output) * rows * columns;
                    for tap in 0..taps * taps {
                        let row = down + stride * (taps - 1 - tap / taps);
                        let column = right + stride * (taps - 1 - tap % taps);
                        let inside = row < rows && column < columns;
                        let at = start + row * columns + column;
                        made.push(if inside { values[at] } else { 0.0 });
                    }
                }
            }
        }
        Tensor::from_values(&dims[..], &made).map_err(|_| wrong())
    }

    fn slice(&self, patch: &mut Patch, x: Ref) -> Ref {
        let [top, left, bottom, right] = self.cut;
        let end = |n: i64| if n == 0 { i64::MAX } else { -n };
        let bounds = [vec![top, left], vec![end(bottom), end(right)], vec![2, 3]];
        let bounds = bounds.map(|b| patch.constant(Tensor::vector(&b)));
        let operands = std::iter::once(x).chain(bounds);
        patch.node(Op::onnx("Slice"), operands, Attrs::new())
    }
}

/// Larger kernels, strides and paddings are taken for nonsense.
const LARGEST: i64 = 1 << 10;
