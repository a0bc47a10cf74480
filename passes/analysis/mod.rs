//! What a graph says, read by several passes. Nothing here changes one.

pub mod attention;
pub(crate) mod broadcast;
pub mod census;
pub mod mask;
pub mod view;
