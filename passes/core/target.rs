//! Targets as values: what a pass may ask instead of knowing a name.

use kiln_graph::{DType, Op};

/// The domain of ONNX Runtime's own operators.
pub(crate) const MICROSOFT: &str = "com.microsoft";

pub(crate) fn microsoft(name: &str) -> Op {
    Op::new(MICROSOFT, name)
}

/// The operators a target's front end takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Plain ONNX, for any runtime.
    Standard,
    /// What TensorRT's parser imports: standard ONNX only, strongly typed.
    TensorRt,
    /// ONNX Runtime, with its `com.microsoft` operators.
    OnnxRuntime,
}

/// How attention is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionForm {
    /// com.microsoft:MultiHeadAttention.
    MultiHead,
    /// MatMul, Softmax, MatMul.
    Products,
}

/// What the compiler writes for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name the user gave: `cpu`, `sm_89`, …
    pub name: String,
    pub dialect: Dialect,
    /// The default-domain operator set that the model is raised to, if it is older.
    pub opset: i64,
    /// Whether it multiplies matrices in FP32, and in integers with a result in FP32. Turing's TensorRT does neither.
    pub fp32_products: bool,
}

impl Target {
    /// ONNX Runtime's CPU provider.
    pub fn cpu() -> Target {
        Target {
            name: "cpu".into(),
            dialect: Dialect::OnnxRuntime,
            opset: 20,
            fp32_products: true,
        }
    }

    /// TensorRT on the GPU of this name.
    pub fn tensorrt(name: &str) -> Target {
        Target {
            name: name.into(),
            dialect: Dialect::TensorRt,
            opset: 23,
            fp32_products: true,
        }
    }

    /// Any ONNX runtime.
    pub fn standard() -> Target {
        Target {
            name: "standard".into(),
            dialect: Dialect::Standard,
            opset: 20,
            fp32_products: true,
        }
    }

    /// Whether the runtime joins a residual sum and a norm by itself into a kernel that is slower than the two.
    pub fn skip_norm_is_slow(&self) -> bool {
        self.dialect == Dialect::OnnxRuntime
    }

    /// Whether one product with packed weights and a Split beats the products it replaces.
    pub fn packs_projections(&self) -> bool {
        self.dialect != Dialect::OnnxRuntime
    }

    /// Whether queries, keys and values are written once more because of a bias between their projection and the telling
    /// apart of heads. TensorRT for RTX 1.7.1 reads heads out of a product's result as it is (measured, docs/decisions.md);
    /// ONNX Runtime's operators take the biases with them.
    pub fn biases_keep_projections_apart(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether integers stand for floats around zero only, between QuantizeLinear and DequantizeLinear: TensorRT has no
    /// zero points, no UINT8 and no arithmetic on integers (its `docs/operators.md`).
    pub fn quantizes_symmetrically(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether products of quantized numbers have one scale for the whole weight, and factors of the columns behind. With a scale
    /// for each column TensorRT's builder multiplies what a Split takes apart in floats, and hands on the bare sums of integers,
    /// which FP16 cannot hold (measured with TensorRT for RTX 1.7.1: kernels and constants of the plan).
    pub fn scales_columns_behind(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether what computes each element by itself is part of the kernel in front of it, and costs nothing.
    pub fn joins_elementwise(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether INT8 constants stand in front of DequantizeLinear only: TensorRT for RTX 1.7.1 says so where another node reads
    /// one.
    pub fn confines_bytes(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether it has kernels for transposed convolutions of integers. ONNX Runtime has none.
    pub fn quantizes_transposed_conv(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether a convolution is one of integers only if its result is quantized too (ONNX Runtime's QLinearConv).
    pub fn quantizes_results_of_conv(&self) -> bool {
        self.dialect != Dialect::TensorRt
    }

    /// Whether what is added to attention's scores takes a kernel of its own where it is computed, and none where it is a
    /// constant (measured with TensorRT for RTX 1.7.1).
    pub fn computes_positions_apart(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether attention operators that a model came with are written anew: TensorRT's has one result, no keys of earlier
    /// steps, no lengths, no cap and no mask beside causality, and is none in bodies; those of com.microsoft it misreads.
    pub fn rewrites_attention(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether results of an If whose branches differ in a size are vectors: TensorRT's builder stops at other ones beside
    /// another dynamic size.
    pub fn flattens_branches(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether attention is an operator that scales scores before it adds biases. TensorRT finds either spelling by itself, and
    /// scaling biases apart costs a kernel a layer (XLNet with TensorRT for RTX 1.7.1: 32 kernels instead of 30).
    pub fn scales_before_biases(&self) -> bool {
        self.dialect == Dialect::OnnxRuntime
    }

    /// Whether EyeLike has known sizes: TensorRT's parser refuses others.
    pub fn needs_sizes_of_eye_like(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether one number added behind a convolution along one axis is written once for each channel: TensorRT's builder
    /// makes it the bias and stops at one of one element (measured with TensorRT for RTX 1.7.1).
    pub fn spreads_offsets(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether products with one weight in INT4 that do not depend on each other must read constants of their own: TensorRT's
    /// builder crashes (measured with TensorRT for RTX 1.7.1).
    pub fn confuses_shared_weights(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether blocks of INT4 divide a weight's rows and its columns come in pairs. TensorRT for RTX 1.7 stores an odd
    /// number of columns as floats (measured: size of engines). It builds a shorter last block too, but what that
    /// computes has not been run.
    pub fn wants_whole_blocks(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether products of one input become one, so that an activation behind one of them is a kernel of its own (measured by
    /// TensorRT's list of kernels).
    pub fn packs_products(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether a product that reads the heads of attention where they lie has its INT4 weight written in floats by a kernel of
    /// its own (measured in the same way).
    pub fn dequantizes_apart(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// Whether a product with an odd number of columns gets one more, which is cut off again in what it is cast to (measured in
    /// the same way).
    pub fn pads_odd_products(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }

    /// The form in which attention over this dtype goes fastest.
    pub fn attention(&self, dtype: DType) -> AttentionForm {
        match self.dialect {
            Dialect::OnnxRuntime if dtype == DType::F32 => AttentionForm::MultiHead,
            _ => AttentionForm::Products,
        }
    }

    /// Whether the two products of attention become one kernel with all that is computed on the scores between them, so that
    /// conditions on scores cost nothing, and conditions on queries or results cost kernels of their own (measured with
    /// TensorRT for RTX 1.7.1). It takes as many heads of keys as of queries.
    pub fn joins_attention(&self) -> bool {
        self.dialect == Dialect::TensorRt
    }
}
