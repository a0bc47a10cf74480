use kiln_graph::{Graph, infer, onnx};

use super::*;

/// Coordinates that the bodies below share; the sizes of `ids` name them.
const COORDINATES: &str = "
  shape = Shape(ids)
  batch_size = Gather<axis = 0>(shape, zero)
  size = Gather<axis = 0>(shape, one)
  batches = Range(zero, batch_size, one)
  counted = Range(zero, size, one)
  b = Unsqueeze(batches, b_axes)
  q = Unsqueeze(counted, q_axes)
  k = Unsqueeze(counted, k_axes)
";
const CONSTANTS: &str = "int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 three = {3}, bool yes = {1}, \
    int64[3] b_axes = {1, 2, 3}, int64[3] q_axes = {0, 1, 3}, int64[3] k_axes = {0, 1, 2}, int64[1] last = {-1}, \
    float nothing = {0.0}, float lowest = {-3.4028234663852886e+38}, float full = {1.0}, float tenth = {-10000.0}, \
    int64[1] zeros = {0}, int64[1] flat = {-1}, int64[2] spread = {1, 2}, int64[1] column = {1}";
const INPUTS: &str = "int64[batch, seq] ids, int64[batch, seq] mask, bool[batch, seq] keep, int64[batch, other] long, \
    float[batch, heads, seq, seq] scores";

struct Case {
    graph: Graph,
    facts: infer::Facts,
}

fn case(body: &str, output: &str) -> Case {
    let source = format!(
        "<ir_version: 8, opset_import: [\"\" : 20]>\ng ({INPUTS}) => ({output} y)\n<{CONSTANTS}>\n{{{COORDINATES}{body}}}"
    );
    let graph = onnx::read_text(&source)
        .unwrap_or_else(|e| panic!("{e}\n{source}"))
        .graph;
    let facts = infer::infer(&graph);
    assert_eq!(facts.conflicts(), [], "{source}");
    Case { graph, facts }
}

impl Case {
    fn output(&self) -> ValueId {
        self.graph.outputs()[0].value
    }

    fn terms(&self) -> Vec<Term> {
        analyse(&self.graph, &self.facts, self.output())
            .unwrap()
            .terms
    }

    fn input(&self, name: &str) -> ValueId {
        let found = self.graph.values().find(|(_, v)| v.name() == name);
        found.unwrap().0
    }
}

fn cond(body: &str) -> Case {
    case(body, "bool[b2, h2, q2, k2]")
}

fn padding(case: &Case) -> Term {
    Term::Padding {
        value: case.input("mask"),
    }
}

const TORCHSCRIPT: &str = "
  bools = Cast<to = 9>(mask)
  rows = Flatten<axis = 2>(bools)
  mask_shape = Shape(bools)
  width = Gather<axis = 0>(mask_shape, column)
  skipped = Mul(b, width)
  index = Add(k, skipped)
  picked = Gather<axis = 0>(rows, INDEX)
  line = Reshape(picked, flat)
  index_shape = Shape(index)
  gathered = Reshape(line, index_shape)
  positive = GreaterOrEqual(q, zero)
  always = And(yes, positive)
  y = And(always, gathered)
";

const DYNAMO: &str = "
  bools = Cast<to = 9>(mask)
  both = Max(b, k)
  whole = Shape(both)
  bs = Expand(b, whole)
  bu = Unsqueeze(bs, last)
  ks = Expand(k, whole)
  ku = Unsqueeze(ks, last)
  index = Concat<axis = -1>(bu, ku)
  gathered = GatherND(bools, index)
  causal = LessOrEqual(k, q)
  always = And(yes, causal)
  y = And(always, gathered)
";

#[test]
fn index_arithmetic_of_both_exporters() {
    let found = cond(&TORCHSCRIPT.replace("INDEX", "index"));
    assert_eq!(found.terms(), [padding(&found)]);
    let found = cond(DYNAMO);
    assert_eq!(found.terms(), [Term::Causal { offset: 0 }, padding(&found)]);
    let mask = analyse(&found.graph, &found.facts, found.output()).unwrap();
    assert_eq!(mask.queries.to_string(), "seq");
    assert!(mask.is_understood() && !never_hides_a_whole_row(&mask));
}

#[test]
fn an_index_that_differs_is_not_padding() {
    // One further on, and of a mask of another width.
    let further = TORCHSCRIPT
        .replace("INDEX", "next")
        .replace("picked =", "next = Add(index, one)\n picked =");
    assert!(matches!(cond(&further).terms()[..], [Term::Other(_)]));
    let found = cond(
        &TORCHSCRIPT
            .replace("INDEX", "index")
            .replace("(mask)", "(long)"),
    );
    assert!(
        matches!(found.terms()[..], [Term::Other(_)]),
        "{:?}",
        found.terms()
    );
    let found = cond(&DYNAMO.replace("(mask)", "(long)"));
    assert!(matches!(
        found.terms()[..],
        [Term::Causal { offset: 0 }, Term::Other(_)]
    ));
    // Coordinates the wrong way around.
    let found = cond(&DYNAMO.replace("(bu, ku)", "(ku, bu)"));
    assert!(matches!(
        found.terms()[..],
        [Term::Causal { offset: 0 }, Term::Other(_)]
    ));
    // Padding of the queries, not of the keys.
    let found = cond(
        "bools = Cast<to = 9>(mask)\n y = Unsqueeze(bools, axes)\n axes = Constant<value_ints = [1, 3]>()",
    );
    assert!(matches!(found.terms()[..], [Term::Other(_)]));
}

#[test]
fn bounds_on_the_distance() {
    let causal = |offset| vec![Term::Causal { offset }];
    let window = |left, right| vec![Term::Window { left, right }];
    for (body, terms) in [
        ("y = LessOrEqual(k, q)", causal(0)),
        ("y = Less(k, q)", causal(-1)),
        ("y = Greater(q, k)", causal(-1)),
        ("n = Add(q, one)\n y = Less(k, n)", causal(0)),
        ("n = Greater(k, q)\n y = Not(n)", causal(0)),
        (
            "d = Sub(q, k)\n n = Neg(d)\n y = LessOrEqual(n, two)",
            causal(2),
        ),
        (
            "d = Sub(q, k)\n a = Abs(d)\n y = LessOrEqual(a, three)",
            window(3, 3),
        ),
        (
            "d = Sub(k, q)\n a = Abs(d)\n y = Less(a, three)",
            window(2, 2),
        ),
        ("d = Sub(q, k)\n y = Less(d, three)", window(2, i64::MAX)),
        (
            "d = Sub(q, k)\n n = Less(d, three)\n c = LessOrEqual(k, q)\n y = And(c, n)",
            window(2, 0),
        ),
        (
            "c = LessOrEqual(k, q)\n d = Less(k, q)\n y = And(c, d)",
            causal(-1),
        ),
        (
            "d = Sub(k, q)\n z = ConstantOfShape(s)\n s = Shape(d)\n i = Cast<to = 7>(z)\n m = Max(d, i)\n \
          y = Equal(m, zero)",
            causal(0),
        ),
        (
            "c = LessOrEqual(k, q)\n f = Cast<to = 1>(c)\n y = Cast<to = 9>(f)",
            causal(0),
        ),
        (
            "s = Shape(scores)\n t = ConstantOfShape<value = bool[1] {1}>(s)\n y = Trilu<upper = 0>(t)",
            causal(0),
        ),
        (
            "s = Shape(scores)\n t = ConstantOfShape<value = bool[1] {1}>(s)\n u = Trilu<upper = 1>(t, one)\n y = Not(u)",
            causal(0),
        ),
        ("p = GreaterOrEqual(q, zero)\n y = And(p, yes)", vec![]),
    ] {
        assert_eq!(cond(body).terms(), terms, "{body}");
    }
    // What is no bound on the distance, or not one alone.
    for body in [
        "y = LessOrEqual(k, two)",
        "s = Add(k, q)\n y = LessOrEqual(s, two)",
        "t = Mul(k, two)\n y = LessOrEqual(t, q)",
        "c = LessOrEqual(k, q)\n n = Cast<to = 2>(c)\n w = Neg(n)\n y = Cast<to = 9>(w)",
        "c = LessOrEqual(k, q)\n d = Equal(k, zero)\n y = Or(c, d)",
    ] {
        let terms = cond(body).terms();
        assert!(matches!(terms[..], [Term::Other(_)]), "{body}: {terms:?}");
    }
}

#[test]
fn triangular_and_banded_constants() {
    let rows = |f: &dyn Fn(i64, i64) -> bool| {
        let bits = (0..64).map(|n| u8::from(f(n / 8, n % 8)).to_string());
        let bits = bits.collect::<Vec<_>>().join(", ");
        format!(
            "w = Constant<value = bool[1, 1, 8, 8] {{{bits}}}>()
             end = Unsqueeze(size, zeros)
             r = Slice(w, zeros, end, axis2, column)
             y = Slice(r, zeros, end, axis3, column)
             axis2 = Constant<value_ints = [2]>()
             axis3 = Constant<value_ints = [3]>()"
        )
    };
    assert_eq!(
        cond(&rows(&|i, j| j <= i)).terms(),
        [Term::Causal { offset: 0 }]
    );
    let band = cond(&rows(&|i, j| (-2..=1).contains(&(j - i)))).terms();
    assert_eq!(band, [Term::Window { left: 2, right: 1 }]);
    assert_eq!(cond(&rows(&|_, _| true)).terms(), []);
    for other in [
        rows(&|i, j| j <= i && (i, j) != (5, 3)),
        rows(&|i, j| j <= i || (i, j) == (0, 7)),
        rows(&|i, j| (i + j) % 2 == 0),
    ] {
        assert!(matches!(cond(&other).terms()[..], [Term::Other(_)]));
    }
}

#[test]
fn values_added_to_scores() {
    let bias = |body: &str| {
        let case = case(body, "float[b2, h2, q2, k2]");
        let found = analyse_bias(&case.graph, &case.facts, case.output());
        found.map(|(mask, hidden)| (mask.terms, hidden))
    };
    let causal = |hidden| Some((vec![Term::Causal { offset: 0 }], hidden));
    let lowest = f64::from(f32::MIN);
    assert_eq!(
        bias("c = LessOrEqual(k, q)\n y = Where(c, nothing, lowest)"),
        causal(lowest)
    );
    // transformers 4: a full matrix, filled with zeros where arange < arange + 1.
    let filled = "s = Shape(scores)\n z = ConstantOfShape<value = float[1] {-10000.0}>(s)\n n = Add(q, one)\n \
        c = Less(k, n)\n y = Where(c, nothing, z)";
    assert_eq!(bias(filled), causal(-10000.0));
    let multiplied =
        "c = LessOrEqual(k, q)\n f = Cast<to = 1>(c)\n h = Sub(full, f)\n y = Mul(h, tenth)";
    assert_eq!(bias(multiplied), causal(-10000.0));
    // A mask of whole numbers may hold 2, of which (1 - 2) * -10000 hides nothing.
    let numbers =
        "u = Unsqueeze(mask, spread)\n f = Cast<to = 1>(u)\n h = Sub(full, f)\n y = Mul(h, tenth)";
    assert_eq!(bias(numbers), None);
    let bools = numbers.replace("mask", "keep");
    let kept = case(&bools, "float[b2, h2, q2, k2]");
    let found = analyse_bias(&kept.graph, &kept.facts, kept.output()).unwrap();
    assert_eq!(
        found.0.terms,
        [Term::Padding {
            value: kept.input("keep")
        }]
    );
    assert_eq!(
        bias("c = LessOrEqual(k, q)\n y = Where(c, full, lowest)"),
        None
    );
    assert_eq!(
        bias("c = LessOrEqual(k, q)\n y = Where(c, nothing, full)"),
        None
    );
}

#[test]
fn hidden_conditions_are_negated() {
    let hidden = |body: &str| {
        let case = cond(body);
        let found = analyse_hidden(&case.graph, &case.facts, case.output());
        (found.map(|m| m.terms), padding(&case))
    };
    let (terms, pad) =
        hidden("u = Unsqueeze(mask, spread)\n p = Equal(u, zero)\n f = Less(q, k)\n y = Or(p, f)");
    assert_eq!(terms, Some(vec![Term::Causal { offset: 0 }, pad]));
    // Of what is not understood, no value says the negation.
    assert_eq!(
        hidden("n = IsNaN(scores)\n f = Less(q, k)\n y = Or(n, f)").0,
        None
    );
}

#[test]
fn what_is_not_understood_spoils_nothing_else() {
    let case = cond("n = IsNaN(scores)\n c = LessOrEqual(k, q)\n d = And(n, c)\n y = And(yes, d)");
    let nan = Term::Other(case.input("n"));
    assert_eq!(case.terms(), [Term::Causal { offset: 0 }, nan]);
    let mask = analyse(&case.graph, &case.facts, case.output()).unwrap();
    assert!(!mask.is_understood());
    // Floats and vectors are no conditions.
    assert_eq!(
        analyse(&case.graph, &case.facts, case.input("scores")),
        None
    );
    assert_eq!(
        analyse(&case.graph, &case.facts, case.input("counted")),
        None
    );
}

#[test]
fn rows_that_keep_a_key() {
    let sizes = |queries: &str, keys: &str, terms: &[Term]| {
        let size = |text: &str| match text.parse::<i64>() {
            Ok(n) => Expr::from(n),
            Err(_) => Expr::symbol(text),
        };
        never_hides_a_whole_row(&Mask {
            terms: terms.to_vec(),
            queries: size(queries),
            keys: size(keys),
        })
    };
    let window = |left, right| [Term::Window { left, right }];
    assert!(sizes("q", "k", &[]));
    assert!(sizes("q", "k", &[Term::Causal { offset: 0 }]));
    assert!(!sizes("q", "k", &[Term::Causal { offset: -1 }]));
    assert!(sizes("n", "n", &window(4, 4)) && sizes("n", "n", &window(0, 0)));
    assert!(!sizes("n", "n", &window(-1, 4)) && !sizes("n", "n", &window(4, -1)));
    // Queries far past the last key see nothing.
    assert!(!sizes("q", "k", &window(4, 4)));
    assert!(sizes("8", "4", &window(4, 4)) && !sizes("9", "4", &window(4, 4)));
    let case = cond(DYNAMO);
    assert!(!sizes("n", "n", &[padding(&case)]));
    assert!(!sizes(
        "n",
        "n",
        &[Term::Causal { offset: 0 }, padding(&case)]
    ));
}

#[test]
fn work_is_bounded() {
    // Each step doubles what a reader without a memory would read.
    let mut body = String::from("c0 = LessOrEqual(k, q)\n n0 = IsNaN(scores)\n x0 = And(c0, n0)\n");
    for step in 1..200 {
        let last = step - 1;
        body += &format!("a{step} = Or(x{last}, x{last})\n x{step} = And(a{step}, x{last})\n");
    }
    body += "y = And(x199, c0)\n";
    let case = cond(&body);
    let mask = analyse(&case.graph, &case.facts, case.output()).unwrap();
    assert!(!mask.is_understood());
}
