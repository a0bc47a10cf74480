//! Outputs that become inputs of the next run, and stay where the session computes: the caches of a generation.

use std::fmt;

use bytes::Bytes;
use kiln_graph::Tensor;
use ort::memory::MemoryInfo;
use ort::session::IoBinding;
use ort::value::DynValue;

use super::Error;
use super::session::{Session, device_memory, failed_run};
use super::values::from_ort;

/// What runs of one session left for the next: everything that they were given, but for what became of it.
#[derive(Default)]
pub struct Carried {
    binding: Option<IoBinding>,
    /// The inputs that are bound.
    names: Vec<String>,
    /// What the caller gave of those that outputs become, which a model may hand through as they are.
    given: Vec<Bytes>,
}

impl Carried {
    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|held| held == name)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Carried::default();
    }
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.names).finish()
    }
}

impl Session {
    /// Runs once. `handed` are inputs with the outputs that become them in the next run: those stay in the memory of the session's
    /// device, and are not among the outputs that come back. The first run is given all inputs, later ones those that changed.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_carried(
        &mut self,
        carried: &mut Carried,
        inputs: &[(String, Tensor)],
        handed: &[(String, String)],
    ) -> Result<Vec<(String, Tensor)>, Error> {
        let (values, bytes) = self.values_beside(inputs, &|name| carried.has(name))?;
        let model = self.model().to_string();
        let failed = |e: ort::Error| failed_run(&model, e);
        let mut binding = match carried.binding.take() {
            Some(binding) => binding,
            None => self.inner().create_binding().map_err(failed)?,
        };
        for ((name, value), bytes) in values.iter().zip(&bytes) {
            binding.bind_input(name, value).map_err(failed)?;
            if !carried.has(name) {
                // What is given once must outlive the runs that read it.
                carried.given.push(bytes.clone());
                carried.names.push(name.clone());
            }
        }
        let here = device_memory(self.runtime(), self.options().device).map_err(failed)?;
        let host = MemoryInfo::default();
        let becomes = |output: &str| handed.iter().find(|(_, name)| name == output);
        for output in self.outputs() {
            // Anew each time: what was bound holds the memory of the run before.
            let place = becomes(&output.name).map_or(&host, |_| &here);
            (binding.bind_output_to_device(&output.name, place)).map_err(failed)?;
        }
        binding.synchronize_inputs().map_err(failed)?;
        let outputs = self.inner_mut().run_binding(&binding).map_err(failed)?;
        binding.synchronize_outputs().map_err(failed)?;
        let outputs = outputs.into_iter().map(|(name, v)| (name.to_string(), v));
        let outputs: Vec<(String, DynValue)> = outputs.collect();
        let mut back = Vec::new();
        for (name, value) in outputs {
            match becomes(&name) {
                Some((input, _)) => binding.bind_input(input, &value).map_err(failed)?,
                None => {
                    let tensor = from_ort(value, &bytes).map_err(|reason| Error::Output {
                        model: model.clone(),
                        name: name.clone(),
                        reason,
                    })?;
                    back.push((name, tensor));
                }
            }
        }
        carried.binding = Some(binding);
        Ok(back)
    }
}

#[cfg(test)]
mod tests {
    use kiln_graph::DType;

    use super::super::SessionOptions;
    use super::super::testing::{model, node, port, runtime};
    use super::*;

    #[test]
    fn what_one_run_leaves_is_an_input_of_the_next() {
        let Some(runtime) = runtime() else {
            return;
        };
        // A cache that grows, and one that is handed through as it is.
        let bytes = model(
            &[
                node("Concat", &["past", "new"], &["present"], &[("axis", 0)]),
                node("ReduceSum", &["present"], &["sum"], &[("keepdims", 0)]),
            ],
            &[],
            &[
                port("past", DType::F32, &["p"]),
                port("new", DType::F32, &["n"]),
                port("held", DType::F32, &["h"]),
            ],
            &[
                port("sum", DType::F32, &[]),
                port("present", DType::F32, &["t"]),
                port("held", DType::F32, &["h"]),
            ],
        );
        let options = SessionOptions::default();
        let mut session = Session::from_bytes(runtime, "m", &bytes, &options).unwrap();
        let named = |name: &str, values: &[f32]| (name.to_string(), Tensor::vector(values));
        let handed = [("past", "present"), ("held", "held")].map(|(a, b)| (a.into(), b.into()));
        let mut carried = Carried::default();
        let mut sums = Vec::new();
        for step in 0..3u8 {
            let mut inputs = vec![named("new", &[f32::from(step) + 1.0])];
            if step == 0 {
                inputs.push(named("past", &[10.0]));
                inputs.push(named("held", &[5.0, 6.0]));
            }
            let outputs = session.run_carried(&mut carried, &inputs, &handed).unwrap();
            assert_eq!(outputs.len(), 1, "{outputs:?}");
            sums.push(outputs[0].1.values::<f32>().unwrap()[0]);
        }
        assert_eq!(sums, [11.0, 13.0, 16.0]);
        carried.clear();
        let error = session.run_carried(&mut carried, &[named("new", &[1.0])], &handed);
        assert!(
            matches!(error, Err(Error::MissingInput { .. })),
            "{error:?}"
        );
    }
}
