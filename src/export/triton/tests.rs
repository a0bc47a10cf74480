use std::collections::BTreeMap;

use super::batching::batching;
use crate::export::facts::Facts;
use crate::shapes::Range;

fn facts(most: usize) -> Facts {
    let model = kiln_graph::onnx::read_text(
        "<ir_version: 8, opset_import: [\"\" : 20]> g (int64[batch, seq] ids) => (int64[batch, seq] y) { y = Identity(ids) }",
    );
    Facts {
        bundle: "b.kiln".into(),
        path: "b.kiln/model.onnx".into(),
        model: model.unwrap(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        batch: Some("batch".into()),
        sizes: BTreeMap::from([(
            "batch".to_string(),
            Range {
                min: 1,
                opt: 1,
                max: most,
            },
        )]),
        target: "cpu".into(),
        engine: None,
        parity: "passes".into(),
    }
}

#[test]
fn batches_that_pay_are_preferred() {
    let mut notes = Vec::new();
    // Twice as fast at 4 as alone, and no faster at 8.
    let curve = vec![(1, 8e6), (2, 10e6), (4, 16e6), (8, 32e6)];
    let found = batching(&facts(8), &curve, &mut notes).unwrap();
    assert_eq!(found.preferred, [4, 8]);
    assert_eq!(found.microseconds, Some(2000));
    assert!(found.why.contains("4: 16.00 ms"), "{}", found.why);
    assert!(notes.is_empty());
}

#[test]
fn batches_that_do_not_pay_are_not_waited_for() {
    let mut notes = Vec::new();
    let curve = vec![(1, 8e6), (2, 15.9e6), (4, 32e6)];
    assert_eq!(batching(&facts(4), &curve, &mut notes), None);
    assert!(notes[0].contains("at most 1.01 times"), "{notes:?}");
    // One sample at a time leaves nothing to join.
    assert_eq!(batching(&facts(1), &curve, &mut notes), None);
    // Without a measurement, Triton decides.
    let found = batching(&facts(4), &Vec::new(), &mut notes).unwrap();
    assert!(found.preferred.is_empty() && found.microseconds.is_none());
}
