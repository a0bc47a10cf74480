//! Elements of every type, in text and in bytes.

use super::*;
use crate::onnx::proto::ModelProto;
use crate::onnx::proto::tensor_proto::{DataLocation, DataType};
use bytes::Bytes;

fn raw(declared: &str) -> Vec<u8> {
    tensor(declared).raw_data.unwrap().to_vec()
}

fn model_of(tensor: TensorProto) -> ModelProto {
    ModelProto {
        graph: Some(GraphProto {
            name: Some("g".into()),
            initializer: vec![tensor],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Prints a tensor of these bytes, checks that it reads back the same, and returns the literal.
fn printed(data_type: DataType, dims: &[i64], raw: &[u8]) -> String {
    let model = model_of(TensorProto {
        name: Some("w".into()),
        data_type: Some(data_type as i32),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::copy_from_slice(raw)),
        ..Default::default()
    });
    let text = print_model(&model, &PrintOptions::default());
    let again = parse_model(&text).unwrap_or_else(|e| panic!("{}", e.render(&text)));
    assert_eq!(again, model, "{text}");
    let open = text.find("= {").unwrap() + 3;
    text[open..open + text[open..].find('}').unwrap()].to_string()
}

#[test]
fn literals_become_little_endian_bytes() {
    assert_eq!(raw("float[2] w = {1.0, -2}"), [0, 0, 128, 63, 0, 0, 0, 192]);
    assert_eq!(raw("double w = {1}"), 1.0f64.to_le_bytes());
    assert_eq!(
        raw("int64 w = {-9223372036854775808}"),
        i64::MIN.to_le_bytes()
    );
    assert_eq!(raw("uint64 w = {18446744073709551615}"), [255; 8]);
    assert_eq!(raw("int16[2] w = {-2, 258}"), [254, 255, 2, 1]);
    assert_eq!(raw("bool[2] w = {1, 0}"), [1, 0]);
    assert_eq!(raw("int4[3] w = {-8, 7, -1}"), [0x78, 0x0f]);
    assert_eq!(raw("uint4[2] w = {1, 15}"), [0xf1]);
    assert_eq!(raw("uint2[5] w = {0, 1, 2, 3, 1}"), [0b1110_0100, 1]);
    assert_eq!(raw("int2[2] w = {-2, 1}"), [0b0110]);
    assert_eq!(
        raw("float6e2m3[4] w = {0.125, 0.25, 7.5, -7.5}"),
        [0x81, 0xf0, 0xfd]
    );
    assert_eq!(
        raw("complex64[1] w = {1.0, -0.0}"),
        [0, 0, 128, 63, 0, 0, 0, 128]
    );
    assert_eq!(raw("float[0, 3] w = {}"), []);
}

#[test]
fn narrow_floats_read_decimals_or_bits() {
    assert_eq!(
        raw("float16[4] w = {1.0, 1, 15360, -inf}"),
        [0, 0x3c, 1, 0, 0, 0x3c, 0, 0xfc]
    );
    assert_eq!(raw("bfloat16[2] w = {1.0, nan}"), [0x80, 0x3f, 0xc0, 0x7f]);
    assert_eq!(
        raw("float8e4m3fn[3] w = {448.0, nan, -0.0}"),
        [0x7e, 0x7f, 0x80]
    );
    assert_eq!(raw("float8e4m3fnuz[2] w = {240.0, nan}"), [0x7f, 0x80]);
    assert_eq!(raw("float8e5m2[2] w = {57344.0, inf}"), [0x7b, 0x7c]);
    assert_eq!(raw("float8e8m0[3] w = {1.0, 0.5, nan}"), [127, 126, 255]);
    assert_eq!(raw("float4e2m1[3] w = {6.0, -0.5, 0.0}"), [0x97, 0x00]);
    // Ties go to even: halfway between 1 and the next float16, and between that and the one after.
    assert_eq!(
        raw("float16[2] w = {1.00048828125, 1.00146484375}"),
        [0, 0x3c, 2, 0x3c]
    );
    let error = |declared: &str| graph_error(declared, "");
    assert_eq!(
        error("float16 w = {65520.0}"),
        "`65520.0` is no number that fits into float16"
    );
    assert!(error("float16 w = {65536}").contains("means the bits of a float16"));
    assert_eq!(
        error("float8e4m3fn w = {inf}"),
        "float8e4m3fn has no infinity"
    );
    assert_eq!(error("float4e2m1 w = {nan}"), "float4e2m1 has no such NaN");
    assert_eq!(
        error("float8e8m0 w = {0.0}"),
        "float8e8m0 holds powers of two, not `0.0`"
    );
}

#[test]
fn every_narrow_float_reads_back() {
    for (data_type, bits) in [
        (DataType::Float8e4m3fn, 8),
        (DataType::Float8e4m3fnuz, 8),
        (DataType::Float8e5m2, 8),
        (DataType::Float8e5m2fnuz, 8),
        (DataType::Float8e8m0, 8),
        (DataType::Float4e2m1, 4),
    ] {
        let raw: Vec<u8> = match bits {
            8 => (0..=255).collect(),
            _ => (0..8).map(|i| 0x10 + 0x22 * i).collect(),
        };
        printed(data_type, &[1 << bits], &raw);
    }
    let raw: Vec<u8> = (0..=u16::MAX)
        .step_by(7)
        .flat_map(u16::to_le_bytes)
        .collect();
    for data_type in [DataType::Float16, DataType::Bfloat16] {
        printed(data_type, &[raw.len() as i64 / 2], &raw);
    }
}

#[test]
fn floats_print_in_the_shortest_form_that_reads_back() {
    let floats = |values: &[f32]| {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        printed(DataType::Float, &[values.len() as i64], &raw)
    };
    assert_eq!(
        floats(&[
            0.1,
            -0.0,
            1.0,
            1e-45,
            f32::MAX,
            f32::INFINITY,
            f32::NEG_INFINITY
        ]),
        "0.1, -0.0, 1.0, 1e-45, 3.4028235e38, inf, -inf"
    );
    let nans = [0x7fc0_0000, 0xffc0_0000, 0x7fc0_0001, 0xff80_0001].map(f32::from_bits);
    assert_eq!(floats(&nans), "nan, -nan, nan(0x7fc00001), nan(0xff800001)");
    let doubles = [
        5e-324,
        f64::from_bits(0x7ff8_0000_0000_0000),
        f64::from_bits(0x7ff0_0000_0000_0001),
    ];
    let raw: Vec<u8> = doubles.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(
        printed(DataType::Double, &[3], &raw),
        "5e-324, nan, nan(0x7ff0000000000001)"
    );
    assert_eq!(
        printed(DataType::Float16, &[2], &[0x66, 0x2e, 0xff, 0x7b]),
        "0.1, 65500.0"
    );
    assert_eq!(
        printed(DataType::Float16, &[2], &[1, 0x7c, 1, 0]),
        "31745, 6e-8"
    );
    assert_eq!(printed(DataType::Bfloat16, &[1], &[0xcd, 0x3d]), "0.1");
}

#[test]
fn packed_elements_print_one_by_one() {
    assert_eq!(printed(DataType::Int4, &[3], &[0x78, 0x0f]), "-8, 7, -1");
    assert_eq!(
        printed(DataType::Uint2, &[5], &[0b1110_0100, 1]),
        "0, 1, 2, 3, 1"
    );
    assert_eq!(
        printed(DataType::Float6e3m2, &[2], &[0x1f | 0xc0, 0x0f]),
        "28.0, -28.0"
    );
    assert_eq!(printed(DataType::Complex128, &[0], &[]), "");
}

#[test]
fn typed_lists_are_read_too() {
    let literal = |tensor: TensorProto| {
        let text = print_model(&model_of(tensor), &PrintOptions::default());
        text[text.find("= {").unwrap() + 2..text.rfind("\n> {").unwrap()].to_string()
    };
    let of = |data_type: DataType, count: i64| TensorProto {
        data_type: Some(data_type as i32),
        dims: vec![count],
        ..Default::default()
    };
    let int32_data = vec![-1, 2];
    assert_eq!(
        literal(TensorProto {
            int32_data: int32_data.clone(),
            ..of(DataType::Int8, 2)
        }),
        "{-1, 2}"
    );
    assert_eq!(
        literal(TensorProto {
            int32_data: vec![0x3c00],
            ..of(DataType::Float16, 1)
        }),
        "{1.0}"
    );
    assert_eq!(
        literal(TensorProto {
            int32_data: vec![0x78, 0x0f],
            ..of(DataType::Int4, 3)
        }),
        "{-8, 7, -1}"
    );
    assert_eq!(
        literal(TensorProto {
            int32_data,
            ..of(DataType::Int4, 2)
        }),
        "{-1, 2}"
    );
    assert_eq!(
        literal(TensorProto {
            uint64_data: vec![7],
            ..of(DataType::Uint32, 1)
        }),
        "{7}"
    );
    assert_eq!(
        literal(TensorProto {
            float_data: vec![1.0, 2.0],
            ..of(DataType::Complex64, 1)
        }),
        "{1.0, 2.0}"
    );
    assert_eq!(
        literal(TensorProto {
            double_data: vec![0.5],
            ..of(DataType::Double, 1)
        }),
        "{0.5}"
    );
    assert_eq!(
        literal(TensorProto {
            int64_data: vec![1],
            ..of(DataType::Int64, 2)
        }),
        "{... unreadable}"
    );
    assert_eq!(
        literal(TensorProto {
            data_type: Some(99),
            ..of(DataType::Int64, 0)
        }),
        "{... unreadable}"
    );
    assert_eq!(literal(of(DataType::Float, i64::MAX)), "{... unreadable}");
    assert_eq!(literal(of(DataType::Float, -1)), "{... unreadable}");
}

#[test]
fn strings_keep_every_byte() {
    let strings =
        tensor("string[4] w = {\"a\\\"b\\\\\", \"line\nbreak\", \"\", b\"\\xff\\x00\\\\x41\"}")
            .string_data;
    assert_eq!(strings[0], "a\"b\\");
    assert_eq!(strings[1], "line\nbreak");
    assert_eq!(strings[3], b"\xff\x00\\x41"[..]);
    round_trip("g () => () <string[3] w = {\"\\\"\", b\"\\xe9\\\"\", \"é\"}> {}");
    assert_eq!(
        graph_error("string w = {\"a}", ""),
        "this string has no closing quote"
    );
    assert_eq!(
        graph_error(r#"string w = {b"\x4"}"#, ""),
        "expected two hex digits after `\\x`"
    );
    assert_eq!(
        graph_error("string w = {1}", ""),
        "expected a string, found `1`"
    );
}

#[test]
fn external_data() {
    let text = r#"float[2] w = ["location": "a b.bin", "offset": "4096", "length": "8"]"#;
    let tensor = tensor(text);
    assert_eq!(tensor.data_location, Some(DataLocation::External as i32));
    assert_eq!(tensor.dims, [2]);
    assert_eq!(tensor.external_data[1].value.as_deref(), Some("4096"));
    assert_eq!(tensor.raw_data, None);
    assert!(round_trip(&format!("g () => () <{text}> {{}}")).contains(text));
    let attribute = attribute(r#" = float[1] = ["location": "f"]"#);
    assert_eq!(attribute.t.unwrap().external_data.len(), 1);
}

#[test]
fn sparse_tensors() {
    let text = "sparse_tensor(float[3, 4]) s = {float[2] {1.5, 2.5}, int64[2] {1, 5}}";
    let graph = graph(text, "");
    let sparse = &graph.sparse_initializer[0];
    assert_eq!(sparse.dims, [3, 4]);
    assert_eq!(sparse.values.as_ref().unwrap().name.as_deref(), Some("s"));
    assert!(round_trip(&format!("g () => () <{text}> {{}}")).contains(text));
    assert_eq!(
        graph_error(
            "sparse_tensor(float[3]) s = {int64[1] {1}, int64[1] {1}}",
            ""
        ),
        "the values of this sparse tensor must be of type float"
    );
}

#[test]
fn shape_and_literal_must_agree() {
    let error = |declared: &str| graph_error(declared, "");
    assert_eq!(
        error("float[2] w = {1.0}"),
        "the shape [2] asks for 2 elements, found 1"
    );
    assert_eq!(
        error("float w = {}"),
        "the shape [] asks for 1 elements, found 0"
    );
    assert_eq!(
        error("complex64[1] w = {1.0}"),
        "an element of complex64 is two numbers, found 1 in all"
    );
    assert_eq!(
        error("int8[9223372036854775807, 3] w = {1}"),
        "the shape [9223372036854775807, 3] is too large"
    );
    assert!(error("int8[4000000000000] w = {1}").starts_with("the shape"));
    assert_eq!(
        error("float[] w = {1.0}"),
        "a tensor with elements needs a shape of known rank, not `[]`"
    );
    assert_eq!(
        error("float[N] w = {1.0}"),
        "a tensor with elements needs numbers for dimensions"
    );
    assert_eq!(
        error("float[-1] w = {}"),
        "a tensor with elements needs numbers for dimensions"
    );
    assert_eq!(
        error("seq(float) w = {1.0}"),
        "only a tensor type can have elements"
    );
    assert_eq!(error("w = {1.0}"), "an initializer needs a type");
    assert_eq!(error("float w = 1.0"), "expected `{` or `[`, found `1.0`");
    assert_eq!(
        error("float[2] w = {1.0 2.0}"),
        "expected `}` or `,`, found `2.0`"
    );
}

#[test]
fn numbers_must_fit() {
    let error = |declared: &str| graph_error(declared, "");
    assert_eq!(
        error("int8 w = {128}"),
        "`128` is no number that fits into int8"
    );
    assert_eq!(
        error("int4 w = {-9}"),
        "`-9` is no number that fits into int4"
    );
    assert_eq!(
        error("uint2 w = {4}"),
        "`4` is no number that fits into uint2"
    );
    assert_eq!(
        error("uint8 w = {-1}"),
        "`-1` is no number that fits into uint8"
    );
    assert_eq!(
        error("int64 w = {9223372036854775808}"),
        "`9223372036854775808` is no number that fits into int64"
    );
    assert_eq!(
        error("int64 w = {1.0}"),
        "expected an integer for int64, found `1.0`"
    );
    assert_eq!(
        error("float w = {1e39}"),
        "`1e39` is no number that fits into float"
    );
    assert_eq!(
        error("float w = {1e}"),
        "`1e` is no number that fits into float"
    );
    assert_eq!(
        error("double w = {-1e309}"),
        "`-1e309` is no number that fits into double"
    );
    assert_eq!(
        error("float w = {nan(0x3f800000)}"),
        "`nan(0x3f800000)` is no number that fits into float"
    );
    assert_eq!(
        error("float w = {nan(0x7f}"),
        "expected the bits of the NaN in hex and `)`"
    );
    assert_eq!(raw("float w = {1e-60}"), [0; 4]);
    assert_eq!(raw("float w = {INF}"), f32::INFINITY.to_le_bytes());
}

#[test]
fn elided_tensors_show_their_content_but_do_not_parse() {
    let text = |values: &str| {
        let options = PrintOptions {
            max_elements: Some(2),
        };
        let model =
            format!("g () => () <int64[3] w = {{{values}}}, float[2] k = {{1.0, 2.0}}> {{}}");
        print_model(&parse_model(&model).unwrap(), &options)
    };
    let first = text("1, 2, 3");
    assert!(first.contains("int64[3] w = {... "), "{first}");
    assert!(first.contains("float[2] k = {1.0, 2.0}"), "{first}");
    assert_eq!(first, text("1, 2, 3"));
    assert_ne!(first, text("1, 2, 4"));
    let message = parse_model(&first).unwrap_err().message;
    assert!(
        message.contains("were left out when the text was printed"),
        "{message}"
    );
    assert_eq!(graph_error("int4[9] w = ...", ""), message);
}
