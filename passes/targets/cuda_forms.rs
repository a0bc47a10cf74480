//! Forms that one model may take for ONNX Runtime's CUDA provider: tables that differ from its own in one fact. Measured beside each
//! other on a GPU, they say which facts its table should have.

use kiln_graph::DType;

use super::cuda::TABLE;
use crate::core::target::{AttentionForm, Facts, Target};

/// One way to write a model.
#[derive(Debug)]
pub struct Form {
    pub name: &'static str,
    /// What differs from the first form.
    pub about: &'static str,
    facts: &'static Facts,
}

impl Form {
    /// A target whose passes write this form.
    pub fn target(&self) -> Target {
        Target::of("cuda", self.facts)
    }
}

/// All forms; the first is what `cuda` as a target gives.
pub static FORMS: [Form; 9] = [
    Form {
        name: "chosen",
        about: "the target's own",
        facts: &super::cuda::FACTS,
    },
    Form {
        name: "packed-attention",
        about: "com.microsoft:Attention projects its input itself",
        facts: &PACKED,
    },
    Form {
        name: "packed-heads",
        about: "MultiHeadAttention reads queries, keys and values of each head side by side",
        facts: &HEADS,
    },
    Form {
        name: "grouped-attention",
        about: "causal attention is GroupQueryAttention, its rotation inside",
        facts: &GROUPED,
    },
    Form {
        name: "standard-attention",
        about: "ONNX's own Attention",
        facts: &STANDARD,
    },
    Form {
        name: "products",
        about: "attention as MatMul, Softmax, MatMul",
        facts: &PRODUCTS,
    },
    Form {
        name: "projections-apart",
        about: "queries, keys and values are products of their own",
        facts: &APART,
    },
    Form {
        name: "norms-apart",
        about: "residual sums stand in front of norms",
        facts: &NORMS,
    },
    Form {
        name: "biases-apart",
        about: "biases stand in front of Gelu",
        facts: &BIASES,
    },
];

const fn everywhere(form: AttentionForm) -> [(DType, AttentionForm); 3] {
    [(DType::F32, form), (DType::F16, form), (DType::BF16, form)]
}

static PACKED: Facts = Facts {
    attention: &const { everywhere(AttentionForm::MultiHead { projects: true }) },
    ..TABLE
};

static HEADS: Facts = Facts {
    attention: &const { everywhere(AttentionForm::Packed) },
    ..TABLE
};

static GROUPED: Facts = Facts {
    attention: &const { everywhere(AttentionForm::Grouped) },
    ..TABLE
};

static STANDARD: Facts = Facts {
    attention: &const { everywhere(AttentionForm::Standard) },
    ..TABLE
};

static PRODUCTS: Facts = Facts {
    attention: &[],
    standard_attention: &[],
    ..TABLE
};

static APART: Facts = Facts {
    packs_projections: false,
    ..TABLE
};

static NORMS: Facts = Facts {
    skip_norms: &[],
    ..TABLE
};

static BIASES: Facts = Facts {
    biased_gelu: &[],
    ..TABLE
};
