//! Random expressions against plain numbers, and random malformed graphs.

use super::*;

/// Numbers without a pattern, the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    fn int(&mut self) -> i64 {
        let odd = [
            0,
            1,
            -1,
            2,
            -2,
            3,
            7,
            64,
            1024,
            -1024,
            i32::MAX as i64,
            i32::MIN as i64,
            i64::MAX,
            i64::MIN,
        ];
        odd[self.below(odd.len())]
    }
}

#[test]
fn expressions_are_what_they_are_made_of() {
    let mut random = Random(7);
    let names = [("a", 3i64), ("b", 5), ("n", 1), ("z", 12)];
    let lookup = |name: &str| names.iter().find(|n| n.0 == name).map(|n| n.1);
    for _ in 0..20_000 {
        let mut stack: Vec<(Expr, i64)> = Vec::new();
        for _ in 0..8 {
            let (name, value) = names[random.below(names.len())];
            let leaf = match random.below(3) {
                0 => (random.below(9) as i64 - 2).into(),
                _ => Expr::symbol(name),
            };
            let value = leaf.as_i64().unwrap_or(value);
            let next = match stack.pop() {
                None => Some((leaf, value)),
                Some((e, v)) => match random.below(8) {
                    0 => e.add(&leaf).map(|e| (e, v + value)),
                    1 => e.sub(&leaf).map(|e| (e, v - value)),
                    2 | 3 => e.mul(&leaf).map(|e| (e, v * value)),
                    4 if value > 0 => e.floor_div(&leaf).map(|e| (e, v.div_euclid(value))),
                    5 => e.maximum(&leaf).map(|e| (e, v.max(value))),
                    6 => e.minimum(&leaf).map(|e| (e, v.min(value))),
                    _ => Some((e, v)),
                },
            };
            stack.extend(next);
        }
        for (expr, value) in stack {
            assert_eq!(expr.eval(&lookup), Some(value), "{expr}");
            let bounds = expr.bounds();
            assert!(
                bounds.lo.is_none_or(|lo| lo <= value) && bounds.hi.is_none_or(|hi| value <= hi),
                "{expr}"
            );
            if expr.as_i64().is_none() {
                assert_eq!(Expr::parse(&expr.to_string()), expr);
            }
        }
    }
}

#[test]
fn text_of_names() {
    for text in [
        "batch-size",
        "a b",
        "2x",
        "a/b",
        "+",
        "(",
        "max(",
        "a + ",
        "9",
        "--a",
        "((((a",
        "a'b",
    ] {
        assert_eq!(Expr::parse(text), Expr::symbol(text), "{text}");
        assert_eq!(Expr::parse(text).to_string(), text);
        let twice = Expr::symbol(text).mul(&2.into()).unwrap();
        if !text.contains('\'') {
            assert_eq!(Expr::parse(&twice.to_string()), twice, "{twice}");
        }
    }
    assert_eq!(Expr::parse("seq + seq").to_string(), "2*seq");
    assert_eq!(Expr::parse("Max(1, s0) + 1").to_string(), "max(1, s0) + 1");
    assert_eq!(Expr::parse(&"(".repeat(100_000)).as_i64(), None);
}

#[test]
fn malformed_nodes_neither_panic_nor_stop_the_rest() {
    const OPS: &str = "Add Sub Mul Div Mod Pow Equal Less Where Min Max Neg Abs Not Cast CastLike Identity Shape Size \
        Reshape Flatten Squeeze Unsqueeze Transpose Expand Concat Split Slice Gather GatherND GatherElements \
        ConstantOfShape Range MatMul Gemm QLinearMatMul ReduceSum ReduceProd ArgMax Conv ConvTranspose QLinearConv \
        MaxPool GlobalMaxPool Resize Upsample Pad Attention Constant RandomNormal Multinomial SpaceToDepth DepthToSpace \
        Det Compress Unique HannWindow Einsum GridSample TopK OneHot Tile NonZero LSTM GRU STFT DFT LayerNormalization \
        BatchNormalization Dropout DynamicQuantizeLinear If Loop Scan NonMaxSuppression Trilu";
    const CONTRIB: &str = "FusedMatMul MultiHeadAttention GroupQueryAttention Attention MatMulNBits QLinearAdd \
        SkipLayerNormalization EmbedLayerNormalization RelativePositionBias FusedConv";
    const ATTRS: &str = "axis axes perm shape value to keepdims split num_outputs starts ends steps pads strides \
        dilations kernel_shape group output_padding output_shape blocksize start end allowzero batch_dims num_heads \
        kv_num_heads q_num_heads N qkv_hidden_sizes equation auto_pad sizes scales noop_with_empty_axes onesided \
        num_scan_inputs scan_input_axes ceil_mode sample_size then_branch else_branch body stash_type dtype";
    let ops: Vec<Op> = (OPS.split_whitespace().map(Op::onnx))
        .chain(
            CONTRIB
                .split_whitespace()
                .map(|name| Op::new("com.microsoft", name)),
        )
        .collect();
    let attrs: Vec<&str> = ATTRS.split_whitespace().collect();
    let mut random = Random(1);
    for round in 0..600 {
        let mut b = Build::new([1, 9, 11, 17, 23][random.below(5)]);
        let dims = [
            "0",
            "1",
            "2",
            "4",
            "seq",
            "batch",
            "?",
            "9223372036854775807",
            "3000000000",
        ];
        let mut values = vec![];
        for _ in 0..5 {
            let rank = random.below(5);
            let dims: Vec<&str> = (0..rank).map(|_| dims[random.below(dims.len())]).collect();
            let dtype = [DType::F32, DType::I64, DType::I32, DType::Bool][random.below(4)];
            values.push(b.input(dtype, &dims));
            let ints: Vec<i64> = (0..random.below(5)).map(|_| random.int()).collect();
            values.push(b.ints(&ints));
            let scalar = random.int();
            values.push(b.int(scalar));
        }
        values.push(b.graph.add_input("untyped", Type::Unknown));
        for _ in 0..40 {
            let mut set = Attrs::new();
            for _ in 0..random.below(6) {
                let name = attrs[random.below(attrs.len())];
                let ints = |r: &mut Random| (0..r.below(5)).map(|_| r.int()).collect::<Vec<i64>>();
                let value = match random.below(8) {
                    0 | 1 => Attr::Int(random.int()),
                    2..=4 => Attr::Ints(ints(&mut random)),
                    5 => Attr::from(
                        ["ij,jk->ik", "...a->a...", "SAME_UPPER", "->", ",,"][random.below(5)],
                    ),
                    6 => Attr::Tensor(Tensor::vector(&ints(&mut random))),
                    _ => {
                        let mut inner = Graph::new(Opsets::default());
                        let position = random.below(3);
                        let captured = inner.add_capture("c", Type::Unknown, position);
                        inner.add_output("o", captured);
                        Attr::Graph(Box::new(inner))
                    }
                };
                set.set(name, value);
            }
            let count = random.below(5);
            let inputs: Vec<Option<ValueId>> = (0..count)
                .map(|_| (random.below(8) > 0).then(|| values[random.below(values.len())]))
                .collect();
            let outputs = random.below(4);
            let op = ops[random.below(ops.len())];
            let node = b.graph.add_node(op, "", inputs, outputs, set);
            values.extend(b.graph.node(node).outputs().iter().flatten());
        }
        let facts = infer(&b.graph);
        for &value in &values {
            let known = facts.values(value).zip(facts.dims(value));
            if let Some((values, dims)) = known {
                assert_eq!(Some(values.len()), fact::known_count(dims), "round {round}");
            }
        }
        annotate(&mut b.graph);
        let first = b.graph.inputs()[0];
        with_inputs(
            &b.graph,
            &[(first, [Dim::Known(3), Dim::Known(4)].as_slice().into())],
        );
    }
}
