//! What difference from the reference is accepted, by name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::floor::Floor;
use super::limits::{Limits, MARGIN_FACTOR, Preset, Verdict};
use super::metrics::Metrics;
use crate::nearest;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToleranceError {
    #[error("unknown tolerance \"{name}\"; known tolerances: {}", Preset::names().join(", "))]
    Unknown { name: String },
    #[error(
        "\"{text}\" is not OUTPUT:METRIC=LIMIT[,METRIC=LIMIT…] (for example logits:cosine=0.999,max_abs=1e-3): {reason}"
    )]
    Override { text: String, reason: String },
    #[error("a limit is for output '{output}', which the model does not have; it has: {has}")]
    NoOutput { output: String, has: String },
}

/// A named tolerance, with other limits for some outputs.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Tolerance {
    pub name: String,
    pub limits: Limits,
    /// By output name; the last one of a name counts.
    pub overrides: Vec<(String, Limits)>,
}

impl From<Preset> for Tolerance {
    fn from(preset: Preset) -> Tolerance {
        Tolerance {
            name: preset.name().to_owned(),
            limits: preset.limits(),
            overrides: Vec::new(),
        }
    }
}

impl Tolerance {
    /// The tolerance of this name (`fp16`).
    ///
    /// # Errors
    /// When there is none; the message lists the names.
    pub fn named(name: &str) -> Result<Tolerance, ToleranceError> {
        let preset = Preset::ALL.into_iter().find(|p| p.name() == name);
        let preset = preset.ok_or_else(|| ToleranceError::Unknown {
            name: name.to_owned(),
        })?;
        Ok(preset.into())
    }

    /// Changes limits for one output: `logits:cosine=0.999,max_abs=1e-3`. Limits not mentioned stay; `off` drops
    /// one. The metrics are the fields of [`Limits`].
    ///
    /// # Errors
    /// When the text is not of that form.
    pub fn with_override(mut self, text: &str) -> Result<Tolerance, ToleranceError> {
        let bad = |reason: String| ToleranceError::Override {
            text: text.to_owned(),
            reason,
        };
        // Names of outputs can hold colons, metrics and limits cannot.
        let (output, changes) = text
            .rsplit_once(':')
            .filter(|(output, _)| !output.is_empty())
            .ok_or_else(|| bad("it names no output".to_owned()))?;
        let mut limits = *self.limits_of(output);
        for change in changes.split(',') {
            set(&mut limits, change).map_err(bad)?;
        }
        self.overrides.push((output.to_owned(), limits));
        Ok(self)
    }

    /// Whether limits are for outputs that there are: others would never be held against anything.
    ///
    /// # Errors
    /// When one is not, with the names that there are.
    pub fn names_outputs_of<'a>(
        &self,
        outputs: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), ToleranceError> {
        let known = |name: &str| outputs.clone().any(|o| o == name);
        match self.overrides.iter().find(|(name, _)| !known(name)) {
            None => Ok(()),
            Some((output, _)) => Err(ToleranceError::NoOutput {
                output: output.clone(),
                has: nearest::instead(outputs, output),
            }),
        }
    }

    /// The limits for an output.
    pub fn limits_of(&self, output: &str) -> &Limits {
        let own = self.overrides.iter().rev().find(|(o, _)| o == output);
        own.map_or(&self.limits, |(_, limits)| limits)
    }

    /// Whether an output's metrics are within its limits.
    pub fn check(&self, output: &str, metrics: &Metrics) -> Verdict {
        self.limits_of(output).check(metrics)
    }

    /// How close, in relative terms, numbers must be for an output to decide between them otherwise than the reference; `None`
    /// if nothing says how far floats may be off.
    pub fn margin(&self, output: &str) -> Option<f64> {
        let limits = self.limits_of(output);
        (limits.unequal.is_some()).then_some(MARGIN_FACTOR * limits.relative_l2?)
    }

    /// Whether limits were given for this output by name: those are meant as they are, whatever the noise.
    pub fn is_given(&self, output: &str) -> bool {
        self.overrides.iter().any(|(o, _)| o == output)
    }

    /// As [`Tolerance::check`], where the reference differs from itself by `floor`.
    pub fn check_above(&self, output: &str, metrics: &Metrics, floor: Option<&Floor>) -> Verdict {
        let verdict = self.check(output, metrics);
        match floor {
            Some(floor) if !verdict.pass && !self.is_given(output) => verdict.above(floor),
            _ => verdict,
        }
    }
}

fn set(limits: &mut Limits, change: &str) -> Result<(), String> {
    let (metric, value) = change
        .split_once('=')
        .ok_or_else(|| format!("\"{change}\" has no ="))?;
    let (metric, value) = (metric.trim(), value.trim());
    let limit = match value {
        "off" => None,
        number => match number.parse::<f64>() {
            Ok(limit) if !limit.is_nan() => Some(limit),
            _ => return Err(format!("\"{value}\" is not a number")),
        },
    };
    let field = match metric {
        "max_scaled" => &mut limits.max_scaled,
        "max_abs" => &mut limits.max_abs,
        "p99_abs" => &mut limits.p99_abs,
        "relative_l2" => &mut limits.relative_l2,
        "cosine" => &mut limits.cosine,
        "sqnr_db" => &mut limits.sqnr_db,
        "argmax" => &mut limits.argmax,
        "nonfinite" => &mut limits.nonfinite,
        "unequal" => &mut limits.unequal,
        "same_bits" if limit.is_none() => {
            limits.same_bits = false;
            return Ok(());
        }
        _ => return Err(format!("\"{metric}\" is not a metric that can be limited")),
    };
    *field = limit;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_change_what_they_name() {
        let fp16 = Tolerance::named("fp16").unwrap();
        let own = fp16
            .clone()
            .with_override("a:b:cosine=0.5, max_abs=1e-3,max_scaled=off");
        let own = own.unwrap().with_override("a:b:argmax=1").unwrap();
        let limits = own.limits_of("a:b");
        assert_eq!((limits.cosine, limits.max_abs), (Some(0.5), Some(1e-3)));
        assert_eq!((limits.max_scaled, limits.argmax), (None, Some(1.)));
        assert_eq!(limits.relative_l2, fp16.limits.relative_l2);
        assert_eq!(own.limits_of("b"), &fp16.limits);
        let bad = [
            "cosine=1",
            ":cosine=1",
            "y:",
            "y:cosine",
            "y:cosine=x",
            "y:cosine=nan",
            "y:x=1",
        ];
        for text in bad {
            assert!(fp16.clone().with_override(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let err = Tolerance::named("fp17").unwrap_err().to_string();
        assert!(
            err.ends_with("fp32-exact, fp32-rewrite, fp16, bf16, int8, fp8, int4"),
            "{err}"
        );
    }
}
