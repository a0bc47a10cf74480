//! CUDA's libraries, and whether provider, libraries, driver and GPUs are of one CUDA.

use super::super::facts::Facts;
use super::super::finding::Finding;
use super::kinds::{absent, cuda_major, found, mismatch, requirement, told};
use crate::runtime::{Unusable, cuda};
use crate::setting::DEVICE;

pub(super) fn runtime(facts: &Facts) -> Finding {
    let (what, enables) = ("CUDA runtime", "the CUDA provider of ONNX Runtime");
    let name = format!("libcudart.so.{}", cuda_major(facts));
    let broken = facts
        .runtimes
        .iter()
        .find_map(|(_, l)| Some((l, l.broken.as_ref()?)));
    if let Some((library, why)) = broken {
        let detail = format!("{}: {why}", library.path.display());
        return absent(what, enables, detail, requirement(facts, &name));
    }
    match facts.runtimes.is_empty() {
        true => absent(
            what,
            enables,
            format!("{name} is not found"),
            requirement(facts, &name),
        ),
        false => {
            let all: Vec<String> = facts.runtimes.iter().map(|(_, l)| told(l)).collect();
            found(what, enables, all.join("; "))
        }
    }
}

pub(super) fn cudnn(facts: &Facts) -> Finding {
    let (what, enables) = (
        "cuDNN",
        &*format!("convolutions and some attention on {DEVICE} cuda"),
    );
    let name = "libcudnn.so.9";
    let mend = requirement(facts, name);
    match &facts.cudnn {
        None => absent(what, enables, format!("{name} is not found"), mend),
        Some(library) => match &library.broken {
            Some(why) => absent(
                what,
                enables,
                format!("{}: {why}", library.path.display()),
                mend,
            ),
            None => found(what, enables, told(library)),
        },
    }
}

/// What is there and is of another CUDA than the provider.
pub(super) fn mismatches(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    let wants = facts.provider().and_then(|p| p.cuda);
    if let Some(wants) = wants {
        all.extend(other_cuda(facts, wants));
        if let Some(other) = facts.cudnn_cuda.filter(|&c| c != wants) {
            all.push(mismatch(
                facts,
                &format!("cuDNN for CUDA {other}"),
                Unusable {
                    reason: format!(
                        "the CUDA provider is built for CUDA {wants}, and the wheel nvidia-cudnn-cu{other} is for CUDA {other}"
                    ),
                    mend: format!(
                        "{} uninstall -y nvidia-cudnn-cu{other} && {}",
                        facts.pip(),
                        requirement(facts, "libcudnn.so.9")
                    ),
                },
            ));
        }
    }
    let Ok(driver) = &facts.driver else {
        return all;
    };
    if let Some(wants) = wants {
        let old = cuda::too_old(driver, wants);
        all.extend(old.map(|why| mismatch(facts, "driver older than the CUDA provider", why)));
        let unserved = driver
            .gpus
            .iter()
            .filter_map(|gpu| cuda::unserved(gpu, wants));
        all.extend(unserved.map(|why| mismatch(facts, "GPU older than the CUDA provider", why)));
    }
    all
}

/// Libraries of another CUDA where those of the provider's are missing: they have other names and do not serve.
fn other_cuda(facts: &Facts, wants: u32) -> Option<Finding> {
    let has = |major| facts.runtimes.iter().any(|(found, _)| *found == major);
    let (other, library) = facts.runtimes.iter().find(|(major, _)| *major != wants)?;
    if has(wants) {
        return None;
    }
    Some(mismatch(
        facts,
        &format!("libraries of CUDA {other} for a provider of CUDA {wants}"),
        Unusable {
            reason: format!(
                "{} is of CUDA {other}; what is built for CUDA {wants} looks for libcudart.so.{wants}, and the two can stand side by side",
                library.path.display()
            ),
            mend: match wants {
                13 => format!("{} install '{}'", facts.pip(), cuda::WHEEL),
                _ => requirement(facts, &format!("libcudart.so.{wants}")),
            },
        },
    ))
}
