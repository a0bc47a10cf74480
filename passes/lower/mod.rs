//! Bringing the model into the form that the target takes.

pub mod detach_heads;
pub mod flatten_branches;
pub mod fold_positions;
mod hidden_keys;
mod keyless_rows;
pub mod lower_activations;
pub mod lower_attention;
pub mod lower_axes;
pub mod lower_eye_like;
pub mod lower_int4;
pub mod lower_norms;
pub mod lower_rotary;
mod packed_projections;
pub mod pad_columns;
pub mod separate_gates;
pub mod separate_weights;
pub mod split_heads;
pub mod split_skip_norm;
pub mod spread_offsets;

use kiln_graph::{DType, Graph, ValueId};

use crate::core::target::{Dialect, MICROSOFT, Target};

/// What a lowering imports that makes operators of ONNX Runtime.
fn imports(target: &Target) -> &'static [(&'static str, i64)] {
    match target.dialect {
        Dialect::OnnxRuntime => &[(MICROSOFT, 1)],
        Dialect::Standard | Dialect::TensorRt => &[],
    }
}

/// Whether ONNX Runtime's CPU provider has kernels for a value's dtype.
fn has_kernels(g: &Graph, v: ValueId) -> bool {
    matches!(g.value(v).ty().dtype(), Some(DType::F32 | DType::F16))
}
