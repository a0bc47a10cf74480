//! Limits on metrics, and the named sets of them.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::floor::Floor;
use super::metrics::{Metrics, or_infinite};

/// Limits on metrics. `None` does not check a metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Limits {
    /// Every bit must be equal.
    pub same_bits: bool,
    /// The most that [`max_scaled`](super::FloatMetrics::max_scaled) may be.
    pub max_scaled: Option<f64>,
    /// The most that [`max_abs`](super::FloatMetrics::max_abs) may be.
    pub max_abs: Option<f64>,
    /// The most that [`p99_abs`](super::FloatMetrics::p99_abs) may be.
    pub p99_abs: Option<f64>,
    /// The most that [`relative_l2`](super::FloatMetrics::relative_l2) may be.
    pub relative_l2: Option<f64>,
    /// The least that [`cosine`](super::FloatMetrics::cosine) may be.
    pub cosine: Option<f64>,
    /// The least that [`sqnr_db`](super::FloatMetrics::sqnr_db) may be.
    pub sqnr_db: Option<f64>,
    /// The least that [`argmax`](super::FloatMetrics::argmax) may be, where there is one.
    pub argmax: Option<f64>,
    /// The most places where NaN or infinity on one side meets something else on the other.
    pub nonfinite: Option<f64>,
    /// The largest fraction of unequal elements, for dtypes other than floats.
    pub unequal: Option<f64>,
}

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Verdict {
    pub pass: bool,
    /// The limits that were exceeded.
    pub failed: Vec<Failure>,
    /// Limits that were exceeded by no more than the reference differs from itself.
    #[serde(default)]
    pub forgiven: Vec<Failure>,
}

/// How many times as far from the reference as that is from itself a result may be, below what INT8 may do. A perturbation
/// changes each weight and input once, by a last bit; a rewrite rounds several times for each node, in another order, and
/// the floor is the worst of few runs while a result is judged by its worst element.
pub const FLOOR_FACTOR: f64 = 4.0;

/// How far apart, in multiples of the limit on relative L2, two numbers may be that a result orders otherwise than the
/// reference: both may be off by that much of their magnitude.
pub const MARGIN_FACTOR: f64 = 2.0;

/// Relative L2 from which on a model is said to amplify rounding: more than ten thousand times the last bit of FP32.
pub const LARGE_FLOOR: f64 = 1e-3;

/// Relative L2 from which on a comparison with the reference tells nothing: a result of half its length in the same direction
/// is that far away.
pub const NOTHING_LEFT: f64 = 0.5;

/// By how much the numbers differ between which an output of integers or bools decides, where a result decides otherwise:
/// over the larger of the two, or the root of the mean square of all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Margin {
    pub largest: f64,
    pub limit: f64,
}

/// A metric beyond its limit.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Failure {
    pub metric: Cow<'static, str>,
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub value: f64,
    pub limit: f64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure {
            metric,
            value,
            limit,
        } = self;
        write!(
            f,
            "{metric} {}, limit {}",
            beside(*value, *limit),
            short(*limit)
        )
    }
}

/// Numbers below this, and those from its inverse on, are written with an exponent.
const SMALL: f64 = 1e-3;

fn has_exponent(number: f64) -> bool {
    number != 0. && (number.abs() < SMALL || number.abs() >= 1. / SMALL)
}

/// The fewest digits that say the number.
fn short(number: f64) -> String {
    match has_exponent(number) && number.fract() != 0. {
        true => format!("{number:e}"),
        false => number.to_string(),
    }
}

/// A number with one digit more than the limit that it is beyond, and with so many that it differs from it.
fn beside(value: f64, limit: f64) -> String {
    if !value.is_finite() || value.fract() == 0. {
        return short(value);
    }
    let limit_digits = limit.to_string();
    let places = limit_digits.split_once('.').map_or(0, |(_, d)| d.len());
    let exponent = has_exponent(value);
    let written = |digits: usize| match exponent {
        true => format!("{value:.digits$e}"),
        false => format!("{value:.digits$}"),
    };
    let first = match (exponent, has_exponent(limit)) {
        (true, _) => 2,
        (false, true) => 4,
        (false, false) => (places + 1).clamp(3, 9),
    };
    let differs = |text: &String| text.parse::<f64>().is_ok_and(|v| v != limit);
    let mut tried = (first..17).map(written);
    tried.find(differs).unwrap_or_else(|| value.to_string())
}

impl Limits {
    /// Whether the metrics are within the limits.
    pub fn check(&self, metrics: &Metrics) -> Verdict {
        let mut failed = Vec::new();
        // A comparison with NaN is false, and then the check fails.
        let mut check = |metric: &'static str,
                         value: f64,
                         limit: Option<f64>,
                         within: fn(&f64, &f64) -> bool| {
            if let Some(limit) = limit.filter(|limit| !within(&value, limit)) {
                failed.push(Failure {
                    metric: metric.into(),
                    value,
                    limit,
                });
            }
        };
        let exact = self.same_bits.then_some(1.);
        check(
            "same_bits",
            f64::from(u8::from(metrics.same_bits)),
            exact,
            f64::ge,
        );
        if let Some(float) = &metrics.float {
            let differ = float.nonfinite.differ as f64;
            check("nonfinite", differ, self.nonfinite, f64::le);
            check("max_scaled", float.max_scaled, self.max_scaled, f64::le);
            check("max_abs", float.max_abs, self.max_abs, f64::le);
            check("p99_abs", float.p99_abs, self.p99_abs, f64::le);
            check("relative_l2", float.relative_l2, self.relative_l2, f64::le);
            check("cosine", float.cosine, self.cosine, f64::ge);
            check("sqnr_db", float.sqnr_db, self.sqnr_db, f64::ge);
            check("argmax", float.argmax.unwrap_or(1.), self.argmax, f64::ge);
        } else {
            let fraction = metrics.unequal as f64 / metrics.elements.max(1) as f64;
            check("unequal", fraction, self.unequal, f64::le);
        }
        Verdict {
            pass: failed.is_empty(),
            failed,
            forgiven: Vec::new(),
        }
    }
}

impl Verdict {
    /// The same, with unequal elements forgiven whose decisions were as close as `margin` says.
    pub(super) fn by(mut self, margin: &Margin) -> Verdict {
        if margin.largest <= margin.limit {
            let (forgiven, failed) =
                (self.failed.into_iter()).partition(|f: &Failure| f.metric == "unequal");
            self.failed = failed;
            self.forgiven.extend::<Vec<_>>(forgiven);
            self.pass = self.failed.is_empty();
        }
        self
    }

    /// The same, with all but other bits forgiven.
    pub(super) fn forgiven(mut self) -> Verdict {
        let (failed, forgiven) =
            (self.failed.into_iter()).partition(|f: &Failure| f.metric == "same_bits");
        self.failed = failed;
        self.forgiven.extend::<Vec<_>>(forgiven);
        self.pass = self.failed.is_empty();
        self
    }

    /// The same, with what is within the floor forgiven.
    pub(super) fn above(mut self, floor: &Floor) -> Verdict {
        let allowed = |f: &Failure| floor.allows(&f.metric, f.value);
        let (forgiven, failed) = self.failed.into_iter().partition(allowed);
        self.failed = failed;
        self.forgiven = forgiven;
        self.pass = self.failed.is_empty();
        self
    }
}

/// The named tolerances.
///
/// All of them demand that NaN and infinity stay where they are, and that outputs of integers, bools and strings are
/// equal. Errors are relative to the reference, never absolute: probabilities over a large vocabulary are all small.
/// `max_scaled` is there beside the norms because one wrong element among many moves neither cosine nor relative L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// `fp32-exact`: every bit is equal. For passes that only rename, reorder or remove nodes.
    Fp32Exact,
    /// `fp32-rewrite`: the same mathematics in another order of operations. The rounding unit of FP32 is 6e-8. Over
    /// 61 exports of small Transformers ONNX Runtime's own optimizer moves outputs by up to 4e-7 in relative L2 and
    /// 2e-6 in single elements; the limits leave ten times that for deeper models. Another GELU or a mask of -1e4 for
    /// -inf moves them by more than 1e-4.
    Fp32Rewrite,
    /// `fp16`: 11 significant bits, a rounding unit of 5e-4. The same exports stay within 1e-3 in relative L2, as
    /// residual connections carry the signal; ten times that is no rounding. The largest of a million errors of a bell
    /// curve is five times their root mean square, and attention without a scale (T5) has heavier tails, so a single
    /// element may be off by ten times the limit on relative L2. Overflow beyond 65504 shows as infinity or NaN.
    Fp16,
    /// `bf16`: 8 significant bits, a rounding unit of 4e-3, eight times that of FP16, and so are its errors. The
    /// limit on relative L2 is less than eight times that of FP16, so that a scale wrong by 5 % in half of the
    /// elements (0.036) still fails.
    Bf16,
    /// `int8`: 8-bit weights and activations. A step is 1/127 of the largest value that a scale covers, so elements
    /// well below it lose most of their digits: single elements may be off by more than the typical magnitude, the
    /// direction of the whole must stay. A sound quantization of a sentence encoder stays within 0.11 in relative L2,
    /// one whose sums saturate reaches 0.33.
    Int8,
    /// `fp8`: E4M3 weights and activations have 4 significant bits, so an element is off by up to 6 %; sums of many
    /// average it out, as with `int8`, but the step is relative to each element.
    Fp8,
    /// `int4`: weights of 4 bits in blocks, activations as they were. A product of normal weights is off by 0.085 in
    /// relative L2 at blocks of 32, and the layers of an encoder add up to more; the direction of the result must be held
    /// as `int8` holds it. A model that cannot is no INT4 model: some of its layers must be kept.
    Int4,
}

impl Preset {
    pub const ALL: [Preset; 7] = [
        Preset::Fp32Exact,
        Preset::Fp32Rewrite,
        Preset::Fp16,
        Preset::Bf16,
        Preset::Int8,
        Preset::Fp8,
        Preset::Int4,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Preset::Fp32Exact => "fp32-exact",
            Preset::Fp32Rewrite => "fp32-rewrite",
            Preset::Fp16 => "fp16",
            Preset::Bf16 => "bf16",
            Preset::Int8 => "int8",
            Preset::Fp8 => "fp8",
            Preset::Int4 => "int4",
        }
    }

    pub fn names() -> [&'static str; 7] {
        Preset::ALL.map(Preset::name)
    }

    pub fn limits(self) -> Limits {
        let floats = |max_scaled, relative_l2, cosine| Limits {
            max_scaled: Some(max_scaled),
            relative_l2: Some(relative_l2),
            cosine: Some(cosine),
            nonfinite: Some(0.),
            unequal: Some(0.),
            ..Limits::default()
        };
        match self {
            Preset::Fp32Exact => Limits {
                same_bits: true,
                ..Limits::default()
            },
            Preset::Fp32Rewrite => floats(5e-5, 5e-6, 0.999_999),
            Preset::Fp16 => floats(0.1, 0.01, 0.9999),
            Preset::Bf16 => floats(0.25, 0.03, 0.999),
            Preset::Int8 | Preset::Int4 => floats(1.5, 0.15, 0.99),
            Preset::Fp8 => floats(1.5, 0.2, 0.98),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use kiln_graph::{DType, Tensor};

    use super::super::make::make;
    use super::super::metrics::metrics;
    use super::super::spec::{InputKind, InputSpec};
    use super::super::tolerance::Tolerance;
    use super::*;

    const ROWS: usize = 200;
    const WIDTH: usize = 100;

    fn reference() -> Vec<f32> {
        let spec = InputSpec {
            name: "hidden".to_owned(),
            dtype: DType::F32,
            shape: vec![ROWS, WIDTH],
            kind: InputKind::Normal { std: 1. },
        };
        make(&[spec], 1).unwrap()[0].1.values().unwrap()
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_values(vec![ROWS, WIDTH], values).unwrap()
    }

    /// The tolerances that refuse what `change` does to the reference.
    fn refusing(change: impl Fn(&mut Vec<f32>)) -> Vec<&'static str> {
        let reference = reference();
        let mut candidate = reference.clone();
        change(&mut candidate);
        let metrics = metrics(&tensor(&reference), &tensor(&candidate)).unwrap();
        let refuses = |p: &Preset| !p.limits().check(&metrics).pass;
        Preset::ALL
            .into_iter()
            .filter(refuses)
            .map(Preset::name)
            .collect()
    }

    #[test]
    fn rounding_passes_the_tolerance_of_its_precision() {
        assert!(refusing(|_| ()).is_empty());
        let last_bit = |v: &mut f32| *v = f32::from_bits(v.to_bits() ^ 1);
        assert_eq!(
            refusing(|c| c.iter_mut().for_each(last_bit)),
            ["fp32-exact"]
        );
        let to_f16 = |v: &mut f32| *v = f16::from_f32(*v).to_f32();
        assert_eq!(
            refusing(|c| c.iter_mut().for_each(to_f16)),
            ["fp32-exact", "fp32-rewrite"]
        );
        let to_bf16 = |v: &mut f32| *v = bf16::from_f32(*v).to_f32();
        assert!(!refusing(|c| c.iter_mut().for_each(to_bf16)).contains(&"bf16"));
        let to_int8 = |v: &mut f32| *v = (*v * 127. / 6.).round() * 6. / 127.;
        assert!(!refusing(|c| c.iter_mut().for_each(to_int8)).contains(&"int8"));
        // E4M3 keeps three bits behind the leading one.
        let to_fp8 = |v: &mut f32| *v = f32::from_bits((v.to_bits() + (1 << 19)) & !0xf_ffff);
        assert!(!refusing(|c| c.iter_mut().for_each(to_fp8)).contains(&"fp8"));
    }

    #[test]
    fn one_wrong_element_fails_every_tolerance() {
        let all = Preset::names();
        assert_eq!(refusing(|c| c[777] += 4.), all);
        let largest = |c: &[f32]| (0..c.len()).max_by(|&a, &b| c[a].total_cmp(&c[b])).unwrap();
        let flip = |c: &mut Vec<f32>| {
            let at = largest(c);
            c[at] = -c[at];
        };
        assert_eq!(refusing(flip), all);
    }

    #[test]
    fn one_row_permuted_fails_every_tolerance() {
        assert_eq!(refusing(|c| c[300..400].rotate_left(1)), Preset::names());
        assert_eq!(
            refusing(|c| c[..2 * WIDTH].rotate_left(WIDTH)),
            Preset::names()
        );
    }

    #[test]
    fn what_is_not_finite_fails_every_tolerance() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(refusing(|c| c[5] = value), Preset::names());
        }
    }

    #[test]
    fn a_small_wrong_scale_fails_where_rounding_is_smaller() {
        let half = |c: &mut Vec<f32>| c.iter_mut().step_by(2).for_each(|v| *v *= 1.05);
        // 3.6 % of relative L2 is what quantization itself may do.
        assert_eq!(
            refusing(half),
            ["fp32-exact", "fp32-rewrite", "fp16", "bf16"]
        );
        let slightly = |c: &mut Vec<f32>| c.iter_mut().for_each(|v| *v *= 1.0001);
        assert_eq!(refusing(slightly), ["fp32-exact", "fp32-rewrite"]);
        assert_eq!(refusing(|c| c.fill(0.)), Preset::names());
        assert_eq!(
            refusing(|c| c.iter_mut().for_each(|v| *v = -*v)),
            Preset::names()
        );
    }

    #[test]
    fn an_unequal_integer_fails_every_tolerance() {
        let reference = Tensor::vector(&[1i64, 2, 3, 4]);
        let candidate = Tensor::vector(&[1i64, 2, 3, 5]);
        let metrics = metrics(&reference, &candidate).unwrap();
        for preset in Preset::ALL {
            assert!(!preset.limits().check(&metrics).pass, "{}", preset.name());
        }
        let lenient = Tolerance::named("fp16").unwrap();
        let lenient = lenient.with_override("ids:unequal=0.25").unwrap();
        assert!(lenient.check("ids", &metrics).pass);
        assert!(!lenient.check("other", &metrics).pass);
    }

    #[test]
    fn a_failure_reads_well_and_nan_fails() {
        let failure = |value| Failure {
            metric: "relative_l2".into(),
            value,
            limit: 5e-6,
        };
        assert_eq!(
            failure(0.03571).to_string(),
            "relative_l2 0.0357, limit 5e-6"
        );
        assert!(failure(1.2e-5).to_string().contains("1.20e-5"));
        let beside = |value, limit| {
            let failure = Failure {
                metric: "cosine".into(),
                value,
                limit,
            };
            failure.to_string()
        };
        assert_eq!(beside(0.999_64, 0.9999), "cosine 0.99964, limit 0.9999");
        assert_eq!(
            beside(0.999_899_9, 0.9999),
            "cosine 0.9998999, limit 0.9999"
        );
        assert_eq!(beside(0.5, 0.9), "cosine 0.500, limit 0.9");
        assert_eq!(beside(3., 0.), "cosine 3, limit 0");
        assert_eq!(beside(1.0 / 128.0, 0.), "cosine 0.008, limit 0");
        assert_eq!(beside(f64::NAN, 0.9), "cosine NaN, limit 0.9");
        let one = Tensor::scalar(1f32);
        let mut m = metrics(&one, &one).unwrap();
        m.float.as_mut().unwrap().cosine = f64::NAN;
        assert!(!Preset::Fp16.limits().check(&m).pass);
    }
}
