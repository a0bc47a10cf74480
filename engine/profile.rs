//! The sizes that dynamic inputs may take.

use kiln_runtime::setting::DIM;
use serde::{Deserialize, Serialize};

/// The sizes of all dynamic inputs that one set of kernels serves. TensorRT tunes for `opt` and takes all between `min`
/// and `max`. Inputs without a dynamic dimension may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Profile {
    pub inputs: Vec<ProfileInput>,
}

/// The shapes of one input, each of the input's rank, in elements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileInput {
    pub name: String,
    pub min: Vec<i64>,
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}

/// The profiles do not fit the inputs of the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileError {
    #[error("no sizes are given for the dynamic inputs {}", quoted(.inputs))]
    Missing { inputs: Vec<String> },
    #[error("profile {profile} gives no sizes for the dynamic input `{input}`")]
    MissingInput { profile: usize, input: String },
    #[error("a profile names the input `{input}`, but the model has {}", quoted(.inputs))]
    UnknownInput { input: String, inputs: Vec<String> },
    #[error("a profile gives the input `{input}` twice")]
    Twice { input: String },
    #[error("a profile gives the input `{input}` {given} dimensions, but it has {rank}")]
    Rank {
        input: String,
        given: usize,
        rank: usize,
    },
    #[error(
        "a profile gives dimension {axis} of the input `{input}` the size {given}, but it is fixed at {size}"
    )]
    Fixed {
        input: String,
        axis: usize,
        given: i64,
        size: i64,
    },
    #[error(
        "the sizes of dimension {axis} of the input `{input}` must satisfy 0 <= min <= opt <= max, but are {min}, {opt}, {max}"
    )]
    Order {
        input: String,
        axis: usize,
        min: i64,
        opt: i64,
        max: i64,
    },
    #[error(
        "the values of the input `{input}` decide the shape of other tensors, which a profile of sizes cannot bound"
    )]
    ShapeValues { input: String },
    #[error("TensorRT refuses profile {profile}")]
    Refused { profile: usize },
}

impl ProfileError {
    pub(super) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing { .. } | Self::MissingInput { .. } => {
                format!("give the sizes of the dynamic dimensions with {DIM}")
            }
            Self::ShapeValues { .. } => "make this input a constant of the model".to_owned(),
            _ => return None,
        };
        Some(hint)
    }
}

/// An input of a model, as far as profiles care.
pub(super) struct Input<'a> {
    pub(super) name: &'a str,
    /// -1 stands for a dynamic dimension.
    pub(super) shape: &'a [i64],
    /// TensorRT needs bounds for the values of this input, not for its sizes.
    pub(super) is_shape: bool,
}

impl Input<'_> {
    fn is_dynamic(&self) -> bool {
        self.shape.iter().any(|d| *d < 0)
    }
}

/// Finds what TensorRT would refuse, or worse, would let pass: it ignores names it does not know.
pub(super) fn check(profiles: &[Profile], inputs: &[Input<'_>]) -> Result<(), ProfileError> {
    if let Some(input) = inputs.iter().find(|i| i.is_shape) {
        return Err(ProfileError::ShapeValues {
            input: input.name.to_owned(),
        });
    }
    let dynamic: Vec<_> = inputs.iter().filter(|i| i.is_dynamic()).collect();
    if profiles.is_empty() && !dynamic.is_empty() {
        return Err(ProfileError::Missing {
            inputs: dynamic.iter().map(|i| i.name.to_owned()).collect(),
        });
    }
    for (index, profile) in profiles.iter().enumerate() {
        for (position, given) in profile.inputs.iter().enumerate() {
            let earlier = &profile.inputs[..position];
            if earlier.iter().any(|other| other.name == given.name) {
                return Err(ProfileError::Twice {
                    input: given.name.clone(),
                });
            }
            check_input(given, inputs)?;
        }
        let given = |name: &str| profile.inputs.iter().any(|i| i.name == name);
        if let Some(input) = dynamic.iter().find(|i| !given(i.name)) {
            return Err(ProfileError::MissingInput {
                profile: index,
                input: input.name.to_owned(),
            });
        }
    }
    Ok(())
}

fn check_input(given: &ProfileInput, inputs: &[Input<'_>]) -> Result<(), ProfileError> {
    let name = || given.name.clone();
    let Some(input) = inputs.iter().find(|i| i.name == given.name) else {
        return Err(ProfileError::UnknownInput {
            input: name(),
            inputs: inputs.iter().map(|i| i.name.to_owned()).collect(),
        });
    };
    let rank = input.shape.len();
    for shape in [&given.min, &given.opt, &given.max] {
        if shape.len() != rank {
            return Err(ProfileError::Rank {
                input: name(),
                given: shape.len(),
                rank,
            });
        }
    }
    for (axis, &size) in input.shape.iter().enumerate() {
        let (min, opt, max) = (given.min[axis], given.opt[axis], given.max[axis]);
        if !(0 <= min && min <= opt && opt <= max) {
            return Err(ProfileError::Order {
                input: name(),
                axis,
                min,
                opt,
                max,
            });
        }
        if let Some(given) = [min, opt, max]
            .into_iter()
            .find(|&d| size >= 0 && d != size)
        {
            return Err(ProfileError::Fixed {
                input: name(),
                axis,
                given,
                size,
            });
        }
    }
    Ok(())
}

fn quoted(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|n| format!("`{n}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUTS: &[Input<'static>] = &[
        Input {
            name: "ids",
            shape: &[-1, -1],
            is_shape: false,
        },
        Input {
            name: "scale",
            shape: &[3],
            is_shape: false,
        },
    ];

    fn ids(min: [i64; 2], opt: [i64; 2], max: [i64; 2]) -> ProfileInput {
        ProfileInput {
            name: "ids".to_owned(),
            min: min.into(),
            opt: opt.into(),
            max: max.into(),
        }
    }

    fn check_one(inputs: Vec<ProfileInput>) -> Result<(), ProfileError> {
        check(&[Profile { inputs }], INPUTS)
    }

    #[test]
    fn static_inputs_may_be_left_out() {
        assert_eq!(check_one(vec![ids([1, 1], [2, 8], [2, 16])]), Ok(()));
    }

    #[test]
    fn dynamic_inputs_may_not() {
        assert!(
            matches!(check(&[], INPUTS), Err(ProfileError::Missing { inputs }) if inputs == ["ids"])
        );
        assert!(matches!(
            check_one(vec![]),
            Err(ProfileError::MissingInput { profile: 0, .. })
        ));
    }

    #[test]
    fn a_model_of_static_inputs_needs_no_profile() {
        assert_eq!(check(&[], &INPUTS[1..]), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let fits = ids([1, 1], [2, 8], [2, 16]);
        let named = |name: &str, size: i64| ProfileInput {
            name: name.to_owned(),
            min: vec![size],
            opt: vec![size],
            max: vec![size],
        };
        let error = |inputs| check_one(inputs).unwrap_err();
        assert!(matches!(
            error(vec![fits.clone(), fits.clone()]),
            ProfileError::Twice { .. }
        ));
        assert!(matches!(
            error(vec![named("no", 1)]),
            ProfileError::UnknownInput { .. }
        ));
        assert!(matches!(
            error(vec![named("ids", 1)]),
            ProfileError::Rank {
                given: 1,
                rank: 2,
                ..
            }
        ));
        assert!(matches!(
            error(vec![named("scale", 4)]),
            ProfileError::Fixed {
                given: 4,
                size: 3,
                ..
            }
        ));
        for sizes in [[2, 1, 3], [1, 3, 2], [-1, 1, 1]] {
            let [min, opt, max] = sizes.map(|d| [1, d]);
            assert!(matches!(
                error(vec![ids(min, opt, max)]),
                ProfileError::Order { axis: 1, .. }
            ));
        }
    }

    #[test]
    fn an_input_whose_values_are_shapes_is_refused() {
        let input = Input {
            name: "shape",
            shape: &[2],
            is_shape: true,
        };
        assert!(matches!(
            check(&[], &[input]),
            Err(ProfileError::ShapeValues { .. })
        ));
    }
}
