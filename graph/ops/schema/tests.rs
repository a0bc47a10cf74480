use std::collections::BTreeSet;

use super::*;
use crate::DType;
use crate::ops::kind::{Kind, kind};

const TABLES: &[(&str, &str)] = &[
    ("", include_str!("onnx.txt")),
    ("", include_str!("extra.txt")),
    ("com.microsoft", include_str!("microsoft.txt")),
    (INTERNAL_DOMAIN, include_str!("internal.txt")),
];

fn rows(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

#[test]
fn every_line_is_understood() {
    for (domain, text) in TABLES {
        for row in rows(text) {
            let (name, schema) = parse::line(row).unwrap_or_else(|| panic!("{row}"));
            assert!(!versions(Op::new(domain, name)).is_empty());
            let mut ports = schema.inputs().iter().chain(schema.outputs());
            assert!(ports.all(|p| p.types() != Types::default()), "{row}");
        }
    }
    let broken = [
        "Add",
        "Add x | T -> T | T=floats",
        "Add 1 | U -> T | T=floats",
        "Add 1 | T -> T | T=reals",
    ];
    assert!(broken.iter().all(|row| parse::line(row).is_none()));
}

#[test]
fn versions_rise() {
    for (domain, text) in TABLES {
        for row in rows(text) {
            let all = versions(Op::new(domain, row.split(' ').next().unwrap()));
            assert!(all.is_sorted_by(|a, b| a.since < b.since), "{row}");
        }
    }
}

#[test]
fn every_operator_has_a_kind() {
    let names = |text| rows(text).map(|row| row.split(' ').next().unwrap());
    let all: BTreeSet<_> = names(include_str!("onnx.txt")).collect();
    for name in &all {
        assert_ne!(kind(Op::onnx(name)), Kind::Unknown, "{name}");
    }
    for name in names(include_str!("internal.txt")) {
        assert_ne!(
            kind(Op::new(INTERNAL_DOMAIN, name)),
            Kind::Unknown,
            "{name}"
        );
    }
    for name in crate::ops::kind::known() {
        assert!(all.contains(name), "{name}");
    }
}

#[test]
fn the_operator_set_chooses_the_version() {
    let since = |name: &str, opset| schema(Op::onnx(name), opset).map(Schema::since);
    assert_eq!(since("Softmax", 12), Some(11));
    assert_eq!(since("Softmax", 13), Some(13));
    assert_eq!(since("LayerNormalization", 11), Some(17));
    assert_eq!(since("Whatever", 11), None);
    assert!(schema(Op::onnx("Scatter"), 11).unwrap().is_deprecated());
}

#[test]
fn places_of_one_variable_have_one_type() {
    let of = |name: &str, opset| schema(Op::onnx(name), opset).unwrap();
    let select = of("Where", 16);
    let port = |k| select.input(k).unwrap();
    assert!(port(1).is_like(&port(2)) && port(1).is_like(&select.output(0).unwrap()));
    assert!(!port(0).is_like(&port(1)));
    assert_eq!(port(0).types().sole(), Some(DType::Bool));
    let sum = of("Sum", 13);
    assert!(sum.input(0).unwrap().is_like(&sum.input(7).unwrap()));
    let run = of("Loop", 16);
    assert!(!run.input(2).unwrap().is_like(&run.input(3).unwrap()));
    assert!(run.input(9).is_some() && select.input(3).is_none());
}

#[test]
fn defaults_are_those_of_the_version() {
    let int = |name: &str, attr, opset| match default_attr(Op::onnx(name), attr, opset) {
        Some(Attr::Int(v)) => Some(*v),
        _ => None,
    };
    assert_eq!(int("Softmax", "axis", 11), Some(1));
    assert_eq!(int("Softmax", "axis", 13), Some(-1));
    assert_eq!(int("Cast", "saturate", 13), Some(1));
    assert_eq!(int("Cast", "to", 13), None);
    let gelu = default_attr(Op::onnx("Gelu"), "approximate", 20).unwrap();
    assert!(gelu.same(&Attr::from("none")));
    let epsilon = default_attr(Op::onnx("LayerNormalization"), "epsilon", 17).unwrap();
    assert!(epsilon.same(&Attr::Float(1e-5)));
    let skip = Op::new("com.microsoft", "SkipLayerNormalization");
    assert!(
        default_attr(skip, "epsilon", 17)
            .unwrap()
            .same(&Attr::Float(1e-12))
    );
}

#[test]
fn sets_of_types() {
    let floats = Types::named("floats").unwrap();
    assert!(floats.are_floats() && floats.has(DType::F16) && !floats.has(DType::BF16));
    assert_eq!(floats.sole(), None);
    assert_eq!(Types::named("int64").unwrap().sole(), Some(DType::I64));
    assert!(!Types::named("other").unwrap().are_tensors());
    assert!(Types::named("reals").is_none());
}
