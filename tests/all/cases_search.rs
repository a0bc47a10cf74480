//! What a search keeps of models that decide by their own numbers: which key is seen follows from every layer before it.

use crate::cases_reported::halves;
use crate::common;

use kiln::compile::compile;
use kiln::parity::Outcome;
use kiln::talk::Silent;

/// Attention that sees the three best keys, or the best one alone. A rounding of queries or keys takes another one, so both products keep
/// FP32, and those behind the decision do not.
#[test]
fn the_way_to_a_decision_keeps_fp32_and_what_is_behind_it_does_not() {
    if common::runtime().is_none() {
        return;
    }
    let behind = [
        ("search_topk", "MatMul_20 "),
        ("search_argmax", "MatMul_18 "),
    ];
    for (case, last) in behind {
        let folder = tempfile::tempdir().unwrap();
        let options = halves(case, folder.path());
        let outcome = compile(&options, &Silent).unwrap_or_else(|e| panic!("{case}: {e}"));
        let manifest = outcome.manifest;
        assert_eq!(manifest.parity_outcome, Some(Outcome::Passes), "{case}");
        let kept = manifest.search.unwrap().kept;
        let has = |name: &str| kept.iter().any(|k| k.starts_with(name));
        assert!(has("MatMul_0 ") && has("MatMul_3 "), "{case}: {kept:?}");
        assert!(!has("MatMul_6 ") && !has(last), "{case}: {kept:?}");
    }
}
