//! Fusions: several operators become one.

pub mod fuse_attention;
pub mod fuse_gelu;
pub mod fuse_layer_norm;
pub mod fuse_qkv;
