//! Gates on latency, size, precision and the engine's parity; the parity of the model has its own.

use super::CompileError;
use crate::bench::{Ratio, baseline::Verdict};
use crate::check::{InPlace, Multiplication};
use crate::engine_parity::NotRun;
use crate::manifest::{Judged, Manifest};
use crate::nvidia::driver;
use crate::options::Options;
use crate::precision::Format;
use crate::runtime::Device;
use crate::setting::{MAX_LATENCY_RATIO, NO_CHECK, NO_LATENCY};
use crate::targets::Targets;

fn judged(gate: &'static str, pass: bool, why: String) -> Judged {
    let verdict = match pass {
        true => Verdict::Pass,
        false => Verdict::Fail,
    };
    Judged {
        gate: gate.into(),
        verdict,
        why,
    }
}

/// Whether the gates can pass on this machine and with these options at all, before any work is done.
///
/// # Errors
/// [`CompileError::Gates`] with the first that cannot.
pub(super) fn possible(options: &Options, targets: &Targets) -> Result<(), CompileError> {
    let gates = &options.gates;
    let engine = options.engine && targets.is_engine();
    let unmeasured = match (options.check, options.latency) {
        (false, _) => Some(NO_CHECK),
        (true, Some(false)) => Some(NO_LATENCY),
        (true, _) => None,
    };
    let failed = match (gates.latency_ratio, unmeasured, gates.precision) {
        (Some(_), Some(option), _) => Some(format!(
            "the latency was not measured ({option}), and the gate wants it; {MAX_LATENCY_RATIO} off drops the gate"
        )),
        _ if options.judge.is_some() && !options.check => Some(format!(
            "judge: not run, there are no outputs to judge ({NO_CHECK})"
        )),
        (.., Some(precision)) if !engine => Some(format!("{precision}: no engine is built")),
        _ if gates.in_place && !engine => Some("caches in place: no engine is built".into()),
        _ if gates.engine_parity => {
            let why = match (engine, options.check, driver::probe()) {
                (false, ..) if *targets != Targets::Cuda => Some(NotRun::no_engine()),
                (_, false, _) => Some(NotRun::unchecked()),
                (_, _, Err(_)) => Some(NotRun::no_device()),
                (_, true, Ok(_)) => None,
            };
            why.map(|why| format!("engine parity: not run, {}", why.0))
        }
        _ => None,
    };
    match failed {
        None => Ok(()),
        Some(failed) => Err(CompileError::Gates {
            model: options.model.clone(),
            failed,
            manifest: None,
        }),
    }
}

/// Why the engine does not multiply as it must, or why that is not known.
fn lacks(asked: Format, m: &Manifest) -> Option<String> {
    let Some(engine) = &m.engine else {
        return Some(format!("{asked}: no engine was built"));
    };
    let multiplied = Multiplication::of(&engine.listed.kernels, &engine.listed.otherwise);
    let why = multiplied.lacks(asked)?;
    Some(format!("{asked}: {why}"))
}

/// Why a latency on this machine is no answer.
pub(super) fn elsewhere(targets: &Targets) -> String {
    format!("the result serves on {targets}, and ONNX Runtime ran on this machine's CPU")
}

/// The latency belongs to where the result serves: milliseconds of a CPU say nothing about an engine.
fn latency(limit: f64, targets: &Targets, m: &Manifest) -> Judged {
    let on_cpu = m.device.as_ref().is_none_or(|d| d.device.is_cpu());
    if *targets != Targets::Cpu && on_cpu {
        return Judged {
            gate: "latency".into(),
            verdict: Verdict::NotRun,
            why: elsewhere(targets),
        };
    }
    match m.latency.as_ref().and_then(|l| l.ratios.first()) {
        None => judged(
            "latency",
            false,
            "the latency was not measured, and the gate wants it".into(),
        ),
        Some(ratio) => held(ratio, limit),
    }
}

/// Noise is no reason to fail: the whole interval must be beyond the limit.
fn held(ratio: &Ratio, limit: f64) -> Judged {
    let found = 1.0 / ratio.speedup;
    let between = ratio.interval.map(|i| (1.0 / i.high, 1.0 / i.low));
    let (least, most) = between.unwrap_or((found, found));
    let interval = between.map_or(", too few runs for an interval".into(), |(least, most)| {
        format!(", between {least:.3} and {most:.3} with 95 %")
    });
    Judged {
        gate: "latency".into(),
        verdict: match (least > limit, most > limit) {
            (true, _) => Verdict::Fail,
            (false, true) => Verdict::Unclear,
            (false, false) => Verdict::Pass,
        },
        why: format!("the latency is {found:.3} of the original's{interval}, the limit {limit}"),
    }
}

fn sizes(options: &Options, m: &Manifest) -> impl Iterator<Item = Judged> {
    let bytes = m.model_bytes();
    let ratio = bytes as f64 / m.source.bytes.max(1) as f64;
    let absolute = options.gates.bytes.map(|limit| {
        let why = format!("the model has {bytes} bytes, the limit is {limit}");
        judged("size", bytes <= limit, why)
    });
    let relative = options.gates.bytes_ratio.map(|limit| {
        let why = format!("the model has {ratio:.3} of the original's size, the limit is {limit}");
        judged("size", ratio <= limit, why)
    });
    absolute.into_iter().chain(relative)
}

/// Whether what ONNX Runtime's CUDA provider is to run was proved there.
fn served(m: &Manifest) -> Judged {
    let ran = m.device.as_ref().map(|d| d.device);
    let pass = matches!(ran, Some(Device::Cuda(_)));
    let why = match ran {
        Some(device) if pass => format!("the result ran where it serves ({device})"),
        Some(device) => format!("engine parity: not run, the result ran on {device}"),
        None => format!("engine parity: not run, {}", NotRun::unchecked().0),
    };
    judged("engine parity", pass, why)
}

/// Every gate that was set.
pub(super) fn judge(options: &Options, targets: &Targets, m: &Manifest) -> Vec<Judged> {
    let gates = &options.gates;
    let mut all = Vec::new();
    all.extend(gates.latency_ratio.map(|limit| latency(limit, targets, m)));
    all.extend(sizes(options, m));
    if let Some(asked) = gates.precision {
        let lacks = lacks(asked, m);
        let pass = lacks.is_none();
        all.push(judged(
            "precision",
            pass,
            lacks.unwrap_or(asked.to_string()),
        ));
    }
    if gates.in_place {
        let listed = m.engine.as_ref().map(|e| &e.listed);
        let found = InPlace::of(listed.and_then(|l| l.aliased.as_ref()));
        all.push(judged("cache in place", found.pass, found.why));
    }
    if gates.engine_parity && *targets == Targets::Cuda {
        all.push(served(m));
    } else if gates.engine_parity {
        let not_run = m.engine_parity.not_run();
        let why = not_run.map(|why| format!("engine parity: not run, {why}"));
        let pass = why.is_none();
        let why = why.unwrap_or_else(|| m.engine_parity.to_string());
        all.push(judged("engine parity", pass, why));
    }
    let said = m.judge.iter();
    all.extend(said.map(|said| judged("judge", said.pass, said.why.clone())));
    all
}

/// The manifest again, if no gate failed.
///
/// # Errors
/// [`CompileError::Gates`] with all that failed.
pub(super) fn pass(options: &Options, m: Manifest) -> Result<Manifest, CompileError> {
    let failed = m.gates.iter().filter(|g| g.verdict == Verdict::Fail);
    let failed: Vec<&str> = failed.map(|g| g.why.as_str()).collect();
    match failed.is_empty() {
        true => Ok(m),
        false => Err(CompileError::Gates {
            model: options.model.clone(),
            failed: failed.join("; "),
            manifest: Some(Box::new(m)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Interval;

    #[test]
    fn a_latency_fails_only_where_its_whole_interval_is_beyond_the_limit() {
        // A speed-up of 0.8 to 1.25 is a latency of 0.8 to 1.25.
        let ratio = Ratio {
            baseline: "original".into(),
            subject: "result".into(),
            speedup: 1.0,
            interval: Some(Interval {
                low: 0.8,
                high: 1.25,
                level: 0.95,
            }),
        };
        let verdict = |limit| held(&ratio, limit).verdict;
        assert_eq!(verdict(0.7), Verdict::Fail);
        assert_eq!(verdict(1.0), Verdict::Unclear);
        assert_eq!(verdict(1.3), Verdict::Pass);
        let why = held(&ratio, 0.7).to_string();
        assert!(why.starts_with("FAILS: the latency is 1.000"), "{why}");
        assert!(why.contains("between 0.800 and 1.250 with 95 %"), "{why}");
    }
}
