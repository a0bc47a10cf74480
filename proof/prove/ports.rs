//! Types of inputs and outputs that a candidate has otherwise than the reference, where that was asked for.

use kiln_graph::{DType, Tensor};

use crate::parity::rounded;
use kiln_runtime::TensorInfo;

/// What a candidate is given, and what the reference is: the same numbers, in the types of each. A number that the
/// candidate's type cannot hold stays as it is for the reference, so that the difference shows.
pub(super) struct Given {
    pub candidate: Vec<(String, Tensor)>,
    pub reference: Vec<(String, Tensor)>,
}

/// Inputs in the types that the candidate declares.
pub(super) fn given(inputs: &[(String, Tensor)], declared: &[(String, DType)]) -> Given {
    let mut given = Given {
        candidate: inputs.to_vec(),
        reference: inputs.to_vec(),
    };
    let sides = given.candidate.iter_mut().zip(&mut given.reference);
    for ((name, theirs), (_, ours)) in sides {
        let wanted = declared.iter().find(|(n, _)| n == name);
        let wanted = wanted.map(|(_, d)| *d).filter(|d| *d != theirs.dtype());
        let Some(narrow) = wanted.and_then(|d| rounded(theirs, d)) else {
            continue;
        };
        if let Some(back) = rounded(&narrow, ours.dtype()).and_then(|back| finite(ours, back)) {
            *ours = back;
        }
        *theirs = narrow;
    }
    given
}

/// `rounded`, unless it lost a finite number.
fn finite(tensor: &Tensor, rounded: Tensor) -> Option<Tensor> {
    let (before, after) = (tensor.to_f64s()?, rounded.to_f64s()?);
    let mut pairs = before.iter().zip(&after);
    let lost = pairs.any(|(b, a)| b.is_finite() && !a.is_finite());
    (!lost).then_some(rounded)
}

/// Brings the candidate's outputs into the reference's types, and gives those that had others.
pub(super) fn alike(
    found: &mut [(String, Tensor)],
    expected: &[(String, Tensor)],
) -> Vec<(String, DType)> {
    let mut changed = Vec::new();
    for (name, tensor) in found {
        let wanted = expected.iter().find(|(n, _)| n == name);
        let wanted = wanted.map(|(_, t)| t.dtype());
        let Some(wanted) = wanted.filter(|d| *d != tensor.dtype()) else {
            continue;
        };
        if let Some(wide) = rounded(tensor, wanted) {
            changed.push((name.clone(), tensor.dtype()));
            *tensor = wide;
        }
    }
    changed
}

/// Names and types.
pub(super) fn declared(infos: &[TensorInfo]) -> Vec<(String, DType)> {
    infos.iter().map(|i| (i.name.clone(), i.dtype)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_given_the_same_numbers() {
        let declared = vec![("x".to_string(), DType::F16)];
        let inputs = vec![
            ("x".to_string(), Tensor::vector(&[0.1f32, 2.0])),
            ("ids".to_string(), Tensor::vector(&[1i64])),
        ];
        let both = given(&inputs, &declared);
        assert_eq!(both.candidate[0].1.dtype(), DType::F16);
        assert_eq!(both.reference[0].1.dtype(), DType::F32);
        assert_eq!(both.candidate[0].1.to_f64s(), both.reference[0].1.to_f64s());
        assert!(both.candidate[1].1.same_bits(&inputs[1].1));
        // Beyond the type's range the reference keeps the number.
        let large = vec![("x".to_string(), Tensor::vector(&[1e6f32]))];
        let both = given(&large, &declared);
        assert_eq!(both.reference[0].1.values::<f32>().unwrap(), [1e6]);
        assert!(both.candidate[0].1.to_f64s().unwrap()[0].is_infinite());
    }

    #[test]
    fn outputs_are_compared_in_the_types_of_the_reference() {
        let expected = vec![("y".to_string(), Tensor::vector(&[1f32]))];
        let half = Tensor::vector(&[half::f16::from_f32(1.0)]);
        let mut found = vec![("y".to_string(), half)];
        let changed = alike(&mut found, &expected);
        assert_eq!(changed, [("y".to_string(), DType::F16)]);
        assert!(found[0].1.same_bits(&expected[0].1));
    }
}
