//! CUDA by its driver, as far as running an engine needs it. Everything `unsafe` about CUDA is here.
//!
//! The driver's library is loaded when the first device is opened: kiln builds and starts where there is none. Nothing of
//! the CUDA toolkit is needed. The calls used here are in every driver since CUDA 12.0.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr, DriverError,
    PinnedHostSlice,
};
use kiln_runtime::nvidia::driver::{self, CudaVersion, NoDevice};

/// Why CUDA does not do what is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// There is no driver, or it shows no GPU.
    #[error("no CUDA device: {0}")]
    NoDevice(#[from] NoDevice),
    /// The driver is older than the calls that are used.
    #[error("the NVIDIA driver knows CUDA {0} at most, but at least 12.0 is needed")]
    OldDriver(CudaVersion),
    /// There are GPUs, but not this one.
    #[error("CUDA device {asked} does not exist: this machine has {count}")]
    NoSuchDevice { asked: usize, count: usize },
    /// A call failed.
    #[error("CUDA could not {what}: {reason}")]
    Call { what: &'static str, reason: String },
}

impl CudaError {
    /// What the user can do, in one sentence, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            CudaError::NoDevice(none) => Some(none.mend()),
            CudaError::OldDriver(_) => {
                Some("install a driver of the 580 branch or newer, and restart".into())
            }
            CudaError::NoSuchDevice { .. } => {
                Some("`nvidia-smi -L` lists the devices; CUDA_VISIBLE_DEVICES may hide some".into())
            }
            CudaError::Call { .. } => None,
        }
    }
}

fn failed(what: &'static str) -> impl FnOnce(DriverError) -> CudaError {
    move |e| CudaError::Call {
        what,
        reason: explain(e),
    }
}

/// The driver's name of an error with its sentence.
fn explain(error: DriverError) -> String {
    let text = |c: Result<&std::ffi::CStr, DriverError>| {
        c.map(|c| c.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    match (text(error.error_name()), text(error.error_string())) {
        (name, _) if name.is_empty() => format!("{:?}", error.0),
        (name, sentence) => format!("{name} ({sentence})"),
    }
}

/// The number of CUDA devices, if cudarc can be used: it resolves what it calls when it calls it, and does not return where
/// that is missing.
///
/// # Errors
/// [`CudaError::NoDevice`] if there is no driver or no device, [`CudaError::OldDriver`] if the driver is too old.
pub fn device_count() -> Result<usize, CudaError> {
    let driver = driver::probe()?;
    if driver.cuda < CudaVersion(12_000) {
        return Err(CudaError::OldDriver(driver.cuda));
    }
    // SAFETY: loading the driver's library runs its initialisers; it is NVIDIA's by its name.
    match unsafe { sys::is_culib_present() } {
        true => Ok(driver.gpus.len()),
        false => Err(NoDevice::NoDriver.into()),
    }
}

/// A GPU.
#[derive(Clone, Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    name: String,
    capability: (i32, i32),
}

impl Device {
    /// The device of this number, counted as `CUDA_VISIBLE_DEVICES` leaves them.
    ///
    /// # Errors
    /// If there is none, or if the driver is missing, too old, or does not let this process use it.
    pub fn open(ordinal: usize) -> Result<Device, CudaError> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice {
                asked: ordinal,
                count,
            });
        }
        let context = CudaContext::new(ordinal).map_err(failed("open the device"))?;
        // SAFETY: TensorRT uses the buffers by their addresses, so cudarc could not order the streams anyway. A buffer is
        // used on the stream that allocated it alone, and that stream is waited for before buffers are read or dropped.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(failed("name the device"))?;
        let capability =
            (context.compute_capability()).map_err(failed("tell the compute capability"))?;
        Ok(Device {
            context,
            name,
            capability,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// `sm_90`
    pub fn capability(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }

    /// As the driver's tools write it: `GPU-4a6c…`.
    pub fn uuid(&self) -> Option<String> {
        let bytes = self.context.uuid().ok()?.bytes;
        Some(driver::spell(bytes.map(i8::cast_unsigned)))
    }

    /// Bytes of the GPU's memory that are free, and all.
    ///
    /// # Errors
    /// When the driver does not tell.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.context
            .mem_get_info()
            .map_err(failed("tell the free memory"))
    }

    /// Makes the calling thread use this device. TensorRT takes the device of the thread that calls it.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context
            .bind_to_thread()
            .map_err(failed("use the device in this thread"))
    }

    pub(super) fn stream(&self) -> Result<Stream, CudaError> {
        let stream = self.context.new_stream().map_err(failed("make a stream"))?;
        Ok(Stream(stream))
    }

    /// An event that can be timed.
    pub(super) fn event(&self) -> Result<Event, CudaError> {
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let event = self
            .context
            .new_event(flags)
            .map_err(failed("make an event"))?;
        Ok(Event(event))
    }
}

/// A queue of work on a GPU.
#[derive(Clone, Debug)]
pub(super) struct Stream(Arc<CudaStream>);

impl Stream {
    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.0.cu_stream().cast()
    }

    /// Waits until everything that was queued is done.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.0.synchronize().map_err(failed("finish the work"))
    }

    /// GPU memory and page-locked memory of the host, of so many bytes each.
    pub(super) fn buffer(&self, bytes: usize) -> Result<Buffer, CudaError> {
        // No allocation is empty: TensorRT wants an address even for a tensor without elements.
        let room = bytes.max(1);
        // SAFETY: what is in the memory at first is read by nobody: inputs are copied in before a run, and outputs are
        // written by it. Memory of the host is set below.
        let (device, host) = unsafe {
            let device = self
                .0
                .alloc::<u8>(room)
                .map_err(failed("allocate memory of the GPU"))?;
            let host = self
                .0
                .context()
                .alloc_pinned_with_flags::<u8>(room, 0)
                .map_err(failed("allocate page-locked memory"))?;
            (device, host)
        };
        let mut buffer = Buffer {
            device,
            host,
            bytes,
        };
        buffer.host_mut()?.fill(0);
        // Allocations are in the stream's order, and TensorRT may use other streams.
        self.wait()?;
        Ok(buffer)
    }

    /// GPU memory of so many zeros.
    pub(super) fn room(&self, bytes: usize) -> Result<Room, CudaError> {
        let room = self.0.alloc_zeros::<u8>(bytes.max(1));
        let room = room.map_err(failed("allocate memory of the GPU"))?;
        // As for a buffer.
        self.wait()?;
        Ok(Room(room))
    }

    /// Copies to the GPU and waits.
    pub(super) fn set(&self, room: &mut Room, bytes: &[u8]) -> Result<(), CudaError> {
        let queued = self.0.memcpy_htod(bytes, &mut room.0);
        queued.map_err(failed("copy to the GPU"))?;
        self.wait()
    }

    /// Queues zeros.
    pub(super) fn clear(&self, room: &mut Room) -> Result<(), CudaError> {
        self.0
            .memset_zeros(&mut room.0)
            .map_err(failed("clear memory of the GPU"))
    }

    /// Queues a copy to the GPU.
    pub(super) fn upload(&self, buffer: &mut Buffer) -> Result<(), CudaError> {
        self.0
            .memcpy_htod(&buffer.host, &mut buffer.device)
            .map_err(failed("copy to the GPU"))
    }

    /// Queues a copy from the GPU.
    pub(super) fn download(&self, buffer: &mut Buffer) -> Result<(), CudaError> {
        self.0
            .memcpy_dtoh(&buffer.device, &mut buffer.host)
            .map_err(failed("copy from the GPU"))
    }

    /// Records what `work` queues as a graph, without running it.
    pub(super) fn capture<E>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Result<Graph, E>, CudaError> {
        // Other threads may allocate meanwhile; only this thread must not call what a capture forbids.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.0
            .begin_capture(mode)
            .map_err(failed("begin a CUDA graph"))?;
        let queued = work();
        let ended = self.0.end_capture(sys::CUgraphInstantiate_flags(0));
        if let Err(error) = queued {
            // What was captured is worth nothing, and neither is an error about it.
            return Ok(Err(error));
        }
        let graph = ended.map_err(failed("end a CUDA graph"))?;
        let graph = graph.ok_or(CudaError::Call {
            what: "end a CUDA graph",
            reason: "nothing was queued".into(),
        })?;
        graph.upload().map_err(failed("upload a CUDA graph"))?;
        Ok(Ok(Graph(graph)))
    }
}

/// A CUDA graph, for the stream that it was captured on.
pub(super) struct Graph(CudaGraph);

impl Graph {
    pub(super) fn launch(&self) -> Result<(), CudaError> {
        self.0.launch().map_err(failed("launch a CUDA graph"))
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub(super) struct Event(CudaEvent);

impl Event {
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        self.0.record(&stream.0).map_err(failed("record an event"))
    }

    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.0.synchronize().map_err(failed("wait for an event"))
    }

    pub(super) fn is_done(&self) -> Result<bool, CudaError> {
        self.0.try_is_complete().map_err(failed("ask for an event"))
    }

    /// Milliseconds from this event to a later one; waits for both.
    pub(super) fn until(&self, end: &Event) -> Result<f64, CudaError> {
        let ms = self.0.elapsed_ms(&end.0);
        Ok(f64::from(ms.map_err(failed("time two events"))?))
    }
}

/// Memory of the GPU alone.
#[derive(Debug)]
pub(super) struct Room(CudaSlice<u8>);

impl Room {
    /// The address in the GPU's memory.
    pub(super) fn device_ptr(&self) -> *mut c_void {
        let (address, _) = self.0.device_ptr(self.0.stream());
        address as *mut c_void
    }
}

/// Memory of the GPU, with as much page-locked memory of the host, from and to which copies are asynchronous.
#[derive(Debug)]
pub(super) struct Buffer {
    device: CudaSlice<u8>,
    host: PinnedHostSlice<u8>,
    bytes: usize,
}

impl Buffer {
    /// The address in the GPU's memory.
    pub(super) fn device_ptr(&self) -> *mut c_void {
        let (address, _) = self.device.device_ptr(self.device.stream());
        address as *mut c_void
    }

    /// The address in the host's memory, once queued copies are done.
    pub(super) fn host_ptr(&mut self) -> Result<*mut c_void, CudaError> {
        let address = self.host.as_mut_ptr();
        Ok(address.map_err(failed("wait for a copy"))?.cast())
    }

    /// The host's side, once queued copies are done.
    pub(super) fn host(&self) -> Result<&[u8], CudaError> {
        let all = self.host.as_slice().map_err(failed("wait for a copy"))?;
        Ok(&all[..self.bytes])
    }

    /// As [`host`](Self::host), to be written.
    pub(super) fn host_mut(&mut self) -> Result<&mut [u8], CudaError> {
        let bytes = self.bytes;
        let all = (self.host.as_mut_slice()).map_err(failed("wait for a copy"))?;
        Ok(&mut all[..bytes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_nothing_panics() {
        match device_count() {
            Ok(count) => assert!(Device::open(count).is_err()),
            Err(error) => {
                assert!(error.to_string().contains("no CUDA device") || error.hint().is_some());
                assert_eq!(Device::open(0).unwrap_err(), error);
            }
        }
    }

    #[test]
    fn an_old_driver_is_named_by_its_version() {
        let error = CudaError::OldDriver(CudaVersion(11_080));
        assert!(error.to_string().contains("CUDA 11.8"), "{error}");
    }
}
