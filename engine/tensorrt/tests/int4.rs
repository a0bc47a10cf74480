//! Weights in INT4.

use super::onnx::{FLOAT, FLOAT16, Graph, initializer, int_attribute, node, value};
use super::*;

/// `y = x @ w`, x [batch, 512], w [512, columns] in INT4 with a scale for every `block` rows.
fn int4(dtype: i64, scale: i64, columns: i64, block: i64) -> Vec<u8> {
    const INT4: i64 = 22;
    let one: &[u8] = match scale {
        FLOAT16 => &[0x00, 0x3c],
        _ => &[0x00, 0x00, 0x80, 0x3f],
    };
    let count = |n: i64| usize::try_from(n).unwrap();
    let attributes = [int_attribute("axis", 0), int_attribute("block_size", block)];
    Graph {
        nodes: &[
            node("DequantizeLinear", &["q", "s"], &["w"], &attributes),
            node("MatMul", &["x", "w"], &["y"], &[]),
        ],
        inputs: &[value("x", dtype, &[-1, 512])],
        outputs: &[value("y", dtype, &[-1, columns])],
        initializers: &[
            initializer(
                "q",
                INT4,
                &[512, columns],
                &vec![0x21; count(256 * columns)],
            ),
            initializer(
                "s",
                scale,
                &[512 / block, columns],
                &one.repeat(count(512 / block * columns)),
            ),
        ],
    }
    .model(21)
}

fn build_int4(
    dtype: i64,
    scale: i64,
    columns: i64,
    block: i64,
) -> Option<Result<Built, EngineError>> {
    let onnx = int4(dtype, scale, columns, block);
    let shape = |batch| vec![batch, 512];
    let input = ProfileInput {
        name: "x".to_owned(),
        min: shape(1),
        opt: shape(4),
        max: shape(16),
    };
    build(&BuildRequest {
        profiles: vec![Profile {
            inputs: vec![input],
        }],
        ..BuildRequest::new(&onnx, SM)
    })
}

#[test]
fn weights_in_int4_stay_so_if_columns_come_in_pairs() {
    for (dtype, block) in [
        (FLOAT16, 16),
        (FLOAT16, 32),
        (FLOAT16, 64),
        (FLOAT16, 128),
        (FLOAT, 32),
    ] {
        let Some(built) = build_int4(dtype, dtype, 384, block) else {
            return;
        };
        // 192 KiB as INT4, 384 KiB as FP16.
        let size = built.unwrap().plan.len();
        assert!(size < 3 * 512 * 384 / 4, "{dtype} {block}: {size}");
    }
    let odd = build_int4(FLOAT16, FLOAT16, 383, 32).unwrap().unwrap();
    assert!(odd.plan.len() > 3 * 512 * 383 / 4, "{}", odd.plan.len());
}

#[test]
fn scales_of_int4_weights_have_the_type_of_the_product() {
    let Some(result) = build_int4(FLOAT16, FLOAT, 384, 32) else {
        return;
    };
    assert!(result.unwrap_err().to_string().contains("same input types"));
}
