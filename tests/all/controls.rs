//! Inputs that select what is computed, each with sizes of its own; indices into lists whose length is open; positions.

use crate::common;

use std::path::Path;

use kiln::compile::{CompileError, Options, Outcome, compile};
use kiln::fault::Fault;
use kiln::parity::npz;
use kiln::shapes::{Kinds, Range, Shapes};
use kiln::talk::Silent;
use kiln::targets::Targets;
use kiln_graph::{DType, Model, Tensor, onnx};

/// Two weights of different lengths: which one is read, `condition` says.
fn modes(input: &str, condition: &str) -> String {
    format!(
        r#"<ir_version: 9, opset_import: ["" : 19]>
        g (float[batch, width] x, {input}) => (float[batch, 5] y)
        <int64[2] small = {{24, 5}}, int64[2] large = {{48, 5}}, int64 one = {{1}}, int64 two = {{2}}, float fast = {{2.0}},
         int32 three = {{3}}, string word = {{"small"}}>
        {{
            {condition}
            y = If (c) <
                then_branch = t () => (float[batch, 5] a) {{
                    v = ConstantOfShape<value = float[1] {{0.5}}>(small)
                    a = MatMul(x, v)
                }},
                else_branch = e () => (float[batch, 5] b) {{
                    w = ConstantOfShape<value = float[1] {{0.25}}>(large)
                    b = MatMul(x, w)
                }}
            >
        }}"#
    )
}

const INTEGER: (&str, &str) = ("int64 mode", "c = Equal(mode, one)");

fn range(min: usize, opt: usize, max: usize) -> Range {
    Range { min, opt, max }
}

/// `None` where there is no runtime.
fn compiled(
    text: &str,
    change: impl FnOnce(&mut Options, &Path),
) -> Option<Result<Outcome, CompileError>> {
    common::runtime()?;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, common::encode(text)).unwrap();
    let mut options = Options {
        targets: Some(Targets::Cpu),
        output: Some(folder.path().join("out.kiln")),
        latency: Some(false),
        ..Options::new(path)
    };
    change(&mut options, folder.path());
    Some(compile(&options, &Silent))
}

fn cases(outcome: &Outcome) -> Vec<&str> {
    let report = outcome.manifest.parity.as_ref().unwrap();
    report.cases.iter().map(|c| c.name.as_str()).collect()
}

fn told(outcome: &Outcome) -> String {
    outcome.manifest.warnings.join("\n")
}

#[test]
fn each_value_of_a_control_has_sizes_of_its_own() {
    let last = "m = ReduceMax<keepdims = 0>(mode)\n c = Less(m, three)";
    let both = "d = Equal(mode, one)\n e = Greater(mode, two)\n c = Or(d, e)";
    let members = [
        (INTEGER.0, INTEGER.1, "mode=2", 48),
        ("bool[1] mode", "c = Identity(mode)", "mode=false", 48),
        ("float[1] mode", "c = Greater(mode, fast)", "mode=2.5", 24),
        ("int32[1] mode", last, "mode=2", 24),
        ("string[1] mode", "c = Equal(mode, word)", "mode=other", 48),
        ("int64 mode", both, "mode=2", 48),
    ];
    for (input, condition, choice, width) in members {
        let Some(outcome) = compiled(&modes(input, condition), |_, _| {}) else {
            return;
        };
        let outcome = outcome.unwrap_or_else(|e| panic!("{input}: {e}"));
        let names = cases(&outcome);
        assert!(
            names.contains(&"typical") && names.contains(&choice),
            "{input}: {names:?}"
        );
        // The first way's sizes are the bundle's, and nothing is said to be baked in.
        let other = if width == 48 { 24 } else { 48 };
        assert_eq!(
            outcome.manifest.sizes["width"],
            Range::fixed(other),
            "{input}"
        );
        let told = told(&outcome);
        assert!(
            told.contains(&format!("with {choice} batch 1:1:8, width {width}")),
            "{told}"
        );
        assert!(!told.contains("baked"), "{told}");
    }
}

#[test]
fn a_branch_in_a_branch_has_sizes_of_its_own_too() {
    let text = modes(INTEGER.0, INTEGER.1).replace(
        "w = ConstantOfShape<value = float[1] {0.25}>(large)\n                    b = MatMul(x, w)",
        r#"d = Equal(mode, two)
        b = If (d) <
            then_branch = t2 () => (float[batch, 5] a2) {
                v2 = ConstantOfShape<value = float[1] {0.5}>(large)
                a2 = MatMul(x, v2)
            },
            else_branch = e2 () => (float[batch, 5] b2) {
                s2 = Constant<value = int64[2] {96, 5}>()
                w2 = ConstantOfShape<value = float[1] {0.25}>(s2)
                b2 = MatMul(x, w2)
            }
        >"#,
    );
    let Some(outcome) = compiled(&text, |_, _| {}) else {
        return;
    };
    let outcome = outcome.unwrap();
    let names = cases(&outcome);
    assert!(
        names.contains(&"mode=2") && names.contains(&"mode=3"),
        "{names:?}"
    );
    assert!(
        told(&outcome).contains("with mode=3 batch 1:1:8, width 96"),
        "{}",
        told(&outcome)
    );
}

const CACHE: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch, seq, 4] x, float[batch, past, 4] cache, float[batch, 1, total] mask, bool[1] use_cache)
        => (float[batch, seq, 4] y)
    {
        k = If (use_cache) <
            then_branch = t () => (float[batch, n, 4] joined) { joined = Concat<axis = 1>(cache, x) },
            else_branch = e () => (float[batch, n, 4] alone) { alone = Identity(x) }
        >
        kt = Transpose<perm = [0, 2, 1]>(k)
        scores = MatMul(x, kt)
        masked = Add(scores, mask)
        p = Softmax<axis = -1>(masked)
        y = MatMul(p, k)
    }"#;

#[test]
fn a_cache_that_is_used_or_not_changes_what_belongs_together() {
    let Some(outcome) = compiled(CACHE, |_, _| {}) else {
        return;
    };
    let told = told(&outcome.unwrap());
    assert!(
        told.contains("total = past + seq; with use_cache=false") && told.contains("total = seq."),
        "{told}"
    );
}

#[test]
fn an_engine_is_built_for_the_way_of_real_inputs_or_asks() {
    if !common::tensorrt() {
        return;
    }
    let text = modes(INTEGER.0, INTEGER.1);
    let ada: Targets = "sm_89".parse().unwrap();
    let Some(refused) = compiled(&text, |o, _| o.targets = Some(ada.clone())) else {
        return;
    };
    let error = refused.unwrap_err();
    assert_eq!(error.fault(), Fault::Target);
    let why = error.to_string();
    assert!(why.contains("`input` mode=1, or `input` mode=2"), "{why}");

    let fixed = compiled(&text, |o, _| {
        o.targets = Some(ada.clone());
        o.fixed = vec!["mode=2".parse().unwrap()];
    });
    let sizes = fixed.unwrap().unwrap().manifest.sizes;
    assert_eq!(sizes["width"], Range::fixed(48));

    let real = compiled(&text, |o, folder| {
        let path = folder.join("real.npz");
        let x: Vec<f32> = (0..96).map(|k| (k as f32).sin()).collect();
        let x = Tensor::from_values(vec![2, 48], &x).unwrap();
        npz::write(&path, &[("x", x), ("mode", Tensor::scalar(2i64))]).unwrap();
        o.targets = Some(ada);
        o.inputs = Some(path);
    });
    let outcome = real.unwrap().unwrap();
    assert_eq!(outcome.manifest.sizes["width"], Range::fixed(48));
    assert!(
        !cases(&outcome).contains(&"mode=1"),
        "{:?}",
        cases(&outcome)
    );
    let told = told(&outcome);
    assert!(
        told.contains("built for mode=2 alone, as real.npz has it"),
        "{told}"
    );
}

#[test]
fn text_is_refused_for_an_engine_before_it_is_read() {
    if !common::tensorrt() {
        return;
    }
    let text = modes("string[1] mode", "c = Equal(mode, word)");
    let ada: Targets = "sm_89".parse().unwrap();
    let Some(refused) = compiled(&text, |o, _| o.targets = Some(ada.clone())) else {
        return;
    };
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("`input` mode=TEXT `drop-inputs`"), "{why}");
    let dropped = compiled(&text, |o, _| {
        o.targets = Some(ada);
        o.fixed = vec!["mode=small".parse().unwrap()];
        o.drop_inputs = true;
    });
    assert!(dropped.unwrap().unwrap().manifest.engine.is_some());
}

/// As PyTorch writes a cell that takes a batch or one sample: branches of two ranks.
const RANKS: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch, width] x) => (float[n, 24] y)
    <int64 one = {1}, int64[2] shape = {-1, 24}, int64[1] axis = {0}>
    {
        s = Shape<start = 0, end = 1>(x)
        n = Squeeze(s)
        c = Equal(n, one)
        h = If (c) <
            then_branch = t () => (float[m] a) { a = Squeeze(x, axis) },
            else_branch = e () => (float[batch, width] b) { b = Relu(x) }
        >
        t = Reshape(h, shape)
        y = Sigmoid(t)
    }"#;

#[test]
fn sizes_that_decide_between_ranks_are_held_for_an_engine_alone() {
    let Some(outcome) = compiled(RANKS, |_, _| {}) else {
        return;
    };
    assert!(!outcome.unwrap().manifest.sizes["batch"].is_fixed());
    if !common::tensorrt() {
        return;
    }
    let ada: Targets = "sm_89".parse().unwrap();
    let outcome = compiled(RANKS, |o, _| o.targets = Some(ada))
        .unwrap()
        .unwrap();
    assert_eq!(outcome.manifest.sizes["batch"], Range::fixed(1));
    assert!(!outcome.manifest.sizes["width"].is_fixed());
    assert!(
        told(&outcome).contains("holds batch=1"),
        "{}",
        told(&outcome)
    );
}

/// Nodes and edges of several graphs, as a graph network takes them.
const NODES: &str = r#"<ir_version: 9, opset_import: ["" : 18]>
    g (float[nodes, 4] x, int64[2, edges] edge, int64[nodes] of, float[graphs] slots) => (float[graphs, 4] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}, int64[1] four = {4}>
    {
        to = Gather<axis = 0>(edge, zero)
        from = Gather<axis = 0>(edge, one)
        messages = Gather<axis = 0>(x, from)
        shape = Shape(x)
        none = ConstantOfShape<value = float[1] {0.0}>(shape)
        to_column = Unsqueeze(to, axis)
        count = Shape<start = 0, end = 1>(to)
        wide = Concat<axis = 0>(count, four)
        to_wide = Expand(to_column, wide)
        sums = ScatterElements<axis = 0, reduction = "add">(none, to_wide, messages)
        h = Add(x, sums)
        many = Shape(slots)
        pool = Concat<axis = 0>(many, four)
        empty = ConstantOfShape<value = float[1] {0.0}>(pool)
        of_column = Unsqueeze(of, axis)
        of_wide = Expand(of_column, shape)
        y = ScatterElements<axis = 0, reduction = "add">(empty, of_wide, h)
    }"#;

#[test]
fn indices_stay_below_lists_whose_length_is_open() {
    let model = onnx::read_text(NODES).unwrap();
    let shapes = Shapes::new(&model.graph, &[], &[]).unwrap();
    assert_eq!(
        shapes.describe().unwrap(),
        "edges 1:128:512, graphs 1:1:8, nodes 1:128:512"
    );
    let Some(outcome) = compiled(NODES, |_, _| {}) else {
        return;
    };
    let outcome = outcome.unwrap();
    assert_eq!(outcome.manifest.sizes["nodes"], range(1, 128, 512));
    assert_eq!(told(&outcome), "");
}

fn sizes(model: &Model) -> String {
    let shapes = Shapes::new(&model.graph, &[], &[]).unwrap();
    shapes.describe().unwrap_or_default()
}

#[test]
fn tables_of_positions_end_sizes_on_paper() {
    let of_ids = "e = Equal(ids, one)\n m = Not(e)\n k = Cast<to = 7>(m)\n c = CumSum(k, one)";
    let members = [
        (
            "",
            "n = Shape(ids)\n c = ConstantOfShape<value = int64[1] {1}>(n)\n d = CumSum(c, one)\n p = Sub(d, one)",
            64,
        ),
        // RoBERTa: what is no padding, counted, and the id of padding added.
        (
            "",
            &format!("{of_ids}\n d = Mul(c, k)\n p = Add(d, one)"),
            62,
        ),
        // OPT: the mask counted, and two added to all that is less by one.
        (
            ", int64[batch, seq] mask",
            "c = CumSum(mask, one)\n d = Mul(c, mask)\n e = Sub(d, one)\n p = Add(e, two)",
            62,
        ),
        // Generation: places of padding become 1.
        (
            ", int64[batch, seq] mask",
            "c = CumSum(mask, one)\n d = Sub(c, one)\n z = Equal(mask, zero)\n p = Where(z, one, d)",
            64,
        ),
        (
            ", int64[batch, seq] mask",
            "p = CumSum<exclusive = 1>(mask, one)",
            64,
        ),
        (
            "",
            "s = Shape<start = 1, end = 2>(ids)\n o = ConstantOfShape<value = int64[1] {1}>(s)\n z = NonZero(o)\n \
             a = Constant<value = int64[1] {0}>()\n p = Squeeze(z, a)",
            64,
        ),
        (
            ", int64[batch, seq] position_ids",
            "p = Identity(position_ids)",
            64,
        ),
        (", int32[1, seq] positions", "p = Add(positions, three)", 61),
    ];
    for (input, positions, end) in members {
        let text = format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (int64[batch, seq] ids{input}) => (float[a, b, 4] y)
            <float[50, 4] words, float[64, 4] table, int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}},
             int32 three = {{3}}>
            {{
                {positions}
                w = Gather(words, ids)
                q = Gather(table, p)
                y = Add(w, q)
            }}"#
        );
        // Tables need no numbers for this.
        let zeros = |rows: usize| vec!["0.0"; rows * 4].join(", ");
        let text = text.replacen("words,", &format!("words = {{{}}},", zeros(50)), 1);
        let text = text.replacen("table,", &format!("table = {{{}}},", zeros(64)), 1);
        let model = onnx::read_text(&text).unwrap_or_else(|e| panic!("{positions}: {e}"));
        let found = sizes(&model);
        assert!(
            found.contains(&format!("seq 1:{end}:{end}")),
            "{positions}: {found}"
        );
    }
}

#[test]
fn sums_of_other_numbers_end_nothing() {
    // A number that is no count, and one that is held below the end.
    for positions in [
        "c = CumSum(f, one)\n p = Cast<to = 7>(c)",
        "c = CumSum(ids, one)\n p = Min(c, one)",
    ] {
        let text = format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (int64[batch, seq] ids, float[batch, seq] f) => (float[batch, seq, 1] y)
            <float[4, 1] table = {{0.0, 1.0, 2.0, 3.0}}, int64 one = {{1}}>
            {{
                {positions}
                y = Gather(table, p)
            }}"#
        );
        let found = sizes(&onnx::read_text(&text).unwrap());
        assert!(found.contains("seq 1:128:512"), "{positions}: {found}");
    }
}

#[test]
fn made_indices_reach_each_place_of_an_open_list() {
    let model = onnx::read_text(NODES).unwrap();
    let shapes = Shapes::new(&model.graph, &[], &[]).unwrap();
    let (_, point) = shapes
        .points()
        .into_iter()
        .find(|(n, _)| *n == "largest")
        .unwrap();
    let specs = Kinds::of(&model.graph).specs(&shapes, &point);
    let made = kiln::parity::make(&specs, 1).unwrap();
    for (name, below) in [("edge", 512), ("of", 8)] {
        let (_, tensor) = made.iter().find(|(n, _)| n == name).unwrap();
        assert_eq!(tensor.dtype(), DType::I64);
        let numbers = tensor.to_i64s().unwrap();
        let mut seen = numbers.clone();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (0..below).collect::<Vec<i64>>(), "{name}");
    }
}
