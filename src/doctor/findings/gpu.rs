//! The driver and its GPUs.

use super::super::facts::Facts;
use super::super::finding::Finding;
use super::kinds::{absent, found, mismatch};
use crate::engine::ComputeCapability;
use crate::nvidia::driver;
use crate::nvidia::gpus::Status;
use crate::runtime::Unusable;
use crate::setting::{DEVICE, TARGET};
use crate::summary::bytes;

pub(super) fn driver(facts: &Facts) -> Finding {
    let (what, enables) = ("NVIDIA driver", "everything that runs on a GPU");
    match &facts.driver {
        Ok(d) => {
            let release = d.release.clone();
            let told = facts.managed.as_ref().ok().and_then(|m| m.driver.clone());
            let release = release
                .or(told)
                .unwrap_or_else(|| "of unknown release".into());
            let nvml = match &facts.managed {
                Ok(_) => String::new(),
                Err(why) => {
                    format!("; NVML, which tells clocks and power, is not to be had: {why}")
                }
            };
            found(
                what,
                enables,
                format!("{release}, serves CUDA up to {}{nvml}", d.cuda),
            )
        }
        Err(why) => absent(what, enables, why.to_string(), why.mend()),
    }
}

/// One finding for each GPU, or one that there is none.
pub(super) fn gpus(facts: &Facts) -> Vec<Finding> {
    let Ok(driver) = &facts.driver else {
        let detail = format!("engines are built for {TARGET} and are not run here");
        return vec![Finding {
            found: false,
            ..found(
                "GPU",
                &format!("the default target, {DEVICE} cuda, engine parity"),
                detail,
            )
        }];
    };
    let status = facts.managed.as_ref().map_or(&[][..], |m| &m.gpus);
    let one = |(k, gpu): (usize, &driver::Gpu)| {
        // NVML's order is that of PCI addresses, CUDA's need not be. Drivers that tell no UUID have names, at least.
        let same =
            |s: &&Status| s.name == gpu.name && s.capability.is_none_or(|c| c == gpu.capability);
        let known = |s: &&Status| s.uuid.is_some() && s.uuid == gpu.uuid;
        let at = (status.iter().find(known))
            .or_else(|| status.get(k).filter(same))
            .or_else(|| status.iter().find(same));
        let mut detail = format!(
            "{}, {}, {}",
            gpu.name,
            gpu.target(),
            bytes(gpu.memory as usize)
        );
        detail += &at.map_or(String::new(), state);
        found(&format!("GPU {k}"), &enables(gpu), detail)
    };
    driver.gpus.iter().enumerate().map(one).collect()
}

fn state(s: &Status) -> String {
    let mut parts = Vec::new();
    if let Some(used) = s.now.used {
        parts.push(format!("{} of its memory taken", bytes(used as usize)));
    }
    match (s.mig, s.instances) {
        (Some(true), n) => parts.push(format!("MIG with {n} instances")),
        (Some(false), _) => parts.push("no MIG".into()),
        (None, _) => {}
    }
    if let (Some(now), Some(most)) = (s.now.clock, s.max_clock) {
        parts.push(format!("{now} of {most} MHz"));
    }
    if let (Some(now), Some(most)) = (s.now.memory_clock, s.max_memory_clock) {
        parts.push(format!("memory {now} of {most} MHz"));
    }
    if let (Some(now), Some(most)) = (s.now.power, s.power_limit) {
        parts.push(format!("{now:.0} of {most:.0} W"));
    }
    if let Some(degrees) = s.now.temperature {
        parts.push(format!("{degrees} °C"));
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!("; {}", parts.join(", ")),
    }
}

/// What a GPU has units for (NVIDIA, "CUDA C++ Programming Guide", compute capabilities), and which TensorRT serves it.
fn enables(gpu: &driver::Gpu) -> String {
    let mut all = vec!["FP32"];
    for (since, what) in [
        ((7, 0), "FP16"),
        ((7, 5), "INT8"),
        ((8, 0), "BF16"),
        ((8, 9), "FP8"),
    ] {
        if gpu.capability >= since {
            all.push(what);
        }
    }
    let rtx = match gpu.target().parse::<ComputeCapability>() {
        Ok(_) => "engines by TensorRT for RTX",
        Err(_) => "no engines by TensorRT for RTX, which does not serve it; TensorRT proper does",
    };
    format!("products in {}; {rtx}", all.join(", "))
}

/// GPUs that are there and of no use.
pub(super) fn mismatches(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    if let Ok(managed) = &facts.managed {
        let empty = managed
            .gpus
            .iter()
            .filter(|g| g.mig == Some(true) && g.instances == 0);
        all.extend(empty.map(|gpu| Finding {
            needed: true,
            ..mismatch(
                facts,
                "MIG without instances",
                Unusable {
                    reason: format!("{} is partitioned (MIG) and has no instance, so CUDA does not see it", gpu.name),
                    mend: "nvidia-smi mig -cgi 0 -C makes one of the whole GPU; nvidia-smi -mig 0 switches MIG off".into(),
                },
            )
        }));
    }
    all
}
