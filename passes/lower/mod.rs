//! Bringing the model into the form that the target takes.

mod attention_words;
pub mod detach_heads;
pub mod flatten_branches;
pub mod fold_positions;
mod grouped_attention;
mod hidden_keys;
pub mod join_biases;
mod keyless_rows;
pub mod lower_activations;
pub mod lower_attention;
pub mod lower_axes;
pub mod lower_eye_like;
pub mod lower_int4;
pub mod lower_norms;
pub mod lower_one_hot;
pub mod lower_rotary;
mod packed_projections;
pub mod pad_columns;
pub mod raise_for_attention;
pub mod rotate_together;
pub mod separate_gates;
pub mod separate_weights;
pub mod split_heads;
pub mod split_skip_norm;
pub mod spread_offsets;
mod standard_attention;
