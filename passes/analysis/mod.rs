//! What a graph says, read by several passes. Nothing here changes one.

pub mod attention;
pub(crate) mod broadcast;
pub mod census;
pub(crate) mod depends;
pub(crate) mod heads;
pub mod mask;
pub(crate) mod norm_readers;
pub(crate) mod plane;
pub mod view;
