//! The time of a generation: models in turns, from the same prompt.

use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;

use super::decoder::Decoder;
use super::error::GenerateError;
use super::ports::Feed;
use super::{Generated, Options, Rules, generate, open};
use crate::environment::{Environment, environment};

/// `prompt=512,new=128`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub prompt: usize,
    pub new: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let mut size = Size {
            prompt: 512,
            new: 128,
        };
        for part in text.split(',') {
            let number = |n: &str| n.parse().ok().filter(|n| *n > 0);
            match part
                .split_once('=')
                .map(|(k, n)| (k.trim(), number(n.trim())))
            {
                Some(("prompt", Some(n))) => size.prompt = n,
                Some(("new", Some(n))) => size.new = n,
                _ => {
                    return Err(
                        "write prompt=512,new=128: tokens of the prompt, and new ones".into(),
                    );
                }
            }
        }
        Ok(size)
    }
}

/// What was timed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Benchmark {
    pub prompt: usize,
    pub new: usize,
    pub repetitions: usize,
    pub threads: Option<usize>,
    /// Whether all models gave the same tokens.
    pub same_tokens: bool,
    /// In the order given.
    pub sides: Vec<Side>,
    pub environment: Environment,
}

/// The times of one model.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Side {
    pub name: String,
    /// Seconds to the first token.
    pub first: Quantiles,
    /// Seconds between tokens.
    pub between: Quantiles,
    /// Tokens of the prompt a second: mean and standard deviation over the repetitions.
    pub prompt_rate: (f64, f64),
    /// New tokens a second, likewise, the first one left out.
    pub token_rate: (f64, f64),
    /// The median of each position's time, in seconds.
    pub by_position: Vec<f64>,
    /// What its caches take behind the last token.
    pub cache_bytes: usize,
    pub tokens: Vec<i64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Quantiles {
    /// The smallest numbers that so many of all are not above.
    fn of(all: &[f64]) -> Quantiles {
        let mut sorted = all.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (q * sorted.len() as f64).ceil() as usize;
            let last = sorted.len().saturating_sub(1);
            sorted
                .get(rank.saturating_sub(1).min(last))
                .copied()
                .unwrap_or(0.0)
        };
        Quantiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
        }
    }
}

/// Times models in turns, after one run that is not counted.
///
/// # Errors
/// When a model is no decoder that runs alone, or the tokens do not fit.
pub fn bench(
    models: &[PathBuf],
    size: Size,
    repetitions: usize,
    options: &Options,
) -> Result<Benchmark, GenerateError> {
    let mut decoders = Vec::new();
    for path in models {
        let decoder = open(path, options)?;
        decoder.holds(size.prompt, size.new.saturating_sub(1))?;
        decoders.push(decoder);
    }
    let vocabulary = decoders
        .iter()
        .flat_map(|d| &d.ports.feeds)
        .filter_map(|(_, f)| match f {
            Feed::Tokens { vocabulary } => Some(*vocabulary),
            _ => None,
        });
    let end = vocabulary.min().unwrap_or(1).max(1);
    // Spread over the table; the same for all.
    let prompt: Vec<i64> = (0..size.prompt as i64)
        .map(|k| (7 + 31 * k) % end)
        .collect();
    let rules = Rules {
        limit: size.new,
        ..Rules::default()
    };
    let mut runs: Vec<Vec<Generated>> = vec![Vec::new(); decoders.len()];
    for turn in 0..=repetitions.max(1) {
        for (decoder, runs) in decoders.iter_mut().zip(&mut runs) {
            let prompts = [prompt.clone()];
            let run = generate(decoder, &prompts, &[], &rules, &mut |_, _| {})?;
            if turn > 0 {
                runs.push(run);
            }
        }
    }
    let sides: Vec<Side> = (decoders.iter().zip(&runs))
        .map(|(decoder, runs)| side(decoder, runs, size))
        .collect();
    Ok(Benchmark {
        prompt: size.prompt,
        new: size.new,
        repetitions: repetitions.max(1),
        threads: options.threads.map(usize::from),
        same_tokens: sides.windows(2).all(|w| w[0].tokens == w[1].tokens),
        sides,
        environment: environment(),
    })
}

fn side(decoder: &Decoder, runs: &[Generated], size: Size) -> Side {
    let first: Vec<f64> = runs.iter().map(|r| r.first_seconds).collect();
    let between: Vec<f64> = runs
        .iter()
        .flat_map(|r| r.between_seconds.clone())
        .collect();
    let rate = |of: &dyn Fn(&Generated) -> f64| spread(&runs.iter().map(of).collect::<Vec<_>>());
    let steps = runs
        .iter()
        .map(|r| r.between_seconds.len())
        .min()
        .unwrap_or(0);
    let median = |at: usize| {
        let times: Vec<f64> = runs.iter().map(|r| r.between_seconds[at]).collect();
        Quantiles::of(&times).p50
    };
    let caches = decoder.ports.caches.iter();
    let a_token: usize = caches.filter_map(|c| c.cache.bytes()).sum();
    let places = (decoder
        .ports
        .caches
        .iter()
        .filter_map(|c| c.capacity())
        .min())
    .unwrap_or(size.prompt + size.new.saturating_sub(1));
    Side {
        name: decoder.name().to_string(),
        first: Quantiles::of(&first),
        between: Quantiles::of(&between),
        prompt_rate: rate(&|r| size.prompt as f64 / r.first_seconds),
        token_rate: rate(&|r| {
            let seconds: f64 = r.between_seconds.iter().sum();
            r.between_seconds.len() as f64 / seconds.max(f64::MIN_POSITIVE)
        }),
        by_position: (0..steps).map(median).collect(),
        cache_bytes: a_token * places,
        tokens: (runs.first()).map_or(Vec::new(), |r| r.tokens.concat()),
    }
}

/// Mean and standard deviation.
fn spread(all: &[f64]) -> (f64, f64) {
    let n = all.len().max(1) as f64;
    let mean = all.iter().sum::<f64>() / n;
    let square = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    (mean, (square / (n - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let size = |prompt, new| Ok(Size { prompt, new });
        assert_eq!("prompt=128,new=64".parse(), size(128, 64));
        assert_eq!("new=8".parse(), size(512, 8));
        for bad in ["", "prompt", "prompt=0", "old=3", "prompt=1;new=2"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn quantiles_are_numbers_that_were_measured() {
        let all: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let q = Quantiles::of(&all);
        assert_eq!((q.p50, q.p90, q.p99), (50.0, 90.0, 99.0));
        assert_eq!(Quantiles::of(&[3.0]).p99, 3.0);
        assert_eq!(spread(&[1.0, 3.0]), (2.0, 2f64.sqrt()));
    }
}
