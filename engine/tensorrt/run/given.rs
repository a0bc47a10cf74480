//! Inputs as they are given, and as an engine wants them.

use kiln_graph::{DType, Tensor};

use super::ffi::Io;
use crate::DataType;
use crate::run::EngineRunError;

/// The tensors by their places in the engine's list, in the types that it wants. Inputs that are `kept` are not given.
pub(super) fn matched(
    io: &[Io],
    inputs: &[(String, Tensor)],
    kept: &[(usize, Vec<usize>)],
) -> Result<Vec<(usize, Tensor)>, EngineRunError> {
    let wrong = |text: String| Err(EngineRunError::Inputs(text));
    let known = |name: &str| io.iter().any(|io| io.is_input && io.name == name);
    if let Some((name, _)) = inputs.iter().find(|(name, _)| !known(name)) {
        return wrong(format!("the engine has no input `{name}`"));
    }
    let mut given = Vec::new();
    let wanted = |k: usize, io: &Io| io.is_input && kept.iter().all(|(place, _)| *place != k);
    for (index, io) in io.iter().enumerate().filter(|(k, io)| wanted(*k, io)) {
        let Some((_, tensor)) = inputs.iter().find(|(name, _)| *name == io.name) else {
            return wrong(format!("the engine's input `{}` is missing", io.name));
        };
        let wanted = dtype(io)?;
        let tensor = match (tensor.dtype(), wanted) {
            (found, wanted) if found == wanted => tensor.clone(),
            // TensorRT has no double: its parser reads such an input as a float.
            (DType::F64, DType::F32) => {
                let values = tensor.to_f64s().unwrap_or_default();
                let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                let narrow = Tensor::from_values(tensor.dims().to_vec(), &narrow);
                narrow.map_err(|e| EngineRunError::Inputs(e.to_string()))?
            }
            (found, wanted) => {
                return wrong(format!(
                    "the engine's input `{}` is {wanted}, but {found} is given",
                    io.name
                ));
            }
        };
        given.push((index, tensor));
    }
    Ok(given)
}

/// The places of inputs that stay on the GPU, with their shapes.
pub(super) fn places(
    io: &[Io],
    kept: &[(String, Vec<usize>)],
) -> Result<Vec<(usize, Vec<usize>)>, EngineRunError> {
    let place = |(name, dims): &(String, Vec<usize>)| {
        let place = io.iter().position(|io| io.is_input && io.name == *name);
        let written = place.filter(|k| io.iter().any(|io| io.of == Some(*k)));
        let unwritten =
            || EngineRunError::Inputs(format!("the engine writes nothing into `{name}`"));
        Ok((written.ok_or_else(unwritten)?, dims.clone()))
    };
    kept.iter().map(place).collect()
}

/// The type of one of an engine's tensors.
pub(super) fn dtype(io: &Io) -> Result<DType, EngineRunError> {
    Ok(match io.dtype {
        DataType::Float32 => DType::F32,
        DataType::Float16 => DType::F16,
        DataType::Bfloat16 => DType::BF16,
        DataType::Float8 => DType::F8E4M3FN,
        DataType::Float4 => DType::F4E2M1,
        DataType::Int64 => DType::I64,
        DataType::Int32 => DType::I32,
        DataType::Int8 => DType::I8,
        DataType::Int4 => DType::I4,
        DataType::Uint8 => DType::U8,
        DataType::Bool => DType::Bool,
        DataType::Other => {
            let text = format!("`{}` has a type that kiln does not know", io.name);
            return Err(EngineRunError::Inputs(text));
        }
    })
}

/// As TensorRT takes it.
pub(super) fn shape_of(dims: &[usize]) -> Vec<i64> {
    let dims = dims.iter();
    dims.map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    fn io(name: &str, is_input: bool, dtype: DataType) -> Io {
        Io {
            name: name.into(),
            raw_name: CString::new(name).unwrap(),
            is_input,
            dtype,
            on_host: false,
            of: None,
        }
    }

    #[test]
    fn what_the_engine_writes_into_can_stay() {
        let mut engine = vec![
            io("ids", true, DataType::Int64),
            io("past", true, DataType::Float16),
            io("present", false, DataType::Float16),
        ];
        let past = [("past".to_string(), vec![1, 2, 8, 4])];
        let error = places(&engine, &past).unwrap_err().to_string();
        assert!(error.contains("writes nothing into `past`"), "{error}");
        engine[2].of = Some(1);
        let kept = places(&engine, &past).unwrap();
        assert_eq!(kept, [(1, vec![1, 2, 8, 4])]);
        let ids = [("ids".to_string(), Tensor::vector(&[1i64]))];
        assert_eq!(matched(&engine, &ids, &kept).unwrap().len(), 1);
        let error = matched(&engine, &ids, &[]).unwrap_err().to_string();
        assert!(error.contains("`past` is missing"), "{error}");
    }

    #[test]
    fn inputs_are_matched_by_name_and_type() {
        let engine = [
            io("y", false, DataType::Float32),
            io("x", true, DataType::Float32),
            io("ids", true, DataType::Int64),
        ];
        let x = || ("x".to_string(), Tensor::vector(&[1f32, 2.]));
        let ids = || ("ids".to_string(), Tensor::vector(&[1i64]));
        let given = matched(&engine, &[ids(), x()], &[]).unwrap();
        let places: Vec<_> = given.iter().map(|(i, t)| (*i, t.dtype())).collect();
        assert_eq!(places, [(1, DType::F32), (2, DType::I64)]);

        let double = ("x".to_string(), Tensor::vector(&[0.5f64]));
        let given = matched(&engine, &[double, ids()], &[]).unwrap();
        assert_eq!(given[0].1.values::<f32>().unwrap(), [0.5]);

        let error =
            |inputs: &[(String, Tensor)]| matched(&engine, inputs, &[]).unwrap_err().to_string();
        assert!(error(&[x()]).contains("`ids` is missing"));
        assert!(error(&[x(), ids(), ("y".into(), x().1)]).contains("no input `y`"));
        let short = ("ids".to_string(), Tensor::vector(&[1i32]));
        assert!(error(&[x(), short]).contains("int64, but int32"));
    }
}
