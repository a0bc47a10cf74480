//! What the server runs before it says that it is ready: a sample of kiln's proof.

use kiln_graph::{DType, Tensor};

use super::config::data_type;
use crate::bundle;
use crate::export::facts::{Facts, Port};
use crate::export::pbtxt::Message;
use crate::export::{ExportError, Staged};
use crate::parity::{INPUT_PREFIX, npz};

/// One sample of the proof's inputs: its name, sizes, and file in `warmup`.
pub(super) struct Warm {
    name: String,
    dims: Vec<usize>,
    file: String,
}

/// Inputs that the original is known to run on; none where the bundle was not proved, or an input is text.
pub(super) fn warmup(facts: &Facts, staged: &mut Staged) -> Result<Vec<Warm>, ExportError> {
    let proof = facts.bundle.join(bundle::PROOF);
    if !proof.is_file() || facts.inputs.iter().any(|i| i.dtype == DType::String) {
        return Ok(Vec::new());
    }
    let arrays = npz::read(&proof)?;
    let mut all = Vec::new();
    for (k, port) in facts.inputs.iter().enumerate() {
        let wanted = format!("{INPUT_PREFIX}{}", port.name);
        let Some((_, tensor)) = arrays.iter().find(|(n, _)| *n == wanted) else {
            return Ok(Vec::new());
        };
        let Some((dims, bytes)) = sample(facts, port, tensor) else {
            return Ok(Vec::new());
        };
        let file = format!("input-{k}");
        staged.write(&format!("warmup/{file}"), bytes)?;
        all.push(Warm {
            name: port.name.clone(),
            dims,
            file,
        });
    }
    Ok(all)
}

/// Sizes without that of samples, and the bytes of the first sample; `None` if the type is not the model's.
fn sample(facts: &Facts, port: &Port, tensor: &Tensor) -> Option<(Vec<usize>, bytes::Bytes)> {
    if tensor.dtype() != port.dtype || tensor.strings().is_some() {
        return None;
    }
    let (dims, data) = (tensor.dims(), tensor.bytes());
    match facts.batch {
        None => Some((dims.to_vec(), data)),
        Some(_) => {
            let row = data.len().checked_div(*dims.first()?)?;
            Some((dims.get(1..)?.to_vec(), data.slice(..row)))
        }
    }
}

pub(super) fn warm(m: &mut Message, facts: &Facts, warmup: &[Warm]) -> Result<(), ExportError> {
    if warmup.is_empty() {
        return Ok(());
    }
    let mut types = Vec::new();
    for port in &facts.inputs {
        types.push(data_type(facts, port)?);
    }
    m.message("model_warmup", |m| {
        m.text("name", "typical");
        m.plain("batch_size", usize::from(facts.batch.is_some()));
        for (input, ty) in warmup.iter().zip(types) {
            m.message("inputs", |m| {
                m.text("key", &input.name);
                m.message("value", |m| {
                    m.plain("data_type", ty);
                    m.list("dims", &input.dims);
                    m.text("input_data_file", &input.file);
                });
            });
        }
    });
    Ok(())
}
