//! Parts of `config.pbtxt`: types, sizes, and ports.

use kiln_graph::{DType, Dim};

use crate::export::ExportError;
use crate::export::facts::{Facts, Port};
use crate::export::pbtxt::Message;

/// Triton's name of a type.
pub(super) fn data_type(facts: &Facts, port: &Port) -> Result<&'static str, ExportError> {
    Ok(match port.dtype {
        DType::F32 => "TYPE_FP32",
        DType::F16 => "TYPE_FP16",
        DType::BF16 => "TYPE_BF16",
        DType::F64 => "TYPE_FP64",
        DType::I8 => "TYPE_INT8",
        DType::I16 => "TYPE_INT16",
        DType::I32 => "TYPE_INT32",
        DType::I64 => "TYPE_INT64",
        DType::U8 => "TYPE_UINT8",
        DType::U16 => "TYPE_UINT16",
        DType::U32 => "TYPE_UINT32",
        DType::U64 => "TYPE_UINT64",
        DType::Bool => "TYPE_BOOL",
        DType::String => "TYPE_STRING",
        other => {
            return Err(facts.unfit(format!(
                "\"{}\" is {other}, which Triton has not",
                port.name
            )));
        }
    })
}

/// Sizes without that of samples; -1 is open.
pub(super) fn dims(facts: &Facts, port: &Port) -> Vec<i64> {
    let skip = usize::from(facts.batch.is_some());
    let size = |dim: &Dim| match facts.range(dim) {
        Some(range) if range.is_fixed() => i64::try_from(range.opt).unwrap_or(-1),
        _ => -1,
    };
    port.dims.iter().skip(skip).map(size).collect()
}

pub(super) fn ports(
    m: &mut Message,
    field: &str,
    facts: &Facts,
    ports: &[Port],
) -> Result<(), ExportError> {
    for port in ports {
        let ty = data_type(facts, port)?;
        let mut sizes = dims(facts, port);
        m.message(field, |m| {
            m.text("name", &port.name);
            m.plain("data_type", ty);
            if sizes.is_empty() {
                // Triton has no tensors without dimensions beside that of samples.
                sizes.push(1);
                m.list("dims", &sizes);
                m.plain("reshape", "{ shape: [ ] }");
            } else {
                m.list("dims", &sizes);
            }
        });
    }
    Ok(())
}
