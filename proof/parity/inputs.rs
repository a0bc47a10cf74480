//! Inputs to run models on, from a file or a text; [`super::make`] makes them.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use kiln_graph::{DType, Tensor, limits};

use super::npz::{Npz, NpzError};
use super::number::{Number, Rounding, convert, from_numbers};
use kiln_runtime::{Dim, TensorInfo};

/// The prefix of a model's inputs in a file that holds outputs as well.
pub const INPUT_PREFIX: &str = "in.";
/// The prefix of a model's outputs.
pub const OUTPUT_PREFIX: &str = "out.";

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Npz(#[from] NpzError),
    #[error(
        "{} has no array \"{input}\" or \"{INPUT_PREFIX}{input}\" for the input of that name; it has: {}",
        path.display(),
        has.join(", ")
    )]
    Missing {
        path: PathBuf,
        input: String,
        has: Vec<String>,
    },
    #[error(
        "the array \"{array}\" of {} is {found} and cannot be converted to {wanted} without loss: {reason}",
        path.display()
    )]
    Lossy {
        path: PathBuf,
        array: String,
        found: DType,
        wanted: DType,
        reason: String,
    },
    #[error(
        "the array \"{array}\" of {} has the shape {found:?}, but {why}",
        path.display()
    )]
    Shape {
        path: PathBuf,
        array: String,
        found: Vec<usize>,
        why: String,
    },
    #[error("the input \"{input}\" cannot be made as {dtype}{shape:?}: {reason}")]
    Make {
        input: String,
        dtype: DType,
        shape: Vec<usize>,
        reason: String,
    },
}

/// Reads a model's inputs from an `.npz` file, where they are called `NAME` or `in.NAME`. Arrays of another dtype are
/// converted if that changes no value. Other arrays of the file are left alone.
///
/// # Errors
/// When the file cannot be read, when an input is missing or of a shape that the model does not take, and when a conversion would
/// change a value.
pub fn from_npz(npz: &mut Npz, inputs: &[TensorInfo]) -> Result<Vec<(String, Tensor)>, InputError> {
    let one = |input: &TensorInfo| Ok((input.name.clone(), one_from_npz(npz, input)?));
    let read: Vec<_> = inputs.iter().map(one).collect::<Result<_, InputError>>()?;
    fit(npz.path(), inputs, &read)?;
    Ok(read)
}

fn one_from_npz(npz: &mut Npz, input: &TensorInfo) -> Result<Tensor, InputError> {
    let names = [format!("{INPUT_PREFIX}{}", input.name), input.name.clone()];
    for array in names {
        let Some(tensor) = npz.read(&array, Some(input.dtype))? else {
            continue;
        };
        return convert(&tensor, input.dtype).map_err(|reason| InputError::Lossy {
            path: npz.path().to_owned(),
            array,
            found: tensor.dtype(),
            wanted: input.dtype,
            reason,
        });
    }
    Err(InputError::Missing {
        path: npz.path().to_owned(),
        input: input.name.clone(),
        has: npz.names().map(str::to_owned).collect(),
    })
}

/// Checks ranks, fixed sizes, and that dimensions of one name are of one size, as far as the model says them.
fn fit(path: &Path, infos: &[TensorInfo], inputs: &[(String, Tensor)]) -> Result<(), InputError> {
    let mut sizes: Vec<(&str, usize, &str)> = Vec::new();
    for (info, (name, tensor)) in infos.iter().zip(inputs) {
        let refuse = |why: String| InputError::Shape {
            path: path.to_owned(),
            array: name.clone(),
            found: tensor.dims().to_vec(),
            why,
        };
        if info.shape.is_empty() {
            continue;
        }
        if info.shape.len() != tensor.rank() {
            return Err(refuse(format!("the model takes {info}")));
        }
        for (dim, &size) in info.shape.iter().zip(tensor.dims()) {
            match dim {
                Dim::Fixed(n) if *n != size => {
                    return Err(refuse(format!("the model takes {info}")));
                }
                Dim::Symbol(symbol) => match sizes.iter().find(|(s, ..)| s == symbol) {
                    Some((_, other, by)) if *other != size => {
                        return Err(refuse(format!("{symbol} is {other} in \"{by}\"")));
                    }
                    Some(_) => {}
                    None => sizes.push((symbol, size, name)),
                },
                Dim::Fixed(_) | Dim::Unknown => {}
            }
        }
    }
    Ok(())
}

/// Reads the one input of a model from an `.npy` file, converted as by [`from_npz`].
///
/// # Errors
/// When the file cannot be read, when its shape is none that the model takes, and when a conversion would change a value.
pub fn from_npy(path: &Path, input: &TensorInfo) -> Result<Tensor, InputError> {
    let tensor = super::npz::read_npy(path, &input.name, Some(input.dtype))?;
    let converted = convert(&tensor, input.dtype).map_err(|reason| InputError::Lossy {
        path: path.to_owned(),
        array: input.name.clone(),
        found: tensor.dtype(),
        wanted: input.dtype,
        reason,
    })?;
    let read = [(input.name.clone(), converted)];
    fit(path, std::slice::from_ref(input), &read)?;
    let [(_, converted)] = read;
    Ok(converted)
}

/// The elements of a text such as `16000`, `1,2,3`, `[0.5, 1]` or `true`; a string is one element whatever it holds.
pub fn texts(dtype: DType, text: &str) -> Vec<&str> {
    if dtype == DType::String {
        return vec![text];
    }
    let inside = text.trim().trim_start_matches('[').trim_end_matches(']');
    inside.split(',').map(str::trim).collect()
}

/// A tensor of what [`texts`] finds: as many elements as it has, or one for all.
///
/// # Errors
/// When an element is no number, does not fit the dtype, or they are too many or too few.
pub fn from_text(dtype: DType, dims: &[usize], text: &str) -> Result<Tensor, String> {
    let parts = texts(dtype, text);
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let within = count.filter(|&n| n <= limits::MADE_ELEMENTS);
    let count = within.ok_or("it has too many elements")?;
    if parts.len() != 1 && parts.len() != count {
        let n = parts.len();
        return Err(format!("these are {n} numbers, not 1 and not {count}"));
    }
    if dtype == DType::String {
        let text = Bytes::copy_from_slice(text.as_bytes());
        let made = Tensor::from_strings(dims.to_vec(), vec![text; count]);
        return made.map_err(|e| e.to_string());
    }
    let number = |part: &&str| match (*part, part.parse::<i64>()) {
        ("true", _) => Ok(Number::Int(1)),
        ("false", _) => Ok(Number::Int(0)),
        (_, Ok(n)) => Ok(Number::Int(n.into())),
        (part, Err(_)) => {
            let float = part.parse::<f64>().map(Number::Float);
            float.map_err(|_| format!("'{part}' is not a number"))
        }
    };
    let numbers = parts.iter().map(number).collect::<Result<Vec<_>, _>>()?;
    let all: Vec<Number> = numbers.iter().cycle().take(count).copied().collect();
    let rounding = match dtype.is_float() {
        true => Rounding::Nearest,
        false => Rounding::Refuse,
    };
    from_numbers(dtype, dims, &all, rounding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parity::npz;

    #[test]
    fn a_text_is_a_value_for_all_elements_or_for_each() {
        let read = |dtype, dims: &[usize], text| from_text(dtype, dims, text);
        assert_eq!(
            read(DType::I64, &[], "16000").unwrap().as_i64(),
            Some(16_000)
        );
        let list = read(DType::I32, &[2], "[320, 640]").unwrap();
        assert_eq!(list.to_i64s().unwrap(), [320, 640]);
        let all = read(DType::F32, &[2, 2], "0.5").unwrap();
        assert_eq!(all.to_f64s().unwrap(), [0.5; 4]);
        assert_eq!(
            read(DType::Bool, &[1], "true").unwrap().to_i64s().unwrap(),
            [1]
        );
        let text = read(DType::String, &[1], "a, b").unwrap();
        assert_eq!(&text.strings().unwrap()[0][..], b"a, b");
        assert!(read(DType::I64, &[], "1.5").unwrap_err().contains("1.5"));
        assert!(
            read(DType::I64, &[3], "1,2")
                .unwrap_err()
                .contains("2 numbers")
        );
        assert!(read(DType::F32, &[], "x").unwrap_err().contains("'x'"));
    }

    #[test]
    fn a_file_gives_inputs_by_either_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("io.npz");
        let arrays = [
            ("in.ids", Tensor::vector(&[1i64, 2])),
            ("mask", Tensor::vector(&[1i64, 0])),
            ("x", Tensor::vector(&[0.1f64])),
            ("out.y", Tensor::vector(&[1f32])),
        ];
        npz::write(&path, &arrays).unwrap();
        let mut npz = Npz::open(&path).unwrap();
        let input = |name: &str, dtype| TensorInfo {
            name: name.to_owned(),
            dtype,
            shape: Vec::new(),
        };
        let wanted = [input("ids", DType::I32), input("mask", DType::Bool)];
        let inputs = from_npz(&mut npz, &wanted).unwrap();
        assert_eq!(inputs[0].1.values::<i32>().unwrap(), [1, 2]);
        assert_eq!(inputs[1].1.values::<bool>().unwrap(), [true, false]);

        let err = from_npz(&mut npz, &[input("x", DType::F32)]).unwrap_err();
        assert!(err.to_string().contains("0.1 is not a float"), "{err}");
        let err = from_npz(&mut npz, &[input("y", DType::F32)]).unwrap_err();
        let has = "it has: in.ids, mask, x, out.y";
        assert!(err.to_string().ends_with(has), "{err}");
        let shaped = |name: &str, shape: &[Dim]| TensorInfo {
            shape: shape.to_vec(),
            ..input(name, DType::I64)
        };
        let seq = || Dim::Symbol("seq".into());
        assert!(
            from_npz(
                &mut npz,
                &[shaped("ids", &[seq()]), shaped("mask", &[seq()])]
            )
            .is_ok()
        );
        let mut refused = |shape: &[Dim]| {
            let wanted = [shaped("ids", shape)];
            from_npz(&mut npz, &wanted).unwrap_err().to_string()
        };
        let told = refused(&[Dim::Fixed(4)]);
        assert!(
            told.ends_with("io.npz has the shape [2], but the model takes int64[4]"),
            "{told}"
        );
        assert!(refused(&[Dim::Unknown, Dim::Fixed(2)]).contains("takes int64[?,2]"));
    }
}
