//! Tensors to ONNX Runtime's values and back, for every dtype, without copying where the memory allows it.

#![allow(unsafe_code)]

use std::ops::Range;

use bytes::Bytes;
use kiln_graph::{DType, Tensor};
use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, MemoryInfo};
use ort::value::{DynTensor, DynTensorValueType, DynValue, TensorElementType, ValueType};

const TYPES: &[(DType, TensorElementType)] = &[
    (DType::F32, TensorElementType::Float32),
    (DType::U8, TensorElementType::Uint8),
    (DType::I8, TensorElementType::Int8),
    (DType::U16, TensorElementType::Uint16),
    (DType::I16, TensorElementType::Int16),
    (DType::I32, TensorElementType::Int32),
    (DType::I64, TensorElementType::Int64),
    (DType::String, TensorElementType::String),
    (DType::Bool, TensorElementType::Bool),
    (DType::F16, TensorElementType::Float16),
    (DType::F64, TensorElementType::Float64),
    (DType::U32, TensorElementType::Uint32),
    (DType::U64, TensorElementType::Uint64),
    (DType::C64, TensorElementType::Complex64),
    (DType::C128, TensorElementType::Complex128),
    (DType::BF16, TensorElementType::Bfloat16),
    (DType::F8E4M3FN, TensorElementType::Float8E4M3FN),
    (DType::F8E4M3FNUZ, TensorElementType::Float8E4M3FNUZ),
    (DType::F8E5M2, TensorElementType::Float8E5M2),
    (DType::F8E5M2FNUZ, TensorElementType::Float8E5M2FNUZ),
    (DType::U4, TensorElementType::Uint4),
    (DType::I4, TensorElementType::Int4),
    (DType::F4E2M1, TensorElementType::Float4E2M1),
    (DType::F8E8M0, TensorElementType::Float8E8M0),
    (DType::U2, TensorElementType::Uint2),
    (DType::I2, TensorElementType::Int2),
];

/// The dtype that ONNX Runtime's element type stands for; `None` for `Undefined` and types newer than kiln.
pub(super) fn dtype(ty: TensorElementType) -> Option<DType> {
    TYPES.iter().find(|row| row.1 == ty).map(|row| row.0)
}

fn element_type(dtype: DType) -> Result<TensorElementType, String> {
    let row = TYPES.iter().find(|row| row.0 == dtype);
    row.map(|row| row.1)
        .ok_or_else(|| format!("ONNX Runtime has no {dtype} tensors"))
}

/// A value that may read `bytes` for as long as it lives.
pub(super) struct Input {
    // Dropped before the bytes that it reads.
    pub value: DynValue,
    pub bytes: Bytes,
}

/// An ONNX Runtime value over the tensor's own bytes, or over a copy where their address does not suit the element.
pub(super) fn to_ort(tensor: &Tensor) -> Result<Input, String> {
    if let Some(strings) = tensor.strings() {
        return strings_to_ort(tensor.dims(), strings);
    }
    let bytes = normal_bytes(tensor);
    let element = element_type(tensor.dtype())?;
    let dims = sizes(tensor)?;
    let value = if is_aligned(&bytes, tensor.dtype()) && !bytes.is_empty() {
        over_bytes(&bytes, &dims, element)
    } else {
        copied(&bytes, &dims, element)
    }
    .map_err(|e| format!("{} tensors: {e}", tensor.dtype()))?;
    Ok(Input { value, bytes })
}

/// As [`to_ort`], but never over memory of ONNX Runtime's own: it takes initializers only so. Strings are refused.
pub(super) fn to_ort_initializer(tensor: &Tensor) -> Result<Input, String> {
    let element = element_type(tensor.dtype())?;
    let mut bytes = normal_bytes(tensor);
    if !is_aligned(&bytes, tensor.dtype()) {
        const ALIGN: usize = 64;
        let mut copy = vec![0; bytes.len() + ALIGN];
        let at = copy.as_ptr().align_offset(ALIGN).min(ALIGN);
        copy[at..at + bytes.len()].copy_from_slice(&bytes);
        bytes = Bytes::from(copy).slice(at..at + bytes.len());
    }
    let value = over_bytes(&bytes, &sizes(tensor)?, element)
        .map_err(|e| format!("{} tensors: {e}", tensor.dtype()))?;
    Ok(Input { value, bytes })
}

fn sizes(tensor: &Tensor) -> Result<Vec<i64>, String> {
    let size = |&d: &usize| i64::try_from(d).map_err(|_| format!("the dimension {d} is too large"));
    tensor.dims().iter().map(size).collect()
}

/// C++ may assume that a bool is 0 or 1; a file can hold anything.
fn normal_bytes(tensor: &Tensor) -> Bytes {
    let bytes = tensor.bytes();
    if tensor.dtype() == DType::Bool && bytes.iter().any(|&b| b > 1) {
        return bytes.iter().map(|&b| u8::from(b != 0)).collect();
    }
    bytes
}

fn is_aligned(bytes: &Bytes, dtype: DType) -> bool {
    let align = match dtype {
        DType::C64 => 4,
        DType::C128 => 8,
        other => other.bits().div_ceil(8).max(1) as usize,
    };
    (bytes.as_ptr() as usize).is_multiple_of(align)
}

fn over_bytes(bytes: &Bytes, dims: &[i64], element: TensorElementType) -> ort::Result<DynValue> {
    let memory = MemoryInfo::default();
    let mut raw = std::ptr::null_mut();
    // SAFETY: the pointers are valid for the call. ONNX Runtime checks the length against the dimensions and never
    // writes to a model's inputs; `Input` keeps the bytes alive for longer than the value.
    unsafe {
        let status = (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            bytes.as_ptr().cast_mut().cast(),
            bytes.len(),
            dims.as_ptr(),
            dims.len(),
            element.into(),
            &mut raw,
        );
        ort::Error::result_from_status(status)?;
    }
    let raw = std::ptr::NonNull::new(raw)
        .ok_or_else(|| ort::Error::new("ONNX Runtime made no tensor"))?;
    // SAFETY: `raw` is a new tensor value that nothing else releases.
    Ok(unsafe { DynValue::from_ptr(raw, Some(&Allocator::default())) })
}

fn copied(bytes: &Bytes, dims: &[i64], element: TensorElementType) -> ort::Result<DynValue> {
    let mut tensor = DynTensor::new(&Allocator::default(), element, dims.to_vec())?;
    if tensor.size() != Some(bytes.len()) {
        return Err(ort::Error::new(format!(
            "ONNX Runtime wants {:?} bytes for {dims:?} but there are {}",
            tensor.size(),
            bytes.len()
        )));
    }
    if !bytes.is_empty() {
        // SAFETY: the tensor owns `bytes.len()` writable bytes, as just checked.
        unsafe {
            let to = tensor.data_ptr_mut().cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
    Ok(tensor.into_dyn())
}

fn strings_to_ort(dims: &[usize], strings: &[Bytes]) -> Result<Input, String> {
    let strings = strings
        .iter()
        .map(|s| String::from_utf8(s.to_vec()).map_err(|_| "a string is not UTF-8".to_owned()))
        .collect::<Result<Vec<_>, _>>()?;
    let value = ort::value::Tensor::from_string_array((dims.to_vec(), strings.as_slice()))
        .map_err(|e| e.to_string())?;
    Ok(Input {
        value: value.into_dyn(),
        bytes: Bytes::new(),
    })
}

/// A tensor over the memory of an output of ONNX Runtime, which lives as long as the tensor does.
///
/// A model can hand an input through as an output. ONNX Runtime then returns the input's own memory, so an output
/// that lies within one of `inputs` is copied.
pub(super) fn from_ort(value: DynValue, inputs: &[Bytes]) -> Result<Tensor, String> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(format!("it is {}, not a tensor", value.dtype()));
    };
    let dtype = dtype(*ty).ok_or_else(|| format!("its type {ty} is unknown"))?;
    let dims = shape
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| format!("its shape is {:?}", &shape[..])))
        .collect::<Result<Vec<_>, _>>()?;
    if dtype == DType::String {
        return strings_from_ort(&value, dims);
    }
    let tensor = value.downcast::<DynTensorValueType>();
    let tensor = tensor.map_err(|e| e.to_string())?;
    if !tensor.memory_info().is_cpu_accessible() {
        return Err("it is in the memory of a GPU".into());
    }
    let len = tensor.size().ok_or("its size is unknown")?;
    let data = tensor.data_ptr().cast::<u8>();
    let bytes = if data.is_null() || len == 0 {
        Bytes::new()
    } else {
        let memory = OrtMemory { tensor, data, len };
        if inputs.iter().any(|input| overlap(input, &memory.range())) {
            Bytes::copy_from_slice(memory.as_ref())
        } else {
            Bytes::from_owner(memory)
        }
    };
    Tensor::from_raw(dtype, dims, bytes).map_err(|e| e.to_string())
}

/// The value in the host's memory: itself, or a copy of what a device holds.
pub(super) fn to_host(value: DynValue) -> Result<DynValue, String> {
    if !matches!(value.dtype(), ValueType::Tensor { .. }) {
        return Ok(value);
    }
    let tensor = value.downcast::<DynTensorValueType>();
    let tensor = tensor.map_err(|e| e.to_string())?;
    match tensor.memory_info().is_cpu_accessible() {
        true => Ok(tensor.into_dyn()),
        false => copied_to_host(&tensor),
    }
}

fn copied_to_host(tensor: &DynTensor) -> Result<DynValue, String> {
    let copied = tensor.to(AllocationDevice::CPU, 0);
    let copied = copied.map_err(|e| format!("it cannot be copied from the device: {e}"))?;
    Ok(copied.into_dyn())
}

fn strings_from_ort(value: &DynValue, dims: Vec<usize>) -> Result<Tensor, String> {
    let strings = if dims.contains(&0) {
        Vec::new()
    } else {
        value.try_extract_strings().map_err(|e| e.to_string())?.1
    };
    let strings = strings.into_iter().map(Bytes::from).collect();
    Tensor::from_strings(dims, strings).map_err(|e| e.to_string())
}

/// The memory of a tensor that ONNX Runtime allocated.
struct OrtMemory {
    /// Owns the memory.
    #[expect(dead_code)]
    tensor: DynTensor,
    data: *const u8,
    len: usize,
}

// SAFETY: the memory belongs to `tensor`, which is `Send`, and is only read.
unsafe impl Send for OrtMemory {}

impl OrtMemory {
    fn range(&self) -> Range<usize> {
        let start = self.data as usize;
        start..start + self.len
    }
}

impl AsRef<[u8]> for OrtMemory {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `tensor` owns `len` initialized bytes at `data` and outlives the borrow.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

fn overlap(input: &Bytes, output: &Range<usize>) -> bool {
    let start = input.as_ptr() as usize;
    start < output.end && output.start < start + input.len()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{identity, model, node, port, runtime};
    use super::super::{Error, Session, SessionOptions};
    use super::*;

    /// The dtypes that ONNX Runtime's CPU provider has an Identity of opset 21 for.
    const WITH_IDENTITY: &[DType] = &[
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
    ];

    fn through_identity(tensor: &Tensor) -> Option<Result<Tensor, Error>> {
        let model = identity(tensor.dtype());
        let options = SessionOptions::default();
        let mut session = Session::from_bytes(runtime()?, "identity", &model, &options).unwrap();
        let outputs = session.run(&[("x", tensor.clone())]);
        drop(session);
        Some(outputs.map(|mut o| o.remove(0).1))
    }

    /// Six elements of zeros and ones, at an address that is a multiple of 16 or one beyond it.
    fn tensor_at(dtype: DType, offset: usize) -> Tensor {
        let raw = Bytes::from_iter((0..100u8).map(|i| i % 2));
        let start = offset + raw.as_ptr().align_offset(16);
        let data = raw.slice(start..start + dtype.packed_len(6).unwrap());
        Tensor::from_raw(dtype, vec![6], data).unwrap()
    }

    #[test]
    fn a_model_passes_every_dtype_whatever_its_alignment() {
        for (&dtype, offset) in WITH_IDENTITY.iter().flat_map(|d| [(d, 0), (d, 1)]) {
            let tensor = tensor_at(dtype, offset);
            let Some(out) = through_identity(&tensor) else {
                return;
            };
            assert!(out.unwrap().same_bits(&tensor), "{dtype} at {offset}");
        }
    }

    #[test]
    fn every_dtype_is_passed_and_only_copied_where_it_must_be() {
        if runtime().is_none() {
            return;
        }
        for &(dtype, _) in TYPES.iter().filter(|row| row.0 != DType::String) {
            for offset in [0, 1] {
                let tensor = tensor_at(dtype, offset);
                let input = match to_ort(&tensor) {
                    Err(err) if matches!(dtype, DType::C64 | DType::C128) => {
                        assert!(err.starts_with(dtype.name()), "{err}");
                        continue;
                    }
                    input => input.unwrap(),
                };
                let back = from_ort(input.value, &[]).unwrap();
                assert!(back.same_bits(&tensor), "{dtype} at {offset}");
                let shared = back.bytes().as_ptr() == tensor.bytes().as_ptr();
                assert_eq!(shared, offset == 0 || dtype.bits() <= 8, "{dtype}");
            }
        }
    }

    /// As from a device, which no test has: the copy goes the same way.
    #[test]
    fn what_is_copied_to_the_host_has_the_same_bits() {
        if runtime().is_none() {
            return;
        }
        let copied = |tensor: &Tensor| {
            let value = to_ort(tensor).unwrap().value;
            let value = value.downcast::<DynTensorValueType>().unwrap();
            copied_to_host(&value)
        };
        for dtype in [DType::F32, DType::F16, DType::I64, DType::Bool] {
            let tensor = tensor_at(dtype, 0);
            let copied = copied(&tensor).unwrap();
            let back = from_ort(to_host(copied).unwrap(), &[]).unwrap();
            assert!(back.same_bits(&tensor), "{dtype}");
            assert_ne!(back.bytes().as_ptr(), tensor.bytes().as_ptr());
        }
        // The Identity that copies is of an operator set before 13.
        let refused = copied(&tensor_at(DType::BF16, 0)).unwrap_err();
        assert!(refused.contains("bfloat16"), "{refused}");
    }

    #[test]
    fn strings_go_in_and_out() {
        let strings = ["", "kiln", "Ofen für Öl"].map(|s| Bytes::from_static(s.as_bytes()));
        let tensor = Tensor::from_strings(vec![3], strings.to_vec()).unwrap();
        let Some(out) = through_identity(&tensor) else {
            return;
        };
        assert!(out.unwrap().same_bits(&tensor));
        for bad in [&b"\xff"[..], b"a\0b"] {
            let tensor = Tensor::from_strings(vec![1], vec![Bytes::from_static(bad)]).unwrap();
            let err = through_identity(&tensor).unwrap().unwrap_err();
            assert!(matches!(err, Error::Input { .. }), "{err}");
        }
    }

    #[test]
    fn empty_tensors_go_in_and_out() {
        for dtype in [DType::F32, DType::Bool] {
            let tensor = Tensor::from_raw(dtype, vec![0], Bytes::new()).unwrap();
            let Some(out) = through_identity(&tensor) else {
                return;
            };
            assert!(out.unwrap().same_bits(&tensor));
        }
        let strings = Tensor::from_strings(vec![0], Vec::new()).unwrap();
        let out = through_identity(&strings).unwrap().unwrap();
        assert!(out.same_bits(&strings));
    }

    #[test]
    fn a_bool_of_another_byte_is_true() {
        let data = Bytes::from_static(&[0, 1, 2, 255]);
        let tensor = Tensor::from_raw(DType::Bool, vec![4], data).unwrap();
        let Some(out) = through_identity(&tensor) else {
            return;
        };
        assert_eq!(&out.unwrap().bytes()[..], [0, 1, 1, 1]);
    }

    #[test]
    fn an_input_handed_through_does_not_share_its_memory() {
        let Some(runtime) = runtime() else {
            return;
        };
        // `x` is an output itself: no node lies between.
        let model = model(
            &[node("Neg", &["x"], &["y"], &[])],
            &[],
            &[port("x", DType::F32, &["n"])],
            &[port("x", DType::F32, &["n"]), port("y", DType::F32, &["n"])],
        );
        let options = SessionOptions::default();
        let mut session = Session::from_bytes(runtime, "model", &model, &options).unwrap();
        let x = Tensor::vector(&[1f32, -2., 3.]);
        let given = x.bytes();
        let outputs = session.run(&[("x", x)]).unwrap();
        assert_eq!(outputs[0].1.values::<f32>().unwrap(), [1., -2., 3.]);
        assert_eq!(outputs[1].1.values::<f32>().unwrap(), [-1., 2., -3.]);
        assert_ne!(outputs[0].1.bytes().as_ptr(), given.as_ptr());
    }
}
