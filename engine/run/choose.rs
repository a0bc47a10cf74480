//! The optimization profile for given sizes.

use crate::{Profile, ProfileInput};

/// No profile takes an input of this shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine takes no input `{input}` of shape {shape:?}: its profiles take {ranges}")]
pub struct Misfit {
    pub input: String,
    pub shape: Vec<i64>,
    /// The shapes that the profiles take: `[1, 1] to [8, 512]`.
    pub ranges: String,
}

/// The profile for inputs of these shapes: of those that take them, one tuned for exactly these, else the one with the
/// smallest largest sizes, whose kernels fit the most closely.
///
/// # Errors
/// When none takes all inputs, the input that the most profiles refuse.
pub fn choose(profiles: &[Profile], shapes: &[(String, Vec<i64>)]) -> Result<usize, Misfit> {
    let takes = |p: &Profile, (name, shape): &(String, Vec<i64>)| {
        let ranges = p.inputs.iter().filter(|r| r.name == *name);
        ranges.into_iter().all(|r| within(r, shape))
    };
    let fitting = (profiles.iter().enumerate()).filter(|(_, p)| shapes.iter().all(|s| takes(p, s)));
    let best = fitting.min_by_key(|(_, p)| {
        let exact = shapes.iter().all(|(name, shape)| {
            let mut ranges = p.inputs.iter().filter(|r| r.name == *name);
            ranges.all(|r| r.opt == *shape)
        });
        let volume = |r: &ProfileInput| r.max.iter().map(|&d| d.max(1) as f64).product::<f64>();
        let size = p.inputs.iter().map(volume).sum::<f64>();
        (!exact, size as u64)
    });
    if let Some((index, _)) = best {
        return Ok(index);
    }
    // Without profiles there is nothing to choose: TensorRT makes one of static shapes.
    if profiles.is_empty() {
        return Ok(0);
    }
    let refusals = |s: &&(String, Vec<i64>)| profiles.iter().filter(|p| !takes(p, s)).count();
    let (input, shape) = shapes
        .iter()
        .max_by_key(refusals)
        .cloned()
        .unwrap_or_default();
    let of_input = |p: &Profile| p.inputs.iter().find(|r| r.name == input).cloned();
    let ranges: Vec<String> = (profiles.iter().filter_map(of_input))
        .map(|r| format!("{:?} to {:?}", r.min, r.max))
        .collect();
    Err(Misfit {
        input,
        shape,
        ranges: ranges.join(", or "),
    })
}

fn within(range: &ProfileInput, shape: &[i64]) -> bool {
    let bounds = range.min.iter().zip(&range.max);
    range.min.len() == shape.len()
        && (shape.iter().zip(bounds)).all(|(d, (min, max))| (min..=max).contains(&d))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(min: [i64; 2], opt: [i64; 2], max: [i64; 2]) -> Profile {
        Profile {
            inputs: vec![ProfileInput {
                name: "ids".into(),
                min: min.into(),
                opt: opt.into(),
                max: max.into(),
            }],
        }
    }

    fn ids(shape: &[i64]) -> Vec<(String, Vec<i64>)> {
        vec![("ids".into(), shape.into())]
    }

    #[test]
    fn the_closest_profile_serves() {
        let wide = profile([1, 1], [4, 128], [32, 512]);
        let narrow = profile([1, 1], [1, 64], [8, 128]);
        let tuned = profile([1, 1], [8, 128], [64, 1024]);
        let all = [wide, narrow, tuned];
        assert_eq!(choose(&all, &ids(&[2, 100])), Ok(1));
        assert_eq!(choose(&all, &ids(&[16, 100])), Ok(0));
        assert_eq!(choose(&all, &ids(&[8, 128])), Ok(2));
        assert_eq!(choose(&all, &ids(&[64, 1024])), Ok(2));
    }

    #[test]
    fn what_no_profile_takes_is_named_with_what_they_take() {
        let error = choose(&[profile([1, 1], [1, 8], [4, 16])], &ids(&[5, 8])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`ids` of shape [5, 8]"), "{text}");
        assert!(text.contains("[1, 1] to [4, 16]"), "{text}");
        let rank = choose(&[profile([1, 1], [1, 8], [4, 16])], &ids(&[8])).unwrap_err();
        assert_eq!(rank.shape, [8]);
    }

    #[test]
    fn an_engine_of_static_shapes_has_nothing_to_choose() {
        assert_eq!(choose(&[], &ids(&[2, 2])), Ok(0));
    }
}
