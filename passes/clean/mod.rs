//! Cleanup: what computes nothing, twice, or for nobody.

pub mod deduplicate;
pub mod eliminate_dead;
pub mod eliminate_noop;
pub mod expand_einsum;
pub mod join_slices;
pub mod merge_chains;
pub mod merge_views;
pub mod normalize_axes;
pub mod normalize_powers;
pub mod normalize_scores;
pub mod simplify_masks;
pub mod sink_scales;
pub mod take_rows;
pub mod unflatten_gemm;
