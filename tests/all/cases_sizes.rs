//! Sizes that belong together, and those that a model is compiled for where nobody says any.

use crate::common;

use std::path::PathBuf;

use kiln::compile::{Options, Outcome, compile};
use kiln::shapes::{Range, Settled, Shapes, settle};
use kiln::talk::Silent;
use kiln::targets::Targets;
use kiln_graph::{Model, onnx};

fn case(name: &str) -> PathBuf {
    let folder = common::fixture("cases");
    let text = folder.join(format!("{name}.onnxtxt"));
    match text.is_file() {
        true => text,
        false => folder.join(format!("{name}.onnx")),
    }
}

fn model(name: &str) -> Model {
    onnx::read(case(name)).unwrap()
}

/// The sizes that follow from the graph and from what is given, in one line.
fn sizes(model: &Model, dims: &[&str]) -> Result<String, String> {
    let dims: Vec<_> = dims.iter().map(|d| d.parse().unwrap()).collect();
    let shapes = Shapes::new(&model.graph, &dims, &[]).map_err(|e| e.to_string())?;
    Ok(shapes.describe().unwrap_or_default())
}

fn range(min: usize, opt: usize, max: usize) -> Range {
    Range { min, opt, max }
}

/// Settles as a compilation does, with a runtime that takes every size; gives the sizes it was asked to run.
fn settled(model: &Model, shapes: &mut Shapes) -> (Settled, usize) {
    let mut runs = 0;
    let mut probe = |_: &_| {
        runs += 1;
        Ok(())
    };
    let settled = settle(&model.graph, &model.graph, shapes, &mut probe).unwrap();
    (settled, runs)
}

#[test]
fn a_mask_is_as_long_as_past_and_new_tokens_whatever_they_are_called() {
    let cache = model("sizes_cache");
    assert_eq!(
        sizes(&cache, &[]).unwrap(),
        "ids_b 1:1:8, ids_s 1:1:16, p 0:32:32, b = ids_b, t = ids_s + p"
    );
    let packed = model("sizes_cache_packed");
    assert_eq!(
        sizes(&packed, &[]).unwrap(),
        "input_ids.0 1:1:8, input_ids.1 1:1:16, past.0.3 0:32:32, attention_mask.0 and 1 more = input_ids.0, \
         attention_mask.1 = input_ids.1 + past.0.3"
    );
    let standard = model("sizes_cache_attention");
    assert_eq!(
        sizes(&standard, &[]).unwrap(),
        "batch 1:1:8, past 0:128:512, seq 1:1:512, total = past + seq, seq2 = seq"
    );
}

#[test]
fn sizes_that_are_given_decide_the_others() {
    let cache = model("sizes_cache");
    assert_eq!(
        sizes(&cache, &["p=0:8:32"]).unwrap(),
        "ids_b 1:1:8, ids_s 1:1:16, p 0:8:32, b = ids_b, t = ids_s + p"
    );
    // Of a total, one token is new.
    assert_eq!(
        sizes(&cache, &["t=1:16:32", "b=2"]).unwrap(),
        "b 2, ids_s 1, t 1:16:32, ids_b = b, p = t - 1"
    );
    // What is given wider than the others leave it follows.
    assert_eq!(
        sizes(&cache, &["p=0:8:30", "ids_s=1:1:4", "t=1:40:64"]).unwrap(),
        "ids_b 1:1:8, ids_s 1:1:4, p 0:8:30, b = ids_b, t = ids_s + p"
    );
    let why = sizes(&cache, &["p=4", "ids_s=1", "t=40"]).unwrap_err();
    assert!(
        why.contains("t = ids_s + p") && why.contains("t = 40"),
        "{why}"
    );
}

#[test]
fn the_same_size_under_several_names() {
    assert_eq!(
        sizes(&model("dim_names_per_input"), &[]).unwrap(),
        "input_ids_dynamic_axes_1 1:1:8, input_ids_dynamic_axes_2 1:128:512, attention_mask_dynamic_axes_1 and 1 more = \
         input_ids_dynamic_axes_1, attention_mask_dynamic_axes_2 and 1 more = input_ids_dynamic_axes_2"
    );
    assert_eq!(
        sizes(&model("sizes_cross"), &[]).unwrap(),
        "b1 1:1:8, dec 1:128:512, enc 1:128:512, b2 and 1 more = b1, enc_mask = enc"
    );
    // A mask for one sample serves all: where that is asked for, it is not tied to the batch.
    let free = sizes(&model("sizes_cross"), &["b3=1"]).unwrap();
    assert!(free.contains("b3 1") && free.contains("b1 1:1:8"), "{free}");
}

#[test]
fn a_point_keeps_related_sizes_together() {
    let cache = model("sizes_cache");
    let shapes = Shapes::new(&cache.graph, &["p=0:8:32".parse().unwrap()], &[]).unwrap();
    let profile = kiln::compile::profile(&shapes).unwrap();
    let mask = profile
        .inputs
        .iter()
        .find(|i| i.name == "attention_mask")
        .unwrap();
    assert_eq!(
        (&mask.min[..], &mask.opt[..], &mask.max[..]),
        (&[1, 1][..], &[1, 9][..], &[8, 48][..])
    );
    let past = profile
        .inputs
        .iter()
        .find(|i| i.name == "past_k.0")
        .unwrap();
    assert_eq!(past.min, [1, 2, 0, 1]);
    let mut point = shapes.points().pop().unwrap().1;
    point.insert("p".into(), 3);
    point.insert("t".into(), 500);
    let at = shapes.at(&point);
    assert!(
        at.contains(&("attention_mask".to_string(), vec![8, 19])),
        "{at:?}"
    );
}

#[test]
fn pictures_come_in_multiples_of_the_stride() {
    let unet = model("sizes_unet");
    let line = "H 224:224:640 by 8, N 1:1:8, W 224:224:640 by 8";
    assert_eq!(sizes(&unet, &[]).unwrap(), line);
    // Names of no meaning are no names: three sizes called alike are three.
    let text = std::fs::read_to_string(case("sizes_unet")).unwrap();
    let odd = text.replacen("[N, 3, H, W]", "[unk, 3, unk, unk]", 1);
    assert_ne!(odd, text);
    assert_eq!(
        sizes(&onnx::read_text(&odd).unwrap(), &[]).unwrap(),
        "image.0 1:1:8, image.2 224:224:640 by 8, image.3 224:224:640 by 8"
    );
}

/// What reads lines of text: the height becomes 1, whatever the width.
#[test]
fn lines_have_one_height_and_any_width() {
    let text = |input: &str| {
        format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[{input}] x) => (float[n, c, w] y) <int64[1] two = {{2}}>
            {{
                a = MaxPool<kernel_shape = [16, 4], strides = [16, 4]>(x)
                b = AveragePool<kernel_shape = [3, 2], strides = [3, 2]>(a)
                y = Squeeze(b, two)
            }}"#
        )
    };
    let found = |input: &str| sizes(&onnx::read_text(&text(input)).unwrap(), &[]).unwrap();
    assert_eq!(found("N, 3, H, W"), "H 48, N 1:1:8, W 32:320:640");
    assert_eq!(found("N, 3, ?, W"), "N 1:1:8, W 32:320:640, x.2 48");
}

/// Pools over tokens, as Funnel's between its blocks.
#[test]
fn a_window_over_rows_of_a_table_slides_over_tokens() {
    let pooled = onnx::read_text(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (int64[batch, seq] ids) => (float[batch, 1, half, 4] y)
        <int64[1] axis = {1}, float[3, 4] table = {0.5, -0.25, 0.5, 0.25, 0.1, 0.2, 0.3, 0.4, -0.1, 0.6, 0.7, -0.8}>
        {
            rows = Gather(table, ids)
            x = Unsqueeze(rows, axis)
            y = MaxPool<kernel_shape = [2, 1], strides = [2, 1], ceil_mode = 1>(x)
        }"#,
    )
    .unwrap();
    assert_eq!(sizes(&pooled, &[]).unwrap(), "batch 1:1:8, seq 1:128:512");
}

#[test]
fn an_n_that_is_not_in_front_is_no_batch() {
    assert_eq!(sizes(&model("sizes_points"), &[]).unwrap(), "N 1:128:512");
}

/// Convolutions with strides over samples, as speech encoders begin.
#[test]
fn sound_is_as_long_as_its_windows_need() {
    let encoder = onnx::read_text(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, samples] wave) => (float[batch, 1, frames] y)
        <int64[1] axis = {1}, float[1, 1, 4] w = {0.5, -0.25, 0.5, 0.25}>
        {
            x = Unsqueeze(wave, axis)
            a = Conv<strides = [2]>(x, w)
            y = Conv<strides = [2]>(a, w)
        }"#,
    )
    .unwrap();
    assert_eq!(
        sizes(&encoder, &[]).unwrap(),
        "batch 1:1:8, samples 1600:16000:160000"
    );
}

#[test]
fn no_size_is_run_that_would_not_fit_into_memory() {
    // A score for each pair of tokens and each of 4096 labels: 34 GB at 8 × 512.
    let pairs = onnx::read_text(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, seq, 4096] x) => (float[batch, seq, seq, 4096] y)
        <int64[1] rows = {1}, int64[1] columns = {2}>
        {
            a = Unsqueeze(x, rows)
            b = Unsqueeze(x, columns)
            c = Add(a, b)
            y = Tanh(c)
        }"#,
    )
    .unwrap();
    let mut shapes = Shapes::new(&pairs.graph, &[], &[]).unwrap();
    let bytes = |r: &Shapes| {
        let (batch, seq) = (r.ranges["batch"].max, r.ranges["seq"].max);
        batch * seq * seq * 4096 * 4
    };
    assert!(bytes(&shapes) < 2 << 30, "{:?}", shapes.ranges);
    let (settled, _) = settled(&pairs, &mut shapes);
    let told = settled.warnings.join("\n");
    assert!(told.contains("would take about"), "{told}");
    // What the user asks for is refused where the machine has not that much.
    let dims = ["batch=64".parse().unwrap(), "seq=8192".parse().unwrap()];
    let mut shapes = Shapes::new(&pairs.graph, &dims, &[]).unwrap();
    let mut probe = |_: &_| panic!("it was run");
    let why = settle(&pairs.graph, &pairs.graph, &mut shapes, &mut probe).unwrap_err();
    assert!(why.contains("would take about"), "{why}");
}

/// A mask's rows are looked up by the places of a batch, so there may be more of them: newer exports of decoders name both sizes.
#[test]
fn a_batch_takes_the_rows_that_it_looks_up_with_it() {
    let Some((outcome, _folder)) = compiled("sizes_rows", &[]) else {
        return;
    };
    let sizes = &outcome.manifest.sizes;
    assert_eq!(sizes["a"], range(1, 128, 512), "{sizes:?}");
    assert!(
        outcome.manifest.warnings.is_empty(),
        "{:?}",
        outcome.manifest.warnings
    );
}

#[test]
fn corners_that_run_need_no_search() {
    let cross = model("sizes_cross");
    let mut shapes = Shapes::new(&cross.graph, &[], &[]).unwrap();
    let (settled, runs) = settled(&cross, &mut shapes);
    assert_eq!((settled.warnings.len(), runs), (0, 3));
}

#[track_caller]
fn compiled(name: &str, dims: &[&str]) -> Option<(Outcome, tempfile::TempDir)> {
    compiled_for(Targets::Cpu, name, dims)
}

#[track_caller]
fn compiled_for(
    targets: Targets,
    name: &str,
    dims: &[&str],
) -> Option<(Outcome, tempfile::TempDir)> {
    common::runtime()?;
    let folder = tempfile::tempdir().unwrap();
    // ONNX Runtime reads no text.
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, onnx::to_bytes(&model(name)).unwrap()).unwrap();
    let options = Options {
        targets: Some(targets),
        output: Some(folder.path().join("out.kiln")),
        latency: Some(false),
        dims: dims.iter().map(|d| d.parse().unwrap()).collect(),
        ..Options::new(path)
    };
    let outcome = compile(&options, &Silent).unwrap_or_else(|e| panic!("{name}: {e}"));
    Some((outcome, folder))
}

#[test]
fn decoders_compile_from_an_empty_past() {
    for name in ["sizes_cache", "sizes_cache_packed", "sizes_cache_attention"] {
        let Some((outcome, _folder)) = compiled(name, &[]) else {
            return;
        };
        let sizes = &outcome.manifest.sizes;
        assert!(sizes.values().any(|r| r.min == 0), "{name}: {sizes:?}");
        assert!(outcome.manifest.parity.unwrap().pass(), "{name}");
    }
    let Some((outcome, _folder)) = compiled("merged_if", &[]) else {
        return;
    };
    let sizes = &outcome.manifest.sizes;
    assert_eq!(sizes["past"], range(0, 32, 32));
    assert_eq!(sizes["seq"], range(1, 1, 32));
}

#[test]
fn tensorrt_takes_an_empty_past() {
    if !common::tensorrt() {
        return;
    }
    let ada = "sm_89".parse().unwrap();
    let Some((outcome, _folder)) = compiled_for(ada, "sizes_cache", &["p=0:8:16"]) else {
        return;
    };
    assert!(outcome.manifest.engine.is_some());
    assert_eq!(outcome.manifest.sizes["p"], range(0, 8, 16));
    assert_eq!(outcome.manifest.sizes["t"], range(1, 9, 48));
}

#[test]
fn baked_is_said_of_constants_alone() {
    let Some((outcome, _folder)) = compiled("sizes_baked", &[]) else {
        return;
    };
    let sizes = &outcome.manifest.sizes;
    assert_eq!(
        (sizes["batch"], sizes["seq"]),
        (range(1, 1, 1), range(77, 77, 77))
    );
    let told = outcome.manifest.warnings.join("\n");
    assert!(told.contains("baked") && told.contains("seq=77"), "{told}");
    // A model for one token at a time: nobody baked a size, and 1 is tried.
    let (outcome, _folder) = compiled("sizes_one", &[]).unwrap();
    assert_eq!(outcome.manifest.sizes["seq"], range(1, 1, 1));
    assert_eq!(outcome.manifest.sizes["batch"], range(1, 1, 8));
    let told = outcome.manifest.warnings.join("\n");
    assert!(!told.contains("baked"), "{told}");
}
