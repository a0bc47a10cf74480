//! Sizes to measure at, and the points of a grid that they make.

use std::str::FromStr;

use kiln_graph::Model;

use crate::shapes::{DimSpec, Point, Range, Shapes, SpecError};

/// `NAME=1,8,32`: the sizes of a dimension to measure at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    pub name: String,
    pub sizes: Vec<usize>,
}

impl FromStr for Axis {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Axis, SpecError> {
        let fail = |why: &str| SpecError::Syntax {
            what: "list of sizes",
            text: text.to_string(),
            why: format!("{why}; write batch=1,8 or seq=32,128"),
        };
        let (name, sizes) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| fail("it names no dimension"))?;
        let sizes = sizes.split(',').map(|s| s.trim().parse().ok());
        let sizes: Option<Vec<usize>> = sizes.map(|s| s.filter(|&s| s > 0)).collect();
        Ok(Axis {
            name: name.to_string(),
            sizes: sizes.ok_or_else(|| fail("sizes are numbers above 0"))?,
        })
    }
}

/// The ranges of a model's sizes, with the axes as the user's.
pub(super) fn shapes_of(model: &Model, axes: &[Axis]) -> Result<Shapes, SpecError> {
    let shapes = Shapes::new(&model.graph, &dims(axes), &[]);
    shapes.map_err(|e| match e {
        SpecError::UnknownDim { name, known } => SpecError::UnknownAxis { name, known },
        other => other,
    })
}

/// The sizes of axes as the user's.
fn dims(axes: &[Axis]) -> Vec<DimSpec> {
    let dims = axes.iter().filter_map(|a| {
        let (&min, &max) = (a.sizes.iter().min()?, a.sizes.iter().max()?);
        Some(DimSpec {
            name: a.name.clone(),
            range: Range { min, opt: min, max },
        })
    });
    dims.collect()
}

/// The points of a grid around a typical one: every combination, the last axis fastest.
pub(super) fn spread(typical: Point, axes: &[Axis]) -> Vec<Point> {
    let mut points = vec![typical];
    for axis in axes {
        let grown = points.iter().flat_map(|p| {
            axis.sizes.iter().map(|&n| {
                let mut p = p.clone();
                p.insert(axis.name.clone(), n);
                p
            })
        });
        points = grown.collect();
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_is_a_name_and_sizes() {
        let axis: Axis = "batch=1, 8".parse().unwrap();
        assert_eq!(
            (axis.name.as_str(), &axis.sizes[..]),
            ("batch", &[1, 8][..])
        );
        for bad in ["batch", "=1", "batch=", "batch=0", "batch=1,x"] {
            assert!(bad.parse::<Axis>().is_err(), "{bad}");
        }
    }
}
