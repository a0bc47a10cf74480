//! Inputs become buffers with addresses: what a session does before it runs.

#![allow(unsafe_code)]

use kiln_graph::Tensor;

use super::bound::{Bound, BoundTensor, Memory, fill, packed};
use super::given::{dtype, matched, shape_of};
use super::session::Session;
use crate::run::{EngineRunError, choose};

impl Session {
    /// Takes inputs: chooses the profile, makes buffers, copies, runs once unmeasured, and captures the graph.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn bind(&mut self, inputs: &[(String, Tensor)]) -> Result<(), EngineRunError> {
        self.bind_beside(inputs, &[])
    }

    pub(super) fn bind_beside(
        &mut self,
        inputs: &[(String, Tensor)],
        kept: &[(usize, Vec<usize>)],
    ) -> Result<(), EngineRunError> {
        let given = matched(&self.shared.io, inputs, kept)?;
        if self.refill(&given, kept)? {
            return self.place(inputs, kept);
        }
        self.shared.device.bind()?;
        self.shared.log.clear();
        self.stream.wait()?;
        self.graph = None;
        // Where this fails, nothing is bound, so that no run uses an address of a buffer that is gone. The old buffers live
        // until every tensor has a new address.
        let mut old = self.bound.take();
        self.choose_profile(&given, kept)?;
        self.bound = Some(self.buffers(&given, kept, old.as_mut())?);
        self.refill(&given, kept)?;
        self.place(inputs, kept)?;
        self.upload()?;
        // What is written in place is written again by the next run, with the same numbers at the same places.
        self.enqueue()?;
        self.stream.wait()?;
        // SAFETY: the stream belongs to the engine's device.
        let capturable = unsafe { self.context.is_capturable(self.stream.as_ptr()) };
        if self.shared.options.graph && capturable && self.context.profiler().is_none() {
            let stream = self.stream.clone();
            // What cannot be captured after all runs without: a refused capture leaves the stream as it was.
            self.graph = (stream.capture(|| self.enqueue()).ok()).and_then(Result::ok);
            self.launch()?;
            self.stream.wait()?;
        }
        Ok(())
    }

    /// Copies what is given of inputs that are kept.
    fn place(
        &mut self,
        inputs: &[(String, Tensor)],
        kept: &[(usize, Vec<usize>)],
    ) -> Result<(), EngineRunError> {
        let Some(bound) = &mut self.bound else {
            return Ok(());
        };
        for (index, _) in kept {
            let name = &self.shared.io[*index].name;
            let tensor = &mut bound.tensors[*index];
            if let Some((_, given)) = inputs.iter().find(|(n, _)| n == name)
                && let Memory::Kept(room) = &mut tensor.memory
            {
                if given.dtype() != tensor.dtype || given.dims() != tensor.dims {
                    let text =
                        format!("`{name}` is not of the type and shape that the engine takes");
                    return Err(EngineRunError::Inputs(text));
                }
                self.stream.set(room, &given.bytes())?;
            }
        }
        Ok(())
    }

    fn choose_profile(
        &mut self,
        given: &[(usize, Tensor)],
        kept: &[(usize, Vec<usize>)],
    ) -> Result<(), EngineRunError> {
        let given = given.iter().map(|(i, t)| (*i, t.dims()));
        let all = given.chain(kept.iter().map(|(i, dims)| (*i, dims.as_slice())));
        let (places, shapes): (Vec<usize>, Vec<(String, Vec<i64>)>) = all
            .map(|(i, dims)| (i, (self.shared.io[i].name.clone(), shape_of(dims))))
            .unzip();
        let chosen = choose(&self.shared.profiles, &shapes)?;
        let chosen = i32::try_from(chosen).unwrap_or(0);
        if self.context.profile() != chosen {
            // SAFETY: the stream belongs to the engine's device, and is waited for.
            let done = unsafe { self.context.set_profile(chosen, self.stream.as_ptr()) };
            if !done {
                return Err(self.refused(&format!("take profile {chosen}")));
            }
            self.stream.wait()?;
        }
        for (index, (input, shape)) in places.into_iter().zip(&shapes) {
            if !self.context.set_shape(&self.shared.io[index], shape) {
                return Err(self.refused(&format!("take `{input}` of shape {shape:?}")));
            }
        }
        Ok(())
    }

    /// Buffers for the inputs, and for the outputs that follow from them. What is kept comes from `old`, or is zeros.
    fn buffers(
        &mut self,
        given: &[(usize, Tensor)],
        kept: &[(usize, Vec<usize>)],
        mut old: Option<&mut Bound>,
    ) -> Result<Bound, EngineRunError> {
        let shared = self.shared.clone();
        let mut tensors: Vec<(usize, BoundTensor)> = Vec::with_capacity(shared.io.len());
        // Inputs first: outputs may depend on values in the host's memory.
        let mut order: Vec<usize> = (0..shared.io.len()).collect();
        order.sort_by_key(|&i| !shared.io[i].is_input);
        for index in order {
            let io = &shared.io[index];
            let dtype = dtype(io)?;
            let is_given = given.iter().find(|(i, _)| *i == index);
            let is_kept = kept.iter().find(|(i, _)| *i == index);
            let (dims, at_least) = match (is_given, is_kept) {
                (Some((_, tensor)), _) => (tensor.dims().to_vec(), 0),
                (None, Some((_, dims))) => (dims.clone(), 0),
                (None, None) => {
                    let dims = self.context.shape(io);
                    let dims =
                        dims.ok_or_else(|| EngineRunError::DataDependent(io.name.clone()))?;
                    let dims = dims.iter().map(|&d| usize::try_from(d).unwrap_or(0));
                    (dims.collect(), self.context.max_output_bytes(io))
                }
            };
            let bytes = packed(dtype, &dims).ok_or_else(|| {
                EngineRunError::Inputs(format!("`{}` of shape {dims:?} is too large", io.name))
            })?;
            let mut memory = match (io.of, is_kept) {
                (Some(input), _) => Memory::Of(input),
                (None, Some(_)) => {
                    let held = old.as_mut().map(|b| &mut b.tensors[index]);
                    let held = held.filter(|t| t.dims == dims && t.dtype == dtype);
                    match held.map(|t| std::mem::replace(&mut t.memory, Memory::Of(index))) {
                        Some(Memory::Kept(room)) => Memory::Kept(room),
                        _ => Memory::Kept(self.stream.room(bytes)?),
                    }
                }
                (None, None) => Memory::Copied(self.stream.buffer(bytes.max(at_least))?),
            };
            if let (true, Some((_, tensor)), Memory::Copied(buffer)) =
                (io.on_host, is_given, &mut memory)
            {
                fill(buffer, tensor)?;
            }
            let address = match &mut memory {
                Memory::Copied(buffer) if io.on_host => buffer.host_ptr()?,
                Memory::Copied(buffer) => buffer.device_ptr(),
                Memory::Kept(room) => room.device_ptr(),
                Memory::Of(of) => match tensors
                    .iter()
                    .find(|(i, _)| i == of)
                    .map(|(_, t)| &t.memory)
                {
                    Some(Memory::Copied(buffer)) => buffer.device_ptr(),
                    Some(Memory::Kept(room)) => room.device_ptr(),
                    Some(Memory::Of(_)) | None => {
                        return Err(self.refused(&format!("write `{}` in an input", io.name)));
                    }
                },
            };
            // SAFETY: the memory holds the tensor at this shape, and more if TensorRT says so. `bind` keeps it in `bound`, which
            // drops after the context, or leaves nothing bound, and then nothing runs.
            if !unsafe { self.context.set_address(io, address) } {
                return Err(self.refused(&format!("take an address for `{}`", io.name)));
            }
            tensors.push((
                index,
                BoundTensor {
                    dtype,
                    dims,
                    bytes,
                    memory,
                    given: None,
                    is_there: false,
                },
            ));
        }
        tensors.sort_by_key(|(index, _)| *index);
        Ok(Bound {
            tensors: tensors.into_iter().map(|(_, t)| t).collect(),
        })
    }

    /// Copies the inputs into the buffers, if these are for their types and shapes; false if not.
    fn refill(
        &mut self,
        given: &[(usize, Tensor)],
        kept: &[(usize, Vec<usize>)],
    ) -> Result<bool, EngineRunError> {
        let Some(bound) = &mut self.bound else {
            return Ok(false);
        };
        let io = &self.shared.io;
        let fits = given.iter().all(|(i, tensor)| {
            let b = &bound.tensors[*i];
            // Values in the host's memory decide shapes.
            b.dtype == tensor.dtype()
                && b.dims == tensor.dims()
                && matches!(b.memory, Memory::Copied(_))
                && (!io[*i].on_host || b.holds(tensor))
        });
        let stays = kept.iter().all(|(i, dims)| {
            let b = &bound.tensors[*i];
            b.dims == *dims && matches!(b.memory, Memory::Kept(_))
        });
        if !fits || !stays {
            return Ok(false);
        }
        for (index, tensor) in given {
            bound.tensors[*index].take(tensor, !kept.is_empty())?;
        }
        Ok(true)
    }
}
