//! Versions of standard operators that ONNX Runtime does not run.
//!
//! A kernel without an upper version serves the one version that it names: where the standard made a newer one and ONNX
//! Runtime did not register it, a model that is raised beyond it does not load ("Could not find an implementation for
//! RoiAlign(22)"). The table was found by trying: `tools/kernels/gaps.py` gives each operator of ONNX, at each version up
//! to 24 and in each dtype, to ONNX Runtime's CPU provider (1.31.1) and prints those that an older version of the
//! operator loads in and this one does not.

use kiln_graph::{DType, Graph, Model, Node};

/// `(operators, the version without a kernel, the dtypes of the first operand that it concerns; all if there are none)`.
pub const GAPS: &[(&[&str], i64, &[DType])] = &[
    (
        &[
            "Bernoulli",
            "GlobalLpPool",
            "MaxRoiPool",
            "Multinomial",
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
            "RoiAlign",
        ],
        22,
        &[],
    ),
    (&["Mish"], 22, &[DType::F64]),
];

/// The newest operator set up to `to` in which ONNX Runtime still runs what it runs in operator set `from`.
pub fn newest_run(model: &Model, from: i64, to: i64) -> i64 {
    let mut newest = to;
    model.graph.for_each_graph(&mut |g| {
        let gaps = g.nodes().filter_map(|(_, node)| gap(g, node, from));
        newest = gaps.map(|version| version - 1).fold(newest, i64::min);
    });
    newest
}

/// The first version after `from` in which a node has no kernel.
fn gap(g: &Graph, node: &Node, from: i64) -> Option<i64> {
    let dtype = node.input(0).and_then(|v| g.value(v).ty().dtype());
    let concerns = |(ops, version, dtypes): &&(&[&str], i64, &[DType])| {
        *version > from
            && node.op().is_any(ops)
            && (dtypes.is_empty() || dtype.is_some_and(|d| dtypes.contains(&d)))
    };
    let versions = GAPS.iter().filter(concerns).map(|(_, version, _)| *version);
    versions.min()
}
