//! Models that were wrong once, or refused for an untrue reason, as they came: what becomes of each now.
//!
//! Of those that are large, smaller ones are among the cases: decisions on ids (`half_decisions`, `half_bodies`), masks of
//! nn.MultiheadAttention (`mask_true_hides`, `mha_*`), sound (`cases_half`), random numbers (`proof_random`), numbers behind
//! convolutions (`cases_trt`).

use std::path::Path;

use crate::common;

use kiln::compile::{Options, compile};
use kiln::parity::Outcome;
use kiln::precision::Floats;
use kiln::talk::Silent;
use kiln::targets::Targets;

/// A model of `fixtures/cases`, the sizes it is tried at, and what its proof in FP16 is worth.
const REPORTED: &[(&str, &[&str], Outcome)] = &[
    ("attention24_causal_long_mask", &[], Outcome::Passes),
    ("attention24_softcap", &[], Outcome::Passes),
    ("cast_out", &["batch=1", "seq=16"], Outcome::Passes),
    ("chain_lora", &[], Outcome::Passes),
    ("chain_two", &[], Outcome::Passes),
    ("g_len", &[], Outcome::Passes),
    ("guard_max_table", &[], Outcome::Passes),
    ("guard_where_less", &[], Outcome::Passes),
    ("if_eps_outer", &[], Outcome::Passes),
    (
        "if_resize_outer",
        &["h=32", "w=32", "batch=1"],
        Outcome::Passes,
    ),
    ("if_trt_attn", &[], Outcome::Passes),
    ("ln_gamma_one_min", &[], Outcome::Passes),
    ("loops_scan", &[], Outcome::Passes),
    ("overridable", &[], Outcome::Passes),
    ("q_enc_qdq", &[], Outcome::Passes),
    ("qdq_conv1d_min_zp", &[], Outcome::Passes),
    ("raise_RandomNormalLike", &[], Outcome::NotProved),
    ("raise_RoiAlign", &[], Outcome::Passes),
    ("search_body_min", &[], Outcome::Passes),
    ("self_qkv_3d", &[], Outcome::Passes),
];

/// What compiles a model of `fixtures/cases` to FP16 for the CPU, into a folder.
pub fn halves(case: &str, folder: &Path) -> Options {
    Options {
        targets: Some(Targets::Cpu),
        output: Some(folder.join("m.kiln")),
        precision: Floats::Fp16.into(),
        latency: Some(false),
        ..Options::new(common::fixture(&format!("cases/{case}.onnx")))
    }
}

#[test]
fn models_that_were_reported_do_what_is_right() {
    if common::runtime().is_none() {
        return;
    }
    for (name, dims, expected) in REPORTED {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            dims: dims.iter().map(|d| d.parse().unwrap()).collect(),
            ..halves(name, folder.path())
        };
        let outcome = compile(&options, &Silent).unwrap_or_else(|e| panic!("{name}: {e}"));
        let report = outcome.manifest.parity.unwrap();
        assert_eq!(report.outcome(), *expected, "{name}");
    }
}
