//! Text that means harm, or nothing.

use super::*;
use crate::onnx::proto::{GraphProto, ModelProto};
use crate::text::lexer::Parser;
use crate::text::parse::graph;
use prost::Message;

const SEEDS: &[&str] = &[
    r#"<ir_version: 10, opset_import: ["" : 20, "a.b" : 1], doc_string: "d\"\\", metadata_props: ["k": "v"]>
    g (float[N, 4] x, seq(map(string, optional(float[]))) s, int64[1] k = {1}) => (sparse_tensor(int4[2]) y) <
      float[2] w = {1.0, -inf}, float16[3] h = {1.0, 15360, nan}, int4[3] q = {-8, 7, 1}, complex64[1] c = {1.0, 2.0},
      string[2] t = {"a\"", b"\xff"}, float[9] e = ["location": "f", "offset": "0"], opaque(a.b, c) o,
      sparse_tensor(float[8]) sp = {float[1] {1.0}, int64[1] {3}}, float8e8m0[1] z = {1.0}, "odd name"
    > {
      # a comment
      ["/n"] y, "", b = a.b.Op:v<i = -1, f: float = 1, l = [1, 2], e: ints = [], r: int = @a, s = "x">(x, , "é", {1.5})
      y = If(c, float[2] {1, 2}, {int @k}) <then_branch = t () => (o) <float k = {nan(0x7fc00001)}> { o = Neg(k) }, tp = float[2]>
    }
    <domain: "d", opset_import: ["": 1]> F <a, b = 1.0> (float x, y) => (z) <int64 z> { z = Add(x, {@b}) }"#,
    "Gelu (x) => (y) { d = Div(x, {1.41421356}) e = Erf(d) a = Add(e, {1.0}) m = Mul(x, a) y = Mul(m, {0.5}) }",
];

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

fn mutated(random: &mut Random, seed: &str) -> String {
    const BITS: &[&str] = &[
        "<",
        ">",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        ",",
        ":",
        "=",
        "=>",
        "@",
        "#",
        "\n",
        ".",
        "-",
        "1e9",
        "...",
        "nan",
        "inf",
        "nan(0x",
        "float",
        "int4",
        "float16",
        "seq(",
        "b\"",
        "99999999999999999999",
        "é",
        "\0",
        "?",
    ];
    let mut chars: Vec<char> = seed.chars().collect();
    for _ in 0..=random.below(4) {
        let at = random.below(chars.len());
        let to = (at + random.below(12)).min(chars.len());
        match random.below(5) {
            0 => drop(chars.drain(at..to)),
            1 => chars.truncate(at),
            2 => {
                let piece: Vec<char> = chars.get(at..to).unwrap_or(&[]).to_vec();
                let place = random.below(chars.len());
                chars.splice(place..place, piece);
            }
            _ => {
                let bit = BITS[random.below(BITS.len())];
                chars.splice(at..at, bit.chars());
            }
        }
    }
    chars.into_iter().collect()
}

#[test]
fn mutated_text_never_panics_and_what_parses_round_trips() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut parsed = 0;
    assert!(parse_model(SEEDS[0]).is_ok());
    assert!(parse_function(SEEDS[1]).is_ok());
    for _ in 0..3000 {
        let seed = SEEDS[random.below(SEEDS.len())];
        let text = mutated(&mut random, seed);
        let _ = parse_graph(&text).map_err(|e| e.render(&text));
        let _ = parse_functions(&text).map_err(|e| e.render(&text));
        match parse_model(&text) {
            Err(error) => assert!(!error.render(&text).is_empty()),
            Ok(model) => {
                parsed += 1;
                let printed = print_model(&model, &PrintOptions::default());
                let again =
                    parse_model(&printed).unwrap_or_else(|e| panic!("{}", e.render(&printed)));
                assert_eq!(
                    print_model(&again, &PrintOptions::default()),
                    printed,
                    "from {text}"
                );
            }
        }
    }
    assert!(parsed > 50, "only {parsed} of the mutants parse");
}

#[test]
fn every_prefix_is_an_error_not_a_panic() {
    for seed in SEEDS {
        for (at, _) in seed.char_indices() {
            let _ = parse_model(&seed[..at]);
            let _ = parse_functions(&seed[..at]);
            let _ = parse_model(&seed[at..]);
        }
    }
}

#[test]
fn nesting_is_limited() {
    let types = format!(
        "g ({}float{} x) => () {{}}",
        "seq(".repeat(5000),
        ")".repeat(5000)
    );
    assert_eq!(
        parse_graph(&types).unwrap_err().message,
        "nested deeper than 24 levels"
    );
    let graphs = |depth: usize| {
        let open = "g () => () { = If() <b = ".repeat(depth);
        format!("{open}g () => () {{}}{}", "> }".repeat(depth))
    };
    assert_eq!(
        parse_graph(&graphs(5000)).unwrap_err().message,
        "nested deeper than 24 levels"
    );
    let deepest = parse_model(&graphs(23)).unwrap();
    assert_eq!(
        ModelProto::decode(&deepest.encode_to_vec()[..]),
        Ok(deepest)
    );
}

#[test]
fn numbers_of_things_are_limited() {
    use crate::limits::{DECODED, NODES, TENSORS};
    let read = |text: &str, nodes: usize, tensors: usize, bytes: usize| {
        let mut p = Parser::new(text);
        // What a much longer text would have before this one.
        p.count(nodes, tensors, bytes / 2).unwrap();
        graph(&mut p).map_err(|e| e.message)
    };
    let crossed =
        |most: usize, what: &str| Err(format!("more than {most} {what}, which is kiln's limit"));
    let two = "g () => () { = A() = A() }";
    assert!(read(two, NODES - 2, 0, 0).is_ok());
    assert_eq!(read(two, NODES - 1, 0, 0), crossed(NODES, "nodes"));
    // Nested graphs count, and literals are nodes with a tensor each.
    let inner = "g () => () { = If() <b = h () => () { = A() = A() }> }";
    assert_eq!(read(inner, NODES - 2, 0, 0), crossed(NODES, "nodes"));
    let literals = "g () => () { = A({1}, {2}) }";
    assert_eq!(read(literals, NODES - 2, 0, 0), crossed(NODES, "nodes"));
    assert_eq!(
        read(literals, 0, TENSORS - 1, 0),
        crossed(TENSORS, "tensors")
    );
    for kept in [
        "g () => () <float[2] w = [\"location\": \"f\"]> {}",
        "g () => () { = A<t = [float {1}]>() }",
        "g () => () <sparse_tensor(float[8]) s = {float[1] {1.0}, int64[1] {3}}> {}",
    ] {
        assert_eq!(
            read(kept, 0, TENSORS, 0),
            crossed(TENSORS, "tensors"),
            "{kept}"
        );
    }
    // A few letters are hundreds of bytes: what is kept of names, types and attributes counts, too.
    for kept in [
        "g (a, b) => () {}",
        "g () => () <float[a, b] w> {}",
        "g () => () { = A(,,,,,,,) }",
        "g () => () { = A<s = [\"\", \"\", \"\"]>() }",
        "g () => () <string[3] s = {\"\", \"\", \"\"}> {}",
    ] {
        let bytes = DECODED - 2 * size_of::<GraphProto>() - 2;
        assert_eq!(
            read(kept, 0, 0, bytes),
            crossed(DECODED, "bytes of decoded messages"),
            "{kept}"
        );
    }
}

#[test]
fn numbers_in_the_text_allocate_nothing() {
    for declared in [
        "float[1000000000000] w = {}",
        "int4[9223372036854775807] w = {1}",
        "float[9223372036854775807, 9223372036854775807, 2] w = {1.0}",
        "string[1000000000000] w = {\"a\"}",
        "sparse_tensor(float[9223372036854775807]) s = {float[1000000000000] {}, int64 {1}}",
    ] {
        assert!(
            graph_error(declared, "").contains("the shape"),
            "{declared}"
        );
    }
}

#[test]
fn long_runs_are_linear() {
    let many = 200_000;
    assert!(parse_graph(&"#\n".repeat(many)).is_err());
    assert!(
        parse_graph(&format!(
            "g () => () {{ {} }}",
            "y = Op({1}) ".repeat(many / 10)
        ))
        .is_ok()
    );
    assert!(parse_graph(&format!("g () => () {{ y = Op({}) }}", "_lit".repeat(many))).is_ok());
    assert!(
        parse_graph(&format!(
            "g () => () {{ y = Op({{1}}, {}) }}",
            "_".repeat(many)
        ))
        .is_ok()
    );
    assert!(parse_graph(&format!("g () => () {{ y = Op({}) }}", ",".repeat(many))).is_ok());
    let error = parse_graph(&format!("g () => () {{ {}", "\\".repeat(many))).unwrap_err();
    assert_eq!(error.line, 1);
}
