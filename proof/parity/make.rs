//! Inputs that are made.

use bytes::Bytes;
use kiln_graph::{DType, Tensor, limits};

use super::inputs::InputError;
use super::number::{Number, Rounding, from_numbers};
use super::padding::Padding;
use super::random::Random;
use super::spec::{Ids, InputKind, InputSpec};
use kiln_runtime::setting::{INPUT, INPUTS};

/// The number of an element of ids. Where the marks stand in a row depends on the seed, as decisions on them must, too.
fn id_at(ids: &Ids, ends: &[i64], padding: Padding, element: usize, seed: u64, random: u64) -> i64 {
    if let (Some(pad), false) = (ids.padding, padding.keeps(element)) {
        return pad;
    }
    let tokens = match ids.padding {
        Some(_) => padding.tokens(element),
        None => padding.last,
    };
    let (row, column) = (element / padding.last, element % padding.last);
    let places = ends.len().min(tokens.div_ceil(2));
    let turn = seed.wrapping_add(row as u64);
    let first = (turn % (tokens - places + 1) as u64) as usize;
    match (column.checked_sub(first)).filter(|place| *place < places) {
        // Where a row has no room for all, the next one goes on with what is left.
        Some(place) => {
            let behind = (turn % ends.len() as u64) as i64 * places as i64;
            let at = (place as i64 - behind).rem_euclid(ends.len() as i64);
            ends[at as usize]
        }
        None if Some(random as i64) == ids.padding => (random as i64 + 1) % ids.upper,
        None => random as i64,
    }
}

/// Makes inputs. The same specifications and seed give the same bits on every machine and in every version of kiln:
/// a saved parity report names a seed and must be repeatable. An input's numbers do not depend on the other inputs.
///
/// # Errors
/// When a dtype cannot hold what the kind says, or a bound is not positive.
pub fn make(specs: &[InputSpec], seed: u64) -> Result<Vec<(String, Tensor)>, InputError> {
    specs
        .iter()
        .map(|spec| {
            let tensor = make_one(spec, seed).map_err(|reason| InputError::Make {
                input: spec.name.clone(),
                dtype: spec.dtype,
                shape: spec.shape.clone(),
                reason,
            })?;
            Ok((spec.name.clone(), tensor))
        })
        .collect()
}

fn make_one(spec: &InputSpec, seed: u64) -> Result<Tensor, String> {
    let InputSpec { dtype, shape, .. } = spec;
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let within = count.filter(|&n| n <= limits::MADE_ELEMENTS);
    let count = within.ok_or_else(|| {
        let most = limits::MADE_ELEMENTS;
        format!("it would have more than {most} elements, which is kiln's limit")
    })?;
    if spec.kind == InputKind::Zeros {
        return zeros(*dtype, shape, count);
    }
    if let InputKind::Texts(texts) = &spec.kind
        && *dtype == DType::String
        && !texts.is_empty()
    {
        let all = texts.iter().cycle().take(count).cloned().collect();
        return Tensor::from_strings(shape.clone(), all).map_err(|e| e.to_string());
    }
    if *dtype == DType::String {
        return Err(format!(
            "texts cannot be made up: give them with {INPUTS} DATA.npz, or fix one with {INPUT} {}=TEXT",
            spec.name
        ));
    }
    let mut value = numbers(spec, count, seed)?;
    let rounding = match dtype.is_float() {
        true => Rounding::Nearest,
        false => Rounding::Refuse,
    };
    // A piece at a time, as a number is larger than the element that becomes of it. Pieces are whole bytes of any element.
    const PIECE: usize = 1 << 16;
    let mut data = Vec::new();
    for start in (0..count).step_by(PIECE) {
        let piece = start..count.min(start + PIECE);
        let values: Vec<Number> = piece.map(&mut value).collect();
        let made = from_numbers(*dtype, &[values.len()], &values, rounding)?;
        data.extend_from_slice(&made.bytes());
    }
    Tensor::from_raw(*dtype, shape.clone(), data.into()).map_err(|e| e.to_string())
}

/// The number of each element, which are asked for from the first on.
fn numbers(
    spec: &InputSpec,
    count: usize,
    seed: u64,
) -> Result<Box<dyn FnMut(usize) -> Number + '_>, String> {
    let mut random = Random::new(seed, &spec.name);
    let shape = &spec.shape;
    let last = shape.last().copied().unwrap_or(1).max(1);
    let padding = |first| Padding::of(shape, count, first);
    Ok(match &spec.kind {
        InputKind::Zeros => Box::new(|_| Number::Int(0)),
        InputKind::TokenIds { upper } | InputKind::Index { upper } => {
            let upper = bound(*upper)?;
            Box::new(move |_| Number::Int(random.below(upper).into()))
        }
        InputKind::Places { upper } => {
            let upper = bound(*upper)?;
            Box::new(move |i| {
                let drawn = random.below(upper);
                let place = if (i as u64) < upper { i as u64 } else { drawn };
                Number::Int(place.into())
            })
        }
        InputKind::Texts(_) => return Err("a text is not a number".to_owned()),
        InputKind::Ids(ids) => {
            let (upper, ends, padding) = (bound(ids.upper)?, ids.ends(), padding(ids.first));
            Box::new(move |i| {
                let drawn = random.below(upper);
                Number::Int(id_at(ids, &ends, padding, i, seed, drawn).into())
            })
        }
        InputKind::Mask | InputKind::PaddedMask => {
            let padding = padding(spec.kind == InputKind::PaddedMask);
            Box::new(move |i| Number::Int(padding.keeps(i).into()))
        }
        InputKind::Masking(mask) => {
            let padding = padding(mask.first);
            Box::new(move |i| {
                Number::Float(match padding.keeps(i) {
                    true => mask.kept,
                    false => mask.hidden,
                })
            })
        }
        InputKind::Positions => Box::new(move |i| Number::Int((i % last) as i128)),
        InputKind::FarPositions { upper } => {
            // A row that is longer than what the model takes counts as it would elsewhere.
            let upper = usize::try_from(*upper).unwrap_or(0);
            let jump = upper.saturating_sub(last);
            let near = last / 2;
            Box::new(move |i| {
                let place = i % last;
                let ahead = if place < near { 0 } else { jump };
                Number::Int((place + ahead) as i128)
            })
        }
        InputKind::Lengths { most } => {
            let padding = Padding {
                last: usize::try_from(*most)
                    .unwrap_or(1)
                    .clamp(1, i32::MAX as usize),
                per_sample: 1,
                first: false,
            };
            Box::new(move |i| Number::Int(padding.tokens(i) as i128))
        }
        InputKind::Values(values) | InputKind::OneOf(values) if values.is_empty() => {
            return Err("no value can be taken".to_owned());
        }
        InputKind::OneOf(values) => {
            let count = values.len() as u64;
            Box::new(move |_| Number::Float(values[random.below(count) as usize]))
        }
        InputKind::Values(values) => Box::new(move |i| Number::Float(values[i % values.len()])),
        InputKind::Levels(low, high) => {
            let (low, span) = (*low, bound(high.saturating_sub(*low).saturating_add(1))?);
            Box::new(move |_| Number::Int(i128::from(low) + i128::from(random.below(span))))
        }
        InputKind::Normal { .. } | InputKind::Within { .. } if !spec.dtype.is_float() => {
            return Err("a bell curve needs floats".to_owned());
        }
        InputKind::Normal { std } => {
            let std = f64::from(*std);
            Box::new(move |_| Number::Float(random.normal() * std))
        }
        InputKind::Within { low, high } => {
            let (low, high) = (f64::from(*low), f64::from(*high));
            let (middle, std) = (f64::midpoint(low, high), (high - low) / 6.0);
            Box::new(move |_| Number::Float(middle + random.normal() * std))
        }
    })
}

fn bound(upper: i64) -> Result<u64, String> {
    let upper = u64::try_from(upper).ok().filter(|&u| u > 0);
    upper.ok_or_else(|| "its numbers must be below a bound of at least 1".to_owned())
}

fn zeros(dtype: DType, shape: &[usize], count: usize) -> Result<Tensor, String> {
    let tensor = match dtype.packed_len(count) {
        Some(len) => Tensor::from_raw(dtype, shape.to_vec(), vec![0; len].into()),
        None => Tensor::from_strings(shape.to_vec(), vec![Bytes::new(); count]),
    };
    tensor.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::spec::Masking;
    use super::*;

    fn spec(dtype: DType, shape: &[usize], kind: InputKind) -> InputSpec {
        InputSpec {
            name: "x".to_owned(),
            dtype,
            shape: shape.to_vec(),
            kind,
        }
    }

    fn made(dtype: DType, shape: &[usize], kind: InputKind) -> Tensor {
        make(&[spec(dtype, shape, kind)], 7).unwrap().remove(0).1
    }

    #[test]
    fn the_numbers_never_change() {
        let ids = made(DType::I64, &[2, 4], InputKind::TokenIds { upper: 30522 });
        let expected = [5241, 17323, 28418, 14464, 24190, 26566, 12710, 17338];
        assert_eq!(ids.values::<i64>().unwrap(), expected);
        let normal = made(DType::F32, &[3], InputKind::Normal { std: 1. });
        let bits: Vec<u32> = normal
            .values::<f32>()
            .unwrap()
            .iter()
            .map(|v| v.to_bits())
            .collect();
        assert_eq!(bits, [0x3f90_eecd, 0xbecc_3cd6, 0xbef1_aa7b]);
    }

    #[test]
    fn inputs_differ_by_name_and_seed_alone() {
        let kind = InputKind::TokenIds { upper: 1 << 40 };
        let a = spec(DType::I64, &[4], kind);
        let b = InputSpec {
            name: "b".to_owned(),
            ..a.clone()
        };
        let both = make(&[b.clone(), a.clone()], 1).unwrap();
        assert!(
            both[1]
                .1
                .same_bits(&make(std::slice::from_ref(&a), 1).unwrap()[0].1)
        );
        assert!(!both[0].1.same_bits(&both[1].1));
        assert!(!both[1].1.same_bits(&make(&[a], 2).unwrap()[0].1));
    }

    #[test]
    fn token_ids_stay_below_the_bound_and_reach_it() {
        let ids = made(DType::I32, &[1000], InputKind::TokenIds { upper: 10 });
        let ids = ids.to_i64s().unwrap();
        for id in 0..10 {
            assert!(ids.contains(&id));
        }
        assert!(ids.iter().all(|id| (0..10).contains(id)));
    }

    #[test]
    fn a_bell_curve_has_its_mean_and_spread() {
        let within = InputKind::Within { low: -1., high: 5. };
        let within = made(DType::F32, &[20_000], within).to_f64s().unwrap();
        let mean = within.iter().sum::<f64>() / 20_000.;
        let inside = within.iter().filter(|x| (-1. ..=5.).contains(*x)).count();
        assert!((mean - 2.).abs() < 0.05 && (19_900..20_000).contains(&inside));
        let values = made(DType::F16, &[20_000], InputKind::Normal { std: 2. });
        let values = values.to_f64s().unwrap();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        assert!(
            mean.abs() < 0.05 && (variance - 4.).abs() < 0.2,
            "{mean} {variance}"
        );
    }

    #[test]
    fn masks_pad_every_sample_but_the_first() {
        let mask = made(DType::I64, &[5, 4], InputKind::Mask);
        let rows = mask.to_i64s().unwrap();
        let ones: Vec<i64> = rows.chunks(4).map(|row| row.iter().sum()).collect();
        assert_eq!(ones, [4, 3, 2, 1, 3]);
        assert_eq!(rows[4..8], [1, 1, 1, 0]);
        let mask = made(DType::Bool, &[2, 1, 2, 4], InputKind::Mask)
            .to_i64s()
            .unwrap();
        assert_eq!(mask, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0]);
        let mask = made(DType::F32, &[3, 1], InputKind::Mask);
        assert_eq!(mask.to_f64s().unwrap(), [1., 1., 1.]);
        assert_eq!(
            made(DType::I64, &[3], InputKind::Mask).to_i64s().unwrap(),
            [1, 1, 1]
        );
        assert!(made(DType::I64, &[0, 3], InputKind::Mask).is_empty());
        assert!(made(DType::I64, &[3, 0], InputKind::Mask).is_empty());
    }

    fn ids(upper: i64, marks: &[i64], padding: Option<i64>) -> InputKind {
        InputKind::Ids(Ids {
            upper,
            marks: marks.to_vec(),
            padding,
            first: false,
        })
    }

    #[test]
    fn rows_of_ids_hold_those_on_which_decisions_are_hard() {
        let kind = ids(50_304, &[1, 2, 50_256], None);
        let made = made(DType::I64, &[2, 32], kind);
        let rows = made.to_i64s().unwrap();
        let far = [50_271, 50_287, 50_295, 50_299, 50_301, 50_302, 50_303];
        let all: Vec<i64> = [1, 2, 50_256].into_iter().chain(far).collect();
        let places = rows.chunks(32).map(|row| {
            let place = row.windows(all.len()).position(|w| w == all);
            place.expect("each row holds all")
        });
        let places: Vec<usize> = places.collect();
        assert_ne!(places[0], places[1], "not at the same place");
        for row in rows.chunks(32) {
            assert!(row.iter().all(|id| (0..50_304).contains(id)));
        }
    }

    #[test]
    fn short_rows_share_the_marks() {
        let made = made(DType::I32, &[7, 1], ids(300, &[], None));
        let mut rows = made.to_i64s().unwrap();
        rows.sort_unstable();
        assert_eq!(rows, [267, 283, 291, 295, 297, 298, 299]);
    }

    #[test]
    fn rows_of_ids_end_with_padding_where_the_graph_hides_it() {
        let made = made(DType::I64, &[4, 4], ids(9, &[1], Some(1)));
        let rows = made.to_i64s().unwrap();
        let pads: Vec<usize> = (rows.chunks(4))
            .map(|row| row.iter().filter(|id| **id == 1).count())
            .collect();
        assert_eq!(pads, [0, 1, 2, 3]);
        assert_eq!(rows[13..], [1, 1, 1]);
    }

    #[test]
    fn masks_in_other_numbers_and_lengths() {
        let masking = |kept, hidden, first| {
            InputKind::Masking(Masking {
                kept,
                hidden,
                first,
            })
        };
        let hides = made(DType::Bool, &[2, 4], masking(0., 1., false));
        assert_eq!(hides.to_i64s().unwrap(), [0, 0, 0, 0, 0, 0, 0, 1]);
        let added = made(DType::F16, &[2, 4], masking(0., -10_000., true));
        let added = added.to_f64s().unwrap();
        assert_eq!(added[..4], [0., 0., -10_000., -10_000.]);
        let lengths = made(DType::I32, &[4], InputKind::Lengths { most: 8 });
        assert_eq!(lengths.to_i64s().unwrap(), [8, 6, 4, 2]);
    }

    #[test]
    fn positions_reach_the_end_and_values_repeat() {
        let far = made(DType::I64, &[1, 4], InputKind::FarPositions { upper: 512 });
        assert_eq!(far.to_i64s().unwrap(), [0, 1, 510, 511]);
        let one = made(DType::I64, &[1, 1], InputKind::FarPositions { upper: 512 });
        assert_eq!(one.to_i64s().unwrap(), [511]);
        let long = made(DType::I64, &[4], InputKind::FarPositions { upper: 3 });
        assert_eq!(long.to_i64s().unwrap(), [0, 1, 2, 3]);
        let values = made(DType::I64, &[3], InputKind::Values(vec![0., -1.]));
        assert_eq!(values.to_i64s().unwrap(), [0, -1, 0]);
        let levels = made(DType::U8, &[1000], InputKind::Levels(0, 255));
        assert!(levels.to_i64s().unwrap().contains(&255));
    }

    #[test]
    fn positions_count_and_zeros_are_zero() {
        let positions = made(DType::I32, &[2, 3], InputKind::Positions);
        assert_eq!(positions.to_i64s().unwrap(), [0, 1, 2, 0, 1, 2]);
        for dtype in [DType::F8E5M2, DType::I4, DType::F32, DType::String] {
            assert_eq!(made(dtype, &[3], InputKind::Zeros).len(), 3);
        }
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        let refusal = |dtype, kind| make(&[spec(dtype, &[2], kind)], 0).unwrap_err().to_string();
        let text = refusal(DType::I64, InputKind::TokenIds { upper: 0 });
        assert!(
            text.starts_with("the input \"x\" cannot be made as int64[2]"),
            "{text}"
        );
        refusal(DType::String, InputKind::Mask);
        refusal(DType::I32, InputKind::Normal { std: 1. });
        let text = refusal(DType::I8, InputKind::Index { upper: 1 << 40 });
        assert!(text.contains("is not a int8"), "{text}");
    }
}
