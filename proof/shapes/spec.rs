//! `--dim batch=1:8:32` and `--shape NAME=1x128`.

use std::str::FromStr;

use kiln_graph::Dim;

use super::{Range, Shapes};
use kiln_runtime::fault::Fault;
use kiln_runtime::setting::{DIM, GRID, MAX_LENGTH, SHAPE};

/// A size given on the command line does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("'{text}' is not a valid {what}: {why}")]
    Syntax {
        what: &'static str,
        text: String,
        why: String,
    },
    #[error("{DIM} {name}: the model has no symbolic dimension of that name; it has: {known}")]
    UnknownDim { name: String, known: String },
    #[error("{GRID} {name}: the model has no symbolic dimension of that name; it has: {known}")]
    UnknownAxis { name: String, known: String },
    #[error("{SHAPE} {input}: the model has no such input; it has: {known}")]
    UnknownInput { input: String, known: String },
    #[error("{SHAPE} {input}: it has {rank} dimensions, not {given}")]
    Rank {
        input: String,
        rank: usize,
        given: usize,
    },
    #[error("{SHAPE} {input}: dimension {axis} is {size} in the model, not {given}")]
    Fixed {
        input: String,
        axis: usize,
        size: usize,
        given: Range,
    },
    #[error("{SHAPE} {input}: dimension '{symbol}' was given {first} before, and {second} now")]
    Contradiction {
        input: String,
        symbol: String,
        first: Range,
        second: Range,
    },
    #[error(
        "the sizes given contradict each other: the graph requires {relation}, but these are {sizes}; leave one of them out"
    )]
    Related { relation: String, sizes: String },
    #[error("{MAX_LENGTH} {asked}: the model holds {end} tokens")]
    TooLong { asked: usize, end: usize },
    #[error("{MAX_LENGTH} 0: a cache holds one token at least")]
    NoTokens,
    #[error("input '{input}' is {ty}: kiln needs its shape; give it with {SHAPE} {input}=1x128")]
    NoShape { input: String, ty: String },
    #[error("input '{input}' is {ty}: kiln compiles models whose inputs are tensors")]
    NotTensor { input: String, ty: String },
    #[error("input '{input}' has no element type in the file: export the model with one")]
    NoType { input: String },
}

impl SpecError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            SpecError::NotTensor { .. } | SpecError::NoType { .. } => Fault::Model,
            _ => Fault::Request,
        }
    }
}

/// `NAME=MIN:OPT:MAX`, or `NAME=N` for a fixed size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DimSpec {
    pub name: String,
    pub range: Range,
}

/// `INPUT=1x128`, or `INPUT=1x16:8x128:32x512` for minimum, optimum and maximum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeSpec {
    pub input: String,
    pub ranges: Vec<Range>,
}

fn syntax(what: &'static str, text: &str, why: impl Into<String>) -> SpecError {
    SpecError::Syntax {
        what,
        text: text.to_string(),
        why: why.into(),
    }
}

fn range(sizes: &[usize]) -> Result<Range, String> {
    let range = match *sizes {
        [n] => Range::fixed(n),
        [min, max] => Range { min, opt: max, max },
        [min, opt, max] => Range { min, opt, max },
        _ => return Err("give one size, or MIN:OPT:MAX".into()),
    };
    if range.opt == 0 || range.min > range.opt || range.opt > range.max {
        return Err("sizes must satisfy MIN <= OPT <= MAX, and OPT is at least 1".into());
    }
    if range.max > i32::MAX as usize {
        return Err(format!("sizes end at {}", i32::MAX));
    }
    Ok(range)
}

fn number(text: &str) -> Result<usize, String> {
    let parsed = text.trim().parse();
    parsed.map_err(|_| format!("'{text}' is not a whole number"))
}

impl FromStr for DimSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<DimSpec, SpecError> {
        const WHAT: &str = "dimension (NAME=MIN:OPT:MAX)";
        let (name, sizes) =
            (text.split_once('=')).ok_or_else(|| syntax(WHAT, text, "it has no '='"))?;
        let sizes: Result<Vec<usize>, String> = sizes.split(':').map(number).collect();
        let range = sizes
            .and_then(|s| range(&s))
            .map_err(|why| syntax(WHAT, text, why))?;
        Ok(DimSpec {
            name: name.trim().to_string(),
            range,
        })
    }
}

impl FromStr for ShapeSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<ShapeSpec, SpecError> {
        const WHAT: &str = "shape (INPUT=1x128)";
        // A name may hold ':' and 'x', sizes hold no '='.
        let (input, shapes) =
            (text.rsplit_once('=')).ok_or_else(|| syntax(WHAT, text, "it has no '='"))?;
        let parse = |shape: &str| shape.split('x').map(number).collect::<Result<Vec<_>, _>>();
        let shapes: Result<Vec<Vec<usize>>, String> = shapes.split(':').map(parse).collect();
        let ranges = shapes.and_then(|shapes| {
            let rank = shapes[0].len();
            if shapes.iter().any(|s| s.len() != rank) {
                return Err("its shapes have different ranks".into());
            }
            let column = |k: usize| shapes.iter().map(|s| s[k]).collect::<Vec<_>>();
            (0..rank).map(|k| range(&column(k))).collect()
        });
        Ok(ShapeSpec {
            input: input.trim().to_string(),
            ranges: ranges.map_err(|why: String| syntax(WHAT, text, why))?,
        })
    }
}

/// Sets the ranges that the user gives.
pub(super) fn apply(
    shapes: &mut Shapes,
    dims: &[DimSpec],
    specs: &[ShapeSpec],
) -> Result<(), SpecError> {
    for spec in dims {
        match shapes.ranges.get_mut(&spec.name) {
            Some(range) => *range = spec.range,
            None => {
                return Err(SpecError::UnknownDim {
                    name: spec.name.clone(),
                    known: list(shapes.ranges.keys()),
                });
            }
        }
        shapes.given.push(spec.name.clone());
    }
    for spec in specs {
        let input = shapes.inputs.iter().find(|i| i.name == spec.input);
        let input = input.ok_or_else(|| SpecError::UnknownInput {
            input: spec.input.clone(),
            known: list(shapes.inputs.iter().map(|i| &i.name)),
        })?;
        if input.dims.len() != spec.ranges.len() {
            return Err(SpecError::Rank {
                input: spec.input.clone(),
                rank: input.dims.len(),
                given: spec.ranges.len(),
            });
        }
        for (axis, (dim, range)) in input.dims.iter().zip(&spec.ranges).enumerate() {
            match dim {
                Dim::Known(size) if Range::fixed(*size) != *range => {
                    return Err(SpecError::Fixed {
                        input: spec.input.clone(),
                        axis,
                        size: *size,
                        given: *range,
                    });
                }
                Dim::Symbol(s) => {
                    let symbol = s.to_string();
                    let before = shapes.ranges.insert(symbol.clone(), *range);
                    if let Some(first) = before
                        && shapes.given.contains(&symbol)
                        && first != *range
                    {
                        return Err(SpecError::Contradiction {
                            input: spec.input.clone(),
                            symbol,
                            first,
                            second: *range,
                        });
                    }
                    shapes.given.push(symbol);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.is_empty() {
        true => "none".into(),
        false => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dims_and_shapes_parse() {
        let dim: DimSpec = "batch=1:8:32".parse().unwrap();
        assert_eq!((dim.range.min, dim.range.opt, dim.range.max), (1, 8, 32));
        assert_eq!(
            "seq=128".parse::<DimSpec>().unwrap().range,
            Range::fixed(128)
        );
        let shape: ShapeSpec = "onnx::ids=1x16:8x128:32x512".parse().unwrap();
        let past: DimSpec = "past=0:8:32".parse().unwrap();
        assert_eq!((past.range.min, past.range.max), (0, 32));
        assert_eq!(shape.input, "onnx::ids");
        assert_eq!((shape.ranges[1].min, shape.ranges[1].max), (16, 512));
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for text in [
            "batch",
            "batch=",
            "batch=8:1:2",
            "batch=0",
            "batch=1:2:3:4",
            "batch=99999999999",
        ] {
            let err = text.parse::<DimSpec>().unwrap_err().to_string();
            assert!(err.contains("NAME=MIN:OPT:MAX"), "{err}");
        }
        for text in ["ids", "ids=1y2", "ids=1x2:3", "ids=2x2:1x1"] {
            assert!(text.parse::<ShapeSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_missing_shape_can_be_given() {
        let refusal = |input: &str| {
            let text = format!(
                "<ir_version: 10, opset_import: [\"\" : 20]> g ({input} x) => (float[2] y) {{ y = Op(x) }}"
            );
            let model = kiln_graph::onnx::read_text(&text).unwrap();
            Shapes::new(&model.graph, &[], &[]).unwrap_err().to_string()
        };
        let cases = [
            ("seq(float[2])", "is a sequence"),
            ("optional(seq(float[2]))", "is an optional"),
            ("map(int64, float[2])", "is a map"),
            ("sparse_tensor(float[8])", "is a sparse tensor"),
        ];
        for (input, says) in cases {
            let said = refusal(input);
            assert!(
                said.contains(says) && !said.contains(SHAPE.name()),
                "{said}"
            );
        }
        assert!(refusal("float[]").contains(&format!("{SHAPE} x=1x128")));
        assert!(refusal("").contains("no element type"));
    }
}
