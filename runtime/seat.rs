//! Which device a request gets.

use super::device::{Chosen, Device, DeviceChoice, DeviceRequest, Gpu, Unusable};
use super::{Error, Runtime, cuda, rtx};
use crate::nvidia::driver;

impl Runtime {
    /// The device for a request, ready for sessions.
    ///
    /// # Errors
    /// [`Error::Device`] when a GPU is asked for by its name and cannot be used; it has the command that mends it.
    pub fn device(&self, request: DeviceRequest) -> Result<Chosen, Error> {
        let gpu = |id| Gpu {
            id,
            memory_limit: request.memory_limit,
        };
        let asked = |device: Device, found: Result<String, Unusable>| match found {
            Ok(why) => Ok(Chosen {
                device,
                why,
                asked: true,
            }),
            Err(e) => Err(Error::Device {
                device,
                reason: e.reason,
                mend: e.mend,
            }),
        };
        match request.choice {
            DeviceChoice::Cpu => Ok(Chosen::cpu("", true)),
            DeviceChoice::Cuda(id) => asked(Device::Cuda(gpu(id)), cuda::device(self, id)),
            DeviceChoice::Rtx(id) => asked(Device::Rtx(gpu(id)), rtx::device(self, id)),
            DeviceChoice::Auto => Ok(match driver::probe() {
                Err(none) => Chosen::cpu(none.to_string(), false),
                Ok(_) => match cuda::device(self, 0) {
                    Ok(why) => Chosen {
                        device: Device::Cuda(gpu(0)),
                        why,
                        asked: false,
                    },
                    Err(Unusable { reason, mend }) => {
                        Chosen::cpu(format!("not the GPU: {reason}; {mend}"), false)
                    }
                },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::runtime;
    use super::*;

    #[test]
    fn without_a_gpu_the_default_is_the_cpu_and_says_why() {
        let Some(runtime) = runtime() else {
            return;
        };
        let none = match driver::probe() {
            Ok(_) => {
                println!("skipped: this machine has a CUDA device");
                return;
            }
            Err(none) => none,
        };
        let chosen = runtime.device(DeviceRequest::default()).unwrap();
        assert_eq!(chosen.device, Device::Cpu);
        assert_eq!(chosen.to_string(), format!("cpu ({none})"));
        for choice in [DeviceChoice::Cuda(0), DeviceChoice::Rtx(0)] {
            let request = DeviceRequest {
                choice,
                ..DeviceRequest::default()
            };
            let error = runtime.device(request).unwrap_err();
            assert!(error.is_missing_runtime());
            let text = error.to_string();
            assert!(
                text.contains(&none.to_string()) && text.contains(&none.mend()),
                "{text}"
            );
        }
    }
}
