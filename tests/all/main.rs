//! All integration tests in one binary: one is linked, and its tests share two cores. Tests that take a GPU are in `gpu.rs`, those of a build
//! without TensorRT in `without_tensorrt.rs`.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../passes/tests/harness/mod.rs"]
mod harness;

mod attention;
mod bisect;
mod cache;
mod cases_attn;
mod cases_half;
mod cases_inputs;
mod cases_proof;
mod cases_reported;
mod cases_search;
mod cases_sizes;
mod cases_steps;
mod cases_trt;
mod ci;
mod cli;
mod conformance;
mod controls;
mod cuda;
mod diff;
mod differential;
mod docs;
mod environment;
mod export;
mod export_genai;
mod faults;
mod fuzz;
mod gates;
mod generation;
mod gpu_bundle;
mod grouped_caches;
mod hostile;
mod house;
mod int4;
mod int8;
mod judge;
mod kept_caches;
mod machine;
mod manifest;
mod moves;
mod newcomer;
mod optimized;
mod overflow;
mod pages;
mod passes;
mod plan;
mod quantized;
mod readback;
mod recipe;
mod refused;
mod schema;
mod tables;
mod terminal;
mod verify;
mod wheel;
mod written_caches;
mod zoo;
