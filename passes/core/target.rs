//! Targets as data: what a pass may ask instead of knowing a name.

use kiln_graph::{DType, Graph, Op, ValueId};

use crate::precision::numbers::format::Format;

/// The domain of ONNX Runtime's own operators.
pub(crate) const MICROSOFT: &str = "com.microsoft";

/// What the compiler writes for.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name the user gave: `cpu`, `sm_89`, …
    pub name: String,
    /// Whether it multiplies matrices in FP32, and in integers with a result in FP32. Turing's TensorRT does neither.
    pub fp32_products: bool,
    pub facts: &'static Facts,
}

impl Target {
    /// Whether it has operators of this domain beside ONNX's own.
    pub(crate) fn takes(&self, domain: &str) -> bool {
        self.facts.imports.iter().any(|(name, _)| *name == domain)
    }
}

/// What a runtime takes, and what goes fast on it: one table for each dialect, in `targets/`.
#[derive(Debug)]
pub struct Facts {
    /// Of the operators that it takes: `standard`, `tensorrt`, `cpu`, `cuda`.
    pub dialect: &'static str,
    /// What users call it.
    pub runtime: &'static str,
    /// The default-domain operator set that the model is raised to, if it is older.
    pub opset: i64,
    /// Operator sets beside the default one that its operators are of.
    pub imports: &'static [(&'static str, i64)],

    /// Whether it has a kernel for an operator of this operator set over floats of a type. `None`: it runs all that its standard has.
    pub has_kernel: Option<fn(Op, i64, DType) -> bool>,

    // What stands for internal operators. `None`: the operator is spelled out.
    /// x · σ(alpha · x) with the attribute `alpha`.
    pub swish: Option<Native>,
    /// x and scale, with `axis` and `epsilon`.
    pub rms_norm: Option<Native>,
    pub rotary: Option<(Native, RotaryTables)>,
    /// GroupNormalization with a scale for each channel.
    pub group_norm: Option<Native>,
    /// com.microsoft:MatMulNBits, for products with weights in INT4.
    pub nbits_product: Option<Native>,
    /// That operator adds a bias.
    pub nbits_product_adds: bool,
    /// Forms of attention by the type of its operands; what is not here goes fastest as [`AttentionForm::Products`].
    pub attention: &'static [(DType, AttentionForm)],
    /// Types in which ONNX's own Attention goes fastest where heads of queries share keys, or where it joins keys and values with
    /// those of earlier steps. The model is raised to its operator set for that.
    pub standard_attention: &'static [DType],

    // Attention.
    /// The two products of attention become one kernel with all that is computed on the scores between them, so that
    /// conditions on scores cost nothing, and conditions on queries or results cost kernels of their own. It takes as many heads of
    /// keys as of queries.
    pub joins_attention: bool,
    /// What is added to attention's scores takes a kernel of its own where it is computed, and none where it is a constant.
    pub computes_positions_apart: bool,
    /// Attention operators that a model came with are written anew.
    pub rewrites_attention: bool,
    /// Attention is an operator that scales scores before it adds biases.
    pub scales_before_biases: bool,
    /// Queries, keys and values are written once more because of a bias between their projection and the telling apart of heads.
    pub biases_keep_projections_apart: bool,

    /// Queries and keys are rotated by a kernel each where their tables were written before.
    pub rotates_apart: bool,

    // Norms.
    /// Statistics of norms are computed in the operands' type, so that operands of 16 bits are widened.
    pub narrow_statistics: bool,
    /// It joins a residual sum and a norm by itself into a kernel that is slower than the two.
    pub skip_norm_is_slow: bool,
    /// Layer and RMS normalization take operands of 16 bits and compute their statistics in FP32, so that they may be narrowed.
    pub half_norms: bool,
    /// LSTM, GRU and RNN of 16 bits take lengths of sequences.
    pub half_lengths: bool,
    /// Types of com.microsoft's SkipLayerNormalization and SkipSimplifiedLayerNormalization, which take in the residual sum in front
    /// of a norm and the bias of what is added.
    pub skip_norms: &'static [DType],
    /// Types of com.microsoft's BiasGelu and FastGelu, which take in the bias in front of the activation.
    pub biased_gelu: &'static [DType],

    // Products.
    /// One product with packed weights and a Split beats the products it replaces.
    pub packs_projections: bool,
    /// It makes one product of those of one input by itself, so that an activation behind one of them is a kernel of its own.
    pub packs_products: bool,
    /// A product with an odd number of columns gets one more, which is cut off again in what it is cast to.
    pub pads_odd_products: bool,
    /// What computes each element by itself is part of the kernel in front of it, and costs nothing.
    pub joins_elementwise: bool,

    // Quantization.
    /// What activations of static INT8 become.
    pub int8: Format,
    /// INT8 by the range of each run.
    pub dynamic_int8: bool,
    /// Integers may stand for floats around another number than zero.
    pub zero_points: bool,
    /// It takes operators that compute on integers, and weights that they packed, as a model came with them.
    pub integer_operators: bool,
    /// Products of quantized numbers have one scale for the whole weight, and factors of the columns behind.
    pub scales_columns_behind: bool,
    /// A product of integers writes INT8 itself where QuantizeLinear follows.
    pub writes_bytes: bool,
    /// INT8 constants stand in front of DequantizeLinear only.
    pub confines_bytes: bool,
    /// It has kernels for transposed convolutions of integers.
    pub quantizes_transposed_conv: bool,
    /// A convolution is one of integers only if its result is quantized too.
    pub quantizes_results_of_conv: bool,
    /// Blocks of INT4 divide a weight's rows, and its columns come in pairs.
    pub wants_whole_blocks: bool,
    /// Products with one weight in INT4 that do not depend on each other must read constants of their own.
    pub confuses_shared_weights: bool,
    /// A product that reads the heads of attention where they lie has its INT4 weight written in floats by a kernel of its own.
    pub dequantizes_apart: bool,

    // Caches.
    /// A cache that is written into is an input, and an output in the same memory: nothing is cast between them.
    pub binds_caches: bool,
    /// Attention over such a cache is the standard operator, which reads it where it is; two products read a copy of it.
    pub attends_to_caches: bool,

    // Shapes.
    /// Results of an If whose branches differ in a size are vectors.
    pub flattens_branches: bool,
    /// EyeLike has known sizes.
    pub needs_sizes_of_eye_like: bool,
    /// OneHot has a known depth, and Hardmax a known axis.
    pub needs_depth_of_one_hot: bool,
    /// One number added behind a convolution along one axis is written once for each channel.
    pub spreads_offsets: bool,
}

/// An operator of the target that computes what an internal one does.
#[derive(Debug)]
pub struct Native {
    pub domain: &'static str,
    pub name: &'static str,
    /// The operator set of the model from which it may be used.
    pub since: i64,
    /// What it has kernels for; empty where it takes every type that the operator may have.
    pub dtypes: &'static [DType],
}

impl Native {
    /// The operator, if it may stand in the graph and has a kernel for the value's type.
    pub(crate) fn over(&self, g: &Graph, v: ValueId) -> Option<Op> {
        let dtype = g.value(v).ty().dtype();
        let typed = self.dtypes.is_empty() || dtype.is_some_and(|d| self.dtypes.contains(&d));
        (typed && g.opset() >= self.since).then(|| Op::new(self.domain, self.name))
    }
}

/// How a rotary embedding reads its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryTables {
    /// Rows `[length, rotated / 2]` by position, shared by all sequences.
    ByPosition,
    /// Tables `[batch, length, rotated / 2]`.
    OfEachSequence,
}

/// How attention is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionForm {
    /// com.microsoft:MultiHeadAttention. `projects`: Attention of the same domain where it can project its one input itself.
    MultiHead { projects: bool },
    /// com.microsoft:MultiHeadAttention, whose one operand has queries, keys and values where one product can give them so.
    Packed,
    /// com.microsoft:GroupQueryAttention, which rotates queries and keys itself, where each query sees the keys up to its own.
    Grouped,
    /// ONNX's own Attention.
    Standard,
    /// MatMul, Softmax, MatMul.
    Products,
}

impl Facts {
    /// The form in which attention over this dtype goes fastest.
    pub fn attention_over(&self, dtype: DType) -> AttentionForm {
        let found = self.attention.iter().find(|(d, _)| *d == dtype);
        found.map_or(AttentionForm::Products, |(_, form)| *form)
    }
}

pub(crate) fn microsoft(name: &str) -> Op {
    Op::new(MICROSOFT, name)
}
